//! Writing a blob.

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
    /// A write failed, so what is in the file is not what was hashed.
    failed: bool,
}

impl Ingest {
    pub(super) fn new(store: Store, expected: Option<Digest>, size: Option<u64>) -> Result<Ingest> {
        let file = TmpFile::create(&store.path("tmp"))?;
        let algorithm = expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        Ok(Ingest {
            store,
            file,
            hasher: Hasher::new(algorithm),
            expected,
            size,
            written: 0,
            buffer: Vec::new(),
            failed: false,
        })
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

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.written.saturating_add(bytes.len() as u64);
        if let Some(size) = self.size
            && written > size
        {
            return Err(Error::new(ErrorKind::Corrupt, "verify a blob")
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
        Ok(())
    }

    /// After the first error there is no other outcome: part of the bytes may be in the file already.
    fn unless_failed(&mut self, act: impl FnOnce(&mut Ingest) -> io::Result<()>) -> io::Result<()> {
        if self.failed {
            return Err(Error::new(ErrorKind::Invalid, "write a blob")
                .because("an earlier write of it failed")
                .remedy("begin it again")
                .into());
        }
        let outcome = act(self);
        self.failed = outcome.is_err();
        outcome
    }

    /// Checks digest and size and makes the blob visible. One that is there already is replaced: these bytes are known
    /// to be right, and those of the older one may be damaged.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where the bytes are not those announced; any error after a write that failed. Nothing is
    /// left behind.
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
        self.unless_failed(Ingest::flush_buffer).map_err(|error| Error::io("write a blob", "write", error))?;
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
        self.unless_failed(|ingest| ingest.take(bytes)).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.unless_failed(Ingest::flush_buffer)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;
    use crate::content::Durability;

    #[test]
    fn after_a_failed_write_nothing_is_published() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open_with(&place.path().join("root"), Durability::Relaxed).unwrap();
        let mut ingest = store.ingest(None, None).unwrap();
        ingest.write_all(b"first").unwrap();
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let file = std::mem::replace(ingest.file.file(), full);
        assert_eq!(ingest.flush().unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        *ingest.file.file() = file;
        let error = ingest.write_all(b"second").unwrap_err();
        assert!(error.to_string().contains("an earlier write of it failed"), "{error}");
        assert!(ingest.flush().is_err());
        let error = ingest.commit().unwrap_err();
        assert!(format!("{error:?}").contains("an earlier write of it failed"), "{error:?}");
        assert!(store.blobs().unwrap().is_empty());
        assert_eq!(fs::read_dir(store.path("tmp")).unwrap().count(), 0);
    }
}
