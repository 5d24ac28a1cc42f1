//! The first rung: Linux namespaces. Rootful, rootless with a subordinate range, rootless with one id.
//!
//! ```text
//! mod.rs      the order of steps: identity, tree, limits, privileges, exec
//! nodes.rs    devices
//! process.rs  scheduling, priorities, labels
//! ways.rs     how a container comes into its namespaces
//! tree.rs     the root, the kernel's file systems, devices, binds, masks
//! ```

mod nodes;
pub(crate) mod process;
mod tree;
mod ways;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, LinuxNamespaceType, PosixRlimit, PosixRlimitType, Process, Spec};

use super::devices::{self, holds};
use super::validate::{namespaces, validate};
use super::{Aspect, Console, Enforcement, ExecRequest, Identity, Isolation, Level, Request, Stream};
use super::{resources, userns};
use crate::cgroup::{Devices, Group, Limit, Unenforced};
use crate::launch::{Op, Plan, Reg, When};
use crate::security::{Landlock, Masking, Seccomp};
use crate::snapshot::Mount;
use crate::{Error, ErrorKind, Result};
use ways::Ways;
pub(super) use ways::flag;

const CLONE_NEWTIME: u64 = 0x80;
const CLONE_NEWNS: u64 = 0x0002_0000;
const CLONE_NEWCGROUP: u64 = 0x0200_0000;
const CLONE_NEWUSER: u64 = 0x1000_0000;

/// `CAP_SYS_ADMIN` in a mask.
const SYS_ADMIN: u64 = 1 << 21;
/// `CAP_SYS_PTRACE` in a mask.
const SYS_PTRACE: u64 = 1 << 19;

/// Linux namespaces, see namespaces(7).
#[derive(Debug, Clone, Copy)]
pub struct Namespaces;

pub(super) fn missing(what: &str) -> Error {
    Error::new(ErrorKind::Invalid, "read the container's spec").because(format!("it has no {what}"))
}

pub(super) fn has(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.is_some_and(|all| all.iter().any(|namespace| namespace.typ() == kind))
}

/// Has it one that nobody else has?
fn has_own(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    namespaces(spec).any(|(typ, path)| typ == kind && path.is_none())
}

/// May it be joined by others of its user while it is set up? Where they cannot be in its pid namespace, they are no
/// workloads, and the host's root needs no permission.
fn can_be_open(request: &Request<'_>) -> bool {
    request.identity.is_rootless() && has_own(request.spec, LinuxNamespaceType::Pid)
}

/// The names of the UTS namespace, which is the container's own where they are given.
fn names(plan: &mut Plan, spec: &Spec) {
    if let Some(name) = spec.hostname() {
        plan.text(Op::Hostname, name.as_ref());
    }
    if let Some(name) = spec.domainname() {
        plan.text(Op::Domainname, name.as_ref());
    }
}

/// Is the container in a user namespace, of whose making ever?
fn has_users(request: &Request<'_>) -> bool {
    request.identity.is_rootless() || has(request.spec, LinuxNamespaceType::User)
}

