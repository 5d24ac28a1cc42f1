//! What this host can do, as a value.
//!
//! [`Host::probe`] reads a few files and makes a few harmless calls, about a millisecond in all, and changes nothing.
//! Every "no" carries its cause and a remedy:
//!
//! ```
//! use coracle::probe::{Host, State};
//!
//! for finding in Host::probe().report() {
//!     if finding.state != State::Yes {
//!         println!("{finding}");
//!     }
//! }
//! ```
//!
//! | what | read from |
//! |---|---|
//! | kernel version | `/proc/sys/kernel/osrelease` |
//! | this process | `/proc/self/status`, `/proc/self/uid_map` |
//! | user namespaces | `/proc/sys/user/max_user_namespaces`, `/proc/sys/kernel/unprivileged_userns_clone`, `/proc/sys/kernel/apparmor_restrict_unprivileged_userns` |
//! | subordinate ids | `/etc/passwd`, `/etc/subuid`, `/etc/subgid`; `newuidmap` and `newgidmap` in `/usr/bin`, `/bin`, `/usr/local/bin`, `/usr/sbin` |
//! | overlay | `/proc/filesystems`, `/lib/modules/RELEASE` |
//! | cgroups | `/proc/self/mountinfo` |
//! | seccomp | `/proc/sys/kernel/seccomp/actions_avail` |
//! | memfd | `/proc/sys/vm/memfd_noexec` |
//! | CPUs | `/sys/devices/system/cpu/possible` |
//! | landlock, openat2, clone3, the mount interface | the calls themselves, with arguments that do nothing |

mod ladder;
mod report;

pub use report::{Feature, Finding, State};

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::sys::trial::{self, Trial};

/// A kernel release, as far as features depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct KernelVersion {
    /// The first number, 6 in `6.18.44`.
    pub major: u32,
    /// The second number, 18 in `6.18.44`.
    pub minor: u32,
}

impl KernelVersion {
    /// This release.
    pub const fn new(major: u32, minor: u32) -> Self {
        KernelVersion { major, minor }
    }

