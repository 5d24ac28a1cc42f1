//! Snapshots: trees that a container can be started on.
//!
//! A backend *returns* mounts and mounts nothing itself: [`isolation`](crate::isolation) performs them inside the
//! container's own mount namespace, so the host's mount table never changes.
//!
//! | word | meaning |
//! |---|---|
//! | base | what lies below and is never written: the layers of an image, what was frozen on top of them, or a directory of the host |
//! | writable part | what takes the container's writes: an upper directory, or a whole tree of its own |
//! | snapshot | base + writable part, as mounts to perform |
//! | frozen | of a writable part: set aside and never written again, so that it can be the base of others |
//!
//! Three answers:
//!
//! | backend | needs | prepare costs | the writable part |
//! |---|---|---|---|
//! | [`Overlay`] | overlayfs, in a user namespace from Linux 5.11 on | two directories | `upper/` |
//! | [`Reflink`] | btrfs, or a file system with FICLONE such as xfs | one subvolume on btrfs, else one clone per file | `rootfs/`, which shares its blocks with the base |
//! | [`Copy`](struct@Copy) | nothing | a copy of all files | `rootfs/` |
//!
//! An engine takes the first that works on its root; [`Engine::snapshotter`](crate::Engine::snapshotter) says which, and
//! [`EngineOptions`](crate::EngineOptions) can say otherwise, up to a backend of the caller's own. Whoever writes one
//! runs [`contract::snapshotter`](crate::contract::snapshotter) on it.
//!
//! The life of a snapshot: [`prepare`](Snapshotter::prepare) makes the writable part and says what to mount, as often as
//! the container starts; [`freeze`](Snapshotter::freeze) sets aside what a stopped container has written;
//! [`remove`](Snapshotter::remove) takes the writable part away. On disk:
//!
//! ```text
//! <root>/containers/<id>/upper/      the container's writes (overlay); upper.new while it is made
//!                        work/       overlay's own
//!                        inner/<n>/  upper and work of the n-th mount inside a host tree
//!                        rootfs/     the whole tree (reflink, copy); rootfs.new while it is made
//! <root>/snapshots/<id>/upper/       frozen: what lies on top of the snapshots and layers below
//!                       tree/        frozen: a whole tree, with nothing below
//! <root>/bases/<name>/tree/          a stack of layers as one btrfs subvolume, see [`Reflink`]
//! ```

mod bases;
mod copy;
mod directory;
mod overlay;
mod reflink;

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use bases::stale_locks as stale_base_locks;
pub(crate) use bases::{Buried as BuriedBase, bury as bury_base, needless as needless_bases};
pub use copy::Copy;
pub use overlay::Overlay;
pub(crate) use overlay::RootDirectory;
pub use reflink::Reflink;

use crate::content::Measured;
pub use crate::content::Usage;
use crate::layer::{Layer, Ownership, View, WhiteoutFormat};
use crate::{Error, Result, sys};

/// What a snapshot is based on.
#[derive(Debug, Clone)]
pub enum Base {
    /// The layers of an image, lowest first.
    Layers(Vec<Layer>),
    /// Layers, lowest first, and on top of them directories that [`Snapshotter::freeze`] has filled, lowest first.
    Frozen(Vec<Layer>, Vec<PathBuf>),
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
    /// Paths inside the root, relative to it, that the host's null device covers where they exist: sockets and named
    /// pipes, which a read-only mount does not keep anybody from connecting or from writing to.
    pub masked: Vec<PathBuf>,
    /// What could not be given fully, in words; empty where nothing was lost.
    pub notes: Vec<String>,
    /// What of the host can be reached through the tree although nothing of it can be written, in words: sockets that
    /// something listens on, and named pipes.
    pub sockets: Vec<String>,
}

impl Snapshot {
    /// A snapshot of one mount, with nothing lost.
    pub fn of(root: Mount) -> Snapshot {
        Snapshot { root, inner: vec![], masked: vec![], notes: vec![], sockets: vec![] }
    }
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

impl Changes {
    /// The directory itself.
    pub fn path(&self) -> &Path {
        match self {
            Changes::Upper(path) | Changes::Tree(path) => path,
        }
    }
}

/// What is in a directory that [`Snapshotter::freeze`] has filled; `None` where that was not brought to its end.
pub fn frozen(dir: &Path) -> Option<Changes> {
    let (upper, tree) = (dir.join("upper"), dir.join("tree"));
    if upper.is_dir() {
        return Some(Changes::Upper(upper));
    }
    tree.is_dir().then_some(Changes::Tree(tree))
}

/// Whether [`freeze`](Snapshotter::freeze) may have filled the directory; false only where that is certain. For those who
/// would remove it.
pub(crate) fn may_be_frozen(dir: &Path) -> bool {
    let absent = |name| {
        let found = std::fs::symlink_metadata(dir.join(name));
        found.is_err_and(|error| matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)))
    };
    !(absent("upper") && absent("tree"))
}

