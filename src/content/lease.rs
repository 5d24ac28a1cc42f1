//! Holding blobs that no tag names yet.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::Store;
use super::lock::{Held, Lock};
use super::tmp;
use crate::name::Digest;
use crate::{Error, Result, sys};

/// Keeps blobs from [`Store::gc`] for as long as it lives, also against other processes.
///
/// A lease is a locked file: however the process ends, the lock goes, and the next collection removes the file.
#[derive(Debug)]
pub struct Lease {
    store: Store,
    path: PathBuf,
    file: Mutex<Lines>,
}

/// A lease's file.
#[derive(Debug)]
struct Lines {
    file: File,
    /// How much of it is whole lines.
    whole: u64,
}

const STEP: &str = "lease blobs of the store";

impl Lease {
    /// Holds `digest`, whether or not the blob is there already. Waits for a collection under way, so what
    /// [`Store::contains`] says *after* this stays true until the lease is dropped.
    ///
    /// # Errors
    /// Where the lease's file cannot be written.
    pub fn hold(&self, digest: &Digest) -> Result<()> {
        self.hold_all([digest])
    }

    /// Holds several digests. The unpacked layer of a DiffID that is held stays as well.
    ///
    /// # Errors
    /// Those of [`Lease::hold`].
    pub fn hold_all<'a>(&self, digests: impl IntoIterator<Item = &'a Digest>) -> Result<()> {
        let lines: String = digests.into_iter().map(|digest| format!("{digest}\n")).collect();
        let _no_gc = self.store.gc_lock().share()?;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.append(lines.as_bytes()).map_err(|error| Error::io(STEP, "write", error).path(&self.path))
    }
}

impl Lines {
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        // What a failed write left would become one line with the next digest.
        if self.file.metadata()?.len() > self.whole {
            self.file.set_len(self.whole)?;
        }
        let written = self.file.write_all(lines);
        match written {
            Ok(()) => self.whole += lines.len() as u64,
            // Where this fails, the next call does it.
            Err(_) => drop(self.file.set_len(self.whole)),
        }
        written
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
            if tmp::take_new(&file, &path).map_err(|error| Error::io(STEP, "flock", error).path(&path))? {
                return Ok(Lease { store: self.clone(), path, file: Mutex::new(Lines { file, whole: 0 }) });
            }
        }
    }

    /// What keeps collections away while it is shared.
    pub(super) fn gc_lock(&self) -> Lock {
        Lock::new(self.root(), "gc", "lock the store")
    }

    /// The leases as they are. Who has the gc lock alone knows that no live one changes.
    pub(crate) fn leases(&self) -> Result<Leases> {
        let dir = self.path("leases");
        let mut leases = Leases::default();
        for entry in fs::read_dir(&dir).map_err(|error| Error::io(STEP, "readdir", error).path(&dir))? {
            let path = entry.map_err(|error| Error::io(STEP, "readdir", error).path(&dir))?.path();
            let mut file = match fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(|error| Error::io(STEP, "open", error).path(&path))?,
            };
            let copy = file.try_clone().map_err(|error| Error::io(STEP, "fcntl", error).path(&path))?;
            if let Some(lock) = Held::try_take(copy).map_err(|error| Error::io(STEP, "flock", error).path(&path))? {
                leases.dead.push((path, lock));
                continue;
            }
            leases.live += 1;
            let mut text = String::new();
            file.read_to_string(&mut text).map_err(|error| Error::io(STEP, "read", error).path(&path))?;
            // On a full disk a line may have been cut short; whoever wrote it was told, and holds nothing by it.
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            for line in whole.lines() {
                leases.held.push(line.parse::<Digest>().map_err(|error| error.path(&path))?);
            }
        }
        Ok(leases)
    }
}

/// See [`Store::leases`].
#[derive(Debug, Default)]
pub(crate) struct Leases {
    /// What live leases hold.
    pub(crate) held: Vec<Digest>,
    /// How many of them live.
    pub(crate) live: usize,
    /// Files of dead ones, locked by us so that nobody else takes them for his.
    pub(crate) dead: Vec<(PathBuf, Held)>,
}

impl Leases {
    /// Removes what dead programs left.
    pub(crate) fn bury(&self) {
        for (path, _) in &self.dead {
            // What cannot be removed now is garbage for the next collection.
            let _ = fs::remove_file(path);
        }
    }
}
