//! The tree being packed, reached by descriptors.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Access, PackOptions, STEP};
use crate::layer::Limits;
use crate::layer::view::as_path;
use crate::sys::fs::{self, Stat, c_string};
use crate::sys::path::Root;
use crate::{Error, ErrorKind, Result};

/// Directories kept open on the way to the current one; those above them are opened again when they are needed.
const KEPT_OPEN: usize = 64;

/// A tree, and the way to where we are in it.
pub(super) struct Tree {
    path: PathBuf,
    root: OwnedFd,
    access: Option<Arc<dyn Access>>,
    pub(super) limits: Limits,
    way: Vec<(Vec<u8>, Option<OwnedFd>)>,
}

impl Tree {
    pub(super) fn open(path: &Path, options: &PackOptions) -> Result<Tree> {
        let root = Root::open(path).map_err(|error| Error::io(STEP, "open", error).path(path))?.into_dir();
        let (access, limits) = (options.access.clone(), options.limits.clone());
        Ok(Tree { path: path.to_owned(), root, access, limits, way: Vec::new() })
    }

    /// A path of the tree as the caller would write it.
    pub(super) fn shown(&self, path: &[u8]) -> PathBuf {
        self.path.join(as_path(path))
    }

    pub(super) fn failed<'a>(&'a self, syscall: &'static str, path: &'a [u8]) -> impl Fn(io::Error) -> Error + 'a {
        move |error| {
            let errno = error.raw_os_error();
            let error = Error::io(STEP, syscall, error).path(self.shown(path));
            match errno {
                Some(libc::EACCES) => error
                    .because("this user may not read it")
                    .remedy("pack as its owner, or make a tar of the directory as root and import that"),
                // Every name was just seen.
                Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ESTALE) => self.changed(path),
                _ => error,
            }
        }
    }

    /// The error of a limit, a field of [`Limits`], that `path` goes over.
    pub(super) fn exceeds(&self, path: &[u8], name: &str, limit: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::Limit, STEP)
            .path(self.shown(path))
            .because(format!("it goes over the limit `{name}` of {limit}, so that the layer could not be unpacked"))
            .remedy(format!("raise Limits::{name} here, and wherever the layer is unpacked"))
    }

    pub(super) fn changed(&self, path: &[u8]) -> Error {
        Error::new(ErrorKind::Conflict, STEP)
            .path(self.shown(path))
            .because("it was changed, replaced or removed while it was being packed")
    }

    /// The open directory at `path`.
    pub(super) fn dir(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>> {
        let components: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
        if components.len() > self.limits.depth {
            return Err(self.exceeds(path, "depth", self.limits.depth));
        }
        let common = self.way.iter().zip(&components).take_while(|((name, _), other)| name == *other).count();
        self.way.truncate(common);
        let mut index = common;
        while index > 0 && self.way[index - 1].1.is_none() {
            index -= 1;
        }
        while let Some(name) = components.get(index) {
            let parent = match index.checked_sub(1).and_then(|above| self.way[above].1.as_ref()) {
                Some(parent) => parent.as_fd(),
                None => self.root.as_fd(),
            };
            let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
            let opened = c_string(name).and_then(|name| self.open_in(parent, &name, flags));
            let opened = opened.map_err(self.failed("openat", &components[..=index].join(&b'/')))?;
            match self.way.get_mut(index) {
                Some((_, slot)) => *slot = Some(opened),
                None => self.way.push((name.to_vec(), Some(opened))),
            }
            if let Some(above) = index.checked_sub(KEPT_OPEN) {
                self.way[above].1 = None;
            }
            index += 1;
        }
        match self.way.last() {
            Some((_, Some(dir))) => Ok(dir.as_fd()),
            // The last one was opened last, so this is the root.
            _ => Ok(self.root.as_fd()),
        }
    }

    /// The names in the directory at `path`, sorted.
    pub(super) fn names(&mut self, path: &[u8]) -> Result<Vec<CString>> {
        let names = fs::names(self.dir(path)?);
        // A directory that may be read but not entered cannot be opened again from itself.
        let names = match (names, &self.access) {
            (Err(error), Some(access)) if error.raw_os_error() == Some(libc::EACCES) => {
                let access = access.clone();
                let flags = libc::O_RDONLY | libc::O_DIRECTORY;
                access.open(self.dir(path)?, c".", flags).and_then(fs::names_of)
            }
            (names, _) => names,
        };
        let mut names = names.map_err(self.failed("getdents64", path))?;
        names.sort_unstable();
        let longest = names.iter().map(|name| name.as_bytes().len()).max().unwrap_or(0);
        if path.len() + 1 + longest > self.limits.path_length {
            return Err(self.exceeds(path, "path_length", self.limits.path_length));
        }
        Ok(names)
    }

    /// What fstat(2) says about `path` itself.
    pub(super) fn stat(&mut self, path: &[u8]) -> Result<Stat> {
        let (parent, name) = self.split(path)?;
        let access = self.access.clone();
        let dir = self.dir(parent)?;
        let stat = match (fs::lstatat(dir, &name), access) {
            (Err(error), Some(access)) if error.raw_os_error() == Some(libc::EACCES) => {
                access.open(dir, &name, libc::O_PATH | libc::O_NOFOLLOW).and_then(|handle| fs::fstat(handle.as_fd()))
            }
            (stat, _) => stat,
        };
        stat.map_err(self.failed("fstatat", path))
    }

    /// Opens `path` with more `flags` than "not through a symlink", and makes sure that it is what was `seen`.
    pub(super) fn open_as(&mut self, path: &[u8], flags: libc::c_int, seen: &Stat) -> Result<OwnedFd> {
        let (parent, name) = self.split(path)?;
        self.dir(parent)?;
        let dir = match self.way.last() {
            Some((_, Some(dir))) => dir.as_fd(),
            _ => self.root.as_fd(),
        };
        let fd = self.open_in(dir, &name, flags | libc::O_NOFOLLOW).map_err(self.failed("openat", path))?;
        let stat = fs::fstat(fd.as_fd()).map_err(self.failed("fstat", path))?;
        if (stat.st_dev, stat.st_ino) != (seen.st_dev, seen.st_ino) {
            return Err(self.changed(path));
        }
        Ok(fd)
    }

    /// Opens by ourselves or, where we may not, with help.
    fn open_in(&self, dir: BorrowedFd<'_>, name: &std::ffi::CStr, flags: libc::c_int) -> io::Result<OwnedFd> {
        match (fs::openat(dir, name, flags, 0), &self.access) {
            (Err(error), Some(access)) if error.raw_os_error() == Some(libc::EACCES) => access.open(dir, name, flags),
            (opened, _) => opened,
        }
    }

    /// The value of an attribute; `None` where it went meanwhile.
    pub(super) fn attribute(
        &self,
        fd: BorrowedFd<'_>,
        name: &std::ffi::CStr,
        handle: bool,
    ) -> io::Result<Option<Vec<u8>>> {
        use crate::sys::xattr;
        let value = if handle { xattr::get_handle(fd, name) } else { xattr::get(fd, name) };
        match (value, &self.access) {
            (Err(error), Some(access)) if error.raw_os_error() == Some(libc::EACCES) && !handle => {
                access.attribute(fd, name).map(Some)
            }
            (value, _) => value,
        }
    }

    fn split<'p>(&self, path: &'p [u8]) -> Result<(&'p [u8], CString)> {
        let (parent, name) = parent_and_name(path);
        let name = if name.is_empty() { b"." } else { name };
        Ok((parent, c_string(name).map_err(self.failed("openat", path))?))
    }
}

/// `a/b` and `c` of `a/b/c`; nothing and `c` of `c`.
pub(super) fn parent_and_name(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// `a/b` of `a` and `b`.
pub(super) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}
