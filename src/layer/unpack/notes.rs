//! What is remembered of a layer until its end.
//!
//! Of most entries nothing is: a layer of a million files takes as little memory as one of ten. What has to be
//! remembered is counted, and [`Limits::memory`](crate::layer::Limits::memory) bounds it, so that no archive can make
//! this process grow.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::Owner;
use super::place::split;
use crate::layer::limits::exceeded;
use crate::{Error, ErrorKind, Result};

/// What an ordered set or map spends on a path beside the path itself, its nodes being hardly more than half full.
const SLOT: usize = 64;

/// What a path takes up that is kept by itself, as malloc(3) has it.
pub(super) fn allocated(path: &[u8]) -> usize {
    (path.len() + size_of::<usize>()).next_multiple_of(16).max(32)
}

/// What a path in a set takes up.
fn cost(path: &[u8]) -> usize {
    allocated(path) + SLOT
}

/// What a path in a hash table takes up that a number stands beside: a table may be half empty, and half as large again
/// while it grows.
fn cost_in_table(path: &[u8]) -> usize {
    allocated(path) + 2 * size_of::<(Vec<u8>, LastSaid<'_>)>()
}

/// Bytes of owners that are handed over at a time.
const BATCH: usize = 1 << 20;

/// Whether `path` lies below `dir`.
fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// A set of paths that knows what it takes up, and from which a whole subtree goes as fast as it is large.
#[derive(Debug, Default)]
pub(super) struct Paths {
    set: BTreeSet<Vec<u8>>,
    bytes: usize,
}

impl Paths {
    pub(super) fn insert(&mut self, path: &[u8]) {
        if self.set.insert(path.to_vec()) {
            self.bytes += cost(path);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    pub(super) fn contains(&self, path: &[u8]) -> bool {
        self.set.contains(path)
    }

    pub(super) fn remove(&mut self, path: &[u8]) {
        if self.set.remove(path) {
            self.bytes -= cost(path);
        }
    }

    /// Whether it has a path below `dir`.
    pub(super) fn has_below(&self, dir: &[u8]) -> bool {
        self.first_below(dir).is_some()
    }

    pub(super) fn first_below(&self, dir: &[u8]) -> Option<&Vec<u8>> {
        let start = [dir, b"/"].concat();
        self.set.range::<[u8], _>((Bound::Included(&start[..]), Bound::Unbounded)).next().filter(|p| is_below(p, dir))
    }

    /// Forgets everything below `dir`.
    pub(super) fn remove_below(&mut self, dir: &[u8]) {
        while let Some(path) = self.first_below(dir).cloned() {
            self.remove(&path);
        }
    }
}

/// Everything that is remembered.
#[derive(Debug)]
pub(super) struct Notes {
    limit: usize,
    /// Directories made opaque.
    pub(super) opaque: Paths,
    /// Everything this layer has made; filled for [`WhiteoutFormat::Apply`](super::WhiteoutFormat::Apply) only, where
    /// it must survive whiteouts.
    pub(super) made: Paths,
    /// Files of lower layers that stand here only because this layer has hard links to them.
    pub(super) brought_up: Paths,
    pub(super) owners: Owners,
}

impl Notes {
    pub(super) fn new(limit: usize, share: Option<Share>) -> Notes {
        Notes {
            limit,
            opaque: Paths::default(),
            made: Paths::default(),
            brought_up: Paths::default(),
            owners: Owners { limit, share, ..Owners::default() },
        }
    }

    /// Forgets what stood at `path` and below it. That this layer has made something at `path` itself stays true.
    pub(super) fn forget(&mut self, path: &[u8]) {
        self.opaque.remove(path);
        self.opaque.remove_below(path);
        self.made.remove_below(path);
        self.brought_up.remove(path);
        self.brought_up.remove_below(path);
        self.owners.forget(path);
    }

    /// Fails where more is remembered than may be, by this layer or by all that are unpacked beside it.
    pub(super) fn check(&mut self, waiting: usize) -> Result<()> {
        let bytes = self.opaque.bytes + self.made.bytes + self.brought_up.bytes + self.owners.bytes() + waiting;
        if bytes > self.limit || !self.owners.share.as_mut().is_none_or(|share| share.fits(bytes, self.limit)) {
            return Err(exceeded("memory", self.limit));
        }
        Ok(())
    }
}

/// What [`Reown`](super::Reown) has to do once the layer is verified: a journal, written tightly, because in some
/// layers every file is in it.
///
/// A record is how many bytes its path shares with that of the record before, the other bytes of the path, the owner,
/// the mode, and the attributes. Or, for a hard link, in the place of all that: what it is a link to.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    journal: Vec<u8>,
    last: Vec<u8>,
    records: u64,
    /// How many of the records are hard links.
    links: u64,
    /// Paths of which everything before a record's number is void, because something else stands there now.
    void: HashMap<Vec<u8>, u64>,
    void_bytes: usize,
    /// What all this, and what acting on it takes, may take up.
    limit: usize,
    /// Of all that is remembered.
    share: Option<Share>,
}

/// A part of what layers that are unpacked at the same time may remember together; given back with this value.
#[derive(Debug)]
pub(crate) struct Share {
    all: Arc<AtomicUsize>,
    own: usize,
    crowded: Arc<AtomicBool>,
}

impl Share {
    /// Of `all`; `crowded` is set where it did not fit beside the others, and may fit alone.
    pub(crate) fn new(all: Arc<AtomicUsize>, crowded: Arc<AtomicBool>) -> Share {
        Share { all, own: 0, crowded }
    }

    /// Notes that this layer remembers so many bytes; whether all together fit into the limit.
    fn fits(&mut self, bytes: usize, limit: usize) -> bool {
        // Small changes are not worth a look at memory that other threads write to.
        if bytes.abs_diff(self.own) < 16 << 10 {
            return true;
        }
        let added = bytes.wrapping_sub(self.own);
        let all = self.all.fetch_add(added, Ordering::Relaxed).wrapping_add(added);
        self.own = bytes;
        if all > limit {
            self.crowded.store(true, Ordering::Relaxed);
        }
        all <= limit
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.all.fetch_sub(self.own, Ordering::Relaxed);
    }
}

impl Owners {
    pub(crate) fn is_empty(&self) -> bool {
        self.records == 0
    }

    fn bytes(&self) -> usize {
        self.journal.len() + self.void_bytes
    }

    pub(super) fn push(&mut self, owner: &Owner) {
        self.begin(&owner.path);
        let journal = &mut self.journal;
        put(journal, u64::from(owner.uid));
        put(journal, u64::from(owner.gid));
        put(journal, owner.mode.map_or(0, |mode| u64::from(mode) + 1));
        put(journal, owner.xattrs.len() as u64);
        for (name, value) in &owner.xattrs {
            put_bytes(journal, name);
            put_bytes(journal, value);
        }
    }

    /// `path` is from now on another name of what is called `target`. It keeps the owner that was noted under that
    /// name when something else gets the name.
    pub(super) fn link(&mut self, path: &[u8], target: &[u8]) {
        if self.records == 0 {
            return;
        }
        let since = self.void_before(target);
        self.begin(path);
        let shared = shared(path, target);
        let journal = &mut self.journal;
        put(journal, LINK);
        put(journal, shared as u64);
        put_bytes(journal, &target[shared..]);
        put(journal, since);
        self.links += 1;
    }

    /// Begins a record about `path`.
    fn begin(&mut self, path: &[u8]) {
        let shared = shared(&self.last, path);
        put(&mut self.journal, shared as u64);
        put_bytes(&mut self.journal, &path[shared..]);
        self.last.truncate(shared);
        self.last.extend_from_slice(&path[shared..]);
        self.records += 1;
    }

    /// What has been said about `path` and everything below it is void.
    pub(super) fn forget(&mut self, path: &[u8]) {
        if self.records > 0 && self.void.insert(path.to_vec(), self.records).is_none() {
            self.void_bytes += cost_in_table(path);
        }
    }

    /// The number before which every record about `path` is void.
    fn void_before(&self, mut path: &[u8]) -> u64 {
        let mut number = 0;
        if self.void.is_empty() {
            return number;
        }
        loop {
            number = number.max(self.void.get(path).copied().unwrap_or(0));
            if path.is_empty() {
                return number;
            }
            path = split(path).0;
        }
    }

    /// Hands everything to `act`, some at a time and in order.
    pub(crate) fn each_batch(&self, mut act: impl FnMut(&[Owner]) -> Result<()>) -> Result<()> {
        let defect = || Error::new(ErrorKind::Io, super::STEP).because("a defect in this crate: the journal of owners");
        let mut gone = self.gone()?.ok_or_else(defect)?;
        let mut journal = Take(&self.journal);
        let mut path = Vec::new();
        let mut batch = Vec::new();
        let mut bytes = 0;
        for number in 0..self.records {
            journal.path(&mut path).ok_or_else(defect)?;
            // What is said about the owner, where it is to be acted on under this name.
            let mut said = journal.0;
            let mut acts = true;
            match journal.said(&path).ok_or_else(defect)? {
                Said::Owner(..) => {}
                Said::Link { target, since } => match gone.get(&target).copied().flatten() {
                    Some((told, of_target)) if told >= since => {
                        said = of_target;
                        // While that name stands, what is said under it does for both.
                        acts = told < self.void_before(&target);
                    }
                    _ => continue,
                },
            }
            if let Some(last) = gone.get_mut(&path) {
                *last = Some((number, said));
            }
            if !acts || number < self.void_before(&path) {
                continue;
            }
            let Some(Said::Owner(owner, size)) = Take(said).said(&path) else { return Err(defect()) };
            batch.push(owner);
            bytes += size + std::mem::size_of::<Owner>();
            if bytes >= BATCH {
                act(&batch)?;
                batch.clear();
                bytes = 0;
            }
        }
        if batch.is_empty() { Ok(()) } else { act(&batch) }
    }

    /// What there are hard links to that has lost its name since; `None` where the journal cannot be read.
    ///
    /// The journal says shortly what is long in here, so this is counted, too.
    fn gone(&self) -> Result<Option<HashMap<Vec<u8>, LastSaid<'_>>>> {
        let mut gone = HashMap::new();
        if self.links == 0 || self.void.is_empty() {
            return Ok(Some(gone));
        }
        let mut bytes = self.bytes();
        let mut journal = Take(&self.journal);
        let mut path = Vec::new();
        for _ in 0..self.records {
            let said = journal.path(&mut path).and_then(|()| journal.said(&path));
            let Some(said) = said else { return Ok(None) };
            if let Said::Link { target, since } = said
                && self.void_before(&target) > since
            {
                let size = cost_in_table(&target);
                if gone.insert(target, None).is_none() {
                    bytes += size;
                }
                if bytes > self.limit {
                    return Err(exceeded("memory", self.limit));
                }
            }
        }
        Ok(Some(gone))
    }
}

/// A record's number, and the journal from where it says whose the file is.
type LastSaid<'a> = Option<(u64, &'a [u8])>;

