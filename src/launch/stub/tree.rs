//! Work on files whose owners only a user namespace can name: giving them away, removing and measuring them.

use crate::kernel::{self, Outcome};
use crate::protocol::{NONE, Reader, Sys};

type Failed = (Sys, i32, u32);

/// Walks the list of owners: `path: str, uid: u32, gid: u32, mode: u32, count: u32, (name: str, value: str)…`.
///
/// Paths are names of our own unpacking, relative to `tree`; they are resolved beneath it and through no link.
pub fn reown(tree: i32, list: &'static [u8]) -> Result<(), Failed> {
    let mut reader = Reader::new(list);
    let mut entry = 0u32;
    while !reader.is_empty() {
        let malformed = |_| (Sys::Plan, kernel::EINVAL, entry);
        let path = reader.cstr().map_err(malformed)?;
        let uid = reader.u32().map_err(malformed)?;
        let gid = reader.u32().map_err(malformed)?;
        let mode = reader.u32().map_err(malformed)?;
        let count = reader.u32().map_err(malformed)?;
        // A link cannot be opened for reading; its owner is all it has.
        let read = kernel::O_RDONLY | kernel::O_NONBLOCK | kernel::O_NOFOLLOW;
        let (file, link) = match open_beneath(tree, path, read) {
            Ok(file) => (file, false),
            Err(kernel::ELOOP | 6) => {
                let look = kernel::O_PATH | kernel::O_NOFOLLOW;
                (open_beneath(tree, path, look).map_err(|e| (Sys::Openat2, e, entry))?, true)
            }
            Err(errno) => return Err((Sys::Openat2, errno, entry)),
        };
        let mut done = kernel::fchown(file, uid, gid).map_err(|e| (Sys::Fchown, e, entry));
        // chown takes setuid and capabilities away, so modes and attributes come after it.
        if done.is_ok() && !link && mode != NONE {
            done = kernel::fchmod(file, mode).map_err(|e| (Sys::Fchmodat, e, entry));
        }
        for _ in 0..count {
            let name = reader.cstr().map_err(malformed)?;
            let value = reader.blob().map_err(malformed)?;
            if done.is_ok() && !link {
                done = kernel::fsetxattr(file, name, value).map_err(|e| (Sys::Setxattr, e, entry));
            }
        }
        kernel::close(file);
        done?;
        entry = entry.wrapping_add(1);
    }
    Ok(())
}

/// Opens what is beneath `tree` and reached through no link; with `O_PATH`, it may be one itself.
fn open_beneath(tree: i32, path: &[u8], flags: u32) -> Outcome<i32> {
    match kernel::openat2(tree, path, flags, kernel::RESOLVE_BENEATH | kernel::RESOLVE_NO_SYMLINKS) {
        // Refused by a filter around us, or older than 5.6.
        Err(kernel::ENOSYS | kernel::EPERM) => {}
        other => return other,
    }
    let mut here = kernel::openat(tree, b".\0", kernel::O_PATH | kernel::O_DIRECTORY, 0)?;
    let mut rest = path.strip_suffix(b"\0").ok_or(kernel::EINVAL)?;
    let opened = loop {
        let mut name = [0u8; 256];
        let length = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        let Some(place) = name.get_mut(..length).filter(|_| length < 256) else { break Err(kernel::ENAMETOOLONG) };
        place.copy_from_slice(rest.get(..length).unwrap_or(&[]));
        let component = name.get(..length + 1).unwrap_or(b"\0");
        if component == b"\0" || component == b"..\0" {
            break Err(kernel::EXDEV);
        }
        if length == rest.len() {
            break kernel::openat(here, component, flags | kernel::O_NOFOLLOW, 0);
        }
        // ENOTDIR for a link.
        let way = kernel::O_PATH | kernel::O_DIRECTORY | kernel::O_NOFOLLOW;
        let next = match kernel::openat(here, component, way, 0) {
            Ok(next) => next,
            Err(errno) => break Err(errno),
        };
        kernel::close(here);
        here = next;
        rest = rest.get(length + 1..).unwrap_or(&[]);
    };
    kernel::close(here);
    opened
}

/// Removes `name` in `dir` and everything below it, in constant memory and with three descriptors, however deep it is:
/// directories that are not empty are moved up into the one that is being emptied.
pub fn remove(dir: i32, name: &[u8]) -> Result<(), Failed> {
    let failed = |sys: Sys| move |errno: i32| (sys, errno, 0);
    match kernel::unlinkat(dir, name, 0) {
        Ok(()) => return Ok(()),
        Err(kernel::ENOENT) => return Ok(()),
        Err(kernel::EISDIR | kernel::EPERM) => {}
        Err(errno) => return Err((Sys::Unlinkat, errno, 0)),
    }
    let mut top = open_directory(dir, name).map_err(failed(Sys::Openat))?;
    let mut moved = 0u64;
    loop {
        let mut left = false;
        each_entry(top, |entry| {
            left = true;
            empty(top, top, entry, &mut moved)?;
            match kernel::unlinkat(top, entry, kernel::AT_REMOVEDIR) {
                Ok(()) | Err(kernel::ENOENT | kernel::ENOTDIR) => Ok(()),
                Err(errno) => Err(errno),
            }
        })
        .map_err(failed(Sys::Unlinkat))?;
        if !left {
            break;
        }
        kernel::close(top);
        // Reopened rather than rewound: entries that were moved up must be seen.
        top = open_directory(dir, name).map_err(failed(Sys::Openat))?;
    }
    kernel::close(top);
    kernel::unlinkat(dir, name, kernel::AT_REMOVEDIR).map_err(failed(Sys::Unlinkat))
}

