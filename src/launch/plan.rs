//! The launch plan: written here, in the parent, where everything may fail politely; walked by the stub.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::protocol::{
    MAGIC, MAX_FDS, MAX_PLAN, MAX_REGISTERS, NONE, Op, PLAN_HEADER, PLAN_JOINS, PLAN_MAP_HELPER, PLAN_TREE,
};
use crate::error::{Error, ErrorKind, Result};
use crate::security::Landlock;

/// A descriptor in the child: one that was sent along, or one that a step opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reg(u32);

impl Reg {
    pub(super) fn number(self) -> u32 {
        self.0
    }
}

/// What a step is about, for the sentence that is written should it fail.
#[derive(Clone, Debug)]
pub(crate) enum Subject {
    Nothing,
    Path(PathBuf),
    Text(String),
    /// Several, picked by the report's detail.
    Many(Vec<String>),
}

/// How a mount point comes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Create {
    No,
    Directory,
    File,
}

/// When a step is done that lies in the way of those that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// In its turn.
    Now,
    /// After everything else, right before the command is executed: first the filter, then the capabilities.
    Held,
}

/// Where a mount may be attached.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Care {
    /// Without a mount point it is left out.
    pub(crate) optional: bool,
    /// Refused on kernel file systems.
    pub(crate) guarded: bool,
    /// Refused where the way to the mount point has a symbolic link.
    pub(crate) no_links: bool,
}

/// A mount that was attached, and the magic number of the file system that it shows (0: any).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Base(pub(crate) Reg, pub(crate) u32);

/// A plan under construction: the list of steps that a container's first process walks between clone and exec.
///
/// A backend of isolation makes one by [`Request::bare_plan`](crate::isolation::Request::bare_plan), or has another backend
/// make it, and adds steps: they are done after all that are there, right before the command is executed. What a plan holds is
/// checked again by the program that walks it, so that no plan can do more to that than fail.
pub struct Plan {
    bytes: Vec<u8>,
    /// The step that ends it, whatever is added: what to execute.
    last: Option<(Vec<u8>, Subject)>,
    /// The container's streams, once they are known.
    stdio: Option<[Reg; 3]>,
    fds: Vec<OwnedFd>,
    next: u32,
    steps: Vec<(Op, Subject)>,
    namespaces: u64,
    cgroup: u32,
    pub(super) flags: u32,
    /// Paths of the command are not the host's.
    has_own_tree: bool,
}

impl std::fmt::Debug for Plan {
    /// The steps by name.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.steps.iter().map(|(op, _)| op.name())).finish()
    }
}

impl Plan {
    /// A plan for a process in new namespaces of these `CLONE_NEW*` kinds.
    pub(crate) fn new(namespaces: u64) -> Plan {
        Plan {
            bytes: Vec::with_capacity(8192),
            last: None,
            stdio: None,
            fds: Vec::new(),
            next: MAX_FDS as u32 + 3,
            steps: Vec::with_capacity(64),
            namespaces,
            cgroup: NONE,
            flags: 0,
            has_own_tree: namespaces & libc::CLONE_NEWNS as u64 != 0,
        }
    }

    /// Sends a descriptor along.
    pub(crate) fn send(&mut self, fd: OwnedFd) -> Reg {
        self.fds.push(fd);
        Reg(self.fds.len() as u32 - 1)
    }

    /// Sends a copy of a descriptor along.
    pub(crate) fn send_copy(&mut self, fd: impl AsFd) -> Result<Reg> {
        let copy = fd.as_fd().try_clone_to_owned().map_err(|error| Error::io("prepare the launch", "fcntl", error))?;
        Ok(self.send(copy))
    }

    /// The process is born in this cgroup v2 directory.
    pub(crate) fn born_in(&mut self, cgroup: Reg) {
        self.cgroup = cgroup.0;
    }

    fn fresh(&mut self) -> Reg {
        self.next += 1;
        Reg(self.next - 1)
    }

