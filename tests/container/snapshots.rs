//! Snapshot backends and saved snapshots.

use coracle::container::SavedSnapshot;
use coracle::content::Durability;
use coracle::{Container, Engine, EngineOptions, ErrorKind, Image, SnapshotterChoice, contract};

use super::shared::skip::other_user;
use super::support::{Lab, image, is_root, run, scratch, tree, with_programs};

/// `CORACLE_TEST_FS=DIR` names a directory on the file system to run on; without it, where tests have their roots.
fn place() -> tempfile::TempDir {
    match std::env::var_os("CORACLE_TEST_FS") {
        Some(dir) => tempfile::Builder::new().prefix("coracle-test-").tempdir_in(dir).unwrap(),
        None => scratch(),
    }
}

/// Runs the contract's suite on one backend.
fn keeps_the_contract(choice: SnapshotterChoice, name: &str) {
    let Some(_) = Lab::new() else { return };
    let dir = place();
    let options = || EngineOptions::new(dir.path().join("root")).snapshotter(choice).durability(Durability::Relaxed);
    let engine = match options().open() {
        Err(error) if choice == SnapshotterChoice::Reflink && error.kind() == ErrorKind::Unsupported => {
            // Not every file system can; CI runs this on some that can.
            assert!(std::env::var_os("CORACLE_TEST_FS").is_none(), "{error}");
            return;
        }
        other => other.unwrap(),
    };
    assert_eq!(engine.snapshotter().0, name);
    let kept = contract::snapshotter(&engine).unwrap();
    assert!(kept.len() > 10, "{kept:?}");
    assert_eq!(engine.list_images().unwrap().len(), 0);
    // Trees that were merged for the image went with it.
    let bases = std::fs::read_dir(engine.root().join("bases")).map_or(0, |entries| entries.count());
    assert_eq!(bases, 0);
    // With one id only, too: another way of keeping owners.
    if !is_root() {
        contract::snapshotter(&options().single_id(true).open().unwrap()).unwrap();
    }
}

#[test]
fn overlay_keeps_the_contract() {
    keeps_the_contract(SnapshotterChoice::Overlay, "overlay");
}

#[test]
fn copy_keeps_the_contract() {
    keeps_the_contract(SnapshotterChoice::Copy, "copy");
}

#[test]
fn reflink_keeps_the_contract() {
    keeps_the_contract(SnapshotterChoice::Reflink, "reflink");
}

/// A container of the image that has run this script, and is kept.
fn ended(image: &Image, script: &str) -> Container {
    let builder = with_programs(image.container()).command(["/bin/sh", "-ec", script]).keep(true);
    let container = builder.spawn().unwrap();
    assert!(container.wait().unwrap().success(), "{script}");
    container
}

fn says(saved: &SavedSnapshot, script: &str) -> String {
    run(&with_programs(saved.container()), script)
}

