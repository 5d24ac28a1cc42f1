//! run: statuses, streams.

use std::process::Stdio;

use sha2::{Digest, Sha256};

use crate::support::{Root, complaint, feed, needs_containers};

#[test]
fn the_status_is_the_commands() {
    needs_containers!();
    let root = Root::new();
    for code in [0, 1, 3, 124, 125, 255] {
        let output = root.sandbox(&["--rm"], &["sh", "-c", &format!("exit {code}")]);
        assert_eq!(output.status.code(), Some(code));
        assert!(output.stderr.is_empty(), "{output:?}");
    }
    // Below an init, a command may die of its own signal.
    let output = root.sandbox(&["--rm", "--init"], &["sh", "-c", "kill -9 $$"]);
    assert_eq!(output.status.code(), Some(137));
}

#[test]
fn commands_that_are_not_there_or_not_executable() {
    needs_containers!();
    let root = Root::new();
    for (command, code) in
        [("surely-no-such-command", 127), ("/surely/no/such", 127), ("/etc/passwd", 126), ("/etc", 126)]
    {
        let output = root.sandbox(&[], &[command]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(complaint(&output).contains(command), "{output:?}");
    }
    assert_eq!(root.json(&["ps", "-a"]), serde_json::json!([]), "a container that never ran was kept");
}

#[test]
fn streams_stay_apart() {
    needs_containers!();
    let output = Root::new().sandbox(&["--rm"], &["sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b"err\n"[..]));
}

#[test]
fn options_after_the_command_are_the_commands() {
    needs_containers!();
    let root = Root::new();
    let words = ["-x", "--rm", "--json", "--", "--root", "/nowhere"];
    let said = root.says(&["--rm"], &[&["echo"], &words[..]].concat());
    assert_eq!(said, words.join(" "));
    // Without `--`, the first word that is no option begins the command.
    let said = root.ok(&[&["run", "--rm", "--rootfs", "/", "echo"], &words[..]].concat());
    assert_eq!(said.trim_end(), words.join(" "));
}

#[test]
fn a_hundred_megabytes_go_in_intact() {
    needs_containers!();
    let root = Root::new();
    let bytes: Vec<u8> = (0..100u32 << 20).map(|number| (number ^ (number >> 9)) as u8).collect();
    let command = root.command(&["run", "-i", "--rm", "--rootfs", "/", "--", "sha256sum"]);
    let output = feed(command, &bytes);
    assert!(output.status.success(), "{output:?}");
    let sum: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{sum}  -\n"));
}

#[test]
fn a_hundred_megabytes_come_out_intact() {
    needs_containers!();
    let output = Root::new().sandbox(&["--rm"], &["head", "-c", "104857600", "/dev/zero"]);
    assert!(output.status.success());
    assert!(output.stdout.len() == 100 << 20 && output.stdout.iter().all(|byte| *byte == 0));
}

#[test]
fn without_i_there_is_no_input() {
    needs_containers!();
    let root = Root::new();
    let command = root.command(&["run", "--rm", "--rootfs", "/", "--", "cat"]);
    let output = feed(command, b"not for the container");
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
}

#[test]
fn input_that_ends_early_or_is_not_read_is_fine() {
    needs_containers!();
    let root = Root::new();
    let sandbox = |word| root.command(&["run", "-i", "--rm", "--rootfs", "/", "--", word]);
    assert!(feed(sandbox("true"), &vec![b'x'; 1 << 20]).status.success());
    assert_eq!(feed(sandbox("cat"), b"").stdout, b"");
}

#[test]
fn the_hosts_files_stay_as_they_are() {
    needs_containers!();
    let root = Root::new();
    let file = root.file("mine");
    std::fs::write(&file, "before").unwrap();
    let text = file.to_str().unwrap();
    let said = root.says(&["--rm"], &["sh", "-c", &format!("echo after > {text}; cat {text}")]);
    assert_eq!((said.as_str(), std::fs::read_to_string(&file).unwrap().as_str()), ("after", "before"));
}

#[test]
fn rm_leaves_nothing_and_a_plain_run_keeps_the_container() {
    needs_containers!();
    let root = Root::new();
    root.says(&["--rm"], &["true"]);
    assert_eq!(root.json(&["ps", "-a"]), serde_json::json!([]));
    assert_eq!(std::fs::read_dir(root.path().join("containers")).unwrap().count(), 0);
    root.says(&[], &["true"]);
    assert_eq!(root.json(&["ps", "-a"])[0]["exit"]["code"], 0);
    assert_eq!(root.json(&["ps"]), serde_json::json!([]));
}

#[test]
fn many_at_once() {
    needs_containers!();
    let root = Root::new();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let root = &root;
            scope.spawn(move || {
                let text = number.to_string();
                assert_eq!(root.says(&["--rm"], &["echo", &text]), text);
            });
        }
    });
}

#[test]
fn a_terminal_is_relayed() {
    needs_containers!();
    let root = Root::new();
    // script(1) gives its command a terminal of its own.
    let line = format!(
        "{} --root {} run --rm -i --rootfs / -- sh -c 'read x; echo got $x; test -t 0 && echo terminal; exit 6'",
        crate::support::COMMAND,
        root.path().display()
    );
    let mut script = std::process::Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).stdin(Stdio::piped());
    if std::process::Command::new("script").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIP: there is no script(1)");
        return;
    }
    let output = feed(script, b"word\n");
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("got word") && !said.contains("\nterminal"), "{said}");
}
