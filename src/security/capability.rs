//! Capabilities: the pieces that root's power is divided into.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, ErrorKind, Result};

macro_rules! capabilities {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal;)*) => {
        /// One capability, see capabilities(7). The discriminant is the kernel's number.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum Capability {
            $($(#[$doc])* $variant = $number,)*
        }

        impl Capability {
            /// Every capability that Linux 6.18 knows, by number.
            pub const ALL: [Capability; 41] = [$(Capability::$variant),*];

            /// The name as the kernel headers and OCI documents write it, e.g. `CAP_NET_ADMIN`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Capability::$variant => concat!("CAP_", $name),)*
                }
            }
        }
    };
}

capabilities! {
    /// Change the owner of files.
    Chown = 0, "CHOWN";
    /// Bypass permission checks on files.
    DacOverride = 1, "DAC_OVERRIDE";
    /// Bypass read and search checks; also `open_by_handle_at`, the way out of many containers.
    DacReadSearch = 2, "DAC_READ_SEARCH";
    /// Bypass checks that ask for the file's owner.
    Fowner = 3, "FOWNER";
    /// Keep the set-id bits when a file is changed.
    Fsetid = 4, "FSETID";
    /// Signal processes of other users.
    Kill = 5, "KILL";
    /// Take any group id.
    Setgid = 6, "SETGID";
    /// Take any user id.
    Setuid = 7, "SETUID";
    /// Drop from the bounding set, add to the inheritable set, set securebits.
    Setpcap = 8, "SETPCAP";
    /// Set the immutable and append-only flags.
    LinuxImmutable = 9, "LINUX_IMMUTABLE";
    /// Bind to ports below 1024.
    NetBindService = 10, "NET_BIND_SERVICE";
    /// Broadcast and multicast (unused by the kernel).
    NetBroadcast = 11, "NET_BROADCAST";
    /// Configure interfaces, firewalls, routes.
    NetAdmin = 12, "NET_ADMIN";
    /// Raw and packet sockets.
    NetRaw = 13, "NET_RAW";
    /// Lock memory.
    IpcLock = 14, "IPC_LOCK";
    /// Bypass checks on System V objects.
    IpcOwner = 15, "IPC_OWNER";
    /// Load and unload kernel modules.
    SysModule = 16, "SYS_MODULE";
    /// Raw input and output: ports, /dev/mem.
    SysRawio = 17, "SYS_RAWIO";
    /// `chroot`, and `setns` into mount namespaces.
    SysChroot = 18, "SYS_CHROOT";
    /// Trace any process.
    SysPtrace = 19, "SYS_PTRACE";
    /// Process accounting.
    SysPacct = 20, "SYS_PACCT";
    /// Mounts, namespaces and much else: close to root.
    SysAdmin = 21, "SYS_ADMIN";
    /// `reboot` and `kexec_load`.
    SysBoot = 22, "SYS_BOOT";
    /// Raise priorities, set affinities of others.
    SysNice = 23, "SYS_NICE";
    /// Exceed quotas and resource limits.
    SysResource = 24, "SYS_RESOURCE";
    /// Set the clock.
    SysTime = 25, "SYS_TIME";
    /// Configure terminals, `vhangup`.
    SysTtyConfig = 26, "SYS_TTY_CONFIG";
    /// Create device nodes.
    Mknod = 27, "MKNOD";
    /// Establish leases on any file.
    Lease = 28, "LEASE";
    /// Write to the audit log.
    AuditWrite = 29, "AUDIT_WRITE";
    /// Configure auditing.
    AuditControl = 30, "AUDIT_CONTROL";
    /// Give files capabilities.
    Setfcap = 31, "SETFCAP";
    /// Override mandatory access control (Smack).
    MacOverride = 32, "MAC_OVERRIDE";
    /// Configure mandatory access control (Smack).
    MacAdmin = 33, "MAC_ADMIN";
    /// Read and clear the kernel log.
    Syslog = 34, "SYSLOG";
    /// Set wake alarms.
    WakeAlarm = 35, "WAKE_ALARM";
    /// Block system suspend.
    BlockSuspend = 36, "BLOCK_SUSPEND";
    /// Read the audit log over multicast netlink.
    AuditRead = 37, "AUDIT_READ";
    /// Performance counters, without the rest of `CAP_SYS_ADMIN` (5.8).
    Perfmon = 38, "PERFMON";
    /// Load BPF programs, without the rest of `CAP_SYS_ADMIN` (5.8).
    Bpf = 39, "BPF";
    /// Checkpoint and restore (5.9).
    CheckpointRestore = 40, "CHECKPOINT_RESTORE";
}

