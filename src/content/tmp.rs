//! Things being made. A file or directory here is locked (flock(2)) by its maker for as long as it lives in `tmp/`;
//! the kernel drops the lock however the maker ends, and then the thing is garbage that anyone may sweep.
//!
//! Maker and sweeper can meet between creation and lock: the sweeper then has an empty thing, and the maker makes another.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Durability;
use super::lock::Held;
use crate::{Error, ErrorKind, Result, sys};

/// A name that nobody else has.
fn random_name() -> Result<String> {
    let mut bytes = [0; 8];
    sys::random::fill(&mut bytes)?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

const STEP: &str = "make a temporary file of the store";

/// Locks what was made at `path` a moment ago; false where a sweeper has taken it for a dead maker's, and another has to be
/// made. Nobody is waited for: a sweeper may keep its find for long, and may itself wait for a lock that the maker has.
pub(crate) fn take_new(file: &File, path: &Path) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(file.metadata()?.nlink() > 0),
        Err(TryLockError::WouldBlock) => {
            // Who only looks for garbage would leave it there.
            let _ = remove(path);
            Ok(false)
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Makes something at a fresh path with `make` and locks what it returns.
fn create_locked(dir: &Path, make: impl Fn(&Path) -> io::Result<File>) -> Result<(PathBuf, File)> {
    // Each round lost means that a sweeper came exactly between; a second loss in a row is already improbable.
    for _ in 0..100 {
        let path = dir.join(random_name()?);
        let file = match make(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            // Swept between making and opening a directory.
            Err(error) if error.kind() == io::ErrorKind::NotFound && dir.exists() => continue,
            Err(error) => return Err(Error::io(STEP, "open", error).path(path)),
        };
        if take_new(&file, &path).map_err(|error| Error::io(STEP, "flock", error).path(&path))? {
            return Ok((path, file));
        }
    }
    Err(Error::new(ErrorKind::Conflict, STEP).path(dir).because("others keep removing it"))
}

/// A file being made; dropping it removes it.
#[derive(Debug)]
pub(crate) struct TmpFile {
    path: Option<PathBuf>,
    file: File,
}

impl TmpFile {
    /// An empty file in `dir`, for reading and writing.
    pub(crate) fn create(dir: &Path) -> Result<TmpFile> {
        let (path, file) = create_locked(dir, |path| {
            fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
        })?;
        Ok(TmpFile { path: Some(path), file })
    }

    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives it its final name, replacing what has that name.
    pub(crate) fn publish(mut self, to: &Path, durability: Durability) -> Result<()> {
        if durability == Durability::Full {
            self.file.sync_all().map_err(|error| Error::io("write to the store", "fsync", error).path(to))?;
        }
        if let Some(path) = &self.path {
            fs::rename(path, to).map_err(|error| Error::io("write to the store", "rename", error).path(to))?;
        }
        self.path = None;
        sync_parent(to, durability)
    }
}

impl Drop for TmpFile {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // What cannot be removed now is swept later.
            let _ = fs::remove_file(path);
        }
    }
}

/// Makes the name `path` durable.
pub(crate) fn sync_parent(path: &Path, durability: Durability) -> Result<()> {
    if durability == Durability::Full
        && let Some(parent) = path.parent()
    {
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(|error| Error::io("write to the store", "fsync", error).path(parent))?;
    }
    Ok(())
}

/// A directory being made; dropping it removes it with everything in it.
#[derive(Debug)]
pub(crate) struct TmpDir {
    path: Option<PathBuf>,
    dir: File,
}

impl TmpDir {
    /// An empty directory in `dir` of mode 0700.
    pub(crate) fn create(dir: &Path) -> Result<TmpDir> {
        let (path, dir) = create_locked(dir, |path| {
            fs::DirBuilder::new().mode(0o700).create(path)?;
            File::open(path)
        })?;
        Ok(TmpDir { path: Some(path), dir })
    }

    /// Where it is now.
    pub(crate) fn path(&self) -> &Path {
        // Only `publish` takes the path away, and it takes the whole value.
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// The directory itself, open for reading.
    pub(crate) fn dir(&self) -> &File {
        &self.dir
    }

    /// Gives it its final name. An empty directory of that name is replaced, anything else is an error of kind
    /// [`ErrorKind::Conflict`] or [`ErrorKind::AlreadyExists`]. The caller has synced the contents.
    pub(crate) fn publish(mut self, to: &Path, durability: Durability) -> Result<()> {
        fs::rename(self.path(), to).map_err(|error| Error::io("write to the store", "rename", error).path(to))?;
        self.path = None;
        sync_parent(to, durability)
    }
}

impl Drop for TmpDir {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // What cannot be removed now is swept later.
            let _ = remove(path);
        }
    }
}

/// A directory that was visible and is now on its way out, locked by us.
#[derive(Debug)]
pub(crate) struct Buried {
    /// Its name in `tmp/`.
    pub(crate) name: OsString,
    _lock: Option<Held>,
}

/// Takes the directory `path` out of sight, into `dir`; `None` where it is gone, or somebody else is doing the same.
/// Needs no space on the disk.
pub(crate) fn bury(path: &Path, dir: &Path) -> io::Result<Option<Buried>> {
    let flags = libc::O_NOFOLLOW | libc::O_DIRECTORY;
    let file = match fs::OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    // Keeps sweepers away. Where it cannot be had, by a copy in a fork of the host program say, one of them may help.
    let lock = Held::try_take(file)?;
    let name = random_name()?;
    match fs::rename(path, dir.join(&name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(|()| Some(Buried { name: name.into(), _lock: lock })),
    }
}

/// Removes `path`, whatever it is.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    sys::fs::remove_tree(File::open(parent)?.as_fd(), name)
}

/// Removes what dead makers left in `dir`.
pub(crate) fn sweep(dir: &Path) -> io::Result<()> {
    let parent = File::open(dir)?;
    for name in stale(dir)? {
        // One stubborn tree does not save the others.
        let _ = sys::fs::remove_tree(parent.as_fd(), &name.name);
    }
    Ok(())
}

/// Something in `tmp/` that nobody makes any more; ours as long as this value holds its lock.
pub(crate) struct Stale {
    pub(crate) name: OsString,
    _lock: Held,
}

/// What dead makers left in `dir`, locked.
pub(crate) fn stale(dir: &Path) -> io::Result<Vec<Stale>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let Ok(file) =
            fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(entry.path())
        else {
            continue;
        };
        let lock = Held::try_take(file)?;
        found.extend(lock.map(|lock| Stale { name: entry.file_name(), _lock: lock }));
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn a_maker_waits_for_no_sweeper() {
        let dir = tempfile::tempdir().unwrap();
        let sweeper = RefCell::new(None);
        let (path, file) = create_locked(dir.path(), |path| {
            let made = File::create_new(path)?;
            if sweeper.borrow().is_none() {
                let seen = File::open(path)?;
                seen.lock()?;
                *sweeper.borrow_mut() = Some(seen);
            }
            Ok(made)
        })
        .unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 1);
        // What the sweeper has is gone, too.
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(names, [path]);
    }
}
