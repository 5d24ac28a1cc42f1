//! Makes the sentence out of a failure report: step, system call, path, errno, likely cause, remedy.

use super::parent::Ended;
use super::plan::Subject;
use super::protocol::{FOREIGN, JOIN, LINK, Op, ROOT, Report, Sys, UNCOVERED};
use crate::error::{Error, ErrorKind};

/// No process came to be, or none that could be watched.
pub(super) fn no_process(sys: Sys, errno: i32, user_namespace: bool) -> Error {
    let error =
        Error::sys("create the container's process and namespaces", sys.name(), errno).kind_is(ErrorKind::Launch);
    match (sys, errno) {
        (Sys::Clone, libc::EPERM) if user_namespace => {
            error.because("this kernel, a security module or a container around us forbids new user namespaces").remedy(
                "`coracle doctor` says which; mostly sysctl kernel.apparmor_restrict_unprivileged_userns=0, or \
                 kernel.unprivileged_userns_clone=1",
            )
        }
        (Sys::Clone, libc::EPERM) => error
            .because(
                "this program is root without CAP_SYS_ADMIN, or a system call filter of a container around it forbids \
                 new namespaces",
            )
            .remedy("give it CAP_SYS_ADMIN and a filter that allows clone, or run it as another user"),
        (Sys::Clone | Sys::Unshare, libc::ENOSPC) => no_more_namespaces(error),
        (Sys::Clone | Sys::Fork, libc::EAGAIN) => no_more_processes(error),
        (Sys::Clone, libc::EINVAL) => {
            error.because("this kernel lacks one of the namespaces, or the id map is invalid")
        }
        (Sys::Plan, libc::ENOSYS) => {
            error.kind_is(ErrorKind::Limit).because("the guardian watches as many containers as it can")
        }
        (Sys::EpollCtl, libc::ENOSPC) => error
            .kind_is(ErrorKind::Limit)
            .because("this user watches as many descriptors as it may")
            .remedy("raise fs.epoll.max_user_watches"),
        (_, libc::EMFILE | libc::ENFILE) => error
            .kind_is(ErrorKind::Limit)
            .because("the guardian of the containers has as many open files as it may have")
            .remedy("raise the hard limit of open files (ulimit -Hn), or run fewer containers"),
        _ => error,
    }
}

/// EAGAIN of clone(2) and, after a change of user, of execve(2).
pub(super) fn no_more_processes(error: Error) -> Error {
    error
        .kind_is(ErrorKind::Limit)
        .because("the limit of processes is reached")
        .remedy("raise `ulimit -u` or the pids limit of the cgroup that this program runs in")
}

/// ENOSPC of clone(2) and unshare(2), which is about no disk.
fn no_more_namespaces(error: Error) -> Error {
    error.because("the limit of namespaces of one kind, or their depth, is reached").remedy(
        "look at /proc/sys/user/max_*_namespaces (sysctl user) and raise the one that is used up, or stop some \
             containers",
    )
}

/// The guardian cannot do its work.
pub(super) fn no_guardian(sys: Sys, errno: i32) -> Error {
    let error = Error::sys("start the guardian of the containers", sys.name(), errno).kind_is(ErrorKind::Launch);
    match (sys, errno) {
        (Sys::CloseRange, _) => descriptors_stay(error),
        (Sys::Keyctl, libc::EDQUOT) => error
            .kind_is(ErrorKind::Limit)
            .because("this user has as many keys as it may have, and the keys of this session must not be those of containers")
            .remedy("raise kernel.keys.maxkeys, or revoke some (keyctl show, keyctl revoke)"),
        (_, libc::EMFILE | libc::ENFILE) => error.kind_is(ErrorKind::Limit).because("the limit of open files is reached"),
        _ => error,
    }
}

fn descriptors_stay(error: Error) -> Error {
    error
        .because(
            "close_range is refused, by a system call filter around this program or by an old kernel, and \
             /proc/self/fd cannot be read",
        )
        .remedy("allow close_range, or mount /proc")
}

