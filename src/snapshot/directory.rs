//! Snapshots over a directory of the host: the tree as it is, writes thrown away.
//!
//! An overlay does not show the mounts inside its lower directory, so every mount of the host below the base gets an
//! overlay (or a read-only bind) of its own. In a user namespace the kernel also refuses an overlay over a tree that
//! *has* mounts inside; there the root is a recursive read-only bind, and the directories without mounts inside get the
//! overlays.
//!
//! A socket or a named pipe below an overlay is dead, but one below a bind is not: being read-only keeps nobody from
//! connecting or from writing to it. Those that lie in the directories on the way down are covered; where nothing looks
//! for them, a note says so.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::overlay::{directory_like, mode_of};
use super::{Mount, Snapshot, directory_at};
use crate::layer::Ownership;
use crate::{Error, ErrorKind, Result, sys};

/// Directories that a container has of its own: what the host mounts there is not carried over.
const OWN: [&str; 4] = ["proc", "sys", "dev", "run"];

/// Directories that everybody may write to: where they cannot be overlaid, they are empty ones in memory.
const TEMPORARY: [&str; 2] = ["tmp", "var/tmp"];

/// File systems that work as an overlay's lower layer. Others are shown read-only.
const LOWER: [&str; 14] = [
    "ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "f2fs", "bcachefs", "zfs", "erofs", "squashfs", "jfs", "ramfs",
    "overlay",
];

/// A mount of this process' namespace.
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    at: PathBuf,
    kind: String,
    directory: bool,
    /// A socket or a named pipe.
    reaches: bool,
}

impl Mounted {
    fn is_lower(&self) -> bool {
        self.directory && LOWER.contains(&self.kind.as_str())
    }
}

pub(super) fn snapshot(dir: &Path, base: &Path, rootless: bool) -> Result<Snapshot> {
    let base = canonical(base)?;
    let table = std::fs::read("/proc/self/mountinfo")
        .map_err(|error| Error::io("list the mounts of the host", "read", error).path("/proc/self/mountinfo"))?;
    let mounts = parse(&table);
    // Also those that a container does not see: the kernel counts them.
    let whole = !mounts.iter().any(|mount| mount.at.starts_with(&base) && mount.at != base);
    let below = visible(mounts, &base);
    let mut maker =
        Maker { dir, base: &base, rootless, count: 0, inner: vec![], masked: vec![], notes: vec![], sockets: vec![] };
    let root = if rootless && !whole {
        require_mount_points(&base)?;
        maker.descend(&base, &below, false)?;
        maker.temporary_of_others(false)?;
        Mount::Bind { source: base.clone(), read_only: true, recursive: true }
    } else {
        let (upper, work) = (dir.join("upper"), dir.join("work"));
        directory_like(&upper, &base, mode_of(&base)?, &owners(rootless))?;
        directory_at(&work, 0o700)?;
        for mount in &below {
            maker.cover(mount)?;
        }
        if rootless {
            maker.temporary_of_others(true)?;
            maker.tell_of_others();
        }
        Mount::Overlay { lower: vec![base.clone()], upper, work }
    };
    if base == Path::new("/") || base.join("run").is_dir() {
        // Sockets of the host's services live there.
        maker.inner.push(("run".into(), Mount::Tmpfs { mode: 0o755 }));
    }
    let Maker { inner, masked, notes, sockets, .. } = maker;
    Ok(Snapshot { root, inner, masked, notes, sockets })
}

/// The tree with nothing writable, for hosts without overlay.
pub(super) fn read_only(base: &Path) -> Result<Snapshot> {
    let base = canonical(base)?;
    require_mount_points(&base)?;
    let inner = if base.join("run").is_dir() { vec![("run".into(), Mount::Tmpfs { mode: 0o755 })] } else { vec![] };
    let notes = vec![format!("overlay cannot be used here, so nothing below {} can be written", base.display())];
    let sockets = vec![reachable(&base)];
    let root = Mount::Bind { source: base, read_only: true, recursive: true };
    Ok(Snapshot { inner, notes, sockets, ..Snapshot::of(root) })
}

/// What a bind gives away although it is read-only.
fn reachable(below: &Path) -> String {
    format!("the host's sockets and named pipes below {} can be connected and written to", below.display())
}

/// In a tree that is bound read-only, the directories that every container mounts on have to be there.
fn require_mount_points(base: &Path) -> Result<()> {
    let missing: Vec<&str> = ["dev", "proc", "sys"].into_iter().filter(|name| !base.join(name).is_dir()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, "use the directory as a root")
        .path(base)
        .because(format!(
            "it has no directory {}, and none can be made: without an overlay over the whole of it (which a user \
             namespace has only where nothing is mounted inside) it is read-only",
            missing.join(", ")
        ))
        .remedy("make the missing directories, or unmount what is mounted inside"))
}

