//! The rungs of isolation below namespaces, and the contract that all of them keep.

use std::io::{BufRead, Read};
use std::path::Path;
use std::time::Duration;

use coracle::container::{Mount, Signal};
use coracle::isolation::{Aspect, Level, Requirement};
use coracle::security::Profile;
use coracle::{ContainerBuilder, Engine, EngineOptions, ErrorKind, Image, IsolationChoice, Stdio, contract};

use super::shared::skip::other_user;
use super::support::{Lab, image, is_root, run, scratch, shell, with_programs};

fn lab(choice: IsolationChoice) -> Lab {
    Lab::with(|options| options.isolation(choice))
}

/// A command of the host's that may write to one directory.
fn confined(lab: &Lab, writable: &Path) -> ContainerBuilder {
    let builder = lab.engine.sandbox().read_only(true).require(Requirement::nothing());
    builder.mount(Mount::bind(writable, writable))
}

/// An image with programs of its own, for where nothing can be mounted.
pub fn with_busybox(lab: &Lab) -> Option<Image> {
    busybox(&lab.engine)
}

/// The same in any engine.
pub fn busybox(engine: &Engine) -> Option<Image> {
    let program = super::shared::skip::static_busybox()?;
    let dir = scratch();
    for name in ["bin", "dev", "etc", "tmp"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    // What a shell reads in the background.
    std::fs::write(dir.path().join("dev/null"), "").unwrap();
    std::fs::copy(program, dir.path().join("bin/busybox")).unwrap();
    for name in [
        "sh", "cat", "ls", "sleep", "kill", "id", "mkdir", "rm", "mv", "ln", "mkfifo", "setsid", "true", "tr",
        "chroot", "nc",
    ] {
        std::os::unix::fs::symlink("busybox", dir.path().join("bin").join(name)).unwrap();
    }
    std::fs::write(dir.path().join("etc/passwd"), "root:x:0:0::/:/bin/sh\nbob:x:1000:1000::/tmp:/bin/sh\n").unwrap();
    let sticky = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(dir.path().join("tmp"), sticky).unwrap();
    Some(engine.import(dir.path(), None).unwrap())
}

#[test]
fn namespaces_keep_the_contract() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    contract::isolation(&|| with_programs(image.container()), "/tmp").unwrap();
    contract::isolation(&|| with_programs(image.container()).init(true), "/tmp").unwrap();
    contract::isolation(&|| lab.engine.sandbox(), "/tmp").unwrap();
    lab.assert_clean();
}

#[test]
fn landlock_on_top_of_namespaces_keeps_the_contract() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    // Root without capabilities writes to what is root's.
    let builder = || with_programs(image.container()).profile(Profile::UNTRUSTED_2026_11).mount(Mount::tmpfs("/tmp"));
    contract::isolation(&builder, "/tmp").unwrap();
    lab.assert_clean();
}

#[test]
fn landlock_keeps_the_contract() {
    let lab = lab(IsolationChoice::Landlock);
    let work = scratch();
    contract::isolation(&|| confined(&lab, work.path()), work.path()).unwrap();
    let programs = ["/usr", "/bin", "/lib", "/lib64", "/etc"];
    let narrow = || programs.iter().fold(confined(&lab, work.path()), |builder, path| builder.readable(*path));
    contract::isolation(&narrow, work.path()).unwrap();
    lab.assert_clean();
}

#[test]
fn chroot_keeps_the_contract() {
    if !is_root() {
        return other_user("root");
    }
    let lab = lab(IsolationChoice::Chroot);
    let Some(image) = with_busybox(&lab) else { return };
    let built = || image.container().require(Requirement::nothing()).stdin(Stdio::Null);
    contract::isolation(&built, "/tmp").unwrap();
    lab.assert_clean();
}

#[test]
fn what_is_asked_by_default_is_more_than_the_lower_rungs_enforce() {
    let lab = lab(IsolationChoice::Landlock);
    let error = lab.engine.sandbox().read_only(true).command(["true"]).output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Weaker, "{error}");
    assert!(error.to_string().contains("landlock hides no names") && error.remedy_hint().is_some(), "{error}");
    lab.assert_clean();
}