    /// Reads the front of a release string such as `6.18.44-generic`.
    fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        Some(KernelVersion { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Which cgroup file systems are mounted, see cgroups(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum CgroupMode {
    /// Version 2 alone.
    Unified,
    /// Controllers on version 1, and a version 2 hierarchy beside them.
    Hybrid,
    /// Version 1 alone.
    Legacy,
    /// None.
    None,
}

impl CgroupMode {
    /// The mode that a `mountinfo` file (proc_pid_mountinfo(5)) shows.
    pub(crate) fn of_mountinfo(mountinfo: &str) -> CgroupMode {
        let kinds = || mountinfo.lines().filter_map(|line| line.split_once(" - ")?.1.split(' ').next());
        match (kinds().any(|kind| kind == "cgroup2"), kinds().any(|kind| kind == "cgroup")) {
            (true, true) => CgroupMode::Hybrid,
            (true, false) => CgroupMode::Unified,
            (false, true) => CgroupMode::Legacy,
            (false, false) => CgroupMode::None,
        }
    }
}

/// A run of ids that a user may map into its namespaces, see subuid(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct IdRange {
    /// The first id, as this process sees ids.
    pub start: u32,
    /// How many.
    pub count: u32,
}

/// `newuidmap` or `newgidmap`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Helper {
    pub(crate) path: PathBuf,
    /// Set-uid root, or with file capabilities.
    pub(crate) privileged: bool,
}

/// What this host can do. A plain value: [`Host::probe`] fills it, tests make any host they like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Host {
    /// The kernel's own file system is on /proc. Where it is not, the rest says nothing.
    pub(crate) proc: bool,
    pub(crate) kernel: KernelVersion,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// `CapEff` and `CapBnd` of /proc/self/status.
    pub(crate) effective: u64,
    pub(crate) bounding: u64,
    pub(crate) no_new_privs: bool,
    /// This process is in a user namespace of its own already.
    pub(crate) nested: bool,
    /// How many user ids exist in this process's user namespace.
    pub(crate) mapped_ids: u64,
    pub(crate) max_user_namespaces: Option<u64>,
    pub(crate) userns_knob_off: bool,
    pub(crate) apparmor_restricts_userns: bool,
    #[serde(skip)]
    pub(crate) unshare: Trial,
    #[serde(skip)]
    pub(crate) unshare_mount: Trial,
    #[serde(skip)]
    pub(crate) clone3: Trial,
    #[serde(skip)]
    pub(crate) open_tree: Trial,
    #[serde(skip)]
    pub(crate) openat2: Trial,
    pub(crate) subordinate_uids: Vec<IdRange>,
    pub(crate) subordinate_gids: Vec<IdRange>,
    /// This user's name in /etc/passwd.
    pub(crate) user: Option<String>,
    /// The first id behind all that subuid(5) and subgid(5) grant to anybody.
    pub(crate) unclaimed_ids: u32,
    /// The ids of this process itself do not exist in its user namespace.
    pub(crate) unmapped: bool,
    pub(crate) newuidmap: Option<Helper>,
    pub(crate) newgidmap: Option<Helper>,
    pub(crate) overlay_registered: bool,
    pub(crate) overlay_module: bool,
    pub(crate) cgroup_mode: CgroupMode,
    pub(crate) landlock_abi: Option<u32>,
    #[serde(skip)]
    pub(crate) landlock: Trial,
    pub(crate) seccomp_filter: bool,
    /// `vm.memfd_noexec`: 0 and 1 allow executable memfds that are asked for, 2 refuses them.
    pub(crate) memfd_noexec: u8,
    pub(crate) possible_cpus: u32,
}

/// What a rootful launch takes: owners and modes of any file, nodes for `/dev`, users and the bounding set of the workload,
/// the loopback interface, and everything else. See capabilities(7) for the numbers.
const ROOTFUL: [(u32, &str); 9] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (8, "CAP_SETPCAP"),
    (12, "CAP_NET_ADMIN"),
    (21, "CAP_SYS_ADMIN"),
    (27, "CAP_MKNOD"),
];

/// Where files are looked for; tests point it at a tree of their own.
pub(crate) struct Sources {
    pub(crate) root: PathBuf,
}

impl Sources {
    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The file's text; nothing when it is missing, unreadable or beyond a mebibyte.
    fn text(&self, path: &str) -> String {
        use std::io::Read;
        let mut text = Vec::new();
        match std::fs::File::open(self.path(path)).and_then(|file| file.take(1 << 20).read_to_end(&mut text)) {
            Ok(_) => String::from_utf8_lossy(&text).into_owned(),
            Err(_) => String::new(),
        }
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.text(path).trim().parse().ok()
    }

    fn helper(&self, name: &str) -> Option<Helper> {
        // Fixed places: a PATH that somebody else chose must not pick a program that runs with privileges.
        ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"].into_iter().find_map(|directory| {
            let path = self.path(directory).join(name);
            let mode = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file)?.permissions().mode();
            let capable = std::ffi::CString::new(path.as_os_str().as_bytes())
                .is_ok_and(|path| trial::has_xattr(&path, c"security.capability"));
            Some(Helper { path, privileged: mode & 0o4000 != 0 || capable })
        })
    }
}

