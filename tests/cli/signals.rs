//! Signals that `run` receives.

use nix::sys::signal::Signal;

use crate::support::{Root, needs_containers};

/// Says the name of each signal that it gets, and ends with TERM.
const LISTENER: &str = "for s in INT HUP QUIT USR1 USR2; do trap \"echo $s\" $s; done; trap 'exit 7' TERM
    echo ready; while :; do sleep 0.02; done";

#[test]
fn signals_go_to_the_container() {
    needs_containers!();
    let root = Root::new();
    let mut running = root.start_script(&["--rm"], LISTENER);
    for (signal, name) in [
        (Signal::SIGINT, "INT"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGQUIT, "QUIT"),
        (Signal::SIGUSR1, "USR1"),
        (Signal::SIGUSR2, "USR2"),
    ] {
        running.signal(signal);
        assert_eq!(running.line(), name);
    }
    running.signal(Signal::SIGTERM);
    assert_eq!(running.status(), 7);
}

#[test]
fn a_command_that_handles_interrupts_gets_as_many_as_there_are() {
    needs_containers!();
    let root = Root::new();
    let mut running = root.start_script(&["--rm"], LISTENER);
    for _ in 0..5 {
        running.signal(Signal::SIGINT);
        assert_eq!(running.line(), "INT");
    }
    running.signal(Signal::SIGTERM);
    assert_eq!(running.status(), 7);
}

#[test]
fn the_third_interrupt_in_a_row_kills_who_cannot_hear_it() {
    needs_containers!();
    let root = Root::new();
    let mut running = root.start(&["run", "--rm", "--name", "deaf", "--rootfs", "/", "--", "sleep", "1000"]);
    root.until_running("deaf");
    for _ in 0..2 {
        running.signal(Signal::SIGINT);
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(running.child.try_wait().unwrap().is_none(), "killed too early");
    }
    running.signal(Signal::SIGINT);
    assert_eq!(running.status(), 137);
    assert_eq!(root.json(&["ps", "-a"]), serde_json::json!([]));
}

#[test]
fn an_init_makes_signals_end_the_command() {
    needs_containers!();
    let root = Root::new();
    let mut running = root.start_script(&["--rm", "--init"], "echo ready; exec sleep 1000");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.status(), 143);
}

#[test]
fn the_container_starts_with_no_signal_blocked_or_ignored() {
    needs_containers!();
    let root = Root::new();
    let said = root.says(&["--rm"], &["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]);
    for line in said.lines() {
        assert_eq!(line.split_whitespace().nth(1), Some("0000000000000000"), "{said}");
    }
}

#[test]
fn killed_with_9_it_takes_its_container_along() {
    needs_containers!();
    let root = Root::new();
    let mut running = root.start_script(&["--name", "kept"], "echo ready; exec sleep 1000");
    root.until_running("kept");
    let pid = root.json(&["inspect", "kept"])[0]["pid"].as_i64().unwrap();
    running.signal(Signal::SIGKILL);
    assert_eq!(running.status(), 137);
    crate::support::eventually(|| !std::path::Path::new(&format!("/proc/{pid}")).exists());
    crate::support::eventually(|| root.json(&["inspect", "kept"])[0]["state"] == "dead");
    assert!(root.ok(&["ps", "-a"]).contains("Dead"));
    assert!(root.fails(1, &["wait", "kept"]).contains("lost"));
    root.ok(&["rm", "kept"]);
}
