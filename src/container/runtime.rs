//! What every container of one engine root shares: the roots, the chosen backends, and the mark of ownership.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::owner::{self, Owner};
use super::record::{self, Info, State};
use super::rung::Rung;
use crate::cgroup::{self, Devices, Driver, Group, Limit, Limits, Unenforced};
use crate::content::lock::Held;
use crate::content::tmp::{self, Buried};
use crate::content::{Durability, Measured};
use crate::isolation::{Identity, Range};
use crate::layer::{Ownership, Reown};
use crate::name::ContainerId;
use crate::probe::Host;
use crate::security::Filters;
use crate::snapshot::Snapshotter;
use crate::{Error, ErrorKind, Result, sys};

/// What is left of a container: out of sight, and still taking space. Nobody else touches it as long as this value lives.
#[derive(Debug)]
#[must_use = "what is left of a container takes space"]
pub(crate) struct Remains {
    buried: Buried,
    /// Of whoever had the container in hand: a lock goes along with the directory.
    _lock: Option<Held>,
    /// The container, where its spec has programs run when it is gone.
    gone: Option<Box<Info>>,
}

impl Remains {
    /// Its hooks are run before it is emptied: by whoever holds no lock, for they may take as long as they like.
    pub(super) fn with_hooks_of(self, info: &Info) -> Remains {
        Remains { gone: Some(Box::new(info.clone())), ..self }
    }

    /// Where they are.
    pub(crate) fn path(&self, root: &Path) -> PathBuf {
        root.join("tmp").join(&self.buried.name)
    }
}

/// How many [`Remains`] to keep at a time: each has a descriptor.
pub(crate) const MAX_REMAINS: usize = 64;

/// What a sweep came to.
#[derive(Debug, Default)]
pub(crate) struct Swept {
    /// What could not be done, a sentence for each container.
    pub(crate) failures: Vec<String>,
    /// What was taken out of sight, to be emptied when nobody waits any more.
    pub(crate) remains: Vec<Remains>,
}

/// See the module. Engines and images hold it together.
#[derive(Debug)]
pub(crate) struct Runtime {
    root: PathBuf,
    root_dir: File,
    pub(crate) durability: Durability,
    pub(crate) host: Host,
    pub(crate) identity: Identity,
    pub(crate) snapshotter: Arc<dyn Snapshotter>,
    /// Why the snapshotter is not overlay.
    pub(crate) snapshotter_note: Option<String>,
    /// The strongest first.
    pub(crate) ladder: Vec<Rung>,
    /// Compiled system call filters.
    pub(crate) filters: Filters,
    cgroups: OnceLock<Result<cgroup::Direct, String>>,
    unlimited: OnceLock<Vec<Unenforced>>,
    owner: Mutex<Option<Arc<Owner>>>,
    /// Of hooks that failed and changed nothing by it; the latest.
    hooks: Mutex<Vec<(ContainerId, String)>>,
}

impl Runtime {
    pub(crate) fn open(
        (root, durability): (&Path, Durability),
        host: Host,
        identity: Identity,
        snapshotter: (Arc<dyn Snapshotter>, Option<String>),
        ladder: Vec<Rung>,
    ) -> Result<Arc<Runtime>> {
        let step = "open the engine's root";
        let root_dir = File::open(root).map_err(|error| Error::io(step, "open", error).path(root))?;
        super::make_directory(&root.join("containers"), step)?;
        let runtime = Runtime {
            root: root.to_owned(),
            root_dir,
            durability,
            host,
            identity,
            snapshotter: snapshotter.0,
            snapshotter_note: snapshotter.1,
            ladder,
            filters: Filters::default(),
            cgroups: OnceLock::new(),
            unlimited: OnceLock::new(),
            owner: Mutex::new(None),
            hooks: Mutex::default(),
        };
        Ok(Arc::new(runtime))
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn root_fd(&self) -> BorrowedFd<'_> {
        self.root_dir.as_fd()
    }

    /// This program's mark; made with the first container.
    pub(crate) fn owner(&self) -> Result<Arc<Owner>> {
        let mut owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        match &*owner {
            Some(owner) => Ok(owner.clone()),
            None => Ok(owner.insert(Arc::new(Owner::new(&self.root)?)).clone()),
        }
    }

    /// Keeps what a hook failed with, for who asks.
    pub(crate) fn note_hook(&self, id: &ContainerId, note: String) {
        const MOST: usize = 256;
        let mut notes = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() >= MOST {
            notes.remove(0);
        }
        notes.push((id.clone(), note));
    }

    pub(crate) fn hook_notes(&self, id: &ContainerId) -> Vec<String> {
        let notes = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        notes.iter().filter(|(of, _)| of == id).map(|(_, note)| note.clone()).collect()
    }

