//! The host program's end: keeps the guardian, sends plans, and reads how containers start and end.
#![allow(unsafe_code)]

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};

use super::failure;
use super::plan::{Finished, Plan};
use super::protocol::{
    END_TREE, EXITED, FAILED, HELLO, HOLD_TREE, INLINE_PLAN, LAUNCH, MAGIC, MOVED, NOTE, Note, READY, RELEASE, REPORT,
    Report, SIGNAL, STARTED, Sys,
};
use super::spawn;
use crate::error::{Error, ErrorKind, Result};

const STEP: &str = "start the container";

/// Who and where the calling thread is: the guardian has what the thread had that started it, for ever, and containers get
/// that from it. So another identity needs another guardian.
///
/// All of it is asked for at each launch, for a thread may have changed any of it since its last one. What is not part of
/// it, and so comes from the thread that launched first: the affinity to CPUs, scheduling class and nice value,
/// limits but that of open files, control groups, a security label, a landlock domain.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Identity {
    pid: u32,
    user: u32,
    group: u32,
    groups: Vec<u32>,
    /// Effective capabilities.
    capabilities: u64,
    /// Inode numbers of its namespaces, in the order of [`NAMESPACES`]; 0 where this kernel has none of that kind.
    namespaces: [u64; NAMESPACES.len()],
    no_new_privs: bool,
    /// How many system call filters it has. They are only ever added to.
    filters: u32,
}

/// Those that a child gets.
const NAMESPACES: [&str; 8] = ["mnt", "user", "net", "ipc", "uts", "cgroup", "pid_for_children", "time_for_children"];

impl Identity {
    fn now() -> Identity {
        Identity {
            pid: std::process::id(),
            user: nix::unistd::geteuid().as_raw(),
            group: nix::unistd::getegid().as_raw(),
            groups: nix::unistd::getgroups().unwrap_or_default().into_iter().map(|group| group.as_raw()).collect(),
            capabilities: spawn::effective_capabilities(),
            namespaces: namespaces(),
            no_new_privs: nix::sys::prctl::get_no_new_privs().unwrap_or(false),
            filters: if spawn::is_filtered() { filters() } else { 0 },
        }
    }
}

/// By one descriptor, for each name from the root would cost the walk to it, and by the text of the links (`net:[INODE]`):
/// to follow them would have the kernel make an inode each time, at several times the cost.
fn namespaces() -> [u64; NAMESPACES.len()] {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let Ok(dir) = nix::fcntl::open("/proc/thread-self/ns", flags, nix::sys::stat::Mode::empty()) else {
        return [0; NAMESPACES.len()];
    };
    NAMESPACES.map(|name| {
        let text = nix::fcntl::readlinkat(&dir, name).unwrap_or_default();
        let digits = text.to_str().and_then(|text| text.split_once('[')?.1.strip_suffix(']'));
        digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
    })
}

/// How many filters the calling thread has (Linux 5.9; 1 before). Costs as much as all the rest, so only those pay who
/// have some.
fn filters() -> u32 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let count = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:")?.trim().parse().ok());
    count.unwrap_or(1)
}

#[derive(Debug)]
struct Guardian {
    control: OwnedFd,
    identity: Identity,
}

/// The only state of this crate that belongs to the process and not to an engine: one guardian serves them all.
///
/// Mostly there is one entry. A guardian of an earlier identity stays while it has containers: they die when its socket
/// closes.
static GUARDIANS: Mutex<Vec<Arc<Guardian>>> = Mutex::new(Vec::new());

fn guardians() -> MutexGuard<'static, Vec<Arc<Guardian>>> {
    // Entries are pushed and taken out whole, so a panic in between cannot have left the list half-made.
    GUARDIANS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn guardian(fallback: &Path) -> Result<Arc<Guardian>> {
    let identity = Identity::now();
    let mut guardians = guardians();
    if let Some(guardian) = guardians.iter().find(|guardian| guardian.identity == identity) {
        return Ok(guardian.clone());
    }
    // In a fork of the host program the list is a copy; the guardians in it are the original's. Of earlier identities
    // only those stay that have containers: a program that gave up rights must not keep them in a socket.
    guardians.retain(|guardian| guardian.identity.pid == identity.pid && Arc::strong_count(guardian) > 1);
    let guardian = Arc::new(Guardian::start(identity, fallback)?);
    guardians.push(guardian.clone());
    Ok(guardian)
}

