//! What of a tree goes into the layer: found first, packed then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::access::{Tree, join, parent_and_name};
use super::attributes::{Fate, fate};
use super::{PackOptions, PackSource};
use crate::layer::owner_record::RECORD;
use crate::layer::view::{self, Found};
use crate::layer::{View, WhiteoutFormat};
use crate::sys::fs::{self, Stat};
use crate::sys::xattr;
use crate::{Error, ErrorKind, Result};

/// How something differs from the layers below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It was not there.
    Added,
    /// It was there, and is another or holds other things.
    Modified,
    /// It is gone.
    Removed,
}

/// Something that a container has changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Where, as the container sees it: absolute.
    pub path: PathBuf,
    /// How.
    pub kind: ChangeKind,
}

/// What becomes of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Item {
    kind: ChangeKind,
    opaque: bool,
}

impl Item {
    fn new(kind: ChangeKind) -> Item {
        Item { kind, opaque: false }
    }

    pub(super) fn exists(self) -> bool {
        self.kind != ChangeKind::Removed
    }

    /// Whether it hides what the layers below have in it.
    pub(super) fn is_opaque(self) -> bool {
        self.opaque
    }
}

/// The paths that go into a layer, parents before what is in them.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// By path with 0 in place of `/`, so that the map's order is that of a walk.
    items: BTreeMap<Vec<u8>, Item>,
}

impl Plan {
    fn add(&mut self, path: &[u8], item: Item) {
        self.items.insert(swap(path, b'/', 0), item);
    }

    pub(super) fn items(&self) -> impl Iterator<Item = (Vec<u8>, Item)> {
        self.items.iter().map(|(key, item)| (swap(key, 0, b'/'), *item))
    }

    /// The names that opaque directories hide. A layer says so with one entry for each directory, so that only those who
    /// ask what has changed need them.
    fn hidden(&self, tree: &mut Tree, below: &View) -> Result<Vec<Vec<u8>>> {
        let mut hidden = Vec::new();
        for (path, _) in self.items().filter(|(_, item)| item.opaque) {
            let Some(known) = found_below(below, &path)?.filter(Found::is_dir) else { continue };
            let present = tree.names(&path)?;
            let shown = view::shown(&known).map_err(below_failed("readdir", &path))?;
            let gone = shown.into_iter().filter(|name| present.binary_search(name).is_err());
            hidden.extend(gone.map(|name| join(&path, name.to_bytes())));
        }
        Ok(hidden)
    }

    /// Sees to it that every entry's parents stand before it.
    fn add_parents(&mut self) {
        let mut missing = BTreeSet::new();
        for key in self.items.keys() {
            let mut rest = key.as_slice();
            while let Some(at) = rest.iter().rposition(|byte| *byte == 0) {
                rest = &rest[..at];
                if self.items.contains_key(rest) || !missing.insert(rest.to_vec()) {
                    break;
                }
            }
        }
        self.items.extend(missing.into_iter().map(|key| (key, Item::new(ChangeKind::Modified))));
    }

    /// Takes out what was made for mounts, and directories that then hold nothing.
    fn drop_mount_points(&mut self, tree: &mut Tree, options: &PackOptions, below: &View) -> Result<()> {
        for path in &options.mount_points {
            let mut path = path.as_slice();
            let mut is_mount_point = true;
            while !path.is_empty() {
                let key = swap(path, b'/', 0);
                let Some(item) = self.items.get(&key) else { break };
                let first = [key.as_slice(), &[0]].concat();
                let holds = self.items.range(first.clone()..).next().is_some_and(|(key, _)| key.starts_with(&first));
                if !item.exists() || item.opaque || holds {
                    break;
                }
                let stat = tree.stat(path)?;
                let goes = match found_below(below, path)? {
                    // The directory that the mount point was made in: only its time has changed.
                    Some(found) => !is_mount_point && same_metadata(tree, path, &stat, &found)?,
                    None => {
                        stat.st_mode & libc::S_IFMT == libc::S_IFDIR
                            || stat.st_mode & libc::S_IFMT == libc::S_IFREG && stat.st_size == 0
                    }
                };
                if !goes {
                    break;
                }
                self.items.remove(&key);
                path = parent_and_name(path).0;
                is_mount_point = false;
            }
        }
        Ok(())
    }
}

