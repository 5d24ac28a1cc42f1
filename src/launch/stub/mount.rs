//! Steps that build the container's tree. Mounts are made detached, by descriptor, and attached by descriptor; a path
//! that an image may have shaped is only ever resolved beneath the container's own root.

use crate::child::{Child, Trouble, at, given, same};
use crate::kernel;
use crate::protocol::{FOREIGN, LINK, ROOT, Reader, Sys, UNCOVERED};

const PROC_SUPER_MAGIC: u64 = 0x9fa0;
const SYSFS_MAGIC: u64 = 0x6265_6572;
const MOUNT_ATTR_RDONLY: u64 = 1;
const ST_RDONLY: u64 = 1;

/// What a mount point has to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Existing,
    Directory,
    File,
}

/// What becomes of symbolic links on a path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Followed beneath the root, no link of procfs among them.
    Followed,
    /// An error (ELOOP), wherever on the path one is.
    Refused,
}

pub fn private() -> Result<(), Trouble> {
    const MS_REC_PRIVATE: u64 = 0x4000 | (1 << 18);
    kernel::mount(b"none\0", b"/\0", b"none\0", MS_REC_PRIVATE, b"\0").map_err(at(Sys::Mount))
}

pub fn file_system(child: &mut Child, mut p: Reader<'_>) -> Result<(), Trouble> {
    let (out, kind, attributes, count) = (p.u32()?, p.cstr()?, p.u64()?, p.u32()?);
    let context = kernel::fsopen(kind).map_err(at(Sys::Fsopen))?;
    let done = configure(context, &mut p, count)
        .and_then(|()| {
            kernel::fsconfig_create(context).map_err(|errno| Trouble(Sys::Fsconfig, errno, u32::MAX))
        })
        .and_then(|()| kernel::fsmount(context, attributes).map_err(at(Sys::Fsmount)));
    kernel::close(context);
    child.fill(out, done?)
}

fn configure(context: i32, p: &mut Reader<'_>, count: u32) -> Result<(), Trouble> {
    for index in 0..count {
        let (kind, key, value) = (p.u32()?, p.cstr()?, p.cstr()?);
        let set = match kind {
            0 => kernel::fsconfig_flag(context, key),
            _ => kernel::fsconfig_string(context, key, value),
        };
        set.map_err(|errno| Trouble(Sys::Fsconfig, errno, index))?;
    }
    Ok(())
}

/// A detached copy of what `path` names in this mount namespace. With `expect`, it must be the very file that the host
/// opened: the host's own descriptor belongs to the host's namespace and cannot be mounted.
pub fn open_tree(child: &mut Child, mut p: Reader<'_>) -> Result<(), Trouble> {
    const OPEN_TREE_CLONE: usize = 1;
    let (out, dir, path, recursive, expect) = (p.u32()?, p.u32()?, p.cstr()?, p.u32()? != 0, p.u32()?);
    let dir = match given(dir) {
        Some(register) => child.register(register)?,
        None => kernel::AT_FDCWD,
    };
    let mut flags = OPEN_TREE_CLONE;
    if recursive {
        flags |= kernel::AT_RECURSIVE;
    }
    if path == b"\0" {
        flags |= kernel::AT_EMPTY_PATH;
    }
    let tree = kernel::open_tree(dir, path, flags).map_err(at(Sys::OpenTree))?;
    if let Some(register) = given(expect) {
        let expected = kernel::status(child.register(register)?).map_err(at(Sys::Statx))?;
        same(&expected, &kernel::status(tree).map_err(at(Sys::Statx))?)?;
    }
    child.fill(out, tree)
}

pub fn attributes(child: &Child, mut p: Reader<'_>) -> Result<(), Trouble> {
    let mount = child.register(p.u32()?)?;
    let (recursive, set, clear, propagation) = (p.u32()? != 0, p.u64()?, p.u64()?, p.u64()?);
    kernel::mount_setattr(mount, recursive, set, clear, propagation).map_err(at(Sys::MountSetattr))
}

