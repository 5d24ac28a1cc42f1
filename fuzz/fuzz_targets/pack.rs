//! Trees that arbitrary bytes describe: packed and unpacked again, each is what it was; a second tree that began as a copy
//! of the first and was changed is packed as the difference, and what that is unpacked to, taken for overlay's upper
//! directory, makes the same tar.
//!
//! Four bytes are one step: what, and three numbers that choose where and how. A step of 255 ends the first tree.
#![no_main]

#[path = "../reader.rs"]
#[allow(dead_code)]
mod reader;
#[path = "../walk.rs"]
mod walk;

use std::cell::RefCell;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use coracle::content::{Durability, Store};
use coracle::layer::{
    Layer, LayerOptions, LayerStore, Limits, Ownership, PackOptions, PackOwners, PackSource, View, WhiteoutFormat, pack,
};
use coracle::name::DiffId;
use libfuzzer_sys::fuzz_target;

struct Place {
    dir: tempfile::TempDir,
    content: Store,
    layers: LayerStore,
    options: PackOptions,
}

thread_local!(static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) });

fuzz_target!(|bytes: &[u8]| {
    let steps = &bytes.as_chunks::<4>().0[..(bytes.len() / 4).min(60)];
    PLACE.with_borrow_mut(|place| place.get_or_insert_with(Place::new).run(steps));
});

impl Place {
    fn new() -> Place {
        let dir = tempfile::Builder::new().prefix("coracle-fuzz-").tempdir().unwrap();
        let content = Store::open_with(&dir.path().join("store"), Durability::Relaxed).unwrap();
        let root = walk::is_root();
        let ownership = if root { Ownership::Full } else { Ownership::Single };
        let whiteouts = if root { WhiteoutFormat::Overlay } else { WhiteoutFormat::OverlayUser };
        let limits = Limits { sparse_pieces: 4, depth: 12, xattrs: 3, path_length: 600, ..Limits::default() };
        let layers = LayerStore::open(&content, LayerOptions { ownership, whiteouts, limits: limits.clone() }).unwrap();
        let owners = if root { PackOwners::AsFound } else { PackOwners::Recorded };
        let options = PackOptions { owners, limits, ..PackOptions::default() };
        Place { dir, content, layers, options }
    }

    fn run(&self, steps: &[[u8; 4]]) {
        let tree = self.dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::set_permissions(&tree, fs::Permissions::from_mode(0o755)).unwrap();
        let mut halves = steps.splitn(2, |step| step[0] == 255);
        change(&tree, halves.next().unwrap_or(&[]));
        let mut layers = Vec::new();
        if self.round_trip(&tree, &mut layers) {
            change(&tree, halves.next().unwrap_or(&[]));
            self.difference(&tree, &mut layers);
        }
        for layer in layers {
            self.layers.remove(&layer).unwrap();
        }
        fs::remove_dir_all(&tree).unwrap();
        let mut left: Vec<_> = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["store"]);
    }

    /// The tar of a source, or why there is none, which has to be something that a reader would say too.
    fn packed(&self, source: PackSource<'_>) -> Option<Vec<u8>> {
        let mut tar = Vec::new();
        match pack(source, &self.options, &mut tar) {
            Ok(_) => Some(tar),
            Err(error) => {
                assert!(matches!(error.kind(), coracle::ErrorKind::Limit | coracle::ErrorKind::Unsupported), "{error}");
                None
            }
        }
    }

    fn unpacked(&self, tar: &[u8], layers: &mut Vec<Layer>) {
        let mut ingest = self.content.ingest(None, None).unwrap();
        ingest.write_all(tar).unwrap();
        let blob = ingest.commit().unwrap();
        let layer = self.layers.ensure(&blob, &DiffId(blob.clone()), layers);
        self.content.remove_blob(&blob).unwrap();
        // The second may be like the first.
        let layer = layer.unwrap_or_else(|error| panic!("packed here, and refused: {error}"));
        layers.push(layer);
    }

    fn round_trip(&self, tree: &Path, layers: &mut Vec<Layer>) -> bool {
        let Some(tar) = self.packed(PackSource::Directory(tree)) else { return false };
        assert!(self.packed(PackSource::Directory(tree)).as_ref() == Some(&tar), "other bytes the second time");
        assert!(reader::read(&tar).is_ok());
        self.unpacked(&tar, layers);
        let [mut before, mut after] = [tree, layers[0].tree()].map(walk::walk);
        for nodes in [&mut before, &mut after] {
            nodes.values_mut().for_each(|node| {
                node.xattrs.retain(|name, _| !name.starts_with(b"user.overlay.") && name != b"user.rootlesscontainers")
            });
        }
        assert_eq!(before, after);
        assert!(self.packed(PackSource::Directory(layers[0].tree())).as_ref() == Some(&tar), "other bytes afterwards");
        true
    }

    fn difference(&self, tree: &Path, layers: &mut Vec<Layer>) {
        let below = View::of_layers(layers).unwrap();
        // The root is nobody's entry.
        fs::set_permissions(tree, layers[0].tree().metadata().unwrap().permissions()).unwrap();
        let Some(tar) = self.packed(PackSource::Tree { tree, below: &below }) else { return };
        self.unpacked(&tar, layers);
        let upper = layers[1].tree().to_owned();
        fs::set_permissions(&upper, layers[0].tree().metadata().unwrap().permissions()).unwrap();
        let again = self.packed(PackSource::Upper { upper: &upper, below: &below });
        assert!(again.as_ref() == Some(&tar), "{:?}\n{:?}", names(&again.unwrap_or_default()), names(&tar));
        if layers[0].diff_id() == layers[1].diff_id() {
            layers.pop();
        }
    }
}

