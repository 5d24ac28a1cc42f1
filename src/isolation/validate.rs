//! What of an OCI runtime spec is honoured here: everything else is an error that names the field.
//!
//! The names are those of the JSON document, e.g. `linux.intelRdt` or `mounts[2].uidMappings`, see
//! <https://github.com/opencontainers/runtime-spec/blob/main/config.md>. Nothing is passed over: a field that is not
//! honoured is refused, whatever it would have meant.

use std::collections::HashSet;
use std::path::{Component, Path};

use oci_spec::runtime::{
    Capability, Hooks, Linux, LinuxIdMapping, LinuxNamespaceType as Namespace, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, Process, Spec,
};
use serde_json::Value;

use super::devices;
use super::{Identity, mount_options, resources, sysctl, userns};
use crate::{Error, ErrorKind, Result};

/// A field that cannot be honoured.
pub(crate) fn refused(
    field: impl AsRef<str>,
    kind: ErrorKind,
    why: impl Into<std::borrow::Cow<'static, str>>,
) -> Error {
    Error::new(kind, format!("honour {} of the container's spec", field.as_ref())).because(why)
}

fn unsupported(field: impl AsRef<str>, why: &'static str) -> Error {
    refused(field, ErrorKind::Unsupported, why)
}

fn invalid(field: impl AsRef<str>, why: &'static str) -> Error {
    refused(field, ErrorKind::Invalid, why)
}

/// Reads a spec; what this crate does not know of it is an error, too.
///
/// # Errors
/// `Invalid` for what is no spec, `Unsupported` for a field that is not known, by its name.
#[allow(dead_code, reason = "for the front that reads a bundle's config.json")]
pub(crate) fn from_json(bytes: &[u8]) -> Result<Spec> {
    let step = "read the container's spec";
    let fail = |error: serde_json::Error| Error::new(ErrorKind::Invalid, step).because(error.to_string());
    let given: Value = serde_json::from_slice(bytes).map_err(fail)?;
    // A list of values would do for the reader below as well.
    if !given.is_object() {
        return Err(Error::new(ErrorKind::Invalid, step).because("it is no JSON object"));
    }
    let spec: Spec = serde_json::from_slice(bytes).map_err(fail)?;
    let kept = serde_json::to_value(&spec).map_err(fail)?;
    match lost(&given, &kept, String::new()) {
        Some(field) => Err(unsupported(field, "no field of that name, or no such value of it, is known here")),
        None => Ok(spec),
    }
}

/// The first field of `given` that `kept` has no more, or has otherwise. What is empty may go.
fn lost(given: &Value, kept: &Value, at: String) -> Option<String> {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => given.iter().find_map(|(name, value)| {
            let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
            match kept.get(name) {
                Some(kept) => lost(value, kept, at),
                None if is_empty(value) => None,
                None => Some(at),
            }
        }),
        // Capabilities are a set, so their order may be another.
        (Value::Array(given), Value::Array(kept)) if at.starts_with("process.capabilities.") => {
            given.iter().position(|value| !kept.contains(value)).map(|index| format!("{at}[{index}]"))
        }
        (Value::Array(given), Value::Array(kept)) => given.iter().enumerate().find_map(|(index, value)| {
            let at = format!("{at}[{index}]");
            kept.get(index).map_or(Some(at.clone()), |kept| lost(value, kept, at))
        }),
        (given, kept) if given == kept || is_empty(given) && is_empty(kept) => None,
        _ => Some(at),
    }
}