impl Isolation for Namespaces {
    fn name(&self) -> &'static str {
        "namespaces"
    }

    fn enforcement(&self, request: &Request<'_>) -> Enforcement {
        let mut enforcement = Enforcement::full("namespaces");
        if !has(request.spec, LinuxNamespaceType::Network) {
            enforcement.lower(Aspect::Network, Level::None, "the host's network is used");
        }
        if !has(request.spec, LinuxNamespaceType::Pid) {
            enforcement.lower(Aspect::Processes, Level::None, "the host's processes are in sight");
        }
        if !has(request.spec, LinuxNamespaceType::Ipc) {
            enforcement.lower(
                Aspect::Processes,
                Level::Partial,
                "the host's shared memory and semaphores are in sight",
            );
        }
        for (aspect, kind, what) in [
            (Aspect::Network, LinuxNamespaceType::Network, "network is"),
            (Aspect::Processes, LinuxNamespaceType::Pid, "processes, which do not end with the container's first, are"),
            (Aspect::Processes, LinuxNamespaceType::Ipc, "shared memory and semaphores are"),
        ] {
            if has(request.spec, kind) && !has_own(request.spec, kind) {
                let reason = format!("the {what} those of a namespace that others are in as well");
                enforcement.lower(aspect, Level::Partial, reason);
            }
        }
        // Whoever may trace there sees the process that sets this container up, with all rights of the host's root.
        let is_joined = |kind| has(request.spec, kind) && !has_own(request.spec, kind);
        if is_joined(LinuxNamespaceType::Pid) && !request.identity.is_rootless() {
            for aspect in [Aspect::Privileges, Aspect::FilesystemRead, Aspect::FilesystemWrite] {
                let reason = "in a pid namespace of others, those with CAP_SYS_PTRACE can take the rights of the process that \
                              sets the container up";
                enforcement.lower(aspect, Level::None, reason);
            }
        }
        syscalls(&mut enforcement, request);
        let process = request.spec.process().as_ref();
        if !process.and_then(Process::no_new_privileges).unwrap_or(false) {
            enforcement.lower(Aspect::Privileges, Level::Partial, "no-new-privileges is off");
        }
        kernel_files(&mut enforcement, request);
        device_nodes(&mut enforcement, request);
        for reachable in &request.snapshot.sockets {
            enforcement.lower(Aspect::FilesystemWrite, Level::Partial, reachable.clone());
        }
        match request.cgroup {
            None => enforcement.lower(Aspect::Limits, Level::None, request.no_cgroup.to_owned()),
            Some(group) => limits(&mut enforcement, group.unenforced().iter().chain(request.unlimited)),
        }
        // Not less isolation, but something a caller has to know: part of the tree will refuse writes.
        if let (Mount::Bind { read_only: true, .. }, true) = (&request.snapshot.root, request.identity.is_rootless()) {
            enforcement.note(
                Aspect::FilesystemWrite,
                "in a user namespace, writes to files of other owners fail, and so do writes to anything in their \
                 directories, except directly in those that are overlaid as a whole; what is written there, to the caller's \
                 own files otherwise and to /tmp and /var/tmp is discarded",
            );
        }
        if let Identity::Single { groups, .. } = request.identity
            && let Some(note) = kept_groups(groups)
        {
            enforcement.note(Aspect::Privileges, note);
        }
        layer_is_there(&mut enforcement, request);
        for note in &request.snapshot.notes {
            enforcement.note(Aspect::FilesystemWrite, note.clone());
        }
        enforcement
    }

    fn plan(&self, mut request: Request<'_>) -> Result<Plan> {
        let spec = request.spec;
        validate(spec, request.identity)?;
        let process = spec.process().as_ref().ok_or_else(|| missing("process"))?;
        let (mut plan, ways) = Ways::begin(&request)?;
        plan.plain(Op::Session);
        plan.plain(Op::Keyring);
        plan.plain(Op::DieWithParent);
        join_group(&mut plan, request.cgroup)?;
        process::score(&mut plan, process);
        if ways.is_born_in_user_namespace() {
            enter(&mut plan, request.identity, (process.user().uid(), process.user().gid()));
        }
        if ways.entered(&request).is_none() {
            ways.arrive(&mut plan, request.identity);
        }
        plan.word(Op::Dumpable, 0);
        let stops = request.stops.take();
        let (early, late) = stops.as_ref().map_or((false, false), |stops| (stops.early, stops.late));
        let socket = stops.map(|stops| plan.send(stops.socket));
        let (parts, terminal) = tree::build(&mut plan, &mut request, (&ways, socket.filter(|_| early)))?;
        if has_own(spec, LinuxNamespaceType::Network) {
            plan.plain(Op::Loopback);
        }
        // Where it is missing it is made, and root's as docker has it: a user writes only where the image lets it. A single
        // id is all that there is.
        let owner = match request.identity {
            Identity::Single { .. } => (process.user().uid(), process.user().gid()),
            _ => (0, 0),
        };
        plan.work_dir(process.cwd(), owner.0, owner.1);
        if let (Some(layer), Some(abi)) = (request.layer, request.host.landlock_abi()) {
            plan.landlock(layer, abi)?;
        }
        let maps = ways.maps.each_ref().map(Vec::as_slice);
        userns::give_away((&request.stdio, request.stdio_made), process.user(), maps)?;
        if let Some(persona) = process::persona(spec) {
            plan.word(Op::Personality, persona);
        }
        if request.seccomp_flags != 0 {
            plan.word(Op::FilterFlags, request.seccomp_flags);
        }
        if let Some(socket) = socket.filter(|_| late) {
            plan.pause(socket, can_be_open(&request));
        }
        let last = Last {
            process,
            identity: request.identity,
            stdio: request.stdio,
            stdio_made: request.stdio_made,
            terminal,
            null: Null::Part(parts),
            seccomp: request.seccomp,
            init: request.init,
            given_users: has(spec, LinuxNamespaceType::User) && !has_own(spec, LinuxNamespaceType::User),
        };
        command(plan, last)
    }

    fn exec(&self, request: ExecRequest<'_>) -> Result<Plan> {
        let mut plan = Plan::new(0);
        plan.plain(Op::DieWithParent);
        let affinity = request.process.exec_cpu_affinity().as_ref();
        process::affinity(&mut plan, "initial", affinity.and_then(|affinity| affinity.initial().as_deref()))?;
        process::score(&mut plan, request.process);
        if let Some(group) = request.joining.born_in {
            let register = plan.send(group);
            plan.born_in(register);
        }
        for tasks in request.joining.tasks {
            let tasks = plan.send(tasks);
            plan.write(tasks, b"0", "write to its list of tasks");
        }
        process::affinity(&mut plan, "final", affinity.and_then(|affinity| affinity.cpu_affinity_final().as_deref()))?;
        let kinds = request.namespaces.iter().fold(0, |kinds, kind| kinds | ways::flag(*kind));
        let container = plan.send_copy(request.container)?;
        plan.join(container, kinds);
        plan.plain(Op::Keyring);
        // The caller's groups have no business in there.
        if kinds & CLONE_NEWUSER != 0 && !matches!(request.identity, Identity::Single { .. }) {
            plan.ids(0, 0, Some(&[]));
        }
        plan.enter(request.process.cwd());
        let uid = request.process.user().uid();
        let terminal = request.console.map(|console| open_terminal(&mut plan, console, None, uid));
        userns::give_away((&request.stdio, request.stdio_made), request.process.user(), request.maps)?;
        if let Some(persona) = request.personality {
            plan.word(Op::Personality, persona);
        }
        if request.seccomp_flags != 0 {
            plan.word(Op::FilterFlags, request.seccomp_flags);
        }
        let last = Last {
            process: request.process,
            identity: request.identity,
            stdio: request.stdio,
            stdio_made: request.stdio_made,
            terminal,
            null: Null::Joined,
            seccomp: request.seccomp,
            init: false,
            given_users: false,
        };
        let mut plan = command(plan, last)?;
        if let (Some(layer), Some(abi)) = (request.layer, request.host.landlock_abi()) {
            plan.landlock(layer, abi)?;
        }
        Ok(plan)
    }
}