/// The first process ended without having executed its command, or said why not.
pub(super) fn early(ended: Option<Ended>) -> Error {
    let error = Error::new(ErrorKind::Launch, "start the container");
    match ended {
        Some(Ended { signal: Some(libc::SIGKILL), .. }) => error
            .because("its first process was killed while it was setting itself up")
            .remedy("look for the out-of-memory killer in dmesg, and raise the limit of memory"),
        Some(Ended { signal: Some(signal), .. }) => {
            error.because(format!("its first process died of signal {signal} while it was setting itself up"))
        }
        Some(Ended { code: Some(code), .. }) => {
            error.because(format!("its first process ended with status {code} while it was setting itself up"))
        }
        _ => error.because("its first process ended while it was setting itself up"),
    }
}

/// A step of the plan failed in the child.
pub(super) fn sentence(report: Report, steps: &[(Op, Subject)]) -> Error {
    let Report { index, sys, errno, detail, .. } = report;
    if index == JOIN {
        return Error::sys("join the control group", sys.name(), errno)
            .kind_is(ErrorKind::Launch)
            .because("clone3 is refused here, by which a process is born in its group, and so is moving there");
    }
    let Some((op, subject)) = steps.get(index as usize) else {
        return Error::new(ErrorKind::Launch, "start the container").because("the launch plan is malformed");
    };
    if *op == Op::Exec && sys == Sys::Execve {
        return execute(errno, detail, subject);
    }
    let step = match subject {
        Subject::Nothing | Subject::Path(_) => op.name().to_owned(),
        Subject::Text(text) => format!("{} ({text})", op.name()),
        Subject::Many(names) => {
            format!("{} ({})", op.name(), named(names, *op, sys, detail))
        }
    };
    let mut error = if errno == 0 {
        Error::new(ErrorKind::Launch, step)
    } else {
        Error::sys(step, sys.name(), errno).kind_is(ErrorKind::Launch)
    };
    if let Subject::Path(path) = subject {
        error = error.path(path);
    }
    if let (Op::FsMount, Sys::Fsconfig, Subject::Many(names)) = (*op, sys, subject)
        && let libc::EINVAL | libc::EOPNOTSUPP | libc::ERANGE = errno
    {
        return options_refused(error, names, detail);
    }
    explain(error, *op, sys, errno, detail)
}

/// Which of several names the report is about; the last stands for the whole.
fn named(names: &[String], op: Op, sys: Sys, detail: u32) -> &str {
    let last = names.len().saturating_sub(1);
    let index = match (op, sys) {
        (Op::FsMount, sys) if sys != Sys::Fsconfig => last,
        _ => (detail as usize).min(last),
    };
    names.get(index).map_or("", |name| name)
}

/// The kernel did not take a file system's options: one of them, or all of them together.
fn options_refused(error: Error, names: &[String], detail: u32) -> Error {
    let kind = names.last().map_or("", |name| name);
    let single = (detail as usize) < names.len().saturating_sub(1);
    match (kind, single) {
        ("overlay", _) => error
            .because(
                "the kernel refused the file system's options: the writable directory is on a file system that cannot \
                 hold it (overlay itself, NFS), or the tree below has mounts of its own",
            )
            .remedy("put the root on ext4, xfs, btrfs or tmpfs, or open the engine with the copy snapshotter"),
        (_, true) => error
            .kind_is(ErrorKind::Invalid)
            .because(format!("{kind} has no such option on this kernel, or the option does not take that value"))
            .remedy(match kind {
                "tmpfs" => "see tmpfs(5) for the options and their values, e.g. size=64m, mode=1777",
                _ => "leave the option out",
            }),
        (_, false) => error.because(format!("the kernel refused the options of {kind} together")),
    }
}

