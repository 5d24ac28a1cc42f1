#![allow(clippy::unwrap_used, clippy::panic, clippy::cloned_ref_to_slice_refs)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::process::Command;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::layer::testing::{Archive, Block, Scratch, hand_down_acl, snapshot};
use crate::layer::{Owner, Reown};

struct Fixture {
    _place: Scratch,
    content: content::Store,
    layers: LayerStore,
}

fn options() -> LayerOptions {
    let (whiteouts, ownership) = if nix::unistd::geteuid().is_root() {
        (WhiteoutFormat::Overlay, Ownership::Full)
    } else {
        (WhiteoutFormat::OverlayUser, Ownership::Single)
    };
    LayerOptions { whiteouts, ownership, ..LayerOptions::default() }
}

fn fixture_with(options: LayerOptions) -> Fixture {
    let place = Scratch::new();
    let content = content::Store::open_with(&place.path().join("root"), Durability::Relaxed).unwrap();
    let layers = LayerStore::open(&content, options).unwrap();
    Fixture { _place: place, content, layers }
}

fn fixture() -> Fixture {
    fixture_with(options())
}

impl Fixture {
    fn put(&self, bytes: &[u8]) -> Digest {
        let mut ingest = self.content.ingest(None, None).unwrap();
        ingest.write_all(bytes).unwrap();
        ingest.commit().unwrap()
    }

    /// A layer in gzip.
    fn layer(&self, archive: Archive) -> (Digest, DiffId) {
        let tar = archive.end();
        (self.put(&gzip(&tar)), DiffId(Digest::of(&tar)))
    }