    pub(super) fn step(&mut self, op: Op, subject: Subject, write: impl FnOnce(&mut Payload<'_>)) {
        self.bytes.extend_from_slice(&(op as u32).to_ne_bytes());
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        write(&mut Payload(&mut self.bytes));
        let length = (self.bytes.len() - at - 4) as u32;
        self.bytes[at..at + 4].copy_from_slice(&length.to_ne_bytes());
        self.steps.push((op, subject));
    }

    /// Paths of the command are those of a mount namespace that is to come.
    pub(crate) fn has_own_tree(&mut self) {
        self.has_own_tree = true;
    }

    /// A step without arguments.
    pub(crate) fn plain(&mut self, op: Op) {
        self.step(op, Subject::Nothing, |_| {});
    }

    /// A step with one word.
    pub(crate) fn word(&mut self, op: Op, value: u32) {
        self.step(op, Subject::Nothing, |p| p.u32(value));
    }

    /// A step with one mask of 64 bits.
    pub(crate) fn mask64(&mut self, op: Op, value: u64) {
        self.step(op, Subject::Nothing, |p| p.u64(value));
    }

    /// A step that is one string.
    pub(crate) fn text(&mut self, op: Op, value: &OsStr) {
        self.step(op, Subject::Text(value.to_string_lossy().into_owned()), |p| p.str(value.as_bytes()));
    }

    /// Writes bytes to a descriptor.
    pub(crate) fn write(&mut self, to: Reg, bytes: &[u8], what: &str) {
        self.step(Op::Write, Subject::Text(what.to_owned()), |p| {
            p.u32(to.0);
            p.str(bytes);
        });
    }

    /// The process writes its own id maps.
    pub(crate) fn map_self(&mut self, uid_map: &str, gid_map: &str, deny_setgroups: bool) {
        self.step(Op::MapSelf, Subject::Text(uid_map.trim().to_owned()), |p| {
            p.str(uid_map.as_bytes());
            p.str(gid_map.as_bytes());
            p.u32(deny_setgroups.into());
        });
    }

    /// newuidmap and newgidmap write the maps; arguments are triples as they take them.
    pub(crate) fn map_helper(&mut self, uid_tool: (&Path, &[String]), gid_tool: (&Path, &[String])) {
        self.flags |= PLAN_MAP_HELPER;
        let subject = Subject::Text(format!("{} {}", uid_tool.0.display(), uid_tool.1.join(" ")));
        self.step(Op::MapHelper, subject, |p| {
            for (tool, arguments) in [uid_tool, gid_tool] {
                p.str(tool.as_os_str().as_bytes());
                p.u32(arguments.len() as u32);
                for argument in arguments {
                    p.str(argument.as_bytes());
                }
            }
        });
    }

    /// Enters the namespaces (`CLONE_NEW*` kinds) of the process that a pidfd stands for.
    pub(crate) fn join(&mut self, process: Reg, kinds: u64) {
        self.step(Op::Join, Subject::Nothing, |p| {
            p.u32(process.0);
            p.u64(kinds);
        });
    }

    /// Goes on in a process that lives in the pid namespace that was joined.
    pub(crate) fn beside(&mut self) {
        self.flags |= PLAN_JOINS;
        self.has_own_tree = true;
        self.plain(Op::Beside);
    }

    /// Stays behind as the parent of all that comes of the command, for containers without a pid namespace.
    pub(crate) fn tree(&mut self) {
        self.flags |= PLAN_TREE;
        self.plain(Op::Tree);
    }

    /// A landlock ruleset that handles these rights.
    pub(crate) fn ruleset(&mut self, fs: u64, net: u64, scoped: u64) -> Reg {
        let out = self.fresh();
        self.step(Op::Ruleset, Subject::Nothing, |p| {
            p.u32(out.0);
            p.u64(fs);
            p.u64(net);
            p.u64(scoped);
        });
        out
    }

    /// Allows rights beneath an open file.
    pub(crate) fn path_rule(&mut self, ruleset: Reg, allowed: u64, beneath: Reg, path: &Path) {
        self.step(Op::PathRule, Subject::Path(path.to_owned()), |p| {
            p.u32(ruleset.0);
            p.u64(allowed);
            p.u32(beneath.0);
        });
    }

    /// Restricts the command by a ruleset, on top of what else restricts it. At most two of them can be in a plan; a profile
    /// with landlock brings one.
    ///
    /// Paths are those that the command sees. Where the container has a tree of its own they are looked for as the launch comes
    /// to this step; where it shares the host's they are opened here and now, so that what is meant is what is allowed.
    /// `abi` is what [`Host::landlock_abi`](crate::probe::Host::landlock_abi) said. No-new-privileges has to be on.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) and the like for a path of the host that cannot be opened.
    pub fn landlock(&mut self, ruleset: &Landlock, abi: u32) -> Result<()> {
        let handled = ruleset.handled(abi);
        let register = self.ruleset(handled.files, handled.network, handled.scoped);
        for (path, rights, optional) in ruleset.rules(abi) {
            if self.has_own_tree {
                let beneath = self.handle(path, optional);
                self.path_rule(register, rights, beneath, path);
                continue;
            }
            use std::os::unix::fs::OpenOptionsExt;
            let opened = File::options().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path);
            let file = match opened {
                Err(error) if optional && error.kind() == std::io::ErrorKind::NotFound => continue,
                other => other.map_err(|error| Error::io("open what landlock allows", "open", error).path(path))?,
            };
            let beneath = self.send(file.into());
            self.path_rule(register, rights, beneath, path);
        }
        self.on(Op::Restrict, register);
        Ok(())
    }

