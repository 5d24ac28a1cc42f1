//! The root as a whole: is it in order, what does it take, and what of it can go.
//!
//! | question | answer |
//! |---|---|
//! | is everything whole? | [`Engine::check`](crate::Engine::check), a [`Report`] |
//! | what takes the space? | [`Engine::disk_usage`](crate::Engine::disk_usage), a [`DiskUsage`] |
//! | what can go? | [`Engine::prune`](crate::Engine::prune), [`Pruned`]; a dry run of it tells and removes nothing |
//!
//! Three things are told apart:
//!
//! * **damage** is something that is visible and not whole: a blob without its bytes, an image without its manifest, a
//!   container without its layers. No crash of a program leaves any; disks and other programs do.
//! * **garbage** is what a crash leaves: whole or not, nothing leads to it. It takes space and nothing else.
//! * what is **under way** belongs to a program that lives, which holds a lock on it.
//!
//! All three questions may be asked while others work in the root.

mod check;
mod prune;
mod usage;

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use check::{Depth, Finding, Report};
pub use prune::{PruneOptions, Pruned};
pub use usage::{DiskUsage, Item, Share};

use crate::container::record::{self, Info};
use crate::container::runtime::Runtime;
use crate::container::{self, owner, snapshot};
use crate::content::lock::Held;
use crate::content::{Leases, Measured, tmp};
use crate::image::{ImageId, Images};
use crate::{Error, Result, sys};

/// What the questions are about.
pub(crate) struct Root<'a> {
    pub(crate) images: &'a Images,
    pub(crate) runtime: &'a Arc<Runtime>,
}

/// What kind of thing a piece of garbage was to become, or had been.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum GarbageKind {
    /// A blob that no image needs.
    Blob,
    /// An unpacked layer that no image needs.
    Layer,
    /// What is left of a container whose program was killed.
    Container,
    /// A container's name without the container.
    Name,
    /// Something half made or half removed.
    Temporary,
    /// A lock or mark of a program that is gone.
    Mark,
}

impl GarbageKind {
    /// Its name in lists, such as `layer`.
    pub fn name(self) -> &'static str {
        match self {
            GarbageKind::Blob => "blob",
            GarbageKind::Layer => "layer",
            GarbageKind::Container => "container",
            GarbageKind::Name => "name",
            GarbageKind::Temporary => "temporary",
            GarbageKind::Mark => "mark",
        }
    }
}

/// One piece of garbage.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Garbage {
    /// What it was.
    pub kind: GarbageKind,
    /// Where it is.
    pub path: PathBuf,
}

/// Garbage in the small things, which need no look at the images.
#[derive(Default)]
struct Leftovers {
    /// Containers that nobody will come back to: not to be kept, and their program is gone.
    containers: Vec<Info>,
    /// Directories without a record.
    nameless: Vec<String>,
    names: Vec<PathBuf>,
    temporary: Vec<tmp::Stale>,
    /// Locks of layers and merged trees, and marks of owners, each held by us.
    marks: Vec<(PathBuf, Held)>,
}

impl Root<'_> {
    fn path(&self) -> &Path {
        self.runtime.root()
    }

    /// All containers as they are now.
    pub(crate) fn containers(&self) -> Result<Vec<Info>> {
        Ok(self.as_they_are(record::all(self.path())?))
    }

    /// [`containers`](Root::containers) for those who remove what none of them needs.
    ///
    /// # Errors
    /// Where a record cannot be read: what that container needs is not known.
    pub(crate) fn containers_for_certain(&self) -> Result<Vec<Info>> {
        Ok(self.as_they_are(record::all_for_certain(self.path())?))
    }

    fn as_they_are(&self, containers: Vec<Info>) -> Vec<Info> {
        containers.into_iter().map(|info| container::as_it_is(self.path(), info)).collect()
    }

    /// The images that these containers use, and those that saved snapshots use.
    ///
    /// # Errors
    /// Where a saved snapshot's record cannot be read: its image must stay, and nobody knows which that is.
    pub(crate) fn used_images(&self, containers: &[Info]) -> Result<HashSet<ImageId>> {
        let snapshots = snapshot::all_for_certain(self.path())?;
        let of_containers = containers.iter().filter_map(|info| info.image.as_deref());
        of_containers.chain(snapshots.iter().map(|info| info.image.as_str())).map(str::parse).collect()
    }

    /// Finds garbage. A directory without a record is some only for who has the images' lock alone: otherwise somebody
    /// may be about to write the record.
    fn leftovers(&self, alone: Option<&Held>) -> Result<Leftovers> {
        let root = self.path();
        let mut found = Leftovers::default();
        let mut named = vec![];
        for id in record::ids(root)? {
            match record::look(root, &id) {
                Ok(info) if !info.keep && !owner::lives(root, &info.owner) => found.containers.push(info),
                Ok(info) => named.push(info.owner),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) && alone.is_some() => found.nameless.push(id),
                Err(_) => {}
            }
        }
        found.names = record::dangling_names(root);
        found.marks = owner::stale(root, &named);
        found.marks.extend(self.images.layers().stale_locks()?);
        found.marks.extend(crate::snapshot::stale_base_locks(root)?);
        let tmp = self.images.content().path("tmp");
        found.temporary =
            tmp::stale(&tmp).map_err(|error| Error::io("look for garbage", "readdir", error).path(&tmp))?;
        Ok(found)
    }

    /// Where the things of `leftovers` and the dead leases are, with their kinds.
    fn garbage_of(&self, leftovers: &Leftovers, leases: &Leases) -> Vec<Garbage> {
        let at = |kind| move |path| Garbage { kind, path };
        let containers = leftovers.containers.iter().map(|info| info.id.to_string());
        let containers = containers.chain(leftovers.nameless.iter().cloned());
        let mut garbage: Vec<Garbage> =
            containers.map(|id| self.path().join("containers").join(id)).map(at(GarbageKind::Container)).collect();
        garbage.extend(leftovers.names.iter().cloned().map(at(GarbageKind::Name)));
        let marks = leftovers.marks.iter().chain(&leases.dead);
        garbage.extend(marks.map(|(path, _)| path.clone()).map(at(GarbageKind::Mark)));
        let temporary = leftovers.temporary.iter().map(|stale| self.path().join("tmp").join(&stale.name));
        garbage.extend(temporary.map(at(GarbageKind::Temporary)));
        garbage
    }

    /// What `path` takes; nothing where it is not there (any more).
    fn measure(&self, path: &Path) -> Result<Measured> {
        // Others may be removing it: directories are moved then, and vanish.
        for _ in 0..100 {
            match self.measure_once(path) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOENT)) => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                other => return other,
            }
        }
        self.measure_once(path)
    }

    fn measure_once(&self, path: &Path) -> Result<Measured> {
        let step = "measure what is on the disk";
        let fail = |syscall| move |error| Error::io(step, syscall, error).path(path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Measured::default()) };
        let name = sys::fs::c_string(name.as_bytes()).map_err(fail("open"))?;
        let parent = match File::open(parent) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Measured::default()),
            other => other.map_err(fail("open"))?,
        };
        match sys::usage::measure_at(parent.as_fd(), &name) {
            Ok(measured) => Ok(measured),
            // Directories of the ids of a range, or such that even their owner may not enter.
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
                let dir = sys::fs::open_dir(parent.as_fd(), &name).map_err(fail("open"))?;
                self.runtime.measure(dir.as_fd()).map_err(|error| error.path(path))
            }
            Err(error) => Err(fail("open")(error)),
        }
    }
}
