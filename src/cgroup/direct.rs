//! The driver that works on the cgroup file systems themselves.
//!
//! Hierarchies are found once; the parent directory of each is opened at its first use and stays open, so that making
//! a group is one `mkdirat` and one `openat` in each hierarchy that the request needs, and one file per limit.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{AccessFlags, faccessat};

use super::group::{Group, Place, read_at, write_at};
use super::hierarchies::{Hierarchies, Hierarchy};
use super::limits::{Controllers, Limit, Unenforced, Version, Why};
use super::{Devices, Driver, Request, check_name};
use crate::sys::trial;
use crate::{Error, Result};

/// How often a parent directory is made anew that others remove as its last users.
pub(crate) const ATTEMPTS: usize = 100;

/// What groups of version 2 are given where it can be had.
const WANTED: Controllers =
    Controllers::MEMORY.union(Controllers::PIDS).union(Controllers::CPU).union(Controllers::CPUSET);

/// The name of the group that all of ours are in.
const DIRECTORY: &str = "coracle";

/// Where groups are made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Parent {
    /// In `coracle` below the group that this process is in.
    ///
    /// Version 2 lets a group either have processes or give controllers to groups below it, unless it is the root. So
    /// where systemd has put this process into a leaf of a delegated unit (`Delegate=yes` with `DelegateSubgroup=`),
    /// ours are made beside that leaf. Otherwise groups can be made, joined, frozen and killed, but have no limits,
    /// and [`Driver::unavailable`] says so.
    #[default]
    Own,
    /// As [`Parent::Own`], in a directory of another name: 1 to 128 of `[A-Za-z0-9_-]`.
    OwnNamed(String),
    /// In this group of every hierarchy, as `/proc/PID/cgroup` writes paths; it is created when it is not there. For
    /// callers that were delegated a group of their own.
    At(PathBuf),
}

/// The driver that works on the cgroup file systems themselves. Cheap to share behind an [`Arc`].
#[derive(Debug)]
pub struct Direct {
    members: Vec<Arc<Member>>,
}

/// One hierarchy, and the parent directory of our groups in it.
#[derive(Debug)]
pub(crate) struct Member {
    hierarchy: Hierarchy,
    parent: Parent,
    /// Opened at the first use, and again when another program has removed it as its last user.
    opened: Mutex<Option<Result<Arc<Opened>, Why>>>,
}

/// The last user of a parent directory takes it along, also one that a killed program left. It goes only when nothing is
/// in it, and who makes a group at that moment makes the parent anew.
impl Drop for Member {
    fn drop(&mut self) {
        if matches!(self.parent, Parent::At(_)) {
            return;
        }
        if let Ok(path) = self.path() {
            let _ = std::fs::remove_dir(path);
        }
    }
}

/// A parent directory that can take groups.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) fd: OwnedFd,
    pub(crate) path: PathBuf,
    /// What groups in it can be limited with.
    pub(crate) controllers: Controllers,
    /// Version 2: what they cannot, and why.
    missing: Vec<(Controllers, Why)>,
}

impl Direct {
    /// A driver for these hierarchies; nothing is opened or created before the first use.
    pub fn new(hierarchies: Hierarchies, parent: Parent) -> Direct {
        let member = |hierarchy| Arc::new(Member { hierarchy, parent: parent.clone(), opened: Mutex::default() });
        Direct { members: hierarchies.all.into_iter().map(member).collect() }
    }

    /// The version 2 hierarchy, when groups can be made in it.
    pub(super) fn v2(&self) -> Option<Place> {
        place(self.members.iter().find(|member| member.hierarchy.version == Version::V2)?)
    }

    /// Version 1 hierarchies that have one of these controllers.
    fn v1(&self, controllers: Controllers) -> impl Iterator<Item = &Arc<Member>> {
        self.members.iter().filter(move |member| {
            let hierarchy = &member.hierarchy;
            hierarchy.version == Version::V1 && !hierarchy.controllers.intersection(controllers).is_empty()
        })
    }

