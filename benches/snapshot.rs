//! Prepare and remove, freeze: what a snapshot costs, by the number of layers and of files below it. Beside it a floor:
//! two mkdirs and two rmdirs, which is what overlay has to do at least; for freezing, a rename more.
//!
//! `CORACLE_BENCH_DIR=DIR` chooses the file system; the reflink backend is measured where it can share blocks.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use std::path::Path;
use std::time::Duration;

use coracle::layer::{Layer, LayerOptions, LayerStore, Ownership, WhiteoutFormat};
use coracle::snapshot::{Base, Copy, Overlay, Reflink, Snapshotter};
use coracle::{EngineOptions, content};
use support::{Candidate, compare, is_trial};

fn main() {
    let dir = support::scratch();
    let ownership = match nix::unistd::geteuid().is_root() {
        true => Ownership::Full,
        false => Ownership::Single,
    };
    let many = if is_trial() { 1000 } else { 100_000 };
    for (layers, files, turns, copy_turns) in
        [(1, 10, 2000, 50), (128, 10, 2000, 50), (1, 1000, 2000, 20), (1, many, 2000, 0), (128, many, 2000, 0)]
    {
        let root = dir.path().join(format!("root-{layers}-{files}"));
        let trees = make(&root, &ownership, layers, files);
        let below = format!("{layers} layers, {files} files");
        measure(&root, &trees, &ownership, &below, turns, copy_turns);
        std::fs::remove_dir_all(root).unwrap();
    }
}

fn measure(root: &Path, layers: &[Layer], ownership: &Ownership, below: &str, turns: usize, copy_turns: usize) {
    let home = root.join("containers/bench");
    std::fs::create_dir_all(&home).unwrap();
    let base = Base::Layers(layers.to_vec());
    let overlay = Overlay::new(ownership.clone());
    let floor = || {
        for name in ["upper", "work"] {
            std::fs::create_dir(home.join(name)).unwrap();
        }
        for name in ["upper", "work"] {
            std::fs::remove_dir(home.join(name)).unwrap();
        }
    };
    let life = |backend: &dyn Snapshotter| {
        backend.prepare(&home, &base).unwrap();
        backend.remove(&home).unwrap();
    };
    compare(
        &format!("prepare + remove: {below}"),
        turns,
        Duration::ZERO,
        vec![
            Candidate { name: "floor: two mkdirs, two rmdirs", turn: Box::new(floor) },
            Candidate { name: "overlay", turn: Box::new(|| life(&overlay)) },
        ],
    );
    let into = root.join("snapshots");
    std::fs::create_dir_all(&into).unwrap();
    let freeze = |backend: &dyn Snapshotter| {
        backend.prepare(&home, &base).unwrap();
        std::fs::write(backend.changes(&home).path().join("written"), b"x").unwrap();
        let part = into.join("one");
        std::fs::create_dir(&part).unwrap();
        backend.freeze(&home, &part).unwrap();
        backend.remove(&home).unwrap();
        backend.remove(&part).unwrap();
        for name in ["upper/written", "upper"] {
            let path = part.join(name);
            let _ = if name.ends_with("written") { std::fs::remove_file(path) } else { std::fs::remove_dir(path) };
        }
        let _ = std::fs::remove_dir_all(part.join("tree"));
        std::fs::remove_dir(part).unwrap();
    };
    compare(
        &format!("prepare + write + freeze + remove both: {below}"),
        turns,
        Duration::ZERO,
        vec![
            Candidate { name: "floor: two mkdirs, two rmdirs", turn: Box::new(floor) },
            Candidate { name: "overlay", turn: Box::new(|| freeze(&overlay)) },
        ],
    );
    let copy = Copy::new(ownership.clone());
    let mut whole: Vec<(&str, Box<dyn Snapshotter>)> = vec![];
    if let Ok(reflink) = Reflink::new(root, ownership.clone()) {
        // The first one merges the layers, once.
        life(&reflink);
        whole.push(("reflink", Box::new(reflink)));
    }
    if copy_turns > 0 {
        whole.push(("copy", Box::new(copy)));
    }
    if whole.is_empty() {
        return;
    }
    let backends = whole.iter().map(|(name, backend)| Candidate { name, turn: Box::new(|| life(&**backend)) });
    let floor = Candidate { name: "floor: two mkdirs, two rmdirs", turn: Box::new(floor) };
    compare(
        &format!("whole trees, prepare + remove: {below}"),
        copy_turns.max(3),
        Duration::ZERO,
        std::iter::once(floor).chain(backends).collect(),
    );
}

/// An engine root with an image of so many layers that have so many files together.
fn make(root: &Path, ownership: &Ownership, layers: usize, files: usize) -> Vec<Layer> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut put = |name: &str, bytes: &[u8]| append(&mut archive, name, bytes);
    let (mut names, mut diff_ids) = (vec![], vec![]);
    for layer in 0..layers {
        let mut tar = tar::Builder::new(Vec::new());
        for file in (layer..files.max(layers)).step_by(layers) {
            append(&mut tar, &format!("dir{}/file{file}", file % 500), format!("content {file}").as_bytes());
        }
        let tar = tar.into_inner().unwrap();
        diff_ids.push(coracle::Digest::of(&tar).to_string());
        names.push(format!("{layer}.tar"));
        put(&format!("{layer}.tar"), &tar);
    }
    let config = serde_json::json!({
        "architecture": coracle::Platform::host().architecture, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    put("config.json", config.to_string().as_bytes());
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": ["bench:1"], "Layers": names}]);
    put("manifest.json", manifest.to_string().as_bytes());
    let path = root.with_extension("tar");
    std::fs::write(&path, archive.into_inner().unwrap()).unwrap();
    let engine = EngineOptions::new(root).single_id(true).open().unwrap();
    let image = engine.load(path.as_path()).unwrap();
    std::fs::remove_file(path).unwrap();
    let whiteouts = match ownership {
        Ownership::Full => WhiteoutFormat::Overlay,
        _ => WhiteoutFormat::OverlayUser,
    };
    let options = LayerOptions { ownership: ownership.clone(), whiteouts, ..LayerOptions::default() };
    let store = LayerStore::open(&content::Store::open(root).unwrap(), options).unwrap();
    store.find(&image.config().rootfs.diff_ids).unwrap().unwrap()
}

fn append(tar: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, name, bytes).unwrap();
}
