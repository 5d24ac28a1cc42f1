//! Isolation: turns a process spec into a launch plan, and says how much of what was asked it enforces.
//!
//! A backend contains no code that runs in the child: it lists typed steps, the carried stub walks them. What a backend
//! will enforce is a value, [`Enforcement`], known before anything is launched; what a caller asks for is a value too,
//! [`Requirement`], and a launch below it is an error. Nothing is ever silently weaker.
//!
//! # The ladder
//! | rung | needs | runs | cannot |
//! |---|---|---|---|
//! | [`Namespaces`] | root, or user namespaces | images, and host commands whose writes are thrown away | |
//! | [`Landlock`] | Linux 5.13 with landlock | host commands, with writes confined to given directories | run an image, throw writes away, hide processes |
//! | [`Chroot`] | root, CAP_SYS_CHROOT | images, from a copy of their tree | mount anything, hide processes |
//!
//! An engine takes the strongest that is within reach, and satisfies the container's [`Requirement`];
//! [`EngineOptions::isolation`](crate::EngineOptions::isolation) can name one, and
//! [`isolation_backend`](crate::EngineOptions::isolation_backend) takes one of the caller's own. By default a container
//! requires more than the lower rungs enforce, so nobody gets there without having said so.

mod bare;
mod chroot;
pub(crate) mod devices;
mod fence;
mod hooks;
mod landlock;
pub(crate) mod mount_options;
mod namespaces;
mod range;
mod request;
pub(crate) mod resources;
mod sysctl;
mod userns;
pub(crate) mod validate;

use std::borrow::Cow;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Process, Spec};

use crate::cgroup::{Group, Unenforced};
pub use crate::launch::Plan;
use crate::probe::{Host, IdRange};
use crate::security::{self, Seccomp};
use crate::snapshot::Snapshot;
use crate::sys::terminal::WindowSize;
use crate::{Error, ErrorKind, Result};

pub use chroot::Chroot;
pub(crate) use hooks::{Place as HookPlace, Stops, plan as hook_plan};
pub use landlock::Landlock;
pub use namespaces::Namespaces;
pub(crate) use namespaces::layer;
pub(crate) use namespaces::process::persona;
pub(crate) use range::Range;
pub(crate) use userns::maps_of;

/// Something that isolation separates the workload from, or takes from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Aspect {
    /// The workload reads only its own tree.
    FilesystemRead,
    /// The workload's writes reach only its own tree and what was mounted writable.
    FilesystemWrite,
    /// It sees and signals only its own processes, and all of them die with the first.
    Processes,
    /// It reaches no network that it was not given.
    Network,
    /// A filter allows only the system calls that programs need.
    Syscalls,
    /// It holds only the listed capabilities, and gains none by exec.
    Privileges,
    /// Memory, processor time and number of processes can be limited and accounted.
    Limits,
}

impl Aspect {
    /// All of them, in the order in which they are reported.
    pub const ALL: [Aspect; 7] = [
        Aspect::FilesystemRead,
        Aspect::FilesystemWrite,
        Aspect::Processes,
        Aspect::Network,
        Aspect::Syscalls,
        Aspect::Privileges,
        Aspect::Limits,
    ];
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Aspect::FilesystemRead => "filesystem read",
            Aspect::FilesystemWrite => "filesystem write",
            Aspect::Processes => "processes",
            Aspect::Network => "network",
            Aspect::Syscalls => "system calls",
            Aspect::Privileges => "privileges",
            Aspect::Limits => "limits",
        })
    }
}

/// How far an aspect is enforced. Ordered: `None < Partial < Full`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Not at all.
    None,
    /// In part; the reason says which.
    Partial,
    /// As documented for the aspect.
    Full,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::None => "none",
            Level::Partial => "partial",
            Level::Full => "full",
        })
    }
}