    /// The places in which a group for these controllers lives. Version 2 is always one of them: there a group can be
    /// killed at once, and it is cheaper than the version 1 freezer that stands in for it.
    fn places(&self, mut needed: Controllers) -> Vec<Place> {
        let v2 = self.v2();
        if v2.is_none() {
            needed = needed.union(Controllers::FREEZER);
            if needed.contains(Controllers::CPU) {
                needed = needed.union(Controllers::CPUACCT);
            }
        }
        let covered = v2.as_ref().map_or(Controllers::NONE, |place| place.controllers);
        v2.into_iter().chain(self.v1(needed.without(covered)).filter_map(place)).collect()
    }

    /// The group of this name in directories that were written down when it was made, perhaps by a program in another
    /// group than this one. Directories of another name, or that lie in no hierarchy, are passed over.
    pub(crate) fn open_recorded(&self, name: &str, directories: &[PathBuf]) -> Result<Option<Group>> {
        check_name(name)?;
        let places = directories.iter().filter_map(|path| {
            use std::path::Component;
            let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
            let (above, last) = (path.parent()?, path.file_name()?);
            if !plain || !path.is_absolute() || last != name {
                return None;
            }
            let within = |member: &&Arc<Member>| above.starts_with(&member.hierarchy.mount);
            // Of a mount inside another the inner one.
            let member = self.members.iter().filter(within).max_by_key(|it| it.hierarchy.mount.as_os_str().len())?;
            // Something else may be mounted over it.
            let opened = member.opened_at(above.to_owned()).filter(|opened| is_cgroup(&opened.fd))?;
            Some(Place {
                version: member.hierarchy.version,
                controllers: opened.controllers,
                member: Arc::clone(member),
                opened,
            })
        });
        let mut group = Group::new(name, places);
        Ok(group.find_directories()?.then_some(group))
    }

    /// Why a limit cannot be enforced here.
    pub(crate) fn why_not(&self, limit: Limit) -> Why {
        let wanted = if limit == Limit::Kill { Controllers::FREEZER } else { limit.controller() };
        for member in self.v1(wanted) {
            if let Err(why) = member.opened() {
                return why;
            }
        }
        for member in self.members.iter().filter(|member| member.hierarchy.version == Version::V2) {
            match member.opened() {
                Err(why) => return why,
                Ok(opened) => {
                    if let Some((_, why)) = opened.missing.iter().find(|(missing, _)| missing.contains(wanted)) {
                        return why.clone();
                    }
                }
            }
        }
        match (self.members.is_empty(), limit) {
            (true, _) => Why::new("no cgroup file system is mounted here", "mount -t cgroup2 none /sys/fs/cgroup"),
            (false, Limit::Devices) => Why::new(
                "there is neither a version 1 devices controller nor a version 2 group here",
                "a user namespace, in which no device node can be created",
            ),
            (false, limit) => {
                let name = limit.controller().names().next().unwrap_or("freezer");
                Why::new(
                    format!("no hierarchy that is mounted here has the {name} controller"),
                    "enable the controller on the kernel command line, and mount it",
                )
            }
        }
    }
}

impl Driver for Direct {
    fn create(&self, name: &str, request: &Request) -> Result<Group> {
        check_name(name)?;
        let mut needed = request.limits.controllers().union(request.track);
        if request.devices != Devices::Any {
            needed = needed.union(Controllers::DEVICES);
        }
        let mut group = Group::new(name, self.places(needed).into_iter());
        // From here on an error must take back what was made.
        match group.make_directories().and_then(|()| group.apply(request, |limit| self.why_not(limit))) {
            Ok(()) => Ok(group),
            Err(error) => {
                group.unmake();
                Err(error)
            }
        }
    }

    fn open(&self, name: &str) -> Result<Option<Group>> {
        check_name(name)?;
        let mut group = Group::new(name, self.members.iter().filter_map(existing));
        Ok(group.find_directories()?.then_some(group))
    }

