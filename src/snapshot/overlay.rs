//! The overlay backend: two directories per container, whatever the image's size.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Base, Changes, Mount, Snapshot, Snapshotter, directory, directory_at, remove_at};
use crate::probe::Host;
use crate::{Error, Result, sys};

/// Overlayfs, see Documentation/filesystems/overlayfs.rst; rootless with `userxattr` (Linux 5.11).
#[derive(Debug, Clone, Copy)]
pub struct Overlay {
    /// The mounts will be performed in a user namespace.
    pub rootless: bool,
}

impl Snapshotter for Overlay {
    fn name(&self) -> &'static str {
        "overlay"
    }

    fn prepare(&self, dir: &Path, base: &Base) -> Result<Snapshot> {
        match base {
            Base::Layers(layers) => {
                let (upper, work) = (dir.join("upper"), dir.join("work"));
                // The root of the merged tree shows the upper directory: mode, owner and attributes that the image gave.
                let mut notes = vec![];
                match layers.iter().rev().find(|layer| layer.sets_root()).map(|layer| layer.tree()) {
                    Some(tree) => {
                        directory_like(&upper, tree, mode_of(tree)?, !self.rootless)?;
                        notes.extend(if self.rootless { foreign_root(tree)? } else { None });
                    }
                    None => directory_at(&upper, 0o755)?,
                }
                directory_at(&work, 0o700)?;
                // Each once: overlayfs refuses a layer that an image has twice.
                let lower = crate::layer::trees(layers).into_iter().map(Path::to_owned).collect();
                Ok(Snapshot { root: Mount::Overlay { lower, upper, work }, inner: vec![], masked: vec![], notes })
            }
            Base::Directory(path) => directory::snapshot(dir, path, self.rootless),
        }
    }

    fn changes(&self, dir: &Path) -> Changes {
        Changes::Upper(dir.join("upper"))
    }

    fn remove(&self, dir: &Path) -> Result<()> {
        for name in ["upper", "work", "inner"] {
            remove_at(dir, name)?;
        }
        Ok(())
    }
}

/// Makes an upper directory that stands for `model`: its mode and attributes, with `owner` also its owner. One that is
/// there already is the container's.
pub(super) fn directory_like(path: &Path, model: &Path, mode: u32, owner: bool) -> Result<()> {
    let fail = |syscall| move |error| Error::io("prepare the snapshot", syscall, error).path(path);
    if path.exists() {
        return Ok(());
    }
    directory_at(path, mode)?;
    // A directory that may not be listed has attributes that may not be read.
    let Ok(from) = File::open(model) else { return Ok(()) };
    let made = match File::open(path) {
        Err(_) if !owner => return Ok(()),
        other => other.map_err(fail("open"))?,
    };
    if owner {
        let status = from.metadata().map_err(fail("fstat"))?;
        sys::fs::fchown(made.as_fd(), status.uid(), status.gid()).map_err(fail("fchown"))?;
    }
    for name in sys::xattr::list(from.as_fd()).map_err(fail("flistxattr"))? {
        // Those of overlay say something about the model's place in its own stack.
        let overlay = [&b"trusted.overlay."[..], b"user.overlay."];
        if overlay.iter().any(|prefix| name.to_bytes().starts_with(prefix)) {
            continue;
        }
        let Some(value) = sys::xattr::get(from.as_fd(), &name).map_err(fail("fgetxattr"))? else { continue };
        match sys::xattr::set(made.as_fd(), &name, &value) {
            // The file systems need not be the same, nor the rights on them.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EOPNOTSUPP)) => {}
            other => other.map_err(fail("fsetxattr"))?,
        }
    }
    // An ACL changes it, and so does a new owner.
    sys::fs::fchmod(made.as_fd(), mode).map_err(fail("fchmod"))
}

/// Says so where an image gives its root directory to a user whom only a user namespace could give files to.
fn foreign_root(tree: &Path) -> Result<Option<String>> {
    let status =
        std::fs::metadata(tree).map_err(|error| Error::io("prepare the snapshot", "stat", error).path(tree))?;
    let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let foreign = (status.uid(), status.gid()) != own;
    Ok(foreign.then(|| "the root directory belongs to root and not to the user that the image gives it to".into()))
}

/// Permission bits of a directory.
pub(super) fn mode_of(path: &Path) -> Result<u32> {
    let status =
        std::fs::metadata(path).map_err(|error| Error::io("prepare the snapshot", "stat", error).path(path))?;
    Ok(status.mode() & 0o7777)
}

/// Why overlay cannot be used with writable directories under `root`; `None` when it can.
pub(super) fn refusal(root: &Path, host: &Host) -> Option<String> {
    if host.is_root() && !host.has_overlay() {
        return Some("this kernel has no overlay file system".into());
    }
    if !host.is_root() && !host.has_overlay_userxattr() {
        return Some("this kernel has no overlay file system for user namespaces (Linux 5.11)".into());
    }
    // File systems that overlayfs refuses as upper; every other answers for itself when it is mounted.
    let kind = nix::sys::statfs::statfs(root).ok()?.filesystem_type().0 as u64;
    match kind {
        0x794c_7630 => Some("the root lies on an overlay itself, which takes no second one's writes".into()),
        0x6969 => Some("the root lies on NFS".into()),
        0x6573_5546 => Some("the root lies on a FUSE file system".into()),
        _ => None,
    }
}
