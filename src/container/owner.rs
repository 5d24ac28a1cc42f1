//! Which process a container belongs to: a locked file per runtime. However the process ends, the kernel takes the lock
//! away; the guardian holds it too, so it goes only after the last container is reaped. So does a fork of the program that
//! does not exec: what a killed program leaves stays as long as that lives.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::content::lock::Held;
use crate::content::tmp;
use crate::{Error, Result, sys};

const STEP: &str = "mark this program as an owner of containers";

/// This runtime's mark.
#[derive(Debug)]
pub(crate) struct Owner {
    name: String,
    path: PathBuf,
    file: File,
}

impl Owner {
    /// Makes `<root>/owners/<name>` and locks it.
    pub(crate) fn new(root: &Path) -> Result<Owner> {
        let dir = root.join("owners");
        super::make_directory(&dir, STEP)?;
        loop {
            let mut bytes = [0; 8];
            sys::random::fill(&mut bytes)?;
            let name = format!("{:016x}", u64::from_ne_bytes(bytes));
            let path = dir.join(&name);
            let fail = |syscall| {
                let path = path.clone();
                move |error| Error::io(STEP, syscall, error).path(path)
            };
            let file = match File::options().write(true).create_new(true).mode(0o600).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                other => other.map_err(fail("open"))?,
            };
            if tmp::take_new(&file, &path).map_err(fail("flock"))? {
                return Ok(Owner { name, path, file });
            }
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The lock, for the guardian to hold as well.
    pub(crate) fn lock(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Containers that outlive the engine still name it; then it stays, and the next sweep takes it.
        if std::fs::metadata(&self.path).is_ok_and(|status| status.nlink() == 1) && !self.is_named() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Owner {
    /// Does a container's record name this owner? False only where that is certain.
    fn is_named(&self) -> bool {
        let Some(root) = self.path.parent().and_then(Path::parent) else { return false };
        !super::record::all_for_certain(root).is_ok_and(|all| all.iter().all(|record| record.owner != self.name))
    }
}

/// Does the process live that made the mark (or its guardian, with containers left)? False only where that is certain:
/// what a dead one's container wrote is removed.
pub(crate) fn lives(root: &Path, name: &str) -> bool {
    // A name from a record, so from a file of ours; still no path.
    if name.contains('/') || name.is_empty() {
        return false;
    }
    let file = match File::open(root.join("owners").join(name)) {
        Ok(file) => file,
        Err(error) => return error.kind() != io::ErrorKind::NotFound,
    };
    match file.try_lock_shared() {
        Ok(()) => {
            // A copy in a fork of the host program would keep it.
            let _ = file.unlock();
            false
        }
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => true,
    }
}

/// The marks that nobody holds and no container names any more, locked by us.
pub(crate) fn stale(root: &Path, named: &[String]) -> Vec<(PathBuf, Held)> {
    let Ok(entries) = std::fs::read_dir(root.join("owners")) else { return vec![] };
    let mut stale = vec![];
    for entry in entries.flatten() {
        if named.iter().any(|name| entry.file_name() == name.as_str()) {
            continue;
        }
        if let Ok(file) = File::open(entry.path())
            && let Ok(Some(lock)) = Held::try_take(file)
        {
            stale.push((entry.path(), lock));
        }
    }
    stale
}

/// Removes the marks that nobody holds and no container names any more; whether there were any.
pub(crate) fn sweep(root: &Path, named: &[String]) -> bool {
    let stale = stale(root, named);
    for (path, _locked) in &stale {
        let _ = std::fs::remove_file(path);
    }
    !stale.is_empty()
}