/// What a backend enforces for one container, aspect by aspect, with the reason for everything less than full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enforcement {
    backend: &'static str,
    levels: [(Level, Cow<'static, str>); 7],
}

impl Enforcement {
    /// Everything enforced; backends then take away what they cannot.
    pub fn full(backend: &'static str) -> Self {
        Enforcement { backend, levels: std::array::from_fn(|_| (Level::Full, Cow::Borrowed(""))) }
    }

    /// Lowers an aspect. Where it is at that level already the reason is added; a lower level stays as it is.
    pub fn lower(&mut self, aspect: Aspect, level: Level, reason: impl Into<Cow<'static, str>>) {
        let place = &mut self.levels[aspect as usize];
        if level < place.0 {
            *place = (level, reason.into());
        } else if level == place.0 && level < Level::Full {
            self.note(aspect, reason);
        }
    }

    /// Adds something that a caller has to know, without lowering the level.
    pub fn note(&mut self, aspect: Aspect, note: impl Into<Cow<'static, str>>) {
        let place = &mut self.levels[aspect as usize].1;
        let note = note.into();
        *place = if place.is_empty() { note } else { format!("{place}; {note}").into() };
    }

    /// The same, told by a backend that stands on another and has changed what is enforced.
    #[must_use]
    pub fn by(self, backend: &'static str) -> Self {
        Enforcement { backend, ..self }
    }

    /// The backend's short name, e.g. `namespaces`.
    pub fn backend(&self) -> &str {
        self.backend
    }

    /// How far one aspect is enforced.
    pub fn level(&self, aspect: Aspect) -> Level {
        self.levels[aspect as usize].0
    }

    /// Why an aspect is not fully enforced, or what else is to be known of it; mostly empty.
    pub fn reason(&self, aspect: Aspect) -> &str {
        &self.levels[aspect as usize].1
    }
}

impl fmt::Display for Enforcement {
    /// One line per aspect.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for aspect in Aspect::ALL {
            let (level, reason) = &self.levels[aspect as usize];
            write!(f, "{:<17} {level}", aspect.to_string())?;
            if !reason.is_empty() {
                write!(f, " ({reason})")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// The least that a caller accepts. The default asks for everything in full but three: of filesystem write partial is
/// enough, for over a tree of the host a socket or a named pipe of its services may be in reach; of system calls, for the
/// default filter lets 32-bit programs make any socket ([`Seccomp::Strict2026_11`] does not); and nothing is asked of
/// limits.
///
/// What the caller gives away by an option of its own (`network = host`, no system call filter) lowers what the *default*
/// asks for: that needs no second permission. A level that was asked for by [`at_least`](Requirement::at_least) stays.
///
/// ```
/// use coracle::isolation::{Aspect, Level, Requirement};
///
/// let strict = Requirement::default().at_least(Aspect::Limits, Level::Full);
/// assert_eq!(strict.level(Aspect::Limits), Level::Full);
/// assert_eq!(Requirement::default().level(Aspect::Network), Level::Full);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    levels: [Level; 7],
    /// Asked for by the caller in so many words.
    explicit: [bool; 7],
}

impl Default for Requirement {
    fn default() -> Self {
        let mut levels = [Level::Full; 7];
        levels[Aspect::Limits as usize] = Level::None;
        levels[Aspect::FilesystemWrite as usize] = Level::Partial;
        levels[Aspect::Syscalls as usize] = Level::Partial;
        Requirement { levels, explicit: [false; 7] }
    }
}

impl Requirement {
    /// Nothing required: whatever the host can do is taken. Read [`Enforcement`] afterwards.
    pub fn nothing() -> Self {
        Requirement { levels: [Level::None; 7], explicit: [false; 7] }
    }

    /// Requires at least this level of one aspect, whatever was required before, and whatever other options give away.
    #[must_use]
    pub fn at_least(mut self, aspect: Aspect, level: Level) -> Self {
        self.levels[aspect as usize] = level;
        self.explicit[aspect as usize] = true;
        self
    }

    /// What is required of one aspect.
    pub fn level(&self, aspect: Aspect) -> Level {
        self.levels[aspect as usize]
    }

    /// [`ErrorKind::Weaker`] unless `enforcement` is at least this. `waived` are the aspects that options of the caller's
    /// gave away.
    pub(crate) fn check(&self, enforcement: &Enforcement, waived: &[Aspect]) -> Result<()> {
        for aspect in Aspect::ALL {
            let waived = waived.contains(&aspect) && !self.explicit[aspect as usize];
            if enforcement.level(aspect) < self.level(aspect) && !waived {
                let reason = enforcement.reason(aspect);
                return Err(Error::new(ErrorKind::Weaker, "isolate the container as much as required")
                    .because(format!(
                        "{aspect} would be enforced {}, {} is required{}{reason}",
                        enforcement.level(aspect),
                        self.level(aspect),
                        if reason.is_empty() { "" } else { ": " },
                    ))
                    .remedy("mend what the reason names (`coracle doctor` says more), or require less"));
            }
        }
        Ok(())
    }
}

/// Whose ids a container runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Root without a user namespace: ids inside are ids outside.
    Host,
    /// A user namespace with the caller as 0 and a subordinate range above, written by newuidmap and newgidmap.
    Range { uid: u32, gid: u32, uids: Vec<IdRange>, gids: Vec<IdRange>, uid_tool: PathBuf, gid_tool: PathBuf },
    /// A user namespace with one user and one group, presented as whichever ids are asked for. `groups` are those of
    /// the caller that stay in force beside it: setgroups(2) is denied in such a namespace.
    Single { uid: u32, gid: u32, groups: Vec<u32> },
    /// No user namespace, and no right to be anybody else.
    Caller { uid: u32, gid: u32 },
}

impl Identity {
    /// Is the container in a user namespace of its own?
    pub(crate) fn is_rootless(&self) -> bool {
        matches!(self, Identity::Range { .. } | Identity::Single { .. })
    }

    /// In a word or two.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Identity::Host => "rootful",
            Identity::Range { .. } => "rootless with a range",
            Identity::Single { .. } => "rootless with one id",
            Identity::Caller { .. } => "as the caller",
        }
    }

    /// Is there one user in the container, whichever it is called?
    pub(crate) fn shows_one(&self) -> bool {
        matches!(self, Identity::Single { .. })
    }

    /// Can a process inside have these ids? `None` says yes, else why not and what would change that.
    pub(crate) fn refuses(&self, uid: u32, gid: u32, groups: &[u32]) -> Option<(String, &'static str)> {
        const RANGE: &str =
            "give this user a range in /etc/subuid and /etc/subgid (usermod --add-subuids), and install uidmap";
        const LARGER: &str = "give this user a larger range in /etc/subuid and /etc/subgid (usermod --add-subuids)";
        match self {
            Identity::Host => None,
            Identity::Caller { uid: own, gid: own_gid } if (uid, gid) == (*own, *own_gid) => None,
            Identity::Caller { uid: own, gid: own_gid } => Some((
                format!("without a user namespace, and without root, it can only be {own}:{own_gid}"),
                "leave the user out, or run this program as that user",
            )),
            Identity::Single { .. } if groups.iter().all(|group| *group == gid) => None,
            Identity::Single { .. } => {
                Some(("one user id can show one group only, and the user has supplementary groups".into(), RANGE))
            }
            Identity::Range { uids, gids, .. } => {
                let size = |ranges: &[IdRange]| 1 + ranges.iter().map(|range| u64::from(range.count)).sum::<u64>();
                let bad_gid = std::iter::once(&gid).chain(groups).find(|id| u64::from(**id) >= size(gids));
                let outside = |kind, id, ranges| {
                    (format!("{kind} id {id} is not in the subordinate range of {} ids", size(ranges)), LARGER)
                };
                match (u64::from(uid) < size(uids), bad_gid) {
                    (false, _) => Some(outside("user", uid, uids)),
                    (_, Some(bad)) => Some(outside("group", *bad, gids)),
                    _ => None,
                }
            }
        }
    }
}

