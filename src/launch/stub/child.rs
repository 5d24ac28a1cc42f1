//! A container's first process, from clone to exec: walks the plan, one step after the other, and reports the step
//! that failed.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::guardian::RLIMIT_NOFILE;
use crate::kernel::{self, Status};
use crate::protocol::{JOIN, MAX_REGISTERS, Malformed, NONE, Op, READY, Reader, Report, Sys};
use crate::{descriptors, init, landlock, mount, serve, settings, terminal, tree, warden};

/// What the guardian hands over.
#[derive(Clone, Copy)]
pub struct Launch<'a> {
    pub steps: &'a [u8],
    /// The plan's descriptors: registers 0 and up.
    pub received: &'a [i32],
    pub report: i32,
    pub life: (i32, i32),
    /// One byte on it says that the id maps are written.
    pub go: (i32, i32),
    pub procfs: i32,
    /// A network namespace that was made beforehand, loopback up; -1 where there is none.
    pub network: i32,
    /// The list of processes of the v2 cgroup that this one could not be born in; -1 where it could.
    pub join: i32,
    /// Where the guardian looks for the process that goes on after [`Op::Beside`]: the word of this slot.
    pub words: &'static [AtomicU32],
    pub slot: usize,
    /// [`Op::Tree`] is to come: [`END_TREE`](crate::protocol::END_TREE) stands in for SIGKILL.
    pub tree: bool,
}

/// A step's failure: which call, its errno, and where inside the step.
pub type Failed = (Sys, i32, u32);

impl From<Malformed> for Trouble {
    fn from(_: Malformed) -> Self {
        Trouble(Sys::Plan, kernel::EINVAL, 0)
    }
}

/// [`Failed`] as an error that `?` can convert into.
pub struct Trouble(pub Sys, pub i32, pub u32);

impl From<Failed> for Trouble {
    fn from((sys, errno, detail): Failed) -> Self {
        Trouble(sys, errno, detail)
    }
}

/// Turns an errno into a failure of the named call.
pub fn at(sys: Sys) -> impl Fn(i32) -> Trouble {
    move |errno| Trouble(sys, errno, 0)
}

/// The state that steps share.
pub struct Child<'a> {
    registers: [i32; MAX_REGISTERS],
    life: i32,
    go: i32,
    pub report: i32,
    pub procfs: i32,
    /// The root of this process, opened when it is first asked for; -1 before.
    root: i32,
    /// Loopback is up already.
    loopback: bool,
    words: &'static [AtomicU32],
    slot: usize,
    /// Position of the step that is being done.
    index: u32,
    /// Steps that are done right before the exec.
    /// Landlock rulesets: one of the profile's, and one of whoever adds his own.
    rulesets: [Option<Held<'a>>; 2],
    filter: Option<Held<'a>>,
    filter_flags: u32,
    capabilities: Option<Held<'a>>,
}

/// A step that waits, and its position.
#[derive(Clone, Copy)]
struct Held<'a> {
    index: u32,
    payload: Reader<'a>,
}

impl<'a> Child<'a> {
    pub fn has_filter(&self) -> bool {
        self.filter.is_some()
    }

    /// The step of the capabilities, if it waits. It is what the report then blames.
    pub fn held_capabilities(&mut self) -> Result<(), Trouble> {
        let Some(held) = self.capabilities else { return Ok(()) };
        self.index = held.index;
        capabilities(held.payload)
    }

    /// Says that the plan has been walked.
    fn ready(&self) {
        let _ = kernel::write(self.report, &READY.to_ne_bytes());
    }

    /// Everything that waits.
    fn held(&mut self) -> Result<(), Trouble> {
        let before = self.index;
        for Held { index, mut payload } in self.rulesets.into_iter().flatten() {
            self.index = index;
            kernel::landlock_restrict(self.register(payload.u32()?)?).map_err(at(Sys::LandlockRestrict))?;
        }
        if let Some(Held { index, mut payload }) = self.filter {
            self.index = index;
            kernel::seccomp(payload.blob()?, self.filter_flags).map_err(at(Sys::Seccomp))?;
        }
        self.held_capabilities()?;
        self.index = before;
        Ok(())
    }

    /// A step that restricts the command, for [`held`](Self::held).
    fn hold_ruleset(&mut self, payload: Reader<'a>) -> Result<(), Trouble> {
        let index = self.index;
        let free = self.rulesets.iter_mut().find(|place| place.is_none());
        *free.ok_or(Trouble(Sys::Plan, kernel::EINVAL, 2))? = Some(Held { index, payload });
        Ok(())
    }

