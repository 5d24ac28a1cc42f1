//! The copy backend: the whole tree, written out. For hosts where overlay is refused and nothing can be shared.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use super::{Base, Changes, Mount, PREPARE, Snapshot, Snapshotter, Usage, directory, directory_at};
use super::{remove_at, usage_of};
use crate::content::Durability;
use crate::layer::{self, Contents, Ownership, View, WhiteoutFormat};
use crate::{Error, Result, sys};

/// Copies the base into a directory of the container's own. Blocks are shared all the same where the file system can do
/// that, and holes stay holes.
///
/// Rootless, what files of the base say about owners is kept as far as `ownership` can express it. With a subordinate
/// range, files that only other ids of the range may read cannot be copied, which is an error that names the first.
#[derive(Debug, Clone)]
pub struct Copy {
    ownership: Ownership,
    contents: Contents,
}

impl Copy {
    /// Copies with the ownership that the layers were unpacked with.
    pub fn new(ownership: Ownership) -> Copy {
        Copy { ownership, contents: Contents::SharedOrWritten }
    }

    /// Copies that share every block with the original, or fail.
    pub(super) fn sharing(ownership: Ownership) -> Copy {
        Copy { ownership, contents: Contents::Shared }
    }

    pub(super) fn ownership(&self) -> &Ownership {
        &self.ownership
    }
}

impl Snapshotter for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn prepare(&self, dir: &Path, base: &Base) -> Result<Snapshot> {
        // A host tree is never copied: what cannot be overlaid is shown read-only.
        if let Base::Directory(path) = base {
            return directory::read_only(path);
        }
        let rootfs = dir.join("rootfs");
        if !rootfs.exists() {
            // Left to the kernel's write-back: nothing that was promised is in it.
            copy_to(&base.view()?, dir, "rootfs", &self.ownership, self.contents, Durability::Relaxed)?;
        }
        Ok(Snapshot::of(Mount::Bind { source: rootfs, read_only: false, recursive: false }))
    }

    fn changes(&self, dir: &Path) -> Changes {
        Changes::Tree(dir.join("rootfs"))
    }

    fn usage(&self, dir: &Path) -> Result<Usage> {
        usage_of([dir.join("rootfs")], &self.ownership)
    }

    fn freeze(&self, dir: &Path, into: &Path) -> Result<()> {
        let view = View::new([dir.join("rootfs")], WhiteoutFormat::Apply)?;
        // Always durable: what is half there after a power cut would be the base of all later containers.
        copy_to(&view, into, "tree", &self.ownership, self.contents, Durability::Full)
    }

    fn remove(&self, dir: &Path) -> Result<()> {
        remove_at(dir, &["rootfs", "rootfs.new"], &self.ownership)
    }
}

/// Copies what `view` shows to `name` in `dir`, where it appears when it is whole, and on the disk if that is asked for.
fn copy_to(
    view: &View,
    dir: &Path,
    name: &str,
    ownership: &Ownership,
    contents: Contents,
    durability: Durability,
) -> Result<()> {
    let half = format!("{name}.new");
    remove_at(dir, &[&half], ownership)?;
    let new = dir.join(&half);
    directory_at(&new, 0o755)?;
    let copied = layer::copy(view, &new, ownership, contents).and_then(|()| {
        if durability == Durability::Full {
            let tree = File::open(&new).map_err(|error| Error::io(PREPARE, "open", error).path(&new))?;
            sys::fs::syncfs(tree.as_fd()).map_err(|error| Error::io(PREPARE, "syncfs", error).path(&new))?;
        }
        let to = dir.join(OsStr::new(name));
        std::fs::rename(&new, &to).map_err(|error| Error::io(PREPARE, "rename", error).path(to))
    });
    if copied.is_err() {
        // The first failure is the one to be told.
        let _ = remove_at(dir, &[&half], ownership);
    }
    copied
}
