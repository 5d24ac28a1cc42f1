//! Changes that a caller makes to the OCI runtime spec itself, and what follows from them.

use std::fmt;
use std::sync::Arc;

use oci_spec::runtime::{LinuxNamespaceType as Namespace, Process, Spec};

use super::builder::ContainerBuilder;
use crate::cgroup::Devices;
use crate::isolation::{Aspect, resources, validate};
use crate::security::seccomp::Policy;
use crate::security::{Capability, CapabilitySet, Masking, Seccomp};
use crate::{Error, ErrorKind, Result};

type Edit = Arc<dyn Fn(&mut Spec) + Send + Sync>;

/// In the order in which they were asked for.
#[derive(Clone, Default)]
pub(super) struct Edits(Vec<Edit>);

impl fmt::Debug for Edits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Edits({})", self.0.len())
    }
}

impl Edits {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl ContainerBuilder {
    /// Changes the container's [OCI runtime spec](super::runtime_spec) itself, for what has no method of its own here:
    /// namespaces that are joined by path, `sysctl`, devices, `oomScoreAdj`, the five sets of capabilities, …. **Advanced:**
    /// the spec is what is done, so a change can take protection away that the other methods would have kept.
    ///
    /// Called at each start, with the spec that everything else has come to; several changes are made in the order in
    /// which they were asked for. What comes out is validated as a whole: a field that is not honoured here, or not on
    /// this host, is an error that names it (`linux.intelRdt`), never passed over. What a change gives away lowers what
    /// the default [`Requirement`](crate::isolation::Requirement) asks for, as options do; a level that was asked for
    /// by [`at_least`](crate::isolation::Requirement::at_least) stays.
    ///
    /// `root.path` stays what it is. A `linux.seccomp` takes the place of the profile's filter. A host name that is
    /// changed is also that of `/etc/hostname` and `/etc/hosts`.
    ///
    /// ```no_run
    /// # fn main() -> coracle::Result<()> {
    /// # let engine = coracle::Engine::open_default()?;
    /// let image = engine.load("debian.tar")?;
    /// let settings = [("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned())];
    /// let web = image.container().spec(move |spec| {
    ///     if let Some(linux) = spec.linux_mut() {
    ///         linux.set_sysctl(Some(settings.clone().into()));
    ///     }
    /// });
    /// web.status()?;
    /// // A setting of the whole machine is refused.
    /// let wrong = image.container().spec(|spec| {
    ///     if let Some(linux) = spec.linux_mut() {
    ///         linux.set_sysctl(Some([("vm.swappiness".to_owned(), "0".to_owned())].into()));
    ///     }
    /// });
    /// assert!(wrong.status().is_err());
    /// # Ok(())
    /// # }
    /// ```
    pub fn spec(mut self, change: impl Fn(&mut Spec) + Send + Sync + 'static) -> Self {
        self.edits.0.push(Arc::new(change));
        self
    }

    /// Makes the changes; whether there were any.
    pub(super) fn edit(&self, spec: &mut Spec) -> Result<bool> {
        if self.edits.is_empty() {
            return Ok(false);
        }
        for edit in &self.edits.0 {
            edit(spec);
        }
        let runtime = &self.runtime;
        validate::validate(spec, &runtime.identity)?;
        let Some(process) = spec.process() else { return Ok(true) };
        let size = process.console_size().map(|size| (size.height(), size.width()));
        let own = self.tty.map(|size| (u64::from(size.rows), u64::from(size.columns)));
        if process.terminal().unwrap_or(false) != self.tty.is_some() || size != own {
            let why = "whose terminal it is and how large is the builder's to say";
            return Err(
                validate::refused("process.terminal", ErrorKind::Unsupported, why).remedy("use ContainerBuilder::tty")
            );
        }
        let user = process.user();
        let groups = user.additional_gids().clone().unwrap_or_default();
        if let Some((why, remedy)) = runtime.identity.refuses(user.uid(), user.gid(), &groups) {
            return Err(validate::refused("process.user", ErrorKind::Unsupported, why).remedy(remedy));
        }
        if !runtime.identity.is_rootless() {
            let possible = CapabilitySet::from_bits_truncate(runtime.host.bounding_capabilities());
            let wanted = bounding(process).union(permitted(process));
            if let Some(lost) = wanted.iter().find(|capability| !possible.contains(*capability)) {
                return Err(validate::refused(
                    "process.capabilities",
                    ErrorKind::Denied,
                    format!("this program does not have {} in its bounding set itself", lost.name()),
                )
                .remedy("take it out of the spec, or run this program with it"));
            }
        }
        Ok(true)
    }