    /// A handle (`O_PATH`) on the root of this process.
    pub fn root(&mut self) -> Result<i32, Trouble> {
        if self.root < 0 {
            let flags = kernel::O_PATH | kernel::O_DIRECTORY;
            self.root = kernel::openat(kernel::AT_FDCWD, b"/\0", flags, 0).map_err(at(Sys::Openat))?;
        }
        Ok(self.root)
    }

    /// The end of the pipe that tells the guardian's end.
    pub fn life(&self) -> i32 {
        self.life
    }

    /// The root is another one now.
    pub fn forget_root(&mut self) {
        kernel::close(self.root);
        self.root = -1;
    }

    pub fn register(&self, index: u32) -> Result<i32, Trouble> {
        match self.registers.get(index as usize) {
            Some(descriptor) if *descriptor >= 0 => Ok(*descriptor),
            _ => Err(Trouble(Sys::Plan, kernel::EINVAL, index)),
        }
    }

    pub fn fill(&mut self, index: u32, descriptor: i32) -> Result<(), Trouble> {
        match self.registers.get_mut(index as usize) {
            Some(place) => {
                kernel::close(*place);
                *place = descriptor;
                Ok(())
            }
            None => Err(Trouble(Sys::Plan, kernel::EINVAL, index)),
        }
    }
}

/// Never returns: the plan ends in exec or in `Done`, or a report is written.
pub fn run(launch: Launch<'_>) -> ! {
    if launch.tree {
        // As SIGKILL would, it ends this process wherever that is, until somebody is there to take it.
        kernel::set_signal_mask(!(1 << (crate::protocol::END_TREE - 1)));
    }
    // Before all else, so that nothing of this process escapes its limits.
    if launch.join >= 0
        && let Err(errno) = kernel::write_all(launch.join, b"0")
    {
        fail(&launch, JOIN, Op::Write as u32, Trouble(Sys::Write, errno, 0));
    }
    if launch.network >= 0
        && let Err(errno) = kernel::setns(launch.network, kernel::CLONE_NEWNET)
    {
        fail(&launch, 0, 0, Trouble(Sys::Setns, errno, 0));
    }
    let own = [launch.report, launch.life.0, launch.go.0, launch.procfs];
    if let Err(errno) = descriptors::keep_only(Some(launch.procfs), 3, launch.received.iter().copied().chain(own)) {
        fail(&launch, 0, 0, Trouble(Sys::CloseRange, errno, 0));
    }
    // Modes are given as they are meant; the workload's mask is a step of the plan.
    kernel::umask(0);
    let mut child = Child {
        registers: [-1; MAX_REGISTERS],
        life: launch.life.0,
        go: launch.go.0,
        report: launch.report,
        procfs: launch.procfs,
        root: -1,
        loopback: launch.network >= 0,
        words: launch.words,
        slot: launch.slot,
        index: 0,
        rulesets: [None; 2],
        filter: None,
        filter_flags: 0,
        capabilities: None,
    };
    for (place, descriptor) in child.registers.iter_mut().zip(launch.received) {
        *place = *descriptor;
    }
    let mut reader = Reader::new(launch.steps);
    let mut index = 0u32;
    loop {
        child.index = index;
        let (op, failure) = match reader.step() {
            Ok(Some((op, payload))) => (op as u32, step(&mut child, op, payload).err()),
            Ok(None) => (0, Some(Trouble(Sys::Plan, kernel::EINVAL, 1))),
            Err(Malformed) => (0, Some(Trouble(Sys::Plan, kernel::EINVAL, 0))),
        };
        if let Some(trouble) = failure {
            fail(&launch, child.index, op, trouble);
        }
        index = index.wrapping_add(1);
    }
}

/// Reports the step that failed, and ends.
fn fail(launch: &Launch<'_>, index: u32, op: u32, Trouble(sys, errno, detail): Trouble) -> ! {
    let report = Report { index, op, sys, errno, detail };
    let _ = kernel::write(launch.report, &report.encode());
    kernel::exit(127)
}