/// A detached mount shows ids as a user namespace maps them. The kernel refuses where the file system cannot.
pub fn idmap(child: &Child, mut p: Reader<'_>) -> Result<(), Trouble> {
    let mount = child.register(p.u32()?)?;
    let namespace = child.register(p.u32()?)?;
    kernel::mount_idmap(mount, p.u32()? != 0, namespace).map_err(at(Sys::MountSetattr))
}

/// Attaches a mount over its own source, found by a path that is the engine's. Verify after enforcing: the path leads to
/// the mount from then on.
pub fn cover_source(child: &Child, mut p: Reader<'_>) -> Result<(), Trouble> {
    let mount = child.register(p.u32()?)?;
    let path = p.cstr()?;
    let put = kernel::status(mount).map_err(at(Sys::Statx))?;
    let flags = kernel::O_PATH | kernel::O_DIRECTORY | kernel::O_NOFOLLOW;
    let target = kernel::openat(kernel::AT_FDCWD, path, flags, 0).map_err(at(Sys::Openat))?;
    let moved = kernel::status(target)
        .map_err(at(Sys::Statx))
        .and_then(|found| same(&put, &found))
        .and_then(|()| kernel::move_mount(mount, target).map_err(at(Sys::MoveMount)));
    kernel::close(target);
    moved?;
    let found = kernel::statx(kernel::AT_FDCWD, path, 0).map_err(at(Sys::Statx))?;
    if found.is_at(&put) { Ok(()) } else { Err(Trouble(Sys::Statx, 0, UNCOVERED)) }
}

/// `mount, base, path, create (0 none, 1 directory, 2 file), flags (1 optional, 2 refuse kernel file systems, 4 follow no
/// symbolic link)`.
///
/// Never onto the root: what is mounted there lies beside the tree that the container sees, reachable as `/..`, where
/// nothing that is masked later would be found.
pub fn attach(child: &mut Child, mut p: Reader<'_>) -> Result<(), Trouble> {
    let mount = child.register(p.u32()?)?;
    let (base, path, create, flags) = (p.u32()?, p.cstr()?, p.u32()?, p.u32()?);
    let target = match (given(base), create) {
        // A tree that we made a moment ago and nobody else has seen.
        (Some(register), _) => {
            let look = kernel::O_PATH | kernel::O_NOFOLLOW;
            kernel::openat(child.register(register)?, path, look, 0).map_err(at(Sys::Openat))?
        }
        (None, create) => {
            let want = match create {
                0 => Target::Existing,
                1 => Target::Directory,
                _ => Target::File,
            };
            let links = if flags & 4 != 0 { Links::Refused } else { Links::Followed };
            match ensure(child.root()?, path, want, None, links) {
                Err(Trouble(sys, kernel::ELOOP, _)) if links == Links::Refused => {
                    return Err(Trouble(sys, kernel::ELOOP, LINK));
                }
                Err(Trouble(_, kernel::ENOENT | kernel::ENOTDIR | kernel::EROFS | kernel::EACCES | kernel::EPERM, _))
                    if flags & 1 != 0 =>
                {
                    return Ok(());
                }
                other => other?,
            }
        }
    };
    // Without links, a path that is not `/` does not lead to the root.
    if given(base).is_none() && flags & 4 == 0 {
        let root = kernel::status(child.root()?).map_err(at(Sys::Statx))?;
        if kernel::status(target).map_err(at(Sys::Statx))?.is_at(&root) {
            kernel::close(target);
            return Err(Trouble(Sys::MoveMount, 0, ROOT));
        }
    }
    if flags & 2 != 0 {
        let (magic, _) = kernel::fstatfs(target).map_err(at(Sys::Fstatfs))?;
        if magic == PROC_SUPER_MAGIC || magic == SYSFS_MAGIC {
            kernel::close(target);
            return Err(Trouble(Sys::MoveMount, 0, 4));
        }
    }
    let moved = kernel::move_mount(mount, target).map_err(at(Sys::MoveMount));
    kernel::close(target);
    moved
}