/// A snapshot backend.
///
/// Backends are values without state of their own: everything is in directories of the caller's, so that a crash leaves
/// nothing that the removal of those does not take along. All methods may be called from any thread; for one directory
/// the caller makes one call at a time.
///
/// "The container" below is the one that `dir` belongs to. It does not run during [`freeze`](Snapshotter::freeze) and
/// [`remove`](Snapshotter::remove).
pub trait Snapshotter: fmt::Debug + Send + Sync {
    /// A short name, e.g. `overlay`.
    fn name(&self) -> &'static str;

    /// Makes the writable part in `dir`, an existing directory of the container's own, and says what to mount.
    ///
    /// The root directory has the mode and, where that can be expressed, the owner that the base gives it. The base is
    /// never written, neither here nor through the mounts.
    ///
    /// Idempotent: a second call finds the first one's writable part and what was written to it, and says the same. After
    /// an error, or a crash, parts may be there; [`remove`](Snapshotter::remove) takes them away.
    ///
    /// # Errors
    /// What mkdir(2) says; for backends that copy also what reading the base says.
    fn prepare(&self, dir: &Path, base: &Base) -> Result<Snapshot>;

    /// Where the changes are that a container over layers has made in `dir`. Nothing is read yet.
    fn changes(&self, dir: &Path) -> Changes;

    /// What the directory of [`changes`](Snapshotter::changes) takes, as du(1) counts it: allocated blocks, hard links
    /// once. Blocks that are shared with the base count in full. Nothing where nothing was prepared.
    ///
    /// # Errors
    /// `EACCES` for a directory that this user may not list, and that nobody can be asked to.
    fn usage(&self, dir: &Path) -> Result<Usage>;

    /// Sets the writable part in `dir` aside in `into`, an existing and empty directory on the same file system, from
    /// where it is never written again: as `upper/`, on top of what the container's base was, or as `tree/`, a whole tree
    /// with nothing below. Either appears there by one rename, so that [`frozen`] tells a frozen part from half of one.
    ///
    /// Where [`changes`](Snapshotter::changes) are [`Upper`](Changes::Upper), they *move*: the container has none left and
    /// from now on stands on its base with `into` on top, which is what the next [`prepare`](Snapshotter::prepare) is
    /// told. Where they are a [`Tree`](Changes::Tree), the container keeps its own and its base.
    ///
    /// # Errors
    /// Those of the file system; then, and after a crash, the container is as it was, and what is in `into` is garbage.
    fn freeze(&self, dir: &Path, into: &Path) -> Result<()>;

    /// Takes the writable part in `dir` away, whole or half-made. Idempotent; nothing of the base is touched.
    ///
    /// # Errors
    /// What unlink(2) says; what could be removed is gone.
    fn remove(&self, dir: &Path) -> Result<()>;
}

/// [`Overlay`] where the kernel and the root's file system can do it, else [`Reflink`] where blocks can be shared, else
/// [`Copy`](struct@Copy): the backend and, unless it is the first, why.
pub(crate) fn choose(
    root: &Path,
    host: &crate::probe::Host,
    ownership: Ownership,
) -> (Arc<dyn Snapshotter>, Option<String>) {
    let Some(reason) = overlay::refusal(root, host) else { return (Arc::new(Overlay::new(ownership)), None) };
    match Reflink::new(root, ownership.clone()) {
        Ok(reflink) => (Arc::new(reflink), Some(reason)),
        Err(_) => (Arc::new(Copy::new(ownership)), Some(reason)),
    }
}

/// The first of those that mount nothing: [`Reflink`] where blocks can be shared, else [`Copy`](struct@Copy).
pub(crate) fn choose_directory(root: &Path, ownership: Ownership) -> (Arc<dyn Snapshotter>, Option<String>) {
    let reason = Some("containers are isolated without mounts, and an overlay would be one".to_owned());
    match Reflink::new(root, ownership.clone()) {
        Ok(reflink) => (Arc::new(reflink), reason),
        Err(_) => (Arc::new(Copy::new(ownership)), reason),
    }
}