/// What the namespaces backend cannot honour of a spec, for a container of this identity.
///
/// # Errors
/// `Unsupported` for what is not done here, `Invalid` for what cannot mean anything; each names the field.
pub(crate) fn validate(spec: &Spec, identity: &Identity) -> Result<()> {
    let other_systems = [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
    ];
    if let Some((field, _)) = other_systems.iter().find(|(_, is_there)| *is_there) {
        return Err(unsupported(field, "containers here are processes of this Linux"));
    }
    #[allow(deprecated, reason = "the crate reads them, though no spec has them")]
    for (field, is_there) in
        [("uidMappings", spec.uid_mappings().is_some()), ("gidMappings", spec.gid_mappings().is_some())]
    {
        if is_there {
            return Err(unsupported(field, "the spec has it in linux and in mounts"));
        }
    }
    let root = spec.root().as_ref().ok_or_else(|| invalid("root", "a container needs one"))?;
    if root.path() != Path::new("rootfs") {
        return Err(unsupported("root.path", "the tree is that of the image, or of the directory, that was chosen"));
    }
    let own = |kind| namespaces(spec).any(|(typ, path)| typ == kind && path.is_none());
    for (field, is_there) in [("hostname", spec.hostname().is_some()), ("domainname", spec.domainname().is_some())] {
        if is_there && !own(Namespace::Uts) {
            return Err(invalid(field, "without a UTS namespace of its own that would be somebody else's name")
                .remedy("add the namespace, or take the field away"));
        }
    }
    process(spec.process().as_ref().ok_or_else(|| invalid("process", "a container needs one"))?)?;
    if let Some(hooks) = spec.hooks() {
        hooks_of(hooks)?;
        // They are the image's programs, and the container's first process still has all rights while it waits for them.
        if hooks.start_container().as_ref().is_some_and(|list| !list.is_empty())
            && devices::holds(spec, Capability::SysPtrace)
        {
            let why = "with CAP_SYS_PTRACE they could trace the process that sets the container up";
            return Err(unsupported("hooks.startContainer", why).remedy("leave the capability out, or the hooks"));
        }
    }
    mounts(spec, identity)?;
    match spec.linux() {
        Some(linux) => of_linux(spec, linux, identity),
        None => Err(invalid("linux", "a container needs its namespaces")),
    }
}

/// Kinds and paths.
pub(crate) fn namespaces(spec: &Spec) -> impl Iterator<Item = (Namespace, Option<&Path>)> {
    let all = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    all.into_iter().flatten().map(|namespace| (namespace.typ(), namespace.path().as_deref()))
}

fn process(process: &Process) -> Result<()> {
    if process.command_line().is_some() {
        return Err(unsupported("process.commandLine", "it is Windows'; use process.args"));
    }
    let user = process.user();
    if user.username().is_some() {
        return Err(unsupported("process.user.username", "it is Windows'; use process.user.uid and gid"));
    }
    if user.umask().is_some_and(|mask| mask > 0o777) {
        return Err(invalid("process.user.umask", "a mask has nine bits"));
    }
    if user.additional_gids().as_ref().is_some_and(|groups| groups.len() > 256) {
        return Err(unsupported("process.user.additionalGids", "there are more than 256"));
    }
    if !process.cwd().is_absolute() || process.cwd().components().any(|part| part == Component::ParentDir) {
        return Err(invalid("process.cwd", "it has to be an absolute path without `..`"));
    }
    let mut kinds = vec![];
    for (index, limit) in process.rlimits().iter().flatten().enumerate() {
        if kinds.contains(&limit.typ()) {
            return Err(invalid(format!("process.rlimits[{index}].type"), "it is there twice"));
        }
        if limit.soft() > limit.hard() {
            return Err(invalid(format!("process.rlimits[{index}].soft"), "it is more than the hard limit"));
        }
        kinds.push(limit.typ());
    }
    if process.oom_score_adj().is_some_and(|score| !(-1000..=1000).contains(&score)) {
        return Err(invalid("process.oomScoreAdj", "scores are -1000 to 1000"));
    }
    if let Some(priority) = process.io_priority()
        && !(0..=7).contains(&priority.priority())
    {
        return Err(invalid("process.ioPriority.priority", "priorities are 0 to 7"));
    }
    if let Some(scheduler) = process.scheduler() {
        if *scheduler.policy() == LinuxSchedulerPolicy::SchedIso {
            return Err(unsupported("process.scheduler.policy", "no kernel has SCHED_ISO"));
        }
        let clamps = [LinuxSchedulerFlag::SchedFlagUtilClampMin, LinuxSchedulerFlag::SchedFlagUtilClampMax];
        if scheduler.flags().iter().flatten().any(|flag| clamps.contains(flag)) {
            return Err(unsupported("process.scheduler.flags", "the spec has no field for what to clamp to"));
        }
        if scheduler.priority().is_some_and(|priority| priority < 0) {
            return Err(invalid("process.scheduler.priority", "it is negative"));
        }
    }
    capabilities(process)
}

