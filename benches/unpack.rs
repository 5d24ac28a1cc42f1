//! Verify and unpack: a gzip layer of many files, both digests checked. Beside it a floor that does the same with
//! nothing around it: inflate, two SHA-256, and files made from memory.
//!
//! `CORACLE_BENCH_LAYER=FILE` names a layer (a gzip tar) to measure on; without it one is made.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod support;

use std::io::{Read, Write};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use support::{Candidate, compare};

fn main() {
    let dir = support::scratch();
    let layer = match std::env::var_os("CORACLE_BENCH_LAYER") {
        Some(path) => std::fs::read(path).unwrap(),
        None => make_layer(),
    };
    let mut tar = Vec::new();
    flate2::read::MultiGzDecoder::new(&layer[..]).read_to_end(&mut tar).unwrap();
    println!("layer: {:.1} MB compressed, {:.1} MB unpacked", layer.len() as f64 / 1e6, tar.len() as f64 / 1e6);
    let layout = dir.path().join("layout");
    write_layout(&layout, &layer, &tar);

    let mut count = 0;
    let floor = || {
        count += 1;
        let target = dir.path().join(format!("floor{count}"));
        std::fs::create_dir(&target).unwrap();
        floor(&layer, &target);
        std::fs::remove_dir_all(target).unwrap();
    };
    let mut turn = 0;
    let root = dir.path();
    let ours = || {
        turn += 1;
        let target = root.join(format!("root{turn}"));
        let engine = coracle::Engine::open(&target).unwrap();
        engine.load(layout.as_path()).unwrap();
        drop(engine);
        std::fs::remove_dir_all(target).unwrap();
    };
    compare(
        "load: copy, verify and unpack one layer (removal included)",
        9,
        Duration::ZERO,
        vec![
            Candidate { name: "floor: inflate, hash twice, write files", turn: Box::new(floor) },
            Candidate { name: "coracle load", turn: Box::new(ours) },
        ],
    );
}

/// Both hashes and the files, with two threads and no checks: the tar crate reads, files are written as they come.
fn floor(layer: &[u8], target: &std::path::Path) {
    std::thread::scope(|scope| {
        scope.spawn(|| std::hint::black_box(Sha256::digest(layer)));
        let mut tar = Vec::new();
        let mut hash = Sha256::new();
        let mut decoder = flate2::read::MultiGzDecoder::new(layer);
        let mut chunk = vec![0; 128 * 1024];
        loop {
            let count = decoder.read(&mut chunk).unwrap();
            if count == 0 {
                break;
            }
            hash.update(&chunk[..count]);
            tar.extend_from_slice(&chunk[..count]);
        }
        std::hint::black_box(hash.finalize());
        let mut archive = tar::Archive::new(&tar[..]);
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = target.join(entry.path().unwrap());
            match entry.header().entry_type() {
                tar::EntryType::Directory => drop(std::fs::create_dir_all(path)),
                tar::EntryType::Regular => {
                    let mut bytes = Vec::new();
                    entry.read_to_end(&mut bytes).unwrap();
                    drop(std::fs::write(path, bytes));
                }
                tar::EntryType::Symlink => {
                    let link = entry.link_name().unwrap().unwrap().into_owned();
                    drop(std::os::unix::fs::symlink(link, path));
                }
                _ => {}
            }
        }
    });
}

/// About the shape of a small distribution: 8,000 files, most of them small, 120 MB in all.
fn make_layer() -> Vec<u8> {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    let mut tar = tar::Builder::new(encoder);
    tar.sparse(false);
    let files = if support::is_trial() { 200 } else { 8000 };
    for index in 0..files {
        if index % 20 == 0 {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            tar.append_data(&mut header, format!("dir{}/", index / 20), &[][..]).unwrap();
        }
        let size = match next() % 100 {
            0..60 => next() % 4_000,
            60..95 => next() % 30_000,
            _ => next() % 400_000,
        };
        // Words, so that it compresses about as well as programs and texts do.
        let mut body = Vec::with_capacity(size as usize + 16);
        while body.len() < size as usize {
            body.extend_from_slice(&(next() % 5000 * 0x0101_0101).to_le_bytes());
        }
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(body.len() as u64);
        tar.append_data(&mut header, format!("dir{}/file{index}", index / 20), &body[..]).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

/// A minimal OCI image layout around one layer.
fn write_layout(layout: &std::path::Path, layer: &[u8], tar: &[u8]) {
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::File::create(blobs.join(&hex)).unwrap().write_all(bytes).unwrap();
        format!("sha256:{hex}")
    };
    let diff_id: String = Sha256::digest(tar).iter().map(|byte| format!("{byte:02x}")).collect();
    let layer_digest = put(layer);
    let architecture = coracle::Platform::host().architecture().to_owned();
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
    })
    .to_string();
    let config_digest = put(config.as_bytes());
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer_digest, "size": layer.len()}],
    })
    .to_string();
    let manifest_digest = put(manifest.as_bytes());
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest_digest, "size": manifest.len()}],
    });
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
