//! From an image's config and the caller's options to an OCI runtime spec.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    BoxBuilder, Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, Mount,
    MountBuilder, PosixRlimit, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use super::user::User;
use crate::isolation::MadeFile;
use crate::security::{CapabilitySet, Masking};
use crate::sys::terminal::WindowSize;
use crate::{Error, ErrorKind, Result};

/// Everything that goes into a spec, decided.
pub(super) struct Decided {
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) terminal: Option<WindowSize>,
    pub(super) cwd: PathBuf,
    pub(super) user: User,
    pub(super) hostname: String,
    pub(super) host_network: bool,
    pub(super) read_only: bool,
    pub(super) capabilities: CapabilitySet,
    pub(super) no_new_privileges: bool,
    pub(super) masking: Masking,
    pub(super) cpus: u32,
    pub(super) mounts: Vec<Mount>,
    pub(super) rlimits: Vec<PosixRlimit>,
    pub(super) user_namespace: bool,
    /// Made for the container; shown over the image's.
    pub(super) files: Vec<MadeFile>,
}

fn built<T>(result: std::result::Result<T, oci_spec::OciSpecError>) -> Result<T> {
    result.map_err(|error| Error::new(ErrorKind::Invalid, "write the container's spec").source_is(error))
}

/// The spec, see <https://github.com/opencontainers/runtime-spec/blob/main/config.md>.
pub(super) fn build(decided: Decided) -> Result<Spec> {
    let set = capabilities(decided.capabilities);
    // A user who is not root gets none by exec; nothing is inheritable, so nothing comes back (CVE-2022-24769).
    let capabilities = built(
        LinuxCapabilitiesBuilder::default()
            .bounding(set.clone())
            .permitted(set.clone())
            .effective(set)
            .inheritable(HashSet::new())
            .ambient(HashSet::new())
            .build(),
    )?;
    // The primary group is a supplementary one as well: a program that drops its primary group keeps what files refuse
    // to that group (CVE-2022-36109).
    let groups = std::iter::once(decided.user.gid).chain(decided.user.groups).collect::<Vec<_>>();
    let user =
        built(UserBuilder::default().uid(decided.user.uid).gid(decided.user.gid).additional_gids(groups).build())?;
    let mut process = ProcessBuilder::default();
    if let Some(WindowSize { rows, columns }) = decided.terminal {
        let size = BoxBuilder::default().height(u64::from(rows)).width(u64::from(columns));
        process = process.console_size(built(size.build())?);
    }
    let process = built(
        process
            .terminal(decided.terminal.is_some())
            .user(user)
            .args(decided.args)
            .env(decided.env)
            .cwd(decided.cwd)
            .capabilities(capabilities)
            .rlimits(decided.rlimits)
            .no_new_privileges(decided.no_new_privileges)
            .build(),
    )?;
    let mut kinds = vec![
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Cgroup,
    ];
    if !decided.host_network {
        kinds.push(LinuxNamespaceType::Network);
    }
    if decided.user_namespace {
        kinds.push(LinuxNamespaceType::User);
    }
    let namespaces: Result<Vec<_>> =
        kinds.into_iter().map(|kind| built(LinuxNamespaceBuilder::default().typ(kind).build())).collect();
    let masked: Vec<String> = decided.masking.masked_paths(decided.cpus).collect();
    let readonly: Vec<String> = decided.masking.readonly.iter().map(|path| (*path).to_owned()).collect();
    let mut linux =
        built(LinuxBuilder::default().namespaces(namespaces?).masked_paths(masked).readonly_paths(readonly).build())?;
    // Defaults of the crate that nobody asked for.
    linux.set_resources(None).set_cgroups_path(None).set_devices(None).set_uid_mappings(None).set_gid_mappings(None);
    let mounts = ordered(defaults()?, decided.mounts)?;
    built(
        SpecBuilder::default()
            .version("1.2.0")
            .root(built(RootBuilder::default().path("rootfs").readonly(decided.read_only).build())?)
            .hostname(decided.hostname)
            .process(process)
            .linux(linux)
            .mounts(mounts)
            .build(),
    )
}

/// A mount of the spec.
pub(super) fn mount(kind: &str, source: &str, target: &str, options: &[&str]) -> Result<Mount> {
    let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
    built(MountBuilder::default().typ(kind).source(source).destination(target).options(options).build())
}

