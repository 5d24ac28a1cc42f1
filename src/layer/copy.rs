//! A merged view, written out as one plain tree: for hosts where the layers cannot be mounted over each other.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::view::{Found, View, as_path, child_of, listed};
use super::{Owner, Ownership};
use crate::sys::fs::{self, Stat, Time};
use crate::sys::path::components;
use crate::sys::{reflink, xattr};
use crate::{Error, ErrorKind, Result};

const STEP: &str = "copy the image's tree";

/// Descriptors of directories that wait for their turn.
const MAX_HELD: usize = 256;

/// What becomes of the contents of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    /// Shared with the original where the file system can do that, else written.
    SharedOrWritten,
    /// Shared, or the copy fails.
    Shared,
}

fn failed(syscall: &'static str, path: &[u8]) -> impl Fn(io::Error) -> Error {
    move |error| Error::io(STEP, syscall, error).path(as_path(path))
}

/// A failed look at the original. The layers of a range hold files that only its ids may read.
fn unread(syscall: &'static str, path: &[u8]) -> impl Fn(io::Error) -> Error {
    move |error| {
        let denied = error.raw_os_error() == Some(libc::EACCES);
        let error = failed(syscall, path)(error);
        if !denied {
            return error;
        }
        error
            .because("it belongs to another id, or its mode forbids reading, and this user is not root")
            .remedy("use the overlay snapshotter, which reads nothing, or work as root")
    }
}

/// Copies what `view` shows into the directory `into`, which exists and is empty: types, modes, times, attributes, hard
/// links, holes; owners and device nodes as far as `ownership` allows.
///
/// Links are never followed, on either side. Sockets are left out: nobody listens on a copy. Few descriptors are open at
/// a time, however deep the tree is.
///
/// # Errors
/// Those of the file system. What was copied stays; the caller removes the tree.
pub(crate) fn copy(view: &View, into: &Path, ownership: &Ownership, contents: Contents) -> Result<()> {
    let root = File::open(into).map_err(|error| Error::io(STEP, "open", error).path(into))?;
    let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let root = OwnedFd::from(root);
    let mut copier =
        Copier { view, ownership, contents, own, links: HashMap::new(), root, owners: vec![], can_share: true };
    copier.tree()?;
    match ownership {
        Ownership::Mapped(reown) if !copier.owners.is_empty() => reown.reown(copier.root.as_fd(), &copier.owners),
        _ => Ok(()),
    }
}

struct Copier<'a> {
    view: &'a View,
    ownership: &'a Ownership,
    contents: Contents,
    /// This process' ids.
    own: (u32, u32),
    /// Where a file with several names was written first.
    links: HashMap<(u64, u64), Vec<u8>>,
    root: OwnedFd,
    /// What only somebody with a range of ids can set.
    owners: Vec<Owner>,
    /// The two trees can share blocks, as far as is known.
    can_share: bool,
}

