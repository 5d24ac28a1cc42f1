//! `linux.resources` of a spec, as limits of a control group.

use oci_spec::runtime::{LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxResources, Spec};

use super::validate::refused;
use crate::cgroup::{Access, CpuQuota, DeviceKind, DeviceRule, Devices, Limit, Limits, Swap};
use crate::{Error, ErrorKind, Result};

fn unsupported(field: &str, why: &'static str) -> Error {
    refused(format!("linux.resources.{field}"), ErrorKind::Unsupported, why)
}

fn invalid(field: &str, why: &'static str) -> Error {
    refused(format!("linux.resources.{field}"), ErrorKind::Invalid, why)
}

fn of(spec: &Spec) -> Option<&LinuxResources> {
    spec.linux().as_ref().and_then(|linux| linux.resources().as_ref())
}

/// The limits that a spec asks for.
///
/// # Errors
/// What is not limited here, and what cannot mean anything, by its name.
pub(crate) fn limits(spec: &Spec) -> Result<Limits> {
    let mut limits = Limits::default();
    let Some(resources) = of(spec) else { return Ok(limits) };
    for (field, is_there) in [
        ("blockIO", resources.block_io().as_ref().is_some_and(|set| *set != Default::default())),
        ("hugepageLimits", resources.hugepage_limits().as_ref().is_some_and(|list| !list.is_empty())),
        ("network", resources.network().as_ref().is_some_and(|set| *set != Default::default())),
        ("rdma", resources.rdma().as_ref().is_some_and(|map| !map.is_empty())),
        ("unified", resources.unified().as_ref().is_some_and(|map| !map.is_empty())),
    ] {
        if is_there {
            return Err(unsupported(field, "that is not limited here"));
        }
    }
    if let Some(memory) = resources.memory() {
        of_memory(memory, &mut limits)?;
    }
    if let Some(cpu) = resources.cpu() {
        of_cpu(cpu, &mut limits)?;
    }
    limits.pids = match resources.pids().map(|pids| pids.limit()) {
        None | Some(..=-1) => None,
        Some(0) => return Err(invalid("pids.limit", "no container has no process")),
        Some(limit) => Some(limit.unsigned_abs()),
    };
    Ok(limits)
}

fn of_memory(memory: &LinuxMemory, limits: &mut Limits) -> Result<()> {
    #[allow(deprecated, reason = "the spec still has them")]
    for (field, is_there) in [
        ("memory.kernel", memory.kernel().is_some()),
        ("memory.kernelTCP", memory.kernel_tcp().is_some()),
        ("memory.swappiness", memory.swappiness().is_some()),
        ("memory.disableOOMKiller", memory.disable_oom_killer().unwrap_or(false)),
        ("memory.useHierarchy", !memory.use_hierarchy().unwrap_or(true)),
        ("memory.checkBeforeUpdate", memory.check_before_update().unwrap_or(false)),
    ] {
        if is_there {
            return Err(unsupported(field, "newer kernels have no such thing, or it is not set here"));
        }
    }
    // -1 is no limit.
    let bytes = |field: &str, bytes: Option<i64>| match bytes {
        None | Some(-1) => Ok(None),
        Some(1..) => Ok(bytes.map(i64::unsigned_abs)),
        Some(_) => Err(invalid(field, "it is a number of bytes, or -1")),
    };
    limits.memory = bytes("memory.limit", memory.limit())?;
    limits.memory_reservation = bytes("memory.reservation", memory.reservation())?;
    // Here it is memory and swap together.
    limits.swap = match (memory.swap(), limits.memory) {
        (None, _) => None,
        (Some(-1), _) => Some(Swap::Unlimited),
        (Some(both), Some(memory)) => match u64::try_from(both).ok().and_then(|both| both.checked_sub(memory)) {
            Some(swap) => Some(Swap::Bytes(swap)),
            None => return Err(invalid("memory.swap", "it is memory and swap together, so not less than the memory")),
        },
        (Some(_), None) => return Err(invalid("memory.swap", "without a limit of memory there is none of both")),
    };
    if limits.memory.is_none() {
        limits.swap = None;
    }
    Ok(())
}

