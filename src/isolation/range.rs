//! Work on files with a range of subordinate ids: what this process may not do itself, a stub in a user namespace does.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::Identity;
use super::namespaces::enter;
use crate::launch::{self, Op, Payload, Plan};
use crate::layer::{Owner, Reown};
use crate::probe::IdRange;
use crate::sys::usage::{self, Measured, Usage};
use crate::{Error, ErrorKind, Result};

const CLONE_NEWUSER: u64 = 0x1000_0000;

/// Acts on files as the root of a user namespace with the caller's range.
#[derive(Debug)]
pub(crate) struct Range {
    identity: Identity,
    root: PathBuf,
    /// Only held open by the guardian while it works.
    lease: File,
}

impl Range {
    /// `root` is the engine's root.
    pub(crate) fn new(identity: &Identity, root: &Path) -> Result<Range> {
        let lease = File::open(root).map_err(|error| Error::io("open the engine's root", "open", error).path(root))?;
        Ok(Range { identity: identity.clone(), root: root.to_owned(), lease })
    }

    fn run(&self, build: impl FnOnce(&mut Plan) -> Result<()>) -> Result<()> {
        let mut plan = Plan::new(CLONE_NEWUSER);
        plan.plain(Op::DieWithParent);
        enter(&mut plan, &self.identity, (0, 0));
        build(&mut plan)?;
        plan.plain(Op::Done);
        let process = launch::launch(plan, self.lease.as_fd(), &self.root.join("tmp"))?;
        match process.wait(None)?.and_then(|ended| ended.code) {
            Some(0) => Ok(()),
            _ => Err(Error::new(ErrorKind::Io, "work on files in the user namespace").because("the helper was killed")),
        }
    }
}

impl Reown for Range {
    fn reown(&self, tree: BorrowedFd<'_>, owners: &[Owner]) -> Result<()> {
        let mut bytes = Vec::new();
        let mut list = Payload(&mut bytes);
        for owner in owners {
            // The kernel has no empty path.
            list.str(if owner.path.is_empty() { b"." } else { &owner.path });
            list.u32(owner.uid);
            list.u32(owner.gid);
            list.u32(owner.mode.unwrap_or(u32::MAX));
            list.u32(owner.xattrs.len() as u32);
            for (name, value) in &owner.xattrs {
                list.str(name);
                list.str(value);
            }
        }
        let list = launch::in_memory(&bytes)?;
        self.run(|plan| {
            let tree = plan.send_copy(tree)?;
            let list = plan.send(list);
            plan.reown(tree, list);
            Ok(())
        })
    }

    fn container_ids(&self, uid: u32, gid: u32) -> (u32, u32) {
        let Identity::Range { uid: own_uid, gid: own_gid, uids, gids, .. } = &self.identity else { return (uid, gid) };
        (inside(uid, *own_uid, uids), inside(gid, *own_gid, gids))
    }

    fn remove(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        self.run(|plan| {
            let parent = plan.send_copy(parent)?;
            plan.remove_tree(parent, name);
            Ok(())
        })
    }

    fn measure(&self, dir: BorrowedFd<'_>) -> Result<Measured> {
        let fail = |syscall| move |error| Error::io("measure a directory", syscall, error);
        // As a rule this user can enter everything, and needs nobody for it.
        match usage::measure(dir) {
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => {}
            other => return other.map_err(fail("open")),
        }
        // A file: the helper has ended before anybody would read a pipe.
        let mut out = tempfile::tempfile_in(self.root.join("tmp")).map_err(fail("open"))?;
        self.run(|plan| {
            let dir = plan.send_copy(dir)?;
            let out = plan.send_copy(&out)?;
            plan.measure(dir, out);
            Ok(())
        })?;
        let mut records = Vec::new();
        out.rewind().and_then(|()| out.read_to_end(&mut records)).map_err(fail("read"))?;
        Ok(measured(&records))
    }
}

/// Reads the stub's records: `device, inode, inodes, bytes`; inode 0 stands for files without another name.
fn measured(records: &[u8]) -> Measured {
    let mut measured = Measured::default();
    let (records, _) = records.as_chunks::<32>();
    for record in records {
        let (words, _) = record.as_chunks::<8>();
        let word = |at: usize| words.get(at).map_or(0, |word| u64::from_ne_bytes(*word));
        match (word(0), word(1)) {
            (_, 0) => measured.add_single(Usage { inodes: word(2), bytes: word(3) }),
            // As stat(2) has the number of a device, so that both counts know a file by the same number.
            (device, inode) => measured.add_linked(libc::makedev((device >> 32) as u32, device as u32), inode, word(3)),
        }
    }
    measured
}

/// The id inside: the caller is 0, the ranges follow from 1 on; 65534, as the kernel has it, for everybody else.
fn inside(id: u32, own: u32, ranges: &[IdRange]) -> u32 {
    const NOBODY: u32 = 65534;
    if id == own {
        return 0;
    }
    let mut first = 1u32;
    for range in ranges {
        if let Some(offset) = id.checked_sub(range.start).filter(|offset| *offset < range.count) {
            return first.saturating_add(offset);
        }
        first = first.saturating_add(range.count);
    }
    NOBODY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_seen_as_the_map_says() {
        let ranges = [IdRange { start: 100_000, count: 10 }, IdRange { start: 500_000, count: 5 }];
        assert_eq!(inside(1000, 1000, &ranges), 0);
        assert_eq!(inside(100_009, 1000, &ranges), 10);
        assert_eq!(inside(500_000, 1000, &ranges), 11);
        assert_eq!(inside(0, 1000, &ranges), 65534);
    }
}
