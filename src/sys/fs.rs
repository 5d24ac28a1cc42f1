//! File system calls relative to descriptors. Names are single components; nothing here follows a final symlink.
#![allow(unsafe_code)] // System calls that the standard library does not offer relative to a descriptor.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use super::reflink::{delete_subvolume, is_subvolume};

/// What fstat(2) says.
pub(crate) type Stat = libc::stat;

/// Turns the usual -1 into the errno.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `bytes` as a name for the kernel.
pub(crate) fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// openat(2), always close-on-exec.
pub(crate) fn openat(dir: BorrowedFd<'_>, name: &CStr, flags: libc::c_int, mode: u32) -> io::Result<OwnedFd> {
    // SAFETY: `name` is NUL-terminated and outlives the call; the descriptor is open for as long as it is borrowed.
    let fd = check(unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags | libc::O_CLOEXEC, mode) })?;
    // SAFETY: the kernel has just handed us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens the directory `name` for reading, not through a symlink.
pub(crate) fn open_dir(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    openat(dir, name, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_NONBLOCK, 0)
}

/// Opens `name` as a handle only, whatever it is, not through a symlink.
pub(crate) fn open_handle(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    openat(dir, name, libc::O_PATH | libc::O_NOFOLLOW, 0)
}

/// mkdirat(2).
pub(crate) fn mkdirat(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> io::Result<()> {
    // SAFETY: as in `openat`.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

/// mknodat(2): `mode` carries the type; `device` is used for device nodes only.
pub(crate) fn mknodat(dir: BorrowedFd<'_>, name: &CStr, mode: u32, device: u64) -> io::Result<()> {
    // SAFETY: as in `openat`.
    check(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, device) }).map(drop)
}

/// symlinkat(2): `name` becomes a symlink that says `target`.
pub(crate) fn symlinkat(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: as in `openat`.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// readlinkat(2) of `name`, or of `dir` itself (an `O_PATH` handle of a symlink) where `name` is empty.
pub(crate) fn readlinkat(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Vec<u8>> {
    let mut target = vec![0; libc::PATH_MAX as usize];
    // SAFETY: the pointer and the length are those of one live, exclusively borrowed vector; names as in `openat`.
    let count = unsafe { libc::readlinkat(dir.as_raw_fd(), name.as_ptr(), target.as_mut_ptr().cast(), target.len()) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    target.truncate(count);
    Ok(target)
}

/// linkat(2) from one name to another, not following a symlink.
pub(crate) fn linkat(
    old_dir: BorrowedFd<'_>,
    old_name: &CStr,
    new_dir: BorrowedFd<'_>,
    new_name: &CStr,
) -> io::Result<()> {
    // SAFETY: as in `openat`.
    check(unsafe { libc::linkat(old_dir.as_raw_fd(), old_name.as_ptr(), new_dir.as_raw_fd(), new_name.as_ptr(), 0) })
        .map(drop)
}

/// unlinkat(2) of something that is not a directory.
pub(crate) fn unlinkat(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: as in `openat`.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
}

/// unlinkat(2) of an empty directory.
pub(crate) fn rmdirat(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: as in `openat`.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), libc::AT_REMOVEDIR) }).map(drop)
}

