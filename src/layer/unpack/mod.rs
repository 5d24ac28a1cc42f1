//! From a tar to a directory tree.
//!
//! How an entry gets its place:
//!
//! 1. Its path is cleaned as text: `.` and empty components go, `..` takes back the component before it, and a path
//!    that climbs above the root is [`ErrorKind::Hostile`].
//! 2. The parent directory is looked up beneath the tree's descriptor without following any symlink, and kept open
//!    for the entries that follow. Where that fails, the slow way walks component by component through this tree and
//!    the layers below, follows symlinks inside that merged root, and makes the directories that are missing.
//! 3. The last component is created with `O_EXCL`; what stands there already is removed first, never written through.
//! 4. Metadata goes through the open descriptor: owner, attributes, mode, times, in this order, because a change of
//!    owner clears setuid and capabilities. Directories get theirs at the end, the deepest first, since files made in
//!    them would change their times.

mod metadata;
mod node;
mod notes;
mod place;
mod waiting;
mod whiteout;

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr};
use std::fmt;
use std::io::BufRead;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use self::metadata::Meta;
use self::notes::Notes;
pub(crate) use self::notes::{Owners, Share};
use self::place::{Parents, clean, split};
use self::waiting::{Pending, Waiting};
use super::limits::exceeded;
use super::tar::{Entry, Kind, Reader};
use super::{LayerOptions, View};
use crate::sys::fs::fstat;
use crate::sys::path::Root;
use crate::sys::usage::{self, Measured};
use crate::{Error, ErrorKind, Result};

const STEP: &str = "unpack the layer";

/// Where aufs kept files with names in several layers, which old images link to from there. It is no part of the image.
const PLINKS: &[u8] = b".wh..wh.plnk";

/// Kinds of things left out that are told apart.
const MOST_SKIPPED: usize = 100;

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

