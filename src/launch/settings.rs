//! Steps of a plan for what the spec says of a process and its namespaces besides the tree; see [`super::plan`].

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::plan::{Plan, Reg, Subject};
use super::protocol::{NONE, Op, PLAN_JOINS};

/// How a process is scheduled, as sched_setattr(2) takes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Scheduling {
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    pub(crate) runtime: u64,
    pub(crate) deadline: u64,
    pub(crate) period: u64,
}

impl Plan {
    /// Writes a setting: in this procfs, or without one through the verified handle. `path` is below `/proc/sys`.
    pub(crate) fn sysctl(&mut self, procfs: Option<Reg>, path: &str, value: &str) {
        self.step(Op::Sysctl, Subject::Text(format!("{path} = {value}")), |p| {
            p.u32(procfs.map_or(NONE, Reg::number));
            p.str(format!("sys/{path}").as_bytes());
            p.str(value.as_bytes());
        });
    }

    /// A step that writes one string.
    pub(crate) fn put(&mut self, op: Op, value: &str) {
        self.step(op, Subject::Text(value.trim().to_owned()), |p| p.str(value.as_bytes()));
    }

    /// How the process is scheduled.
    pub(crate) fn scheduler(&mut self, name: String, scheduling: Scheduling) {
        self.step(Op::Scheduler, Subject::Text(name), |p| {
            p.u32(scheduling.policy);
            p.u64(scheduling.flags);
            p.u32(scheduling.nice as u32);
            p.u32(scheduling.priority);
            p.u64(scheduling.runtime);
            p.u64(scheduling.deadline);
            p.u64(scheduling.period);
        });
    }

    /// The processors that it may run on, one bit each.
    pub(crate) fn affinity(&mut self, list: &str, mask: &[u8]) {
        self.step(Op::Affinity, Subject::Text(list.to_owned()), |p| p.str(mask));
    }

    /// The label that a security module gives the command; `path` is below `/proc`.
    pub(crate) fn label(&mut self, path: &str, label: &str) {
        self.step(Op::Label, Subject::Text(label.to_owned()), |p| {
            p.str(path.as_bytes());
            p.str(label.as_bytes());
        });
    }

    /// Enters a namespace of one kind (`CLONE_NEW*`) by a descriptor of it; `what` is told should that fail.
    pub(crate) fn setns(&mut self, namespace: Reg, kind: u64, what: String) {
        self.step(Op::Setns, Subject::Text(what), |p| {
            p.u32(namespace.number());
            p.u64(kind);
        });
    }

    /// Waits for the hooks; `open`: meanwhile it can be joined by this program without root.
    pub(crate) fn pause(&mut self, socket: Reg, open: bool) {
        self.step(Op::Pause, Subject::Nothing, |p| {
            p.u32(socket.number());
            p.u32(open.into());
        });
    }

    /// Makes files as theirs from here on, until the user is changed.
    pub(crate) fn file_ids(&mut self, uid: u32, gid: u32) {
        self.step(Op::FileIds, Subject::Text(format!("{uid}:{gid}")), |p| {
            p.u32(uid);
            p.u32(gid);
        });
    }

    /// Goes on in a process that is in the pid and time namespaces of one's children.
    pub(crate) fn fork(&mut self) {
        self.flags |= PLAN_JOINS;
        self.plain(Op::Fork);
    }

    /// A detached mount shows ids as a user namespace maps them.
    pub(crate) fn idmap(&mut self, mount: Reg, namespace: Reg, recursive: bool, source: &Path) {
        self.step(Op::Idmap, Subject::Path(source.to_owned()), |p| {
            p.u32(mount.number());
            p.u32(namespace.number());
            p.u32(recursive.into());
        });
    }

    /// Attaches a mount over its own source, a directory of the engine's.
    pub(crate) fn cover_source(&mut self, mount: Reg, path: &Path) {
        self.step(Op::Cover, Subject::Path(path.to_owned()), |p| {
            p.u32(mount.number());
            p.str(path.as_os_str().as_bytes());
        });
    }

    /// Owner and mode of a node of our own making.
    pub(crate) fn owner(&mut self, dir: Reg, name: &str, uid: u32, gid: u32, mode: u32) {
        self.step(Op::Owner, Subject::Path(name.into()), |p| {
            p.u32(dir.number());
            p.str(name.as_bytes());
            p.u32(uid);
            p.u32(gid);
            p.u32(mode);
        });
    }
}