fn swap(path: &[u8], from: u8, to: u8) -> Vec<u8> {
    path.iter().map(|byte| if *byte == from { to } else { *byte }).collect()
}

/// What to pack of `source`; `None` stands for everything.
pub(super) fn of(source: PackSource<'_>, options: &PackOptions, tree: &mut Tree) -> Result<Option<Plan>> {
    let (mut plan, below) = match source {
        PackSource::Directory(_) => return Ok(None),
        PackSource::Upper { below, .. } => (upper(tree, below)?, below),
        PackSource::Tree { below, .. } => (compare(tree, below)?, below),
    };
    plan.drop_mount_points(tree, options, below)?;
    let stat = tree.stat(b"")?;
    if let Some(found) = below.lookup(b"")?
        && !same_metadata(tree, b"", &stat, &found)?
    {
        plan.add(b"", Item::new(ChangeKind::Modified));
    }
    Ok(Some(plan))
}

/// What has changed, sorted.
pub(super) fn changes(source: PackSource<'_>, options: &PackOptions, tree: &mut Tree) -> Result<Vec<Change>> {
    let Some(plan) = of(source, options, tree)? else { return Ok(Vec::new()) };
    let hidden = match source {
        PackSource::Upper { below, .. } => plan.hidden(tree, below)?,
        _ => Vec::new(),
    };
    let change = |path: Vec<u8>, kind| {
        let path = PathBuf::from(std::ffi::OsString::from_vec([b"/", path.as_slice()].concat()));
        Change { path, kind }
    };
    let shown = plan.items().map(|(path, item)| change(path, item.kind));
    let mut changes: Vec<Change> =
        shown.chain(hidden.into_iter().map(|path| change(path, ChangeKind::Removed))).collect();
    changes.sort();
    Ok(changes)
}

/// What the layers below have at `path`. Where this process may not look, nothing is known of it, and it counts as not
/// being there.
fn found_below(below: &View, path: &[u8]) -> Result<Option<Found>> {
    match below.lookup(path) {
        Err(error) if error.kind() == ErrorKind::Denied => Ok(None),
        other => other,
    }
}

/// Everything in an upper directory.
fn upper(tree: &mut Tree, below: &View) -> Result<Plan> {
    let mut plan = Plan::default();
    let mut open = vec![Vec::new()];
    while let Some(dir) = open.pop() {
        let names = tree.names(&dir)?;
        let found = found_below(below, &dir)?.filter(Found::is_dir);
        for name in names {
            let path = join(&dir, name.to_bytes());
            let stat = tree.stat(&path)?;
            if is_whiteout(tree, &path, &stat, below.whiteouts())? {
                plan.add(&path, Item::new(ChangeKind::Removed));
                continue;
            }
            let known = match &found {
                Some(found) => lookup(found, &name, &path)?,
                None => None,
            };
            let mut item = Item::new(if known.is_some() { ChangeKind::Modified } else { ChangeKind::Added });
            if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
                let opened = tree.open_as(&path, libc::O_RDONLY | libc::O_DIRECTORY, &stat)?;
                item.opaque = match below.whiteouts().opaque_mark() {
                    Some(mark) => marked(tree, &opened, &path, mark)?.as_deref() == Some(b"y"),
                    None => false,
                };
                open.push(path.clone());
            }
            plan.add(&path, item);
        }
    }
    Ok(plan)
}

/// A character device 0/0 or, from Linux 6.7 on, an empty file with an attribute.
fn is_whiteout(tree: &mut Tree, path: &[u8], stat: &Stat, whiteouts: WhiteoutFormat) -> Result<bool> {
    if view::is_whiteout(stat) {
        return Ok(true);
    }
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG || stat.st_size != 0 {
        return Ok(false);
    }
    let mark = match whiteouts {
        WhiteoutFormat::Overlay => c"trusted.overlay.whiteout",
        WhiteoutFormat::OverlayUser => c"user.overlay.whiteout",
        WhiteoutFormat::Apply => return Ok(false),
    };
    let opened = tree.open_as(path, libc::O_RDONLY | libc::O_NONBLOCK, stat)?;
    Ok(marked(tree, &opened, path, mark)?.is_some())
}