    /// A resource limit (`RLIMIT_*` of getrlimit(2)) of the command, soft and hard.
    pub fn limit(&mut self, resource: u32, limit: u64) {
        self.rlimit(resource, limit, limit, &format!("resource {resource}"));
    }

    /// No gain of privileges by exec, see `PR_SET_NO_NEW_PRIVS` in prctl(2).
    pub fn no_new_privileges(&mut self) {
        self.plain(Op::NoNewPrivileges);
    }

    /// One more system call filter, an array of `struct sock_filter` as
    /// [`Policy::compile`](crate::security::seccomp::Policy::compile) makes it. It is in force for the steps that follow, and for
    /// the command; of all filters the most restrictive answer counts. No-new-privileges has to be on.
    pub fn filter(&mut self, program: &[u8]) {
        self.seccomp(When::Now, program);
    }

    /// A handle on a file of the container's.
    pub(crate) fn handle(&mut self, path: &Path, optional: bool) -> Reg {
        let out = self.fresh();
        self.step(Op::Handle, Subject::Path(path.to_owned()), |p| {
            p.u32(out.0);
            p.str(path.as_os_str().as_bytes());
            p.u32(optional.into());
        });
        out
    }

    /// The directory becomes the root, by chroot(2).
    pub(crate) fn chroot(&mut self, dir: Reg, path: &Path) {
        self.has_own_tree = true;
        self.step(Op::Chroot, Subject::Path(path.to_owned()), |p| p.u32(dir.0));
    }

    /// The null device of the container that was joined.
    pub(crate) fn joined_null(&mut self) -> Reg {
        let out = self.fresh();
        self.step(Op::JoinedNull, Subject::Path("/dev/null".into()), |p| p.u32(out.0));
        out
    }

    /// A working directory that has to be there.
    pub(crate) fn enter(&mut self, path: &Path) {
        self.step(Op::Enter, Subject::Path(path.to_owned()), |p| p.str(path.as_os_str().as_bytes()));
    }