/// Whether the files with which the kernel is steered are hidden and write-protected, and stay so.
fn kernel_files(enforcement: &mut Enforcement, request: &Request<'_>) {
    let spec = request.spec;
    let linux = spec.linux().as_ref();
    let missing = |paths: Option<&Vec<String>>, wanted: &[&str]| {
        let has = |path: &str| paths.is_some_and(|paths| paths.iter().any(|known| known == path));
        wanted.iter().filter(|path| !has(path)).copied().collect::<Vec<_>>().join(", ")
    };
    let expected = Masking::DOCKER_2026_11;
    let writable = missing(linux.and_then(|linux| linux.readonly_paths().as_ref()), expected.readonly);
    if !writable.is_empty() {
        for aspect in [Aspect::FilesystemWrite, Aspect::Privileges] {
            enforcement.lower(
                aspect,
                Level::Partial,
                format!("files of the kernel are not write-protected: {writable}"),
            );
        }
    }
    let visible = missing(linux.and_then(|linux| linux.masked_paths().as_ref()), expected.masked);
    if !visible.is_empty() {
        enforcement.lower(Aspect::Privileges, Level::Partial, format!("files of the kernel are not hidden: {visible}"));
    }
    if holds(spec, Capability::SysAdmin) {
        for aspect in [Aspect::FilesystemWrite, Aspect::Privileges] {
            let reason = "with CAP_SYS_ADMIN the mounts that hide and write-protect files of the kernel can be undone";
            enforcement.lower(aspect, Level::Partial, reason);
        }
        // Where the process is in no group of its own, the root of its cgroup namespace is the hierarchy's.
        if !has_users(request) && !request.cgroup_v2 {
            let reason = "and a version 1 hierarchy can be mounted, whose release_agent is run by the host";
            enforcement.lower(Aspect::Privileges, Level::Partial, reason);
        }
    }
}

