//! Directories that wait for their metadata, since whatever is made in them would change their times.
//!
//! They wait for the end of the layer, unless they become too many to remember; then those that are plain get their
//! metadata at once. Where an entry comes for one of these later, its times are noted again first.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::os::fd::AsFd;

use super::metadata::Meta;
use super::notes::{Owners, allocated};
use super::place::split;
use super::{Owner, Ownership, Unpacked, Unpacker, failed};
use crate::Result;
use crate::sys::fs::{Stat, Time, c_string, lutimensat, open_dir};

/// Bytes that waiting directories may take up.
const MOST: usize = if cfg!(test) { 20_000 } else { 4 << 20 };

/// A directory that waits.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) meta: Meta,
    /// Whether it was made with its final mode.
    pub(super) mode_is_set: bool,
    /// Whether it was there before, with an owner and attributes that are not those of a new directory.
    pub(super) existed: bool,
}

impl Pending {
    /// Of a directory whose owner and attributes stay.
    pub(super) fn unchanged(stat: &Stat) -> Pending {
        let mtime = Time { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 };
        // Owner `u32::MAX` means "leave it" to the kernel, and no tar entry can say it.
        let meta = Meta { mode: stat.st_mode & 0o7777, uid: u32::MAX, gid: u32::MAX, mtime, xattrs: Vec::new() };
        Pending { meta, mode_is_set: false, existed: true }
    }

    fn is_unchanged(&self) -> bool {
        self.meta.uid == u32::MAX
    }

    /// Whether files can be made in it as before when it has its metadata: nothing of it is handed down to them (a
    /// group, a default ACL), and its owner may still open it and go through it. That he may not write to it is no
    /// hindrance: where something comes for it, it is made writable meanwhile.
    fn is_plain(&self) -> bool {
        self.meta.xattrs.is_empty() && self.meta.mode & 0o2500 == 0o500
    }

    fn size(&self, path: &[u8]) -> usize {
        let xattrs = self.meta.xattrs.iter();
        let xattrs = xattrs.map(|(name, value)| allocated(name) + allocated(value) + 2 * size_of::<Vec<u8>>());
        // A map's nodes are hardly more than half full.
        allocated(path) + 2 * (size_of::<Vec<u8>>() + size_of::<Pending>()) + xattrs.sum::<usize>()
    }
}

/// All that wait, by path without symlinks.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    by_path: BTreeMap<Vec<u8>, Pending>,
    bytes: usize,
    /// How many bytes are too many; grows with those that have to stay.
    most: usize,
    was_full: bool,
}

impl Waiting {
    pub(super) fn new() -> Waiting {
        Waiting { most: MOST, ..Waiting::default() }
    }

    pub(super) fn insert(&mut self, path: Vec<u8>, pending: Pending) {
        self.bytes += pending.size(&path);
        if let Some(before) = self.by_path.get(&path) {
            self.bytes -= before.size(&path);
        }
        self.by_path.insert(path, pending);
    }

    pub(super) fn get(&self, path: &[u8]) -> Option<&Pending> {
        self.by_path.get(path)
    }

    pub(super) fn contains(&self, path: &[u8]) -> bool {
        self.by_path.contains_key(path)
    }

    /// Whether some directories have got their metadata before the end.
    pub(super) fn was_full(&self) -> bool {
        self.was_full
    }

    /// Forgets the directory at `path` and all below it; they are gone.
    pub(super) fn forget(&mut self, path: &[u8]) {
        let start = [path, b"/"].concat();
        let below = (Bound::Included(&start[..]), Bound::Unbounded);
        let mut gone: Vec<Vec<u8>> = vec![path.to_vec()];
        gone.extend(
            self.by_path.range::<[u8], _>(below).map(|(path, _)| path).take_while(|it| it.starts_with(&start)).cloned(),
        );
        for path in gone {
            if let Some(pending) = self.by_path.remove(&path) {
                self.bytes -= pending.size(&path);
            }
        }
    }

    /// Takes out those that need not wait, where there are too many; the deepest come last.
    fn take_plain(&mut self) -> BTreeMap<Vec<u8>, Pending> {
        if self.bytes <= self.most {
            return BTreeMap::new();
        }
        // Files may come for the root at any time, and it is one.
        let goes = |path: &Vec<u8>, pending: &mut Pending| !path.is_empty() && pending.is_plain();
        let plain: BTreeMap<_, _> = self.by_path.extract_if(.., goes).collect();
        self.bytes -= plain.iter().map(|(path, pending)| pending.size(path)).sum::<usize>();
        // Where many have to stay, this would else go through all of them again and again.
        self.most = MOST.max(2 * self.bytes);
        self.was_full = true;
        plain
    }
}

impl Unpacker<'_> {
    /// Keeps memory within its bounds. Between entries only: directories at hand may be complete afterwards.
    pub(super) fn stay_small(&mut self) -> Result<()> {
        let plain = self.waiting.take_plain();
        if !plain.is_empty() {
            self.finishing = true;
            for (path, pending) in plain.into_iter().rev() {
                self.finish_dir(&path, pending)?;
            }
            self.finishing = false;
            // Whoever opens one of them again has to note its times first.
            self.parents.forget();
        }
        self.remembered()
    }

    /// Holds what is remembered against its limit.
    pub(super) fn remembered(&mut self) -> Result<()> {
        self.notes.check(self.waiting.bytes)
    }

    /// Directories last, the deepest first. Returns what another identity has to do.
    pub(super) fn finish(mut self) -> Result<(Unpacked, Owners)> {
        self.remove_plinks()?;
        self.finishing = true;
        for (path, pending) in std::mem::take(&mut self.waiting.by_path).into_iter().rev() {
            self.finish_dir(&path, pending)?;
        }
        self.result.skipped = self.skipped.into_iter().collect();
        Ok((self.result, self.notes.owners))
    }

    /// Notes that a directory, which another identity may be about to get on an earlier entry's word, is root's.
    pub(super) fn take_back(&mut self, path: &[u8], meta: &Meta) {
        if self.waiting.was_full() && matches!(self.options.ownership, Ownership::Mapped(_)) {
            let mode = Some(meta.mode);
            self.notes.owners.push(&Owner { path: path.to_vec(), uid: 0, gid: 0, mode, xattrs: Vec::new() });
        }
    }

    fn finish_dir(&mut self, path: &[u8], pending: Pending) -> Result<()> {
        let meta = &pending.meta;
        let (parent, name) = split(path);
        if path.is_empty() {
            let dir = open_dir(self.root.dir(), c".").map_err(failed("openat", path))?;
            return self.finish_open(dir.as_fd(), path, meta, false, true);
        }
        // These are paths without symlinks, so this is the fast way, and what is replaced no longer waits.
        let parent = self.parent(parent)?;
        let name = c_string(name).map_err(failed("openat", path))?;
        let full = matches!(self.options.ownership, Ownership::Full);
        let plain = (meta.uid, meta.gid) == if full { self.me } else { (0, 0) };
        if pending.mode_is_set && plain && meta.xattrs.is_empty() && !pending.existed {
            return lutimensat(parent.dir(), &name, meta.mtime).map_err(failed("utimensat", path));
        }
        let dir = open_dir(parent.dir(), &name).map_err(failed("openat", path))?;
        // What was made in a directory that was there may have lists of that one.
        if (pending.existed || self.applies()) && !pending.is_unchanged() {
            self.drop_old_xattrs(dir.as_fd(), path, meta)?;
        }
        self.finish_open(dir.as_fd(), path, meta, pending.mode_is_set, pending.existed)
    }
}