fn forget(guardian: &Arc<Guardian>) {
    guardians().retain(|known| !Arc::ptr_eq(known, guardian));
}

pub(super) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|errno| Error::sys(STEP, "socketpair", errno as i32))
}

impl Guardian {
    /// Has its end of the socket been closed, so its process ended?
    fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(self.control.as_fd(), PollFlags::empty())];
        let polled = poll(&mut fds, PollTimeout::ZERO);
        polled.is_ok() && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
    }

    fn start(identity: Identity, fallback: &Path) -> Result<Guardian> {
        let step = "start the guardian of the containers";
        #[cfg(fuzzing)]
        STARTED_GUARDIANS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (ours, theirs) = pair()?;
        // The descriptor becomes the guardian's number 0 by dup3, which must not be a copy onto itself.
        let theirs = lift(theirs)?;
        let procfs = procfs()?;
        let host = spawn::own_pidfd()?;
        spawn::guardian(theirs.as_fd(), fallback)?;
        drop(theirs);
        // Nothing but the first answer ever comes back on this socket.
        send(ours.as_fd(), HELLO, 0, false, &[], &[host.as_raw_fd(), procfs.as_raw_fd()])
            .map_err(|errno| Error::sys(step, "sendmsg", errno as i32).because("the guardian ended at once"))?;
        match receive(ours.as_fd(), true)? {
            Some((Note { kind: STARTED, .. }, ..)) => Ok(Guardian { control: ours, identity }),
            Some((Note { kind: FAILED, a, b, .. }, ..)) => {
                Err(failure::no_guardian(Sys::from_u32(a).unwrap_or(Sys::Plan), b as i32))
            }
            _ => Err(Error::new(ErrorKind::Launch, step).because("the guardian ended before it was ready")),
        }
    }
}

/// A descriptor numbered 3 or higher.
fn lift(fd: OwnedFd) -> Result<OwnedFd> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    let raw = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(3))
        .map_err(|errno| Error::sys(STEP, "fcntl", errno as i32))?;
    // SAFETY: the kernel just made this descriptor and nobody else has it.
    Ok(unsafe { spawn::received(raw) })
}

/// The one procfs handle: proven to be the root of a real procfs, so that nothing written through it goes elsewhere.
fn procfs() -> Result<OwnedFd> {
    let step = "open /proc";
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let proc = nix::fcntl::open("/proc", flags, nix::sys::stat::Mode::empty())
        .map_err(|errno| Error::sys(step, "open", errno as i32).path("/proc"))?;
    let kind = nix::sys::statfs::fstatfs(&proc)
        .map_err(|errno| Error::sys(step, "fstatfs", errno as i32).path("/proc"))?
        .filesystem_type();
    let inode = nix::sys::stat::fstat(&proc).map_err(|errno| Error::sys(step, "fstat", errno as i32).path("/proc"))?;
    if kind != nix::sys::statfs::PROC_SUPER_MAGIC || inode.st_ino != 1 {
        return Err(Error::new(ErrorKind::Hostile, step).path("/proc").because("what is mounted there is not procfs"));
    }
    Ok(proc)
}

