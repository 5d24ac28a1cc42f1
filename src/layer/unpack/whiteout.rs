//! What a layer removes.
//!
//! See [Whiteouts](https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts). They are about the
//! layers below only: what the same layer makes stays, in whatever order the two stand in the tar.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use super::place::{Place, join, split};
use super::{PLINKS, STEP, Unpacker, failed, hostile};
use crate::layer::view::is_whiteout;
use crate::sys::fs::{c_string, each_name, fstat, listing, lstatat, mkdirat, mknodat, open_dir};
use crate::sys::xattr;
use crate::{Error, Result};

impl Unpacker<'_> {
    /// The entry `.wh.<hidden>` in the directory that the clean path `parent` leads to.
    pub(super) fn whiteout(&mut self, parent: &[u8], hidden: &[u8], written: &[u8]) -> Result<()> {
        match hidden {
            b".wh..opq" => return self.opaque_entry(parent),
            // Bookkeeping of aufs that old images carry.
            _ if hidden.starts_with(b".wh.") => return Ok(()),
            b"" | b"." | b".." => return Err(hostile(written, "it is a whiteout of nothing")),
            _ => {}
        }
        let place = match self.place(parent, hidden) {
            Ok(place) => place,
            // umoci lists what was in a directory that the layer has replaced by a file: that hides it all already.
            Err(_) if self.is_cut_off(parent) => return Ok(()),
            Err(error) => return Err(error),
        };
        self.parents.covered(&place.path);
        if self.applies() {
            return self.purge(&place);
        }
        // Where nothing below shows anyway, a whiteout would do nothing but turn up in listings: overlayfs does not
        // look for them in directories that only one layer has.
        if self.is_hidden(&place.parent.path) {
            return Ok(());
        }
        match mknodat(place.dir(), &place.name, libc::S_IFCHR, 0) {
            Ok(()) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                if self.notes.brought_up.contains(&place.path) {
                    self.clear(&place)?;
                    return mknodat(place.dir(), &place.name, libc::S_IFCHR, 0).map_err(failed("mknodat", &place.path));
                }
                let stat = lstatat(place.dir(), &place.name).map_err(failed("lstat", &place.path))?;
                // A file hides what is below it anyway; a directory would be merged with it.
                if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
                    // Opened as for an entry: it may be complete, and then not even its owner may mark it.
                    let dir = self.parent(&place.path)?;
                    self.make_opaque(dir.dir(), c".", &dir.path)?;
                }
                Ok(())
            }
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Err(failed("mknodat", &place.path)(error)
                .because("this kernel or sandbox lets an unprivileged process make no whiteouts")
                .remedy("use the copy backend, or a kernel from 5.8 on")),
            Err(error) => Err(failed("mknodat", &place.path)(error)),
        }
    }

    /// Makes the directory of aufs' links, which goes at the end.
    pub(super) fn make_plinks(&mut self) -> Result<()> {
        if self.plinks {
            return Ok(());
        }
        let name = c_string(PLINKS).map_err(failed("mkdirat", PLINKS))?;
        match mkdirat(self.root.dir(), &name, 0o700) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(failed("mkdirat", PLINKS)(error)),
            _ => {
                self.plinks = true;
                Ok(())
            }
        }
    }

    /// Removes it. What has other names stays under those.
    pub(super) fn remove_plinks(&mut self) -> Result<()> {
        if !self.plinks {
            return Ok(());
        }
        let root = self.parent(&[])?;
        let name = c_string(PLINKS).map_err(failed("unlinkat", PLINKS))?;
        self.clear(&Place { parent: root, name, path: PLINKS.to_vec() })
    }

    /// Whether the way along this clean path ends, in this layer's own tree, at something that has no inside.
    fn is_cut_off(&self, path: &[u8]) -> bool {
        let Ok(path) = c_string(path) else { return false };
        match self.root.open_beneath_nofollow(&path, libc::O_PATH | libc::O_NOFOLLOW, 0) {
            Ok(found) => fstat(found.as_fd())
                .is_ok_and(|stat| !matches!(stat.st_mode & libc::S_IFMT, libc::S_IFDIR | libc::S_IFLNK)),
            Err(error) => error.raw_os_error() == Some(libc::ENOTDIR),
        }
    }

    /// The entry `.wh..wh..opq`.
    fn opaque_entry(&mut self, path: &[u8]) -> Result<()> {
        if path.is_empty() {
            return self.hide_everything();
        }
        let parent = self.parent(path)?;
        if self.applies() {
            let dir = parent.path.clone();
            return self.purge_inside(&dir);
        }
        let canonical = parent.path.clone();
        self.make_opaque(parent.dir(), c".", &canonical)
    }

    /// Makes a directory hide what the layers below have in it.
    pub(super) fn make_opaque(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: &[u8]) -> Result<()> {
        if self.notes.opaque.contains(path) {
            return Ok(());
        }
        let Some(attribute) = self.options.whiteouts.opaque_mark() else { return Ok(()) };
        let dir = open_dir(dir, name).map_err(failed("openat", path))?;
        xattr::set(dir.as_fd(), attribute, b"y").map_err(|error| {
            let refused = matches!(error.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP));
            let error = failed("fsetxattr", path)(error);
            if refused {
                error
                    .because(format!("the attribute {attribute:?}, which hides lower layers, cannot be set here"))
                    .remedy("use the copy backend, or another file system for the store")
            } else {
                error
            }
        })?;
        self.notes.opaque.insert(path);
        self.parents.hidden();
        self.take_down(path)
    }

    /// Removes what hard links have brought up from the layers below into a directory that now hides it. The links
    /// stay.
    fn take_down(&mut self, dir: &[u8]) -> Result<()> {
        while let Some(path) = self.notes.brought_up.first_below(dir).cloned() {
            let (parent, name) = split(&path);
            let place = self.place(parent, name)?;
            self.clear(&place)?;
            // Said by the path that it was noted by, or this would not end.
            self.notes.brought_up.remove(&path);
        }
        Ok(())
    }

    /// An opaque root. Overlayfs does not look for the mark on a layer's root directory, so each name is hidden.
    fn hide_everything(&mut self) -> Result<()> {
        if self.applies() {
            return self.purge_inside(&[]);
        }
        // Also where nothing is below: over another stack there would be names to hide.
        self.result.dependent = true;
        let Some(view) = self.below.view()? else { return Ok(()) };
        view.each_name(|name| self.whiteout(&[], name.to_bytes(), b".wh..wh..opq"))?;
        // From here on nothing below the root shows through.
        self.notes.opaque.insert(b"");
        self.parents.hidden();
        Ok(())
    }

    /// Removes what the layers below have made at `place`.
    fn purge(&mut self, place: &Place) -> Result<()> {
        let stat = match lstatat(place.dir(), &place.name) {
            Ok(stat) => stat,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) => return Err(failed("lstat", &place.path)(error)),
        };
        if self.notes.made.contains(&place.path) || self.notes.made.has_below(&place.path) {
            if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
                return self.purge_inside(&place.path);
            }
            return Ok(());
        }
        debug_assert!(!is_whiteout(&stat) || self.applies());
        self.clear(place)
    }

    fn purge_inside(&mut self, path: &[u8]) -> Result<()> {
        let parent = self.parent(path)?;
        let listing = listing(parent.dir()).map_err(failed("openat", path))?;
        // Those that this layer has something in or at are few enough to be remembered; the others are not.
        let mut kept = Vec::new();
        let failed_here = |error| Error::io(STEP, "readdir", error);
        each_name(listing, failed_here, |name| {
            let path = join(&parent.path, name.to_bytes());
            if self.notes.made.contains(&path) || self.notes.made.has_below(&path) {
                kept.push(path);
                return Ok(());
            }
            self.clear(&Place { parent: parent.clone(), name: name.to_owned(), path })
        })?;
        for path in kept {
            let name = c_string(split(&path).1).map_err(failed("openat", &path))?;
            self.purge(&Place { parent: parent.clone(), name, path })?;
        }
        Ok(())
    }
}