#[test]
fn what_landlock_cannot_do_says_so_and_what_would_help() {
    let lab = lab(IsolationChoice::Landlock);
    let work = scratch();
    let image = image(&lab.engine);
    let nothing = || lab.engine.sandbox().require(Requirement::nothing());
    for (builder, words) in [
        (image.container().require(Requirement::nothing()), "cannot make an image the root"),
        (nothing(), "cannot throw writes away"),
        (lab.engine.sandbox_over(work.path()).read_only(true), "cannot make a directory the root"),
        (nothing().read_only(true).mount(Mount::tmpfs("/mnt")), "mounts nothing"),
        (nothing().read_only(true).mount(Mount::bind(work.path(), "/mnt")), "mounts nothing"),
        (nothing().read_only(true).hostname("box"), "host name"),
    ] {
        let error = builder.command(["true"]).output().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(words) && error.remedy_hint().is_some(), "{words}: {error}");
    }
    let container = confined(&lab, work.path()).command(["sleep", "1000"]).spawn().unwrap();
    let error = container.exec().command(["true"]).output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    container.close().unwrap();
    drop(image);
    lab.assert_clean();
}

/// What its user owns stays without set-id bits, and nothing that would undo the isolation is let through.
#[test]
fn landlock_is_fenced_in() {
    let lab = lab(IsolationChoice::Landlock);
    let work = scratch();
    let dir = work.path().display();
    for script in [
        format!("cd {dir}; : > f; chmod u+s f"),
        format!("cd {dir}; : > f; chmod 2755 f"),
        format!("cd {dir}; mknod n c 1 3"),
        "unshare -U true".to_owned(),
        "mount -t tmpfs none /mnt".to_owned(),
        "chroot / true".to_owned(),
        ": > /proc/self/oom_score_adj".to_owned(),
        format!("prlimit --core=0:0 --pid {}", std::process::id()),
    ] {
        let out = confined(&lab, work.path()).command(["/bin/sh", "-ec", &script]).output().unwrap();
        assert!(!out.status.success(), "{script}");
    }
    // And what is ordinary works.
    run(
        &confined(&lab, work.path()),
        &format!("cd {dir}; : > g; chmod 755 g; ls -l /proc/self/exe > /dev/null; echo x > /dev/null"),
    );
}

#[test]
fn without_namespaces_a_user_is_the_caller_or_anybody_for_root() {
    let lab = lab(IsolationChoice::Landlock);
    let work = scratch();
    let builder = || confined(&lab, work.path());
    let own = nix::unistd::geteuid().to_string();
    assert_eq!(run(&builder(), "id -u").trim(), own);
    if is_root() {
        let nobody = builder().user("65534:65534");
        assert_eq!(run(&nobody, "id -u; id -g; id -G"), "65534\n65534\n65534\n");
        assert_eq!(nobody.command(["true"]).enforcement().unwrap().level(Aspect::Privileges), Level::Full);
    } else {
        let error = builder().user("0").command(["true"]).output().unwrap_err();
        assert!(error.to_string().contains("without a user namespace"), "{error}");
        assert_eq!(builder().command(["true"]).enforcement().unwrap().level(Aspect::Privileges), Level::Full);
        let error = builder().cap_add("NET_RAW").command(["true"]).output().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    }
}

#[test]
fn landlock_lies_on_top_where_the_profile_says_so() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let tmp = || Mount::tmpfs("/tmp");
    let builder = || with_programs(image.container()).profile(Profile::UNTRUSTED_2026_11).mount(tmp());
    let reason = builder().command(["true"]).enforcement().unwrap().reason(Aspect::Privileges).to_owned();
    assert!(reason.contains("landlock lies on top") || reason.contains("landlock on top is of version"), "{reason}");
    assert_eq!(
        run(
            &builder(),
            "echo x > /tmp/x; cat /tmp/x; echo x > /dev/null; grep -c CapEff:.0000000000000000 /proc/self/status"
        ),
        "x\n1\n"
    );
    let read_only = || builder().read_only(true);
    let script = "echo x > /tmp/x; cat /tmp/x; echo y > /dev/shm/y; (echo x > /etc/x) 2>/dev/null || echo refused";
    assert_eq!(run(&read_only(), script), "x\nrefused\n");
    // Landlock by itself: the kernel's file systems are read-only by mounts that are there anyway, these files are not.
    assert_eq!(run(&read_only(), "(: > /proc/self/oom_score_adj) 2>/dev/null || echo refused"), "refused\n");
    assert_eq!(run(&with_programs(image.container()), ": > /proc/self/oom_score_adj; echo fine"), "fine\n");
    // A further command is its equal.
    let container = read_only().command(["sleep", "1000"]).spawn().unwrap();
    let script = "(: > /proc/self/oom_score_adj) 2>/dev/null || echo refused; echo x > /tmp/x && cat /tmp/x";
    let out = container.exec().command(["/bin/sh", "-c", script]).output().unwrap();
    assert_eq!(String::from_utf8(out.stdout).unwrap(), "refused\nx\n", "{}", String::from_utf8_lossy(&out.stderr));
    // Reads alone.
    let narrow = lab.engine.sandbox().readable("/usr").readable("/bin").readable("/lib").readable("/lib64");
    let out = narrow.command(["/bin/sh", "-c", "ls /usr > /dev/null && cat /etc/passwd"]).output().unwrap();
    assert_eq!((out.status.success(), out.stdout), (false, vec![]));
}

