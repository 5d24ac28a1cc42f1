//! A merged view, written out as one plain tree: for hosts where the layers cannot be mounted over each other.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use super::view::{Found, View, as_path};
use crate::sys::fs::{self, Stat, Time};
use crate::sys::xattr;
use crate::{Error, ErrorKind, Result};

const STEP: &str = "copy the image's tree";

fn failed(syscall: &'static str, path: &[u8]) -> impl Fn(io::Error) -> Error {
    move |error| Error::io(STEP, syscall, error).path(as_path(path))
}

/// Copies what `view` shows into the directory `into`, which exists and is empty: types, modes, times, attributes, hard
/// links; with `owners` also owners and device nodes, which take root.
///
/// Links are never followed, on either side. Sockets are left out: nobody listens on a copy.
///
/// # Errors
/// Those of the file system. What was copied stays; the caller removes the tree.
pub(crate) fn copy(view: &View, into: &Path, owners: bool) -> Result<()> {
    let target = File::open(into).map_err(|error| Error::io(STEP, "open", error).path(into))?;
    let mut copier =
        Copier { view, owners, links: HashMap::new(), root: target.try_clone().map_err(failed("fcntl", b"/"))? };
    copier.directory(b"", target.as_fd())?;
    if let Some(found) = view.lookup(b"")? {
        copier.finish(&found, target.as_fd(), b"/")?;
    }
    Ok(())
}

struct Copier<'a> {
    view: &'a View,
    owners: bool,
    /// Where a file with several names was written first.
    links: HashMap<(u64, u64), Vec<u8>>,
    root: File,
}

