//! Images of what containers have changed.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use coracle::image::{CommitOptions, ContainerConfig, Running};
use coracle::layer::{ChangeKind, Compression, EncoderOptions};
use coracle::{Container, ErrorKind, Image, Stdio};

use super::support::{Lab, image, is_root, run, shell, with_programs};

/// A container of the image that has run this and is kept.
fn kept(image: &Image, script: &str) -> Container {
    let builder = with_programs(image.container()).keep(true).stdout(Stdio::Null);
    let container = builder.command(["/bin/sh", "-ec", script]).spawn().unwrap();
    assert!(container.wait().unwrap().success(), "{script}");
    container
}

fn changed(container: &Container) -> Vec<String> {
    let letter = |kind| match kind {
        ChangeKind::Added => 'A',
        ChangeKind::Modified => 'C',
        ChangeKind::Removed => 'D',
    };
    let changes = container.changes().unwrap();
    changes.iter().map(|change| format!("{} {}", letter(change.kind), change.path.display())).collect()
}

#[test]
fn what_a_container_changed_is_the_image() {
    let Some(lab) = Lab::new() else { return };
    let parent = image(&lab.engine);
    let container = kept(
        &parent,
        "echo new > /etc/new; echo more >> /etc/passwd; rm /etc/group; rm -r /home/bob; mkdir -p /made/a/b;
         chmod 1777 /made; ln /etc/new /made/a/twin; ln -s /etc/new /made/link; mkfifo -m 600 /made/pipe;
         rm -r /tmp; mkdir -m 1777 /tmp; touch -d @1.5 /made/a/b",
    );
    assert_eq!(
        changed(&container),
        [
            "C /etc",
            "D /etc/group",
            "A /etc/new",
            "C /etc/passwd",
            "C /home",
            "D /home/bob",
            "C /made",
            "A /made/a",
            "A /made/a/b",
            "A /made/a/twin",
            "A /made/link",
            "A /made/pipe",
            "C /tmp",
        ]
    );
    let options = CommitOptions {
        reference: Some("changed:1".parse().unwrap()),
        author: "me".into(),
        comment: "a remark".into(),
        config: Some(ContainerConfig { cmd: vec!["cat".into(), "/etc/new".into()], ..ContainerConfig::default() }),
        ..CommitOptions::default()
    };
    let committed = container.commit(&options).unwrap();
    assert_eq!(committed.layers().len(), 2);
    assert_eq!(committed.layers().next().unwrap().1, parent.layers().next().unwrap().1);
    let step = committed.config().history.last().unwrap();
    assert_eq!((step.author.as_str(), step.comment.as_str(), step.empty_layer), ("me", "a remark", false));
    assert!(step.created_by.starts_with("/bin/sh -ec echo new"));
    assert_eq!(lab.engine.image("changed:1").unwrap(), committed);
    let out = with_programs(committed.container()).output().unwrap();
    assert_eq!((out.status.success(), out.stdout.as_slice()), (true, &b"new\n"[..]));
    let script =
        "cat /etc/passwd | tail -1; ls -d /etc/group /home/bob 2>/dev/null || true; stat -c '%a %n' /made /tmp;
                  stat -c '%h %n' /etc/new; readlink /made/link; stat -c '%F' /made/pipe; stat -c %.Y /made/a/b";
    assert_eq!(shell(&committed, script), "more\n1777 /made\n1777 /tmp\n2 /etc/new\n/etc/new\nfifo\n1.500000000\n");
    // The next one stands on this one.
    let next = kept(&committed, "rm /etc/new");
    assert_eq!(changed(&next), ["C /etc", "D /etc/new"]);
    let next = next.commit(&CommitOptions::default()).unwrap();
    assert_eq!(next.layers().len(), 3);
    assert_eq!(shell(&next, "ls /etc/new 2>/dev/null || cat /made/a/twin"), "new\n");
    assert!(next.tags().unwrap().is_empty());
}

#[test]
fn a_container_that_changed_nothing_gives_no_layer() {
    let Some(lab) = Lab::new() else { return };
    let parent = image(&lab.engine);
    let container = kept(&parent, "cat /etc/hosts /etc/resolv.conf /etc/hostname > /dev/null");
    assert_eq!(changed(&container), [] as [&str; 0]);
    let committed = container.commit(&CommitOptions::default()).unwrap();
    assert_eq!(committed.layers().len(), 1);
    assert!(committed.config().history.last().unwrap().empty_layer);
    assert_ne!(committed, parent);
    assert_eq!(shell(&committed, "cat /etc/os-release"), "NAME=lab\n");
}