fn explain(error: Error, op: Op, sys: Sys, errno: i32, detail: u32) -> Error {
    match (op, sys, errno) {
        (Op::Attach, _, libc::ELOOP) if detail == LINK => error
            .kind_is(ErrorKind::Hostile)
            .because(
                "a symbolic link is on the way, and the container's own /dev, /proc and /sys follow none: it could lead \
                 them to where nothing in them is masked",
            )
            .remedy("use an image that has directories there, or nothing"),
        (Op::Attach, Sys::MoveMount, 0) if detail == ROOT => error
            .kind_is(ErrorKind::Hostile)
            .because("in this image the target leads to the root itself, which nothing may cover")
            .remedy("mount it somewhere else"),
        (Op::OpenTerminal, _, 0 | libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EXDEV | libc::ENXIO | libc::ENOTTY) => {
            error
                .kind_is(ErrorKind::Hostile)
                .because("no devpts is at /dev/pts: something else is mounted there, or the container has taken it away")
                .remedy("leave the terminal out")
        }
        (Op::OpenTerminal, Sys::Openat | Sys::Openat2, libc::ENOSPC) => error
            .kind_is(ErrorKind::Limit)
            .because("this machine has as many pseudo-terminals as it may have")
            .remedy("raise the limit: sysctl kernel.pty.max"),
        (Op::ControllingTerminal, Sys::Ioctl, 0) => {
            error.because("the kernel has another foreground process group than the command's")
        }
        (Op::Mask | Op::ReadOnly, Sys::Fstatfs, 0) if detail == FOREIGN => error
            .kind_is(ErrorKind::Hostile)
            .because("it is not on the file system that belongs there"),
        (Op::Mask | Op::ReadOnly, Sys::Statx, 0) if detail == UNCOVERED => {
            error.kind_is(ErrorKind::Weaker).because("what was mounted over it is not what is found there")
        }
        (_, Sys::Statx, 0) if detail == 2 => error
            .kind_is(ErrorKind::Hostile)
            .because("it is not the file that was there a moment ago: somebody exchanged it"),
        (Op::Cover, Sys::Statx, 0) => {
            error.kind_is(ErrorKind::Weaker).because("what was mounted over it is not what is found there")
        }
        (_, Sys::Statx, 0) => error.kind_is(ErrorKind::Hostile).because("the null device is not the null device"),
        (_, Sys::Getcwd, _) => error.kind_is(ErrorKind::Hostile).because("the directory lies outside the container's root"),
        (Op::Bounding | Op::Capabilities, Sys::Prctl, 0) => error
            .kind_is(ErrorKind::Weaker)
            .because(format!("the kernel has capability {detail} otherwise than was asked for")),
        (_, Sys::Capget, 0) => error
            .kind_is(ErrorKind::Weaker)
            .because("the kernel gave other capabilities than were asked for"),
        (Op::Sysctl | Op::OomScore | Op::Label | Op::TimeOffsets, Sys::Fstatfs, 0) => {
            error.kind_is(ErrorKind::Hostile).because("what was found is not on procfs")
        }
        (_, Sys::Fstatfs, 0) => error.kind_is(ErrorKind::Weaker).because("the mount is writable after all"),
        (Op::Attach, Sys::MoveMount, 0) => error
            .kind_is(ErrorKind::Denied)
            .because("the target lies on /proc or /sys, where a mount could disarm the container's protection")
            .remedy("mount it somewhere else"),
        (Op::MapHelper, Sys::Tool, 0) => match detail {
            127 => error.because("the tool could not be found").remedy("install the package uidmap"),
            126 => error
                .because("the tool could not be executed, or there is no /dev/null to give to it")
                .remedy("check the tool's permissions, and /dev/null"),
            _ => error
                .because(format!("it ended with status {detail}: the ranges of this user may have changed"))
                .remedy("check /etc/subuid and /etc/subgid"),
        },
        (Op::FsMount, _, libc::EPERM) => error
            .because("this user namespace may not mount that file system; /proc or /sys may be partly covered here")
            .remedy("run outside of the surrounding container, or give it an uncovered /proc (docker: --security-opt systempaths=unconfined)"),
        (Op::FsMount, _, libc::ENODEV) => error.because("this kernel lacks the file system").remedy("load its module"),
        (_, Sys::Fsopen | Sys::Fsmount | Sys::OpenTree | Sys::MoveMount | Sys::MountSetattr, libc::ENOSYS) => {
            error.kind_is(ErrorKind::Unsupported).because("Linux 5.12 or later is needed")
        }
        (Op::Pivot, Sys::PivotRoot, libc::EINVAL) => error
            .because("the root of this machine is an initramfs, which cannot be pivoted away from")
            .remedy("boot from a real root file system, or switch_root to a tmpfs first"),
        (Op::Join, Sys::Setns, libc::ESRCH) => error
            .kind_is(ErrorKind::Conflict)
            .because("the container has ended")
            .remedy("`coracle ps -a` shows how"),
        (Op::Join, Sys::Setns, libc::EPERM) => error
            .kind_is(ErrorKind::Denied)
            .because("the container is another user's, or what its first process runs may not be read by this one")
            .remedy("run this as the user who started the container"),
        (Op::Beside, Sys::Clone, libc::ENOMEM) => {
            error.kind_is(ErrorKind::Conflict).because("the container is ending: its first process is gone")
        }
        (Op::Beside, Sys::Clone, libc::EAGAIN) => no_more_processes(error),
        (Op::JoinedNull, _, libc::ENOENT | libc::ELOOP | libc::ENOTDIR | libc::ENXIO) => error
            .kind_is(ErrorKind::Hostile)
            .because("the container has put something else in its place, or nothing")
            .remedy("give the command pipes for its streams"),
        (Op::Enter, _, libc::ENOENT | libc::ENOTDIR) => {
            error.kind_is(ErrorKind::NotFound).because("there is no such directory in the container")
        }
        (Op::WorkDir, _, libc::ENOTDIR) => error.because("the working directory is not a directory in this image"),
        (Op::WorkDir, _, libc::EROFS) => {
            error.because("it does not exist, and the root is read-only").remedy("choose another working directory")
        }
        (Op::Attach, _, libc::EROFS) => error
            .because("the mount point does not exist, and the tree below it is read-only")
            .remedy("mount over something that exists"),
        (Op::Attach, Sys::Openat | Sys::Openat2, libc::ENOTDIR) => error
            .kind_is(ErrorKind::Invalid)
            .because(
                "a directory can only be mounted over a directory, and a file over a file; nor can a file be on the way",
            )
            .remedy("choose a target that is of the source's kind, or that does not exist"),
        // EINVAL is what the kernel says of a directory over a file and of a file over a directory (move_mount(2)); in
        // a fresh mount namespace with everything private its other reasons do not arise.
        (Op::Attach, Sys::MoveMount, libc::ENOTDIR | libc::EINVAL) => error
            .kind_is(ErrorKind::Invalid)
            .because("a directory can only be mounted over a directory, and a file over a file")
            .remedy("choose a target that is of the source's kind, or that does not exist"),
        (Op::Rlimit, _, libc::EPERM) => error
            .because("the limit lies above the hard limit of this program, and CAP_SYS_RESOURCE is missing here")
            .remedy("ask for a lower limit"),
        (Op::Ids, Sys::Setresuid | Sys::Setresgid | Sys::Setgroups, libc::EINVAL | libc::EPERM) => error
            .because("the user, group or a supplementary group is not mapped in the container's user namespace")
            .remedy("give this user a range in /etc/subuid and /etc/subgid"),
        (Op::OomScore, _, libc::EACCES | libc::EPERM) => error
            .kind_is(ErrorKind::Denied)
            .because("a score below that of this program needs CAP_SYS_RESOURCE, which is missing here")
            .remedy("ask for a higher score (process.oomScoreAdj), or run this program with CAP_SYS_RESOURCE"),
        (Op::Scheduler | Op::IoPriority, _, libc::EPERM) => error
            .kind_is(ErrorKind::Denied)
            .because("real-time policies, deadlines and a lower nice value need CAP_SYS_NICE, which is missing here")
            .remedy("ask for less, or run this program with CAP_SYS_NICE"),
        (Op::Scheduler | Op::IoPriority, _, libc::EINVAL) => error
            .kind_is(ErrorKind::Invalid)
            .because("the kernel knows no such policy, or the values do not fit it; see sched_setattr(2) and ioprio_set(2)"),
        (Op::Affinity, _, libc::EINVAL) => error
            .kind_is(ErrorKind::Invalid)
            .because("none of these processors is there, or the control group allows none of them"),
        (Op::Personality, _, libc::EINVAL) => error
            .kind_is(ErrorKind::Unsupported)
            .because("this kernel does not have that execution domain"),
        (Op::Sysctl, Sys::Openat, libc::ENOENT) => error
            .kind_is(ErrorKind::Unsupported)
            .because("this kernel has no such setting, or not for a namespace"),
        (Op::Sysctl, _, libc::EINVAL | libc::ERANGE) => {
            error.kind_is(ErrorKind::Invalid).because("the setting does not take that value")
        }
        (Op::Sysctl, _, libc::EACCES | libc::EPERM | libc::EROFS) => error
            .kind_is(ErrorKind::Denied)
            .because("the kernel lets nobody change it in a namespace of this kind, or only the host's root"),
        (Op::Label, _, _) => error
            .because("the security module knows no such label, or does not let this program take it")
            .remedy("load the profile first, or correct the label"),
        (Op::Setns, Sys::Setns, libc::EPERM) => error.kind_is(ErrorKind::Denied).because(
            "it belongs to a user namespace that this program, or the container's own, has no CAP_SYS_ADMIN in",
        ),
        (Op::Setns, Sys::Setns, libc::EINVAL) => error.kind_is(ErrorKind::Invalid).because(
            "a user namespace that this program is in already cannot be entered, nor a pid namespace that lies above",
        ),
        (Op::TimeOffsets, _, libc::ERANGE) => {
            error.kind_is(ErrorKind::Invalid).because("a clock would be before zero, or too far in the future")
        }
        (Op::TimeOffsets, Sys::Openat, libc::ENOENT) | (Op::Unshare, Sys::Unshare, libc::EINVAL) => {
            error.kind_is(ErrorKind::Unsupported).because("this kernel has no such namespaces")
        }
        (Op::Idmap, _, libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS) => error
            .kind_is(ErrorKind::Unsupported)
            .because(
                "this kernel (5.12 for most file systems, 5.19 below an overlay, 6.3 for tmpfs), or the file system of \
                 this mount, cannot show ids otherwise than they are",
            )
            .remedy("put it on ext4, xfs or btrfs, or do without the map; files are never changed for it"),
        (Op::Idmap, _, libc::EPERM) => error
            .kind_is(ErrorKind::Denied)
            .because("only root of the user namespace that a file system was mounted in may do so"),
        (Op::Fork, Sys::Clone, libc::EAGAIN) => no_more_processes(error),
        (Op::Fork, Sys::Clone, libc::ENOMEM) => {
            error.kind_is(ErrorKind::Conflict).because("the first process of the pid namespace is gone")
        }
        (Op::Capabilities, Sys::Capset, libc::EPERM) => error
            .because("this program itself does not have all of the capabilities that the container is to have")
            .remedy("drop them from the container, or run this program with more"),
        (Op::Loopback, Sys::Socket | Sys::Ioctl, libc::EPERM | libc::EACCES) => error
            .because(
                "CAP_NET_ADMIN over the container's network is missing here, or a system call filter or security \
                 module around this program forbids it",
            )
            .remedy("give this program CAP_NET_ADMIN, or use the host's network"),
        (_, Sys::Unshare, libc::ENOSPC) => no_more_namespaces(error),
        (Op::Init | Op::MapHelper, Sys::Clone, libc::EAGAIN) => no_more_processes(error),
        (Op::Keyring, _, _) => error.because("the kernel gave no new session keyring, and the host's must not be the container's"),
        (Op::Seccomp, _, libc::EINVAL) => error.because("the filter was not accepted by this kernel"),
        (Op::Seccomp, _, libc::EACCES) => error.because("a filter without no-new-privileges needs CAP_SYS_ADMIN"),
        (Op::MapSelf, _, libc::EPERM) => error
            .because("the kernel or a security module lets this user make no id map")
            .remedy("`coracle doctor` says more"),
        (_, Sys::CloseRange, _) => descriptors_stay(error),
        (Op::Tree, Sys::Clone, libc::EAGAIN) => no_more_processes(error),
        (Op::Chroot, Sys::Chroot, libc::EPERM) => error
            .because("CAP_SYS_CHROOT is missing here, or a system call filter around this program refuses chroot")
            .remedy("give this program CAP_SYS_CHROOT and a filter that allows chroot"),
        (_, Sys::LandlockCreate | Sys::LandlockAdd | Sys::LandlockRestrict, libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM) => {
            error
                .kind_is(ErrorKind::Unsupported)
                .because("landlock is refused here, by a system call filter around this program or by the kernel")
                .remedy("`coracle doctor` says more")
        }
        (_, Sys::LandlockRestrict, libc::E2BIG) => error
            .kind_is(ErrorKind::Limit)
            .because("this program is restricted by landlock sixteen times already, which is the most that the kernel takes"),
        (_, Sys::Plan, _) => error.because("the launch plan is malformed: this is a bug of coracle, please report it"),
        _ => error,
    }
}

