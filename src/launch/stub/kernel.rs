//! The stub's door to the kernel: each call once, with checked types on our side and an errno (positive) as error.
//!
//! SAFETY, for the whole file: slices passed to the kernel are live for the call and passed with their true length;
//! paths are byte strings that end in NUL (`path` checks that); integers cannot break memory safety of this process,
//! which shares memory with nobody.

use core::sync::atomic::AtomicU32;

use crate::arch::{EpollEvent, common, nr, syscall6};

pub type Outcome<T> = Result<T, i32>;

pub const AT_FDCWD: i32 = -100;
pub const AT_EMPTY_PATH: usize = 0x1000;
pub const AT_RECURSIVE: usize = 0x8000;
pub const AT_REMOVEDIR: usize = 0x200;

pub const O_RDONLY: u32 = 0;
pub const O_WRONLY: u32 = 1;
pub const O_RDWR: u32 = 2;
pub const O_CREAT: u32 = 0o100;
pub const O_EXCL: u32 = 0o200;
pub const O_NOCTTY: u32 = 0o400;
pub const O_NONBLOCK: u32 = 0o4000;
pub const O_CLOEXEC: u32 = 0o2000000;
pub const O_PATH: u32 = 0o10000000;
pub use crate::arch::{O_DIRECTORY, O_NOFOLLOW};

pub const RESOLVE_NO_XDEV: u64 = 0x01;
pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;
pub const RESOLVE_BENEATH: u64 = 0x08;
pub const RESOLVE_IN_ROOT: u64 = 0x10;

pub const EPERM: i32 = 1;
pub const ENOENT: i32 = 2;
pub const EINTR: i32 = 4;
pub const EAGAIN: i32 = 11;
pub const EACCES: i32 = 13;
pub const ETXTBSY: i32 = 26;
pub const EEXIST: i32 = 17;
pub const EDQUOT: i32 = 122;
pub const EXDEV: i32 = 18;
pub const ENOTDIR: i32 = 20;
pub const EISDIR: i32 = 21;
pub const EINVAL: i32 = 22;
pub const EROFS: i32 = 30;
pub const ENAMETOOLONG: i32 = 36;
pub const ENOSYS: i32 = 38;
pub const ENOTEMPTY: i32 = 39;
pub const ELOOP: i32 = 40;

pub const SIGKILL: u32 = 9;
pub const SIGCHLD: u32 = 17;
pub const SIGCONT: u32 = 18;
pub const SIGSTOP: u32 = 19;

fn outcome(result: isize) -> Outcome<usize> {
    if (-4095..0).contains(&result) { Err(-result as i32) } else { Ok(result as usize) }
}

/// A path or name must end in NUL for the kernel to stop reading.
fn path(bytes: &[u8]) -> Outcome<usize> {
    match bytes.last() {
        Some(0) => Ok(bytes.as_ptr() as usize),
        _ => Err(EINVAL),
    }
}

