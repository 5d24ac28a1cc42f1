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
