//! A directory as a tar stream: the way in for root file systems that were made by other tools.
//!
//! Entries are sorted by name, times are whole seconds and nothing of the host but the tree itself is written, so
//! that the same tree gives the same bytes and therefore the same digest. The tree is walked by descriptors and no
//! symbolic link is followed. Left out: sockets (a tar cannot hold them) and the directory's own entry, whose mode is
//! usually the one of a throwaway directory (0700) and not one for `/`.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use crate::error::{Error, ErrorKind, Result};
use crate::sys;

/// Whose the packed files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FileOwner {
    /// Whoever owns them in the directory, by number.
    #[default]
    AsFound,
    /// One uid and gid for everything, such as 0 and 0 for a tree that an ordinary user put together.
    Fixed(u32, u32),
}

/// Directories deeper than this are refused, for one descriptor is open per level.
const MAX_DEPTH: usize = 200;

const STEP: &str = "pack the directory";

/// Writes the tree below `root` as a tar stream, with its two zero blocks at the end.
pub(crate) fn pack(root: &Path, owner: FileOwner, out: impl Write) -> Result<()> {
    let directory = File::open(root).map_err(|error| Error::io(STEP, "open", error).path(root))?;
    let mut packer = Packer { tar: tar::Builder::new(out), owner, root, linked: HashMap::new(), path: PathBuf::new() };
    packer.tar.sparse(false);
    packer.directory(directory.into(), 0)?;
    let mut out = packer.tar.into_inner().map_err(|error| Error::io(STEP, "write", error))?;
    out.flush().map_err(|error| Error::io(STEP, "write", error))
}

struct Packer<'a, W: Write> {
    tar: tar::Builder<W>,
    owner: FileOwner,
    root: &'a Path,
    /// Where a file with several names was written first, by device and inode.
    linked: HashMap<(u64, u64), PathBuf>,
    /// Where the walk is, relative to the root.
    path: PathBuf,
}