fn of_cpu(cpu: &LinuxCpu, limits: &mut Limits) -> Result<()> {
    for (field, is_there) in [
        ("cpu.idle", cpu.idle().unwrap_or(0) != 0),
        ("cpu.burst", cpu.burst().unwrap_or(0) != 0),
        ("cpu.realtimeRuntime", cpu.realtime_runtime().unwrap_or(0) != 0),
        ("cpu.realtimePeriod", cpu.realtime_period().unwrap_or(0) != 0),
    ] {
        if is_there {
            return Err(unsupported(field, "that is not limited here"));
        }
    }
    let period = cpu.period().filter(|period| *period != 0);
    limits.cpu_quota = match (cpu.quota(), period) {
        (Some(quota @ 1..), period) => {
            Some(CpuQuota { quota_us: quota.unsigned_abs(), period_us: period.unwrap_or(100_000) })
        }
        (_, Some(_)) => return Err(unsupported("cpu.period", "without a quota it limits nothing")),
        _ => None,
    };
    limits.cpu_shares = cpu.shares().filter(|shares| *shares != 0);
    let list = |list: &Option<String>| list.clone().filter(|list| !list.is_empty());
    (limits.cpuset_cpus, limits.cpuset_mems) = (list(cpu.cpus()), list(cpu.mems()));
    Ok(())
}

/// The device nodes that a spec allows; `None` where it says nothing. What every container has is allowed.
///
/// # Errors
/// Lists that are not "none of them, but these": the kernels' two interfaces have nothing else in common.
pub(crate) fn devices(spec: &Spec) -> Result<Option<Devices>> {
    let list = of(spec).and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    let all = |rule: &LinuxDeviceCgroup| {
        let every = matches!(rule.typ(), None | Some(LinuxDeviceType::A));
        // -1 is every number.
        every && rule.major().is_none_or(|major| major < 0) && rule.minor().is_none_or(|minor| minor < 0)
    };
    let (first, rest) = match list.split_first() {
        None => return Ok(None),
        Some(split) => split,
    };
    match (all(first), first.allow(), rest) {
        (true, true, []) => return Ok(Some(Devices::Any)),
        (true, false, _) => {}
        _ => {
            return Err(unsupported("devices", "a list here begins with one rule that denies, or allows, all of them"));
        }
    }
    let Devices::Only(mut rules) = Devices::docker_2026_11() else { return Ok(None) };
    for (index, rule) in rest.iter().enumerate() {
        let field = format!("devices[{}]", index + 1);
        if !rule.allow() {
            return Err(unsupported(&field, "after the first rule, others can only allow"));
        }
        let number = |number: Option<i64>| match number {
            None | Some(..=-1) => Ok(None),
            Some(number) => match u32::try_from(number) {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(invalid(&field, "there is no such number of a device")),
            },
        };
        let letters = rule.access().as_deref().unwrap_or("rwm");
        if letters.is_empty() || letters.chars().any(|letter| !"rwm".contains(letter)) {
            return Err(invalid(&format!("{field}.access"), "it is some of r, w and m"));
        }
        let access = Access { read: letters.contains('r'), write: letters.contains('w'), mknod: letters.contains('m') };
        let kinds: &[DeviceKind] = match rule.typ() {
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => &[DeviceKind::Character],
            Some(LinuxDeviceType::B) => &[DeviceKind::Block],
            Some(LinuxDeviceType::P) => return Err(invalid(&format!("{field}.type"), "a pipe is no device")),
            None | Some(LinuxDeviceType::A) => &[DeviceKind::Character, DeviceKind::Block],
        };
        let (major, minor) = (number(rule.major())?, number(rule.minor())?);
        rules.extend(kinds.iter().map(|kind| DeviceRule { kind: *kind, major, minor, access }));
    }
    Ok(Some(Devices::Only(rules)))
}

