//! One group: directories of one name in the hierarchies that it needs.

use std::ffi::{CStr, CString};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Pid, UnlinkatFlags, unlinkat};
use serde::Serialize;

use super::devices::program;
use super::direct::{ATTEMPTS, Member, Opened};
use super::limits::{Controllers, Limit, Limits, Setting, Unenforced, Version, Why};
use super::{DeviceRule, Devices, Request};
use crate::{Error, ErrorKind, Result, sys};

/// How long [`Group::remove`] and the like wait for processes that are on their way out.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a group used so far; `None` where no controller that counts it is in the group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Bytes of memory now, page cache included.
    pub memory: Option<u64>,
    /// The most bytes of memory at any time (version 2: from 5.19 on).
    pub memory_peak: Option<u64>,
    /// Processes that the kernel killed because the group was out of memory.
    pub oom_kills: Option<u64>,
    /// Processes and threads now.
    pub pids: Option<u64>,
    /// Microseconds of CPU time, user and system.
    pub cpu_usec: Option<u64>,
}

/// A group in one hierarchy.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) member: Arc<Member>,
    /// The parent directory.
    pub(crate) opened: Arc<Opened>,
    pub(crate) version: Version,
    pub(crate) controllers: Controllers,
}

/// A group of processes that are limited, counted and killed together.
///
/// Dropping the value leaves the group as it is: it may hold a container that outlives this process. What takes it
/// away is [`Group::remove`].
pub struct Group {
    name: CString,
    places: Vec<Place>,
    join: Vec<OwnedFd>,
    clone_into: Option<OwnedFd>,
    unenforced: Vec<Unenforced>,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("paths", &self.paths()).field("unenforced", &self.unenforced).finish()
    }
}

impl Group {
    /// A group of this name, of which nothing exists yet.
    pub(crate) fn new(name: &str, places: impl Iterator<Item = Place>) -> Group {
        // `check_name` lets no nul byte through; an empty name would fail at the first call.
        let name = CString::new(name).unwrap_or_default();
        Group { name, places: places.collect(), join: Vec::new(), clone_into: None, unenforced: Vec::new() }
    }

    /// Makes the directories, and opens what a child needs to get in. After an error some may be there.
    pub(crate) fn make_directories(&mut self) -> Result<()> {
        // Only what this call made is taken back after an error: a directory that was there is somebody's.
        let places = std::mem::take(&mut self.places);
        for mut place in places {
            place.make_directory(&self.name).map_err(|errno| {
                let error = Error::sys("create a cgroup", "mkdirat", errno as i32).path(self.path_in(&place));
                match errno {
                    Errno::EAGAIN => error.kind_is(ErrorKind::Limit).because("cgroup.max.descendants is reached"),
                    Errno::ENOSPC => error.because("the kernel has no number left for another cgroup"),
                    _ => error,
                }
            })?;
            self.places.push(place);
        }
        self.open_doors()
    }

    /// Keeps the places where the directory is there; whether there is any.
    pub(crate) fn find_directories(&mut self) -> Result<bool> {
        let name = &self.name;
        self.places.retain(|place| {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            openat(&place.opened.fd, name.as_c_str(), flags, Mode::empty()).is_ok()
        });
        self.open_doors()?;
        Ok(!self.places.is_empty())
    }