/// The value of a mark that overlay may have left. An opaque directory says `y`; one that merely holds whiteouts in form
/// of attributes says `x`.
///
/// Only marks of the mount's own kind are overlay's. Through a mount with full privileges (`trusted.`) anybody may set
/// `user.overlay.*` on a file of his, and would hide root's files in the next image if we took that for a mark. The
/// mount's own kind cannot be forged through it: overlayfs refuses to set these attributes (`EOPNOTSUPP`) or, from Linux
/// 6.7 on, stores them with one more `overlay.` in the name. Hence names are compared whole.
fn marked(tree: &Tree, fd: &OwnedFd, path: &[u8], mark: &CStr) -> Result<Option<Vec<u8>>> {
    let names = xattr::list(fd.as_fd()).map_err(tree.failed("flistxattr", path))?;
    // Asking for one that is not there is what most calls would do, and would need help where we may not read.
    if !names.iter().any(|name| name.as_c_str() == mark) {
        return Ok(None);
    }
    tree.attribute(fd.as_fd(), mark, false).map_err(tree.failed("fgetxattr", path))
}

/// Looks `name` up in a directory of the layers below.
fn lookup(dir: &Found, name: &CStr, path: &[u8]) -> Result<Option<Found>> {
    match view::child(dir, name) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => Ok(None),
        other => other.map_err(below_failed("openat", path)),
    }
}

fn below_failed<'a>(syscall: &'static str, path: &'a [u8]) -> impl Fn(io::Error) -> Error + 'a {
    move |error| Error::io("look into the layers", syscall, error).path(view::as_path(path))
}

type Inode = (libc::dev_t, libc::ino_t);

/// A name of a file that has several, and which file has that name below.
type Name = (Vec<u8>, Option<Inode>);

/// Attributes, by name.
type Attributes = Vec<(CString, Vec<u8>)>;

/// What in a whole tree differs from the layers below.
fn compare(tree: &mut Tree, below: &View) -> Result<Plan> {
    let mut plan = Plan::default();
    // Files with several names, by name: which file they are here and below.
    let mut links: HashMap<Inode, Vec<Name>> = HashMap::new();
    // The other way round: names by the file that they have below, and which file has them here.
    let mut links_below: HashMap<Inode, Vec<(Vec<u8>, Inode)>> = HashMap::new();
    let mut open = vec![Vec::new()];
    while let Some(dir) = open.pop() {
        let names = tree.names(&dir)?;
        let found = below.lookup(&dir)?.filter(Found::is_dir);
        let known: Vec<CString> = match &found {
            Some(found) => view::shown(found).map_err(below_failed("readdir", &dir))?,
            None => Vec::new(),
        };
        for name in known.iter().filter(|name| names.binary_search(name).is_err()) {
            let path = join(&dir, name.to_bytes());
            let gone = match &found {
                Some(found) => lookup(found, name, &path)?,
                None => None,
            };
            // Copies of trees leave sockets out, so that one that is missing was not removed.
            if gone.is_some_and(|gone| gone.file_type() != libc::S_IFSOCK) {
                plan.add(&path, Item::new(ChangeKind::Removed));
            }
        }
        for name in names {
            let path = join(&dir, name.to_bytes());
            let stat = tree.stat(&path)?;
            let known = match &found {
                Some(found) => lookup(found, &name, &path)?,
                None => None,
            };
            let is_dir = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
            if is_dir {
                open.push(path.clone());
            } else if stat.st_nlink > 1 {
                let inode_below = known.as_ref().map(|known| (known.stat.st_dev, known.stat.st_ino));
                links.entry((stat.st_dev, stat.st_ino)).or_default().push((path.clone(), inode_below));
            }
            if let Some(known) = known.as_ref().filter(|known| !known.is_dir() && known.stat.st_nlink > 1) {
                let names = links_below.entry((known.stat.st_dev, known.stat.st_ino)).or_default();
                names.push((path.clone(), (stat.st_dev, stat.st_ino)));
            }
            match known {
                None => plan.add(&path, Item::new(ChangeKind::Added)),
                Some(known) if !same(tree, &path, &stat, &known)? => {
                    plan.add(&path, Item::new(ChangeKind::Modified));
                }
                Some(_) => {}
            }
        }
    }
    for names in links.into_values() {
        // The same file under the same names, or a tar that names some of them would part it from the others.
        let below = names[0].1;
        let together = below.is_some() && names.iter().all(|(_, inode)| *inode == below);
        let all = below.and_then(|inode| links_below.get(&inode)).is_none_or(|all| all.len() == names.len());
        let touched = names.iter().any(|(path, _)| plan.items.contains_key(&swap(path, b'/', 0)));
        if touched || !together || !all {
            for (path, inode) in names {
                let kind = if inode.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
                plan.items.entry(swap(&path, b'/', 0)).or_insert(Item::new(kind));
            }
        }
    }
    for mut names in links_below.into_values() {
        // One file below, and several that are the same but for that: a tar that names none of them leaves them together.
        names.retain(|(path, _)| !plan.items.contains_key(&swap(path, b'/', 0)));
        if names.iter().any(|(_, inode)| *inode != names[0].1) {
            for (path, _) in names {
                plan.add(&path, Item::new(ChangeKind::Modified));
            }
        }
    }
    plan.add_parents();
    Ok(plan)
}

