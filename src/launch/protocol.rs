//! What the host program, the guardian and a container's first process say to each other.
//!
//! This file is compiled twice: into the crate and into the carried stub. It therefore knows neither an allocator nor
//! the standard library.
//!
//! ```text
//!   host program                      guardian (stub)                   first process (stub, then workload)
//!   ------------                      ---------------                   -----------------------------------
//!        |-- Hello ------------------------>|
//!        |   [pidfd of the host, /proc]     |
//!        |<- Started (ready) ---------------|
//!        |                                  |
//!        |-- Launch + plan ---------------->|
//!        |   [channel, lease, plan fds…]    |-- clone3 ------------------------->|
//!        |<- Started{pid} on the channel ---|   (newuidmap, when a range is      |
//!        |   [report pipe, pidfd]           |    asked for, then one byte) ----->| walks the plan
//!        |<- READY on the report pipe, then its end (exec closed it), or Report --| execve
//!        |                                  |
//!        |-- Signal{n} on the channel ----->|-- kill --------------------------->|
//!        |                                  |<- SIGCHLD -------------------------| exits
//!        |<- Exited{status} on the channel -|
//!        |                                  |
//!        |  (end of file on the channel: the handle or the host is gone, so the container is killed)
//! ```
//!
//! Every message is one datagram of a `SOCK_SEQPACKET` socket pair, so threads of the host program need no lock. A plan
//! that does not fit [`INLINE_PLAN`] travels in a memfd, as the last descriptor.

#![allow(dead_code)]

/// First word of every message and plan: `Crcl` and a version. Both ends come from one build, so a mismatch is a bug.
pub const MAGIC: u32 = 0x4372_6c01;

/// Plans up to this many bytes travel inside the launch message.
pub const INLINE_PLAN: usize = 96 * 1024;
/// Plans beyond this are refused by both ends (environment and arguments together are limited to 2 MiB by the kernel).
pub const MAX_PLAN: usize = 8 * 1024 * 1024;
/// Descriptors in one message (the kernel's `SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;
/// Registers of a plan: received descriptors come first, steps may fill the rest.
pub const MAX_REGISTERS: usize = 1024;
/// Containers that one guardian watches.
pub const MAX_CONTAINERS: usize = 16 * 1024;
/// "No register".
pub const NONE: u32 = u32::MAX;

/// Bytes of the fixed part of a control message: magic, kind, plan length, whether the plan is in a file.
pub const HEADER: usize = 16;
/// Bytes of a channel message, either way.
pub const NOTE: usize = 48;
/// Bytes of a failure report.
pub const REPORT: usize = 32;
/// One word on the report pipe: the plan has been walked, the command is executed next. An end of the pipe without it
/// is the end of a process that has set up nothing.
pub const READY: u32 = 0x4372_6c52;

/// Kind of a control message.
pub const HELLO: u32 = 1;
/// Launch what the plan describes.
pub const LAUNCH: u32 = 2;

/// Channel, to the host: the first process exists; `a` is its pid in the guardian's pid namespace.
pub const STARTED: u32 = 16;
/// Channel, to the host: no process came to be, or none that was left alive; `a`: [`Sys`], `b`: errno. Also the answer to
/// [`HELLO`] of a guardian that cannot do its work.
pub const FAILED: u32 = 17;
/// Channel, to the host: `a`: `CLD_*` code, `b`: status, then user and system time (µs) and peak resident set (KiB).
pub const EXITED: u32 = 18;
/// Channel, to the host: the process goes on as another, `a`, which lives in a container ([`Op::Beside`]); with its pidfd.
pub const MOVED: u32 = 19;
/// Channel, to the guardian: send signal `a` to the first process.
pub const SIGNAL: u32 = 32;
/// Channel, to the guardian: from now on the container lives as long as the host program, not as long as the channel.
pub const RELEASE: u32 = 33;