/// The process is in its control group before it does anything else.
pub(super) fn join_group(plan: &mut Plan, group: Option<&Group>) -> Result<()> {
    let Some(group) = group else { return Ok(()) };
    if let Some(fd) = group.clone_into_fd() {
        let register = plan.send_copy(fd)?;
        plan.born_in(register);
    }
    for fd in group.join_fds() {
        let tasks = plan.send_copy(fd)?;
        // "0" is whoever writes; from outside it would cost a grace period per controller.
        plan.write(tasks, b"0", "write to its list of tasks");
    }
    Ok(())
}

/// How far the filter decides.
pub(super) fn syscalls(enforcement: &mut Enforcement, request: &Request<'_>) {
    match (request.seccomp, request.filter) {
        (None, _) => enforcement.lower(Aspect::Syscalls, Level::None, "no system call filter was asked for"),
        (Some(_), Seccomp::Custom(_)) => {
            enforcement.lower(Aspect::Syscalls, Level::Partial, "a filter of the caller's own decides, unjudged");
        }
        // Only x86 has the call, and 64-bit programs have it there, too, by `int 0x80`.
        (Some(_), Seccomp::Docker2026_11) if cfg!(any(target_arch = "x86_64", target_arch = "x86")) => {
            let reason = "32-bit programs make sockets of any family with socketcall(2), AF_VSOCK and AF_ALG \
                          included; the strict filter closes that";
            enforcement.lower(Aspect::Syscalls, Level::Partial, reason);
        }
        (Some(_), _) => {}
    }
}

/// Whether device nodes that the workload may come by are kept shut.
fn device_nodes(enforcement: &mut Enforcement, request: &Request<'_>) {
    // Options that cannot be read are an error of the plan.
    let wanted = devices::rules(request.spec, request.filter).is_ok_and(|rules| rules != Devices::Any);
    let given_up = matches!(resources::devices(request.spec), Ok(Some(Devices::Any)))
        && devices::needed(request.spec, request.filter).is_ok_and(|rules| rules != Devices::Any);
    if given_up && !has_users(request) {
        enforcement.lower(
            Aspect::Privileges,
            Level::Partial,
            "it can make nodes of any device, and the spec allows all",
        );
    }
    if has_users(request) || !wanted {
        return;
    }
    let why = match request.cgroup {
        None => Some(request.no_cgroup.to_owned()),
        Some(group) => {
            group.unenforced().iter().find(|lost| lost.limit == Limit::Devices).map(|lost| lost.cause.to_string())
        }
    };
    if let Some(why) = why {
        let reason = format!("it can make nodes of any device and open them: {why}");
        enforcement.lower(Aspect::Privileges, Level::Partial, reason);
    }
}

