//! What a layer may cost.

use crate::{Error, ErrorKind};

/// Bounds on one layer. Going over one is an error of kind [`ErrorKind::Limit`] that names it, both for who unpacks and
/// for who packs: what this crate packs, it also takes back.
///
/// The defaults admit every image in practical use and stop an archive that was built to exhaust:
///
/// ```
/// use coracle::layer::Limits;
///
/// let strict = Limits { bytes: 64 << 20, entries: 10_000, ..Limits::default() };
/// assert!(strict.bytes < Limits::default().bytes);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the tar after decompression, and, counted separately, bytes that its files take up (a sparse file
    /// counts with its full length).
    pub bytes: u64,
    /// Entries, and what unpacking makes without one: directories on the way to an entry, and files that a hard link
    /// brings up from a layer below.
    pub entries: u64,
    /// Length of a path or a symlink's target in bytes. The kernel's own limit for a target is 4095.
    pub path_length: usize,
    /// Components of a path.
    pub depth: usize,
    /// Extended attributes of one entry.
    pub xattrs: usize,
    /// Names and values of the extended attributes of one entry, together, in bytes.
    pub xattr_bytes: usize,
    /// Bytes of one PAX header.
    pub pax_bytes: u64,
    /// Pieces of one sparse file.
    pub sparse_pieces: usize,
    /// Bytes that may be remembered of a layer until its end: directories that are opaque or have attributes of their
    /// own, and, where another identity gives files to their owners, those owners. Layers of an image that are unpacked
    /// at the same time do not take more than this together.
    pub memory: usize,
    /// Bytes of the window that a layer compressed with zstd asks for. Levels up to 19 need 8 MiB, and the levels above
    /// and `--long` as much as 128 MiB.
    pub zstd_window: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            bytes: 256 << 30,
            entries: 10_000_000,
            path_length: 4095,
            depth: 512,
            xattrs: 256,
            xattr_bytes: 512 << 10,
            pax_bytes: 1 << 20,
            sparse_pieces: 1 << 18,
            memory: 16 << 20,
            zstd_window: 32 << 20,
        }
    }
}

/// The error of a limit that was reached; `name` is the field of [`Limits`].
pub(crate) fn exceeded(name: &str, limit: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Limit, "unpack the layer")
        .because(format!("it goes over the limit `{name}` of {limit}"))
        .remedy(format!("raise Limits::{name}, if you trust whoever made the image"))
}
