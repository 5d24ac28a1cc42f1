//! A program that is killed at any instant of its work leaves garbage and no damage.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use coracle::image::CommitOptions;
use coracle::system::{GarbageKind, PruneOptions};
use coracle::{Engine, ErrorKind};

use super::lab::{Lab, scratch, with_programs};
use super::shared::skip::missing;
use super::support::{archive, assert_whole, role};

/// How often a program is killed. Each time, everything is looked at.
const KILLS: u64 = 200;

/// The work, over and over, until it is killed. By seed, either all of it, or loading and removing alone, which takes
/// less time, so that more of the kills hit it.
pub fn worker(root: &Path, seed: u64) {
    let engine = Engine::open(root).unwrap();
    let archives = root.parent().unwrap();
    for turn in seed.. {
        let file = archives.join(format!("{}.tar", turn % 3));
        let image = engine.load(file.as_path()).unwrap();
        if seed.is_multiple_of(2) {
            // An earlier worker may have come as far as this turn.
            let name = format!("kept{seed}-{turn}");
            let kept = with_programs(image.container()).command(["sh", "-c", "echo x > /x"]).name(&name).keep(true);
            let kept = kept.spawn().unwrap();
            assert!(kept.wait().unwrap().success());
            engine.images().repository("other").unwrap().tag(&image, "1").unwrap();
            kept.commit(&CommitOptions { reference: Some("committed:1".parse().unwrap()), ..Default::default() })
                .unwrap();
            let saved = kept.snapshot().unwrap();
            assert!(with_programs(saved.container()).command(["test", "-e", "/x"]).status().unwrap().success());
            kept.remove().unwrap();
            saved.remove().unwrap();
        }
        if turn % 4 == 3 {
            engine.prune(&PruneOptions { all_images: true, containers: true, dry_run: false }).unwrap();
        }
        for listed in engine.list_images().unwrap() {
            // Something that an earlier kill left may stand on it.
            if let Err(error) = engine.remove_image(&listed.image.id().to_string(), true) {
                assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
            }
        }
    }
}

/// xorshift: instants that differ, and are the same in every run.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn two_hundred_kills_damage_nothing() {
    let Some(lab) = Lab::new() else { return };
    let root = lab.root();
    for number in 0..3 {
        let bytes = archive(&format!("crash:{number}"), number + 1, 3, FILES, SIZE);
        std::fs::write(root.parent().unwrap().join(format!("{number}.tar")), bytes).unwrap();
    }
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let (mut images, mut containers, mut snapshots, mut garbage) = (0, 0, 0, 0);
    for kill in 0..KILLS {
        let mut command = role("worker", &root, kill);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(random(&mut state) % 60_000));
        let early = child.try_wait().unwrap();
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(early.is_none(), "the worker failed: {}", String::from_utf8_lossy(&output.stderr));
        // First as it is, then as the next open leaves it.
        let report = assert_sound(&lab.engine);
        garbage += usize::from(report > 0);
        let engine = Engine::open(&root).unwrap();
        assert_sound(&engine);
        assert_eq!(engine.leftovers(), &[] as &[String]);
        let garbage = assert_whole(&engine).garbage;
        assert!(garbage.iter().all(|it| !matches!(it.kind, GarbageKind::Blob | GarbageKind::Layer)), "{garbage:?}");
        images += engine.list_images().unwrap().len();
        containers += engine.containers().unwrap().len();
        snapshots += engine.snapshots().unwrap().len();
        if kill % 20 == 19 {
            finishes(&engine);
        }
    }
    eprintln!("after {KILLS} kills: {garbage} times garbage");
    eprintln!("seen: {images} images, {containers} containers, {snapshots} snapshots");
    finishes(&lab.engine);
    lab.assert_clean();
}

