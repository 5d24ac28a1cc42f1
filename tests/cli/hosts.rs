//! Hosts that are poorer than the one that runs the tests, made with the tools of util-linux.

use std::process::{Command, Output, Stdio};

use super::shared::skip::{missing, other_user};
use super::support::{COMMAND, Root, needs_containers};

/// Runs a command line in a program of util-linux; `None`, said loudly, where that is not there.
fn within(program: &[&str], arguments: &[&str]) -> Option<Output> {
    let output = Command::new(program[0]).args(&program[1..]).args(arguments).stdin(Stdio::null()).output();
    if output.is_err() {
        missing(&format!("{} (package util-linux)", program[0]));
    }
    output.ok()
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The bounding set of `docker run --cap-add SYS_ADMIN`: root, but not enough of it for a rootful launch.
#[test]
fn half_of_roots_capabilities_are_enough_for_a_user_namespace() {
    if !is_root() {
        return other_user("root");
    }
    needs_containers!();
    let root = Root::new();
    let path = root.path();
    let path = path.to_str().unwrap();
    let less = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
    let Some(output) = within(&less, &[COMMAND, "--root", path, "run", "--rm", "--rootfs", "/", "--", "echo", "there"])
    else {
        return;
    };
    assert!(output.status.success() && output.stdout == b"there\n", "{output:?}");
    let Some(output) = within(&less, &[COMMAND, "--root", path, "--json", "doctor"]) else { return };
    assert!(String::from_utf8_lossy(&output.stdout).contains("without CAP_NET_ADMIN"), "{output:?}");
}

/// newuidmap gains nothing under no_new_privs, so the range is of no use.
#[test]
fn no_new_privs_leaves_one_id() {
    needs_containers!();
    let root = Root::new();
    let path = root.path();
    let path = path.to_str().unwrap();
    let command = [COMMAND, "--root", path, "run", "--rm", "--rootfs", "/", "--", "echo", "there"];
    let Some(output) = within(&["setpriv", "--no-new-privs"], &command) else { return };
    assert!(output.status.success() && output.stdout == b"there\n", "{output:?}");
}

/// Runs a script in a mount namespace of its own, with `$C` as the command and `$D` as a directory. Rootless in a user
/// namespace, whose root is no root to the engine.
fn script(root: &Root, text: &str) -> Option<String> {
    let directory = root.file("tree");
    std::fs::create_dir_all(&directory).unwrap();
    let setting = format!("C='{COMMAND} --root {}'; D={}", root.path().display(), directory.display());
    let output =
        within(&["unshare", "--mount", "--propagation", "private"], &["sh", "-ec", &format!("{setting}\n{text}")])?;
    assert!(output.status.success(), "{output:?}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// The mounts inside what is bound are limited as it is.
#[test]
fn options_of_a_bind_mount_hold_on_the_mounts_inside() {
    if !is_root() {
        return other_user("root");
    }
    needs_containers!();
    let text = "mkdir $D/sub; mount -t tmpfs x $D/sub
        printf '#!/bin/sh\\necho ran\\n' > $D/top; cp $D/top $D/sub/; chmod 755 $D/top $D/sub/top
        for options in '' :noexec; do
            $C run --rm -v $D:/tmp/b$options --rootfs / -- sh -c \
                '(/tmp/b/top || echo refused) 2>/dev/null; (/tmp/b/sub/top || echo refused) 2>/dev/null'
        done
        $C run --rm -v $D:/tmp/b --rootfs / -- grep -c '/tmp/b[^ ]* rw,nosuid,nodev' /proc/self/mountinfo";
    let root = Root::new();
    let Some(out) = script(&root, &text.replace("\\n", "\n")) else { return };
    // Both of them have what every bind mount is given, too.
    assert_eq!(out, "ran\nran\nrefused\nrefused\n2\n");
}

/// What the host mounts later appears with `rslave`, and only then; what a container mounts never appears on the host.
#[test]
fn slaves_receive_and_nothing_is_shared() {
    if !is_root() {
        return other_user("root");
    }
    needs_containers!();
    let text = "mount -t tmpfs x $D; mount --make-shared $D; mkdir $D/sub
        for kind in rslave slave rprivate; do
            rm -f $D/ready
            $C run --rm --cap-add SYS_ADMIN -v $D:/tmp/b:$kind --rootfs / -- sh -c 'mkdir -p /tmp/b/own; mount -t tmpfs y /tmp/b/own
                : > /tmp/b/own/inside; : > /tmp/b/ready
                for i in 1 2 3 4 5 6 7 8 9 10; do test -e /tmp/b/sub/file && break; sleep 0.1; done
                test -e /tmp/b/sub/file && echo appeared || echo absent' &
            while ! test -e $D/ready; do sleep 0.05; done
            mount -t tmpfs x $D/sub; : > $D/sub/file
            test -e $D/own/inside && echo leaked
            wait; umount $D/sub
        done";
    let root = Root::new();
    let Some(out) = script(&root, text) else { return };
    assert_eq!(out, "appeared\nappeared\nabsent\n");
    let refused = root.sandbox(&["--rm", "-v", "/tmp:/tmp/b:rshared"], &["true"]);
    assert!(crate::support::complaint(&refused).contains("rshared"), "{refused:?}");
}

#[test]
fn without_proc_nobody_guesses_who_we_are() {
    if !is_root() {
        return other_user("root");
    }
    let root = Root::new();
    let script = format!("mount -t tmpfs none /proc && exec {COMMAND} --root {} \"$@\"", root.path().display());
    let Some(output) = within(&["unshare", "-m", "sh", "-c", &script, "sh"], &["images"]) else { return };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("mount -t proc"), "{output:?}");
    assert!(!root.path().exists());
    let Some(output) = within(&["unshare", "-m", "sh", "-c", &script, "sh"], &["--json", "doctor"]) else { return };
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["findings"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["findings"][0]["what"], "proc");
}

#[test]
fn a_limit_of_namespaces_is_no_full_disk() {
    if !is_root() {
        return other_user("root");
    }
    needs_containers!();
    let root = Root::new();
    let command = format!("{COMMAND} --root {} run --rm --rootfs / -- true", root.path().display());
    let script = format!("echo 0 > /proc/sys/user/max_cgroup_namespaces && echo set && exec {command}");
    let Some(output) = within(&["unshare", "-Ur", "sh", "-c"], &[&script]) else { return };
    if output.stdout != b"set\n" {
        return missing("a limit of namespaces that can be set");
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("limit of namespaces") && !said.contains("file system is full"), "{said}");
}
