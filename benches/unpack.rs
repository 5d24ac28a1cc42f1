//! Verify and unpack layers that are in the store: both digests checked, every file with its metadata. Beside it a floor
//! that does the same work with nothing around it: inflate and hash on one thread, hash and write files on another.
//!
//! `CORACLE_BENCH_LAYER=FILE` names a layer (a gzip tar) to measure on; without it one is made.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use std::io::{BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use sha2::{Digest as _, Sha256};
use support::layers::{Layers, PIECE, Sample, distribution, inflate, tiny_files};
use support::{Candidate, compare_tidying, fact, is_trial, peak_of};

fn main() {
    let dir = support::scratch();
    // First, while nothing is in memory that could be taken up again.
    if support::wants("memory") {
        memory(dir.path());
    }
    if support::wants("usual layer") {
        let usual = Sample::usual();
        usual.describe("the usual layer");
        beside_the_floor(dir.path(), "verify and unpack the usual layer", &usual, 15);
    }
    if support::wants("tiny files") {
        let count = if is_trial() { 500 } else { 100_000 };
        let tiny = Sample::of_tar(tiny_files(count));
        tiny.describe("tiny files");
        beside_the_floor(dir.path(), &format!("verify and unpack {count} files of 200 bytes"), &tiny, 5);
    }
    if support::wants("ten layers") {
        ten_layers(dir.path());
    }
}

fn beside_the_floor(dir: &Path, title: &str, sample: &Sample, turns: usize) {
    let files = File::all(&sample.tar);
    let target = dir.join("floor");
    let ours = Layers::new(&dir.join("root"), &[sample]);
    compare_tidying(
        title,
        turns,
        Duration::ZERO,
        vec![
            Candidate {
                name: "floor: inflate, hash twice, write files",
                turn: Box::new(|| floor(sample, &files, &target)),
            },
            Candidate { name: "coracle", turn: Box::new(|| ours.unpack()) },
        ],
        || {
            let _ = std::fs::remove_dir_all(&target);
            ours.clear();
        },
    );
    drop(ours);
    std::fs::remove_dir_all(dir.join("root")).unwrap();
}

/// What the floor writes: read from the archive beforehand.
enum File {
    Directory(String),
    Regular { path: String, start: usize, end: usize },
    Symlink { path: String, target: String },
}

impl File {
    fn all(tar: &[u8]) -> Vec<File> {
        let mut files = Vec::new();
        for entry in tar::Archive::new(tar).entries().unwrap() {
            let entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            match entry.header().entry_type() {
                tar::EntryType::Directory => files.push(File::Directory(path)),
                tar::EntryType::Regular => {
                    let start = entry.raw_file_position() as usize;
                    files.push(File::Regular { path, start, end: start + entry.size() as usize });
                }
                tar::EntryType::Symlink => {
                    let target = entry.link_name().unwrap().unwrap().to_string_lossy().into_owned();
                    files.push(File::Symlink { path, target });
                }
                _ => {}
            }
        }
        files
    }
}

/// The same stages on as many threads, without a parser, a check or metadata.
fn floor(sample: &Sample, files: &[File], target: &Path) {
    std::fs::create_dir(target).unwrap();
    let (mut of_blob, mut of_tar) = (Sha256::new(), Sha256::new());
    let mut files = Files { left: files, target, at: 0, open: None };
    let blob = BufReader::with_capacity(PIECE, Hashed { bytes: &sample.blob, hash: &mut of_blob });
    inflate(blob, |piece| {
        of_tar.update(piece);
        files.write(piece);
    });
    std::hint::black_box((of_blob.finalize(), of_tar.finalize()));
}

struct Hashed<'a> {
    bytes: &'a [u8],
    hash: &'a mut Sha256,
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.bytes.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

/// Files that are written as the archive's bytes come by.
struct Files<'a> {
    left: &'a [File],
    target: &'a Path,
    /// Where in the archive the next piece begins.
    at: usize,
    open: Option<std::fs::File>,
}

