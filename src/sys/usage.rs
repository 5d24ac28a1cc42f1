//! What a tree takes on its file system, as du(1) counts it.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::fs::{self, Stat};

/// Space and inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes of the blocks that are allocated: what `du --block-size=1` says, not the lengths of the files.
    pub bytes: u64,
    /// Files, directories, links and all else that has an inode.
    pub inodes: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Usage) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.inodes = self.inodes.saturating_add(other.inodes);
    }
}

/// What was found in some trees. Files with several names are kept apart, so that the sum of trees that share such
/// files counts each of them once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Measured {
    single: Usage,
    /// By device and inode.
    linked: HashMap<(u64, u64), u64>,
}

impl Measured {
    /// Everything that was found, each file once.
    pub fn usage(&self) -> Usage {
        let mut usage = self.single;
        for bytes in self.linked.values() {
            usage += Usage { bytes: *bytes, inodes: 1 };
        }
        usage
    }

    /// Adds what was found elsewhere, and says what that comes to: files that were known already count nothing.
    pub fn absorb(&mut self, other: Measured) -> Usage {
        let mut more = other.single;
        self.single += other.single;
        for (file, bytes) in other.linked {
            if self.linked.insert(file, bytes).is_none() {
                more += Usage { bytes, inodes: 1 };
            }
        }
        more
    }

    /// Adds what somebody else has counted on the device: files that have no other name.
    pub(crate) fn add_single(&mut self, usage: Usage) {
        self.single += usage;
    }

    /// Adds a file that has other names.
    pub(crate) fn add_linked(&mut self, device: u64, inode: u64, bytes: u64) {
        self.linked.insert((device, inode), bytes);
    }

    #[allow(clippy::unnecessary_cast)] // The widths differ between platforms.
    fn add(&mut self, stat: &Stat) {
        let bytes = (stat.st_blocks as u64).saturating_mul(512);
        // Every directory has several links, and one name.
        if stat.st_nlink as u64 > 1 && !is_directory(stat) {
            self.add_linked(stat.st_dev as u64, stat.st_ino as u64, bytes);
        } else {
            self.add_single(Usage { bytes, inodes: 1 });
        }
    }
}

fn is_directory(stat: &Stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

/// Measures `dir` and everything below it: `measure(dir)?.usage()` is what du(1) says. No symlink is followed. Subvolumes inside are counted, and with them, as du(1) does, what is mounted inside.
///
/// May run while others change the tree: what goes meanwhile may or may not be counted. Two descriptors are enough
/// however deep the tree is; memory follows the number of directories that wait for their turn.
///
/// # Errors
/// What open(2) says of a directory: `EACCES` where it belongs to another id of this user's range; `EAGAIN` where
/// directories were moved away under the walk.
pub(crate) fn measure(dir: BorrowedFd<'_>) -> io::Result<Measured> {
    let mut measured = Measured::default();
    let stat = fs::fstat(dir)?;
    measured.add(&stat);
    let mut at = fs::open_dir(dir, c".")?;
    let mut level = Level::of(&at, &stat, &mut measured)?;
    let mut above: Vec<Level> = Vec::new();
    loop {
        if let Some(name) = level.directories.pop() {
            let child = match fs::open_dir(at.as_fd(), &name) {
                // It was removed, or replaced by something else.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {
                    continue;
                }
                other => other?,
            };
            let stat = fs::fstat(child.as_fd())?;
            measured.add(&stat);
            let below = Level::of(&child, &stat, &mut measured)?;
            above.push(std::mem::replace(&mut level, below));
            at = child;
        } else if let Some(upper) = above.pop() {
            let parent = fs::open_dir(at.as_fd(), c"..")?;
            let stat = fs::fstat(parent.as_fd())?;
            if (stat.st_dev, stat.st_ino) != upper.id {
                return Err(io::Error::from_raw_os_error(libc::EAGAIN));
            }
            (at, level) = (parent, upper);
        } else {
            return Ok(measured);
        }
    }
}

/// Measures `name` in `dir`, whatever it is, and everything below it; nothing where it is not there.
pub(crate) fn measure_at(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Measured> {
    match (fs::lstatat(dir, name), fs::open_dir(dir, name)) {
        (Ok(stat), Ok(open)) if is_directory(&stat) => measure(open.as_fd()),
        (Ok(stat), Err(error)) if is_directory(&stat) => Err(error),
        (Ok(stat), _) => {
            let mut measured = Measured::default();
            measured.add(&stat);
            Ok(measured)
        }
        (Err(error), _) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Measured::default()),
        (Err(error), _) => Err(error),
    }
}

/// What `dir` takes without anything that is in it.
pub(crate) fn measure_itself(dir: BorrowedFd<'_>) -> io::Result<Measured> {
    let mut measured = Measured::default();
    measured.add(&fs::fstat(dir)?);
    Ok(measured)
}

/// A directory on the way down.
struct Level {
    id: (libc::dev_t, libc::ino_t),
    /// Those in it that have not been entered yet.
    directories: Vec<CString>,
}

impl Level {
    /// Counts what is in `dir`, but for the directories, which are counted when they are entered.
    fn of(dir: &OwnedFd, stat: &Stat, measured: &mut Measured) -> io::Result<Level> {
        let mut directories = Vec::new();
        let names = match fs::names(dir.as_fd()) {
            // A directory that has been removed meanwhile cannot be read.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Vec::new(),
            other => other?,
        };
        for name in names {
            match fs::lstatat(dir.as_fd(), &name) {
                Ok(found) if is_directory(&found) => directories.push(name),
                Ok(found) => measured.add(&found),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Level { id: (stat.st_dev, stat.st_ino), directories })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn du(path: &Path) -> u64 {
        let out = std::process::Command::new("du").args(["-s", "--block-size=1"]).arg(path).output().unwrap();
        String::from_utf8(out.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    fn it_is_what_du_says() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("tree");
        std::fs::create_dir_all(root.join("a/b/c")).unwrap();
        std::fs::write(root.join("a/file"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(root.join("a/file"), root.join("a/b/again")).unwrap();
        std::fs::hard_link(root.join("a/file"), place.path().join("outside")).unwrap();
        std::fs::write(root.join("a/b/c/small"), "x").unwrap();
        File::create(root.join("sparse")).unwrap().set_len(1 << 30).unwrap();
        symlink("/usr", root.join("link")).unwrap();
        let measured = measure(File::open(&root).unwrap().as_fd()).unwrap();
        assert_eq!(measured.usage(), Usage { bytes: du(&root), inodes: 8 });
        // Trees that share a file count it once.
        let mut all = measured.clone();
        let again = all.absorb(measured.clone());
        assert_eq!(again, measured.single);
        assert_eq!(all.usage().inodes, 15);
    }

    #[test]
    fn depth_costs_no_descriptors() {
        let place = tempfile::tempdir().unwrap();
        let top = File::open(place.path()).unwrap();
        let mut dir: OwnedFd = top.try_clone().unwrap().into();
        for _ in 0..3000 {
            fs::mkdirat(dir.as_fd(), c"d", 0o700).unwrap();
            dir = fs::open_dir(dir.as_fd(), c"d").unwrap();
        }
        assert_eq!(measure(top.as_fd()).unwrap().usage().inodes, 3001);
        fs::remove_tree(top.as_fd(), "d".as_ref()).unwrap();
    }
}