    /// Nothing half made is left.
    #[track_caller]
    fn assert_clean(&self) {
        assert_eq!(fs::read_dir(self.content.path("tmp")).unwrap().count(), 0);
        let names: Vec<_> = fs::read_dir(self.layers.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().all(|name| !name.to_str().unwrap().ends_with(".lock")), "{names:?}");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_layer_is_unpacked_once_and_found_again() {
    let it = fixture();
    let (blob, diff_id) = it.layer(Archive::new().dir("d").file("d/f", b"hello"));
    assert_eq!(it.layers.find(std::slice::from_ref(&diff_id)).unwrap(), None);
    let layer = it.layers.ensure(&blob, &diff_id, &[]).unwrap();
    assert_eq!(fs::read(layer.tree().join("d/f")).unwrap(), b"hello");
    assert_eq!((layer.entries(), layer.bytes(), layer.chain_id(), layer.sets_root()), (2, 5, None, false));
    assert_eq!(layer.tree().metadata().unwrap().permissions().mode() & 0o7777, 0o755);
    assert!(!layer.tree().to_str().unwrap().contains([':', ',']));
    // The second time the blob is not even needed.
    it.content.remove_blob(&blob).unwrap();
    assert_eq!(it.layers.ensure(&blob, &diff_id, &[]).unwrap(), layer);
    assert_eq!(it.layers.find(std::slice::from_ref(&diff_id)).unwrap().unwrap(), [layer.clone()]);
    assert_eq!(it.layers.list().unwrap(), [layer.clone()]);
    it.assert_clean();
    it.layers.remove(&layer).unwrap();
    it.layers.remove(&layer).unwrap();
    assert!(it.layers.list().unwrap().is_empty() && !layer.tree().exists());
    it.assert_clean();
}

#[test]
fn every_compression_gives_the_same_tree() {
    let tar = Archive::new().file("f", &[7; 600_000]).end();
    let diff_id = DiffId(Digest::of(&tar));
    #[cfg_attr(not(feature = "zstd"), allow(unused_mut))]
    let mut blobs = vec![tar.clone(), gzip(&tar), [gzip(&tar[..1000]), gzip(&tar[1000..])].concat()];
    #[cfg(feature = "zstd")]
    blobs.push(zstd::encode_all(&tar[..], 3).unwrap());
    for bytes in blobs {
        let it = fixture();
        let layer = it.layers.ensure(&it.put(&bytes), &diff_id, &[]).unwrap();
        assert_eq!(fs::read(layer.tree().join("f")).unwrap(), [7; 600_000]);
    }
}

#[test]
fn nothing_is_published_before_both_digests_match() {
    let it = fixture();
    let archive = Archive::new().file("f", &[1; 100_000]);
    let (blob, diff_id) = it.layer(archive.clone());
    let other = DiffId(Digest::of(b"another tar"));
    let error = it.layers.ensure(&blob, &other, &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(other.hex()) && error.to_string().contains(diff_id.hex()), "{error}");
    // The blob's own bytes are changed where the tar does not notice: behind the compressed stream's end.
    let path = it.content.path("blobs/sha256").join(blob.hex());
    let good = fs::read(&path).unwrap();
    fs::write(&path, [good.clone(), gzip(b"")].concat()).unwrap();
    let error = it.layers.ensure(&blob, &diff_id, &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("verify the blob"), "{error}");
    for cut in [good.len() - 1, good.len() / 2, 20] {
        fs::write(&path, &good[..cut]).unwrap();
        assert_eq!(it.layers.ensure(&blob, &diff_id, &[]).unwrap_err().kind(), ErrorKind::Corrupt, "{cut}");
    }
    // Bytes behind the tar's end mark belong to the digest.
    let long = [archive.end(), vec![0; 300_000]].concat();
    assert_eq!(it.layers.ensure(&it.put(&long), &diff_id, &[]).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(it.layers.ensure(&it.put(&long), &DiffId(Digest::of(&long)), &[]).is_ok());
    let absent = Digest::of(b"absent");
    assert_eq!(it.layers.ensure(&absent, &diff_id, &[]).unwrap_err().kind(), ErrorKind::NotFound);
    it.assert_clean();
    assert_eq!(it.layers.list().unwrap().len(), 1);
}

#[test]
fn a_bomb_behind_the_end_mark_stops_at_the_limit() {
    let limits = Limits { bytes: 4 << 20, ..Limits::default() };
    let it = fixture_with(LayerOptions { limits, ..options() });
    let mut tar = Archive::new().file("f", b"x").end();
    tar.resize(64 << 20, 0);
    let error = it.layers.ensure(&it.put(&gzip(&tar)), &DiffId(Digest::of(&tar)), &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    it.assert_clean();
}

#[test]
fn a_hostile_layer_leaves_nothing() {
    let it = fixture();
    let good = it.layer(Archive::new().file("a", b""));
    let evil = it.layer(Archive::new().dir("d").file("../evil", b""));
    assert_eq!(it.layers.ensure(&evil.0, &evil.1, &[]).unwrap_err().kind(), ErrorKind::Hostile);
    let error = it.layers.ensure_all(&[good.clone(), evil, good], None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Hostile);
    it.assert_clean();
}

#[test]
fn many_callers_unpack_once() {
    let it = fixture();
    let (blob, diff_id) = it.layer(Archive::new().file("f", &[3; 2_000_000]));
    let read = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let store = content::Store::open_with(it.content.root(), Durability::Relaxed).unwrap();
                let layers = LayerStore::open(&store, options()).unwrap();
                let progress = |progress: LayerProgress| {
                    if progress.done == progress.total {
                        read.fetch_add(1, Ordering::Relaxed);
                    }
                };
                let layer = &layers.ensure_all(&[(blob.clone(), diff_id.clone())], Some(&progress)).unwrap()[0];
                assert_eq!(fs::metadata(layer.tree().join("f")).unwrap().len(), 2_000_000);
            });
        }
    });
    assert_eq!(read.into_inner(), 1);
    it.assert_clean();
}