/// One control message. `MSG_NOSIGNAL`: a dead guardian is an errno, never a SIGPIPE for the host program.
fn send(
    socket: BorrowedFd<'_>,
    kind: u32,
    plan_length: usize,
    in_file: bool,
    inline: &[u8],
    fds: &[i32],
) -> Result<(), Errno> {
    let mut header = [0u8; 16];
    for (place, word) in header.chunks_exact_mut(4).zip([MAGIC, kind, plan_length as u32, in_file.into()]) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    let slices = [IoSlice::new(&header), IoSlice::new(inline)];
    let rights = [ControlMessage::ScmRights(fds)];
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &slices, &rights, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// One note and the descriptors with it; `None` at the end of the channel. EAGAIN when nothing is there and `block` is
/// not set.
fn receive(socket: BorrowedFd<'_>, block: bool) -> Result<Option<(Note, Vec<OwnedFd>)>> {
    for_certain(|| receive_once(socket, block))
}

/// An end counts only when it is told twice. The kernel looks for a message first and for the end then; what is sent and
/// closed in between is overtaken, once, by its own end.
fn for_certain<T>(mut ask: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    match ask()? {
        None => ask(),
        message => Ok(message),
    }
}

fn receive_once(socket: BorrowedFd<'_>, block: bool) -> Result<Option<(Note, Vec<OwnedFd>)>> {
    let mut bytes = [0u8; NOTE];
    let mut space = nix::cmsg_space!([i32; 2]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | if block { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
    let (length, fds) = loop {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Ok(message) => message,
            // Reset: the guardian closed its end without having read our last note. That is told once, and before what it
            // has said last, which is still there.
            Err(Errno::EINTR | Errno::ECONNRESET) => continue,
            Err(errno) => return Err(Error::sys("hear from the guardian", "recvmsg", errno as i32)),
        };
        let mut fds = Vec::new();
        if let Ok(messages) = message.cmsgs() {
            for part in messages {
                if let ControlMessageOwned::ScmRights(raws) = part {
                    for raw in raws {
                        // SAFETY: this message just brought it; dropping it closes it.
                        fds.push(unsafe { spawn::received(raw) });
                    }
                }
            }
        }
        break (message.bytes, fds);
    };
    if length == 0 {
        return Ok(None);
    }
    match Note::decode(&bytes[..length]) {
        Some(note) => Ok(Some((note, fds))),
        None => Err(Error::new(ErrorKind::Launch, "hear from the guardian").because("its message is malformed")),
    }
}

/// How the first process ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    /// `Some(code)` after exit(3).
    pub(crate) code: Option<i32>,
    /// `Some(signal)` after a deadly signal.
    pub(crate) signal: Option<i32>,
    /// User and system time of the process and the children it waited for.
    pub(crate) user: Duration,
    /// See `user`.
    pub(crate) system: Duration,
    /// Peak resident set in bytes.
    pub(crate) peak: u64,
}

/// What the guardian's last note says; `None` for any other.
fn last(note: Note) -> Option<Ended> {
    let Note { kind: EXITED, a: code, b: status, user, system, peak, .. } = note else { return None };
    let exited = code == libc::CLD_EXITED as u32;
    Some(Ended {
        code: exited.then_some(status as i32),
        signal: (!exited).then_some(status as i32),
        user: Duration::from_micros(user),
        system: Duration::from_micros(system),
        peak: peak.saturating_mul(1024),
    })
}

/// Sends a signal past the guardian, to the process of this descriptor. One that watches over what comes of its command has to
/// be able to end that before it ends itself, and is not to be stopped in the command's place.
pub(crate) fn signal_past(process: BorrowedFd<'_>, signal: i32, watched: bool) -> std::io::Result<()> {
    use crate::sys::pidfd::send_signal;
    match (signal, watched) {
        (libc::SIGKILL, true) => {
            send_signal(process, END_TREE as i32)?;
            send_signal(process, libc::SIGCONT)
        }
        (libc::SIGSTOP, true) => send_signal(process, HOLD_TREE as i32),
        (signal, _) => send_signal(process, signal),
    }
}

fn guardian_killed() -> Error {
    Error::new(ErrorKind::Launch, "wait for the container")
        .because("its guardian was killed, and it was killed with it; the exit status is lost")
}

/// A launched process, known by its channel to the guardian. Dropping it kills the process, unless released.
#[derive(Debug)]
pub(crate) struct Process {
    channel: OwnedFd,
    /// The way to the process that is left should the guardian be killed.
    pidfd: OwnedFd,
    pid: u32,
    /// The program that launched it: a fork of it has a copy of this value, and nothing to say.
    home: u32,
    /// It watches over what comes of the command.
    tree: bool,
    /// Keeps its socket open.
    _guardian: Arc<Guardian>,
    ended: Mutex<Option<Ended>>,
}

/// Launches what the plan describes and returns when its command has been executed.
///
/// After an error no process is left. `lease` is held open by the guardian until the process has been reaped.
pub(crate) fn launch(plan: Plan, lease: BorrowedFd<'_>, fallback: &Path) -> Result<Process> {
    attempt(&mut plan.finish()?, lease, fallback, None)
}

/// Where a process waits ([`Op::Pause`](super::Op::Pause)), and what is done there.
pub(crate) struct Halts<'a> {
    /// This program's end of the socket that the plan has the other end of.
    pub(crate) socket: OwnedFd,
    /// Gets the number of the halt, from 0. Its error ends the process, and is the launch's.
    pub(crate) at: &'a mut dyn FnMut(usize, &Process) -> Result<()>,
}