/// A file that is made for the container and shown at a path inside, e.g. `/etc/hosts`.
#[derive(Debug, Clone)]
pub(crate) struct MadeFile {
    pub(crate) name: &'static str,
    pub(crate) target: &'static str,
    pub(crate) content: Vec<u8>,
}

/// One of the three standard streams, as the container gets it.
#[derive(Debug)]
pub(crate) enum Stream {
    /// The container's own null device. Never the host's: with a descriptor come its mode and its times.
    Null,
    /// This very descriptor.
    Fd(OwnedFd),
}

/// A terminal that is to be made for a process, whose three streams it then is.
#[derive(Debug)]
pub(crate) struct Console {
    /// Where the process passes the master to.
    pub(crate) socket: OwnedFd,
    pub(crate) size: WindowSize,
}

/// Everything a backend needs to plan one launch.
pub struct Request<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) snapshot: &'a Snapshot,
    /// The engine's root: paths of the snapshot below it are made relative to it.
    pub(crate) root: &'a Path,
    pub(crate) root_fd: BorrowedFd<'a>,
    pub(crate) identity: &'a Identity,
    pub(crate) stdio: [Stream; 3],
    /// These of `stdio` were made for the container and belong to its user.
    pub(crate) stdio_made: [bool; 3],
    /// In place of `stdio`.
    pub(crate) console: Option<Console>,
    pub(crate) files: Vec<MadeFile>,
    pub(crate) seccomp: Option<&'a [u8]>,
    /// Flags of seccomp(2) that it is installed with.
    pub(crate) seccomp_flags: u32,
    /// Which filter that is.
    pub(crate) filter: &'a Seccomp,
    pub(crate) cgroup: Option<&'a Group>,
    /// Why there is no control group, where there is none.
    pub(crate) no_cgroup: &'a str,
    /// Kinds of limit that do not hold on this host, asked for or not.
    pub(crate) unlimited: &'a [Unenforced],
    pub(crate) init: bool,
    /// Where it waits for hooks, if it does.
    pub(crate) stops: Option<Stops>,
    /// Paths inside the container that are masked besides those of the spec.
    pub(crate) hidden: Vec<PathBuf>,
    /// Nothing of the writable part has to survive a crash.
    pub(crate) volatile: bool,
    /// The kernel appends overlay layers one by one (6.5).
    pub(crate) overlay_append: bool,
    /// The whole machine has cgroup v2 only.
    pub(crate) cgroup_v2: bool,
    pub(crate) host: &'a Host,
    /// What landlock is to allow on top of namespaces.
    pub(crate) layer: Option<&'a security::Landlock>,
    /// Of the command's tree only these can be read, and what is writable; everything where there are none.
    pub(crate) readable: &'a [PathBuf],
    /// What the caller mounted writable: paths of the command's tree.
    pub(crate) writable: &'a [PathBuf],
}

