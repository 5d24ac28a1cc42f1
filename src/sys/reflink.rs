//! Copies that share blocks, or at least do not write holes: FICLONE, copy_file_range(2), and btrfs' subvolumes.
#![allow(unsafe_code)] // ioctl(2), and system calls that the standard library does not offer.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use super::fs::{Stat, ftruncate};

/// `_IOW(0x94, 9, int)`, see ioctl_ficlone(2).
const FICLONE: u64 = 0x4004_9409;
/// `_IOW(0x94, n, struct btrfs_ioctl_vol_args)` and `…_v2`, both of 4096 bytes; see btrfs-ioctl(2).
const SUBVOL_CREATE: u64 = 0x5000_940e;
const SNAP_DESTROY: u64 = 0x5000_940f;
const SNAP_CREATE_V2: u64 = 0x5000_9417;

/// `_IOWR(0x94, 61, struct btrfs_ioctl_get_subvol_rootref_args)`.
const GET_SUBVOL_ROOTREF: u64 = 0xd000_943d;

const BTRFS_MAGIC: u64 = 0x9123_683e;
/// The inode number of every subvolume's root directory.
const SUBVOLUME_ROOT: u64 = 256;

/// `struct btrfs_ioctl_vol_args_v2`; without flags, and with the name in front, also the older form.
#[repr(C)]
struct Arguments {
    fd: i64,
    rest: [u8; 4088],
}

const _: () = assert!(size_of::<Arguments>() == 4096);

/// `struct btrfs_ioctl_get_subvol_rootref_args`.
#[repr(C)]
struct Nested {
    min_treeid: u64,
    rootref: [[u64; 2]; 255],
    num_items: u8,
    align: [u8; 7],
}

const _: () = assert!(size_of::<Nested>() == 4096);