    fn list(&self) -> Result<Vec<String>> {
        let mut names = std::collections::BTreeSet::new();
        for member in &self.members {
            let Some(opened) = member.existing() else { continue };
            let failed = |error| Error::io("list the cgroups", "getdents64", error).path(&opened.path);
            let entries = match std::fs::read_dir(&opened.path) {
                // Another program was its last user.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                entries => entries.map_err(failed)?,
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                if entry.file_type().map_err(failed)?.is_dir() {
                    names.extend(entry.file_name().into_string().ok().filter(|name| check_name(name).is_ok()));
                }
            }
        }
        Ok(names.into_iter().collect())
    }

    fn available(&self) -> Controllers {
        let opened = self.members.iter().filter_map(|member| member.opened().ok());
        let all = opened.fold(Controllers::NONE, |all, opened| all.union(opened.controllers));
        all.without(Controllers::FREEZER).without(Controllers::CPUACCT).without(Controllers::DEVICES)
    }

    fn unavailable(&self) -> Vec<Unenforced> {
        let available = self.available();
        let mut list: Vec<Unenforced> = [Limit::Memory, Limit::Pids, Limit::CpuQuota, Limit::CpusetCpus]
            .into_iter()
            .filter(|limit| !available.contains(limit.controller()))
            .map(|limit| Unenforced::new(limit, &self.why_not(limit)))
            .collect();
        if self.places(Controllers::NONE).is_empty() {
            list.push(Unenforced::new(Limit::Kill, &self.why_not(Limit::Kill)));
        }
        list
    }
}

/// `None` where no group can be made.
fn place(member: &Arc<Member>) -> Option<Place> {
    let opened = member.opened().ok()?;
    let (version, controllers) = (member.hierarchy.version, opened.controllers);
    Some(Place { member: Arc::clone(member), opened, version, controllers })
}

/// `None` where no group can be.
fn existing(member: &Arc<Member>) -> Option<Place> {
    let opened = member.existing()?;
    let (version, controllers) = (member.hierarchy.version, opened.controllers);
    Some(Place { member: Arc::clone(member), opened, version, controllers })
}

impl Member {
    /// Where the parent directory is, or would be.
    fn path(&self) -> Result<PathBuf, Why> {
        let hierarchy = &self.hierarchy;
        if let Parent::At(group) = &self.parent {
            return Ok(self.below_mount(group));
        }
        let own = hierarchy.own.clone()?;
        let delegated = |above: &&Path| above.starts_with(&hierarchy.mount) && is_delegated(above);
        match own.parent().filter(delegated) {
            Some(above) if hierarchy.version == Version::V2 && own != hierarchy.mount => {
                Ok(above.join(self.directory()?))
            }
            _ => Ok(own.join(self.directory()?)),
        }
    }

    /// The parent directory if it is there: looking for a group makes nothing, and changes nothing. What was opened
    /// before may have been removed and made anew by others, so that is not asked.
    fn existing(&self) -> Option<Arc<Opened>> {
        self.opened_at(self.path().ok()?)
    }

    /// A directory of the hierarchy that is there.
    fn opened_at(&self, path: PathBuf) -> Option<Arc<Opened>> {
        let fd = open_directory(&path).ok()?;
        let controllers = match self.hierarchy.version {
            Version::V1 => self.hierarchy.controllers,
            Version::V2 => controllers_in(&fd, c"cgroup.subtree_control").intersection(WANTED),
        };
        Some(Arc::new(Opened { fd, path, controllers, missing: Vec::new() }))
    }