#[test]
fn dependent_layers_are_kept_per_stack() {
    let it = fixture();
    let base1 = it.layer(Archive::new().block(Block::new(b"d", b'5').mode(0o700)));
    let base2 = it.layer(Archive::new().block(Block::new(b"d", b'5').mode(0o711)));
    let alone = it.layer(Archive::new().dir("e").file("e/x", b""));
    let upper = it.layer(Archive::new().file("d/new", b""));
    let mode = |layer: &Layer| layer.tree().join("d").metadata().unwrap().permissions().mode() & 0o777;
    let one = it.layers.ensure_all(&[base1.clone(), alone.clone(), upper.clone()], None).unwrap();
    let two = it.layers.ensure_all(&[base2.clone(), alone.clone(), upper.clone()], None).unwrap();
    assert_eq!((mode(&one[2]), mode(&two[2])), (0o700, 0o711));
    assert_ne!(one[2].tree(), two[2].tree());
    assert_eq!(one[1], two[1]);
    let stack = [base1.1, alone.1, upper.1];
    assert_eq!(one[2].chain_id(), ChainId::of(&stack).as_ref());
    assert_eq!(it.layers.find(&stack).unwrap().unwrap(), one);
    assert_eq!(it.layers.ensure(&upper.0, &stack[2], &one[..2]).unwrap(), one[2]);
    assert_eq!(it.layers.list().unwrap().len(), 5);
    it.assert_clean();
}

/// What a layer comes to with nothing below must not be taken for what it comes to over another layer.
#[test]
fn a_dependent_layer_seen_as_the_lowest_is_not_used_elsewhere() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let implied = Archive::new().file("d/new", b"");
    let opaque = Archive::new().file(".wh..wh..opq", b"").file("new", b"");
    for (archive, lowest_first) in [(&implied, true), (&implied, false), (&opaque, true), (&opaque, false)] {
        let it = fixture();
        let base = it.layer(Archive::new().block(Block::new(b"d", b'5').mode(0o700)).file("old", b""));
        let upper = it.layer(archive.clone());
        let (alone, stack) = ([upper.clone()], [base, upper]);
        let ensure = |layers: &[(Digest, DiffId)]| it.layers.ensure_all(layers, None).unwrap();
        let (lowest, over) = if lowest_first {
            let lowest = ensure(&alone);
            (lowest, ensure(&stack))
        } else {
            let over = ensure(&stack);
            (ensure(&alone), over)
        };
        assert_ne!(lowest[0].tree(), over[1].tree());
        let diff_ids = |layers: &[(Digest, DiffId)]| layers.iter().map(|it| it.1.clone()).collect::<Vec<_>>();
        for (layers, wanted) in [(&lowest, diff_ids(&alone)), (&over, diff_ids(&stack))] {
            assert_eq!(layers.last().unwrap().chain_id(), ChainId::of(&wanted).as_ref());
            assert_eq!(it.layers.find(&wanted).unwrap().as_ref(), Some(layers));
        }
        // A second time nothing is unpacked.
        assert_eq!((ensure(&alone), ensure(&stack)), (lowest.clone(), over.clone()));
        assert_eq!(it.layers.list().unwrap().len(), 3);
        for name in it.layers.names().unwrap() {
            it.layers.look(&name).unwrap();
        }
        let shown = look_through(&View::of_layers(&over).unwrap());
        if lowest[0].tree().join("d").exists() {
            assert!(shown[&b"d"[..]].starts_with("40700"), "{shown:?}");
        } else {
            assert_eq!(shown.into_keys().collect::<Vec<_>>(), [b"new"]);
        }
        it.assert_clean();
    }
}

/// A list that the store's directory hands down is the host's affair.
#[test]
fn layers_inherit_no_access_control_lists() {
    let it = fixture();
    let (blob, diff_id) = it.layer(Archive::new().dir("d").file("d/f", b"").file("implied/f", b""));
    if !hand_down_acl(&it.content.path("tmp")) {
        return;
    }
    let layer = it.layers.ensure(&blob, &diff_id, &[]).unwrap();
    let found = snapshot(layer.tree());
    assert_eq!(found.len(), 5);
    for (path, line) in found {
        assert!(line.ends_with(" []"), "{}: {line}", String::from_utf8_lossy(&path));
    }
    assert_eq!(layer.tree().metadata().unwrap().permissions().mode() & 0o7777, 0o755);
}

