#![allow(clippy::unwrap_used, clippy::panic, clippy::cloned_ref_to_slice_refs)]

use std::io::Write;
use std::os::unix::fs::symlink;

use super::*;
use crate::name::MediaType;

fn store() -> (tempfile::TempDir, Store) {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open_with(&place.path().join("root"), Durability::Relaxed).unwrap();
    (place, store)
}

fn put(store: &Store, bytes: &[u8]) -> Digest {
    let mut ingest = store.ingest(None, None).unwrap();
    ingest.write_all(bytes).unwrap();
    ingest.commit().unwrap()
}

fn enter(store: &Store, entry: IndexEntry) {
    let push = |entries: &mut Vec<IndexEntry>| {
        entries.push(entry);
        Ok(())
    };
    store.update_index(push).unwrap();
}

fn in_tmp(store: &Store) -> usize {
    fs::read_dir(store.path("tmp")).unwrap().count()
}

#[test]
fn a_fresh_root_is_a_private_image_layout() {
    let (_place, store) = store();
    assert_eq!(fs::read_to_string(store.path("oci-layout")).unwrap(), LAYOUT);
    assert_eq!(fs::metadata(store.root()).unwrap().permissions().mode() & 0o777, 0o700);
    let index: serde_json::Value = serde_json::from_slice(&fs::read(store.path("index.json")).unwrap()).unwrap();
    assert_eq!(index, serde_json::json!({"schemaVersion": 2, "manifests": []}));
    assert_eq!(in_tmp(&store), 0);
    Store::open(store.root()).unwrap();
}

#[test]
fn blobs_go_in_and_come_out() {
    let (_place, store) = store();
    let bytes: Vec<u8> = (0..1_000_000u32).map(|i| (i * 7) as u8).collect();
    let digest = Digest::of(&bytes);
    assert!(!store.contains(&digest));
    let mut ingest = store.ingest(Some(&digest), Some(bytes.len() as u64)).unwrap();
    for piece in bytes.chunks(333) {
        ingest.write_all(piece).unwrap();
    }
    assert!(!store.contains(&digest));
    assert_eq!(ingest.commit().unwrap(), digest);
    assert!(store.contains(&digest));
    assert_eq!(store.size(&digest).unwrap(), bytes.len() as u64);
    assert_eq!(store.read_blob(&digest, 1 << 20).unwrap(), bytes);
    assert_eq!(put(&store, &bytes), digest);
    assert_eq!(store.blobs().unwrap(), [digest.clone()]);
    store.remove_blob(&digest).unwrap();
    store.remove_blob(&digest).unwrap();
    assert_eq!(store.open_blob(&digest).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(store.read_blob(&digest, 10).unwrap_err().to_string().contains(digest.hex()));
}

#[test]
fn a_sha512_blob_has_its_own_folder() {
    let (_place, store) = store();
    let mut hasher = crate::name::Hasher::new(Algorithm::Sha512);
    hasher.update(b"x");
    let digest = hasher.finish();
    let mut ingest = store.ingest(Some(&digest), None).unwrap();
    ingest.write_all(b"x").unwrap();
    assert_eq!(ingest.commit().unwrap(), digest);
    assert_eq!(store.read_blob(&digest, 1).unwrap(), b"x");
    assert_eq!(store.blobs().unwrap(), [digest]);
}

#[test]
fn wrong_bytes_leave_nothing() {
    let (_place, store) = store();
    let good = Digest::of(b"good");
    let mut ingest = store.ingest(Some(&good), None).unwrap();
    ingest.write_all(b"evil").unwrap();
    assert_eq!(ingest.commit().unwrap_err().kind(), ErrorKind::Corrupt);
    let mut ingest = store.ingest(Some(&good), Some(5)).unwrap();
    ingest.write_all(b"good").unwrap();
    assert_eq!(ingest.commit().unwrap_err().kind(), ErrorKind::Corrupt);
    let mut ingest = store.ingest(Some(&good), Some(3)).unwrap();
    let error = Error::io("x", "write", ingest.write_all(b"good").unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    drop(ingest);
    drop(store.ingest(None, None).unwrap());
    assert_eq!(in_tmp(&store), 0);
    assert!(store.blobs().unwrap().is_empty());
}

#[test]
fn a_blob_that_rots_or_is_a_trap_is_noticed() {
    let (_place, store) = store();
    let digest = put(&store, b"fresh");
    fs::write(store.blob_path(&digest), "stale").unwrap();
    assert_eq!(store.read_blob(&digest, 10).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(store.read_blob(&digest, 4).unwrap_err().kind(), ErrorKind::Limit);
    store.remove_blob(&digest).unwrap();
    symlink("/etc/passwd", store.blob_path(&digest)).unwrap();
    assert!(!store.contains(&digest));
    assert_eq!(store.read_blob(&digest, 1 << 20).unwrap_err().kind(), ErrorKind::Hostile);
    store.remove_blob(&digest).unwrap();
    nix::unistd::mkfifo(&store.blob_path(&digest), nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert_eq!(store.open_blob(&digest).unwrap_err().kind(), ErrorKind::Hostile);
}

#[test]
fn writing_a_damaged_blob_again_mends_it() {
    let (_place, store) = store();
    let digest = put(&store, b"fresh");
    for damage in ["stale", "", "longer than it was"] {
        fs::write(store.blob_path(&digest), damage).unwrap();
        assert_eq!(put(&store, b"fresh"), digest);
        assert_eq!(store.read_blob(&digest, 10).unwrap(), b"fresh");
    }
}

#[test]
fn a_root_that_others_can_write_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    Store::open(&root).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o770)).unwrap();
    let error = Store::open(&root).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("chmod go-w"), "{error}");
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    Store::open(&root).unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&root, Some(12345), None).unwrap();
        assert_eq!(Store::open(&root).unwrap_err().kind(), ErrorKind::Denied);
    }
}

