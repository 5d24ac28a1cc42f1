//! Is a tree still what its layer unpacks to? The layer is unpacked once more, and the two trees are walked side by side.
//!
//! Comparing with the tar itself would have to know what later entries, hard links, whiteouts and the layers below make
//! of each entry; whoever unpacks knows that already.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::Limits;
use super::limits::exceeded;
use super::view::{Found, Help, as_path};
use crate::sys::fs::{each_name, pieces};
use crate::{Error, Result};

const STEP: &str = "compare the layer's tree";

/// Directories kept open on the way down, of each tree.
const KEPT_OPEN: usize = 64;

/// Bytes compared at a time.
const PIECE: usize = 128 << 10;

/// Pieces between holes that are told apart in one file.
const MAX_PIECES: usize = 1024;

/// Calls `tell` with path and cause of each thing in `tree` that is not as in `fresh`: type, owner, mode, number of names,
/// size, content, link target, device and attributes; what is missing, and what is there beyond it. Times are not compared.
///
/// Remembered are the names of the directories beside the way down, held against [`Limits::memory`].
///
/// # Errors
/// Where `fresh` cannot be read, or more would have to be remembered.
pub(super) fn compare(
    fresh: OwnedFd,
    tree: OwnedFd,
    help: &Help,
    limits: &Limits,
    tell: &mut dyn FnMut(&[u8], String),
) -> Result<()> {
    let roots = Dirs { fresh: Arc::new(fresh), tree: Arc::new(tree) };
    Walk { roots: roots.clone(), help, remembered: 0, memory: limits.memory, tell }.all(roots)
}

/// The same directory in both trees.
#[derive(Clone)]
struct Dirs {
    fresh: Arc<OwnedFd>,
    tree: Arc<OwnedFd>,
}

struct Walk<'a> {
    roots: Dirs,
    help: &'a Help,
    remembered: usize,
    memory: usize,
    tell: &'a mut dyn FnMut(&[u8], String),
}

/// A directory whose files are done, with those in it that are not.
struct Level {
    path: Vec<u8>,
    left: Vec<CString>,
    dirs: Option<Dirs>,
}

fn failed<'a>(syscall: &'static str, path: &'a [u8]) -> impl Fn(io::Error) -> Error + 'a {
    move |error| Error::io(STEP, syscall, error).path(as_path(path))
}

fn cost(name: &CStr) -> usize {
    name.to_bytes().len() + 32
}

