//! Snapshots: trees that a container can be started on.
//!
//! A backend *returns* mounts and mounts nothing itself: [`isolation`](crate::isolation) performs them inside the
//! container's own mount namespace, so the host's mount table never changes.
//!
//! | word | meaning |
//! |---|---|
//! | base | what lies below and is never written: the layers of an image, or a directory of the host |
//! | upper | the directory that takes the container's writes |
//! | snapshot | base + upper, as mounts to perform |
//!
//! The life of one: [`prepare`](Snapshotter::prepare) makes the directories and says what to mount, as often as the
//! container starts; [`remove`](Snapshotter::remove) takes the directories away. On disk, in the container's directory:
//!
//! ```text
//! containers/<id>/upper/      the container's writes (overlay)
//!                 work/       overlay's own
//!                 inner/<n>/  upper and work of the n-th mount inside a host tree
//!                 rootfs/     the whole tree (copy)
//! ```

mod copy;
mod directory;
mod overlay;

use std::fmt;
use std::path::{Path, PathBuf};

pub use copy::Copy;
pub use overlay::Overlay;

use crate::Result;
use crate::layer::Layer;

/// What a snapshot is based on.
#[derive(Debug, Clone)]
pub enum Base {
    /// The layers of an image, lowest first.
    Layers(Vec<Layer>),
    /// A directory of the host, with the mounts below it; never written.
    Directory(PathBuf),
}

/// One mount to perform.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mount {
    /// An overlay file system.
    Overlay {
        /// Uppermost first; absolute.
        lower: Vec<PathBuf>,
        /// Takes the writes.
        upper: PathBuf,
        /// Overlay's own, beside `upper` on the same file system.
        work: PathBuf,
    },
    /// A directory as it is.
    Bind {
        /// Absolute.
        source: PathBuf,
        /// Nothing below it can be written, mounts inside it included.
        read_only: bool,
        /// With the mounts inside it.
        recursive: bool,
    },
    /// An empty file system in memory, thrown away with the container.
    Tmpfs {
        /// Permission bits of its root.
        mode: u32,
    },
}

/// A snapshot: the root's mount, and mounts to perform inside it, in this order, at paths relative to the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The root.
    pub root: Mount,
    /// `(path inside the root, mount)`.
    pub inner: Vec<(PathBuf, Mount)>,
    /// Paths inside the root, relative to it, that the host's null device covers where they exist: sockets, which a
    /// read-only mount does not keep anybody from connecting to.
    pub masked: Vec<PathBuf>,
    /// What could not be given fully, in words; empty where nothing was lost.
    pub notes: Vec<String>,
}

/// Where that which a container has changed is found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Changes {
    /// An overlay's upper directory: what is in it has changed, with whiteouts and opaque marks for what is gone.
    Upper(PathBuf),
    /// A whole tree of the container's own: what differs from the base has changed.
    Tree(PathBuf),
}

/// A snapshot backend.
///
/// Backends are values without state of their own: everything is in the container's directory, so that a crash leaves
/// nothing that the removal of that directory does not take along.
pub trait Snapshotter: fmt::Debug + Send + Sync {
    /// A short name, e.g. `overlay`.
    fn name(&self) -> &'static str;

    /// Makes the writable part in `dir`, an existing directory of the container's own, and says what to mount.
    ///
    /// Idempotent: a second call finds the first one's writable part and what was written to it. After an error parts
    /// may be there; [`remove`](Snapshotter::remove) takes them away.
    ///
    /// # Errors
    /// What mkdir(2) says; for [`Copy`](struct@Copy) also what reading the base says.
    fn prepare(&self, dir: &Path, base: &Base) -> Result<Snapshot>;

    /// Where the changes are that a container over layers has made in `dir`. Nothing is read yet.
    fn changes(&self, dir: &Path) -> Changes;

    /// Takes the writable part in `dir` away. Idempotent; nothing of the base is touched.
    ///
    /// # Errors
    /// What unlink(2) says; what could be removed is gone.
    fn remove(&self, dir: &Path) -> Result<()>;
}

/// Overlay where the kernel and the root's file system can do it, else [`Copy`](struct@Copy): the backend and, for the second, why.
pub(crate) fn choose(root: &Path, host: &crate::probe::Host) -> (Box<dyn Snapshotter>, Option<String>) {
    let rootless = !host.is_root();
    match overlay::refusal(root, host) {
        None => (Box::new(Overlay { rootless }), None),
        Some(reason) => (Box::new(Copy { rootless }), Some(reason)),
    }
}

/// Makes a directory with exactly this mode, or finds it there.
fn directory_at(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let fail = |syscall| move |error| crate::Error::io("prepare the snapshot", syscall, error).path(path);
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(fail("mkdir")(error)),
    }
    // The umask of the host program is not ours to change, and not ours to obey.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(fail("chmod"))
}

/// Removes a directory of ours, by descriptor; what is not there is fine.
fn remove_at(dir: &Path, name: &str) -> Result<()> {
    use std::os::fd::AsFd;
    let parent = match std::fs::File::open(dir) {
        Ok(parent) => parent,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(crate::Error::io("remove the snapshot", "open", error).path(dir)),
    };
    match crate::sys::fs::remove_tree(parent.as_fd(), name.as_ref()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(crate::Error::io("remove the snapshot", "unlinkat", error).path(dir.join(name)))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
