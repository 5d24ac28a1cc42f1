//! The overlay backend: two directories per container, whatever the image's size.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::{Base, Changes, Mount, PREPARE, Snapshot, Snapshotter, Usage, directory, directory_at};
use super::{remove_at, trees, usage_of};
use crate::layer::{Layer, Owner, Ownership};
use crate::probe::Host;
use crate::{Error, Result, sys};

/// Overlayfs, see Documentation/filesystems/overlayfs.rst; rootless with `userxattr` (Linux 5.11).
#[derive(Debug, Clone)]
pub struct Overlay {
    ownership: Ownership,
}

/// The names below a container's directory that are ours.
const WRITABLE: [&str; 4] = ["upper", "upper.new", "work", "inner"];

impl Overlay {
    /// Overlays over layers that were unpacked with this ownership. With any but [`Ownership::Full`] the mounts are meant
    /// for a user namespace.
    pub fn new(ownership: Ownership) -> Overlay {
        Overlay { ownership }
    }

    fn over(&self, dir: &Path, model: Option<&Path>, trees: Vec<std::path::PathBuf>) -> Result<Snapshot> {
        let (upper, work) = (dir.join("upper"), dir.join("work"));
        // The root of the merged tree shows the upper directory: mode, owner and attributes that the image gave.
        let mut notes = vec![];
        match model {
            Some(tree) => {
                directory_like(&upper, tree, mode_of(tree)?, &self.ownership)?;
                notes.extend(if let Ownership::Single = self.ownership { foreign_root(tree)? } else { None });
            }
            None => made_whole(&upper, |new| directory_at(new, 0o755))?,
        }
        directory_at(&work, 0o700)?;
        let root = Mount::Overlay { lower: trees, upper, work };
        Ok(Snapshot { notes, ..Snapshot::of(root) })
    }
}

/// The tree of the uppermost layer that says what the root directory is like.
fn root_of(layers: &[Layer]) -> Option<&Path> {
    layers.iter().rev().find(|layer| layer.sets_root()).map(Layer::tree)
}

impl Snapshotter for Overlay {
    fn name(&self) -> &'static str {
        "overlay"
    }

    fn prepare(&self, dir: &Path, base: &Base) -> Result<Snapshot> {
        match base {
            // Each once: overlayfs refuses a layer that an image has twice.
            Base::Layers(layers) => self.over(dir, root_of(layers), trees(layers, &[])?),
            Base::Frozen(layers, parts) => {
                let trees = trees(layers, parts)?;
                let model = parts.last().and(trees.first()).cloned();
                self.over(dir, model.as_deref().or(root_of(layers)), trees)
            }
            Base::Directory(path) => directory::snapshot(dir, path, !matches!(self.ownership, Ownership::Full)),
        }
    }

    fn changes(&self, dir: &Path) -> Changes {
        Changes::Upper(dir.join("upper"))
    }

    fn usage(&self, dir: &Path) -> Result<Usage> {
        // Of a host tree there are several. Work directories are the kernel's, empty, and closed to everybody but root.
        let inner = std::fs::read_dir(dir.join("inner")).into_iter().flatten().flatten();
        let uppers = inner.map(|entry| entry.path().join("upper")).chain([dir.join("upper")]);
        usage_of(uppers, &self.ownership)
    }

    fn freeze(&self, dir: &Path, into: &Path) -> Result<()> {
        let (upper, to) = (dir.join("upper"), into.join("upper"));
        let fail = |error| Error::io("freeze the snapshot", "rename", error).path(&upper);
        match std::fs::rename(&upper, &to) {
            // A directory changes its parent only for who may write to it.
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
                as_own(&upper, &to, &self.ownership, |from, to| std::fs::rename(from, to).map_err(fail))
            }
            other => other.map_err(fail),
        }
    }

    fn remove(&self, dir: &Path) -> Result<()> {
        remove_at(dir, &WRITABLE, &self.ownership)
    }
}

/// What a directory is like that stands for the root of a tree, as this process sees ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct RootDirectory {
    mode: u32,
    uid: u32,
    gid: u32,
}

impl RootDirectory {
    pub(crate) fn of(at: &Path) -> Result<RootDirectory> {
        let status = std::fs::metadata(at).map_err(|error| Error::io("freeze the snapshot", "stat", error).path(at))?;
        Ok(RootDirectory { mode: status.mode() & 0o7777, uid: status.uid(), gid: status.gid() })
    }

