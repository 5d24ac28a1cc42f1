//! Several layer trees looked at as one, without mounting.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, CString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use super::{Access, Layer, WhiteoutFormat};
use crate::sys::fs::{Stat, c_string, each_name, fstat, lstatat, names_of, openat, readlinkat};
use crate::sys::path::{MAX_SYMLINKS, components};
use crate::sys::xattr;
use crate::{Error, ErrorKind, Result};

const STEP: &str = "look into the layers";

/// The merged look of a stack of layer trees, as overlayfs would show it: whiteouts and opaque directories hide what
/// lies below, symlinks are resolved inside the merged root and never lead out of it.
///
/// A view sees the trees as they are at each call; nothing is cached but the descriptors of the trees.
///
/// Only marks of the view's own [`WhiteoutFormat`] hide anything, as only they do for the kernel: whoever owns a file may
/// give it `user.overlay.*`, and an overlay that is mounted with full privileges takes these for plain attributes.
#[derive(Debug)]
pub struct View {
    /// The uppermost first.
    trees: Vec<Arc<OwnedFd>>,
    help: Help,
}

/// Looks at files by ourselves and, where we may not, with the help of who may; and knows how the trees say that something
/// is hidden.
#[derive(Clone)]
pub(crate) struct Help {
    access: Option<Arc<dyn Access>>,
    whiteouts: WhiteoutFormat,
}

impl fmt::Debug for Help {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Help").field("helped", &self.access.is_some()).field("whiteouts", &self.whiteouts).finish()
    }
}

impl Help {
    pub(super) fn new(access: Option<Arc<dyn Access>>, whiteouts: WhiteoutFormat) -> Help {
        Help { access, whiteouts }
    }

    /// Of nobody.
    #[cfg(test)]
    pub(crate) fn of(whiteouts: WhiteoutFormat) -> Help {
        Help { access: None, whiteouts }
    }

    /// `own`, unless it failed because we may not, and somebody may.
    fn or<T>(&self, own: io::Result<T>, helped: impl FnOnce(&dyn Access) -> io::Result<T>) -> io::Result<T> {
        match (own, &self.access) {
            (Err(error), Some(access)) if error.raw_os_error() == Some(libc::EACCES) => helped(access.as_ref()),
            (own, _) => own,
        }
    }

    fn open(&self, dir: BorrowedFd<'_>, name: &CStr, flags: libc::c_int) -> io::Result<OwnedFd> {
        let flags = flags | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        self.or(openat(dir, name, flags, 0), |access| access.open(dir, name, flags))
    }

    pub(super) fn open_dir(&self, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
        self.open(dir, name, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NONBLOCK)
    }

    fn handle(&self, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
        self.open(dir, name, libc::O_PATH)
    }

    pub(super) fn stat(&self, dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Stat> {
        self.or(lstatat(dir, name), |_| fstat(self.handle(dir, name)?.as_fd()))
    }

    /// A directory, opened to be listed.
    pub(super) fn listing(&self, dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        self.open(dir, c".", libc::O_RDONLY | libc::O_DIRECTORY)
    }

    /// An attribute of an open file.
    fn attribute(&self, file: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<Vec<u8>>> {
        self.or(xattr::get(file, name), |access| match access.attribute(file, name) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(None),
            value => value.map(Some),
        })
    }
}

/// Something in the merged tree.
#[derive(Debug)]
pub(crate) struct Found {
    /// The directory of one layer that it lies in, and its name there. For the root itself: the uppermost tree, `.`.
    pub(crate) place: Arc<OwnedFd>,
    pub(crate) name: CString,
    /// The uppermost layer's opinion of it.
    pub(crate) stat: Stat,
    /// For a directory: its share in each layer, the uppermost first. Empty for everything else.
    pub(crate) dirs: Vec<Arc<OwnedFd>>,
    help: Help,
}

impl Found {
    /// `name` in a directory of one tree, with nothing of it merged.
    pub(super) fn within(dir: &Arc<OwnedFd>, name: &CStr, help: &Help) -> io::Result<Found> {
        let stat = help.stat(dir.as_fd(), name)?;
        Ok(Found { place: dir.clone(), name: name.to_owned(), stat, dirs: vec![], help: help.clone() })
    }

    pub(crate) fn file_type(&self) -> u32 {
        self.stat.st_mode & libc::S_IFMT
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.file_type() == libc::S_IFDIR
    }

    pub(crate) fn is_symlink(&self) -> bool {
        self.file_type() == libc::S_IFLNK
    }