/// Whether a limit of that kind was asked for.
pub(crate) fn asks(limits: &Limits, devices: bool, kind: Limit) -> bool {
    match kind {
        Limit::Memory => limits.memory.is_some(),
        Limit::Swap => limits.swap.is_some(),
        Limit::MemoryReservation => limits.memory_reservation.is_some(),
        Limit::CpuQuota => limits.cpu_quota.is_some(),
        Limit::CpuShares => limits.cpu_shares.is_some(),
        Limit::Pids => limits.pids.is_some(),
        Limit::CpusetCpus => limits.cpuset_cpus.is_some(),
        Limit::CpusetMems => limits.cpuset_mems.is_some(),
        Limit::Devices => devices,
        Limit::Kill => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn spec(resources: &str) -> Spec {
        let mut spec = Spec::default();
        let linux = spec.linux_mut().as_mut().unwrap();
        linux.set_resources(Some(serde_json::from_str(resources).unwrap()));
        spec
    }

    #[test]
    fn limits_are_read() {
        let read = limits(&spec(
            r#"{"memory": {"limit": 1000, "swap": 1500, "reservation": -1}, "pids": {"limit": 7}, "blockIO": {},
                "cpu": {"quota": 5000, "shares": 512, "cpus": "0-1", "mems": ""}}"#,
        ))
        .unwrap();
        let quota = CpuQuota { quota_us: 5000, period_us: 100_000 };
        let expected = Limits {
            memory: Some(1000),
            swap: Some(Swap::Bytes(500)),
            pids: Some(7),
            cpu_quota: Some(quota),
            cpu_shares: Some(512),
            cpuset_cpus: Some("0-1".into()),
            ..Limits::default()
        };
        assert_eq!(read, expected);
        for (json, field) in [
            (r#"{"memory": {"swappiness": 1}}"#, "memory.swappiness"),
            (r#"{"memory": {"swap": 1}}"#, "memory.swap"),
            (r#"{"memory": {"limit": 0}}"#, "memory.limit"),
            (r#"{"cpu": {"period": 1}}"#, "cpu.period"),
            (r#"{"cpu": {"idle": 1}}"#, "cpu.idle"),
            (r#"{"pids": {"limit": 0}}"#, "pids.limit"),
            (r#"{"unified": {"memory.high": "1"}}"#, "unified"),
            (r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}"#, "hugepageLimits"),
        ] {
            let error = limits(&spec(json)).unwrap_err().to_string();
            assert!(error.contains(&format!("linux.resources.{field}")), "{field}: {error}");
        }
    }

    #[test]
    fn devices_are_none_but_those() {
        let list = |list: &str| devices(&spec(&format!(r#"{{"devices": {list}}}"#)));
        assert_eq!(list("[]").unwrap(), None);
        assert_eq!(list(r#"[{"allow": true, "access": "rwm"}]"#).unwrap(), Some(Devices::Any));
        let deny = r#"{"allow": false, "access": "rwm"}"#;
        let Some(Devices::Only(rules)) =
            list(&format!(r#"[{deny}, {{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}}]"#))
                .unwrap()
        else {
            panic!("no list")
        };
        let access = Access { read: true, write: true, mknod: false };
        let fuse = DeviceRule { kind: DeviceKind::Character, major: Some(10), minor: Some(229), access };
        assert!(rules.contains(&fuse) && rules.len() == 12);
        for wrong in [
            r#"[{"allow": true, "type": "c", "access": "r"}]"#.to_owned(),
            format!(r#"[{deny}, {{"allow": false, "type": "c", "access": "r"}}]"#),
            format!(r#"[{deny}, {{"allow": true, "type": "c", "access": "x"}}]"#),
        ] {
            assert!(list(&wrong).is_err(), "{wrong}");
        }
    }
}
