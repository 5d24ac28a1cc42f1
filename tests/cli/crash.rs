//! Ends at the wrong moment: the store opens and works afterwards, and nothing half-made is visible.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::shared::skip::{missing, other_user};
use super::support::{COMMAND, Root, complaint, needs_containers, tar_of};

/// A root file system of some megabytes that does not compress.
fn rootfs() -> Vec<u8> {
    let mut seed = 1u32;
    let mut noise = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    };
    let bodies: Vec<Vec<u8>> = (0..60).map(|_| (0..50_000).map(|_| noise()).collect()).collect();
    let names: Vec<String> = (0..60).map(|number| format!("dir{}/file{number}", number % 7)).collect();
    let files: Vec<(&str, &[u8])> = names.iter().zip(&bodies).map(|(name, body)| (name.as_str(), &body[..])).collect();
    tar_of(&files)
}

/// No image is visible, nothing half-made is left, and the same import works.
fn works_afterwards(root: &Root, archive: &Path) {
    assert_eq!(root.ok(&["images", "-q", "-a"]), "");
    root.ok(&["import", archive.to_str().unwrap(), "whole:1"]);
    assert_eq!(root.ok(&["images", "-q"]).lines().count(), 1);
    assert_eq!(std::fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
    root.ok(&["rmi", "whole:1"]);
    for place in ["blobs/sha256", "layers"] {
        let left: Vec<_> =
            std::fs::read_dir(root.path().join(place)).unwrap().flatten().map(|it| it.file_name()).collect();
        assert!(left.is_empty(), "{place}: {left:?}");
    }
}

#[test]
fn killed_half_way_through_an_import() {
    let root = Root::new();
    let bytes = rootfs();
    let archive = root.file("rootfs.tar");
    std::fs::write(&archive, &bytes).unwrap();
    for part in 1..12 {
        let mut command = root.command(&["import", "-", "half:1"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(&bytes[..bytes.len() * part / 12]).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        drop(input);
    }
    works_afterwards(&root, &archive);
}

#[test]
fn killed_at_any_instant_of_a_load() {
    let root = Root::new();
    let archive = root.file("rootfs.tar");
    std::fs::write(&archive, rootfs()).unwrap();
    let mut whole = 0;
    for step in 0..20u32 {
        let mut command = root.command(&["import", archive.to_str().unwrap(), "half:1"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_micros(u64::from(step) * 2500));
        // It may have been done already: then the image is there as a whole.
        let _ = child.kill();
        child.wait().unwrap();
        if !root.ok(&["images", "-q", "-a"]).is_empty() {
            whole += 1;
            root.ok(&["history", "half:1"]);
            root.ok(&["rmi", "half:1"]);
        }
    }
    eprintln!("{whole} of 20 were done before the kill");
    works_afterwards(&root, &archive);
}

#[test]
fn a_full_disk_is_said_and_leaves_a_working_store() {
    let root = Root::new();
    let archive = root.file("rootfs.tar");
    std::fs::write(&archive, rootfs()).unwrap();
    let disk = root.file("disk");
    std::fs::create_dir(&disk).unwrap();
    // A small disk, in a mount namespace of this one command.
    let script = format!(
        "mount -t tmpfs -o size=2m none {disk} && \
         {{ {COMMAND} --root {disk}/root import {archive} x:1 2>&1; echo status $?; \
            {COMMAND} --root {disk}/root images -q -a && rm -f {disk}/ballast; \
            echo small > {disk}/file && tar -C {disk} -cf {disk}/small.tar file && \
            {COMMAND} --root {disk}/root import {disk}/small.tar y:1 > /dev/null && \
            {COMMAND} --root {disk}/root images -q | wc -l; }}",
        disk = disk.display(),
        archive = archive.display()
    );
    let options = if nix::unistd::geteuid().is_root() { "-m" } else { "-rm" };
    let output = Command::new("unshare").args([options, "sh", "-c", &script]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    if !text.contains("status ") {
        missing(&format!("the right to mount a small disk: {}", String::from_utf8_lossy(&output.stderr)));
        return;
    }
    assert!(text.contains("ENOSPC") && text.contains("free some space"), "{text}");
    assert!(text.contains("status 1"), "{text}");
    assert!(text.trim_end().ends_with("\n1"), "the store works afterwards: {text}");
}

/// The record of a kept container whose program was killed.
fn orphan(id: &str) -> String {
    let info = serde_json::json!({
        "id": id, "name": "big", "base": "/", "command": ["sleep"], "created": "2020-01-02T03:04:05Z",
        "state": "running", "pid": 4_000_000, "start_time": 1, "keep": true, "stop_signal": 15,
        "owner": "0123456789abcdef",
    });
    info.to_string()
}

/// Runs a script with a small disk mounted, in a mount namespace of its own; `None` where that is not allowed.
fn with_disk(disk: &Path, script: &str) -> Option<String> {
    std::fs::create_dir(disk).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=2m none {disk} && echo mounted && cd {disk} && {script}",
        disk = disk.display()
    );
    let options = if nix::unistd::geteuid().is_root() { "-m" } else { "-rm" };
    let output = Command::new("unshare").args([options, "sh", "-c", &script]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    if !text.starts_with("mounted\n") {
        missing(&format!("the right to mount a small disk: {}", String::from_utf8_lossy(&output.stderr)));
        return None;
    }
    Some(text)
}

#[test]
fn a_full_disk_can_be_freed_by_removing_the_container_that_fills_it() {
    let root = Root::new();
    let id = "7".repeat(64);
    std::fs::write(root.file("record"), orphan(&id)).unwrap();
    let script = format!(
        "{{ {COMMAND} --root root ps -a; \
            mkdir -p root/containers/{id}/upper root/names; cp {record} root/containers/{id}/state.json; \
            ln -s {id} root/names/big; cat /dev/zero > root/containers/{id}/upper/ballast; \
            {COMMAND} --root root ps -a; {COMMAND} --root root doctor; \
            {COMMAND} --root root rm big; echo status $?; ls root/containers root/names; \
            {COMMAND} --root root ps -aq; }} 2>&1",
        record = root.file("record").display()
    );
    let Some(text) = with_disk(&root.file("disk"), &script) else { return };
    assert!(text.contains("Dead") && text.contains("Left by killed programs"), "{text}");
    assert!(text.contains("container 777777777777: ") && text.contains("ENOSPC"), "{text}");
    assert!(text.ends_with("\nbig\nstatus 0\nroot/containers:\n\nroot/names:\n"), "{text}");
}

#[test]
fn output_that_finds_no_room_is_told() {
    needs_containers!();
    if !nix::unistd::geteuid().is_root() {
        return other_user("root");
    }
    let root = Root::new();
    let run = format!("{COMMAND} --root {} run --rm --rootfs / -- sh -c", root.path().display());
    let script = format!(
        "{{ cat /dev/zero > ballast 2> /dev/null; {run} 'echo line' > out; echo status $?; \
            {run} 'echo line; exit 3' > out; echo status $?; rm ballast; {run} 'echo line' > out; echo status $?; cat out; }} 2>&1"
    );
    let Some(text) = with_disk(&root.file("disk"), &script) else { return };
    let lines: Vec<&str> = text.lines().skip(1).collect();
    let [first, "status 125", second, "status 3", "status 0", "line"] = lines[..] else { panic!("{text}") };
    for line in [first, second] {
        assert!(line.contains("pass the container's output on") && line.contains("ENOSPC"), "{text}");
    }
}

#[test]
fn what_cannot_be_removed_does_not_close_the_root() {
    let root = Root::new();
    let id = "8".repeat(64);
    // A mount point resists removal by anybody.
    let script = format!(
        "{{ {COMMAND} --root root ps -a; \
            mkdir -p root/containers/{id}/upper; mount -t tmpfs none root/containers/{id}/upper; \
            {COMMAND} --root root doctor; {COMMAND} --root root ps -aq; echo status $?; \
            umount root/tmp/*/upper; {COMMAND} --root root ps -aq; ls root/containers; ls root/tmp; echo end; }} 2>&1"
    );
    let Some(text) = with_disk(&root.file("disk"), &script) else { return };
    // Out of sight all the same.
    assert!(text.contains("cannot remove files of the root") && text.contains("/root/tmp/"), "{text}");
    assert!(text.ends_with("\nstatus 0\nend\n"), "{text}");
}

#[test]
fn a_root_without_rights_is_said() {
    if nix::unistd::geteuid().is_root() {
        return other_user("anybody but root");
    }
    let root = Root::new();
    let output = Command::new(COMMAND).args(["--root", "/proc/coracle", "images"]).output().unwrap();
    assert!(!output.status.success());
    let complaint = complaint(&output);
    assert!(complaint.contains("/proc/coracle"), "{complaint}");
    drop(root);
}
