//! What was typed wrong, and what is not there.

use serde_json::Value;

use crate::support::{Root, complaint, docker_archive, finish, tar_of};

#[test]
fn bad_usage_is_2_and_one_line() {
    let root = Root::new();
    for (arguments, part) in [
        (&["imagse"][..], "'images'"),
        (&["images", "--bogus"], "--bogus"),
        (&["rmi"], "IMAGE"),
        (&["rm"], "CONTAINER"),
        (&["tag", "a"], "TARGET"),
        (&["kill", "-s", "NOPE", "x"], "NOPE"),
        (&["stop", "-t", "soon", "x"], "soon"),
        (&["load", "--platform", "a/b/c/d/e", "x"], "platform"),
        (&["load", "-i", "a", "b"], "--input"),
        (&["inspect", "-t", "volume", "x"], "volume"),
    ] {
        let said = root.fails(2, arguments);
        assert!(said.contains(part) && said.contains("--help"), "{arguments:?}: {said}");
    }
    assert!(!root.path().exists(), "a root was made for nothing");
}

#[test]
fn bad_usage_of_run_is_125() {
    let root = Root::new();
    for (arguments, part) in [
        (&["run"][..], "IMAGE"),
        (&["run", "--bogus", "x"], "--bogus"),
        (&["run", "--network", "bridge", "x"], "bridge"),
        (&["run", "--stop-signal", "NOPE", "x"], "NOPE"),
        (&["run", "-d", "--rootfs", "/", "true"], "background"),
        (&["run", "-it", "--rootfs", "/", "true"], "terminal"),
        (&["run", "-v", "name:/x", "--rootfs", "/", "true"], "named volumes"),
        (&["run", "--mount", "type=odd,target=/x", "--rootfs", "/", "true"], "type"),
        (&["run", "--security-opt", "odd", "--rootfs", "/", "true"], "odd"),
        (&["run", "--require", "odd", "--rootfs", "/", "true"], "filesystem-read"),
        (&["run", "--env-file", "/does/not/exist", "--rootfs", "/", "true"], "/does/not/exist"),
        (&["run", "--cap-add", "ODD", "--rootfs", "/", "true"], "ODD"),
        (&["run", "--name", "no good", "--rootfs", "/", "true"], "no good"),
        (&["run", "--rootfs", "/"], "command"),
        (&["run", "--rootfs", "/does/not/exist", "true"], "/does/not/exist"),
    ] {
        let said = root.fails(125, arguments);
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
    assert_eq!(root.json(&["ps", "-a"]), Value::Array(vec![]));
}

#[test]
fn nothing_typed_shows_help() {
    let output = finish(std::process::Command::new(crate::support::COMMAND));
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Usage"), "{output:?}");
    let root = Root::new();
    assert!(root.ok(&["--help"]).contains("doctor"));
    assert!(root.ok(&["run", "--help"]).contains("--rootfs"));
    assert!(!root.path().exists());
}

#[test]
fn what_is_not_there_is_said() {
    let root = Root::new();
    assert!(root.fails(125, &["run", "absent", "true"]).contains("absent"));
    for command in [&["rmi"][..], &["history"], &["inspect"], &["kill"], &["stop"], &["wait"], &["rm"]] {
        let said = root.fails(1, &[command, &["absent"]].concat());
        assert!(said.contains("absent"), "{said}");
    }
    assert!(root.fails(1, &["tag", "absent", "other"]).contains("absent"));
    assert!(root.fails(1, &["load", "/does/not/exist"]).contains("/does/not/exist"));
    assert!(root.fails(1, &["import", "/does/not/exist"]).contains("/does/not/exist"));
}

#[test]
fn errors_as_json_have_all_parts() {
    let root = Root::new();
    for (arguments, code, kind) in [
        (&["--json", "rmi", "absent"][..], 1, "not_found"),
        (&["rmi", "--json", "absent"], 1, "not_found"),
        (&["--json", "run", "absent"], 125, "not_found"),
        (&["--json", "run", "-v", "x", "absent"], 125, "not_found"),
        (&["--json", "run", "--bogus"], 125, "usage"),
        (&["--json", "imagse"], 2, "usage"),
        (&["tag", "x", "../y", "--json"], 1, "invalid"),
        (&["--json", "load", "/does/not/exist"], 1, "not_found"),
    ] {
        let output = root.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        let error = error["error"].as_object().unwrap();
        for key in ["kind", "message", "step", "syscall", "path", "errno", "cause", "remedy"] {
            assert!(error.contains_key(key), "{arguments:?} lacks {key}: {error:?}");
        }
        assert_eq!(error["kind"], kind, "{arguments:?}: {error:?}");
    }
}

#[test]
fn errors_as_json_say_what_the_sentence_says() {
    let root = Root::new();
    for arguments in
        [&["load", "/does/not/exist"][..], &["import", "/does/not/exist"], &["run", "--rootfs", "/does/not/exist", "x"]]
    {
        let output = root.run(&[&["--json"], arguments].concat());
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        let error = &error["error"];
        let (cause, remedy) = (error["cause"].as_str().unwrap(), error["remedy"].as_str().unwrap());
        let message = error["message"].as_str().unwrap();
        assert!(message.ends_with(&format!("; {cause}; try: {remedy}")), "{message}");
    }
}

#[test]
fn several_names_go_on_after_a_failure() {
    let root = Root::new();
    let output = root.run(&["rm", "one", "two"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 2, "{output:?}");
    let output = root.run(&["inspect", "one", "two"]);
    assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b"[]\n"[..]));
}

