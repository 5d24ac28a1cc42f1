//! run: what its options change inside.

use crate::support::{Root, busybox, needs_containers};

#[test]
fn variables_come_from_the_line_from_files_and_from_here() {
    needs_containers!();
    let root = Root::new();
    let file = root.file("env");
    std::fs::write(&file, "# comment\n\nA=file\nB=file with blanks\n  HERE\nNOT_HERE\n").unwrap();
    let mut command =
        root.command(&["run", "--rm", "--env-file", file.to_str().unwrap(), "-e", "A=line", "-e", "ALSO"]);
    command.args(["--rootfs", "/", "--", "env"]).env("HERE", "from here").env("ALSO", "=").env("SECRET", "x");
    let output = crate::support::finish(command);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for line in ["A=line", "B=file with blanks", "HERE=from here", "ALSO=="] {
        assert!(lines.contains(&line), "{line}: {text}");
    }
    assert!(!text.contains("NOT_HERE") && !text.contains("SECRET"), "{text}");
}

#[test]
fn directory_user_and_host_name() {
    needs_containers!();
    let root = Root::new();
    assert_eq!(root.says(&["--rm", "-w", "/usr"], &["pwd"]), "/usr");
    assert_eq!(root.says(&["--rm", "-u", "12:34"], &["sh", "-c", "id -u; id -g"]), "12\n34");
    assert_eq!(root.says(&["--rm", "--hostname", "box"], &["uname", "-n"]), "box");
}

#[test]
fn an_empty_option_is_one_that_was_not_given() {
    needs_containers!();
    let root = Root::new();
    let Some(tree) = busybox(&root) else { return };
    let tree = tree.to_str().unwrap();
    root.ok(&["import", "--owner", "0:0", "-c", "USER 12:34", "-c", "WORKDIR /etc", tree, "tools:1"]);
    let script = "id -u; id -g; pwd; cat /etc/hostname";
    let said = root.ok(&["run", "--rm", "-u", "", "-w", "", "--hostname", "", "tools:1", "sh", "-c", script]);
    let lines: Vec<&str> = said.lines().collect();
    let ["12", "34", "/etc", name] = lines[..] else { panic!("{said}") };
    assert!(name.len() == 12 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{said}");
}

#[test]
fn a_name_alone_in_a_file_takes_nothing_away() {
    needs_containers!();
    let root = Root::new();
    let Some(tree) = busybox(&root) else { return };
    root.ok(&["import", "--owner", "0:0", "-c", "ENV FROM_IMAGE=yes", tree.to_str().unwrap(), "tools:1"]);
    let file = root.file("env");
    std::fs::write(&file, "FROM_IMAGE\n").unwrap();
    let seen = |options: &[&str]| {
        let all = [&["run", "--rm"], options, &["tools:1", "env"]].concat();
        root.ok(&all).lines().any(|line| line == "FROM_IMAGE=yes")
    };
    assert!(seen(&["--env-file", file.to_str().unwrap()]));
    assert!(!seen(&["-e", "FROM_IMAGE"]));
}

#[test]
fn mounts_in_all_spellings() {
    needs_containers!();
    let root = Root::new();
    let dir = root.file("data");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("file"), "data").unwrap();
    let dir = dir.to_str().unwrap();
    let write = ["sh", "-c", "cat /mnt/file; echo more > /mnt/new"];
    root.says(&["--rm", "-v", &format!("{dir}:/mnt")], &write);
    assert_eq!(std::fs::read_to_string(format!("{dir}/new")).unwrap(), "more\n");
    for options in
        [&["-v", &format!("{dir}:/mnt:ro")], &["--mount", &format!("type=bind,source={dir},target=/mnt,readonly")]]
    {
        let output = root.sandbox(&[&["--rm"], &options[..]].concat(), &write);
        assert_ne!(output.status.code(), Some(0), "{options:?}");
        assert_eq!(output.stdout, b"data", "{options:?}: {output:?}");
    }
    for options in [&["--tmpfs", "/mnt:size=1m"], &["--mount", "type=tmpfs,target=/mnt,tmpfs-size=1m"]] {
        let options = [&["--rm"], &options[..]].concat();
        let said = root.says(&options, &["sh", "-c", "echo x > /mnt/x; ls /mnt; grep ' /mnt tmpfs' /proc/mounts"]);
        assert!(said.starts_with("x\n") && said.contains("size=1024k"), "{said}");
    }
    let relative = root.command(&["run", "--rm", "-v", "./data:/mnt:ro", "--rootfs", "/", "--", "cat", "/mnt/file"]);
    let mut relative = relative;
    relative.current_dir(root.file(""));
    assert_eq!(crate::support::finish(relative).stdout, b"data");
}