impl Copier<'_> {
    /// All directories, each by its path from the root, parents first; then what is to be set on them, the deepest first,
    /// since files made in them would change it.
    fn tree(&mut self) -> Result<()> {
        let mut done: Vec<(Vec<u8>, Stat, Attributes)> = vec![];
        let mut open = vec![(vec![], None)];
        let held_by = |found: &Found| found.dirs.len() + 1;
        let mut held = 0;
        while let Some((path, kept)) = open.pop() {
            held -= kept.as_ref().map_or(0, held_by);
            let Some(found) = kept.map_or_else(|| self.view.lookup(&path), |found| Ok(Some(found)))? else { continue };
            let from = found.open().map_err(unread("openat", &path))?;
            let target = self.target(&path)?;
            for (name, shares) in listed(&found).map_err(unread("getdents64", &path))? {
                let inner = joined(&path, name.to_bytes());
                let Some(entry) = child_of(&found, &name, &shares).map_err(unread("openat", &inner))? else { continue };
                if !entry.is_dir() {
                    self.entry(&inner, &name, &entry, target.as_fd())?;
                    continue;
                }
                fs::mkdirat(target.as_fd(), &name, 0o700).map_err(failed("mkdirat", &inner))?;
                // Looking it up again takes a walk through all layers.
                let keep = held + held_by(&entry) <= MAX_HELD;
                held += if keep { held_by(&entry) } else { 0 };
                open.push((inner, keep.then_some(entry)));
            }
            let attributes = attributes(from.as_fd(), &path)?;
            done.push((path, found.stat, attributes));
        }
        while let Some((path, stat, attributes)) = done.pop() {
            self.finish(&stat, attributes, self.target(&path)?.as_fd(), &path)?;
        }
        Ok(())
    }

    /// A directory of the copy; all those above it can be entered until it is finished.
    fn target(&self, path: &[u8]) -> Result<OwnedFd> {
        let mut here = fs::open_dir(self.root.as_fd(), c".").map_err(failed("openat", path))?;
        for name in components(path) {
            let name = fs::c_string(name).map_err(failed("openat", path))?;
            here = fs::open_dir(here.as_fd(), &name).map_err(failed("openat", path))?;
        }
        Ok(here)
    }

    /// Anything but a directory.
    fn entry(&mut self, path: &[u8], name: &CStr, found: &Found, target: BorrowedFd<'_>) -> Result<()> {
        let stat = &found.stat;
        let full = matches!(self.ownership, Ownership::Full);
        match found.file_type() {
            _ if stat.st_nlink > 1 && self.linked(path, name, stat, target)? => Ok(()),
            libc::S_IFREG => {
                let from = File::from(found.open().map_err(unread("openat", path))?);
                let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
                let made = File::from(fs::openat(target, name, flags, 0o600).map_err(failed("openat", path))?);
                self.contents(&from, &made, stat, path)?;
                self.finish(stat, attributes(from.as_fd(), path)?, made.as_fd(), path)
            }
            libc::S_IFLNK => {
                let link = CString::new(found.target().map_err(failed("readlinkat", path))?)
                    .map_err(|_| Error::new(ErrorKind::Corrupt, STEP).path(as_path(path)))?;
                fs::symlinkat(&link, target, name).map_err(failed("symlinkat", path))?;
                if full {
                    fs::lchownat(target, name, stat.st_uid, stat.st_gid).map_err(failed("fchownat", path))?;
                }
                let privileged = self.attributes_of_node(path, found, target, name)?;
                self.give(path, stat, None, privileged);
                fs::lutimensat(target, name, time(stat)).map_err(failed("utimensat", path))
            }
            kind @ (libc::S_IFIFO | libc::S_IFCHR | libc::S_IFBLK) if full || kind == libc::S_IFIFO => {
                fs::mknodat(target, name, kind | 0o600, stat.st_rdev).map_err(failed("mknodat", path))?;
                if full {
                    fs::lchownat(target, name, stat.st_uid, stat.st_gid).map_err(failed("fchownat", path))?;
                }
                let privileged = self.attributes_of_node(path, found, target, name)?;
                let handle = fs::open_handle(target, name).map_err(failed("openat", path))?;
                fs::chmod_handle(handle.as_fd(), stat.st_mode & 0o7777).map_err(failed("chmod", path))?;
                self.give(path, stat, Some(stat.st_mode & 0o7777), privileged);
                fs::lutimensat(target, name, time(stat)).map_err(failed("utimensat", path))
            }
            _ => Ok(()),
        }
    }

    /// One more name of a file that was copied already.
    fn linked(&mut self, path: &[u8], name: &CStr, stat: &Stat, target: BorrowedFd<'_>) -> Result<bool> {
        let key = (stat.st_dev, stat.st_ino);
        let Some(first) = self.links.get(&key) else {
            // Sockets are not copied, and no name of them either.
            if stat.st_mode & libc::S_IFMT != libc::S_IFSOCK {
                self.links.insert(key, path.to_vec());
            }
            return Ok(false);
        };
        let (parent, last) = match first.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&first[..slash], &first[slash + 1..]),
            None => (&[][..], &first[..]),
        };
        let from = self.target(parent)?;
        let last = fs::c_string(last).map_err(failed("linkat", path))?;
        fs::linkat(from.as_fd(), &last, target, name).map_err(failed("linkat", path))?;
        Ok(true)
    }

    fn contents(&mut self, from: &File, made: &File, stat: &Stat, path: &[u8]) -> Result<()> {
        if self.can_share {
            match reflink::clone_file(from.as_fd(), made.as_fd()) {
                Ok(()) => return Ok(()),
                Err(error) if self.contents == Contents::Shared || !reflink::cannot_clone(&error) => {
                    return Err(failed("ioctl_ficlone", path)(error));
                }
                // Layers may lie on several file systems, but hardly ever do.
                Err(_) => self.can_share = false,
            }
        }
        reflink::copy_data(from, made, stat.st_size.unsigned_abs()).map_err(failed("copy_file_range", path))
    }

    /// Owner, attributes, mode, time: in this order, since each may undo a later one.
    fn finish(&mut self, stat: &Stat, attributes: Attributes, made: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
        if matches!(self.ownership, Ownership::Full) {
            fs::fchown(made, stat.st_uid, stat.st_gid).map_err(failed("fchown", path))?;
        }
        let privileged = self.set_all(attributes, path, |name, value| xattr::set(made, name, value))?;
        let mode = stat.st_mode & 0o7777;
        fs::fchmod(made, mode).map_err(failed("fchmod", path))?;
        self.give(path, stat, Some(mode), privileged);
        fs::futimens(made, time(stat)).map_err(failed("futimens", path))
    }

    /// The attributes of something that cannot be opened, by handles on both sides; returns those that are left to do.
    fn attributes_of_node(
        &self,
        path: &[u8],
        found: &Found,
        target: BorrowedFd<'_>,
        name: &CStr,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut attributes = found.attributes().map_err(unread("getxattr", path))?;
        attributes.retain(|(name, _)| is_of_the_file(name));
        if attributes.is_empty() {
            return Ok(vec![]);
        }
        let handle = fs::open_handle(target, name).map_err(failed("openat", path))?;
        self.set_all(attributes, path, |name, value| xattr::set_handle(handle.as_fd(), name, value))
    }

    /// Sets attributes; returns those that only somebody with a range of ids can set.
    fn set_all(
        &self,
        attributes: Attributes,
        path: &[u8],
        set: impl Fn(&CStr, &[u8]) -> io::Result<()>,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut privileged = vec![];
        for (name, value) in attributes {
            match set(&name, &value) {
                // What only root may set is not there without root, or is set by who may.
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => match self.ownership {
                    Ownership::Full => return Err(failed("fsetxattr", path)(error)),
                    Ownership::Single => {}
                    Ownership::Mapped(_) => privileged.push((name.into_bytes(), inside(value))),
                },
                other => other.map_err(failed("fsetxattr", path))?,
            }
        }
        Ok(privileged)
    }

    /// Notes what has to be done as another id.
    fn give(&mut self, path: &[u8], stat: &Stat, mode: Option<u32>, xattrs: Vec<(Vec<u8>, Vec<u8>)>) {
        let Ownership::Mapped(reown) = self.ownership else { return };
        if (stat.st_uid, stat.st_gid) == self.own && xattrs.is_empty() {
            return;
        }
        let (uid, gid) = reown.container_ids(stat.st_uid, stat.st_gid);
        self.owners.push(Owner { path: path.to_vec(), uid, gid, mode, xattrs });
    }
}

