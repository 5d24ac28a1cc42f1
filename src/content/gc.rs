//! Mark and sweep.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use serde::Deserialize;
use serde_json::Value;

use super::Store;
use super::index::{Index, IndexEntry};
use super::lease::Leases;
use super::lock::Held;
use crate::name::{Digest, MediaType};
use crate::{Error, ErrorKind, Result};

/// Largest document that is searched for references; manifests and indexes are limited to this everywhere.
const MAX_DOCUMENT: u64 = 4 << 20;

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// The blobs that are gone.
    pub removed: Vec<Digest>,
    /// Their sizes together, in bytes.
    pub freed: u64,
    /// The number of blobs that stayed.
    pub kept: usize,
}

/// A manifest or an index, as far as it names other blobs.
#[derive(Deserialize, Default)]
struct References {
    #[serde(default)]
    config: Option<Reference>,
    #[serde(default)]
    layers: Option<Vec<Reference>>,
    #[serde(default)]
    manifests: Option<Vec<Reference>>,
    #[serde(default)]
    blobs: Option<Vec<Reference>>,
    #[serde(default)]
    subject: Option<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    digest: Digest,
    #[serde(default, rename = "mediaType")]
    media_type: Option<MediaType>,
    #[serde(flatten)]
    _other: BTreeMap<String, Value>,
}

/// A collection under way: nobody takes a lease on a digest or changes the index until it is dropped.
#[derive(Debug)]
pub(crate) struct Collection<'a> {
    store: &'a Store,
    index: Index,
    leases: Leases,
    _no_tags: Held,
    _no_leases: Held,
}

/// A blob that nothing needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unreached {
    pub(crate) digest: Digest,
    /// Its length in bytes.
    pub(crate) size: u64,
}

impl Collection<'_> {
    /// The index as it is.
    pub(crate) fn entries(&self) -> &[IndexEntry] {
        &self.index.manifests
    }

    /// The leases as they are.
    pub(crate) fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Replaces the entries of the index.
    pub(crate) fn set_entries(&mut self, entries: Vec<IndexEntry>) -> Result<()> {
        if self.index.manifests != entries {
            let before = std::mem::replace(&mut self.index.manifests, entries);
            if let Err(error) = self.store.write_index(&self.index) {
                self.index.manifests = before;
                return Err(error);
            }
        }
        Ok(())
    }

    /// The blobs that neither `entries`, nor live leases, nor `roots` reach.
    ///
    /// # Errors
    /// Those of [`Store::gc`].
    pub(crate) fn unreached(&self, entries: &[IndexEntry], roots: &[Digest]) -> Result<Vec<Unreached>> {
        let mut open: Vec<(Digest, Option<MediaType>)> =
            entries.iter().map(|entry| (entry.digest.clone(), Some(entry.media_type.clone()))).collect();
        open.extend(roots.iter().chain(&self.leases.held).cloned().map(|digest| (digest, None)));
        let reached = self.store.reached(open)?;
        let unreached = self.store.blobs()?.into_iter().filter(|digest| !reached.contains(digest));
        Ok(unreached.map(|digest| Unreached { size: self.store.size(&digest).unwrap_or(0), digest }).collect())
    }
}

impl Store {
    /// Begins a collection: waits for leases that are taking a digest and for changes of the index.
    pub(crate) fn collection(&self) -> Result<Collection<'_>> {
        let no_leases = self.gc_lock().alone()?;
        let no_tags = self.lock_index()?;
        let (index, leases) = (self.read_index()?, self.leases()?);
        Ok(Collection { store: self, index, leases, _no_tags: no_tags, _no_leases: no_leases })
    }

    /// Removes every blob that no root reaches. Roots are the index, live leases and `roots`.
    ///
    /// Waits for leases that are taking a digest and for changes of the index, and they wait for it.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where a reachable manifest cannot be read as one: what it needs is unknown, so nothing
    /// is removed.
    pub fn gc(&self, roots: &[Digest]) -> Result<Collected> {
        self.collect(&self.collection()?, roots)
    }

    /// [`Store::gc`] within a collection that goes on.
    pub(crate) fn collect(&self, collection: &Collection<'_>, roots: &[Digest]) -> Result<Collected> {
        let unreached = collection.unreached(collection.entries(), roots)?;
        collection.leases.bury();
        let mut collected = Collected::default();
        for Unreached { digest, size } in unreached {
            self.remove_blob(&digest)?;
            collected.freed += size;
            collected.removed.push(digest);
        }
        collected.kept = self.blobs()?.len();
        Ok(collected)
    }

    /// Everything that can be reached from the blobs of `open`, itself included.
    fn reached(&self, mut open: Vec<(Digest, Option<MediaType>)>) -> Result<HashSet<Digest>> {
        let mut reached = HashSet::new();
        while let Some((digest, media_type)) = open.pop() {
            let references =
                if reached.contains(&digest) { References::default() } else { self.references(&digest, media_type)? };
            reached.insert(digest);
            let single = references.config.into_iter().chain(references.subject);
            let many = [references.layers, references.manifests, references.blobs].into_iter().flatten().flatten();
            open.extend(single.chain(many).map(|reference| (reference.digest, reference.media_type)));
        }
        Ok(reached)
    }

    /// What a blob names. The media type decides where it is known; without one (leases and roots are bare digests)
    /// anything that reads like a manifest counts as one, which at worst keeps too much.
    fn references(&self, digest: &Digest, media_type: Option<MediaType>) -> Result<References> {
        let certain = match &media_type {
            Some(media_type) if media_type.is_manifest() || media_type.is_index() => true,
            Some(media_type) if media_type.is_layer() || media_type.is_config() => return Ok(References::default()),
            _ => false,
        };
        let mut file = match self.open_blob(digest) {
            // Of an index, often only one platform's manifest is here.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(References::default()),
            other => other?,
        };
        let unreadable = |why: String| {
            Error::new(ErrorKind::Corrupt, "collect garbage")
                .because(format!("the manifest {digest} cannot be read: {why}"))
                .remedy("remove its tag, or load the image again")
        };
        if self.size(digest)? > MAX_DOCUMENT {
            return if certain { Err(unreadable("it is too long".into())) } else { Ok(References::default()) };
        }
        let mut bytes = vec![0; 1];
        let read = file.read(&mut bytes).map_err(|error| Error::io("collect garbage", "read", error))?;
        if !certain && (read == 0 || bytes[0] != b'{') {
            return Ok(References::default());
        }
        match self.read_blob(digest, MAX_DOCUMENT) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(references) => Ok(references),
                Err(error) if certain => Err(unreadable(error.to_string())),
                Err(_) => Ok(References::default()),
            },
            Err(error) if certain => Err(unreadable(error.to_string())),
            Err(_) => Ok(References::default()),
        }
    }
}
