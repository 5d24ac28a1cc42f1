//! The reflink backend: a tree of the container's own that shares its blocks with the base.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::{Base, Changes, Copy, PREPARE, Snapshot, Snapshotter, Usage, bases};
use crate::content::tmp::TmpFile;
use crate::layer::Ownership;
use crate::sys::{self, reflink};
use crate::{Error, ErrorKind, Result};

/// Trees that share blocks, see ioctl_ficlone(2) and btrfs-subvolume(8).
///
/// On btrfs the layers of an image are merged once into a subvolume below `<root>/bases/`, and each container gets a
/// snapshot of that: in constant time, whatever the image's size. Removing one takes constant time as root and with the
/// mount option `user_subvol_rm_allowed`; otherwise its files are removed one by one.
///
/// Elsewhere (xfs) each file of the layers is cloned: time and inodes follow the number of files, space does not. A
/// merged tree between the two would save no clone, so there is none.
///
/// What [`Copy`](struct@super::Copy) says about ownership holds here too.
#[derive(Debug, Clone)]
pub struct Reflink {
    /// For the trees that are no subvolumes.
    files: Copy,
    root: PathBuf,
    subvolumes: bool,
}

impl Reflink {
    /// For the engine root `root`, with the ownership that the layers were unpacked with.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) where the root's file system cannot share blocks; it is tried.
    pub fn new(root: &Path, ownership: Ownership) -> Result<Reflink> {
        let step = "use the reflink snapshotter";
        let tmp = root.join("tmp");
        let fail = |syscall| {
            let tmp = tmp.clone();
            move |error| Error::io(step, syscall, error).path(tmp)
        };
        let (mut from, mut to) = (TmpFile::create(&tmp)?, TmpFile::create(&tmp)?);
        // Longer than what btrfs and xfs would keep in the inode itself.
        sys::fs::write_all(from.file().as_fd(), &[1; 8192]).map_err(fail("write"))?;
        match reflink::clone_file(from.file().as_fd(), to.file().as_fd()) {
            Err(error) if reflink::cannot_clone(&error) => {
                return Err(Error::new(ErrorKind::Unsupported, step)
                    .path(root)
                    .because("its file system cannot share blocks between files")
                    .remedy("use a root on btrfs, or on xfs made with reflink=1")
                    .source_is(error));
            }
            other => other.map_err(fail("ioctl_ficlone"))?,
        }
        let subvolumes = reflink::is_btrfs(to.file().as_fd());
        Ok(Reflink { files: Copy::sharing(ownership), root: root.to_owned(), subvolumes })
    }

    /// Makes `name` in `dir` a snapshot of the subvolume `source`; false where that is none, or where only the owner of
    /// it may do that, or where others lie inside.
    fn take(&self, source: &Path, dir: &Path, name: &str) -> Result<bool> {
        if !self.subvolumes {
            return Ok(false);
        }
        let fail = |syscall| move |error: io::Error| Error::io(PREPARE, syscall, error).path(source);
        let (from, to) = (File::open(source).map_err(fail("open"))?, File::open(dir).map_err(fail("open"))?);
        let name = sys::fs::c_string(name.as_bytes()).map_err(fail("ioctl_btrfs_snap_create"))?;
        // A snapshot would show those that a container has made inside as empty directories. Where nobody can tell, the
        // files are cloned, too.
        if reflink::has_nested_subvolumes(from.as_fd()).unwrap_or(true) {
            return Ok(false);
        }
        match reflink::snapshot_subvolume(from.as_fd(), to.as_fd(), &name) {
            Err(error) if reflink::cannot_clone(&error) => Ok(false),
            other => other.map(|()| true).map_err(fail("ioctl_btrfs_snap_create")),
        }
    }

    /// What a subvolume for a container can be a snapshot of.
    fn whole(&self, base: &Base) -> Result<Option<PathBuf>> {
        Ok(match (base, base.trees()?.as_slice()) {
            (Base::Layers(layers), _) => Some(bases::ensure(&self.root, layers, self.files.ownership())?),
            (Base::Frozen(..), [tree]) => Some(tree.clone()),
            _ => None,
        })
    }
}

impl Snapshotter for Reflink {
    fn name(&self) -> &'static str {
        "reflink"
    }

    fn prepare(&self, dir: &Path, base: &Base) -> Result<Snapshot> {
        if self.subvolumes
            && !dir.join("rootfs").exists()
            && let Some(whole) = self.whole(base)?
        {
            self.take(&whole, dir, "rootfs")?;
        }
        // Whatever is not there by now is cloned file by file.
        self.files.prepare(dir, base)
    }

    fn changes(&self, dir: &Path) -> Changes {
        self.files.changes(dir)
    }

    fn usage(&self, dir: &Path) -> Result<Usage> {
        self.files.usage(dir)
    }

    fn freeze(&self, dir: &Path, into: &Path) -> Result<()> {
        match self.take(self.changes(dir).path(), into, "tree")? {
            true => Ok(()),
            false => self.files.freeze(dir, into),
        }
    }

    fn remove(&self, dir: &Path) -> Result<()> {
        self.files.remove(dir)
    }
}