fn step<'a>(child: &mut Child<'a>, op: Op, mut p: Reader<'a>) -> Result<(), Trouble> {
    match op {
        Op::Session => kernel::setsid().map_err(at(Sys::Setsid)),
        Op::Keyring => match kernel::new_keyring() {
            // Keyrings are counted per user. The guardian's, which nobody has a permission for, does as well.
            Err(kernel::EDQUOT) => Ok(()),
            other => other.map_err(at(Sys::Keyctl)),
        },
        Op::DieWithParent | Op::StillAlive => die_with_parent(child),
        Op::Write => {
            let descriptor = child.register(p.u32()?)?;
            kernel::write_all(descriptor, p.blob()?).map_err(at(Sys::Write))
        }
        Op::Unshare => kernel::unshare(p.u64()?).map_err(at(Sys::Unshare)),
        Op::MapSelf => map_self(child, p),
        Op::MapHelper => {
            // The helper writes one byte when the maps stand, and none when they cannot be written.
            let mut byte = [0u8; 1];
            match kernel::read(child.go, &mut byte) {
                Ok(1) => Ok(()),
                // The helper has reported already.
                Ok(_) => kernel::exit(127),
                Err(errno) => Err(Trouble(Sys::Read, errno, 0)),
            }
        }
        Op::Ids => ids(p),
        Op::Private => mount::private(),
        Op::FsMount => mount::file_system(child, p),
        Op::OpenTree => mount::open_tree(child, p),
        Op::SetAttr => mount::attributes(child, p),
        Op::Attach => mount::attach(child, p),
        Op::Pivot => mount::pivot(child, p),
        Op::Mask => mount::mask(child, p),
        Op::ReadOnly => mount::read_only(child, p),
        Op::LegacyMount => mount::legacy(p),
        Op::VerifyReadOnly => mount::verify_read_only(child, p),
        Op::Node => {
            let dir = child.register(p.u32()?)?;
            let (path, mode, device) = (p.cstr()?, p.u32()?, p.u64()?);
            kernel::mknodat(dir, path, mode, device).map_err(at(Sys::Mknodat))
        }
        Op::Symlink => {
            let dir = child.register(p.u32()?)?;
            let (target, path) = (p.cstr()?, p.cstr()?);
            kernel::symlinkat(target, dir, path).map_err(at(Sys::Symlinkat))
        }
        Op::Directory => {
            let dir = child.register(p.u32()?)?;
            let (path, mode) = (p.cstr()?, p.u32()?);
            kernel::mkdirat(dir, path, mode).map_err(at(Sys::Mkdirat))
        }
        Op::File => {
            let dir = child.register(p.u32()?)?;
            let (path, mode, content) = (p.cstr()?, p.u32()?, p.blob()?);
            let flags = kernel::O_WRONLY | kernel::O_CREAT | kernel::O_EXCL | kernel::O_NOFOLLOW;
            let file = kernel::openat(dir, path, flags, mode).map_err(at(Sys::Openat))?;
            let done = kernel::write_all(file, content).map_err(at(Sys::Write));
            kernel::close(file);
            done
        }
        Op::Hostname => kernel::sethostname(p.blob()?).map_err(at(Sys::Sethostname)),
        Op::Domainname => kernel::setdomainname(p.blob()?).map_err(at(Sys::Setdomainname)),
        Op::Loopback if child.loopback => Ok(()),
        Op::Loopback => kernel::loopback_up().map_err(|(sys, errno)| Trouble(sys, errno, 0)),
        Op::Rlimit => kernel::setrlimit(p.u32()?, p.u64()?, p.u64()?).map_err(at(Sys::Prlimit)),
        Op::Files => {
            let (soft, hard) = (p.u64()?, p.u64()?);
            let (_, most) = kernel::getrlimit(RLIMIT_NOFILE).map_err(at(Sys::Prlimit))?;
            let hard = hard.min(most);
            kernel::setrlimit(RLIMIT_NOFILE, soft.min(hard), hard).map_err(at(Sys::Prlimit))
        }
        Op::Umask => {
            kernel::umask(p.u32()?);
            Ok(())
        }
        Op::WorkDir => working_directory(child, p),
        Op::Enter => enter(child, p),
        Op::Join => join(child, p),
        Op::Beside => beside(child),
        Op::JoinedNull => mount::joined_null(child, p),
        Op::ChangeDir => change_directory(child, p),
        Op::Bounding => bounding(p.u64()?),
        Op::KeepCaps => {
            const PR_SET_KEEPCAPS: usize = 8;
            kernel::prctl(PR_SET_KEEPCAPS, 1, 0).map(drop).map_err(at(Sys::Prctl))
        }
        Op::Raise => {
            let (_, permitted, inheritable) = kernel::capget().map_err(at(Sys::Capget))?;
            kernel::capset(permitted, permitted, inheritable).map_err(at(Sys::Capset))
        }
        Op::Capabilities if p.u32()? != 0 => {
            child.capabilities = Some(Held { index: child.index, payload: p });
            Ok(())
        }
        Op::Capabilities => capabilities(p),
        Op::NoNewPrivileges => kernel::no_new_privileges().map_err(at(Sys::Prctl)),
        Op::Seccomp if p.u32()? != 0 => {
            child.filter = Some(Held { index: child.index, payload: p });
            Ok(())
        }
        Op::Seccomp => kernel::seccomp(p.blob()?, child.filter_flags).map_err(at(Sys::Seccomp)),
        Op::FilterFlags => {
            child.filter_flags = p.u32()?;
            Ok(())
        }
        Op::Dumpable => dumpable(p.u32()? != 0),
        Op::GiveAway => {
            let (register, uid, gid) = (p.u32()?, p.u32()?, p.u32()?);
            let _ = kernel::fchown(child.register(register)?, uid, gid);
            Ok(())
        }
        Op::OpenNull => mount::open_null(child, p),
        Op::Stdio => stdio(child, p),
        Op::OpenTerminal => terminal::open(child, p),
        Op::PassTerminal => terminal::pass(child, p),
        Op::ControllingTerminal => terminal::control(),
        Op::Init => init::stay_behind(child),
        Op::Tree => warden::stay_behind(child),
        Op::Ruleset => landlock::ruleset(child, p),
        Op::PathRule => landlock::allow(child, p),
        Op::Handle => landlock::handle(child, p),
        Op::Restrict => child.hold_ruleset(p),
        Op::Chroot => change_root(child, p),
        Op::Exec => execute(child, p),
        Op::Reown => {
            let tree = child.register(p.u32()?)?;
            let list = child.register(p.u32()?)?;
            let size = kernel::status(list).map_err(at(Sys::Statx))?.size as usize;
            if size == 0 {
                return Ok(());
            }
            let list = kernel::map_file(list, size).map_err(at(Sys::Mmap))?;
            Ok(tree::reown(tree, list)?)
        }
        Op::RemoveTree => {
            let dir = child.register(p.u32()?)?;
            Ok(tree::remove(dir, p.cstr()?)?)
        }
        Op::Serve => {
            let socket = child.register(p.u32()?)?;
            // Its end is what the host program waits for: all that could fail is done.
            child.ready();
            kernel::close(child.report);
            serve::serve(socket)
        }
        Op::Measure => {
            let dir = child.register(p.u32()?)?;
            Ok(tree::measure(dir, child.register(p.u32()?)?)?)
        }
        Op::Sysctl => settings::sysctl(child, p),
        Op::OomScore => settings::put(child.procfs, b"self/oom_score_adj\0", p.blob()?),
        Op::Personality => kernel::personality(p.u32()?).map_err(at(Sys::Personality)),
        Op::Scheduler => settings::scheduler(p),
        Op::IoPriority => kernel::ioprio_set(p.u32()?).map_err(at(Sys::IoprioSet)),
        Op::Affinity => kernel::sched_setaffinity(p.blob()?).map_err(at(Sys::SchedSetaffinity)),
        Op::Label => settings::put(child.procfs, p.cstr()?, p.blob()?),
        Op::Setns => {
            let namespace = child.register(p.u32()?)?;
            kernel::setns(namespace, p.u64()?).map_err(at(Sys::Setns))
        }
        Op::TimeOffsets => settings::time_offsets(child, p),
        Op::FileIds => {
            kernel::set_file_ids(p.u32()?, p.u32()?).map_err(at(Sys::Setfsuid))?;
            // Those over files went with the change.
            let (_, permitted, inheritable) = kernel::capget().map_err(at(Sys::Capget))?;
            kernel::capset(permitted, permitted, inheritable).map_err(at(Sys::Capset))
        }
        Op::Fork => go_on(child),
        Op::Idmap => mount::idmap(child, p),
        Op::Cover => mount::cover_source(child, p),
        Op::Pause => pause(child, p),
        Op::Owner => {
            let dir = child.register(p.u32()?)?;
            let (path, uid, gid, mode) = (p.cstr()?, p.u32()?, p.u32()?, p.u32()?);
            let node = kernel::openat(dir, path, kernel::O_PATH | kernel::O_NOFOLLOW, 0).map_err(at(Sys::Openat))?;
            let owned = kernel::fchown(node, uid, gid).map_err(at(Sys::Fchown));
            kernel::close(node);
            // A new owner takes bits of the mode away.
            owned.and_then(|()| kernel::fchmodat(dir, path, mode).map_err(at(Sys::Fchmodat)))
        }
        Op::Done => {
            child.ready();
            kernel::exit(0)
        }
    }
}

