//! Device nodes of a container: those that each has, and those of the spec.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};

use super::Request;
use super::tree::open_source;
use crate::launch::{Plan, Reg};
use crate::{Error, ErrorKind, Result};

/// Name, major, minor: what every container finds in `/dev` (OCI runtime spec, config-linux.md, "Default devices").
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// `linux.devices`.
pub(super) fn devices_of(spec: &Spec) -> &[LinuxDevice] {
    spec.linux().as_ref().and_then(|linux| linux.devices().as_deref()).unwrap_or_default()
}

/// Nodes of `linux.devices` among the parts.
pub(super) fn make_devices(plan: &mut Plan, parts: Reg, nodes: &[LinuxDevice]) {
    for (index, device) in nodes.iter().enumerate() {
        let name = format!("device{index}");
        let kind = match device.typ() {
            LinuxDeviceType::B => libc::S_IFBLK,
            LinuxDeviceType::P => libc::S_IFIFO,
            _ => libc::S_IFCHR,
        };
        let mode = device.file_mode().unwrap_or(0o666) & 0o7777;
        // Both were found to fit.
        let number = |number: i64| u32::try_from(number).unwrap_or(0);
        let numbers = if kind == libc::S_IFIFO { (0, 0) } else { (number(device.major()), number(device.minor())) };
        plan.node(parts, &name, kind | mode, numbers);
        if let owner @ (1.., _) | owner @ (_, 1..) = (device.uid().unwrap_or(0), device.gid().unwrap_or(0)) {
            plan.owner(parts, &name, owner.0, owner.1, mode);
        }
    }
}

/// What stands for `linux.devices` in a user namespace: the host's devices of the same paths, proven to be them.
pub(super) fn given_devices(plan: &mut Plan, nodes: &[LinuxDevice]) -> Result<Vec<Reg>> {
    let mut found = vec![];
    for device in nodes {
        let kind = device.typ();
        let number = |number: i64| u32::try_from(number).unwrap_or(u32::MAX);
        let numbers = (number(device.major()), number(device.minor()));
        found.push(host_device(plan, device.path(), kind == LinuxDeviceType::B, numbers)?);
    }
    Ok(found)
}

/// The host's device files, for user namespaces, which may not make their own: proven to be the devices they are
/// called after, by descriptor.
pub(super) fn host_devices(plan: &mut Plan) -> Result<Vec<(&'static str, Reg)>> {
    let mut found = vec![];
    for (name, major, minor) in DEVICES {
        let path = Path::new("/dev").join(name);
        found.push((name, host_device(plan, &path, false, (major, minor))?));
    }
    Ok(found)
}

fn host_device(plan: &mut Plan, path: &Path, block: bool, (major, minor): (u32, u32)) -> Result<Reg> {
    let file = open_source(path)?;
    let status = file.metadata().map_err(|error| Error::io("use the host's device", "fstat", error).path(path))?;
    let device = (libc::major(status.rdev()), libc::minor(status.rdev()));
    let kind = status.file_type();
    if !(if block { kind.is_block_device() } else { kind.is_char_device() }) || device != (major, minor) {
        let word = if block { "block" } else { "character" };
        return Err(Error::new(ErrorKind::Hostile, "use the host's device")
            .path(path)
            .because(format!("it is not the {word} device {major}:{minor}")));
    }
    let expect = plan.send(file.into());
    Ok(plan.open_tree(None, path, false, Some(expect)))
}

/// Fills the parts: device nodes, files made for this container, and an empty directory for masks.
pub(super) fn furnish(plan: &mut Plan, parts: Reg, request: &Request<'_>, host_devices: &[(&str, Reg)]) {
    plan.directory(parts, "empty", 0o555);
    for file in &request.files {
        plan.file(parts, file.name, 0o644, &file.content);
    }
    for (name, major, minor) in DEVICES {
        match host_devices.iter().find(|(known, _)| *known == name) {
            Some((_, mount)) => {
                plan.file(parts, name, 0o666, b"");
                plan.attach_in(*mount, parts, name);
            }
            None => plan.node(parts, name, libc::S_IFCHR | 0o666, (major, minor)),
        }
    }
}

/// What the container finds in its `/dev`, besides what the spec mounts there.
pub(super) fn devices(plan: &mut Plan, parts: Reg, dev: Reg) {
    for (name, ..) in DEVICES {
        let node = plan.open_tree(Some(parts), Path::new(name), false, None);
        plan.file(dev, name, 0o666, b"");
        plan.attach_in(node, dev, name);
    }
    for (target, name) in LINKS {
        plan.symlink(dev, target, name);
    }
}