    fn open_doors(&mut self) -> Result<()> {
        for place in &self.places {
            let (file, flags) = match place.version {
                Version::V1 => ("tasks", OFlag::O_WRONLY),
                Version::V2 => ("", OFlag::O_RDONLY | OFlag::O_DIRECTORY),
            };
            let path = self.file(file);
            let fd = openat(&place.opened.fd, path.as_c_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(|errno| Error::sys("open a cgroup", "openat", errno as i32).path(self.path_in(place)))?;
            match place.version {
                Version::V1 => self.join.push(fd),
                Version::V2 => self.clone_into = Some(fd),
            }
        }
        Ok(())
    }

    /// Writes what was asked for; what cannot be enforced is noted, what the kernel calls wrong is an error.
    pub(crate) fn apply(&mut self, request: &Request, why_not: impl Fn(Limit) -> Why) -> Result<()> {
        let mut unenforced = self.write_limits(&request.limits, &why_not)?;
        if let Devices::Only(rules) = &request.devices
            && let Err(why) = self.restrict_devices(rules, &why_not)?
        {
            unenforced.push(Unenforced::new(Limit::Devices, &why));
        }
        if !self.can_kill() {
            unenforced.push(Unenforced::new(Limit::Kill, &why_not(Limit::Kill)));
        }
        self.unenforced = unenforced;
        Ok(())
    }

    /// By version 1's controller where it is, else by a program for version 2; the inner error says why by neither.
    fn restrict_devices(&self, rules: &[DeviceRule], why_not: impl Fn(Limit) -> Why) -> Result<Result<(), Why>> {
        if let Some(place) = self.place_of(Controllers::DEVICES) {
            let refused = |file, value: &str, errno| self.refused(place, file, value, errno);
            match self.write(place, "devices.deny", "a") {
                Ok(()) => {}
                Err(errno @ (Errno::EPERM | Errno::EACCES | Errno::EROFS)) => {
                    let cause = format!("devices.deny of version 1 cannot be written: {}", errno.desc());
                    return Ok(Err(Why { cause: cause.into(), remedy: None }));
                }
                Err(errno) => return Err(refused("devices.deny", "a", errno)),
            }
            // The caller asked for less than everything: half of that is not an answer, so any failure is one.
            let file = "devices.allow";
            let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            let allow = openat(&place.opened.fd, self.file(file).as_c_str(), flags, Mode::empty())
                .map_err(|errno| refused(file, "", errno))?;
            for line in rules.iter().map(DeviceRule::v1_line) {
                nix::unistd::write(&allow, line.as_bytes()).map_err(|errno| refused(file, &line, errno))?;
            }
            return Ok(Ok(()));
        }
        let Some(group) = &self.clone_into else { return Ok(Err(why_not(Limit::Devices))) };
        Ok(sys::bpf::restrict_devices(group.as_fd(), &program(rules)).map_err(|errno| Why {
            cause: format!("the kernel takes no program for the devices of a version 2 group: {}", errno.desc()).into(),
            remedy: Some("CAP_BPF and CAP_NET_ADMIN, on a kernel with CONFIG_CGROUP_BPF"),
        }))
    }

    /// Takes back the directories that were made, after a failure.
    pub(crate) fn unmake(&self) {
        for place in &self.places {
            let _ = unlinkat(&place.opened.fd, self.name.as_c_str(), UnlinkatFlags::RemoveDir);
        }
    }

    /// The descriptor to be born inside the version 2 group with: `CLONE_INTO_CGROUP` of clone3(2).
    ///
    /// Where it is `Some`, the first process must use it, or write `0` to [`Group::open_v2_procs`]: a process that is
    /// only in the version 1 groups is limited, but neither frozen nor killed with the others.
    pub fn clone_into_fd(&self) -> Option<BorrowedFd<'_>> {
        self.clone_into.as_ref().map(AsFd::as_fd)
    }

