//! From what is in a tree to entries of a tar.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::access::{Tree, join, parent_and_name};
use super::attributes::{Fate, fate};
use super::plan::Plan;
use super::{Counts, LeftOut, PackOptions, Packed, STEP};
use crate::layer::owner_record::RECORD;
use crate::layer::tar::{Entry, Kind, Sparse, Writer, sparse_map_length};
use crate::sys::fs::{self, Stat, Time};
use crate::sys::path::components;
use crate::sys::xattr;
use crate::{Error, ErrorKind, Result};

/// Bytes read at a time.
const BUFFER: usize = 256 << 10;

/// Holes are worth their map and their extended header only when they are larger than these.
const HEADERS: u64 = 1024;

/// One packing under way.
pub(super) struct Packer<'a, W> {
    tree: Tree,
    options: &'a PackOptions,
    /// Whether attributes that only root sees belong to the tree.
    trusted: bool,
    writer: Writer<Counted<'a, W>>,
    /// Bytes of the tar.
    written: &'a Cell<u64>,
    /// Where a file with several names was written first, by device and inode.
    links: HashMap<(libc::dev_t, libc::ino_t), Vec<u8>>,
    left_out: Counts,
    bytes: u64,
    buffer: Vec<u8>,
}

/// Counts what passes through.
struct Counted<'a, W>(W, &'a Cell<u64>);

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.0.write(bytes)?;
        self.1.set(self.1.get() + count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn write_failed(error: io::Error) -> Error {
    Error::io(STEP, "write", error)
}

impl<'a, W: Write> Packer<'a, W> {
    /// `written` is 0.
    pub(super) fn new(
        tree: Tree,
        options: &'a PackOptions,
        trusted: bool,
        out: W,
        written: &'a Cell<u64>,
    ) -> Packer<'a, W> {
        Packer {
            tree,
            options,
            trusted,
            writer: Writer::new(Counted(out, written)),
            written,
            links: HashMap::new(),
            left_out: Counts::default(),
            bytes: 0,
            buffer: Vec::new(),
        }
    }

    /// All that is in the tree, but not its root.
    pub(super) fn everything(&mut self) -> Result<()> {
        let mut open = vec![(Vec::new(), self.tree.names(b"")?.into_iter())];
        while let Some((dir, names)) = open.last_mut() {
            let Some(name) = names.next() else {
                open.pop();
                continue;
            };
            let path = join(dir, name.to_bytes());
            if self.entry(&path)? == Some(Kind::Directory) {
                let names = self.tree.names(&path)?.into_iter();
                open.push((path, names));
            }
        }
        Ok(())
    }

    pub(super) fn planned(&mut self, plan: &Plan) -> Result<()> {
        for (path, item) in plan.items() {
            if !item.exists() {
                let (parent, name) = parent_and_name(&path);
                self.whiteout(parent, name)?;
                continue;
            }
            self.entry(&path)?;
            if item.is_opaque() {
                self.whiteout(&path, b".wh..opq")?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Packed> {
        let entries = self.writer.entries();
        self.writer.finish().and_then(|mut out| out.flush()).map_err(write_failed)?;
        if self.written.get() > self.tree.limits.bytes {
            return Err(self.tree.exceeds(b"", "bytes", self.tree.limits.bytes));
        }
        Ok(Packed { entries, bytes: self.bytes, left_out: self.left_out.0.into_iter().collect() })
    }

    /// An entry that hides `name`. What it is besides its name has no meaning, so it is always the same.
    fn whiteout(&mut self, parent: &[u8], name: &[u8]) -> Result<()> {
        self.write(&blank(join(parent, &[b".wh.", name].concat()), Kind::File))
    }

    /// Writes a header, after a look at whether a reader takes it.
    fn write(&mut self, entry: &Entry) -> Result<()> {
        let (path, limits) = (entry.path.as_slice(), &self.tree.limits);
        // Directories have a slash behind their name.
        let length = path.len() + usize::from(entry.kind == Kind::Directory);
        if length.max(entry.link.len()) > limits.path_length {
            return Err(self.tree.exceeds(path, "path_length", limits.path_length));
        }
        if components(path).count() > limits.depth {
            return Err(self.tree.exceeds(path, "depth", limits.depth));
        }
        if entry.xattrs.len() > limits.xattrs {
            return Err(self.tree.exceeds(path, "xattrs", limits.xattrs));
        }
        if entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > limits.xattr_bytes {
            return Err(self.tree.exceeds(path, "xattr_bytes", limits.xattr_bytes));
        }
        let real_size = entry.sparse.as_ref().map_or(entry.size, |sparse| sparse.real_size);
        let tar = self.written.get().saturating_add(entry.size);
        if self.bytes.saturating_add(real_size).max(tar) > limits.bytes {
            return Err(self.tree.exceeds(path, "bytes", limits.bytes));
        }
        if self.writer.entries() >= limits.entries {
            return Err(self.tree.exceeds(path, "entries", limits.entries));
        }
        if entry.uid == u32::MAX || entry.gid == u32::MAX {
            return Err(Error::new(ErrorKind::Invalid, STEP)
                .path(self.tree.shown(path))
                .because(format!("{}:{} is no owner: the greatest number is no id", entry.uid, entry.gid)));
        }
        self.writer.entry(entry).map_err(write_failed)
    }

    /// Writes the entry of `path`; `None` where it is left out.
    fn entry(&mut self, path: &[u8]) -> Result<Option<Kind>> {
        let stat = self.tree.stat(path)?;
        if parent_and_name(path).1.starts_with(b".wh.") {
            return Err(Error::new(ErrorKind::Unsupported, STEP)
                .path(self.tree.shown(path))
                .because("in a layer, a name that starts with .wh. stands for a file that is gone")
                .remedy("rename it"));
        }
        let kind = match stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFREG => Kind::File,
            libc::S_IFLNK => Kind::Symlink,
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFCHR if stat.st_rdev == 0 => {
                return Err(Error::new(ErrorKind::Unsupported, STEP)
                    .path(self.tree.shown(path))
                    .because("overlay takes a character device 0/0 for a mark that something is gone"));
            }
            libc::S_IFCHR => Kind::CharDevice,
            libc::S_IFBLK => Kind::BlockDevice,
            _ => {
                self.left_out.add(LeftOut::Socket);
                return Ok(None);
            }
        };
        let mut entry = blank(if path.is_empty() { b".".to_vec() } else { path.to_vec() }, kind);
        entry.mode = stat.st_mode & 0o7777;
        entry.mtime = self.mtime(&stat);
        let linked = kind != Kind::Directory && stat.st_nlink > 1;
        let file = self.open(path, kind, &stat)?;
        let record = self.attributes(path, file.as_fd(), kind, &mut entry)?;
        (entry.uid, entry.gid) = self.options.owner(&stat, record.as_deref());
        if linked && let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
            // With owner and attributes of its own: readers give the file those of its last name, or none.
            entry.kind = Kind::HardLink;
            entry.link.clone_from(first);
            self.write(&entry)?;
            return Ok(Some(kind));
        }
        match kind {
            Kind::File => self.file(path, file, entry, &stat)?,
            Kind::Symlink => {
                // Of the handle itself, whatever has that name by now.
                entry.link = fs::readlinkat(file.as_fd(), c"").map_err(self.tree.failed("readlinkat", path))?;
                self.write(&entry)?;
            }
            Kind::CharDevice | Kind::BlockDevice => {
                entry.device = (libc::major(stat.st_rdev), libc::minor(stat.st_rdev));
                self.write(&entry)?;
            }
            _ => self.write(&entry)?,
        }
        if linked {
            self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
        }
        Ok(Some(kind))
    }

    /// Opens what was looked at: files and directories for reading, everything else as a handle.
    fn open(&mut self, path: &[u8], kind: Kind, stat: &Stat) -> Result<OwnedFd> {
        let flags = match kind {
            // Not waiting for anybody, should it have become a FIFO or a terminal.
            Kind::File => libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY,
            Kind::Directory => libc::O_RDONLY | libc::O_NONBLOCK | libc::O_DIRECTORY,
            _ => libc::O_PATH,
        };
        self.tree.open_as(path, flags, stat)
    }

    fn mtime(&self, stat: &Stat) -> Time {
        let time = Time { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 };
        match self.options.clamp_mtime {
            Some(seconds) => time.min(Time { seconds, nanoseconds: 0 }),
            None => time,
        }
    }

    /// Reads the attributes that go into the entry; returns the record of the owner, where there is one.
    fn attributes(
        &mut self,
        path: &[u8],
        fd: BorrowedFd<'_>,
        kind: Kind,
        entry: &mut Entry,
    ) -> Result<Option<Vec<u8>>> {
        let handle = !matches!(kind, Kind::File | Kind::Directory);
        let names = if handle { xattr::list_handle(fd) } else { xattr::list(fd) };
        let mut names = names.map_err(self.tree.failed("listxattr", path))?;
        names.sort_unstable();
        let mut record = None;
        for name in names {
            let bytes = name.to_bytes();
            // Only mounts with full privileges leave these, and nobody can set them through such a mount. A file's owner
            // may set `user.overlay.redirect`, which no kernel heeds: mounts with `userxattr` have both turned off.
            if [&b"trusted.overlay.redirect"[..], b"trusted.overlay.metacopy"].contains(&bytes) {
                return Err(Error::new(ErrorKind::Unsupported, STEP)
                    .path(self.tree.shown(path))
                    .because(format!("overlay has left the attribute {name:?}, so it does not stand by itself"))
                    .remedy("mount overlays with redirect_dir=off,metacopy=off"));
            }
            match fate(bytes, self.trusted) {
                _ if name.as_c_str() == RECORD => {}
                Fate::Keep => {}
                Fate::Drop => continue,
                Fate::Unsayable => {
                    self.left_out.add(LeftOut::Xattr(String::from_utf8_lossy(bytes).into_owned()));
                    continue;
                }
            }
            let value = self.tree.attribute(fd, &name, handle).map_err(self.tree.failed("getxattr", path))?;
            let Some(value) = value else { return Err(self.tree.changed(path)) };
            if name.as_c_str() == RECORD {
                record = Some(value);
            } else {
                let value = self.options.value(bytes, value);
                entry.xattrs.push((name.into_bytes(), value));
            }
        }
        Ok(record)
    }

    fn file(&mut self, path: &[u8], file: OwnedFd, mut entry: Entry, seen: &Stat) -> Result<()> {
        let size = seen.st_size.unsigned_abs();
        entry.size = size;
        entry.sparse = self.sparse(path, file.as_fd(), seen)?;
        let pieces = match &entry.sparse {
            None => vec![(0, size)],
            Some(sparse) => {
                entry.size = sparse.pieces.iter().map(|piece| piece.1).sum();
                sparse.pieces.clone()
            }
        };
        self.write(&entry)?;
        self.bytes = self.bytes.saturating_add(size);
        let mut file = File::from(file);
        let sought = entry.sparse.is_some();
        for (offset, length) in pieces.into_iter().filter(|piece| piece.1 > 0) {
            if sought {
                file.seek(SeekFrom::Start(offset)).map_err(self.tree.failed("lseek", path))?;
            }
            self.copy(path, &mut file, length)?;
        }
        let stat = fs::fstat(file.as_fd()).map_err(self.tree.failed("fstat", path))?;
        let version = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
        if version(&stat) != version(seen) {
            return Err(self.tree.changed(path));
        }
        Ok(())
    }

    /// Exactly `length` bytes.
    fn copy(&mut self, path: &[u8], file: &mut File, length: u64) -> Result<()> {
        self.buffer.resize(BUFFER, 0);
        let mut left = length;
        while left > 0 {
            let most = left.min(BUFFER as u64) as usize;
            match file.read(&mut self.buffer[..most]) {
                Ok(0) => return Err(self.tree.changed(path)),
                Ok(count) => {
                    self.writer.data(&self.buffer[..count]).map_err(write_failed)?;
                    left -= count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.tree.failed("read", path)(error)),
            }
        }
        Ok(())
    }

    /// The map of a file whose holes are worth one.
    fn sparse(&self, path: &[u8], fd: BorrowedFd<'_>, stat: &Stat) -> Result<Option<Sparse>> {
        let size = stat.st_size.unsigned_abs();
        // In units of 512 bytes, whatever the file system's blocks. Most files are asked no more than that.
        if stat.st_blocks.unsigned_abs() * 512 >= size {
            return Ok(None);
        }
        // One more may come.
        let most = self.tree.limits.sparse_pieces.saturating_sub(1);
        let mut pieces = fs::pieces(fd, most).map_err(self.tree.failed("lseek", path))?;
        fs::seek(fd, 0).map_err(self.tree.failed("lseek", path))?;
        if pieces.last().is_none_or(|(offset, length)| offset + length < size) {
            // GNU tar makes the file as long as its last piece says.
            pieces.push((size, 0));
        }
        let stored: u64 = pieces.iter().map(|piece| piece.1).sum();
        let fits = pieces.len() <= self.tree.limits.sparse_pieces;
        let pays = fits && stored + sparse_map_length(&pieces) + HEADERS < size;
        Ok(pays.then_some(Sparse { real_size: size, pieces }))
    }
}

/// An entry of which nothing but name and kind is known.
fn blank(path: Vec<u8>, kind: Kind) -> Entry {
    Entry {
        path,
        kind,
        link: Vec::new(),
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        size: 0,
        device: (0, 0),
        xattrs: Vec::new(),
        sparse: None,
        offset: 0,
    }
}