#[test]
fn what_mounts_need_and_hold_is_not_committed() {
    let Some(lab) = Lab::new() else { return };
    let parent = image(&lab.engine);
    let volume = tempfile::tempdir().unwrap();
    let builder = with_programs(parent.container())
        .mount(coracle::container::Mount::bind(volume.path(), "/data/deep"))
        .mount(coracle::container::Mount::tmpfs("/run/mem"))
        .keep(true)
        .command([
            "/bin/sh",
            "-ec",
            "echo x > /data/deep/file; echo y > /run/mem/file; mkdir /var /var/x; touch /run/own",
        ]);
    let container = builder.spawn().unwrap();
    assert!(container.wait().unwrap().success());
    assert_eq!(changed(&container), ["A /run", "A /run/own", "A /var", "A /var/x"]);
    let committed = container.commit(&CommitOptions::default()).unwrap();
    assert_eq!(shell(&committed, "ls / | tr '\\n' ' '; ls /run").matches("data").count(), 0);
}

#[test]
fn the_same_changes_make_the_same_image() {
    let Some(lab) = Lab::new() else { return };
    let parent = image(&lab.engine);
    let ids: Vec<_> = (0..2)
        .map(|_| {
            let container = kept(&parent, "mkdir /made/d; echo body > /made/d/file; ln -s x /made/link");
            let options = CommitOptions {
                created: Some("2001-09-09T01:46:40Z".into()),
                clamp_mtime: Some(1_000_000_000),
                ..CommitOptions::default()
            };
            let image = container.commit(&options).unwrap();
            (image.id().clone(), image.digest().clone())
        })
        .collect();
    assert_eq!(ids[0], ids[1]);
}

#[test]
fn every_compression_makes_the_same_tree() {
    let Some(lab) = Lab::new() else { return };
    let parent = image(&lab.engine);
    let container = kept(&parent, "seq 1 200000 > /made/numbers; rm /etc/group");
    let formats = [Compression::None, Compression::Gzip, Compression::Zstd];
    let mut diff_ids = Vec::new();
    for compression in formats.into_iter().filter(|it| cfg!(feature = "zstd") || *it != Compression::Zstd) {
        let encoding = EncoderOptions { compression, ..EncoderOptions::default() };
        let committed = container.commit(&CommitOptions { encoding, ..CommitOptions::default() }).unwrap();
        assert_eq!(shell(&committed, "tail -1 /made/numbers; ls /etc/group 2>/dev/null || true"), "200000\n");
        diff_ids.push(committed.config().rootfs.diff_ids[1].clone());
    }
    assert!(diff_ids.iter().all(|diff_id| *diff_id == diff_ids[0]));
}

#[test]
fn what_went_into_a_saved_snapshot_is_committed_too() {
    let Some(lab) = Lab::new() else { return };
    let parent = image(&lab.engine);
    let first = kept(&parent, "echo one > /made/one; rm /etc/group; echo gone > /made/gone");
    let saved = first.snapshot().unwrap();
    let builder = with_programs(saved.container()).keep(true);
    let script = "cat /made/one; rm /made/gone; echo two > /made/two; echo new > /etc/group";
    let second = builder.command(["/bin/sh", "-ec", script]).stdout(Stdio::Null).spawn().unwrap();
    assert!(second.wait().unwrap().success());
    assert_eq!(changed(&second), ["C /etc", "C /etc/group", "C /made", "A /made/one", "A /made/two"]);
    for (container, expected) in [(&first, "gone\none\n"), (&second, "one\ntwo\n")] {
        let committed = container.commit(&CommitOptions::default()).unwrap();
        assert_eq!(shell(&committed, "ls /made"), expected);
        assert_eq!(committed.history().len(), committed.layers().len());
    }
}