#[test]
fn a_mount_does_not_hide_what_is_mounted_below_it() {
    needs_containers!();
    let root = Root::new();
    let dir = root.file("data");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("file"), "data").unwrap();
    let volume = format!("{}:/mnt/in:ro", dir.display());
    // Volumes come first on every command line, whatever its order.
    assert_eq!(root.says(&["--rm", "--tmpfs", "/mnt", "-v", &volume], &["cat", "/mnt/in/file"]), "data");
    let output = root.sandbox(&["--rm", "--tmpfs", "/mnt/in/", "-v", &volume], &["true"]);
    assert_eq!(output.status.code(), Some(125));
    let complaint = crate::support::complaint(&output);
    assert!(complaint.contains("\"/mnt/in\"") && complaint.contains("two mounts"), "{complaint}");
}

#[test]
fn mounts_inside_come_along_unless_told_otherwise() {
    needs_containers!();
    let root = Root::new();
    // `/dev` has mounts inside on any host: whether there is a pts shows what came along.
    let seen = |rest: &str| {
        let mount = format!("type=bind,source=/dev,target=/mnt,{rest}");
        root.sandbox(&["--rm", "--mount", &mount], &["sh", "-c", "grep -c ' /mnt/pts ' /proc/mounts"])
    };
    let count = |output: &std::process::Output| String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let (with, without) = (seen("bind-recursive=enabled"), seen("bind-recursive=disabled"));
    assert_ne!(count(&with), "0", "{with:?}");
    // A user namespace may not uncover what other mounts cover.
    if nix::unistd::geteuid().is_root() {
        assert_eq!(count(&without), "0", "{without:?}");
    }
}

