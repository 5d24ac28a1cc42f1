//! Plans that are none, for the fuzz target `plan`: the stub has to refuse them, whatever they say.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::parent::{STARTED_GUARDIANS, attempt};
use super::plan::{Create, Finished, Plan, When};
use super::protocol::{Op, PLAN_HEADER, PLAN_JOINS};
use crate::error::{Error, Result};

const CLONE_NEWNS: u32 = 0x0002_0000;

/// How a plan went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walked {
    /// Some step was refused, or failed.
    Refused,
    /// It ended so: exit status or signal.
    Ended(std::result::Result<i32, i32>),
    /// It had to be killed.
    Killed,
}

/// Walks a plan, in a mount namespace of its own at least, with these descriptors as its first registers.
///
/// # Errors
/// When the guardian did not survive it.
pub fn walk(plan: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Walked> {
    let mut bytes = plan.to_vec();
    let mut joins = false;
    if let Some(header) = bytes.get_mut(..PLAN_HEADER) {
        // Whoever shares its mounts could take them away from the guardian.
        let (_, flags) = header.split_at_mut(4);
        let asked = u32::from_ne_bytes(flags[..4].try_into().unwrap_or_default());
        flags[..4].copy_from_slice(&(asked | CLONE_NEWNS).to_ne_bytes());
        joins = u32::from_ne_bytes(flags[12..16].try_into().unwrap_or_default()) & PLAN_JOINS != 0;
    }
    let fds = fds.iter().map(|fd| fd.try_clone_to_owned()).collect::<std::io::Result<Vec<_>>>();
    let fds = fds.map_err(|error| Error::io("walk the plan", "fcntl", error))?;
    let lease = tempfile::tempfile().map_err(|error| Error::io("walk the plan", "open", error))?;
    let mut finished = Finished::of_bytes(bytes, fds, joins);
    let walked = match attempt(&mut finished, lease.as_fd(), Path::new(""), None) {
        Err(_) => Walked::Refused,
        Ok(process) => match process.wait(Some(Duration::from_millis(200)))? {
            None => Walked::Killed,
            Some(ended) => Walked::Ended(match (ended.code, ended.signal) {
                (Some(code), _) => Ok(code),
                (None, signal) => Err(signal.unwrap_or(0)),
            }),
        },
    };
    match STARTED_GUARDIANS.load(Ordering::Relaxed) {
        0 | 1 => Ok(walked),
        _ => Err(Error::new(crate::ErrorKind::Launch, "walk the plan").because("the guardian did not survive it")),
    }
}

/// Plans as they should be, to make others from. The registers are: a directory, `/dev/null`, both ends of a pipe.
pub fn samples() -> Vec<Vec<u8>> {
    let finish = |plan: Plan| plan.finish().map(|plan| plan.bytes).unwrap_or_default();
    let mut done = Plan::new(0);
    done.plain(Op::Done);
    vec![finish(done), finish(container()), finish(further()), finish(chores())]
}

fn registers(plan: &mut Plan) -> Option<[super::Reg; 4]> {
    let null = || std::fs::File::open("/dev/null").ok();
    Some([plan.send(null()?.into()), plan.send(null()?.into()), plan.send(null()?.into()), plan.send(null()?.into())])
}

fn container() -> Plan {
    let mut plan = Plan::new(0x7c02_0000);
    let Some([dir, null, reader, writer]) = registers(&mut plan) else { return plan };
    plan.plain(Op::Session);
    plan.plain(Op::Keyring);
    plan.plain(Op::DieWithParent);
    plan.write(writer, b"0", "a pipe");
    plan.map_self("0 0 1\n", "0 0 1\n", true);
    plan.plain(Op::Private);
    plan.word(Op::Dumpable, 0);
    let root = plan.file_system("tmpfs", 6, &[("mode", Some(b"755")), ("size", Some(b"1m"))]);
    plan.directory(root, "proc", 0o755);
    plan.directory(root, "dev", 0o755);
    plan.file(root, "file", 0o644, b"content");
    plan.symlink(root, "file", "link");
    plan.node(root, "null", 0o666, (1, 3));
    let tree = plan.open_tree(Some(dir), Path::new("."), true, Some(dir));
    plan.attributes(tree, true, 7, 8, 0);
    plan.attach_in(tree, root, "dev");
    plan.on(Op::VerifyReadOnly, tree);
    plan.on(Op::Pivot, root);
    let proc = plan.file_system("proc", 14, &[]);
    plan.attach(proc, Path::new("/proc"), Create::Directory, super::Care { guarded: true, ..Default::default() });
    plan.legacy_mount("none", Path::new("/dev"), "tmpfs", 6, b"size=1m");
    plan.cover(root, Path::new("/proc/kcore"), Some((super::Base(proc, 0x9fa0), Path::new("kcore"))));
    plan.read_only(Path::new("/proc/sys"), Some((super::Base(proc, 0x9fa0), Path::new("sys"))));
    let devpts = plan.file_system("devpts", 10, &[("newinstance", None), ("ptmxmode", Some(b"666"))]);
    let (master, _) = plan.open_terminal(Some(devpts), 0, 24, 80);
    plan.pass_terminal(writer, master);
    plan.text(Op::Hostname, "name".as_ref());
    plan.text(Op::Domainname, "name".as_ref());
    plan.plain(Op::Loopback);
    plan.work_dir(Path::new("/a/b"), 0, 0);
    plan.rlimit(6, 100, 100, "RLIMIT_NPROC");
    plan.files(100, 200);
    plan.word(Op::Umask, 0o022);
    plan.mask64(Op::Bounding, 1);
    plan.give_away(reader, 0, 0);
    plan.plain(Op::KeepCaps);
    plan.ids(0, 0, Some(&[0, 1]));
    plan.plain(Op::StillAlive);
    plan.plain(Op::Raise);
    plan.capabilities(When::Held, 1, 1, 0, 0);
    plan.plain(Op::NoNewPrivileges);
    plan.stdio([null, null, null]);
    // ld [0]; ret ALLOW
    plan.seccomp(When::Held, &[0x20, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0xff, 0x7f]);
    plan.plain(Op::Init);
    plan.exec(&[b"/bin/true".to_vec(), b"true".to_vec()], &[b"true".to_vec()], &[b"A=b".to_vec()]);
    plan
}

fn further() -> Plan {
    let mut plan = Plan::new(0);
    let Some([dir, null, ..]) = registers(&mut plan) else { return plan };
    plan.plain(Op::DieWithParent);
    plan.join(dir, 0x7c02_0000);
    plan.enter(Path::new("/"));
    let own = plan.joined_null();
    plan.stdio([own, null, own]);
    plan.beside();
    plan.plain(Op::DieWithParent);
    plan.plain(Op::Session);
    plan.exec(&[b"/bin/true".to_vec()], &[b"true".to_vec()], &[]);
    plan
}

fn chores() -> Plan {
    let mut plan = Plan::new(0);
    let Some([dir, null, reader, writer]) = registers(&mut plan) else { return plan };
    plan.change_dir(Path::new("/"), dir);
    plan.on(Op::ChangeDir, dir);
    plan.reown(dir, null);
    plan.measure(dir, writer);
    plan.remove_tree(dir, "nothing".as_ref());
    plan.on(Op::Serve, reader);
    plan.plain(Op::Done);
    plan
}