fn canonical(base: &Path) -> Result<PathBuf> {
    let fail = |error| Error::io("use the directory as a root", "realpath", error).path(base);
    let path = std::fs::canonicalize(base).map_err(fail)?;
    if !path.is_dir() {
        return Err(Error::new(ErrorKind::Invalid, "use the directory as a root")
            .path(base)
            .because("it is no directory"));
    }
    Ok(path)
}

/// Owners of the host's directories are no ids of a range, so rootless nothing is given to them.
fn owners(rootless: bool) -> Ownership {
    if rootless { Ownership::Single } else { Ownership::Full }
}

struct Maker<'a> {
    dir: &'a Path,
    base: &'a Path,
    rootless: bool,
    count: usize,
    inner: Vec<(PathBuf, Mount)>,
    masked: Vec<PathBuf>,
    notes: Vec<String>,
    sockets: Vec<String>,
}

impl Maker<'_> {
    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(self.base).unwrap_or(path).to_owned()
    }

    /// An overlay over one directory that has no mounts inside.
    fn overlay(&mut self, path: &Path) -> Result<()> {
        // Without the right to list or to enter, there is nothing to overlay and nothing to hide.
        let may_enter = || nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok();
        if std::fs::read_dir(path).is_err() && !may_enter() {
            return Ok(());
        }
        let home = self.dir.join("inner");
        directory_at(&home, 0o700)?;
        let place = home.join(self.count.to_string());
        self.count += 1;
        let (upper, work) = (place.join("upper"), place.join("work"));
        directory_at(&place, 0o700)?;
        directory_like(&upper, path, mode_of(path)?, &owners(self.rootless))?;
        directory_at(&work, 0o700)?;
        let mount = Mount::Overlay { lower: vec![path.to_owned()], upper, work };
        self.inner.push((self.relative(path), mount));
        Ok(())
    }

    /// A mount of the host inside the base, where the base itself is an overlay.
    fn cover(&mut self, mount: &Mounted) -> Result<()> {
        if mount.is_lower() {
            return self.overlay(&mount.at);
        }
        if self.temporary(&mount.at, mount.directory) {
            return Ok(());
        }
        // Not carried over: what lies below it is part of the overlay, where a socket or a named pipe is dead.
        if mount.reaches {
            return Ok(());
        }
        self.foreign(mount);
        let bind = Mount::Bind { source: mount.at.clone(), read_only: true, recursive: false };
        self.inner.push((self.relative(&mount.at), bind));
        Ok(())
    }

    /// In a user namespace, a directory below an overlay whose owner has no id there stays closed to everybody, whatever
    /// its mode. What programs need to write to gets an overlay of its own, whose top is ours.
    fn temporary_of_others(&mut self, whole: bool) -> Result<()> {
        for name in TEMPORARY {
            let path = self.base.join(name);
            let mut below = whole;
            let mut taken = false;
            for (at, mount) in &self.inner {
                taken |= at == Path::new(name);
                below |= matches!(mount, Mount::Overlay { .. }) && Path::new(name).starts_with(at);
            }
            // No links on the way: their targets are not in the tree, or have another name there.
            let is_itself = || std::fs::canonicalize(&path).is_ok_and(|real| real == path);
            if below && !taken && is_of_others(&path) && is_itself() {
                self.overlay(&path)?;
            }
        }
        Ok(())
    }

    /// Says what one overlay over all of a tree of somebody else's means in a user namespace.
    fn tell_of_others(&mut self) {
        if is_of_others(self.base) {
            self.notes.push(format!(
                "{} belongs to another user: in a user namespace, what others own in it cannot be written; directly in \
                 it and in its tmp and var/tmp, writes are possible and discarded",
                self.base.display()
            ));
        }
    }

    /// Says that a mount is bound as it is.
    fn foreign(&mut self, mount: &Mounted) {
        let (at, kind) = (mount.at.display(), &mount.kind);
        self.notes.push(format!("{at} ({kind}) cannot be overlaid and is read-only"));
        if mount.directory {
            self.connectable(&mount.at);
        }
    }

    /// Says that sockets and named pipes may lie there that nothing covers.
    fn connectable(&mut self, at: &Path) {
        self.sockets.push(reachable(at));
    }

    /// A directory for temporary files that cannot be overlaid: an empty one, thrown away as the rest is.
    fn temporary(&mut self, path: &Path, directory: bool) -> bool {
        let relative = self.relative(path);
        let is = directory && TEMPORARY.iter().any(|name| relative == Path::new(name));
        if is {
            self.notes.push(format!("{} has mounts that cannot be overlaid and is shown empty", path.display()));
            self.inner.push((relative, Mount::Tmpfs { mode: 0o1777 }));
        }
        is
    }

    /// Overlays over the directories below `at` that have no mounts inside; into the others it goes down.
    ///
    /// `foreign`: `at` lies on a file system that is no lower layer.
    fn descend(&mut self, at: &Path, mounts: &[Mounted], foreign: bool) -> Result<()> {
        let Ok(entries) = std::fs::read_dir(at) else {
            self.notes.push(format!("{} cannot be listed", at.display()));
            self.connectable(at);
            return Ok(());
        };
        let mut names: Vec<(PathBuf, std::fs::FileType)> = entries
            .filter_map(|entry| entry.ok())
            .filter_map(|entry| Some((entry.path(), entry.file_type().ok()?)))
            .collect();
        names.sort_by(|a, b| a.0.cmp(&b.0));
        for (path, kind) in names {
            if is_own(self.base, &path) {
                continue;
            }
            let itself = mounts.iter().find(|mount| mount.at == path);
            // The directory's entry tells of what the mount lies on.
            if itself.map_or(kind.is_socket() || kind.is_fifo(), |mount| mount.reaches) {
                self.masked.push(self.relative(&path));
            }
            if !kind.is_dir() {
                continue;
            }
            let inside = mounts.iter().any(|mount| mount.at.starts_with(&path) && mount.at != path);
            let foreign = itself.map_or(foreign, |mount| !mount.is_lower());
            if (inside || foreign) && self.temporary(&path, true) {
                continue;
            }
            match (inside, foreign, itself) {
                (true, ..) => {
                    self.notes.push(format!("{} has mounts inside and is itself read-only", path.display()));
                    self.descend(&path, mounts, foreign)?;
                }
                (false, true, Some(mount)) => self.foreign(mount),
                (false, true, None) => {
                    self.notes.push(format!("{} cannot be overlaid and is read-only", path.display()));
                    self.connectable(&path);
                }
                (false, false, _) => self.overlay(&path)?,
            }
        }
        Ok(())
    }
}

