//! Names of whiteouts: two layers of empty entries with arbitrary names. What the upper one hides is hidden, what it has
//! itself shows, and nothing outside changes.
//!
//! A name starts with `d` for a directory or anything else for a file, and ends with a NUL; `|` in its place starts the
//! second layer.
#![no_main]

use std::cell::RefCell;
use std::io::Write;

use coracle::content::{Durability, Store};
use coracle::layer::{LayerOptions, LayerStore, Limits, Ownership, View, WhiteoutFormat};
use coracle::name::{DiffId, Digest};
use libfuzzer_sys::fuzz_target;

struct Place {
    dir: tempfile::TempDir,
    content: Store,
    layers: LayerStore,
}

thread_local!(static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) });

fuzz_target!(|bytes: &[u8]| {
    let (lower, upper) = match bytes.iter().position(|byte| *byte == b'|') {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, bytes),
    };
    PLACE.with_borrow_mut(|place| place.get_or_insert_with(Place::new).run(&[lower, upper]));
});

impl Place {
    fn new() -> Place {
        let dir = tempfile::Builder::new().prefix("coracle-fuzz-").tempdir().unwrap();
        let content = Store::open_with(&dir.path().join("store"), Durability::Relaxed).unwrap();
        let limits = Limits { entries: 100, path_length: 300, depth: 10, ..Limits::default() };
        let whiteouts = WhiteoutFormat::OverlayUser;
        let layers =
            LayerStore::open(&content, LayerOptions { ownership: Ownership::Single, whiteouts, limits }).unwrap();
        Place { dir, content, layers }
    }

    fn run(&self, layers: &[&[u8]; 2]) {
        let mut unpacked = Vec::new();
        let mut blobs = Vec::new();
        for names in layers {
            let tar = archive(names);
            let mut ingest = self.content.ingest(None, None).unwrap();
            ingest.write_all(&tar).unwrap();
            blobs.push(ingest.commit().unwrap());
            match self.layers.ensure(&blobs[blobs.len() - 1], &DiffId(Digest::of(&tar)), &unpacked) {
                Ok(layer) => unpacked.push(layer),
                Err(error) => {
                    let _ = error.to_string();
                    break;
                }
            }
        }
        if unpacked.len() == 2 {
            check(&View::of_layers(&unpacked).unwrap(), layers[1]);
        }
        for layer in &unpacked {
            self.layers.remove(layer).unwrap();
        }
        for blob in blobs {
            let _ = self.content.remove_blob(&blob);
        }
        let left: Vec<_> =
            std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["store"]);
    }
}

/// The names in one layer's half of the input.
fn names(bytes: &[u8]) -> impl Iterator<Item = (bool, &[u8])> {
    let names = bytes.split(|byte| *byte == 0).filter(|name| (2..=100).contains(&name.len()));
    names.map(|name| (name[0] == b'd', &name[1..]))
}

fn archive(bytes: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (is_dir, name) in names(bytes) {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_entry_type(if is_dir { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mode(0o755);
        header.set_size(0);
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
    }
    tar.extend([0; 1024]);
    tar
}

/// Names in one directory only: what is in others may have been replaced together with them.
fn check(view: &View, upper: &[u8]) {
    let plain = |name: &[u8]| !name.contains(&b'/') && !matches!(name, b"." | b"..");
    let own: Vec<&[u8]> = names(upper).map(|(_, name)| name.strip_suffix(b"/").unwrap_or(name)).collect();
    for name in own.iter().copied().filter(|name| plain(name)) {
        match name.strip_prefix(b".wh.") {
            None => assert!(view.open(name).unwrap().is_some(), "{:?}", String::from_utf8_lossy(name)),
            Some(hidden) if hidden.starts_with(b".wh.") => {}
            Some(hidden) => {
                assert!(view.open(name).unwrap().is_none(), "a whiteout shows itself");
                // Unless the layer has it, or something in it, itself.
                let kept = own.iter().any(|other| {
                    other
                        .split(|byte| *byte == b'/')
                        .filter(|part| !part.is_empty() && *part != b".")
                        .any(|part| part == hidden)
                });
                assert!(kept || view.open(hidden).unwrap().is_none(), "{:?} shows", String::from_utf8_lossy(hidden));
            }
        }
    }
}