fn call(n: usize, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> Outcome<usize> {
    // SAFETY: the file's header; every caller below passes what call `n` expects.
    outcome(unsafe { syscall6(n, a, b, c, d, e, f) })
}

fn fd(fd: i32) -> usize {
    fd as isize as usize
}

pub fn exit(code: i32) -> ! {
    loop {
        let _ = call(nr::EXIT_GROUP, code as usize, 0, 0, 0, 0, 0);
    }
}

pub fn close(descriptor: i32) {
    if descriptor >= 0 {
        let _ = call(nr::CLOSE, fd(descriptor), 0, 0, 0, 0, 0);
    }
}

pub fn close_range(first: u32, last: u32, flags: u32) -> Outcome<()> {
    call(common::CLOSE_RANGE, first as usize, last as usize, flags as usize, 0, 0, 0).map(drop)
}

pub fn read(descriptor: i32, buffer: &mut [u8]) -> Outcome<usize> {
    loop {
        match call(nr::READ, fd(descriptor), buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0) {
            Err(EINTR) => {}
            other => return other,
        }
    }
}

pub fn write(descriptor: i32, bytes: &[u8]) -> Outcome<usize> {
    loop {
        match call(nr::WRITE, fd(descriptor), bytes.as_ptr() as usize, bytes.len(), 0, 0, 0) {
            Err(EINTR) => {}
            other => return other,
        }
    }
}

pub fn write_all(descriptor: i32, mut bytes: &[u8]) -> Outcome<()> {
    while !bytes.is_empty() {
        let count = write(descriptor, bytes)?;
        bytes = bytes.get(count..).unwrap_or(&[]);
    }
    Ok(())
}

pub fn send(socket: i32, bytes: &[u8]) -> Outcome<usize> {
    const MSG_NOSIGNAL_DONTWAIT: usize = 0x4040;
    call(nr::SENDTO, fd(socket), bytes.as_ptr() as usize, bytes.len(), MSG_NOSIGNAL_DONTWAIT, 0, 0)
}

#[repr(C)]
struct IoVec {
    base: usize,
    length: usize,
}

#[repr(C)]
struct MessageHeader {
    name: usize,
    name_length: u32,
    iov: usize,
    iov_count: usize,
    control: usize,
    control_length: usize,
    flags: u32,
}

/// A descriptor of a child that has not been reaped.
pub fn pidfd_open(pid: i32) -> Outcome<i32> {
    call(common::PIDFD_OPEN, pid as usize, 0, 0, 0, 0, 0).map(|new| new as i32)
}

/// [`send`] with one descriptor or two.
pub fn send_with(socket: i32, bytes: &[u8], first: i32, second: Option<i32>) -> Outcome<usize> {
    const MSG_NOSIGNAL_DONTWAIT: usize = 0x4040;
    let iov = IoVec { base: bytes.as_ptr() as usize, length: bytes.len() };
    // Length with 4 bytes for each descriptor, SOL_SOCKET, SCM_RIGHTS, the descriptors.
    let length = if second.is_some() { 24u64 } else { 20 };
    let control = [length, 1 | 1 << 32, first as u32 as u64 | (second.unwrap_or(0) as u32 as u64) << 32];
    let header = MessageHeader {
        name: 0,
        name_length: 0,
        iov: &raw const iov as usize,
        iov_count: 1,
        control: control.as_ptr() as usize,
        control_length: size_of_val(&control),
        flags: 0,
    };
    call(nr::SENDMSG, fd(socket), &raw const header as usize, MSG_NOSIGNAL_DONTWAIT, 0, 0, 0)
}

/// Receives one datagram and its descriptors (all close-on-exec). A truncated message closes what came and is EINVAL.
pub fn receive(socket: i32, buffer: &mut [u8], fds: &mut [i32], fd_count: &mut usize) -> Outcome<usize> {
    const MSG_DONTWAIT: usize = 0x40;
    const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
    const MSG_TRUNC: u32 = 0x20;
    const MSG_CTRUNC: u32 = 0x8;
    let mut control = [0u64; 160];
    let iov = IoVec { base: buffer.as_mut_ptr() as usize, length: buffer.len() };
    let mut header = MessageHeader {
        name: 0,
        name_length: 0,
        iov: &raw const iov as usize,
        iov_count: 1,
        control: control.as_mut_ptr() as usize,
        control_length: size_of_val(&control),
        flags: 0,
    };
    *fd_count = 0;
    let count = call(
        nr::RECVMSG,
        fd(socket),
        &raw mut header as usize,
        MSG_DONTWAIT | MSG_CMSG_CLOEXEC,
        0,
        0,
        0,
    )?;
    // One control message: length (8), level (4), type (4), then descriptors as words.
    let length = control[0] as usize;
    if header.control_length >= 16 && (control[1] as u32, (control[1] >> 32) as u32) == (1, 1) && length >= 16 {
        let total = (length - 16) / 4;
        for index in 0..total {
            let word = control.get(2 + index / 2).copied().unwrap_or(0);
            let descriptor = if index % 2 == 0 { word as u32 } else { (word >> 32) as u32 } as i32;
            match fds.get_mut(*fd_count) {
                Some(place) => {
                    *place = descriptor;
                    *fd_count += 1;
                }
                None => close(descriptor),
            }
        }
    }
    if header.flags & (MSG_TRUNC | MSG_CTRUNC) != 0 {
        for descriptor in fds.iter().take(*fd_count) {
            close(*descriptor);
        }
        *fd_count = 0;
        return Err(EINVAL);
    }
    Ok(count)
}

#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A copy of this process in the namespaces of `flags`; 0 in the child. `cgroup` is a v2 directory to be born in, for
/// which there is no fallback here.
///
/// Memory is copied, never shared: no `CLONE_VM` gets through (the caller masks the flags).
pub fn fork(flags: u64, cgroup: Option<i32>) -> Outcome<i32> {
    let arguments = CloneArguments {
        flags: flags | if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 },
        exit_signal: SIGCHLD as u64,
        cgroup: cgroup.unwrap_or(0) as u64,
        ..CloneArguments::default()
    };
    let length = size_of::<CloneArguments>();
    match call(common::CLONE3, &raw const arguments as usize, length, 0, 0, 0, 0) {
        // Seccomp profiles answer so for clone3, whose arguments they cannot read, or with EPERM for what they do not
        // know.
        Err(ENOSYS | EPERM) if cgroup.is_none() => {
            call(nr::CLONE, flags as usize | SIGCHLD as usize, 0, 0, 0, 0, 0).map(|pid| pid as i32)
        }
        other => other.map(|pid| pid as i32),
    }
}

/// A copy of this process as a child of its parent's, whose pid the kernel writes to `pid` before the copy runs; 0 in the
/// copy.
pub fn fork_beside(pid: &AtomicU32) -> Outcome<i32> {
    const CLONE_PARENT: u64 = 0x8000;
    const CLONE_PARENT_SETTID: u64 = 0x10_0000;
    let flags = CLONE_PARENT | CLONE_PARENT_SETTID;
    // Its exit signal is this process's own; none may be asked for beside CLONE_PARENT.
    let arguments = CloneArguments { flags, parent_tid: pid.as_ptr() as u64, ..CloneArguments::default() };
    let length = size_of::<CloneArguments>();
    match call(common::CLONE3, &raw const arguments as usize, length, 0, 0, 0, 0) {
        // As in `fork`.
        Err(ENOSYS | EPERM) => call(nr::CLONE, flags as usize, 0, pid.as_ptr() as usize, 0, 0, 0).map(|pid| pid as i32),
        other => other.map(|pid| pid as i32),
    }
}

