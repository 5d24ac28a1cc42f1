//! Writing a blob.

use std::fs;
use std::io::{self, Write};

use super::tmp::TmpFile;
use super::{Lease, Store, corrupt_blob, make_dir};
use crate::name::{Algorithm, Digest, Hasher};
use crate::{Error, ErrorKind, Result};

/// Bytes are gathered up to this size before they go to the file.
const BUFFER: usize = 256 * 1024;

/// A blob being written, hashed on the way. Dropping it leaves nothing behind.
///
/// Bytes beyond the announced size are refused by [`Write::write`] at once, so that an endless stream fills no disk.
#[derive(Debug)]
pub struct Ingest {
    store: Store,
    file: TmpFile,
    hasher: Hasher,
    expected: Option<Digest>,
    size: Option<u64>,
    written: u64,
    buffer: Vec<u8>,
}

impl Ingest {
    pub(super) fn new(store: Store, expected: Option<Digest>, size: Option<u64>) -> Result<Ingest> {
        let file = TmpFile::create(&store.path("tmp"))?;
        let algorithm = expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        Ok(Ingest { store, file, hasher: Hasher::new(algorithm), expected, size, written: 0, buffer: Vec::new() })
    }

    /// The number of bytes taken so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    fn flush_buffer(&mut self) -> io::Result<()> {
        self.file.file().write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Checks digest and size and makes the blob visible. One that is there already is fine.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where the bytes are not those announced; nothing is left behind.
    pub fn commit(self) -> Result<Digest> {
        self.commit_with(None)
    }

    /// [`Ingest::commit`] of a blob whose digest could not be held before, since it is known only now: `lease` holds it
    /// from the moment that it is visible.
    ///
    /// # Errors
    /// Those of [`Ingest::commit`] and of [`Lease::hold`].
    pub fn commit_held(self, lease: &Lease) -> Result<Digest> {
        self.commit_with(Some(lease))
    }

    fn commit_with(mut self, lease: Option<&Lease>) -> Result<Digest> {
        self.flush_buffer().map_err(|error| Error::io("write a blob", "write", error))?;
        let Ingest { store, file, hasher, expected, size, written, .. } = self;
        let digest = hasher.finish();
        if let Some(size) = size
            && size != written
        {
            let name = expected.as_ref().unwrap_or(&digest);
            return Err(Error::new(ErrorKind::Corrupt, format!("verify the blob {name}"))
                .because(format!("it has {written} bytes and should have {size}")));
        }
        if let Some(expected) = expected
            && expected != digest
        {
            return Err(corrupt_blob(&expected, &digest));
        }
        // Before it is visible, so that no collection comes between.
        if let Some(lease) = lease {
            lease.hold(&digest)?;
        }
        let path = store.blob_path(&digest);
        // A loss of power under relaxed durability may have cut the older one short.
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == written) {
            return Ok(digest);
        }
        if digest.algorithm() != Algorithm::Sha256
            && let Some(dir) = path.parent()
        {
            make_dir(dir)?;
            super::tmp::sync_parent(dir, store.durability())?;
        }
        file.publish(&path, store.durability())?;
        Ok(digest)
    }
}

impl Write for Ingest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.written.saturating_add(bytes.len() as u64);
        if let Some(size) = self.size
            && written > size
        {
            return Err(Error::new(ErrorKind::Corrupt, "write a blob")
                .because(format!("it is longer than the {size} bytes that were announced"))
                .into());
        }
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush_buffer()?;
        }
        if bytes.len() >= BUFFER {
            self.file.file().write_all(bytes)?;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        self.hasher.update(bytes);
        self.written = written;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flush_buffer()
    }
}