#[test]
fn other_ways_of_writing_do_not_meet() {
    let it = fixture();
    let (blob, diff_id) = it.layer(Archive::new().block(Block::new(b"f", b'0').owner(5, 5)));
    let single = LayerOptions {
        ownership: Ownership::Single,
        whiteouts: WhiteoutFormat::OverlayUser,
        ..LayerOptions::default()
    };
    let single = LayerStore::open(&it.content, single).unwrap();
    let one = single.ensure(&blob, &diff_id, &[]).unwrap();
    if nix::unistd::geteuid().is_root() {
        assert_eq!(it.layers.find(std::slice::from_ref(&diff_id)).unwrap(), None);
        let two = it.layers.ensure(&blob, &diff_id, &[]).unwrap();
        assert_ne!(one.tree(), two.tree());
    }
    let apply = LayerOptions { whiteouts: WhiteoutFormat::Apply, ..LayerOptions::default() };
    assert_eq!(LayerStore::open(&it.content, apply).unwrap_err().kind(), ErrorKind::Invalid);
}

/// Stands in for a user with subordinate ids; refuses on demand.
#[derive(Default)]
struct Recorder {
    seen: Mutex<Vec<Owner>>,
    removed: AtomicUsize,
    refuse: bool,
}

impl Reown for Recorder {
    fn reown(&self, tree: BorrowedFd<'_>, owners: &[Owner]) -> Result<()> {
        assert!(sys::fs::lstatat(tree, c"f").is_ok());
        lock(&self.seen).extend_from_slice(owners);
        if self.refuse { Err(Error::new(ErrorKind::Denied, "change owners")) } else { Ok(()) }
    }

    fn container_ids(&self, uid: u32, gid: u32) -> (u32, u32) {
        (uid, gid)
    }

    fn remove(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        self.removed.fetch_add(1, Ordering::Relaxed);
        sys::fs::remove_tree(parent, name).map_err(|error| Error::io("remove", "unlink", error))
    }
}

#[test]
fn owners_are_handed_over_after_verification() {
    for refuse in [false, true] {
        let recorder = Arc::new(Recorder { refuse, ..Recorder::default() });
        let it = fixture_with(LayerOptions {
            ownership: Ownership::Mapped(recorder.clone()),
            whiteouts: WhiteoutFormat::OverlayUser,
            ..LayerOptions::default()
        });
        let (blob, diff_id) = it.layer(Archive::new().block(Block::new(b"f", b'0').owner(5, 6)));
        let wrong = DiffId(Digest::of(b"wrong"));
        assert_eq!(it.layers.ensure(&blob, &wrong, &[]).unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(lock(&recorder.seen).is_empty(), "a layer that is not what it says was given away");
        let result = it.layers.ensure(&blob, &diff_id, &[]);
        assert_eq!(lock(&recorder.seen)[0].uid, 5);
        assert_eq!(result.is_err(), refuse);
        assert!(recorder.removed.load(Ordering::Relaxed) > 0);
        it.assert_clean();
    }
}

#[test]
fn what_a_crash_leaves_is_swept_and_unpacked_again() {
    let it = fixture();
    let (blob, diff_id) = it.layer(Archive::new().file("f", b"x"));
    fs::create_dir_all(it.content.path("tmp/00000000deadbeef/tree/d")).unwrap();
    fs::write(it.layers.dir().join(format!("{}.lock", it.layers.name(&diff_id))), "").unwrap();
    let content = content::Store::open_with(it.content.root(), Durability::Full).unwrap();
    let layers = LayerStore::open(&content, options()).unwrap();
    layers.ensure(&blob, &diff_id, &[]).unwrap();
    it.assert_clean();
}

// ---- Stacks of layers: our trees, seen through our view and through the kernel's overlayfs, must show what umoci
// unpacks and what applying them one after the other comes to.

#[derive(Debug, Clone)]
enum Step {
    File(String, u8),
    Dir(String, u16),
    Symlink(String, String),
    HardLink(String, String),
    Whiteout(String),
    Opaque(String),
}

fn step() -> impl Strategy<Value = Step> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let path = prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"));
    let target = prop_oneof![path.clone(), path.clone().prop_map(|path| format!("/{path}"))];
    prop_oneof![
        4 => (path.clone(), any::<u8>()).prop_map(|(path, byte)| Step::File(path, byte)),
        4 => (path.clone(), prop::sample::select(vec![0o755u16, 0o700, 0o1777, 0o555])).prop_map(|(path, mode)| Step::Dir(path, mode)),
        1 => (path.clone(), target).prop_map(|(path, target)| Step::Symlink(path, target)),
        1 => (path.clone(), path.clone()).prop_map(|(path, target)| Step::HardLink(path, target)),
        2 => path.clone().prop_map(Step::Whiteout),
        1 => path.prop_map(Step::Opaque),
    ]
}