/// Nothing is damaged; gives the number of pieces of garbage. The killed program's guardian may still be at work: it
/// takes the containers along, and they write until then.
fn assert_sound(engine: &Engine) -> usize {
    let held = || {
        let marks = std::fs::read_dir(engine.root().join("owners")).into_iter().flatten().flatten();
        // Unlocked by word: other threads fork, and their children would keep it for a moment.
        let is_held = |file: std::fs::File| file.try_lock().map(|()| file.unlock().unwrap()).is_err();
        marks.filter(|mark| std::fs::File::open(mark.path()).is_ok_and(is_held)).count()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    // One of them is this program's own.
    while held() > 1 {
        assert!(Instant::now() < deadline, "the guardian of a killed program does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    for layer in std::fs::read_dir(engine.root().join("layers")).unwrap() {
        let layer = layer.unwrap().path();
        if layer.is_dir() {
            let whole = match files(&layer.join("tree")) {
                Some(files) => files == FILES,
                // That of a commit.
                None => std::fs::read_to_string(layer.join("tree/x")).unwrap() == "x\n",
            };
            assert!(whole, "{}", layer.display());
        }
    }
    assert_whole(engine).garbage.len()
}

/// How many files with all their bytes there are in the directories of an unpacked layer that was loaded.
fn files(tree: &Path) -> Option<usize> {
    let entries = |path: &Path| std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let top = entries(tree).into_iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with("layer"));
    let dirs = entries(&top?).into_iter().filter(|path| !path.ends_with("closed"));
    Some(dirs.flat_map(|dir| entries(&dir)).filter(|file| file.metadata().unwrap().len() == SIZE as u64).count())
}

/// Files of each layer, and bytes of each file.
const FILES: usize = 60;
const SIZE: usize = 1000;

/// The work can be done again, to its end, and leaves nothing.
fn finishes(engine: &Engine) {
    let file = engine.root().parent().unwrap().join("0.tar");
    let image = engine.load(file.as_path()).unwrap();
    assert_eq!(image.layers().len(), 3);
    // First the containers, then what those stood on, the latest first, then the images.
    for round in 0..2 {
        let pruned = engine.prune(&PruneOptions { all_images: true, containers: true, dry_run: false }).unwrap();
        assert!(pruned.failures.is_empty(), "{:?}", pruned.failures);
        let snapshots = if round == 0 { engine.snapshots().unwrap() } else { vec![] };
        for saved in snapshots.iter().rev() {
            engine.find_snapshot(&saved.id.to_string()).unwrap().remove().unwrap();
        }
    }
    assert_eq!(assert_whole(engine).garbage, []);
    for place in ["blobs/sha256", "layers", "containers", "names", "snapshots", "tmp", "leases"] {
        let left: Vec<_> = std::fs::read_dir(engine.root().join(place))
            .map(|entries| entries.flatten().map(|entry| entry.file_name()).collect())
            .unwrap_or_default();
        assert!(left.is_empty(), "{place}: {left:?}");
    }
}

/// Fills the disk that the root is on, again and again with a little more room left. Whatever does not work says why,
/// and nothing is damaged by it.
pub fn full(root: &Path) {
    let (place, file) = (root.parent().unwrap(), root.parent().unwrap().parent().unwrap().join("0.tar"));
    let engine = Engine::open(root).unwrap();
    let ballast = place.join("ballast");
    let (mut full, mut removed) = (0, 0);
    for room in 0..40 {
        let mut out = std::fs::File::create(&ballast).unwrap();
        while std::io::Write::write_all(&mut out, &[1; 4096]).is_ok() {}
        let length = out.metadata().unwrap().len();
        out.set_len(length.saturating_sub(room * 16 * 1024)).unwrap();
        match engine.load(file.as_path()) {
            Ok(image) => drop(image),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Full, "{error}");
                full += 1;
            }
        }
        assert_whole(&engine);
        let engine = Engine::open(root).unwrap();
        // Without room, not even a shorter index can be written at first; what goes before that makes some.
        let orphan = root.join("blobs/sha256").join("0".repeat(64));
        let orphaned = std::fs::hard_link(root.join("oci-layout"), &orphan).is_ok();
        let all = PruneOptions { all_images: true, containers: true, dry_run: false };
        let loaded = engine.list_images().unwrap().len();
        removed += loaded;
        if loaded > 0 && room % 2 == 0 {
            // To the last byte.
            let mut out = std::fs::File::options().append(true).open(&ballast).unwrap();
            while std::io::Write::write_all(&mut out, &[1; 4096]).is_ok() {}
            drop(out);
            engine.remove_image("full:1", false).unwrap();
            assert_whole(&engine);
        }
        let pruned = engine.prune(&all).unwrap();
        assert!(pruned.failures.is_empty(), "{pruned:?}");
        assert!(engine.list_images().unwrap().is_empty());
        assert!(!orphaned || !orphan.exists());
        assert_whole(&engine);
        std::fs::remove_file(&ballast).unwrap();
        let pruned = engine.prune(&all).unwrap();
        assert!(pruned.failures.is_empty(), "{pruned:?}");
        assert_eq!(assert_whole(&engine).garbage, []);
    }
    assert!(removed > 0);
    println!("full {full} of 40, removed {removed}");
}

#[test]
fn a_full_disk_damages_nothing() {
    let dir = scratch();
    std::fs::write(dir.path().join("0.tar"), archive("full:1", 1, 3, 20, 4000)).unwrap();
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let inner = role("full", &disk.join("root"), 0);
    // A small disk, in a mount namespace of this one program.
    let script = "mount -t tmpfs -o size=2m none \"$0\" && echo mounted && exec \"$@\"";
    let mut command = std::process::Command::new("unshare");
    command.args([if nix::unistd::geteuid().is_root() { "-m" } else { "-rm" }, "sh", "-c", script]).arg(&disk);
    command.arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        command.env(name, value.unwrap());
    }
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    if !text.contains("mounted") {
        missing(&format!("the right to mount a small disk: {errors}"));
        return;
    }
    assert!(output.status.success(), "{text}\n{errors}");
    eprintln!("{}", text.lines().find(|line| line.contains("full ")).unwrap());
}