/// The plan's own header: magic, clone flags (two words), register of the cgroup to be born in, flags, reserved.
pub const PLAN_HEADER: usize = 24;
/// Position in a report of what is no step of the plan: joining the cgroup that the process could not be born in.
pub const JOIN: u32 = u32::MAX;
/// Detail of a report: a symbolic link stands where none is followed.
pub const LINK: u32 = 7;
/// Detail of a report: the target is the container's root itself.
pub const ROOT: u32 = 8;
/// Detail of a report: what was found lies on another file system than it has to.
pub const FOREIGN: u32 = 9;
/// Detail of a report: what was mounted is not what is found there.
pub const UNCOVERED: u32 = 10;

/// Plan flag: wait after clone until the id maps are written by [`Op::MapHelper`].
pub const PLAN_MAP_HELPER: u32 = 1;
/// Plan flag: the plan has an [`Op::Beside`] or an [`Op::Fork`].
pub const PLAN_JOINS: u32 = 2;
/// Plan flag: the plan has an [`Op::Tree`], so that [`END_TREE`] stands in for SIGKILL.
pub const PLAN_TREE: u32 = 4;
/// The signal that tells a process that has stayed behind ([`Op::Tree`]) to kill all that came of its command, and then
/// itself. C libraries keep it for themselves, so nobody sends it to a command.
pub const END_TREE: u32 = 32;
/// The same for SIGSTOP, which would stop the one that watches and not the command.
pub const HOLD_TREE: u32 = 33;