#[test]
fn a_changed_root_holds() {
    if !is_root() {
        return other_user("root");
    }
    let lab = lab(IsolationChoice::Chroot);
    assert_ne!(lab.engine.snapshotter().0, "overlay");
    let Some(image) = with_busybox(&lab) else { return };
    let builder = || image.container().require(Requirement::nothing());
    assert_eq!(
        run(&builder(), "ls /; id -u; echo x > /etc/new; cat /etc/new; ls /proc 2>/dev/null || true"),
        "bin\ndev\netc\ntmp\n0\nx\n"
    );
    assert_eq!(run(&builder().user("bob"), "id -u; cd; pwd"), "1000\n/tmp\n");
    for script in ["chroot / true", "ls /../../../home", "cat /../../etc/hostname"] {
        let out = builder().command(["/bin/sh", "-c", script]).output().unwrap();
        assert!(!out.status.success(), "{script}");
    }
    let error = builder().mount(Mount::bind("/usr", "/usr")).command(["true"]).output().unwrap_err();
    assert!(error.to_string().contains("mounts nothing"), "{error}");
    assert_eq!(shell_status(&builder().stdout(Stdio::Null).stderr(Stdio::Null), "echo x; echo y >&2; exit 4"), Some(4));
    lab.assert_clean();
    // With a backend that mounts, an error that says so.
    let overlay = Lab::with(|options| {
        options.isolation(IsolationChoice::Chroot).snapshotter(coracle::SnapshotterChoice::Overlay)
    });
    let Some(image) = with_busybox(&overlay) else { return };
    let error = image.container().require(Requirement::nothing()).command(["true"]).output().unwrap_err();
    assert!(error.to_string().contains("overlay would have to be mounted"), "{error}");
    drop(image);
    overlay.assert_clean();
}

fn shell_status(builder: &ContainerBuilder, script: &str) -> Option<i32> {
    builder.clone().command(["/bin/sh", "-c", script]).status().unwrap().code()
}

#[test]
fn a_device_in_a_tree_without_mounts_is_refused() {
    if !is_root() {
        return other_user("root");
    }
    let lab = lab(IsolationChoice::Chroot);
    let dir = scratch();
    std::fs::create_dir(dir.path().join("bin")).unwrap();
    let status = std::process::Command::new("mknod").arg(dir.path().join("bin/mem")).args(["c", "1", "1"]).status();
    assert!(status.unwrap().success());
    let builder = lab.engine.sandbox_over(dir.path()).read_only(true).require(Requirement::nothing());
    let error = builder.command(["/bin/sh"]).output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Hostile, "{error}");
    // Without it, the directory is the root, and stays as it is.
    std::fs::remove_file(dir.path().join("bin/mem")).unwrap();
    std::fs::copy("/bin/busybox", dir.path().join("bin/sh")).unwrap();
    let builder = lab.engine.sandbox_over(dir.path()).read_only(true).require(Requirement::nothing());
    assert_eq!(run(&builder, "echo /*; (: > /bin/new) || echo refused").trim(), "/bin\nrefused");
    lab.assert_clean();
}

#[test]
fn nobody_but_root_changes_roots() {
    if is_root() {
        return other_user("anybody but root");
    }
    let lab = lab(IsolationChoice::Chroot);
    let image = image(&lab.engine);
    let error = image.container().require(Requirement::nothing()).command(["true"]).output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("root"), "{error}");
}

#[test]
fn auto_takes_namespaces_where_they_are() {
    let Some(lab) = Lab::new() else { return };
    assert_eq!(lab.engine.sandbox().command(["true"]).enforcement().unwrap().backend(), "namespaces");
    let image = image(&lab.engine);
    assert_eq!(shell(&image, "echo fine"), "fine\n");
}

