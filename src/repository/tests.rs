//! Names that come, move and go, and images that go with them.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::ErrorKind;
use crate::error::Result;
use crate::image::tests::{Root, root, sample, tar_of};
use crate::image::{Image, ImageId};
use crate::name::Reference;

fn nobody() -> Result<HashSet<ImageId>> {
    Ok(HashSet::new())
}

fn load(root: &Root, label: &str, tags: &[&str]) -> Image {
    root.load(tar_of(&sample(label).saved(tags))).unwrap().remove(0)
}

fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

fn trees(root: &Root) -> usize {
    root.images.layers().list().unwrap().len()
}

#[test]
fn an_image_is_found_by_name_id_digest_and_prefix() {
    let root = root();
    let image = load(&root, "find", &["debian:12"]);
    let (id, digest) = (image.id().to_string(), image.digest().to_string());
    let hex = image.id().digest().hex();
    for text in [
        "debian:12",
        "docker.io/library/debian:12",
        &id,
        hex,
        &hex[..12],
        &hex[..1],
        &id[..10],
        &digest,
        &format!("debian@{digest}"),
        &format!("debian:other@{digest}"),
    ] {
        assert_eq!(root.images.resolve(text).unwrap(), image, "{text}");
    }
    let absent = "0".repeat(64);
    for text in ["debian", "debian:1", "ubuntu:12", &absent, &format!("ubuntu@{digest}"), &format!("debian@{id}")] {
        let error = root.images.resolve(text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{text}: {error}");
    }
    assert_eq!(root.images.resolve("../x").unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(root.images.get(image.id()).unwrap(), image);
}

#[test]
fn an_ambiguous_prefix_lists_what_it_may_mean_and_a_name_counts_first() {
    let root = root();
    let mut first = [const { None }; 16];
    let (a, b) = (0..)
        .find_map(|number| {
            let image = load(&root, &number.to_string(), &[]);
            let digit = u8::from_str_radix(&image.id().digest().hex()[..1], 16).unwrap();
            let other = first[usize::from(digit)].replace(image.clone());
            other.map(|other: Image| (other, image))
        })
        .unwrap();
    let digit = &a.id().digest().hex()[..1];
    let error = root.images.resolve(digit).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains(a.id().short()) && error.to_string().contains(b.id().short()), "{error}");
    root.images.tag(&b, &name(&format!("{digit}:latest"))).unwrap();
    assert_eq!(root.images.resolve(digit).unwrap(), b);
}

#[test]
fn tags_move_and_repositories_list_them() {
    let root = root();
    let (a, b) = (load(&root, "a", &["app:1", "app:2", "other:1"]), load(&root, "b", &["app:3"]));
    let app = root.images.repository("app").unwrap();
    assert_eq!(
        (app.name().as_str(), app.tags().unwrap()),
        ("docker.io/library/app", vec!["1".into(), "2".into(), "3".into()])
    );
    app.tag(&b, "1").unwrap();
    app.tag(&b, "1").unwrap();
    assert_eq!((app.image("1").unwrap(), app.image("2").unwrap()), (b.clone(), a.clone()));
    assert_eq!(app.image("9").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(app.tag(&b, "bad tag").unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(root.images.repository("app:1").unwrap_err().kind(), ErrorKind::Invalid);
    assert!(root.images.repository("localhost:5000/app").unwrap().tags().unwrap().is_empty());
    let pinned = name("x:1").with_digest(a.digest().clone());
    assert_eq!(root.images.tag(&a, &pinned).unwrap_err().kind(), ErrorKind::Invalid);
    root.images.remove(&b.id().to_string(), true, &nobody).unwrap();
    assert_eq!(root.images.tag(&b, &name("b:1")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn the_last_name_takes_the_image_and_only_what_others_do_not_need() {
    let root = root();
    let a = load(&root, "a", &["a:1", "a:2"]);
    load(&root, "b", &["b:1"]);
    assert_eq!(trees(&root), 3);
    let removed = root.images.remove("a:1", false, &nobody).unwrap();
    assert_eq!((removed.untagged, removed.deleted.len(), removed.freed), (vec![name("a:1")], 0, 0));
    let removed = root.images.remove("a:2", false, &nobody).unwrap();
    assert_eq!(removed.deleted, [a.id().clone()]);
    assert!(removed.freed > 0);
    // The layer that both have is still there.
    assert_eq!(trees(&root), 2);
    let b = root.images.resolve("b:1").unwrap();
    assert_eq!(b.ensure_layers(None).unwrap().len(), 2);
    assert_eq!(root.images.remove("a:2", false, &nobody).unwrap_err().kind(), ErrorKind::NotFound);
    root.images.remove(b.id().short(), false, &nobody).unwrap();
    root.assert_empty("all removed");
    assert_eq!(trees(&root), 0);
}

#[test]
fn containers_keep_their_image() {
    let root = root();
    let image = load(&root, "used", &["used:1", "used:2"]);
    let used = AtomicBool::new(true);
    let in_use = || Ok(if used.load(Ordering::Relaxed) { HashSet::from([image.id().clone()]) } else { HashSet::new() });
    // A name that is not the last goes without question.
    root.images.remove("used:2", false, &in_use).unwrap();
    let error = root.images.remove("used:1", false, &in_use).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains(image.id().short()), "{error}");
    assert_eq!(root.images.resolve("used:1").unwrap(), image);
    let removed = root.images.remove("used:1", true, &in_use).unwrap();
    assert_eq!((removed.untagged.len(), removed.deleted.len()), (1, 0));
    assert_eq!(root.images.resolve(image.id().short()).unwrap(), image);
    let by_id = |force| root.images.remove(&image.id().to_string(), force, &in_use).map(|it| it.deleted.len());
    assert_eq!(by_id(false).unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(by_id(true).unwrap_err().kind(), ErrorKind::Conflict);
    assert!(root.images.prune(&in_use).unwrap().deleted.is_empty());
    assert_eq!(trees(&root), 2);
    used.store(false, Ordering::Relaxed);
    assert_eq!(root.images.prune(&in_use).unwrap().deleted, [image.id().clone()]);
    root.assert_empty("pruned");
}

#[test]
fn an_id_with_several_names_needs_force() {
    let root = root();
    let image = load(&root, "many", &["many:1", "many:2"]);
    let error = root.images.remove(image.id().short(), false, &nobody).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("many:1, many:2"), "{error}");
    let removed = root.images.remove(image.id().short(), true, &nobody).unwrap();
    assert_eq!((removed.untagged.len(), removed.deleted.len()), (2, 1));
    root.assert_empty("forced");
}

#[test]
fn prune_takes_nameless_images_only() {
    let root = root();
    load(&root, "old", &["app:1"]);
    let new = load(&root, "new", &["app:1"]);
    assert_eq!(root.images.list().unwrap().len(), 2);
    assert_eq!(root.images.prune(&nobody).unwrap().deleted.len(), 1);
    assert_eq!(root.images.list().unwrap()[0].image, new);
    assert_eq!(trees(&root), 2);
}

#[test]
fn a_damaged_image_can_be_removed_by_name() {
    let root = root();
    let image = load(&root, "damaged", &["damaged:1"]);
    let healthy = load(&root, "healthy", &["healthy:1"]);
    root.images.content().remove_blob(image.id().digest()).unwrap();
    let error = root.images.list().unwrap_err();
    assert!(error.to_string().contains("damaged:1"), "{error}");
    let (whole, damaged) = root.images.list_whole().unwrap();
    assert_eq!((whole.len(), damaged.len(), &whole[0].image), (1, 1, &healthy));
    let error = root.images.resolve("damaged:1").unwrap_err();
    assert_eq!((error.kind(), error.step()), (ErrorKind::Corrupt, "open the image \"damaged:1\""));
    assert!(error.failed_path().is_some() && error.remedy_hint().is_some(), "{error}");
    assert_eq!(root.images.resolve(healthy.id().short()).unwrap(), healthy);
    // Its ID is unknown now: as long as an image in use is unaccounted for, this might be it.
    let in_use = || Ok(HashSet::from([image.id().clone()]));
    assert_eq!(root.images.remove("damaged:1", false, &in_use).unwrap_err().kind(), ErrorKind::Conflict);
    root.images.remove("damaged:1", false, &nobody).unwrap();
    assert_eq!(root.images.list().unwrap().len(), 1);
    assert_eq!(trees(&root), 2);
}

#[test]
fn a_hold_makes_removals_wait() {
    let root = root();
    let image = load(&root, "held", &["held:1"]);
    let hold = root.images.lock().share().unwrap();
    let also = root.images.lock().share().unwrap();
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| root.images.remove("held:1", false, &nobody).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!removal.is_finished());
        assert_eq!(root.images.resolve("held:1").unwrap(), image);
        drop((hold, also));
        assert_eq!(removal.join().unwrap().deleted.len(), 1);
    });
}

#[test]
fn loads_and_removals_in_parallel_leave_whole_images() {
    let root = root();
    // One layer is too large to wait in memory for its name.
    let large = vec![b'x'; 1 << 20];
    let archives: Vec<Vec<u8>> = (0..4)
        .map(|number| {
            let mut sample = sample(&number.to_string());
            sample.add_layer(tar_of(&[("large", &large)]));
            tar_of(&sample.saved(&[&format!("p:{number}"), "p:latest"]))
        })
        .collect();
    std::thread::scope(|scope| {
        for (number, archive) in archives.iter().enumerate() {
            let root = &root;
            scope.spawn(move || {
                for _ in 0..8 {
                    root.load(archive.clone()).unwrap();
                    let _ = root.images.resolve(&format!("p:{number}")).map(|it| it.ensure_layers(None));
                    root.images.remove(&format!("p:{number}"), true, &nobody).unwrap();
                    root.images.prune(&nobody).unwrap();
                }
            });
        }
    });
    for listed in root.images.list().unwrap() {
        assert_eq!(listed.image.ensure_layers(None).unwrap().len(), 3);
        root.images.remove(&listed.image.id().to_string(), true, &nobody).unwrap();
    }
    root.assert_empty("parallel");
    assert_eq!(trees(&root), 0);
}

#[test]
fn one_image_under_two_manifests_is_one_image() {
    let load_both = |root: &Root, second: Option<&str>| {
        let sample = sample("twice");
        let image = load(root, "twice", &["app:1"]);
        let blobs = sample.blobs(crate::image::tests::gzip);
        let entry = crate::image::tests::listed(blobs.last().unwrap(), second);
        let other = root.load(tar_of(&crate::image::tests::layout(&blobs, &[entry]))).unwrap().remove(0);
        assert_eq!((&image, image.id()), (&other, other.id()));
        assert_ne!(image.digest(), other.digest());
        image
    };
    // The name moved to the other manifest; nothing stays without one.
    let root1 = root();
    let image = load_both(&root1, Some("docker.io/library/app:1"));
    assert_eq!(root1.images.content().tags().unwrap().len(), 1);
    let removed = root1.images.remove("app:1", false, &nobody).unwrap();
    assert_eq!(removed.deleted, [image.id().clone()]);
    root1.assert_empty("moved");
    // Loaded again without a name.
    let root2 = root();
    let image = load_both(&root2, None);
    let pruned = root2.images.prune(&nobody).unwrap();
    assert_eq!(pruned.deleted, []);
    assert_eq!(root2.images.resolve("app:1").unwrap(), image);
    load_both(&root2, None);
    let removed = root2.images.remove("app:1", false, &nobody).unwrap();
    assert_eq!(removed.deleted, [image.id().clone()]);
    root2.assert_empty("nameless");
}