impl Host {
    /// Looks at the host that this process runs on. Nothing here fails: what cannot be read counts as absent. Without /proc
    /// next to nothing can be read, and the report says that and no more.
    pub fn probe() -> Host {
        let mut host = Host::read(&Sources { root: PathBuf::from("/") });
        host.proc &= nix::sys::statfs::statfs("/proc")
            .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC);
        host.unshare = trial::unshare_user();
        host.unshare_mount = trial::unshare_mount();
        host.clone3 = trial::clone3();
        host.open_tree = trial::open_tree();
        host.openat2 = trial::openat2();
        (host.landlock_abi, host.landlock) = trial::landlock();
        host
    }

    /// The part that comes from files; the calls count as passed.
    pub(crate) fn read(sources: &Sources) -> Host {
        let release = sources.text("/proc/sys/kernel/osrelease");
        let release = release.trim();
        let status = sources.text("/proc/self/status");
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        let mask = |name: &str| field(name).and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0);
        // Real, effective, saved, file system: the second counts.
        let id =
            |name: &str| field(name).and_then(|text| text.split_whitespace().nth(1)?.parse().ok()).unwrap_or(u32::MAX);
        let uid = id("Uid");
        let uid_map: Vec<[u64; 3]> = sources.text("/proc/self/uid_map").lines().filter_map(three_numbers).collect();
        let passwd = sources.text("/etc/passwd");
        let user = passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
        });
        let (subuid, subgid) = (sources.text("/etc/subuid"), sources.text("/etc/subgid"));
        let mapped = |[first, _, count]: &[u64; 3]| (*first..first.saturating_add(*count)).contains(&u64::from(uid));
        let modules = sources.path("/lib/modules").join(release).join("kernel/fs/overlayfs");
        Host {
            proc: uid != u32::MAX,
            kernel: KernelVersion::parse(release).unwrap_or(KernelVersion::new(0, 0)),
            uid,
            gid: id("Gid"),
            effective: mask("CapEff"),
            bounding: mask("CapBnd"),
            no_new_privs: field("NoNewPrivs") == Some("1"),
            nested: !uid_map.is_empty() && uid_map != [[0, 0, u64::from(u32::MAX)]],
            mapped_ids: uid_map.iter().map(|line| line[2]).sum(),
            max_user_namespaces: sources.number("/proc/sys/user/max_user_namespaces"),
            userns_knob_off: sources.number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0),
            apparmor_restricts_userns: sources
                .number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
                .is_some_and(|value| value != 0),
            unshare: Trial::Reached,
            unshare_mount: Trial::Reached,
            clone3: Trial::Reached,
            open_tree: Trial::Reached,
            openat2: Trial::Reached,
            subordinate_uids: subordinate(&subuid, user, uid),
            subordinate_gids: subordinate(&subgid, user, uid),
            user: user.map(str::to_owned),
            unclaimed_ids: unclaimed(subuid.lines().chain(subgid.lines())),
            unmapped: uid != u32::MAX && !uid_map.iter().any(mapped),
            newuidmap: sources.helper("newuidmap"),
            newgidmap: sources.helper("newgidmap"),
            overlay_registered: sources
                .text("/proc/filesystems")
                .lines()
                .any(|line| line.split_whitespace().last() == Some("overlay")),
            overlay_module: !release.is_empty() && has_module(&modules, "overlay.ko"),
            cgroup_mode: CgroupMode::of_mountinfo(&sources.text("/proc/self/mountinfo")),
            landlock_abi: None,
            landlock: Trial::Reached,
            seccomp_filter: sources
                .text("/proc/sys/kernel/seccomp/actions_avail")
                .split_whitespace()
                .any(|action| action == "errno"),
            memfd_noexec: sources.number("/proc/sys/vm/memfd_noexec").map_or(0, |value| value.min(2) as u8),
            possible_cpus: possible_cpus(&sources.text("/sys/devices/system/cpu/possible")),
        }
    }

    /// The kernel's release; 0.0 when it could not be read.
    pub fn kernel(&self) -> KernelVersion {
        self.kernel
    }

    /// The effective user id of this process.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The effective group id of this process.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Whether this process holds all the capabilities that a rootful launch takes, in the initial user namespace.
    pub fn is_root(&self) -> bool {
        !self.nested && self.missing_capabilities().is_empty()
    }

    /// What a rootful launch takes and this process does not have.
    pub(crate) fn missing_capabilities(&self) -> Vec<&'static str> {
        let missing = ROOTFUL.iter().filter(|(number, _)| self.effective & 1 << number == 0);
        missing.map(|(_, name)| *name).collect()
    }

    /// Whether this process may do as root does with namespaces and mounts, be it for a rootful launch or not.
    pub(crate) fn is_admin(&self) -> bool {
        const SYS_ADMIN: u64 = 1 << 21;
        !self.nested && self.effective & SYS_ADMIN != 0
    }

    /// The capabilities that a child of this process can have at most: the bounding set, bit *n* for number *n*.
    pub fn bounding_capabilities(&self) -> u64 {
        self.bounding
    }

    /// Which cgroup file systems are mounted.
    pub fn cgroup_mode(&self) -> CgroupMode {
        self.cgroup_mode
    }

    /// The runs of user ids that subuid(5) grants to this user.
    pub fn subordinate_uids(&self) -> &[IdRange] {
        &self.subordinate_uids
    }

    /// The runs of group ids that subgid(5) grants to this user.
    pub fn subordinate_gids(&self) -> &[IdRange] {
        &self.subordinate_gids
    }

    /// Where `newuidmap` is, when it is there and may change ids.
    pub fn newuidmap(&self) -> Option<&Path> {
        self.newuidmap.as_ref().filter(|helper| helper.privileged).map(|helper| helper.path.as_path())
    }

    /// Where `newgidmap` is, when it is there and may change ids.
    pub fn newgidmap(&self) -> Option<&Path> {
        self.newgidmap.as_ref().filter(|helper| helper.privileged).map(|helper| helper.path.as_path())
    }

    /// The version of landlock's interface; `None` where there is none.
    pub fn landlock_abi(&self) -> Option<u32> {
        self.landlock_abi
    }

    /// How many CPUs this machine can have, present or not; at least 1.
    pub fn possible_cpus(&self) -> u32 {
        self.possible_cpus
    }

    /// Whether this kernel has the overlay file system, loaded or as a module.
    pub fn has_overlay(&self) -> bool {
        self.has(Feature::Overlay)
    }

    /// Whether overlay mounts take `lowerdir+`, one descriptor or path at a time (6.5).
    pub fn has_overlay_append(&self) -> bool {
        self.has(Feature::Overlay) && self.kernel >= KernelVersion::new(6, 5)
    }

    /// Whether an overlay can be mounted in a user namespace, with `userxattr` (5.11).
    pub fn has_overlay_userxattr(&self) -> bool {
        self.has(Feature::Overlay) && self.kernel >= KernelVersion::new(5, 11)
    }
}

