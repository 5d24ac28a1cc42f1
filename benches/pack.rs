//! Pack and commit. Packing a whole tree stands beside a floor that does the same with nothing around it (files read,
//! both SHA-256, deflate in blocks on all cores) and, where they are installed, beside `tar | gzip` and `tar | pigz`.
//! Committing one changed file stands beside a floor of the files that an image is at least: four, written and renamed.
//!
//! `CORACLE_BENCH_LAYER=FILE` names a layer (a tar, plain or compressed) whose tree is measured on; without it one is
//! made.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use coracle::content::Durability;
use coracle::image::{CommitOptions, ImportOptions};
use coracle::layer::{Compression, EncoderOptions, PackOptions, PackSource, pack, pack_blob};
use coracle::{Engine, EngineOptions};
use sha2::{Digest as _, Sha256};
use support::{Candidate, compare};

fn main() {
    let dir = support::scratch();
    let source = match std::env::var_os("CORACLE_BENCH_LAYER") {
        Some(path) => PathBuf::from(path),
        None => make_tree(&dir.path().join("made")),
    };
    let engine = EngineOptions::new(dir.path().join("root")).durability(Durability::Relaxed).open().unwrap();
    engine.images().import(source.as_path(), &ImportOptions::default()).unwrap();
    let layers = std::fs::read_dir(engine.root().join("layers")).unwrap();
    let tree = layers.map(|entry| entry.unwrap().path().join("tree")).find(|tree| tree.is_dir()).unwrap();
    whole(dir.path(), &tree);
    commit(&source, dir.path());
}

fn whole(dir: &Path, tree: &Path) {
    let source = PackSource::Directory(tree);
    let options = PackOptions::default();
    let mut tar = Vec::new();
    let packed = pack(source, &options, &mut tar).unwrap();
    println!("tree: {} entries, {:.1} MB of tar", packed.entries, tar.len() as f64 / 1e6);
    let files = list(tree);
    let blob = dir.join("blob");
    let ours = |compression, level, threads| {
        let blob = &blob;
        move || {
            let encoding = EncoderOptions { compression, level, threads };
            pack_blob(source, &PackOptions::default(), &encoding, std::fs::File::create(blob).unwrap()).unwrap();
        }
    };
    let peer = |line: String| {
        move || {
            let status = Command::new("sh").args(["-c", &line]).stdout(Stdio::null()).stderr(Stdio::null()).status();
            assert!(status.unwrap().success(), "{line}");
        }
    };
    let candidate = |name, turn: Box<dyn FnMut()>| Candidate { name, turn };
    let mut candidates = vec![
        Candidate { name: "floor: read, hash twice, deflate on all cores", turn: Box::new(|| floor(&files, &blob)) },
        Candidate { name: "coracle pack, gzip", turn: Box::new(ours(Compression::Gzip, None, None)) },
        Candidate { name: "coracle pack, gzip -1", turn: Box::new(ours(Compression::Gzip, Some(1), None)) },
        Candidate { name: "coracle pack, gzip, one thread", turn: Box::new(ours(Compression::Gzip, None, Some(1))) },
        Candidate { name: "coracle pack, plain", turn: Box::new(ours(Compression::None, None, None)) },
    ];
    if cfg!(feature = "zstd") {
        candidates.push(Candidate { name: "coracle pack, zstd", turn: Box::new(ours(Compression::Zstd, None, None)) });
    }
    let tar_line = format!("tar -C '{}' --xattrs --sort=name -cf - . ", tree.display());
    for (program, name) in [("pigz", "GNU tar | pigz"), ("gzip", "GNU tar | gzip")] {
        if has(program) && has("tar") {
            let line = format!("{tar_line} | {program} -n > '{}'", blob.display());
            candidates.push(candidate(name, Box::new(peer(line))));
        }
    }
    compare("pack a whole tree", 5, Duration::ZERO, candidates);
    for (name, compression, level) in
        [("gzip", Compression::Gzip, None), ("gzip -1", Compression::Gzip, Some(1)), ("zstd", Compression::Zstd, None)]
    {
        if compression != Compression::Zstd || cfg!(feature = "zstd") {
            let encoding = EncoderOptions { compression, level, threads: None };
            let packed = pack_blob(source, &options, &encoding, std::io::sink()).unwrap();
            println!("{name}: {:.1} % of the tar", packed.size as f64 * 100.0 / packed.tar_size as f64);
        }
    }
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

fn list(tree: &Path) -> Vec<PathBuf> {
    let mut open = vec![tree.to_owned()];
    let mut files = Vec::new();
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    files
}

/// The files' bytes in blocks, read and hashed on one thread, each deflated by whoever has time with the 32 KiB before it,
/// and written and hashed on this one in their order.
fn floor(files: &[PathBuf], to: &Path) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (send, blocks) = sync_channel(2 * threads);
    let (send_done, done) = sync_channel(2 * threads);
    let blocks = Mutex::new(blocks);
    std::thread::scope(|scope| {
        scope.spawn(move || read_blocks(files, &send));
        for _ in 0..threads {
            let (blocks, send_done) = (&blocks, send_done.clone());
            scope.spawn(move || {
                loop {
                    let next = blocks.lock().unwrap().recv();
                    let Ok((index, block)) = next else { return };
                    send_done.send((index, deflated(&block))).unwrap();
                }
            });
        }
        drop(send_done);
        let mut hash = Sha256::new();
        let mut file = std::fs::File::create(to).unwrap();
        let mut early = BTreeMap::new();
        let mut next = 0usize;
        for (index, block) in done {
            early.insert(index, block);
            while let Some(block) = early.remove(&next) {
                hash.update(&block);
                file.write_all(&block).unwrap();
                next += 1;
            }
        }
        std::hint::black_box(hash.finalize());
    });
}

