//! From a directory tree to a tar: what a container has changed, or a whole tree.
//!
//! | source | goes into the tar |
//! |---|---|
//! | [`PackSource::Directory`] | everything in it |
//! | [`PackSource::Upper`] | everything in it, which is what was changed; overlay's whiteouts become `.wh.` entries |
//! | [`PackSource::Tree`] | what differs from the layers below, and a `.wh.` entry for what is missing |
//!
//! The same source always makes the same bytes: entries are sorted by name, directory by directory, and nothing of the
//! host but the tree itself is written. Each entry's parents are written before it, so that such a layer stands alone.
//! Of several names of one file the first is the file and the others are links to it.
//!
//! The tree is walked by descriptors, one component at a time, and no symlink is followed. It is expected to hold
//! still: what vanishes or changes while it is read is an error of kind [`Conflict`](ErrorKind::Conflict).
//!
//! What goes into a layer is found first and packed then, since whether a directory is an entry may depend on the last of
//! what is in it; [`pack_blob`] says what is held in memory meanwhile.
//!
//! Left out, each counted in [`Packed::left_out`]: sockets, which a tar cannot hold, and attributes that mean nothing
//! outside of this host: overlay's own, labels of security modules, the record of owners that a tree of a single user
//! keeps (it becomes the entry's owner).

mod access;
mod attributes;
mod emit;
mod plan;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use self::access::Tree;
use self::emit::Packer;
pub use self::plan::{Change, ChangeKind};
use super::encoder::{Encoded, Encoder, EncoderOptions};
use super::{Limits, Reown, View};
#[cfg(doc)]
use crate::ErrorKind;
use crate::name::{Algorithm, DiffId, Digest, Hasher};
use crate::{Error, Result};

const STEP: &str = "pack the directory";

/// Where the files are.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum PackSource<'a> {
    /// A directory by itself. Its own mode is not packed, since it is usually that of a throwaway directory.
    Directory(&'a Path),
    /// An overlay's upper directory, mounted over the trees of `below`. Takes time in proportion to what is in it. What
    /// hides, here as there, is marked in the view's [`WhiteoutFormat`](super::WhiteoutFormat).
    Upper {
        /// The directory.
        upper: &'a Path,
        /// What it lies on.
        below: &'a View,
    },
    /// A whole tree that began as a copy of what lies below. Files that agree in everything else are read and compared.
    Tree {
        /// Its root.
        tree: &'a Path,
        /// What it began as.
        below: &'a View,
    },
}

impl PackSource<'_> {
    fn path(&self) -> &Path {
        match self {
            PackSource::Directory(path)
            | PackSource::Upper { upper: path, .. }
            | PackSource::Tree { tree: path, .. } => path,
        }
    }
}

/// Whose the packed files are.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum PackOwners {
    /// Whoever owns them in the tree, by number.
    #[default]
    AsFound,
    /// One uid and gid for everything.
    Fixed(u32, u32),
    /// The tree is of a single user: 0 and 0, or what the attribute `user.rootlesscontainers` says; see
    /// [`Ownership::Single`](super::Ownership::Single).
    Recorded,
    /// The ids that the container sees.
    Mapped(Arc<dyn Reown>),
}

impl fmt::Debug for PackOwners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PackOwners::AsFound => f.write_str("AsFound"),
            PackOwners::Fixed(uid, gid) => f.debug_tuple("Fixed").field(uid).field(gid).finish(),
            PackOwners::Recorded => f.write_str("Recorded"),
            PackOwners::Mapped(_) => f.write_str("Mapped"),
        }
    }
}

/// Reaches files of a tree that this process may not: those of other ids of a subordinate range, and those whose modes
/// shut out even their owner, whom no capability helps outside of the user namespace.
pub trait Access: Send + Sync {
    /// Opens `name` in `dir` with open(2)'s `flags`; never through a symlink.
    ///
    /// # Errors
    /// What openat(2) says there.
    fn open(&self, dir: BorrowedFd<'_>, name: &CStr, flags: i32) -> io::Result<OwnedFd>;

    /// The value of an extended attribute of an open file or directory.
    ///
    /// # Errors
    /// What fgetxattr(2) says there.
    fn attribute(&self, file: BorrowedFd<'_>, name: &CStr) -> io::Result<Vec<u8>>;
}

/// How to pack.
#[derive(Clone, Default)]
pub struct PackOptions {
    /// Whose the files are.
    pub owners: PackOwners,
    /// Later times become this one, in seconds since 1970: what
    /// [`SOURCE_DATE_EPOCH`](https://reproducible-builds.org/specs/source-date-epoch/) asks for.
    pub clamp_mtime: Option<i64>,
    /// Paths (components separated by `/`, none in front) that mounts needed and that were made for them: left out
    /// where the layers below do not have them and they are still empty, together with directories on the way that
    /// are there for nothing else. Not used for [`PackSource::Directory`].
    pub mount_points: Vec<Vec<u8>>,
    /// Asked where this process itself gets `EACCES`.
    pub access: Option<Arc<dyn Access>>,
    /// What whoever unpacks the layer will take. Nothing is packed that goes over it.
    pub limits: Limits,
}

impl fmt::Debug for PackOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackOptions")
            .field("owners", &self.owners)
            .field("clamp_mtime", &self.clamp_mtime)
            .field("mount_points", &self.mount_points.len())
            .field("access", &self.access.is_some())
            .field("limits", &self.limits)
            .finish()
    }
}

/// Something that did not go into the tar.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LeftOut {
    /// A socket: nobody listens on a copy.
    Socket,
    /// An attribute that a tar cannot hold, by name.
    Xattr(String),
}