pub fn kill(pid: i32, signal: u32) -> Outcome<()> {
    call(nr::KILL, pid as isize as usize, signal as usize, 0, 0, 0, 0).map(drop)
}

pub fn own_pid() -> i32 {
    call(nr::GETPID, 0, 0, 0, 0, 0, 0).map_or(-1, |pid| pid as i32)
}

/// What waitid(2) tells about a child that ended.
#[derive(Default, Clone, Copy)]
pub struct Ended {
    pub pid: i32,
    pub code: u32,
    pub status: u32,
    pub user: u64,
    pub system: u64,
    pub peak: u64,
}

/// Reaps one child; `None` when there is none to reap.
pub fn reap() -> Option<Ended> {
    const P_ALL: usize = 0;
    const WNOHANG_WEXITED: usize = 1 | 4;
    const WALL: usize = 0x4000_0000;
    let mut info = [0u32; 32];
    let mut usage = [0u64; 18];
    let done = call(
        nr::WAITID,
        P_ALL,
        0,
        info.as_mut_ptr() as usize,
        WNOHANG_WEXITED | WALL,
        usage.as_mut_ptr() as usize,
        0,
    );
    // siginfo_t: signo, errno, code, padding, pid, uid, status.
    if done.is_err() || info[4] == 0 {
        return None;
    }
    Some(Ended {
        pid: info[4] as i32,
        code: info[2],
        status: info[6],
        user: usage[0] * 1_000_000 + usage[1],
        system: usage[2] * 1_000_000 + usage[3],
        peak: usage[4],
    })
}

pub fn pipe() -> Outcome<(i32, i32)> {
    let mut ends = [0i32; 2];
    call(nr::PIPE2, ends.as_mut_ptr() as usize, O_CLOEXEC as usize, 0, 0, 0, 0)?;
    Ok((ends[0], ends[1]))
}

pub fn dup3(from: i32, to: i32, flags: u32) -> Outcome<i32> {
    call(nr::DUP3, fd(from), fd(to), flags as usize, 0, 0, 0).map(|new| new as i32)
}

/// A copy of the descriptor, numbered 3 or higher, close-on-exec.
pub fn dup_above(from: i32) -> Outcome<i32> {
    const F_DUPFD_CLOEXEC: usize = 1030;
    call(nr::FCNTL, fd(from), F_DUPFD_CLOEXEC, 3, 0, 0, 0).map(|new| new as i32)
}

pub fn set_close_on_exec(descriptor: i32) -> Outcome<()> {
    const F_SETFD: usize = 2;
    const FD_CLOEXEC: usize = 1;
    call(nr::FCNTL, fd(descriptor), F_SETFD, FD_CLOEXEC, 0, 0, 0).map(drop)
}

pub fn epoll_create() -> Outcome<i32> {
    call(nr::EPOLL_CREATE1, O_CLOEXEC as usize, 0, 0, 0, 0, 0).map(|new| new as i32)
}

pub fn epoll_add(epoll: i32, descriptor: i32, data: u64) -> Outcome<()> {
    const EPOLL_CTL_ADD: usize = 1;
    const EPOLLIN: u32 = 1;
    let event = EpollEvent { events: EPOLLIN, data };
    call(nr::EPOLL_CTL, fd(epoll), EPOLL_CTL_ADD, fd(descriptor), &raw const event as usize, 0, 0).map(drop)
}

pub fn epoll_remove(epoll: i32, descriptor: i32) {
    const EPOLL_CTL_DEL: usize = 2;
    let _ = call(nr::EPOLL_CTL, fd(epoll), EPOLL_CTL_DEL, fd(descriptor), 0, 0, 0);
}

pub fn epoll_wait(epoll: i32, events: &mut [EpollEvent]) -> Outcome<usize> {
    let count = events.len();
    call(nr::EPOLL_PWAIT, fd(epoll), events.as_mut_ptr() as usize, count, -1isize as usize, 0, 8)
}

/// Blocks exactly the signals of `mask` (bit n-1 is signal n).
pub fn set_signal_mask(mask: u64) {
    const SIG_SETMASK: usize = 2;
    let _ = call(nr::RT_SIGPROCMASK, SIG_SETMASK, &raw const mask as usize, 0, 8, 0, 0);
}

/// Every signal back to its default action; exec keeps what is ignored, and the host may ignore anything.
pub fn default_signals() {
    let action = [0u64; 4];
    for signal in 1..=64usize {
        let _ = call(nr::RT_SIGACTION, signal, action.as_ptr() as usize, 0, 8, 0, 0);
    }
}

/// Waits for one of the blocked signals of `mask` and takes it.
pub fn wait_signal(mask: u64) -> Outcome<u32> {
    call(nr::RT_SIGTIMEDWAIT, &raw const mask as usize, 0, 0, 8, 0, 0).map(|signal| signal as u32)
}

pub fn signalfd(mask: u64) -> Outcome<i32> {
    let flags = (O_CLOEXEC | O_NONBLOCK) as usize;
    call(nr::SIGNALFD4, -1isize as usize, &raw const mask as usize, 8, flags, 0, 0).map(|new| new as i32)
}

