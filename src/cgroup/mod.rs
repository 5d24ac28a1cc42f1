//! Control groups: what a container may use, what it used, and a handle on all of its processes.
//!
//! Words, as cgroups(7) has them: a **hierarchy** is one mounted tree of groups; version 2 has a single one, version 1
//! has one per controller or so, and many hosts have both. A **controller** (`memory`, `pids`, …) belongs to exactly
//! one hierarchy. A **group** is a directory in a hierarchy; what we call [`Group`] is one directory of the same name
//! in every hierarchy that is needed.
//!
//! ```text
//! <mount>/<the group this process is in>/coracle/<name>/     version 1, one per controller
//! <mount>/<the group this process is in>/coracle/<name>/     version 2, see [`Parent`] for the exceptions
//! ```
//!
//! The life of a group: [`Driver::create`] makes the directories and writes the limits; the launcher has the
//! container's first process *born inside* version 2 ([`Group::clone_into_fd`]) and lets it write `0` to the already
//! open `tasks` files of version 1 ([`Group::join_fds`]); [`Group::kill`] ends everything in it, forked how it may;
//! [`Group::stats`] tells what it used; [`Group::remove`] takes the directories away.
//!
//! Nothing is mounted, the calling process is never moved, and groups of others are never touched. What could not be
//! enforced is a value, [`Group::unenforced`], never silence.

#[cfg(feature = "cgroups-rs")]
mod cgroups_rs;
mod devices;
mod direct;
mod group;
mod hierarchies;
mod limits;

#[cfg(feature = "cgroups-rs")]
pub use self::cgroups_rs::CgroupsRs;
pub use devices::{Access, DeviceKind, DeviceRule, Devices};
pub use direct::{Direct, Parent};
pub use group::{Group, Stats};
pub use hierarchies::Hierarchies;
pub use limits::{Controllers, CpuQuota, Limit, Limits, Swap, Unenforced};

use std::fmt;

use crate::{Error, ErrorKind, Result};

/// What a new group is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// What its processes may use. Each limit brings the controller that it needs.
    pub limits: Limits,
    /// Controllers wanted for [`Group::stats`] alone; each one costs the launch a directory on version 1.
    pub track: Controllers,
    /// The device nodes that its processes may use.
    pub devices: Devices,
}

/// A way to make groups.
///
/// * `create` either returns a whole group or leaves nothing behind. A limit that this host cannot enforce is in
///   [`Group::unenforced`]; a limit that the kernel calls wrong is an error. A name that is in use is `AlreadyExists`.
/// * `open` finds a group again by name, made by this process or an earlier one; `None` when there is none.
/// * `list` names the groups below this driver's parent; what lives in them may be another program's container.
///
/// All methods may be called from any thread at any time. [`contract::cgroup_driver`](crate::contract::cgroup_driver)
/// tries all of this.
pub trait Driver: fmt::Debug + Send + Sync {
    /// Makes a group of this name: 1 to 128 of `[A-Za-z0-9_-]`.
    fn create(&self, name: &str, request: &Request) -> Result<Group>;

    /// Finds a group again.
    fn open(&self, name: &str) -> Result<Option<Group>>;

    /// The names of the groups that there are, in no order.
    fn list(&self) -> Result<Vec<String>>;

    /// The controllers whose limits can be enforced here.
    fn available(&self) -> Controllers;

    /// Why the other controllers cannot be used, one entry for each kind of limit that will not hold.
    fn unavailable(&self) -> Vec<Unenforced>;
}

/// Refuses names that would mean another directory, or a control file.
fn check_name(name: &str) -> Result<()> {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if name.is_empty() || name.len() > 128 || !name.bytes().all(sound) {
        return Err(Error::new(ErrorKind::Invalid, format!("name a cgroup {name:?}"))
            .because("a name is 1 to 128 of A-Z, a-z, 0-9, `_` and `-`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
