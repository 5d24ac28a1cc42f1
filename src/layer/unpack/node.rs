//! Making files, links, directories and nodes.

use std::io::{self, BufRead};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::metadata::Meta;
use super::place::{Place, clean, split};
use super::waiting::Pending;
use super::{Ownership, STEP, Skipped, Unpacker, failed, hostile};
use crate::layer::tar::{Entry, Kind, Reader};
use crate::layer::view::{as_path, is_whiteout};
use crate::sys::fs::{
    Stat, c_string, ftruncate, linkat, lstatat, mkdirat, mknodat, openat, remove_tree, seek, symlinkat, unlinkat,
    write_all,
};
use crate::sys::reflink;
use crate::{Error, ErrorKind, Result};

const NEW_FILE: libc::c_int = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;

fn is_dir(stat: &Stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

impl Unpacker<'_> {
    /// Runs `make`, and once more after removing what stands in the way.
    fn make<T>(
        &mut self,
        place: &Place,
        syscall: &'static str,
        make: impl Fn(BorrowedFd<'_>, &std::ffi::CStr) -> io::Result<T>,
    ) -> Result<T> {
        match make(place.dir(), &place.name) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            result => return result.map_err(failed(syscall, &place.path)),
        }
        self.clear(place)?;
        make(place.dir(), &place.name).map_err(failed(syscall, &place.path))
    }

    /// Removes what stands at `place`.
    pub(super) fn clear(&mut self, place: &Place) -> Result<()> {
        let stat = lstatat(place.dir(), &place.name).map_err(failed("lstat", &place.path))?;
        if is_dir(&stat) || stat.st_mode & libc::S_IFMT == libc::S_IFLNK {
            self.parents.forget();
        }
        self.notes.forget(&place.path);
        if is_dir(&stat) {
            self.waiting.forget(&place.path);
            self.remove_tree(place.dir(), &place.name, &place.path)
        } else {
            unlinkat(place.dir(), &place.name).map_err(failed("unlink", &place.path))
        }
    }

    /// Removes a tree, with the help of whoever may where we may not.
    pub(super) fn remove_tree(&self, dir: BorrowedFd<'_>, name: &std::ffi::CStr, path: &[u8]) -> Result<()> {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(name.to_bytes());
        match (remove_tree(dir, name), &self.options.ownership) {
            (Err(error), Ownership::Mapped(reown))
                if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) =>
            {
                reown.remove(dir, name)
            }
            (result, _) => result.map_err(failed("unlink", path)),
        }
    }

    pub(super) fn file<R: BufRead>(&mut self, place: &Place, entry: Entry, reader: &mut Reader<R>) -> Result<()> {
        self.count_bytes(entry.sparse.as_ref().map_or(entry.size, |sparse| sparse.real_size))?;
        let meta = Meta { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs: entry.xattrs };
        let (fd, mode_is_set) = self.new_file(place, &meta)?;
        match entry.sparse {
            None => copy(reader.data(), fd.as_fd(), u64::MAX, &place.path)?,
            Some(sparse) => {
                ftruncate(fd.as_fd(), sparse.real_size).map_err(failed("ftruncate", &place.path))?;
                let mut data = reader.data();
                for (offset, length) in sparse.pieces {
                    seek(fd.as_fd(), offset).map_err(failed("lseek", &place.path))?;
                    copy(&mut data, fd.as_fd(), length, &place.path)?;
                }
            }
        }
        self.finish_open(fd.as_fd(), &place.path, &meta, mode_is_set, false)
    }

    /// An empty new file at `place`; also says whether it has its final mode already.
    fn new_file(&mut self, place: &Place, meta: &Meta) -> Result<(OwnedFd, bool)> {
        // With attributes to come it must stay writable for its owner, whatever its mode will be; and writing to it
        // clears setuid and setgid, unless root writes.
        let exact = self.exact_modes
            && meta.xattrs.is_empty()
            && meta.mode & 0o6000 == 0
            && !matches!(self.options.ownership, Ownership::Single);
        let mode = if exact { meta.mode } else { 0o600 };
        let fd = self.make(place, "openat", |dir, name| openat(dir, name, NEW_FILE, mode))?;
        Ok((fd, exact))
    }

    pub(super) fn symlink(&mut self, place: &Place, target: &[u8], meta: Meta) -> Result<()> {
        let target = c_string(target).map_err(failed("symlink", &place.path))?;
        self.make(place, "symlinkat", |dir, name| symlinkat(&target, dir, name))?;
        self.finish_unopened(place, &meta, None)
    }

    pub(super) fn directory(&mut self, place: Place, meta: Meta) -> Result<()> {
        // Writable for its owner until it is complete; setgid would be handed down to what is made in it.
        let exact = self.exact_modes && meta.mode & 0o7700 == 0o700;
        let mode = if exact { meta.mode } else { 0o700 };
        let mut pending = Pending { meta, mode_is_set: exact, existed: false };
        match mkdirat(place.dir(), &place.name, mode) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                let stat = lstatat(place.dir(), &place.name).map_err(failed("lstat", &place.path))?;
                if is_dir(&stat) {
                    pending.mode_is_set = false;
                    // Made by this layer as a parent or by an earlier entry, or by a layer below.
                    let before = self.waiting.get(&place.path);
                    pending.existed = before.is_none_or(|before| before.existed);
                    self.take_back(&place.path, &pending.meta);
                    // One that is complete already, of this layer or of one below.
                    if stat.st_mode & 0o700 != 0o700 {
                        let handle = crate::sys::fs::open_handle(place.dir(), &place.name)
                            .map_err(failed("openat", &place.path))?;
                        crate::sys::fs::chmod_handle(handle.as_fd(), stat.st_mode & 0o7777 | 0o700)
                            .map_err(failed("chmod", &place.path))?;
                    }
                } else {
                    self.make(&place, "mkdirat", |dir, name| mkdirat(dir, name, mode))?;
                    // What this layer had here, a whiteout or a file, has hidden what is below, and that stays so.
                    self.make_opaque(place.dir(), &place.name, &place.path)?;
                }
            }
            Err(error) => return Err(failed("mkdirat", &place.path)(error)),
        }
        self.waiting.insert(place.path, pending);
        Ok(())
    }

    pub(super) fn node(&mut self, place: &Place, entry: &Entry) -> Result<()> {
        let kind = match entry.kind {
            Kind::CharDevice => libc::S_IFCHR,
            Kind::BlockDevice => libc::S_IFBLK,
            _ => libc::S_IFIFO,
        };
        if kind == libc::S_IFCHR && entry.device == (0, 0) {
            return Err(hostile(&entry.path, "a character device 0/0 would act as a whiteout"));
        }
        self.make_node(place, kind, libc::makedev(entry.device.0, entry.device.1), &Meta::of(entry))
    }

    /// A FIFO or device.
    fn make_node(&mut self, place: &Place, kind: libc::mode_t, device: libc::dev_t, meta: &Meta) -> Result<()> {
        let is_device = kind != libc::S_IFIFO;
        if is_device && !matches!(self.options.ownership, Ownership::Full) {
            return self.stand_in(place, meta);
        }
        let mode = kind | if self.exact_modes { meta.mode } else { 0o600 };
        let made = self.make(place, "mknodat", |dir, name| match mknodat(dir, name, mode, device) {
            // Root of a user namespace may not make devices.
            Err(error) if is_device && error.raw_os_error() == Some(libc::EPERM) => Ok(false),
            result => result.map(|()| true),
        })?;
        if !made {
            return self.stand_in(place, meta);
        }
        // An access control list changes the mode.
        let exact = self.exact_modes && meta.mode & 0o6000 == 0 && meta.xattrs.is_empty();
        self.finish_unopened(place, meta, (!exact || self.is_mapped()).then_some(meta.mode))
    }

    fn is_mapped(&self) -> bool {
        matches!(self.options.ownership, Ownership::Mapped(_))
    }

    /// An empty file in place of a device.
    fn stand_in(&mut self, place: &Place, meta: &Meta) -> Result<()> {
        self.skip(Skipped::Device);
        let (fd, mode_is_set) = self.new_file(place, meta)?;
        self.finish_open(fd.as_fd(), &place.path, meta, mode_is_set, false)
    }

    pub(super) fn hard_link(&mut self, place: &Place, entry: &Entry) -> Result<()> {
        let target = clean(&entry.link, self.options.limits.depth)?;
        let (parent, name) = split(&target);
        if target.is_empty() {
            return Err(hostile(&entry.path, "it is a hard link to the root of the tree"));
        }
        let target = self.place(parent, name)?;
        if target.path.starts_with(&[place.path.as_slice(), b"/"].concat()) {
            return Err(hostile(&entry.path, "it is a hard link to something inside itself"));
        }
        if target.path == place.path {
            return Err(hostile(&entry.path, "it is a hard link to itself"));
        }
        let missing = || {
            Error::new(ErrorKind::Corrupt, STEP)
                .path(as_path(&entry.path))
                .because(format!("it is a hard link to {:?}, which is not there", as_path(&entry.link)))
        };
        match lstatat(target.dir(), &target.name) {
            // A whiteout: the layer says itself that there is nothing.
            Ok(stat) if is_whiteout(&stat) && !self.applies() => return Err(missing()),
            Ok(stat) if is_dir(&stat) => return Err(hostile(&entry.path, "it is a hard link to a directory")),
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                if !self.copy_up(&target)? {
                    return Err(missing());
                }
            }
            Err(error) => return Err(failed("lstat", &target.path)(error)),
        }
        self.make(place, "linkat", |dir, name| linkat(target.dir(), &target.name, dir, name))?;
        if self.is_mapped() {
            self.notes.owners.link(&place.path, &target.path);
        }
        Ok(())
    }

    /// Brings a file of a lower layer into this tree, so that it can be linked; `false` where there is none.
    fn copy_up(&mut self, place: &Place) -> Result<bool> {
        let Some(found) = self.look_below(&place.path)? else { return Ok(false) };
        self.count_unnamed()?;
        let meta = self.meta_of(&found, &place.path)?;
        match found.file_type() {
            libc::S_IFREG => {
                self.count_bytes(u64::try_from(found.stat.st_size).unwrap_or(0))?;
                let from = std::fs::File::from(found.open().map_err(failed("openat", &place.path))?);
                let (fd, mode_is_set) = self.new_file(place, &meta)?;
                let made = std::fs::File::from(fd);
                // Holes stay holes: a lower layer of a few bytes may have a file of any length.
                match reflink::clone_file(from.as_fd(), made.as_fd()) {
                    Err(error) if reflink::cannot_clone(&error) => {
                        reflink::copy_data(&from, &made, found.stat.st_size.unsigned_abs())
                    }
                    cloned => cloned,
                }
                .map_err(failed("copy_file_range", &place.path))?;
                self.finish_open(made.as_fd(), &place.path, &meta, mode_is_set, false)?;
            }
            libc::S_IFLNK => {
                let target = found.target().map_err(failed("readlink", &place.path))?;
                self.symlink(place, &target, meta)?;
            }
            kind @ (libc::S_IFIFO | libc::S_IFCHR | libc::S_IFBLK) => {
                self.make_node(place, kind, found.stat.st_rdev, &meta)?;
            }
            _ => return Ok(false),
        }
        self.notes.brought_up.insert(&place.path);
        Ok(true)
    }
}

/// Copies up to `limit` bytes of `from` straight out of its buffer. With a finite limit, less is an error.
fn copy(mut from: impl BufRead, to: BorrowedFd<'_>, limit: u64, path: &[u8]) -> Result<()> {
    let mut left = limit;
    while left > 0 {
        let bytes = from.fill_buf().map_err(failed("read", path))?;
        if bytes.is_empty() {
            break;
        }
        let count = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        write_all(to, &bytes[..count]).map_err(failed("write", path))?;
        from.consume(count);
        left -= count as u64;
    }
    if limit != u64::MAX && left > 0 {
        // The parser has held the map against the stored size, so this cannot come from an archive.
        return Err(failed("read", path)(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(())
}