/// What capset(2) and prctl(2) would refuse, told by name.
fn capabilities(process: &Process) -> Result<()> {
    let Some(sets) = process.capabilities() else { return Ok(()) };
    type Set = Option<HashSet<oci_spec::runtime::Capability>>;
    let outside = |set: &Set, of: &Set| {
        let within = |capability| of.as_ref().is_some_and(|of| of.contains(capability));
        set.iter().flatten().any(|capability| !within(capability))
    };
    for (name, set, of, why) in [
        ("effective", sets.effective(), sets.permitted(), "it has some that are not permitted"),
        ("inheritable", sets.inheritable(), sets.bounding(), "it has some that are not in the bounding set"),
        ("ambient", sets.ambient(), sets.permitted(), "it has some that are not permitted"),
        ("ambient", sets.ambient(), sets.inheritable(), "it has some that are not inheritable"),
    ] {
        if outside(set, of) {
            return Err(invalid(format!("process.capabilities.{name}"), why));
        }
    }
    Ok(())
}

fn hooks_of(hooks: &Hooks) -> Result<()> {
    #[allow(deprecated, reason = "the spec still has it")]
    let all = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (name, list) in all {
        for (index, hook) in list.iter().flatten().enumerate() {
            let field = format!("hooks.{name}[{index}]");
            if !hook.path().is_absolute() {
                return Err(invalid(format!("{field}.path"), "it has to be an absolute path"));
            }
            if hook.timeout().is_some_and(|seconds| seconds <= 0) {
                return Err(invalid(format!("{field}.timeout"), "it has to be more than zero"));
            }
            let mut words = hook.args().iter().chain(hook.env()).flatten();
            if words.any(|word| word.contains('\0')) {
                return Err(invalid(field, "an argument or variable has a NUL in it"));
            }
        }
    }
    Ok(())
}

fn mounts(spec: &Spec, identity: &Identity) -> Result<()> {
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let at = format!("mounts[{index}]");
        let options = mount_options::parse(mount.options().as_deref().unwrap_or(&[]))?;
        let mapped = [("uidMappings", mount.uid_mappings()), ("gidMappings", mount.gid_mappings())];
        let is_mapped = mapped.iter().any(|(_, map)| map.is_some());
        match (options.idmap.is_some(), is_mapped) {
            (false, false) => continue,
            (false, true) => {
                return Err(invalid(format!("{at}.uidMappings"), "the options have neither idmap nor ridmap"));
            }
            (true, _) if mount.typ().as_deref().map_or(!options.bind, |kind| kind != "bind") => {
                return Err(unsupported(format!("{at}.options: idmap"), "ids are mapped of bind mounts only"));
            }
            (true, _) if identity.is_rootless() => {
                return Err(unsupported(format!("{at}.options: idmap"), "only root may map the ids of a mount"));
            }
            (true, false) if !namespaces(spec).any(|(kind, _)| kind == Namespace::User) => {
                return Err(invalid(
                    format!("{at}.uidMappings"),
                    "the options have idmap, and the container has no user namespace whose map could be used",
                ));
            }
            (true, _) => {}
        }
        for (name, map) in mapped {
            match map {
                Some(map) => id_map(&format!("{at}.{name}"), map)?,
                None if is_mapped => return Err(invalid(format!("{at}.{name}"), "it is missing beside the other one")),
                None => {}
            }
        }
    }
    Ok(())
}