/// The tar of one layer. Where it is `complete`, every directory on the way to an entry has an entry of its own.
fn archive(steps: &[Step], complete: bool) -> Archive {
    let mut archive = Archive::new();
    let mut made = std::collections::HashSet::new();
    for (at, step) in steps.iter().enumerate() {
        if complete {
            let (Step::File(path, _)
            | Step::Dir(path, _)
            | Step::Symlink(path, _)
            | Step::HardLink(path, _)
            | Step::Whiteout(path)
            | Step::Opaque(path)) = step;
            let path = if matches!(step, Step::Opaque(_)) { format!("{path}/x") } else { path.clone() };
            for (end, _) in path.match_indices('/') {
                if made.insert(path[..end].to_owned()) {
                    archive = archive.dir(&path[..end]);
                }
            }
            if !matches!(step, Step::Dir(..)) {
                made.retain(|dir| *dir != path && !dir.starts_with(&format!("{path}/")));
            } else {
                made.insert(path);
            }
        }
        let beside = |path: &str, name: String| match path.rsplit_once('/') {
            Some((parent, last)) => format!("{parent}/{}", name.replace('*', last)),
            None => name.replace('*', path),
        };
        archive = match step {
            Step::File(path, byte) => {
                archive.block(Block::new(path.as_bytes(), b'0').size(1).mtime(at as u64 + 1)).data(&[*byte])
            }
            Step::Dir(path, mode) => {
                archive.block(Block::new(path.as_bytes(), b'5').mode(u32::from(*mode)).mtime(at as u64 + 1))
            }
            Step::Symlink(path, target) => {
                archive.block(Block::new(path.as_bytes(), b'2').mode(0o777).link(target.as_bytes()).mtime(1))
            }
            Step::HardLink(path, target) => archive.hard_link(path, target),
            Step::Whiteout(path) => archive.file(&beside(path, ".wh.*".into()), b""),
            Step::Opaque(path) => archive.file(&format!("{path}/.wh..wh..opq"), b""),
        };
    }
    archive
}

/// Every path with its type, permissions and content.
type Look = BTreeMap<Vec<u8>, String>;

/// What the view shows.
fn look_through(view: &View) -> Look {
    let mut found = BTreeMap::new();
    let mut open = vec![Vec::new()];
    while let Some(dir) = open.pop() {
        let here = view.lookup(&dir).unwrap().unwrap();
        for name in crate::layer::view::shown(&here).unwrap() {
            let path =
                if dir.is_empty() { name.to_bytes().to_vec() } else { [&dir, &b"/"[..], name.to_bytes()].concat() };
            let it = view.resolve(&path, false).unwrap().unwrap();
            let content = if it.is_symlink() {
                it.target().unwrap()
            } else if it.is_dir() {
                open.push(path.clone());
                Vec::new()
            } else {
                view.read_file(&path, 10).unwrap().unwrap()
            };
            found.insert(path, format!("{:o} {content:?}", it.stat.st_mode));
        }
    }
    found
}