    /// Takes on a user, its group and its supplementary groups.
    pub(crate) fn ids(&mut self, uid: u32, gid: u32, groups: Option<&[u32]>) {
        self.step(Op::Ids, Subject::Text(format!("{uid}:{gid}")), |p| {
            p.u32(uid);
            p.u32(gid);
            p.u32(groups.is_some().into());
            let groups = groups.unwrap_or(&[]);
            p.u32(groups.len() as u32);
            for group in groups {
                p.u32(*group);
            }
        });
    }

    /// Makes a file system; options without a value are flags. Attributes are `MOUNT_ATTR_*`.
    pub(crate) fn file_system(&mut self, kind: &str, attributes: u64, options: &[(&str, Option<&[u8]>)]) -> Reg {
        let out = self.fresh();
        let mut names = vec![];
        // What the mount table shows as its device; without it, `none`.
        let source = [("source", Some(kind.as_bytes()))];
        let options: Vec<_> = source.iter().chain(options).collect();
        for (key, value) in &options {
            let value = value.map(|value| format!("={}", OsStr::from_bytes(value).to_string_lossy()));
            names.push(format!("{kind} option {key}{}", value.unwrap_or_default()));
        }
        names.push(kind.to_owned());
        self.step(Op::FsMount, Subject::Many(names), |p| {
            p.u32(out.0);
            p.str(kind.as_bytes());
            p.u64(attributes);
            p.u32(options.len() as u32);
            for (key, value) in &options {
                p.u32(value.is_some().into());
                p.str(key.as_bytes());
                p.str(value.unwrap_or(b""));
            }
        });
        out
    }

    /// A detached copy of the tree at `path` (from `dir`, when given), proven to be `expect` when that is given.
    pub(crate) fn open_tree(&mut self, dir: Option<Reg>, path: &Path, recursive: bool, expect: Option<Reg>) -> Reg {
        let out = self.fresh();
        self.step(Op::OpenTree, Subject::Path(path.to_owned()), |p| {
            p.u32(out.0);
            p.u32(dir.map_or(NONE, |reg| reg.0));
            p.str(path.as_os_str().as_bytes());
            p.u32(recursive.into());
            p.u32(expect.map_or(NONE, |reg| reg.0));
        });
        out
    }

    /// Changes attributes (`MOUNT_ATTR_*`) and propagation (`MS_*`) of a mount.
    pub(crate) fn attributes(&mut self, mount: Reg, recursive: bool, set: u64, clear: u64, propagation: u64) {
        self.step(Op::SetAttr, Subject::Nothing, |p| {
            p.u32(mount.0);
            p.u32(recursive.into());
            p.u64(set);
            p.u64(clear);
            p.u64(propagation);
        });
    }

    /// Attaches a mount at a path inside the container's root, and never on that root itself.
    pub(crate) fn attach(&mut self, mount: Reg, path: &Path, create: Create, care: Care) {
        self.step(Op::Attach, Subject::Path(path.to_owned()), |p| {
            p.u32(mount.0);
            p.u32(NONE);
            p.str(path.as_os_str().as_bytes());
            p.u32(match create {
                Create::No => 0,
                Create::Directory => 1,
                Create::File => 2,
            });
            p.u32(u32::from(care.optional) | u32::from(care.guarded) << 1 | u32::from(care.no_links) << 2);
        });
    }

    /// Attaches a mount at a name inside a tree of our own making.
    pub(crate) fn attach_in(&mut self, mount: Reg, dir: Reg, name: &str) {
        self.step(Op::Attach, Subject::Path(name.into()), |p| {
            p.u32(mount.0);
            p.u32(dir.0);
            p.str(name.as_bytes());
            p.u32(0);
            p.u32(0);
        });
    }

    /// A step on one register.
    pub(crate) fn on(&mut self, op: Op, reg: Reg) {
        self.step(op, Subject::Nothing, |p| p.u32(reg.0));
    }