impl Arguments {
    /// `before`: bytes between the descriptor and the name.
    fn new(fd: i64, before: usize, name: &CStr) -> io::Result<Arguments> {
        let mut arguments = Arguments { fd, rest: [0; 4088] };
        match arguments.rest.get_mut(before..before + name.to_bytes_with_nul().len()) {
            Some(place) if name.to_bytes().len() <= libc::NAME_MAX as usize => {
                place.copy_from_slice(name.to_bytes_with_nul());
                Ok(arguments)
            }
            _ => Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG)),
        }
    }

    fn call(&self, dir: BorrowedFd<'_>, request: u64) -> io::Result<()> {
        // SAFETY: the three requests that are used read one structure of 4096 bytes, which this is, and write none.
        let result = unsafe { libc::ioctl(dir.as_raw_fd(), request as _, std::ptr::from_ref(self)) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Makes an empty btrfs subvolume `name` in `dir`.
pub(crate) fn make_subvolume(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    Arguments::new(0, 0, name)?.call(dir, SUBVOL_CREATE)
}

/// Makes `name` in `dir` a writable snapshot of the subvolume whose root directory is `source`.
pub(crate) fn snapshot_subvolume(source: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // transid, flags and four unused words stand before the name.
    Arguments::new(source.as_raw_fd().into(), 48, name)?.call(dir, SNAP_CREATE_V2)
}

/// Whether subvolumes lie inside the subvolume that `source` is in, whose files a snapshot of it does not show.
///
/// # Errors
/// `ENOTTY` before Linux 4.18.
pub(crate) fn has_nested_subvolumes(source: BorrowedFd<'_>) -> io::Result<bool> {
    let mut answer = Nested { min_treeid: 0, rootref: [[0; 2]; 255], num_items: 0, align: [0; 7] };
    // SAFETY: the request reads and writes one structure of 4096 bytes, which this is.
    let result = unsafe { libc::ioctl(source.as_raw_fd(), GET_SUBVOL_ROOTREF as _, std::ptr::from_mut(&mut answer)) };
    match result {
        0.. => Ok(answer.num_items > 0),
        _ => match io::Error::last_os_error() {
            // More than fit into the answer.
            error if error.raw_os_error() == Some(libc::EOVERFLOW) => Ok(true),
            error => Err(error),
        },
    }
}

/// Deletes the subvolume `name` of `dir` with everything in it, at once. Needs root, or the mount option
/// `user_subvol_rm_allowed`; without either `EPERM`, and then it can be emptied and removed like a directory.
pub(crate) fn delete_subvolume(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    Arguments::new(0, 0, name)?.call(dir, SNAP_DESTROY)
}

/// Whether `fd` is on btrfs.
pub(crate) fn is_btrfs(fd: BorrowedFd<'_>) -> bool {
    // The width of the magic differs between platforms.
    nix::sys::statfs::fstatfs(fd).is_ok_and(|found| found.filesystem_type().0 as u64 & 0xffff_ffff == BTRFS_MAGIC)
}

/// Whether `fd`, which fstat(2) says `stat` of, is the root of a btrfs subvolume. Each is a device of its own to
/// fstat(2), though nothing is mounted.
pub(crate) fn is_subvolume(fd: BorrowedFd<'_>, stat: &Stat) -> bool {
    stat.st_ino == SUBVOLUME_ROOT && stat.st_mode & libc::S_IFMT == libc::S_IFDIR && is_btrfs(fd)
}

/// Lets `to` share the blocks of the whole file `from`; both lie on one file system that can.
///
/// # Errors
/// `EOPNOTSUPP`, `ENOTTY`, `EXDEV` or `EINVAL` where blocks cannot be shared between the two.
pub(crate) fn clone_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: FICLONE takes a descriptor by value.
    let result = unsafe { libc::ioctl(to.as_raw_fd(), FICLONE as _, from.as_raw_fd()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether a failed clone means that these files cannot share blocks, and nothing worse.
pub(crate) fn cannot_clone(error: &io::Error) -> bool {
    let errnos = [libc::EOPNOTSUPP, libc::ENOTTY, libc::EXDEV, libc::EINVAL, libc::ENOSYS, libc::EPERM];
    error.raw_os_error().is_some_and(|errno| errnos.contains(&errno))
}

/// Copies the `size` bytes of `from` into the empty file `to`. Holes stay holes; what the file system can share or copy
/// by itself does not pass through this process.
pub(crate) fn copy_data(from: &File, to: &File, size: u64) -> io::Result<()> {
    let mut at = 0;
    while at < size {
        let Some((start, end)) = next_data(from, at, size)? else { break };
        copy_range(from, to, start, end)?;
        at = end;
    }
    // A hole at the end.
    if to.metadata()?.len() < size { ftruncate(to.as_fd(), size) } else { Ok(()) }
}

/// The first run of data at or after `at`; `None` where only a hole follows.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    match seek(file, at, libc::SEEK_DATA) {
        Ok(start) => {
            let end = seek(file, start, libc::SEEK_HOLE)?.min(size);
            // A file that was cut off meanwhile.
            Ok((end > start).then_some((start, end)))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        // A file system that knows no holes.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Some((at, size))),
        Err(error) => Err(error),
    }
}

fn seek(file: &File, at: u64, whence: libc::c_int) -> io::Result<u64> {
    let at = libc::off_t::try_from(at).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: takes no pointer.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

fn copy_range(from: &File, to: &File, mut at: u64, end: u64) -> io::Result<()> {
    while at < end {
        match copy_file_range(from, to, at, end - at) {
            // The end of a file that was cut off meanwhile, or a file system that gives up without an error.
            Ok(0) => return copy_through(from, to, at, end),
            Ok(count) => at += count,
            Err(error) if cannot_clone(&error) => return copy_through(from, to, at, end),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// copy_file_range(2) to the same offset.
fn copy_file_range(from: &File, to: &File, at: u64, count: u64) -> io::Result<u64> {
    let offset = i64::try_from(at).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    let (mut read, mut written) = (offset, offset);
    // SAFETY: both offsets are live and of the kernel's type, loff_t; the raw call because musl has no wrapper of it.
    let copied = unsafe {
        libc::syscall(
            libc::SYS_copy_file_range,
            from.as_raw_fd(),
            &raw mut read,
            to.as_raw_fd(),
            &raw mut written,
            usize::try_from(count).unwrap_or(usize::MAX).min(1 << 30),
            0,
        )
    };
    u64::try_from(copied).map_err(|_| io::Error::last_os_error())
}

fn copy_through(from: &File, to: &File, mut at: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let count = from.read_at(&mut buffer[..wanted], at)?;
        if count == 0 {
            break;
        }
        to.write_all_at(&buffer[..count], at)?;
        at += count as u64;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn holes_stay_holes() {
        let place = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let mut options = File::options();
            options.read(true).write(true).create_new(true).open(place.path().join(name)).unwrap()
        };
        let from = make("from");
        from.set_len(8 << 20).unwrap();
        from.write_all_at(b"first", 0).unwrap();
        from.write_all_at(b"middle", 5 << 20).unwrap();
        let to = make("to");
        copy_data(&from, &to, 8 << 20).unwrap();
        let (is, was) = (std::fs::read(place.path().join("to")).unwrap(), std::fs::read(place.path().join("from")));
        assert!(is == was.unwrap());
        assert!(to.metadata().unwrap().blocks() <= from.metadata().unwrap().blocks());
        let through = make("through");
        copy_through(&from, &through, 0, 8 << 20).unwrap();
        assert!(std::fs::read(place.path().join("through")).unwrap() == is);
        let empty = make("empty");
        copy_data(&make("none"), &empty, 0).unwrap();
        assert_eq!(empty.metadata().unwrap().len(), 0);
    }

    #[test]
    fn files_that_the_kernel_does_not_copy_pass_through_memory() {
        let place = tempfile::tempdir().unwrap();
        let to = File::create_new(place.path().join("to")).unwrap();
        // Its length is 0 to fstat(2), so copy_file_range(2) gives 0 or an error, depending on the kernel.
        copy_range(&File::open("/proc/version").unwrap(), &to, 0, 1 << 20).unwrap();
        let (is, was) = (std::fs::read(place.path().join("to")), std::fs::read("/proc/version"));
        assert_eq!(is.unwrap(), was.unwrap());
    }

    #[test]
    fn names_of_subvolumes_are_names() {
        assert!(Arguments::new(0, 48, &std::ffi::CString::new(vec![b'x'; 256]).unwrap()).is_err());
        let arguments = Arguments::new(-1, 48, c"abc").unwrap();
        assert_eq!((arguments.fd, &arguments.rest[47..53]), (-1, &b"\0abc\0\0"[..]));
    }
}