fn execute(errno: i32, detail: u32, subject: &Subject) -> Error {
    let index = (detail & 0x7fff_ffff) as usize;
    let names: &[String] = if let Subject::Many(names) = subject { names } else { &[] };
    let name = names.get(index.min(names.len().saturating_sub(1))).cloned().unwrap_or_default();
    let error = Error::sys("execute the command", "execve", errno).path(&name);
    match errno {
        libc::ENOENT if detail & 0x8000_0000 != 0 => error.kind_is(ErrorKind::CommandNotFound).because(
            "the file is there, but the interpreter that it names (its #! line, or its dynamic loader) is not in the container",
        ),
        libc::ENOENT | libc::ENOTDIR if names.len() > 1 => {
            let short = name.rsplit('/').next().unwrap_or_default().to_owned();
            Error::sys("execute the command", "execve", libc::ENOENT)
                .path(short)
                .kind_is(ErrorKind::CommandNotFound)
                .because("it is in none of the directories of the container's PATH")
        }
        libc::ENOENT | libc::ENOTDIR => {
            error.kind_is(ErrorKind::CommandNotFound).because("there is no such file in the container")
        }
        libc::EACCES => error
            .kind_is(ErrorKind::CommandNotExecutable)
            .because("it is not executable for the container's user, is a directory, or lies on a mount without exec"),
        libc::ENOEXEC => error
            .kind_is(ErrorKind::CommandNotExecutable)
            .because("it is neither a program for this processor nor a script that starts with #!"),
        libc::ETXTBSY => error
            .kind_is(ErrorKind::CommandNotExecutable)
            .because("somebody has it open for writing")
            .remedy("start it when it has been written and closed"),
        libc::E2BIG => error.kind_is(ErrorKind::Limit).because("arguments and environment together are too long"),
        _ => error.kind_is(ErrorKind::CommandNotExecutable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likely_cause_is_that_of_this_call() {
        let said = |error: Error, words: &str| assert!(error.to_string().contains(words), "{words}: {error}");
        said(no_process(Sys::Clone, libc::EPERM, true), "user namespaces");
        said(no_process(Sys::Clone, libc::EPERM, false), "CAP_SYS_ADMIN");
        said(no_process(Sys::Fork, libc::EAGAIN, true), "limit of processes");
        said(no_process(Sys::EpollCtl, libc::ENOSPC, false), "max_user_watches");
        said(no_guardian(Sys::CloseRange, libc::EPERM), "/proc/self/fd");
        said(no_guardian(Sys::Keyctl, libc::EDQUOT), "maxkeys");
        let of = |op: Op, sys, errno| {
            let report = Report { index: 0, op: op as u32, sys, errno, detail: 0 };
            sentence(report, &[(op, Subject::Nothing)])
        };
        said(of(Op::Capabilities, Sys::Capset, libc::EPERM), "does not have all of the capabilities");
        said(of(Op::Loopback, Sys::Ioctl, libc::EPERM), "CAP_NET_ADMIN");
        said(of(Op::Exec, Sys::CloseRange, libc::EPERM), "close_range is refused");
        said(of(Op::Unshare, Sys::Unshare, libc::ENOSPC), "limit of namespaces");
    }
}