/// The two ends of the socket of [`Halts`].
pub(crate) fn halts() -> Result<(OwnedFd, OwnedFd)> {
    pair()
}

/// [`launch`] of a process that may wait on its way, for those who may have another plan: after an error that one's streams
/// are for the next.
pub(crate) fn launch_or(
    plan: Plan,
    lease: BorrowedFd<'_>,
    fallback: &Path,
    halts: Option<Halts<'_>>,
) -> Result<Process, (Error, [Option<OwnedFd>; 3])> {
    let mut plan = plan.finish().map_err(|error| (error, [None, None, None]))?;
    attempt(&mut plan, lease, fallback, halts).map_err(|error| (error, plan.into_streams()))
}

/// The plan may have come from anywhere: the stub trusts none.
pub(super) fn attempt(
    plan: &mut Finished,
    lease: BorrowedFd<'_>,
    fallback: &Path,
    mut halts: Option<Halts<'_>>,
) -> Result<Process> {
    let mut again = true;
    loop {
        let guardian = guardian(fallback)?;
        let (channel, theirs) = pair()?;
        let mut fds = vec![theirs.as_raw_fd(), lease.as_raw_fd()];
        fds.extend(plan.borrowed().map(|fd| fd.as_raw_fd()));
        let sent = if plan.bytes.len() <= INLINE_PLAN {
            send(guardian.control.as_fd(), LAUNCH, plan.bytes.len(), false, &plan.bytes, &fds)
        } else {
            let file = in_memory(&plan.bytes)?;
            fds.push(file.as_raw_fd());
            send(guardian.control.as_fd(), LAUNCH, plan.bytes.len(), true, &[], &fds)
        };
        drop(theirs);
        let gone = match sent {
            Ok(()) => match receive(channel.as_fd(), true)? {
                Some((note, fds)) => return finish(guardian, channel, note, fds, (plan, halts.take())),
                None if !guardian.is_gone() => {
                    return Err(Error::sys(STEP, "recvmsg", libc::EMFILE)
                        .because("the guardian of the containers has as many open files as it may have")
                        .remedy("raise the hard limit of open files (ulimit -Hn), or run fewer containers"));
                }
                None => true,
            },
            Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN | Errno::ECONNREFUSED) => true,
            Err(Errno::ETOOMANYREFS) => {
                return Err(Error::sys(STEP, "sendmsg", Errno::ETOOMANYREFS as i32)
                    .kind_is(ErrorKind::Limit)
                    .because("too many descriptors are under way to the guardian")
                    .remedy("raise the limit of open files, or launch fewer at once"));
            }
            Err(errno) => return Err(Error::sys(STEP, "sendmsg", errno as i32)),
        };
        // Somebody killed the guardian (the OOM killer, an operator): this container gets a new one.
        if gone {
            forget(&guardian);
            if !again {
                return Err(Error::new(ErrorKind::Launch, STEP)
                    .because("the guardian process was killed, twice")
                    .remedy("look for the out-of-memory killer in dmesg"));
            }
            again = false;
        }
    }
}