impl<W: Write> Packer<'_, W> {
    fn directory(&mut self, directory: OwnedFd, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::new(ErrorKind::Limit, STEP)
                .path(self.here())
                .because(format!("directories are nested more than {MAX_DEPTH} levels deep")));
        }
        for name in self.names(&directory)? {
            self.path.push(OsStr::from_bytes(name.to_bytes()));
            self.entry(directory.as_fd(), &name, depth)?;
            self.path.pop();
        }
        Ok(())
    }

    fn names(&self, directory: &OwnedFd) -> Result<Vec<CString>> {
        // A descriptor of its own: `Dir` moves the offset and closes what it is given.
        let mut dir =
            Dir::openat(directory, c".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(|errno| self.failed("openat", errno))?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(|errno| self.failed("getdents64", errno))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn entry(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> Result<()> {
        let stat =
            fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|errno| self.failed("fstatat", errno))?;
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        let mut header = self.header(&stat);
        if kind != SFlag::S_IFDIR && stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&(stat.st_dev, stat.st_ino)) {
                let first = first.as_os_str().as_bytes().to_owned();
                header.set_entry_type(tar::EntryType::Link);
                return self.write(header, Some(&first), &[], io::empty());
            }
            if kind != SFlag::S_IFSOCK {
                self.linked.insert((stat.st_dev, stat.st_ino), self.path.clone());
            }
        }
        match kind {
            SFlag::S_IFDIR => {
                let directory = self.open(parent, name, OFlag::O_DIRECTORY, &stat)?;
                header.set_entry_type(tar::EntryType::Directory);
                let xattrs = self.xattrs(&directory)?;
                self.write(header, None, &xattrs, io::empty())?;
                self.directory(directory, depth + 1)
            }
            SFlag::S_IFREG => {
                let file = self.open(parent, name, OFlag::O_NONBLOCK | OFlag::O_NOCTTY, &stat)?;
                let xattrs = self.xattrs(&file)?;
                header.set_entry_type(tar::EntryType::Regular);
                let size = stat.st_size.unsigned_abs();
                header.set_size(size);
                let exactly = Exactly { file: File::from(file).take(size), path: self.here() };
                self.write(header, None, &xattrs, exactly)
            }
            SFlag::S_IFLNK => {
                let target = readlinkat(parent, name).map_err(|errno| self.failed("readlinkat", errno))?;
                header.set_entry_type(tar::EntryType::Symlink);
                self.write(header, Some(target.as_bytes()), &[], io::empty())
            }
            SFlag::S_IFIFO => {
                header.set_entry_type(tar::EntryType::Fifo);
                self.write(header, None, &[], io::empty())
            }
            SFlag::S_IFCHR | SFlag::S_IFBLK => {
                header.set_entry_type(if kind == SFlag::S_IFCHR {
                    tar::EntryType::Char
                } else {
                    tar::EntryType::Block
                });
                let (major, minor) = (nix::sys::stat::major(stat.st_rdev), nix::sys::stat::minor(stat.st_rdev));
                let fits = |number: u64| {
                    u32::try_from(number).map_err(|_| self.failed("fstatat", nix::errno::Errno::EOVERFLOW))
                };
                let set = header.set_device_major(fits(major)?).and(header.set_device_minor(fits(minor)?));
                set.map_err(|error| Error::io(STEP, "write", error).path(self.here()))?;
                self.write(header, None, &[], io::empty())
            }
            _ => Ok(()),
        }
    }

    /// Opens what was just looked at, and makes sure that it still is what it was.
    fn open(&self, parent: BorrowedFd<'_>, name: &CStr, flags: OFlag, seen: &FileStat) -> Result<OwnedFd> {
        let flags = flags | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(parent, name, flags, Mode::empty()).map_err(|errno| self.failed("openat", errno))?;
        let stat = fstat(&fd).map_err(|errno| self.failed("fstat", errno))?;
        if (stat.st_dev, stat.st_ino) == (seen.st_dev, seen.st_ino) {
            return Ok(fd);
        }
        Err(Error::new(ErrorKind::Conflict, STEP)
            .path(self.here())
            .because("it was replaced while it was being packed"))
    }

    fn header(&self, stat: &FileStat) -> tar::Header {
        let (uid, gid) = match self.owner {
            FileOwner::AsFound => (stat.st_uid, stat.st_gid),
            FileOwner::Fixed(uid, gid) => (uid, gid),
        };
        let mut header = tar::Header::new_gnu();
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(0);
        header
    }

    /// Extended attributes that mean something in a container: the user's own and file capabilities. Labels of the
    /// host's security modules and marks of overlay mounts stay behind.
    fn xattrs(&self, fd: &OwnedFd) -> Result<Vec<(String, Vec<u8>)>> {
        let failed = |syscall, error| Error::io(STEP, syscall, error).path(self.here());
        let mut kept = Vec::new();
        for name in sys::xattr::list(fd.as_fd()).map_err(|error| failed("flistxattr", error))? {
            let Some(text) = name.to_str().ok().map(str::to_owned) else { continue };
            let wanted = text == "security.capability"
                || text.starts_with("user.") && !text.starts_with("user.overlay.") && text != "user.rootlesscontainers";
            if wanted
                && let Some(value) = sys::xattr::get(fd.as_fd(), &name).map_err(|error| failed("fgetxattr", error))?
            {
                kept.push((text, value));
            }
        }
        kept.sort();
        Ok(kept)
    }

    /// Writes one entry. What the old header cannot hold (100 bytes of name or link) goes into a PAX record, the form
    /// that every reader agrees on.
    fn write(
        &mut self,
        mut header: tar::Header,
        link: Option<&[u8]>,
        xattrs: &[(String, Vec<u8>)],
        data: impl Read,
    ) -> Result<()> {
        let mut name = self.path.as_os_str().as_bytes().to_owned();
        if header.entry_type().is_dir() {
            name.push(b'/');
        }
        let mut records: Vec<(String, Vec<u8>)> =
            xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone())).collect();
        let old = header.as_old_mut();
        if name.len() > old.name.len() {
            records.push(("path".into(), name.clone()));
        }
        fill(&mut old.name, &name);
        if let Some(link) = link {
            if link.len() > old.linkname.len() {
                records.push(("linkpath".into(), link.to_owned()));
            }
            fill(&mut old.linkname, link);
        }
        header.set_cksum();
        let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        self.tar
            .append_pax_extensions(records)
            .and_then(|()| self.tar.append(&header, data))
            .map_err(|error| Error::io(STEP, "write", error).path(self.here()))
    }

    fn here(&self) -> PathBuf {
        self.root.join(&self.path)
    }

    fn failed(&self, syscall: &'static str, errno: nix::errno::Errno) -> Error {
        let error = Error::sys(STEP, syscall, errno as i32).path(self.here());
        match errno {
            nix::errno::Errno::EACCES => error
                .because("this user may not read it")
                .remedy("pack as its owner, or make a tar of the directory as root and import that"),
            _ => error,
        }
    }
}

