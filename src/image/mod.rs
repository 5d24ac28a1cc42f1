//! Images: read-only templates that containers are made from.
//!
//! | word | meaning |
//! |---|---|
//! | [`Image`] | a manifest, a [`Config`] and layers; opened once, cheap to clone |
//! | [`ImageId`] | the digest of the config's bytes: two tags with one ID are one image |
//! | manifest digest | the digest of the [`Manifest`]'s bytes, which also depends on how layers are compressed |
//! | [`Descriptor`] | type, digest and size of a blob, wherever one blob names another |
//! | layer | a tar of changes: its blob's digest in transit, its DiffID unpacked |
//! | [`Images`] | all images of one engine root |
//!
//! # The life of an image
//! It arrives by [`Images::load`] (an archive of `docker save`, `podman save`, `skopeo`, `umoci`) or
//! [`Images::import`] (a plain root file system). Either way its blobs are taken in under a lease and verified, its
//! layers are unpacked and verified, and only then *one* rewrite of the root's `index.json` makes all images of the
//! archive visible: before it, nothing of them can be seen or listed; after an error, blobs that nothing else needs are
//! removed again. Names are added and taken away by [`crate::repository`]; with its last name an image goes, unless a
//! container needs it.
//!
//! # On disk
//! ```text
//! <root>/index.json        one entry per name; an image without any name has one entry without a name
//! <root>/blobs/sha256/…    manifests, configs, layers as they came
//! <root>/images.lock       shared while a container comes to be, had alone by who takes images away
//! <root>/images.gate       held by who waits to have that lock alone; whoever shares it passes through here
//! <root>/layers/…          the unpacked layers, see crate::layer
//! ```
//! The entries of `index.json` are the roots of garbage collection, together with leases. An entry points at the
//! manifest that was chosen for a platform. Entries that other programs wrote, such as ones that point at an index,
//! are read as well.

mod commit;
mod config;
mod history;
mod import;
pub(crate) mod index;
mod load;
mod manifest;
mod resolve;
#[cfg(test)]
pub(crate) mod tests;
mod unpack;

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

pub use commit::{CommitOptions, Running};
pub use config::{Config, ContainerConfig, Healthcheck, History, OtherFields, RootFs};
pub use history::Step;
use import::created_or_now;
pub use import::{FileOwner, ImportOptions, ImportSource};
pub use load::{LoadOptions, LoadSource};
pub use manifest::{Descriptor, Document, Index, MAX_DOCUMENT, Manifest};
use resolve::{Resolved, Wanted};

use crate::content::lock::Lock;
use crate::content::{self, IndexEntry};
use crate::error::{Error, ErrorKind, Result};
use crate::layer::{LayerProgress, LayerStore};
use crate::name::{DiffId, Digest, Platform, Reference};

/// The name of an image that no tag can move: the digest of its config.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(Digest);

impl ImageId {
    /// The digest itself, `sha256:…`.
    pub fn digest(&self) -> &Digest {
        &self.0
    }

    /// The first 12 hexadecimal digits, for lists that people read.
    pub fn short(&self) -> &str {
        let hex = self.0.hex();
        hex.get(..12).unwrap_or(hex)
    }
}

impl From<Digest> for ImageId {
    fn from(digest: Digest) -> Self {
        ImageId(digest)
    }
}

impl FromStr for ImageId {
    type Err = Error;

