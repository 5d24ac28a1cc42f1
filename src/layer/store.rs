//! Unpacked layers on disk.

use std::path::{Path, PathBuf};

use super::{Limits, Ownership, WhiteoutFormat};
use crate::name::{ChainId, DiffId, Digest};
use crate::{Error, ErrorKind, Result, content};

/// How layers are unpacked.
#[derive(Debug, Clone, Default)]
pub struct LayerOptions {
    /// Whom the files belong to.
    pub ownership: Ownership,
    /// How whiteouts are written.
    pub whiteouts: WhiteoutFormat,
    /// What one layer may cost.
    pub limits: Limits,
}

/// How far a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// Which layer.
    pub diff_id: DiffId,
    /// Bytes of the blob that are read.
    pub done: u64,
    /// Bytes that the blob has.
    pub total: u64,
}

/// An unpacked layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    tree: PathBuf,
    diff_id: DiffId,
    chain_id: Option<ChainId>,
    bytes: u64,
    entries: u64,
}

impl Layer {
    /// The directory that holds the layer's files; never changed.
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// What it is.
    pub fn diff_id(&self) -> &DiffId {
        &self.diff_id
    }

    /// The stack that it belongs to, where what it unpacked to depends on the layers below.
    pub fn chain_id(&self) -> Option<&ChainId> {
        self.chain_id.as_ref()
    }

    /// Bytes of its regular files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Entries of its tar.
    pub fn entries(&self) -> u64 {
        self.entries
    }
}

/// The unpacked layers of a root.
#[derive(Debug, Clone)]
pub struct LayerStore {
    content: content::Store,
    options: LayerOptions,
}

impl LayerStore {
    /// Opens the layers beside the blobs of `content`.
    ///
    /// # Errors
    /// Where the directory cannot be made.
    pub fn open(content: &content::Store, options: LayerOptions) -> Result<LayerStore> {
        Ok(LayerStore { content: content.clone(), options })
    }

    /// The unpacked layer of `blob`, unpacking it first where it is not there.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where the blob is absent; [`ErrorKind::Corrupt`] where blob or tar do not have their
    /// digests; [`ErrorKind::Hostile`] and [`ErrorKind::Limit`] for what the tar attempts. Nothing is left behind.
    pub fn ensure(&self, blob: &Digest, diff_id: &DiffId, below: &[Layer]) -> Result<Layer> {
        let _ = (blob, diff_id, below, &self.content, &self.options);
        Err(Error::new(ErrorKind::Unsupported, "unpack the layer"))
    }

    /// The unpacked layers of a whole image, lowest first, several at a time.
    ///
    /// # Errors
    /// Those of [`LayerStore::ensure`].
    pub fn ensure_all(
        &self,
        layers: &[(Digest, DiffId)],
        progress: Option<&(dyn Fn(LayerProgress) + Send + Sync)>,
    ) -> Result<Vec<Layer>> {
        let _ = (layers, progress);
        Err(Error::new(ErrorKind::Unsupported, "unpack the layers"))
    }

    /// The unpacked layers of the stack `diff_ids`, lowest first; `None` where one of them is not there.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn find(&self, diff_ids: &[DiffId]) -> Result<Option<Vec<Layer>>> {
        let _ = diff_ids;
        Err(Error::new(ErrorKind::Unsupported, "find the layers"))
    }

    /// All unpacked layers.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Layer>> {
        Err(Error::new(ErrorKind::Unsupported, "list the layers"))
    }

    /// Removes a layer's tree; one that is gone is fine. The caller knows that no image and no container needs it.
    ///
    /// # Errors
    /// Where something of it stays; it is out of sight even then, and swept by the next open.
    pub fn remove(&self, layer: &Layer) -> Result<()> {
        let _ = layer;
        Err(Error::new(ErrorKind::Unsupported, "remove the layer"))
    }
}
