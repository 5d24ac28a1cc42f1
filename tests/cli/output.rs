//! Who reads the output, and in which form.

use std::process::Stdio;

use crate::support::{Root, complaint, needs_containers};

#[test]
fn a_reader_that_went_away_is_no_panic() {
    let root = Root::new();
    root.ok(&["images"]);
    for arguments in
        [&["images"][..], &["version"], &["--help"], &["doctor"], &["--json", "ps", "-a"], &["inspect", "x"]]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = root.command(arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("panick"), "{arguments:?}: {said}");
        assert_eq!(output.status.code(), Some(141), "{arguments:?}: {output:?}");
        assert_eq!(said.lines().count(), usize::from(arguments == ["inspect", "x"]), "{arguments:?}: {said}");
    }
}

#[test]
fn a_reader_of_errors_that_went_away_is_no_panic() {
    let root = Root::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = root.command(&["rmi", "absent"]).stdout(Stdio::piped()).stderr(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn closed_streams_are_no_panic() {
    let root = Root::new();
    let script = format!("exec {} --root {} images <&- >&- 2>&-", crate::support::COMMAND, root.path().display());
    let status = std::process::Command::new("sh").args(["-c", &script]).status().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_full_disk_is_told() {
    let root = Root::new();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = root.command(&["images"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("space"), "{output:?}");
}

#[test]
fn a_container_whose_reader_went_away_ends() {
    needs_containers!();
    let root = Root::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = root.command(&["run", "--rm", "--rootfs", "/", "--", "sh", "-c", "yes; exit 5"]);
    let output = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
}

#[test]
fn lists_are_arrays_and_the_rest_objects() {
    let root = Root::new();
    for arguments in [&["images"][..], &["ps"], &["ps", "-a"]] {
        assert_eq!(root.json(arguments), serde_json::json!([]), "{arguments:?}");
    }
    assert_eq!(root.json(&["version"])["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(root.ok(&["version"]), format!("coracle {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_doctor_reports_to_people_and_programs() {
    let root = Root::new();
    let output = root.run(&["--json", "doctor"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.success(), report["runs_containers"].as_bool().unwrap());
    let findings = report["findings"].as_array().unwrap();
    assert!(findings.iter().any(|finding| finding["what"] == "user-namespaces"), "{report}");
    for finding in findings {
        assert!(finding["state"] == "yes" || finding["cause"].is_string(), "{finding}");
    }
    let output = root.run(&["doctor"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("FEATURE") && text.contains("kernel"), "{text}");
    assert!(output.stderr.is_empty());
    if output.status.success() {
        assert_eq!(report["enforcement"]["aspects"].as_array().unwrap().len(), 7);
        assert!(text.contains("Tried: a sandbox ran"), "{text}");
    }
    // Trying out leaves nothing behind.
    assert_eq!(root.json(&["ps", "-a"]), serde_json::json!([]));
}

#[test]
fn files_behind_the_streams_stay_outside() {
    use std::os::unix::fs::PermissionsExt;
    needs_containers!();
    let root = Root::new();
    let path = root.file("out");
    std::fs::write(root.file("in"), "x".repeat(200_000)).unwrap();
    let file = std::fs::File::create(&path).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).unwrap();
    // Both streams are the same file, and what was written last comes last.
    let script = "chmod 4755 /proc/self/fd/1; chmod 4755 /proc/self/fd/0; wc -c; \
                  for i in 1 2 3; do echo out; echo err >&2; done; seq 100000";
    let mut command = root.command(&["run", "--rm", "-i", "--rootfs", "/", "sh", "-c", script]);
    command.stdin(std::fs::File::open(root.file("in")).unwrap());
    command.stderr(file.try_clone().unwrap()).stdout(file);
    assert!(command.status().unwrap().success());
    for name in ["out", "in"] {
        let mode = std::fs::metadata(root.file(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7000, 0, "{name}");
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let start = text.find("200000\n").unwrap();
    let numbers: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    assert!(text[start..] == format!("200000\n{}{numbers}", "out\nerr\n".repeat(3)), "{}", &text[..200]);
}