/// Has the other end of this pipe been closed?
pub fn hung_up(descriptor: i32) -> bool {
    const POLLHUP: u64 = 0x10;
    // struct pollfd: descriptor, events, revents.
    let mut entry = descriptor as u32 as u64;
    let zero = [0u64; 2];
    let ready = call(nr::PPOLL, &raw mut entry as usize, 1, zero.as_ptr() as usize, 0, 8, 0);
    ready.is_ok_and(|count| count == 1) && (entry >> 48) & POLLHUP != 0
}

pub fn prctl(option: usize, a: usize, b: usize) -> Outcome<usize> {
    call(nr::PRCTL, option, a, b, 0, 0, 0)
}

pub fn no_new_privileges() -> Outcome<()> {
    const PR_SET_NO_NEW_PRIVS: usize = 38;
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// prctl(2) with a name.
pub fn set_name(name: &[u8; 16]) {
    const PR_SET_NAME: usize = 15;
    let _ = prctl(PR_SET_NAME, name.as_ptr() as usize, 0);
}

/// A new session keyring without a name. Ok where this kernel, or a filter around us, has no keyrings: then nothing
/// inside has them either.
pub fn new_keyring() -> Outcome<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: usize = 1;
    match call(nr::KEYCTL, KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0, 0) {
        Ok(_) | Err(ENOSYS | EPERM) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Takes every permission from the session keyring.
pub fn lock_keyring() -> Outcome<()> {
    const KEYCTL_SETPERM: usize = 5;
    const KEY_SPEC_SESSION_KEYRING: usize = -3isize as usize;
    match call(nr::KEYCTL, KEYCTL_SETPERM, KEY_SPEC_SESSION_KEYRING, 0, 0, 0, 0) {
        Ok(_) | Err(ENOSYS | EPERM) => Ok(()),
        Err(errno) => Err(errno),
    }
}

pub fn setsid() -> Outcome<()> {
    call(nr::SETSID, 0, 0, 0, 0, 0, 0).map(drop)
}

pub fn unshare(flags: u64) -> Outcome<()> {
    call(nr::UNSHARE, flags as usize, 0, 0, 0, 0, 0).map(drop)
}

pub const CLONE_NEWNET: u64 = 0x4000_0000;

pub fn setns(namespace: i32, kind: u64) -> Outcome<()> {
    call(nr::SETNS, namespace as usize, kind as usize, 0, 0, 0, 0).map(drop)
}

pub fn openat(dir: i32, name: &[u8], flags: u32, mode: u32) -> Outcome<i32> {
    let flags = (flags | O_CLOEXEC) as usize;
    call(nr::OPENAT, fd(dir), path(name)?, flags, mode as usize, 0, 0).map(|new| new as i32)
}

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// openat2(2); EAGAIN (a rename went on meanwhile) is tried again a few times.
pub fn openat2(dir: i32, name: &[u8], flags: u32, resolve: u64) -> Outcome<i32> {
    let how = OpenHow { flags: (flags | O_CLOEXEC) as u64, mode: 0, resolve };
    let mut tries = 0;
    loop {
        match call(common::OPENAT2, fd(dir), path(name)?, &raw const how as usize, size_of::<OpenHow>(), 0, 0) {
            Err(EAGAIN) if tries < 128 => tries += 1,
            other => return other.map(|new| new as i32),
        }
    }
}

pub fn readlink(dir: i32, name: &[u8], buffer: &mut [u8]) -> Outcome<usize> {
    call(nr::READLINKAT, fd(dir), path(name)?, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0)
}

pub fn mkdirat(dir: i32, name: &[u8], mode: u32) -> Outcome<()> {
    call(nr::MKDIRAT, fd(dir), path(name)?, mode as usize, 0, 0, 0).map(drop)
}

pub fn mknodat(dir: i32, name: &[u8], mode: u32, device: u64) -> Outcome<()> {
    call(nr::MKNODAT, fd(dir), path(name)?, mode as usize, device as usize, 0, 0).map(drop)
}

pub fn symlinkat(target: &[u8], dir: i32, name: &[u8]) -> Outcome<()> {
    call(nr::SYMLINKAT, path(target)?, fd(dir), path(name)?, 0, 0, 0).map(drop)
}

pub fn unlinkat(dir: i32, name: &[u8], flags: usize) -> Outcome<()> {
    call(nr::UNLINKAT, fd(dir), path(name)?, flags, 0, 0, 0).map(drop)
}

pub fn renameat(from: i32, old: &[u8], to: i32, new: &[u8]) -> Outcome<()> {
    call(nr::RENAMEAT2, fd(from), path(old)?, fd(to), path(new)?, 0, 0).map(drop)
}

pub fn getdents(dir: i32, buffer: &mut [u8]) -> Outcome<usize> {
    call(nr::GETDENTS64, fd(dir), buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0)
}

/// Where [`getdents`] goes on, by the offset that an entry gave.
pub fn seek(descriptor: i32, offset: u64) -> Outcome<()> {
    const SEEK_SET: usize = 0;
    call(nr::LSEEK, fd(descriptor), offset as usize, SEEK_SET, 0, 0, 0).map(drop)
}

pub fn fchmod(descriptor: i32, mode: u32) -> Outcome<()> {
    call(nr::FCHMOD, fd(descriptor), mode as usize, 0, 0, 0, 0).map(drop)
}

pub fn fchmodat(dir: i32, name: &[u8], mode: u32) -> Outcome<()> {
    call(nr::FCHMODAT, fd(dir), path(name)?, mode as usize, 0, 0, 0).map(drop)
}

pub fn fchown(descriptor: i32, uid: u32, gid: u32) -> Outcome<()> {
    call(nr::FCHOWNAT, fd(descriptor), path(b"\0")?, uid as usize, gid as usize, AT_EMPTY_PATH, 0).map(drop)
}

pub fn fsetxattr(descriptor: i32, name: &[u8], value: &[u8]) -> Outcome<()> {
    call(nr::FSETXATTR, fd(descriptor), path(name)?, value.as_ptr() as usize, value.len(), 0, 0).map(drop)
}

pub fn fgetxattr(descriptor: i32, name: &[u8], value: &mut [u8]) -> Outcome<usize> {
    call(nr::FGETXATTR, fd(descriptor), path(name)?, value.as_mut_ptr() as usize, value.len(), 0, 0)
}

/// What statx(2) says of an open file.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    pub mode: u32,
    pub links: u32,
    pub size: u64,
    /// Of 512 bytes each.
    pub blocks: u64,
    pub inode: u64,
    /// Device that holds the file, major and minor.
    pub device: (u32, u32),
    /// Device that the file is, major and minor.
    pub special: (u32, u32),
    /// The mount that it was found on.
    pub mount: u64,
}

impl Status {
    pub fn is_directory(&self) -> bool {
        self.mode & 0o170000 == 0o040000
    }
    pub fn is_symlink(&self) -> bool {
        self.mode & 0o170000 == 0o120000
    }
    /// The same file, found on the same mount.
    pub fn is_at(&self, other: &Status) -> bool {
        (self.mount, self.device, self.inode) == (other.mount, other.device, other.inode)
    }
    pub fn is_character_device(&self) -> bool {
        self.mode & 0o170000 == 0o020000
    }
}

pub fn statx(dir: i32, name: &[u8], flags: usize) -> Outcome<Status> {
    const STATX_BASIC_STATS_MNT_ID: usize = 0x7ff | 0x1000;
    let mut words = [0u32; 64];
    call(nr::STATX, fd(dir), path(name)?, flags, STATX_BASIC_STATS_MNT_ID, words.as_mut_ptr() as usize, 0)?;
    // struct statx: nlink at 16, mode is a half word at 28; ino at 32, size at 40, blocks at 48; rdev at 128, dev at 136,
    // mnt_id at 144.
    Ok(Status {
        mode: words[7] & 0xffff,
        links: words[4],
        blocks: words[12] as u64 | (words[13] as u64) << 32,
        inode: words[8] as u64 | (words[9] as u64) << 32,
        size: words[10] as u64 | (words[11] as u64) << 32,
        special: (words[32], words[33]),
        device: (words[34], words[35]),
        mount: words[36] as u64 | (words[37] as u64) << 32,
    })
}

pub fn status(descriptor: i32) -> Outcome<Status> {
    statx(descriptor, b"\0", AT_EMPTY_PATH)
}

/// The magic number of the file system behind a descriptor, and its mount flags (`ST_*`).
pub fn fstatfs(descriptor: i32) -> Outcome<(u64, u64)> {
    let mut words = [0u64; 16];
    call(nr::FSTATFS, fd(descriptor), words.as_mut_ptr() as usize, 0, 0, 0, 0)?;
    // struct statfs on 64 bits: type first, flags tenth (type, bsize, blocks, bfree, bavail, files, ffree, fsid,
    // namelen, frsize, flags).
    Ok((words[0], words[10]))
}

pub fn mount(source: &[u8], target: &[u8], kind: &[u8], flags: u64, data: &[u8]) -> Outcome<()> {
    call(nr::MOUNT, path(source)?, path(target)?, path(kind)?, flags as usize, path(data)?, 0).map(drop)
}

pub fn umount(target: &[u8], flags: usize) -> Outcome<()> {
    call(nr::UMOUNT2, path(target)?, flags, 0, 0, 0, 0).map(drop)
}

pub fn fsopen(kind: &[u8]) -> Outcome<i32> {
    const FSOPEN_CLOEXEC: usize = 1;
    call(common::FSOPEN, path(kind)?, FSOPEN_CLOEXEC, 0, 0, 0, 0).map(|new| new as i32)
}

pub fn fsconfig_flag(context: i32, key: &[u8]) -> Outcome<()> {
    call(common::FSCONFIG, fd(context), 0, path(key)?, 0, 0, 0).map(drop)
}

pub fn fsconfig_string(context: i32, key: &[u8], value: &[u8]) -> Outcome<()> {
    call(common::FSCONFIG, fd(context), 1, path(key)?, path(value)?, 0, 0).map(drop)
}

pub fn fsconfig_create(context: i32) -> Outcome<()> {
    call(common::FSCONFIG, fd(context), 6, 0, 0, 0, 0).map(drop)
}

pub fn fsmount(context: i32, attributes: u64) -> Outcome<i32> {
    const FSMOUNT_CLOEXEC: usize = 1;
    call(common::FSMOUNT, fd(context), FSMOUNT_CLOEXEC, attributes as usize, 0, 0, 0).map(|new| new as i32)
}

pub fn open_tree(dir: i32, name: &[u8], flags: usize) -> Outcome<i32> {
    call(common::OPEN_TREE, fd(dir), path(name)?, flags | O_CLOEXEC as usize, 0, 0, 0).map(|new| new as i32)
}

/// Moves the detached mount onto the open target.
pub fn move_mount(mount: i32, target: i32) -> Outcome<()> {
    const EMPTY_PATHS: usize = 0x4 | 0x40;
    let empty = path(b"\0")?;
    call(common::MOVE_MOUNT, fd(mount), empty, fd(target), empty, EMPTY_PATHS, 0).map(drop)
}

#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// The detached mount shows ids as the user namespace maps them (Linux 5.12).
pub fn mount_idmap(mount: i32, recursive: bool, user_namespace: i32) -> Outcome<()> {
    const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
    let namespace = user_namespace as u32 as u64;
    set_attributes(mount, recursive, MountAttributes {
        set: MOUNT_ATTR_IDMAP,
        clear: 0,
        propagation: 0,
        user_namespace: namespace,
    })
}

pub fn mount_setattr(mount: i32, recursive: bool, set: u64, clear: u64, propagation: u64) -> Outcome<()> {
    set_attributes(mount, recursive, MountAttributes { set, clear, propagation, user_namespace: 0 })
}

fn set_attributes(mount: i32, recursive: bool, attributes: MountAttributes) -> Outcome<()> {
    let flags = AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    let (at, length) = (&raw const attributes as usize, size_of::<MountAttributes>());
    call(common::MOUNT_SETATTR, fd(mount), path(b"\0")?, flags, at, length, 0).map(drop)
}

pub fn pivot_root(new: &[u8], old: &[u8]) -> Outcome<()> {
    call(nr::PIVOT_ROOT, path(new)?, path(old)?, 0, 0, 0, 0).map(drop)
}

pub fn chdir(name: &[u8]) -> Outcome<()> {
    call(nr::CHDIR, path(name)?, 0, 0, 0, 0, 0).map(drop)
}

pub fn fchdir(dir: i32) -> Outcome<()> {
    call(nr::FCHDIR, fd(dir), 0, 0, 0, 0, 0).map(drop)
}

/// The working directory as the kernel sees it from this root; `(unreachable)…` when it lies outside.
pub fn getcwd(buffer: &mut [u8]) -> Outcome<usize> {
    call(nr::GETCWD, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0, 0)
}

pub fn umask(mask: u32) {
    let _ = call(nr::UMASK, mask as usize, 0, 0, 0, 0, 0);
}

pub fn sethostname(name: &[u8]) -> Outcome<()> {
    call(nr::SETHOSTNAME, name.as_ptr() as usize, name.len(), 0, 0, 0, 0).map(drop)
}

pub fn setdomainname(name: &[u8]) -> Outcome<()> {
    call(nr::SETDOMAINNAME, name.as_ptr() as usize, name.len(), 0, 0, 0, 0).map(drop)
}

/// Soft and hard limit of this process.
pub fn getrlimit(resource: u32) -> Outcome<(u64, u64)> {
    let mut limit = [0u64; 2];
    call(nr::PRLIMIT64, 0, resource as usize, 0, limit.as_mut_ptr() as usize, 0, 0)?;
    Ok((limit[0], limit[1]))
}

pub fn setrlimit(resource: u32, soft: u64, hard: u64) -> Outcome<()> {
    let limit = [soft, hard];
    call(nr::PRLIMIT64, 0, resource as usize, limit.as_ptr() as usize, 0, 0, 0).map(drop)
}

pub fn setgroups(groups: &[u32]) -> Outcome<()> {
    call(nr::SETGROUPS, groups.len(), groups.as_ptr() as usize, 0, 0, 0, 0).map(drop)
}

pub fn setresgid(gid: u32) -> Outcome<()> {
    let gid = gid as usize;
    call(nr::SETRESGID, gid, gid, gid, 0, 0, 0).map(drop)
}

pub fn setresuid(uid: u32) -> Outcome<()> {
    let uid = uid as usize;
    call(nr::SETRESUID, uid, uid, uid, 0, 0, 0).map(drop)
}

/// Whose files this process makes; EPERM where the kernel has them otherwise afterwards, for the calls tell no failure.
pub fn set_file_ids(uid: u32, gid: u32) -> Outcome<()> {
    for (number, id) in [(nr::SETFSGID, gid), (nr::SETFSUID, uid)] {
        call(number, id as usize, 0, 0, 0, 0, 0)?;
        // No id, so nothing changes, and what it was before is told.
        if call(number, u32::MAX as usize, 0, 0, 0, 0, 0)? as u32 != id {
            return Err(EPERM);
        }
    }
    Ok(())
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Effective, permitted, inheritable of this process.
pub fn capset(effective: u64, permitted: u64, inheritable: u64) -> Outcome<()> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let high = |set: u64| (set >> 32) as u32;
    let data = [
        effective as u32,
        permitted as u32,
        inheritable as u32,
        high(effective),
        high(permitted),
        high(inheritable),
    ];
    call(nr::CAPSET, &raw const header as usize, data.as_ptr() as usize, 0, 0, 0, 0).map(drop)
}

/// Effective, permitted, inheritable as the kernel has them.
pub fn capget() -> Outcome<(u64, u64, u64)> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [0u32; 6];
    call(nr::CAPGET, &raw const header as usize, data.as_mut_ptr() as usize, 0, 0, 0, 0)?;
    let join = |low: u32, high: u32| low as u64 | (high as u64) << 32;
    Ok((join(data[0], data[3]), join(data[1], data[4]), join(data[2], data[5])))
}