/// An id map as the kernel takes it, see user_namespaces(7).
fn id_map(field: &str, map: &[LinuxIdMapping]) -> Result<()> {
    if map.is_empty() || map.len() > 340 {
        return Err(invalid(field, "a map has 1 to 340 ranges"));
    }
    let overlap = |one: (u32, u32), other: (u32, u32)| {
        let end = |(start, size): (u32, u32)| u64::from(start) + u64::from(size);
        u64::from(one.0) < end(other) && u64::from(other.0) < end(one)
    };
    for (index, entry) in map.iter().enumerate() {
        let ends = [entry.container_id(), entry.host_id()].map(|start| u64::from(start) + u64::from(entry.size()));
        // The last number is no id.
        if entry.size() == 0 || ends.iter().any(|end| *end > u64::from(u32::MAX)) {
            return Err(invalid(format!("{field}[{index}].size"), "it is zero, or the range has no end"));
        }
        for other in &map[..index] {
            if overlap((entry.container_id(), entry.size()), (other.container_id(), other.size()))
                || overlap((entry.host_id(), entry.size()), (other.host_id(), other.size()))
            {
                return Err(invalid(format!("{field}[{index}]"), "it overlaps another range"));
            }
        }
    }
    Ok(())
}

fn of_linux(spec: &Spec, linux: &Linux, identity: &Identity) -> Result<()> {
    for (field, is_there, why) in [
        ("linux.netDevices", linux.net_devices().is_some(), "interfaces are not moved into containers here"),
        ("linux.intelRdt", linux.intel_rdt().is_some(), "cache and memory bandwidth are not allotted here"),
        ("linux.memoryPolicy", linux.memory_policy().is_some(), "memory is not bound to nodes here"),
        ("linux.cgroupsPath", linux.cgroups_path().is_some(), "each container has a control group of its own making"),
    ] {
        if is_there {
            return Err(unsupported(field, why));
        }
    }
    resources::limits(spec)?;
    resources::devices(spec)?;
    all_namespaces(spec, linux, identity)?;
    for (name, value) in linux.sysctl().iter().flatten() {
        let field = format!("linux.sysctl[{name:?}]");
        let setting = sysctl::setting(name).map_err(|why| unsupported(&field, why))?;
        if !namespaces(spec).any(|(kind, path)| kind == setting.namespace && path.is_none()) {
            return Err(invalid(&field, "the container has no namespace of its own that the setting is of"));
        }
        if value.is_empty() || value.contains('\0') {
            return Err(invalid(&field, "the value is empty, or has a NUL in it"));
        }
    }
    for (name, paths) in [("maskedPaths", linux.masked_paths()), ("readonlyPaths", linux.readonly_paths())] {
        for (index, path) in paths.iter().flatten().enumerate() {
            let path = Path::new(path);
            if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
                return Err(invalid(format!("linux.{name}[{index}]"), "it has to be an absolute path without `..`"));
            }
        }
    }
    if let Some(kind) = linux.rootfs_propagation()
        && super::mount_options::propagation(kind).is_none()
    {
        return Err(invalid(
            "linux.rootfsPropagation",
            "it is private, slave, shared, unbindable or one with r in front",
        ));
    }
    if linux.personality().as_ref().is_some_and(|persona| !persona.flags().as_ref().is_none_or(Vec::is_empty)) {
        return Err(unsupported("linux.personality.flags", "the spec defines none"));
    }
    devices(linux, identity.is_rootless() || namespaces(spec).any(|(kind, _)| kind == Namespace::User))
}