fn die_with_parent(child: &Child) -> Result<(), Trouble> {
    const PR_SET_PDEATHSIG: usize = 1;
    kernel::prctl(PR_SET_PDEATHSIG, kernel::SIGKILL as usize, 0).map_err(at(Sys::Prctl))?;
    // The guardian may have died before the line above: then nobody will send that signal any more.
    if kernel::hung_up(child.life) {
        kernel::exit(127);
    }
    Ok(())
}

/// Enters the namespaces of a container, as far as one can: processes in it do not see this one, whose own pid namespace
/// stays the guardian's. Here everything is prepared that needs a right.
fn join(child: &mut Child<'_>, mut p: Reader<'_>) -> Result<(), Trouble> {
    let (register, kinds) = (p.u32()?, p.u64()?);
    dumpable(false)?;
    kernel::setns(child.register(register)?, kinds).map_err(at(Sys::Setns))?;
    child.forget_root();
    child.fill(register, -1)
}

/// Goes on in a second process, a child of the guardian's as this one is, which ends here. That one lives in the pid
/// namespace, so the container's processes see it, and those with `CAP_SYS_PTRACE` may well do as they like with it.
/// Nothing is left in it to gain but that the filter is not there yet: it is what the command will be, with its streams and
/// two pipes, and the program that it runs cannot be written. For all others it cannot be traced.
fn beside(child: &mut Child<'_>) -> Result<(), Trouble> {
    dumpable(false)?;
    let keep = [child.report, child.life, child.procfs].into_iter();
    descriptors::keep_only(Some(child.procfs), 3, keep).map_err(at(Sys::CloseRange))?;
    kernel::close(child.procfs);
    child.procfs = -1;
    // Closed, like all the rest.
    child.root = -1;
    succeed(child)
}