/// Counts up in a file of the container until it is killed.
fn counting(image: &Image) -> Container {
    let script = "n=0; while true; do n=$((n+1)); echo $n >> /made/n; echo $n >> /made/m; done";
    let container = with_programs(image.container()).keep(true).command(["/bin/sh", "-ec", script]).spawn().unwrap();
    let begin = Instant::now();
    while !changed_or_busy(&container).iter().any(|path| path.ends_with("made/m")) {
        assert!(begin.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    container
}

/// Files of a container that runs may go while they are listed.
fn changed_or_busy(container: &Container) -> Vec<PathBuf> {
    container.changes().unwrap_or_default().into_iter().map(|change| change.path).collect()
}

#[test]
fn a_container_that_runs_is_frozen_meanwhile_or_refused() {
    let Some(lab) = Lab::new() else { return };
    let parent = image(&lab.engine);
    let container = counting(&parent);
    let refuse = CommitOptions { running: Running::Refuse, ..CommitOptions::default() };
    let error = container.commit(&refuse).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("running"), "{error}");
    match container.commit(&CommitOptions::default()) {
        // Another handle, as another program has one.
        Ok(committed) => {
            let again = lab.engine.find_container(&container.id().to_string()).unwrap();
            again.commit(&CommitOptions::default()).unwrap();
            assert!(container.try_wait().unwrap().is_none());
            let numbers = shell(&committed, "wc -l < /made/n; wc -l < /made/m");
            let numbers: Vec<i64> = numbers.lines().map(|line| line.parse().unwrap()).collect();
            assert!((0..=1).contains(&(numbers[0] - numbers[1])), "{numbers:?}");
            // It goes on.
            let first = changed_or_busy(&container);
            assert!(!first.is_empty());
        }
        Err(error) => {
            assert!(!is_root(), "{error}");
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("stop it first"), "{error}");
        }
    }
    container.kill().unwrap();
    container.wait().unwrap();
    container.commit(&CommitOptions::default()).unwrap();
}

/// Where the control group of a process is frozen, and what says that it is, and is not.
fn freezer(pid: u32) -> Option<(PathBuf, &'static str, &'static str)> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (file, frozen, thawed) = match controllers {
            "" => (format!("/sys/fs/cgroup{path}/cgroup.freeze"), "1", "0"),
            "freezer" => (format!("/sys/fs/cgroup/freezer{path}/freezer.state"), "FROZEN", "THAWED"),
            _ => return None,
        };
        PathBuf::from(&file).exists().then_some((file.into(), frozen, thawed))
    })
}

#[test]
fn a_container_that_a_killed_commit_has_frozen_goes_on() {
    let Some(lab) = Lab::new() else { return };
    let container = counting(&image(&lab.engine));
    let home = lab.root().join("containers").join(container.id().to_string());
    let mark = home.join("frozen");
    if let (true, Some((file, frozen, thawed))) = (is_root(), freezer(container.pid().unwrap())) {
        container.commit(&CommitOptions::default()).unwrap();
        let state = || std::fs::read_to_string(&file).unwrap().trim().to_owned();
        assert_eq!((state().as_str(), mark.exists()), (thawed, false));
        // As somebody has it who is at work.
        std::fs::write(&mark, "").unwrap();
        std::fs::write(&file, frozen).unwrap();
        let lock = std::fs::File::open(&home).unwrap();
        lock.lock().unwrap();
        let open = || assert_eq!(coracle::Engine::open(lab.root()).unwrap().leftovers(), &[] as &[String]);
        open();
        assert!(state() != thawed && mark.exists());
        // The kernel takes the lock from whoever is killed.
        lock.unlock().unwrap();
        open();
        assert_eq!((state().as_str(), mark.exists()), (thawed, false));
    }
    container.kill().unwrap();
    container.wait().unwrap();
}

