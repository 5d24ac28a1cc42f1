//! Stacks of layers merged into one btrfs subvolume each, which containers get snapshots of.
//!
//! ```text
//! <root>/bases/<name>/tree/   the merged tree, a subvolume; never changed after the rename that publishes <name>
//! <root>/bases/<name>.lock    held by whoever makes it; gone when nobody does
//! <root>/tmp/<random>/tree/   being made or removed
//! ```
//!
//! `<name>` is the hex ChainID of the stack, and `-single` or `-mapped` where ownership is written in another way than
//! root's. A base is a cache: containers do not need it once they are prepared, and one that is missing is made again.
//! Preparing and collecting exclude each other by `images.lock`, which the callers hold.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::content::Durability;
use crate::content::lock::Held;
use crate::content::tmp::TmpDir;
use crate::layer::{self, Contents, Layer, LockFile, Ownership, View};
use crate::name::{ChainId, DiffId};
use crate::sys::reflink;
use crate::{Error, ErrorKind, Result, sys};

use super::{directory_at, remove_at};

const STEP: &str = "merge the layers into one tree";

fn suffix(ownership: &Ownership) -> &'static str {
    match ownership {
        Ownership::Full => "",
        Ownership::Single => "-single",
        Ownership::Mapped(_) => "-mapped",
    }
}

/// The merged tree of `layers`, lowest first, made first where it is not there.
pub(super) fn ensure(root: &Path, layers: &[Layer], ownership: &Ownership) -> Result<PathBuf> {
    let diff_ids: Vec<DiffId> = layers.iter().map(|layer| layer.diff_id().clone()).collect();
    let Some(chain_id) = ChainId::of(&diff_ids) else {
        return Err(Error::new(ErrorKind::Invalid, STEP).because("there are none"));
    };
    let bases = root.join("bases");
    let dir = bases.join(format!("{}{}", chain_id.hex(), suffix(ownership)));
    let tree = dir.join("tree");
    if tree.exists() {
        return Ok(tree);
    }
    directory_at(&bases, 0o700)?;
    let lock = LockFile::acquire(dir.with_extension("lock"))?;
    // Somebody else may have been faster.
    if tree.exists() {
        return Ok(tree);
    }
    let staging = TmpDir::create(&root.join("tmp"))?;
    if let Err(error) = make(&staging, layers, ownership) {
        // Where that fails, a later open sweeps.
        let _ = remove_at(staging.path(), &["tree"], ownership);
        return Err(error);
    }
    // Always durable: what is half there after a power cut would be the base of all later containers.
    staging.publish(&dir, Durability::Full)?;
    drop(lock);
    Ok(tree)
}

fn make(staging: &TmpDir, layers: &[Layer], ownership: &Ownership) -> Result<()> {
    let path = staging.path().join("tree");
    reflink::make_subvolume(staging.dir().as_fd(), c"tree")
        .map_err(|error| Error::io(STEP, "ioctl_btrfs_subvol_create", error).path(&path))?;
    layer::copy(&View::of_layers(layers)?, &path, ownership, Contents::Shared)?;
    sys::fs::syncfs(staging.dir().as_fd()).map_err(|error| Error::io(STEP, "syncfs", error).path(path))
}

/// The bases whose stack is not `needed`.
///
/// # Errors
/// Where the directory cannot be read.
pub(crate) fn needless(root: &Path, needed: impl Fn(&ChainId) -> bool) -> Result<Vec<PathBuf>> {
    let mut needless = paths(root)?;
    needless.retain(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        let chain_id = name.and_then(|name| name.get(..64)).and_then(|hex| format!("sha256:{hex}").parse().ok());
        path.extension().is_none() && !chain_id.is_some_and(|chain_id| needed(&chain_id))
    });
    Ok(needless)
}

/// Everything in the directory of merged trees.
fn paths(root: &Path) -> Result<Vec<PathBuf>> {
    let bases = root.join("bases");
    let failed = |error| Error::io("list merged trees", "readdir", error).path(&bases);
    match fs::read_dir(&bases) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
        entries => entries.map_err(failed)?.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect(),
    }
}

/// Lock files of makers that are dead, locked by us.
///
/// # Errors
/// Where the directory cannot be read.
pub(crate) fn stale_locks(root: &Path) -> Result<Vec<(PathBuf, Held)>> {
    let mut stale = vec![];
    for path in paths(root)? {
        if path.extension().is_some_and(|extension| extension == "lock")
            && let Ok(file) = fs::File::open(&path)
            && let Ok(Some(lock)) = Held::try_take(file)
        {
            stale.push((path, lock));
        }
    }
    Ok(stale)
}

/// A base that is out of sight, and still takes space.
#[derive(Debug)]
pub(crate) struct Buried {
    grave: TmpDir,
}

/// Takes a base out of sight, so that what is visible is whole. The caller sees to it that nobody prepares a snapshot
/// meanwhile. Removing it is the slow part, and needs no lock any more.
///
/// # Errors
/// Those of the file system.
pub(crate) fn bury(root: &Path, dir: &Path) -> Result<Buried> {
    let grave = TmpDir::create(&root.join("tmp"))?;
    fs::rename(dir, grave.path().join("base"))
        .map_err(|error| Error::io("remove merged trees", "rename", error).path(dir))?;
    Ok(Buried { grave })
}

impl Buried {
    /// Where it is.
    pub(crate) fn path(&self) -> PathBuf {
        self.grave.path().to_owned()
    }

    /// Removes it.
    ///
    /// # Errors
    /// Those of the file system, the first one; what stays is swept by a later open.
    pub(crate) fn remove(self, ownership: &Ownership) -> Result<()> {
        remove_at(&self.grave.path().join("base"), &["tree"], ownership)
    }
}
