//! What a control group driver has to keep.

use std::process::{Child, Command, Stdio};

use super::{Clause, require, run, spread};
use crate::cgroup::{Controllers, Driver, Group, Limit, Limits, Request};
use crate::{Error, ErrorKind, Result, sys};

/// Tries everything that [`Driver`] promises, and returns the clauses that were kept.
///
/// Needs no controller and no right to make groups: a driver that can do nothing has to say so. Where it can, a process
/// of its own (`/bin/sleep`) is put into a group and killed. Afterwards the groups are as they were.
///
/// # Errors
/// The first clause that is broken, or that could not be tried.
pub fn cgroup_driver(driver: &dyn Driver) -> Result<Vec<&'static str>> {
    run(&PARTS, |part, clause| part(driver, clause))
}

type Part = fn(&dyn Driver, Clause) -> Result<()>;

const PARTS: [(Clause, Part); 5] = [
    ("names that could mean another directory are refused", names),
    ("a group is found by its name, which is taken until it is removed", life),
    ("limits hold, or it is said that they do not, and why", limits),
    ("groups are made and removed at once", crowd),
    ("a group with processes stays, and what is killed ends", kill),
];

/// A name that nobody else has.
fn name() -> Result<String> {
    let mut bytes = [0; 8];
    sys::random::fill(&mut bytes)?;
    Ok(format!("contract-{:016x}", u64::from_ne_bytes(bytes)))
}

fn kind<T>(result: &Result<T>) -> Option<ErrorKind> {
    result.as_ref().err().map(Error::kind)
}

fn names(driver: &dyn Driver, clause: Clause) -> Result<()> {
    let long = "x".repeat(129);
    for name in ["", ".", "..", "a/b", "a b", "a\n", "cgroup.procs", &long] {
        let refused = kind(&driver.create(name, &Request::default()));
        require(refused == Some(ErrorKind::Invalid), clause, format!("{name:?}: {refused:?}"))?;
    }
    Ok(())
}

fn life(driver: &dyn Driver, clause: Clause) -> Result<()> {
    let name = name()?;
    require(driver.open(&name)?.is_none(), clause, "one that was not made is found")?;
    let group = driver.create(&name, &Request { track: Controllers::PIDS, ..Request::default() })?;
    // Where no directory can be made, there is no name to take.
    if !group.paths().is_empty() {
        let found = driver.open(&name)?.map(|found| found.paths().len());
        require(found.is_some_and(|paths| paths > 0), clause, format!("it is not found again: {found:?}"))?;
        require(driver.list()?.contains(&name), clause, "it is not listed")?;
        let again = kind(&driver.create(&name, &Request::default()));
        require(again == Some(ErrorKind::AlreadyExists), clause, format!("made again: {again:?}"))?;
        require(group.is_empty()?, clause, "somebody is in it")?;
    }
    for _ in 0..2 {
        group.remove()?;
    }
    let left = driver.list()?.contains(&name) || driver.open(&name)?.is_some();
    require(!left && group.paths().iter().all(|path| !path.exists()), clause, "it is there after its removal")
}

fn limits(driver: &dyn Driver, clause: Clause) -> Result<()> {
    let limits = Limits { memory: Some(64 << 20), pids: Some(64), ..Limits::default() };
    let group = driver.create(&name()?, &Request { limits, ..Request::default() })?;
    let told: Vec<Limit> = group.unenforced().iter().map(|one| one.limit).collect();
    let silent = group.unenforced().iter().any(|one| one.cause.is_empty());
    group.remove()?;
    for limit in [Limit::Memory, Limit::Pids] {
        let holds = driver.available().contains(limit.controller());
        let said = format!("{limit:?} is available: {holds}; told as not enforced: {}", told.contains(&limit));
        require(holds != told.contains(&limit), clause, said)?;
    }
    require(!silent, clause, "a cause is missing")
}

fn crowd(driver: &dyn Driver, clause: Clause) -> Result<()> {
    spread(4, clause, || {
        for _ in 0..5 {
            let group = driver.create(&name()?, &Request { track: Controllers::PIDS, ..Request::default() })?;
            group.remove()?;
        }
        Ok(())
    })
}

/// A process that goes with this value.
struct Sleeper(Child);

impl Sleeper {
    fn in_group(group: &Group) -> Result<Sleeper> {
        let mut command = Command::new("/bin/sleep");
        let command = command.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let fail = |syscall| move |error| Error::io("put a process into the group", syscall, error);
        let sleeper = Sleeper(command.spawn().map_err(fail("execve"))?);
        for path in group.paths() {
            std::fs::write(path.join("cgroup.procs"), sleeper.0.id().to_string()).map_err(fail("write"))?;
        }
        Ok(sleeper)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn kill(driver: &dyn Driver, clause: Clause) -> Result<()> {
    let group = driver.create(&name()?, &Request { track: Controllers::PIDS, ..Request::default() })?;
    let tried = if group.can_kill() { kill_in(&group, clause) } else { Ok(()) };
    tried.and(group.remove())
}

fn kill_in(group: &Group, clause: Clause) -> Result<()> {
    let mut sleeper = Sleeper::in_group(group)?;
    let pid = sleeper.0.id() as i32;
    require(!group.is_empty()? && group.processes()?.contains(&pid), clause, "its process is not seen")?;
    let removed = kind(&group.remove());
    require(removed == Some(ErrorKind::Conflict), clause, format!("removed with a process in it: {removed:?}"))?;
    group.kill()?;
    let ended = sleeper.0.wait().map_err(|error| Error::io("wait for the process", "waitpid", error))?;
    require(!ended.success(), clause, "its process ended by itself")
}