impl WhiteoutFormat {
    /// The attribute by which a directory hides those below it, where it has the value `y`.
    pub(crate) fn opaque_mark(self) -> Option<&'static CStr> {
        match self {
            WhiteoutFormat::Overlay => Some(c"trusted.overlay.opaque"),
            WhiteoutFormat::OverlayUser => Some(c"user.overlay.opaque"),
            WhiteoutFormat::Apply => None,
        }
    }
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
    /// Where it is, relative to the tree, with components separated by `/` and no symlink on the way; empty for the
    /// tree's root itself.
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
    /// symlink. Called several times for a large layer. A directory may come before something that is in it.
    ///
    /// # Errors
    /// Where one of them cannot be changed; the caller then throws the tree away.
    fn reown(&self, tree: BorrowedFd<'_>, owners: &[Owner]) -> Result<()>;

    /// How the container sees a file that this process sees as belonging to `uid` and `gid`.
    fn container_ids(&self, uid: u32, gid: u32) -> (u32, u32);

    /// Removes `name` in `parent` with everything below it, whoever owns it. Absent is fine.
    ///
    /// # Errors
    /// Where something of it stays.
    fn remove(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<()>;

    /// What `dir` and everything below it takes, whoever owns it.
    ///
    /// # Errors
    /// Where a directory cannot be read all the same.
    fn measure(&self, dir: BorrowedFd<'_>) -> Result<Measured> {
        usage::measure(dir).map_err(|error| Error::io("measure a directory", "open", error))
    }
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
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Skipped {
    /// Attributes that the file system does not support or the kernel does not allow, and labels of the host's own
    /// security policy; by name, and after a hundred different names as `others`.
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
    /// Whether the layers below were asked, also where there was none: the tree is good for this one stack only.
    pub dependent: bool,
    /// Whether the tar has an entry for the root directory itself. Where the uppermost layers of a stack have none, the
    /// root's mode and owner are those of the next layer below that has.
    pub sets_root: bool,
    /// What was left out, each with the number of times.
    pub skipped: Vec<(Skipped, u64)>,
}

/// One unpacking under way.
struct Unpacker<'a> {
    root: Root,
    options: &'a LayerOptions,
    below: &'a dyn Below,
    /// Whether modes given at creation are exact, because the thread's umask is clear.
    exact_modes: bool,
    /// Owner and group that new files get.
    me: (u32, u32),
    parents: Parents,
    waiting: Waiting,
    notes: Notes,
    skipped: BTreeMap<Skipped, u64>,
    result: Unpacked,
    /// How much was made that has no entry.
    unnamed: u64,
    /// Whether [`PLINKS`] is there.
    plinks: bool,
    /// Whether directories are getting their metadata, so that nothing is noted for later any more.
    finishing: bool,
}

/// [`unpack_beside`] nobody.
#[cfg(test)]
pub(crate) fn unpack<R: BufRead>(
    archive: R,
    tree: Root,
    options: &LayerOptions,
    below: &dyn Below,
    exact_modes: bool,
) -> Result<(Unpacked, Owners, R)> {
    unpack_beside(archive, tree, options, below, exact_modes, None, &AtomicBool::new(false))
}

/// Unpacks the tar `archive` into `tree`, an open directory that is empty (or, for [`WhiteoutFormat::Apply`], holds
/// what the layers below came to). Reads to the archive's end mark; what follows stays unread.
///
/// Returns also what [`Reown`] has to do, for after the digests are verified, and the input.
///
/// `exact_modes` says that the calling thread has cleared a umask of its own. After an error the tree is in disorder
/// and to be thrown away.
///
/// Of what layers that are unpacked at the same time may remember together this one has a `share`. It gives up when `stop`
/// is set.
pub(crate) fn unpack_beside<R: BufRead>(
    archive: R,
    tree: Root,
    options: &LayerOptions,
    below: &dyn Below,
    exact_modes: bool,
    share: Option<Share>,
    stop: &AtomicBool,
) -> Result<(Unpacked, Owners, R)> {
    let stat = fstat(tree.dir()).map_err(|error| Error::io(STEP, "fstat", error))?;
    let apply = options.whiteouts == WhiteoutFormat::Apply;
    let me = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    // A directory that hands its group or a default ACL down spoils the modes of what is made in it.
    let inherits = stat.st_mode & libc::S_ISGID != 0
        || crate::sys::xattr::get(tree.dir(), c"system.posix_acl_default")
            .map_err(|error| Error::io(STEP, "fgetxattr", error))?
            .is_some();
    let parents = Parents::new(&tree)?;
    let mut unpacker = Unpacker {
        root: tree,
        options,
        below,
        exact_modes: exact_modes && !apply && !inherits,
        me,
        parents,
        waiting: Waiting::new(),
        notes: Notes::new(options.limits.memory, share),
        skipped: BTreeMap::new(),
        result: Unpacked::default(),
        unnamed: 0,
        plinks: false,
        finishing: false,
    };
    if apply {
        let root = unpacker.reopen(&[])?;
        unpacker.keep(&root)?;
    }
    let mut reader = Reader::new(archive, &options.limits);
    while let Some(entry) = reader.next()? {
        unpacker.result.entries = reader.entries();
        unpacker.check_entries()?;
        unpacker.entry(entry, &mut reader)?;
        unpacker.stay_small()?;
        if stop.load(Ordering::Relaxed) {
            return Err(given_up());
        }
    }
    let (result, owners) = unpacker.finish()?;
    Ok((result, owners, reader.into_inner()))
}

impl Unpacker<'_> {
    fn applies(&self) -> bool {
        self.options.whiteouts == WhiteoutFormat::Apply
    }

    fn entry<R: BufRead>(&mut self, entry: Entry, reader: &mut Reader<R>) -> Result<()> {
        let path = clean(&entry.path, self.options.limits.depth)?;
        if path.is_empty() {
            return self.root_entry(entry);
        }
        let (parent, name) = split(&path);
        match parent.split(|byte| *byte == b'/').find(|component| component.starts_with(b".wh.")) {
            None => {}
            Some(_) if parent == PLINKS && entry.kind != Kind::Directory => self.make_plinks()?,
            Some(component) if component.starts_with(b".wh..wh.") => return Ok(()),
            Some(_) => return Err(hostile(&entry.path, "a whiteout cannot hold anything")),
        }
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.whiteout(parent, hidden, &entry.path);
        }
        let place = self.place(parent, name)?;
        if self.applies() {
            self.notes.made.insert(&place.path);
        }
        self.parents.covered(&place.path);
        match entry.kind {
            Kind::File => self.file(&place, entry, reader),
            Kind::HardLink => self.hard_link(&place, &entry),
            Kind::Symlink => self.symlink(&place, &entry.link, Meta::of(&entry)),
            Kind::Directory => self.directory(place, Meta::of(&entry)),
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => self.node(&place, &entry),
        }
    }

    /// The entry `./`: metadata of the tree itself.
    fn root_entry(&mut self, entry: Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            return Err(hostile(&entry.path, "the root of the tree can only be a directory"));
        }
        self.result.sets_root = true;
        let meta = Meta::of(&entry);
        self.waiting.insert(Vec::new(), Pending { meta, mode_is_set: false, existed: true });
        Ok(())
    }

    /// Counts something that is made and has no entry: a few bytes of a path may be hundreds of directories.
    fn count_unnamed(&mut self) -> Result<()> {
        self.unnamed += 1;
        self.check_entries()
    }

    fn check_entries(&self) -> Result<()> {
        let most = self.options.limits.entries;
        if self.result.entries.saturating_add(self.unnamed) > most {
            return Err(exceeded("entries", most));
        }
        Ok(())
    }

    /// Counts bytes that a file takes up.
    fn count_bytes(&mut self, size: u64) -> Result<()> {
        self.result.bytes = self.result.bytes.saturating_add(size);
        if self.result.bytes > self.options.limits.bytes {
            return Err(exceeded("bytes", self.options.limits.bytes));
        }
        Ok(())
    }

    fn skip(&mut self, mut what: Skipped) {
        if self.skipped.len() >= MOST_SKIPPED && !self.skipped.contains_key(&what) {
            what = Skipped::Xattr("others".to_owned());
        }
        *self.skipped.entry(what).or_default() += 1;
    }
}

/// The error of whoever gives up for another layer's sake.
pub(super) fn given_up() -> Error {
    Error::new(ErrorKind::Conflict, STEP).because("another layer of the image failed")
}

fn hostile(path: &[u8], why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Hostile, STEP).path(super::view::as_path(path)).because(why)
}

fn failed<'a>(syscall: &'static str, path: &'a [u8]) -> impl FnOnce(std::io::Error) -> Error + 'a {
    move |error| Error::io(STEP, syscall, error).path(super::view::as_path(path))
}

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod race_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod truth_tests;
