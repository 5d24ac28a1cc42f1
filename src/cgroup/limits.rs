//! Limits as values, and the control files that each version has for them.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// A set of the controllers that this crate uses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Controllers(u8);

impl Controllers {
    /// No controller.
    pub const NONE: Controllers = Controllers(0);
    /// Memory and swap.
    pub const MEMORY: Controllers = Controllers(1);
    /// The number of processes and threads.
    pub const PIDS: Controllers = Controllers(2);
    /// CPU time: quota and weight.
    pub const CPU: Controllers = Controllers(4);
    /// Which CPUs and memory nodes.
    pub const CPUSET: Controllers = Controllers(8);
    /// Stopping all processes at once; part of version 2 itself.
    pub(crate) const FREEZER: Controllers = Controllers(16);
    /// Device nodes, version 1; version 2 has a BPF program instead.
    pub(crate) const DEVICES: Controllers = Controllers(32);
    /// CPU accounting, version 1; part of version 2 itself.
    pub(crate) const CPUACCT: Controllers = Controllers(64);

    const NAMES: [(Controllers, &'static str); 7] = [
        (Controllers::MEMORY, "memory"),
        (Controllers::PIDS, "pids"),
        (Controllers::CPU, "cpu"),
        (Controllers::CPUSET, "cpuset"),
        (Controllers::FREEZER, "freezer"),
        (Controllers::DEVICES, "devices"),
        (Controllers::CPUACCT, "cpuacct"),
    ];

    /// What is in either.
    #[must_use]
    pub const fn union(self, other: Controllers) -> Controllers {
        Controllers(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn intersection(self, other: Controllers) -> Controllers {
        Controllers(self.0 & other.0)
    }

    /// Whether all of `other` is in here.
    pub const fn contains(self, other: Controllers) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn without(self, other: Controllers) -> Controllers {
        Controllers(self.0 & !other.0)
    }

    /// The kernel's names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Controllers::NAMES.into_iter().filter(move |(one, _)| self.contains(*one)).map(|(_, name)| name)
    }

    /// Those of the names that this crate uses.
    pub(crate) fn of_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Controllers {
        names.into_iter().fold(Controllers::NONE, |set, name| {
            let known = Controllers::NAMES.into_iter().find(|(_, known)| *known == name);
            set.union(known.map_or(Controllers::NONE, |(one, _)| one))
        })
    }
}

impl fmt::Debug for Controllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// CPU time per period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CpuQuota {
    /// Microseconds of CPU time in each period, at least 1000; more than the period means more than one CPU.
    pub quota_us: u64,
    /// Microseconds, 1000 to 1000000.
    pub period_us: u64,
}

impl CpuQuota {
    /// So many CPUs, as docker's `--cpus`: 1.5 is one and a half. Below 0.01 counts as 0.01.
    pub fn cpus(cpus: f64) -> CpuQuota {
        let period_us = 100_000;
        // A float to integer cast saturates; NaN becomes 0 and so the minimum.
        CpuQuota { quota_us: ((cpus * period_us as f64) as u64).max(1000), period_us }
    }
}

/// How much may be swapped out, beyond the memory limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Swap {
    /// As much as the machine has.
    Unlimited,
    /// At most so many bytes; 0 forbids swapping.
    Bytes(u64),
}

/// What the processes of a group may use together; `None` is no limit of our own (a group above may have one).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes of memory, page cache included. Beyond it the kernel reclaims, then kills.
    pub memory: Option<u64>,
    /// Bytes of swap; needs `memory`.
    pub swap: Option<Swap>,
    /// Bytes that are reclaimed last when the machine is short of memory.
    pub memory_reservation: Option<u64>,
    /// CPU time per period.
    pub cpu_quota: Option<CpuQuota>,
    /// Share of the CPUs against other groups when they are busy: 2 to 262144, 1024 is ordinary (docker's scale).
    pub cpu_shares: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// CPUs that may be used, as a list: `0-2,7`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that may be used, as a list.
    pub cpuset_mems: Option<String>,
}

/// One kind of limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Limit {
    /// [`Limits::memory`].
    Memory,
    /// [`Limits::swap`].
    Swap,
    /// [`Limits::memory_reservation`].
    MemoryReservation,
    /// [`Limits::cpu_quota`].
    CpuQuota,
    /// [`Limits::cpu_shares`].
    CpuShares,
    /// [`Limits::pids`].
    Pids,
    /// [`Limits::cpuset_cpus`].
    CpusetCpus,
    /// [`Limits::cpuset_mems`].
    CpusetMems,
    /// [`Request::devices`](super::Request::devices).
    Devices,
    /// Ending every process of the group at once, however it forked.
    Kill,
}

impl Limit {
    /// The controller that enforces it; none is needed for [`Limit::Kill`].
    pub fn controller(self) -> Controllers {
        match self {
            Limit::Memory | Limit::Swap | Limit::MemoryReservation => Controllers::MEMORY,
            Limit::CpuQuota | Limit::CpuShares => Controllers::CPU,
            Limit::Pids => Controllers::PIDS,
            Limit::CpusetCpus | Limit::CpusetMems => Controllers::CPUSET,
            Limit::Devices => Controllers::DEVICES,
            Limit::Kill => Controllers::NONE,
        }
    }

    /// A short name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Limit::Memory => "memory",
            Limit::Swap => "swap",
            Limit::MemoryReservation => "memory reservation",
            Limit::CpuQuota => "cpu quota",
            Limit::CpuShares => "cpu shares",
            Limit::Pids => "pids",
            Limit::CpusetCpus => "cpuset cpus",
            Limit::CpusetMems => "cpuset mems",
            Limit::Devices => "devices",
            Limit::Kill => "kill",
        }
    }
}

