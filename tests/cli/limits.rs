//! What the report says of limits on hosts that have not all control groups. Such a host is made by a mount namespace
//! of the test's own.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::shared::skip::{missing, other_user};
use super::support::{COMMAND, Root, needs_containers};

/// The level and reason of an aspect that the doctor tells after `script` had its way with the mounts.
fn told(root: &Root, aspect: &str, script: &str) -> Option<(String, String)> {
    let all = format!("{script}\nexec {COMMAND} --root {} --json doctor", root.path().display());
    let mut command = Command::new("unshare");
    let output = command.args(["--mount", "sh", "-ec", &all]).stdin(Stdio::null()).output();
    let Ok(output) = output else {
        missing("unshare (package util-linux)");
        return None;
    };
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let aspects = report["enforcement"]["aspects"].as_array().unwrap();
    let found = aspects.iter().find(|it| it["aspect"] == aspect).unwrap();
    let text = |key: &str| found[key].as_str().unwrap().to_owned();
    Some((text("level"), text("reason")))
}

/// Whether the controllers are on version 1 here, each mounted where everybody mounts them.
fn is_version_1() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    ["memory", "pids", "cpu", "cpuset"].iter().all(|name| mounts.contains(&format!(" /sys/fs/cgroup/{name} ")))
}

#[test]
fn limits_that_this_host_cannot_have_are_not_reported_as_full() {
    if !nix::unistd::geteuid().is_root() {
        return other_user("root");
    }
    needs_containers!();
    let root = Root::new();
    if !is_version_1() {
        return missing("the controllers of version 1, each on its own");
    }
    let Some((level, reason)) = told(&root, "limits", "umount /sys/fs/cgroup/memory") else { return };
    assert_eq!(level, "partial", "{reason}");
    assert!(reason.contains("memory"), "{reason}");
    let all = "for name in memory cpu cpuset pids; do umount /sys/fs/cgroup/$name; done";
    let Some((level, reason)) = told(&root, "limits", all) else { return };
    assert_eq!(level, "none", "{reason}");
    for word in ["memory", "pids", "cpu"] {
        assert!(reason.contains(word), "{reason}");
    }
}

#[test]
fn no_control_group_at_all_is_told_with_its_cause() {
    if !nix::unistd::geteuid().is_root() {
        return other_user("root");
    }
    needs_containers!();
    let root = Root::new();
    let Some((level, reason)) = told(&root, "limits", "umount -R /sys/fs/cgroup") else { return };
    assert_eq!(level, "none", "{reason}");
    assert!(reason.contains("no cgroup file system is mounted"), "{reason}");
    let read_only = "awk '$5 ~ \"^/sys/fs/cgroup\" { print $5 }' /proc/self/mountinfo | \
                     while read -r at; do mount -o remount,bind,ro \"$at\"; done";
    let Some((level, reason)) = told(&root, "limits", read_only) else { return };
    assert_eq!(level, "none", "{reason}");
    assert!(reason.contains("read-only"), "{reason}");
}
