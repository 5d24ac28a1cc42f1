//! Owners, attributes, modes and times.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::place::Place;
use super::{Owner, Ownership, STEP, Skipped, Unpacker, failed};
use crate::layer::acl;
use crate::layer::copy::inside;
use crate::layer::owner_record::{RECORD, owner_record, recorded_owner};
use crate::layer::tar::Entry;
use crate::layer::view::Found;
use crate::sys::fs::{Time, c_string, fchmod, fchown, futimens, lutimensat, open_handle};
use crate::sys::xattr;
use crate::{Error, ErrorKind, Result};

/// Metadata of one file as the container shall see it.
#[derive(Debug, Clone, Default)]
pub(super) struct Meta {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Meta {
    pub(super) fn of(entry: &Entry) -> Meta {
        Meta { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs: entry.xattrs.clone() }
    }

    /// Of a directory that no layer describes. Its time is fixed, so that one tar always makes one tree.
    pub(super) fn implied() -> Meta {
        Meta { mode: 0o755, ..Meta::default() }
    }
}

/// What becomes of an attribute.
enum Fate {
    Set,
    /// Needs powers that only [`Reown`](super::Reown) has.
    Hand,
    Drop,
}

impl Unpacker<'_> {
    /// Overlay's own attributes would steer the mount (hide, redirect, link); labels of security modules belong to
    /// this host's policy and not to the image.
    fn fate(&self, name: &[u8]) -> Fate {
        let is = |prefix: &[u8]| name.starts_with(prefix);
        if is(b"trusted.overlay.") || is(b"user.overlay.") {
            return Fate::Drop;
        }
        if [&b"security.selinux"[..], b"security.ima", b"security.evm", b"security.apparmor"].contains(&name)
            || is(b"security.SMACK64")
        {
            return Fate::Drop;
        }
        // An access control list names ids, which are not the container's for this process.
        let foreign = is(b"security.capability") || is(b"system.posix_acl_");
        match (&self.options.ownership, is(b"trusted."), foreign) {
            (Ownership::Single, _, _) if name == RECORD.to_bytes() => Fate::Drop,
            (Ownership::Full, _, _) | (_, false, false) => Fate::Set,
            (Ownership::Single, ..) => Fate::Drop,
            (Ownership::Mapped(_), true, _) => Fate::Drop,
            (Ownership::Mapped(_), ..) => Fate::Hand,
        }
    }

    /// Gives an open file or directory all its metadata. `mode_is_set`: it has been made with its mode.
    pub(super) fn finish_open(
        &mut self,
        fd: BorrowedFd<'_>,
        path: &[u8],
        meta: &Meta,
        mode_is_set: bool,
        existed: bool,
    ) -> Result<()> {
        let owned = self.set_owner(path, meta, existed, |uid, gid| fchown(fd, uid, gid))?;
        let handed = self.set_xattrs(path, meta, |name, value| xattr::set(fd, name, value))?;
        // A change of owner may have cleared these bits, and an access control list changes the group's.
        let mode_is_set = mode_is_set && meta.xattrs.is_empty() && !(owned && meta.mode & 0o6000 != 0);
        if !mode_is_set {
            fchmod(fd, meta.mode).map_err(failed("fchmod", path))?;
        }
        futimens(fd, meta.mtime).map_err(failed("futimens", path))?;
        self.hand_over(path, meta, Some(meta.mode), handed);
        Ok(())
    }

    /// Gives something that cannot be opened (a symlink, a device) its metadata, except the mode.
    pub(super) fn finish_unopened(&mut self, place: &Place, meta: &Meta, mode: Option<u32>) -> Result<()> {
        let (dir, name) = (place.dir(), place.name.as_c_str());
        self.set_owner(&place.path, meta, false, |uid, gid| crate::sys::fs::lchownat(dir, name, uid, gid))?;
        let handed = if meta.xattrs.is_empty() && !matches!(self.options.ownership, Ownership::Single) {
            Vec::new()
        } else {
            let handle = open_handle(dir, name).map_err(failed("openat", &place.path))?;
            self.set_xattrs(&place.path, meta, |name, value| xattr::set_handle(handle.as_fd(), name, value))?
        };
        if let Some(mode) = mode {
            let handle = open_handle(dir, name).map_err(failed("openat", &place.path))?;
            crate::sys::fs::chmod_handle(handle.as_fd(), mode).map_err(failed("chmod", &place.path))?;
        }
        lutimensat(dir, name, meta.mtime).map_err(failed("utimensat", &place.path))?;
        self.hand_over(&place.path, meta, mode, handed);
        Ok(())
    }

    /// Changes the owner where this process is to do that; returns whether it did.
    fn set_owner(
        &self,
        path: &[u8],
        meta: &Meta,
        existed: bool,
        chown: impl FnOnce(u32, u32) -> io::Result<()>,
    ) -> Result<bool> {
        let full = matches!(self.options.ownership, Ownership::Full);
        if !full || meta.uid == u32::MAX || (meta.uid, meta.gid) == self.me && !existed && !self.applies() {
            return Ok(false);
        }
        match chown(meta.uid, meta.gid) {
            Ok(()) => Ok(true),
            Err(error) => {
                let denied = matches!(error.raw_os_error(), Some(libc::EPERM | libc::EINVAL));
                let error = failed("chown", path)(error);
                Err(if denied {
                    error
                        .because(format!("this process may not give files to {}:{}", meta.uid, meta.gid))
                        .remedy("unpack with Ownership::Mapped or Ownership::Single")
                } else {
                    error
                })
            }
        }
    }