/// renameat2(2) that fails with `EEXIST` where the new name is taken. File systems that know no flags answer `EINVAL`.
pub(crate) fn rename_new(
    old_dir: BorrowedFd<'_>,
    old_name: &CStr,
    new_dir: BorrowedFd<'_>,
    new_name: &CStr,
) -> io::Result<()> {
    // SAFETY: as in `openat`; the raw call because musl has no wrapper of it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            old_dir.as_raw_fd(),
            old_name.as_ptr(),
            new_dir.as_raw_fd(),
            new_name.as_ptr(),
            libc::RENAME_NOREPLACE,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// fstat(2); works on `O_PATH` handles too.
pub(crate) fn fstat(fd: BorrowedFd<'_>) -> io::Result<Stat> {
    let mut stat = MaybeUninit::<Stat>::uninit();
    // SAFETY: the pointer is to a buffer of exactly the size that the kernel fills.
    check(unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: fstat succeeded, so every field is written.
    Ok(unsafe { stat.assume_init() })
}

/// fstatat(2) of `name` itself, also where it is a symlink.
pub(crate) fn lstatat(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Stat> {
    let mut stat = MaybeUninit::<Stat>::uninit();
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    // SAFETY: as in `fstat` and `openat`.
    check(unsafe { libc::fstatat(dir.as_raw_fd(), name.as_ptr(), stat.as_mut_ptr(), flags) })?;
    // SAFETY: fstatat succeeded, so every field is written.
    Ok(unsafe { stat.assume_init() })
}

/// The type bits (`S_IFMT`) of what is at `path`, by statx(2): a link is not followed, nothing is mounted on demand, and
/// what the kernel knows already is enough. A file system whose server is gone is not asked where that can be avoided.
pub(crate) fn type_unasked(path: &CStr) -> io::Result<libc::mode_t> {
    let mut status = MaybeUninit::<libc::statx>::uninit();
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | libc::AT_STATX_DONT_SYNC;
    // SAFETY: `path` is NUL-terminated and outlives the call; the buffer is one whole statx.
    check(unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, libc::STATX_TYPE, status.as_mut_ptr()) })?;
    // SAFETY: statx succeeded, so every field is written.
    let status = unsafe { status.assume_init() };
    Ok(libc::mode_t::from(status.stx_mode) & libc::S_IFMT)
}

/// fchown(2).
pub(crate) fn fchown(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: takes no pointer; the descriptor is open for as long as it is borrowed.
    check(unsafe { libc::fchown(fd.as_raw_fd(), uid, gid) }).map(drop)
}

/// fchownat(2) of `name` itself, also where it is a symlink.
pub(crate) fn lchownat(dir: BorrowedFd<'_>, name: &CStr, uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: as in `openat`.
    check(unsafe { libc::fchownat(dir.as_raw_fd(), name.as_ptr(), uid, gid, libc::AT_SYMLINK_NOFOLLOW) }).map(drop)
}

/// fchmod(2); not for `O_PATH` handles.
pub(crate) fn fchmod(fd: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    // SAFETY: takes no pointer; the descriptor is open for as long as it is borrowed.
    check(unsafe { libc::fchmod(fd.as_raw_fd(), mode) }).map(drop)
}

/// Changes the mode of what an `O_PATH` handle names, which must not be a symlink: fchmod(2) refuses such handles
/// and fchmodat2(2) is younger than the kernels we run on, so it goes through the handle's own magic link.
pub(crate) fn chmod_handle(handle: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    let stat = fstat(handle)?;
    if stat.st_mode & libc::S_IFMT == libc::S_IFLNK {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    let link = c_string(format!("/proc/self/fd/{}", handle.as_raw_fd()).as_bytes())?;
    // SAFETY: as in `openat`.
    check(unsafe { libc::chmod(link.as_ptr(), mode) }).map(drop)
}

/// A time as utimensat(2) takes it: seconds since 1970 (may be negative) and nanoseconds below 10⁹.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

impl Time {
    fn timespecs(self) -> [libc::timespec; 2] {
        let time = libc::timespec { tv_sec: self.seconds as libc::time_t, tv_nsec: self.nanoseconds as _ };
        [time, time]
    }
}

/// futimens(3): sets both times of an open file.
pub(crate) fn futimens(fd: BorrowedFd<'_>, time: Time) -> io::Result<()> {
    let times = time.timespecs();
    // SAFETY: the pointer is to two live timespecs.
    check(unsafe { libc::futimens(fd.as_raw_fd(), times.as_ptr()) }).map(drop)
}

/// utimensat(2): sets both times of `name` itself, also where it is a symlink.
pub(crate) fn lutimensat(dir: BorrowedFd<'_>, name: &CStr, time: Time) -> io::Result<()> {
    let times = time.timespecs();
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: as in `openat`; the pointer is to two live timespecs.
    check(unsafe { libc::utimensat(dir.as_raw_fd(), name.as_ptr(), times.as_ptr(), flags) }).map(drop)
}

/// Writes everything to `fd` at its current offset.
pub(crate) fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the pointer and the length are those of one live slice.
        let count = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(count) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// lseek(2) from the start.
pub(crate) fn seek(fd: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: takes no pointer.
    if unsafe { libc::lseek(fd.as_raw_fd(), offset, libc::SEEK_SET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// ftruncate(2).
pub(crate) fn ftruncate(fd: BorrowedFd<'_>, size: u64) -> io::Result<()> {
    let size = libc::off_t::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: takes no pointer.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), size) }).map(drop)
}

/// syncfs(2): writes out everything of the file system that `fd` lies on.
pub(crate) fn syncfs(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no pointer; the raw call because not every C library wraps it.
    let result = unsafe { libc::syscall(libc::SYS_syncfs, fd.as_raw_fd()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives the *calling thread* a umask of its own and clears it, so that the modes given at creation are exact.
/// Returns whether that worked: sandboxes forbid unshare(2), and then modes have to be set after creation.
///
/// Only for threads that this crate has started and that end with their work: the thread's current directory and
/// umask no longer follow those of the process.
pub(crate) fn clear_umask_of_this_thread() -> bool {
    // SAFETY: neither call takes a pointer. CLONE_FS detaches only the calling thread's file system attributes, so
    // the umask that follows is invisible to every other thread.
    unsafe {
        if libc::unshare(libc::CLONE_FS) != 0 {
            return false;
        }
        libc::umask(0);
    }
    true
}

/// How many directories deep [`remove_tree`] goes before it brings deeper ones up.
const MAX_OPEN: usize = 32;

/// Removes `name` in `parent` and everything below it, without following symlinks and without crossing into another
/// file system; btrfs' subvolumes go with the rest. Directories that forbid it are made writable first. A name that is
/// absent is fine.
///
/// Descriptors and stack stay bounded however deep the tree is: what lies deeper than [`MAX_OPEN`] is moved up next to
/// `name`'s own children first. After an error the rest of the tree is gone as far as it could be removed.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let name = c_string(name.as_bytes())?;
    match unlinkat(parent, &name) {
        Ok(()) => return Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
        // Linux says EISDIR for a directory; POSIX says EPERM.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EISDIR | libc::EPERM)) => {}
        Err(error) => return Err(error),
    }
    let top = open_writable(parent, &name)?;
    let stat = fstat(top.as_fd())?;
    if is_subvolume(top.as_fd(), &stat) && delete_subvolume(parent, &name).is_ok() {
        return Ok(());
    }
    let mut removal = Removal { top: top.as_fd(), outer: None, device: stat.st_dev, raised: 0, first_error: None };
    removal.empty()?;
    match (rmdirat(parent, &name), removal.first_error) {
        (Ok(()), _) => Ok(()),
        (Err(error), None) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        (Err(_), Some(first)) => Err(first),
        (Err(error), None) => Err(error),
    }
}

/// Opens a directory in which names can be removed.
fn open_writable(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let writable = |stat: &Stat| stat.st_mode & 0o700 == 0o700;
    match open_dir(parent, name) {
        Ok(dir) => {
            if !writable(&fstat(dir.as_fd())?) {
                // Best effort: for root, and where an ACL allows it, the mode does not matter.
                let _ = fchmod(dir.as_fd(), 0o700);
            }
            Ok(dir)
        }
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            let handle = open_handle(parent, name)?;
            if fstat(handle.as_fd())?.st_mode & libc::S_IFMT != libc::S_IFDIR {
                return Err(error);
            }
            chmod_handle(handle.as_fd(), 0o700)?;
            open_dir(parent, name)
        }
        Err(error) => Err(error),
    }
}

struct Removal<'a> {
    /// What is being emptied; directories that lie too deep are moved up to it.
    top: BorrowedFd<'a>,
    /// Inside a subvolume of the tree: the tree's top, which subvolumes inside this one are moved up to. Directories
    /// cannot leave their subvolume, subvolumes can.
    outer: Option<BorrowedFd<'a>>,
    device: libc::dev_t,
    /// How many directories were moved up so far; makes their new names.
    raised: u64,
    first_error: Option<io::Error>,
}

impl Removal<'_> {
    /// Empties the top.
    fn empty(&mut self) -> io::Result<()> {
        // What was moved up, or was passed over because its neighbours went, is removed in a further round.
        while self.clear(self.top, 1)? && self.first_error.is_none() {}
        Ok(())
    }

    /// Empties `dir`; failures of single names are noted and skipped. Returns whether there was anything to remove.
    ///
    /// Names are not collected first: an archive makes millions of them in one directory, of 255 bytes each.
    fn clear(&mut self, dir: BorrowedFd<'_>, depth: usize) -> io::Result<bool> {
        let mut any = false;
        let act = |name: &CStr| {
            any = true;
            if let Err(error) = self.remove(dir, name, depth)
                && error.raw_os_error() != Some(libc::ENOENT)
            {
                self.first_error.get_or_insert(error);
            }
            Ok(())
        };
        each_name(listing(dir)?, |error| error, act)?;
        Ok(any)
    }

    fn remove(&mut self, dir: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<()> {
        match unlinkat(dir, name) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EISDIR | libc::EPERM)) => {}
            other => return other,
        }
        match rmdirat(dir, name) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST)) => {}
            other => return other,
        }
        let child = open_writable(dir, name)?;
        let stat = fstat(child.as_fd())?;
        if stat.st_dev != self.device {
            // Of a directory that something is mounted on, rmdir(2) has said so above (`EBUSY`).
            if is_subvolume(child.as_fd(), &stat) {
                return self.subvolume(dir, name, child.as_fd(), (depth, stat.st_dev));
            }
            // Something is mounted here: not ours to empty.
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        if depth < MAX_OPEN {
            loop {
                let again = self.clear(child.as_fd(), depth + 1)? && self.first_error.is_none();
                match rmdirat(dir, name) {
                    Err(error) if again && matches!(error.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST)) => {}
                    other => return other,
                }
            }
        }
        self.raised = raise(dir, name, self.top, self.raised)?;
        Ok(())
    }

    /// A btrfs subvolume inside: deleted as a whole, or, where that is not allowed, emptied and removed as a directory.
    /// That is done for those at the very top only, where deeper ones are moved to: however deep subvolumes are nested,
    /// one is in hand at a time.
    fn subvolume(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        child: BorrowedFd<'_>,
        (depth, device): (usize, libc::dev_t),
    ) -> io::Result<()> {
        if delete_subvolume(dir, name).is_ok() {
            return Ok(());
        }
        let outer = self.outer.unwrap_or(self.top);
        if depth > 1 || self.outer.is_some() {
            self.raised = raise(dir, name, outer, self.raised)?;
            return Ok(());
        }
        let mut inner = Removal { top: child, outer: Some(outer), device, raised: self.raised, first_error: None };
        inner.empty()?;
        self.raised = inner.raised;
        match inner.first_error {
            Some(error) => Err(error),
            None => rmdirat(dir, name),
        }
    }
}