    /// What a symlink says.
    pub(crate) fn target(&self) -> io::Result<Vec<u8>> {
        let own = readlinkat(self.place.as_fd(), &self.name);
        self.help.or(own, |_| readlinkat(self.handle()?.as_fd(), c""))
    }

    /// Opens it for reading, without waiting for the other end of a FIFO.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        self.help.open(self.place.as_fd(), &self.name, libc::O_RDONLY | libc::O_NONBLOCK)
    }

    fn handle(&self) -> io::Result<OwnedFd> {
        self.help.handle(self.place.as_fd(), &self.name)
    }

    /// Names and values of its attributes.
    pub(crate) fn attributes(&self) -> io::Result<Vec<(CString, Vec<u8>)>> {
        let handle = self.handle()?;
        let mut attributes = Vec::new();
        for name in xattr::list_handle(handle.as_fd())? {
            // Only files and directories have attributes that their mode protects.
            let value = self
                .help
                .or(xattr::get_handle(handle.as_fd(), &name), |_| self.help.attribute(self.open()?.as_fd(), &name))?;
            attributes.extend(value.map(|value| (name, value)));
        }
        Ok(attributes)
    }
}

/// Whether this is overlayfs' mark for "nothing here".
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == 0
}

/// Whether a directory of one layer hides those below it.
pub(crate) fn is_opaque(help: &Help, dir: &OwnedFd) -> io::Result<bool> {
    let Some(mark) = help.whiteouts.opaque_mark() else { return Ok(false) };
    Ok(help.attribute(dir.as_fd(), mark)?.as_deref() == Some(b"y"))
}

fn failed(path: &[u8]) -> impl Fn(io::Error) -> Error {
    move |error| Error::io(STEP, "openat", error).path(as_path(path))
}

