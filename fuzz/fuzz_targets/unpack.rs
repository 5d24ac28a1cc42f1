//! Two layers of arbitrary bytes, the second on top of the first: unpacked or refused; nothing outside of the tree
//! changes, and nothing is left behind.
//!
//! The first byte says which dialect of whiteouts, the second how much of the rest is the first layer. Headers get right
//! checksums and sizes that stay inside of the input, or nearly every input would end at its first header. `@` at the
//! beginning of a link's target stands for the directory outside, whose path nobody could guess.
#![no_main]

#[path = "../honest.rs"]
mod honest;

use std::cell::RefCell;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use coracle::content::{Durability, Store};
use coracle::layer::{Layer, LayerOptions, LayerStore, Limits, Ownership, View, WhiteoutFormat};
use coracle::name::DiffId;
use honest::honest;
use libfuzzer_sys::fuzz_target;

struct Place {
    dir: tempfile::TempDir,
    content: Store,
}

thread_local!(static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) });

fuzz_target!(|bytes: &[u8]| {
    let [dialect, share, tars @ ..] = bytes else { return };
    PLACE.with_borrow_mut(|place| {
        let place = place.get_or_insert_with(Place::new);
        let blocks = tars.len() / 512;
        let (first, second) = tars.split_at(blocks * usize::from(*share) / 256 * 512);
        place.run(dialect & 1 == 0, &[place.tar(first), place.tar(second)]);
    });
});

impl Place {
    fn new() -> Place {
        let dir = tempfile::Builder::new().prefix("coracle-fuzz-").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        let content = Store::open_with(&dir.path().join("store"), Durability::Relaxed).unwrap();
        Place { dir, content }
    }

    fn run(&self, overlay: bool, tars: &[Vec<u8>]) {
        let root = is_root();
        let options = LayerOptions {
            ownership: if root { Ownership::Full } else { Ownership::Single },
            whiteouts: if root && overlay { WhiteoutFormat::Overlay } else { WhiteoutFormat::OverlayUser },
            limits: Limits {
                bytes: 1 << 20,
                entries: 200,
                path_length: 300,
                depth: 20,
                sparse_pieces: 50,
                ..Limits::default()
            },
        };
        let store = LayerStore::open(&self.content, options).unwrap();
        let mut layers: Vec<Layer> = Vec::new();
        let mut blobs = Vec::new();
        for tar in tars {
            let mut ingest = self.content.ingest(None, None).unwrap();
            ingest.write_all(tar).unwrap();
            let blob = ingest.commit().unwrap();
            let unpacked = store.ensure(&blob, &DiffId(blob.clone()), &layers);
            blobs.push(blob);
            match unpacked {
                Ok(layer) => layers.push(layer),
                Err(error) => {
                    // What is said of it has to be sayable.
                    let _ = error.to_string();
                    break;
                }
            }
        }
        let view = View::of_layers(&layers).unwrap();
        for name in [&b"a"[..], b"a/b", b"etc/passwd", b"../../outside/secret", b"l/secret"] {
            if let Ok(Some(content)) = view.read_file(name, 1 << 20) {
                assert_ne!(content, b"secret", "the view leads out of the tree");
            }
        }
        drop(view);
        for layer in &layers {
            store.remove(layer).unwrap();
        }
        for blob in &blobs {
            // Two equal layers are one blob.
            let _ = self.content.remove_blob(blob);
        }
        self.check();
    }

    /// `@` stands for the outside.
    fn tar(&self, bytes: &[u8]) -> Vec<u8> {
        let outside = self.dir.path().join("outside");
        honest(bytes, |header| {
            if header[157] == b'@' {
                let rest: Vec<u8> = header[158..200].iter().copied().take_while(|byte| *byte != 0).collect();
                let target = [outside.as_os_str().as_bytes(), &rest].concat();
                header[157..257].fill(0);
                header[157..157 + target.len()].copy_from_slice(&target);
            }
        })
    }

    fn check(&self) {
        assert_eq!(names(self.dir.path()), ["outside", "store"]);
        let outside = self.dir.path().join("outside");
        assert_eq!(names(&outside), ["secret"]);
        assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"secret");
        let mode = std::os::unix::fs::MetadataExt::mode(&outside.join("secret").symlink_metadata().unwrap());
        assert_eq!(mode & 0o7000, 0);
        assert!(names(&self.dir.path().join("store/tmp")).is_empty(), "something is left in tmp");
        let left = names(&self.dir.path().join("store/layers"));
        assert!(left.iter().all(|name| name.ends_with(".lock")), "{left:?}");
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) == 0
}