#[test]
fn what_somebody_else_has_in_a_directory_is_never_touched() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("project");
    for name in ["tmp/notes", "containers/app/data", "owners/me", "leases/flat"] {
        fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        fs::write(root.join(name), "precious").unwrap();
    }
    let before = crate::sys::usage::measure(std::os::fd::AsFd::as_fd(&File::open(&root).unwrap())).unwrap().usage();
    // An image layout that is not ours either.
    for layout in [false, true] {
        if layout {
            fs::write(root.join("oci-layout"), LAYOUT).unwrap();
        }
        let error = Store::open(&root).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains("not empty"), "{error}");
        assert!(crate::Engine::open(&root).is_err());
    }
    fs::remove_file(root.join("oci-layout")).unwrap();
    let after = crate::sys::usage::measure(std::os::fd::AsFd::as_fd(&File::open(&root).unwrap())).unwrap().usage();
    assert_eq!(before, after);
    assert_eq!(fs::read_to_string(root.join("tmp/notes")).unwrap(), "precious");
}

#[test]
fn an_empty_directory_becomes_ours_once() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("lost+found")).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| Store::open(place.path()).unwrap());
        }
    });
    // Killed right after it was claimed.
    for name in ["oci-layout", "index.json"] {
        fs::remove_file(place.path().join(name)).unwrap();
    }
    fs::remove_dir_all(place.path().join("blobs")).unwrap();
    let store = Store::open(place.path()).unwrap();
    fs::write(store.path(MARKER), "{\"version\":2}").unwrap();
    assert_eq!(Store::open(place.path()).unwrap_err().kind(), ErrorKind::Unsupported);
    fs::write(store.path(MARKER), "{}").unwrap();
    assert_eq!(Store::open(place.path()).unwrap_err().kind(), ErrorKind::Corrupt);
}