#[test]
fn a_saved_snapshot_outlives_container_and_engine_and_holds_its_image() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let container = ended(&image, "echo saved > /home/file");
    let saved = container.snapshot().unwrap();
    assert_eq!((saved.image().unwrap(), saved.info().parent.as_ref()), (&image, None));
    assert_eq!(container.stands_on().as_ref(), Some(saved.id()));
    // What it wrote belongs to the snapshot now; the container goes on on top of it.
    let info = container.info();
    let found = lab.engine.find_container(info.id.as_str()).unwrap();
    let again = found.snapshot().unwrap();
    assert_eq!(again.info().parent.as_ref(), Some(saved.id()));
    assert_eq!(says(&again, "cat /home/file"), "saved\n");
    assert!(again.usage().unwrap().bytes < saved.usage().unwrap().bytes);
    let conflict = lab.engine.find_snapshot(saved.id().short()).unwrap().remove().unwrap_err();
    assert_eq!(conflict.kind(), ErrorKind::Conflict, "{conflict}");
    container.remove().unwrap();
    again.remove().unwrap();

    let other = Engine::open(lab.root()).unwrap();
    assert_eq!(other.leftovers(), &[] as &[String]);
    let listed = other.snapshots().unwrap();
    assert_eq!(listed, [saved.info().clone()]);
    let refused = other.remove_image("lab", false).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    // Nameless, and still held, with its layers.
    other.remove_image("lab", true).unwrap();
    other.prune_images().unwrap();
    let found = other.find_snapshot(&saved.id().to_string()).unwrap();
    assert_eq!(says(&found, "cat /home/file /etc/os-release"), "saved\nNAME=lab\n");
    found.remove().unwrap();
    assert_eq!(saved.usage().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(saved.container().command(["true"]).output().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(other.find_snapshot(&saved.id().to_string()).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(other.prune_images().unwrap().deleted.len(), 1);
    lab.assert_clean();
}

#[test]
fn what_cannot_be_saved_says_why_and_stays_as_it_is() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let running = with_programs(image.container()).command(["/bin/sleep", "1000"]).spawn().unwrap();
    for container in [&running, &lab.engine.find_container(running.id().as_str()).unwrap()] {
        assert_eq!(container.snapshot().unwrap_err().kind(), ErrorKind::Conflict);
    }
    running.kill().unwrap();
    running.wait().unwrap();
    // Throwaway, and saved all the same before it is thrown away.
    let saved = running.snapshot().unwrap();
    running.close().unwrap();
    assert_eq!(says(&saved, "cat /etc/os-release"), "NAME=lab\n");
    saved.remove().unwrap();

    let base = tree();
    let sandbox = with_programs(lab.engine.sandbox_over(base.path())).command(["/bin/true"]).keep(true);
    let container = sandbox.spawn().unwrap();
    container.wait().unwrap();
    assert_eq!(container.snapshot().unwrap_err().kind(), ErrorKind::Unsupported);
    container.remove().unwrap();

    let container = ended(&image, "true");
    let found = lab.engine.find_container(container.id().as_str()).unwrap();
    container.remove().unwrap();
    assert_eq!(found.snapshot().unwrap_err().kind(), ErrorKind::NotFound);
    lab.assert_clean();
    assert_eq!(lab.engine.snapshots().unwrap(), []);
}

/// Promise 9: the owner can always remove what the engine made.
#[test]
fn over_a_damaged_image_a_snapshot_can_be_removed_and_then_the_image() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let container = ended(&image, "echo one > /home/file");
    let first = container.snapshot().unwrap();
    let second = container.snapshot().unwrap();
    let manifest = lab.root().join("blobs/sha256").join(image.digest().hex());
    std::fs::write(&manifest, "{").unwrap();
    let again = Engine::open(lab.root()).unwrap();
    let found = again.find_snapshot(second.id().short()).unwrap();
    assert_eq!(found.image().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(found.container().command(["true"]).spawn().unwrap_err().kind(), ErrorKind::NotFound);
    assert!(found.usage().unwrap().inodes > 0);
    assert_eq!(again.remove_image("lab", true).unwrap_err().kind(), ErrorKind::Conflict);
    again.find_container(container.id().as_str()).unwrap().remove().unwrap();
    found.remove().unwrap();
    again.find_snapshot(first.id().short()).unwrap().remove().unwrap();
    again.remove_image("lab", true).unwrap();
    assert_eq!(again.list_images().unwrap().len(), 0);
    lab.assert_clean();
}

/// A kill before the rename leaves a snapshot without a frozen part, and the container pointing at it.
#[test]
fn half_a_snapshot_changes_nothing_and_is_swept() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let container = ended(&image, "echo one > /home/file");
    let first = container.snapshot().unwrap();
    let home = lab.root().join("containers").join(container.id().to_string());
    let half = "0".repeat(64);
    let snapshots = lab.root().join("snapshots");
    std::fs::create_dir(snapshots.join(&half)).unwrap();
    let mut record = serde_json::to_value(first.info()).unwrap();
    record["id"] = half.clone().into();
    record["parent"] = first.id().to_string().into();
    std::fs::write(snapshots.join(&half).join("snapshot.json"), record.to_string()).unwrap();
    let below = home.join("below");
    std::fs::remove_file(&below).unwrap();
    std::os::unix::fs::symlink(&half, &below).unwrap();
    // Nothing stands on it, and it is not listed.
    assert_eq!(lab.engine.snapshots().unwrap(), [first.info().clone()]);
    let next = container.snapshot().unwrap();
    assert_eq!(says(&next, "cat /home/file"), "one\n");

    std::fs::remove_file(&below).unwrap();
    std::os::unix::fs::symlink(&half, &below).unwrap();
    // Killed even earlier: without a record.
    std::fs::create_dir(snapshots.join("f".repeat(64))).unwrap();
    let again = Engine::open(lab.root()).unwrap();
    assert_eq!(again.leftovers(), &[] as &[String]);
    assert_eq!(std::fs::read_link(&below).unwrap().to_str(), Some(&*first.id().to_string()));
    assert_eq!(again.snapshots().unwrap().len(), 2);
    assert_eq!(std::fs::read_dir(&snapshots).unwrap().count(), 2);
    container.remove().unwrap();
    next.remove().unwrap();
    first.remove().unwrap();
    assert_eq!(std::fs::read_dir(&snapshots).unwrap().count(), 0);
}