#[test]
fn containers_over_directories_have_no_image() {
    let Some(lab) = Lab::new() else { return };
    let container = lab.engine.sandbox().keep(true).command(["true"]).spawn().unwrap();
    container.wait().unwrap();
    assert_eq!(container.commit(&CommitOptions::default()).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(container.changes().unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn bad_options_leave_nothing_behind() {
    let Some(lab) = Lab::new() else { return };
    let parent = image(&lab.engine);
    let container = kept(&parent, "touch /made/file");
    let blobs = || std::fs::read_dir(lab.root().join("blobs/sha256")).unwrap().count();
    let before = blobs();
    let encoding = EncoderOptions { level: Some(99), ..EncoderOptions::default() };
    for options in [
        CommitOptions { created: Some("yesterday".into()), ..CommitOptions::default() },
        CommitOptions { encoding, ..CommitOptions::default() },
    ] {
        assert_eq!(container.commit(&options).unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert_eq!((blobs(), lab.engine.list_images().unwrap().len()), (before, 1));
}

/// PackOwners, and files that only their owners may read: as root of the host, with a range of ids, or with one id.
#[test]
fn owners_and_private_files_survive() {
    let Some(lab) = Lab::new() else { return };
    let parent = image(&lab.engine);
    let own = "mkdir -m 700 /made/private; echo secret > /made/private/file; chmod 000 /made/private/file;
               mkdir /made/closed; echo in > /made/closed/in; ln -s in /made/closed/link; chmod 000 /made/closed";
    let owned =
        "; chown -R 1000:10 /made/private; chown 1000:1000 /made/closed; touch /made/both; chown 10:20 /made/both;
                 ln -s x /made/link; chown -h 5:6 /made/link";
    let many = lab.engine.identity() != "rootless with one id";
    let container = kept(&parent, &if many { [own, owned].concat() } else { own.to_owned() });
    let committed = container.commit(&CommitOptions::default()).unwrap();
    let script = "cd /made; stat -c '%a %u:%g %n' $(find . -mindepth 1 ! -type l | sort); stat -c '%u:%g' $(find . -type l | sort);
                  cat private/file closed/in";
    let found = run(&with_programs(committed.container()), script);
    let expected = if many {
        "644 10:20 ./both\n0 1000:1000 ./closed\n644 0:0 ./closed/in\n700 1000:10 ./private\n\
         0 1000:10 ./private/file\n0:0\n5:6\nsecret\nin\n"
    } else {
        "0 0:0 ./closed\n644 0:0 ./closed/in\n700 0:0 ./private\n0 0:0 ./private/file\n0:0\nsecret\nin\n"
    };
    assert_eq!(found, expected);
    // The blob itself says so.
    let changes = changed(&container);
    assert!(changes.contains(&"A /made/private/file".to_owned()), "{changes:?}");
}

/// Sets an attribute as a process in the container would: through its mount. Returns whether that was allowed.
#[allow(unsafe_code)]
fn set_inside(container: &Container, path: &str, name: &str) -> bool {
    let path = format!("/proc/{}/root{path}", container.pid().unwrap());
    let (path, name) = (std::ffi::CString::new(path).unwrap(), std::ffi::CString::new(name).unwrap());
    // SAFETY: both strings end with NUL, and the value is one live byte.
    unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), b"y".as_ptr().cast(), 1, 0) == 0 }
}

/// A process without powers marks its own directory as opaque and its own empty file as a whiteout or as moved: what
/// others have there stays, and the commit does not fail. With full privileges the attributes are plain ones that are
/// not overlay's; in a rootless mount they would be, and overlay does not let them through as such.
#[test]
fn marks_that_a_container_forges_do_not_change_its_image() {
    let Some(lab) = Lab::new() else { return };
    let container = with_programs(image(&lab.engine).container())
        .keep(true)
        .command(["/bin/sh", "-ec", ": > /etc/group; touch /home/x; echo > /made/ready; exec sleep 1000"])
        .spawn()
        .unwrap();
    let ready = format!("/proc/{}/root/made/ready", container.pid().unwrap());
    let begin = Instant::now();
    while !std::fs::read(&ready).is_ok_and(|bytes| !bytes.is_empty()) {
        assert!(begin.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    let marks = ["opaque", "whiteout", "redirect", "metacopy", "overlay.opaque", "overlay.whiteout"];
    for path in ["/home", "/etc/group"] {
        let allowed = marks.map(|mark| set_inside(&container, path, &format!("user.overlay.{mark}")));
        // On the first kernels with rootless overlays it is refused.
        assert!(allowed.iter().all(|allowed| *allowed) || !is_root(), "{path}: {allowed:?}");
    }
    container.kill().unwrap();
    container.wait().unwrap();
    assert_eq!(changed(&container), ["C /etc", "C /etc/group", "C /home", "A /home/x", "C /made", "A /made/ready"]);
    let committed = container.commit(&CommitOptions::default()).unwrap();
    assert_eq!(shell(&committed, "ls -d /home/bob /home/x; stat -c %s /etc/group"), "/home/bob\n/home/x\n0\n");
    // Saved and read as what lies below, it is the same.
    let saved = container.snapshot().unwrap();
    let out = run(&with_programs(saved.container()), "ls -d /home/bob /home/x");
    assert_eq!(out, "/home/bob\n/home/x\n");
    let next =
        with_programs(saved.container()).keep(true).command(["/bin/sh", "-c", ": > /home/bob/y"]).spawn().unwrap();
    assert!(next.wait().unwrap().success());
    let committed = next.commit(&CommitOptions::default()).unwrap();
    assert_eq!(shell(&committed, "ls /home"), "bob\nx\n");
}