/// Makes the mount of the register the root, and takes the old root away.
pub fn pivot(child: &mut Child, mut p: Reader<'_>) -> Result<(), Trouble> {
    const MNT_DETACH: usize = 2;
    let mount = child.register(p.u32()?)?;
    let root = kernel::openat(kernel::AT_FDCWD, b"/\0", kernel::O_PATH, 0).map_err(at(Sys::Openat))?;
    kernel::move_mount(mount, root).map_err(at(Sys::MoveMount))?;
    kernel::close(root);
    kernel::fchdir(mount).map_err(at(Sys::Chdir))?;
    // Old root on top of the new one, in one place, so that no directory is needed for it; then off it goes.
    kernel::pivot_root(b".\0", b".\0").map_err(at(Sys::PivotRoot))?;
    kernel::umount(b".\0", MNT_DETACH).map_err(at(Sys::Umount2))?;
    child.forget_root();
    kernel::chdir(b"/\0").map_err(at(Sys::Chdir))
}

/// A path that is to be covered.
struct Covered<'a> {
    /// Where the path starts.
    dir: i32,
    path: &'a [u8],
    target: i32,
}

impl<'a> Covered<'a> {
    /// Reads `base, magic, path`; `None` where there is nothing of that name.
    ///
    /// Below procfs and sysfs, what counts is the mount itself: not what an image has at the path, and no link. Only
    /// there is a missing name the kernel's own word that there is nothing to cover.
    fn read(child: &mut Child, p: &mut Reader<'a>) -> Result<Option<Covered<'a>>, Trouble> {
        let (base, magic, path) = (p.u32()?, p.u32()?, p.cstr()?);
        let (dir, target) = match given(base) {
            Some(register) => {
                let dir = child.register(register)?;
                let target = match resolve(dir, path, kernel::O_PATH, BENEATH) {
                    Err(kernel::ENOENT) => return Ok(None),
                    other => other.map_err(at(Sys::Openat2))?,
                };
                let (found, _) = kernel::fstatfs(target).map_err(at(Sys::Fstatfs))?;
                if magic != 0 && found != magic as u64 {
                    return Err(Trouble(Sys::Fstatfs, 0, FOREIGN));
                }
                (dir, target)
            }
            None => {
                let dir = child.root()?;
                match ensure(dir, path, Target::Existing, None, Links::Followed) {
                    Err(Trouble(_, kernel::ENOENT | kernel::ENOTDIR, _)) => return Ok(None),
                    other => (dir, other?),
                }
            }
        };
        Ok(Some(Covered { dir, path, target }))
    }

    /// Puts the mount there. Verify after enforcing: it is what is found at the path from then on.
    fn with(self, cover: i32) -> Result<(), Trouble> {
        let put = kernel::status(cover).map_err(at(Sys::Statx))?;
        kernel::move_mount(cover, self.target).map_err(at(Sys::MoveMount))?;
        kernel::close(self.target);
        let found = kernel::statx(self.dir, self.path, 0).map_err(at(Sys::Statx))?;
        if found.is_at(&put) { Ok(()) } else { Err(Trouble(Sys::Statx, 0, UNCOVERED)) }
    }
}

/// Covers a path: directories with an empty read-only one, everything else with the null device, both from the parts
/// that no image had a hand in. What is not there needs no cover.
pub fn mask(child: &mut Child, mut p: Reader<'_>) -> Result<(), Trouble> {
    const OPEN_TREE_CLONE: usize = 1;
    const SEALED: u64 = MOUNT_ATTR_RDONLY | 2 | 4 | 8;
    let parts = child.register(p.u32()?)?;
    let Some(covered) = Covered::read(child, &mut p)? else { return Ok(()) };
    let directory = kernel::status(covered.target).map_err(at(Sys::Statx))?.is_directory();
    let name: &[u8] = if directory { b"empty\0" } else { b"null\0" };
    let copy = kernel::open_tree(parts, name, OPEN_TREE_CLONE).map_err(at(Sys::OpenTree))?;
    if directory {
        kernel::mount_setattr(copy, false, SEALED, 0, 0).map_err(at(Sys::MountSetattr))?;
    } else {
        is_null(copy)?;
    }
    let done = covered.with(copy);
    kernel::close(copy);
    done
}

fn is_null(node: i32) -> Result<(), Trouble> {
    let node = kernel::status(node).map_err(at(Sys::Statx))?;
    match node.is_character_device() && node.special == (1, 3) {
        true => Ok(()),
        false => Err(Trouble(Sys::Statx, 0, 5)),
    }
}

/// Opens the null device of the parts: whoever has the host's has its inode, with its owner, mode and times.
pub fn open_null(child: &mut Child, mut p: Reader<'_>) -> Result<(), Trouble> {
    let (out, parts) = (p.u32()?, child.register(p.u32()?)?);
    let null = kernel::openat(parts, b"null\0", kernel::O_RDWR | kernel::O_NOFOLLOW, 0).map_err(at(Sys::Openat))?;
    is_null(null)?;
    child.fill(out, null)
}

/// Opens the null device of a container that was joined. Whoever is root in there may have put anything in its place: what
/// is opened waits for nobody, and is used only if it is that device.
pub fn joined_null(child: &mut Child, mut p: Reader<'_>) -> Result<(), Trouble> {
    let out = p.u32()?;
    let dev = ensure(child.root()?, b"dev\0", Target::Existing, None, Links::Refused)?;
    let flags = kernel::O_RDWR | kernel::O_NOFOLLOW | kernel::O_NONBLOCK | kernel::O_NOCTTY;
    let null = kernel::openat(dev, b"null\0", flags, 0).map_err(at(Sys::Openat));
    kernel::close(dev);
    let null = null?;
    is_null(null)?;
    child.fill(out, null)
}

/// Mounts a path over itself, read-only.
pub fn read_only(child: &mut Child, mut p: Reader<'_>) -> Result<(), Trouble> {
    const OPEN_TREE_CLONE: usize = 1;
    let Some(covered) = Covered::read(child, &mut p)? else { return Ok(()) };
    let flags = OPEN_TREE_CLONE | kernel::AT_EMPTY_PATH | kernel::AT_RECURSIVE;
    let copy = kernel::open_tree(covered.target, b"\0", flags).map_err(at(Sys::OpenTree))?;
    let done = kernel::mount_setattr(copy, true, MOUNT_ATTR_RDONLY, 0, 0)
        .map_err(at(Sys::MountSetattr))
        .and_then(|()| covered.with(copy))
        .and_then(|()| read_only_mount(copy));
    kernel::close(copy);
    done
}

/// mount(2) on a directory that only the engine can reach, for kernels that cannot do it by descriptor.
pub fn legacy(mut p: Reader<'_>) -> Result<(), Trouble> {
    let (source, target, kind, flags, data) = (p.cstr()?, p.cstr()?, p.cstr()?, p.u64()?, p.cstr()?);
    kernel::mount(source, target, kind, flags, data).map_err(at(Sys::Mount))
}

pub fn verify_read_only(child: &Child, mut p: Reader<'_>) -> Result<(), Trouble> {
    read_only_mount(child.register(p.u32()?)?)
}

fn read_only_mount(mount: i32) -> Result<(), Trouble> {
    let (_, flags) = kernel::fstatfs(mount).map_err(at(Sys::Fstatfs))?;
    if flags & ST_RDONLY == 0 {
        return Err(Trouble(Sys::Fstatfs, 0, 6));
    }
    Ok(())
}

/// Opens (`O_PATH`) what `path` names beneath the root of this process. What is missing is created when asked:
/// directories on the way, then a directory or an empty file; where a link leads to what is missing, there.
pub fn ensure(
    root: i32,
    path: &[u8],
    want: Target,
    owner: Option<(u32, u32)>,
    links: Links,
) -> Result<i32, Trouble> {
    let rules = match links {
        Links::Followed => kernel::RESOLVE_IN_ROOT | kernel::RESOLVE_NO_MAGICLINKS,
        Links::Refused => kernel::RESOLVE_IN_ROOT | kernel::RESOLVE_NO_SYMLINKS,
    };
    let flags = kernel::O_PATH | if want == Target::Directory { kernel::O_DIRECTORY } else { 0 };
    match resolve(root, path, flags, rules) {
        Err(kernel::ENOENT) if want != Target::Existing => {}
        other => return other.map_err(at(Sys::Openat2)),
    }
    let mut buffer = [0u8; PATH];
    buffer.get_mut(..path.len()).ok_or(TOO_LONG)?.copy_from_slice(path);
    // As many links as the kernel follows.
    for _ in 0..40 {
        let length = buffer.iter().position(|byte| *byte == 0).unwrap_or(0);
        if let Some(made) = make_missing(root, &mut buffer, length, want, owner, rules)? {
            return Ok(made);
        }
        // A link was in the way, and the path is now the one that it leads to.
        match resolve(root, through_nul(&buffer), flags, rules) {
            Err(kernel::ENOENT) => {}
            other => return other.map_err(at(Sys::Openat2)),
        }
    }
    Err(Trouble(Sys::Openat2, kernel::ELOOP, 0))
}

/// Longest path, with its NUL (`PATH_MAX`).
const PATH: usize = 4096;
const TOO_LONG: Trouble = Trouble(Sys::Openat2, kernel::ENAMETOOLONG, 0);

/// The string that starts here, with its NUL.
fn through_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(0);
    bytes.get(..end + 1).unwrap_or(b"\0")
}