/// Directories deeper than this are refused. Three words of untouched memory each.
const MAX_DEPTH: usize = 64 * 1024;

/// Writes to `out` what `tree` and everything below it takes, as records of four words of 64 bits: `device, inode,
/// inodes, bytes`. A record with an inode is one file that has several names, and may come again; those with inode 0
/// add up to everything else. Symlinks are not followed.
///
/// Two descriptors do, however deep it is: of a directory on the way, only its numbers and where to go on are kept.
pub fn measure(tree: i32, out: i32) -> Result<(), Failed> {
    let failed = |sys: Sys| move |errno: i32| (sys, errno, 0);
    let top = kernel::status(tree).map_err(failed(Sys::Statx))?;
    let above = kernel::fresh_words(MAX_DEPTH * 3).map_err(failed(Sys::Mmap))?;
    let mut records = Records { out, buffer: [0; 3072], filled: 0 };
    let mut rest = (1u64, top.blocks * 512);
    let mut at = open_directory_as_it_is(tree, b".\0").map_err(failed(Sys::Openat))?;
    let mut here = (top.inode, device(&top));
    let mut depth = 0;
    loop {
        let mut child = None;
        let walked = each_entry_from(at, |name, next| {
            let status = match kernel::statx(at, name, AT_SYMLINK_NOFOLLOW) {
                Err(kernel::ENOENT) => return Ok(true),
                other => other?,
            };
            if !status.is_directory() {
                match status.links {
                    2.. => records.put(device(&status), status.inode, 1, status.blocks * 512)?,
                    _ => rest = (rest.0 + 1, rest.1 + status.blocks * 512),
                }
                return Ok(true);
            }
            match open_directory_as_it_is(at, name) {
                Ok(opened) => {
                    rest = (rest.0 + 1, rest.1 + status.blocks * 512);
                    child = Some((opened, (status.inode, device(&status)), next));
                    Ok(false)
                }
                Err(kernel::ENOENT | kernel::ENOTDIR | kernel::ELOOP) => Ok(true),
                Err(errno) => Err(errno),
            }
        });
        match walked {
            // A directory that has been removed meanwhile cannot be read.
            Err(kernel::ENOENT) => {}
            other => other.map_err(failed(Sys::Getdents))?,
        }
        match child {
            Some((opened, below, next)) => {
                let Some(place) = above.get_mut(depth * 3..depth * 3 + 3) else {
                    return Err((Sys::Openat, kernel::ENAMETOOLONG, 0));
                };
                place.copy_from_slice(&[here.0 as usize, here.1 as usize, next as usize]);
                depth += 1;
                kernel::close(at);
                (at, here) = (opened, below);
            }
            None if depth == 0 => break,
            None => {
                depth -= 1;
                let parent = open_directory_as_it_is(at, b"..\0").map_err(failed(Sys::Openat))?;
                kernel::close(at);
                let Some(&[inode, device_of, next]) = above.get(depth * 3..depth * 3 + 3) else { break };
                let status = kernel::status(parent).map_err(failed(Sys::Statx))?;
                // Somebody has moved the directory that we were in.
                here = (inode as u64, device_of as u64);
                if (status.inode, device(&status)) != here {
                    return Err((Sys::Openat, kernel::EAGAIN, 0));
                }
                match kernel::seek(parent, next as u64) {
                    // Of a directory that has been removed meanwhile, no file system has to know old offsets.
                    Err(_) if kernel::status(parent).is_ok_and(|status| status.links == 0) => {}
                    other => other.map_err(failed(Sys::Lseek))?,
                }
                at = parent;
            }
        }
    }
    records.put(0, 0, rest.0, rest.1).map_err(failed(Sys::Write))?;
    records.flush().map_err(failed(Sys::Write))
}

/// Major and minor number in one word.
fn device(status: &kernel::Status) -> u64 {
    (status.device.0 as u64) << 32 | status.device.1 as u64
}

/// What [`measure`] has to say, gathered.
struct Records {
    out: i32,
    buffer: [u8; 3072],
    filled: usize,
}