/// Whoever waits for a container, and may wait long, keeps nobody from the images meanwhile.
#[test]
fn a_snapshot_that_waits_for_its_container_holds_nobody_up() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let container = ended(&image, "echo one > /home/file");
    let home = lab.root().join("containers").join(container.id().to_string());
    let held = std::fs::File::open(&home).unwrap();
    held.lock().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| container.snapshot().unwrap());
        std::thread::sleep(std::time::Duration::from_millis(100));
        lab.engine.prune_images().unwrap();
        assert_eq!(run(&with_programs(image.container()), "echo fine"), "fine\n");
        assert!(!waiting.is_finished());
        held.unlock().unwrap();
        assert_eq!(says(&waiting.join().unwrap(), "cat /home/file"), "one\n");
    });
    container.remove().unwrap();
    lab.engine.find_snapshot(lab.engine.snapshots().unwrap()[0].id.short()).unwrap().remove().unwrap();
    lab.assert_clean();
}

/// What was frozen may be the only copy of what a container wrote.
#[test]
fn a_frozen_part_with_a_damaged_record_stays_and_is_told() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let container = ended(&image, "echo one > /home/file");
    let saved = container.snapshot().unwrap();
    let dir = lab.root().join("snapshots").join(saved.id().to_string());
    let record = dir.join("snapshot.json");
    let good = std::fs::read(&record).unwrap();
    for damage in [Some(&good[..20]), Some(&[]), None] {
        match damage {
            Some(bytes) => std::fs::write(&record, bytes).unwrap(),
            None => std::fs::remove_file(&record).unwrap(),
        }
        let again = Engine::open(lab.root()).unwrap();
        assert_eq!(again.leftovers().len(), 1, "{:?}", again.leftovers());
        assert!(dir.join("upper/home/file").exists());
        let report = again.check(coracle::system::Depth::Quick).unwrap();
        assert!(report.findings.iter().any(|finding| finding.path == dir), "{report:?}");
        assert_eq!(again.prune_images().unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(again.find_container(container.id().as_str()).unwrap().stands_on().as_ref(), Some(saved.id()));
        std::fs::write(&record, &good).unwrap();
    }
    let again = Engine::open(lab.root()).unwrap();
    assert_eq!(again.leftovers(), &[] as &[String]);
    assert_eq!(says(&saved, "cat /home/file"), "one\n");
    container.remove().unwrap();
    saved.remove().unwrap();
    lab.assert_clean();
}

#[test]
fn a_container_of_another_backend_is_refused() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let container = ended(&image, "echo one > /home/file");
    let home = lab.root().join("containers").join(container.id().to_string());
    let other = match home.join("rootfs").exists() {
        true => return,
        false => EngineOptions::new(lab.root()).snapshotter(SnapshotterChoice::Copy).open().unwrap(),
    };
    let found = other.find_container(container.id().as_str()).unwrap();
    assert_eq!(found.snapshot().unwrap_err().kind(), ErrorKind::Unsupported);
    std::fs::create_dir(home.join("rootfs")).unwrap();
    assert_eq!(container.snapshot().unwrap_err().kind(), ErrorKind::Unsupported);
    std::fs::remove_dir(home.join("rootfs")).unwrap();
    let saved = container.snapshot().unwrap();
    assert_eq!(says(&saved, "cat /home/file"), "one\n");
    container.remove().unwrap();
    saved.remove().unwrap();
    lab.assert_clean();
}

/// A layer whose root directory and files belong to somebody else.
fn foreign(engine: &Engine) -> Image {
    let mut tar = tar::Builder::new(vec![]);
    let base = tree();
    tar.follow_symlinks(false);
    tar.append_dir_all(".", base.path()).unwrap();
    for (name, mode, content) in [
        ("./", 0o1755, None),
        ("closed/", 0o700, None),
        ("closed/file", 0o600, Some("secret")),
        ("open", 0o4644, Some("x")),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_uid(1000);
        header.set_gid(1000);
        header.set_mode(mode);
        header.set_size(content.unwrap_or_default().len() as u64);
        header.set_entry_type(if content.is_some() { tar::EntryType::Regular } else { tar::EntryType::Directory });
        tar.append_data(&mut header, name, content.unwrap_or_default().as_bytes()).unwrap();
    }
    let archive = base.path().join("layer.tar");
    std::fs::write(&archive, tar.into_inner().unwrap()).unwrap();
    engine.import(archive.as_path(), Some("foreign".parse().unwrap())).unwrap()
}