/// The same of an ordinary directory.
fn plain(root: &Path) -> Look {
    use std::os::unix::ffi::OsStrExt;
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            // In a directory that only one layer has, overlayfs lists whiteouts and then denies that they are there.
            let Ok(metadata) = path.symlink_metadata() else { continue };
            let content = if metadata.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else if metadata.is_dir() {
                open.push(path.clone());
                Vec::new()
            } else {
                fs::read(&path).unwrap()
            };
            let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
            found.insert(name, format!("{:o} {content:?}", metadata.permissions().mode()));
        }
    }
    found
}

/// The kernel's opinion, in a mount namespace of a thread of its own.
fn mounted(layers: &[Layer]) -> Look {
    use nix::mount::{MsFlags, mount};
    let empty = tempfile::tempdir().unwrap();
    let target = tempfile::tempdir().unwrap();
    let lower = crate::layer::trees(layers).into_iter().map(|tree| tree.to_str().unwrap().to_owned());
    let lower = lower.chain([empty.path().to_str().unwrap().to_owned()]).collect::<Vec<_>>().join(":");
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
                mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
                let data = format!("lowerdir={lower},redirect_dir=off,metacopy=off,index=off");
                mount(Some("overlay"), target.path(), Some("overlay"), MsFlags::MS_RDONLY, Some(data.as_str()))
                    .unwrap();
                plain(target.path())
            })
            .join()
            .unwrap()
    })
}

/// umoci's opinion of the same image.
fn umoci(it: &Fixture, stack: &[(Digest, DiffId)]) -> Option<Look> {
    let diff_ids: Vec<_> = stack.iter().map(|(_, diff_id)| diff_id).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string();
    let descriptor = |media_type: &str, digest: &Digest| serde_json::json!({"mediaType": media_type, "digest": digest, "size": it.content.size(digest).unwrap()});
    let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &it.put(config.as_bytes())),
        "layers": stack.iter().map(|(blob, _)| descriptor(gzip, blob)).collect::<Vec<_>>(),
    });
    let manifest = it.put(manifest.to_string().as_bytes());
    it.content
        .update_index(|entries| {
            let size = it.content.size(&manifest)?;
            let mut entry =
                content::IndexEntry::new("application/vnd.oci.image.manifest.v1+json".into(), manifest, size);
            entry.set_ref_name(Some("t"));
            *entries = vec![entry];
            Ok(())
        })
        .unwrap();
    let bundle = it._place.path().join("bundle");
    let output = Command::new("umoci")
        .args(["unpack", "--image", &format!("{}:t", it.content.root().display())])
        .arg(&bundle)
        .output()
        .unwrap();
    if !output.status.success() {
        return None;
    }
    let look = plain(&bundle.join("rootfs"));
    fs::remove_dir_all(&bundle).unwrap();
    Some(look)
}

/// Layers that fit one by one, but not all at once.
#[test]
fn layers_that_are_too_large_together_are_unpacked_one_after_the_other() {
    let marks = |count: usize, prefix: &str| {
        (0..count).fold(Archive::new(), |archive, number| {
            let name = format!("{prefix}{number}");
            archive.dir(&name).file(&format!("{name}/.wh..wh..opq"), b"")
        })
    };
    let with = |memory| {
        let limits = Limits { memory, ..Limits::default() };
        fixture_with(LayerOptions { limits, whiteouts: WhiteoutFormat::OverlayUser, ..options() })
    };
    // Whether two are under way at the same time is up to the machine.
    let it = with(300 << 10);
    let stack: Vec<_> = (0..4).map(|layer| it.layer(marks(2000, &format!("{layer}-")))).collect();
    assert_eq!(it.layers.ensure_all(&stack, None).unwrap().len(), 4);
    let it = with(128 << 10);
    let stack = [it.layer(marks(2000, "x"))];
    let error = it.layers.ensure_all(&stack, None).unwrap_err();
    assert!(error.to_string().contains("`memory`"), "{error}");
    it.assert_clean();
}