/// Makes what is missing of the path in the buffer; `None` when a link that leads nowhere is in the way: the buffer
/// then holds the path with that link followed.
fn make_missing(
    root: i32,
    buffer: &mut [u8; PATH],
    length: usize,
    want: Target,
    owner: Option<(u32, u32)>,
    rules: u64,
) -> Result<Option<i32>, Trouble> {
    // Without what slashes there are at its end.
    let mut end = length;
    while end > 0 && buffer.get(end - 1) == Some(&b'/') {
        end -= 1;
    }
    // Upward, to the nearest directory that is there: mostly the next one. The root always is.
    let mut start = end;
    let mut parent = loop {
        while start > 0 && buffer.get(start - 1) != Some(&b'/') {
            start -= 1;
        }
        let mut prefix = start;
        while prefix > 0 && buffer.get(prefix - 1) == Some(&b'/') {
            prefix -= 1;
        }
        if prefix == 0 {
            break resolve(root, b"/\0", kernel::O_PATH | kernel::O_DIRECTORY, rules).map_err(at(Sys::Openat2))?;
        }
        let found = with_end(buffer, 0, prefix, |path| {
            resolve(root, path, kernel::O_PATH | kernel::O_DIRECTORY, rules)
        });
        match found {
            Err(kernel::ENOENT) => start = prefix,
            other => break other.map_err(at(Sys::Openat2))?,
        }
    };
    // Downward again: nothing of it is there, or a link that leads nowhere.
    while start < end {
        let mut stop = start;
        while stop < end && buffer.get(stop) != Some(&b'/') {
            stop += 1;
        }
        // Of a directory that does not exist there is no parent: the kernel says so, too.
        if matches!(buffer.get(start..stop), Some(b"." | b"..")) {
            kernel::close(parent);
            return Err(Trouble(Sys::Openat2, kernel::ENOENT, 0));
        }
        let file = stop == end && want == Target::File;
        let made = with_end(buffer, start, stop, |name| make(parent, name, file, owner));
        if let (Err(Trouble(_, kernel::EEXIST, _)), 0) = (&made, rules & kernel::RESOLVE_NO_SYMLINKS) {
            let followed = follow(parent, buffer, start, stop, end);
            kernel::close(parent);
            return followed.map(|()| None);
        }
        kernel::close(parent);
        parent = made?;
        start = stop;
        while start < end && buffer.get(start) == Some(&b'/') {
            start += 1;
        }
    }
    Ok(Some(parent))
}