    /// Reads `sha256:…` or the 64 digits alone.
    fn from_str(text: &str) -> Result<Self> {
        let digest = if text.contains(':') { text.parse() } else { format!("sha256:{text}").parse() };
        digest.map(ImageId)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What happens while an image arrives.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Progress {
    /// Bytes of a blob are being taken in.
    Blob {
        /// The blob's digest, or its path in an archive that does not say the digest.
        name: Arc<str>,
        /// Bytes so far; the blob is complete and verified when they reach `total`.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A blob is there already and was not read again.
    Present {
        /// The blob's digest.
        digest: Digest,
    },
    /// A layer is being unpacked.
    Layer(LayerProgress),
}

/// Receives [`Progress`]; called from several threads at once, and expected to return soon.
pub type Observer = Arc<dyn Fn(Progress) + Send + Sync>;

/// All images of one engine root. Cheap to clone; may be used from any thread.
#[derive(Clone)]
pub struct Images(Arc<Inner>);

struct Inner {
    content: content::Store,
    layers: LayerStore,
    platform: Platform,
    /// What containers of these images need to start. It belongs to a later module, so its type is not known here.
    runtime: Arc<dyn Any + Send + Sync>,
    present: Mutex<Present>,
}

/// Manifests that were found in an index: as long as that is the same file, they need not be looked for again.
#[derive(Default)]
struct Present {
    index: Option<Stamp>,
    manifests: HashSet<Digest>,
}

/// Tells a file from what another one is or was: device, inode, size, and the times of the last changes.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

impl Images {
    /// The images of a content store, unpacked into a layer store, chosen for a platform where there is a choice.
    ///
    /// `runtime` is what [`Images::runtime`] hands out again.
    pub(crate) fn new(
        content: content::Store,
        layers: LayerStore,
        platform: Platform,
        runtime: Arc<dyn Any + Send + Sync>,
    ) -> Images {
        Images(Arc::new(Inner { content, layers, platform, runtime, present: Mutex::default() }))
    }

    /// What the engine attached when it made these images; `None` when it is of another type.
    pub(crate) fn runtime<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.0.runtime.clone().downcast().ok()
    }

    /// The platform that is chosen from multi-platform images, unless a call names another.
    pub fn platform(&self) -> &Platform {
        &self.0.platform
    }

    /// All images with their names, each image once; ordered by first name, the nameless ones last. Waits for nobody;
    /// an image that is removed meanwhile may be listed or not.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) when an entry's manifest or config is damaged or missing; the message names the
    /// entry, and removing that name works all the same. [`list_whole`](Images::list_whole) lists the others.
    pub fn list(&self) -> Result<Vec<Listed>> {
        match self.list_whole()? {
            (list, damaged) if damaged.is_empty() => Ok(list),
            (_, damaged) => damaged.into_iter().next().map_or(Ok(vec![]), Err),
        }
    }

    /// [`list`](Images::list) of the images that can be opened, and for each entry that cannot why not.
    ///
    /// # Errors
    /// Only those of reading the index.
    pub fn list_whole(&self) -> Result<(Vec<Listed>, Vec<Error>)> {
        let mut list: Vec<Listed> = Vec::new();
        let mut damaged = Vec::new();
        let mut places: HashMap<ImageId, usize> = HashMap::new();
        for entry in self.content().tags()? {
            let image = match self.open_entry(&entry) {
                Ok(image) => image,
                // No lock is taken, so the image may have been removed since the index was read.
                Err(_) if !self.content().tags()?.contains(&entry) => continue,
                Err(error) => {
                    damaged.push(error);
                    continue;
                }
            };
            let tag = index::name_of(&entry);
            match places.get(image.id()).and_then(|place| list.get_mut(*place)) {
                Some(listed) => listed.tags.extend(tag),
                None => {
                    places.insert(image.id().clone(), list.len());
                    list.push(Listed { image, tags: tag.into_iter().collect() });
                }
            }
        }
        for listed in &mut list {
            listed.tags.sort_unstable();
            listed.tags.dedup();
        }
        list.sort_by(|a, b| {
            (a.tags.is_empty(), &a.tags, a.image.id()).cmp(&(b.tags.is_empty(), &b.tags, b.image.id()))
        });
        Ok((list, damaged))
    }

    /// Where the blobs are.
    pub(crate) fn content(&self) -> &content::Store {
        &self.0.content
    }

    /// Where the unpacked layers are.
    pub(crate) fn layers(&self) -> &LayerStore {
        &self.0.layers
    }

    /// Whether an entry stands for an image, under whichever manifest. One that cannot be opened stands for none.
    pub(crate) fn is_same(&self, entry: &IndexEntry, image: &Image) -> bool {
        entry.digest == *image.digest() || self.open_entry(entry).is_ok_and(|other| other == *image)
    }

    /// Makes sure that an image is still one of the root's. The caller keeps removals away, see [`lock`].
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when it was removed.
    pub(crate) fn require(&self, image: &Image) -> Result<()> {
        let stamp = std::fs::metadata(self.content().path("index.json")).ok().map(|status| -> Stamp {
            let (modified, changed) = ((status.mtime(), status.mtime_nsec()), (status.ctime(), status.ctime_nsec()));
            (status.dev(), status.ino(), status.size(), modified, changed)
        });
        let present = || self.0.present.lock().unwrap_or_else(PoisonError::into_inner);
        if stamp.is_some() && present().index == stamp && present().manifests.contains(image.digest()) {
            return Ok(());
        }
        if !self.content().tags()?.iter().any(|entry| self.is_same(entry, image)) {
            return Err(Error::new(ErrorKind::NotFound, format!("use the image {}", image.id().short()))
                .because("it was removed")
                .remedy("load it again"));
        }
        let mut present = present();
        if present.index != stamp {
            *present = Present { index: stamp, manifests: HashSet::new() };
        }
        present.manifests.insert(image.digest().clone());
        Ok(())
    }

    /// Gives an image names in the index. Nameless entries of the same image under another manifest have no use then.
    pub(crate) fn set_names(&self, entries: &mut Vec<IndexEntry>, image: &Image, names: &[Reference]) {
        if names.is_empty() {
            return;
        }
        index::set(entries, &image.entry(), names);
        entries.retain(|entry| entry.ref_name().is_some() || !self.is_same(entry, image));
    }

    /// What containers come to be under, and removals wait for; see [`lock`].
    pub(crate) fn lock(&self) -> Lock {
        lock(self.content().root())
    }

    /// The image that an entry of the index stands for.
    pub(crate) fn open_entry(&self, entry: &IndexEntry) -> Result<Image> {
        let mut root = Descriptor::new(entry.media_type.clone(), entry.digest.clone(), entry.size);
        root.platform = entry.platform.clone();
        let wanted = Wanted { platform: self.0.platform.clone(), strict: false };
        let mut lacks = false;
        let resolved = resolve::resolve(&[root], &wanted, &mut |descriptor, _| {
            let bytes = self.content().read_blob(&descriptor.digest, MAX_DOCUMENT);
            lacks |= bytes.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound);
            bytes
        });
        let resolved = resolved.map_err(|error| {
            // The image is there; what is missing is a part of it.
            let error =
                if lacks && error.kind() == ErrorKind::NotFound { error.kind_is(ErrorKind::Corrupt) } else { error };
            let name = index::name_of(entry).map(|name| name.familiar());
            match name.as_deref().or(entry.ref_name()) {
                Some(name) => error.on_the_way_to(format!("open the image {name:?}")),
                None => error.on_the_way_to("open a nameless image"),
            }
        })?;
        Ok(Image::new(self.clone(), resolved))
    }
}

/// The lock between containers that come to be and images that go. Whoever makes a container shares it from before the
/// image is looked up until the container's record, which removals look at, is written. Any number of them go together;
/// a removal has the lock alone.
pub(crate) fn lock(root: &Path) -> Lock {
    Lock::new(root, "images", "lock the images")
}

/// The blobs that an image needs.
fn blobs_of(image: &Image) -> Vec<Digest> {
    let layers = image.manifest().layers.iter().map(|layer| layer.digest.clone());
    layers.chain([image.digest().clone(), image.id().digest().clone()]).collect()
}

/// A line of [`Images::list`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Listed {
    /// The image.
    pub image: Image,
    /// Its names at that moment, sorted.
    pub tags: Vec<Reference>,
}