/// Names and values.
type Attributes = Vec<(CString, Vec<u8>)>;

/// Whether an attribute is none of overlay's own.
fn is_of_the_file(name: &CStr) -> bool {
    ![&b"trusted.overlay."[..], b"user.overlay."].iter().any(|prefix| name.to_bytes().starts_with(prefix))
}

/// All attributes but overlay's own.
fn attributes(from: BorrowedFd<'_>, path: &[u8]) -> Result<Attributes> {
    let mut attributes = vec![];
    for name in xattr::list(from).map_err(failed("flistxattr", path))? {
        if is_of_the_file(&name) {
            let value = xattr::get(from, &name).map_err(failed("fgetxattr", path))?;
            attributes.extend(value.map(|value| (name, value)));
        }
    }
    Ok(attributes)
}

/// File capabilities as a user namespace's root writes them. Seen from outside they name the namespace's root (version 3
/// of `struct vfs_ns_cap_data`); inside they do not (version 2).
pub(super) fn inside(mut value: Vec<u8>) -> Vec<u8> {
    if value.len() == 24 && value[3] == 3 {
        value.truncate(20);
        value[3] = 2;
    }
    value
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut inner = path.to_vec();
    if !inner.is_empty() {
        inner.push(b'/');
    }
    inner.extend_from_slice(name);
    inner
}