impl Base {
    /// The trees that make it up, the uppermost first.
    pub(crate) fn trees(&self) -> Result<Vec<PathBuf>> {
        match self {
            Base::Layers(layers) => trees(layers, &[]),
            Base::Frozen(layers, parts) => trees(layers, parts),
            Base::Directory(path) => Ok(vec![path.clone()]),
        }
    }

    /// How these trees say what they hide. A directory of the host hides nothing of itself.
    pub(crate) fn whiteouts(&self) -> WhiteoutFormat {
        match self {
            Base::Layers(layers) | Base::Frozen(layers, _) => crate::layer::whiteouts(layers),
            Base::Directory(_) => WhiteoutFormat::Apply,
        }
    }

    /// The trees, looked at as one.
    pub(crate) fn view(&self) -> Result<View> {
        View::new(self.trees()?, self.whiteouts()).map_err(|error| match self {
            Base::Directory(_) => error.in_step("look into the layers", || "look into the root directory".to_owned()),
            _ => error,
        })
    }
}

/// The trees that make up a base over layers, the uppermost first; each once.
fn trees(layers: &[Layer], parts: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut trees = vec![];
    for part in parts.iter().rev() {
        match frozen(part) {
            Some(Changes::Upper(upper)) => trees.push(upper),
            Some(Changes::Tree(tree)) => {
                trees.push(tree);
                return Ok(trees);
            }
            None => {
                return Err(Error::new(crate::ErrorKind::NotFound, PREPARE)
                    .path(part)
                    .because("the saved snapshot that it stands on is gone"));
            }
        }
    }
    trees.extend(crate::layer::trees(layers).into_iter().map(Path::to_owned));
    Ok(trees)
}

const PREPARE: &str = "prepare the snapshot";

/// Makes a directory with exactly this mode and without an access control list, or finds it there.
fn directory_at(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let fail = |syscall| move |error| Error::io(PREPARE, syscall, error).path(path);
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(fail("mkdir")(error)),
    }
    let dir = File::open(path).map_err(fail("open"))?;
    // What is made in it would have the list, too, and a container would see it.
    sys::xattr::remove_acls(dir.as_fd()).map_err(fail("fremovexattr"))?;
    // The umask of the host program is not ours to change, and not ours to obey.
    dir.set_permissions(std::fs::Permissions::from_mode(mode)).map_err(fail("fchmod"))
}

/// Removes directories of ours, by descriptor and with the help of whoever may where we may not; what is not there is
/// fine. Goes on after a failure and tells the first.
fn remove_at(dir: &Path, names: &[&str], ownership: &Ownership) -> Result<()> {
    let step = "remove the snapshot";
    let parent = match File::open(dir) {
        Ok(parent) => parent,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(step, "open", error).path(dir)),
    };
    let mut result = Ok(());
    for name in names {
        let removed = match (sys::fs::remove_tree(parent.as_fd(), name.as_ref()), ownership) {
            (Err(_), Ownership::Mapped(reown)) => reown.remove(parent.as_fd(), name.as_ref()),
            (removed, _) => removed.map_err(|error| Error::io(step, "unlinkat", error).path(dir.join(name))),
        };
        result = result.and(removed);
    }
    result
}

/// Removes the directory `name` of `dir`, in which something is frozen or half-frozen.
pub(crate) fn discard(dir: &Path, name: &Path, ownership: &Ownership) -> Result<()> {
    // A subvolume goes by itself where only ids of a range may remove its files: nothing can be moved out of it.
    remove_at(&dir.join(name), &["upper", "tree", "tree.new"], ownership)?;
    remove_at(dir, &[&name.to_string_lossy()], ownership)
}

/// What directories of ours take together; one that is not there takes nothing.
fn usage_of(paths: impl IntoIterator<Item = PathBuf>, ownership: &Ownership) -> Result<Usage> {
    let mut all = Measured::default();
    for path in paths {
        match crate::layer::measure(&path, ownership) {
            Err(error) if error.kind() == crate::ErrorKind::NotFound => {}
            other => drop(all.absorb(other?)),
        }
    }
    Ok(all.usage())
}

#[cfg(test)]
mod tests;
