//! Extended attributes by descriptor, see xattr(7).
#![allow(unsafe_code)] // System calls that the standard library does not offer.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::fs::c_string;

/// Where `O_PATH` handles, which the f-calls refuse, are reached: the handle's own magic link. It leads to the very
/// thing that the handle names, also where that is a symlink.
fn magic_link(handle: BorrowedFd<'_>) -> io::Result<CString> {
    c_string(format!("/proc/self/fd/{}", handle.as_raw_fd()).as_bytes())
}

/// Sets an attribute of an open file.
pub(crate) fn set(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: `name` is NUL-terminated; pointer and length are those of one live slice.
    let result = unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets an attribute of what an `O_PATH` handle names, which may be a symlink or a device.
pub(crate) fn set_handle(handle: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    let link = magic_link(handle)?;
    // SAFETY: as in `set`.
    let result = unsafe { libc::setxattr(link.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Removes an attribute of an open file.
pub(crate) fn remove(fd: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: as in `set`.
    let result = unsafe { libc::fremovexattr(fd.as_raw_fd(), name.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Removes the access control lists of an open directory, which it may have from the one that it was made in: its own,
/// and the one that it would hand down. Its mode is then to be set.
pub(crate) fn remove_acls(dir: BorrowedFd<'_>) -> io::Result<()> {
    for name in [c"system.posix_acl_default", c"system.posix_acl_access"] {
        match remove(dir, name) {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Calls `get` with a buffer that grows until the answer fits.
fn growing(mut get: impl FnMut(&mut [u8]) -> isize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match usize::try_from(get(&mut buffer)) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                // The kernel's limit for values and lists is 64 KiB.
                if error.raw_os_error() != Some(libc::ERANGE) || buffer.len() > 1 << 17 {
                    return Err(error);
                }
                let larger = buffer.len() * 8;
                buffer.resize(larger, 0);
            }
        }
    }
}

/// An attribute of an open file; `None` where it is not set, or the file system has no attributes of that kind.
pub(crate) fn get(fd: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    // SAFETY: `name` is NUL-terminated; pointer and length are those of one live, exclusively borrowed slice.
    let value = growing(|buffer| unsafe {
        libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
    });
    absent(value)
}

/// An attribute of what an `O_PATH` handle names.
pub(crate) fn get_handle(handle: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let link = magic_link(handle)?;
    // SAFETY: as in `get`.
    let value = growing(|buffer| unsafe {
        libc::getxattr(link.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
    });
    absent(value)
}

fn absent(value: io::Result<Vec<u8>>) -> io::Result<Option<Vec<u8>>> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The names of all attributes of an open file that this process may see.
pub(crate) fn list(fd: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    // SAFETY: as in `get`.
    let names = growing(|buffer| unsafe { libc::flistxattr(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) });
    split(names)
}

/// The names of all attributes of what an `O_PATH` handle names.
pub(crate) fn list_handle(handle: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let link = magic_link(handle)?;
    // SAFETY: as in `get`.
    let names = growing(|buffer| unsafe { libc::listxattr(link.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) });
    split(names)
}

fn split(names: io::Result<Vec<u8>>) -> io::Result<Vec<CString>> {
    match names {
        Ok(names) => Ok(names
            .split_inclusive(|byte| *byte == 0)
            .filter_map(|name| CStr::from_bytes_with_nul(name).ok().map(CStr::to_owned))
            .collect()),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::fs::open_handle;

    #[test]
    fn attributes_come_back() {
        let place = tempfile::tempdir().unwrap();
        let dir = std::fs::File::open(place.path()).unwrap();
        match set(dir.as_fd(), c"user.test", b"a\0b") {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return,
            result => result.unwrap(),
        }
        assert_eq!(get(dir.as_fd(), c"user.test").unwrap().as_deref(), Some(&b"a\0b"[..]));
        assert_eq!(get(dir.as_fd(), c"user.other").unwrap(), None);
        let handle = open_handle(dir.as_fd(), c".").unwrap();
        set_handle(handle.as_fd(), c"user.long", &[7; 3000]).unwrap();
        assert_eq!(get_handle(handle.as_fd(), c"user.long").unwrap().unwrap(), [7; 3000]);
        let names = list(dir.as_fd()).unwrap();
        assert!(names.contains(&c"user.test".to_owned()) && names.contains(&c"user.long".to_owned()));
        assert_eq!(list_handle(handle.as_fd()).unwrap(), names);
        remove(dir.as_fd(), c"user.test").unwrap();
        assert_eq!(get(dir.as_fd(), c"user.test").unwrap(), None);
    }
}
