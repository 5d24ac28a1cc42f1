//! Taking names away, and with the last one the image.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::resolve::Meaning;
use crate::content::lock::Held;
use crate::content::{Collection, Durability, IndexEntry, Lease};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Image, ImageId, Images, index};
use crate::layer::{Grave, Layer};
use crate::name::{ChainId, DiffId, Reference};
use crate::snapshot::{self, BuriedBase};
use crate::sys;

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removed {
    /// Names that are gone, sorted.
    pub untagged: Vec<Reference>,
    /// Images that are gone. Empty when other names or containers still need them.
    pub deleted: Vec<ImageId>,
    /// Bytes of blobs that were freed; unpacked layers come on top.
    pub freed: u64,
}

/// Says which images have containers, whatever state those are in. Asked while no new container can come to be, see
/// [`Images::lock`].
pub(crate) type InUse<'a> = &'a dyn Fn() -> Result<HashSet<ImageId>>;

impl Images {
    /// Removes a name, or an image by its ID. With its last name an image goes, and with it every blob and unpacked
    /// layer that no other image needs.
    ///
    /// An image that containers use stays: removing its last name is refused, and with `force` leaves it nameless.
    /// An image with several names is removed by ID only with `force`.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Conflict`](ErrorKind::Conflict) for the refusals above; then nothing has
    /// changed. Errors of the file system while blobs and layers go: then the names are gone, and the next removal
    /// takes what stayed.
    pub(crate) fn remove(&self, text: &str, force: bool, in_use: InUse<'_>) -> Result<Removed> {
        self.sync_removals()?;
        let alone = self.lock().alone()?;
        let used = in_use()?;
        let meaning = Meaning::of(text)?;
        let _dirty = self.mark_dirty();
        let removed = self.update_making_room(&used, |entries| {
            if let Meaning::Name(name, _) = &meaning
                && let Some(entry) = take_named(entries, name)
            {
                return self.untag(entries, entry, text, force, &used);
            }
            let image = self.resolve(text)?;
            self.delete(entries, &image, force, &used)
        })?;
        self.collect(alone, removed, &used)
    }

