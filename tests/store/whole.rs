//! What check finds, what df counts, what prune takes.

use std::path::{Path, PathBuf};

use coracle::container::{Lifetime, State};
use coracle::image::LoadSource;
use coracle::system::{Depth, GarbageKind, PruneOptions, Pruned};
use coracle::{Engine, ErrorKind};

use super::lab::{Lab, image, scratch, with_programs};
use super::shared::skip::{missing, other_user};
use super::support::{archive, assert_whole, du};

/// An engine that needs no containers; the directory goes with it.
fn engine() -> (tempfile::TempDir, Engine) {
    let dir = scratch();
    let engine = Engine::open(dir.path().join("root")).unwrap();
    (dir, engine)
}

fn load(dir: &Path, engine: &Engine, bytes: &[u8]) -> coracle::Image {
    let file = dir.join("image.tar");
    std::fs::write(&file, bytes).unwrap();
    engine.load(file).unwrap()
}

/// Removes everything, so that files of foreign ids do not stay.
fn clear(engine: &Engine) {
    let all = PruneOptions { all_images: true, containers: true, dry_run: false };
    let pruned = engine.prune(&all).unwrap();
    assert!(pruned.failures.is_empty(), "{:?}", pruned.failures);
}

fn blob(engine: &Engine, digest: &coracle::Digest) -> PathBuf {
    engine.root().join("blobs/sha256").join(digest.hex())
}

/// What a change to the root makes of the check; the change is taken back.
fn found(engine: &Engine, path: &Path, change: impl FnOnce(&Path), depth: Depth) -> Vec<String> {
    let aside = engine.root().parent().unwrap().join("aside");
    std::fs::rename(path, &aside).unwrap();
    change(path);
    let report = engine.check(depth).unwrap();
    if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.ok();
    std::fs::rename(&aside, path).unwrap();
    assert!(engine.check(Depth::Full).unwrap().is_whole());
    assert!(report.findings.iter().all(|finding| !finding.remedy.is_empty()));
    report.findings.iter().map(ToString::to_string).collect()
}