/// What every container has and what the caller mounts, in an order in which nothing covers another: what lies deeper
/// comes later, and of equal depth what was named first comes first.
fn ordered(defaults: Vec<Mount>, own: Vec<Mount>) -> Result<Vec<Mount>> {
    // Components, so that `/a/` and `/a//.` are `/a`.
    let target = |mount: &Mount| -> PathBuf { mount.destination().components().collect() };
    let mut targets = HashSet::new();
    if let Some(twice) = own.iter().map(target).find(|path| !targets.insert(path.clone())) {
        return Err(Error::new(ErrorKind::Invalid, "mount into the container")
            .path(twice)
            .because("two mounts have this target, and one would hide the other")
            .remedy("leave one of them out"));
    }
    let dev = Path::new("/dev");
    let brings_dev = own.iter().any(|mount| target(mount) == dev && mount.typ().as_deref() != Some("tmpfs"));
    // The caller's stands in for one that every container has. What covers `/dev` as a whole covers what is mounted in
    // it; the tmpfs below is needed all the same, for it holds the devices.
    let replaced = |path: &Path| match brings_dev && path.starts_with(dev) {
        true => path != dev,
        false => targets.contains(path),
    };
    let mut all: Vec<Mount> = defaults.into_iter().filter(|mount| !replaced(&target(mount))).collect();
    all.extend(own);
    all.sort_by_key(|mount| target(mount).components().count());
    Ok(all)
}

/// What every container has, as docker has it.
fn defaults() -> Result<Vec<Mount>> {
    Ok(vec![
        mount("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"])?,
        mount("tmpfs", "tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "devpts",
            "devpts",
            "/dev/pts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("tmpfs", "shm", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])?,
        mount("mqueue", "mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"])?,
        mount("sysfs", "sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"])?,
        mount("cgroup", "cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"])?,
    ])
}

fn capabilities(set: CapabilitySet) -> HashSet<Capability> {
    // The spec's crate writes the names without their prefix; a test sees to it that it knows all of ours.
    set.iter().filter_map(|capability| capability.name().trim_start_matches("CAP_").parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The targets of the spec, for these of the caller's.
    fn order(own: &[(&str, &str)]) -> Result<Vec<String>> {
        let own = own.iter().map(|(kind, target)| mount(kind, "/source", target, &[])).collect::<Result<_>>()?;
        let all = ordered(defaults()?, own)?;
        Ok(all.iter().map(|mount| mount.destination().display().to_string()).collect())
    }

    #[test]
    fn deeper_mounts_come_later() {
        let all = order(&[("bind", "/data/in"), ("tmpfs", "/data/"), ("bind", "/b"), ("bind", "/data/in/x")]).unwrap();
        let own: Vec<&str> = all.iter().map(String::as_str).filter(|it| it.contains("/data") || *it == "/b").collect();
        assert_eq!(own, ["/data/", "/b", "/data/in", "/data/in/x"]);
        let at = |target: &str| all.iter().position(|it| it == target).unwrap();
        assert!(at("/dev") < at("/dev/pts") && at("/sys") < at("/sys/fs/cgroup"));
    }

    #[test]
    fn two_mounts_of_one_target_are_refused() {
        for pair in [["/a", "/a"], ["/a/b", "/a//b/."]] {
            let error = order(&[("tmpfs", pair[0]), ("bind", pair[1])]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(pair[0]), "{error}");
        }
    }

    #[test]
    fn the_callers_mount_replaces_one_that_every_container_has() {
        let count = |own: &[(&str, &str)], target: &str| order(own).unwrap().iter().filter(|it| *it == target).count();
        assert_eq!(count(&[("tmpfs", "/dev/shm")], "/dev/shm"), 1);
        assert_eq!(count(&[("tmpfs", "/dev")], "/dev"), 1);
        assert_eq!(count(&[("tmpfs", "/dev")], "/dev/pts"), 1);
        assert_eq!((count(&[("bind", "/dev")], "/dev"), count(&[("bind", "/dev")], "/dev/pts")), (2, 0));
    }

    #[test]
    fn every_capability_goes_into_the_spec() {
        assert_eq!(capabilities(CapabilitySet::ALL).len(), 41);
    }
}
