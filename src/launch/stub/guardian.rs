//! The guardian: parent of every container that one host program started.
//!
//! It waits in epoll for four things: launch messages on descriptor 0, the end of the host program, children that
//! ended, and notes on each container's channel. It never blocks on anything else; what has to wait (mapping id ranges
//! with newuidmap) waits in a process of its own.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::arch::EpollEvent;
use crate::child::{self, Launch};
use crate::descriptors;
use crate::kernel::{self, Ended};
use crate::protocol::{
    END_TREE, EXITED, FAILED, HEADER, HELLO, HOLD_TREE, INLINE_PLAN, LAUNCH, MAGIC, MAX_CONTAINERS, MAX_FDS, MAX_PLAN,
    MOVED, NONE, NOTE, Note, PLAN_HEADER, PLAN_JOINS, PLAN_MAP_HELPER, PLAN_TREE, RELEASE, SIGNAL, STARTED, Sys, word,
};

const CONTROL: i32 = 0;
const DATA_CONTROL: u64 = u64::MAX;
const DATA_CHILDREN: u64 = u64::MAX - 1;
const DATA_HOST: u64 = u64::MAX - 2;

/// Flags of clone(2) that a plan may ask for: namespaces only. `CLONE_VM` and friends never get through.
const NAMESPACES: u64 = 0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;

const CLONE_NEWUSER: u64 = 0x1000_0000;

pub const RLIMIT_NOFILE: u32 = 7;

/// `F_SEAL_SHRINK`, `F_SEAL_GROW` and `F_SEAL_WRITE`.
const SEALED: usize = 2 | 4 | 8;

/// One container.
#[derive(Clone, Copy)]
struct Slot {
    /// Of the first process; 0 when the slot is free.
    pid: i32,
    /// Our end of the channel; -1 once the host closed its end.
    channel: i32,
    /// Held open until the container is reaped, so that nobody sweeps its files before.
    lease: i32,
    /// Lives as long as the host program, not as long as the channel.
    released: bool,
    /// Its process is about to go on as another, whose pid the kernel writes into this slot's word of
    /// [`Guardian::moved`].
    joins: bool,
    /// That other one has ended, and been reaped, before the first.
    gone: bool,
    /// Its process has stayed behind to watch over the command's, and takes [`END_TREE`] for SIGKILL.
    tree: bool,
    /// Tells a reused slot from the one that an event was meant for.
    generation: u32,
}

struct Guardian {
    epoll: i32,
    /// Both ends of the pipe that only guardians hold open: children see its hang-up when the guardian dies.
    life: (i32, i32),
    procfs: i32,
    children: i32,
    /// Network namespaces, see [`Guardian::make_spare`]: this process's own, and one for the next container. 0: none.
    home: i32,
    spare: i32,
    /// Launches with a network namespace of their own, up to two.
    networks: u32,
    used: usize,
    /// A word for each slot; 0 before it is needed.
    moved: Option<&'static [AtomicU32]>,
    /// Slots below this index have been used at some time.
    top: usize,
    slots: [Slot; MAX_CONTAINERS],
    buffer: [u8; HEADER + INLINE_PLAN],
}

