//! Docker's default policy, as of November 2026: everything is refused but what is listed here.

use std::borrow::Cow;

use super::{Action, Comparison, Condition, Policy, Rule, Selector};
use crate::probe::KernelVersion;
use crate::security::{Capability, CapabilitySet};

/// Calls that work on what the process already has: safe whatever the arguments.
const ALWAYS: &str = "\
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime \
clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 \
close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old \
epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat \
faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat \
fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs \
fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat \
get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 \
getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 \
getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr \
getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents \
io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule \
landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr \
listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier \
memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr \
mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl \
msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat \
openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl \
pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead \
readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat \
rename renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask \
rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo \
sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler \
sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler \
sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg \
sendto set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 \
setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 \
setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown \
sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount \
statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun \
timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 \
timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime \
utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev";

/// Calls that come with a capability.
const WITH_CAPABILITY: &[(Capability, &str)] = &[
    (Capability::DacReadSearch, "open_by_handle_at"),
    (
        Capability::SysAdmin,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd \
         setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (Capability::SysModule, "delete_module init_module finit_module"),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    (Capability::SysRawio, "iopl ioperm"),
    (Capability::SysTime, "settimeofday stime clock_settime clock_settime64"),
    (Capability::SysTtyConfig, "vhangup"),
    (Capability::SysNice, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (Capability::Syslog, "syslog"),
    (Capability::Bpf, "bpf"),
    (Capability::Perfmon, "perf_event_open"),
];

/// Calls of particular machines.
const ON_MACHINES: &[(&[&str], &str)] = &[
    (&["arm", "arm64"], "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls"),
    (&["amd64", "x32"], "arch_prctl"),
    (&["amd64", "x32", "x86"], "modify_ldt"),
];

/// Socket families below DECnet (12) are allowed as a range, these one by one. Missing are those that kernels no
/// longer have, AF_ALG (38: an entry to the kernel's cryptography that containers do not need) and AF_VSOCK (40: it
/// reaches the host past every network namespace).
///
/// That holds for socket(2). On x86 the 32-bit socketcall(2) makes sockets as well, with the family in memory, where a
/// filter cannot see it. Docker refused that call for a week in May 2026 (moby#52494) and took it back, because C
/// libraries built for kernels before 4.3 know no other way, and with them many 32-bit programs (moby#52547).
const SOCKET_FAMILIES: &[u64] =
    &[13, 14, 15, 16, 17, 18, 21, 22, 24, 26, 27, 28, 29, 30, 31, 32, 33, 35, 36, 39, 41, 42, 43, 44, 45];

/// PER_LINUX and PER_LINUX32, both also with UNAME26, and the value that only asks.
const PERSONALITIES: &[u64] = &[0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The flags of clone(2) that make namespaces: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;

fn words(text: &'static str) -> Vec<Cow<'static, str>> {
    text.split_ascii_whitespace().map(Cow::Borrowed).collect()
}

fn allow(names: &'static str) -> Rule {
    Rule { names: words(names), ..Rule::always(Action::Allow, []) }
}

fn allow_if(name: &'static str, comparison: Comparison, value: u64) -> Rule {
    Rule { conditions: vec![Condition { argument: 0, comparison, value }], ..allow(name) }
}

impl Policy {
    /// Docker's default policy, as of November 2026. Refused calls fail with `EPERM`.
    ///
    /// `clone3` fails with `ENOSYS` unless the container has `CAP_SYS_ADMIN`: its flags are in memory, where a filter
    /// cannot see them, and every C library falls back to `clone`, whose flags it can.
    pub fn docker_2026_11() -> Policy {
        let sys_admin = || Selector { capabilities: CapabilitySet::of(&[Capability::SysAdmin]), ..Selector::default() };
        let mut rules = vec![allow(ALWAYS)];
        // Before 4.8 a tracer could step around a filter.
        rules.push(Rule {
            includes: Selector { kernel: Some(KernelVersion::new(4, 8)), ..Selector::default() },
            ..allow("process_vm_readv process_vm_writev ptrace")
        });
        rules.push(allow_if("socket", Comparison::Less, 12));
        rules.extend(SOCKET_FAMILIES.iter().map(|family| allow_if("socket", Comparison::Equal, *family)));
        rules.extend(PERSONALITIES.iter().map(|value| allow_if("personality", Comparison::Equal, *value)));
        for (capability, names) in WITH_CAPABILITY {
            let includes = Selector { capabilities: CapabilitySet::of(&[*capability]), ..Selector::default() };
            rules.push(Rule { includes, ..allow(names) });
        }
        for (machines, names) in ON_MACHINES {
            let architectures = machines.iter().map(|name| Cow::Borrowed(*name)).collect();
            rules.push(Rule { includes: Selector { architectures, ..Selector::default() }, ..allow(names) });
        }
        rules.push(Rule { excludes: sys_admin(), ..allow_if("clone", Comparison::MaskedEqual(NAMESPACE_FLAGS), 0) });
        rules.push(Rule { excludes: sys_admin(), ..Rule::always(Action::Errno(libc::ENOSYS as u16), ["clone3"]) });
        Policy { default: Action::Errno(libc::EPERM as u16), rules, with_32_bit: true }
    }

    /// [`Policy::docker_2026_11`] without socketcall(2): the socket families that it closes are closed to 32-bit programs,
    /// too. The call fails with `ENOSYS`. C libraries that try socket(2) first do not miss it; glibc for 32-bit x86, unless
    /// it was built for kernels from 4.3 on, makes no sockets then.
    pub fn strict_2026_11() -> Policy {
        let mut policy = Policy::docker_2026_11();
        // The most restrictive rule wins.
        policy.rules.push(Rule::always(Action::Errno(libc::ENOSYS as u16), ["socketcall"]));
        policy
    }
}
