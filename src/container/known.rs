//! Containers of other programs: known by their record, reached by a pidfd.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::record::{self, Info, State};
use super::runtime::Runtime;
use super::{Container, Control, ExitStatus, Inner, Lifetime, Signal, owner, start_time};
use crate::image::Images;
use crate::sys::pidfd;
use crate::{Error, ErrorKind, Result};

/// A container that another program runs, or ran.
#[derive(Debug)]
pub(super) struct Foreign {
    root: PathBuf,
    id: String,
    owner: String,
    /// Its record, open: one that is not kept says there how it ended, and is gone then.
    record: Option<File>,
    /// Empty as long as the record names no process that lives.
    process: OnceLock<OwnedFd>,
}

/// How long the owner may take to write down what it knows of a start or an end.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);

impl Foreign {
    fn of(root: &Path, info: &Info) -> Foreign {
        let (root, id, owner) = (root.to_owned(), info.id.to_string(), info.owner.clone());
        let record = record::open(&root, &id);
        let foreign = Foreign { root, id, owner, record, process: OnceLock::new() };
        // Where that fails, it is tried again when the process is asked for.
        let _ = foreign.take_process(info);
        foreign
    }

    /// Takes hold of the process that a record names, if that still lives.
    fn take_process(&self, info: &Info) -> Result<()> {
        let Some(pid) = info.pid.filter(|_| info.state == State::Running) else { return Ok(()) };
        let fail = |syscall| move |error| Error::io("reach the process of the container", syscall, error);
        let fd = match pidfd::open(pid) {
            // The second where another process has a thread of that number.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)) => return Ok(()),
            other => other.map_err(fail("pidfd_open"))?,
        };
        // Opened first and compared then: after this the pid cannot be another process any more.
        if is_it(pid, info).map_err(fail("open"))? {
            // Whoever was faster took the same one.
            let _ = self.process.set(fd);
        }
        Ok(())
    }

    /// Whether its owner lives, and the record: in this order, since the last thing that an owner does is to write it.
    fn look(&self) -> Result<(bool, Option<Info>)> {
        Ok((owner::lives(&self.root, &self.owner), record::read(&self.root, &self.id)?))
    }

