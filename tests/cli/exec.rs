//! exec: a further command in a container that another program runs.

use nix::sys::signal::Signal;

use crate::support::{Root, eventually, feed, needs_containers};

#[test]
fn a_further_command_works_as_run_does() {
    needs_containers!();
    let root = Root::new();
    let mut running = root
        .start_script(&["--name", "one", "-e", "A=a"], "trap 'exit 0' TERM; echo ready; while :; do sleep 0.02; done");
    root.until_running("one");
    assert_eq!(root.ok(&["exec", "-e", "B=b", "-w", "/tmp", "one", "sh", "-c", "echo $A $B $PWD"]), "a b /tmp\n");
    for code in [0, 3, 125, 255] {
        let output = root.run(&["exec", "one", "sh", "-c", &format!("exit {code}")]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
    }
    assert!(root.fails(127, &["exec", "one", "surely-no-such-command"]).contains("surely-no-such-command"));
    root.fails(126, &["exec", "one", "/etc/passwd"]);
    assert!(root.fails(125, &["exec", "two", "true"]).contains("two"));
    assert!(root.fails(125, &["exec", "-it", "one", "true"]).contains("the input device is not a TTY"));
    assert!(root.fails(125, &["exec", "-d", "one", "true"]).contains("&"));
    let output = feed(root.command(&["exec", "-i", "one", "cat"]), b"given");
    assert_eq!(output.stdout, b"given");
    // Options behind the container are the command's.
    assert_eq!(root.ok(&["exec", "one", "echo", "-e", "--json"]), "--json\n");
    root.ok(&["stop", "one"]);
    assert_eq!(running.status(), 0);
    assert!(root.fails(125, &["exec", "one", "true"]).contains("not running"));
    root.ok(&["rm", "one"]);
}

/// Whoever interrupts it wants the command to end; the container goes on.
#[test]
fn the_command_ends_with_its_program() {
    needs_containers!();
    let root = Root::new();
    let mut running =
        root.start_script(&["--name", "one"], "trap 'exit 0' TERM; echo ready; while :; do sleep 0.02; done");
    root.until_running("one");
    let mut exec = root.start(&["exec", "one", "sh", "-c", "echo ready; exec sleep 987654"]);
    assert_eq!(exec.line(), "ready");
    // The one that looks does not find itself.
    let count = || root.ok(&["exec", "one", "sh", "-c", "grep -al 98765[4] /proc/[0-9]*/cmdline | wc -l"]);
    assert_eq!(count(), "1\n");
    exec.signal(Signal::SIGINT);
    exec.status();
    eventually(|| count() == "0\n");
    root.ok(&["stop", "one"]);
    assert_eq!(running.status(), 0);
}

/// Something in the background that writes without end does not hold up the command's end, wherever the output goes.
#[test]
fn the_command_ends_though_others_go_on_writing() {
    needs_containers!();
    let root = Root::new();
    let mut running =
        root.start_script(&["--name", "one"], "trap 'exit 0' TERM; echo ready; while :; do sleep 0.02; done");
    root.until_running("one");
    let file = tempfile::tempfile().unwrap();
    let mut exec = root.command(&["exec", "one", "sh", "-c", "echo first; yes & exit 5"]);
    let status = exec.stdin(std::process::Stdio::null()).stdout(file.try_clone().unwrap()).status().unwrap();
    assert_eq!(status.code(), Some(5));
    let mut text = [0; 6];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut text, 0).unwrap();
    assert_eq!(&text, b"first\n");
    root.ok(&["stop", "one"]);
    assert_eq!(running.status(), 0);
}