/// Which limits do not hold in a group, were they asked for or could they only not be.
pub(super) fn limits<'a>(enforcement: &mut Enforcement, lost: impl Iterator<Item = &'a Unenforced>) {
    let (mut kinds, mut causes) = (vec![], vec![]);
    for lost in lost.filter(|lost| lost.limit != Limit::Devices) {
        if !kinds.contains(&lost.limit) {
            kinds.push(lost.limit);
            causes.push(lost.to_string());
        }
    }
    let all = [Limit::Memory, Limit::CpuQuota, Limit::Pids].iter().all(|limit| kinds.contains(limit));
    match (kinds.is_empty(), all) {
        (true, _) => {}
        (false, true) => enforcement.lower(Aspect::Limits, Level::None, causes.join("; ")),
        (false, false) => enforcement.lower(Aspect::Limits, Level::Partial, causes.join("; ")),
    }
}

/// Whether landlock lies on top, where it was asked for.
fn layer_is_there(enforcement: &mut Enforcement, request: &Request<'_>) {
    if request.layer.is_none() {
        return;
    }
    let mut aspects = vec![Aspect::Privileges];
    if !request.readable.is_empty() {
        aspects.push(Aspect::FilesystemRead);
    }
    for aspect in aspects {
        match request.host.landlock_abi() {
            None => enforcement.lower(aspect, Level::Partial, "landlock was asked for on top, and is not there"),
            Some(abi) if abi < 6 => {
                enforcement
                    .note(aspect, format!("landlock on top is of version {abi}, and restricts less than 6 does"));
            }
            Some(_) => enforcement.note(aspect, "landlock lies on top"),
        }
    }
}

/// What landlock allows on top of the container's tree.
pub(crate) fn layer(spec: &Spec, readable: &[PathBuf], writable: &[PathBuf]) -> Landlock {
    let mut ruleset = Landlock::nothing();
    let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    match readable {
        [] if read_only => {
            ruleset.read("/");
        }
        [] => {
            ruleset.write("/");
        }
        paths => {
            for path in paths {
                ruleset.read(path);
            }
        }
    }
    for path in writable {
        ruleset.write(path);
    }
    // File systems of its own that every container writes to.
    for path in ["/dev/pts", "/dev/shm", "/dev/mqueue"] {
        ruleset.write_if_there(path);
    }
    for path in DEVICES {
        ruleset.r#use(path);
    }
    if !has(spec, LinuxNamespaceType::Network) {
        ruleset.tcp();
    }
    ruleset
}

/// Devices that keep nothing, and can be used wherever they are seen.
pub(super) const DEVICES: [&str; 6] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// What is to be known of the caller's supplementary groups where setgroups(2) is denied.
pub(super) fn kept_groups(groups: &[u32]) -> Option<String> {
    let list: Vec<String> = groups.iter().map(u32::to_string).collect();
    (!list.is_empty()).then(|| {
        format!("the caller's supplementary groups stay in force and open what they open outside: {}", list.join(", "))
    })
}

/// Who the process is while it sets up: root of its user namespace, or the host's root.
///
/// `shown` is what a single id is presented as.
pub(crate) fn enter(plan: &mut Plan, identity: &Identity, shown: (u32, u32)) {
    match identity {
        Identity::Host | Identity::Caller { .. } => {}
        Identity::Single { uid, gid, .. } => {
            // The one id we have, presented as whichever id the workload is to see.
            plan.map_self(&format!("{} {uid} 1\n", shown.0), &format!("{} {gid} 1\n", shown.1), true);
        }
        Identity::Range { uid, gid, uids, gids, uid_tool, gid_tool } => {
            let triples = |own: u32, ranges: &[crate::probe::IdRange]| {
                let mut words = vec!["0".to_owned(), own.to_string(), "1".to_owned()];
                let mut inside = 1u64;
                for range in ranges {
                    words.extend([inside.to_string(), range.start.to_string(), range.count.to_string()]);
                    inside += u64::from(range.count);
                }
                words
            };
            plan.map_helper((uid_tool, &triples(*uid, uids)), (gid_tool, &triples(*gid, gids)));
            plan.ids(0, 0, Some(&[]));
        }
    }
}

