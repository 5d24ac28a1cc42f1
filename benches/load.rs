//! Loading an image: the first time, when everything is copied, verified and unpacked, and again, when everything is
//! there. Beside it a floor: copying, inflating and hashing the same bytes without a file written, and reading the
//! image's documents.
//!
//! `CORACLE_BENCH_LAYER=FILE` names a layer (a gzip tar) to measure on; without it one is made.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle::content::Durability;
use coracle::{Engine, EngineOptions};
use sha2::{Digest as _, Sha256};
use support::layers::{PIECE, Sample, inflate, write_layout};
use support::{Candidate, compare, compare_tidying};

fn main() {
    let dir = support::scratch();
    let sample = Sample::usual();
    sample.describe("the usual layer");
    let layout = dir.path().join("layout");
    write_layout(&layout, &[&sample]);
    let archive = dir.path().join("layout.tar");
    let tar = File::create(&archive).unwrap();
    tar::Builder::new(tar).append_dir_all(".", &layout).unwrap();

    let copy = dir.path().join("copy");
    let root = dir.path().join("root");
    let open = || EngineOptions::new(&root).durability(Durability::Relaxed).open().unwrap();
    compare_tidying(
        "load an image that is not there: copy, verify, unpack",
        9,
        Duration::ZERO,
        vec![
            Candidate { name: "floor: copy, hash twice, inflate", turn: Box::new(|| floor(&layout, &copy)) },
            Candidate {
                name: "coracle load, a layout",
                turn: Box::new(|| drop(open().load(layout.as_path()).unwrap())),
            },
            Candidate {
                name: "coracle load, its tar",
                turn: Box::new(|| drop(open().load(archive.as_path()).unwrap())),
            },
        ],
        || {
            let _ = std::fs::remove_dir_all(&copy);
            let _ = std::fs::remove_dir_all(&root);
        },
    );

    let engine = Engine::open(&root).unwrap();
    engine.load(layout.as_path()).unwrap();
    compare(
        "load an image that is there",
        200,
        Duration::ZERO,
        vec![
            Candidate { name: "floor: read its documents", turn: Box::new(|| documents(&layout)) },
            Candidate { name: "coracle load", turn: Box::new(|| drop(engine.load(layout.as_path()).unwrap())) },
        ],
    );
}

fn blobs(layout: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(layout.join("blobs/sha256")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Each blob is copied and hashed on one thread, while it is inflated on another and what comes out is hashed on a third.
fn floor(layout: &Path, copy: &Path) {
    for blob in blobs(layout) {
        std::thread::scope(|scope| {
            scope.spawn(|| copy_and_hash(&blob, copy));
            let mut input = BufReader::with_capacity(PIECE, File::open(&blob).unwrap());
            if input.fill_buf().unwrap().starts_with(&[0x1f, 0x8b]) {
                let mut hash = Sha256::new();
                inflate(input, |piece| hash.update(piece));
                std::hint::black_box(hash.finalize());
            }
        });
    }
}

fn copy_and_hash(blob: &Path, copy: &Path) {
    let (mut from, mut to) = (File::open(blob).unwrap(), File::create(copy).unwrap());
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    while let count @ 1.. = from.read(&mut piece).unwrap() {
        hash.update(&piece[..count]);
        to.write_all(&piece[..count]).unwrap();
    }
    std::hint::black_box(hash.finalize());
}

fn documents(layout: &Path) {
    let index = std::fs::read(layout.join("index.json")).unwrap();
    std::hint::black_box(serde_json::from_slice::<serde_json::Value>(&index).unwrap());
    for blob in blobs(layout) {
        if blob.metadata().unwrap().len() < 1 << 20 {
            let bytes = std::fs::read(blob).unwrap();
            let _ = std::hint::black_box(serde_json::from_slice::<serde_json::Value>(&bytes));
        }
    }
}
