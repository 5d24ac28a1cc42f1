//! commit and diff.

use std::path::PathBuf;

use super::shared::skip::{missing, other_user};
use crate::support::{COMMAND, Root, busybox, finish, needs_containers};

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

/// Control groups below this program's own, one in each hierarchy in which one can be made here.
struct Elsewhere(Vec<PathBuf>);

impl Elsewhere {
    fn new() -> Elsewhere {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let name = format!("coracle-test-elsewhere-{}", std::process::id());
        let places = own.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let mounts: &[&str] = match controllers {
                "" => &["/sys/fs/cgroup", "/sys/fs/cgroup/unified"],
                "freezer" => &["/sys/fs/cgroup/freezer"],
                _ => return None,
            };
            let above = mounts.iter().map(|mount| format!("{mount}{path}"));
            let above = above.map(PathBuf::from).find(|above| above.join("cgroup.procs").exists())?;
            let place = above.join(&name);
            // Two deep, so that nobody takes this program's own group for the one above.
            std::fs::create_dir_all(place.join("inner")).ok().map(|()| place)
        });
        Elsewhere(places.collect())
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        for place in &self.0 {
            let _ = std::fs::remove_dir(place.join("inner"));
            let _ = std::fs::remove_dir(place);
        }
    }
}

#[test]
fn a_container_that_runs_is_committed_from_another_control_group() {
    needs_containers!();
    if !nix::unistd::geteuid().is_root() {
        return other_user("root");
    }
    let Some(root) = changed() else { return };
    let places = Elsewhere::new();
    if places.0.is_empty() {
        return missing("control groups");
    }
    let script = "echo new > /etc/third; echo ready; exec sleep 1000";
    let mut running = root.start(&["run", "--name", "runs", "tools:1", "/bin/sh", "-c", script]);
    assert_eq!(running.line(), "ready");
    root.until_running("runs");
    let enter = "for place in \"$@\"; do echo $$ > $place/inner/cgroup.procs || exit 9; done";
    let commit = format!("{enter}; exec {COMMAND} --root {} commit runs made:1", root.path().display());
    let mut command = std::process::Command::new("sh");
    let output = finish({
        command.args(["-c", &commit, "sh"]).args(&places.0);
        command
    });
    assert!(output.status.success(), "{output:?}");
    assert_eq!(root.ok(&["run", "--rm", "made:1", "/bin/cat", "/etc/third"]), "new\n");
    root.ok(&["kill", "runs"]);
    assert_eq!(running.status(), 137);
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
