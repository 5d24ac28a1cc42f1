//! Layers to measure on, and images around them.

use std::io::{BufRead, Read, Write};
use std::path::Path;

use coracle::content::{Durability, Store};
use coracle::layer::{LayerOptions, LayerStore, Ownership, WhiteoutFormat};
use coracle::name::{DiffId, Digest};
use sha2::{Digest as _, Sha256};

/// A layer as it travels, and its tar.
pub struct Sample {
    pub blob: Vec<u8>,
    pub tar: Vec<u8>,
}

impl Sample {
    pub fn new(blob: Vec<u8>) -> Sample {
        let mut tar = Vec::new();
        flate2::read::MultiGzDecoder::new(&blob[..]).read_to_end(&mut tar).unwrap();
        Sample { blob, tar }
    }

    pub fn of_tar(tar: Vec<u8>) -> Sample {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        encoder.write_all(&tar).unwrap();
        Sample { blob: encoder.finish().unwrap(), tar }
    }

    /// The layer in the file that `CORACLE_BENCH_LAYER` names (a gzip tar), or one made after the pattern of a small
    /// distribution: 8,000 files, most of them small, 120 MB in all.
    pub fn usual() -> Sample {
        match std::env::var_os("CORACLE_BENCH_LAYER") {
            Some(path) => Sample::new(std::fs::read(path).unwrap()),
            None => Sample::of_tar(distribution(if super::is_trial() { 200 } else { 8000 }, 1)),
        }
    }

    pub fn describe(&self, name: &str) {
        let (blob, tar) = (self.blob.len() as f64 / 1e6, self.tar.len() as f64 / 1e6);
        super::fact(&format!("{name}: {blob:.1} MB compressed, {tar:.1} MB unpacked, {} entries", self.entries()));
    }

    fn entries(&self) -> usize {
        tar::Archive::new(&self.tar[..]).entries().unwrap().count()
    }
}

/// Numbers that are the same in every run.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn header(kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(if kind == tar::EntryType::Directory { 0o755 } else { 0o644 });
    header.set_size(size);
    header.set_mtime(1_700_000_000);
    header
}

/// About the shape of a small distribution.
pub fn distribution(files: u64, seed: u64) -> Vec<u8> {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 ^ seed << 32);
    let mut tar = tar::Builder::new(Vec::new());
    tar.sparse(false);
    for index in 0..files {
        if index % 20 == 0 {
            let name = format!("dir{}/", index / 20);
            tar.append_data(&mut header(tar::EntryType::Directory, 0), name, &[][..]).unwrap();
        }
        let size = match numbers.next() % 100 {
            0..60 => numbers.next() % 4_000,
            60..95 => numbers.next() % 30_000,
            _ => numbers.next() % 400_000,
        };
        // Words, so that it compresses about as well as programs and texts do.
        let mut body = Vec::with_capacity(size as usize + 16);
        while body.len() < size as usize {
            body.extend_from_slice(&(numbers.next() % 5000 * 0x0101_0101).to_le_bytes());
        }
        let name = format!("dir{}/file{index}", index / 20);
        tar.append_data(&mut header(tar::EntryType::Regular, body.len() as u64), name, &body[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Files of 200 bytes, a hundred in a directory.
pub fn tiny_files(files: u64) -> Vec<u8> {
    let mut numbers = Numbers(7);
    let mut tar = tar::Builder::new(Vec::new());
    for index in 0..files {
        if index % 100 == 0 {
            let name = format!("dir{}/", index / 100);
            tar.append_data(&mut header(tar::EntryType::Directory, 0), name, &[][..]).unwrap();
        }
        let body: Vec<u8> = (0..25).flat_map(|_| numbers.next().to_le_bytes()).collect();
        let name = format!("dir{}/file{index}", index / 100);
        tar.append_data(&mut header(tar::EntryType::Regular, 200), name, &body[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Bytes that floors pass on at a time.
pub const PIECE: usize = 256 << 10;

/// Inflates on this thread, in pieces that `take` sees on another.
pub fn inflate(from: impl BufRead, mut take: impl FnMut(&[u8]) + Send) {
    let (send, receive) = std::sync::mpsc::sync_channel::<Vec<u8>>(8);
    let (send_back, used) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for piece in receive {
                take(&piece);
                let _ = send_back.send(piece);
            }
        });
        let mut decoder = flate2::bufread::MultiGzDecoder::new(from);
        loop {
            let mut piece = used.try_recv().unwrap_or_default();
            piece.resize(PIECE, 0);
            let mut filled = 0;
            while let count @ 1.. = decoder.read(&mut piece[filled..]).unwrap() {
                filled += count;
            }
            if filled == 0 {
                break;
            }
            piece.truncate(filled);
            send.send(piece).unwrap();
        }
        drop(send);
    });
}

/// A content store with layers in it, and how to unpack them.
pub struct Layers {
    pub content: Store,
    pub store: LayerStore,
    pub layers: Vec<(Digest, DiffId)>,
}

impl Layers {
    /// In `root`; nothing is synced, since memory has nothing to sync to.
    pub fn new(root: &Path, samples: &[&Sample]) -> Layers {
        let content = Store::open_with(root, Durability::Relaxed).unwrap();
        let options = if nix::unistd::geteuid().is_root() {
            LayerOptions::default()
        } else {
            let whiteouts = WhiteoutFormat::OverlayUser;
            LayerOptions { ownership: Ownership::Single, whiteouts, ..LayerOptions::default() }
        };
        let store = LayerStore::open(&content, options).unwrap();
        let mut layers = Vec::new();
        for sample in samples {
            let mut ingest = content.ingest(None, None).unwrap();
            ingest.write_all(&sample.blob).unwrap();
            layers.push((ingest.commit().unwrap(), DiffId(Digest::of(&sample.tar))));
        }
        Layers { content, store, layers }
    }

    pub fn unpack(&self) {
        self.store.ensure_all(&self.layers, None).unwrap();
    }

    /// Removes what [`Layers::unpack`] has made.
    pub fn clear(&self) {
        for layer in self.store.list().unwrap() {
            self.store.remove(&layer).unwrap();
        }
    }
}

/// A minimal OCI image layout around layers.
pub fn write_layout(layout: &Path, samples: &[&Sample]) {
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let hex = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let put = |media_type: &str, bytes: &[u8]| {
        let hex = hex(bytes);
        std::fs::write(blobs.join(&hex), bytes).unwrap();
        serde_json::json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len()})
    };
    let diff_ids: Vec<String> = samples.iter().map(|sample| format!("sha256:{}", hex(&sample.tar))).collect();
    let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
    let layers: Vec<_> = samples.iter().map(|sample| put(gzip, &sample.blob)).collect();
    let config = serde_json::json!({
        "architecture": coracle::Platform::host().architecture, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = put("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
    let manifest = put(media_type, manifest.to_string().as_bytes());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