/// Puts what the link `start..stop` of the path in the buffer says in its place.
fn follow(parent: i32, buffer: &mut [u8; PATH], start: usize, stop: usize, end: usize) -> Result<(), Trouble> {
    let link = with_end(buffer, start, stop, |name| {
        kernel::openat(parent, name, kernel::O_PATH | kernel::O_NOFOLLOW, 0)
    })
    .map_err(at(Sys::Openat))?;
    let mut whole = [0u8; PATH];
    let read = kernel::fstatfs(link).map_err(at(Sys::Fstatfs)).and_then(|(magic, _)| {
        // A link of procfs is no path.
        if magic == PROC_SUPER_MAGIC {
            return Err(Trouble(Sys::Openat2, kernel::ELOOP, 0));
        }
        let place = whole.get_mut(start..).ok_or(TOO_LONG)?;
        // ENOENT: no link but something that somebody has made meanwhile.
        kernel::readlink(link, b"\0", place).map_err(at(Sys::Openat))
    });
    kernel::close(link);
    let count = read?;
    let rest = buffer.get(stop..end).unwrap_or(&[]);
    // A NUL has to follow.
    if start + count + rest.len() >= PATH {
        return Err(TOO_LONG);
    }
    if whole.get(start) == Some(&b'/') {
        whole.copy_within(start..start + count, 0);
        whole.get_mut(count..).unwrap_or(&mut []).fill(0);
        whole.get_mut(count..count + rest.len()).ok_or(TOO_LONG)?.copy_from_slice(rest);
    } else {
        whole.get_mut(..start).ok_or(TOO_LONG)?.copy_from_slice(buffer.get(..start).unwrap_or(&[]));
        whole.get_mut(start + count..start + count + rest.len()).ok_or(TOO_LONG)?.copy_from_slice(rest);
    }
    *buffer = whole;
    Ok(())
}