/// Defines a `u32` enum that can be read back from untrusted bytes and has a name for messages.
macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $value:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        pub enum $name { $($(#[$vdoc])* $variant = $value,)* }
        impl $name {
            /// The code of a word that came from the other side.
            pub const fn from_u32(value: u32) -> Option<$name> {
                match value { $($value => Some($name::$variant),)* _ => None }
            }
            /// Its name in the manual.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }
    };
}

codes! {
    /// A step of a launch plan. Payloads are listed as `name: type`; `reg` is a register, `str` a length-prefixed
    /// byte string with a NUL behind it.
    Op {
        /// New session, so that the host's terminal is out of reach.
        Session = 1, "start a new session";
        /// New session keyring, so that the keys of the host's session are out of reach.
        Keyring = 50, "start a new session keyring";
        /// Die with the guardian: the second line of defence. (`life` register is implicit)
        DieWithParent = 2, "tie the process to its guardian";
        /// `reg, str`: write bytes to a descriptor (a cgroup's `tasks`).
        Write = 3, "join the control group";
        /// `flags: u64`.
        Unshare = 4, "leave a namespace";
        /// `uid_map: str, gid_map: str, deny_setgroups: u32`.
        MapSelf = 5, "map user and group ids";
        /// `uid: u32, gid: u32, set_groups: u32, count: u32, groups…: u32`.
        Ids = 6, "take on the user and groups";
        /// Make every mount private, so that nothing reaches the host's table.
        Private = 7, "detach the mount namespace from the host's";
        /// `out: reg, type: str, attributes: u64, count: u32, (kind: u32, key: str, value: str)…`.
        FsMount = 8, "mount a file system";
        /// `out: reg, dir: reg, path: str, recursive: u32, expect: reg`.
        OpenTree = 9, "open a mount source";
        /// `mount: reg, recursive: u32, set: u64, clear: u64, propagation: u64`.
        SetAttr = 10, "change mount attributes";
        /// `mount: reg, base: reg, path: str, create: u32, flags: u32` (1 optional, 2 refused on kernel file systems, 4
        /// no symbolic link is followed on the way).
        Attach = 11, "attach a mount";
        /// `mount: reg`: it becomes the root; the old one is gone afterwards.
        Pivot = 12, "change the root";
        /// `dir: reg, path: str, mode: u32, dev: u64`.
        Node = 13, "create a device node";
        /// `dir: reg, target: str, path: str`.
        Symlink = 14, "create a symbolic link";
        /// `dir: reg, path: str, mode: u32`.
        Directory = 15, "create a directory";
        /// `dir: reg, path: str, mode: u32, content: str`.
        File = 16, "write a file";
        /// `parts: reg, base: reg, magic: u32, path: str`; the parts hold `null` and `empty`. With a base, `path` is
        /// relative to that mount and lies on a file system of that magic number (0: of any).
        Mask = 17, "mask a path";
        /// `base: reg, magic: u32, path: str`, as for `Mask`.
        ReadOnly = 18, "make a path read-only";
        /// `name: str`.
        Hostname = 19, "set the host name";
        /// `name: str`.
        Domainname = 20, "set the domain name";
        /// Bring `lo` up.
        Loopback = 21, "bring the loopback interface up";
        /// `resource: u32, soft: u64, hard: u64`.
        Rlimit = 22, "set a resource limit";
        /// `mask: u32`.
        Umask = 23, "set the file mode mask";
        /// `path: str, uid: u32, gid: u32`: created when it is missing; proven to lie inside the root.
        WorkDir = 25, "enter the working directory";
        /// `bounding: u64`; the other sets follow after [`Op::Ids`].
        Bounding = 26, "drop capabilities from the bounding set";
        /// `held: u32, effective, permitted, inheritable, ambient: u64`; held: done right after the filter that is held.
        Capabilities = 27, "set capabilities";
        /// No gain of privileges by exec.
        NoNewPrivileges = 28, "set no-new-privileges";
        /// `held: u32, filter: str`, an array of `sock_filter`; held: installed right before the command is executed.
        Seccomp = 29, "install the system call filter";
        /// `in: reg, out: reg, err: reg`.
        Stdio = 30, "connect standard input, output and error";
        /// Have effective all that is permitted, until [`Op::Capabilities`].
        Raise = 49, "keep the right to install the system call filter";
        /// Stay behind as a reaping, signal-forwarding pid 1; the rest of the plan runs in a child.
        Init = 31, "start the init process";
        /// `out: reg, parts: reg`: the null device of the parts, for reading and writing.
        OpenNull = 48, "open the container's null device";
        /// `count: u32, candidates…: str, argc: u32, argv…: str, envc: u32, envp…: str`.
        Exec = 32, "execute the command";
        /// `on: u32`.
        Dumpable = 33, "change dumpability";
        /// `fd: reg, uid: u32, gid: u32`: pipes and terminals made for the container; failure is ignored.
        GiveAway = 34, "hand a descriptor to the user";
        /// `dir: reg`.
        ChangeDir = 35, "change the directory";
        /// `uid_tool: str, gid_tool: str, argc: u32, argv…: str, argc: u32, argv…: str`; walked by the guardian's helper.
        MapHelper = 36, "map a range of user and group ids";
        /// `tree: reg, list: reg`: give files the owners that the list names.
        Reown = 37, "set the owners of files";
        /// `dir: reg, name: str`: remove a tree whose files have foreign owners.
        RemoveTree = 38, "remove a directory tree";
        /// End here with status 0.
        Done = 39, "end";
        /// `tree: reg, out: reg`: write to `out` what a tree with directories of foreign owners takes; see the stub.
        Measure = 41, "measure a directory tree";
        /// `source, target, type: str, flags: u64, data: str`: mount(2), for kernels without what `FsMount` needs.
        LegacyMount = 40, "mount a file system";
        /// `process: reg, kinds: u64`: enter these namespaces of a process, by its pidfd. A pid namespace is one's
        /// children's: to be followed by [`Op::Beside`].
        Join = 51, "enter the container";
        /// Go on in a further child of the guardian's, which lives in the pid namespace that was joined, and holds nothing
        /// but its streams; see the stub.
        Beside = 54, "start a process in the container";
        /// `out: reg`: the container's `/dev/null`, proven to be the null device.
        JoinedNull = 52, "open the container's null device";
        /// `path: str`: a directory that is there.
        Enter = 53, "enter the working directory";
        /// Keep permitted capabilities over a change of uid.
        KeepCaps = 42, "keep capabilities over a change of user";
        /// Re-arm and check the tie to the guardian; a change of uid clears it.
        StillAlive = 43, "check that the guardian lives";
        /// `soft: u64, hard: u64`: open files, as the host program has them now; never more than there may be.
        Files = 46, "set the limit of open files";
        /// `socket: reg`: open files for whoever asks over it; the process ends with the other end.
        Serve = 47, "open files for the host program";
        /// `mount: reg`: refused unless the mount of this register is read-only (verify after enforcing).
        VerifyReadOnly = 44, "verify that a mount is read-only";
        /// `devpts: reg, master: reg, slave: reg, uid: u32, rows: u32, columns: u32`: a new pair in this devpts; without
        /// one, in the one at `/dev/pts`. The slave is that user's.
        OpenTerminal = 60, "open a pseudo-terminal";
        /// `socket: reg, fd: reg`.
        PassTerminal = 61, "pass the terminal to the host program";
        /// What is standard input is the terminal of this session. Right before the command is executed.
        ControllingTerminal = 62, "make the terminal the session's";
        /// `proc: reg, path: str, value: str`: a file of that procfs, or without one of the verified handle's.
        Sysctl = 70, "change a setting of the container's kernel namespaces";
        /// `value: str`.
        OomScore = 71, "set the score for the out-of-memory killer";
        /// `persona: u32`.
        Personality = 72, "set the execution domain";
        /// `policy: u32, flags: u64, nice: u32, priority: u32, runtime, deadline, period: u64`.
        Scheduler = 73, "set the scheduling policy";
        /// `value: u32`, class and priority as ioprio_set(2) has them.
        IoPriority = 74, "set the input and output priority";
        /// `mask: str`, one bit per processor.
        Affinity = 75, "set the affinity to processors";
        /// `path: str, label: str`: what the security module is to do at exec; the path is below procfs.
        Label = 76, "set the security label";
        /// `namespace: reg, kind: u64`: enter it. A pid or time namespace is one's children's: to be followed by
        /// [`Op::Fork`].
        Setns = 77, "enter the namespace";
        /// `offsets: str`, as `timens_offsets` takes them, for the time namespace of one's children.
        TimeOffsets = 78, "set the offsets of the clocks";
        /// Go on in a further child of the guardian's, which is in the pid and time namespaces of one's children, with all
        /// that this process holds; see the stub.
        Fork = 79, "start the first process in the namespaces";
        /// `mount: reg, namespace: reg, recursive: u32`: a detached mount shows ids as that user namespace maps them.
        Idmap = 80, "map the ids of a mount";
        /// `mount: reg, path: str`: attach a mount over what the path names, proven to be the mount's own
        /// root, in a mount namespace that still shows the host's tree. Only for paths that are the engine's.
        Cover = 81, "attach a mount over its source";
        /// `socket: reg, open: u32`: say that this step was reached, and wait to be told to go on; open: meanwhile others of
        /// this user may join the process.
        Pause = 82, "wait for the hooks";
        /// `dir: reg, path: str, uid: u32, gid: u32, mode: u32`.
        Owner = 83, "set the owner and mode of a device";
        /// `uid: u32, gid: u32`: files are made as theirs, with all capabilities that are permitted.
        FileIds = 85, "make files as the root of the container";
        /// `flags: u32` of seccomp(2), for the filter that is held.
        FilterFlags = 84, "set the flags of the system call filter";
        /// Stay behind, where there is no pid namespace, as the parent of all that comes of the command; see the stub.
        Tree = 90, "watch over the command's processes";
        /// `out: reg, fs: u64, net: u64, scoped: u64`: a landlock ruleset that handles these rights.
        Ruleset = 91, "make the landlock ruleset";
        /// `ruleset: reg, allowed: u64, beneath: reg`: these rights beneath an open file.
        PathRule = 92, "allow a path by landlock";
        /// `out: reg, path: str, optional: u32`: a handle (`O_PATH`) on a file of the container. Where it is optional and
        /// missing, rules on it are left out.
        Handle = 93, "open a path of the container";
        /// `ruleset: reg`: restricts the command; done right before it is executed, ahead of the filter that is held.
        Restrict = 94, "restrict the command by landlock";
        /// `dir: reg`: it becomes the root and the working directory, by chroot(2).
        Chroot = 95, "change the root";
    }
}

codes! {
    /// The system call that a report names.
    Sys {
        Plan = 0, "plan";
        Setsid = 1, "setsid";
        Prctl = 2, "prctl";
        Write = 3, "write";
        Unshare = 4, "unshare";
        Openat = 5, "openat";
        Openat2 = 6, "openat2";
        Setgroups = 7, "setgroups";
        Setresgid = 8, "setresgid";
        Setresuid = 9, "setresuid";
        Mount = 10, "mount";
        Fsopen = 11, "fsopen";
        Fsconfig = 12, "fsconfig";
        Fsmount = 13, "fsmount";
        OpenTree = 14, "open_tree";
        MountSetattr = 15, "mount_setattr";
        MoveMount = 16, "move_mount";
        PivotRoot = 17, "pivot_root";
        Umount2 = 18, "umount2";
        Mknodat = 19, "mknodat";
        Symlinkat = 20, "symlinkat";
        Mkdirat = 21, "mkdirat";
        Fchmodat = 22, "fchmodat";
        Fstat = 23, "fstat";
        Sethostname = 24, "sethostname";
        Setdomainname = 25, "setdomainname";
        Socket = 26, "socket";
        Ioctl = 27, "ioctl";
        Prlimit = 28, "prlimit64";
        Chdir = 29, "chdir";
        Getcwd = 30, "getcwd";
        Capset = 31, "capset";
        Seccomp = 32, "seccomp";
        Dup3 = 33, "dup3";
        Clone = 34, "clone3";
        Execve = 35, "execve";
        Fchown = 36, "fchownat";
        Read = 37, "read";
        Poll = 38, "ppoll";
        CloseRange = 39, "close_range";
        Getdents = 40, "getdents64";
        Unlinkat = 41, "unlinkat";
        Renameat2 = 42, "renameat2";
        Setxattr = 43, "setxattr";
        Mmap = 44, "mmap";
        Capget = 45, "capget";
        Wait = 46, "waitid";
        Fstatfs = 47, "fstatfs";
        Recvmsg = 48, "recvmsg";
        Statx = 49, "statx";
        Tool = 50, "newuidmap";
        Pipe = 51, "pipe2";
        Chroot = 52, "chroot";
        Lseek = 53, "lseek";
        Setns = 54, "setns";
        PidfdOpen = 55, "pidfd_open";
        EpollCtl = 56, "epoll_ctl";
        Sendmsg = 57, "sendmsg";
        Fork = 58, "clone";
        Keyctl = 59, "keyctl";
        Signalfd = 60, "signalfd4";
        Personality = 70, "personality";
        SchedSetattr = 71, "sched_setattr";
        IoprioSet = 72, "ioprio_set";
        SchedSetaffinity = 73, "sched_setaffinity";
        Setfsuid = 74, "setfsuid";
        LandlockCreate = 90, "landlock_create_ruleset";
        LandlockAdd = 91, "landlock_add_rule";
        LandlockRestrict = 92, "landlock_restrict_self";
    }
}

/// A step failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Position in the plan, from 0.
    pub index: u32,
    /// What the step was.
    pub op: u32,
    /// The system call that refused.
    pub sys: Sys,
    /// Its errno, positive; 0 where the step itself found something wrong.
    pub errno: i32,
    /// Position inside the step: which option, path component, candidate or list entry.
    pub detail: u32,
}

impl Report {
    /// The bytes that travel.
    pub fn encode(self) -> [u8; REPORT] {
        let mut bytes = [0u8; REPORT];
        let words = [MAGIC, self.index, self.op, self.sys as u32, self.errno as u32, self.detail, 0, 0];
        let mut at = 0;
        while at < words.len() {
            let word = words[at].to_ne_bytes();
            bytes[at * 4] = word[0];
            bytes[at * 4 + 1] = word[1];
            bytes[at * 4 + 2] = word[2];
            bytes[at * 4 + 3] = word[3];
            at += 1;
        }
        bytes
    }

    /// Reads what the other side sent; `None` for anything that is not a report.
    pub fn decode(bytes: &[u8]) -> Option<Report> {
        if bytes.len() != REPORT || word(bytes, 0)? != MAGIC {
            return None;
        }
        Some(Report {
            index: word(bytes, 4)?,
            op: word(bytes, 8)?,
            sys: Sys::from_u32(word(bytes, 12)?)?,
            errno: word(bytes, 16)? as i32,
            detail: word(bytes, 20)?,
        })
    }
}

/// A channel message.
#[derive(Clone, Copy, Debug, Default)]
pub struct Note {
    /// [`STARTED`], [`FAILED`], [`EXITED`], [`SIGNAL`] or [`RELEASE`].
    pub kind: u32,
    /// See the kind.
    pub a: u32,
    /// See the kind.
    pub b: u32,
    /// User time, µs.
    pub user: u64,
    /// System time, µs.
    pub system: u64,
    /// Peak resident set, KiB.
    pub peak: u64,
}

impl Note {
    /// The bytes that travel.
    pub fn encode(self) -> [u8; NOTE] {
        let mut bytes = [0u8; NOTE];
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, 4, self.kind);
        put(&mut bytes, 8, self.a);
        put(&mut bytes, 12, self.b);
        let longs = [self.user, self.system, self.peak];
        let mut at = 0;
        while at < longs.len() {
            put(&mut bytes, 16 + at * 8, longs[at] as u32);
            put(&mut bytes, 20 + at * 8, (longs[at] >> 32) as u32);
            at += 1;
        }
        bytes
    }

    /// Reads what the other side sent; `None` for anything that is not a note.
    pub fn decode(bytes: &[u8]) -> Option<Note> {
        if bytes.len() != NOTE || word(bytes, 0)? != MAGIC {
            return None;
        }
        let long = |at| Some(word(bytes, at)? as u64 | (word(bytes, at + 4)? as u64) << 32);
        Some(Note {
            kind: word(bytes, 4)?,
            a: word(bytes, 8)?,
            b: word(bytes, 12)?,
            user: long(16)?,
            system: long(24)?,
            peak: long(32)?,
        })
    }
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&value.to_ne_bytes());
    }
}