/// Everything a backend needs to plan a further process of a container. For a backend that stands on another to pass on.
pub struct ExecRequest<'a> {
    pub(crate) process: &'a Process,
    /// Those that the container has of its own.
    pub(crate) namespaces: &'a [LinuxNamespaceType],
    /// A pidfd of its first process.
    pub(crate) container: BorrowedFd<'a>,
    pub(crate) identity: &'a Identity,
    pub(crate) stdio: [Stream; 3],
    /// As in [`Request`].
    pub(crate) stdio_made: [bool; 3],
    /// As in [`Request`].
    pub(crate) console: Option<Console>,
    pub(crate) seccomp: Option<&'a [u8]>,
    /// As in [`Request`].
    pub(crate) seccomp_flags: u32,
    /// The execution domain, where the container has one set, see personality(2).
    pub(crate) personality: Option<u32>,
    /// Of a user namespace that the host's root has given it: users and groups. Empty where there is none such.
    pub(crate) maps: [&'a [LinuxIdMapping]; 2],
    pub(crate) layer: Option<&'a security::Landlock>,
    pub(crate) host: &'a Host,
    pub(crate) joining: Joining,
}

/// How a process comes into a control group that is there. Both cost next to nothing; to be moved by its number from
/// outside, or by itself on version 2, would cost it a grace period of the kernel's.
#[derive(Debug, Default)]
pub(crate) struct Joining {
    /// The directory of the version 2 group, to be born in.
    pub(crate) born_in: Option<OwnedFd>,
    /// The `tasks` of the version 1 groups, to write `0` to.
    pub(crate) tasks: Vec<OwnedFd>,
}

/// What a backend starts a container on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ground {
    /// Mounts in a mount namespace of the container's own: any image, any directory, any snapshot.
    Mounts,
    /// The host's own tree as it is, with [`Engine::sandbox`](crate::Engine::sandbox) alone: the root is read-only, and bind
    /// mounts whose target is their source name what can be written.
    Host,
    /// A directory that holds the whole tree, as a snapshot backend makes it that needs no mounts.
    Directory,
}

