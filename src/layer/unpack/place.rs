//! Where an entry goes: its parent directory, found or made.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use super::metadata::Meta;
use super::waiting::Pending;
use super::{STEP, Unpacker, failed, hostile};
use crate::layer::limits::exceeded;
use crate::layer::view::{Found, is_whiteout};
use crate::sys::fs::{c_string, fstat, lstatat, mkdirat, openat, readlinkat, unlinkat};
use crate::sys::path::{MAX_SYMLINKS, Root, components};
use crate::{Error, ErrorKind, Result};

/// Directories kept open.
const MAX_OPEN: usize = 64;

/// A path with all that the symlinks on its way say may have as many components for each level that is allowed.
const STEPS_PER_LEVEL: usize = 4;

/// A directory of the tree that entries are made in.
#[derive(Debug)]
pub(super) struct Parent {
    dir: OwnedFd,
    /// From the tree's root, without a symlink on the way; empty for the root.
    pub(super) path: Vec<u8>,
}

impl Parent {
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Where one entry goes.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) parent: Rc<Parent>,
    pub(super) name: CString,
    /// From the tree's root, without a symlink on the way.
    pub(super) path: Vec<u8>,
}

impl Place {
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.parent.dir()
    }
}

/// The directories kept open, by the path as entries write it (which may go through symlinks).
pub(super) struct Parents {
    root: Rc<Parent>,
    open: HashMap<Vec<u8>, (Rc<Parent>, u64)>,
    clock: u64,
    /// The one asked for last: tars go directory by directory.
    last: Option<(Vec<u8>, Rc<Parent>)>,
    /// Where the symlinks of lower layers stand that some of them go through. Whatever this layer makes there takes the
    /// symlink's place.
    through: HashSet<Vec<u8>>,
}