    /// A device node in a tree of our own making; `mode` has its kind (`S_IFCHR`, …).
    pub(crate) fn node(&mut self, dir: Reg, name: &str, mode: u32, (major, minor): (u32, u32)) {
        // The kernel's own encoding of a device number for mknod(2).
        let device = u64::from(minor & 0xff) | u64::from(major & 0xfff) << 8 | u64::from(minor & !0xff) << 12;
        self.step(Op::Node, Subject::Path(name.into()), |p| {
            p.u32(dir.0);
            p.str(name.as_bytes());
            p.u32(mode);
            p.u64(device);
        });
    }

    /// A symbolic link in a tree of our own making.
    pub(crate) fn symlink(&mut self, dir: Reg, target: &str, name: &str) {
        self.step(Op::Symlink, Subject::Path(name.into()), |p| {
            p.u32(dir.0);
            p.str(target.as_bytes());
            p.str(name.as_bytes());
        });
    }

    /// A directory in a tree of our own making.
    pub(crate) fn directory(&mut self, dir: Reg, name: &str, mode: u32) {
        self.step(Op::Directory, Subject::Path(name.into()), |p| {
            p.u32(dir.0);
            p.str(name.as_bytes());
            p.u32(mode);
        });
    }

    /// A file in a tree of our own making.
    pub(crate) fn file(&mut self, dir: Reg, name: &str, mode: u32, content: &[u8]) {
        self.step(Op::File, Subject::Path(name.into()), |p| {
            p.u32(dir.0);
            p.str(name.as_bytes());
            p.u32(mode);
            p.str(content);
        });
    }

    /// Masks a path with the `null` or the `empty` of the parts; with a base, the path `below` it.
    pub(crate) fn cover(&mut self, parts: Reg, path: &Path, below: Option<(Base, &Path)>) {
        self.step(Op::Mask, Subject::Path(path.to_owned()), |p| {
            p.u32(parts.0);
            covered(p, path, below);
        });
    }

    /// Makes a path read-only; with a base, the path `below` it.
    pub(crate) fn read_only(&mut self, path: &Path, below: Option<(Base, &Path)>) {
        self.step(Op::ReadOnly, Subject::Path(path.to_owned()), |p| covered(p, path, below));
    }

    /// mount(2), for kernels that cannot do it by descriptor.
    pub(crate) fn legacy_mount(&mut self, source: &str, target: &Path, kind: &str, flags: u64, data: &[u8]) {
        self.step(Op::LegacyMount, Subject::Path(target.to_owned()), |p| {
            p.str(source.as_bytes());
            p.str(target.as_os_str().as_bytes());
            p.str(kind.as_bytes());
            p.u64(flags);
            p.str(data);
        });
    }

    /// A resource limit (`RLIMIT_*`).
    pub(crate) fn rlimit(&mut self, resource: u32, soft: u64, hard: u64, name: &str) {
        self.step(Op::Rlimit, Subject::Text(name.to_owned()), |p| {
            p.u32(resource);
            p.u64(soft);
            p.u64(hard);
        });
    }

    /// The limit of open files, as this process has it now.
    pub(crate) fn files(&mut self, soft: u64, hard: u64) {
        self.step(Op::Files, Subject::Nothing, |p| {
            p.u64(soft);
            p.u64(hard);
        });
    }

    /// Enters a directory by path and proves that it is the one behind the register.
    pub(crate) fn change_dir(&mut self, path: &Path, expect: Reg) {
        self.step(Op::ChangeDir, Subject::Path(path.to_owned()), |p| {
            p.str(path.as_os_str().as_bytes());
            p.u32(expect.0);
        });
    }

    /// The workload's working directory; missing parts are created and belong to the user.
    pub(crate) fn work_dir(&mut self, path: &Path, uid: u32, gid: u32) {
        self.step(Op::WorkDir, Subject::Path(path.to_owned()), |p| {
            p.str(path.as_os_str().as_bytes());
            p.u32(uid);
            p.u32(gid);
        });
    }

