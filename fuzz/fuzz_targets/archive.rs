//! Archives of images as arbitrary bytes: loaded or refused, and a refusal leaves nothing.
#![no_main]

use std::cell::RefCell;
use std::io::Cursor;

use coracle::content::Durability;
use coracle::image::LoadSource;
use coracle::layer::Limits;
use coracle::{Engine, EngineOptions};
use libfuzzer_sys::fuzz_target;

struct Place {
    engine: Engine,
    _dir: tempfile::TempDir,
}

thread_local!(static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) });

fuzz_target!(|bytes: &[u8]| {
    PLACE.with_borrow_mut(|place| {
        let place = place.get_or_insert_with(|| {
            let dir = tempfile::Builder::new().prefix("coracle-fuzz-").tempdir().unwrap();
            let limits = Limits { bytes: 1 << 20, entries: 200, depth: 20, sparse_pieces: 50, ..Limits::default() };
            let options = EngineOptions::new(dir.path().join("store")).durability(Durability::Relaxed).limits(limits);
            Place { engine: options.open().unwrap(), _dir: dir }
        });
        match place.engine.load(LoadSource::Stream(Box::new(Cursor::new(bytes.to_vec())))) {
            Ok(image) => {
                let _ = (image.size(), image.history(), image.tags().unwrap());
                drop(image);
                // An archive may hold several.
                for listed in place.engine.images().list().unwrap() {
                    place.engine.remove_image(&listed.image.id().to_string(), true).unwrap();
                }
            }
            Err(error) => {
                let _ = error.to_string();
            }
        }
        assert!(place.engine.images().list().unwrap().is_empty(), "an image is left");
        for part in ["blobs/sha256", "tmp", "leases"] {
            let left = std::fs::read_dir(place.engine.root().join(part)).unwrap().count();
            assert_eq!(left, 0, "something is left in {part}");
        }
    });
});