/// Returns in a second process, which the guardian knows before it runs; this one ends.
fn succeed(child: &Child<'_>) -> Result<(), Trouble> {
    // The guardian's words are not for the second process; and the page has to be here when the kernel writes to it, for
    // it does not tell whether it could.
    let word = child.words.get(child.slot).ok_or(Trouble(Sys::Plan, kernel::EINVAL, 0))?;
    word.store(0, Ordering::Relaxed);
    kernel::inherit(child.words, false).map_err(at(Sys::Mmap))?;
    match kernel::fork_beside(word).map_err(at(Sys::Clone))? {
        0 => Ok(()),
        _ => kernel::exit(0),
    }
}

/// Goes on in a second process, a child of the guardian's as this one is, which ends here: in namespaces that only
/// children enter. All that this one holds goes along, for the container is still to be made: where its pid namespace is
/// somebody else's already, whoever is in there sees it, and cannot trace it unless he may trace the host's root.
fn go_on(child: &mut Child<'_>) -> Result<(), Trouble> {
    dumpable(false)?;
    succeed(child)
}

/// Says so and waits. Meanwhile the host program joins the namespaces of this process for the hooks. One that is not root
/// can do so only with a process that may be dumped; that is asked for where nobody else is in them.
fn pause(child: &mut Child<'_>, mut p: Reader<'_>) -> Result<(), Trouble> {
    let (socket, open) = (child.register(p.u32()?)?, p.u32()? != 0);
    if open {
        dumpable(true)?;
    }
    kernel::send(socket, b"!").map_err(at(Sys::Sendmsg))?;
    let mut byte = [0u8; 1];
    match kernel::read(socket, &mut byte) {
        Ok(1) => dumpable(false),
        // A hook has failed, or the host program is gone.
        Ok(_) => kernel::exit(127),
        Err(errno) => Err(Trouble(Sys::Read, errno, 0)),
    }
}

pub fn dumpable(on: bool) -> Result<(), Trouble> {
    const PR_SET_DUMPABLE: usize = 4;
    kernel::prctl(PR_SET_DUMPABLE, on as usize, 0).map(drop).map_err(at(Sys::Prctl))
}

fn map_self(child: &Child, mut p: Reader<'_>) -> Result<(), Trouble> {
    let (uids, gids, deny) = (p.blob()?, p.blob()?, p.u32()? != 0);
    let put = |path: &[u8], value: &[u8]| {
        let file = kernel::openat(child.procfs, path, kernel::O_WRONLY, 0).map_err(at(Sys::Openat))?;
        let done = kernel::write_all(file, value).map_err(at(Sys::Write));
        kernel::close(file);
        done
    };
    put(b"self/uid_map\0", uids)?;
    if deny {
        put(b"self/setgroups\0", b"deny")?;
    }
    put(b"self/gid_map\0", gids)
}