fn finish(
    guardian: Arc<Guardian>,
    channel: OwnedFd,
    note: Note,
    fds: Vec<OwnedFd>,
    (plan, halts): (&mut Finished, Option<Halts<'_>>),
) -> Result<Process> {
    match note.kind {
        STARTED => {}
        FAILED => {
            let sys = Sys::from_u32(note.a).unwrap_or(Sys::Plan);
            return Err(failure::no_process(sys, note.b as i32, plan.user_namespace));
        }
        _ => return Err(Error::new(ErrorKind::Launch, STEP).because("the guardian spoke out of turn")),
    }
    let mut fds = fds.into_iter();
    let (Some(report), Some(pidfd)) = (fds.next(), fds.next()) else {
        // Nothing is left of it when that is said: killed here, for it could wait for ever, and reaped by the guardian.
        let _ = tell(channel.as_fd(), SIGNAL, libc::SIGKILL as u32);
        let _ = receive(channel.as_fd(), true);
        return Err(Error::sys(STEP, "recvmsg", libc::EMFILE)
            .kind_is(ErrorKind::Limit)
            .because("this program has as many open files as it may have")
            .remedy("raise the limit of open files (ulimit -n)"));
    };
    let (home, ended) = (std::process::id(), Mutex::new(None));
    let tree = plan.tree;
    let mut process = Process { channel, pidfd, pid: note.a, home, tree, _guardian: guardian, ended };
    let mut moves = plan.joins;
    if let Some(halts) = halts {
        // Or the end of the process would not be the end of the socket.
        plan.fds.clear();
        process.go_along(halts, &mut moves).inspect_err(|_| {
            let _ = process.signal(libc::SIGKILL);
            let _ = process.wait(None);
        })?;
    }
    let heard = hear(&report, patience(plan.joins || cfg!(fuzzing))).inspect_err(|_| {
        let _ = process.signal(libc::SIGKILL);
        let _ = process.wait(None);
    })?;
    let error = match heard {
        Heard { report: Some(report), .. } => failure::sentence(report, &plan.steps),
        Heard { malformed: true, .. } => {
            Error::new(ErrorKind::Launch, STEP).because("the report of the failed step is malformed")
        }
        Heard { ready: true, .. } => {
            if moves {
                process.follow().inspect_err(|_| {
                    let _ = process.signal(libc::SIGKILL);
                    let _ = process.wait(None);
                })?;
            }
            return Ok(process);
        }
        // Reaped before we say so, see below.
        _ => return Err(failure::early(process.wait(None)?)),
    };
    // No process is left after an error: it has reported and is ending, and is reaped before we say so.
    let _ = process.wait(None);
    Err(error)
}

fn again<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// One note to the guardian; false when it has closed its end, because the process has been reaped.
fn tell(channel: BorrowedFd<'_>, kind: u32, a: u32) -> Result<bool, Errno> {
    let bytes = Note { kind, a, ..Note::default() }.encode();
    let slices = [IoSlice::new(&bytes)];
    loop {
        match sendmsg::<()>(channel.as_raw_fd(), &slices, &[], MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Ok(false),
            Err(errno) => return Err(errno),
        }
    }
}

/// What the first process has said on the report pipe.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    ready: bool,
    report: Option<Report>,
    malformed: bool,
}

/// How long a process may take that others see while it is set up: they could stop it for ever.
const PATIENCE: u16 = if cfg!(fuzzing) { 500 } else { 60_000 };

/// How many guardians have been started: one that a plan brings down is replaced, and that is a defect.
#[cfg(fuzzing)]
pub(super) static STARTED_GUARDIANS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// [`PATIENCE`] with a process that others see, in milliseconds, and as long as it takes with any other.
fn patience(seen: bool) -> PollTimeout {
    if seen { PollTimeout::from(PATIENCE) } else { PollTimeout::NONE }
}

fn kept_waiting() -> Error {
    Error::new(ErrorKind::Conflict, STEP)
        .because("a process of the container keeps it from being set up, or the machine does")
        .remedy("look for stopped processes in it, or start the container again")
}

