//! Two layers of arbitrary bytes, the second on top of the first: unpacked or refused; nothing outside of the tree
//! changes, and nothing is left behind. What the first became is what a second reader finds in the tar, as far as it is
//! plain: no whiteouts, no directories that were links before, no names that climb.
//!
//! The first byte says which dialect of whiteouts, the second how much of the rest is the first layer. Headers get right
//! checksums and sizes that stay inside of the input, or nearly every input would end at its first header. `@` at the
//! beginning of a link's target stands for the directory outside, whose path nobody could guess.
#![no_main]

#[path = "../honest.rs"]
mod honest;
#[path = "../reader.rs"]
mod reader;
#[path = "../walk.rs"]
mod walk;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use coracle::content::{Durability, Store};
use coracle::layer::{Layer, LayerOptions, LayerStore, Limits, Ownership, View, WhiteoutFormat};
use coracle::name::DiffId;
use honest::honest;
use libfuzzer_sys::fuzz_target;
use walk::{Node, is_root};

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
        if let Some(layer) = layers.first() {
            check_tree(&tars[0], layer.tree());
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

/// What the tree of a lowest layer has to look like; `None` where that takes more than a simple idea of it.
fn expected(tar: &[u8]) -> Option<BTreeMap<Vec<u8>, Node>> {
    let mut nodes: BTreeMap<Vec<u8>, Node> = BTreeMap::new();
    // The first name goes when it is replaced, so files have numbers until the end.
    for (number, entry) in reader::read(tar).ok()?.into_iter().enumerate() {
        let path = plain(&entry.path)?;
        if path.is_empty() {
            continue;
        }
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let parent = nodes.entry(path[..at].to_vec()).or_insert_with(implied);
            if parent.kind != 'd' {
                return None;
            }
        }
        if nodes.get(&path).is_some_and(|old| (old.kind == 'd') != (entry.kind == 'd')) {
            return None;
        }
        if entry.kind == 'h' {
            let target = plain(&entry.link)?;
            let node = nodes.get(&target).filter(|node| node.kind != 'd' && target != path)?.clone();
            nodes.insert(path, node);
            continue;
        }
        if (entry.kind, entry.device) == ('c', (0, 0)) || entry.device.0 > 0xfff || entry.device.1 > 0xf_ffff {
            return None;
        }
        let xattrs = entry
            .xattrs
            .into_iter()
            .filter(|(name, _)| name.starts_with(b"user.") && !name.starts_with(b"user.overlay."));
        let xattrs: BTreeMap<_, _> = if matches!(entry.kind, 'd' | '-') { xattrs.collect() } else { BTreeMap::new() };
        // What file systems refuse is left out.
        if xattrs.iter().any(|(name, value)| !(6..=255).contains(&name.len()) || value.len() > 1000) {
            return None;
        }
        nodes.insert(
            path,
            Node {
                kind: entry.kind,
                mode: if entry.kind == 'l' { 0o777 } else { entry.mode },
                owner: (entry.uid, entry.gid),
                mtime: entry.mtime,
                device: entry.device,
                content: if entry.kind == 'l' { entry.link } else { entry.data },
                xattrs,
                first: number.to_be_bytes().to_vec(),
            },
        );
    }
    let mut names: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for (path, node) in &mut nodes {
        node.first = match node.kind {
            'd' => path.clone(),
            _ => names.entry(node.first.clone()).or_insert_with(|| path.clone()).clone(),
        };
    }
    Some(nodes)
}

/// A directory that no entry describes.
fn implied() -> Node {
    let (owner, mtime, device) = ((0, 0), (0, 0), (0, 0));
    let (content, xattrs, first) = (Vec::new(), BTreeMap::new(), Vec::new());
    Node { kind: 'd', mode: 0o755, owner, mtime, device, content, xattrs, first }
}

/// A name from the tree's root; `None` for those that climb or hide.
fn plain(path: &[u8]) -> Option<Vec<u8>> {
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    let odd = names.iter().any(|name| *name == b".." || name.starts_with(b".wh."));
    (!odd).then(|| names.join(&b'/'))
}

fn check_tree(tar: &[u8], tree: &Path) {
    let Some(mut expected) = expected(tar) else { return };
    let mut found = walk::walk(tree);
    for nodes in [&mut expected, &mut found] {
        for node in nodes.values_mut() {
            if !is_root() {
                // One user has neither owners nor devices, and may shut himself out.
                (node.owner, node.device) = ((0, 0), (0, 0));
                if matches!(node.kind, 'c' | 'b') {
                    node.kind = '-';
                }
                if node.mode & 0o400 == 0 {
                    node.content.clear();
                }
            }
            // The record of an owner.
            node.xattrs.remove(&b"user.rootlesscontainers"[..]);
            // Not every file system has all times.
            if node.mtime.0.unsigned_abs() >= 1 << 31 {
                node.mtime = (0, 0);
            }
        }
    }
    for (path, node) in &expected {
        assert_eq!(found.get(path), Some(node), "{:?}", String::from_utf8_lossy(path));
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}\n{expected:#?}");
}