fn ids(mut p: Reader<'_>) -> Result<(), Trouble> {
    let (uid, gid, set_groups, count) = (p.u32()?, p.u32()?, p.u32()? != 0, p.u32()?);
    let mut groups = [0u32; 256];
    for index in 0..count {
        *groups.get_mut(index as usize).ok_or(Malformed)? = p.u32()?;
    }
    if set_groups {
        kernel::setgroups(groups.get(..count as usize).unwrap_or(&[])).map_err(at(Sys::Setgroups))?;
    }
    kernel::setresgid(gid).map_err(at(Sys::Setresgid))?;
    kernel::setresuid(uid).map_err(at(Sys::Setresuid))
}

fn bounding(keep: u64) -> Result<(), Trouble> {
    const PR_CAPBSET_READ: usize = 23;
    const PR_CAPBSET_DROP: usize = 24;
    for capability in (0..64).filter(|capability| keep & (1 << capability) == 0) {
        let dropped = kernel::prctl(PR_CAPBSET_DROP, capability, 0);
        // Verify after enforcing.
        match kernel::prctl(PR_CAPBSET_READ, capability, 0) {
            // It may have been gone already, where this process may not even drop it.
            Ok(0) => {}
            Ok(_) => return Err(Trouble(Sys::Prctl, dropped.err().unwrap_or(0), capability as u32)),
            // Past the last one that this kernel knows.
            Err(_) => break,
        }
    }
    Ok(())
}

fn capabilities(mut p: Reader<'_>) -> Result<(), Trouble> {
    const PR_CAP_AMBIENT: usize = 47;
    const IS_SET: usize = 1;
    const RAISE: usize = 2;
    const CLEAR_ALL: usize = 4;
    let (effective, permitted, inheritable, ambient) = (p.u64()?, p.u64()?, p.u64()?, p.u64()?);
    kernel::capset(effective, permitted, inheritable).map_err(at(Sys::Capset))?;
    let _ = kernel::prctl(PR_CAP_AMBIENT, CLEAR_ALL, 0);
    for capability in 0..64 {
        if ambient & (1 << capability) != 0 {
            kernel::prctl(PR_CAP_AMBIENT, RAISE, capability).map_err(at(Sys::Prctl))?;
        }
    }
    // Verify after enforcing: what the kernel has is what was asked for, to the bit.
    let now = kernel::capget().map_err(at(Sys::Capget))?;
    if now != (effective, permitted, inheritable) {
        return Err(Trouble(Sys::Capget, 0, 1));
    }
    // Only what is permitted and inheritable can be ambient.
    for capability in (0..64).filter(|capability| permitted & inheritable & (1 << capability) != 0) {
        let set = kernel::prctl(PR_CAP_AMBIENT, IS_SET, capability).map_err(at(Sys::Prctl))? != 0;
        if set != (ambient & (1 << capability) != 0) {
            return Err(Trouble(Sys::Prctl, 0, capability as u32));
        }
    }
    Ok(())
}

/// Descriptors 0, 1 and 2 from three registers that may be any numbers, these three included.
fn stdio(child: &Child, mut p: Reader<'_>) -> Result<(), Trouble> {
    let mut lifted = [-1i32; 3];
    for place in &mut lifted {
        *place = kernel::dup_above(child.register(p.u32()?)?).map_err(at(Sys::Dup3))?;
    }
    for (number, descriptor) in lifted.iter().enumerate() {
        kernel::dup3(*descriptor, number as i32, 0).map_err(at(Sys::Dup3))?;
        kernel::close(*descriptor);
    }
    Ok(())
}

/// Enters a directory by the path that it has in this mount namespace, and proves that it is the one the host opened:
/// descriptors from the host's namespace cannot be mounted from.
fn change_directory(child: &Child, mut p: Reader<'_>) -> Result<(), Trouble> {
    let (path, expected) = (p.cstr()?, p.u32()?);
    let expected = kernel::status(child.register(expected)?).map_err(at(Sys::Statx))?;
    kernel::chdir(path).map_err(at(Sys::Chdir))?;
    let here = kernel::statx(kernel::AT_FDCWD, b".\0", 0).map_err(at(Sys::Statx))?;
    same(&expected, &here)
}