impl fmt::Debug for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Images").field(&self.0.content.root()).finish()
    }
}

/// One image, its manifest and config read and verified. Cheap to clone; may be used from any thread.
///
/// The value describes the image as it was when it was opened. It does not keep the image from being removed; no
/// container can be made of it then.
#[derive(Clone)]
pub struct Image(Arc<Opened>);

struct Opened {
    images: Images,
    id: ImageId,
    resolved: Resolved,
    called: Vec<Reference>,
}

impl Image {
    pub(crate) fn new(images: Images, resolved: Resolved) -> Image {
        let id = ImageId(resolved.manifest.config.digest.clone());
        Image(Arc::new(Opened { images, id, resolved, called: vec![] }))
    }

    /// The same, come by under these names.
    pub(crate) fn called_as(mut self, names: Vec<Reference>) -> Image {
        // A value that nobody else has yet.
        if let Some(opened) = Arc::get_mut(&mut self.0) {
            opened.called = names;
        }
        self
    }

    /// The names that this value was come by under: the one that it was asked for by, or those that a load or import
    /// has just given it. Empty for an image that was found by its ID or in a list.
    ///
    /// Unlike [`tags`](Image::tags) it says what was meant at that moment; the names may mean another image by now.
    pub fn called(&self) -> &[Reference] {
        &self.0.called
    }

