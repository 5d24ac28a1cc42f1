//! Paths that somebody else controls, resolved inside a directory that they cannot leave.
//!
//! Two resolvers do the same: openat2(2), and a walk over `O_PATH` handles for hosts where a sandbox refuses
//! openat2. The walk follows each symlink itself, so `..` and absolute targets stop at the root as they do after
//! chroot(2). Both may be raced by a writer inside the tree; neither then leads to a name that was reached through a
//! symlink out of the root.
#![allow(unsafe_code)] // openat2 has no wrapper in the C libraries.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::fs::{c_string, fstat, openat, readlinkat};

/// Symlinks followed in one resolution before it counts as a circle; the kernel's own number.
pub(crate) const MAX_SYMLINKS: usize = 40;

/// Tries before a tree that keeps changing under us is an error.
const MAX_RETRIES: usize = 64;

/// `struct open_how` of openat2(2).
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// How a path may be resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Symlinks are followed inside the root.
    InRoot,
    /// No symlink anywhere, no `..` beyond the start.
    BeneathNoSymlinks,
}

impl Scope {
    fn resolve(self) -> u64 {
        match self {
            Scope::InRoot => libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS,
            Scope::BeneathNoSymlinks => libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS,
        }
    }
}

/// Which of the two resolvers to use.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolver {
    /// openat2(2), and the walk from the first refusal on.
    Kernel,
    /// The walk only.
    Walk,
}

/// A directory that paths are resolved in.
#[derive(Debug)]
pub(crate) struct Root {
    dir: OwnedFd,
    walk: AtomicBool,
}

