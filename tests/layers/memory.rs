//! Packing takes the same memory however large files are, and a stated amount for each path that has changed.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use coracle::layer::{Compression, EncoderOptions, PackOptions, PackSource, View, WhiteoutFormat, pack, pack_blob};

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
    alone("memory::packing_alone", DIRECTORY, dir.path());
}

/// Runs a test of this file in a process of its own, in which `variable` says where its files are.
fn alone(test: &str, variable: &str, directory: &Path) {
    let me = std::env::current_exe().unwrap();
    let mut command = Command::new(me);
    command.args(["--exact", test, "--nocapture"]).env(variable, directory);
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
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

const MANY: &str = "CORACLE_TEST_PACK_MANY";

/// Directories, and files in each of them.
const DIRECTORIES: usize = 25;
const EACH: usize = 2000;

/// What is said at `pack_blob`: the names on the way for a directory, all paths for an upper directory.
#[test]
fn the_memory_for_names_is_what_is_said() {
    let dir = scratch();
    for directory in 0..DIRECTORIES {
        let directory = dir.path().join("upper").join(directory.to_string());
        std::fs::create_dir_all(&directory).unwrap();
        for number in 0..EACH {
            std::fs::File::create(directory.join(format!("{}{number:0100}", "n".repeat(100)))).unwrap();
        }
    }
    std::fs::create_dir(dir.path().join("low")).unwrap();
    alone("memory::names_alone", MANY, dir.path());
}

#[test]
fn names_alone() {
    let Some(dir) = std::env::var_os(MANY) else { return };
    let (upper, low) = (Path::new(&dir).join("upper"), Path::new(&dir).join("low"));
    let before = peak();
    let packed = pack(PackSource::Directory(&upper), &PackOptions::default(), std::io::sink()).unwrap();
    assert_eq!(packed.entries as usize, DIRECTORIES * (EACH + 1));
    let directory = peak() - before;
    // The names of one directory are 400 KiB, and all of them 10 MiB; the rest is the program itself.
    assert!(directory < 7 << 20, "{directory} bytes for names");
    let below = View::new([low], WhiteoutFormat::OverlayUser).unwrap();
    let source = PackSource::Upper { upper: &upper, below: &below };
    pack(source, &PackOptions::default(), std::io::sink()).unwrap();
    let each = (peak() - before) / (DIRECTORIES * EACH) as u64;
    // 202 bytes of path.
    assert!(each < 202 + 200, "{each} bytes for each path");
    println!("{directory} bytes for a directory, {each} for each path");
}