impl Copier<'_> {
    fn directory(&mut self, path: &[u8], target: BorrowedFd<'_>) -> Result<()> {
        for name in self.view.names(path)?.unwrap_or_default() {
            let mut inner = path.to_vec();
            if !inner.is_empty() {
                inner.push(b'/');
            }
            inner.extend_from_slice(name.to_bytes());
            if let Some(found) = self.view.lookup(&inner)? {
                self.entry(&inner, &name, &found, target)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &[u8], name: &CStr, found: &Found, target: BorrowedFd<'_>) -> Result<()> {
        let stat = &found.stat;
        if !found.is_dir() && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                return self.link(first, target, name, path);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
        }
        match found.file_type() {
            libc::S_IFDIR => {
                fs::mkdirat(target, name, 0o700).map_err(failed("mkdirat", path))?;
                let made = fs::open_dir(target, name).map_err(failed("openat", path))?;
                self.directory(path, made.as_fd())?;
                self.finish(found, made.as_fd(), path)
            }
            libc::S_IFREG => {
                let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
                let mut made = File::from(fs::openat(target, name, flags, 0o600).map_err(failed("openat", path))?);
                let mut from = File::from(found.open().map_err(failed("openat", path))?);
                // copy_file_range(2) underneath: a reflink where the file system has them.
                io::copy(&mut from, &mut made).map_err(failed("copy_file_range", path))?;
                self.finish(found, made.as_fd(), path)
            }
            libc::S_IFLNK => {
                let link = CString::new(found.target().map_err(failed("readlinkat", path))?)
                    .map_err(|_| Error::new(ErrorKind::Corrupt, STEP).path(as_path(path)))?;
                fs::symlinkat(&link, target, name).map_err(failed("symlinkat", path))?;
                if self.owners {
                    fs::lchownat(target, name, stat.st_uid, stat.st_gid).map_err(failed("fchownat", path))?;
                }
                fs::lutimensat(target, name, time(stat)).map_err(failed("utimensat", path))
            }
            libc::S_IFIFO => {
                fs::mknodat(target, name, libc::S_IFIFO | 0o600, 0).map_err(failed("mknodat", path))?;
                self.finish_node(found, target, name, path)
            }
            libc::S_IFCHR | libc::S_IFBLK if self.owners => {
                let kind = found.file_type() | 0o600;
                fs::mknodat(target, name, kind, stat.st_rdev).map_err(failed("mknodat", path))?;
                self.finish_node(found, target, name, path)
            }
            _ => Ok(()),
        }
    }

    fn link(&self, first: &[u8], target: BorrowedFd<'_>, name: &CStr, path: &[u8]) -> Result<()> {
        let first = fs::c_string(first).map_err(failed("linkat", path))?;
        // The first name lies in a tree that this copy makes and that nobody else knows yet.
        fs::linkat(self.root.as_fd(), &first, target, name).map_err(failed("linkat", path))
    }

    fn finish_node(&self, found: &Found, target: BorrowedFd<'_>, name: &CStr, path: &[u8]) -> Result<()> {
        if self.owners {
            fs::lchownat(target, name, found.stat.st_uid, found.stat.st_gid).map_err(failed("fchownat", path))?;
        }
        let handle = fs::open_handle(target, name).map_err(failed("openat", path))?;
        fs::chmod_handle(handle.as_fd(), found.stat.st_mode & 0o7777).map_err(failed("chmod", path))?;
        fs::lutimensat(target, name, time(&found.stat)).map_err(failed("utimensat", path))
    }

    /// Owner, attributes, mode, time: in this order, since each may undo a later one.
    fn finish(&self, found: &Found, made: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
        let stat = &found.stat;
        if self.owners {
            fs::fchown(made, stat.st_uid, stat.st_gid).map_err(failed("fchownat", path))?;
        }
        let from = found.open().map_err(failed("openat", path))?;
        for name in xattr::list(from.as_fd()).map_err(failed("flistxattr", path))? {
            let overlay = [&b"trusted.overlay."[..], b"user.overlay."];
            if overlay.iter().any(|prefix| name.to_bytes().starts_with(prefix)) {
                continue;
            }
            let Some(value) = xattr::get(from.as_fd(), &name).map_err(failed("fgetxattr", path))? else { continue };
            match xattr::set(made, &name, &value) {
                // What only root may set is not there without root.
                Err(error) if !self.owners && error.raw_os_error() == Some(libc::EPERM) => {}
                other => other.map_err(failed("fsetxattr", path))?,
            }
        }
        fs::fchmod(made, stat.st_mode & 0o7777).map_err(failed("fchmod", path))?;
        fs::futimens(made, time(stat)).map_err(failed("futimens", path))
    }
}

fn time(stat: &Stat) -> Time {
    Time { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_copy_shows_what_the_view_shows() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["low/a/b", "up/a", "out"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        std::fs::write(at("low/a/b/old"), "old").unwrap();
        std::fs::write(at("low/a/gone"), "x").unwrap();
        std::fs::write(at("up/a/new"), "new").unwrap();
        std::fs::hard_link(at("up/a/new"), at("up/a/twin")).unwrap();
        std::fs::set_permissions(at("low/a/b/old"), std::fs::Permissions::from_mode(0o4751)).unwrap();
        symlink("/etc/passwd", at("low/link")).unwrap();
        let device = nix::sys::stat::makedev(0, 0);
        let (kind, mode) = (nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::empty());
        nix::sys::stat::mknod(&at("up/a/gone"), kind, mode, device).unwrap();
        let view = View::new([at("up"), at("low")]).unwrap();
        copy(&view, &at("out"), nix::unistd::geteuid().is_root()).unwrap();
        assert!(!at("out/a/gone").exists());
        assert_eq!(std::fs::read_link(at("out/link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(std::fs::read(at("out/a/b/old")).unwrap(), b"old");
        let (old, was) = (at("out/a/b/old").metadata().unwrap(), at("low/a/b/old").metadata().unwrap());
        assert_eq!((old.mode(), old.mtime_nsec(), old.uid()), (was.mode(), was.mtime_nsec(), was.uid()));
        assert_eq!(at("out/a/new").metadata().unwrap().ino(), at("out/a/twin").metadata().unwrap().ino());
    }
}
