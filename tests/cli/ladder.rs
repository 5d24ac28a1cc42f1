//! --isolation, --readable, and the profile for untrusted code.

use crate::support::{Root, needs_containers};

#[test]
fn a_rung_can_be_chosen() {
    let root = Root::new();
    let work = root.file("work");
    std::fs::create_dir(&work).unwrap();
    let volume = format!("{0}:{0}", work.display());
    let script =
        format!("echo x > {}/x; (echo x > /tmp/surely-not) 2>/dev/null || echo refused; exit 5", work.display());
    let run = ["--isolation", "landlock", "run", "--rm", "--rootfs", "/", "--read-only", "-v", &volume];
    let command = ["--", "sh", "-c", &script];
    let refused = root.fails(125, &[&run[..], &command].concat());
    assert!(refused.contains("is required") && refused.contains("require less"), "{refused}");
    let output = root.run(&[&run[..], &["--require", "nothing"], &command].concat());
    assert_eq!((output.status.code(), &*output.stdout), (Some(5), &b"refused\n"[..]), "{output:?}");
    assert_eq!(std::fs::read(work.join("x")).unwrap(), b"x\n");
    // Aspect by aspect, as the readme has it.
    let some =
        ["--require", "processes=partial", "--require", "filesystem-read=partial", "--require", "privileges=partial"];
    let output = root.run(&[&run[..], &some, &["--", "true"]].concat());
    assert!(output.status.success(), "{output:?}");
    let thrown_away = root.fails(125, &["--isolation", "landlock", "run", "--rm", "--rootfs", "/", "--", "true"]);
    assert!(thrown_away.contains("--read-only"), "{thrown_away}");
    assert!(!root.run(&["--isolation", "walls", "ps"]).status.success());
}

#[test]
fn doctor_says_which_rungs_are_within_reach() {
    let root = Root::new();
    let output = root.run(&["--json", "doctor"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    for rung in ["namespace-isolation", "landlock-isolation", "chroot-isolation"] {
        let finding = findings.iter().find(|finding| finding["what"] == rung).unwrap();
        assert!(
            finding["state"] == "yes" || finding["cause"].is_string() && finding["remedy"].is_string(),
            "{finding}"
        );
    }
}

#[test]
fn untrusted_code_has_nothing() {
    needs_containers!();
    let root = Root::new();
    let options =
        ["--rm", "--security-opt", "untrusted", "--readable", "/usr", "--readable", "/bin", "--readable", "/lib"];
    let options = [&options[..], &["--readable", "/lib64", "--readable", "/proc"]].concat();
    let said =
        root.says(&options, &["sh", "-c", "grep -E 'CapBnd|NoNewPrivs' /proc/self/status; cat /etc/passwd 2>&1; true"]);
    assert!(said.contains("CapBnd:\t0000000000000000\nNoNewPrivs:\t1") && said.contains("Permission denied"), "{said}");
}