    fn driver(&self) -> Result<&cgroup::Direct, &str> {
        let driver = self.cgroups.get_or_init(|| {
            let hierarchies = cgroup::Hierarchies::detect().map_err(|error| error.to_string())?;
            Ok(cgroup::Direct::new(hierarchies, cgroup::Parent::Own))
        });
        driver.as_ref().map_err(String::as_str)
    }

    fn cgroups(&self) -> Option<&cgroup::Direct> {
        self.driver().ok()
    }

    /// A control group for a container, or why there is none: this user can make none, or there are none here.
    pub(crate) fn make_group(&self, name: &str, limits: Limits, devices: Devices) -> Result<Group, String> {
        let driver = self.driver()?;
        let request = cgroup::Request { limits, track: cgroup::Controllers::PIDS, devices };
        let group = driver.create(name, &request).map_err(|error| error.to_string())?;
        if !group.paths().is_empty() {
            return Ok(group);
        }
        // A group in no hierarchy limits and holds nothing.
        let why = driver.unavailable().into_iter().find(|lost| lost.limit == Limit::Kill);
        Err(why.map_or("no control group can be made here".to_owned(), |why| match why.remedy {
            Some(remedy) => format!("{}; try: {remedy}", why.cause),
            None => why.cause.into_owned(),
        }))
    }

    /// The kinds of limit that do not hold on this host, found out once.
    pub(crate) fn unlimited(&self) -> &[Unenforced] {
        self.unlimited.get_or_init(|| self.cgroups().map(cgroup::Direct::unavailable).unwrap_or_default())
    }

    /// The control group of a container of any program; `None` where there is none, or none that can be looked for. A
    /// program in another control group has made it elsewhere than this one would: in the `recorded` directories.
    pub(crate) fn open_group(&self, name: &str, recorded: &[PathBuf]) -> Option<Group> {
        let driver = self.cgroups()?;
        let found = driver.open_recorded(name, recorded).ok().flatten();
        found.or_else(|| driver.open(name).ok().flatten())
    }

    /// The control group of a container of any program, as its record names it; `None` where it is gone.
    pub(crate) fn open_recorded_group(&self, name: &str, recorded: &[PathBuf]) -> Result<Option<Group>> {
        let driver = self.driver().map_err(|why| {
            Error::new(ErrorKind::Weaker, "look for the container's control group").because(why.to_owned())
        })?;
        driver.open_recorded(name, recorded)
    }

    /// Kills what another program left in a container's control group, and removes that; one that is not there, or
    /// that cannot be looked for, is fine. It is looked for below this program's own group and in the `recorded`
    /// directories, of which only those count that are a group of this name.
    pub(crate) fn clear_group(&self, name: &str, recorded: &[PathBuf]) -> Result<()> {
        if self.identity.is_rootless() {
            return Ok(());
        }
        let Ok(driver) = self.driver() else { return Ok(()) };
        let own = driver.open(name).ok().flatten();
        let found = own.into_iter().chain(driver.open_recorded(name, recorded).ok().flatten());
        let mut result = Ok(());
        for group in found {
            result = result.and(super::clear(&group));
        }
        result
    }

    /// Takes a container's directory out of sight at once, so that no kill leaves half of it in the list; `None` where it is
    /// gone. What it was is to be [emptied](Runtime::empty), which is the slow part. `lock` is the caller's on the
    /// directory, if he has one. Needs no space on the disk.
    pub(crate) fn bury(&self, id: &str, lock: Option<Held>) -> Result<Option<Remains>> {
        let place = self.root.join("containers").join(id);
        match tmp::bury(&place, &self.root.join("tmp")) {
            Ok(buried) => Ok(buried.map(|buried| Remains { buried, _lock: lock, gone: None })),
            Err(_) => {
                // On a full disk, say, `tmp/` may have no room for another name. Then it goes where it is, the record
                // first, without which it is garbage.
                if let Ok(dir) = File::open(&place) {
                    sys::fs::remove_tree(dir.as_fd(), "state.json".as_ref()).map_err(|error| {
                        Error::io("remove the container's record", "unlinkat", error).path(place.join("state.json"))
                    })?;
                }
                self.remove_in("containers", id.as_ref()).map(|()| None)
            }
        }
    }

    /// Removes what is left of a container, whoever owns the files in it.
    ///
    /// # Errors
    /// Where something of it stays, which the next open sweeps.
    pub(crate) fn empty(&self, remains: Remains) -> Result<()> {
        if let Some(info) = &remains.gone {
            super::hooks::gone(self, info);
        }
        self.remove_in("tmp", &remains.buried.name)
    }

