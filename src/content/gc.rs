//! Mark and sweep.

use std::collections::HashMap;
use std::io::Read;

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

/// What is known of a digest that is reached, from who reaches it. A later one never weakens what an earlier one said.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    /// Called a layer or a config by a document that anybody may have written: stays, and is not read for that.
    Blob,
    /// A bare digest, or one of an unknown type: whatever reads like a document is followed.
    Perhaps,
    /// Called a manifest or an index by such a document. It may be none; but where it has rotted, it is not known what it
    /// needs.
    Document,
    /// An entry of the index, which this crate has verified: where it has rotted, it is not known what it needs.
    Entry,
}

impl Reached {
    /// By what a document says of it.
    fn named(media_type: Option<&MediaType>) -> Reached {
        match media_type {
            Some(media_type) if media_type.is_layer() || media_type.is_config() => Reached::Blob,
            Some(media_type) if media_type.is_manifest() || media_type.is_index() => Reached::Document,
            _ => Reached::Perhaps,
        }
    }
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
        let mut open: Vec<(Digest, Reached)> =
            entries.iter().map(|entry| (entry.digest.clone(), Reached::Entry)).collect();
        open.extend(roots.iter().chain(&self.leases.held).cloned().map(|digest| (digest, Reached::Perhaps)));
        let reached = self.store.reached(open)?;
        let unreached = self.store.blobs()?.into_iter().filter(|digest| !reached.contains_key(digest));
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

    /// Everything that can be reached from the blobs of `open`, itself included. A digest is followed as soon as anybody
    /// says more of it than before: an image that calls another one's manifest a layer must not hide what that needs.
    fn reached(&self, mut open: Vec<(Digest, Reached)>) -> Result<HashMap<Digest, Reached>> {
        let mut reached: HashMap<Digest, Reached> = HashMap::new();
        while let Some((digest, how)) = open.pop() {
            let known = reached.get(&digest).copied();
            if known.is_none_or(|known| known < how) {
                if how > Reached::Blob {
                    self.follow(&digest, how, &mut open)?;
                }
                reached.insert(digest, how);
            }
        }
        Ok(reached)
    }

    /// Adds what a blob names. Nothing in it is taken for granted: a document of a strange shape names what can be
    /// recognised, and what is no document names nothing.
    fn follow(&self, digest: &Digest, how: Reached, open: &mut Vec<(Digest, Reached)>) -> Result<()> {
        let unreadable = |least: Reached, why: String| match how >= least {
            true => Err(Error::new(ErrorKind::Corrupt, "collect garbage")
                .because(format!("the manifest {digest} cannot be read: {why}"))
                .remedy("remove its tag, or load the image again")),
            false => Ok(()),
        };
        let mut file = match self.open_blob(digest) {
            // Of an index, often only one platform's manifest is here.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return unreadable(Reached::Entry, error.to_string()),
            Ok(file) => file,
        };
        if self.size(digest)? > MAX_DOCUMENT {
            return unreadable(Reached::Entry, "it is too long".into());
        }
        let mut first = [0; 1];
        let read = file.read(&mut first).map_err(|error| Error::io("collect garbage", "read", error))?;
        if how != Reached::Entry && (read == 0 || first != *b"{") {
            return Ok(());
        }
        let document: Value = match self.read_blob(digest, MAX_DOCUMENT) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(document) => document,
                Err(error) => return unreadable(Reached::Entry, error.to_string()),
            },
            Err(error) => return unreadable(Reached::Document, error.to_string()),
        };
        let single = ["config", "subject"].into_iter().filter_map(|name| document.get(name));
        let lists = ["layers", "manifests", "blobs"].into_iter().filter_map(|name| document.get(name)?.as_array());
        for named in single.chain(lists.flatten()) {
            let Some(digest) = named.get("digest").and_then(Value::as_str).and_then(|text| text.parse().ok()) else {
                continue;
            };
            let media_type = named.get("mediaType").and_then(Value::as_str).and_then(|text| text.parse().ok());
            open.push((digest, Reached::named(media_type.as_ref())));
        }
        Ok(())
    }
}