fn time(stat: &Stat) -> Time {
    Time { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::layer::WhiteoutFormat;

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
        let view = View::new([at("up"), at("low")], WhiteoutFormat::OverlayUser).unwrap();
        let ownership = if nix::unistd::geteuid().is_root() { Ownership::Full } else { Ownership::Single };
        copy(&view, &at("out"), &ownership, Contents::SharedOrWritten).unwrap();
        assert!(!at("out/a/gone").exists());
        assert_eq!(std::fs::read_link(at("out/link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(std::fs::read(at("out/a/b/old")).unwrap(), b"old");
        let (old, was) = (at("out/a/b/old").metadata().unwrap(), at("low/a/b/old").metadata().unwrap());
        assert_eq!((old.mode(), old.mtime_nsec(), old.uid()), (was.mode(), was.mtime_nsec(), was.uid()));
        assert_eq!(at("out/a/new").metadata().unwrap().ino(), at("out/a/twin").metadata().unwrap().ino());
    }

    #[test]
    fn what_cannot_be_opened_keeps_its_attributes() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("low")).unwrap();
        std::fs::create_dir_all(at("out")).unwrap();
        symlink("target", at("low/link")).unwrap();
        nix::unistd::mkfifo(&at("low/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let handle = |name: &str| {
            let root = File::open(dir.path()).unwrap();
            fs::open_handle(root.as_fd(), &fs::c_string(name.as_bytes()).unwrap()).unwrap()
        };
        for name in ["link", "fifo"] {
            let from = handle(&format!("low/{name}"));
            if xattr::set_handle(from.as_fd(), c"trusted.note", b"n").is_err() {
                return;
            }
        }
        let view = View::new([at("low")], WhiteoutFormat::OverlayUser).unwrap();
        copy(&view, &at("out"), &Ownership::Full, Contents::SharedOrWritten).unwrap();
        for name in ["link", "fifo"] {
            let made = handle(&format!("out/{name}"));
            assert_eq!(xattr::get_handle(made.as_fd(), c"trusted.note").unwrap().as_deref(), Some(&b"n"[..]), "{name}");
        }
        assert_eq!(at("out/fifo").metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    }

    #[test]
    fn depth_width_and_links_are_kept_with_few_descriptors() {
        let dir = crate::layer::testing::Scratch::new();
        let at = |name: &str| dir.path().join(name);
        for layer in 0..40 {
            for name in ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"] {
                std::fs::create_dir_all(at(&format!("{layer}/{name}/sub"))).unwrap();
                std::fs::write(at(&format!("{layer}/{name}/sub/{layer}")), name).unwrap();
            }
        }
        // Deeper than a path can say.
        let mut here: OwnedFd = File::open(at("0")).unwrap().into();
        for _ in 0..600 {
            fs::mkdirat(here.as_fd(), c"deeper", 0o700).unwrap();
            here = fs::open_dir(here.as_fd(), c"deeper").unwrap();
        }
        drop(fs::openat(here.as_fd(), c"file", libc::O_CREAT | libc::O_WRONLY, 0o600).unwrap());
        fs::fchmod(here.as_fd(), 0o711).unwrap();
        std::fs::hard_link(at("0/one/sub/0"), at("0/ten/link")).unwrap();
        std::fs::create_dir(at("out")).unwrap();
        let view = View::new((0..40).map(|layer| at(&layer.to_string())), WhiteoutFormat::OverlayUser).unwrap();
        copy(&view, &at("out"), &Ownership::Single, Contents::SharedOrWritten).unwrap();
        assert_eq!(std::fs::read_dir(at("out/seven/sub")).unwrap().count(), 40);
        assert_eq!(std::fs::read(at("out/seven/sub/33")).unwrap(), b"seven");
        assert_eq!(at("out/one/sub/0").metadata().unwrap().ino(), at("out/ten/link").metadata().unwrap().ino());
        let mut copied: OwnedFd = File::open(at("out")).unwrap().into();
        for _ in 0..600 {
            copied = fs::open_dir(copied.as_fd(), c"deeper").unwrap();
        }
        assert_eq!(fs::fstat(copied.as_fd()).unwrap().st_mode & 0o7777, 0o711);
        assert_eq!(fs::names(copied.as_fd()).unwrap(), [c"file".to_owned()]);
    }

    #[test]
    fn file_capabilities_are_seen_from_inside() {
        let outside = [&[1, 0, 0, 3][..], &[9; 16], &[0xe8, 3, 0, 0]].concat();
        assert_eq!(inside(outside), [&[1, 0, 0, 2][..], &[9; 16]].concat());
        assert_eq!(inside(b"other".to_vec()), b"other");
    }
}