    /// The `tasks` files of the version 1 groups, open for writing. A process with a single thread that writes `0` to
    /// each of them is in; that is far cheaper than writing its pid to `cgroup.procs` from outside.
    pub fn join_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.join.iter().map(AsFd::as_fd).collect()
    }

    /// For launchers that cannot use [`Group::clone_into_fd`], and for processes that join later: the version 2
    /// group's `cgroup.procs`, to which a process writes `0`.
    pub fn open_v2_procs(&self) -> Result<Option<OwnedFd>> {
        self.open_v2("cgroup.procs")
    }

    /// The file to which whoever is to end the group writes `1`, without knowing any of its processes: version 2 from
    /// 5.14 on, `None` elsewhere.
    pub fn open_kill_file(&self) -> Result<Option<OwnedFd>> {
        self.open_v2("cgroup.kill")
    }

    fn open_v2(&self, file: &str) -> Result<Option<OwnedFd>> {
        let Some(place) = self.v2() else { return Ok(None) };
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        match openat(&place.opened.fd, self.file(file).as_c_str(), flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(Error::sys("open a cgroup", "openat", errno as i32).path(self.path_in(place).join(file))),
        }
    }

    /// What was asked for at creation and does not hold.
    pub fn unenforced(&self) -> &[Unenforced] {
        &self.unenforced
    }

    /// Whether [`Group::kill`] and [`Group::freeze`] can work.
    pub fn can_kill(&self) -> bool {
        self.v2().is_some() || self.place_of(Controllers::FREEZER).is_some()
    }

    /// The directories of the group, one in each hierarchy that it is in.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.places.iter().map(|place| self.path_in(place)).collect()
    }

    /// Changes limits of a living group; those that are `None` stay as they are. Returns what could not be enforced.
    ///
    /// # Errors
    /// `Conflict` when the kernel cannot get below a new memory limit. Limits that were written before stay.
    pub fn update(&self, limits: &Limits) -> Result<Vec<Unenforced>> {
        self.write_limits(limits, |limit| {
            let name = limit.controller().names().next().unwrap_or("freezer");
            Why::new(
                format!("the group was made without the {name} controller"),
                "ask for the limit, or track the controller, when the group is made",
            )
        })
    }

    fn write_limits(&self, limits: &Limits, why_not: impl Fn(Limit) -> Why) -> Result<Vec<Unenforced>> {
        limits.check()?;
        let mut unenforced = Vec::new();
        for limit in limits.kinds() {
            let Some(place) = self.place_of(limit.controller()) else {
                unenforced.push(Unenforced::new(limit, &why_not(limit)));
                continue;
            };
            for Setting { file, value, .. } in limits.settings(limit, place.version) {
                match self.write(place, file, &value) {
                    Ok(()) => {}
                    // Version 1 refuses a memory limit above the limit on memory and swap: raise that one first.
                    Err(Errno::EINVAL) if limit == Limit::Memory && limits.swap.is_some() => {
                        for setting in limits.settings(Limit::Swap, place.version) {
                            let result = self.write(place, setting.file, &setting.value);
                            result.map_err(|errno| self.refused(place, setting.file, &setting.value, errno))?;
                        }
                        self.write(place, file, &value).map_err(|errno| self.refused(place, file, &value, errno))?;
                    }
                    Err(Errno::ENOENT) => {
                        let why = Why {
                            cause: format!("this kernel has no {file} here").into(),
                            remedy: (limit == Limit::Swap).then_some("swapaccount=1 on the kernel command line"),
                        };
                        unenforced.push(Unenforced::new(limit, &why));
                        break;
                    }
                    Err(errno) => return Err(self.refused(place, file, &value, errno)),
                }
            }
        }
        Ok(unenforced)
    }

    fn refused(&self, place: &Place, file: &str, value: &str, errno: Errno) -> Error {
        let error = Error::sys(format!("write {value:?} to a cgroup"), "write", errno as i32)
            .path(self.path_in(place).join(file));
        match errno {
            Errno::EINVAL | Errno::ERANGE | Errno::EDOM => {
                error.kind_is(ErrorKind::Invalid).because("the kernel does not accept the value here")
            }
            Errno::EBUSY => error.because("the group uses more than that, and it cannot be reclaimed"),
            _ => error,
        }
    }

    /// What the group used so far. Counters that it has no controller for are `None`.
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        for place in &self.places {
            let number = |file: &str| self.read(place, file).ok()?.trim().parse::<u64>().ok();
            let keyed = |file: &str, key: &str| keyed_number(&self.read(place, file).ok()?, key);
            let has = |controllers| place.controllers.contains(controllers);
            let v2 = place.version == Version::V2;
            if has(Controllers::MEMORY) {
                let files = match v2 {
                    true => ["memory.current", "memory.peak", "memory.events"],
                    false => ["memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"],
                };
                stats.memory = number(files[0]);
                stats.memory_peak = number(files[1]);
                stats.oom_kills = keyed(files[2], "oom_kill");
            }
            if has(Controllers::PIDS) {
                stats.pids = number("pids.current");
            }
            if v2 {
                stats.cpu_usec = keyed("cpu.stat", "usage_usec");
            } else if has(Controllers::CPUACCT) && stats.cpu_usec.is_none() {
                stats.cpu_usec = number("cpuacct.usage").map(|nanoseconds| nanoseconds / 1000);
            }
        }
        Ok(stats)
    }

    /// The processes in the group, by the numbers of this process's pid namespace; those outside of it read as 0.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let Some(place) = self.v2().or(self.place_of(Controllers::FREEZER)).or(self.places.first()) else {
            return Ok(Vec::new());
        };
        let mut pids = Vec::new();
        for path in self.tree(place) {
            match std::fs::read_to_string(path.join("cgroup.procs")) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("list the processes of a cgroup", "read", error).path(path)),
            }
        }
        Ok(pids)
    }

    /// Whether no process is in it; a group that is gone is empty.
    pub fn is_empty(&self) -> Result<bool> {
        match self.v2() {
            Some(place) => match self.read(place, "cgroup.events") {
                Ok(events) => Ok(keyed_number(&events, "populated") != Some(1)),
                Err(Errno::ENOENT | Errno::ENODEV) => Ok(true),
                Err(errno) => Err(Error::sys("look into a cgroup", "read", errno as i32).path(self.path_in(place))),
            },
            None => Ok(self.processes()?.is_empty()),
        }
    }

    /// Kills every process of the group, also those that fork meanwhile, and returns without waiting for their end.
    ///
    /// Version 2 does that in one write; version 1 is frozen first, so that nothing can fork while it is read.
    ///
    /// # Errors
    /// `Unsupported` when neither version 2 nor the freezer is there (see [`Group::can_kill`]).
    pub fn kill(&self) -> Result<()> {
        if let Some(place) = self.v2() {
            match self.write(place, "cgroup.kill", "1") {
                Ok(()) | Err(Errno::ENODEV) => return Ok(()),
                // Before 5.14, or the group is gone; the freezer of version 2 tells which.
                Err(Errno::ENOENT) => {}
                Err(errno) => {
                    return Err(Error::sys("kill a cgroup", "write", errno as i32)
                        .path(self.path_in(place).join("cgroup.kill")));
                }
            }
        }
        if !self.can_kill() {
            return Err(Error::new(ErrorKind::Unsupported, "kill a cgroup")
                .because("neither version 2 nor the version 1 freezer can be used here"));
        }
        // A frozen process cannot exit either, so none of these numbers can be another process by the time it is used.
        // If it does not freeze in time (a process in a long uninterruptible call), those that are listed are killed
        // all the same, and the list is read again until nothing new is in it.
        let frozen = self.freeze();
        let mut result = Ok(());
        for _ in 0..10 {
            let pids: Vec<i32> = self.processes()?.into_iter().filter(|pid| *pid > 0).collect();
            for pid in &pids {
                match kill(Pid::from_raw(*pid), Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => result = Err(Error::sys("kill a cgroup", "kill", errno as i32)),
                }
            }
            if frozen.is_ok() || pids.is_empty() {
                break;
            }
        }
        self.thaw()?;
        result
    }

    /// Stops every process of the group, and waits until they are stopped (at most two seconds, then `Conflict`).
    pub fn freeze(&self) -> Result<()> {
        self.set_frozen(true)
    }

    /// Lets them go on.
    pub fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        let step = if frozen { "freeze a cgroup" } else { "thaw a cgroup" };
        let (place, file, value) = match (self.v2(), self.place_of(Controllers::FREEZER)) {
            (Some(place), _) => (place, "cgroup.freeze", if frozen { "1" } else { "0" }),
            (None, Some(place)) => (place, "freezer.state", if frozen { "FROZEN" } else { "THAWED" }),
            (None, None) => {
                return Err(Error::new(ErrorKind::Unsupported, step)
                    .because("neither version 2 nor the version 1 freezer can be used here"));
            }
        };
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(20);
        loop {
            match self.write(place, file, value) {
                Ok(()) => {}
                Err(Errno::ENOENT | Errno::ENODEV) if !frozen => return Ok(()),
                Err(errno) => {
                    return Err(Error::sys(step, "write", errno as i32).path(self.path_in(place).join(file)));
                }
            }
            let reached = match place.version {
                Version::V1 => self.read(place, file).is_ok_and(|state| state.trim() == value),
                Version::V2 => {
                    let events = self.read(place, "cgroup.events").unwrap_or_default();
                    (keyed_number(&events, "frozen") == Some(1)) == frozen
                }
            };
            if reached || !frozen {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::new(ErrorKind::Conflict, step)
                    .path(self.path_in(place))
                    .because("a process in it does not stop: it waits for a device, or is being traced"));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    /// Takes the directories away, after the last process is gone. A process that was just reaped still counts for a
    /// moment, so a busy group is tried again for up to two seconds. Groups that the workload made inside go too.
    /// Removing a group that is gone is no error.
    ///
    /// # Errors
    /// `Conflict` when processes are still in it. The other directories are removed all the same, and it can be
    /// called again.
    pub fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut result = Ok(());
        for place in &self.places {
            if let Err(error) = self.remove_in(place, deadline) {
                result = Err(error);
            }
        }
        result
    }

    fn remove_in(&self, place: &Place, deadline: Instant) -> Result<()> {
        let mut pause = Duration::from_micros(20);
        loop {
            let errno = match unlinkat(&place.opened.fd, self.name.as_c_str(), UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => return Ok(()),
                Err(errno) => errno,
            };
            let error = || Error::sys("remove a cgroup", "unlinkat", errno as i32).path(self.path_in(place));
            if errno != Errno::EBUSY && errno != Errno::ENOTEMPTY {
                return Err(error());
            }
            if Instant::now() >= deadline {
                return Err(error().because("processes are still in it").remedy("kill the container first"));
            }
            // Deepest first; what still has processes stays for the next round.
            for path in self.tree(place).into_iter().skip(1).rev() {
                let _ = std::fs::remove_dir(path);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    /// The group's directory and all below it, each before those inside it. Control files are no directories, and a
    /// cgroup file system has no symbolic links.
    fn tree(&self, place: &Place) -> Vec<PathBuf> {
        let mut all = vec![self.path_in(place)];
        let mut next = 0;
        while let Some(path) = all.get(next) {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            let below: Vec<PathBuf> = directories.map(|entry| entry.path()).collect();
            all.extend(below);
            next += 1;
        }
        all
    }

    /// The directory in the hierarchy of a controller.
    #[cfg(feature = "cgroups-rs")]
    pub(crate) fn directory_of(&self, controller: Controllers) -> Option<(PathBuf, Version)> {
        self.place_of(controller).map(|place| (self.path_in(place), place.version))
    }

    /// Notes what a driver found out after creation.
    #[cfg(feature = "cgroups-rs")]
    pub(crate) fn note_unenforced(&mut self, more: Vec<Unenforced>) {
        self.unenforced.extend(more);
    }

    fn v2(&self) -> Option<&Place> {
        self.places.iter().find(|place| place.version == Version::V2)
    }

    fn place_of(&self, controller: Controllers) -> Option<&Place> {
        self.places.iter().find(|place| !controller.is_empty() && place.controllers.contains(controller))
    }

    fn path_in(&self, place: &Place) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(self.name.as_bytes());
        place.opened.path.join(name)
    }

    /// `name/file`, to be opened from the parent's descriptor.
    fn file(&self, file: &str) -> CString {
        let mut path = self.name.as_bytes().to_vec();
        path.push(b'/');
        path.extend_from_slice(file.as_bytes());
        // The names of control files are ours and have no nul byte.
        CString::new(path).unwrap_or_default()
    }

    fn write(&self, place: &Place, file: &str, value: &str) -> nix::Result<()> {
        write_at(place.opened.fd.as_fd(), &self.file(file), value)
    }

    fn read(&self, place: &Place, file: &str) -> nix::Result<String> {
        read_at(&place.opened.fd, &self.file(file))
    }
}

impl Place {
    /// Makes a group's directory, and first the parent again when its last user in another program has removed it.
    fn make_directory(&mut self, name: &CStr) -> nix::Result<()> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let gone = match mkdirat(&self.opened.fd, name, Mode::from_bits_truncate(0o755)) {
                Err(errno @ (Errno::ENOENT | Errno::ENODEV)) => errno,
                result => return result,
            };
            match self.member.opened_again(&self.opened) {
                Ok(opened) if attempt < ATTEMPTS => self.opened = opened,
                _ => return Err(gone),
            }
        }
    }
}

/// Writes a control file in one call: the kernel takes each write as one command.
pub(crate) fn write_at(directory: BorrowedFd<'_>, file: &CStr, value: &str) -> nix::Result<()> {
    let fd = openat(directory, file, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    nix::unistd::write(&fd, value.as_bytes()).map(drop)
}

/// Reads a control file, up to 64 KiB.
pub(crate) fn read_at(directory: &OwnedFd, file: &CStr) -> nix::Result<String> {
    let fd = openat(directory, file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while text.len() < 1 << 16 {
        match nix::unistd::read(&fd, &mut buffer)? {
            0 => break,
            count => text.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The number after `key` in lines of `key number`.
pub(crate) fn keyed_number(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}
