//! Whether a workload can come by device nodes of its own choice, and the rules where it can.
//!
//! As a rule it cannot: every file system that it can write to is `nodev`, and it may not mount others. Then rules would
//! only cost the launch a directory. In a user namespace no node that is made can be opened.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use oci_spec::runtime::{Capability, LinuxDevice, LinuxDeviceType, Mount, Spec};

use super::{mount_options, resources};
use crate::Result;
use crate::cgroup::{DeviceKind, DeviceRule, Devices};
use crate::security::{Masking, Seccomp};

/// Docker's rules where the workload can come by nodes, and no rules elsewhere. A device that is itself the source of a
/// bind mount with the option `dev` was given in so many words and is allowed, too.
///
/// # Errors
/// Those of reading mount options, and of a list of the spec's own.
pub(crate) fn rules(spec: &Spec, filter: &Seccomp) -> Result<Devices> {
    if let Some(devices) = resources::devices(spec)? {
        return Ok(match devices {
            Devices::Only(mut rules) => {
                rules.extend(listed(spec));
                Devices::Only(rules)
            }
            any => any,
        });
    }
    needed(spec, filter)
}

/// The rules that a container needs where its spec has no list.
pub(crate) fn needed(spec: &Spec, filter: &Seccomp) -> Result<Devices> {
    let mut given = vec![];
    let mut mounted = false;
    for mount in spec.mounts().iter().flatten() {
        let options = mount_options::parse(mount.options().as_deref().unwrap_or(&[]))?;
        if options.devices {
            mounted = true;
            given.extend(if options.bind { device(mount) } else { None });
        }
    }
    let makes_nodes = mounted && holds(spec, Capability::Mknod);
    if !makes_nodes && !is_loose(spec, filter) {
        return Ok(Devices::Any);
    }
    let Devices::Only(mut rules) = Devices::docker_2026_11() else { return Ok(Devices::Any) };
    rules.extend(given);
    rules.extend(listed(spec));
    Ok(Devices::Only(rules))
}

/// The rules for `linux.devices`.
fn listed(spec: &Spec) -> Vec<DeviceRule> {
    let devices = spec.linux().as_ref().and_then(|linux| linux.devices().as_ref());
    let rule = |device: &LinuxDevice| {
        let kind = match device.typ() {
            LinuxDeviceType::B => DeviceKind::Block,
            LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
            _ => return None,
        };
        Some(DeviceRule::node(kind, u32::try_from(device.major()).ok()?, u32::try_from(device.minor()).ok()?))
    };
    devices.into_iter().flatten().filter_map(rule).collect()
}

/// Whether the workload can have a capability.
pub(crate) fn holds(spec: &Spec, capability: Capability) -> bool {
    let sets = spec.process().as_ref().and_then(|process| process.capabilities().as_ref());
    sets.and_then(|sets| sets.bounding().as_ref()).is_some_and(|set| set.contains(&capability))
}

/// It may mount, or less keeps it from what lets it mount than by default.
fn is_loose(spec: &Spec, filter: &Seccomp) -> bool {
    let linux = spec.linux().as_ref();
    let has = |paths: Option<&Vec<String>>, path: &str| paths.is_some_and(|all| all.iter().any(|known| known == path));
    let readonly = linux.and_then(|linux| linux.readonly_paths().as_ref());
    let masked = linux.and_then(|linux| linux.masked_paths().as_ref());
    let expected = Masking::DOCKER_2026_11;
    let covered = expected.readonly.iter().all(|path| has(readonly, path))
        && expected.masked.iter().all(|path| has(masked, path));
    holds(spec, Capability::SysAdmin) || !covered || matches!(filter, Seccomp::Unconfined | Seccomp::Custom(_))
}

/// The rule for the device that a mount has as its source.
fn device(mount: &Mount) -> Option<DeviceRule> {
    let status = std::fs::metadata(mount.source().as_ref()?).ok()?;
    let kind = match status.file_type() {
        kind if kind.is_char_device() => DeviceKind::Character,
        kind if kind.is_block_device() => DeviceKind::Block,
        _ => return None,
    };
    Some(DeviceRule::node(kind, libc::major(status.rdev()), libc::minor(status.rdev())))
}