    /// The parent directory, created and opened at the first call.
    pub(crate) fn opened(&self) -> Result<Arc<Opened>, Why> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.get_or_insert_with(|| self.open()).clone()
    }

    /// The parent directory after the one that was known has been removed; by another thread's call too.
    pub(crate) fn opened_again(&self, gone: &Arc<Opened>) -> Result<Arc<Opened>, Why> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        match &*opened {
            Some(Ok(known)) if Arc::ptr_eq(known, gone) => opened.insert(self.open()).clone(),
            _ => opened.get_or_insert_with(|| self.open()).clone(),
        }
    }

    fn open(&self) -> Result<Arc<Opened>, Why> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let opened = match self.hierarchy.version {
                Version::V1 => self.open_v1(),
                Version::V2 => self.open_v2(),
            };
            // What goes while it is set up is set up wrongly, which must not be taken for a finding about this host.
            match opened {
                Ok(opened) if attempt < ATTEMPTS && !opened.path.exists() => {}
                opened => return opened.map(Arc::new),
            }
        }
    }

    fn open_v1(&self) -> Result<Opened, Why> {
        let path = self.path()?;
        let fd = make_parent(&path)?;
        if self.hierarchy.controllers.contains(Controllers::CPUSET)
            && let Err(error) = inherit_cpuset(&path)
            && path.exists()
        {
            return Err(Why { cause: format!("{} cannot be set up: {error}", path.display()).into(), remedy: None });
        }
        Ok(Opened { fd, path, controllers: self.hierarchy.controllers, missing: Vec::new() })
    }

    fn open_v2(&self) -> Result<Opened, Why> {
        let path = self.path()?;
        let fd = make_parent(&path)?;
        // A group below a threaded one can neither be joined nor limited until its type is changed.
        if read_at(&fd, c"cgroup.type").is_ok_and(|kind| kind.contains("invalid") || kind.contains("threaded")) {
            return Err(Why::new(
                "the cgroup of this process is a threaded one",
                "start the program in a cgroup of type `domain`",
            ));
        }
        let mut missing = Vec::new();
        let mut enabled = WANTED;
        // Top down: a group can only pass on what it was given.
        let above = path.parent().and_then(|above| open_directory(above).ok());
        for directory in above.iter().chain([&fd]) {
            let (here, not_here) = enable(directory, enabled);
            enabled = here;
            missing.extend(not_here);
        }
        Ok(Opened { fd, path, controllers: enabled, missing })
    }

    /// The name of the directory that holds our groups.
    fn directory(&self) -> Result<&str, Why> {
        match &self.parent {
            Parent::OwnNamed(name) => match check_name(name) {
                Ok(()) => Ok(name),
                Err(error) => Err(Why { cause: error.to_string().into(), remedy: None }),
            },
            Parent::Own | Parent::At(_) => Ok(DIRECTORY),
        }
    }

    /// A path of the hierarchy as one of the file system.
    fn below_mount(&self, group: &Path) -> PathBuf {
        let plain = group.components().filter_map(|part| match part {
            std::path::Component::Normal(name) => Some(name),
            _ => None,
        });
        plain.fold(self.hierarchy.mount.clone(), |path, name| path.join(name))
    }
}

/// systemd marks what it leaves to a unit: `user.` for everyone to read, `trusted.` for root and older releases.
fn is_delegated(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes())
        .is_ok_and(|path| trial::has_xattr(&path, c"user.delegate") || trial::has_xattr(&path, c"trusted.delegate"))
}

fn is_cgroup(fd: &OwnedFd) -> bool {
    use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, fstatfs};
    fstatfs(fd).is_ok_and(|status| [CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC].contains(&status.filesystem_type()))
}

