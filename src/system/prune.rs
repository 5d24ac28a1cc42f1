//! What can go, and its going. One plan serves the dry run and the real one, so that they cannot differ.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::{Garbage, GarbageKind, Leftovers, Root};
use crate::container::record::{self, Info, State};
use crate::container::runtime::Remains;
use crate::container::{self, owner};
use crate::content::lock::Held;
use crate::content::{Collection, IndexEntry, Measured, Store, Usage};
use crate::image::{ImageId, Images};
use crate::name::{ContainerId, Digest, Reference};
use crate::repository::Needless;
use crate::{Error, Result};

/// What [`Engine::prune`](crate::Engine::prune) may remove beyond garbage and nameless images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PruneOptions {
    /// Images with names as well, where no container uses them.
    pub all_images: bool,
    /// Containers that have ended and were kept, with all that they wrote.
    pub containers: bool,
    /// Only say what would go.
    pub dry_run: bool,
}

/// What went, or with [`dry_run`](PruneOptions::dry_run) would go.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Pruned {
    /// Containers that had ended.
    pub containers: Vec<ContainerId>,
    /// Names of images, sorted.
    pub untagged: Vec<Reference>,
    /// Images.
    pub images: Vec<ImageId>,
    /// Blobs that no image needs any more.
    pub blobs: Vec<Digest>,
    /// Directories of unpacked layers that no image needs any more.
    pub layers: Vec<PathBuf>,
    /// What killed programs left.
    pub garbage: Vec<Garbage>,
    /// What all of it took on the disk.
    pub freed: Usage,
    /// What could not be removed, and why; none of it is counted above.
    pub failures: Vec<Error>,
}

/// What would go, with everything locked that has to stay as it is until it has gone.
pub(super) struct Plan<'a> {
    alone: Held,
    collection: Collection<'a>,
    entries: Vec<IndexEntry>,
    containers: Vec<Info>,
    untagged: Vec<Reference>,
    images: Vec<ImageId>,
    blobs: Vec<Digest>,
    needless: Needless,
    leftovers: Leftovers,
    garbage: Vec<Garbage>,
}

impl Root<'_> {
    /// See [`Engine::prune`](crate::Engine::prune).
    pub(crate) fn prune(&self, options: &PruneOptions) -> Result<Pruned> {
        if options.dry_run {
            return self.plan(options)?.told(self);
        }
        self.images.sync_removals()?;
        self.plan(options)?.done(self)
    }

    /// Finds what can go.
    pub(super) fn plan(&self, options: &PruneOptions) -> Result<Plan<'_>> {
        let alone = self.images.lock().alone()?;
        let collection = self.images.content().collection()?;
        let (mut containers, mut stay) = (vec![], vec![]);
        for info in self.containers_for_certain()? {
            let over = matches!(info.state, State::Exited | State::Dead);
            // One that is not kept and whose program lives is that program's to remove.
            let kept = info.keep || owner::lives(self.path(), &info.owner);
            match (kept, over && info.keep && options.containers) {
                // Among the leftovers.
                (false, _) => {}
                (true, true) => containers.push(info),
                (true, false) => stay.push(info),
            }
        }
        // After the containers: the marks of dead programs are locked from here on, by us, and look like those of live ones.
        let leftovers = self.leftovers(Some(&alone))?;
        let used = self.used_images(&stay)?;
        let (entries, removed) = self.images.without_needless(collection.entries(), &used, options.all_images);
        let blobs = collection.unreached(&entries, &[])?.into_iter().map(|blob| blob.digest).collect();
        let needless = self.images.needless(&collection, &entries, &used)?;
        let garbage = self.garbage_of(&leftovers, collection.leases());
        Ok(Plan {
            alone,
            collection,
            entries,
            containers,
            untagged: removed.untagged,
            images: removed.deleted,
            blobs,
            needless,
            leftovers,
            garbage,
        })
    }

    fn container_path(&self, info: &Info) -> PathBuf {
        record::directory(self.path(), &info.id)
    }
}