/// Processes in every place that they can be in, without a pid namespace.
const FAMILY: &str = "sleep 1000 & (sleep 1000 &) ; (setsid sleep 1000 &) ; sleep 0.2; echo ready; exec sleep 1000";

/// A host program with such a container, which says which processes that has.
pub fn watched(root: &str) {
    let engine = EngineOptions::new(root).isolation(IsolationChoice::Landlock).open().unwrap();
    let builder = engine.sandbox().read_only(true).require(Requirement::nothing());
    let mut container = builder.command(["/bin/sh", "-c", FAMILY]).stdout(Stdio::Piped).spawn().unwrap();
    container.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    let family: Vec<String> = family(container.pid().unwrap()).iter().map(u32::to_string).collect();
    println!("\nFAMILY {} {} {}", container.id(), parent(container.pid().unwrap()), family.join(" "));
    let _ = container.wait();
    std::thread::sleep(Duration::from_secs(1000));
}

fn family(first: u32) -> Vec<u32> {
    let mut all = vec![first];
    let mut at = 0;
    while let Some(pid) = all.get(at) {
        let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        all.extend(list.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
        at += 1;
    }
    all
}

fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

fn parent(pid: u32) -> u32 {
    stat(pid).unwrap()[1].parse().unwrap()
}

fn lives(pid: &u32) -> bool {
    stat(*pid).is_some_and(|fields| fields[0] != "Z" && fields[0] != "X")
}

/// However it comes to its end: by another program, with its guardian, or with the program that started it.
#[test]
fn all_that_came_of_a_command_ends_with_it_whoever_kills_it() {
    for whom in ["container", "guardian", "host"] {
        let dir = scratch();
        let root = dir.path().join("root");
        let mut host = super::host::role("watched", &root).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let lines = std::io::BufReader::new(host.stdout.take().unwrap()).lines();
        let line = lines.map(Result::unwrap).find_map(|line| line.strip_prefix("FAMILY ").map(str::to_owned)).unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let (guardian, family): (i32, Vec<u32>) =
            (words[1].parse().unwrap(), words[2..].iter().map(|word| word.parse().unwrap()).collect());
        // The one that watches, the command, and three that came of it.
        assert_eq!(family.len(), 5, "{line}");
        let kill =
            |pid: i32| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
        match whom {
            "container" => {
                let engine = EngineOptions::new(&root).isolation(IsolationChoice::Landlock).open().unwrap();
                engine.find_container(words[0]).unwrap().kill().unwrap();
            }
            "guardian" => kill(guardian),
            _ => kill(host.id() as i32),
        }
        let begin = std::time::Instant::now();
        while family.iter().any(lives) {
            assert!(begin.elapsed() < Duration::from_secs(10), "{whom}: of {family:?} some live on");
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = host.kill();
        host.wait().unwrap();
        // The next open takes away what it has left, as soon as its guardian has let go of it.
        while !Engine::open(&root).unwrap().containers().unwrap().is_empty() {
            assert!(begin.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_stop_is_the_commands_and_keeps_nobody_from_killing_it() {
    let lab = lab(IsolationChoice::Landlock);
    let work = scratch();
    let state = |pid: u32| stat(pid).map(|fields| fields[0].clone()).unwrap_or_default();
    let until = |holds: &dyn Fn() -> bool| {
        let begin = std::time::Instant::now();
        while !holds() {
            assert!(begin.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    let signal = |name: &str| name.parse::<Signal>().unwrap();
    for outside in [false, true] {
        let container = confined(&lab, work.path()).command(["sleep", "1000"]).spawn().unwrap();
        let watcher = container.pid().unwrap();
        let command = family(watcher)[1];
        container.signal(signal("STOP")).unwrap();
        until(&|| state(command) == "T");
        assert_ne!(state(watcher), "T");
        container.signal(signal("CONT")).unwrap();
        until(&|| state(command) == "S");
        container.signal(signal("STOP")).unwrap();
        if outside {
            let pid = nix::unistd::Pid::from_raw(watcher as i32);
            nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).unwrap();
            until(&|| state(watcher) == "T");
        }
        container.kill().unwrap();
        let status = container.wait_timeout(Duration::from_secs(10)).unwrap().expect("it can be killed");
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        container.close().unwrap();
    }
}
