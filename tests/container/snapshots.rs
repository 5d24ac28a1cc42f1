//! Snapshot backends and saved snapshots.

use std::path::Path;
use std::sync::Arc;

use coracle::{Engine, EngineOptions, ErrorKind, SnapshotterChoice, contract};

use super::shared::skip::missing;
use super::support::{Lab, image, run, scratch, with_programs};

/// `CORACLE_TEST_FS=DIR` names a directory on the file system to run on; without it, where tests have their roots.
fn place() -> tempfile::TempDir {
    match std::env::var_os("CORACLE_TEST_FS") {
        Some(dir) => tempfile::Builder::new().prefix("coracle-test-").tempdir_in(dir).unwrap(),
        None => scratch(),
    }
}

/// Runs the contract's suite on one backend.
fn keeps_the_contract(choice: SnapshotterChoice, name: &str) {
    let Some(_) = Lab::new() else { return };
    let dir = place();
    let options = || EngineOptions::new(dir.path().join("root")).snapshotter(choice);
    let engine = match options().open() {
        Err(error) if choice == SnapshotterChoice::Reflink && error.kind() == ErrorKind::Unsupported => {
            // Every file system cannot; CI runs this on some that can.
            return println!("not here: {error}");
        }
        other => other.unwrap(),
    };
    assert_eq!(engine.snapshotter().0, name);
    let kept = contract::snapshotter(&engine).unwrap();
    assert!(kept.len() > 10, "{kept:?}");
    assert_eq!(engine.list_images().unwrap().len(), 0);
    // With one id only, too: another way of keeping owners.
    if !nix::unistd::geteuid().is_root() {
        contract::snapshotter(&options().single_id(true).open().unwrap()).unwrap();
    }
}

#[test]
fn overlay_keeps_the_contract() {
    keeps_the_contract(SnapshotterChoice::Overlay, "overlay");
}

#[test]
fn copy_keeps_the_contract() {
    keeps_the_contract(SnapshotterChoice::Copy, "copy");
}

#[test]
fn reflink_keeps_the_contract() {
    keeps_the_contract(SnapshotterChoice::Reflink, "reflink");
}
