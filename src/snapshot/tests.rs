#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn a_host_tree_rootless_is_a_read_only_bind_with_overlays() {
    let base = tempfile::tempdir().unwrap();
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(base.path().join("etc")).unwrap();
    std::fs::create_dir(base.path().join("proc")).unwrap();
    let snapshot = Overlay { rootless: true }.prepare(home.path(), &Base::Directory(base.path().into())).unwrap();
    assert!(matches!(snapshot.root, Mount::Bind { read_only: true, recursive: true, .. }));
    let paths: Vec<_> = snapshot.inner.iter().map(|(path, _)| path.to_str().unwrap().to_owned()).collect();
    assert_eq!(paths, ["etc"]);
    Overlay { rootless: true }.remove(home.path()).unwrap();
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn a_host_tree_rootful_is_one_overlay() {
    let base = tempfile::tempdir().unwrap();
    let home = tempfile::tempdir().unwrap();
    let overlay = Overlay { rootless: false };
    let first = overlay.prepare(home.path(), &Base::Directory(base.path().into())).unwrap();
    assert!(matches!(&first.root, Mount::Overlay { lower, .. } if lower.len() == 1));
    assert_eq!(first, overlay.prepare(home.path(), &Base::Directory(base.path().into())).unwrap());
}

#[test]
fn a_file_is_no_root() {
    let home = tempfile::tempdir().unwrap();
    let error = Overlay { rootless: false }.prepare(home.path(), &Base::Directory("/etc/passwd".into())).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Invalid);
}
