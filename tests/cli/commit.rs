//! commit and diff.

use crate::support::{Root, busybox, needs_containers};

/// A container called `one` of an image `tools` that has made these changes.
fn changed() -> Option<Root> {
    let root = Root::new();
    let tree = busybox(&root)?;
    root.ok(&["import", "--owner", "0:0", tree.to_str().unwrap(), "tools:1"]);
    let script = "echo new > /etc/new; touch /etc/second";
    root.ok(&["run", "--name", "one", "tools:1", "/bin/sh", "-c", script]);
    Some(root)
}

#[test]
fn changes_are_listed_and_committed() {
    needs_containers!();
    let Some(root) = changed() else { return };
    assert_eq!(root.ok(&["diff", "one"]), "C /etc\nA /etc/new\nA /etc/second\n");
    assert_eq!(root.json(&["diff", "one"])[1], serde_json::json!({ "kind": "A", "path": "/etc/new" }));
    let change = "CMD [\"/bin/cat\", \"/etc/new\"]";
    let id = root.ok(&["commit", "-a", "me", "-m", "a remark", "-c", change, "one", "made:1"]);
    assert!(id.starts_with("sha256:"), "{id}");
    assert_eq!(root.ok(&["run", "--rm", "made:1"]), "new\n");
    let history = root.json(&["history", "made:1"]);
    assert_eq!((&history[0]["author"], &history[0]["comment"]), (&"me".into(), &"a remark".into()));
    assert_eq!(root.json(&["commit", "--compression", "none", "one"])["names"], serde_json::json!([]));
}

#[test]
fn an_epoch_makes_the_same_image_again() {
    needs_containers!();
    let Some(root) = changed() else { return };
    let commit = |epoch: &str| {
        let mut command = root.command(&["commit", "one"]);
        let output = command.env("SOURCE_DATE_EPOCH", epoch).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let first = commit("1000000000");
    assert_eq!(first.0, Some(0));
    std::thread::sleep(std::time::Duration::from_millis(2));
    assert_eq!(commit("1000000000"), first);
    assert_ne!(commit("1000000001"), first);
    assert_eq!(commit("yesterday").0, Some(1));
}

#[test]
fn what_cannot_be_committed_says_why() {
    needs_containers!();
    let Some(root) = changed() else { return };
    assert!(root.fails(1, &["commit", "nobody"]).contains("nobody"));
    assert!(root.fails(1, &["commit", "--level", "77", "one"]).contains("77"));
    assert!(root.fails(1, &["commit", "-c", "RUN x", "one"]).contains("RUN x"));
    root.ok(&["run", "--name", "two", "--rootfs", "/", "--", "true"]);
    assert!(root.fails(1, &["commit", "two"]).contains("directory of the host"));
    assert!(root.fails(1, &["diff", "two"]).contains("directory of the host"));
}
