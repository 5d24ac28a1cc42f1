//! From an image's config and the caller's options to an OCI runtime spec.

use std::collections::HashSet;
use std::path::PathBuf;

use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder,
    PosixRlimit, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use super::user::User;
use crate::isolation::MadeFile;
use crate::security::{CapabilitySet, Masking};
use crate::{Error, ErrorKind, Result};

/// Everything that goes into a spec, decided.
pub(super) struct Decided {
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
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
    let user = built(
        UserBuilder::default()
            .uid(decided.user.uid)
            .gid(decided.user.gid)
            .additional_gids(decided.user.groups.clone())
            .build(),
    )?;
    let process = built(
        ProcessBuilder::default()
            .terminal(false)
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
    let linux =
        built(LinuxBuilder::default().namespaces(namespaces?).masked_paths(masked).readonly_paths(readonly).build())?;
    let mut mounts = defaults()?;
    mounts.extend(decided.mounts);
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
    use super::*;

    #[test]
    fn every_capability_goes_into_the_spec() {
        assert_eq!(capabilities(CapabilitySet::ALL).len(), 41);
    }
}