    /// Removes all nameless images without containers, and everything else that nothing needs.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn prune(&self, in_use: InUse<'_>) -> Result<Removed> {
        self.sync_removals()?;
        let alone = self.lock().alone()?;
        let used = in_use()?;
        let _dirty = self.mark_dirty();
        let removed = self.update_making_room(&used, |entries| {
            let (stay, removed) = self.without_needless(entries, &used, false);
            *entries = stay;
            Ok(removed)
        })?;
        self.collect(alone, removed, &used)
    }

    /// A lease that holds nothing: should this program be killed on its way, the next open sees that there is something to
    /// sweep. On a full disk it has to do without.
    pub(crate) fn mark_dirty(&self) -> Option<Lease> {
        self.content().lease().ok()
    }

    /// Removes what a load, a commit or a removal that was killed left: what nothing needs. There is nothing to be done as
    /// a rule, and finding that out takes the list of one directory.
    ///
    /// # Errors
    /// [`Corrupt`](ErrorKind::Corrupt) where it is not known what a damaged image needs; those of the file system.
    pub(crate) fn sweep(&self, alone: Held, in_use: InUse<'_>) -> Result<()> {
        if self.content().leases()?.dead.is_empty() {
            return Ok(());
        }
        let used = in_use()?;
        self.collect(alone, Removed::default(), &used).map(drop)
    }

    /// Changes the index. On a full disk, where even a shorter one has no room, whatever nothing needs goes first, and
    /// then the unpacked layers that nothing will need: those can be made again from their blobs, should the index still
    /// not change.
    fn update_making_room(
        &self,
        used: &HashSet<ImageId>,
        change: impl Fn(&mut Vec<IndexEntry>) -> Result<Removed>,
    ) -> Result<Removed> {
        let change = |entries: &mut Vec<IndexEntry>| {
            let before = entries.len();
            let removed = change(entries)?;
            if entries.len() < before {
                self.sync_removals()?;
            }
            Ok(removed)
        };
        match self.content().update_index(change) {
            Err(error) if error.kind() == ErrorKind::Full => {}
            other => return other,
        }
        let collection = self.content().collection()?;
        let mut entries = collection.entries().to_vec();
        change(&mut entries)?;
        // What fails of this is told by the second try.
        let _ = self.content().collect(&collection, &[]);
        if let Ok(needless) = self.needless(&collection, &entries, used) {
            self.make_room(&needless);
        }
        drop(collection);
        self.content().update_index(change)
    }

    /// Puts removals of containers and saved snapshots on the disk, before an index is written that does without their
    /// images. That is synced and they are not, so after a power cut they would be there again, over images that are gone.
    ///
    /// To be called twice, before the lock that keeps new ones away is taken and under it: then little is left to write as
    /// long as others wait.
    ///
    /// # Errors
    /// Those of syncfs(2).
    pub(crate) fn sync_removals(&self) -> Result<()> {
        if self.content().durability() != Durability::Full {
            return Ok(());
        }
        let root = self.content().root();
        let failed = |syscall| move |error| Error::io("remove images", syscall, error).path(root);
        let dir = File::open(root).map_err(failed("open"))?;
        sys::fs::syncfs(dir.as_fd()).map_err(failed("syncfs"))
    }

    /// Removes unpacked things, as many as can be. The caller keeps everybody away from them.
    pub(crate) fn make_room(&self, needless: &Needless) {
        for base in &needless.bases {
            let _ = self.bury_base(base).and_then(|base| base.remove(&self.layers().options().ownership));
        }
        for layer in &needless.layers {
            let _ = self.layers().bury(layer).and_then(|grave| grave.map_or(Ok(()), Grave::remove));
        }
    }

    /// What is left of the index when the nameless images without containers go, or with `all` every image without
    /// containers; and what went.
    pub(crate) fn without_needless(
        &self,
        entries: &[IndexEntry],
        used: &HashSet<ImageId>,
        all: bool,
    ) -> (Vec<IndexEntry>, Removed) {
        let mut removed = Removed::default();
        // A damaged image may be the one that a container uses, unless all of those are accounted for.
        let damaged_may_go = used.is_subset(&self.known(entries));
        let mut stay = entries.to_vec();
        stay.retain(|entry| {
            if entry.ref_name().is_some() && !all {
                return true;
            }
            match self.open_entry(entry) {
                Ok(image) if used.contains(image.id()) => return true,
                Ok(image) if removed.deleted.contains(image.id()) => {}
                Ok(image) => removed.deleted.push(image.id().clone()),
                Err(_) if damaged_may_go => {}
                Err(_) => return true,
            }
            removed.untagged.extend(index::name_of(entry));
            false
        });
        if !removed.deleted.is_empty() {
            // Under another manifest it may have a name still.
            let known = self.known(&stay);
            removed.deleted.retain(|id| !known.contains(id));
        }
        removed.untagged.sort_unstable();
        (stay, removed)
    }

    /// One name goes; `entry` is out of the list already.
    fn untag(
        &self,
        entries: &mut Vec<IndexEntry>,
        entry: IndexEntry,
        text: &str,
        force: bool,
        used: &HashSet<ImageId>,
    ) -> Result<Removed> {
        let untagged = index::name_of(&entry).into_iter().collect();
        let mut removed = Removed { untagged, ..Removed::default() };
        if entries.iter().any(|other| other.digest == entry.digest && other.ref_name().is_some()) {
            return Ok(removed);
        }
        match self.open_entry(&entry) {
            // The same image may have a name under another manifest; entries without one do not keep it.
            Ok(image) if self.others(entries, &image).any(|other| other.ref_name().is_some()) => {}
            Ok(image) if used.contains(image.id()) => {
                if !force {
                    return Err(in_use_error(text, image.id()));
                }
                index::keep(entries, entry);
            }
            Ok(image) => {
                entries.retain(|other| !self.is_same(other, &image));
                removed.deleted.push(image.id().clone());
            }
            // Damaged: no container can be made of it, but one that was made before may run. Its ID is not known, so
            // it has to be that every image in use is accounted for by the other entries.
            Err(_) => {
                let known = self.known(entries);
                if let Some(id) = used.iter().find(|id| !known.contains(id)) {
                    return Err(in_use_error(text, id));
                }
            }
        }
        Ok(removed)
    }

    /// A whole image goes, with all its names.
    fn delete(
        &self,
        entries: &mut Vec<IndexEntry>,
        image: &Image,
        force: bool,
        used: &HashSet<ImageId>,
    ) -> Result<Removed> {
        let mut untagged: Vec<Reference> = self.others(entries, image).filter_map(index::name_of).collect();
        untagged.sort_unstable();
        untagged.dedup();
        let id = image.id();
        if untagged.len() > 1 && !force {
            let names: Vec<String> = untagged.iter().map(Reference::familiar).collect();
            return Err(Error::new(ErrorKind::Conflict, "remove the image")
                .path(id.to_string())
                .because(format!("it has several names: {}", names.join(", ")))
                .remedy("remove it by name, or with force"));
        }
        let in_use = used.contains(id);
        if in_use && (!force || untagged.is_empty()) {
            return Err(in_use_error(id.short(), id));
        }
        entries.retain(|entry| !self.is_same(entry, image));
        if in_use {
            index::keep(entries, image.entry());
            return Ok(Removed { untagged, ..Removed::default() });
        }
        Ok(Removed { untagged, deleted: vec![id.clone()], freed: 0 })
    }

    /// The IDs of all entries that can be opened.
    fn known(&self, entries: &[IndexEntry]) -> HashSet<ImageId> {
        entries.iter().filter_map(|entry| self.open_entry(entry).ok()).map(|image| image.id().clone()).collect()
    }

    /// The entries of an image, whichever of its manifests they name.
    fn others<'a>(&self, entries: &'a [IndexEntry], image: &Image) -> impl Iterator<Item = &'a IndexEntry> {
        entries.iter().filter(move |entry| self.is_same(entry, image))
    }

    /// Removes blobs and unpacked layers that nothing needs any more. The slow part, emptying the layers' trees, comes
    /// when nobody waits any more.
    fn collect(&self, alone: Held, mut removed: Removed, used: &HashSet<ImageId>) -> Result<Removed> {
        let collection = self.content().collection()?;
        removed.freed = self.content().collect(&collection, &[])?.freed;
        let needless = self.needless(&collection, collection.entries(), used)?;
        // As much as possible goes, then the first failure is told.
        let mut result = Ok(());
        let bases: Vec<Result<BuriedBase>> = needless.bases.iter().map(|it| self.bury_base(it)).collect();
        let graves: Vec<Result<Option<Grave>>> = needless.layers.iter().map(|it| self.layers().bury(it)).collect();
        drop((collection, alone));
        for base in bases {
            result = result.and(base.and_then(|base| base.remove(&self.layers().options().ownership)));
        }
        for grave in graves {
            result = result.and(grave.and_then(|grave| grave.map_or(Ok(()), Grave::remove)));
        }
        result.map(|()| removed)
    }

    /// Takes a merged stack of layers that nothing needs out of sight.
    pub(crate) fn bury_base(&self, base: &Path) -> Result<BuriedBase> {
        snapshot::bury_base(self.content().root(), base)
    }

    /// What of the unpacked layers no image of `entries` and no live lease needs. Nothing where that is not known of all
    /// images: a damaged one may stand under a container.
    pub(crate) fn needless(
        &self,
        collection: &Collection<'_>,
        entries: &[IndexEntry],
        used: &HashSet<ImageId>,
    ) -> Result<Needless> {
        let (mut diff_ids, mut chain_ids, mut known) = (HashSet::new(), HashSet::new(), HashSet::new());
        for entry in entries {
            let Ok(image) = self.open_entry(entry) else { return Ok(Needless::default()) };
            let stack: &[DiffId] = &image.config().rootfs.diff_ids;
            let mut chain = None;
            for diff_id in stack {
                let next = ChainId::on(chain.as_ref(), diff_id);
                chain_ids.insert(next.clone());
                chain = Some(next);
            }
            diff_ids.extend(stack.iter().cloned());
            known.insert(image.id().clone());
        }
        if !used.is_subset(&known) {
            return Ok(Needless::default());
        }
        let held = &collection.leases().held;
        let mut layers = self.layers().list()?;
        layers.retain(|layer| {
            let needed = match layer.chain_id() {
                Some(chain_id) => chain_ids.contains(chain_id),
                None => diff_ids.contains(layer.diff_id()),
            };
            !needed && !held.contains(&layer.diff_id().0)
        });
        let bases = snapshot::needless_bases(self.content().root(), |chain_id| chain_ids.contains(chain_id))?;
        Ok(Needless { layers, bases })
    }
}

/// Unpacked things that nothing needs.
#[derive(Debug, Default)]
pub(crate) struct Needless {
    pub(crate) layers: Vec<Layer>,
    /// Directories of merged stacks of layers.
    pub(crate) bases: Vec<PathBuf>,
}

/// The entry of a name; a digest in it has to be the entry's.
fn take_named(entries: &mut Vec<IndexEntry>, name: &Reference) -> Option<IndexEntry> {
    match name.digest() {
        None => index::take(entries, name),
        Some(digest) => {
            let fits = |entry: &IndexEntry| {
                entry.digest == *digest && index::name_of(entry).is_some_and(|other| other.name() == name.name())
            };
            entries.iter().position(fits).map(|position| entries.remove(position))
        }
    }
}

fn in_use_error(text: &str, id: &ImageId) -> Error {
    Error::new(ErrorKind::Conflict, "remove the image")
        .path(text)
        .because(format!("a container or a saved snapshot uses the image {}", id.short()))
        .remedy("remove its containers and snapshots first")
}