#[cfg(feature = "zstd")]
#[test]
fn a_large_window_is_no_reason_to_fail_beside_other_layers() {
    let it = fixture();
    let layer = |number: usize| {
        let tar = Archive::new().file(&number.to_string(), b"x").end();
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(25).unwrap();
        encoder.write_all(&tar).unwrap();
        encoder.flush().unwrap();
        (it.put(&encoder.finish().unwrap()), DiffId(Digest::of(&tar)))
    };
    let stack: Vec<_> = (0..3).map(layer).collect();
    assert_eq!(it.layers.ensure_all(&stack, None).unwrap().len(), 3);
}

/// Every opinion on one stack of layers; `None` where it cannot be unpacked.
fn opinions(stack: &[Vec<Step>], complete: bool) -> Option<Vec<(&'static str, Look)>> {
    let it = fixture();
    let stack: Vec<_> = stack.iter().map(|steps| it.layer(archive(steps, complete))).collect();
    let layers = it.layers.ensure_all(&stack, None);
    it.assert_clean();
    let applied = it._place.path().join("applied");
    fs::create_dir(&applied).unwrap();
    let apply = LayerOptions { whiteouts: WhiteoutFormat::Apply, ..LayerOptions::default() };
    let mut result = Ok(());
    for (blob, diff_id) in &stack {
        let stop = AtomicBool::new(false);
        let job = Job {
            content: &it.content,
            blob,
            diff_id,
            tree: File::open(&applied).unwrap().into(),
            options: &apply,
            beside: &Beside::alone(&stop, &it.layers.options.limits),
            progress: &|_, _| {},
        };
        result = pipeline::run(job, Shared(&ReadyBelow::new(&[], &Access::default()))).map(drop);
        if result.is_err() {
            break;
        }
    }
    let layers = match (layers, result) {
        (Ok(layers), Ok(())) => layers,
        (Err(ours), Err(_)) => {
            assert!(matches!(ours.kind(), ErrorKind::Corrupt | ErrorKind::Hostile), "{ours}");
            return None;
        }
        (ours, applied) => panic!("one way unpacks and the other does not: {ours:?} {applied:?}"),
    };
    let mut opinions = vec![
        ("view", look_through(&View::of_layers(&layers).unwrap())),
        ("applied", plain(&applied)),
        ("overlayfs", mounted(&layers)),
    ];
    // umoci makes no parents for a whiteout alone, docker does.
    if complete && let Some(look) = umoci(&it, &stack) {
        opinions.push(("umoci", look));
    }
    Some(opinions)
}

