//! snapshot, snapshots, run --snapshot, ps --size.

use std::process::Stdio;

use super::support::{Root, busybox, needs_containers};

/// An image with a busybox, and a container of it that has written a file; `None` where there is no busybox.
fn written() -> Option<Root> {
    let root = Root::new();
    let tree = busybox(&root)?;
    root.ok(&["import", "--owner", "0:0", tree.to_str().unwrap(), "box:1"]);
    root.ok(&["run", "--name", "first", "box:1", "sh", "-c", "echo saved > /file; echo more >> /etc/motd"]);
    Some(root)
}

#[test]
fn a_snapshot_is_taken_listed_started_and_removed() {
    needs_containers!();
    let Some(root) = written() else { return };
    assert_eq!(root.json(&["snapshots"]), serde_json::json!([]));
    let id = root.ok(&["snapshot", "first"]).trim_end().to_owned();
    assert_eq!(id.len(), 64);
    for _ in 0..2 {
        let said =
            root.ok(&["run", "--rm", "--snapshot", &id[..10], "sh", "-c", "cat /file /etc/motd; echo x > /file"]);
        assert_eq!(said, "saved\nhello from the image\nmore\n");
    }
    assert_eq!(root.ok(&["snapshots", "-q"]), format!("{}\n", &id[..12]));
    assert_eq!(root.ok(&["snapshot", "ls", "-q", "--no-trunc"]), format!("{id}\n"));
    let table = root.ok(&["snapshots"]);
    assert!(table.starts_with("SNAPSHOT ID") && table.contains("box:1"), "{table}");
    let listed = root.json(&["snapshots"]);
    assert_eq!(listed[0]["id"], *id);
    assert!(listed[0]["bytes"].as_u64().unwrap() > 0 && listed[0]["inodes"].as_u64().unwrap() >= 3, "{listed}");

    let refused = root.fails(1, &["snapshot", "rm", &id]);
    assert!(refused.contains("stands on it"), "{refused}");
    let refused = root.fails(1, &["rmi", "box:1"]);
    assert!(refused.contains("snapshot"), "{refused}");
    root.ok(&["rm", "first"]);
    assert_eq!(root.ok(&["snapshot", "rm", &id[..12]]), format!("{}\n", &id[..12]));
    assert_eq!(root.ok(&["snapshots", "-q"]), "");
    root.fails(125, &["run", "--snapshot", &id, "true"]);
    root.fails(1, &["snapshot", "first"]);
    root.fails(2, &["snapshot"]);
    root.ok(&["rmi", "box:1"]);
}

#[test]
fn sizes_are_shown_when_they_are_asked_for() {
    needs_containers!();
    let Some(root) = written() else { return };
    assert!(!root.ok(&["ps", "-a"]).contains("SIZE"));
    let table = root.ok(&["ps", "-a", "--size"]);
    assert!(table.lines().next().unwrap().ends_with("SIZE"), "{table}");
    let list = root.json(&["ps", "-as"]);
    assert!(list[0]["bytes"].as_u64().unwrap() > 0 && list[0]["inodes"].as_u64().unwrap() > 2, "{list}");
    assert!(root.json(&["ps", "-a"])[0]["bytes"].is_null());
}

#[test]
fn killed_at_any_instant_of_a_snapshot() {
    needs_containers!();
    let Some(root) = written() else { return };
    let mut taken = 0;
    for step in 0..60u32 {
        let mut command = root.command(&["snapshot", "first"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_micros(u64::from(step) * 100));
        let _ = child.kill();
        child.wait().unwrap();
        // The next open brings it in order: every snapshot that is listed is whole, and nothing else is there.
        let listed = root.json(&["snapshots"]).as_array().unwrap().len();
        let there = std::fs::read_dir(root.path().join("snapshots")).map_or(0, |entries| entries.count());
        assert_eq!(there, listed);
        assert!(listed == taken || listed == taken + 1, "{listed} after {taken}");
        taken = listed;
        if step % 10 == 0 {
            // The container has what it wrote, wherever that lies now.
            let id = root.ok(&["snapshot", "first"]).trim_end().to_owned();
            assert_eq!(root.ok(&["run", "--rm", "--snapshot", &id, "cat", "/file"]), "saved\n");
            taken += 1;
        }
    }
    assert_eq!(std::fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
    root.ok(&["rm", "first"]);
    // The latest stand on the earlier ones.
    let ids = root.ok(&["snapshots", "-q", "--no-trunc"]);
    for id in ids.lines() {
        root.ok(&["snapshot", "rm", id]);
    }
}