/// Waits for the end of the report pipe and reads what is in it.
fn hear(pipe: &OwnedFd, limit: PollTimeout) -> Result<Heard> {
    // Asked for nothing, poll(2) wakes us at the end only, and not once more for the one word that is mostly all.
    loop {
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::empty())], limit) {
            Ok(0) => return Err(kept_waiting()),
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::sys(STEP, "poll", errno as i32)),
        }
    }
    // Two processes write at most one report each, and one of them the word.
    let mut bytes = [0u8; 2 * REPORT + 8];
    let mut length = 0;
    while length < bytes.len() {
        match nix::unistd::read(pipe, &mut bytes[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::sys(STEP, "read", errno as i32)),
        }
    }
    Ok(parse(&bytes[..length]))
}

fn parse(mut bytes: &[u8]) -> Heard {
    let mut heard = Heard::default();
    while !bytes.is_empty() {
        if let Some(rest) = bytes.strip_prefix(&READY.to_ne_bytes()) {
            heard.ready = true;
            bytes = rest;
        } else if let Some((report, rest)) =
            bytes.split_at_checked(REPORT).and_then(|(report, rest)| Some((Report::decode(report)?, rest)))
        {
            // The first is the cause.
            heard.report.get_or_insert(report);
            bytes = rest;
        } else {
            heard.malformed = true;
            break;
        }
    }
    heard
}

/// A sealed memfd with these bytes.
pub(crate) fn in_memory(bytes: &[u8]) -> Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let fd = memfd_create(c"coracle-plan", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
        .map_err(|errno| Error::sys(STEP, "memfd_create", errno as i32))?;
    let mut file = std::fs::File::from(fd);
    std::io::Write::write_all(&mut file, bytes).map_err(|error| Error::io(STEP, "write", error))?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(|errno| Error::sys(STEP, "fcntl", errno as i32))?;
    Ok(file.into())
}

impl Process {
    /// In the pid namespace of the host program. Reused by the kernel once the process has ended.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Readable once it has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Was it launched by this very process, and not by one that this is a fork of?
    pub(crate) fn is_ours(&self) -> bool {
        self.home == std::process::id()
    }

    /// Does what is to be done at each halt of the process, and has it go on. Its end is for its report to explain.
    /// `moves`: it goes on as another, whom nobody has followed yet.
    fn go_along(&mut self, halts: Halts<'_>, moves: &mut bool) -> Result<()> {
        let failed = |syscall| move |errno: Errno| Error::sys(STEP, syscall, errno as i32);
        let limit = patience(*moves);
        for halt in 0.. {
            if again(|| poll(&mut [PollFd::new(halts.socket.as_fd(), PollFlags::POLLIN)], limit)) == Ok(0) {
                return Err(kept_waiting());
            }
            let mut byte = [0u8; 1];
            match again(|| nix::unistd::read(&halts.socket, &mut byte)) {
                Ok(0) | Err(Errno::ECONNRESET) => break,
                Ok(_) => {}
                Err(errno) => return Err(failed("read")(errno)),
            }
            if std::mem::take(moves) {
                self.follow()?;
            }
            (halts.at)(halt, self)?;
            let go = [IoSlice::new(b"!")];
            let flags = MsgFlags::MSG_NOSIGNAL;
            match again(|| sendmsg::<()>(halts.socket.as_raw_fd(), &go, &[], flags, None)) {
                Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => {}
                Err(errno) => return Err(failed("sendmsg")(errno)),
            }
        }
        Ok(())
    }