/// A plan that came in a file; gone with this value, however its launch ends. A child never comes to that.
struct Mapped(&'static [u8]);

impl Drop for Mapped {
    fn drop(&mut self) {
        kernel::unmap(self.0);
    }
}

/// The words of the slots, that of `index` zeroed, for a child to inherit. They are made when they are first needed.
fn words_for(words: &mut Option<&'static [AtomicU32]>, index: usize) -> Result<&'static [AtomicU32], i32> {
    let words = match *words {
        Some(words) => words,
        None => *words.insert(kernel::shared_words(MAX_CONTAINERS)?),
    };
    words.get(index).ok_or(kernel::EINVAL)?.store(0, Ordering::Relaxed);
    kernel::inherit(words, true)?;
    Ok(words)
}

struct Whole(UnsafeCell<Guardian>);
// SAFETY: this program has one thread, and `run` is the only place that takes a reference.
unsafe impl Sync for Whole {}

// All zero, so that it costs no byte of the file and no page until it is used; `prepare` fills in what zero cannot mean.
static GUARDIAN: Whole = Whole(UnsafeCell::new(Guardian {
    epoll: 0,
    life: (0, 0),
    procfs: 0,
    children: 0,
    home: 0,
    spare: 0,
    networks: 0,
    used: 0,
    moved: None,
    top: 0,
    slots: [Slot {
        pid: 0,
        channel: 0,
        lease: 0,
        released: false,
        joins: false,
        gone: false,
        tree: false,
        generation: 0,
    }; MAX_CONTAINERS],
    buffer: [0; HEADER + INLINE_PLAN],
}));

/// The whole life of a guardian.
pub fn run() -> ! {
    // Host signals were blocked across the exec; nothing but SIGKILL is to end a guardian before its host ends.
    kernel::set_signal_mask(u64::MAX);
    kernel::default_signals();
    // What the host program left open without close-on-exec is none of our business, nor are its terminal, its
    // directory or its session.
    let alone = alone();
    let _ = kernel::setsid();
    let _ = kernel::chdir(b"/\0");
    kernel::set_name(b"coracle-guard\0\0\0");
    if let Err((sys, errno)) = alone {
        refuse(sys, errno);
    }
    // SAFETY: called once, from the entry point, by the only thread; no other reference exists.
    let guardian = unsafe { &mut *GUARDIAN.0.get() };
    if let Err((sys, errno)) = guardian.prepare() {
        refuse(sys, errno);
    }
    guardian.serve()
}

/// Gives up what the host program has and no container is to get: its descriptors, and the keys of its session. The
/// keyring in their place has no permissions, so that it is no way from one container to another.
fn alone() -> Result<(), (Sys, i32)> {
    let failed = |sys: Sys| move |errno: i32| (sys, errno);
    kernel::dup3(CONTROL, 1, 0).and_then(|_| kernel::dup3(CONTROL, 2, 0)).map_err(failed(Sys::Dup3))?;
    descriptors::keep_only(None, 3, core::iter::empty()).map_err(failed(Sys::CloseRange))?;
    kernel::new_keyring().and_then(|()| kernel::lock_keyring()).map_err(failed(Sys::Keyctl))
}

/// Answers the host program's first message with what failed, and ends.
fn refuse(sys: Sys, errno: i32) -> ! {
    // Unread, that message would be a reset connection to the host, which comes before our answer.
    let _ = kernel::read(CONTROL, &mut [0; HEADER]);
    let note = Note { kind: FAILED, a: sys as u32, b: errno as u32, ..Note::default() };
    let _ = kernel::send(CONTROL, &note.encode());
    kernel::exit(1)
}

impl Guardian {
    fn prepare(&mut self) -> Result<(), (Sys, i32)> {
        let failed = |sys: Sys| move |errno: i32| (sys, errno);
        // Two descriptors per container: the hard limit counts here. Containers get the host's own by their plans.
        let (_, hard) = kernel::getrlimit(RLIMIT_NOFILE).map_err(failed(Sys::Prlimit))?;
        let _ = kernel::setrlimit(RLIMIT_NOFILE, hard, hard);
        self.epoll = kernel::epoll_create().map_err(failed(Sys::EpollCtl))?;
        self.life = kernel::pipe().map_err(failed(Sys::Pipe))?;
        self.children = kernel::signalfd(1 << (kernel::SIGCHLD - 1)).map_err(failed(Sys::Signalfd))?;
        kernel::epoll_add(self.epoll, self.children, DATA_CHILDREN).map_err(failed(Sys::EpollCtl))?;
        kernel::epoll_add(self.epoll, CONTROL, DATA_CONTROL).map_err(failed(Sys::EpollCtl))
    }

    fn serve(&mut self) -> ! {
        let mut events = [EpollEvent { events: 0, data: 0 }; 64];
        loop {
            let count = kernel::epoll_wait(self.epoll, &mut events).unwrap_or(0);
            for event in events.iter().take(count) {
                match event.data {
                    DATA_CHILDREN => self.reap(),
                    DATA_HOST => self.end(),
                    DATA_CONTROL => {
                        // A few per turn, so that a storm of launches does not keep exits waiting.
                        for _ in 0..8 {
                            if !self.control() {
                                break;
                            }
                        }
                    }
                    data => self.note((data & 0xffff_ffff) as usize, (data >> 32) as u32),
                }
            }
        }
    }

    /// The host program is gone, or has closed its end: every container goes, then this process.
    fn end(&mut self) -> ! {
        for index in 0..self.top {
            self.kill(index, kernel::SIGKILL);
        }
        // Leases are held until the last container is reaped, so that a sweep by another program finds no survivor.
        while self.used > 0 {
            // One that went on as another meanwhile.
            for index in 0..self.top {
                self.kill(index, kernel::SIGKILL);
            }
            let _ = kernel::wait_signal(1 << (kernel::SIGCHLD - 1));
            self.reap();
        }
        kernel::exit(0)
    }

    /// One control message; false when there is none.
    fn control(&mut self) -> bool {
        let mut fds = [-1i32; MAX_FDS];
        let mut fd_count = 0;
        let length = match kernel::receive(CONTROL, &mut self.buffer, &mut fds, &mut fd_count) {
            Ok(0) => self.end(),
            Ok(length) => length,
            Err(kernel::EINVAL) => return true,
            Err(_) => return false,
        };
        let message = self.buffer.get(..length).unwrap_or(&[]);
        let fds = fds.get(..fd_count).unwrap_or(&[]);
        let kind = word(message, 4);
        match (word(message, 0), kind) {
            (Some(MAGIC), Some(HELLO)) => {
                // [pidfd of the host, /proc]; both stay open.
                if let [host, procfs] = *fds {
                    self.procfs = procfs;
                    if kernel::epoll_add(self.epoll, host, DATA_HOST).is_ok() {
                        let ready = Note { kind: STARTED, ..Note::default() };
                        let _ = kernel::send(CONTROL, &ready.encode());
                        return true;
                    }
                }
                kernel::exit(1)
            }
            (Some(MAGIC), Some(LAUNCH)) => {
                let keep = self.launch(length, fds);
                let kept = if keep { 2 } else { 0 };
                for (index, descriptor) in fds.iter().enumerate() {
                    // Channel and lease stay with the slot.
                    if index >= kept {
                        kernel::close(*descriptor);
                    }
                }
                true
            }
            _ => {
                for descriptor in fds {
                    kernel::close(*descriptor);
                }
                true
            }
        }
    }

    /// Starts what the message in the buffer describes; true when a slot now owns channel and lease.
    fn launch(&mut self, length: usize, fds: &[i32]) -> bool {
        let [channel, lease, ..] = *fds else { return false };
        let fail = |sys: Sys, errno: i32| {
            let note = Note { kind: FAILED, a: sys as u32, b: errno as u32, ..Note::default() };
            let _ = kernel::send(channel, &note.encode());
            false
        };
        let message = self.buffer.get(..length).unwrap_or(&[]);
        let plan_length = word(message, 8).unwrap_or(0) as usize;
        let in_file = word(message, 12).unwrap_or(0) != 0;
        if plan_length < PLAN_HEADER || plan_length > MAX_PLAN {
            return fail(Sys::Plan, kernel::EINVAL);
        }
        let mut mapped: Option<Mapped> = None;
        let plan: &[u8] = if in_file {
            let file = fds.last().copied().unwrap_or(-1);
            // A file shorter than it says, or one that shrinks, would end us with SIGBUS, and one that changes would be
            // another plan in the child than here.
            let sealed = kernel::seals(file).is_ok_and(|seals| seals & SEALED == SEALED);
            if !sealed || !kernel::status(file).is_ok_and(|status| status.size >= plan_length as u64) {
                return fail(Sys::Plan, kernel::EINVAL);
            }
            match kernel::map_file(file, plan_length) {
                Ok(slice) => mapped.insert(Mapped(slice)).0,
                Err(errno) => return fail(Sys::Mmap, errno),
            }
        } else {
            match message.get(HEADER..HEADER + plan_length) {
                Some(plan) => plan,
                None => return fail(Sys::Plan, kernel::EINVAL),
            }
        };
        let header = |at| word(plan, at).unwrap_or(0);
        let flags = (header(4) as u64 | (header(8) as u64) << 32) & NAMESPACES;
        let cgroup = header(12);
        let map_helper = header(16) & PLAN_MAP_HELPER != 0;
        let joins = header(16) & PLAN_JOINS != 0;
        let tree = header(16) & PLAN_TREE != 0;
        let steps = plan.get(PLAN_HEADER..).unwrap_or(&[]);
        let cgroup = match (cgroup, fds.get((cgroup as usize).saturating_add(2))) {
            (NONE, _) => None,
            (_, Some(descriptor)) => Some(*descriptor),
            _ => return fail(Sys::Plan, kernel::EINVAL),
        };
        if header(0) != MAGIC {
            return fail(Sys::Plan, kernel::EINVAL);
        }
        let slot = match self.slots.iter().position(|slot| slot.pid == 0) {
            Some(slot) => slot,
            None => return fail(Sys::Plan, kernel::ENOSYS),
        };
        // For those alone that use them: who is in a container must not be able to write there.
        let words = match if joins { words_for(&mut self.moved, slot) } else { Ok(&[][..]) } {
            Ok(words) => words,
            Err(errno) => return fail(Sys::Mmap, errno),
        };
        // Made here and not by the host: a fork of the host program at the wrong moment would hold its writing end open.
        let report = match kernel::pipe() {
            Ok(report) => report,
            Err(errno) => return fail(Sys::Pipe, errno),
        };
        let fail = |sys: Sys, errno: i32| {
            kernel::close(report.0);
            kernel::close(report.1);
            fail(sys, errno)
        };
        let go = match if map_helper { kernel::pipe() } else { Ok((-1, -1)) } {
            Ok(pipe) => pipe,
            Err(errno) => return fail(Sys::Pipe, errno),
        };
        // Inside a user namespace of its own, the network namespace has to be that one's.
        let own_network = flags & kernel::CLONE_NEWNET != 0 && flags & CLONE_NEWUSER == 0;
        let spare = if own_network { core::mem::take(&mut self.spare) } else { 0 };
        let flags = if spare > 0 { flags & !kernel::CLONE_NEWNET } else { flags };
        let launch = Launch {
            steps,
            received: fds.get(2..).unwrap_or(&[]),
            report: report.1,
            life: self.life,
            go,
            procfs: self.procfs,
            network: if spare > 0 { spare } else { -1 },
            join: -1,
            words,
            slot,
            tree,
        };
        let (forked, join) = match kernel::fork(flags, cgroup) {
            // A filter around the host program. The cgroup's list of processes leads there as well.
            Err(errno @ (kernel::ENOSYS | kernel::EPERM)) => match cgroup.map(|directory| {
                kernel::openat(directory, b"cgroup.procs\0", kernel::O_WRONLY, 0)
            }) {
                Some(Ok(join)) => (kernel::fork(flags, None), join),
                _ => (Err(errno), -1),
            },
            forked => (forked, -1),
        };
        if forked != Ok(0) {
            kernel::close(join);
            // The next child gets them only if it joins as well. Should the kernel refuse, none may be born any more.
            if joins && kernel::inherit(words, false).is_err() {
                self.end();
            }
        }
        if spare > 0 && forked != Ok(0) {
            kernel::close(spare);
        }
        let pid = match forked {
            Ok(0) => child::run(Launch { join, ..launch }),
            Ok(pid) => pid,
            Err(errno) => {
                kernel::close(go.0);
                kernel::close(go.1);
                return fail(Sys::Clone, errno);
            }
        };
        let mut failed = None;
        if map_helper {
            match kernel::fork(0, None) {
                Ok(0) => child::map_ids(launch, pid),
                Ok(_) => {}
                Err(errno) => failed = Some((Sys::Fork, errno)),
            }
            kernel::close(go.0);
            kernel::close(go.1);
        }
        let Some(place) = self.slots.get_mut(slot) else { return false };
        let generation = place.generation.wrapping_add(1) & 0x7fff_ffff;
        *place = Slot { pid, channel, lease, released: false, joins, gone: false, tree, generation };
        self.used += 1;
        self.top = self.top.max(slot + 1);
        // Unwatched it could outlive its handle.
        if let Err(errno) = kernel::epoll_add(self.epoll, channel, slot as u64 | (generation as u64) << 32) {
            failed = failed.or(Some((Sys::EpollCtl, errno)));
        }
        if failed.is_none() {
            let note = Note { kind: STARTED, a: pid as u32, ..Note::default() };
            // The pidfd is the host's way to the process should this one be killed. No race: nobody else reaps it.
            failed = match kernel::pidfd_open(pid) {
                Ok(process) => {
                    let sent = kernel::send_with(channel, &note.encode(), report.0, Some(process));
                    kernel::close(process);
                    sent.err().map(|errno| (Sys::Sendmsg, errno))
                }
                Err(errno) => Some((Sys::PidfdOpen, errno)),
            };
        }
        kernel::close(report.0);
        kernel::close(report.1);
        if let Some((sys, errno)) = failed {
            // Killed before the host hears of it; its slot is there until it has been reaped.
            self.kill(slot, kernel::SIGKILL);
            let note = Note { kind: FAILED, a: sys as u32, b: errno as u32, ..Note::default() };
            let _ = kernel::send(channel, &note.encode());
        }
        if own_network {
            // A program that launches once shall not pay for a second.
            self.networks = (self.networks + 1).min(2);
            if self.networks > 1 && self.spare == 0 {
                self.make_spare();
            }
        }
        true
    }

    /// Makes a network namespace for the next container, while this one sets itself up: that is the most expensive part
    /// of a launch. Nobody has been in it but this process, loopback is up, and it goes with the guardian. Without one
    /// the next container's is made when it is cloned.
    fn make_spare(&mut self) {
        let open = |procfs| kernel::openat(procfs, b"self/ns/net\0", kernel::O_RDONLY, 0);
        if self.home == 0 {
            match open(self.procfs) {
                Ok(home) => self.home = home,
                Err(_) => return,
            }
        }
        // A filter around the host program may refuse the way back: found out before there is one to go.
        if kernel::setns(self.home, kernel::CLONE_NEWNET).is_err() || kernel::unshare(kernel::CLONE_NEWNET).is_err() {
            return;
        }
        let made = match kernel::loopback_up() {
            Ok(()) => open(self.procfs),
            Err((_, errno)) => Err(errno),
        };
        // Containers on the host's network are born in this process's: it has to be the host's again. It can fail for
        // want of memory only.
        let mut back = Err(0);
        for _ in 0..100 {
            back = kernel::setns(self.home, kernel::CLONE_NEWNET);
            if back.is_ok() {
                break;
            }
        }
        if back.is_err() {
            self.end();
        }
        if let Ok(spare) = made {
            self.spare = spare;
        }
    }

    /// A note, or the end of the channel.
    fn note(&mut self, index: usize, generation: u32) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        if slot.pid == 0 || slot.generation != generation || slot.channel < 0 {
            return;
        }
        let mut bytes = [0u8; NOTE];
        let mut fds = [-1i32; 4];
        let mut fd_count = 0;
        let mut received = kernel::receive(slot.channel, &mut bytes, &mut fds, &mut fd_count);
        if received == Ok(0) {
            // An end may overtake a note that came just before it, once.
            received = kernel::receive(slot.channel, &mut bytes, &mut fds, &mut fd_count);
        }
        for descriptor in fds.iter().take(fd_count) {
            kernel::close(*descriptor);
        }
        match received {
            Ok(length) if length > 0 => match Note::decode(bytes.get(..length).unwrap_or(&[])) {
                Some(Note { kind: SIGNAL, a: signal, .. }) if signal <= 64 => self.kill(index, signal),
                Some(Note { kind: RELEASE, .. }) => slot.released = true,
                _ => {}
            },
            Err(kernel::EAGAIN | kernel::EINTR | kernel::EINVAL) => {}
            _ => {
                // A process that is just being set up may hold a copy, so closing alone would leave it in the set.
                kernel::epoll_remove(self.epoll, slot.channel);
                kernel::close(slot.channel);
                slot.channel = -1;
                if !slot.released {
                    self.kill(index, kernel::SIGKILL);
                }
            }
        }
    }

    /// Reaps what ended and tells who waits.
    fn reap(&mut self) {
        // One signal may stand for many children; it is only taken away here, waitid says who.
        let mut signal = [0u8; 128];
        let _ = kernel::read(self.children, &mut signal);
        while let Some(ended) = kernel::reap() {
            let pid = ended.pid;
            let found = |index: &usize| {
                let slot = self.slots.get(*index);
                slot.is_some_and(|slot| slot.pid == pid || slot.pid != 0 && self.successor(*index) == pid)
            };
            if let Some(index) = (0..self.top).find(found) {
                self.ended(index, ended);
            }
        }
    }

    /// The pid of the process that this slot's is about to go on as; 0 where there is none, or none yet.
    fn successor(&self, index: usize) -> i32 {
        match (self.slots.get(index), self.moved) {
            (Some(Slot { joins: true, gone: false, .. }), Some(words)) => {
                words.get(index).map_or(0, |word| word.load(Ordering::Relaxed) as i32)
            }
            _ => 0,
        }
    }

    /// Signals a slot's process, or both of them while one goes on as the other. No pid can have been reused: this process
    /// is their parent and has not reaped them.
    fn kill(&self, index: usize, signal: u32) {
        let (first, tree) = self.slots.get(index).map_or((0, false), |slot| (slot.pid, slot.tree));
        let watched = match signal {
            kernel::SIGKILL => END_TREE,
            kernel::SIGSTOP => HOLD_TREE,
            other => other,
        };
        let signal = if tree { watched } else { signal };
        for pid in [first, self.successor(index)] {
            if pid > 0 {
                let _ = kernel::kill(pid, signal);
                // Somebody may have stopped it, whom it could not refuse that.
                if tree && signal == END_TREE {
                    let _ = kernel::kill(pid, kernel::SIGCONT);
                }
            }
        }
    }

    /// A process of this slot has been reaped.
    fn ended(&mut self, index: usize, ended: Ended) {
        let successor = self.successor(index);
        let Some(slot) = self.slots.get_mut(index) else { return };
        let Ended { pid, code, status, user, system, peak } = ended;
        if pid == slot.pid && successor != 0 {
            // It has gone on as another.
            slot.pid = successor;
            slot.joins = false;
            let told = kernel::pidfd_open(successor).and_then(|process| {
                let note = Note { kind: MOVED, a: successor as u32, ..Note::default() };
                let told = kernel::send_with(slot.channel, &note.encode(), process, None);
                kernel::close(process);
                told
            });
            if let Err(errno) = told {
                // The host cannot follow it, and hears that before it hears of the end.
                let note = Note { kind: FAILED, a: Sys::PidfdOpen as u32, b: errno as u32, ..Note::default() };
                let _ = kernel::send(slot.channel, &note.encode());
                let _ = kernel::kill(successor, kernel::SIGKILL);
            }
            return;
        }
        if slot.channel >= 0 {
            let note = Note { kind: EXITED, a: code, b: status, user, system, peak };
            let _ = kernel::send(slot.channel, &note.encode());
            kernel::epoll_remove(self.epoll, slot.channel);
            kernel::close(slot.channel);
            slot.channel = -1;
        }
        if pid != slot.pid {
            // The first has still to be reaped, which is ending.
            slot.gone = true;
            return;
        }
        kernel::close(slot.lease);
        slot.pid = 0;
        self.used = self.used.saturating_sub(1);
    }
}