#[test]
fn read_only_is_read_only() {
    needs_containers!();
    let root = Root::new();
    let own = root.file("");
    let own = own.to_str().unwrap();
    // Parts of the host's tree are laid over one by one; none of them may be forgotten.
    for directory in [own, "/tmp", "/run", "/"] {
        let output = root.sandbox(&["--rm", "--read-only"], &["touch", &format!("{directory}/x")]);
        assert_eq!(output.status.code(), Some(1), "{directory}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("Read-only"), "{directory}: {output:?}");
    }
    root.says(&["--rm"], &["touch", &format!("{own}/x")]);
    root.says(&["--rm", "--read-only", "--tmpfs", own], &["touch", &format!("{own}/x")]);
}

#[test]
fn networks_are_none_or_the_hosts() {
    needs_containers!();
    let root = Root::new();
    let links = |options: &[&str]| root.says(options, &["readlink", "/proc/self/ns/net"]);
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_ne!(links(&["--rm"]), own.to_str().unwrap());
    assert_ne!(links(&["--rm", "--network", "none"]), own.to_str().unwrap());
    assert_eq!(links(&["--rm", "--network", "host"]), own.to_str().unwrap());
}

#[test]
fn a_container_resolves_its_own_name() {
    needs_containers!();
    let root = Root::new();
    let script = "uname -n; getent hosts $(uname -n) > /dev/null && echo resolved";
    let said = |options: &[&str]| root.says(&[&["--rm"], options].concat(), &["sh", "-c", script]);
    assert!(said(&[]).ends_with("\nresolved"));
    assert_eq!(said(&["--hostname", "box"]), "box\nresolved");
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(said(&["--network", "host"]), format!("{}\nresolved", own.trim()));
    assert_eq!(said(&["--network", "host", "--hostname", "box"]), "box\nresolved");
}

#[test]
fn privileges_follow_the_options() {
    needs_containers!();
    let root = Root::new();
    let status = |options: &[&str], field: &str| {
        let said = root.says(&[&["--rm"], options].concat(), &["grep", field, "/proc/self/status"]);
        said.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(status(&[], "NoNewPrivs"), "1");
    assert_eq!(status(&["--security-opt", "no-new-privileges=false"], "NoNewPrivs"), "0");
    assert_eq!(status(&[], "Seccomp:"), "2");
    let bounding = |options: &[&str]| u64::from_str_radix(&status(options, "CapBnd"), 16).unwrap();
    let (raw, sys_time) = (1 << 13, 1 << 25);
    assert_eq!(bounding(&[]) & (raw | sys_time), raw);
    assert_eq!(bounding(&["--cap-drop", "NET_RAW"]) & raw, 0);
    assert_eq!(bounding(&["--cap-drop", "ALL"]), 0);
    assert_eq!(bounding(&["--cap-drop", "ALL", "--cap-add", "NET_RAW"]), raw);
}

/// An option that gives something away does not take back what was required in the same breath.
#[test]
fn an_explicit_requirement_is_never_waived() {
    needs_containers!();
    let root = Root::new();
    let profile = root.file("allow.json");
    std::fs::write(&profile, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    let custom = format!("seccomp={}", profile.display());
    for (requirement, option) in [
        ("system-calls=full", &["--security-opt", &custom][..]),
        ("filesystem-write=full", &["--security-opt", "systempaths=unconfined"]),
        ("privileges=full", &["--security-opt", "systempaths=unconfined"]),
        ("filesystem-write=full", &["--cap-add", "SYS_ADMIN"]),
        ("system-calls=full", &["--security-opt", "seccomp=unconfined"]),
        ("network=full", &["--network", "host"]),
        ("privileges=full", &["--security-opt", "no-new-privileges=false"]),
    ] {
        assert_eq!(root.says(&[&["--rm"], option].concat(), &["echo", "x"]), "x");
        let output = root.sandbox(&[&["--rm", "--require", requirement], option].concat(), &["echo", "x"]);
        assert_eq!(output.status.code(), Some(125), "{requirement} {option:?}: {output:?}");
        let aspect = requirement.split_once('=').unwrap().0.replace('-', " ");
        assert!(crate::support::complaint(&output).contains(&aspect), "{output:?}");
        assert!(output.stdout.is_empty());
    }
}

/// The default filter leaves socketcall(2) to 32-bit programs, and says so.
#[test]
fn the_strict_filter_is_the_full_one() {
    needs_containers!();
    let root = Root::new();
    let full = ["--rm", "--require", "system-calls=full"];
    assert_eq!(root.says(&[&full[..], &["--security-opt", "seccomp=strict"]].concat(), &["echo", "x"]), "x");
    let output = root.sandbox(&full, &["echo", "x"]);
    match cfg!(target_arch = "x86_64") {
        true => assert!(crate::support::complaint(&output).contains("socketcall"), "{output:?}"),
        false => assert!(output.status.success(), "{output:?}"),
    }
}

#[test]
fn requirements_are_a_minimum() {
    needs_containers!();
    let root = Root::new();
    assert_eq!(root.says(&["--rm", "--require", "nothing"], &["echo", "x"]), "x");
    assert_eq!(root.says(&["--rm", "--require", "processes=full"], &["echo", "x"]), "x");
    let report = root.json(&["doctor"]);
    let limits = report["enforcement"]["aspects"].as_array().unwrap().iter().find(|it| it["aspect"] == "limits");
    let output = root.sandbox(&["--rm", "--require", "limits=full"], &["true"]);
    match limits.unwrap()["level"].as_str().unwrap() {
        "full" => assert!(output.status.success(), "{output:?}"),
        _ => {
            assert_eq!(output.status.code(), Some(125));
            assert!(crate::support::complaint(&output).contains("limits"), "{output:?}");
        }
    }
}
