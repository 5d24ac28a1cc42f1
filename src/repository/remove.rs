//! Taking names away, and with the last one the image.

use std::collections::HashSet;

use super::resolve::Meaning;
use crate::content::IndexEntry;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Image, ImageId, Images, index};
use crate::name::{ChainId, DiffId, Reference};
use crate::snapshot;

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone, sorted.
    pub untagged: Vec<Reference>,
    /// Images that are gone. Empty when other names or containers still need them.
    pub deleted: Vec<ImageId>,
    /// Bytes of blobs that were freed; unpacked layers come on top.
    pub freed: u64,
}

/// Says which images have containers, whatever state those are in. Asked while no new container can come to be, see
/// [`Images::hold`].
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
        let _alone = self.hold_alone()?;
        let used = in_use()?;
        let meaning = Meaning::of(text)?;
        let removed = self.content().update_index(|entries| {
            if let Meaning::Name(name, _) = &meaning
                && let Some(entry) = take_named(entries, name)
            {
                return self.untag(entries, entry, text, force, &used);
            }
            let image = self.resolve(text)?;
            self.delete(entries, &image, force, &used)
        })?;
        self.collect(removed, &used)
    }

    /// Removes all nameless images without containers, and everything else that nothing needs.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn prune(&self, in_use: InUse<'_>) -> Result<Removed> {
        let _alone = self.hold_alone()?;
        let used = in_use()?;
        let removed = self.content().update_index(|entries| {
            let mut removed = Removed::default();
            // A damaged image may be the one that a container uses, unless all of those are accounted for.
            let damaged_may_go = used.is_subset(&self.known(entries));
            entries.retain(|entry| {
                if entry.ref_name().is_some() {
                    return true;
                }
                let Ok(image) = self.open_entry(entry) else { return !damaged_may_go };
                if used.contains(image.id()) {
                    return true;
                }
                removed.deleted.push(image.id().clone());
                false
            });
            Ok(removed)
        })?;
        self.collect(removed, &used)
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
        if index::has(entries, &entry.digest) {
            return Ok(removed);
        }
        match self.open_entry(&entry) {
            // The same image may be there under another manifest.
            Ok(image) if self.others(entries, &image).next().is_some() => {}
            Ok(image) if used.contains(image.id()) => {
                if !force {
                    return Err(in_use_error(text, image.id()));
                }
                index::keep(entries, entry);
            }
            Ok(image) => removed.deleted.push(image.id().clone()),
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

    /// Removes blobs and unpacked layers that nothing needs any more.
    fn collect(&self, mut removed: Removed, used: &HashSet<ImageId>) -> Result<Removed> {
        removed.freed = self.content().gc(&[])?.freed;
        self.collect_layers(used)?;
        Ok(removed)
    }

    fn collect_layers(&self, used: &HashSet<ImageId>) -> Result<()> {
        let (mut diff_ids, mut chain_ids, mut known) = (HashSet::new(), HashSet::new(), HashSet::new());
        for entry in self.content().tags()? {
            // A damaged image may stand under a container; what it needs is unknown, so everything stays.
            let Ok(image) = self.open_entry(&entry) else { return Ok(()) };
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
            return Ok(());
        }
        // As much as possible goes, then the first failure is told.
        let ownership = &self.layers().options().ownership;
        let merged = snapshot::collect_bases(self.content().root(), ownership, |chain_id| chain_ids.contains(chain_id));
        let mut failure = merged.err();
        for layer in self.layers().list()? {
            let needed = match layer.chain_id() {
                Some(chain_id) => chain_ids.contains(chain_id),
                None => diff_ids.contains(layer.diff_id()),
            };
            if !needed && let Err(error) = self.layers().remove(&layer) {
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(()), Err)
    }
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