pub(super) fn as_path(bytes: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

impl View {
    /// The view of `trees`, the uppermost first, with whiteouts of this format: that of the mount, for trees that are or
    /// were mounted. With [`WhiteoutFormat::Apply`] no directory is opaque.
    ///
    /// # Errors
    /// Where one of them is not a directory.
    pub fn new<P: AsRef<Path>>(trees: impl IntoIterator<Item = P>, whiteouts: WhiteoutFormat) -> Result<View> {
        View::helped(trees, whiteouts, None)
    }

    /// The same with somebody who reaches what this process may not.
    pub(crate) fn helped<P: AsRef<Path>>(
        trees: impl IntoIterator<Item = P>,
        whiteouts: WhiteoutFormat,
        access: Option<Arc<dyn Access>>,
    ) -> Result<View> {
        let help = Help { access, whiteouts };
        let open = |path: &Path| {
            let opened = crate::sys::path::Root::open(path).map(crate::sys::path::Root::into_dir);
            help.or(opened, |access| {
                let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                    return Err(io::Error::from_raw_os_error(libc::EACCES));
                };
                let parent = File::open(parent)?;
                let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
                access.open(parent.as_fd(), &c_string(name.as_encoded_bytes())?, flags)
            })
        };
        let trees = trees.into_iter().map(|path| {
            let path = path.as_ref();
            open(path).map(Arc::new).map_err(|error| Error::io(STEP, "open", error).path(path))
        });
        Ok(View { trees: trees.collect::<Result<_>>()?, help: help.clone() })
    }

    /// The view of the layers of an image, the lowest first, as [`LayerStore`](super::LayerStore) returns them.
    ///
    /// # Errors
    /// Where one of them has been removed.
    pub fn of_layers(layers: &[Layer]) -> Result<View> {
        View::new(super::trees(layers), super::whiteouts(layers))
    }

    /// How its trees say what they hide.
    pub(crate) fn whiteouts(&self) -> WhiteoutFormat {
        self.help.whiteouts
    }

    /// Opens what `path` (from the root; bytes, as tar and the kernel have them) leads to, for reading. `None` where
    /// there is nothing. Of a directory it is the uppermost layer's share.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where symlinks go in a circle, and for anything but files and directories: a device node
    /// in an image would be a device of this host.
    pub fn open(&self, path: &[u8]) -> Result<Option<File>> {
        let Some(found) = self.resolve(path, true)? else { return Ok(None) };
        if !matches!(found.file_type(), libc::S_IFREG | libc::S_IFDIR) {
            return Err(Error::new(ErrorKind::Invalid, STEP)
                .path(as_path(path))
                .because("it is neither a file nor a directory"));
        }
        let fd = found.open().map_err(failed(path))?;
        Ok(Some(File::from(fd)))
    }

    /// Reads the regular file that `path` leads to; `None` where there is nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Limit`] where it has more than `limit` bytes, [`ErrorKind::Invalid`] where it is no regular file.
    pub fn read_file(&self, path: &[u8], limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.open(path)? else { return Ok(None) };
        let metadata = file.metadata().map_err(failed(path))?;
        if !metadata.is_file() {
            return Err(Error::new(ErrorKind::Invalid, STEP).path(as_path(path)).because("it is not a regular file"));
        }
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed(path))?;
        if bytes.len() as u64 > limit {
            return Err(Error::new(ErrorKind::Limit, STEP)
                .path(as_path(path))
                .because(format!("it has more than the {limit} bytes that are allowed here")));
        }
        Ok(Some(bytes))
    }

    /// Calls `act` with each name that the root shows, in no order, without keeping them.
    pub(crate) fn each_name(&self, mut act: impl FnMut(&CStr) -> Result<()>) -> Result<()> {
        let fail = failed(b"");
        let Some(root) = self.root().map_err(&fail)? else { return Ok(()) };
        for (index, share) in root.dirs.iter().enumerate() {
            let listing = self.help.listing(share.as_fd()).map_err(&fail)?;
            each_name(listing, &fail, |name| {
                // The uppermost layer that has a name decides whether it shows.
                for above in root.dirs.get(..index).unwrap_or_default() {
                    match self.help.stat(above.as_fd(), name) {
                        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENAMETOOLONG)) => {}
                        Err(error) => return Err(fail(error)),
                        Ok(_) => return Ok(()),
                    }
                }
                if is_whiteout(&self.help.stat(share.as_fd(), name).map_err(&fail)?) { Ok(()) } else { act(name) }
            })?;
        }
        Ok(())
    }

    /// Resolves `path`; `follow` says whether a symlink at its end is followed too.
    pub(crate) fn resolve(&self, path: &[u8], follow: bool) -> Result<Option<Found>> {
        self.walk(path, follow).map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => {
                Error::new(ErrorKind::Invalid, STEP).path(as_path(path)).because("its symlinks go in a circle")
            }
            _ => failed(path)(error),
        })
    }

    /// What stands at exactly `path`: no symlink is followed on the way, so below a symlink there is nothing.
    pub(crate) fn lookup(&self, path: &[u8]) -> Result<Option<Found>> {
        let way: Vec<_> = components(path).map(<[u8]>::to_vec).collect();
        self.descend(&way).map_err(failed(path))
    }

    fn root(&self) -> io::Result<Option<Found>> {
        let Some(top) = self.trees.first() else { return Ok(None) };
        // The descriptors of the view itself: an image may have more layers than a process has descriptors to spare.
        Ok(Some(Found {
            place: top.clone(),
            name: c".".to_owned(),
            stat: fstat(top.as_fd())?,
            dirs: self.trees.clone(),
            help: self.help.clone(),
        }))
    }

    fn walk(&self, path: &[u8], follow: bool) -> io::Result<Option<Found>> {
        let Some(mut here) = self.root()? else { return Ok(None) };
        // Names from the root to `here`, none of them a symlink: `..` walks again from the root, so that few
        // descriptors are open at a time.
        let mut way: Vec<Vec<u8>> = Vec::new();
        let mut left: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        let mut symlinks = 0;
        while let Some(component) = left.pop_front() {
            if !here.is_dir() {
                return Ok(None);
            }
            if component == b".." {
                way.pop();
                match self.descend(&way)? {
                    Some(found) => here = found,
                    None => return Ok(None),
                }
                continue;
            }
            let Some(found) = child(&here, &c_string(&component)?)? else { return Ok(None) };
            if found.is_symlink() && (follow || !left.is_empty()) {
                symlinks += 1;
                if symlinks > MAX_SYMLINKS {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                let target = found.target()?;
                if target.starts_with(b"/") {
                    way.clear();
                    match self.root()? {
                        Some(root) => here = root,
                        None => return Ok(None),
                    }
                }
                for component in components(&target).collect::<Vec<_>>().into_iter().rev() {
                    left.push_front(component.to_vec());
                }
                continue;
            }
            way.push(component);
            here = found;
        }
        Ok(Some(here))
    }

    fn descend(&self, way: &[Vec<u8>]) -> io::Result<Option<Found>> {
        let Some(mut here) = self.root()? else { return Ok(None) };
        for component in way {
            match child(&here, &c_string(component)?)? {
                Some(found) => here = found,
                None => return Ok(None),
            }
        }
        Ok(Some(here))
    }
}

