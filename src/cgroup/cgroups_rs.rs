//! The driver that sets limits through the cgroups-rs crate.
//!
//! Only the limits: the crate makes a group in every hierarchy there is, turns controllers on from the root of version
//! 2 down without a look at whom that concerns, takes `/sys/fs/cgroup` for granted, and empties a group by moving its
//! processes to the root, out of their limits. So the directories, the doors into them and their end are those of
//! [`Direct`], and each of the crate's controllers is pointed at its directory. Its `apply` passes over failures;
//! its setters do not, and those are what is called here.

use std::path::Path;

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::error::Error as CrateError;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;

use super::limits::{Version, Why, weight_of_shares};
use super::{Controllers, Direct, Driver, Group, Hierarchies, Limit, Limits, Parent, Request, Swap, Unenforced};
use crate::{Error, ErrorKind, Result};

/// The driver that sets limits through the cgroups-rs crate (feature `cgroups-rs`).
#[derive(Debug)]
pub struct CgroupsRs {
    direct: Direct,
}

impl CgroupsRs {
    /// A driver for these hierarchies; nothing is opened or created before the first use.
    pub fn new(hierarchies: Hierarchies, parent: Parent) -> CgroupsRs {
        CgroupsRs { direct: Direct::new(hierarchies, parent) }
    }
}

impl Driver for CgroupsRs {
    fn create(&self, name: &str, request: &Request) -> Result<Group> {
        let limits = &request.limits;
        let bare = Request {
            limits: Limits::default(),
            track: request.track.union(limits.controllers()),
            devices: request.devices.clone(),
        };
        let mut group = self.direct.create(name, &bare)?;
        match set_limits(&group, limits, |limit| self.direct.why_not(limit)) {
            Ok(unenforced) => {
                group.note_unenforced(unenforced);
                Ok(group)
            }
            Err(error) => {
                group.unmake();
                Err(error)
            }
        }
    }

    fn open(&self, name: &str) -> Result<Option<Group>> {
        self.direct.open(name)
    }

    fn list(&self) -> Result<Vec<String>> {
        self.direct.list()
    }

    fn available(&self) -> Controllers {
        self.direct.available()
    }

    fn unavailable(&self) -> Vec<Unenforced> {
        self.direct.unavailable()
    }
}

fn set_limits(group: &Group, limits: &Limits, why_not: impl Fn(Limit) -> Why) -> Result<Vec<Unenforced>> {
    limits.check()?;
    let mut unenforced = Vec::new();
    for limit in limits.kinds() {
        let Some((directory, version)) = group.directory_of(limit.controller()) else {
            unenforced.push(Unenforced::new(limit, &why_not(limit)));
            continue;
        };
        match set(limits, limit, &directory, version == Version::V2) {
            Ok(()) => {}
            Err(error) if errno(&error) == Some(libc::ENOENT) => {
                let why = Why { cause: format!("this kernel has no file for it: {error}").into(), remedy: None };
                unenforced.push(Unenforced::new(limit, &why));
            }
            Err(error) => {
                let step = format!("set the {} limit of a cgroup", limit.name());
                let ours = match errno(&error) {
                    Some(errno @ (libc::EINVAL | libc::ERANGE)) => Error::sys(step, "write", errno)
                        .kind_is(ErrorKind::Invalid)
                        .because("the kernel does not accept the value here"),
                    Some(errno) => Error::sys(step, "write", errno),
                    None => Error::new(ErrorKind::Io, step).because(error.to_string()),
                };
                return Err(ours.path(directory));
            }
        }
    }
    Ok(unenforced)
}

/// One limit, by the crate's setter.
fn set(limits: &Limits, limit: Limit, directory: &Path, v2: bool) -> Result<(), CrateError> {
    let (point, base) = (directory.to_owned(), directory.to_owned());
    let memory = |point, base| MemController::new(point, base, v2);
    let cpu = |point, base| CpuController::new(point, base, v2);
    let cpuset = |point, base| CpuSetController::new(point, base, v2);
    // The crate counts in signed numbers, where -1 is unlimited; nobody has 2⁶³ bytes.
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    match limit {
        Limit::Memory => limits.memory.map_or(Ok(()), |bytes| memory(point, base).set_limit(signed(bytes))),
        Limit::Swap => limits.swap.map_or(Ok(()), |swap| {
            let value = match swap {
                Swap::Unlimited => -1,
                Swap::Bytes(bytes) if v2 => signed(bytes),
                Swap::Bytes(bytes) => signed(bytes.saturating_add(limits.memory.unwrap_or(0))),
            };
            memory(point, base).set_memswap_limit(value)
        }),
        Limit::MemoryReservation => {
            limits.memory_reservation.map_or(Ok(()), |bytes| memory(point, base).set_soft_limit(signed(bytes)))
        }
        Limit::CpuQuota => limits.cpu_quota.map_or(Ok(()), |quota| {
            let controller = cpu(point, base);
            controller.set_cfs_period(quota.period_us)?;
            controller.set_cfs_quota(signed(quota.quota_us))
        }),
        Limit::CpuShares => limits.cpu_shares.map_or(Ok(()), |shares| {
            // The crate leaves the conversion to its caller.
            cpu(point, base).set_shares(if v2 { weight_of_shares(shares) } else { shares })
        }),
        Limit::Pids => limits
            .pids
            .map_or(Ok(()), |count| PidController::new(point, base, v2).set_pid_max(MaxValue::Value(signed(count)))),
        Limit::CpusetCpus => limits.cpuset_cpus.as_ref().map_or(Ok(()), |list| cpuset(point, base).set_cpus(list)),
        Limit::CpusetMems => limits.cpuset_mems.as_ref().map_or(Ok(()), |list| cpuset(point, base).set_mems(list)),
        Limit::Devices | Limit::Kill => Ok(()),
    }
}

/// The error number somewhere below the crate's error.
fn errno(error: &CrateError) -> Option<i32> {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return io.raw_os_error();
        }
        source = inner.source();
    }
    None
}