/// A store in which a blob was written without syncing, and the mark that says so.
fn unsynced() -> (tempfile::TempDir, Store, std::path::PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let relaxed = Store::open_with(&place.path().join("root"), Durability::Relaxed).unwrap();
    put(&relaxed, b"blob");
    let mark = relaxed.path(UNSYNCED);
    (place, relaxed, mark)
}

#[test]
fn what_was_written_without_syncing_is_marked_until_it_is_synced() {
    let (_place, relaxed, mark) = unsynced();
    let full = Store::open(relaxed.root()).unwrap();
    full.settle().unwrap();
    // Somebody may write more.
    assert!(mark.exists());
    drop(relaxed.clone());
    full.settle().unwrap();
    assert!(mark.exists());
    drop(relaxed);
    let entry = IndexEntry::new(MediaType::OciManifest, Digest::of(b"blob"), 4);
    enter(&full, entry);
    assert!(!mark.exists());
    full.settle().unwrap();
}

#[test]
fn a_change_that_changes_nothing_makes_durable_what_is_there() {
    let (place, relaxed, mark) = unsynced();
    enter(&relaxed, IndexEntry::new(MediaType::OciManifest, Digest::of(b"blob"), 4));
    relaxed.update_index(|_| Ok(())).unwrap();
    drop(relaxed);
    assert!(mark.exists());
    let full = Store::open(&place.path().join("root")).unwrap();
    full.update_index(|_| Ok(())).unwrap();
    assert!(!mark.exists());
}

#[test]
fn a_layout_from_the_future_is_refused() {
    let (_place, store) = store();
    fs::write(store.path("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    assert_eq!(Store::open(store.root()).unwrap_err().kind(), ErrorKind::Unsupported);
    fs::write(store.path("oci-layout"), "{}").unwrap();
    assert_eq!(Store::open(store.root()).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn strange_fields_of_the_index_survive() {
    let (_place, store) = store();
    let digest = put(&store, b"{}");
    let original = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "annotations": {"who": "somebody"},
        "manifests": [{
            "mediaType": "application/x-unheard-of",
            "digest": digest,
            "size": 2,
            "urls": ["https://example.org"],
            "platform": {"os": "windows", "architecture": "amd64", "os.version": "10", "os.features": ["win32k"]},
            "annotations": {"org.opencontainers.image.ref.name": "latest", "x": "y"},
        }],
    });
    fs::write(store.path("index.json"), original.to_string()).unwrap();
    store
        .update_index(|entries| {
            let mut entry = IndexEntry::new(MediaType::OciManifest, digest.clone(), 2);
            entry.set_ref_name(Some("docker.io/library/a:b"));
            entries.push(entry);
            Ok(())
        })
        .unwrap();
    let now: serde_json::Value = serde_json::from_slice(&fs::read(store.path("index.json")).unwrap()).unwrap();
    assert_eq!(now["manifests"][0], original["manifests"][0]);
    assert_eq!(now["annotations"], original["annotations"]);
    let tags = store.tags().unwrap();
    assert_eq!(tags[0].ref_name(), Some("latest"));
    assert_eq!(tags[1].ref_name(), Some("docker.io/library/a:b"));
    fs::write(store.path("index.json"), r#"{"schemaVersion":2,"manifests":null}"#).unwrap();
    assert!(store.tags().unwrap().is_empty());
    fs::write(store.path("index.json"), "[]").unwrap();
    assert_eq!(store.tags().unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_failed_change_leaves_the_index() {
    let (_place, store) = store();
    let before = fs::read(store.path("index.json")).unwrap();
    let result: Result<()> = store.update_index(|entries| {
        entries.push(IndexEntry::new(MediaType::OciManifest, Digest::of(b""), 0));
        Err(Error::new(ErrorKind::Conflict, "x"))
    });
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(fs::read(store.path("index.json")).unwrap(), before);
}

#[test]
fn many_writers_lose_no_tag() {
    let (_place, store) = store();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = Store::open_with(store.root(), Durability::Relaxed).unwrap();
            scope.spawn(move || {
                for i in 0..25 {
                    store
                        .update_index(|entries| {
                            let mut entry = IndexEntry::new(MediaType::OciManifest, Digest::of(b""), 0);
                            entry.set_ref_name(Some(&format!("{thread}-{i}")));
                            entries.push(entry);
                            Ok(())
                        })
                        .unwrap();
                    store.tags().unwrap();
                }
            });
        }
    });
    assert_eq!(store.tags().unwrap().len(), 100);
}

/// A manifest with a config and one layer; returns the three digests.
fn image(store: &Store, seed: &str) -> [Digest; 3] {
    let config = put(store, format!("{{\"config\":{{\"Labels\":{{\"seed\":\"{seed}\"}}}}}}").as_bytes());
    let layer = put(store, format!("layer {seed}").as_bytes());
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": {"mediaType": MediaType::OciConfig, "digest": config, "size": 1},
        "layers": [{"mediaType": MediaType::OciLayer, "digest": layer, "size": 1}],
    });
    [put(store, manifest.to_string().as_bytes()), config, layer]
}