#[test]
fn damage_of_every_kind_is_found_and_named() {
    let (dir, engine) = engine();
    let image = load(dir.path(), &engine, &archive("damage:1", 1, 2, 3, 1000));
    let report = assert_whole(&engine);
    assert_eq!((report.names, report.blobs, report.layers, report.garbage.len()), (1, 4, 2, 0));
    let root = engine.root();
    let layer = image.manifest().layers[0].digest.clone();
    let unpacked = std::fs::read_dir(root.join("layers")).unwrap().next().unwrap().unwrap().path();
    let flipped = |path: &Path| {
        let mut bytes =
            std::fs::read(path.parent().unwrap().parent().unwrap().parent().unwrap().join("../aside")).unwrap();
        bytes[20] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    let nothing = |_: &Path| {};
    let empty = |path: &Path| std::fs::write(path, "").unwrap();
    let fifo = |path: &Path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let link = |path: &Path| std::os::unix::fs::symlink("/etc/passwd", path).unwrap();
    let text = |path: &Path| std::fs::write(path, "{\"x\":").unwrap();
    type Change<'a> = &'a dyn Fn(&Path);
    let cases: [(PathBuf, Change, &str); 14] = [
        (blob(&engine, &layer), &flipped, "have the digest sha256:"),
        (blob(&engine, &layer), &nothing, "it is missing, and the manifest sha256:"),
        (blob(&engine, &layer), &empty, "it has 0 bytes, but the manifest"),
        (blob(&engine, &layer), &fifo, "not a regular file"),
        (blob(&engine, &layer), &link, "not a regular file"),
        (blob(&engine, image.id().digest()), &flipped, "its bytes have the digest"),
        (blob(&engine, image.id().digest()), &nothing, "it is missing, and the manifest"),
        (blob(&engine, image.digest()), &flipped, "its bytes have the digest"),
        (blob(&engine, image.digest()), &nothing, "the entry of \"docker.io/library/damage:1\" in index.json"),
        (root.join("index.json"), &text, "not an OCI image index"),
        (root.join("oci-layout"), &text, "not what it should be"),
        (unpacked.join("layer.json"), &text, "not what this crate writes"),
        (unpacked.join("layer.json"), &nothing, "it has no layer.json"),
        (unpacked.join("tree"), &nothing, "it has no tree"),
    ];
    for (path, change, wanted) in cases {
        let lines = found(&engine, &path, change, Depth::Full);
        assert!(lines.iter().any(|line| line.contains(wanted)), "{}: {wanted}: {lines:#?}", path.display());
    }
    // A layer's bytes are not read by a quick look, its size is.
    assert_eq!(found(&engine, &blob(&engine, &layer), flipped, Depth::Quick), Vec::<String>::new());
    assert_eq!(found(&engine, &blob(&engine, &layer), empty, Depth::Quick).len(), 1);
    // A layer under the name of another one.
    let other = unpacked.with_file_name("0".repeat(64));
    std::fs::rename(&unpacked, &other).unwrap();
    let lines: Vec<String> = engine.check(Depth::Quick).unwrap().findings.iter().map(ToString::to_string).collect();
    assert!(lines[0].contains("that of another layer") && lines[0].contains("remove"), "{lines:?}");
    std::fs::rename(&other, &unpacked).unwrap();
    clear(&engine);
    assert_whole(&engine);
}

#[test]
fn a_changed_tree_is_found_and_removing_and_loading_again_replaces_it() {
    let (dir, engine) = engine();
    let bytes = archive("trees:1", 1, 2, 3, 1000);
    let image = load(dir.path(), &engine, &bytes);
    assert_eq!(image.manifest().layers.len(), 2);
    let trees = std::fs::read_dir(engine.root().join("layers")).unwrap().map(|it| it.unwrap().path().join("tree"));
    let tree = trees.into_iter().find(|tree| tree.join("layer0").exists()).unwrap();
    let file = tree.join("layer0/dir0/file0");
    type Change = fn(&Path);
    let cases: [(Change, &str); 6] = [
        (|file| std::fs::remove_file(file).unwrap(), "it is missing"),
        (|file| std::fs::write(file, "").unwrap(), "its size is 0"),
        (
            |file| {
                let mut bytes = std::fs::read(file).unwrap();
                bytes[7] ^= 1;
                std::fs::write(file, bytes).unwrap();
            },
            "from byte 7 on",
        ),
        (
            |file| {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
                std::fs::set_permissions(file, mode).unwrap();
            },
            "its mode is 0777",
        ),
        (
            |file| {
                std::fs::remove_file(file).unwrap();
                std::os::unix::fs::symlink("x", file).unwrap();
            },
            "it is a symlink",
        ),
        (|file| std::fs::write(file.with_file_name("more"), "").unwrap(), "nothing of that name"),
    ];
    for (change, wanted) in cases {
        change(&file);
        assert!(engine.check(Depth::Quick).unwrap().is_whole(), "{wanted}");
        let report = engine.check(Depth::Full).unwrap();
        let finding = report.findings.iter().find(|finding| finding.cause.contains(wanted));
        let finding = finding.unwrap_or_else(|| panic!("{wanted}: {:#?}", report.findings));
        assert!(finding.path.parent() == file.parent() && finding.remedy.contains("load"), "{finding}");
        // Looking changes nothing of it.
        assert_eq!(engine.check(Depth::Full).unwrap().findings, report.findings);
        engine.remove_image("trees:1", false).unwrap();
        load(dir.path(), &engine, &bytes);
        assert_whole(&engine);
    }
    // Much damage is told in few words.
    for number in 0..50 {
        std::fs::write(tree.join(number.to_string()), "").unwrap();
    }
    let findings = engine.check(Depth::Full).unwrap().findings;
    assert!(findings.len() < 25 && findings.iter().any(|it| it.cause.contains("more things")), "{findings:#?}");
    clear(&engine);
}

#[test]
fn loading_again_mends_damaged_blobs() {
    let (dir, engine) = engine();
    let bytes = archive("mended:1", 1, 2, 3, 1000);
    let image = load(dir.path(), &engine, &bytes);
    let layer = &image.manifest().layers[0].digest;
    for damaged in [layer, image.id().digest(), image.digest()] {
        let path = blob(&engine, damaged);
        let mut bytes_then = std::fs::read(&path).unwrap();
        bytes_then[20] ^= 1;
        for damage in [&bytes_then[..], &bytes_then[..10], b""] {
            std::fs::write(&path, damage).unwrap();
            assert!(!engine.check(Depth::Full).unwrap().is_whole());
            load(dir.path(), &engine, &bytes);
            assert_whole(&engine);
        }
    }
    clear(&engine);
}

/// Large ones are not read before they count as present: what is wrong with them shows when they are unpacked.
#[test]
fn loading_again_mends_large_layers_that_cannot_be_unpacked() {
    let (dir, engine) = engine();
    if engine.identity() == "rootless with a range" {
        // Layers have files of ids that are only the engine's to remove.
        return other_user("root, or users without a range");
    }
    let bytes = archive("mended:1", 1, 2, 3, 100_000);
    let image = load(dir.path(), &engine, &bytes);
    let path = blob(&engine, &image.manifest().layers[1].digest);
    let whole = std::fs::read(&path).unwrap();
    assert!(whole.len() > 64 << 10);
    let mut layout = tar::Builder::new(Vec::new());
    layout.append_path_with_name(engine.root().join("oci-layout"), "oci-layout").unwrap();
    layout.append_path_with_name(engine.root().join("index.json"), "index.json").unwrap();
    layout.append_dir_all("blobs", engine.root().join("blobs")).unwrap();
    let layout = layout.into_inner().unwrap();
    for at in [20, whole.len() / 2, whole.len() - 1] {
        for source in [&bytes, &layout] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            for layer in std::fs::read_dir(engine.root().join("layers")).unwrap() {
                std::fs::remove_dir_all(layer.unwrap().path()).unwrap();
            }
            // What comes through a pipe is passed over, and then gone.
            let stream = LoadSource::Stream(Box::new(std::io::Cursor::new(layout.clone())));
            let error = engine.load(stream).unwrap_err();
            assert!(error.remedy_hint().unwrap().contains("from a file"), "{at}: {error}");
            load(dir.path(), &engine, source);
            assert_whole(&engine);
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
    }
    clear(&engine);
}

#[test]
fn a_layer_whose_record_is_damaged_stops_only_its_own_image() {
    let (dir, engine) = engine();
    load(dir.path(), &engine, &archive("broken:1", 1, 1, 3, 1000));
    let broken = std::fs::read_dir(engine.root().join("layers")).unwrap().next().unwrap().unwrap().path();
    load(dir.path(), &engine, &archive("goes:1", 2, 2, 3, 1000));
    let record = std::fs::read(broken.join("layer.json")).unwrap();
    std::fs::write(broken.join("layer.json"), "{").unwrap();
    assert_eq!(engine.check(Depth::Full).unwrap().findings[0].path, broken);
    assert_eq!(engine.disk_usage().unwrap().layers.count, 3);
    engine.remove_image("goes:1", false).unwrap();
    clear(&engine);
    assert_eq!(engine.disk_usage().unwrap().layers.count, 1);
    std::fs::write(broken.join("layer.json"), record).unwrap();
    assert_whole(&engine);
    clear(&engine);
    assert_eq!(engine.disk_usage().unwrap().layers.count, 0);
}

#[test]
fn garbage_is_no_damage_and_goes() {
    let (dir, engine) = engine();
    load(dir.path(), &engine, &archive("stays:1", 1, 2, 3, 1000));
    let gone = load(dir.path(), &engine, &archive("goes:1", 2, 2, 3, 1000));
    let root = engine.root();
    // As a kill leaves it between the index and the blobs.
    let index = std::fs::read(root.join("index.json")).unwrap();
    let mut document: serde_json::Value = serde_json::from_slice(&index).unwrap();
    document["manifests"].as_array_mut().unwrap().retain(|entry| !entry.to_string().contains("goes"));
    std::fs::write(root.join("index.json"), document.to_string()).unwrap();
    std::fs::create_dir_all(root.join("tmp/0123/deep")).unwrap();
    std::fs::write(root.join("tmp/4567"), vec![1; 10_000]).unwrap();
    // Takes no block.
    std::fs::write(root.join("tmp/empty"), "").unwrap();
    std::fs::write(root.join("leases/89ab"), format!("{}\n", gone.digest())).unwrap();
    std::fs::write(root.join("layers/abc.lock"), "").unwrap();
    std::fs::create_dir_all(root.join("owners")).unwrap();
    std::fs::write(root.join("owners/cdef"), "").unwrap();
    std::fs::create_dir_all(root.join("names")).unwrap();
    std::os::unix::fs::symlink("0".repeat(64), root.join("names/left")).unwrap();
    std::fs::create_dir_all(root.join("containers").join("1".repeat(64)).join("upper/x")).unwrap();

    let report = assert_whole(&engine);
    let number = |kind| report.garbage.iter().filter(|piece| piece.kind == kind).count();
    use GarbageKind::{Blob, Container, Layer, Mark, Name, Temporary};
    assert_eq!([Blob, Layer, Container, Name, Temporary, Mark].map(number), [3, 1, 1, 1, 3, 3], "{report:#?}");

    let temporary = engine.disk_usage().unwrap().temporary;
    assert_eq!((temporary.count, temporary.active), (3, 0));
    let before = du(root);
    let same = |pruned: Pruned| {
        assert!(pruned.failures.is_empty(), "{:?}", pruned.failures);
        (pruned.images, pruned.blobs, pruned.layers, pruned.garbage, pruned.freed)
    };
    let would = same(engine.prune(&PruneOptions { dry_run: true, ..PruneOptions::default() }).unwrap());
    assert_eq!(du(root), before);
    assert_eq!((would.1.len(), would.2.len(), would.3.len()), (3, 1, 8));
    let did = same(engine.prune(&PruneOptions::default()).unwrap());
    assert_eq!(did, would);
    if let (Some(before), Some(after)) = (before, du(root)) {
        // Directories that had many names may have shrunk, or not.
        assert!(before - after >= did.4.bytes, "{before} - {after}, {:?}", did.4);
    }
    assert_eq!(assert_whole(&engine).garbage, []);
    assert_eq!(engine.list_images().unwrap().len(), 1);
    assert!(engine.prune(&PruneOptions::default()).unwrap().freed.bytes == 0);
    clear(&engine);
    assert!(engine.list_images().unwrap().is_empty());
    let usage = engine.disk_usage().unwrap();
    assert_eq!((usage.images.count, usage.layers.count, usage.containers.count), (0, 0, 0));
}

#[test]
fn what_lives_is_neither_garbage_nor_pruned() {
    let Some(lab) = Lab::new() else { return };
    let engine = &lab.engine;
    let image = image(engine);
    let busy = with_programs(image.container()).command(["sleep", "1000"]).spawn().unwrap();
    let over = with_programs(image.container()).command(["sh", "-c", "echo some > /home/file"]).name("over").keep(true);
    let over = over.spawn().unwrap();
    over.wait().unwrap();
    let all = PruneOptions { all_images: true, ..PruneOptions::default() };
    let usage = engine.disk_usage().unwrap();
    assert_eq!((usage.containers.count, usage.containers.active), (2, 1));
    assert_eq!((usage.images.count, usage.images.active, usage.images.reclaimable), (1, 1, 0));
    assert!(usage.containers.reclaimable > 0 && usage.containers.reclaimable < usage.containers.usage.bytes);
    let report = assert_whole(engine);
    assert_eq!((report.containers, &report.garbage[..]), (2, &[][..]));

    let pruned = engine.prune(&all).unwrap();
    assert_eq!((pruned.containers.len(), pruned.images.len(), pruned.freed.bytes), (0, 0, 0), "{pruned:?}");
    let pruned = engine.prune(&PruneOptions { containers: true, ..all }).unwrap();
    assert_eq!(pruned.containers, [over.id()]);
    assert!(pruned.images.is_empty() && pruned.failures.is_empty(), "{pruned:?}");
    assert!(pruned.freed.bytes > 0);
    assert_eq!(engine.containers().unwrap().len(), 1);
    assert_eq!(engine.find_container("over").unwrap_err().kind(), ErrorKind::NotFound);
    assert_whole(engine);
    drop(busy);
    drop(over);
    let pruned = engine.prune(&all).unwrap();
    assert_eq!((pruned.images.len(), pruned.untagged.len(), pruned.layers.len()), (1, 1, 1), "{pruned:?}");
    assert_whole(engine);
    lab.assert_clean();
}

#[test]
fn a_container_without_its_base_is_found() {
    let Some(lab) = Lab::new() else { return };
    let engine = &lab.engine;
    let image = image(engine);
    let kept = with_programs(image.container()).command(["true"]).name("kept").keep(true).lifetime(Lifetime::Attached);
    let kept = kept.spawn().unwrap();
    kept.wait().unwrap();
    assert_eq!(kept.info().state, State::Exited);
    let record = engine.root().join("containers").join(kept.id().to_string()).join("state.json");
    let index = engine.root().join("index.json");
    let lines = found(engine, &index, |path| std::fs::write(path, "{\"schemaVersion\":2}").unwrap(), Depth::Quick);
    assert!(lines.len() == 1 && lines[0].contains("image") && lines[0].contains("is not there"), "{lines:?}");
    let lines = found(engine, &record, |path| std::fs::write(path, "{").unwrap(), Depth::Quick);
    assert!(lines.len() == 1 && lines[0].contains("not what this release writes"), "{lines:?}");
    let layer = std::fs::read_dir(engine.root().join("layers")).unwrap().next().unwrap().unwrap().path();
    let lines = found(engine, &layer, |_| {}, Depth::Quick);
    assert!(lines.len() == 1 && lines[0].contains("not unpacked"), "{lines:?}");
    kept.remove().unwrap();
    assert_whole(engine);
}

#[test]
fn a_dead_program_with_its_mark_holds_no_image() {
    let Some(lab) = Lab::new() else { return };
    let engine = &lab.engine;
    let image = image(engine);
    let id = "0".repeat(64);
    let home = engine.root().join("containers").join(&id);
    std::fs::create_dir(&home).unwrap();
    let record = serde_json::json!({
        "id": id, "image": image.id().to_string(), "base": "lab", "command": [], "created": "2020-01-02T03:04:05Z",
        "state": "running", "keep": false, "stop_signal": 15, "owner": "0123456789abcdef",
    });
    std::fs::write(home.join("state.json"), record.to_string()).unwrap();
    std::fs::write(engine.root().join("owners/0123456789abcdef"), "").unwrap();
    let all = PruneOptions { all_images: true, ..Default::default() };
    let would = engine.prune(&PruneOptions { dry_run: true, ..all }).unwrap();
    let pruned = engine.prune(&all).unwrap();
    for pruned in [&would, &pruned] {
        assert_eq!((pruned.images.len(), pruned.layers.len(), pruned.failures.len()), (1, 1, 0), "{pruned:?}");
    }
    assert!(!home.exists());
    assert_whole(engine);
    lab.assert_clean();
}

#[test]
fn locks_of_killed_makers_of_merged_trees_are_told_and_removed() {
    let (_dir, engine) = engine();
    let bases = engine.root().join("bases");
    std::fs::create_dir_all(&bases).unwrap();
    let (left, held) = (bases.join(format!("{}.lock", "1".repeat(64))), bases.join(format!("{}.lock", "2".repeat(64))));
    std::fs::write(&left, "").unwrap();
    let holder = std::fs::File::create(&held).unwrap();
    holder.lock().unwrap();
    let told = engine.check(Depth::Quick).unwrap().garbage;
    let found: Vec<_> = told.iter().map(|garbage| (garbage.kind, garbage.path.clone())).collect();
    assert_eq!(found, [(GarbageKind::Mark, left.clone())]);
    assert_eq!(engine.prune(&PruneOptions::default()).unwrap().garbage.len(), 1);
    assert!(!left.exists() && held.exists());
}

/// A removal of an image is synced, and removals of containers are not: without a word in between, a power cut would
/// bring the containers back, over an image that is gone.
#[test]
fn what_stood_on_an_image_is_gone_from_the_disk_before_the_image() {
    let Some(lab) = Lab::new() else { return };
    if lab.engine.identity() == "rootless with a range" {
        // Whoever is traced gains nothing from a set-uid newuidmap.
        return other_user("root, or users without a range");
    }
    if std::process::Command::new("strace").arg("-V").output().is_err() {
        return missing("strace");
    }
    for how in ["rmi", "prune"] {
        image(&lab.engine);
        let log = lab.root().parent().unwrap().join("log");
        let mut traced = std::process::Command::new("strace");
        traced.args(["-f", "-e", "trace=syncfs,rename,renameat,renameat2", "-o"]).arg(&log);
        let inner = super::support::role(how, &lab.root(), 0);
        traced.arg(inner.get_program()).args(inner.get_args());
        traced.envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
        let output = traced.output().unwrap();
        let text = std::fs::read_to_string(&log).unwrap();
        if text.is_empty() {
            return missing("the right to trace");
        }
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let places = |what: &str| -> Vec<usize> {
            text.lines().enumerate().filter(|(_, line)| line.contains(what)).map(|(place, _)| place).collect()
        };
        let (index, synced, buried) = (places("index.json\""), places("syncfs("), places("/containers/"));
        let (index, buried) = (*index.last().unwrap(), *buried.last().unwrap());
        assert!(synced.iter().any(|place| (buried..index).contains(place)), "{how}:\n{text}");
    }
    lab.assert_clean();
}

/// Removes a container, and then its image.
pub fn removal(root: &Path, all_at_once: bool) {
    let engine = Engine::open(root).unwrap();
    let image = engine.image("lab").unwrap();
    let container = with_programs(image.container()).command(["true"]).keep(true).spawn().unwrap();
    assert!(container.wait().unwrap().success());
    match all_at_once {
        true => clear(&engine),
        false => {
            container.remove().unwrap();
            engine.remove_image("lab", false).unwrap();
        }
    }
}

/// A program that forks has a copy of each of its values, and may drop them there.
#[test]
#[allow(unsafe_code)]
fn a_fork_takes_no_status_away() {
    let Some(lab) = Lab::new() else { return };
    let sandbox = lab.engine.sandbox().command(["sh", "-c", "sleep 0.5; exit 7"]).lifetime(Lifetime::Attached);
    let container = sandbox.spawn().unwrap();
    // SAFETY: the child drops one value, waits, and ends without unwinding.
    match unsafe { libc::fork() } {
        0 => {
            drop(container);
            std::thread::sleep(std::time::Duration::from_secs(1));
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(0) };
        }
        child => {
            let status = container.wait().unwrap();
            // SAFETY: a child of ours, and no status is wanted.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            assert_eq!(status.code(), Some(7));
            container.close().unwrap();
        }
    }
    lab.assert_clean();
}