#[repr(C)]
struct FilterProgram {
    length: u16,
    filter: usize,
}

/// Installs a classic BPF filter of 8-byte instructions.
pub fn seccomp(filter: &[u8], flags: u32) -> Outcome<()> {
    const SECCOMP_SET_MODE_FILTER: usize = 1;
    if filter.is_empty() || filter.len() % 8 != 0 || filter.len() / 8 > 4096 {
        return Err(EINVAL);
    }
    let program = FilterProgram { length: (filter.len() / 8) as u16, filter: filter.as_ptr() as usize };
    call(nr::SECCOMP, SECCOMP_SET_MODE_FILTER, flags as usize, &raw const program as usize, 0, 0, 0).map(drop)
}

pub fn personality(persona: u32) -> Outcome<()> {
    call(nr::PERSONALITY, persona as usize, 0, 0, 0, 0, 0).map(drop)
}

/// `struct sched_attr` in its first version.
#[repr(C)]
pub struct SchedulerAttributes {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: u32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

pub fn sched_setattr(attributes: &SchedulerAttributes) -> Outcome<()> {
    call(nr::SCHED_SETATTR, 0, attributes as *const SchedulerAttributes as usize, 0, 0, 0, 0).map(drop)
}

pub fn sched_setaffinity(mask: &[u8]) -> Outcome<()> {
    call(nr::SCHED_SETAFFINITY, 0, mask.len(), mask.as_ptr() as usize, 0, 0, 0).map(drop)
}

/// Class and priority of this process.
pub fn ioprio_set(value: u32) -> Outcome<()> {
    const IOPRIO_WHO_PROCESS: usize = 1;
    call(nr::IOPRIO_SET, IOPRIO_WHO_PROCESS, 0, value as usize, 0, 0, 0).map(drop)
}

/// Sets `IFF_UP` on `lo` of this network namespace.
pub fn loopback_up() -> Result<(), (crate::protocol::Sys, i32)> {
    use crate::protocol::Sys;
    const AF_INET: usize = 2;
    const SOCK_DGRAM_CLOEXEC: usize = 2 | 0o2000000;
    const SIOCSIFFLAGS: usize = 0x8914;
    const IFF_UP: u8 = 1;
    let socket = call(nr::SOCKET, AF_INET, SOCK_DGRAM_CLOEXEC, 0, 0, 0, 0).map_err(|errno| (Sys::Socket, errno))?;
    // struct ifreq: 16 bytes of name, then the flags.
    let mut request = [0u8; 40];
    request[0] = b'l';
    request[1] = b'o';
    request[16] = IFF_UP;
    let done = call(nr::IOCTL, socket, SIOCSIFFLAGS, request.as_ptr() as usize, 0, 0, 0);
    close(socket as i32);
    done.map(drop).map_err(|errno| (Sys::Ioctl, errno))
}

/// The number of the pair that this master belongs to.
pub fn terminal_number(master: i32) -> Outcome<u32> {
    const TIOCGPTN: usize = 0x8004_5430;
    let mut number = 0u32;
    call(nr::IOCTL, fd(master), TIOCGPTN, &raw mut number as usize, 0, 0, 0).map(|_| number)
}

/// Lets the other end of this master be opened.
pub fn unlock_terminal(master: i32) -> Outcome<()> {
    const TIOCSPTLCK: usize = 0x4004_5431;
    let locked = 0i32;
    call(nr::IOCTL, fd(master), TIOCSPTLCK, &raw const locked as usize, 0, 0, 0).map(drop)
}

/// Opens the other end of this master, by no name. It does not become the terminal of this session.
pub fn terminal_peer(master: i32) -> Outcome<i32> {
    const TIOCGPTPEER: usize = 0x5441;
    let flags = (O_RDWR | O_NOCTTY | O_CLOEXEC) as usize;
    call(nr::IOCTL, fd(master), TIOCGPTPEER, flags, 0, 0, 0).map(|new| new as i32)
}

pub fn set_window_size(terminal: i32, rows: u16, columns: u16) -> Outcome<()> {
    const TIOCSWINSZ: usize = 0x5414;
    // struct winsize: rows, columns, and pixels of both, which nobody knows.
    let size = [rows, columns, 0, 0];
    call(nr::IOCTL, fd(terminal), TIOCSWINSZ, size.as_ptr() as usize, 0, 0, 0).map(drop)
}

/// Makes a terminal that no session has the one of this process's, which has to lead it.
pub fn set_controlling_terminal(terminal: i32) -> Outcome<()> {
    const TIOCSCTTY: usize = 0x540e;
    call(nr::IOCTL, fd(terminal), TIOCSCTTY, 0, 0, 0, 0).map(drop)
}

/// The foreground process group of the terminal, which has to be that of this session.
pub fn foreground_group(terminal: i32) -> Outcome<i32> {
    const TIOCGPGRP: usize = 0x540f;
    let mut group = 0i32;
    call(nr::IOCTL, fd(terminal), TIOCGPGRP, &raw mut group as usize, 0, 0, 0).map(|_| group)
}

pub fn getpid() -> Outcome<i32> {
    call(nr::GETPID, 0, 0, 0, 0, 0, 0).map(|pid| pid as i32)
}

/// A read-only private mapping of a whole file.
pub fn map_file(descriptor: i32, length: usize) -> Outcome<&'static [u8]> {
    const PROT_READ: usize = 1;
    const MAP_PRIVATE_POPULATE: usize = 2 | 0x8000;
    if length == 0 {
        return Err(EINVAL);
    }
    let at = call(nr::MMAP, 0, length, PROT_READ, MAP_PRIVATE_POPULATE, fd(descriptor), 0)?;
    // SAFETY: the kernel mapped `length` readable bytes at `at`; they stay mapped until `unmap`, which no caller
    // follows with a use. The host seals the file, so its size cannot shrink under us.
    Ok(unsafe { core::slice::from_raw_parts(at as *const u8, length) })
}

