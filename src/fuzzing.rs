//! Doors for the fuzz targets in `fuzz/`, to what no program has a use for. Only in builds with `--cfg fuzzing`.

use std::io::Read;

use crate::layer::Limits;
use crate::layer::tar::{Kind, Reader};
use crate::{Error, Result};

/// One entry of a tar as this crate reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEntry {
    /// As written.
    pub path: Vec<u8>,
    /// `-`, `h`, `l`, `c`, `b`, `d` or `p`, as `ls -l` and GNU tar show types.
    pub kind: char,
    /// What a link says.
    pub link: Vec<u8>,
    /// Permission bits, 07777.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When it was changed: seconds since 1970, and nanoseconds after that.
    pub mtime: (i64, u32),
    /// Major and minor number of a device node.
    pub device: (u32, u32),
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The bytes that the archive holds for it, without holes.
    pub data: Vec<u8>,
    /// For a sparse file its length, and offset and length of each piece.
    pub sparse: Option<(u64, Vec<(u64, u64)>)>,
}

/// Reads a whole tar.
///
/// # Errors
/// Those of unpacking it, as far as they do not come from a tree.
pub fn read_tar(bytes: &[u8], limits: &Limits) -> Result<Vec<TarEntry>> {
    let mut reader = Reader::new(bytes, limits);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next()? {
        let kind = match entry.kind {
            Kind::File => '-',
            Kind::HardLink => 'h',
            Kind::Symlink => 'l',
            Kind::CharDevice => 'c',
            Kind::BlockDevice => 'b',
            Kind::Directory => 'd',
            Kind::Fifo => 'p',
        };
        let mut data = Vec::new();
        reader.data().read_to_end(&mut data).map_err(|error| Error::io("read the tar", "read", error))?;
        let sparse = entry.sparse.map(|sparse| (sparse.real_size, sparse.pieces));
        let (path, link, mode, uid, gid) = (entry.path, entry.link, entry.mode, entry.uid, entry.gid);
        let (mtime, device) = ((entry.mtime.seconds, entry.mtime.nanoseconds), entry.device);
        let mut xattrs = entry.xattrs;
        xattrs.sort();
        entries.push(TarEntry { path, kind, link, mode, uid, gid, mtime, device, xattrs, data, sparse });
    }
    Ok(entries)
}

pub use crate::launch::fuzzed::{Walked, samples as sample_plans, walk as walk_plan};