/// What the last steps are about.
pub(super) struct Last<'a> {
    pub(super) process: &'a Process,
    pub(super) identity: &'a Identity,
    pub(super) stdio: [Stream; 3],
    pub(super) stdio_made: [bool; 3],
    /// What stands in for all three.
    pub(super) terminal: Option<Reg>,
    pub(super) null: Null,
    pub(super) seccomp: Option<&'a [u8]>,
    pub(super) init: bool,
    /// It is in a user namespace that others have made.
    pub(super) given_users: bool,
}

/// Makes a terminal in this devpts, or in that of the container that was joined, and passes the master on; the slave is left.
fn open_terminal(plan: &mut Plan, console: Console, devpts: Option<Reg>, uid: u32) -> Reg {
    let socket = plan.send(console.socket);
    let (master, slave) = plan.open_terminal(devpts, uid, console.size.rows, console.size.columns);
    plan.pass_terminal(socket, master);
    slave
}

/// Where the null device of the container is.
pub(super) enum Null {
    /// This one, where a stream needs it.
    At(Option<Reg>),
    /// In the parts that its tree was built of.
    Part(Reg),
    /// At its place.
    Joined,
}

/// From the working directory to exec: limits, privileges, descriptors.
pub(super) fn command(mut plan: Plan, request: Last<'_>) -> Result<Plan> {
    let process = request.process;
    let user = process.user();
    let (uid, gid) = (user.uid(), user.gid());
    process::standing(&mut plan, process);
    let (files, limits): (Vec<&PosixRlimit>, Vec<&PosixRlimit>) =
        process.rlimits().iter().flatten().partition(|limit| limit.typ() == PosixRlimitType::RlimitNofile);
    // A thread that may not raise its hard limits after it has changed its user may here.
    for limit in &limits {
        let (resource, name) = resource(limit.typ());
        plan.rlimit(resource, limit.soft(), limit.hard(), name);
    }
    // Of open files the set-up needs some itself, so the soft limit comes late.
    for limit in files.iter().filter(|limit| limit.hard() >= 1024) {
        plan.rlimit(resource(limit.typ()).0, limit.hard(), limit.hard(), "RLIMIT_NOFILE");
    }
    plan.word(Op::Umask, user.umask().unwrap_or(0o022));
    let sets = process.capabilities().as_ref();
    let bits = |set: Option<&std::collections::HashSet<Capability>>| {
        set.into_iter().flatten().fold(0u64, |bits, capability| bits | 1 << number(*capability))
    };
    let of = |pick: fn(&oci_spec::runtime::LinuxCapabilities) -> &Option<std::collections::HashSet<Capability>>| {
        bits(sets.and_then(|sets| pick(sets).as_ref()))
    };
    let bounding = of(oci_spec::runtime::LinuxCapabilities::bounding);
    let effective = of(oci_spec::runtime::LinuxCapabilities::effective);
    let permitted = of(oci_spec::runtime::LinuxCapabilities::permitted);
    let inheritable = of(oci_spec::runtime::LinuxCapabilities::inheritable);
    let ambient = of(oci_spec::runtime::LinuxCapabilities::ambient);
    // Who has no right to change it gains nothing by it, either: no-new-privileges is on then.
    if !matches!(request.identity, Identity::Caller { .. }) {
        plan.mask64(Op::Bounding, bounding);
    }
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    let mut stdio = vec![];
    for stream in request.stdio {
        stdio.push(match (request.terminal, stream, &request.null) {
            (Some(slave), ..) => slave,
            (None, Stream::Fd(fd), _) => plan.send(fd),
            (None, Stream::Null, Null::Part(parts)) => plan.open_null(*parts),
            (None, Stream::Null, Null::Joined) => plan.joined_null(),
            (None, Stream::Null, Null::At(Some(register))) => *register,
            (None, Stream::Null, Null::At(None)) => return Err(missing("null device")),
        });
    }
    for (register, made) in stdio.iter().zip(request.stdio_made) {
        if made && uid != 0 {
            // Or `echo > /dev/stderr` would fail for that user.
            plan.give_away(*register, uid, gid);
        }
    }
    let groups: Vec<u32> = user.additional_gids().clone().unwrap_or_default();
    match request.identity {
        // setgroups is denied there, and every id is the one that is mapped.
        Identity::Caller { .. } => {}
        Identity::Single { .. } if !request.given_users => {}
        Identity::Single { .. } => {
            plan.plain(Op::KeepCaps);
            plan.ids(uid, gid, None);
        }
        _ => {
            plan.plain(Op::KeepCaps);
            plan.ids(uid, gid, Some(&groups));
        }
    }
    process::labels(&mut plan, process)?;
    // A change of uid took the death signal away.
    plan.plain(Op::StillAlive);
    // Without no-new-privileges the filter needs CAP_SYS_ADMIN: where the command has none, that is given up last.
    let when = match request.seccomp {
        // The container's processes see it then: those that may trace would have what it is about to give up.
        Some(_) if !no_new_privileges && matches!(request.null, Null::Joined) && bounding & SYS_PTRACE != 0 => {
            return Err(Error::new(ErrorKind::Unsupported, "start a command in the container")
                .because(
                    "the container has CAP_SYS_PTRACE and no-new-privileges is off, so its processes could take the \
                          rights with which the system call filter is installed",
                )
                .remedy("start the container without the capability, or with no-new-privileges, or without a filter"));
        }
        Some(_) if !no_new_privileges && effective & SYS_ADMIN == 0 => {
            plan.plain(Op::Raise);
            When::Held
        }
        _ => When::Now,
    };
    plan.capabilities(when, effective, permitted, inheritable, ambient);
    if no_new_privileges {
        plan.plain(Op::NoNewPrivileges);
    }
    if let [input, output, error] = *stdio {
        plan.stdio([input, output, error]);
    }
    // Late, since the set-up needs descriptors of its own.
    for limit in &files {
        plan.rlimit(resource(limit.typ()).0, limit.soft(), limit.hard(), "RLIMIT_NOFILE");
    }
    if files.is_empty() {
        use nix::sys::resource::{Resource, getrlimit};
        if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            plan.files(soft, hard);
        }
    }
    // The filter is the command's, and the stub has to be able to do its work under any.
    if let Some(filter) = request.seccomp {
        plan.seccomp(When::Held, filter);
    }
    if request.init {
        plan.plain(Op::Init);
        if request.terminal.is_some() {
            // What is typed to end or stop the command is not for its init.
            plan.plain(Op::Session);
        }
    }
    if let Null::Joined = request.null {
        plan.beside();
        plan.plain(Op::DieWithParent);
        plan.plain(Op::Session);
    }
    if request.terminal.is_some() {
        plan.plain(Op::ControllingTerminal);
    }
    let arguments: Vec<Vec<u8>> = process.args().iter().flatten().map(|word| word.clone().into_bytes()).collect();
    let environment: Vec<Vec<u8>> = process.env().iter().flatten().map(|word| word.clone().into_bytes()).collect();
    let Some(name) = arguments.first().filter(|name| !name.is_empty()) else {
        return Err(Error::new(ErrorKind::CommandNotFound, "execute the command")
            .because("its name is empty")
            .remedy("name a command, e.g. sh"));
    };
    for word in arguments.iter().chain(&environment) {
        if word.contains(&0) {
            return Err(Error::new(ErrorKind::Invalid, "execute the command")
                .because("an argument or variable contains a NUL byte, which no program can receive"));
        }
    }
    plan.exec(&candidates(name, &environment), &arguments, &environment);
    Ok(plan)
}