    /// The filter that the spec asks for, with the flags of seccomp(2) for it; the profile's where it has none.
    pub(super) fn filter(&self, spec: &Spec) -> Result<(Seccomp, u32)> {
        match spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) {
            Some(seccomp) => {
                let (policy, flags) = Policy::from_spec(seccomp)?;
                Ok((Seccomp::Custom(Arc::new(policy)), flags))
            }
            None => Ok((self.profile.seccomp.clone(), 0)),
        }
    }
}

/// What the spec gives away that the builder's own options do not.
pub(super) fn given_away(spec: &Spec, filter: &Seccomp) -> Vec<Aspect> {
    let mut waived = vec![];
    let own = |kind| validate::namespaces(spec).any(|(typ, path)| typ == kind && path.is_none());
    if !own(Namespace::Network) {
        waived.push(Aspect::Network);
    }
    if !own(Namespace::Pid) || !own(Namespace::Ipc) {
        waived.push(Aspect::Processes);
    }
    if matches!(filter, Seccomp::Unconfined | Seccomp::Custom(_)) {
        waived.push(Aspect::Syscalls);
    }
    let linux = spec.linux().as_ref();
    let paths = |pick: fn(&oci_spec::runtime::Linux) -> &Option<Vec<String>>, wanted: &[&str]| {
        let all = linux.and_then(|linux| pick(linux).as_ref());
        wanted.iter().all(|path| all.is_some_and(|all| all.iter().any(|known| known == path)))
    };
    let expected = Masking::DOCKER_2026_11;
    let covered = paths(oci_spec::runtime::Linux::masked_paths, expected.masked)
        && paths(oci_spec::runtime::Linux::readonly_paths, expected.readonly);
    let process = spec.process().as_ref();
    let any_device = matches!(resources::devices(spec), Ok(Some(Devices::Any)));
    let loose =
        !covered || any_device || process.is_some_and(|process| bounding(process).contains(Capability::SysAdmin));
    if loose || !process.and_then(Process::no_new_privileges).unwrap_or(false) {
        waived.push(Aspect::Privileges);
    }
    if loose {
        waived.push(Aspect::FilesystemWrite);
    }
    waived
}

/// The bounding set of the spec.
pub(super) fn bounding(process: &Process) -> CapabilitySet {
    set(process.capabilities().as_ref().and_then(|sets| sets.bounding().as_ref()))
}

fn permitted(process: &Process) -> CapabilitySet {
    set(process.capabilities().as_ref().and_then(|sets| sets.permitted().as_ref()))
}

fn set(set: Option<&oci_spec::runtime::Capabilities>) -> CapabilitySet {
    let names = set.into_iter().flatten();
    let known = names.filter_map(|capability| capability.to_string().parse::<Capability>().ok());
    known.fold(CapabilitySet::EMPTY, CapabilitySet::with)
}

/// Says that no host name is sound that a file could not hold.
pub(super) fn hostname(spec: &Spec) -> Result<Option<&str>> {
    match spec.hostname().as_deref() {
        Some(name) if !super::decide::is_sound(name) => {
            Err(Error::new(ErrorKind::Invalid, "honour hostname of the container's spec")
                .because("host names are 1 to 63 letters, digits, `-`, `_` and `.`"))
        }
        name => Ok(name),
    }
}
