//! Namespaces by descriptor, see ioctl_ns(2).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens what stands for a namespace: a file of `/proc/PID/ns`, or one that was bound somewhere. `None` where it is
/// something else.
pub(crate) fn open(path: &Path) -> io::Result<Option<(OwnedFd, u64)>> {
    // It may be anything: a pipe that nobody writes to, a terminal.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let file: OwnedFd = File::options().read(true).custom_flags(flags).open(path)?.into();
    let kind = kind(std::os::fd::AsFd::as_fd(&file))?;
    Ok(kind.map(|kind| (file, kind)))
}

/// `CLONE_NEW*` of the namespace that the descriptor stands for.
fn kind(file: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    if nix::sys::statfs::fstatfs(file)?.filesystem_type().0 as i64 != NSFS_MAGIC {
        return Ok(None);
    }
    // SAFETY: the request takes no argument and writes nowhere; it is made of files of nsfs alone, so no driver takes it
    // for another.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE as _) };
    match kind {
        // Not of a namespace but of a process (pidfs had this number once).
        ..=-1 => Err(io::Error::last_os_error()),
        kind => Ok(Some(kind as u32 as u64)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_told_from_files_and_from_each_other() {
        assert_eq!(open(Path::new("/proc/self/ns/net")).unwrap().unwrap().1, libc::CLONE_NEWNET as u64);
        assert_eq!(open(Path::new("/proc/self/ns/user")).unwrap().unwrap().1, libc::CLONE_NEWUSER as u64);
        assert!(open(Path::new("/dev/null")).unwrap().is_none());
        assert!(open(Path::new("/proc/self/ns/no")).is_err());
    }
}