/// An isolation backend: a rung of the ladder.
///
/// # The life of a launch
/// An engine asks [`ground`](Isolation::ground) for what to prepare, prepares it, and makes a [`Request`] of it and of the
/// caller's options. [`enforcement`](Isolation::enforcement) says what will come of that, and is compared with the caller's
/// [`Requirement`]. [`plan`](Isolation::plan) lists the steps that a process walks between clone and exec; they are typed, and
/// the program that walks them is the crate's own: a backend has no code that runs there.
///
/// # Writing one
/// Whoever writes a backend starts from another one's plan: of [`Namespaces`], [`Landlock`] or [`Chroot`], or from the
/// [bare](Request::bare_plan) one, which isolates nothing by itself. `examples/custom_isolation.rs` shows both. It says in
/// its enforcement what it does not enforce, for each [`Aspect`], and runs
/// [`contract::isolation`](crate::contract::isolation), which tries the forbidden.
///
/// Backends are values without state; all methods may be called from any thread.
pub trait Isolation: fmt::Debug + Send + Sync {
    /// A short name, e.g. `namespaces`.
    fn name(&self) -> &'static str;

    /// What it starts containers on; always the same.
    fn ground(&self) -> Ground {
        Ground::Mounts
    }

    /// What it will enforce for this request. Pure: nothing is tried. [`Level::Full`] is a promise.
    fn enforcement(&self, request: &Request<'_>) -> Enforcement;

    /// The launch plan.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) for what it cannot do, with what would help. Nothing is left behind after
    /// an error.
    fn plan(&self, request: Request<'_>) -> Result<Plan>;

    /// The launch plan of a further process of a container that this backend has planned.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) where there is nothing to enter, which is what this says unless it is
    /// written anew. Nothing is left behind after an error.
    fn exec(&self, request: ExecRequest<'_>) -> Result<Plan> {
        let _ = request;
        Err(Error::new(ErrorKind::Unsupported, "start a command in the container")
            .because(format!("isolation by {} has no namespaces that it could enter", self.name()))
            .remedy("start another container"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_range_is_told_to_get_a_larger_one() {
        let ranges = || vec![IdRange { start: 100_000, count: 65_536 }];
        let tool = PathBuf::from("/usr/bin/newuidmap");
        let (uid_tool, gid_tool) = (tool.clone(), tool);
        let range = Identity::Range { uid: 1000, gid: 1000, uids: ranges(), gids: ranges(), uid_tool, gid_tool };
        assert_eq!(range.refuses(65_536, 65_536, &[0]), None);
        for (uid, gid) in [(65_537, 0), (0, 65_537)] {
            let (why, remedy) = range.refuses(uid, gid, &[]).unwrap();
            assert!(why.contains("65537 is not in the subordinate range of 65537 ids"), "{why}");
            assert!(remedy.contains("a larger range"), "{remedy}");
        }
        let single = Identity::Single { uid: 1000, gid: 1000, groups: vec![] };
        assert!(single.refuses(0, 0, &[7]).unwrap().1.contains("a range"));
    }

    #[test]
    fn what_an_option_gives_away_is_not_given_away_from_an_explicit_requirement() {
        let mut enforcement = Enforcement::full("namespaces");
        enforcement.lower(Aspect::Network, Level::None, "the host's network is used");
        let waived = [Aspect::Network];
        Requirement::default().check(&enforcement, &waived).unwrap();
        // Not by an option: the default holds.
        assert_eq!(Requirement::default().check(&enforcement, &[]).unwrap_err().kind(), ErrorKind::Weaker);
        for before in [Requirement::default(), Requirement::nothing()] {
            let explicit = before.at_least(Aspect::Network, Level::Full);
            let error = explicit.check(&enforcement, &waived).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Weaker);
            assert!(error.to_string().contains("the host's network is used"), "{error}");
            explicit.at_least(Aspect::Network, Level::None).check(&enforcement, &waived).unwrap();
        }
    }
}