fn fill(field: &mut [u8], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field.fill(0);
    field[..length].copy_from_slice(&bytes[..length]);
}

/// A file that must give as many bytes as its entry's header promised.
struct Exactly {
    file: io::Take<File>,
    path: PathBuf,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        if count == 0 && self.file.limit() > 0 && !buffer.is_empty() {
            return Err(Error::new(ErrorKind::Conflict, STEP)
                .path(&self.path)
                .because("it became shorter while it was being packed")
                .into());
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn links_long_names_and_modes_survive() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().join("tree");
        let deep = root.join("d".repeat(90)).join("e".repeat(90));
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("file"), b"body").unwrap();
        std::fs::set_permissions(deep.join("file"), std::fs::Permissions::from_mode(0o4751)).unwrap();
        std::fs::hard_link(deep.join("file"), root.join("again")).unwrap();
        symlink(format!("a//b/{}/", "x".repeat(120)), root.join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();

        let mut bytes = Vec::new();
        pack(&root, FileOwner::Fixed(0, 5), &mut bytes).unwrap();
        let mut again = Vec::new();
        pack(&root, FileOwner::Fixed(0, 5), &mut again).unwrap();
        assert_eq!(bytes, again);

        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (0, 5));
            let link = entry.link_name_bytes().map(|link| String::from_utf8(link.into_owned()).unwrap());
            let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            seen.push((path, entry.header().entry_type(), link, entry.header().mode().unwrap(), entry.size()));
        }
        let types: Vec<_> = seen.iter().map(|entry| entry.1).collect();
        use tar::EntryType::{Directory, Link, Regular, Symlink};
        assert_eq!(types, [Regular, Directory, Directory, Link, Symlink]);
        assert_eq!((seen[0].0.as_str(), seen[0].3, seen[0].4), ("again", 0o4751, 4));
        assert_eq!(seen[3].2.as_deref(), Some("again"));
        assert!(seen[3].0.ends_with("e/file") && seen[3].0.len() == 186);
        assert_eq!(seen[4].2.as_deref(), Some(format!("a//b/{}/", "x".repeat(120)).as_str()));

        let mut kept = Vec::new();
        pack(&root, FileOwner::AsFound, &mut kept).unwrap();
        let entry =
            tar::Archive::new(kept.as_slice()).entries().unwrap().next().unwrap().unwrap().header().uid().unwrap();
        assert_eq!(entry, u64::from(std::fs::metadata(&root).unwrap().uid()));
    }

    #[test]
    fn attributes_of_the_user_are_kept_and_those_of_the_host_are_not() {
        let tree = tempfile::tempdir().unwrap();
        let file = File::create(tree.path().join("file")).unwrap();
        for name in [c"user.kept", c"user.overlay.opaque", c"user.rootlesscontainers"] {
            sys::xattr::set(file.as_fd(), name, b"a\nb\0c").unwrap();
        }
        let mut bytes = Vec::new();
        pack(tree.path(), FileOwner::AsFound, &mut bytes).unwrap();
        let mut reader = crate::layer::tar::Reader::new(bytes.as_slice(), &crate::layer::Limits::default());
        let entry = reader.next().unwrap().unwrap();
        assert_eq!(entry.xattrs, [(b"user.kept".to_vec(), b"a\nb\0c".to_vec())]);
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = pack(Path::new("/nonexistent/tree"), FileOwner::AsFound, io::sink()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("/nonexistent/tree"), "{error}");
    }
}