/// The names in a merged directory, sorted, whiteouts included: each with the shares that have it, the uppermost first.
pub(super) fn listed(dir: &Found) -> io::Result<BTreeMap<CString, Vec<usize>>> {
    let mut listed: BTreeMap<CString, Vec<usize>> = BTreeMap::new();
    for (index, share) in dir.dirs.iter().enumerate() {
        for name in names_of(dir.help.listing(share.as_fd())?)? {
            listed.entry(name).or_default().push(index);
        }
    }
    Ok(listed)
}

/// The names that a merged directory shows, sorted.
pub(super) fn shown(dir: &Found) -> io::Result<Vec<CString>> {
    let mut shown = Vec::new();
    for (name, shares) in listed(dir)? {
        // The uppermost layer that has a name decides whether it shows.
        let top = shares.first().and_then(|index| dir.dirs.get(*index));
        let stat = top.map(|share| dir.help.stat(share.as_fd(), &name)).transpose()?;
        if !stat.is_some_and(|stat| is_whiteout(&stat)) {
            shown.push(name);
        }
    }
    Ok(shown)
}

/// Looks `name` up in a merged directory.
pub(super) fn child(dir: &Found, name: &CStr) -> io::Result<Option<Found>> {
    child_in(&dir.help, dir.dirs.iter(), name)
}

/// The same where it is known which shares have the name, see [`listed`].
pub(super) fn child_of(dir: &Found, name: &CStr, shares: &[usize]) -> io::Result<Option<Found>> {
    child_in(&dir.help, shares.iter().filter_map(|index| dir.dirs.get(*index)), name)
}