/// The seals of a memfd.
pub fn seals(descriptor: i32) -> Outcome<usize> {
    const F_GET_SEALS: usize = 1034;
    call(nr::FCNTL, fd(descriptor), F_GET_SEALS, 0, 0, 0, 0)
}

pub fn unmap(slice: &'static [u8]) {
    let _ = call(nr::MUNMAP, slice.as_ptr() as usize, slice.len(), 0, 0, 0, 0);
}

/// Fresh zeroed words, never freed: for argument vectors right before exec.
pub fn fresh_words(count: usize) -> Outcome<&'static mut [usize]> {
    const PROT_READ_WRITE: usize = 3;
    const MAP_PRIVATE_ANONYMOUS: usize = 2 | 0x20;
    let length = count.checked_mul(size_of::<usize>()).ok_or(EINVAL)?;
    let at = call(nr::MMAP, 0, length, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1isize as usize, 0)?;
    // SAFETY: fresh anonymous memory of that length, page-aligned, zero (a valid word), referenced nowhere else.
    Ok(unsafe { core::slice::from_raw_parts_mut(at as *mut usize, count) })
}

/// Zeroed words that this process and those children see alike that are to [inherit] them.
pub fn shared_words(count: usize) -> Outcome<&'static [AtomicU32]> {
    const PROT_READ_WRITE: usize = 3;
    const MAP_SHARED_ANONYMOUS: usize = 1 | 0x20;
    let length = count.checked_mul(size_of::<AtomicU32>()).ok_or(EINVAL)?;
    let at = call(nr::MMAP, 0, length, PROT_READ_WRITE, MAP_SHARED_ANONYMOUS, -1isize as usize, 0)?;
    // SAFETY: fresh memory of that length, page-aligned, zero (a valid word), never unmapped; whoever else writes to it
    // (the kernel, children) writes whole words.
    Ok(unsafe { core::slice::from_raw_parts(at as *const AtomicU32, count) })
}