/// Whether it is a directory that belongs to another user.
fn is_of_others(path: &Path) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    std::fs::symlink_metadata(path).is_ok_and(|status| status.is_dir() && status.uid() != own)
}

fn is_own(base: &Path, path: &Path) -> bool {
    let relative = path.strip_prefix(base).unwrap_or(path);
    OWN.iter().any(|own| relative.starts_with(own))
}

/// Those of `mounts` below `base` (not `base` itself) that are visible and that a container sees, parents first.
fn visible(mut mounts: Vec<Mounted>, base: &Path) -> Vec<Mounted> {
    // Before any of them is asked: one whose server is gone does not answer.
    mounts.retain(|mount| mount.at.starts_with(base) && mount.at != base && !is_own(base, &mount.at));
    // A later mount at the same place covers the earlier one; the sort keeps their order.
    mounts.sort_by(|a, b| a.at.cmp(&b.at));
    let mut visible: Vec<Mounted> = vec![];
    for mut mount in mounts {
        let kind = sys::fs::c_string(mount.at.as_os_str().as_bytes()).and_then(|path| sys::fs::type_unasked(&path));
        // Out of this user's reach, or below something that covers it.
        let Ok(kind) = kind else { continue };
        (mount.directory, mount.reaches) = (kind == libc::S_IFDIR, matches!(kind, libc::S_IFSOCK | libc::S_IFIFO));
        match visible.last_mut() {
            Some(last) if last.at == mount.at => *last = mount,
            _ => visible.push(mount),
        }
    }
    visible
}

/// Mount points and types of a mountinfo table, see proc_pid_mountinfo(5).
fn parse(table: &[u8]) -> Vec<Mounted> {
    let mut mounts = vec![];
    for line in table.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        let Some(at) = fields.nth(4) else { continue };
        let Some(kind) = fields.skip_while(|field| *field != b"-").nth(1) else { continue };
        mounts.push(Mounted {
            at: PathBuf::from(std::ffi::OsString::from_vec(unescape(at))),
            kind: String::from_utf8_lossy(kind).into_owned(),
            directory: true,
            reaches: false,
        });
    }
    mounts
}

