//! Profiles: everything that restricts a container's processes, chosen together.

use std::sync::{Arc, Mutex, PoisonError};

use super::seccomp::{Arch, Policy, Target};
use super::{CapabilitySet, LandlockLayer, Masking};
use crate::probe::KernelVersion;
use crate::{Error, ErrorKind, Result};

/// Which system call filter.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Seccomp {
    /// None.
    Unconfined,
    /// [`Policy::docker_2026_11`].
    Docker2026_11,
    /// [`Policy::strict_2026_11`].
    Strict2026_11,
    /// One's own.
    Custom(Arc<Policy>),
}

impl Seccomp {
    /// The filter program for this machine, to be installed with seccomp(2): `struct sock_filter` entries of 8 bytes.
    /// `None` for [`Seccomp::Unconfined`].
    ///
    /// # Errors
    /// `Unsupported` on an instruction set without tables here, and those of [`Policy::compile`].
    pub fn compile(&self, capabilities: CapabilitySet, kernel: KernelVersion) -> Result<Option<Vec<u8>>> {
        let built;
        let policy = match self {
            Seccomp::Unconfined => return Ok(None),
            Seccomp::Docker2026_11 => {
                built = Policy::docker_2026_11();
                &built
            }
            Seccomp::Strict2026_11 => {
                built = Policy::strict_2026_11();
                &built
            }
            Seccomp::Custom(policy) => &**policy,
        };
        let arch = Arch::native().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "compile a seccomp policy")
                .because(format!("there are no system call tables for {}", std::env::consts::ARCH))
                .remedy("an unconfined profile, if that is acceptable")
        })?;
        policy.compile(&Target { arch, kernel, capabilities }).map(Some)
    }
}

/// What restricts a container's processes.
///
/// ```
/// use coracle::security::{Capability, Profile};
///
/// let mut profile = Profile::DOCKER_2026_11;
/// profile.capabilities = profile.capabilities.without(Capability::NetRaw);
/// profile.no_new_privs = true;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Profile {
    /// What root in the container keeps: the permitted, effective and bounding sets.
    pub capabilities: CapabilitySet,
    /// The system call filter.
    pub seccomp: Seccomp,
    /// Hidden and read-only paths.
    pub masking: Masking,
    /// Whether set-uid programs and file capabilities give nothing, see `PR_SET_NO_NEW_PRIVS` in prctl(2).
    pub no_new_privs: bool,
    /// Whether landlock lies on top. Where the kernel has none, that is a lower [`Enforcement`] of privileges, and an
    /// error unless the [`Requirement`] accepts it.
    ///
    /// [`Enforcement`]: crate::isolation::Enforcement
    /// [`Requirement`]: crate::isolation::Requirement
    pub landlock: LandlockLayer,
}

impl Profile {
    /// What docker does by default, as of November 2026.
    pub const DOCKER_2026_11: Profile = Profile {
        capabilities: CapabilitySet::DOCKER_2026_11,
        seccomp: Seccomp::Docker2026_11,
        masking: Masking::DOCKER_2026_11,
        no_new_privs: false,
        landlock: LandlockLayer::None,
    };

    /// What a container gets when nothing is said: docker's, and no-new-privileges on, so that set-uid programs of an
    /// image give nothing.
    pub const DEFAULT_2026_11: Profile = Profile { no_new_privs: true, ..Profile::DOCKER_2026_11 };

    /// Every capability, no filter, nothing hidden: what `--privileged` gives. Only namespaces are left.
    pub const UNCONFINED: Profile = Profile {
        capabilities: CapabilitySet::ALL,
        seccomp: Seccomp::Unconfined,
        masking: Masking::NONE,
        no_new_privs: false,
        landlock: LandlockLayer::None,
    };

    /// For code that nobody trusts, as of November 2026: no capability, the strict filter, no effect of set-uid programs,
    /// and [landlock](LandlockLayer::Layer2026_11) on top. Network there is none unless a container asks for it.
    ///
    /// Root in the container is root without rights, then: it may do with its own files what any user may with his, and
    /// neither change owners nor act as another user.
    pub const UNTRUSTED_2026_11: Profile = Profile {
        capabilities: CapabilitySet::EMPTY,
        seccomp: Seccomp::Strict2026_11,
        masking: Masking::DOCKER_2026_11,
        no_new_privs: true,
        landlock: LandlockLayer::Layer2026_11,
    };
}

/// Compiled filters, so that a launch does not compile what an earlier one did. Shared by all threads of an engine.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    // Newest last. Few: an engine uses a handful of profiles, and a search through them is shorter than hashing one.
    cached: Mutex<Vec<Cached>>,
}

#[derive(Debug)]
struct Cached {
    seccomp: Seccomp,
    capabilities: CapabilitySet,
    kernel: KernelVersion,
    program: Arc<[u8]>,
}

impl Filters {
    const CAPACITY: usize = 16;

    /// As [`Seccomp::compile`], from the cache if it is there.
    pub(crate) fn get(
        &self,
        seccomp: &Seccomp,
        capabilities: CapabilitySet,
        kernel: KernelVersion,
    ) -> Result<Option<Arc<[u8]>>> {
        // Comparing policies rule by rule would cost as much as compiling: one's own is known by its address.
        let same = |one: &Seccomp| match (one, seccomp) {
            (Seccomp::Custom(one), Seccomp::Custom(other)) => Arc::ptr_eq(one, other),
            (one, other) => std::mem::discriminant(one) == std::mem::discriminant(other),
        };
        let is_it = |one: &&Cached| same(&one.seccomp) && one.capabilities == capabilities && one.kernel == kernel;
        // A panic while the lock was held cannot leave the list half changed.
        if let Some(found) = self.cached.lock().unwrap_or_else(PoisonError::into_inner).iter().find(is_it) {
            return Ok(Some(Arc::clone(&found.program)));
        }
        let Some(program) = seccomp.compile(capabilities, kernel)? else { return Ok(None) };
        let program: Arc<[u8]> = program.into();
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.len() >= Filters::CAPACITY {
            cached.remove(0);
        }
        cached.push(Cached { seccomp: seccomp.clone(), capabilities, kernel, program: Arc::clone(&program) });
        Ok(Some(program))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::security::Capability;

    const KERNEL: KernelVersion = KernelVersion::new(6, 1);

    #[test]
    fn filters_are_compiled_once() {
        let filters = Filters::default();
        let docker = Profile::DOCKER_2026_11;
        let first = filters.get(&docker.seccomp, docker.capabilities, KERNEL).unwrap().unwrap();
        let again = filters.get(&docker.seccomp, docker.capabilities, KERNEL).unwrap().unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        // Other capabilities are another filter.
        let more = docker.capabilities.with(Capability::SysAdmin);
        assert_ne!(filters.get(&docker.seccomp, more, KERNEL).unwrap().unwrap(), first);
        assert_eq!(filters.get(&Seccomp::Unconfined, more, KERNEL).unwrap(), None);
        let custom = Seccomp::Custom(Arc::new(Policy::docker_2026_11()));
        let own = filters.get(&custom, docker.capabilities, KERNEL).unwrap().unwrap();
        assert_eq!(own, first);
        assert!(!Arc::ptr_eq(&own, &first));
        for bits in 0..100 {
            filters.get(&docker.seccomp, CapabilitySet::from_bits_truncate(bits), KERNEL).unwrap();
        }
        assert_eq!(filters.cached.lock().unwrap().len(), Filters::CAPACITY);
    }
}