impl Walk<'_> {
    fn all(mut self, roots: Dirs) -> Result<()> {
        self.pair(&[], &roots, c".")?;
        let mut way = vec![self.level(vec![], roots)?];
        while let Some(level) = way.last_mut() {
            let Some(name) = level.left.pop() else {
                way.pop();
                continue;
            };
            self.remembered -= cost(&name);
            let path = joined(&level.path, name.to_bytes());
            let above = match level.dirs.take() {
                Some(dirs) => dirs,
                None => self.reopen(&way)?,
            };
            let opened = self.open(&above, &name, &path)?;
            if let Some(level) = way.last_mut() {
                level.dirs = Some(above);
            }
            let Some(dirs) = opened else { continue };
            if let Some(far) = way.len().checked_sub(KEPT_OPEN).and_then(|index| way.get_mut(index)) {
                far.dirs = None;
            }
            way.push(self.level(path, dirs)?);
        }
        Ok(())
    }

    /// A directory in both trees; nothing, and that told, where it is not to be opened in the one that may be damaged.
    fn open(&mut self, above: &Dirs, name: &CStr, path: &[u8]) -> Result<Option<Dirs>> {
        let fresh = self.help.open_dir(above.fresh.as_fd(), name).map_err(failed("openat", path))?;
        match self.help.open_dir(above.tree.as_fd(), name) {
            Ok(tree) => Ok(Some(Dirs { fresh: Arc::new(fresh), tree: Arc::new(tree) })),
            Err(error) => {
                (self.tell)(path, format!("it cannot be opened: {error}"));
                Ok(None)
            }
        }
    }

    /// The last directory of the way, opened once more from the top.
    fn reopen(&self, way: &[Level]) -> Result<Dirs> {
        let mut dirs = self.roots.clone();
        let path = way.last().map(|level| level.path.as_slice()).unwrap_or_default();
        for name in crate::sys::path::components(path) {
            let name = crate::sys::fs::c_string(name).map_err(failed("openat", path))?;
            let open = |dir: &OwnedFd| self.help.open_dir(dir.as_fd(), &name).map(Arc::new);
            dirs = Dirs {
                fresh: open(&dirs.fresh).map_err(failed("openat", path))?,
                tree: open(&dirs.tree).map_err(failed("openat", path))?,
            };
        }
        Ok(dirs)
    }

    /// Compares everything in a directory but what is in further directories.
    fn level(&mut self, path: Vec<u8>, dirs: Dirs) -> Result<Level> {
        let mut left = vec![];
        let listing = self.help.listing(dirs.fresh.as_fd()).map_err(failed("openat", &path))?;
        each_name(listing, failed("getdents64", &path), |name| {
            if self.pair(&joined(&path, name.to_bytes()), &dirs, name)? {
                self.remembered += cost(name);
                if self.remembered > self.memory {
                    return Err(exceeded("memory", self.memory));
                }
                left.push(name.to_owned());
            }
            Ok(())
        })?;
        let listed = self.help.listing(dirs.tree.as_fd()).and_then(|listing| {
            each_name(
                listing,
                |error| error,
                |name| {
                    match self.help.stat(dirs.fresh.as_fd(), name) {
                        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                            (self.tell)(
                                &joined(&path, name.to_bytes()),
                                "the layer has nothing of that name".to_owned(),
                            );
                        }
                        _ => {}
                    }
                    Ok(())
                },
            )
        });
        if let Err(error) = listed {
            (self.tell)(&path, format!("it cannot be listed: {error}"));
        }
        Ok(Level { path, left, dirs: Some(dirs) })
    }

    /// Compares one thing; whether it is a directory on both sides.
    fn pair(&mut self, path: &[u8], dirs: &Dirs, name: &CStr) -> Result<bool> {
        let fresh = Found::within(&dirs.fresh, name, self.help).map_err(failed("fstatat", path))?;
        let found = match Found::within(&dirs.tree, name, self.help) {
            Ok(found) => found,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                (self.tell)(path, "it is missing".to_owned());
                return Ok(false);
            }
            Err(error) => {
                (self.tell)(path, format!("it cannot be looked at: {error}"));
                return Ok(false);
            }
        };
        let (should, is) = (&fresh.stat, &found.stat);
        if fresh.file_type() != found.file_type() {
            let cause = format!("it is {}, and in the layer {}", kind(found.file_type()), kind(fresh.file_type()));
            (self.tell)(path, cause);
            return Ok(false);
        }
        let mut differ = |what: &str, is: &dyn std::fmt::Display, should: &dyn std::fmt::Display| {
            (self.tell)(path, format!("its {what} is {is}, and in the layer {should}"));
        };
        if (is.st_uid, is.st_gid) != (should.st_uid, should.st_gid) {
            let owner = |stat: &crate::sys::fs::Stat| format!("{}:{}", stat.st_uid, stat.st_gid);
            differ("owner", &owner(is), &owner(should));
        }
        if !found.is_symlink() && is.st_mode != should.st_mode {
            let mode = |stat: &crate::sys::fs::Stat| format!("{:04o}", stat.st_mode & 0o7777);
            differ("mode", &mode(is), &mode(should));
        }
        if !found.is_dir() && is.st_nlink != should.st_nlink {
            differ("number of names", &is.st_nlink, &should.st_nlink);
        }
        match found.file_type() {
            libc::S_IFREG if is.st_size != should.st_size => differ("size", &is.st_size, &should.st_size),
            libc::S_IFREG => {
                // What cannot be read of the new tree says nothing of the other.
                let readable = fresh.open().map_err(failed("openat", path))?;
                match first_difference(should.st_size, File::from(readable), &found) {
                    Ok(None) => {}
                    Ok(Some(at)) => (self.tell)(path, format!("its content is not the layer's, from byte {at} on")),
                    Err(error) => (self.tell)(path, format!("it cannot be read: {error}")),
                }
            }
            libc::S_IFLNK => {
                let target = |found: &Found| found.target().map(|text| as_path(&text).to_owned());
                let should = target(&fresh).map_err(failed("readlinkat", path))?;
                match target(&found) {
                    Ok(is) if is == should => {}
                    Ok(is) => (self.tell)(path, format!("it leads to {is:?}, and in the layer to {should:?}")),
                    Err(error) => (self.tell)(path, format!("it cannot be read: {error}")),
                }
            }
            libc::S_IFCHR | libc::S_IFBLK if is.st_rdev != should.st_rdev => {
                differ("device number", &is.st_rdev, &should.st_rdev);
            }
            _ => {}
        }
        let should = attributes(&fresh).map_err(failed("listxattr", path))?;
        match attributes(&found) {
            Ok(is) if is == should => {}
            Ok(_) => (self.tell)(path, "its extended attributes are not the layer's".to_owned()),
            Err(error) => (self.tell)(path, format!("its extended attributes cannot be read: {error}")),
        }
        Ok(found.is_dir())
    }
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    match (path, name) {
        (path, b".") => path.to_vec(),
        (b"", name) => name.to_vec(),
        (path, name) => [path, b"/", name].concat(),
    }
}

fn kind(file_type: u32) -> &'static str {
    match file_type {
        libc::S_IFREG => "a file",
        libc::S_IFDIR => "a directory",
        libc::S_IFLNK => "a symlink",
        libc::S_IFIFO => "a named pipe",
        libc::S_IFSOCK => "a socket",
        libc::S_IFCHR => "a character device",
        _ => "a block device",
    }
}

/// Sorted, and without the labels that the host's own policy gives and changes.
fn attributes(found: &Found) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let mut attributes = found.attributes()?;
    let own = |name: &[u8]| {
        [&b"security.selinux"[..], b"security.ima", b"security.evm", b"security.apparmor"].contains(&name)
            || name.starts_with(b"security.SMACK64")
    };
    attributes.retain(|(name, _)| !own(name.to_bytes()));
    attributes.sort_unstable();
    Ok(attributes)
}

/// Where the contents of two files of one size begin to differ. Holes are not read: an image may have a file of any length.
fn first_difference(size: i64, fresh: File, found: &Found) -> io::Result<Option<u64>> {
    if size == 0 {
        return Ok(None);
    }
    let found = File::from(found.open()?);
    let (of_fresh, of_found) = (pieces(fresh.as_fd(), MAX_PIECES)?, pieces(found.as_fd(), MAX_PIECES)?);
    let others = if of_fresh == of_found { &[][..] } else { &of_found[..] };
    let mut buffers = (vec![0; PIECE], vec![0; PIECE]);
    for (start, length) in of_fresh.iter().chain(others) {
        let end = start.saturating_add(*length);
        let mut at = *start;
        while at < end {
            let count = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let (one, other) = (&mut buffers.0[..count], &mut buffers.1[..count]);
            fresh.read_exact_at(one, at)?;
            found.read_exact_at(other, at)?;
            if let Some(offset) = one.iter().zip(other.iter()).position(|(a, b)| a != b) {
                return Ok(Some(at + offset as u64));
            }
            at += count as u64;
        }
    }
    Ok(None)
}