fn three_numbers(line: &str) -> Option<[u64; 3]> {
    let mut numbers = line.split_whitespace().map(str::parse);
    Some([numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?])
}

/// The ranges of a subuid(5) file for a user, who may be named by name or by number.
fn subordinate(text: &str, user: Option<&str>, uid: u32) -> Vec<IdRange> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let owner = fields.next()?;
            let range = IdRange { start: fields.next()?.parse().ok()?, count: fields.next()?.parse().ok()? };
            let ours = Some(owner) == user || owner.parse() == Ok(uid);
            // An id of 2^32-1 does not exist, and a range past it would wrap.
            (ours && range.count > 0 && range.start.checked_add(range.count).is_some()).then_some(range)
        })
        .collect()
}

/// The first id from 100,000 on, where useradd(8) begins, that no range of a subuid(5) file reaches.
fn unclaimed<'a>(lines: impl Iterator<Item = &'a str>) -> u32 {
    let ends = lines.filter_map(|line| {
        let mut fields = line.trim().split(':').skip(1).map(str::parse::<u32>);
        fields.next()?.ok()?.checked_add(fields.next()?.ok()?)
    });
    ends.max().unwrap_or(0).max(100_000)
}

/// Whether the directory holds the module, compressed or not.
fn has_module(directory: &Path, name: &str) -> bool {
    std::fs::read_dir(directory)
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name().as_bytes().starts_with(name.as_bytes())))
}

/// How many CPUs a list such as `0-3,8` spans, counting from 0.
fn possible_cpus(list: &str) -> u32 {
    let last = list.trim().rsplit([',', '-']).next().and_then(|text| text.parse::<u32>().ok());
    last.map_or(1, |last| last.saturating_add(1))
}

#[cfg(test)]
mod tests;
