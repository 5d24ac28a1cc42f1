//! What a kill leaves of a snapshot, at instants that no test hits.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;

use super::*;

/// A root with a snapshot and a container that stands on it, both as a kill may leave them.
struct Left {
    dir: tempfile::TempDir,
    parent: SnapshotId,
    id: SnapshotId,
    container: String,
}

impl Left {
    /// With the upper directory, whose mode has changed, in the container, or in the snapshot already.
    fn new(moved: bool) -> Left {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let id = || SnapshotId(ContainerId::random().unwrap());
        let (parent, id, container) = (id(), id(), ContainerId::random().unwrap());
        let home = record::directory(root, &container);
        fs::create_dir_all(&home).unwrap();
        for (id, above) in [(&parent, None), (&id, Some(&parent))] {
            let info = SnapshotInfo {
                id: id.clone(),
                image: "sha256:0".to_owned(),
                parent: above.cloned(),
                container: container.clone(),
                created: record::now(),
            };
            fs::create_dir_all(directory(root, id)).unwrap();
            fs::create_dir(root.join("was")).unwrap();
            fs::set_permissions(root.join("was"), fs::Permissions::from_mode(0o1555)).unwrap();
            let upper = Some(RootDirectory::of(&root.join("was")).unwrap());
            fs::remove_dir(root.join("was")).unwrap();
            let json = serde_json::to_vec(&Record { info: info.clone(), upper }).unwrap();
            fs::write(directory(root, id).join("snapshot.json"), json).unwrap();
            assert_eq!(read(root, id).unwrap(), Some(info));
        }
        fs::create_dir(directory(root, &parent).join("upper")).unwrap();
        stand_on(&home, Some(&id)).unwrap();
        let upper = if moved { directory(root, &id) } else { home }.join("upper");
        fs::create_dir(&upper).unwrap();
        fs::set_permissions(&upper, fs::Permissions::from_mode(0o700)).unwrap();
        Left { parent, id, container: container.to_string(), dir }
    }

    fn sweep(&self) {
        sweep_one(self.dir.path(), &self.id, std::slice::from_ref(&self.container), &Ownership::Single).unwrap();
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("containers").join(&self.container)
    }

    fn snapshot(&self) -> PathBuf {
        directory(self.dir.path(), &self.id)
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_root_directory_has_the_mode_that_it_had() {
    let left = Left::new(false);
    left.sweep();
    assert_eq!(mode(&left.home().join("upper")), 0o1555);
    assert!(!left.snapshot().exists());
    assert_eq!(below(&left.home()).as_ref(), Some(&left.parent));
    let left = Left::new(true);
    left.sweep();
    assert_eq!(mode(&left.snapshot().join("upper")), 0o1555);
    assert_eq!(below(&left.home()).as_ref(), Some(&left.id));
}

#[test]
fn one_that_is_being_made_is_left_alone() {
    let left = Left::new(false);
    let held = lock(&left.snapshot()).unwrap();
    left.sweep();
    assert_eq!((mode(&left.home().join("upper")), below(&left.home()).as_ref()), (0o700, Some(&left.id)));
    // What lies below it is the container's ground all the time.
    let user = user_of(left.dir.path(), &left.parent).unwrap();
    assert!(user.is_some_and(|user| user.starts_with("the container")));
    drop(held);
    left.sweep();
    assert!(!left.snapshot().exists());
}
