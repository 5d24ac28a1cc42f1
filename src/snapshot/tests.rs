#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn the_host_rootless_is_a_read_only_bind_with_overlays() {
    let home = tempfile::tempdir().unwrap();
    let snapshot = Overlay::new(Ownership::Single).prepare(home.path(), &Base::Directory("/".into())).unwrap();
    assert!(matches!(snapshot.root, Mount::Bind { read_only: true, recursive: true, .. }));
    let paths: Vec<_> = snapshot.inner.iter().map(|(path, _)| path.to_str().unwrap().to_owned()).collect();
    assert!(paths.contains(&"etc".to_owned()) && !paths.contains(&"proc".to_owned()), "{paths:?}");
    Overlay::new(Ownership::Single).remove(home.path()).unwrap();
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn a_tree_without_mounts_is_one_overlay_rootless_too() {
    let (base, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let snapshot = Overlay::new(Ownership::Single).prepare(home.path(), &Base::Directory(base.path().into())).unwrap();
    assert!(matches!(&snapshot.root, Mount::Overlay { lower, .. } if lower.len() == 1));
    assert!(snapshot.inner.is_empty() && snapshot.masked.is_empty() && snapshot.notes.is_empty());
}

#[test]
fn the_upper_directory_has_the_owner_and_mode_of_what_it_stands_for() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let (base, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = nix::unistd::geteuid().is_root();
    if root {
        chown(base.path(), Some(1234), Some(1235)).unwrap();
    }
    std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o2751)).unwrap();
    Overlay::new(if root { Ownership::Full } else { Ownership::Single })
        .prepare(home.path(), &Base::Directory(base.path().into()))
        .unwrap();
    let (is, should) = (home.path().join("upper").metadata().unwrap(), base.path().metadata().unwrap());
    assert_eq!((is.mode(), is.uid(), is.gid()), (should.mode(), should.uid(), should.gid()));
}

/// A list that the directory above hands down is the host's affair.
#[test]
fn directories_of_a_snapshot_inherit_no_access_control_lists() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let (base, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    if !crate::layer::testing::hand_down_acl(home.path()) {
        return;
    }
    Overlay::new(Ownership::Single).prepare(home.path(), &Base::Directory(base.path().into())).unwrap();
    directory_at(&home.path().join("other"), 0o755).unwrap();
    for (name, mode) in [("upper", 0o755), ("work", 0o700), ("other", 0o755)] {
        let made = home.path().join(name);
        assert_eq!(made.metadata().unwrap().mode() & 0o7777, mode, "{name}");
        assert_eq!(sys::xattr::list(File::open(made).unwrap().as_fd()).unwrap().len(), 0, "{name}");
    }
}

#[test]
fn an_upper_directory_is_there_when_it_is_whole() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let (base, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // Killed after the first step.
    std::fs::create_dir(home.path().join("upper.new")).unwrap();
    std::fs::set_permissions(home.path().join("upper.new"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let overlay = Overlay::new(Ownership::Single);
    overlay.prepare(home.path(), &Base::Directory(base.path().into())).unwrap();
    assert_eq!(home.path().join("upper").metadata().unwrap().mode() & 0o7777, 0o755);
    assert!(!home.path().join("upper.new").exists());
    std::fs::create_dir(home.path().join("upper.new")).unwrap();
    overlay.remove(home.path()).unwrap();
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn a_host_tree_rootful_is_one_overlay() {
    let base = tempfile::tempdir().unwrap();
    let home = tempfile::tempdir().unwrap();
    let overlay = Overlay::new(Ownership::Full);
    let first = overlay.prepare(home.path(), &Base::Directory(base.path().into())).unwrap();
    assert!(matches!(&first.root, Mount::Overlay { lower, .. } if lower.len() == 1));
    assert_eq!(first, overlay.prepare(home.path(), &Base::Directory(base.path().into())).unwrap());
}

#[test]
fn a_file_is_no_root() {
    let home = tempfile::tempdir().unwrap();
    let error = Overlay::new(Ownership::Full).prepare(home.path(), &Base::Directory("/etc/passwd".into())).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Invalid);
}

#[test]
fn a_host_without_overlay_gets_the_next_best_backend_and_the_reason() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("tmp")).unwrap();
    let mut host = crate::probe::Host::probe();
    assert_eq!(overlay::refusal(root.path(), &host), None, "tests run where overlay works");
    (host.overlay_registered, host.overlay_module) = (false, false);
    let (backend, reason) = choose(root.path(), &host, Ownership::Single);
    let next = Reflink::new(root.path(), Ownership::Single);
    assert_eq!(backend.name(), if next.is_ok() { "reflink" } else { "copy" });
    assert!(reason.is_some_and(|reason| reason.contains("overlay")));
    if let Err(error) = next {
        assert_eq!(error.kind(), crate::ErrorKind::Unsupported, "{error}");
    }
    assert_eq!(std::fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn what_is_frozen_is_told_from_half_of_it() {
    let place = tempfile::tempdir().unwrap();
    let (low, high) = (place.path().join("low"), place.path().join("high"));
    for dir in ["low/tree.new", "high/upper"] {
        std::fs::create_dir_all(place.path().join(dir)).unwrap();
    }
    assert_eq!(frozen(&low), None);
    let missing = trees(&[], std::slice::from_ref(&low)).unwrap_err();
    assert_eq!(missing.kind(), crate::ErrorKind::NotFound);
    std::fs::rename(low.join("tree.new"), low.join("tree")).unwrap();
    assert_eq!(frozen(&low), Some(Changes::Tree(low.join("tree"))));
    // Nothing shows through a whole tree.
    assert_eq!(trees(&[], &[high.clone(), low.clone()]).unwrap(), [low.join("tree")]);
    assert_eq!(trees(&[], &[low.clone(), high.clone()]).unwrap(), [high.join("upper"), low.join("tree")]);
    discard(place.path(), Path::new("low"), &Ownership::Single).unwrap();
    assert!(!low.exists() && high.exists());
}