#[test]
fn collection_keeps_what_is_reached() {
    let (_place, store) = store();
    let tagged = image(&store, "tagged");
    let listed = image(&store, "listed");
    let leased = image(&store, "leased");
    let rooted = image(&store, "rooted");
    let loose = image(&store, "loose");
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [
        {"mediaType": MediaType::OciManifest, "digest": listed[0], "size": 1},
        {"mediaType": MediaType::OciManifest, "digest": Digest::of(b"another platform"), "size": 1},
    ]});
    let index = put(&store, index.to_string().as_bytes());
    store
        .update_index(|entries| {
            entries.push(IndexEntry::new(MediaType::OciManifest, tagged[0].clone(), 1));
            entries.push(IndexEntry::new(MediaType::OciIndex, index.clone(), 1));
            Ok(())
        })
        .unwrap();
    let lease = store.lease().unwrap();
    lease.hold(&leased[0]).unwrap();
    lease.hold(&Digest::of(b"still to come")).unwrap();
    let collected = store.gc(&[rooted[0].clone()]).unwrap();
    let mut removed = collected.removed.clone();
    let mut expected = loose.to_vec();
    removed.sort();
    expected.sort();
    assert_eq!(removed, expected);
    assert_eq!(collected.kept, 13);
    assert!(collected.freed > 100);
    drop(lease);
    assert_eq!(store.gc(&[]).unwrap().removed.len(), 6);
    assert_eq!(store.gc(&[]).unwrap().removed.len(), 0);
    for digest in tagged.iter().chain(&listed) {
        assert!(store.contains(digest));
    }
}

#[test]
fn a_line_of_a_lease_that_was_cut_short_stays_alone() {
    let (_place, store) = store();
    let lease = store.lease().unwrap();
    let (first, second) = (put(&store, b"first"), put(&store, b"second"));
    lease.hold(&first).unwrap();
    let path = fs::read_dir(store.path("leases")).unwrap().next().unwrap().unwrap().path();
    fs::File::options().append(true).open(path).unwrap().write_all(b"sha256:0123").unwrap();
    lease.hold(&second).unwrap();
    assert_eq!(store.leases().unwrap().held, [first, second]);
    store.gc(&[]).unwrap();
    assert_eq!(store.blobs().unwrap().len(), 2);
}