/// Whether children are to have these words, which fill whole pages, too.
pub fn inherit(words: &'static [AtomicU32], on: bool) -> Outcome<()> {
    const MADV_DONTFORK: usize = 10;
    const MADV_DOFORK: usize = 11;
    let advice = if on { MADV_DOFORK } else { MADV_DONTFORK };
    call(nr::MADVISE, words.as_ptr() as usize, size_of_val(words), advice, 0, 0, 0).map(drop)
}

pub fn chroot(name: &[u8]) -> Outcome<()> {
    call(nr::CHROOT, path(name)?, 0, 0, 0, 0, 0).map(drop)
}

/// A ruleset that handles these rights. The kernel takes an attribute that is shorter than it knows, and zero words
/// beyond what it knows.
pub fn landlock_ruleset(fs: u64, net: u64, scoped: u64) -> Outcome<i32> {
    let attributes = [fs, net, scoped];
    let length = size_of_val(&attributes);
    call(common::LANDLOCK_CREATE_RULESET, attributes.as_ptr() as usize, length, 0, 0, 0, 0).map(|new| new as i32)
}

/// Allows rights beneath an open file.
pub fn landlock_allow(ruleset: i32, allowed: u64, beneath: i32) -> Outcome<()> {
    const LANDLOCK_RULE_PATH_BENEATH: usize = 1;
    // struct landlock_path_beneath_attr is packed: a long word and a word.
    let attribute = [allowed as u32, (allowed >> 32) as u32, beneath as u32];
    let at = attribute.as_ptr() as usize;
    call(common::LANDLOCK_ADD_RULE, fd(ruleset), LANDLOCK_RULE_PATH_BENEATH, at, 0, 0, 0).map(drop)
}

pub fn landlock_restrict(ruleset: i32) -> Outcome<()> {
    call(common::LANDLOCK_RESTRICT_SELF, fd(ruleset), 0, 0, 0, 0, 0).map(drop)
}

/// Replaces this program. `vectors` holds NUL-terminated strings' addresses: arguments, 0, environment, 0.
pub fn execve(file: &[u8], vectors: &[usize], environment: usize) -> i32 {
    if vectors.last() != Some(&0) || environment >= vectors.len() {
        return EINVAL;
    }
    let Ok(file) = path(file) else { return EINVAL };
    let base = vectors.as_ptr() as usize;
    match call(nr::EXECVE, file, base, base + environment * size_of::<usize>(), 0, 0, 0) {
        Err(errno) => errno,
        Ok(_) => 0,
    }
}
