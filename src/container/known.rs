//! Containers of other programs: known by their record, reached by a pidfd.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::record::{self, Info, State};
use super::runtime::Runtime;
use super::{Container, Control, ExitStatus, Inner, Lifetime, Signal, owner, start_time};
use crate::sys::pidfd;
use crate::{Error, ErrorKind, Result};

/// A container that another program runs, or ran.
#[derive(Debug)]
pub(super) struct Foreign {
    root: PathBuf,
    id: String,
    /// `None` when it had ended already.
    process: Option<OwnedFd>,
}

/// How long the owner may take to write down what it knows of an end.
const PATIENCE: Duration = Duration::from_secs(5);

impl Foreign {
    fn of(root: &Path, info: &Info) -> Foreign {
        let process = info.pid.filter(|_| info.state == State::Running).and_then(|pid| {
            let fd = pidfd::open(pid).ok()?;
            // Opened first and compared then: after this the pid cannot be another process any more.
            (start_time(pid) == info.start_time).then_some(fd)
        });
        Foreign { root: root.to_owned(), id: info.id.to_string(), process }
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let Some(process) = &self.process else { return Ok(()) };
        match pidfd::send_signal(process.as_fd(), signal.number()) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other.map_err(|error| Error::io("signal the container", "pidfd_send_signal", error)),
        }
    }

    pub(super) fn wait(&self, limit: Option<Duration>) -> Result<Option<ExitStatus>> {
        if let Some(process) = &self.process {
            let ended = pidfd::wait(process.as_fd(), limit)
                .map_err(|error| Error::io("wait for the container", "poll", error))?;
            if !ended {
                return Ok(None);
            }
        }
        // Its process has ended; its owner says how.
        let deadline = Instant::now() + PATIENCE;
        loop {
            match record::read(&self.root, &self.id) {
                Some(Info { exit: Some(status), .. }) => return Ok(Some(status)),
                Some(info) if info.state == State::Running && owner::lives(&self.root, &info.owner) => {
                    if Instant::now() > deadline {
                        return Err(lost("the program that runs it has not told within five seconds"));
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                Some(info) if info.state == State::Created && owner::lives(&self.root, &info.owner) => {
                    if limit.is_some() {
                        return Ok(None);
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                Some(_) => return Err(lost("the program that ran it was killed")),
                None => return Err(lost("it was not kept after its end")),
            }
        }
    }
}

fn lost(why: &'static str) -> Error {
    Error::new(ErrorKind::Launch, "learn how the container ended").because(format!("the exit status is lost: {why}"))
}

/// Finds a container by name, by ID, or by the unambiguous beginning of an ID.
pub(crate) fn find(runtime: &Arc<Runtime>, text: &str) -> Result<Container> {
    let step = || format!("find the container {text:?}");
    let root = runtime.root();
    let named = (!text.is_empty() && !text.contains('/'))
        .then(|| std::fs::read_link(root.join("names").join(text)).ok())
        .flatten()
        .and_then(|id| record::read(root, id.to_str()?));
    let info = match named {
        Some(info) => info,
        None => {
            let hex = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            let ids = if hex { record::ids(root)? } else { vec![] };
            let mut found = ids.iter().filter(|id| id.starts_with(text)).filter_map(|id| record::read(root, id));
            match (found.next(), found.next()) {
                (Some(info), None) => info,
                (Some(_), Some(_)) => {
                    return Err(Error::new(ErrorKind::Invalid, step())
                        .because("several IDs start like that")
                        .remedy("write more digits"));
                }
                (None, _) => {
                    return Err(Error::new(ErrorKind::NotFound, step())
                        .because("no container has that name, and no ID starts like that")
                        .remedy("`coracle ps -a` lists them"));
                }
            }
        }
    };
    let foreign = Foreign::of(root, &info);
    let inner = Inner {
        runtime: runtime.clone(),
        control: Control::Foreign(foreign),
        info: Mutex::new(info),
        lifetime: Lifetime::Attached,
    };
    Ok(Container { stdin: None, stdout: None, stderr: None, inner: Arc::new(inner) })
}