fn child_in<'a>(help: &Help, shares: impl Iterator<Item = &'a Arc<OwnedFd>>, name: &CStr) -> io::Result<Option<Found>> {
    let mut found: Option<Found> = None;
    for share in shares {
        let stat = match help.stat(share.as_fd(), name) {
            Ok(stat) => stat,
            // A name that one layer's file system cannot even hold is not there.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENAMETOOLONG)) => continue,
            Err(error) => return Err(error),
        };
        if is_whiteout(&stat) {
            break;
        }
        if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
            // A file below a directory is hidden by it; a file above everything is it.
            if found.is_none() {
                let place = share.clone();
                found = Some(Found { place, name: name.to_owned(), stat, dirs: Vec::new(), help: help.clone() });
            }
            break;
        }
        let opened = help.open_dir(share.as_fd(), name)?;
        let opaque = is_opaque(help, &opened)?;
        match &mut found {
            Some(found) => found.dirs.push(Arc::new(opened)),
            None => {
                let place = share.clone();
                let dirs = vec![Arc::new(opened)];
                found = Some(Found { place, name: name.to_owned(), stat, dirs, help: help.clone() });
            }
        }
        if opaque {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::sys::stat::{Mode, SFlag, makedev, mknod};

    use super::*;

    /// Three layers over a place with a secret outside.
    fn place() -> (tempfile::TempDir, View) {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        for dir in ["top/etc", "middle/etc", "middle/usr/lib", "low/etc/opaque", "low/usr/lib", "middle/etc/opaque"] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        fs::write(at("secret"), "outside").unwrap();
        fs::write(at("low/etc/passwd"), "low").unwrap();
        fs::write(at("middle/etc/passwd"), "middle").unwrap();
        fs::write(at("low/etc/gone"), "low").unwrap();
        fs::write(at("low/etc/opaque/hidden"), "low").unwrap();
        fs::write(at("middle/etc/opaque/shows"), "middle").unwrap();
        fs::write(at("low/usr/lib/deep"), "low").unwrap();
        mknod(&at("top/etc/gone"), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).unwrap();
        let opaque = File::open(at("middle/etc/opaque")).unwrap();
        xattr::set(opaque.as_fd(), c"user.overlay.opaque", b"y").unwrap();
        for (name, target) in [
            ("top/lib", "usr/lib"),
            ("top/abs", "/usr/lib"),
            ("top/out", "../../../../../secret"),
            ("top/absout", &at("secret").display().to_string()),
            ("top/etc/shadow", "/etc/../etc/passwd"),
            ("top/loop", "loop/x"),
        ] {
            symlink(target, at(name)).unwrap();
        }
        let view = View::new([at("top"), at("middle"), at("low")], WhiteoutFormat::OverlayUser).unwrap();
        (place, view)
    }

    #[test]
    fn the_uppermost_wins_and_whiteouts_hide() {
        let (_place, view) = place();
        let read = |path: &str| view.read_file(path.as_bytes(), 100).unwrap().map(|it| String::from_utf8(it).unwrap());
        assert_eq!(read("/etc/passwd").as_deref(), Some("middle"));
        assert_eq!(read("etc/shadow").as_deref(), Some("middle"));
        assert_eq!(read("/etc/gone"), None);
        assert_eq!(read("/etc/opaque/hidden"), None);
        assert_eq!(read("/etc/opaque/shows").as_deref(), Some("middle"));
        for path in ["/lib/deep", "abs/deep", "usr/lib/../../lib/./deep", "../../lib/deep"] {
            assert_eq!(read(path).as_deref(), Some("low"), "{path}");
        }
        assert_eq!(read("/etc/passwd/x"), None);
        let etc = view.resolve(b"etc", true).unwrap().unwrap();
        let names: Vec<_> = listed(&etc).unwrap().into_keys().collect();
        assert_eq!(names, [c"gone".to_owned(), c"opaque".to_owned(), c"passwd".to_owned(), c"shadow".to_owned()]);
        let mut names = Vec::new();
        view.each_name(|name| {
            names.push(name.to_owned());
            Ok(())
        })
        .unwrap();
        names.sort();
        let shown =
            ["abs", "absout", "etc", "lib", "loop", "out", "usr"].map(|name| c_string(name.as_bytes()).unwrap());
        assert_eq!(names, shown);
    }

    /// Whoever owns a directory may say `user.overlay.opaque` of it; root's overlay does not listen, and neither do we.
    #[test]
    fn marks_of_another_format_hide_nothing() {
        let (place, _) = place();
        let trees = ["top", "middle", "low"].map(|name| place.path().join(name));
        for whiteouts in [WhiteoutFormat::Overlay, WhiteoutFormat::Apply] {
            let view = View::new(&trees, whiteouts).unwrap();
            assert_eq!(view.read_file(b"etc/opaque/hidden", 9).unwrap().unwrap(), b"low", "{whiteouts:?}");
        }
        if nix::unistd::geteuid().is_root() {
            let opaque = File::open(place.path().join("middle/usr")).unwrap();
            xattr::set(opaque.as_fd(), c"trusted.overlay.opaque", b"y").unwrap();
            let shows = |whiteouts| View::new(&trees, whiteouts).unwrap().lookup(b"usr/lib/deep").unwrap().is_some();
            assert_eq!([WhiteoutFormat::Overlay, WhiteoutFormat::OverlayUser].map(shows), [false, true]);
        }
    }

    #[test]
    fn a_look_at_the_root_opens_nothing() {
        let (_place, view) = place();
        let root = view.resolve(b"/", true).unwrap().unwrap();
        assert_eq!(root.dirs.len(), 3);
        assert!(root.dirs.iter().zip(&view.trees).all(|(share, tree)| Arc::ptr_eq(share, tree)));
        assert!(Arc::ptr_eq(&root.place, &view.trees[0]));
        // And what lies in it is found by the same descriptors, twice.
        for _ in 0..2 {
            assert_eq!(shown(&root).unwrap().len(), 7);
        }
    }

    #[test]
    fn nothing_outside_is_reached() {
        let (_place, view) = place();
        for path in ["out", "absout", "../secret", "/../secret", "lib/../../secret"] {
            assert!(view.open(path.as_bytes()).unwrap().is_none(), "{path}");
        }
        assert_eq!(view.open(b"loop").unwrap_err().kind(), ErrorKind::Invalid);
    }

    /// CVE-2024-9676 and kin: what is read of an image is a regular file of bounded size, and opening it never waits.
    #[test]
    fn traps_are_refused() {
        let (place, view) = place();
        fs::remove_file(place.path().join("middle/etc/passwd")).unwrap();
        nix::unistd::mkfifo(&place.path().join("middle/etc/passwd"), Mode::S_IRUSR).unwrap();
        assert_eq!(view.read_file(b"/etc/passwd", 10).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(view.read_file(b"/etc", 10).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(view.read_file(b"/lib/deep", 2).unwrap_err().kind(), ErrorKind::Limit);
        assert_eq!(view.read_file(b"/lib/deep", 3).unwrap().unwrap(), b"low");
        if nix::unistd::geteuid().is_root() {
            mknod(&place.path().join("top/null"), SFlag::S_IFCHR, Mode::all(), makedev(1, 3)).unwrap();
            assert_eq!(view.open(b"null").unwrap_err().kind(), ErrorKind::Invalid);
        }
    }
}
