//! Past escapes, each as the hostile image or option that it was.

use std::os::unix::fs::symlink;

use coracle::ErrorKind;
use coracle::container::Mount;

use super::shared::skip::other_user;
use super::support::{Lab, is_root, run, scratch, tree, with_programs};

/// An image like the lab's, after `change` had its way with it.
fn hostile(lab: &Lab, change: impl FnOnce(&std::path::Path)) -> coracle::Image {
    let tree = tree();
    change(tree.path());
    lab.engine.import(tree.path(), None).unwrap()
}

/// CVE-2026-41579, CVE-2026-88264, CVE-2026-88265: `/dev` of the image leads elsewhere.
#[test]
fn dev_as_a_symlink_reaches_nothing_of_the_host() {
    let Some(lab) = Lab::new() else { return };
    let outside = scratch();
    let image = hostile(&lab, |tree| symlink(outside.path(), tree.join("dev")).unwrap());
    let out = with_programs(image.container()).command(["/bin/sh", "-c", "echo x > /dev/null; ls -d /dev/"]).output();
    // Running and refusing are both fine; writing outside is not.
    drop(out);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

/// CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2025-31133, CVE-2025-54867, CVE-2025-62161: `/proc` and masked
/// paths as links.
#[test]
fn proc_as_a_symlink_is_still_our_procfs() {
    let Some(lab) = Lab::new() else { return };
    let image = hostile(&lab, |tree| {
        std::fs::create_dir(tree.join("fake")).unwrap();
        symlink("/fake", tree.join("proc")).unwrap();
    });
    let builder = with_programs(image.container());
    assert_eq!(run(&builder, "stat -fc %T /fake; cat /proc/keys | wc -c"), "proc\n0\n");
}

/// CVE-2021-30465, CVE-2024-45310, CVE-2026-55686, CVE-2026-87766: made files, mount points and working directories through links.
#[test]
fn nothing_is_created_outside_through_links() {
    let Some(lab) = Lab::new() else { return };
    let outside = scratch();
    let image = hostile(&lab, |tree| {
        std::fs::remove_file(tree.join("etc/os-release")).unwrap();
        symlink(outside.path(), tree.join("out")).unwrap();
        symlink(outside.path().join("hosts"), tree.join("etc/hosts")).unwrap();
        symlink("/proc/self/fd/3", tree.join("cwd")).unwrap();
        symlink("/proc/self/root/../../..", tree.join("up")).unwrap();
    });
    let host = scratch();
    for target in ["/out/made/here", "/up/made"] {
        let _ =
            with_programs(image.container()).mount(Mount::bind(host.path(), target)).command(["/bin/true"]).output();
    }
    for directory in ["/out/made", "/cwd", "/cwd/x", "/up", "/proc/self/fd/7", "/proc/1/root"] {
        let _ = with_programs(image.container()).workdir(directory).command(["/bin/true"]).output();
    }
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    lab.assert_clean();
}

/// CVE-2024-21626: a working directory through a descriptor of the runtime.
#[test]
fn a_working_directory_never_lies_outside() {
    let Some(lab) = Lab::new() else { return };
    let image = hostile(&lab, |_| {});
    for fd in 0..64 {
        let directory = format!("/proc/self/fd/{fd}");
        if let Ok(out) = with_programs(image.container()).workdir(&directory).command(["/bin/pwd"]).output() {
            assert!(!String::from_utf8_lossy(&out.stdout).contains("unreachable"), "{directory}");
        }
    }
}

/// CVE-2019-16884, CVE-2025-52881, CVE-2025-62596: a mount over procfs.
#[test]
fn mounts_over_kernel_file_systems_are_refused() {
    let Some(lab) = Lab::new() else { return };
    let image = hostile(&lab, |tree| symlink("/proc/self", tree.join("link")).unwrap());
    let host = scratch();
    for (target, kinds) in [
        ("/proc", &[ErrorKind::Invalid][..]),
        ("/proc/sys", &[ErrorKind::Invalid]),
        ("/sys/fs/cgroup", &[ErrorKind::Invalid]),
        ("/link/attr", &[ErrorKind::Denied, ErrorKind::Launch]),
    ] {
        let error = with_programs(image.container())
            .mount(Mount::bind(host.path(), target))
            .command(["/bin/true"])
            .output()
            .unwrap_err();
        assert!(kinds.contains(&error.kind()), "{target}: {error}");
    }
    lab.assert_clean();
}

/// CVE-2019-5736: the program that set the container up is written to from inside.
#[test]
fn the_carried_program_cannot_be_written() {
    let Some(lab) = Lab::new() else { return };
    let image = hostile(&lab, |_| {});
    // With an init, pid 1 is that program.
    let builder = with_programs(image.container()).init(true);
    let script = "(echo x > /proc/1/exe) 2>/dev/null || echo refused; (cat /proc/1/mem) 2>/dev/null | wc -c";
    assert_eq!(run(&builder, script), "refused\n0\n");
}

/// CVE-2026-47262: a passwd file without end.
#[test]
fn a_huge_passwd_is_refused() {
    let Some(lab) = Lab::new() else { return };
    let image = hostile(&lab, |tree| {
        let file = std::fs::File::create(tree.join("etc/passwd")).unwrap();
        file.set_len(5 << 20).unwrap();
    });
    let error = with_programs(image.container()).user("bob").command(["/bin/true"]).output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
}

/// CVE-2024-9676: `/etc/passwd` as a link or a pipe.
#[test]
fn a_strange_passwd_hangs_and_leaks_nothing() {
    let Some(lab) = Lab::new() else { return };
    let image = hostile(&lab, |tree| {
        std::fs::remove_file(tree.join("etc/passwd")).unwrap();
        nix::unistd::mkfifo(&tree.join("etc/passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    });
    assert!(with_programs(image.container()).user("bob").command(["/bin/true"]).output().is_err());
    let image = hostile(&lab, |tree| {
        std::fs::remove_file(tree.join("etc/passwd")).unwrap();
        symlink("/../../../../../../etc/passwd", tree.join("etc/passwd")).unwrap();
    });
    // Inside the image that link leads to itself.
    assert!(with_programs(image.container()).user("daemon").command(["/bin/true"]).output().is_err());
}

/// CVE-2022-0492, CVE-2022-24769 and their kind: what a process inside holds.
#[test]
fn privileges_are_what_was_said() {
    let Some(lab) = Lab::new() else { return };
    let image = hostile(&lab, |_| {});
    let status = run(&with_programs(image.container()), "cat /proc/self/status");
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|rest| rest.trim_start_matches(':').trim().to_owned())
            .unwrap()
    };
    let docker = "00000000a80425fb";
    assert_eq!((field("CapBnd").as_str(), field("CapEff").as_str()), (docker, docker));
    assert_eq!((field("CapInh").as_str(), field("CapAmb").as_str()), ("0000000000000000", "0000000000000000"));
    assert_eq!((field("NoNewPrivs").as_str(), field("Seccomp").as_str()), ("1", "2"));
    let none = run(&with_programs(image.container()).cap_drop("ALL"), "grep CapEff /proc/self/status");
    assert!(none.contains("0000000000000000"), "{none}");
    for forbidden in ["unshare -U true", "unshare -m true", "mount -t tmpfs x /tmp", "chroot / mount --bind /etc /tmp"]
    {
        let out =
            run(&with_programs(image.container()), &format!("{forbidden} 2>/dev/null && echo done || echo refused"));
        assert_eq!(out, "refused\n", "{forbidden}");
    }
}

/// A device node that the container makes for itself opens nothing.
#[test]
fn made_device_nodes_open_nothing() {
    let Some(lab) = Lab::new() else { return };
    if !is_root() {
        // In a user namespace the kernel refuses to make them at all.
        return other_user("root");
    }
    let image = hostile(&lab, |_| {});
    for directory in ["/", "/dev", "/dev/shm", "/tmp"] {
        let script =
            format!("mknod {directory}/node c 1 5 2>/dev/null; (head -c 1 {directory}/node) 2>/dev/null | wc -c");
        assert_eq!(run(&with_programs(image.container()), &script), "0\n", "{directory}");
    }
}

/// An image brings a device node along.
#[test]
fn device_nodes_of_an_image_open_nothing() {
    let Some(lab) = Lab::new() else { return };
    if !is_root() {
        return other_user("root");
    }
    let image = hostile(&lab, |tree| {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        mknod(&tree.join("node"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 5)).unwrap();
    });
    assert_eq!(run(&with_programs(image.container()), "(head -c 1 /node) 2>/dev/null | wc -c"), "0\n");
}

/// Over the host's tree, the engine's own root is out of sight: it holds every image and every container's writes.
#[test]
fn the_engine_root_is_hidden_from_sandboxes() {
    let Some(lab) = Lab::new() else { return };
    let root = lab.root();
    let script = format!("ls -A {0} 2>/dev/null | wc -l", root.display());
    assert_eq!(run(&lab.engine.sandbox(), &script), "0\n");
}

/// Sockets of the host's services are not reachable through the tree.
#[test]
fn the_hosts_runtime_directory_is_empty() {
    let Some(lab) = Lab::new() else { return };
    assert_eq!(run(&lab.engine.sandbox(), "find /run -mindepth 1 | wc -l"), "0\n");
}