impl Capability {
    /// The kernel's number, 0 to 40; bit `number` of the masks in `/proc/PID/status`.
    pub const fn number(self) -> u8 {
        self as u8
    }

    const fn bit(self) -> u64 {
        1 << self as u8
    }
}

impl FromStr for Capability {
    type Err = Error;

    /// Reads `CAP_NET_ADMIN`, `NET_ADMIN` or either in lower case, as docker's `--cap-add` does. `ALL` is not one
    /// capability: [`CapabilitySet::adjusted`] knows it.
    fn from_str(text: &str) -> Result<Self> {
        let upper = text.trim().to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let found = Capability::ALL.into_iter().find(|capability| capability.name()["CAP_".len()..] == *bare);
        found.ok_or_else(|| {
            Error::new(ErrorKind::Invalid, format!("read the capability {text:?}"))
                .because("there is no capability of that name")
                .remedy("a name of capabilities(7), such as NET_ADMIN or CAP_NET_ADMIN")
        })
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Capability {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Capability {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <Cow<'_, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A set of capabilities; copying one costs eight bytes.
///
/// ```
/// use coracle::security::{Capability, CapabilitySet};
///
/// let set = CapabilitySet::DOCKER_2026_11.adjusted(["NET_ADMIN"], ["mknod"])?;
/// assert!(set.contains(Capability::NetAdmin));
/// assert!(!set.contains(Capability::Mknod));
/// // A name that means nothing is an error, never skipped.
/// assert!(CapabilitySet::EMPTY.adjusted(["NET_ADMIM"], []).is_err());
/// # Ok::<(), coracle::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    /// No capability at all.
    pub const EMPTY: CapabilitySet = CapabilitySet(0);

    /// The 41 capabilities of Linux 6.18. An older kernel knows fewer: intersect with what it offers.
    pub const ALL: CapabilitySet = CapabilitySet((1 << 41) - 1);

    /// What docker leaves to a container's root, as of November 2026: 14 capabilities.
    pub const DOCKER_2026_11: CapabilitySet = CapabilitySet::of(&[
        Capability::Chown,
        Capability::DacOverride,
        Capability::Fsetid,
        Capability::Fowner,
        Capability::Mknod,
        Capability::NetRaw,
        Capability::Setgid,
        Capability::Setuid,
        Capability::Setfcap,
        Capability::Setpcap,
        Capability::NetBindService,
        Capability::SysChroot,
        Capability::Kill,
        Capability::AuditWrite,
    ]);

    /// The set of these capabilities.
    pub const fn of(capabilities: &[Capability]) -> CapabilitySet {
        let mut bits = 0;
        let mut index = 0;
        while index < capabilities.len() {
            bits |= capabilities[index].bit();
            index += 1;
        }
        CapabilitySet(bits)
    }

    /// The set of a kernel mask such as `CapBnd` of `/proc/PID/status`; bits that name no capability we know are
    /// left out.
    pub const fn from_bits_truncate(bits: u64) -> CapabilitySet {
        CapabilitySet(bits & CapabilitySet::ALL.0)
    }

    /// The kernel's mask: bit *n* is the capability of number *n*.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether the set has none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many there are, 0 to 41.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether this one is in the set.
    pub const fn contains(self, capability: Capability) -> bool {
        self.0 & capability.bit() != 0
    }

    /// Whether all of `other` is in the set.
    pub const fn contains_all(self, other: CapabilitySet) -> bool {
        self.0 & other.0 == other.0
    }

    /// This set and one more.
    #[must_use]
    pub const fn with(self, capability: Capability) -> CapabilitySet {
        CapabilitySet(self.0 | capability.bit())
    }

    /// This set without one.
    #[must_use]
    pub const fn without(self, capability: Capability) -> CapabilitySet {
        CapabilitySet(self.0 & !capability.bit())
    }

    /// What is in either.
    #[must_use]
    pub const fn union(self, other: CapabilitySet) -> CapabilitySet {
        CapabilitySet(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn intersection(self, other: CapabilitySet) -> CapabilitySet {
        CapabilitySet(self.0 & other.0)
    }

    /// What is here and not in `other`.
    #[must_use]
    pub const fn difference(self, other: CapabilitySet) -> CapabilitySet {
        CapabilitySet(self.0 & !other.0)
    }

    /// The members, by number.
    pub fn iter(self) -> impl Iterator<Item = Capability> {
        Capability::ALL.into_iter().filter(move |capability| self.contains(*capability))
    }

    /// Applies lists such as `--cap-add` and `--cap-drop` by docker's rules: `ALL` in `add` takes every capability
    /// except those dropped by name; otherwise `ALL` in `drop` leaves exactly those added; otherwise what is dropped
    /// goes first and what is added comes after, so a name in both lists stays.
    ///
    /// # Errors
    /// `Invalid` for a name that is no capability; it is named.
    pub fn adjusted<'a>(
        self,
        add: impl IntoIterator<Item = &'a str>,
        drop: impl IntoIterator<Item = &'a str>,
    ) -> Result<CapabilitySet> {
        let (add, add_all) = parse_list(add)?;
        let (drop, drop_all) = parse_list(drop)?;
        Ok(match (add_all, drop_all) {
            (true, _) => CapabilitySet::ALL.difference(drop),
            (false, true) => add,
            (false, false) => self.difference(drop).union(add),
        })
    }
}

/// The named capabilities, and whether `ALL` was among the names.
fn parse_list<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<(CapabilitySet, bool)> {
    let mut set = CapabilitySet::EMPTY;
    let mut all = false;
    for name in names {
        if name.trim().eq_ignore_ascii_case("ALL") {
            all = true;
        } else {
            set = set.with(name.parse()?);
        }
    }
    Ok((set, all))
}

impl FromIterator<Capability> for CapabilitySet {
    fn from_iter<I: IntoIterator<Item = Capability>>(iter: I) -> Self {
        iter.into_iter().fold(CapabilitySet::EMPTY, CapabilitySet::with)
    }
}

impl fmt::Debug for CapabilitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Capability::name)).finish()
    }
}