/// Calls `f` with a part of the buffer as a string of its own, a NUL behind it.
fn with_end<T>(buffer: &mut [u8; PATH], start: usize, stop: usize, f: impl FnOnce(&[u8]) -> T) -> T {
    let saved = buffer.get(stop).copied().unwrap_or(0);
    if let Some(byte) = buffer.get_mut(stop) {
        *byte = 0;
    }
    let result = f(buffer.get(start..stop + 1).unwrap_or(b"\0"));
    if let Some(byte) = buffer.get_mut(stop) {
        *byte = saved;
    }
    result
}

/// Makes an empty file or a directory that must not be there yet, and opens it.
fn make(parent: i32, name: &[u8], file: bool, owner: Option<(u32, u32)>) -> Result<i32, Trouble> {
    let kind = kernel::O_PATH | kernel::O_NOFOLLOW | if file { 0 } else { kernel::O_DIRECTORY };
    if file {
        let flags = kernel::O_WRONLY | kernel::O_CREAT | kernel::O_EXCL | kernel::O_NOFOLLOW;
        kernel::openat(parent, name, flags, 0o644).map(kernel::close).map_err(at(Sys::Openat))?;
    } else {
        kernel::mkdirat(parent, name, 0o755).map_err(at(Sys::Mkdirat))?;
    }
    let made = kernel::openat(parent, name, kind, 0).map_err(at(Sys::Openat))?;
    if let Some((uid, gid)) = owner {
        let _ = kernel::fchown(made, uid, gid);
    }
    Ok(made)
}