impl Records {
    fn put(&mut self, device: u64, inode: u64, inodes: u64, bytes: u64) -> Outcome<()> {
        for word in [device, inode, inodes, bytes] {
            if let Some(place) = self.buffer.get_mut(self.filled..self.filled + 8) {
                place.copy_from_slice(&word.to_ne_bytes());
            }
            self.filled += 8;
        }
        if self.filled == self.buffer.len() { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Outcome<()> {
        let done = kernel::write_all(self.out, self.buffer.get(..self.filled).unwrap_or(&[]));
        self.filled = 0;
        done
    }
}

const AT_SYMLINK_NOFOLLOW: usize = 0x100;

/// A directory for reading, and never made readable for that.
fn open_directory_as_it_is(dir: i32, name: &[u8]) -> Outcome<i32> {
    kernel::openat(dir, name, kernel::O_RDONLY | kernel::O_DIRECTORY | kernel::O_NOFOLLOW, 0)
}

/// Removes `entry` if it is no directory; if it is one, empties it, moving its non-empty directories up into `top`.
fn empty(top: i32, dir: i32, entry: &[u8], moved: &mut u64) -> Outcome<()> {
    match kernel::unlinkat(dir, entry, 0) {
        Ok(()) | Err(kernel::ENOENT) => return Ok(()),
        Err(kernel::EISDIR | kernel::EPERM) => {}
        Err(errno) => return Err(errno),
    }
    let inner = match open_directory(dir, entry) {
        Ok(inner) => inner,
        // EPERM was meant: an immutable file.
        Err(kernel::ENOTDIR) => return Err(kernel::EPERM),
        Err(errno) => return Err(errno),
    };
    let done = each_entry(inner, |name| match kernel::unlinkat(inner, name, 0) {
        Ok(()) | Err(kernel::ENOENT) => Ok(()),
        Err(kernel::EISDIR | kernel::EPERM) => match kernel::unlinkat(inner, name, kernel::AT_REMOVEDIR) {
            Ok(()) | Err(kernel::ENOENT) => Ok(()),
            Err(kernel::ENOTEMPTY | kernel::EEXIST) => {
                let mut fresh = [0u8; 24];
                loop {
                    number(&mut fresh, *moved);
                    *moved += 1;
                    match kernel::renameat(inner, name, top, &fresh) {
                        Err(kernel::EEXIST | kernel::ENOTEMPTY | kernel::ENOTDIR) => {}
                        other => return other,
                    }
                }
            }
            Err(errno) => Err(errno),
        },
        Err(errno) => Err(errno),
    });
    kernel::close(inner);
    done
}

fn open_directory(dir: i32, name: &[u8]) -> Outcome<i32> {
    let flags = kernel::O_RDONLY | kernel::O_DIRECTORY | kernel::O_NOFOLLOW;
    match kernel::openat(dir, name, flags, 0) {
        Err(kernel::EACCES) => {
            // A directory without permissions that belongs to us.
            let look = kernel::openat(dir, name, kernel::O_PATH | kernel::O_DIRECTORY | kernel::O_NOFOLLOW, 0)?;
            kernel::close(look);
            kernel::fchmodat(dir, name, 0o700)?;
            kernel::openat(dir, name, flags, 0)
        }
        other => other,
    }
}

/// `\x01` and the number in decimal: a name that nothing but this function makes.
fn number(buffer: &mut [u8; 24], mut value: u64) {
    *buffer = [0; 24];
    buffer[0] = 1;
    let mut digits = [0u8; 20];
    let mut count = 0;
    loop {
        digits[count] = b'0' + (value % 10) as u8;
        value /= 10;
        count += 1;
        if value == 0 || count == digits.len() {
            break;
        }
    }
    for index in 0..count {
        buffer[1 + index] = digits[count - 1 - index];
    }
}

/// Calls `f` with every name of the directory (with its NUL), but `.` and `..`.
pub fn each_entry(dir: i32, mut f: impl FnMut(&[u8]) -> Outcome<()>) -> Outcome<()> {
    each_entry_from(dir, |name, _| f(name).map(|()| true))
}

/// The same from where the directory's offset is; `f` also gets the offset of what follows, and says whether to go on.
fn each_entry_from(dir: i32, mut f: impl FnMut(&[u8], u64) -> Outcome<bool>) -> Outcome<()> {
    let mut buffer = [0u8; 4096];
    loop {
        let count = kernel::getdents(dir, &mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        let mut rest = buffer.get(..count).unwrap_or(&[]);
        // struct linux_dirent64: inode (8), offset (8), length (2), type (1), name.
        while let (Some(low), Some(high)) = (rest.get(16), rest.get(17)) {
            let length = *low as usize | (*high as usize) << 8;
            let Some(record) = rest.get(..length) else { break };
            if length < 20 {
                break;
            }
            let name = record.get(19..).unwrap_or(&[]);
            if let Some(end) = name.iter().position(|byte| *byte == 0) {
                let name = name.get(..end + 1).unwrap_or(&[]);
                let mut next = [0u8; 8];
                next.copy_from_slice(record.get(8..16).unwrap_or(&[0; 8]));
                if name != b".\0" && name != b"..\0" && !f(name, u64::from_ne_bytes(next))? {
                    return Ok(());
                }
            }
            rest = rest.get(length..).unwrap_or(&[]);
        }
    }
}
