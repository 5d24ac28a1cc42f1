//! What takes the space.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::{GarbageKind, PruneOptions, Root};
use crate::container::record::State;
use crate::content::{Measured, Usage};
use crate::{Error, Result, sys};

/// What a root takes on its disk; see [`Engine::disk_usage`](crate::Engine::disk_usage).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskUsage {
    /// Everything: what `du -s --block-size=1` says of the root while nobody works in it. The shares add up to it.
    pub total: Usage,
    /// Images as they came: blobs. Counted are images; active are those that containers use.
    pub images: Share,
    /// Unpacked layers, and stacks of them that were merged. Active are those that images need which containers use.
    pub layers: Share,
    /// Containers with all that they wrote. Active are those that run.
    pub containers: Share,
    /// Snapshots that outlive their containers.
    pub snapshots: Share,
    /// Things half made or half removed. Active are those that a living program works on.
    pub temporary: Share,
    /// The index, locks, names, marks, and the root directory itself.
    pub other: Usage,
    /// Layers, containers and snapshots, one by one.
    pub items: Vec<Item>,
}

/// One kind of thing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Share {
    /// How many there are.
    pub count: usize,
    /// How many are in use.
    pub active: usize,
    /// What all of them take, with the directories that hold them.
    pub usage: Usage,
    /// Bytes that [`Engine::prune`](crate::Engine::prune) can be told to free of this kind: of images and layers those that
    /// no container and no snapshot stands on, running or not; of containers those that have ended.
    pub reclaimable: u64,
}

/// One thing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Item {
    /// Where it is.
    pub path: PathBuf,
    /// What it takes. Files that an earlier one shares with it are counted there.
    pub usage: Usage,
    /// What comes free when it goes: nothing where it cannot, see [`Share::reclaimable`], or all of it.
    pub reclaimable: u64,
}

impl Root<'_> {
    /// See [`Engine::disk_usage`](crate::Engine::disk_usage).
    pub(crate) fn disk_usage(&self) -> Result<DiskUsage> {
        let mut usage = DiskUsage::default();
        let containers = self.containers()?;
        usage.containers.active =
            containers.iter().filter(|info| matches!(info.state, State::Created | State::Running)).count();
        let used = self.used_images(&containers)?;
        // As `images` counts them; a damaged one is none here, and a finding of the check.
        let mut known = HashSet::new();
        for entry in self.images.content().tags()? {
            known.extend(self.images.open_entry(&entry).ok().map(|image| image.id().clone()));
        }
        usage.images.count = known.len();
        usage.images.active = known.intersection(&used).count();
        let free = |containers| {
            let plan = self.plan(&PruneOptions { all_images: true, containers, dry_run: true })?;
            Ok::<_, Error>(plan.by_kind(self))
        };
        // What stopped containers stand on stays until these go, as docker counts it.
        let mut ended = free(true)?;
        ended.retain(|garbage| garbage.kind == GarbageKind::Container);
        let free = free(false)?.into_iter().chain(ended).collect::<Vec<_>>();
        for blob in free.iter().filter(|garbage| garbage.kind == GarbageKind::Blob) {
            usage.images.reclaimable += self.measure(&blob.path)?.usage().bytes;
        }
        let free: HashSet<PathBuf> = free.into_iter().map(|garbage| garbage.path).collect();

        let mut walk = Walk { root: self, seen: Measured::default(), free, items: vec![] };
        let top = self.path();
        usage.other = walk.seen.absorb(itself(top)?);
        for name in names(top)? {
            let path = top.join(&name);
            let share = match name.to_str() {
                Some("layers" | "bases") => &mut usage.layers,
                Some("containers") => &mut usage.containers,
                Some("snapshots") => &mut usage.snapshots,
                Some("tmp") => &mut usage.temporary,
                Some("blobs") => {
                    usage.images.usage += walk.seen.absorb(self.measure(&path)?);
                    continue;
                }
                _ => {
                    usage.other += walk.seen.absorb(self.measure(&path)?);
                    continue;
                }
            };
            walk.add(&path, share)?;
        }
        let needed = |place: &str| {
            let place = top.join(place);
            walk.items.iter().filter(|item| !walk.free.contains(&item.path) && item.path.starts_with(&place)).count()
        };
        (usage.layers.active, usage.temporary.active) = (needed("layers") + needed("bases"), needed("tmp"));
        // Nobody removes them but by name.
        usage.snapshots.active = usage.snapshots.count;
        usage.items = walk.items;
        usage.items.retain(|item| !item.path.starts_with(top.join("tmp")));
        usage.items.sort_by(|a, b| a.path.cmp(&b.path));
        usage.total = walk.seen.usage();
        Ok(usage)
    }
}

/// The way through the root's directories.
struct Walk<'a> {
    root: &'a Root<'a>,
    /// Everything so far.
    seen: Measured,
    /// What can go.
    free: HashSet<PathBuf>,
    items: Vec<Item>,
}

impl Walk<'_> {
    /// A directory of things of one kind.
    fn add(&mut self, dir: &Path, share: &mut Share) -> Result<()> {
        share.usage += self.seen.absorb(itself(dir)?);
        for name in names(dir)? {
            let path = dir.join(&name);
            let usage = self.seen.absorb(self.root.measure(&path)?);
            share.usage += usage;
            if path.extension().is_some_and(|extension| extension == "lock") {
                continue;
            }
            let reclaimable = if self.free.contains(&path) { usage.bytes } else { 0 };
            share.count += 1;
            share.reclaimable += reclaimable;
            self.items.push(Item { path, usage, reclaimable });
        }
        Ok(())
    }
}

const STEP: &str = "measure what is on the disk";

/// A directory without what is in it; nothing where it has gone.
fn itself(path: &Path) -> Result<Measured> {
    let fail = |syscall| move |error| Error::io(STEP, syscall, error).path(path);
    match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Measured::default()),
        other => sys::usage::measure_itself(other.map_err(fail("open"))?.as_fd()).map_err(fail("fstat")),
    }
}

/// The names in a directory, sorted; none where it has gone.
fn names(path: &Path) -> Result<Vec<OsString>> {
    let fail = |error| Error::io(STEP, "readdir", error).path(path);
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        other => other.map_err(fail)?,
    };
    let mut names: Vec<OsString> =
        entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>().map_err(fail)?;
    names.sort_unstable();
    Ok(names)
}