/// What packing came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packed {
    /// Entries of the tar.
    pub entries: u64,
    /// Bytes of its regular files, with their holes; links not counted again.
    pub bytes: u64,
    /// What was left out, each with the number of times.
    pub left_out: Vec<(LeftOut, u64)>,
}

/// Writes the tar of `source` to `out`, with its two zero blocks at the end. A source without changes makes these alone.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound) for a source that is not there, [`Denied`](ErrorKind::Denied) for files that
/// neither this process nor [`PackOptions::access`] may read, [`Conflict`](ErrorKind::Conflict) for what changes
/// meanwhile, [`Limit`](ErrorKind::Limit) for what [`PackOptions::limits`] do not admit,
/// [`Invalid`](ErrorKind::Invalid) for an owner that is no id, and [`Unsupported`](ErrorKind::Unsupported) for names that start with `.wh.`, which would hide others, and for character
/// devices 0/0, which overlay takes for whiteouts. What was written by then is worthless.
///
/// ```
/// use coracle::layer::{PackOptions, PackSource, pack};
///
/// let dir = tempfile::tempdir().unwrap();
/// std::fs::write(dir.path().join("file"), "hello").unwrap();
/// let mut tar = Vec::new();
/// let packed = pack(PackSource::Directory(dir.path()), &PackOptions::default(), &mut tar)?;
/// assert_eq!((packed.entries, packed.bytes), (1, 5));
/// # Ok::<(), coracle::Error>(())
/// ```
pub fn pack(source: PackSource<'_>, options: &PackOptions, out: impl Write) -> Result<Packed> {
    let root = source.path();
    let mut tree = Tree::open(root, options)?;
    let plan = plan::of(source, options, &mut tree)?;
    let keep_trusted = plan.is_some();
    let written = Cell::new(0);
    let mut packer = Packer::new(tree, options, keep_trusted, out, &written);
    match plan {
        None => packer.everything()?,
        Some(plan) => packer.planned(&plan)?,
    }
    packer.finish()
}

/// What a container has changed, sorted by path, directory by directory; a directory that holds changes counts as
/// changed. Nothing for [`PackSource::Directory`].
///
/// # Errors
/// Those of [`pack`].
pub fn changes(source: PackSource<'_>, options: &PackOptions) -> Result<Vec<Change>> {
    let mut tree = Tree::open(source.path(), options)?;
    plan::changes(source, options, &mut tree)
}

/// A layer's blob, as [`pack_blob`] wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedBlob {
    /// What went into it.
    pub packed: Packed,
    /// The digest of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// The digest of the tar in it.
    pub diff_id: DiffId,
    /// Bytes of the tar in it.
    pub tar_size: u64,
}

/// [`pack`], compressed on all cores on the way to `out`; both digests are computed in the same pass. The same source makes
/// the same blob.
///
/// Memory for contents is bounded by the number of threads, see [`EncoderOptions::threads`], however large files are.
/// Names are held besides: for [`PackSource::Directory`] those in the directories on the way to the current one, for the
/// other two each path that goes into the layer, which takes its length and about 100 bytes (200,000 new files with paths
/// of 250 bytes: 70 MiB); and for all three the first path of each file that has several.
///
/// # Errors
/// Those of [`pack`]; [`Invalid`](ErrorKind::Invalid) for a level that there is not and
/// [`Unsupported`](ErrorKind::Unsupported) for formats that are not written.
///
/// ```
/// use coracle::layer::{EncoderOptions, PackOptions, PackSource, pack_blob};
///
/// let dir = tempfile::tempdir().unwrap();
/// let mut gzip = Vec::new();
/// let source = PackSource::Directory(dir.path());
/// let blob = pack_blob(source, &PackOptions::default(), &EncoderOptions::default(), &mut gzip)?;
/// assert_eq!(blob.digest, coracle::Digest::of(&gzip));
/// assert_eq!((blob.packed.entries, blob.tar_size), (0, 1024));
/// # Ok::<(), coracle::Error>(())
/// ```
pub fn pack_blob(
    source: PackSource<'_>,
    options: &PackOptions,
    encoding: &EncoderOptions,
    out: impl Write,
) -> Result<PackedBlob> {
    let out = Hashing { out, hasher: Hasher::new(Algorithm::Sha256), size: 0 };
    let (packed, Encoded { digest: tar_digest, size: tar_size }, out) = encode(source, options, encoding, out)?;
    let digest = out.hasher.finish();
    let diff_id = DiffId(tar_digest.unwrap_or_else(|| digest.clone()));
    Ok(PackedBlob { packed, digest, size: out.size, diff_id, tar_size })
}

/// Hashes what passes through.
struct Hashing<W> {
    out: W,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// [`pack`], hashed and compressed on the way to `out`, which computes the digest of the blob itself.
pub(crate) fn encode<W: Write>(
    source: PackSource<'_>,
    options: &PackOptions,
    encoding: &EncoderOptions,
    out: W,
) -> Result<(Packed, Encoded, W)> {
    let mut encoder = Encoder::new(out, encoding)?;
    let packed = pack(source, options, &mut encoder)?;
    let (encoded, out) = encoder.finish().map_err(|error| Error::io(STEP, "write", error))?;
    Ok((packed, encoded, out))
}

/// Counts of what was left out.
#[derive(Default)]
struct Counts(BTreeMap<LeftOut, u64>);

impl Counts {
    fn add(&mut self, what: LeftOut) {
        *self.0.entry(what).or_default() += 1;
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