    /// The digest of the config, which is what the image *is*.
    pub fn id(&self) -> &ImageId {
        &self.0.id
    }

    /// The digest of the manifest, which is what a registry calls the image.
    pub fn digest(&self) -> &Digest {
        &self.0.resolved.descriptor.digest
    }

    /// The image's configuration.
    pub fn config(&self) -> &Config {
        &self.0.resolved.config
    }

    /// The image's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.0.resolved.manifest
    }

    /// The platform that the image was made for.
    pub fn platform(&self) -> Platform {
        self.config().platform()
    }

    /// The image's names as they are now, sorted; empty for a nameless or removed image. Every name counts that
    /// leads to the same [`id`](Image::id).
    ///
    /// # Errors
    /// Only those of reading `index.json` and the manifests that it names.
    pub fn tags(&self) -> Result<Vec<Reference>> {
        let mut tags = Vec::new();
        for entry in self.images().content().tags()? {
            let Some(name) = index::name_of(&entry) else { continue };
            if self.images().is_same(&entry, self) && !tags.contains(&name) {
                tags.push(name);
            }
        }
        tags.sort_unstable();
        Ok(tags)
    }

    /// How the image was made, lowest layer first.
    pub fn history(&self) -> Vec<Step> {
        history::steps(self.config(), self.manifest())
    }

    /// The layers, lowest first: how each is called unpacked, and its blob.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = (&DiffId, &Descriptor)> {
        self.config().rootfs.diff_ids.iter().zip(&self.manifest().layers)
    }

    /// Bytes that the image takes as blobs, and about what a download takes: manifest, config and layers, compressed
    /// where they came compressed. Blobs that other images share are counted.
    pub fn size(&self) -> u64 {
        let layers = self.manifest().layers.iter().map(|layer| layer.size);
        layers.fold(self.0.resolved.descriptor.size.saturating_add(self.manifest().config.size), u64::saturating_add)
    }

    /// The store that the image is in.
    pub(crate) fn images(&self) -> &Images {
        &self.0.images
    }

    /// The index entry for this image, without a name.
    pub(crate) fn entry(&self) -> IndexEntry {
        let descriptor = &self.0.resolved.descriptor;
        IndexEntry::new(descriptor.media_type.clone(), descriptor.digest.clone(), descriptor.size)
    }
}

impl PartialEq for Image {
    /// Images are equal when their IDs are.
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Image {}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image").field("id", self.id()).field("digest", self.digest()).finish()
    }
}