    fn give(self, at: &Path, ownership: &Ownership) -> Result<()> {
        match ownership {
            Ownership::Mapped(_) => give_root(at, (self.uid, self.gid), self.mode, ownership),
            _ => std::fs::set_permissions(at, std::fs::Permissions::from_mode(self.mode))
                .map_err(|error| Error::io("freeze the snapshot", "chmod", error).path(at)),
        }
    }

    /// Makes the directory `at` like this again, where a crash has kept [`as_own`] from it.
    pub(crate) fn restore(self, at: &Path, ownership: &Ownership) -> Result<()> {
        if RootDirectory::of(at)? == self { Ok(()) } else { self.give(at, ownership) }
    }
}

/// Moves the directory `at` to `then`, which takes its owner and his right to write, and gives it back, wherever it is
/// then. Where that fails, the directory is moved back. A crash between leaves the root directory of that one tree with
/// another mode or owner, and nothing else; whoever asks for the move has noted what they were.
fn as_own(at: &Path, then: &Path, ownership: &Ownership, relocate: impl Fn(&Path, &Path) -> Result<()>) -> Result<()> {
    let was = RootDirectory::of(at)?;
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    RootDirectory { mode: 0o700, uid, gid }.give(at, ownership)?;
    let done = relocate(at, then);
    let result = done.and_then(|()| {
        was.give(then, ownership).inspect_err(|_| {
            // Where this fails too, it is still in one of the two places, and nothing of it is lost.
            let _ = relocate(then, at);
        })
    });
    if result.is_err() {
        // The first failure is the one to be told.
        let _ = was.give(if at.exists() { at } else { then }, ownership);
    }
    result
}

/// Gives a directory to an owner of the range, as this process sees ids.
fn give_root(at: &Path, (uid, gid): (u32, u32), mode: u32, ownership: &Ownership) -> Result<()> {
    let Ownership::Mapped(reown) = ownership else { return Ok(()) };
    // A handle: what it will belong to may not let us read it, and need not now.
    let handle = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(at);
    let handle = handle.map_err(|error| Error::io("set the owner of the root directory", "open", error).path(at))?;
    let (uid, gid) = reown.container_ids(uid, gid);
    reown.reown(handle.as_fd(), &[Owner { path: vec![], uid, gid, mode: Some(mode), xattrs: vec![] }])
}

/// Makes an upper directory that stands for `model`: its mode and attributes, and its owner as far as `ownership` can
/// express it. One that is there already is the container's.
pub(super) fn directory_like(path: &Path, model: &Path, mode: u32, ownership: &Ownership) -> Result<()> {
    made_whole(path, |new| fill_like(new, model, mode, ownership))
}

/// Makes the directory `path` beside its place and renames it there, so that a kill leaves none with half its
/// attributes; one that is there already stays as it is.
fn made_whole(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let fail = |syscall| move |error| Error::io(PREPARE, syscall, error).path(path);
    if path.exists() {
        return Ok(());
    }
    let new = path.with_extension("new");
    match std::fs::remove_dir(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail("rmdir")(error)),
        _ => {}
    }
    make(&new)?;
    std::fs::rename(&new, path).map_err(fail("rename"))
}

fn fill_like(path: &Path, model: &Path, mode: u32, ownership: &Ownership) -> Result<()> {
    let fail = |syscall| move |error| Error::io(PREPARE, syscall, error).path(path);
    directory_at(path, mode)?;
    // A directory that may not be listed has attributes that may not be read.
    if let Ok(from) = File::open(model) {
        let made = match File::open(path) {
            Err(_) if !matches!(ownership, Ownership::Full) => None,
            other => Some(other.map_err(fail("open"))?),
        };
        if let Some(made) = made {
            take_after(&from, &made, mode, matches!(ownership, Ownership::Full)).map_err(|(call, e)| fail(call)(e))?;
        }
    }
    let status = std::fs::metadata(model).map_err(|error| Error::io(PREPARE, "stat", error).path(model))?;
    let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    if (status.uid(), status.gid()) == own {
        return Ok(());
    }
    give_root(path, (status.uid(), status.gid()), mode, ownership)
}