const BLOCK: usize = 256 << 10;
/// As far as deflate looks back.
const WINDOW: usize = 32 << 10;

/// A window of what came before, and a block.
fn read_blocks(files: &[PathBuf], send: &SyncSender<(usize, Vec<u8>)>) {
    let mut hash = Sha256::new();
    let mut index = 0;
    let (mut block, mut filled) = (vec![0; WINDOW + BLOCK], WINDOW);
    for path in files {
        let mut file = std::fs::File::open(path).unwrap();
        while let count @ 1.. = file.read(&mut block[filled..]).unwrap() {
            filled += count;
            if filled == block.len() {
                hash.update(&block[WINDOW..]);
                let mut next = vec![0; WINDOW + BLOCK];
                next[..WINDOW].copy_from_slice(&block[BLOCK..]);
                send.send((index, std::mem::replace(&mut block, next))).unwrap();
                (index, filled) = (index + 1, WINDOW);
            }
        }
    }
    block.truncate(filled);
    hash.update(&block[WINDOW..]);
    send.send((index, block)).unwrap();
    std::hint::black_box(hash.finalize());
}

fn deflated(block: &[u8]) -> Vec<u8> {
    let mut deflate = flate2::Compress::new(flate2::Compression::new(4), false);
    deflate.set_dictionary(&block[..WINDOW]).unwrap();
    let mut out = Vec::with_capacity(BLOCK + BLOCK / 8);
    deflate.compress_vec(&block[WINDOW..], &mut out, flate2::FlushCompress::Sync).unwrap();
    out
}

fn commit(source: &Path, dir: &Path) {
    let make = |name: &str, durability| {
        let root = dir.join(name);
        let engine = EngineOptions::new(&root).durability(durability).open().unwrap();
        let image = engine.import(source, Some("bench".parse().unwrap())).unwrap();
        // Whether its command is there does not matter: what counts is that its directories were made.
        let tiny = dir.join("tiny");
        std::fs::write(&tiny, support::tiny_program(false)).unwrap();
        std::fs::set_permissions(&tiny, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mount = coracle::container::Mount::bind(&tiny, "/tiny").read_only();
        let container = image.container().mount(mount).keep(true).command(["/tiny"]).spawn().unwrap();
        container.wait().unwrap();
        let upper = root.join("containers").join(container.id().to_string()).join("upper");
        (engine, container, upper)
    };
    let (relaxed, full) = (make("relaxed", Durability::Relaxed), make("full", Durability::Full));
    if !relaxed.2.is_dir() {
        println!("no overlay here: commit of one changed file is not measured");
        return;
    }
    let mut turn = 0u64;
    let mut change = |upper: &Path| {
        // Another content each time, or the layer would be there already.
        turn += 1;
        std::fs::create_dir_all(upper.join("etc")).unwrap();
        std::fs::write(upper.join("etc/changed"), format!("{turn}\n").repeat(100)).unwrap();
    };
    let change = std::cell::RefCell::new(&mut change);
    let commit = |(_, container, upper): &(Engine, coracle::Container, PathBuf)| {
        change.borrow_mut()(upper);
        container.commit(&CommitOptions::default()).unwrap();
    };
    let beside = dir.join("files");
    std::fs::create_dir(&beside).unwrap();
    let floor = || {
        for name in ["layer", "config", "manifest", "index"] {
            let (new, path) = (beside.join("new"), beside.join(name));
            std::fs::write(&new, [b'x'; 1000]).unwrap();
            std::fs::rename(&new, &path).unwrap();
        }
    };
    compare(
        "commit one changed file",
        50,
        Duration::ZERO,
        vec![
            Candidate { name: "floor: four files, written and renamed", turn: Box::new(floor) },
            Candidate { name: "coracle commit, Relaxed", turn: Box::new(|| commit(&relaxed)) },
            Candidate { name: "coracle commit, Full", turn: Box::new(|| commit(&full)) },
        ],
    );
}

/// About the shape of a small distribution: 8,000 files, most of them small, 100 MB in all.
fn make_tree(root: &Path) -> PathBuf {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let files = if support::is_trial() { 200 } else { 8000 };
    for index in 0..files {
        let dir = root.join(format!("dir{}", index / 20));
        if index % 20 == 0 {
            std::fs::create_dir_all(&dir).unwrap();
        }
        let size = match next() % 100 {
            0..60 => next() % 4_000,
            60..95 => next() % 30_000,
            _ => next() % 400_000,
        };
        let mut body = Vec::with_capacity(size as usize + 8);
        while body.len() < size as usize {
            body.extend_from_slice(&(next() % 5000 * 0x0101_0101).to_le_bytes());
        }
        std::fs::write(dir.join(format!("file{index}")), body).unwrap();
    }
    root.to_owned()
}