    /// The thread's capability sets; ambient is raised one by one.
    pub(crate) fn capabilities(&mut self, when: When, effective: u64, permitted: u64, inheritable: u64, ambient: u64) {
        self.step(Op::Capabilities, Subject::Nothing, |p| {
            p.u32((when == When::Held).into());
            p.u64(effective);
            p.u64(permitted);
            p.u64(inheritable);
            p.u64(ambient);
        });
    }

    /// The system call filter, as an array of `sock_filter`.
    pub(crate) fn seccomp(&mut self, when: When, filter: &[u8]) {
        self.step(Op::Seccomp, Subject::Nothing, |p| {
            p.u32((when == When::Held).into());
            p.str(filter);
        });
    }

    /// Hands a pipe or terminal that was made for the container to its user.
    pub(crate) fn give_away(&mut self, reg: Reg, uid: u32, gid: u32) {
        self.step(Op::GiveAway, Subject::Nothing, |p| {
            p.u32(reg.0);
            p.u32(uid);
            p.u32(gid);
        });
    }

    /// The container's own null device, opened.
    pub(crate) fn open_null(&mut self, parts: Reg) -> Reg {
        let out = self.fresh();
        self.step(Op::OpenNull, Subject::Nothing, |p| {
            p.u32(out.0);
            p.u32(parts.0);
        });
        out
    }

    /// A new pseudo-terminal in this devpts, or in the one at `/dev/pts` of a container that was joined: master and slave.
    pub(crate) fn open_terminal(&mut self, devpts: Option<Reg>, uid: u32, rows: u16, columns: u16) -> (Reg, Reg) {
        let (master, slave) = (self.fresh(), self.fresh());
        self.step(Op::OpenTerminal, Subject::Path("/dev/pts/ptmx".into()), |p| {
            p.u32(devpts.map_or(NONE, |reg| reg.0));
            p.u32(master.0);
            p.u32(slave.0);
            p.u32(uid);
            p.u32(rows.into());
            p.u32(columns.into());
        });
        (master, slave)
    }

    /// Passes a terminal to whoever has the other end of the socket.
    pub(crate) fn pass_terminal(&mut self, socket: Reg, terminal: Reg) {
        self.step(Op::PassTerminal, Subject::Nothing, |p| {
            p.u32(socket.0);
            p.u32(terminal.0);
        });
    }

    /// Descriptors 0, 1 and 2.
    pub(crate) fn stdio(&mut self, [input, output, error]: [Reg; 3]) {
        self.stdio = Some([input, output, error]);
        self.step(Op::Stdio, Subject::Nothing, |p| {
            p.u32(input.0);
            p.u32(output.0);
            p.u32(error.0);
        });
    }

    /// The end of a plan: the first candidate that can be executed is.
    pub(crate) fn exec(&mut self, candidates: &[Vec<u8>], arguments: &[Vec<u8>], environment: &[Vec<u8>]) {
        let names = candidates.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        let mut bytes = Vec::with_capacity(1024);
        let mut p = Payload(&mut bytes);
        for list in [candidates, arguments, environment] {
            p.u32(list.len() as u32);
            for entry in list {
                p.str(entry);
            }
        }
        self.last = Some((bytes, Subject::Many(names)));
    }

    /// Files get the owners that the list (in the stub's format) names.
    pub(crate) fn reown(&mut self, tree: Reg, list: Reg) {
        self.step(Op::Reown, Subject::Nothing, |p| {
            p.u32(tree.0);
            p.u32(list.0);
        });
    }

    /// A tree is removed by who may.
    pub(crate) fn remove_tree(&mut self, dir: Reg, name: &OsStr) {
        self.step(Op::RemoveTree, Subject::Path(name.into()), |p| {
            p.u32(dir.0);
            p.str(name.as_bytes());
        });
    }

    /// A tree is measured by who may enter it; the numbers go to `out`.
    pub(crate) fn measure(&mut self, tree: Reg, out: Reg) {
        self.step(Op::Measure, Subject::Nothing, |p| {
            p.u32(tree.0);
            p.u32(out.0);
        });
    }