impl Serialize for CapabilitySet {
    /// A list of names, as OCI runtime specs have it.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for CapabilitySet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::<Capability>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        for (index, capability) in Capability::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(capability.number()), index);
            assert_eq!(capability.name().parse::<Capability>().unwrap(), capability);
        }
        assert_eq!(Capability::CheckpointRestore.number(), 40);
        assert_eq!(Capability::SysAdmin.number(), 21);
    }

    #[test]
    fn dockers_default_is_the_well_known_mask() {
        assert_eq!(CapabilitySet::DOCKER_2026_11.bits(), 0xa804_25fb);
        assert_eq!(CapabilitySet::DOCKER_2026_11.len(), 14);
    }

    #[test]
    fn names_are_read_as_docker_reads_them() {
        for text in ["NET_ADMIN", "CAP_NET_ADMIN", "net_admin", "cap_net_admin", " NET_ADMIN "] {
            assert_eq!(text.parse::<Capability>().unwrap(), Capability::NetAdmin, "{text}");
        }
        for text in ["", "CAP_", "NETADMIN", "ALL", "CAP_CAP_KILL"] {
            let error = text.parse::<Capability>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
        }
    }

    #[test]
    fn add_and_drop_follow_docker() {
        let base = CapabilitySet::DOCKER_2026_11;
        assert_eq!(base.adjusted([], []).unwrap(), base);
        assert_eq!(base.adjusted(["ALL"], []).unwrap(), CapabilitySet::ALL);
        assert_eq!(base.adjusted(["all"], ["SYS_ADMIN"]).unwrap(), CapabilitySet::ALL.without(Capability::SysAdmin));
        assert_eq!(base.adjusted([], ["ALL"]).unwrap(), CapabilitySet::EMPTY);
        assert_eq!(base.adjusted(["KILL"], ["ALL"]).unwrap(), CapabilitySet::of(&[Capability::Kill]));
        assert_eq!(base.adjusted(["ALL"], ["ALL"]).unwrap(), CapabilitySet::ALL);
        // In both lists: added last.
        assert!(base.adjusted(["MKNOD"], ["MKNOD"]).unwrap().contains(Capability::Mknod));
        assert!(base.adjusted([], ["nonsense"]).unwrap_err().to_string().contains("nonsense"));
    }

    #[test]
    fn serialises_as_names() {
        let set = CapabilitySet::of(&[Capability::Kill, Capability::Chown]);
        let text = serde_json::to_string(&set).unwrap();
        assert_eq!(text, r#"["CAP_CHOWN","CAP_KILL"]"#);
        assert_eq!(serde_json::from_str::<CapabilitySet>(&text).unwrap(), set);
        assert_eq!(CapabilitySet::from_bits_truncate(u64::MAX), CapabilitySet::ALL);
    }
}
