//! Everything that differs between processors: the entry point, the system call instruction and its numbers.
//!
//! SAFETY, for the whole file: the instruction sequences follow the kernel's calling convention for the architecture
//! (syscall(2), "Architecture calling conventions"), and name every register that the kernel may change.

#![allow(dead_code)]

#[cfg(target_arch = "x86_64")]
mod machine {
    use core::arch::{asm, global_asm};

    // The kernel enters with the argument count at the stack pointer and no return address; the called function never
    // returns, and finds the stack aligned as the ABI asks.
    global_asm!(
        ".globl _start",
        "_start:",
        "xor ebp, ebp",
        "mov rdi, rsp",
        "and rsp, -16",
        "call {main}",
        "ud2",
        main = sym crate::entry,
    );

    #[inline(always)]
    pub unsafe fn syscall6(n: usize, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> isize {
        let result: isize;
        // SAFETY: the caller passes arguments that are valid for call `n`; registers as the file's header says.
        unsafe {
            asm!("syscall", inlateout("rax") n as isize => result, in("rdi") a, in("rsi") b, in("rdx") c,
                 in("r10") d, in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
        }
        result
    }

    pub mod nr {
        pub const READ: usize = 0;
        pub const WRITE: usize = 1;
        pub const CLOSE: usize = 3;
        pub const FSTAT: usize = 5;
        pub const MMAP: usize = 9;
        pub const MUNMAP: usize = 11;
        pub const MADVISE: usize = 28;
        pub const RT_SIGACTION: usize = 13;
        pub const RT_SIGPROCMASK: usize = 14;
        pub const IOCTL: usize = 16;
        pub const GETPID: usize = 39;
        pub const SOCKET: usize = 41;
        pub const SENDTO: usize = 44;
        pub const RECVMSG: usize = 47;
        pub const CLONE: usize = 56;
        pub const EXECVE: usize = 59;
        pub const RESTART_SYSCALL: usize = 219;
        pub const KEYCTL: usize = 250;
        pub const EXIT_GROUP: usize = 231;
        pub const KILL: usize = 62;
        pub const GETCWD: usize = 79;
        pub const CHDIR: usize = 80;
        pub const FCHDIR: usize = 81;
        pub const FCHMOD: usize = 91;
        pub const UMASK: usize = 95;
        pub const SETSID: usize = 112;
        pub const SETGROUPS: usize = 116;
        pub const SETRESUID: usize = 117;
        pub const SETRESGID: usize = 119;
        pub const CAPGET: usize = 125;
        pub const CAPSET: usize = 126;
        pub const FSTATFS: usize = 138;
        pub const PIVOT_ROOT: usize = 155;
        pub const PRCTL: usize = 157;
        pub const CHROOT: usize = 161;
        pub const MOUNT: usize = 165;
        pub const UMOUNT2: usize = 166;
        pub const SETHOSTNAME: usize = 170;
        pub const SETDOMAINNAME: usize = 171;
        pub const GETDENTS64: usize = 217;
        pub const EPOLL_CTL: usize = 233;
        pub const WAITID: usize = 247;
        pub const OPENAT: usize = 257;
        pub const MKDIRAT: usize = 258;
        pub const MKNODAT: usize = 259;
        pub const FCHOWNAT: usize = 260;
        pub const UNLINKAT: usize = 263;
        pub const SYMLINKAT: usize = 266;
        pub const READLINKAT: usize = 267;
        pub const FCHMODAT: usize = 268;
        pub const PPOLL: usize = 271;
        pub const UNSHARE: usize = 272;
        pub const EPOLL_PWAIT: usize = 281;
        pub const SIGNALFD4: usize = 289;
        pub const EPOLL_CREATE1: usize = 291;
        pub const DUP3: usize = 292;
        pub const PIPE2: usize = 293;
        pub const PRLIMIT64: usize = 302;
        pub const SETNS: usize = 308;
        pub const RENAMEAT2: usize = 316;
        pub const SECCOMP: usize = 317;
        pub const EXECVEAT: usize = 322;
        pub const SETXATTR: usize = 188;
        pub const FCNTL: usize = 72;
        pub const SENDMSG: usize = 46;
        pub const STATX: usize = 332;
        pub const LSEEK: usize = 8;
        pub const FSETXATTR: usize = 190;
        pub const FGETXATTR: usize = 193;
        pub const RT_SIGTIMEDWAIT: usize = 128;
        pub const SETFSUID: usize = 122;
        pub const SETFSGID: usize = 123;
        pub const PERSONALITY: usize = 135;
        pub const SCHED_SETAFFINITY: usize = 203;
        pub const IOPRIO_SET: usize = 251;
        pub const SCHED_SETATTR: usize = 314;
    }

    /// One event of epoll(7); packed on this architecture only.
    #[repr(C, packed)]
    #[derive(Clone, Copy)]
    pub struct EpollEvent {
        pub events: u32,
        pub data: u64,
    }

    /// How a system call filter knows this architecture.
    pub const AUDIT_ARCH: u32 = 0xc000_003e;

    /// `O_DIRECTORY` and `O_NOFOLLOW` differ between processors.
    pub const O_DIRECTORY: u32 = 0o200000;
    pub const O_NOFOLLOW: u32 = 0o400000;
}

#[cfg(target_arch = "aarch64")]
mod machine {
    use core::arch::{asm, global_asm};

    // See the x86_64 entry; the stack pointer is aligned by the kernel here.
    global_asm!(
        ".globl _start",
        "_start:",
        "mov x29, xzr",
        "mov x30, xzr",
        "mov x0, sp",
        "bl {main}",
        "brk #1",
        main = sym crate::entry,
    );

    #[inline(always)]
    pub unsafe fn syscall6(n: usize, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> isize {
        let result: isize;
        // SAFETY: the caller passes arguments that are valid for call `n`; registers as the file's header says.
        unsafe {
            asm!("svc 0", in("x8") n, inlateout("x0") a as isize => result, in("x1") b, in("x2") c, in("x3") d,
                 in("x4") e, in("x5") f, options(nostack));
        }
        result
    }

    pub mod nr {
        pub const READ: usize = 63;
        pub const WRITE: usize = 64;
        pub const CLOSE: usize = 57;
        pub const FSTAT: usize = 80;
        pub const MMAP: usize = 222;
        pub const MUNMAP: usize = 215;
        pub const MADVISE: usize = 233;
        pub const RT_SIGACTION: usize = 134;
        pub const RT_SIGPROCMASK: usize = 135;
        pub const IOCTL: usize = 29;
        pub const GETPID: usize = 172;
        pub const SOCKET: usize = 198;
        pub const SENDTO: usize = 206;
        pub const RECVMSG: usize = 212;
        pub const CLONE: usize = 220;
        pub const EXECVE: usize = 221;
        pub const RESTART_SYSCALL: usize = 128;
        pub const KEYCTL: usize = 219;
        pub const EXIT_GROUP: usize = 94;
        pub const KILL: usize = 129;
        pub const GETCWD: usize = 17;
        pub const CHDIR: usize = 49;
        pub const FCHDIR: usize = 50;
        pub const FCHMOD: usize = 52;
        pub const UMASK: usize = 166;
        pub const SETSID: usize = 157;
        pub const SETGROUPS: usize = 159;
        pub const SETRESUID: usize = 147;
        pub const SETRESGID: usize = 149;
        pub const CAPGET: usize = 90;
        pub const CAPSET: usize = 91;
        pub const FSTATFS: usize = 44;
        pub const PIVOT_ROOT: usize = 41;
        pub const PRCTL: usize = 167;
        pub const CHROOT: usize = 51;
        pub const MOUNT: usize = 40;
        pub const UMOUNT2: usize = 39;
        pub const SETHOSTNAME: usize = 161;
        pub const SETDOMAINNAME: usize = 162;
        pub const GETDENTS64: usize = 61;
        pub const EPOLL_CTL: usize = 21;
        pub const WAITID: usize = 95;
        pub const OPENAT: usize = 56;
        pub const MKDIRAT: usize = 34;
        pub const MKNODAT: usize = 33;
        pub const FCHOWNAT: usize = 54;
        pub const UNLINKAT: usize = 35;
        pub const SYMLINKAT: usize = 36;
        pub const READLINKAT: usize = 78;
        pub const FCHMODAT: usize = 53;
        pub const PPOLL: usize = 73;
        pub const UNSHARE: usize = 97;
        pub const EPOLL_PWAIT: usize = 22;
        pub const SIGNALFD4: usize = 74;
        pub const EPOLL_CREATE1: usize = 20;
        pub const DUP3: usize = 24;
        pub const PIPE2: usize = 59;
        pub const PRLIMIT64: usize = 261;
        pub const SETNS: usize = 268;
        pub const RENAMEAT2: usize = 276;
        pub const SECCOMP: usize = 277;
        pub const EXECVEAT: usize = 281;
        pub const SETXATTR: usize = 5;
        pub const FCNTL: usize = 25;
        pub const SENDMSG: usize = 211;
        pub const STATX: usize = 291;
        pub const LSEEK: usize = 62;
        pub const FSETXATTR: usize = 7;
        pub const FGETXATTR: usize = 10;
        pub const RT_SIGTIMEDWAIT: usize = 137;
        pub const SETFSUID: usize = 151;
        pub const SETFSGID: usize = 152;
        pub const PERSONALITY: usize = 92;
        pub const SCHED_SETAFFINITY: usize = 122;
        pub const IOPRIO_SET: usize = 30;
        pub const SCHED_SETATTR: usize = 274;
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    pub struct EpollEvent {
        pub events: u32,
        pub data: u64,
    }

    pub const AUDIT_ARCH: u32 = 0xc000_00b7;

    pub const O_DIRECTORY: u32 = 0o40000;
    pub const O_NOFOLLOW: u32 = 0o100000;
}

pub use machine::{AUDIT_ARCH, EpollEvent, O_DIRECTORY, O_NOFOLLOW, nr, syscall6};

/// Numbers that every architecture shares (calls added since Linux 5.0).
pub mod common {
    pub const PIDFD_OPEN: usize = 434;
    pub const OPEN_TREE: usize = 428;
    pub const MOVE_MOUNT: usize = 429;
    pub const FSOPEN: usize = 430;
    pub const FSCONFIG: usize = 431;
    pub const FSMOUNT: usize = 432;
    pub const CLONE3: usize = 435;
    pub const CLOSE_RANGE: usize = 436;
    pub const OPENAT2: usize = 437;
    pub const MOUNT_SETATTR: usize = 442;
    pub const LANDLOCK_CREATE_RULESET: usize = 444;
    pub const LANDLOCK_ADD_RULE: usize = 445;
    pub const LANDLOCK_RESTRICT_SELF: usize = 446;
}