/// The native-endian word at `at`.
pub fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let part = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes([part[0], part[1], part[2], part[3]]))
}

/// Reads a step's payload; everything is checked, since a plan is untrusted to the stub.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

/// A payload that ends early or contradicts itself.
#[derive(Clone, Copy, Debug)]
pub struct Malformed;

impl<'a> Reader<'a> {
    /// A reader over one payload.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes }
    }

    /// What has not been read yet.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        if count > self.bytes.len() {
            return Err(Malformed);
        }
        let (head, tail) = self.bytes.split_at(count);
        self.bytes = tail;
        Ok(head)
    }

    /// One word.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        word(self.take(4)?, 0).ok_or(Malformed)
    }

    /// Two words, low first.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(self.u32()? as u64 | (self.u32()? as u64) << 32)
    }

    /// A byte string *including* its closing NUL; padded to whole words.
    pub fn cstr(&mut self) -> Result<&'a [u8], Malformed> {
        let bytes = self.bytes_with_nul()?;
        // A NUL inside would make the kernel see another string than the plan says.
        let mut at = 0;
        while at + 1 < bytes.len() {
            if bytes[at] == 0 {
                return Err(Malformed);
            }
            at += 1;
        }
        Ok(bytes)
    }

    /// A byte string that may hold NULs, without the closing one.
    pub fn blob(&mut self) -> Result<&'a [u8], Malformed> {
        let bytes = self.bytes_with_nul()?;
        Ok(&bytes[..bytes.len() - 1])
    }

    fn bytes_with_nul(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()? as usize;
        if length >= MAX_PLAN {
            return Err(Malformed);
        }
        let padded = (length + 1 + 3) & !3;
        let bytes = self.take(padded)?;
        if bytes[length] != 0 {
            return Err(Malformed);
        }
        Ok(&bytes[..length + 1])
    }

    /// The next step of a plan: its code and payload; `None` at the end.
    pub fn step(&mut self) -> Result<Option<(Op, Reader<'a>)>, Malformed> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let op = Op::from_u32(self.u32()?).ok_or(Malformed)?;
        let length = self.u32()? as usize;
        Ok(Some((op, Reader::new(self.take(length)?))))
    }
}