#[cfg(test)]
thread_local! {
    /// Set to look every directory up anew, to compare.
    pub(super) static FORGETFUL: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

impl Parents {
    pub(super) fn new(root: &Root) -> Result<Parents> {
        let dir = root.dir().try_clone_to_owned().map_err(|error| Error::io(STEP, "fcntl", error))?;
        let root = Rc::new(Parent { dir, path: Vec::new() });
        Ok(Parents { root, open: HashMap::new(), clock: 0, last: None, through: HashSet::new() })
    }

    fn get(&mut self, path: &[u8]) -> Option<Rc<Parent>> {
        if path.is_empty() {
            return Some(self.root.clone());
        }
        #[cfg(test)]
        if FORGETFUL.get() {
            return None;
        }
        if let Some((last, parent)) = &self.last
            && last == path
        {
            return Some(parent.clone());
        }
        self.clock += 1;
        let (parent, used) = self.open.get_mut(path)?;
        *used = self.clock;
        self.last = Some((path.to_vec(), parent.clone()));
        Some(parent.clone())
    }

    fn insert(&mut self, path: &[u8], parent: Rc<Parent>) {
        if self.open.len() >= MAX_OPEN
            && let Some(oldest) = self.open.iter().min_by_key(|(_, (_, used))| *used).map(|(path, _)| path.clone())
        {
            self.open.remove(&oldest);
        }
        self.clock += 1;
        self.open.insert(path.to_vec(), (parent.clone(), self.clock));
        self.last = Some((path.to_vec(), parent));
    }

    /// Notes that directories were found through a lower layer's symlink at `path`, a path without symlinks.
    fn went_through(&mut self, path: Vec<u8>) {
        self.through.insert(path);
    }

    /// Called before a walk, which goes through [`MAX_SYMLINKS`] at most.
    fn make_room(&mut self) {
        if self.through.len() > MAX_OPEN {
            self.forget();
        }
    }

    /// Called when something is made at `path`, a path without symlinks, that a lower layer may have a symlink at.
    pub(super) fn covered(&mut self, path: &[u8]) {
        if !self.through.is_empty() && self.through.contains(path) {
            self.forget();
        }
    }

    /// Called when a directory no longer shows what lower layers have in it.
    pub(super) fn hidden(&mut self) {
        if !self.through.is_empty() {
            self.forget();
        }
    }

    /// Forgets everything: a directory or symlink was replaced, so any path may lead elsewhere now.
    pub(super) fn forget(&mut self) {
        self.open.clear();
        self.last = None;
        self.through.clear();
    }
}

/// A path as text without `.`, empty components and `..`; fails where it climbs above the root.
pub(super) fn clean(path: &[u8], max_depth: usize) -> Result<Vec<u8>> {
    let mut clean: Vec<u8> = Vec::with_capacity(path.len());
    let mut depth = 0;
    for component in components(path) {
        if component == b".." {
            if clean.is_empty() {
                return Err(hostile(path, "its path climbs out of the tree"));
            }
            let end = clean.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            clean.truncate(end);
            depth -= 1;
            continue;
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(component);
        depth += 1;
        if depth > max_depth {
            return Err(exceeded("depth", max_depth));
        }
    }
    Ok(clean)
}

/// Parent and last component of a clean path.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

pub(super) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

const DIR: libc::c_int = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;

impl Unpacker<'_> {
    /// The place of `name` in the directory that the clean path `parent` leads to, which is made where it is missing.
    pub(super) fn place(&mut self, parent: &[u8], name: &[u8]) -> Result<Place> {
        let written = parent;
        let parent = self.parent(parent)?;
        let path = join(&parent.path, name);
        if parent.path != written {
            self.check_grown(&path)?;
        }
        let name = c_string(name).map_err(failed("openat", &path))?;
        Ok(Place { parent, name, path })
    }

    /// Holds a path that symlinks may have made longer than what the archive says against the limits.
    fn check_grown(&self, path: &[u8]) -> Result<()> {
        let limits = &self.options.limits;
        if path.len() > limits.path_length {
            return Err(exceeded("path_length", limits.path_length));
        }
        if components(path).count() > limits.depth {
            return Err(exceeded("depth", limits.depth));
        }
        Ok(())
    }

    /// The directory that the clean path leads to.
    pub(super) fn parent(&mut self, path: &[u8]) -> Result<Rc<Parent>> {
        if let Some(parent) = self.parents.get(path) {
            return Ok(parent);
        }
        let (above, name) = split(path);
        let opened = match self.parents.get(above) {
            Some(above) => {
                let name = c_string(name).map_err(failed("openat", path))?;
                openat(above.dir(), &name, DIR, 0).map(|dir| (dir, join(&above.path, name.to_bytes())))
            }
            None => {
                let name = c_string(path).map_err(failed("openat", path))?;
                self.root.open_beneath_nofollow(&name, DIR, 0).map(|dir| (dir, path.to_vec()))
            }
        };
        let parent = match opened {
            Ok((dir, canonical)) => Parent { dir, path: canonical },
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {
                self.walk(path)?
            }
            Err(error) => return Err(failed("openat", path)(error)),
        };
        if self.keeps() {
            self.keep(&parent)?;
        }
        let parent = Rc::new(parent);
        self.parents.insert(path, parent.clone());
        Ok(parent)
    }

    /// Whether directories may come up that are complete already.
    fn keeps(&self) -> bool {
        (self.applies() || self.waiting.was_full()) && !self.finishing
    }

    /// Notes times and mode of a directory that is complete (lower layers have made it, or this one was done with it),
    /// before files in it change them, and makes it writable for its owner meanwhile.
    pub(super) fn keep(&mut self, parent: &Parent) -> Result<()> {
        if self.applies() {
            // In a tree of its own the layer would have this directory now, so a whiteout of the same layer leaves it.
            self.notes.made.insert(&parent.path);
        }
        // The root of a tree of its own is never complete before the end.
        if self.waiting.contains(&parent.path) || parent.path.is_empty() && !self.applies() {
            return Ok(());
        }
        let stat = fstat(parent.dir()).map_err(failed("fstat", &parent.path))?;
        if stat.st_mode & 0o700 != 0o700 {
            crate::sys::fs::chmod_handle(parent.dir(), stat.st_mode & 0o7777 | 0o700)
                .map_err(failed("chmod", &parent.path))?;
        }
        self.waiting.insert(parent.path.clone(), Pending::unchanged(&stat));
        Ok(())
    }

    /// The slow way to a directory: component by component through this tree and the layers below.
    fn walk(&mut self, path: &[u8]) -> Result<Parent> {
        self.parents.make_room();
        let limits = &self.options.limits;
        let (most_steps, depth) = (limits.depth.saturating_mul(STEPS_PER_LEVEL), limits.depth);
        let mut here = self.reopen(&[])?;
        // Directories on the way to `here`, the nearest last, for `..`.
        let mut way: Vec<Parent> = Vec::new();
        let mut left: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        let mut steps = left.len();
        let mut symlinks = 0;
        while let Some(component) = left.pop_front() {
            if component == b".." {
                here = match way.pop() {
                    Some(above) => above,
                    None => self.reopen(split(&here.path).0)?,
                };
                continue;
            }
            let next = match self.step(&here, &component, path)? {
                Step::Into(dir) => {
                    if way.len() == MAX_OPEN {
                        // The farther one goes down, the more of the way back is walked from the root.
                        way.clear();
                    }
                    way.push(std::mem::replace(&mut here, dir));
                    if components(&here.path).count() > depth {
                        return Err(exceeded("depth", depth));
                    }
                    if self.keeps() {
                        self.keep(&here)?;
                    }
                    continue;
                }
                Step::Symlink(target) => target,
            };
            symlinks += 1;
            if symlinks > MAX_SYMLINKS {
                return Err(hostile(path, "the symlinks on its way go in a circle"));
            }
            if next.starts_with(b"/") {
                here = self.reopen(&[])?;
                way.clear();
            }
            let before = left.len();
            for component in components(&next).collect::<Vec<_>>().into_iter().rev() {
                left.push_front(component.to_vec());
            }
            steps += left.len() - before;
            if steps > most_steps {
                return Err(exceeded("depth", depth)
                    .path(crate::layer::view::as_path(path))
                    .because(format!("the symlinks on its way say more than {most_steps} components")));
            }
        }
        Ok(here)
    }

    /// Opens a directory of this tree by its path without symlinks.
    pub(super) fn reopen(&self, path: &[u8]) -> Result<Parent> {
        let name = c_string(path).map_err(failed("openat", path))?;
        let dir = self.root.open_beneath_nofollow(&name, DIR, 0).map_err(failed("openat2", path))?;
        Ok(Parent { dir, path: path.to_vec() })
    }

    /// One component of the slow way.
    fn step(&mut self, here: &Parent, component: &[u8], whole: &[u8]) -> Result<Step> {
        let path = join(&here.path, component);
        let name = c_string(component).map_err(failed("openat", &path))?;
        let into = |path: Vec<u8>| -> Result<Step> {
            let dir = openat(here.dir(), &name, DIR, 0).map_err(failed("openat", &path))?;
            Ok(Step::Into(Parent { dir, path }))
        };
        let own = match lstatat(here.dir(), &name) {
            Ok(stat) => Some(stat),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => None,
            Err(error) => return Err(failed("lstat", &path)(error)),
        };
        match own {
            Some(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFDIR => into(path),
            Some(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFLNK => {
                readlinkat(here.dir(), &name).map(Step::Symlink).map_err(failed("readlink", &path))
            }
            Some(stat) if is_whiteout(&stat) && !self.applies() => {
                // This layer hides what was here and then puts something below it: a new, opaque directory.
                unlinkat(here.dir(), &name).map_err(failed("unlink", &path))?;
                self.implied(here, &name, &path, Meta::implied())?;
                self.make_opaque(here.dir(), &name, &path)?;
                into(path)
            }
            Some(_) if self.notes.brought_up.contains(&path) || self.applies() && !self.notes.made.contains(&path) => {
                // A layer below had a file here; that this one has something inside makes it a directory.
                self.notes.forget(&path);
                unlinkat(here.dir(), &name).map_err(failed("unlink", &path))?;
                self.implied(here, &name, &path, Meta::implied())?;
                into(path)
            }
            Some(_) => Err(Error::new(ErrorKind::Corrupt, STEP)
                .path(crate::layer::view::as_path(whole))
                .because("something on its way is not a directory")),
            None => {
                let meta = match self.look_below(&path)? {
                    Some(found) if found.is_symlink() => {
                        self.parents.went_through(path.clone());
                        return found.target().map(Step::Symlink).map_err(failed("readlink", &path));
                    }
                    Some(found) if found.is_dir() => self.meta_of(&found, &path)?,
                    _ => Meta::implied(),
                };
                self.implied(here, &name, &path, meta)?;
                into(path)
            }
        }
    }

    /// Makes a directory that the tar has no entry for.
    ///
    /// One entry may make as many as are allowed one in another, so what they take up is looked at each time.
    fn implied(&mut self, here: &Parent, name: &std::ffi::CStr, path: &[u8], meta: Meta) -> Result<()> {
        self.check_grown(path)?;
        self.remembered()?;
        self.count_unnamed()?;
        mkdirat(here.dir(), name, 0o700).map_err(failed("mkdir", path))?;
        if self.applies() {
            self.notes.made.insert(path);
        }
        self.waiting.insert(path.to_vec(), Pending { meta, mode_is_set: false, existed: false });
        Ok(())
    }

    /// Whether this layer has made `path` or a directory above it opaque.
    pub(super) fn is_hidden(&self, path: &[u8]) -> bool {
        !self.notes.opaque.is_empty()
            && (self.notes.opaque.contains(b"")
                || (0..=path.len())
                    .filter(|end| *end == path.len() || path[*end] == b'/')
                    .any(|end| self.notes.opaque.contains(&path[..end])))
    }

    /// What the layers below have at a path without symlinks; notes that they were asked.
    pub(super) fn look_below(&mut self, path: &[u8]) -> Result<Option<Found>> {
        if self.applies() || self.is_hidden(path) {
            return Ok(None);
        }
        // Also where nothing is below: over another stack this layer would come out otherwise.
        self.result.dependent = true;
        let Some(view) = self.below.view()? else { return Ok(None) };
        // Nothing is followed: where the layers below have a symlink on the way, this layer has a directory instead.
        view.lookup(path)
    }
}

enum Step {
    Into(Parent),
    Symlink(Vec<u8>),
}
