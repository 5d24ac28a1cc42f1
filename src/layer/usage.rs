//! What trees take on disk.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use super::{Layer, Ownership};
use crate::content::{Measured, Usage};
use crate::{Error, Result, sys};

/// What the directory `path` and everything below it takes, with the help of whoever may look where we may not.
///
/// # Errors
/// [`NotFound`](crate::ErrorKind::NotFound) where there is none; `EACCES` where nobody may look.
pub(crate) fn measure(path: &Path, ownership: &Ownership) -> Result<Measured> {
    let failed = |syscall| move |error| Error::io("measure the directory", syscall, error).path(path);
    let dir = match (File::open(path), ownership) {
        // A handle is enough for who enters by other rights.
        (Err(error), Ownership::Mapped(_)) if error.raw_os_error() == Some(libc::EACCES) => {
            use std::os::unix::fs::OpenOptionsExt;
            File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(path)
        }
        (opened, _) => opened,
    };
    let dir = dir.map_err(failed("open"))?;
    match ownership {
        Ownership::Mapped(reown) => reown.measure(dir.as_fd()),
        _ => sys::usage::measure(dir.as_fd()).map_err(failed("openat")),
    }
}

impl Layer {
    /// What its unpacked files take, as du(1) counts it: allocated blocks, hard links once. `ownership` is the layer
    /// store's, see [`LayerOptions`](super::LayerOptions).
    ///
    /// # Errors
    /// Those of reading its directories.
    pub fn usage(&self, ownership: &Ownership) -> Result<Usage> {
        measure(self.tree(), ownership).map(|found| found.usage())
    }
}