/// Rules for a relative path that stays on what it starts from, and on which no link is.
const BENEATH: u64 = kernel::RESOLVE_BENEATH | kernel::RESOLVE_NO_SYMLINKS;

/// One path, beneath `root`.
fn resolve(root: i32, path: &[u8], flags: u32, rules: u64) -> Result<i32, i32> {
    match kernel::openat2(root, path, flags, rules) {
        // Refused by a seccomp filter around us, or older than 5.6.
        Err(kernel::ENOSYS | kernel::EPERM) => walk(root, path, flags, rules),
        other => other,
    }
}

/// [`resolve`] without openat2: component by component, links read and put in front of what is left.
///
/// Where links are followed, `root` is the root of this process and the container's already, so even a race with a
/// process inside leads nowhere else; what this walk keeps out is procfs' magic links.
fn walk(root: i32, path: &[u8], flags: u32, rules: u64) -> Result<i32, i32> {
    let mut todo = [0u8; 2 * PATH];
    // As the kernel has it; what links add has its own room.
    if path.len() > PATH {
        return Err(kernel::ENAMETOOLONG);
    }
    let mut from = todo.len() - path.len();
    todo.get_mut(from..).ok_or(kernel::EINVAL)?.copy_from_slice(path);
    let mut here = kernel::openat(root, b".\0", kernel::O_PATH | kernel::O_DIRECTORY, 0)?;
    let mut links = 0;
    loop {
        while todo.get(from) == Some(&b'/') {
            from += 1;
        }
        let rest = todo.get(from..).unwrap_or(&[0]);
        let length = rest.iter().position(|byte| *byte == b'/' || *byte == 0).unwrap_or(0);
        if length == 0 {
            return Ok(here);
        }
        let mut name = [0u8; 256];
        if length > 255 {
            return Err(kernel::ENAMETOOLONG);
        }
        name.get_mut(..length).ok_or(kernel::EINVAL)?.copy_from_slice(rest.get(..length).unwrap_or(&[]));
        from += length;
        let component = name.get(..length + 1).unwrap_or(&[0]);
        if component == b"..\0" && rules & kernel::RESOLVE_BENEATH != 0 {
            return Err(kernel::EXDEV);
        }
        let last = todo.get(from..).unwrap_or(&[]).iter().all(|byte| *byte == b'/' || *byte == 0);
        let next = kernel::openat(here, component, kernel::O_PATH | kernel::O_NOFOLLOW, 0)?;
        let status = kernel::status(next)?;
        if status.is_symlink() {
            links += 1;
            let (magic, _) = kernel::fstatfs(next)?;
            if links > 40 || magic == PROC_SUPER_MAGIC || rules & kernel::RESOLVE_NO_SYMLINKS != 0 {
                return Err(kernel::ELOOP);
            }
            let mut target = [0u8; PATH];
            let count = kernel::readlink(next, b"\0", &mut target)?;
            let target = target.get(..count).unwrap_or(&[]);
            kernel::close(next);
            from = from.checked_sub(count + 1).ok_or(kernel::ENAMETOOLONG)?;
            let place = todo.get_mut(from..from + count).ok_or(kernel::ENAMETOOLONG)?;
            place.copy_from_slice(target);
            if let Some(byte) = todo.get_mut(from + count) {
                *byte = b'/';
            }
            if target.first() == Some(&b'/') {
                kernel::close(here);
                here = kernel::openat(root, b".\0", kernel::O_PATH | kernel::O_DIRECTORY, 0)?;
            }
            continue;
        }
        kernel::close(here);
        here = next;
        if last && flags & kernel::O_DIRECTORY != 0 && !status.is_directory() {
            return Err(kernel::ENOTDIR);
        }
    }
}