impl Plan<'_> {
    /// What would go.
    fn told(self, root: &Root<'_>) -> Result<Pruned> {
        let mut seen = Measured::default();
        let paths = self.paths(root);
        // Nobody has to wait for the measuring; what goes meanwhile has no size.
        drop((self.collection, self.alone));
        for path in paths {
            // As when it goes: what cannot be measured is no reason to stop.
            seen.absorb(root.measure(&path).unwrap_or_default());
        }
        Ok(Pruned {
            containers: self.containers.iter().map(|info| info.id.clone()).collect(),
            untagged: self.untagged,
            images: self.images,
            blobs: self.blobs,
            layers: layers_of(&self.needless),
            garbage: self.garbage,
            freed: seen.usage(),
            failures: vec![],
        })
    }

    /// Everything that would go, by kind.
    pub(super) fn by_kind(&self, root: &Root<'_>) -> Vec<Garbage> {
        let content = root.images.content();
        let blobs = self.blobs.iter().map(|digest| (GarbageKind::Blob, content.blob_path(digest)));
        let layers = layers_of(&self.needless).into_iter().map(|path| (GarbageKind::Layer, path));
        let containers = self.containers.iter().map(|info| (GarbageKind::Container, root.container_path(info)));
        let all = blobs.chain(layers).chain(containers).map(|(kind, path)| Garbage { kind, path });
        all.chain(self.garbage.iter().cloned()).collect()
    }

    fn paths(&self, root: &Root<'_>) -> Vec<PathBuf> {
        self.by_kind(root).into_iter().map(|garbage| garbage.path).collect()
    }

    /// Removes it: first what stands on images, then images, then what those stood on, so that what is visible at any
    /// instant is whole. What takes time, emptying directories, comes when nobody waits for the locks any more.
    fn done(mut self, root: &Root<'_>) -> Result<Pruned> {
        let _dirty = root.images.mark_dirty();
        let mut tally = Tally::new(root);
        for info in &self.containers {
            if tally.buries(container::bury_unless_in_hand(root.runtime, info)) {
                tally.pruned.containers.push(info.id.clone());
            }
        }
        // What was being made is locked by us, and can wait.
        let (later, now): (Vec<Garbage>, _) =
            std::mem::take(&mut self.garbage).into_iter().partition(|garbage| garbage.kind == GarbageKind::Temporary);
        for garbage in now {
            let path = &garbage.path;
            let name = path.file_name().unwrap_or_default();
            let removed = match garbage.kind {
                GarbageKind::Container => {
                    let info = self.leftovers.containers.iter().find(|info| info.id.as_str() == name);
                    tally.buries(match info {
                        Some(info) => container::bury_unless_in_hand(root.runtime, info),
                        None => root.runtime.bury(&name.to_string_lossy(), None),
                    })
                }
                GarbageKind::Name => tally.removes(path, || record::remove_dangling_name(root.path(), path)),
                _ => tally.removes(path, || match fs::remove_file(path) {
                    // Whoever opens the root sweeps, too.
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(Error::io("remove garbage", "unlink", error).path(path))
                    }
                    _ => Ok(()),
                }),
            };
            if removed {
                tally.pruned.garbage.push(garbage);
            }
        }
        // What stays of a container stands on its image.
        if tally.pruned.failures.is_empty() {
            self.images_done(&mut tally);
        }
        drop((self.collection, self.alone));
        for garbage in later {
            let name = garbage.path.file_name().unwrap_or_default();
            if tally.removes(&garbage.path, || root.runtime.remove_temporary(name)) {
                tally.pruned.garbage.push(garbage);
            }
        }
        Ok(tally.finish())
    }

    /// Removes images, and what they stood on.
    fn images_done(&mut self, tally: &mut Tally<'_>) {
        let (images, content) = (tally.root.images, tally.root.images.content());
        if self.collection.entries().len() > self.entries.len()
            && let Err(error) = images.sync_removals()
        {
            return tally.pruned.failures.push(error);
        }
        let mut index = self.collection.set_entries(self.entries.clone());
        if index.is_err() {
            // On a full disk there may be no room for another index. What the old one does not lead to makes some, and so do
            // unpacked layers, which can be made again.
            match self.collection.unreached(self.collection.entries(), &[]) {
                Ok(blobs) => tally.remove_blobs(content, blobs.into_iter().map(|blob| blob.digest)),
                Err(error) => tally.pruned.failures.push(error),
            }
            tally.remove_needless(images, std::mem::take(&mut self.needless));
            tally.empty();
            index = self.collection.set_entries(std::mem::take(&mut self.entries));
        }
        match index {
            Ok(()) => {
                tally.pruned.untagged = std::mem::take(&mut self.untagged);
                tally.pruned.images = std::mem::take(&mut self.images);
                self.blobs.retain(|digest| !tally.pruned.blobs.contains(digest));
                tally.remove_blobs(content, std::mem::take(&mut self.blobs));
                tally.remove_needless(images, std::mem::take(&mut self.needless));
            }
            Err(error) => tally.pruned.failures.push(error),
        }
    }
}