    /// The process has gone on as another: waits to be told which, by whoever reaps the first. What had nothing more to do
    /// than end may have ended.
    fn follow(&mut self) -> Result<()> {
        match receive(self.channel.as_fd(), true)? {
            Some((Note { kind: MOVED, a, .. }, fds)) => {
                let pidfd = fds.into_iter().next();
                self.pidfd =
                    pidfd.ok_or_else(|| Error::sys(STEP, "recvmsg", libc::EMFILE).kind_is(ErrorKind::Limit))?;
                self.pid = a;
                Ok(())
            }
            Some((Note { kind: FAILED, a, b, .. }, _)) => {
                Err(failure::no_process(Sys::from_u32(a).unwrap_or(Sys::Plan), b as i32, false))
            }
            Some((note, _)) => {
                *self.ended.get_mut().unwrap_or_else(PoisonError::into_inner) = last(note);
                Ok(())
            }
            None => Err(guardian_killed()),
        }
    }

    /// Whether SIGKILL has to be told to it in other words, see [`signal_past`].
    pub(crate) fn is_watched(&self) -> bool {
        self.tree
    }

    /// The guardian is gone: ends the process, and with it everything in its pid namespace, or that came of its command.
    fn end_without_guardian(&self) -> Result<()> {
        let fail = |syscall| move |error| Error::io("end the container without its guardian", syscall, error);
        match signal_past(self.pidfd.as_fd(), libc::SIGKILL, self.tree) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(fail("pidfd_send_signal")(error)),
            _ => {}
        }
        crate::sys::pidfd::wait(self.pidfd.as_fd(), None).map(drop).map_err(fail("poll"))
    }

    /// Sends a signal to the first process; false when it has ended already. Never hits a reused pid.
    pub(crate) fn signal(&self, signal: i32) -> Result<bool> {
        if self.ended.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(false);
        }
        let told = tell(self.channel.as_fd(), SIGNAL, signal as u32);
        if told.map_err(|errno| Error::sys("signal the container", "sendmsg", errno as i32))? {
            return Ok(true);
        }
        // Reaped, or its guardian was killed: the descriptor tells the two apart.
        match signal_past(self.pidfd.as_fd(), signal, self.tree) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            other => {
                other.map(|()| true).map_err(|error| Error::io("signal the container", "pidfd_send_signal", error))
            }
        }
    }

    /// Lets it live as long as the host program, whatever becomes of this value.
    pub(crate) fn release(&self) -> Result<bool> {
        tell(self.channel.as_fd(), RELEASE, 0)
            .map_err(|errno| Error::sys("release the container", "sendmsg", errno as i32))
    }

    /// Waits until it has ended, at most for `limit`; `None` when the limit came first. Every later call answers the
    /// same.
    pub(crate) fn wait(&self, limit: Option<Duration>) -> Result<Option<Ended>> {
        // A limit beyond the clock's range is none.
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            if let Some(ended) = self.look()? {
                return Ok(Some(ended));
            }
            let left = match deadline {
                None => PollTimeout::NONE,
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    // Rounded up, or the last millisecond would be spent in a busy loop.
                    let millis = left.as_micros().div_ceil(1000);
                    PollTimeout::try_from(millis.min(i32::MAX as u128) as i32).unwrap_or(PollTimeout::MAX)
                }
            };
            match poll(&mut [PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)], left) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::sys("wait for the container", "poll", errno as i32)),
            }
        }
    }

    /// [`wait`](Process::wait) without waiting.
    pub(crate) fn look(&self) -> Result<Option<Ended>> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ended) = *ended {
            return Ok(Some(ended));
        }
        let note = match receive(self.channel.as_fd(), false) {
            Ok(note) => note,
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => return Ok(None),
            Err(error) => return Err(error),
        };
        match note {
            Some((note, ..)) => {
                *ended = last(note);
                Ok(*ended)
            }
            None => {
                self.end_without_guardian()?;
                Err(guardian_killed())
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::launch::Op;

    /// One that somebody could still write to or shorten.
    #[test]
    fn a_plan_in_a_file_without_seals_is_refused() {
        let guardian = guardian(Path::new("")).unwrap();
        let mut plan = Plan::new(0);
        plan.plain(Op::Done);
        let plan = plan.finish().unwrap();
        let lease = tempfile::tempfile().unwrap();
        let open = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut &open, &plan.bytes).unwrap();
        let answer = |file: &dyn AsFd| {
            let (channel, theirs) = pair().unwrap();
            let fds = [theirs.as_raw_fd(), lease.as_raw_fd(), file.as_fd().as_raw_fd()];
            send(guardian.control.as_fd(), LAUNCH, plan.bytes.len(), true, &[], &fds).unwrap();
            drop(theirs);
            let (note, _) = receive(channel.as_fd(), true).unwrap().unwrap();
            note.kind
        };
        assert_eq!(answer(&open), FAILED);
        assert_eq!(answer(&in_memory(&plan.bytes).unwrap()), STARTED);
    }

    /// A signal that crosses the end of its container.
    #[test]
    fn a_note_that_nobody_has_read_does_not_hide_the_last_answer() {
        let (ours, theirs) = pair().unwrap();
        assert!(tell(ours.as_fd(), SIGNAL, 15).unwrap());
        assert!(tell(theirs.as_fd(), EXITED, libc::CLD_EXITED as u32).unwrap());
        drop(theirs);
        let (note, _) = receive(ours.as_fd(), true).unwrap().unwrap();
        assert_eq!(note.kind, EXITED);
        assert!(receive(ours.as_fd(), true).unwrap().is_none());
    }

    #[test]
    fn the_end_of_a_channel_does_not_overtake_the_last_answer() {
        let mut answers = [None, Some("exited"), None].into_iter();
        assert_eq!(for_certain(|| Ok(answers.next().flatten())).unwrap(), Some("exited"));
        assert_eq!(for_certain(|| Ok(answers.next().flatten())).unwrap(), None);
    }

    #[test]
    fn the_end_of_a_report_pipe_alone_says_nothing_good() {
        let report = Report { index: 3, op: Op::Session as u32, sys: Sys::Setsid, errno: 1, detail: 0 };
        let (ready, bytes) = (READY.to_ne_bytes(), report.encode());
        assert_eq!(parse(&[]), Heard::default());
        assert_eq!(parse(&ready), Heard { ready: true, ..Heard::default() });
        let both = Heard { ready: true, report: Some(report), malformed: false };
        assert_eq!(parse(&[&ready[..], &bytes].concat()), both);
        assert_eq!(parse(&[&bytes[..], &ready].concat()), both);
        assert!(parse(&bytes[1..]).malformed && parse(&[0]).malformed);
    }

    /// Who may signal it inside could stop it before it has said anything.
    #[test]
    fn what_is_stopped_while_it_is_set_up_is_not_waited_for_for_ever() {
        let (reader, writer) = std::io::pipe().unwrap();
        let reader = OwnedFd::from(reader);
        let error = hear(&reader, PollTimeout::from(1u16)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains("stopped"), "{error}");
        std::io::Write::write_all(&mut &writer, &READY.to_ne_bytes()).unwrap();
        drop(writer);
        assert!(hear(&reader, PollTimeout::NONE).unwrap().ready);
    }

    #[test]
    fn a_thread_that_changed_has_another_identity() {
        let before = Identity::now();
        assert_eq!(before, Identity::now());
        assert_eq!(before, std::thread::spawn(Identity::now).join().unwrap());
        assert!(before.namespaces[..2].iter().all(|inode| *inode != 0));
        let changed = std::thread::spawn(|| {
            nix::sys::prctl::set_no_new_privs().unwrap();
            Identity::now()
        });
        let other = Identity { no_new_privs: before.no_new_privs, ..changed.join().unwrap() };
        assert_eq!(other, before);
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        use nix::sched::CloneFlags;
        for flag in
            [CloneFlags::CLONE_NEWNET, CloneFlags::CLONE_NEWIPC, CloneFlags::CLONE_NEWUTS, CloneFlags::CLONE_NEWCGROUP]
        {
            let changed = std::thread::spawn(move || nix::sched::unshare(flag).map(|()| Identity::now()));
            match changed.join().unwrap() {
                Ok(identity) => assert_ne!(identity, before, "{flag:?}"),
                Err(errno) => eprintln!("SKIP: unshare({flag:?}): {errno}"),
            }
        }
    }
}
