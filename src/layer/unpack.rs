//! From a tar to a directory tree.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::View;
use crate::Result;

/// How whiteouts are written into the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhiteoutFormat {
    /// For overlayfs mounted with full privileges: a character device 0/0, and `trusted.overlay.opaque`.
    #[default]
    Overlay,
    /// For overlayfs mounted with `userxattr` in a user namespace: a character device 0/0, and `user.overlay.opaque`.
    OverlayUser,
    /// For a tree that several layers are applied to one after the other: what is hidden is deleted.
    Apply,
}

/// Whom the files of the tree belong to.
#[derive(Clone, Default)]
pub enum Ownership {
    /// As the tar says (needs CAP_CHOWN and the other powers of root).
    #[default]
    Full,
    /// Everything belongs to this user. What the tar says is recorded in the attribute `user.rootlesscontainers`, as
    /// [umoci](https://rootlesscontaine.rs/proto/) does; device nodes become empty files.
    Single,
    /// Everything is made as this user's; what the tar says otherwise is collected and handed to [`Reown`], which has
    /// a range of subordinate ids at its disposal.
    Mapped(Arc<dyn Reown>),
}

impl fmt::Debug for Ownership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ownership::Full => "Full",
            Ownership::Single => "Single",
            Ownership::Mapped(_) => "Mapped",
        })
    }
}

/// One thing in a tree whose ownership needs an identity that this process has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Where it is, relative to the tree, with components separated by `/` and no symlink on the way.
    pub path: Vec<u8>,
    /// The owner as the container will see it.
    pub uid: u32,
    /// The group as the container will see it.
    pub gid: u32,
    /// Permission bits (07777) that it must have after the change of owner, which clears setuid and setgid. Symlinks
    /// have none: `None`.
    pub mode: Option<u32>,
    /// Attributes that need privileges, such as `security.capability`; name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Acts with a range of subordinate ids.
pub trait Reown: Send + Sync {
    /// Gives each of `owners` in `tree` what it asks for, in this order; nothing in `tree` is followed through a
    /// symlink. Directories come after what is in them.
    ///
    /// # Errors
    /// Where one of them cannot be changed; the caller then throws the tree away.
    fn reown(&self, tree: BorrowedFd<'_>, owners: &[Owner]) -> Result<()>;

    /// Removes `name` in `parent` with everything below it, whoever owns it. Absent is fine.
    ///
    /// # Errors
    /// Where something of it stays.
    fn remove(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<()>;
}

/// The layers below the one being unpacked. Asked only by a layer that depends on them, so it may wait until they
/// are there.
pub trait Below {
    /// The merged look of the layers below; `None` for the lowest layer.
    ///
    /// # Errors
    /// Where one of them cannot be had.
    fn view(&self) -> Result<Option<&View>>;
}

/// Something that a layer asked for and did not get; none of it is needed to run the image.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum Skipped {
    /// Attributes that the file system does not support or the kernel does not allow, and labels of the host's own
    /// security policy; by name.
    Xattr(String),
    /// Device nodes that this user may not make; empty files stand for them.
    Device,
}

/// What unpacking one layer came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries of the tar.
    pub entries: u64,
    /// Bytes of its regular files, hard links not counted again.
    pub bytes: u64,
    /// Whether the layers below were asked.
    pub dependent: bool,
    /// What was left out, each with the number of times.
    pub skipped: Vec<(Skipped, u64)>,
}