/// Where to look for a command, as execvp(3) does with the container's PATH.
fn candidates(name: &[u8], environment: &[Vec<u8>]) -> Vec<Vec<u8>> {
    if name.contains(&b'/') {
        return vec![name.to_vec()];
    }
    let path = environment.iter().find_map(|variable| variable.strip_prefix(b"PATH=")).unwrap_or(b"/bin:/usr/bin");
    let join = |dir: &[u8]| {
        let dir = if dir.is_empty() { b"." } else { dir };
        Path::new(std::ffi::OsStr::from_bytes(dir)).join(std::ffi::OsStr::from_bytes(name)).into_os_string()
    };
    path.split(|byte| *byte == b':').map(|dir| join(dir).as_bytes().to_vec()).collect()
}

fn resource(kind: PosixRlimitType) -> (u32, &'static str) {
    use PosixRlimitType as Kind;
    match kind {
        Kind::RlimitCpu => (0, "RLIMIT_CPU"),
        Kind::RlimitFsize => (1, "RLIMIT_FSIZE"),
        Kind::RlimitData => (2, "RLIMIT_DATA"),
        Kind::RlimitStack => (3, "RLIMIT_STACK"),
        Kind::RlimitCore => (4, "RLIMIT_CORE"),
        Kind::RlimitRss => (5, "RLIMIT_RSS"),
        Kind::RlimitNproc => (6, "RLIMIT_NPROC"),
        Kind::RlimitNofile => (7, "RLIMIT_NOFILE"),
        Kind::RlimitMemlock => (8, "RLIMIT_MEMLOCK"),
        Kind::RlimitAs => (9, "RLIMIT_AS"),
        Kind::RlimitLocks => (10, "RLIMIT_LOCKS"),
        Kind::RlimitSigpending => (11, "RLIMIT_SIGPENDING"),
        Kind::RlimitMsgqueue => (12, "RLIMIT_MSGQUEUE"),
        Kind::RlimitNice => (13, "RLIMIT_NICE"),
        Kind::RlimitRtprio => (14, "RLIMIT_RTPRIO"),
        Kind::RlimitRttime => (15, "RLIMIT_RTTIME"),
    }
}