    /// Its process; `None` when it has ended. A container that is being started is waited for, at most for `limit`: its
    /// command may run, and be seen to run, before the record says so. False when that took too long.
    fn started(&self, limit: Option<Duration>) -> Result<(Option<BorrowedFd<'_>>, bool)> {
        let begin = Instant::now();
        loop {
            if let Some(process) = self.process.get() {
                return Ok((Some(process.as_fd()), true));
            }
            let (owned, record) = self.look()?;
            if let Some(info) = &record {
                self.take_process(info)?;
            }
            if let Some(process) = self.process.get() {
                return Ok((Some(process.as_fd()), true));
            }
            let starting = owned && record.is_some_and(|info| info.state == State::Created);
            if !starting || limit.is_some_and(|limit| begin.elapsed() >= limit) {
                return Ok((None, !starting));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Its first process; `None` when that has ended, or when it takes too long to be started.
    pub(super) fn process(&self) -> Result<Option<BorrowedFd<'_>>> {
        let (process, _) = self.started(Some(PATIENCE))?;
        match process {
            Some(process) => {
                let ended = pidfd::wait(process, Some(Duration::ZERO))
                    .map_err(|error| Error::io("look at the container", "poll", error))?;
                Ok(Some(process).filter(|_| !ended))
            }
            None => Ok(None),
        }
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let process = match self.started(Some(PATIENCE))? {
            (Some(process), _) => process,
            (None, true) => return Ok(()),
            (None, false) => {
                return Err(Error::new(ErrorKind::Conflict, "signal the container")
                    .because("another program is still starting it"));
            }
        };
        // Read after it was started. Without a record it is gone, or going.
        let watched = record::read(&self.root, &self.id)?.is_some_and(|info| info.watched);
        match crate::launch::signal_past(process, signal.number(), watched) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other.map_err(|error| Error::io("signal the container", "pidfd_send_signal", error)),
        }
    }

    /// Whether its process has ended, waiting for that at most for `limit`.
    fn ended(&self, limit: Option<Duration>) -> Result<bool> {
        let begin = Instant::now();
        match self.started(limit)? {
            (_, false) => Ok(false),
            (None, true) => Ok(true),
            (Some(process), true) => {
                let rest = limit.map(|limit| limit.saturating_sub(begin.elapsed()));
                pidfd::wait(process, rest).map_err(|error| Error::io("wait for the container", "poll", error))
            }
        }
    }

    pub(super) fn wait(&self, limit: Option<Duration>) -> Result<Option<ExitStatus>> {
        let begin = Instant::now();
        if !self.ended(limit)? {
            return Ok(None);
        }
        let rest = limit.map(|limit| limit.saturating_sub(begin.elapsed()));
        self.told(rest)
    }

    /// Whether nobody needs it any more: its process has ended, and its owner has had the time to write down how. An
    /// owner that lives and does not ask for the end keeps nothing from being removed.
    pub(super) fn may_go(&self) -> Result<bool> {
        let ended = self.ended(Some(Duration::ZERO))?;
        if ended {
            // Only the time counts here, not what is told.
            let _ = self.told(None);
        }
        Ok(ended)
    }

    /// Its process has ended; its owner says how. `None` when it has not within `limit`, an error when not within our
    /// patience.
    fn told(&self, limit: Option<Duration>) -> Result<Option<ExitStatus>> {
        let begin = Instant::now();
        loop {
            match self.look()? {
                (_, Some(Info { exit: Some(status), .. })) => return Ok(Some(status)),
                (true, Some(Info { state: State::Running, .. })) => {
                    if begin.elapsed() >= PATIENCE {
                        return Err(lost("the program that runs it has not told within five seconds"));
                    }
                    if limit.is_some_and(|limit| begin.elapsed() >= limit) {
                        return Ok(None);
                    }
                    std::thread::sleep(PAUSE);
                }
                (_, Some(_)) => return Err(lost("the program that ran it was killed")),
                (_, None) => {
                    let last = self.record.as_ref().and_then(record::last);
                    return last
                        .and_then(|info| info.exit)
                        .map(Some)
                        .ok_or_else(|| lost("it was not kept after its end"));
                }
            }
        }
    }
}

/// What a record says, put right by what can be seen: its program may have been killed, or may not have asked yet.
pub(crate) fn as_it_is(root: &Path, mut info: Info) -> Info {
    if !matches!(info.state, State::Created | State::Running) {
        // An older version left it there.
        info.pid = None;
        return info;
    }
    if !owner::lives(root, &info.owner) {
        // Its last word may have been written meanwhile.
        info = record::read(root, &info.id.to_string()).ok().flatten().unwrap_or(info);
        if matches!(info.state, State::Created | State::Running) {
            info.state = State::Dead;
            info.pid = None;
        }
    } else if info.state == State::Running && info.pid.is_some_and(|pid| matches!(is_it(pid, &info), Ok(false))) {
        info.state = State::Exited;
        info.pid = None;
    }
    info
}

/// Whether the process that has this pid now is the container's. One that ended before its start was read is none.
///
/// # Errors
/// Where nobody can tell.
fn is_it(pid: u32, info: &Info) -> std::io::Result<bool> {
    Ok(start_time(pid)?.is_some_and(|start| Some(start) == info.start_time))
}

fn lost(why: &'static str) -> Error {
    Error::new(ErrorKind::Launch, "learn the exit status of the container")
        .because(format!("the exit status is lost: {why}"))
}

/// The one thing whose ID starts as somebody wrote it.
pub(super) fn the_only<T>(
    mut found: impl Iterator<Item = T>,
    step: impl Fn() -> String,
    absent: &'static str,
    lists: &'static str,
) -> Result<T> {
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (Some(_), Some(_)) => Err(Error::new(ErrorKind::Invalid, step())
            .because("several IDs start like that")
            .remedy("write more digits")),
        (None, _) => Err(Error::new(ErrorKind::NotFound, step()).because(absent).remedy(lists)),
    }
}

/// Finds a container by name, by ID, or by the unambiguous beginning of an ID.
pub(crate) fn find(runtime: &Arc<Runtime>, images: &Images, text: &str) -> Result<Container> {
    let step = || format!("find the container {text:?}");
    let root = runtime.root();
    let named = (!text.is_empty() && !text.contains('/'))
        .then(|| std::fs::read_link(root.join("names").join(text)).ok())
        .flatten()
        .and_then(|id| record::read(root, id.to_str()?).transpose())
        .transpose()?;
    let info = match named {
        Some(info) => info,
        None => {
            let hex = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            let ids = if hex { record::ids(root)? } else { vec![] };
            let mut found = vec![];
            for id in ids.iter().filter(|id| id.starts_with(text)) {
                found.extend(record::read(root, id)?);
            }
            let absent = "no container has that name, and no ID starts like that";
            the_only(found.into_iter(), step, absent, "`coracle ps -a` lists them")?
        }
    };
    let foreign = Foreign::of(root, &info);
    let inner = Inner {
        runtime: runtime.clone(),
        control: Control::Foreign(foreign),
        info: Mutex::new(info),
        lifetime: Lifetime::Attached,
        images: Some(images.clone()),
    };
    Ok(Container { stdin: None, stdout: None, stderr: None, terminal: None, inner: Arc::new(inner) })
}