    /// Sets the attributes that this process can set; returns those to hand over.
    fn set_xattrs(
        &mut self,
        path: &[u8],
        meta: &Meta,
        set: impl Fn(&CStr, &[u8]) -> io::Result<()>,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut handed = Vec::new();
        let mut skipped = Vec::new();
        for (name, value) in &meta.xattrs {
            match self.fate(name) {
                Fate::Hand => handed.push((name.clone(), value.clone())),
                Fate::Drop => skipped.push(name.clone()),
                Fate::Set => match c_string(name).and_then(|name: CString| set(&name, value)) {
                    Ok(()) => {}
                    Err(error) if is_refusal(&error) => skipped.push(name.clone()),
                    Err(error) => return Err(failed("setxattr", path)(error)),
                },
            }
        }
        if matches!(self.options.ownership, Ownership::Single)
            && (meta.uid, meta.gid) != (0, 0)
            && meta.uid != u32::MAX
            && let Err(error) = set(RECORD, &owner_record(meta.uid, meta.gid))
        {
            // Symlinks and devices cannot have such an attribute at all; umoci leaves them out, too.
            if !is_refusal(&error) {
                return Err(failed("setxattr", path)(error));
            }
            skipped.push(RECORD.to_bytes().to_vec());
        }
        for name in skipped {
            self.skip(Skipped::Xattr(String::from_utf8_lossy(&name).into_owned()));
        }
        Ok(handed)
    }

    /// Notes what [`Reown`](super::Reown) has to do.
    fn hand_over(&mut self, path: &[u8], meta: &Meta, mode: Option<u32>, xattrs: Vec<(Vec<u8>, Vec<u8>)>) {
        let mapped = matches!(self.options.ownership, Ownership::Mapped(_));
        if mapped && meta.uid != u32::MAX && ((meta.uid, meta.gid) != (0, 0) || !xattrs.is_empty()) {
            let owner = Owner { path: path.to_vec(), uid: meta.uid, gid: meta.gid, mode, xattrs };
            self.notes.owners.push(&owner);
        }
    }

    /// The metadata of a directory or file of the layers below, as the container sees it.
    pub(super) fn meta_of(&self, found: &Found, path: &[u8]) -> Result<Meta> {
        let stat = &found.stat;
        let (mut uid, mut gid) = match &self.options.ownership {
            Ownership::Full => (stat.st_uid, stat.st_gid),
            // Where there is a record among the attributes, it says otherwise.
            Ownership::Single => (0, 0),
            Ownership::Mapped(reown) => reown.container_ids(stat.st_uid, stat.st_gid),
        };
        let attributes = found.attributes().map_err(failed("getxattr", path))?;
        let mut xattrs: Vec<_> = attributes.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect();
        // Overlay's marks say how that layer relates to what is below it; they are not part of the file.
        xattrs.retain(|(name, _)| !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay."));
        if let Ownership::Single = &self.options.ownership {
            let record = xattrs.extract_if(.., |(name, _)| name == RECORD.to_bytes()).last();
            (uid, gid) = record.and_then(|(_, value)| recorded_owner(&value)).unwrap_or((uid, gid));
        }
        if let Ownership::Mapped(reown) = &self.options.ownership {
            for (_, list) in xattrs.iter_mut().filter(|(name, _)| name.starts_with(b"system.posix_acl_")) {
                acl::map_ids(list, |uid| reown.container_ids(uid, 0).0, |gid| reown.container_ids(0, gid).1);
            }
            for (_, value) in xattrs.iter_mut().filter(|(name, _)| name == b"security.capability") {
                *value = inside(std::mem::take(value));
            }
        }
        let mtime = Time { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 };
        Ok(Meta { mode: stat.st_mode & 0o7777, uid, gid, mtime, xattrs })
    }

    /// A directory entry over a directory that was there says all there is to say about its attributes.
    pub(super) fn drop_old_xattrs(&self, dir: BorrowedFd<'_>, path: &[u8], meta: &Meta) -> Result<()> {
        for name in xattr::list(dir).map_err(failed("flistxattr", path))? {
            let bytes = name.to_bytes();
            // Access control lists are part of what an archive says, as modes are.
            let is_list = bytes.starts_with(b"system.posix_acl_");
            let stays = meta.xattrs.iter().any(|(name, _)| name == bytes)
                || !is_list
                    && [&b"trusted.overlay."[..], b"user.overlay.", b"security.", b"system."]
                        .iter()
                        .any(|prefix| bytes.starts_with(prefix));
            if !stays {
                match xattr::remove(dir, &name) {
                    Err(error) if !is_refusal(&error) => {
                        return Err(Error::io(STEP, "fremovexattr", error).kind_is(ErrorKind::Io));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Whether the file system or the kernel does not do this attribute, as opposed to failing at it.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EPERM | libc::EACCES | libc::ERANGE | libc::E2BIG | libc::EINVAL)
    )
}