fn open_directory(path: &Path) -> nix::Result<OwnedFd> {
    openat(AT_FDCWD, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Creates the directory, and those above it that are missing, and opens it.
fn make_parent(path: &Path) -> Result<OwnedFd, Why> {
    let why = |errno: Errno| match errno {
        Errno::EACCES | Errno::EPERM => Why::new(
            format!("this user may not create {}", path.display()),
            "start the program in a cgroup that is delegated to the user, e.g. with \
             `systemd-run --user -p Delegate=yes -p DelegateSubgroup=self`",
        ),
        Errno::EROFS => Why::new(
            format!("{} is on a read-only mount", path.display()),
            "start the outer container with a writable cgroup mount",
        ),
        errno => Why { cause: format!("{} cannot be made: {}", path.display(), errno.desc()).into(), remedy: None },
    };
    let mode = Mode::from_bits_truncate(0o755);
    let mut attempt = 0;
    let fd = loop {
        attempt += 1;
        // What is there already may be somebody else's, or on a read-only mount: ask now, so that it is reported as a
        // value and does not fail each launch.
        let made = match mkdirat(AT_FDCWD, path, mode) {
            Ok(()) | Err(Errno::EEXIST) => open_directory(path),
            Err(errno) => Err(errno),
        };
        match (made, path.parent()) {
            (Ok(fd), _) => break fd,
            // Missing above, or removed by its last user just now.
            (Err(Errno::ENOENT | Errno::ENODEV), Some(above)) if attempt < ATTEMPTS => drop(make_parent(above)?),
            (Err(errno), _) => return Err(why(errno)),
        }
    };
    faccessat(&fd, c".", AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS).map_err(why)?;
    Ok(fd)
}

/// A fresh version 1 cpuset group allows no CPU at all, and nothing can join it: start from what is allowed above, and
/// have the groups below copy that.
fn inherit_cpuset(path: &Path) -> std::io::Result<()> {
    let copy = |file: &str| -> std::io::Result<()> {
        let target = path.join(file);
        if std::fs::read_to_string(&target)?.trim().is_empty() {
            let above = path.parent().unwrap_or(path);
            std::fs::write(&target, std::fs::read_to_string(above.join(file))?)?;
        }
        Ok(())
    };
    copy("cpuset.cpus")
        .and_then(|()| copy("cpuset.mems"))
        .and_then(|()| std::fs::write(path.join("cgroup.clone_children"), "1"))
}

/// The controllers that a file of a version 2 group names.
fn controllers_in(directory: &OwnedFd, file: &CStr) -> Controllers {
    Controllers::of_names(read_at(directory, file).unwrap_or_default().split_whitespace())
}

/// Passes controllers of a version 2 group on to the groups below it: those that are on afterwards, and why the
/// others are not. Each is asked for alone, since one that is refused takes the whole write with it.
pub(crate) fn enable(directory: &OwnedFd, wanted: Controllers) -> (Controllers, Vec<(Controllers, Why)>) {
    let offered = controllers_in(directory, c"cgroup.controllers");
    let mut on = controllers_in(directory, c"cgroup.subtree_control").intersection(wanted);
    let mut missing = Vec::new();
    for name in wanted.without(on).names() {
        let one = Controllers::of_names([name]);
        if !offered.contains(one) {
            missing.push((
                one,
                Why::new(
                    format!("the {name} controller is not passed down to the cgroup of this process"),
                    "have it delegated (`Delegate=cpu cpuset memory pids` in systemd), or free it from version 1",
                ),
            ));
            continue;
        }
        match write_at(directory.as_fd(), c"cgroup.subtree_control", &format!("+{name}")) {
            Ok(()) => on = on.union(one),
            Err(errno) => missing.push((one, why_not_enabled(name, errno))),
        }
    }
    (on, missing)
}

fn why_not_enabled(name: &str, errno: Errno) -> Why {
    match errno {
        Errno::EBUSY => Why::new(
            format!(
                "the cgroup of this process holds processes, so version 2 does not let it pass the {name} controller on"
            ),
            "start the program in a leaf of a delegated cgroup (`systemd-run --user -p Delegate=yes \
             -p DelegateSubgroup=self`), or name a parent cgroup without processes",
        ),
        Errno::EACCES | Errno::EPERM | Errno::EROFS => Why::new(
            format!("this user may not pass the {name} controller on"),
            "have the cgroup delegated (`Delegate=yes` in systemd)",
        ),
        Errno::EOPNOTSUPP => Why::new(
            format!("the cgroup of this process is threaded, and the {name} controller does not work there"),
            "start the program in a cgroup of type `domain`",
        ),
        errno => {
            Why { cause: format!("the {name} controller cannot be passed on: {}", errno.desc()).into(), remedy: None }
        }
    }
}
