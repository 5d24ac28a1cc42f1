//! Locks between programs: flock(2) on files that stay where they are.
//!
//! The kernel gives a lock that is shared to everyone who shares it, also while somebody waits to have it alone; an
//! unbroken stream of sharers would keep that one waiting for ever. So there is a **gate** beside such a lock: sharers
//! pass through it, and whoever waits to be alone keeps it closed meanwhile. What is shared is therefore to be held
//! shortly. A thread that shares a lock already does not pass the gate again: whoever keeps that closed waits for it.

use std::cell::RefCell;
use std::fs::{self, File, TryLockError};
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A lock file.
#[derive(Debug, Clone)]
pub(crate) struct Lock {
    path: PathBuf,
    step: &'static str,
}

/// A lock that is held; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Held {
    file: File,
    /// Where it is shared, for [`SHARED`].
    shared: Option<PathBuf>,
    /// Not to be sent to another thread, whose list of locks is another one.
    _here: PhantomData<*const ()>,
}

thread_local! {
    /// What this thread shares now.
    static SHARED: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
}

impl Held {
    /// Locks something that is open, when nobody else has it locked.
    pub(crate) fn try_take(file: File) -> io::Result<Option<Held>> {
        match file.try_lock() {
            Ok(()) => Ok(Some(Held::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// [`try_take`](Held::try_take) of a file that whoever has it locked may remove: `None` where that has happened, for
    /// another file may have the name by now.
    pub(crate) fn try_take_named(file: File) -> io::Result<Option<Held>> {
        let held = Held::try_take(file)?;
        match &held {
            Some(Held { file, .. }) if file.metadata()?.nlink() == 0 => Ok(None),
            _ => Ok(held),
        }
    }

    /// Locks something that is open; waits until nobody else has it locked.
    pub(crate) fn take(file: File) -> io::Result<Held> {
        wait(|| file.lock())?;
        Ok(Held::new(file))
    }

    fn new(file: File) -> Held {
        Held { file, shared: None, _here: PhantomData }
    }
}

/// Waits for a lock, also when a signal handler of the host program runs meanwhile.
pub(crate) fn wait(lock: impl Fn() -> io::Result<()>) -> io::Result<()> {
    loop {
        match lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Closing would not do where the host program has forked meanwhile: the copy keeps the lock.
        let _ = self.file.unlock();
        if let Some(path) = &self.shared {
            // A thread that is ending has no list any more, and takes no lock.
            let _ = SHARED.try_with(|shared| {
                let mut shared = shared.borrow_mut();
                shared.iter().position(|other| other == path).map(|place| shared.swap_remove(place))
            });
        }
    }
}

impl Lock {
    /// The lock `<root>/<name>.lock`; `step` is what failing to get it is called.
    pub(crate) fn new(root: &Path, name: &str, step: &'static str) -> Lock {
        Lock { path: root.join(format!("{name}.lock")), step }
    }

    /// Waits until nobody has it alone, and shares it.
    pub(crate) fn share(&self) -> Result<Held> {
        let again = SHARED.with(|shared| shared.borrow().contains(&self.path));
        let _through = if again { None } else { Some(self.take(&self.gate(), File::lock_shared)?) };
        let mut held = self.take(&self.path, File::lock_shared)?;
        SHARED.with(|shared| shared.borrow_mut().push(self.path.clone()));
        held.shared = Some(self.path.clone());
        Ok(held)
    }

    /// Waits until nobody else has it, and keeps it so.
    pub(crate) fn alone(&self) -> Result<Held> {
        let _closed = self.take(&self.gate(), File::lock)?;
        self.take(&self.path, File::lock)
    }

    /// [`Lock::alone`] for a lock that nobody ever shares, which needs no gate.
    pub(crate) fn exclusive(&self) -> Result<Held> {
        self.take(&self.path, File::lock)
    }

    /// [`Lock::alone`], when that needs no waiting.
    pub(crate) fn try_alone(&self) -> Result<Option<Held>> {
        Held::try_take(self.open(&self.path)?).map_err(|error| self.failed("flock", &self.path, error))
    }

    fn gate(&self) -> PathBuf {
        self.path.with_extension("gate")
    }

    fn take(&self, path: &Path, lock: impl Fn(&File) -> io::Result<()>) -> Result<Held> {
        let file = self.open(path)?;
        wait(|| lock(&file)).map_err(|error| self.failed("flock", path, error))?;
        Ok(Held::new(file))
    }

    fn open(&self, path: &Path) -> Result<File> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.open(path).map_err(|error| self.failed("open", path, error))
    }

    fn failed(&self, syscall: &'static str, path: &Path, error: io::Error) -> Error {
        Error::io(self.step, syscall, error).path(path)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_stream_of_sharers_does_not_starve_who_wants_it_alone() {
        let place = tempfile::tempdir().unwrap();
        let lock = Lock::new(place.path(), "it", "lock it");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    // Each has the next one before it gives this one back: the lock is never free.
                    while !done.load(Ordering::Relaxed) {
                        let held = lock.share().unwrap();
                        std::thread::sleep(std::time::Duration::from_millis(2));
                        drop(held);
                    }
                });
            }
            for _ in 0..5 {
                drop(lock.alone().unwrap());
            }
            done.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn sharing_again_does_not_wait_for_who_waits_for_us() {
        let place = tempfile::tempdir().unwrap();
        let lock = Lock::new(place.path(), "it", "lock it");
        let held = lock.share().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(lock.alone().unwrap()));
            let gate = File::options().create(true).truncate(false).write(true).open(lock.gate()).unwrap();
            while gate.try_lock().is_ok() {
                gate.unlock().unwrap();
                std::thread::yield_now();
            }
            drop(lock.share().unwrap());
            assert!(!waiting.is_finished());
            drop(held);
        });
        assert!(SHARED.with(|shared| shared.borrow().is_empty()));
    }

    #[test]
    fn a_fork_that_keeps_the_file_does_not_keep_the_lock() {
        let place = tempfile::tempdir().unwrap();
        let lock = Lock::new(place.path(), "it", "lock it");
        let held = lock.alone().unwrap();
        assert!(lock.try_alone().unwrap().is_none());
        assert!(Held::try_take(lock.open(&lock.path).unwrap()).unwrap().is_none());
        // What a fork has: another descriptor of the same open file.
        let copy = held.file.try_clone().unwrap();
        drop(held);
        assert!(lock.try_alone().unwrap().is_some());
        drop(copy);
    }
}