/// Moves `name` to a new name in `top`, numbered above `number`; returns the number.
fn raise(dir: BorrowedFd<'_>, name: &CStr, top: BorrowedFd<'_>, mut number: u64) -> io::Result<u64> {
    loop {
        number += 1;
        match rename_new(dir, name, top, &c_string(format!("raised-{number}").as_bytes())?) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            other => return other.map(|()| number),
        }
    }
}

/// The names in `dir`, without `.` and `..`.
pub(crate) fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    names_of(listing(dir)?)
}

/// [`names`] of a directory that was opened for this.
pub(crate) fn names_of(dir: OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    each_name(
        dir,
        |error| error,
        |name| {
            names.push(name.to_owned());
            Ok(())
        },
    )?;
    Ok(names)
}

/// `dir`, opened to be listed. A descriptor of its own: the offset of a directory belongs to the open file.
pub(crate) fn listing(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    openat(dir, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)
}

/// Calls `act` with each name in `dir`, which was opened for this, without keeping them: there may be millions. Names may
/// be removed meanwhile.
pub(crate) fn each_name<E>(
    dir: OwnedFd,
    failed: impl Fn(io::Error) -> E,
    mut act: impl FnMut(&CStr) -> Result<(), E>,
) -> Result<(), E> {
    let mut stream = nix::dir::Dir::from_fd(dir).map_err(|errno| failed(errno.into()))?;
    for entry in stream.iter() {
        let entry = entry.map_err(|errno| failed(errno.into()))?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            act(name)?;
        }
    }
    Ok(())
}