fn take_after(from: &File, made: &File, mode: u32, owner: bool) -> Result<(), (&'static str, io::Error)> {
    let failed = |syscall| move |error| (syscall, error);
    if owner {
        let status = from.metadata().map_err(failed("fstat"))?;
        sys::fs::fchown(made.as_fd(), status.uid(), status.gid()).map_err(failed("fchown"))?;
    }
    for name in sys::xattr::list(from.as_fd()).map_err(failed("flistxattr"))? {
        // Those of overlay say something about the model's place in its own stack.
        let overlay = [&b"trusted.overlay."[..], b"user.overlay."];
        if overlay.iter().any(|prefix| name.to_bytes().starts_with(prefix)) {
            continue;
        }
        let Some(value) = sys::xattr::get(from.as_fd(), &name).map_err(failed("fgetxattr"))? else { continue };
        match sys::xattr::set(made.as_fd(), &name, &value) {
            // The file systems need not be the same, nor the rights on them.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EOPNOTSUPP)) => {}
            other => other.map_err(failed("fsetxattr"))?,
        }
    }
    // An ACL changes it, and so does a new owner.
    sys::fs::fchmod(made.as_fd(), mode).map_err(failed("fchmod"))
}

/// Says so where an image gives its root directory to a user whom only a range of ids could give files to.
fn foreign_root(tree: &Path) -> Result<Option<String>> {
    // One that may not be listed says nothing about its owner either.
    let Ok(file) = File::open(tree) else { return Ok(None) };
    // Where unpacking records the owner that it could not give.
    let recorded = sys::xattr::get(file.as_fd(), c"user.rootlesscontainers")
        .map_err(|error| Error::io(PREPARE, "fgetxattr", error).path(tree))?;
    let note = "the root directory belongs to root and not to the user that the image gives it to";
    Ok(recorded.map(|_| note.to_owned()))
}

/// Permission bits of a directory.
pub(super) fn mode_of(path: &Path) -> Result<u32> {
    let status = std::fs::metadata(path).map_err(|error| Error::io(PREPARE, "stat", error).path(path))?;
    Ok(status.mode() & 0o7777)
}

/// Why overlay cannot be used with writable directories under `root`; `None` when it can.
pub(super) fn refusal(root: &Path, host: &Host) -> Option<String> {
    if host.is_root() && !host.has_overlay() {
        return Some("this kernel has no overlay file system".into());
    }
    if !host.is_root() && !host.has_overlay_userxattr() {
        return Some("this kernel has no overlay file system for user namespaces (Linux 5.11)".into());
    }
    // File systems that overlayfs refuses as upper; every other answers for itself when it is mounted.
    let kind = nix::sys::statfs::statfs(root).ok()?.filesystem_type().0 as u64;
    match kind {
        0x794c_7630 => Some("the root lies on an overlay itself, which takes no second one's writes".into()),
        0x6969 => Some("the root lies on NFS".into()),
        0x6573_5546 => Some("the root lies on a FUSE file system".into()),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_move_that_cannot_be_finished_is_undone() {
        let place = tempfile::tempdir().unwrap();
        let path = |name| place.path().join(name);
        let (at, then, elsewhere) = (path("at"), path("then"), path("elsewhere"));
        std::fs::create_dir(&at).unwrap();
        std::fs::write(at.join("file"), "written").unwrap();
        std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o755)).unwrap();
        // Where it is not at `then`, its mode cannot be given back there.
        let relocate = |from: &Path, _: &Path| {
            let (from, to) = if from == at { (&at, &elsewhere) } else { (&elsewhere, &at) };
            std::fs::rename(from, to).map_err(|error| Error::io("move", "rename", error))
        };
        let error = as_own(&at, &then, &Ownership::Single, relocate).unwrap_err();
        assert_eq!(error.syscall(), Some("chmod"));
        assert_eq!(std::fs::read_to_string(at.join("file")).unwrap(), "written");
        assert_eq!(mode_of(&at).unwrap(), 0o755);
        // And one that can.
        as_own(&at, &then, &Ownership::Single, |from, to| {
            std::fs::rename(from, to).map_err(|error| Error::io("move", "rename", error))
        })
        .unwrap();
        assert_eq!(mode_of(&then).unwrap(), 0o755);
    }
}
