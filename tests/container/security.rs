//! Past escapes, each as the hostile image or option that it was.

use std::os::unix::fs::symlink;

use coracle::ErrorKind;
use coracle::container::Mount;
use coracle::isolation::{Aspect, Level};

use super::shared::skip::{missing, other_user};
use super::support::{Lab, image, is_root, run, scratch, tree, with_programs};

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
    let error = with_programs(image.container()).command(["/bin/sh", "-c", "echo x > /dev/null"]).output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Hostile, "{error}");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

/// CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2025-31133, CVE-2025-54867, CVE-2025-62161: procfs, sysfs and `/dev` as links. A link may resolve while procfs is
/// attached and no more when it is masked (`sys/a/../../p`: the sysfs that is attached in between has no `a`), or lead to
/// the root (procfs would lie on it, out of the way of every mask, and be reached as `/..`).
#[test]
fn kernel_file_systems_are_attached_through_no_link() {
    let Some(lab) = Lab::new() else { return };
    for (name, target) in [
        ("proc", "sys/a/../../p"),
        ("proc", "/"),
        ("proc", "."),
        ("proc", "/fake"),
        ("proc", "nowhere"),
        ("sys", "/"),
        ("sys", "fake"),
        ("sys", "proc"),
        ("dev", "/"),
        ("dev", "proc"),
        ("dev", "../../fake"),
    ] {
        let image = hostile(&lab, |tree| {
            for directory in ["fake", "p", "sys/a"] {
                std::fs::create_dir_all(tree.join(directory)).unwrap();
            }
            let _ = std::fs::remove_dir_all(tree.join(name));
            symlink(target, tree.join(name)).unwrap();
        });
        let script = "for at in /proc /p /.. /fake; do (: >> $at/sys/kernel/core_pattern) && echo $at; done";
        let error = with_programs(image.container()).command(["/bin/sh", "-c", script]).output().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Hostile, "{name} -> {target}: {error}");
    }
    lab.assert_clean();
}

/// The same with a mount of the caller's whose target an image turns into the root.
#[test]
fn nothing_is_mounted_on_the_root() {
    let Some(lab) = Lab::new() else { return };
    let image = hostile(&lab, |tree| symlink("home/..", tree.join("data")).unwrap());
    let host = scratch();
    for mount in [Mount::bind(host.path(), "/data"), Mount::tmpfs("/data")] {
        let error = with_programs(image.container()).mount(mount).command(["/bin/true"]).output().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Hostile, "{error}");
    }
}