/// The same file, or somebody exchanged it meanwhile.
pub fn same(expected: &Status, found: &Status) -> Result<(), Trouble> {
    if (expected.device, expected.inode) == (found.device, found.inode) {
        Ok(())
    } else {
        Err(Trouble(Sys::Statx, 0, 2))
    }
}

fn working_directory(child: &mut Child, mut p: Reader<'_>) -> Result<(), Trouble> {
    let (path, uid, gid) = (p.cstr()?, p.u32()?, p.u32()?);
    let dir = mount::ensure(child.root()?, path, mount::Target::Directory, Some((uid, gid)), mount::Links::Followed)?;
    go_to(dir)
}

/// chroot(2) to an open directory. The descriptors of the host that are left are closed before the command is executed.
fn change_root(child: &mut Child, mut p: Reader<'_>) -> Result<(), Trouble> {
    kernel::fchdir(child.register(p.u32()?)?).map_err(at(Sys::Chdir))?;
    kernel::chroot(b".\0").map_err(at(Sys::Chroot))?;
    child.forget_root();
    // Verify after enforcing: the root of this process is where it is.
    kernel::chdir(b"/\0").map_err(at(Sys::Chdir))?;
    let mut name = [0u8; 4096];
    match kernel::getcwd(&mut name) {
        Ok(_) if name.starts_with(b"/\0") => Ok(()),
        Ok(_) => Err(Trouble(Sys::Getcwd, 0, 3)),
        Err(errno) => Err(Trouble(Sys::Getcwd, errno, 3)),
    }
}

/// A working directory that has to be there.
fn enter(child: &mut Child, mut p: Reader<'_>) -> Result<(), Trouble> {
    go_to(mount::ensure(child.root()?, p.cstr()?, mount::Target::Existing, None, mount::Links::Followed)?)
}

fn go_to(dir: i32) -> Result<(), Trouble> {
    let entered = kernel::fchdir(dir).map_err(at(Sys::Chdir));
    kernel::close(dir);
    entered?;
    // Verify after enforcing: a directory that is not below the root has no name there.
    let mut name = [0u8; 4096];
    match kernel::getcwd(&mut name) {
        Ok(length) if length > 0 && name.first() == Some(&b'/') => Ok(()),
        Ok(_) => Err(Trouble(Sys::Getcwd, 0, 3)),
        Err(errno) => Err(Trouble(Sys::Getcwd, errno, 3)),
    }
}

/// How often a command is tried that somebody has open for writing: some tenths of a second.
const BUSY_TRIES: u32 = 50_000;

/// Everything is prepared first, then comes what is held; after the filter, nothing is called but capset(2), capget(2)
/// and prctl(2) where capabilities are held, execve(2), and write(2) and exit_group(2) should that fail.
fn execute(child: &mut Child<'_>, mut p: Reader<'_>) -> Result<(), Trouble> {
    let mut candidates = p;
    let count = p.u32()?;
    for _ in 0..count {
        p.cstr()?;
    }
    let mut rest = p;
    let arguments = p.u32()?;
    for _ in 0..arguments {
        p.cstr()?;
    }
    let variables = p.u32()?;
    for _ in 0..variables {
        p.cstr()?;
    }
    let total = (arguments as usize).saturating_add(variables as usize).saturating_add(2);
    let vectors = kernel::fresh_words(total).map_err(at(Sys::Mmap))?;
    let mut place = vectors.iter_mut();
    for _ in 0..2 {
        for _ in 0..rest.u32()? {
            if let Some(word) = place.next() {
                *word = rest.cstr()?.as_ptr() as usize;
            }
        }
        // The closing null pointer is there already: fresh memory is zero.
        place.next();
    }
    // Nothing but 0, 1 and 2 survives the exec; from here on no descriptor is needed but the report pipe.
    descriptors::close_on_exec(child.procfs).map_err(at(Sys::CloseRange))?;
    // The host's mask was blocked across the exec of this program, and all actions were reset then.
    kernel::set_signal_mask(0);
    let count = candidates.u32()?;
    // The first one that is there.
    let mut search = candidates;
    let mut there = None;
    for index in 0..count {
        if kernel::statx(kernel::AT_FDCWD, search.cstr()?, 0).is_ok() {
            there = Some(index);
            break;
        }
    }
    // While it may still write; what fails from here on is reported behind it.
    child.ready();
    child.held()?;
    let mut verdict = Trouble(Sys::Execve, kernel::ENOENT, 0);
    for index in 0..count {
        let file = candidates.cstr()?;
        let mut tries = 0;
        let errno = loop {
            match kernel::execve(file, vectors, arguments as usize + 1) {
                // Written a moment ago, by a host program of which another thread has started something meanwhile: that has
                // the file open until it is executed itself. Nothing can be waited for under any filter.
                kernel::ETXTBSY if tries < BUSY_TRIES => tries += 1,
                errno => break errno,
            }
        };
        match errno {
            errno @ (kernel::ENOENT | kernel::ENOTDIR) => {
                // There, and yet not found: its interpreter is missing. That is worth telling.
                if errno == kernel::ENOENT && there == Some(index) {
                    verdict = Trouble(Sys::Execve, kernel::ENOENT, index | 0x8000_0000);
                    break;
                }
            }
            // As execvp(3): remembered, while later candidates may still do.
            kernel::EACCES => verdict = Trouble(Sys::Execve, kernel::EACCES, index),
            errno => {
                verdict = Trouble(Sys::Execve, errno, index);
                break;
            }
        }
    }
    Err(verdict)
}

