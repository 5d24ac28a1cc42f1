//! Packing takes the same memory whatever the layer's size.

use std::io::Write;
use std::process::Command;

use coracle::layer::{Compression, EncoderOptions, PackOptions, PackSource, pack_blob};

use super::support::scratch;

const DIRECTORY: &str = "CORACLE_TEST_PACK";

/// Bytes that the process had in memory at its worst, from proc_pid_status(5).
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// A process of its own, so that other tests' memory is not counted.
#[test]
fn packing_is_bounded_in_memory() {
    let dir = scratch();
    let mut file = std::fs::File::create(dir.path().join("large")).unwrap();
    for number in 0..150u32 {
        let block: Vec<u8> = (0..1 << 18).flat_map(|at: u32| (at ^ number << 9).to_le_bytes()).collect();
        file.write_all(&block).unwrap();
    }
    let me = std::env::current_exe().unwrap();
    let mut command = Command::new(me);
    command.args(["--exact", "memory::packing_alone", "--nocapture"]).env(DIRECTORY, dir.path());
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    assert!(String::from_utf8_lossy(&out.stdout).contains("1 passed"), "{out:?}");
}

#[test]
fn packing_alone() {
    let Some(dir) = std::env::var_os(DIRECTORY) else { return };
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        if compression == Compression::Zstd && !cfg!(feature = "zstd") {
            continue;
        }
        let encoding = EncoderOptions { compression, level: Some(1), threads: Some(2) };
        let source = PackSource::Directory(dir.as_ref());
        let blob = pack_blob(source, &PackOptions::default(), &encoding, std::io::sink()).unwrap();
        assert!(blob.tar_size > 150 << 20);
        assert!(peak() < 64 << 20, "{compression}: {} bytes", peak());
    }
}