/// Where needless layers are.
pub(super) fn layers_of(needless: &Needless) -> Vec<PathBuf> {
    let layers = needless.layers.iter().map(|layer| layer.dir().to_owned());
    needless.bases.iter().cloned().chain(layers).collect()
}

/// What has gone so far.
struct Tally<'a> {
    root: &'a Root<'a>,
    seen: Measured,
    pruned: Pruned,
    /// What is out of sight and takes space still.
    graves: Vec<Remove<'a>>,
}

/// Where something is that is out of sight, and how it is removed.
type Remove<'a> = (PathBuf, Box<dyn FnOnce() -> Result<()> + 'a>);

impl<'a> Tally<'a> {
    fn new(root: &'a Root<'a>) -> Tally<'a> {
        Tally { root, seen: Measured::default(), pruned: Pruned::default(), graves: vec![] }
    }

    fn finish(mut self) -> Pruned {
        self.empty();
        self.pruned.freed = self.seen.usage();
        self.pruned
    }

    /// Removes what is out of sight.
    fn empty(&mut self) {
        for (path, remove) in std::mem::take(&mut self.graves) {
            self.removes(&path, remove);
        }
    }

    fn remove_blobs(&mut self, content: &Store, blobs: impl IntoIterator<Item = Digest>) {
        for digest in blobs {
            if self.removes(&content.blob_path(&digest), || content.remove_blob(&digest)) {
                self.pruned.blobs.push(digest);
            }
        }
    }

    /// Takes unpacked things out of sight.
    fn remove_needless(&mut self, images: &'a Images, needless: Needless) {
        for base in needless.bases {
            match images.bury_base(&base) {
                Ok(grave) => {
                    let path = grave.path();
                    let remove = move || grave.remove(&images.layers().options().ownership);
                    self.graves.push((path, Box::new(remove)));
                    self.pruned.layers.push(base);
                }
                Err(error) => self.pruned.failures.push(error),
            }
        }
        for layer in &needless.layers {
            match images.layers().bury(layer) {
                Ok(grave) => {
                    let graves = grave.map(|grave| (grave.path(), Box::new(move || grave.remove()) as Box<_>));
                    self.graves.extend(graves);
                    self.pruned.layers.push(layer.dir().to_owned());
                }
                Err(error) => self.pruned.failures.push(error),
            }
        }
    }

    /// Keeps what is left of a container for later; false where the container stays.
    fn buries(&mut self, buried: Result<Option<Remains>>) -> bool {
        let root = self.root;
        match buried {
            Ok(remains) => {
                self.graves.extend(remains.map(|remains| {
                    let path = remains.path(root.path());
                    (path, Box::new(move || root.runtime.empty(remains)) as Box<_>)
                }));
                // Each has a descriptor.
                if self.graves.len() >= container::runtime::MAX_REMAINS {
                    self.empty();
                }
                true
            }
            Err(error) => {
                self.pruned.failures.push(error);
                false
            }
        }
    }

    /// Measures what is at `path` and removes it; false where it stays.
    fn removes(&mut self, path: &std::path::Path, remove: impl FnOnce() -> Result<()>) -> bool {
        // What cannot be measured can go all the same.
        let measured = self.root.measure(path).unwrap_or_default();
        match remove() {
            Ok(()) => {
                self.seen.absorb(measured);
                true
            }
            Err(error) => {
                self.pruned.failures.push(error);
                false
            }
        }
    }
}