/// The process beside the child that has newuidmap and newgidmap write its maps; ends when that is done.
pub fn map_ids(launch: Launch<'_>, pid: i32) -> ! {
    let own = [launch.report, launch.go.1, launch.procfs];
    let keep = launch.received.iter().copied().chain(own);
    let closed = descriptors::keep_only(Some(launch.procfs), 3, keep).map_err(at(Sys::CloseRange));
    let mut reader = Reader::new(launch.steps);
    let mut index = 0u32;
    let mut failure = Trouble(Sys::Plan, kernel::EINVAL, 0);
    while let Ok(Some((op, mut payload))) = reader.step() {
        if op == Op::MapHelper {
            let mapped = closed.and_then(|()| run_tool(&mut payload, pid));
            match mapped.and_then(|()| run_tool(&mut payload, pid)) {
                Ok(()) => {
                    let _ = kernel::write(launch.go.1, b"!");
                    kernel::exit(0);
                }
                Err(trouble) => failure = trouble,
            }
            break;
        }
        index = index.wrapping_add(1);
    }
    let Trouble(sys, errno, detail) = failure;
    let report = Report { index, op: Op::MapHelper as u32, sys, errno, detail };
    let _ = kernel::write(launch.report, &report.encode());
    kernel::exit(1)
}

/// Runs `tool PID arguments…` (path: str, argc: u32, argv: str…) with an empty environment and waits for it.
fn run_tool(p: &mut Reader<'_>, pid: i32) -> Result<(), Trouble> {
    let tool = p.cstr()?;
    let count = p.u32()? as usize;
    // name, pid, arguments, null, (empty environment:) null
    let vectors = kernel::fresh_words(count.saturating_add(4)).map_err(at(Sys::Mmap))?;
    let mut digits = [0u8; 12];
    let mut at_digit = digits.len() - 1;
    let mut value = pid as u32;
    while let Some(place) = at_digit.checked_sub(1).and_then(|next| digits.get_mut(next)) {
        at_digit -= 1;
        *place = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    let name = digits.get(at_digit..).unwrap_or(b"0\0");
    let mut place = vectors.iter_mut();
    for word in [tool, name] {
        if let Some(slot) = place.next() {
            *slot = word.as_ptr() as usize;
        }
    }
    for _ in 0..count {
        let word = p.cstr()?;
        if let Some(slot) = place.next() {
            *slot = word.as_ptr() as usize;
        }
    }
    let tool_pid = match kernel::fork(0, None).map_err(at(Sys::Clone))? {
        0 => {
            kernel::set_signal_mask(0);
            // 0, 1 and 2 are the guardian's socket; the tool must not talk into it.
            let null = kernel::openat(kernel::AT_FDCWD, b"/dev/null\0", kernel::O_RDWR, 0);
            let Ok(null) = null else { kernel::exit(126) };
            if (0..3).any(|number| kernel::dup3(null, number, 0).is_err()) {
                kernel::exit(126);
            }
            let errno = kernel::execve(tool, vectors, count + 3);
            kernel::exit(if errno == kernel::ENOENT { 127 } else { 126 })
        }
        child => child,
    };
    loop {
        let _ = kernel::wait_signal(1 << (kernel::SIGCHLD - 1));
        while let Some(ended) = kernel::reap() {
            if ended.pid == tool_pid {
                return match (ended.code, ended.status) {
                    (1, 0) => Ok(()),
                    (_, status) => Err(Trouble(Sys::Tool, 0, status)),
                };
            }
        }
    }
}

/// "No register" is a value of its own.
pub fn given(register: u32) -> Option<u32> {
    (register != NONE).then_some(register)
}