/// A limit that does not hold, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Unenforced {
    /// Which one.
    pub limit: Limit,
    /// Why.
    pub cause: Cow<'static, str>,
    /// What would change that.
    pub remedy: Option<Cow<'static, str>>,
}

impl Unenforced {
    pub(crate) fn new(limit: Limit, why: &Why) -> Unenforced {
        Unenforced { limit, cause: why.cause.clone(), remedy: why.remedy.map(Cow::Borrowed) }
    }
}

impl fmt::Display for Unenforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} limit is not enforced: {}", self.limit.name(), self.cause)?;
        match &self.remedy {
            Some(remedy) => write!(f, "; try: {remedy}"),
            None => Ok(()),
        }
    }
}

/// Why something cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Why {
    pub(crate) cause: Cow<'static, str>,
    pub(crate) remedy: Option<&'static str>,
}

impl Why {
    pub(crate) fn new(cause: impl Into<Cow<'static, str>>, remedy: &'static str) -> Why {
        Why { cause: cause.into(), remedy: Some(remedy) }
    }
}

/// The two interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// One control file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) limit: Limit,
    pub(crate) file: &'static str,
    pub(crate) value: String,
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Limits::default()
    }

    /// The kinds of limit that are set.
    pub(crate) fn kinds(&self) -> Vec<Limit> {
        let set = [
            (self.memory.is_some(), Limit::Memory),
            (self.swap.is_some(), Limit::Swap),
            (self.memory_reservation.is_some(), Limit::MemoryReservation),
            (self.cpu_quota.is_some(), Limit::CpuQuota),
            (self.cpu_shares.is_some(), Limit::CpuShares),
            (self.pids.is_some(), Limit::Pids),
            (self.cpuset_cpus.is_some(), Limit::CpusetCpus),
            (self.cpuset_mems.is_some(), Limit::CpusetMems),
        ];
        set.into_iter().filter(|(is_set, _)| *is_set).map(|(_, limit)| limit).collect()
    }

    /// The controllers that the limits need.
    pub fn controllers(&self) -> Controllers {
        self.kinds().into_iter().fold(Controllers::NONE, |set, limit| set.union(limit.controller()))
    }

    /// Refuses limits that contradict each other.
    pub(crate) fn check(&self) -> Result<()> {
        if self.swap.is_some() && self.memory.is_none() {
            return Err(Error::new(ErrorKind::Invalid, "limit swap")
                .because("swap is limited beyond a memory limit, and there is none")
                .remedy("limit memory too"));
        }
        Ok(())
    }

    /// The files to write for a limit, in order.
    pub(crate) fn settings(&self, limit: Limit, version: Version) -> Vec<Setting> {
        let setting = |file: &'static str, value: String| Setting { limit, file, value };
        let v1 = version == Version::V1;
        let mut settings = Vec::new();
        match limit {
            Limit::Memory => {
                let file = if v1 { "memory.limit_in_bytes" } else { "memory.max" };
                settings.extend(self.memory.map(|bytes| setting(file, bytes.to_string())));
            }
            // Version 1 counts memory and swap together, version 2 swap alone.
            Limit::Swap => settings.extend(self.swap.map(|swap| match (v1, swap) {
                (true, Swap::Unlimited) => setting("memory.memsw.limit_in_bytes", "-1".to_owned()),
                (true, Swap::Bytes(bytes)) => {
                    let both = self.memory.unwrap_or(0).saturating_add(bytes);
                    setting("memory.memsw.limit_in_bytes", both.to_string())
                }
                (false, Swap::Unlimited) => setting("memory.swap.max", "max".to_owned()),
                (false, Swap::Bytes(bytes)) => setting("memory.swap.max", bytes.to_string()),
            })),
            Limit::MemoryReservation => {
                let file = if v1 { "memory.soft_limit_in_bytes" } else { "memory.low" };
                settings.extend(self.memory_reservation.map(|bytes| setting(file, bytes.to_string())));
            }
            Limit::CpuQuota => {
                if let Some(CpuQuota { quota_us, period_us }) = self.cpu_quota {
                    if v1 {
                        settings.push(setting("cpu.cfs_period_us", period_us.to_string()));
                        settings.push(setting("cpu.cfs_quota_us", quota_us.to_string()));
                    } else {
                        settings.push(setting("cpu.max", format!("{quota_us} {period_us}")));
                    }
                }
            }
            Limit::CpuShares => settings.extend(self.cpu_shares.map(|shares| match v1 {
                true => setting("cpu.shares", shares.to_string()),
                false => setting("cpu.weight", weight_of_shares(shares).to_string()),
            })),
            Limit::Pids => settings.extend(self.pids.map(|count| setting("pids.max", count.to_string()))),
            Limit::CpusetCpus => settings.extend(self.cpuset_cpus.clone().map(|list| setting("cpuset.cpus", list))),
            Limit::CpusetMems => settings.extend(self.cpuset_mems.clone().map(|list| setting("cpuset.mems", list))),
            Limit::Devices | Limit::Kill => {}
        }
        settings
    }
}

/// Version 1's shares (2 to 262144, 1024 ordinary) as version 2's weight (1 to 10000, 100 ordinary).
///
/// A straight line between the ends would make the ordinary 1024 a weight of 39, so containers lost against every
/// group of the ordinary 100. Runtimes agreed on the curve through all three points, a parabola in the logarithms:
/// `log10(weight) = (log2(shares)² + 125·log2(shares)) / 612 − 7/34`.
pub(crate) fn weight_of_shares(shares: u64) -> u64 {
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let weight = 10f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0);
    // 100.00000000000001 is 100: rounding errors must not reach the next integer.
    ((weight - 1e-6).ceil() as u64).clamp(1, 10_000)
}