/// What a hard link has brought up from below goes when the layer hides it afterwards; the link stays.
#[test]
fn what_is_hidden_after_it_was_linked_to_is_gone() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let path = |path: &str| path.to_owned();
    let (opaque, whiteout) = (|it: &str| Step::Opaque(path(it)), |it: &str| Step::Whiteout(path(it)));
    for (file, hide) in [
        ("a/b", opaque("a")),
        ("a/b", opaque(".")),
        ("a/b", whiteout("a")),
        ("a/b/c", opaque("a")),
        ("a/b/c", opaque(".")),
        ("a/b/c", whiteout("a")),
        ("a/b/c", whiteout("a/b")),
        ("a", opaque(".")),
        ("a", whiteout("a")),
    ] {
        for complete in [false, true] {
            let lower = vec![Step::File(path(file), 7)];
            let upper = vec![Step::HardLink(path("c"), path(file)), hide.clone()];
            let opinions = opinions(&[lower, upper], complete).unwrap();
            for (whose, look) in &opinions {
                let gone = !look.contains_key(file.as_bytes());
                assert!(gone && look.contains_key(&b"c"[..]), "{whose}: {hide:?} {look:?}");
                // The directory on the way to the link's target counts here as one that the layer has, not for umoci.
                assert!(*whose == "umoci" || look == &opinions[0].1, "{whose} and {}: {hide:?}", opinions[0].0);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").map_or(40, |cases| cases.parse().unwrap()),
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn all_opinions_on_a_stack_agree(
        stack in prop::collection::vec(prop::collection::vec(step(), 1..7), 1..4),
        complete in any::<bool>(),
    ) {
        if nix::unistd::geteuid().is_root() && let Some(opinions) = opinions(&stack, complete) {
            for pair in opinions.windows(2) {
                prop_assert_eq!(&pair[0].1, &pair[1].1, "{} and {}", pair[0].0, pair[1].0);
            }
        }
    }
}

#[test]
fn whatever_a_tar_makes_is_itself_again() {
    let fixture = fixture();
    let below = Archive::new().dir("d/").file("d/below", b"1").symlink("way", "d").end();
    let (blob, diff_id) = (fixture.put(&gzip(&below)), DiffId(Digest::of(&below)));
    let lowest = fixture.layers.ensure(&blob, &diff_id, &[]).unwrap();
    // Twice the same name, a hard link to the layer below, directories without entries, a way through a symlink below,
    // whiteouts, an opaque directory, one more way to write the same.
    let (upper, upper_id) = fixture.layer(
        Archive::new()
            .file("twice", b"first")
            .file("./twice", b"second")
            .hard_link("linked", "d/below")
            .hard_link("again", "twice")
            .file("way/through", b"x")
            .file("no/entry/of/its/own", b"y")
            .file("d/.wh.gone", b"")
            .dir("o/")
            .file("o/.wh..wh..opq", b"")
            .symlink("to", "nowhere"),
    );
    let layer = fixture.layers.ensure(&upper, &upper_id, std::slice::from_ref(&lowest)).unwrap();
    assert!(layer.chain_id().is_some());
    let told = |blob: &Digest, layer: &Layer, below: &[Layer]| {
        let mut told = vec![];
        let mut tell = |path: &[u8], cause: String| told.push((String::from_utf8_lossy(path).into_owned(), cause));
        fixture.layers.compare(blob, layer, below, &mut tell).unwrap();
        told
    };
    assert_eq!(told(&blob, &lowest, &[]), []);
    assert_eq!(told(&upper, &layer, std::slice::from_ref(&lowest)), []);
    let tree = layer.tree();
    // The two names of one file become two files, and what hides goes.
    fs::remove_file(tree.join("again")).unwrap();
    fs::write(tree.join("again"), "second").unwrap();
    fs::set_permissions(tree.join("again"), fs::metadata(tree.join("twice")).unwrap().permissions()).unwrap();
    fs::remove_file(tree.join("to")).unwrap();
    std::os::unix::fs::symlink("elsewhere", tree.join("to")).unwrap();
    fs::remove_file(tree.join("d/gone")).unwrap();
    let mark = fixture.layers.options.whiteouts.opaque_mark().unwrap();
    sys::xattr::remove(File::open(tree.join("o")).unwrap().as_fd(), mark).unwrap();
    let mut paths: Vec<_> = told(&upper, &layer, std::slice::from_ref(&lowest)).into_iter().map(|it| it.0).collect();
    paths.sort();
    assert_eq!(paths, ["again", "d/gone", "o", "to", "twice"]);
    fixture.assert_clean();
}

#[test]
fn a_deep_tree_is_compared() {
    let fixture = fixture();
    // More levels than are kept open, and more to do on the way back.
    let deep = vec!["n"; 100].join("/");
    let path = format!("{deep}/file");
    let archive =
        Archive::new().pax(&[("path", path.as_bytes())]).file("x", b"x").file("n/a/x", b"").file("n/n/z/x", b"");
    let (blob, diff_id) = fixture.layer(archive);
    let layer = fixture.layers.ensure(&blob, &diff_id, &[]).unwrap();
    let told = || {
        let mut told = vec![];
        fixture.layers.compare(&blob, &layer, &[], &mut |path, cause| told.push((path.to_vec(), cause))).unwrap();
        told
    };
    assert_eq!(told(), []);
    for other in [&deep, "n/a", "n/n/z"] {
        fs::write(layer.tree().join(other).join("other"), "").unwrap();
    }
    assert_eq!(told().len(), 3);
    fixture.assert_clean();
}