    fn remove_in(&self, place: &str, name: &OsStr) -> Result<()> {
        let place = self.root.join(place);
        let step = "remove files of the root";
        let parent = File::open(&place).map_err(|error| Error::io(step, "open", error).path(&place))?;
        match (&self.identity, sys::fs::remove_tree(parent.as_fd(), name)) {
            (_, Ok(())) => Ok(()),
            // Files may belong to ids of the range, which only a user namespace with that range may remove.
            (Identity::Range { .. }, Err(_)) => {
                // Where the tree is a subvolume, that has to go by itself: nothing can be moved out of it.
                self.snapshotter.remove(&place.join(name))?;
                Range::new(&self.identity, &self.root)?.remove(parent.as_fd(), name)
            }
            (_, Err(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            (_, Err(error)) => Err(Error::io(step, "unlinkat", error).path(place.join(name))),
        }
    }

    /// What `dir`, which belongs to a container or layer, takes with everything in it, whoever owns it.
    pub(crate) fn measure(&self, dir: BorrowedFd<'_>) -> Result<Measured> {
        match &self.identity {
            Identity::Host => sys::usage::measure(dir).map_err(|error| Error::io("measure a directory", "open", error)),
            identity => Range::new(identity, &self.root)?.measure(dir),
        }
    }

    /// Removes what somebody left in `tmp/`, whoever owns it.
    pub(crate) fn remove_temporary(&self, name: &OsStr) -> Result<()> {
        self.remove_in("tmp", name)
    }

    /// Brings the root in order: what a killed program left is removed, what was to be kept is marked.
    ///
    /// `alone` says that nobody makes a container at the moment, so that a directory without a record is garbage. One
    /// whose record cannot be read stays: a later release may have written it, or this process have no descriptor left.
    ///
    /// What could not be done is no reason to do without the rest: on a full disk no record can be written, and whoever
    /// wants to free it has to come in first. What is read of such a container is right all the same, see
    /// [`as_it_is`](super::as_it_is).
    pub(crate) fn sweep(&self, alone: bool, ownership: &Ownership) -> Swept {
        let mut named = vec![];
        let Swept { mut failures, mut remains } = Swept::default();
        if alone && let Err(error) = super::snapshot::sweep(self, ownership) {
            failures.push(error.to_string());
        }
        let ids = record::ids(&self.root).unwrap_or_else(|error| {
            failures.push(error.to_string());
            vec![]
        });
        for id in ids {
            let done = match record::read(&self.root, &id) {
                Ok(Some(info)) if owner::lives(&self.root, &info.owner) => {
                    let thawed = super::commit::thaw_again(self, &info).map(|()| None);
                    named.push(info.owner);
                    thawed
                }
                Ok(Some(info)) => self.settle(info),
                // Its group, if it got that far, was to be named by the record.
                Ok(None) if alone => self.clear_group(&id, &[]).and_then(|()| self.bury(&id, None)),
                Ok(None) => Ok(None),
                Err(error) => Err(error),
            };
            match done {
                Ok(left) => remains.extend(left),
                Err(error) => failures.push(format!("container {}: {error}", id.get(..12).unwrap_or(&id))),
            }
            if remains.len() >= MAX_REMAINS {
                let (slow, fast): (Vec<_>, Vec<_>) = remains.into_iter().partition(|remains| remains.gone.is_some());
                failures.extend(self.empty_all(fast));
                remains = slow;
            }
        }
        if owner::sweep(&self.root, &named) && !self.identity.is_rootless() {
            // What a killed program's groups were in is empty now, and its last user takes it along: that is us.
            let _ = self.cgroups();
        }
        Swept { failures, remains }
    }

    /// Removes what is left of containers; returns what could not be done, in sentences.
    pub(crate) fn empty_all(&self, remains: Vec<Remains>) -> Vec<String> {
        let emptied = remains.into_iter().map(|remains| self.empty(remains));
        emptied.filter_map(Result::err).map(|error| error.to_string()).collect()
    }

    /// Removes what killed programs left in `tmp/` of files that only a user namespace with the range may remove; the
    /// rest has gone when the store was opened. Returns what could not be done, in sentences.
    pub(crate) fn sweep_range(&self) -> Vec<String> {
        let Identity::Range { .. } = self.identity else { return vec![] };
        // Garbage takes space and nothing else: what cannot be listed now is swept later.
        let stale = tmp::stale(&self.root.join("tmp")).unwrap_or_default();
        let removed = stale.iter().map(|stale| self.remove_temporary(&stale.name));
        removed.filter_map(Result::err).map(|error| error.to_string()).collect()
    }

    /// A container whose program is gone.
    fn settle(&self, mut info: Info) -> Result<Option<Remains>> {
        if !info.keep {
            let locked = match super::snapshot::try_lock(&record::directory(&self.root, &info.id)) {
                // Another program that opens the root removes it at this moment.
                Err(error) if error.kind() == ErrorKind::Conflict => return Ok(None),
                other => other?,
            };
            return super::take_all(self, &info, None, locked);
        }
        if matches!(info.state, State::Created | State::Running) {
            self.clear_group(&super::group_name(&info.id), &info.groups)?;
        }
        if matches!(info.state, State::Created | State::Running) {
            info.state = State::Dead;
            info.pid = None;
            info.finished = Some(record::now());
            record::write(&self.root, &info, self.durability)?;
        }
        Ok(None)
    }
}