impl Files<'_> {
    fn write(&mut self, piece: &[u8]) {
        let (at, next) = (self.at, self.at + piece.len());
        self.at = next;
        while let Some((file, left)) = self.left.split_first() {
            match file {
                File::Directory(path) => drop(std::fs::create_dir(self.target.join(path))),
                File::Symlink { path, target } => drop(std::os::unix::fs::symlink(target, self.target.join(path))),
                File::Regular { start, .. } if *start >= next => return,
                File::Regular { path, start, end } => {
                    if *start >= at {
                        let mut options = std::fs::OpenOptions::new();
                        options.write(true).create_new(true).mode(0o644);
                        // Parents without an entry of their own are few, and not worth a floor's time.
                        self.open = options.open(self.target.join(path)).ok();
                    }
                    if let Some(open) = &mut self.open {
                        open.write_all(&piece[(*start).max(at) - at..(*end).min(next) - at]).unwrap();
                    }
                    if *end > next {
                        return;
                    }
                }
            }
            self.left = left;
        }
    }
}

/// Ten layers of one image, on one core and on all.
fn ten_layers(dir: &Path) {
    let files = if is_trial() { 20 } else { 1500 };
    let samples: Vec<Sample> = (1..=10).map(|seed| Sample::of_tar(distribution(files, seed))).collect();
    let layers = Layers::new(&dir.join("root"), &samples.iter().collect::<Vec<_>>());
    let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let first = (0..CpuSet::count()).find(|core| all.is_set(*core).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(first).unwrap();
    // Threads get the cores of the thread that makes them.
    let unpack_on = |cores: &CpuSet| {
        sched_setaffinity(Pid::from_raw(0), cores).unwrap();
        layers.unpack();
        sched_setaffinity(Pid::from_raw(0), &all).unwrap();
    };
    let times = compare_tidying(
        "ten layers of one image",
        7,
        Duration::ZERO,
        vec![
            Candidate { name: "on one core", turn: Box::new(|| unpack_on(&one)) },
            Candidate { name: "on all cores", turn: Box::new(|| unpack_on(&all)) },
        ],
        || layers.clear(),
    );
    let ratio = times[0].median().as_secs_f64() / times[1].median().as_secs_f64();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    fact(&format!("ten layers: {ratio:.2} times as fast on {cores} cores as on one"));
    std::fs::remove_dir_all(dir.join("root")).unwrap();
}

/// What the largest layers take, in memory.
fn memory(dir: &Path) {
    let scale = if is_trial() { 100 } else { 1 };
    let count: u64 = 1_000_000 / scale;
    let size = (2048 / scale) << 20;
    measure_memory(dir, &format!("{count} files"), |out| entries(out, count, b'0'));
    measure_memory(dir, &format!("{count} directories"), |out| entries(out, count, b'5'));
    measure_memory(dir, &format!("one file of {} MiB", size >> 20), |out| zeros(out, size));
}

fn measure_memory(dir: &Path, name: &str, write: impl FnOnce(&mut Out)) {
    let layers = Layers::new(&dir.join("root"), &[]);
    let ingest = layers.content.ingest(None, None).unwrap();
    let gzip = flate2::write::GzEncoder::new(ingest, flate2::Compression::fast());
    let mut out = Out { gzip, hash: Sha256::new() };
    write(&mut out);
    out.write_all(&[0; 1024]).unwrap();
    let hex: String = out.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let diff_id = coracle::name::DiffId(format!("sha256:{hex}").parse().unwrap());
    let blob = out.gzip.finish().unwrap().commit().unwrap();
    let peak = peak_of(|| drop(layers.store.ensure(&blob, &diff_id, &[]).unwrap()));
    fact(&format!("memory to unpack a layer of {name}: {:.1} MiB", peak as f64 / f64::from(1 << 20)));
    std::fs::remove_dir_all(dir.join("root")).unwrap();
}

/// A layer that is too large to be held, on its way into the store.
struct Out {
    gzip: flate2::write::GzEncoder<coracle::content::Ingest>,
    hash: Sha256,
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.hash.update(bytes);
        self.gzip.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn header(name: &str, kind: u8, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).unwrap();
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(0o755);
    header.set_size(size);
    header.set_cksum();
    header
}

fn entries(out: &mut Out, count: u64, kind: u8) {
    for index in 0..count {
        if index % 100 == 0 {
            let name = format!("srv/application/directory-{}/", index / 100);
            out.write_all(header(&name, b'5', 0).as_bytes()).unwrap();
        }
        let name = format!("srv/application/directory-{}/entry-{index}", index / 100);
        out.write_all(header(&name, kind, 0).as_bytes()).unwrap();
    }
}

fn zeros(out: &mut Out, size: u64) {
    out.write_all(header("zeros", b'0', size).as_bytes()).unwrap();
    let piece = vec![0; 1 << 20];
    for _ in 0..size >> 20 {
        out.write_all(&piece).unwrap();
    }
}
