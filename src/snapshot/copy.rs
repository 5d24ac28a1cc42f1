//! The copy backend: the whole tree, written out. For hosts where overlay is refused.

use std::path::Path;

use super::{Base, Changes, Mount, Snapshot, Snapshotter, directory, directory_at, remove_at};
use crate::Result;
use crate::layer;

/// Copies the base into a directory of the container's own.
#[derive(Debug, Clone, Copy)]
pub struct Copy {
    /// Owners cannot be changed; what files of the base say about them is not carried over.
    pub rootless: bool,
}

/// Written when the copy is complete: a half-made one is made again.
const COMPLETE: &str = "rootfs.complete";

impl Snapshotter for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn prepare(&self, dir: &Path, base: &Base) -> Result<Snapshot> {
        let layers = match base {
            Base::Layers(layers) => layers,
            // A host tree is never copied: what cannot be overlaid is shown read-only.
            Base::Directory(path) => return directory::read_only(path),
        };
        let rootfs = dir.join("rootfs");
        let complete = dir.join(COMPLETE);
        if !complete.exists() {
            remove_at(dir, "rootfs")?;
            directory_at(&rootfs, 0o755)?;
            layer::copy(&layer::View::of_layers(layers)?, &rootfs, !self.rootless)?;
            std::fs::write(&complete, b"")
                .map_err(|error| crate::Error::io("prepare the snapshot", "write", error).path(&complete))?;
        }
        let root = Mount::Bind { source: rootfs, read_only: false, recursive: false };
        Ok(Snapshot { root, inner: vec![], masked: vec![], notes: vec![] })
    }

    fn changes(&self, dir: &Path) -> Changes {
        Changes::Tree(dir.join("rootfs"))
    }

    fn remove(&self, dir: &Path) -> Result<()> {
        remove_at(dir, COMPLETE)?;
        remove_at(dir, "rootfs")
    }
}