fn names(tar: &[u8]) -> Vec<String> {
    let entries = reader::read(tar).unwrap_or_default();
    entries.iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect()
}

const NAMES: &[&[u8]] =
    &[b"a", b"b", b"c", b"a-b", b"\xff\xfe", b"new\nline", b" ", b"...", b".wh.a", &[b'n'; 255], b"PaxHeaders.0"];

/// All paths below `root`, directories first.
fn paths(root: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut dirs, mut others) = (vec![root.to_owned()], Vec::new());
    for (path, node) in walk::walk(root) {
        let list = if node.kind == 'd' { &mut dirs } else { &mut others };
        list.push(root.join(OsStr::from_bytes(&path)));
    }
    (dirs, others)
}

/// Makes the changes that can be made; the others are passed over.
fn change(root: &Path, steps: &[[u8; 4]]) {
    for [what, a, b, c] in steps.iter().copied() {
        let (dirs, others) = paths(root);
        let new = dirs[usize::from(a) % dirs.len()].join(OsStr::from_bytes(NAMES[usize::from(b) % NAMES.len()]));
        let all = [&dirs[1..], &others].concat();
        let any = all.get(usize::from(a) % all.len().max(1)).cloned();
        let real = any.clone().filter(|path| !path.symlink_metadata().unwrap().is_symlink());
        let file = real.clone().filter(|path| path.is_file());
        let number = u64::from(c);
        // Opening what is there could wait for the other end of a FIFO.
        if matches!(what % 16, 0..=8) && new.symlink_metadata().is_ok() {
            continue;
        }
        match what % 16 {
            0 | 1 => drop(fs::create_dir(&new)),
            2..=4 => drop(fs::write(&new, c.to_string().repeat(usize::from(c)))),
            5 => {
                if let Ok(file) = File::create(&new) {
                    for piece in 0..number % 8 {
                        file.write_all_at(b"data", piece << 16).unwrap();
                    }
                    file.set_len(number << 14).unwrap();
                }
            }
            6 => drop(std::os::unix::fs::symlink(OsStr::from_bytes(&b"../a/".repeat(usize::from(c) + 1)), &new)),
            7 => drop(others.get(usize::from(c) % others.len().max(1)).map(|old| fs::hard_link(old, &new))),
            8 => {
                let kind = match c % 3 {
                    0 if walk::is_root() => libc::S_IFBLK,
                    1 if walk::is_root() => libc::S_IFCHR,
                    _ => libc::S_IFIFO,
                };
                let path = CString::new(new.as_os_str().as_bytes()).unwrap();
                // SAFETY: the path ends with a NUL.
                unsafe { libc::mknod(path.as_ptr(), kind | 0o600, libc::makedev(u32::from(c), u32::from(b) + 1)) };
            }
            // Without root, a mode can shut its owner out.
            9 => drop(real.map(|path| {
                let least = if walk::is_root() { 0 } else { 0o700 };
                fs::set_permissions(path, fs::Permissions::from_mode(u32::from(c) << 4 | u32::from(b) & 15 | least))
            })),
            10 => drop(real.filter(|path| path.is_file() || path.is_dir()).map(|path| {
                let time = SystemTime::UNIX_EPOCH + Duration::new(number * 10_000_019, u32::from(b) * 1_000_003);
                File::open(path).and_then(|file| file.set_modified(time))
            })),
            11 => drop(real.filter(|path| path.is_file() || path.is_dir()).map(|path| {
                let names = ["user.a", "user.longer name", "user.overlay.opaque", "user.b", "user.overlay.whiteout"];
                walk::set_xattr(&path, names[usize::from(b) % 5].as_bytes(), &b"y".repeat(usize::from(c)))
            })),
            12 if walk::is_root() => {
                drop(any.map(|path| std::os::unix::fs::lchown(path, Some(u32::from(b) << 8), Some(u32::from(c)))))
            }
            13 => drop(any.map(|path| match path.symlink_metadata().unwrap().is_dir() {
                true => fs::remove_dir_all(path),
                false => fs::remove_file(path),
            })),
            14 => drop(any.filter(|path| !new.starts_with(path)).map(|path| fs::rename(path, &new))),
            _ => drop(file.map(|path| fs::write(path, c.to_string()))),
        }
    }
}
