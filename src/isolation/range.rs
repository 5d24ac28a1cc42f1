//! Work on files with a range of subordinate ids: what this process may not do itself, a stub in a user namespace does.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::Identity;
use super::namespaces::enter;
use crate::launch::{self, Op, Payload, Plan};
use crate::layer::{Owner, Reown};
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
            list.str(&owner.path);
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

    fn remove(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        self.run(|plan| {
            let parent = plan.send_copy(parent)?;
            plan.remove_tree(parent, name);
            Ok(())
        })
    }
}