/// The kernel's number of a capability of the spec, by its name.
fn number(capability: Capability) -> u8 {
    let name = capability.to_string();
    crate::security::Capability::ALL
        .into_iter()
        .find(|known| known.name().trim_start_matches("CAP_") == name.trim_start_matches("CAP_"))
        .map_or(63, crate::security::Capability::number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_looked_up_as_execvp_does() {
        assert_eq!(candidates(b"/bin/ls", &[]), [b"/bin/ls".to_vec()]);
        let environment = [b"PATH=/a::/b/".to_vec()];
        assert_eq!(candidates(b"ls", &environment), [b"/a/ls".to_vec(), b"./ls".to_vec(), b"/b/ls".to_vec()]);
    }

    #[test]
    fn limits_that_do_not_hold_lower_the_level() {
        let level = |names: &str| {
            let mut enforcement = Enforcement::full("namespaces");
            let none = crate::cgroup::Hierarchies::parse("", "");
            let driver = crate::cgroup::Direct::new(none, crate::cgroup::Parent::Own);
            let lost = crate::cgroup::Driver::unavailable(&driver);
            let lost = lost.iter().filter(|lost| names.contains(lost.limit.name()));
            limits(&mut enforcement, lost);
            (enforcement.level(Aspect::Limits), enforcement.reason(Aspect::Limits).to_owned())
        };
        assert_eq!(level(""), (Level::Full, String::new()));
        let (some, reason) = level("memory, pids");
        assert_eq!(some, Level::Partial);
        assert!(reason.contains("memory limit") && reason.contains("pids limit"), "{reason}");
        assert_eq!(level("memory, pids, cpu quota").0, Level::None);
    }

    #[test]
    fn groups_that_stay_are_told() {
        assert_eq!(kept_groups(&[]), None);
        assert!(kept_groups(&[4, 27]).is_some_and(|note| note.ends_with("outside: 4, 27")));
    }

    #[test]
    fn every_capability_of_the_spec_has_its_number() {
        assert_eq!(number(Capability::Chown), 0);
        assert_eq!(number(Capability::SysAdmin), 21);
        assert_eq!(number(Capability::CheckpointRestore), 40);
    }
}