#[test]
fn a_root_of_somebody_else_is_refused() {
    let root = Root::new();
    std::fs::create_dir(root.path()).unwrap();
    std::fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let output = root.run(&["images"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("root"), "{output:?}");
}

#[test]
fn options_of_dockers_that_are_missing_are_answered() {
    let root = Root::new();
    for (option, cause, not) in [
        ("--memory", "cannot be set by the command line yet", "-- --memory"),
        ("-m", "cannot be set by the command line yet", "-- -m"),
        ("-p", "no network", "-- -p"),
        ("--device", "bind mount", "--env-file"),
        ("--privileged", "--cap-add ALL", "-- --priv"),
        ("--ulimit", "`ulimit`", "--init"),
        ("--bogus", "there is no option --bogus; try: coracle run --help", "-- --bogus"),
        ("--read-onyl", "there is no option --read-onyl; try: ", "-- --read"),
    ] {
        let said = root.fails(125, &["run", "--rm", option, "1g", "debian:12", "true"]);
        assert!(said.contains(cause) && !said.contains(not), "{said}");
    }
    assert!(root.fails(125, &["run", "--read-onyl", "x"]).contains("a similar one is --read-only, or"));
}

#[test]
fn what_would_be_ignored_is_refused() {
    let root = Root::new();
    std::fs::write(root.file("d.tar"), tar_of(&[("file", b"content")])).unwrap();
    let tar = root.file("d.tar");
    let tar = tar.to_str().unwrap();
    for options in [["--compression", "gzip"], ["--owner", "0:0"]] {
        for source in [tar, "-"] {
            let said = root.fails(1, &[&["import", source, "x:1"][..], &options].concat());
            assert!(said.contains(options[0]) && said.contains("try: "), "{said}");
        }
    }
    let said = root.fails(1, &["commit", "x", "--compression", "none", "--level", "3"]);
    assert!(said.contains("no compression"), "{said}");
    assert!(!root.path().exists());
}

#[test]
fn an_argument_that_is_not_utf_8_is_named() {
    use std::os::unix::ffi::OsStrExt;
    let root = Root::new();
    let mut command = root.command(&["run", "--rootfs", "/", "--", "echo"]);
    let output = finish({
        command.arg(std::ffi::OsStr::from_bytes(b"caf\xe9"));
        command
    });
    assert_eq!(output.status.code(), Some(125));
    let said = complaint(&output);
    assert!(said.contains("caf\\xE9") && said.contains("UTF-8"), "{said}");
}

#[test]
fn a_limit_of_file_sizes_is_an_error_and_no_death() {
    let root = Root::new();
    std::fs::write(root.file("big.tar"), docker_archive("big:1", &tar_of(&[("file", &[7; 300_000])]))).unwrap();
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -f 100; exec \"$@\"", "sh", crate::support::COMMAND, "--root"]);
    command.arg(root.path()).arg("load").arg(root.file("big.tar"));
    let output = finish(command);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(complaint(&output).contains("ulimit -f"), "{output:?}");
    assert_eq!(root.json(&["images"]), Value::Array(vec![]));
}

#[test]
fn what_is_at_fault_is_named() {
    let root = Root::new();
    let path = |name: &str| root.file(name).to_str().unwrap().to_owned();
    let archive = docker_archive("cut:1", &tar_of(&[("file", &[7; 300_000])]));
    std::fs::write(root.file("cut.tar"), &archive[..200_000]).unwrap();
    std::fs::write(root.file("empty"), "").unwrap();
    std::fs::write(root.file("text"), "nothing of the kind\n".repeat(100)).unwrap();
    std::fs::create_dir(root.file("layout")).unwrap();
    std::fs::write(root.file("layout/index.json"), "{\"x").unwrap();
    for (name, words) in [
        ("cut.tar", "ends in the middle"),
        ("empty", "it is empty"),
        ("text", "this is no tar archive"),
        ("layout", "\"index.json\""),
    ] {
        let said = root.fails(1, &["load", &path(name)]);
        assert!(said.contains(&format!("\"{}\"", path(name))) && said.contains(words), "{said}");
        assert!(said.contains("try: "), "{said}");
    }
    let said = root.fails(1, &["import", &path("text"), "x:1"]);
    assert!(said.contains(&path("text")) && said.contains("this is no tar archive"), "{said}");
    let option = format!("seccomp={}", path("text"));
    let said = root.fails(125, &["run", "--security-opt", &option, "--rootfs", "/", "--", "true"]);
    assert!(said.contains(&path("text")), "{said}");
    std::os::unix::fs::symlink("/nowhere/at/all", root.file("dangling")).unwrap();
    for (place, words) in
        [("empty", "it is not a directory"), ("empty/x", "it is not a directory"), ("dangling/x", "leads nowhere")]
    {
        let mut command = std::process::Command::new(crate::support::COMMAND);
        command.args(["--root", &path(place), "images"]);
        let output = finish(command);
        assert!(output.status.code() == Some(1) && complaint(&output).contains(words), "{output:?}");
    }
    assert!(root.fails(2, &["stop", "-t", "soon", "x"]).contains("number of seconds"));
    assert!(root.fails(125, &["run", "--rootfs", "/"]).contains("a directory has none of its own"));
}