#[test]
fn a_manifest_that_rots_stops_the_collection() {
    let (_place, store) = store();
    let [manifest, ..] = image(&store, "x");
    store
        .update_index(|entries| {
            entries.push(IndexEntry::new(MediaType::OciManifest, manifest.clone(), 1));
            Ok(())
        })
        .unwrap();
    fs::write(store.blob_path(&manifest), "{}").unwrap();
    assert_eq!(store.gc(&[]).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(store.blobs().unwrap().len(), 3);
}

#[test]
fn no_image_hides_what_another_one_needs() {
    let (_place, store) = store();
    let [victim, config, layer] = image(&store, "victim");
    let tag = |digest: &Digest| {
        let entry = IndexEntry::new(MediaType::OciManifest, digest.clone(), 1);
        enter(&store, entry);
    };
    tag(&victim);
    let kind = "application/vnd.oci.image.layer.v1.tar";
    let strange = [
        serde_json::json!({"subject": {"mediaType": kind, "digest": victim}}),
        serde_json::json!({"config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": victim}}),
        serde_json::json!({"layers": [{"mediaType": kind, "digest": victim}]}),
        serde_json::json!({"subject": {}, "blobs": 1, "layers": [7, {"digest": "x"}], "manifests": {}}),
        serde_json::json!({"subject": {"mediaType": MediaType::OciManifest, "digest": put(&store, b"no document")}}),
        serde_json::json!({"manifests": [{"mediaType": MediaType::OciIndex, "digest": put(&store, &vec![b'{'; 5 << 20])}]}),
        serde_json::json!([]),
    ];
    for (position, document) in strange.iter().enumerate() {
        let digest = put(&store, document.to_string().as_bytes());
        // Named by an image that is there, or by one that is being loaded.
        let lease = store.lease().unwrap();
        if position % 2 == 0 {
            tag(&digest)
        } else {
            lease.hold(&digest).unwrap()
        };
        store.gc(&[]).unwrap();
        for needed in [&victim, &config, &layer, &digest] {
            assert!(store.contains(needed), "{document}");
        }
    }
    // What rots is still told, whoever names it.
    let index = put(
        &store,
        serde_json::json!({"manifests": [{"mediaType": MediaType::OciManifest, "digest": victim}]})
            .to_string()
            .as_bytes(),
    );
    store
        .update_index(|entries| {
            entries.clear();
            Ok(())
        })
        .unwrap();
    enter(&store, IndexEntry::new(MediaType::OciIndex, index, 1));
    fs::write(store.blob_path(&victim), "{}").unwrap();
    assert_eq!(store.gc(&[]).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn what_dead_makers_left_is_swept_and_what_lives_is_not() {
    let (_place, store) = store();
    let live = store.ingest(None, None).unwrap();
    let live_dir = tmp::TmpDir::create(&store.path("tmp")).unwrap();
    fs::write(live_dir.path().join("file"), "x").unwrap();
    fs::write(store.path("tmp/0123456789abcdef"), "dead").unwrap();
    fs::create_dir_all(store.path("tmp/0123456789abcdee/a/b")).unwrap();
    fs::write(store.path("leases/0123456789abcdef"), "dead").unwrap();
    let lease = store.lease().unwrap();
    Store::open(store.root()).unwrap();
    assert_eq!(in_tmp(&store), 2);
    store.gc(&[]).unwrap();
    assert_eq!(fs::read_dir(store.path("leases")).unwrap().count(), 1);
    drop((live, live_dir, lease));
    assert_eq!(in_tmp(&store), 0);
    assert_eq!(fs::read_dir(store.path("leases")).unwrap().count(), 0);
}

#[test]
fn ingest_and_collection_race_safely() {
    let (_place, store) = store();
    let bytes = b"wanted by everybody";
    let digest = Digest::of(bytes);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let lease = store.lease().unwrap();
                        lease.hold(&digest).unwrap();
                        if !store.contains(&digest) {
                            let mut ingest = store.ingest(Some(&digest), None).unwrap();
                            ingest.write_all(bytes).unwrap();
                            ingest.commit().unwrap();
                        }
                        std::thread::yield_now();
                        assert_eq!(store.read_blob(&digest, 100).unwrap(), bytes);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                store.gc(&[]).unwrap();
                Store::open(store.root()).unwrap();
            }
        });
        for worker in workers {
            worker.join().unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