/// Undoes `\040` and the like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn mounted(at: &Path, kind: &str) -> Mounted {
        Mounted { at: at.to_owned(), kind: kind.into(), directory: true, reaches: false }
    }

    #[test]
    fn mountinfo_is_read_as_the_manual_says() {
        let table = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw\n\n1 2 3 4";
        assert_eq!(parse(table), [mounted(Path::new("/mnt 2"), "ext3")]);
    }

    #[test]
    fn what_a_container_has_of_its_own_is_not_even_asked_for() {
        let base = tempfile::tempdir().unwrap();
        let at = |name: &str| base.path().join(name);
        std::fs::create_dir_all(at("sys/fs")).unwrap();
        std::fs::create_dir_all(at("srv/gone")).unwrap();
        let all = [at("sys/fs"), at("srv/gone"), at("srv"), at("srv/absent"), base.path().into()];
        let seen = visible(all.iter().map(|path| mounted(path, "ext4")).collect(), base.path());
        assert_eq!(seen, [mounted(&at("srv"), "ext4"), mounted(&at("srv/gone"), "ext4")]);
    }

    #[test]
    fn on_the_way_down_sockets_and_named_pipes_are_covered_and_the_rest_is_told() {
        let (base, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |name: &str| base.path().join(name);
        for name in ["etc", "srv/data", "srv/disk", "srv/fuse", "tmp/disk", "var/tmp", "dev"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        let listen = |name: &str| std::os::unix::net::UnixListener::bind(at(name)).unwrap();
        let _sockets = ["top.sock", "srv/in.sock", "etc/below.sock", "tmp/x.sock", "dev/x"].map(listen);
        for name in ["fifo", "srv/fifo", "etc/below.fifo"] {
            nix::unistd::mkfifo(&at(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        std::fs::write(at("srv/file"), b"").unwrap();
        let mounts = [
            mounted(&at("srv/disk"), "ext4"),
            Mounted { reaches: true, directory: false, ..mounted(&at("srv/file"), "ext4") },
            mounted(&at("srv/fuse"), "fuse"),
            mounted(&at("tmp/disk"), "ext4"),
        ];
        let mut maker = Maker {
            dir: home.path(),
            base: base.path(),
            rootless: true,
            count: 0,
            inner: vec![],
            masked: vec![],
            notes: vec![],
            sockets: vec![],
        };
        maker.descend(base.path(), &mounts, false).unwrap();
        assert_eq!(maker.masked, ["fifo", "srv/fifo", "srv/file", "srv/in.sock", "top.sock"].map(PathBuf::from));
        let overlays: Vec<_> =
            maker.inner.iter().filter(|(_, mount)| matches!(mount, Mount::Overlay { .. })).map(|(at, _)| at).collect();
        assert_eq!(overlays, ["etc", "srv/data", "srv/disk", "var"].map(Path::new).iter().collect::<Vec<_>>());
        assert!(maker.inner.contains(&("tmp".into(), Mount::Tmpfs { mode: 0o1777 })));
        let told = |name: &str| maker.notes.iter().any(|note| note.starts_with(&format!("{} ", at(name).display())));
        assert_eq!(["srv", "srv/fuse", "tmp", "var"].map(told), [true, true, true, false]);
        let told = format!("the host's sockets and named pipes below {} can be", at("srv/fuse").display());
        assert!(maker.sockets.len() == 1 && maker.sockets[0].starts_with(&told), "{:?}", maker.sockets);
    }

    #[test]
    fn without_root_what_others_own_is_told_and_tmp_is_writable() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP: only root can make directories of others");
            return;
        }
        let (base, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for name in ["tmp", "var/tmp", "etc"] {
            std::fs::create_dir_all(base.path().join(name)).unwrap();
        }
        let seen = || {
            let dir = tempfile::tempdir_in(home.path()).unwrap();
            let made = snapshot(dir.path(), base.path(), true).unwrap();
            assert!(matches!(made.root, Mount::Overlay { .. }));
            (made.inner.into_iter().map(|(at, _)| at).collect::<Vec<_>>(), made.notes.len())
        };
        assert_eq!(seen(), (vec![], 0));
        for path in [base.path().to_owned(), base.path().join("tmp"), base.path().join("var/tmp")] {
            std::os::unix::fs::chown(path, Some(12_345), None).unwrap();
        }
        assert_eq!(seen(), (vec![PathBuf::from("tmp"), PathBuf::from("var/tmp")], 1));
        // What a link leads to is not ours to lay something over.
        std::fs::remove_dir(base.path().join("tmp")).unwrap();
        std::os::unix::fs::symlink("var/tmp", base.path().join("tmp")).unwrap();
        assert_eq!(seen().0, [PathBuf::from("var/tmp")]);
    }

    #[test]
    fn a_bound_tree_without_mount_points_is_refused_by_their_names() {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir(base.path().join("proc")).unwrap();
        let error = read_only(base.path()).unwrap_err().to_string();
        assert!(error.contains("dev, sys"), "{error}");
    }
}
