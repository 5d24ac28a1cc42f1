//! The tags: `index.json`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::Store;
use super::lock::{Held, Lock};
use crate::name::{Digest, MediaType, Platform};
use crate::{Error, ErrorKind, Result};

/// The annotation that holds an entry's tag. This crate writes the canonical reference,
/// `docker.io/library/debian:latest`.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Largest `index.json` that is read: room for a hundred thousand tags.
const MAX_INDEX: u64 = 32 << 20;

/// One entry of `index.json`: a [descriptor](https://github.com/opencontainers/image-spec/blob/main/descriptor.md) of a
/// manifest or an index, usually with a tag.
///
/// What this crate does not know of an entry survives when the index is written again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IndexEntry {
    /// What kind of document it is.
    #[serde(rename = "mediaType")]
    pub media_type: MediaType,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What it is for, where stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free-form notes; the tag is the one called [`REF_NAME`].
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

impl IndexEntry {
    /// An entry without platform and annotations.
    pub fn new(media_type: MediaType, digest: Digest, size: u64) -> IndexEntry {
        IndexEntry { media_type, digest, size, platform: None, annotations: BTreeMap::new(), other: Map::new() }
    }

    /// The tag as it was written; entries of other tools may have a bare `latest` here.
    pub fn ref_name(&self) -> Option<&str> {
        self.annotations.get(REF_NAME).map(String::as_str)
    }

    /// Sets or removes the tag.
    pub fn set_ref_name(&mut self, name: Option<&str>) {
        match name {
            Some(name) => self.annotations.insert(REF_NAME.to_owned(), name.to_owned()),
            None => self.annotations.remove(REF_NAME),
        };
    }
}

fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The whole file.
#[derive(Debug, PartialEq, Clone, Serialize, Deserialize)]
pub(super) struct Index {
    #[serde(rename = "schemaVersion")]
    schema_version: u32,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) manifests: Vec<IndexEntry>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

impl Store {
    /// The entries of `index.json`, in their order. Takes no lock: what is returned was the whole index at one moment.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where the file is not an index.
    pub fn tags(&self) -> Result<Vec<IndexEntry>> {
        Ok(self.read_index()?.manifests)
    }

    pub(super) fn read_index(&self) -> Result<Index> {
        let path = self.path("index.json");
        let file = match fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Index { schema_version: 2, manifests: Vec::new(), other: Map::new() });
            }
            Err(error) => return Err(Error::io("read the index", "open", error).path(path)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_INDEX + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| Error::io("read the index", "read", error).path(&path))?;
        if bytes.len() as u64 > MAX_INDEX {
            return Err(Error::new(ErrorKind::Limit, "read the index")
                .path(path)
                .because(format!("it has more than {MAX_INDEX} bytes")));
        }
        serde_json::from_slice(&bytes).map_err(|error| {
            Error::new(ErrorKind::Corrupt, "read the index")
                .path(path)
                .because(format!("it is not an OCI image index: {error}"))
                .source_is(error)
        })
    }

    /// Changes the entries of `index.json` under the index lock: `change` sees all entries, and where it succeeds and
    /// changed something, the file is replaced as a whole. Where it fails, the index stays as it was.
    ///
    /// # Errors
    /// That of `change`, and those of reading and writing the file.
    pub fn update_index<T>(&self, change: impl FnOnce(&mut Vec<IndexEntry>) -> Result<T>) -> Result<T> {
        let _lock = self.lock_index()?;
        let mut index = self.read_index()?;
        let before = index.manifests.clone();
        let result = change(&mut index.manifests)?;
        if index.manifests != before || !self.path("index.json").exists() {
            self.write_index(&index)?;
        } else {
            // What the index names already may be the work of a store without that promise.
            self.settle()?;
        }
        Ok(result)
    }

    /// Writes the index as a whole. The caller has the index lock.
    pub(super) fn write_index(&self, index: &Index) -> Result<()> {
        let bytes = serde_json::to_vec(index)
            .map_err(|error| Error::new(ErrorKind::Invalid, "write the index").source_is(error))?;
        // What cannot be read again must not be written.
        if bytes.len() as u64 > MAX_INDEX {
            return Err(Error::new(ErrorKind::Limit, "write the index")
                .path(self.path("index.json"))
                .because(format!("it would have {} bytes; the limit is {MAX_INDEX}", bytes.len()))
                .remedy("remove names that are not needed, or use another root"));
        }
        self.settle()?;
        // Synced whatever else is: an index of no bytes would be the end of the whole root.
        self.write_synced(&self.path("index.json"), &bytes)
    }

    /// Locks the index against changes.
    pub(super) fn lock_index(&self) -> Result<Held> {
        Lock::new(self.root(), "index", "lock the store").exclusive()
    }
}
