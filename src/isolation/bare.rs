//! What is common to the rungs without namespaces: a command in a session of its own, watched over by a process that kills
//! what it leaves, without new privileges, and fenced in by a filter.

use std::fs::File;
use std::path::Path;

use oci_spec::runtime::LinuxNamespaceType;

use super::namespaces::{self, Last, Null, command, has, join_group, missing};
use super::{Aspect, Enforcement, Identity, Level, Request, Stream, fence};
use crate::launch::{Op, Plan};
use crate::security::Capability;
use crate::{Error, ErrorKind, Result};

/// The directory that becomes the root, and the null device that goes with it.
pub(super) struct Tree<'a> {
    pub(super) root: File,
    pub(super) path: &'a Path,
    pub(super) null: Option<File>,
    /// It is the container's own.
    pub(super) writable: bool,
}

/// See [`Request::bare_plan`]. In a tree of its own the working directory is made where it is missing.
pub(super) fn plan(request: Request<'_>, tree: Option<Tree<'_>>) -> Result<Plan> {
    if request.console.is_some() || request.stops.is_some() {
        return Err(Error::new(ErrorKind::Unsupported, "plan the launch")
            .because("terminals and hooks take a container in namespaces")
            .remedy("leave them out"));
    }
    let process = request.spec.process().as_ref().ok_or_else(|| missing("process"))?;
    let mut plan = Plan::new(0);
    plan.plain(Op::Session);
    plan.plain(Op::Keyring);
    plan.plain(Op::DieWithParent);
    join_group(&mut plan, request.cgroup)?;
    plan.tree();
    plan.word(Op::Dumpable, 0);
    let on_host = tree.is_none();
    let is_null = |stream: &Stream| matches!(stream, Stream::Null);
    let null = match tree {
        Some(Tree { root, path, null, writable }) => {
            let root = plan.send(root.into());
            plan.chroot(root, path);
            match writable {
                true => plan.work_dir(process.cwd(), 0, 0),
                // Nothing is made in a directory of the host's.
                false => plan.enter(process.cwd()),
            }
            null
        }
        None => {
            plan.enter(process.cwd());
            let null =
                request.stdio.iter().any(is_null).then(|| File::options().read(true).write(true).open("/dev/null"));
            null.transpose().map_err(|error| Error::io("open the null device", "open", error).path("/dev/null"))?
        }
    };
    let null = null.map(|file| plan.send(file.into()));
    let last = Last {
        process,
        identity: request.identity,
        stdio: request.stdio,
        stdio_made: request.stdio_made,
        null: Null::At(null),
        seccomp: request.seccomp,
        init: false,
        terminal: None,
        given_users: false,
    };
    let without_network = has(request.spec, LinuxNamespaceType::Network);
    let mut plan = command(plan, last)?;
    plan.filter(&fence::program(request.host.kernel(), without_network, on_host)?);
    Ok(plan)
}

const IN_COMMON: &str = "shared memory, semaphores and message queues are the host's, and priorities of its user's other \
                         processes can be changed";

/// What holds of every such command, and what does not.
pub(super) fn judge(enforcement: &mut Enforcement, request: &Request<'_>, abi: u32) {
    let watched = match request.cgroup.is_some_and(|group| group.can_kill()) {
        true => "what it leaves is killed with its control group",
        false => {
            "what it leaves is killed by a process that watches over it, one by one, which somebody who makes processes fast \
             enough may outrun"
        }
    };
    let seen = match abi {
        6.. => (Level::Partial, "the host's processes can be seen, and neither be signalled nor traced"),
        _ => (
            Level::None,
            "the host's processes can be seen, and those of its user be signalled (landlock from 6.12 on)",
        ),
    };
    enforcement.lower(Aspect::Processes, seen.0, seen.1);
    enforcement.note(Aspect::Processes, IN_COMMON);
    enforcement.note(Aspect::Processes, watched);
    match (has(request.spec, LinuxNamespaceType::Network), abi) {
        (false, _) => enforcement.lower(Aspect::Network, Level::None, "the host's network is used"),
        (true, 6..) => {}
        (true, _) => {
            let reason = "abstract sockets of the host's programs can be connected to (landlock from 6.12 on)";
            enforcement.lower(Aspect::Network, Level::Partial, reason);
        }
    }
    if let Identity::Caller { .. } = request.identity {
        let groups = nix::unistd::getgroups().unwrap_or_default();
        let groups: Vec<u32> = groups.into_iter().map(nix::unistd::Gid::as_raw).collect();
        if let Some(note) = namespaces::kept_groups(&groups) {
            enforcement.note(Aspect::Privileges, note);
        }
    }
    namespaces::syscalls(enforcement, request);
    match request.cgroup {
        None => enforcement.lower(Aspect::Limits, Level::None, request.no_cgroup.to_owned()),
        Some(group) => namespaces::limits(enforcement, group.unenforced().iter().chain(request.unlimited)),
    }
    let dangerous = [
        Capability::SysAdmin,
        Capability::SysChroot,
        Capability::SysPtrace,
        Capability::SysModule,
        Capability::SysRawio,
        Capability::DacReadSearch,
        Capability::Mknod,
        Capability::Bpf,
        Capability::SysBoot,
        Capability::NetAdmin,
    ];
    let held: Vec<&str> = dangerous.into_iter().filter(|one| holds(request, *one)).map(Capability::name).collect();
    if !held.is_empty() {
        let reason = format!("{} counts on the host itself", held.join(", "));
        for aspect in [Aspect::Privileges, Aspect::FilesystemRead, Aspect::FilesystemWrite] {
            enforcement.lower(aspect, Level::Partial, reason.clone());
        }
    }
}

/// Whether the command has a capability.
pub(super) fn holds(request: &Request<'_>, capability: Capability) -> bool {
    let name = capability.name().trim_start_matches("CAP_");
    name.parse().is_ok_and(|capability| super::devices::holds(request.spec, capability))
}
