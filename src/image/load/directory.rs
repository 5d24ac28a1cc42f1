//! A layout or an unpacked Docker archive as a directory.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind as IoKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::archive::clean;
use super::session::Session;
use super::{Bundle, STEP};
use crate::error::{Error, ErrorKind, Result};
use crate::image::manifest::MAX_DOCUMENT;
use crate::name::{DiffId, Digest};
use crate::sys::fs::c_string;
use crate::sys::path::Root;

/// The directory and what was read of it.
pub(super) struct Directory {
    path: PathBuf,
    root: Root,
}

impl Directory {
    pub fn new(path: PathBuf) -> Result<Directory> {
        let root = Root::open(&path).map_err(|error| Error::io(STEP, "open", error).path(&path))?;
        Ok(Directory { root, path })
    }

    /// Opens a file of the layout itself. Symbolic links are followed, for build systems make layouts of them; what
    /// they lead to has to be a regular file with the right digest.
    fn open(&self, name: &Path) -> Result<Option<File>> {
        let path = self.path.join(name);
        match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(&path) {
            Ok(file) => regular(file, &path).map(Some),
            Err(error) if error.kind() == IoKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(STEP, "open", error).path(&path)),
        }
    }
}

impl Bundle for Directory {
    fn document(&mut self, name: &'static str) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.open(Path::new(name))? else { return Ok(None) };
        let mut bytes = Vec::new();
        let failed = |error| Error::io(STEP, "read", error).path(name);
        // One byte over the limit is enough to make the parser refuse it with the proper message.
        file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(failed)?;
        Ok(Some(bytes))
    }

    fn blob(&mut self, session: &mut Session, digest: &Digest, size: u64) -> Result<bool> {
        let name = Path::new("blobs").join(digest.algorithm().as_str()).join(digest.hex());
        let Some(mut file) = self.open(&name)? else { return Ok(false) };
        session.take(digest.as_str(), &mut file, Some(digest), size)?;
        Ok(true)
    }

    fn member(&mut self, session: &mut Session, path: &str, layer: Option<&DiffId>) -> Result<Option<(Digest, u64)>> {
        let Some(path) = clean(path)? else { return Ok(None) };
        // Here the archive chose the path, and nothing promises the file's digest: it must not lead out.
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
        let opened = c_string(path.as_bytes()).and_then(|name| self.root.open_in_root(&name, flags, 0));
        let mut file = match opened {
            Ok(fd) => regular(File::from(fd), Path::new(&path))?,
            Err(error) if error.kind() == IoKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(STEP, "openat2", error).path(&path)),
        };
        let size = file.metadata().map_err(|error| Error::io(STEP, "fstat", error).path(&path))?.len();
        if let Some(diff_id) = layer
            && session.has(diff_id.digest(), size)?
        {
            return Ok(Some((diff_id.digest().clone(), size)));
        }
        let digest = session.take(&path, &mut file, None, size)?;
        Ok(Some((digest, size)))
    }
}

fn regular(file: File, path: &Path) -> Result<File> {
    let metadata = file.metadata().map_err(|error| Error::io(STEP, "fstat", error).path(path))?;
    if metadata.is_file() {
        return Ok(file);
    }
    Err(Error::new(ErrorKind::Invalid, STEP).path(path).because("it is not a regular file"))
}
