//! Holding blobs that no tag names yet.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use super::Store;
use super::index::Exclusive;
use crate::name::Digest;
use crate::{Error, Result, sys};

/// Keeps blobs from [`Store::gc`] for as long as it lives, also against other processes.
///
/// A lease is a locked file: however the process ends, the lock goes, and the next collection removes the file.
#[derive(Debug)]
pub struct Lease {
    store: Store,
    path: PathBuf,
    file: File,
}

const STEP: &str = "lease blobs of the store";

impl Lease {
    /// Holds `digest`, whether or not the blob is there already. Waits for a collection under way, so what
    /// [`Store::contains`] says *after* this stays true until the lease is dropped.
    ///
    /// # Errors
    /// Where the lease's file cannot be written.
    pub fn hold(&self, digest: &Digest) -> Result<()> {
        let _no_gc = self.store.lock_file("gc.lock", Exclusive::No)?;
        (&self.file)
            .write_all(format!("{digest}\n").as_bytes())
            .map_err(|error| Error::io(STEP, "write", error).path(&self.path))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // What cannot be removed now is garbage for the next collection.
        let _ = fs::remove_file(&self.path);
    }
}

impl Store {
    /// A new lease that holds nothing yet.
    ///
    /// # Errors
    /// Where no file can be made in `leases/`.
    pub fn lease(&self) -> Result<Lease> {
        loop {
            let mut bytes = [0; 8];
            sys::random::fill(&mut bytes)?;
            let path = self.path("leases").join(format!("{:016x}", u64::from_ne_bytes(bytes)));
            let file = match fs::OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                other => other.map_err(|error| Error::io(STEP, "open", error).path(&path))?,
            };
            file.lock().map_err(|error| Error::io(STEP, "flock", error).path(&path))?;
            // A collection between creation and lock has taken the file for garbage.
            if file.metadata().map_err(|error| Error::io(STEP, "fstat", error).path(&path))?.nlink() > 0 {
                return Ok(Lease { store: self.clone(), path, file });
            }
        }
    }

    /// The digests that live leases hold; removes the files of dead ones. The caller has the gc lock exclusively.
    pub(super) fn leased(&self) -> Result<Vec<Digest>> {
        let dir = self.path("leases");
        let mut held = Vec::new();
        for entry in fs::read_dir(&dir).map_err(|error| Error::io(STEP, "readdir", error).path(&dir))? {
            let path = entry.map_err(|error| Error::io(STEP, "readdir", error).path(&dir))?.path();
            let mut file = match fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(|error| Error::io(STEP, "open", error).path(&path))?,
            };
            match file.try_lock() {
                Ok(()) => {
                    let _ = fs::remove_file(&path);
                    continue;
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(Error::io(STEP, "flock", error).path(&path)),
            }
            let mut text = String::new();
            file.read_to_string(&mut text).map_err(|error| Error::io(STEP, "read", error).path(&path))?;
            for line in text.lines() {
                held.push(line.parse::<Digest>()?);
            }
        }
        Ok(held)
    }
}