/// What is masked and what is read-only, as the workload sees it.
#[test]
fn kernel_settings_are_out_of_reach() {
    let Some(lab) = Lab::new() else { return };
    let image = hostile(&lab, |_| {});
    let script = "cat /proc/keys /proc/timer_list /proc/kcore | wc -c; ls -A /sys/firmware | wc -l; \
                  stat -fc %T /proc /sys; grep -c '^proc /proc/sys proc ro,' /proc/mounts; \
                  (: >> /proc/sys/kernel/core_pattern) 2>/dev/null || echo refused";
    assert_eq!(run(&with_programs(image.container()), script), "0\n0\nproc\nsysfs\n1\nrefused\n");
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

/// CVE-2022-36109: a primary group that is not a supplementary one can be dropped, and with it what files refuse to it.
#[test]
fn the_primary_group_is_a_supplementary_one() {
    let Some(lab) = Lab::new() else { return };
    if lab.engine.identity() == "rootless with one id" {
        return other_user("root, or a user with a range");
    }
    let image = hostile(&lab, |tree| {
        std::fs::write(tree.join("etc/passwd"), "bob:x:1000:100::/:/bin/sh\n").unwrap();
        std::fs::write(tree.join("etc/group"), "users:x:100:\nwheel:x:10:bob\n").unwrap();
    });
    for (user, groups) in [("", "0"), ("4242", "0"), ("4242:43", "43"), ("bob", "100 10"), ("bob:wheel", "10")] {
        let said = run(&with_programs(image.container()).user(user), "grep Groups: /proc/self/status");
        let mut said: Vec<&str> = said.split_whitespace().skip(1).collect();
        let mut expected: Vec<&str> = groups.split(' ').collect();
        // The kernel sorts them.
        said.sort_unstable();
        expected.sort_unstable();
        assert_eq!(said, expected, "{user:?}");
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

/// Where nodes can be made and the file system lets them be opened, docker's list of devices decides.
#[test]
fn only_listed_devices_open_where_nodes_can_be_made() {
    let Some(lab) = Lab::new() else { return };
    if !is_root() {
        return other_user("root");
    }
    let image = hostile(&lab, |_| {});
    let builder = || with_programs(image.container()).mount(Mount::tmpfs("/t").option("dev"));
    if builder().command(["/bin/true"]).enforcement().unwrap().level(Aspect::Privileges) != Level::Full {
        return missing("device rules, of version 1 or of version 2");
    }
    // kmsg, mem, hwrng, fuse, and the first disk of three kinds.
    let script = "mknod /t/zero c 1 5; test $(head -c 3 /t/zero | wc -c) = 3
        for node in 'c 1 11' 'c 1 1' 'c 10 183' 'c 10 229' 'b 8 0' 'b 254 0' 'b 7 0'; do
            rm -f /t/node; mknod /t/node $node
            (exec 3</t/node) 2>&1 | grep -q 'not permitted' || echo $node opened
        done";
    assert_eq!(run(&builder(), script), "");
    // Without a mount of that kind, one is made.
    let script = format!("mount -t tmpfs none /tmp; mkdir /tmp/t; mount --rbind /tmp/t /t; {script}");
    let with = builder().cap_add("SYS_ADMIN");
    assert_eq!(run(&with, &script), "");
    let mut loose = coracle::security::Profile::DEFAULT_2026_11;
    loose.seccomp = coracle::security::Seccomp::Unconfined;
    let script =
        "mount -t tmpfs none /tmp; mknod /tmp/node c 10 229; (exec 3</tmp/node) 2>&1 | grep -c 'not permitted'";
    assert_eq!(run(&with_programs(image.container()).profile(loose).cap_add("SYS_ADMIN"), script), "1\n");
}

/// A device that is bound with `dev` was given in so many words.
#[test]
fn a_device_that_was_given_opens() {
    let Some(lab) = Lab::new() else { return };
    if !is_root() {
        return other_user("root");
    }
    if !std::path::Path::new("/dev/fuse").exists() {
        return missing("/dev/fuse");
    }
    let image = hostile(&lab, |_| {});
    let builder = with_programs(image.container()).mount(Mount::bind("/dev/fuse", "/fuse").option("dev"));
    assert_eq!(run(&builder, "(exec 3<>/fuse) && echo open"), "open\n");
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

/// Standard streams that lead nowhere are the container's own null device: root inside could change the mode and the
/// times of the host's.
#[test]
fn the_hosts_null_device_is_not_handed_in() {
    use std::os::unix::fs::MetadataExt;
    let Some(lab) = Lab::new() else { return };
    if !is_root() {
        // In a user namespace nobody can make device nodes; but the host's belong to nobody there.
        return other_user("root");
    }
    let image = hostile(&lab, |_| {});
    let host = std::fs::metadata("/dev/null").unwrap();
    let script = "for fd in 0 2; do stat -Lc '%t:%T %d %i' /proc/self/fd/$fd; done; stat -c '%t:%T %d %i' /dev/null";
    let null = || std::fs::File::open("/dev/null").unwrap();
    for builder in [
        with_programs(image.container()).stdin(coracle::Stdio::Null).stderr(coracle::Stdio::Null),
        with_programs(image.container()).stdin(null()).stderr(null()),
    ] {
        let out = run(&builder, script);
        let lines: Vec<&str> = out.lines().collect();
        assert!(lines.len() == 3 && lines.iter().all(|line| *line == lines[2]), "{out}");
        assert!(out.starts_with("1:3 ") && !lines.contains(&&*format!("1:3 {} {}", host.dev(), host.ino())), "{out}");
    }
}

/// Keys of the session that the host program runs in are found through a keyring that processes inherit.
#[test]
fn the_hosts_session_keyring_stays_outside() {
    const SESSION: libc::c_long = -3;
    let Some(lab) = Lab::new() else { return };
    // SAFETY: integers only; KEYCTL_GET_KEYRING_ID, and make it.
    let host = unsafe { libc::syscall(libc::SYS_keyctl, 0, SESSION, 1) };
    if host < 0 || !std::path::Path::new("/usr/bin/perl").exists() {
        return super::shared::skip::missing("keyctl(2) or perl");
    }
    let mut profile = coracle::security::Profile::DEFAULT_2026_11;
    profile.seccomp = coracle::security::Seccomp::Unconfined;
    let keyring = || {
        let script = format!("perl -e 'print syscall({}, 0, {SESSION}, 0)'", libc::SYS_keyctl);
        let number: i64 = run(&lab.engine.sandbox().profile(profile.clone()), &script).parse().unwrap();
        assert!(number > 0, "{number}");
        number
    };
    let (one, other) = (keyring(), keyring());
    assert!(one != host && other != host && one != other, "{one} {other} {host}");
}

/// A profile whose filter ends whoever makes one of these calls, besides what docker's refuses.
fn killing(calls: &[&'static str], no_new_privs: bool) -> coracle::security::Profile {
    use coracle::security::seccomp::{Action, Policy, Rule};
    let mut policy = Policy::docker_2026_11();
    policy.rules.push(Rule::always(Action::KillProcess, calls.iter().copied()));
    let mut profile = coracle::security::Profile::DEFAULT_2026_11;
    profile.seccomp = coracle::security::Seccomp::Custom(std::sync::Arc::new(policy));
    profile.no_new_privs = no_new_privs;
    profile
}

/// The filter is the command's: what it refuses is not what the set-up, or the init process, needs for itself.
#[test]
fn a_filter_binds_nobody_but_the_command() {
    let Some(lab) = Lab::new() else { return };
    let image = hostile(&lab, |_| {});
    let late = ["capset", "capget", "prctl"];
    let calls = [
        "close_range",
        "dup3",
        "setresuid",
        "setresgid",
        "setgroups",
        "clone3",
        "waitid",
        "rt_sigtimedwait",
        "seccomp",
        "statx",
        "sendto",
        "openat2",
    ];
    for no_new_privs in [true, false] {
        // Without no-new-privileges, the capabilities can only be given up after the filter.
        let calls: Vec<_> = calls.iter().chain(late.iter().filter(|_| no_new_privs)).copied().collect();
        for (init, user) in [(false, "0"), (true, "0"), (true, "bob")] {
            let builder = with_programs(image.container())
                .profile(killing(&calls, no_new_privs))
                .require(coracle::isolation::Requirement::nothing())
                .user(user)
                .init(init);
            let out = run(&builder, "echo $$; grep -E '^(CapEff|Seccomp):' /proc/self/status");
            let capabilities = if user == "0" { "00000000a80425fb" } else { "0000000000000000" };
            let pid = if init { 2 } else { 1 };
            assert_eq!(out, format!("{pid}\nCapEff:\t{capabilities}\nSeccomp:\t2\n"), "{no_new_privs} {init} {user}");
        }
    }
}

/// With an init, pid 1 is the carried program: it keeps no descriptor and no right, whatever the filter is.
#[test]
fn the_init_process_holds_nothing() {
    let Some(lab) = Lab::new() else { return };
    let image = hostile(&lab, |_| {});
    for profile in [coracle::security::Profile::DEFAULT_2026_11, killing(&["close_range", "dup3", "waitid"], true)] {
        let container = with_programs(image.container())
            .profile(profile)
            .init(true)
            .command(["/bin/sleep", "1000"])
            .spawn()
            .unwrap();
        let process = std::path::PathBuf::from(format!("/proc/{}", container.pid().unwrap()));
        let status = std::fs::read_to_string(process.join("status")).unwrap();
        for line in ["CapEff:\t00000000a80425fb", "NoNewPrivs:\t1", "Seccomp:\t2", "Seccomp_filters:\t1"] {
            assert!(status.contains(line), "{line}\n{status}");
        }
        match std::fs::read_dir(process.join("fd")) {
            Ok(open) => assert_eq!(open.count(), 0),
            // It is not dumpable.
            Err(_) if !is_root() => other_user("root"),
            Err(error) => panic!("{error}"),
        }
        container.kill().unwrap();
    }
}

/// Sockets of the host's services are not reachable through the tree.
#[test]
fn the_hosts_runtime_directory_is_empty() {
    let Some(lab) = Lab::new() else { return };
    assert_eq!(run(&lab.engine.sandbox(), "find /run -mindepth 1 | wc -l"), "0\n");
}

/// What its records say is done by the host.
#[test]
fn the_engine_root_is_in_no_mount() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let above = lab.root().parent().unwrap().to_owned();
    let name = lab.root().file_name().unwrap().to_string_lossy().into_owned();
    // From above it is empty, and takes nothing.
    for mount in [Mount::bind(&above, "/made"), Mount::bind(&above, "/made").read_only()] {
        let builder = with_programs(image.container()).mount(mount);
        let script = format!("ls -A /made/{name} | wc -l; touch /made/{name}/x 2>/dev/null || echo refused");
        assert_eq!(run(&builder, &script), "0\nrefused\n");
    }
    for source in [lab.root(), lab.root().join("containers")] {
        let builder = with_programs(image.container()).mount(Mount::bind(source, "/made").read_only());
        let error = builder.command(["true"]).status().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    lab.assert_clean();
}
