//! Snapshots over a directory of the host: the tree as it is, writes thrown away.
//!
//! An overlay does not show the mounts inside its lower directory, so every mount of the host below the base gets an
//! overlay (or a read-only bind) of its own. In a user namespace the kernel also refuses an overlay over a tree that
//! *has* mounts inside; there the root is a recursive read-only bind, and the directories without mounts inside get the
//! overlays.

use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::overlay::mode_of;
use super::{Mount, Snapshot, directory_at};
use crate::{Error, ErrorKind, Result};

/// Directories that a container has of its own: what the host mounts there is not carried over.
const OWN: [&str; 4] = ["proc", "sys", "dev", "run"];

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
}

pub(super) fn snapshot(dir: &Path, base: &Path, rootless: bool) -> Result<Snapshot> {
    let base = canonical(base)?;
    let below = mounts_below(&base)?;
    let mut maker = Maker { dir, base: &base, count: 0, inner: vec![], notes: vec![] };
    let root = if rootless {
        maker.descend(&base, &below)?;
        Mount::Bind { source: base.clone(), read_only: true, recursive: true }
    } else {
        let (upper, work) = (dir.join("upper"), dir.join("work"));
        directory_at(&upper, mode_of(&base)?)?;
        directory_at(&work, 0o700)?;
        for mount in &below {
            maker.cover(mount)?;
        }
        Mount::Overlay { lower: vec![base.clone()], upper, work }
    };
    if base == Path::new("/") || base.join("run").is_dir() {
        // Sockets of the host's services live there.
        maker.inner.push(("run".into(), Mount::Tmpfs { mode: 0o755 }));
    }
    Ok(Snapshot { root, inner: maker.inner, notes: maker.notes })
}

/// The tree with nothing writable, for hosts without overlay.
pub(super) fn read_only(base: &Path) -> Result<Snapshot> {
    let base = canonical(base)?;
    let inner = if base.join("run").is_dir() { vec![("run".into(), Mount::Tmpfs { mode: 0o755 })] } else { vec![] };
    let notes = vec![format!("overlay cannot be used here, so nothing below {} can be written", base.display())];
    Ok(Snapshot { root: Mount::Bind { source: base, read_only: true, recursive: true }, inner, notes })
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

struct Maker<'a> {
    dir: &'a Path,
    base: &'a Path,
    count: usize,
    inner: Vec<(PathBuf, Mount)>,
    notes: Vec<String>,
}

impl Maker<'_> {
    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(self.base).unwrap_or(path).to_owned()
    }

    /// An overlay over one directory that has no mounts inside.
    fn overlay(&mut self, path: &Path) -> Result<()> {
        // Without the right to enter, there is nothing to overlay and nothing to hide.
        if std::fs::read_dir(path).is_err() {
            return Ok(());
        }
        let home = self.dir.join("inner");
        directory_at(&home, 0o700)?;
        let place = home.join(self.count.to_string());
        self.count += 1;
        let (upper, work) = (place.join("upper"), place.join("work"));
        directory_at(&place, 0o700)?;
        directory_at(&upper, mode_of(path)?)?;
        directory_at(&work, 0o700)?;
        let mount = Mount::Overlay { lower: vec![path.to_owned()], upper, work };
        self.inner.push((self.relative(path), mount));
        Ok(())
    }

    /// A mount of the host inside the base, rootful.
    fn cover(&mut self, mount: &Mounted) -> Result<()> {
        if self.is_own(&mount.at) {
            return Ok(());
        }
        if mount.directory && LOWER.contains(&mount.kind.as_str()) {
            return self.overlay(&mount.at);
        }
        self.notes.push(format!("{} ({}) cannot be overlaid and is read-only", mount.at.display(), mount.kind));
        let bind = Mount::Bind { source: mount.at.clone(), read_only: true, recursive: false };
        self.inner.push((self.relative(&mount.at), bind));
        Ok(())
    }

    fn is_own(&self, path: &Path) -> bool {
        OWN.iter().any(|own| self.relative(path).starts_with(own))
    }

    /// Overlays over the directories below `at` that have no mounts inside; into the others it goes down.
    fn descend(&mut self, at: &Path, mounts: &[Mounted]) -> Result<()> {
        let Ok(entries) = std::fs::read_dir(at) else { return Ok(()) };
        let mut names: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok())
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        names.sort();
        for path in names {
            if self.is_own(&path) {
                continue;
            }
            let inside = mounts.iter().any(|mount| mount.at.starts_with(&path) && mount.at != path);
            let itself = mounts.iter().find(|mount| mount.at == path);
            match (inside, itself) {
                (true, _) => self.descend(&path, mounts)?,
                (false, Some(mount)) if !LOWER.contains(&mount.kind.as_str()) => {}
                (false, _) => self.overlay(&path)?,
            }
        }
        Ok(())
    }
}

/// The mounts below `base` (not `base` itself) that are visible, parents first.
fn mounts_below(base: &Path) -> Result<Vec<Mounted>> {
    let table = std::fs::read("/proc/self/mountinfo")
        .map_err(|error| Error::io("list the mounts of the host", "read", error).path("/proc/self/mountinfo"))?;
    let mut mounts = parse(&table);
    mounts.retain(|mount| mount.at.starts_with(base) && mount.at != base);
    // A later mount at the same place covers the earlier one; the sort keeps their order.
    mounts.sort_by(|a, b| a.at.cmp(&b.at));
    let mut visible: Vec<Mounted> = vec![];
    for mut mount in mounts {
        match std::fs::symlink_metadata(&mount.at) {
            Ok(status) => mount.directory = status.is_dir(),
            // Out of this user's reach, or below something that covers it.
            Err(_) => continue,
        }
        match visible.last_mut() {
            Some(last) if last.at == mount.at => *last = mount,
            _ => visible.push(mount),
        }
    }
    Ok(visible)
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
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_as_the_manual_says() {
        let table = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw\n\n1 2 3 4";
        let expected = Mounted { at: "/mnt 2".into(), kind: "ext3".into(), directory: true };
        assert_eq!(parse(table), [expected]);
    }
}
