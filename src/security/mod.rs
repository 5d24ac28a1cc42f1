//! What a contained process may ask of the kernel: capabilities, a system call filter, hidden paths.
//!
//! * A **capability** is one piece of root's power; a [`CapabilitySet`] is what a container's root keeps.
//! * **Masking** hides or write-protects paths of procfs and sysfs that are not namespaced.
//! * A **[seccomp] policy** decides each system call.
//! * A **[landlock](Landlock)** ruleset decides each file that is opened.
//! * A [`Profile`] is one choice of all of them.
//!
//! Everything here is data, decided before a container starts; nothing in this module changes the calling process.
//! Sets are *dated constants*: an update of the crate adds a new constant and never changes an old one, so nobody's
//! sandbox changes unseen.

mod capability;
mod landlock;
mod masking;
mod profile;
pub mod seccomp;

pub use capability::{Capability, CapabilitySet};
pub use landlock::{Landlock, LandlockLayer};
pub use masking::Masking;
pub(crate) use profile::Filters;
pub use profile::{Profile, Seccomp};
