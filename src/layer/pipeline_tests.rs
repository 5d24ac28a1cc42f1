//! What the way from blob to tree costs in memory, and that it takes nobody's help.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::content::{Durability, Store};
use crate::layer::testing::{Archive, Block, Scratch, is_alone, run_alone};
use crate::layer::{Limits, Ownership, Reown, View, WhiteoutFormat};

/// Takes a layer's bytes, compressed and not.
struct Writer {
    ingest: content::Ingest,
    plain: Hasher,
}

impl Writer {
    fn new(content: &Store) -> Writer {
        Writer { ingest: content.ingest(None, None).unwrap(), plain: Hasher::new(crate::name::Algorithm::Sha256) }
    }

    /// The same bytes a number of times, each time as a member of their own.
    fn put(&mut self, bytes: &[u8], times: usize) {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        let member = encoder.finish().unwrap();
        for _ in 0..times {
            self.ingest.write_all(&member).unwrap();
            self.plain.update(bytes);
        }
    }

    fn finish(self) -> (Digest, DiffId) {
        (self.ingest.commit().unwrap(), DiffId(self.plain.finish()))
    }
}

struct Nothing;

impl Below for Nothing {
    fn view(&self) -> Result<Option<&View>> {
        Ok(None)
    }
}

fn unpack_layer(content: &Store, (blob, diff_id): &(Digest, DiffId), tree: &Path, ownership: Ownership) -> Result<u64> {
    fs::create_dir(tree).unwrap();
    let options = LayerOptions { ownership, whiteouts: WhiteoutFormat::OverlayUser, limits: Limits::default() };
    let stop = AtomicBool::new(false);
    let job = Job {
        content,
        blob,
        diff_id,
        tree: File::open(tree).unwrap().into(),
        options: &options,
        beside: &Beside::alone(&stop, &options.limits),
        progress: &|_, _| {},
    };
    let (unpacked, owners) = run(job, Nothing)?;
    owners.each_batch(|_| Ok(()))?;
    Ok(unpacked.entries)
}

/// A line of `/proc/self/status` in bytes.
fn status(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches([':', '\t', ' ']).trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

struct Mapped;

impl Reown for Mapped {
    fn reown(&self, _: std::os::fd::BorrowedFd<'_>, _: &[crate::layer::Owner]) -> Result<()> {
        Ok(())
    }

    fn container_ids(&self, uid: u32, gid: u32) -> (u32, u32) {
        (uid, gid)
    }

    fn remove(&self, _: std::os::fd::BorrowedFd<'_>, _: &std::ffi::OsStr) -> Result<()> {
        Ok(())
    }
}

/// 64 MiB are promised; half of that is asked for, so that the promise survives other allocators.
#[test]
fn memory_does_not_grow_with_the_layer() {
    if !is_alone() {
        run_alone(module_path!(), "memory_does_not_grow_with_the_layer", &[]);
        return;
    }
    let place = Scratch::new();
    let content = Store::open_with(&place.path().join("root"), Durability::Relaxed).unwrap();
    // Two GiB: a file of 64 MiB, and zeros behind the archive's end, which go through everything but the file.
    let mut long = Writer::new(&content);
    let zeros = vec![0; 16 << 20];
    long.put(&Archive::new().block(Block::new(b"zeros", b'0').size(64 << 20)).0, 1);
    long.put(&zeros, 128);
    drop(zeros);
    // 100,000 entries with owners, in 1,000 directories and 20,000 more that nothing is in.
    let mut many = Writer::new(&content);
    for dir in 0..1000 {
        let name = format!("srv/application/directory-{dir:04}");
        let mut archive = Archive::new().dir(&name);
        for entry in 0..100 {
            let kind = if entry % 5 == 0 { b'5' } else { b'0' };
            let path = format!("{name}/a-name-of-usual-length-{entry:03}");
            archive = archive.block(Block::new(path.as_bytes(), kind).mode(0o755).owner(1000, 1000));
        }
        many.put(&archive.0, 1);
    }
    let layers = [(long.finish(), 1), (many.finish(), 101_000)];
    for (number, (layer, entries)) in layers.iter().enumerate() {
        // Writing this sets the peak back to what is in use now.
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = status("VmRSS");
        let tree = place.path().join(format!("tree{number}"));
        let found = unpack_layer(&content, layer, &tree, Ownership::Mapped(Arc::new(Mapped))).unwrap();
        assert_eq!(found, *entries);
        let grown = status("VmHWM").saturating_sub(before);
        assert!(grown < 32 << 20, "{number}: {} KiB", grown >> 10);
    }
}

#[cfg(feature = "zstd")]
#[test]
fn a_window_that_is_too_large_stops_at_the_limit() {
    let place = Scratch::new();
    let content = Store::open_with(&place.path().join("root"), Durability::Relaxed).unwrap();
    let tar = Archive::new().file("f", b"x").end();
    for (log, fits) in [(23, true), (25, true), (26, false)] {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.write_all(&tar).unwrap();
        // Now the frame's header has to be written, and nobody knows how much will follow.
        encoder.flush().unwrap();
        let mut ingest = content.ingest(None, None).unwrap();
        ingest.write_all(&encoder.finish().unwrap()).unwrap();
        let layer = (ingest.commit().unwrap(), DiffId(Digest::of(&tar)));
        let ownership = Ownership::Single;
        match unpack_layer(&content, &layer, &place.path().join(log.to_string()), ownership) {
            Ok(_) => assert!(fits, "{log}"),
            Err(error) => {
                assert!(!fits && error.kind() == ErrorKind::Limit, "{log}: {error}");
                assert!(error.to_string().contains("zstd_window"), "{error}");
            }
        }
    }
}

/// CVE-2026-41567: a decompressor that an image brought along was found in PATH.
#[test]
fn cve_2026_41567_no_program_decompresses() {
    const MARK: &str = "CORACLE_TEST_MARK";
    if !is_alone() {
        let place = Scratch::new();
        for name in ["gzip", "gunzip", "unpigz", "pigz", "zstd", "unzstd", "xz", "unxz", "bzip2", "tar", "sh"] {
            let program = place.path().join(name);
            fs::write(&program, "#!/bin/sh\n: >\"$CORACLE_TEST_MARK\"\n").unwrap();
            fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let mark = place.path().join("mark");
        let variables = [("PATH", place.path().as_os_str()), (MARK, mark.as_os_str())];
        run_alone(module_path!(), "cve_2026_41567_no_program_decompresses", &variables);
        assert!(!mark.exists(), "a program of the image was run");
        return;
    }
    let place = Scratch::new();
    let content = Store::open_with(&place.path().join("root"), Durability::Relaxed).unwrap();
    let tar = Archive::new().file("f", b"x").end();
    let mut gzip = Writer::new(&content);
    gzip.put(&tar, 1);
    let gzip = gzip.finish();
    unpack_layer(&content, &gzip, &place.path().join("gzip"), Ownership::Single).unwrap();
    for magic in [&b"BZh91AY"[..], &[0xfd, b'7', b'z', b'X', b'Z', 0, 0]] {
        let mut ingest = content.ingest(None, None).unwrap();
        ingest.write_all(magic).unwrap();
        let layer = (ingest.commit().unwrap(), gzip.1.clone());
        let error = unpack_layer(&content, &layer, &place.path().join(magic.len().to_string()), Ownership::Single);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Unsupported);
        fs::remove_dir(place.path().join(magic.len().to_string())).unwrap();
    }
    // The program would have left its mark.
    let started = std::process::Command::new("gzip").status();
    assert!(started.is_ok());
    fs::remove_file(std::env::var_os(MARK).unwrap()).unwrap();
}