    /// The finished plan: bytes, descriptors, and what to say about each step.
    pub(crate) fn finish(mut self) -> Result<Finished> {
        let step = "plan the launch";
        if let Some((bytes, subject)) = self.last.take() {
            self.step(Op::Exec, subject, |p| p.0.extend_from_slice(&bytes));
        }
        if self.fds.len() > MAX_FDS - 3 {
            return Err(Error::new(ErrorKind::Limit, step)
                .because(format!(
                    "{} descriptors are more than one message may carry ({})",
                    self.fds.len(),
                    MAX_FDS - 3
                ))
                .remedy("use fewer bind mounts"));
        }
        if self.next as usize > MAX_REGISTERS {
            return Err(
                Error::new(ErrorKind::Limit, step).because("there are more mounts than a plan has registers for")
            );
        }
        let mut whole = Vec::with_capacity(PLAN_HEADER + self.bytes.len());
        for word in [MAGIC, self.namespaces as u32, (self.namespaces >> 32) as u32, self.cgroup, self.flags, 0] {
            whole.extend_from_slice(&word.to_ne_bytes());
        }
        whole.append(&mut self.bytes);
        if whole.len() > MAX_PLAN {
            return Err(Error::new(ErrorKind::Limit, step).because(format!(
                "arguments, environment and mounts make {} bytes; the limit is {MAX_PLAN}",
                whole.len()
            )));
        }
        let user_namespace = self.namespaces & libc::CLONE_NEWUSER as u64 != 0;
        let joins = self.flags & PLAN_JOINS != 0;
        let tree = self.flags & PLAN_TREE != 0;
        Ok(Finished { bytes: whole, fds: self.fds, steps: self.steps, user_namespace, joins, tree, stdio: self.stdio })
    }
}

/// A plan that can travel.
pub(crate) struct Finished {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) steps: Vec<(Op, Subject)>,
    /// The process gets a user namespace of its own.
    pub(crate) user_namespace: bool,
    /// The process goes on as another one, inside a container.
    pub(crate) joins: bool,
    /// The process watches over what comes of the command, and takes [`END_TREE`](super::protocol::END_TREE) for SIGKILL.
    pub(crate) tree: bool,
    stdio: Option<[Reg; 3]>,
}

impl Finished {
    /// What somebody made up.
    #[cfg(fuzzing)]
    pub(crate) fn of_bytes(bytes: Vec<u8>, fds: Vec<OwnedFd>, joins: bool) -> Finished {
        Finished { bytes, fds, steps: vec![], user_namespace: false, joins, tree: false, stdio: None }
    }

    /// The descriptors, to send.
    pub(crate) fn borrowed(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.fds.iter().map(AsFd::as_fd)
    }

    /// The container's streams, for another try; `None` for those that were to be opened inside.
    pub(crate) fn into_streams(self) -> [Option<OwnedFd>; 3] {
        let mut fds: Vec<Option<OwnedFd>> = self.fds.into_iter().map(Some).collect();
        self.stdio.map_or([None, None, None], |stdio| {
            stdio.map(|register| fds.get_mut(register.0 as usize).and_then(Option::take))
        })
    }
}

fn covered(p: &mut Payload<'_>, path: &Path, below: Option<(Base, &Path)>) {
    let (reg, magic, path) = below.map_or((NONE, 0, path), |(Base(reg, magic), below)| (reg.0, magic, below));
    p.u32(reg);
    p.u32(magic);
    p.str(path.as_os_str().as_bytes());
}

/// Writes a step's arguments, as [`super::protocol::Reader`] reads them.
pub(crate) struct Payload<'a>(pub(crate) &'a mut Vec<u8>);

impl Payload<'_> {
    pub(crate) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.u32(value as u32);
        self.u32((value >> 32) as u32);
    }

    pub(crate) fn str(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
        let padding = 4 - bytes.len() % 4;
        self.0.extend_from_slice(&[0; 4][..padding]);
    }
}
