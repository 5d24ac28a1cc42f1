//! ps, wait, kill, stop, rm, inspect over containers.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Root, busybox, needs_containers};

#[test]
fn a_container_from_start_to_removal() {
    needs_containers!();
    let root = Root::new();
    let mut running =
        root.start_script(&["--name", "one"], "trap 'exit 4' TERM; echo ready; while :; do sleep 0.02; done");
    root.until_running("one");
    let list = root.ok(&["ps"]);
    let mut lines = list.lines();
    let headings: Vec<&str> = lines.next().unwrap().split("   ").filter(|it| !it.is_empty()).map(str::trim).collect();
    assert_eq!(headings, ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES"]);
    let line = lines.next().unwrap();
    assert!(line.contains("Up ") && line.ends_with("one") && line.contains("\"sh -c 'trap 'exit 4…\""), "{line}");
    let id = root.ok(&["ps", "-q"]).trim_end().to_owned();
    assert_eq!(id.len(), 12);
    assert!(line.starts_with(&id));
    assert_eq!(root.ok(&["ps", "-q", "--no-trunc"]).trim_end().len(), 64);

    let waiting = root.start(&["wait", "one"]);
    assert!(root.fails(1, &["rm", "one"]).contains("running"));
    assert_eq!(root.ok(&["stop", "one"]), "one\n");
    assert_eq!(running.status(), 4);
    let mut waiting = waiting;
    assert_eq!((waiting.line().as_str(), waiting.status()), ("4", 0));

    assert_eq!(root.ok(&["ps", "-q"]), "");
    assert!(root.ok(&["ps", "-a"]).contains("Exited (4) "));
    // By name, by ID, and by the beginning of an ID; again and again.
    assert_eq!(root.ok(&["wait", "one", &id, &id[..6]]), "4\n4\n4\n");
    assert_eq!(root.json(&["wait", "one"])[0]["code"], 4);
    assert_eq!(root.ok(&["stop", "one"]), "one\n");
    assert!(root.fails(1, &["kill", "one"]).contains("not running"));
    assert_eq!(root.ok(&["rm", &id]), format!("{id}\n"));
    assert!(root.fails(1, &["rm", "one"]).contains("one"));
    assert_eq!(root.json(&["ps", "-a"]), json!([]));
}

#[test]
fn a_waiter_learns_the_status_of_one_that_is_not_kept() {
    needs_containers!();
    let root = Root::new();
    let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done";
    let mut running: Vec<_> = ["w1", "w2", "w3"]
        .into_iter()
        .map(|name| (name, root.start_script(&["--rm", "--name", name], script)))
        .collect();
    let mut waiting: Vec<_> = (0..2).flat_map(|_| &running).map(|(name, _)| root.start(&["wait", name])).collect();
    // Time to find them.
    std::thread::sleep(std::time::Duration::from_secs(2));
    for (_, running) in &mut running {
        running.signal(Signal::SIGTERM);
        assert_eq!(running.status(), 5);
    }
    for waiting in &mut waiting {
        assert_eq!((waiting.line().as_str(), waiting.status()), ("5", 0));
    }
    assert_eq!(root.json(&["ps", "-a"]), json!([]));
}

#[test]
fn stop_kills_who_does_not_listen() {
    needs_containers!();
    let root = Root::new();
    let scripts = ["echo ready; exec sleep 1000"; 2];
    let mut running: Vec<_> =
        ["a1", "a2"].iter().zip(scripts).map(|(name, script)| root.start_script(&["--name", name], script)).collect();
    let begin = std::time::Instant::now();
    assert_eq!(root.ok(&["stop", "-t", "1", "a1", "a2"]), "a1\na2\n");
    let took = begin.elapsed();
    assert!(took.as_millis() >= 1000, "{took:?}");
    assert_eq!(running.iter_mut().map(|it| it.status()).collect::<Vec<_>>(), [137, 137]);
    assert_eq!(root.ok(&["wait", "a1", "a2"]), "137\n137\n");
}

#[test]
fn kill_sends_what_it_is_told() {
    needs_containers!();
    let root = Root::new();
    let script = "trap 'echo got' USR1; echo ready; while :; do sleep 0.02; done";
    let mut running = root.start_script(&["--name", "listener"], script);
    for spelling in ["USR1", "SIGUSR1", "usr1", "10"] {
        root.ok(&["kill", "-s", spelling, "listener"]);
        assert_eq!(running.line(), "got");
    }
    assert_eq!(root.json(&["kill", "listener"])[0]["name"], "listener");
    assert_eq!(running.status(), 137);
}

#[test]
fn stop_uses_the_stop_signal() {
    needs_containers!();
    let root = Root::new();
    let script = "trap 'exit 9' INT; trap 'exit 8' TERM; echo ready; while :; do sleep 0.02; done";
    let mut running = root.start_script(&["--rm", "--name", "stopped", "--stop-signal", "INT"], script);
    // Not kept, so its status is nobody's but its own `run`'s.
    assert_eq!(root.ok(&["stop", "stopped"]), "stopped\n");
    assert_eq!(running.status(), 9);
}

#[test]
fn rm_with_force_ends_running_ones() {
    needs_containers!();
    let root = Root::new();
    let mut kept = root.start_script(&["--name", "kept"], "echo ready; exec sleep 1000");
    let mut thrown = root.start_script(&["--rm", "--name", "thrown"], "echo ready; exec sleep 1000");
    let output = root.run(&["rm", "-f", "kept", "absent", "thrown"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"kept\nthrown\n", "{output:?}");
    assert_eq!((kept.status(), thrown.status()), (137, 137));
    assert_eq!(root.json(&["ps", "-a"]), json!([]));
}

#[test]
fn errors_about_several_say_which() {
    needs_containers!();
    let root = Root::new();
    let script = "echo ready; exec sleep 1000";
    let _running = ["b1", "b2"].map(|name| root.start_script(&["--name", name], script));
    for command in ["rm", "snapshot"] {
        let output = root.run(&[command, "b1", "b2"]);
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines.len() == 2 && lines[0].contains("\"b1\"") && lines[1].contains("\"b2\""), "{said}");
    }
    root.ok(&["kill", "b1", "b2"]);
}

#[test]
fn names_are_unique_and_come_back() {
    needs_containers!();
    let root = Root::new();
    root.says(&["--name", "mine"], &["true"]);
    let output = root.sandbox(&["--name", "mine"], &["true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(crate::support::complaint(&output).contains("mine"), "{output:?}");
    root.ok(&["rm", "mine"]);
    root.says(&["--rm", "--name", "mine"], &["true"]);
    root.says(&["--rm", "--name", "mine"], &["true"]);
}

#[test]
fn inspect_tells_everything() {
    needs_containers!();
    let root = Root::new();
    let mut running = root.start_script(&["--name", "seen"], "echo ready; exec sleep 1000");
    root.until_running("seen");
    let seen = &root.json(&["inspect", "seen"])[0];
    assert_eq!((&seen["type"], &seen["state"], &seen["base"]), (&json!("container"), &json!("running"), &json!("/")));
    assert_eq!(seen["command"][0], "sh");
    let pid = seen["pid"].as_i64().unwrap();
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(root.fails_quietly(&["inspect", "-t", "image", "seen"]));
    running.signal(Signal::SIGKILL);
    running.status();
}

#[test]
fn lists_show_what_a_container_was_started_from() {
    needs_containers!();
    let root = Root::new();
    let Some(tree) = busybox(&root) else { return };
    let tree = tree.to_str().unwrap();
    root.ok(&["import", "--owner", "0:0", tree, "a:1"]);
    root.ok(&["tag", "a:1", "z"]);
    let id = root.ok(&["images", "-q"]).lines().next().unwrap().to_owned();
    root.ok(&["run", "--name", "by-name", "z", "true"]);
    root.ok(&["run", "--name", "by-id", &id, "true"]);
    let shown = |name: &str| {
        let list = root.ok(&["ps", "-a"]);
        let line = list.lines().find(|line| line.trim_end().ends_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!((shown("by-name"), shown("by-id")), ("z:latest".to_owned(), id.clone()));
    assert_eq!(root.json(&["inspect", "by-name"])[0]["base"], "z:latest");
    // It means another image now.
    root.ok(&["import", "--owner", "0:0", "-m", "other", tree, "z"]);
    assert_eq!((shown("by-name"), shown("by-id")), (id.clone(), id));
    assert_eq!(root.json(&["inspect", "by-name"])[0]["base"], "z:latest");
}

#[test]
fn the_dead_have_no_pid() {
    needs_containers!();
    let root = Root::new();
    let mut running = root.start_script(&["--name", "gone"], "echo ready; exec sleep 1000");
    root.until_running("gone");
    running.signal(Signal::SIGKILL);
    running.status();
    crate::support::eventually(|| root.json(&["inspect", "gone"])[0]["state"] == "dead");
    assert_eq!(root.json(&["inspect", "gone"])[0]["pid"], json!(null));
    assert_eq!(root.json(&["ps", "-a"])[0]["pid"], json!(null));
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    needs_containers!();
    let root = Root::new();
    root.says(&["--name", "odd"], &["echo", "\x1b]0;title\x07\n"]);
    let list = root.ok(&["ps", "-a", "--no-trunc"]);
    assert!(!list.contains('\x1b') && list.lines().count() == 2, "{list:?}");
    assert_eq!(root.json(&["ps", "-a"])[0]["command"][1], "\x1b]0;title\x07\n");
}

impl Root {
    /// Fails with status 1, whatever it says.
    fn fails_quietly(&self, arguments: &[&str]) -> bool {
        self.run(arguments).status.code() == Some(1)
    }
}
