//! The overlay backend: two directories per container, whatever the image's size.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Base, Mount, Snapshot, Snapshotter, directory, directory_at, remove_at};
use crate::probe::Host;
use crate::{Error, Result};

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
                // The root of the merged tree shows the upper directory's mode and owner: those that the image gave it.
                let mode = layers.iter().rev().find(|layer| layer.sets_root()).map(|layer| mode_of(layer.tree()));
                directory_at(&upper, mode.unwrap_or(Ok(0o755))?)?;
                directory_at(&work, 0o700)?;
                // Each once: overlayfs refuses a layer that an image has twice.
                let lower = crate::layer::trees(layers).into_iter().map(Path::to_owned).collect();
                Ok(Snapshot { root: Mount::Overlay { lower, upper, work }, inner: vec![], notes: vec![] })
            }
            Base::Directory(path) => directory::snapshot(dir, path, self.rootless),
        }
    }

    fn remove(&self, dir: &Path) -> Result<()> {
        for name in ["upper", "work", "inner"] {
            remove_at(dir, name)?;
        }
        Ok(())
    }
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