/// Whether `path` is what the layers below have, its content included.
fn same(tree: &mut Tree, path: &[u8], stat: &Stat, known: &Found) -> Result<bool> {
    let time = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec);
    if time(stat) != time(&known.stat) || !same_metadata(tree, path, stat, known)? {
        return Ok(false);
    }
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG if stat.st_size > 0 => {
            let here = tree.open_as(path, libc::O_RDONLY | libc::O_NONBLOCK, stat)?;
            let there = known.open().map_err(below_failed("openat", path))?;
            same_bytes(here, there).map_err(tree.failed("read", path))
        }
        libc::S_IFLNK => {
            let here = tree.open_as(path, libc::O_PATH, stat)?;
            let here = fs::readlinkat(here.as_fd(), c"").map_err(tree.failed("readlinkat", path))?;
            Ok(here == known.target().map_err(below_failed("readlinkat", path))?)
        }
        _ => Ok(true),
    }
}

/// Whether type, mode, owner, size, device number and attributes agree.
fn same_metadata(tree: &mut Tree, path: &[u8], stat: &Stat, known: &Found) -> Result<bool> {
    let of = |stat: &Stat| {
        let kind = stat.st_mode & libc::S_IFMT;
        let size = if matches!(kind, libc::S_IFREG | libc::S_IFLNK) { stat.st_size } else { 0 };
        let device = if matches!(kind, libc::S_IFCHR | libc::S_IFBLK) { stat.st_rdev } else { 0 };
        (stat.st_mode, stat.st_uid, stat.st_gid, size, device)
    };
    if of(stat) != of(&known.stat) {
        return Ok(false);
    }
    let handle = tree.open_as(path, libc::O_PATH, stat)?;
    let here = attributes(&handle).map_err(tree.failed("getxattr", path))?;
    let below = fs::open_handle(known.place.as_fd(), &known.name).and_then(|handle| attributes(&handle));
    match below {
        // What may not be read cannot be compared, and is packed rather than lost.
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => Ok(false),
        below => {
            let below = below.map_err(below_failed("getxattr", path))?;
            Ok(here.is_some() && here == below)
        }
    }
}

/// The attributes that belong to a file, sorted; `None` where some may not be read.
fn attributes(handle: &OwnedFd) -> io::Result<Option<Attributes>> {
    let mut found = Vec::new();
    for name in xattr::list_handle(handle.as_fd())? {
        if fate(name.to_bytes(), true) == Fate::Drop && name.as_c_str() != RECORD {
            continue;
        }
        match xattr::get_handle(handle.as_fd(), &name) {
            Ok(value) => found.extend(value.map(|value| (name, value))),
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    found.sort_unstable();
    Ok(Some(found))
}

/// Reads both to the end, or to the first difference.
fn same_bytes(here: OwnedFd, there: OwnedFd) -> io::Result<bool> {
    const PIECE: u64 = 128 << 10;
    let (mut here, mut there) = (std::fs::File::from(here), std::fs::File::from(there));
    let (mut one, mut other) = (Vec::new(), Vec::new());
    loop {
        one.clear();
        other.clear();
        (&mut here).take(PIECE).read_to_end(&mut one)?;
        (&mut there).take(PIECE).read_to_end(&mut other)?;
        if one != other {
            return Ok(false);
        }
        if one.is_empty() {
            return Ok(true);
        }
    }
}