/// Offset and length of each piece of `fd` that is not a hole, by `SEEK_DATA` and `SEEK_HOLE` of lseek(2). Where there
/// are more than `limit`, the shorter holes count as data, so that there are fewer; never fewer than one. The offset of
/// the open file is moved. A file system that knows no holes has one piece.
pub(crate) fn pieces(fd: BorrowedFd<'_>, limit: usize) -> io::Result<Vec<(u64, u64)>> {
    let seek = |from: u64, whence| {
        // SAFETY: takes no pointer.
        let at = unsafe { libc::lseek(fd.as_raw_fd(), from as libc::off_t, whence) };
        u64::try_from(at).map_err(|_| io::Error::last_os_error())
    };
    let mut pieces: Vec<(u64, u64)> = Vec::new();
    // Holes shorter than this are no holes.
    let mut least = 0u64;
    let mut end = 0;
    loop {
        let start = match seek(end, libc::SEEK_DATA) {
            // Nothing but a hole follows.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(pieces),
            other => other?,
        };
        match pieces.last_mut() {
            Some(last) if start - end < least => {
                end = seek(start, libc::SEEK_HOLE)?;
                last.1 = end - last.0;
            }
            _ => {
                end = seek(start, libc::SEEK_HOLE)?;
                pieces.push((start, end - start));
            }
        }
        while pieces.len() > limit.max(1) {
            least = least.saturating_mul(2).max(8192);
            pieces.dedup_by(|next, last| {
                let near = next.0 - (last.0 + last.1) < least;
                if near {
                    last.1 = next.0 + next.1 - last.0;
                }
                near
            });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_tree_of_any_depth_goes_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let parent = fs::File::open(place.path()).unwrap();
        fs::create_dir(place.path().join("outside")).unwrap();
        fs::write(place.path().join("outside/file"), "x").unwrap();
        fs::create_dir(place.path().join("tree")).unwrap();
        symlink("../outside", place.path().join("tree/link")).unwrap();
        fs::create_dir(place.path().join("tree/closed")).unwrap();
        fs::write(place.path().join("tree/closed/file"), "x").unwrap();
        fs::set_permissions(place.path().join("tree/closed"), fs::Permissions::from_mode(0o000)).unwrap();
        let mut dir = openat(parent.as_fd(), c"tree", libc::O_DIRECTORY, 0).unwrap();
        for level in 0..3000 {
            mkdirat(dir.as_fd(), c"d", 0o700).unwrap();
            if level % 100 == 0 {
                mkdirat(dir.as_fd(), c"raised-1", 0o700).unwrap();
            }
            dir = open_dir(dir.as_fd(), c"d").unwrap();
        }
        remove_tree(parent.as_fd(), OsStr::new("tree")).unwrap();
        assert!(!place.path().join("tree").exists());
        assert!(place.path().join("outside/file").exists());
        remove_tree(parent.as_fd(), OsStr::new("tree")).unwrap();
    }

    /// Run on btrfs, this also goes through subvolumes of a user who may not delete them as such.
    #[test]
    fn subvolumes_go_with_the_rest_however_deep_they_are_nested() {
        let place = tempfile::tempdir().unwrap();
        let parent = fs::File::open(place.path()).unwrap();
        fs::create_dir(place.path().join("tree")).unwrap();
        let mut here = open_dir(parent.as_fd(), c"tree").unwrap();
        let on_btrfs = crate::sys::reflink::is_btrfs(here.as_fd());
        for level in 0..300 {
            let made = match on_btrfs && level % 3 == 0 {
                true => crate::sys::reflink::make_subvolume(here.as_fd(), c"inner"),
                false => mkdirat(here.as_fd(), c"inner", 0o700),
            };
            made.unwrap();
            here = open_dir(here.as_fd(), c"inner").unwrap();
            drop(openat(here.as_fd(), c"file", libc::O_CREAT | libc::O_WRONLY, 0o600).unwrap());
        }
        drop(here);
        remove_tree(parent.as_fd(), OsStr::new("tree")).unwrap();
        assert!(!place.path().join("tree").exists());
    }

    #[test]
    fn many_pieces_become_fewer_and_hold_all_data() {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().unwrap();
        // Holes of 1, 2, 3 and so on times 64 KiB.
        let mut offset = 0;
        for hole in 1..40 {
            file.write_all_at(b"x", offset).unwrap();
            offset += 4096 + hole * 65536;
        }
        file.set_len(offset).unwrap();
        let all = pieces(file.as_fd(), 100).unwrap();
        if all.len() < 39 {
            // A file system without holes.
            return;
        }
        for limit in [38, 20, 2, 1, 0] {
            let fewer = pieces(file.as_fd(), limit).unwrap();
            assert!(!fewer.is_empty() && fewer.len() <= limit.max(1), "{limit}: {fewer:?}");
            assert!(fewer.windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0), "{fewer:?}");
            let inside = |(offset, length): &(u64, u64)| {
                fewer.iter().any(|piece| piece.0 <= *offset && offset + length <= piece.0 + piece.1)
            };
            assert!(all.iter().all(inside), "{limit}: {fewer:?}");
        }
    }

    #[test]
    fn the_umask_of_one_thread() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().to_owned();
        std::thread::spawn(move || {
            if clear_umask_of_this_thread() {
                let dir = fs::File::open(&path).unwrap();
                mkdirat(dir.as_fd(), c"wide", 0o777).unwrap();
                assert_eq!(fs::metadata(path.join("wide")).unwrap().permissions().mode() & 0o777, 0o777);
            }
        })
        .join()
        .unwrap();
        let dir = fs::File::open(place.path()).unwrap();
        mkdirat(dir.as_fd(), c"usual", 0o777).unwrap();
        assert_ne!(fs::metadata(place.path().join("usual")).unwrap().permissions().mode() & 0o777, 0o777);
    }
}