fn all_namespaces(spec: &Spec, linux: &Linux, identity: &Identity) -> Result<()> {
    let mut kinds = vec![];
    for (index, (kind, path)) in namespaces(spec).enumerate() {
        let field = format!("linux.namespaces[{index}]");
        if kinds.contains(&kind) {
            return Err(invalid(format!("{field}.type"), "a namespace of that kind is there twice"));
        }
        kinds.push(kind);
        match path {
            Some(_) if kind == Namespace::Mount => {
                return Err(unsupported(
                    format!("{field}.path"),
                    "a tree that is made in a mount namespace of others would be theirs as well",
                ));
            }
            Some(path) if !path.is_absolute() => {
                return Err(invalid(format!("{field}.path"), "it has to be an absolute path of the host"));
            }
            _ => {}
        }
    }
    if !kinds.contains(&Namespace::Mount) {
        return Err(unsupported("linux.namespaces", "a container has a mount namespace"));
    }
    let user = namespaces(spec).find(|(kind, _)| *kind == Namespace::User);
    let maps = [("linux.uidMappings", linux.uid_mappings()), ("linux.gidMappings", linux.gid_mappings())];
    let maps = maps.map(|(field, map)| (field, map.as_deref().filter(|map| !map.is_empty())));
    match (user, identity.is_rootless()) {
        (None, true) => return Err(unsupported("linux.namespaces", "without root, a container has a user namespace")),
        (Some((_, None)), false) => {
            let user = spec.process().as_ref().map(Process::user);
            for ((field, map), ids) in maps.into_iter().zip([
                user.map(|user| ("uid", vec![user.uid()])),
                user.map(|user| {
                    let groups = user.additional_gids().iter().flatten().copied();
                    ("gid", std::iter::once(user.gid()).chain(groups).collect())
                }),
            ]) {
                let map = map.ok_or_else(|| invalid(field, "a user namespace of its own needs one"))?;
                id_map(field, map)?;
                if !map.iter().any(|entry| entry.container_id() == 0) {
                    return Err(invalid(field, "it has no root of the container, who makes it"));
                }
                let (name, ids) = ids.unwrap_or_default();
                if ids.iter().any(|id| userns::outside(map, *id).is_none()) {
                    let why = format!("{field} has not all of the user's ids");
                    return Err(refused(format!("process.user.{name}"), ErrorKind::Invalid, why)
                        .remedy("give the container a larger map"));
                }
            }
        }
        (found, rootless) => {
            if let Some((field, _)) = maps.iter().find(|(_, map)| map.is_some()) {
                return Err(match (found, rootless) {
                    (Some((_, None)), _) => {
                        unsupported(field, "without root, the map is that of /etc/subuid and /etc/subgid")
                    }
                    _ => invalid(field, "there is no user namespace to make that it could be the map of"),
                });
            }
        }
    }
    if let Some(offsets) = linux.time_offsets().as_ref().filter(|offsets| !offsets.is_empty()) {
        if !namespaces(spec).any(|(kind, path)| kind == Namespace::Time && path.is_none()) {
            return Err(invalid("linux.timeOffsets", "the container has no time namespace of its own"));
        }
        for (clock, offset) in offsets {
            if clock != "monotonic" && clock != "boottime" {
                return Err(unsupported(format!("linux.timeOffsets.{clock}"), "only monotonic and boottime have one"));
            }
            if offset.nanosecs().unwrap_or(0) > 999_999_999 {
                return Err(invalid(format!("linux.timeOffsets.{clock}.nanosecs"), "they are more than a second"));
            }
        }
    }
    Ok(())
}

fn devices(linux: &Linux, in_user_namespace: bool) -> Result<()> {
    use oci_spec::runtime::LinuxDeviceType as Kind;
    let devices = linux.devices().iter().flatten();
    for (index, device) in devices.enumerate() {
        let field = format!("linux.devices[{index}]");
        let path = device.path();
        let has_parent = path.components().any(|part| part == Component::ParentDir);
        if !path.is_absolute() || has_parent || path.starts_with("/proc") || path.starts_with("/sys") {
            return Err(invalid(
                format!("{field}.path"),
                "it has to be an absolute path without `..`, and outside of /proc and /sys",
            ));
        }
        match device.typ() {
            Kind::A => return Err(invalid(format!("{field}.type"), "`a` is no kind of device")),
            Kind::P if in_user_namespace => {}
            Kind::P => {}
            Kind::B | Kind::C | Kind::U => {
                let fits = (0..=0xfff).contains(&device.major()) && (0..=0xf_ffff).contains(&device.minor());
                if !fits {
                    return Err(invalid(format!("{field}.major"), "there are no such numbers of a device"));
                }
            }
        }
        let set = [
            ("fileMode", device.file_mode().is_some()),
            ("uid", device.uid().is_some()),
            ("gid", device.gid().is_some()),
        ];
        if let (true, Some((name, _))) = (in_user_namespace, set.iter().find(|(_, is_set)| *is_set)) {
            return Err(unsupported(
                format!("{field}.{name}"),
                "in a user namespace the host's own device is shown, whose owner and mode stay as they are",
            ));
        }
        if in_user_namespace && device.typ() == Kind::P {
            return Err(unsupported(format!("{field}.type"), "in a user namespace no named pipe is made"));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
