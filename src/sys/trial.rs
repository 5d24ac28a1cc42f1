//! System calls that change nothing and only tell whether the kernel, or a filter in front of it, would refuse them.
#![allow(unsafe_code)]

use std::ffi::CStr;

use nix::errno::Errno;
use nix::sched::CloneFlags;

/// Whether a call got as far as the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trial {
    /// The kernel looked at the arguments.
    Reached,
    /// A filter or a security module refused before that.
    Refused,
    /// The kernel has no such call, or a filter says so.
    Missing,
}

impl Trial {
    /// The call was made with arguments that any kernel that has it refuses with `EINVAL`.
    fn of_invalid(result: Result<(), Errno>) -> Trial {
        match result {
            Err(Errno::EPERM | Errno::EACCES) => Trial::Refused,
            Err(Errno::ENOSYS) => Trial::Missing,
            _ => Trial::Reached,
        }
    }
}

/// Whether `unshare` may name a new user namespace. An extra flag that `unshare` does not know makes the kernel
/// answer `EINVAL` before it does anything, so only a system call filter can give another answer.
pub(crate) fn unshare_user() -> Trial {
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_PTRACE;
    Trial::of_invalid(nix::sched::unshare(flags))
}

/// The same of a new mount namespace, for those who need no user namespace.
pub(crate) fn unshare_mount() -> Trial {
    let flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_PTRACE;
    Trial::of_invalid(nix::sched::unshare(flags))
}

/// Whether `clone3` passes; its size argument is too small for any kernel.
pub(crate) fn clone3() -> Trial {
    // SAFETY: with a size of 0 the kernel returns EINVAL without reading the (null) argument, and creates nothing.
    let result = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<u8>(), 0usize) };
    Trial::of_invalid(Errno::result(result).map(drop))
}

/// Whether the descriptor based mount calls pass; no kernel knows these flags, and flags are checked first.
pub(crate) fn open_tree() -> Trial {
    // SAFETY: the kernel refuses the flags with EINVAL before it looks at the (null) path.
    let result = unsafe { libc::syscall(libc::SYS_open_tree, -1, std::ptr::null::<u8>(), 0x7f00_0000u32) };
    Trial::of_invalid(Errno::result(result).map(drop))
}

/// Whether `openat2` passes, tried on `/`.
pub(crate) fn openat2() -> Trial {
    use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Trial::of_invalid(nix::fcntl::openat2(nix::fcntl::AT_FDCWD, c"/", how).map(drop))
}

/// The version of landlock's interface, 1 or more; `None` where the kernel has none or does not use it, and whether it was
/// asked at all.
pub(crate) fn landlock() -> (Option<u32>, Trial) {
    const CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: with this flag the call takes a null attribute of size 0 and returns a number; nothing is created.
    let result = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0usize, CREATE_RULESET_VERSION)
    };
    match Errno::result(result) {
        Ok(version) => (u32::try_from(version).ok().filter(|version| *version > 0), Trial::Reached),
        Err(errno) => (None, Trial::of_invalid(Err(errno))),
    }
}

/// Whether the file carries this extended attribute (file capabilities are `security.capability`).
pub(crate) fn has_xattr(path: &CStr, name: &CStr) -> bool {
    // SAFETY: both strings end in a nul byte; a size of 0 asks for the length and writes nothing.
    let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) };
    length > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_changes_nothing() {
        let namespaces = || ["user", "mnt"].map(|name| std::fs::read_link(format!("/proc/thread-self/ns/{name}")).ok());
        let before = namespaces();
        unshare_user();
        unshare_mount();
        clone3();
        open_tree();
        openat2();
        landlock();
        assert_eq!(namespaces(), before);
    }

    #[test]
    fn a_filter_is_told_from_a_kernel() {
        assert_eq!(Trial::of_invalid(Err(Errno::EINVAL)), Trial::Reached);
        assert_eq!(Trial::of_invalid(Err(Errno::EPERM)), Trial::Refused);
        assert_eq!(Trial::of_invalid(Err(Errno::ENOSYS)), Trial::Missing);
        assert_eq!(Trial::of_invalid(Ok(())), Trial::Reached);
    }
}