/// What a record says about its path.
enum Said {
    /// Also about its size in memory.
    Owner(Owner, usize),
    Link {
        target: Vec<u8>,
        /// Records about the target before this number were void when the link was made.
        since: u64,
    },
}

/// In the place of a uid: this is a hard link.
const LINK: u64 = 1 << 32;

/// How many bytes two paths have in common at their start.
fn shared(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

/// Seven bits a byte, the lowest first.
fn put(out: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        out.push(value as u8 & 0x7f | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads what `put` has written.
struct Take<'a>(&'a [u8]);

impl<'a> Take<'a> {
    fn number(&mut self) -> Option<u64> {
        let end = self.0.iter().position(|byte| byte & 0x80 == 0)?;
        let (digits, rest) = self.0.split_at(end + 1);
        self.0 = rest;
        Some(digits.iter().rev().fold(0, |value, digit| value << 7 | u64::from(digit & 0x7f)))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    /// The next record's path; `path` is that of the record before.
    fn path(&mut self, path: &mut Vec<u8>) -> Option<()> {
        path.truncate(usize::try_from(self.number()?).ok()?);
        path.extend_from_slice(self.bytes()?);
        Some(())
    }

    /// What the record says about `path`.
    fn said(&mut self, path: &[u8]) -> Option<Said> {
        let uid = self.number()?;
        if uid == LINK {
            let mut target = path.get(..usize::try_from(self.number()?).ok()?)?.to_vec();
            target.extend_from_slice(self.bytes()?);
            return Some(Said::Link { target, since: self.number()? });
        }
        let uid = u32::try_from(uid).ok()?;
        let gid = u32::try_from(self.number()?).ok()?;
        let mode = self.number()?.checked_sub(1).and_then(|mode| u32::try_from(mode).ok());
        let mut xattrs = Vec::new();
        let mut size = path.len();
        for _ in 0..self.number()? {
            let (name, value) = (self.bytes()?.to_vec(), self.bytes()?.to_vec());
            size += name.len() + value.len();
            xattrs.push((name, value));
        }
        Some(Said::Owner(Owner { path: path.to_vec(), uid, gid, mode, xattrs }, size))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn owner(path: &str, uid: u32) -> Owner {
        Owner { path: path.into(), uid, gid: 70_000, mode: Some(0o4755), xattrs: Vec::new() }
    }

    fn all(owners: &Owners) -> Vec<Owner> {
        let mut all = Vec::new();
        owners
            .each_batch(|batch| {
                all.extend_from_slice(batch);
                Ok(())
            })
            .unwrap();
        all
    }

    #[test]
    fn owners_come_back_as_they_were_written() {
        let mut owners = Notes::new(1 << 20, None).owners;
        assert!(owners.is_empty() && all(&owners).is_empty());
        let mut written = vec![owner("a/b/c", 1), owner("a/b/d", u32::MAX - 1), owner("", 3), owner("a/b/d", 0)];
        written[1].mode = None;
        written[2].xattrs = vec![(b"x".to_vec(), vec![0; 300]), (b"y".to_vec(), vec![])];
        written.iter().for_each(|owner| owners.push(owner));
        assert_eq!(all(&owners), written);
    }

    #[test]
    fn what_is_replaced_is_void_up_to_there() {
        let mut owners = Notes::new(1 << 20, None).owners;
        for path in ["d", "d/x", "d/x/y", "da", "e"] {
            owners.push(&owner(path, 1));
        }
        owners.forget(b"d");
        owners.push(&owner("d/x", 2));
        let left: Vec<_> = all(&owners).into_iter().map(|it| (String::from_utf8(it.path).unwrap(), it.uid)).collect();
        assert_eq!(left, [("da".to_owned(), 1), ("e".to_owned(), 1), ("d/x".to_owned(), 2)]);
    }

    #[test]
    fn links_keep_the_owner_of_a_name_that_goes() {
        let names = |owners: &Owners| -> Vec<_> {
            all(owners).into_iter().map(|it| (String::from_utf8(it.path).unwrap(), it.uid)).collect()
        };
        let is = |owners: &Owners, expected: &[(&str, u32)]| {
            let expected: Vec<_> = expected.iter().map(|(path, uid)| ((*path).to_owned(), *uid)).collect();
            assert_eq!(names(owners), expected);
        };
        let mut owners = Notes::new(1 << 20, None).owners;
        owners.link(b"nobody", b"knows");
        assert!(owners.is_empty());
        owners.push(&owner("d/a", 1));
        owners.link(b"d/b", b"d/a");
        owners.link(b"c", b"d/b");
        is(&owners, &[("d/a", 1)]);
        owners.forget(b"d/a");
        is(&owners, &[("d/b", 1)]);
        // The name is used again: for root's file, of which nothing is said, and for another's.
        owners.link(b"roots", b"d/a");
        is(&owners, &[("d/b", 1)]);
        owners.push(&owner("d/a", 2));
        owners.link(b"e", b"d/a");
        is(&owners, &[("d/b", 1), ("d/a", 2)]);
        owners.forget(b"d");
        is(&owners, &[("c", 1), ("e", 2)]);
        owners.forget(b"c");
        owners.forget(b"e");
        is(&owners, &[]);
    }

    #[test]
    fn links_to_long_names_that_go_are_counted() {
        let mut notes = Notes::new(4 << 20, None);
        let deep = vec!["n".repeat(255); 15].join("/");
        for number in 0..2000 {
            notes.owners.push(&owner(&format!("{deep}/{number}"), 5));
            notes.owners.link(format!("{deep}/h{number}").as_bytes(), format!("{deep}/{number}").as_bytes());
        }
        notes.check(0).unwrap();
        assert_eq!(all(&notes.owners).len(), 2000);
        notes.forget(deep.as_bytes());
        let error = notes.owners.each_batch(|_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("`memory`"), "{error}");
    }

    #[test]
    fn a_million_owners_are_small_and_come_in_batches() {
        let mut notes = Notes::new(16 << 20, None);
        for number in 0..1_000_000 {
            notes.owners.push(&owner(&format!("srv/app/node_modules/package{}/file{number}.js", number / 100), 1000));
        }
        notes.check(0).unwrap();
        let (mut count, mut batches) = (0, 0);
        notes
            .owners
            .each_batch(|batch| {
                (count, batches) = (count + batch.len(), batches + 1);
                Ok(())
            })
            .unwrap();
        assert_eq!(count, 1_000_000);
        assert!(batches > 50, "{batches}");
    }

    #[test]
    fn layers_share_what_they_remember() {
        let (all, crowded) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let notes = || Notes::new(1 << 20, Some(Share::new(all.clone(), crowded.clone())));
        let (mut one, mut other) = (notes(), notes());
        one.check(600_000).unwrap();
        other.check(300_000).unwrap();
        other.check(400_000).unwrap();
        assert!(!crowded.load(Ordering::Relaxed));
        other.check(500_000).unwrap_err();
        assert!(crowded.load(Ordering::Relaxed));
        drop(one);
        other.check(1_000_000).unwrap();
        drop(other);
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn subtrees_go_and_neighbours_stay() {
        let mut paths = Paths::default();
        for path in ["a", "a/b", "a/b/c", "a.b", "ab", "b"] {
            paths.insert(path.as_bytes());
        }
        assert!(paths.has_below(b"a") && !paths.has_below(b"ab") && !paths.is_empty() && Paths::default().is_empty());
        paths.remove_below(b"a");
        let left: Vec<_> = paths.set.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
        assert_eq!(left, ["a", "a.b", "ab", "b"]);
        assert_eq!(paths.bytes, 4 * cost(b"a.b"));
        let mut notes = Notes::new(200, None);
        notes.check(0).unwrap();
        notes.opaque.insert(&[b'x'; 200]);
        assert!(notes.check(0).unwrap_err().to_string().contains("memory"));
    }
}