impl Root {
    /// Opens `path`, which is trusted, as a root.
    pub(crate) fn open(path: &Path) -> io::Result<Root> {
        let path = c_string(path.as_os_str().as_bytes())?;
        // SAFETY: `path` is NUL-terminated and outlives the call.
        let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just handed us this descriptor; nobody else owns it.
        Ok(Root::new(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes an open directory as a root.
    pub(crate) fn new(dir: OwnedFd) -> Root {
        Root { dir, walk: AtomicBool::new(false) }
    }

    /// The same with another resolver, to test both on one host.
    #[cfg(test)]
    pub(crate) fn with_resolver(self, resolver: Resolver) -> Root {
        self.walk.store(resolver == Resolver::Walk, Ordering::Relaxed);
        self
    }

    /// The directory, given back.
    pub(crate) fn into_dir(self) -> OwnedFd {
        self.dir
    }

    /// The directory itself.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Opens what `path` leads to when this directory is `/`: symlinks are followed, the last one unless `flags` has
    /// `O_NOFOLLOW`; magic links are not. Close-on-exec is added.
    pub(crate) fn open_in_root(&self, path: &CStr, flags: libc::c_int, mode: u32) -> io::Result<OwnedFd> {
        self.resolve(path, flags, mode, Scope::InRoot)
    }

    /// Opens `path` below this directory without following any symlink (`ELOOP`) and without leaving it (`EXDEV`).
    pub(crate) fn open_beneath_nofollow(&self, path: &CStr, flags: libc::c_int, mode: u32) -> io::Result<OwnedFd> {
        self.resolve(path, flags | libc::O_NOFOLLOW, mode, Scope::BeneathNoSymlinks)
    }

    fn resolve(&self, path: &CStr, flags: libc::c_int, mode: u32, scope: Scope) -> io::Result<OwnedFd> {
        let mut last = io::Error::from_raw_os_error(libc::EAGAIN);
        for _ in 0..MAX_RETRIES {
            let result = if self.walk.load(Ordering::Relaxed) {
                walk(self.dir(), path, flags, mode, scope)
            } else {
                openat2(self.dir(), path, flags, mode, scope)
            };
            match result {
                Err(error) => match (error.raw_os_error(), scope) {
                    // Something was renamed while `..` was resolved.
                    (Some(libc::EAGAIN), _) | (Some(libc::EXDEV), Scope::InRoot) => last = error,
                    // Seccomp profiles answer EPERM for calls that they do not know.
                    (Some(libc::ENOSYS | libc::EPERM), _) if !self.walk.load(Ordering::Relaxed) => {
                        if works() {
                            return Err(error);
                        }
                        self.walk.store(true, Ordering::Relaxed);
                    }
                    _ => return Err(error),
                },
                done => return done,
            }
        }
        Err(last)
    }
}

/// Whether openat2 does its work at all here: opens the root directory with it.
fn works() -> bool {
    let how = OpenHow { flags: (libc::O_PATH | libc::O_CLOEXEC) as u64, mode: 0, resolve: 0 };
    // SAFETY: as in `openat2`.
    let fd = unsafe { libc::syscall(libc::SYS_openat2, libc::AT_FDCWD, c"/".as_ptr(), &how, size_of::<OpenHow>()) };
    if fd < 0 {
        return false;
    }
    // SAFETY: the kernel has just handed us this descriptor; nobody else owns it.
    drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    true
}

fn openat2(dir: BorrowedFd<'_>, path: &CStr, flags: libc::c_int, mode: u32, scope: Scope) -> io::Result<OwnedFd> {
    // An empty path is not "here" to the kernel.
    let path = if path.is_empty() { c"." } else { path };
    let path = match scope {
        Scope::InRoot => path,
        // Absolute paths mean the root here, as they do for the walk.
        Scope::BeneathNoSymlinks => {
            let start = path.to_bytes().iter().position(|byte| *byte != b'/');
            // `start` is inside the string, so what is left is still NUL-terminated.
            start.and_then(|at| CStr::from_bytes_with_nul(&path.to_bytes_with_nul()[at..]).ok()).unwrap_or(c".")
        }
    };
    // The kernel refuses a mode without a creating flag.
    let creates = flags & (libc::O_CREAT | libc::O_TMPFILE) != 0 && flags & libc::O_PATH == 0;
    let mode = if creates { u64::from(mode) } else { 0 };
    let how = OpenHow { flags: (flags | libc::O_CLOEXEC) as u32 as u64, mode, resolve: scope.resolve() };
    // SAFETY: `path` is NUL-terminated and `how` is a live struct of the size given; both outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_openat2, dir.as_raw_fd(), path.as_ptr(), &how, size_of::<OpenHow>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just handed us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The components of a path, without `.` and empty ones.
pub(crate) fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|component| !component.is_empty() && *component != b".")
}

fn errno(code: libc::c_int) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// The resolution without openat2. The directories on the way are kept open, so that `..` is where we came from and
/// not where a rename has put it.
fn walk(root: BorrowedFd<'_>, path: &CStr, flags: libc::c_int, mode: u32, scope: Scope) -> io::Result<OwnedFd> {
    let path = path.to_bytes();
    let flags = if path.ends_with(b"/") { flags | libc::O_DIRECTORY } else { flags };
    // After a trailing slash the kernel follows the last symlink even with O_NOFOLLOW.
    let follow_last = scope == Scope::InRoot && (flags & libc::O_NOFOLLOW == 0 || path.ends_with(b"/"));
    let mut way: Vec<OwnedFd> = Vec::new();
    let mut left: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
    let mut symlinks = 0;
    while let Some(component) = left.pop_front() {
        let here = way.last().map_or(root, |dir| dir.as_fd());
        if component == b".." {
            if way.pop().is_none() && scope == Scope::BeneathNoSymlinks {
                return Err(errno(libc::EXDEV));
            }
            continue;
        }
        let name = c_string(&component)?;
        let last = left.is_empty();
        let handle = match openat(here, &name, libc::O_PATH | libc::O_NOFOLLOW, 0) {
            Ok(handle) => handle,
            Err(error) if last && flags & libc::O_CREAT != 0 && error.raw_os_error() == Some(libc::ENOENT) => {
                return openat(here, &name, flags | libc::O_NOFOLLOW, mode);
            }
            Err(error) => return Err(error),
        };
        match fstat(handle.as_fd())?.st_mode & libc::S_IFMT {
            libc::S_IFLNK if !last || follow_last => {
                symlinks += 1;
                if scope == Scope::BeneathNoSymlinks || symlinks > MAX_SYMLINKS {
                    return Err(errno(libc::ELOOP));
                }
                let target = readlinkat(handle.as_fd(), c"")?;
                if target.starts_with(b"/") {
                    way.clear();
                }
                for component in components(&target).collect::<Vec<_>>().into_iter().rev() {
                    left.push_front(component.to_vec());
                }
            }
            libc::S_IFDIR => way.push(handle),
            _ if !last => return Err(errno(libc::ENOTDIR)),
            // A name that turns into a symlink now gives ELOOP, which is the truth about a tree that changes.
            _ => return openat(here, &name, flags | libc::O_NOFOLLOW, mode),
        }
    }
    if flags & libc::O_CREAT != 0 && flags & libc::O_EXCL != 0 {
        return Err(errno(libc::EEXIST));
    }
    // The path ended at a directory: opened anew with the flags asked for.
    let here = way.last().map_or(root, |dir| dir.as_fd());
    openat(here, c".", flags & !(libc::O_CREAT | libc::O_NOFOLLOW), 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A root with a world around it that must stay out of reach.
    fn place() -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        fs::write(at("secret"), "outside").unwrap();
        fs::create_dir_all(at("root/usr/lib/deep")).unwrap();
        fs::create_dir_all(at("root/etc")).unwrap();
        fs::write(at("root/secret"), "inside").unwrap();
        fs::write(at("root/usr/lib/file"), "file").unwrap();
        for (name, target) in [
            ("lib", "usr/lib"),
            ("abs", "/usr/lib"),
            ("up", "../../../secret"),
            ("etc/up", "../../../../secret"),
            ("absup", "/../../secret"),
            ("loop", "loop"),
            ("ring1", "ring2"),
            ("ring2", "ring1"),
            ("dangling", "nowhere"),
            ("chain", "lib/../../lib/./deep/../file"),
            ("tofile", "secret"),
            ("proc", "/proc/self/root"),
        ] {
            symlink(target, place.path().join("root").join(name)).unwrap();
        }
        place
    }

    fn read(fd: OwnedFd) -> String {
        let mut text = String::new();
        fs::File::from(fd).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn both_resolvers_agree_and_stay_inside() {
        let place = place();
        for resolver in [Resolver::Kernel, Resolver::Walk] {
            let root = Root::open(&place.path().join("root")).unwrap().with_resolver(resolver);
            let open = |path: &str| {
                root.open_in_root(&c_string(path.as_bytes()).unwrap(), libc::O_RDONLY, 0)
                    .map_err(|error| error.raw_os_error().unwrap())
            };
            for (path, expected) in [
                ("secret", "inside"),
                ("/secret", "inside"),
                ("../secret", "inside"),
                ("../../../../../secret", "inside"),
                ("up", "inside"),
                ("etc/up", "inside"),
                ("absup", "inside"),
                ("tofile", "inside"),
                ("lib/file", "file"),
                ("abs/file", "file"),
                ("lib/../lib/file", "file"),
                ("lib/deep/../../lib/file", "file"),
                ("chain", "file"),
                (".//usr/./lib//file", "file"),
            ] {
                assert_eq!(open(path).map(read), Ok(expected.to_owned()), "{path} {resolver:?}");
            }
            for (path, expected) in [
                ("loop", libc::ELOOP),
                ("ring1/x", libc::ELOOP),
                ("dangling", libc::ENOENT),
                ("nowhere/x", libc::ENOENT),
                ("secret/x", libc::ENOTDIR),
                ("secret/", libc::ENOTDIR),
                ("lib/../../usr/nothing", libc::ENOENT),
                ("proc/etc/passwd", libc::ELOOP),
            ] {
                assert_eq!(open(path).map(read), Err(expected), "{path} {resolver:?}");
            }
            let dir = |path: &str| {
                let flags = libc::O_PATH | libc::O_DIRECTORY;
                fstat(root.open_in_root(&c_string(path.as_bytes()).unwrap(), flags, 0).unwrap().as_fd()).unwrap().st_ino
            };
            let own = fstat(root.dir()).unwrap().st_ino;
            for path in ["", ".", "/", "..", "lib/../..", "usr/../..//"] {
                assert_eq!(dir(path), own, "{path} {resolver:?}");
            }
            assert_eq!(dir("lib"), dir("usr/lib"));
            assert_eq!(dir("lib/"), dir("usr/lib"));
        }
    }

    #[test]
    fn the_last_symlink_is_kept_when_asked() {
        let place = place();
        for resolver in [Resolver::Kernel, Resolver::Walk] {
            let root = Root::open(&place.path().join("root")).unwrap().with_resolver(resolver);
            let handle = root.open_in_root(c"lib", libc::O_PATH | libc::O_NOFOLLOW, 0).unwrap();
            assert_eq!(readlinkat(handle.as_fd(), c"").unwrap(), b"usr/lib");
            let error = root.open_in_root(c"tofile", libc::O_RDONLY | libc::O_NOFOLLOW, 0).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ELOOP), "{resolver:?}");
        }
    }

    #[test]
    fn beneath_refuses_every_symlink_and_every_way_out() {
        let place = place();
        for resolver in [Resolver::Kernel, Resolver::Walk] {
            let root = Root::open(&place.path().join("root")).unwrap().with_resolver(resolver);
            let open = |path: &CStr| {
                root.open_beneath_nofollow(path, libc::O_RDONLY, 0)
                    .map(read)
                    .map_err(|error| error.raw_os_error().unwrap())
            };
            assert_eq!(open(c"usr/lib/file"), Ok("file".to_owned()));
            assert_eq!(open(c"/usr/lib/file"), Ok("file".to_owned()));
            assert_eq!(open(c"lib/file"), Err(libc::ELOOP));
            assert_eq!(open(c"tofile"), Err(libc::ELOOP));
            assert_eq!(open(c"../secret"), Err(libc::EXDEV));
            assert_eq!(open(c"usr/../../secret"), Err(libc::EXDEV));
            assert_eq!(open(c"nowhere"), Err(libc::ENOENT));
        }
    }

    #[test]
    fn files_are_made_inside() {
        let place = place();
        for (resolver, name) in [(Resolver::Kernel, c"up/../abs/new1"), (Resolver::Walk, c"lib/../../abs/new2")] {
            let root = Root::open(&place.path().join("root")).unwrap().with_resolver(resolver);
            let name = if resolver == Resolver::Kernel { c"lib/../lib/new1" } else { name };
            let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
            root.open_in_root(name, flags, 0o600).unwrap();
            assert_eq!(root.open_in_root(name, flags, 0o600).unwrap_err().raw_os_error(), Some(libc::EEXIST));
        }
        assert!(place.path().join("root/usr/lib/new1").exists());
    }
}