#[test]
fn the_root_directory_has_the_owner_that_the_image_names() {
    let Some(lab) = Lab::new() else { return };
    if lab.engine.identity() == "rootless with one id" {
        return other_user("users with a range of ids");
    }
    let image = foreign(&lab.engine);
    let script = "stat -c '%u:%g %a' / /open; cat /closed/file";
    let container = with_programs(image.container());
    assert_eq!(run(&container, script), "1000:1000 1755\n1000:1000 4644\nsecret");
    // It moves into a snapshot and back to its owner.
    let ended = ended(&image, "echo new > /new");
    let saved = ended.snapshot().unwrap();
    assert_eq!(says(&saved, &format!("{script}; cat /new")), "1000:1000 1755\n1000:1000 4644\nsecretnew\n");
    ended.remove().unwrap();
    saved.remove().unwrap();
    lab.assert_clean();
}

#[test]
fn what_a_container_takes_is_counted_whoever_owns_it() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let script = "mkdir /own; head -c 1000000 /dev/zero > /own/file; ln /own/file /own/again; chmod 0700 /own";
    let foreign = if lab.engine.identity() == "rootless with one id" { "" } else { "; chown 1000:1000 /own" };
    let container = ended(&image, &format!("{script}{foreign}"));
    let before = ended(&image, "true");
    let (usage, empty) = (container.usage().unwrap(), before.usage().unwrap());
    assert_eq!(usage.inodes, empty.inodes + 2);
    assert!((1_000_000..1_100_000).contains(&(usage.bytes - empty.bytes)), "{usage:?} {empty:?}");
    let saved = container.snapshot().unwrap();
    assert_eq!(saved.usage().unwrap(), usage);
    for container in [container, before] {
        container.remove().unwrap();
    }
    saved.remove().unwrap();
    lab.assert_clean();
}

#[test]
fn taking_starting_opening_and_removing_go_on_at_once() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let id = ended(&image, "echo saved > /home/file").id().to_string();
    std::thread::scope(|scope| {
        let take = || {
            let engine = Engine::open(lab.root()).unwrap();
            for _ in 0..10 {
                let saved = engine.find_container(&id).unwrap().snapshot().unwrap();
                assert_eq!(says(&saved, "cat /home/file"), "saved\n");
            }
        };
        let open = || {
            for _ in 0..40 {
                let engine = Engine::open(lab.root()).unwrap();
                assert_eq!(engine.leftovers(), &[] as &[String]);
                engine.prune_images().unwrap();
            }
        };
        let threads = [scope.spawn(take), scope.spawn(take), scope.spawn(open)];
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    lab.engine.find_container(&id).unwrap().remove().unwrap();
    let mut taken = lab.engine.snapshots().unwrap();
    assert_eq!(taken.len(), 20);
    // Each stands on one of the others, until the last.
    while let Some(info) = taken.pop() {
        lab.engine.find_snapshot(&info.id.to_string()).unwrap().remove().unwrap();
    }
    lab.assert_clean();
}

/// A subvolume inside the container's own is no part of a btrfs snapshot of that one.
#[test]
fn subvolumes_inside_a_container_are_saved_too() {
    let Some(_) = Lab::new() else { return };
    let dir = place();
    let options = EngineOptions::new(dir.path().join("root")).snapshotter(SnapshotterChoice::Reflink);
    let Ok(engine) = options.durability(Durability::Relaxed).open() else { return };
    let image = image(&engine);
    let container = ended(&image, "true");
    let inner = engine.root().join("containers").join(container.id().to_string()).join("rootfs/home/inner");
    let made = std::process::Command::new("btrfs").args(["subvolume", "create"]).arg(&inner).output();
    // Not btrfs, or without its programs.
    if made.is_ok_and(|made| made.status.success()) {
        std::fs::write(inner.join("file"), "inside\n").unwrap();
        let saved = container.snapshot().unwrap();
        assert_eq!(says(&saved, "cat /home/inner/file"), "inside\n");
        saved.remove().unwrap();
    }
    container.remove().unwrap();
    // With a range of ids, its files are the engine's to remove.
    engine.remove_image("lab", false).unwrap();
}
