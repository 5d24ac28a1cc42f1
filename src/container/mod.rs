//! Containers: running (or stopped) instances of an image, or throwaway sandboxes over a directory of the host.
//!
//! A [`ContainerBuilder`] describes one as `std::process::Command` describes a process; [`Container`] is its
//! `Child`-like handle. What is on disk about a container is drawn in the module of its [record](Info).
//!
//! # The life of a container
//! ```text
//! builder ── draft ──────── plan ──────── launch ─────── running ─── exited ── removed
//!            record,        steps, all    guardian       Container   status    directory, name,
//!            snapshot,      checked       clones, stub                         control group gone
//!            control group                walks the plan
//! ```
//! A throwaway container is removed as soon as its end is known; one that is [kept](ContainerBuilder::keep) stays
//! listed until [`Container::remove`]. After an error on the way nothing is left behind.

mod builder;
mod commit;
mod decide;
mod draft;
mod edits;
mod exec;
mod hooks;
mod id_map;
mod io;
mod known;
pub(crate) mod owner;
pub(crate) mod record;
mod relay;
pub(crate) mod rung;
pub(crate) mod runtime;
mod signal;
pub(crate) mod snapshot;
mod spec;
mod status;
mod terminal;
mod user;

use std::io::{PipeReader, PipeWriter};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The OCI runtime spec that a container is described by underneath, as its own crate has it; see
/// [`ContainerBuilder::spec`].
pub use oci_spec::runtime as runtime_spec;

pub use builder::{ContainerBuilder, Lifetime, Mount, Network};
pub use exec::{Exec, ExecBuilder};
pub use id_map::IdMap;
pub use io::Stdio;
pub(crate) use known::{as_it_is, find};
pub use record::{Info, State};
pub use signal::Signal;
pub use snapshot::{SavedSnapshot, SnapshotId, SnapshotInfo};
pub use status::{ExitStatus, Output};
pub use terminal::{Terminal, WindowSize};

use crate::cgroup::Group;
use crate::content::lock::Held;
use crate::image::Images;
use crate::isolation::Enforcement;
use crate::launch::Process;
use crate::name::ContainerId;
use crate::{Error, ErrorKind, Result};
use draft::Made;
use known::Foreign;
use relay::Relays;
use runtime::{Remains, Runtime};

/// A container: one that this program started, or one that it [found](crate::Engine::find_container).
///
/// Dropping the value of a [throwaway](Lifetime::Throwaway) container kills it and removes what it left; errors on that
/// way are not told, so call [`wait`](Container::wait) and [`close`](Container::close) where they matter.
#[derive(Debug)]
pub struct Container {
    /// Standard input, when it is [`Stdio::Piped`].
    pub stdin: Option<PipeWriter>,
    /// Standard output, when it is [`Stdio::Piped`].
    pub stdout: Option<PipeReader>,
    /// Standard error, when it is [`Stdio::Piped`].
    pub stderr: Option<PipeReader>,
    /// Its terminal, when it was given [one](ContainerBuilder::tty).
    pub terminal: Option<Terminal>,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    runtime: Arc<Runtime>,
    control: Control,
    info: Mutex<Info>,
    lifetime: Lifetime,
    /// Where its image is; `None` over a directory of the host.
    images: Option<Images>,
}

/// Who can tell us about its process.
#[derive(Debug)]
enum Control {
    /// Our guardian.
    Own(Box<Own>),
    /// Nobody: it is another program's, and is known by its record and a pidfd.
    Foreign(Foreign),
}

#[derive(Debug)]
struct Own {
    process: Process,
    group: Option<Group>,
    enforcement: Enforcement,
    relays: Relays,
    output_limit: u64,
    /// Its end is known here, and could not be written down.
    unsaved: AtomicBool,
    _owner: Arc<owner::Owner>,
}

impl Container {
    #[allow(clippy::too_many_arguments)]
    fn running(
        runtime: Arc<Runtime>,
        made: Made,
        process: Process,
        lifetime: Lifetime,
        enforcement: Enforcement,
        (stdin, stdout, stderr, terminal): io::Ends,
        relays: Relays,
        output_limit: u64,
    ) -> Container {
        let own = Own {
            process,
            group: made.group,
            enforcement,
            relays,
            output_limit,
            unsaved: AtomicBool::new(false),
            _owner: made.owner,
        };
        let control = Control::Own(Box::new(own));
        let inner = Inner { runtime, control, info: Mutex::new(made.info), lifetime, images: made.images };
        Container { stdin, stdout, stderr, terminal, inner: Arc::new(inner) }
    }

    /// Its ID.
    pub fn id(&self) -> ContainerId {
        self.inner.info().id
    }

    /// What is known of it now.
    pub fn info(&self) -> Info {
        self.inner.info()
    }

    /// The pid of its first process, as this program sees pids; `None` once it has ended. Looks whether it has, as
    /// [`try_wait`](Container::try_wait) does.
    pub fn pid(&self) -> Option<u32> {
        match &self.inner.control {
            // The guardian tells once, and not a fork of its host.
            Control::Own(own) if own.process.is_ours() => match self.inner.wait(Some(Duration::ZERO)) {
                Ok(None) => self.inner.info().pid,
                // That its status is lost is an end, too.
                Ok(Some(_)) | Err(_) => None,
            },
            _ => self.inner.info().pid,
        }
    }

    /// What is enforced; `None` for a container of another program.
    pub fn enforcement(&self) -> Option<&Enforcement> {
        match &self.inner.control {
            Control::Own(own) => Some(&own.enforcement),
            Control::Foreign(_) => None,
        }
    }

    /// Waits for its end. May be called from several threads and again: the answer stays the same.
    ///
    /// Like `std::process::Child::wait` this does not close `stdin`; a container that reads to the end of its input
    /// waits for that. All that it wrote has arrived where this program's own streams go, then, or is lost for a reason
    /// that [`check_output`](Container::check_output) tells.
    ///
    /// # Errors
    /// [`Launch`](ErrorKind::Launch) when the exit status is lost, because the program or the guardian that ran it was
    /// killed. That the status of a [kept](ContainerBuilder::keep) container could not be written to its record is for
    /// [`close`](Container::close) to tell.
    pub fn wait(&self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.inner.named(self.inner.wait(None))? {
                return Ok(status);
            }
        }
    }

    /// [`wait`](Container::wait), at most for `limit`; `None` when it still runs then, or when the program that it
    /// belongs to has not told its status by then. What it wrote last may still be on its way to a
    /// [relayed](Stdio::Inherit) stream when the time is over: a terminal takes nothing after ^S.
    ///
    /// # Errors
    /// As [`wait`](Container::wait).
    pub fn wait_timeout(&self, limit: Duration) -> Result<Option<ExitStatus>> {
        self.inner.named(self.inner.wait(Some(limit)))
    }

    /// Its exit status, if it has ended and the program that it belongs to has told; never waits, for the last of its
    /// output neither.
    ///
    /// # Errors
    /// As [`wait`](Container::wait).
    pub fn try_wait(&self) -> Result<Option<ExitStatus>> {
        self.inner.named(self.inner.wait(Some(Duration::ZERO)))
    }

    /// Sends a signal to its first process; a container that has ended is left alone.
    ///
    /// # Errors
    /// Only those of talking to the guardian or, for a container of another program, of pidfd_send_signal(2).
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.inner.named(self.inner.signal(signal))
    }

    /// Kills its first process, and with it all of them. Returns before they are gone; [`wait`](Container::wait) tells.
    ///
    /// # Errors
    /// As [`signal`](Container::signal).
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)
    }

    /// Asks it to stop with its stop signal, and kills it when it still runs after `patience`.
    ///
    /// # Errors
    /// As [`signal`](Container::signal) and [`wait`](Container::wait).
    pub fn stop(&self, patience: Duration) -> Result<ExitStatus> {
        self.signal(Signal::from_number(self.inner.info().stop_signal)?)?;
        if let Some(status) = self.wait_timeout(patience)? {
            self.inner.finish();
            return Ok(status);
        }
        self.kill()?;
        self.wait()
    }

    /// Removes a container that has ended: its files, its name, its record. Needs no space on the disk.
    ///
    /// A container of another program that lives may have ended without that program having asked; it gets five
    /// seconds to write the exit status down for those who wait for it. After that the container goes, and the status
    /// is known to that program alone.
    ///
    /// The value goes on telling how it ended; there is nothing left that it could do.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) while it runs, and then it goes on; otherwise what unlink(2) says, and what is
    /// left is swept by the next open of the root.
    pub fn remove(&self) -> Result<()> {
        self.inner.named(self.inner.remove())
    }

    /// Whether everything that the container wrote has arrived where this program's own streams go: what a
    /// [relayed](Stdio::Inherit) stream was to receive is lost when a file is full, say. A reader who went away wants no
    /// more, so that is no error. To be asked after [`wait`](Container::wait); tells each loss once.
    ///
    /// # Errors
    /// Why it could not be written; [`Full`](ErrorKind::Full) on a full disk.
    pub fn check_output(&self) -> Result<()> {
        self.inner.check_output()
    }

    /// Ends the use of this value and tells what dropping it could not: kills a throwaway container that still runs,
    /// and removes it unless it is kept.
    ///
    /// # Errors
    /// As [`check_output`](Container::check_output); what removing says; for a kept container, why its exit status could
    /// not be written down. It is listed without one then.
    pub fn close(self) -> Result<()> {
        self.inner.named(self.inner.close())
    }

    /// Waits, collecting what is still in the pipes; see `std::process::Child::wait_with_output`.
    ///
    /// # Errors
    /// As [`wait`](Container::wait) and [`close`](Container::close); [`Limit`](ErrorKind::Limit) when a stream has more
    /// than the [`output_limit`](ContainerBuilder::output_limit), and the container has been killed for that.
    pub fn wait_with_output(mut self) -> Result<Output> {
        // A writer that stays open would keep the container waiting for the end of its input.
        drop(self.stdin.take());
        let limit = match &self.inner.control {
            Control::Own(own) => own.output_limit,
            Control::Foreign(_) => io::OUTPUT_LIMIT,
        };
        let terminal = self.terminal.take();
        let read = match &terminal {
            Some(terminal) => terminal.collect(limit).map(|shown| (shown, vec![])),
            None => io::read_both(self.stdout.take(), self.stderr.take(), limit, None),
        };
        let (stdout, stderr) = match read {
            Err(error) if error.kind() == ErrorKind::Limit => {
                self.kill()?;
                // Nobody reads any more, so a container that does not die is no reason to hide why.
                let _ = self.wait();
                let _ = self.close();
                return Err(error);
            }
            other => other?,
        };
        let status = self.wait()?;
        drop(terminal);
        self.close()?;
        Ok(Output { status, stdout, stderr })
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, Info> {
        // Fields are set one by one, but each of them makes sense by itself.
        self.info.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn info(&self) -> Info {
        if let Control::Foreign(_) = self.control {
            let known = self.lock().clone();
            let root = self.runtime.root();
            return known::as_it_is(root, record::read(root, &known.id.to_string()).ok().flatten().unwrap_or(known));
        }
        self.lock().clone()
    }

    /// What an error says, with the container's name.
    fn named<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| self.lock().which(error))
    }

    fn wait(&self, limit: Option<Duration>) -> Result<Option<ExitStatus>> {
        match &self.control {
            Control::Foreign(foreign) => foreign.wait(limit),
            Control::Own(own) => {
                let begin = Instant::now();
                let Some(ended) = own.process.wait(limit)? else { return Ok(None) };
                let status = ExitStatus::from(ended);
                own.relays.finish(limit.map(|limit| limit.saturating_sub(begin.elapsed())));
                let mut info = self.lock();
                if info.exit.is_none() {
                    info.exit = Some(status);
                    info.state = State::Exited;
                    info.finished = Some(record::now());
                    info.pid = None;
                    // Whoever waits is told the status, written or not; `close` tries again, and complains.
                    if info.keep && self.save(&info).is_err() {
                        own.unsaved.store(true, Ordering::Relaxed);
                    }
                    // One that is not kept has its files a moment longer, and other programs may wait for it.
                    if !info.keep {
                        let _ = record::append(self.runtime.root(), &info);
                    }
                }
                Ok(Some(status))
            }
        }
    }

    /// Writes the record of a container that is kept; when somebody else has removed it, there is none to write.
    fn save(&self, info: &Info) -> Result<()> {
        match record::write(self.runtime.root(), info, self.runtime.durability) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        match &self.control {
            Control::Own(own) => own.process.signal(signal.number()).map(drop),
            Control::Foreign(foreign) => foreign.signal(signal),
        }
    }

    fn group(&self) -> Option<&Group> {
        match &self.control {
            Control::Own(own) => own.group.as_ref(),
            Control::Foreign(_) => None,
        }
    }

    fn remove(&self) -> Result<()> {
        let runs = match &self.control {
            Control::Own(_) => self.wait(Some(Duration::ZERO)).is_ok_and(|status| status.is_none()),
            Control::Foreign(foreign) => !foreign.may_go()?,
        };
        if runs {
            return Err(Error::new(ErrorKind::Conflict, "remove the container")
                .because("it is running")
                .remedy("stop or kill it first"));
        }
        take_away(&self.runtime, &self.lock(), self.group())
    }

    /// Waits for the last of the output of a container that has ended.
    fn finish(&self) {
        match &self.control {
            // In a fork of the host the threads that are waited for are not there.
            Control::Own(own) if own.process.is_ours() && self.lock().exit.is_some() => own.relays.finish(None),
            _ => {}
        }
    }

    fn check_output(&self) -> Result<()> {
        let Control::Own(own) = &self.control else { return Ok(()) };
        self.finish();
        lost_output(&own.relays)
    }

    /// Goes on after a failure, and tells lost output first.
    fn close(&self) -> Result<()> {
        let ended = self.end();
        self.check_output().and(ended)
    }

    fn end(&self) -> Result<()> {
        let Control::Own(own) = &self.control else { return Ok(()) };
        // A fork of the program that launched it has a copy of this value: the container is not its own.
        if !own.process.is_ours() {
            return Ok(());
        }
        if self.lifetime == Lifetime::Attached && self.wait(Some(Duration::ZERO))?.is_none() {
            return Ok(());
        }
        if self.lock().exit.is_none() {
            own.process.signal(libc::SIGKILL)?;
            // A status that is lost with a killed guardian is no reason to leave files behind.
            let _ = self.wait(None);
        }
        if self.lock().keep {
            let saved = if own.unsaved.swap(false, Ordering::Relaxed) { self.save(&self.lock()) } else { Ok(()) };
            if let Some(group) = self.group() {
                clear(group)?;
            }
            return saved;
        }
        take_away(&self.runtime, &self.lock(), self.group())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // `Drop` cannot tell; what stays is swept by the next open of the root. `close` can.
        let _ = self.close();
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // A writer that is still open would keep a container waiting that is to end.
        drop(self.stdin.take());
        let attached = self.inner.lifetime == Lifetime::Attached;
        let Control::Own(own) = &self.inner.control else { return };
        if !attached {
            // Commands of it that are still described, or still run, keep the rest of it; it ends here all the same.
            let _ = self.inner.close();
        }
        // In a fork of the program that launched it, to ask for its end would be to take the answer from that.
        if !attached
            || !own.process.is_ours()
            || !self.inner.wait(Some(Duration::ZERO)).is_ok_and(|status| status.is_none())
        {
            return;
        }
        // It goes on as long as this program; somebody has to clean up after it.
        if own.process.release().unwrap_or(false) {
            let inner = self.inner.clone();
            let _ = std::thread::Builder::new().name("coracle-attached".into()).spawn(move || {
                let _ = inner.wait(None);
            });
        }
    }
}

/// What of the output could not be passed on; told once.
fn lost_output(relays: &Relays) -> Result<()> {
    let Some(errno) = relays.failure() else { return Ok(()) };
    let error = Error::sys("pass the container's output on", "write", errno as i32);
    Err(match errno {
        nix::errno::Errno::ENOSPC | nix::errno::Errno::EDQUOT => error
            .because("the file that it goes to has no room left; the rest is lost")
            .remedy("free some space, or send it to another file system"),
        _ => error.because("the rest of it is lost"),
    })
}

/// The name of a container's control group.
pub(crate) fn group_name(id: &ContainerId) -> String {
    id.to_string()
}

/// When a process started, in clock ticks since boot: field 22 of proc_pid_stat(5). `None` only when there is none.
///
/// # Errors
/// Those of reading it.
fn start_time(pid: u32) -> std::io::Result<Option<u64>> {
    let stat = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => return Ok(None),
        other => other?,
    };
    // The name, in parentheses, may contain anything, parentheses and blanks included.
    let field = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19));
    Ok(field.and_then(|field| field.parse().ok()))
}

/// Kills what is still in a control group, and removes it.
///
/// # Errors
/// [`Conflict`](ErrorKind::Conflict) when processes stay in it; others when it is empty and stays all the same.
fn clear(group: &Group) -> Result<()> {
    let killed = if group.is_empty().unwrap_or(false) { Ok(()) } else { group.kill() };
    let Err(error) = group.remove() else { return Ok(()) };
    if group.is_empty().unwrap_or(false) {
        return Err(error);
    }
    Err(Error::new(ErrorKind::Conflict, "remove the control group of the container")
        .because(match &killed {
            Ok(()) => "processes are still in it after they were killed".to_owned(),
            Err(error) => format!("processes are still in it: {error}"),
        })
        .source_is(error))
}

/// Removes everything of a container; waits for whoever takes a snapshot of it. Not for those who hold other locks.
fn take_away(runtime: &Runtime, info: &Info, group: Option<&Group>) -> Result<()> {
    let locked = match snapshot::lock(&record::directory(runtime.root(), &info.id)) {
        // Never made, or gone already; the name and the group may still be there.
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        other => Some(other?),
    };
    take_all(runtime, info, group, locked)?.map_or(Ok(()), |remains| runtime.empty(remains))
}

/// Takes a container whose program is gone out of sight, unless somebody has it in hand; what is left is to be emptied.
///
/// # Errors
/// [`Conflict`](ErrorKind::Conflict) where somebody has.
pub(crate) fn bury_unless_in_hand(runtime: &Runtime, info: &Info) -> Result<Option<Remains>> {
    let locked = snapshot::try_lock(&record::directory(runtime.root(), &info.id))?;
    take_all(runtime, info, None, locked)
}

/// Goes on after a failure and tells the first. Its files stay as long as its processes do: they would see them vanish,
/// and could make new ones. `locked` is the lock on its directory, which stays on what is left.
fn take_all(runtime: &Runtime, info: &Info, group: Option<&Group>, locked: Option<Held>) -> Result<Option<Remains>> {
    let result = match group {
        Some(group) => clear(group),
        None => runtime.clear_group(&group_name(&info.id), &info.groups),
    };
    if result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Conflict) {
        return result.map(|()| None);
    }
    let was_there = info.last.is_some() && record::directory(runtime.root(), &info.id).exists();
    let buried = runtime.bury(&info.id.to_string(), locked);
    // Without its record the container is gone, and the name free; so nobody sees one that has lost its name alone.
    if let Some(name) = &info.name {
        record::give_name_back(runtime.root(), name, &info.id);
    }
    // Once, by whoever it was that has taken it away.
    let buried = buried.map(|remains| match remains {
        Some(remains) if was_there => Some(remains.with_hooks_of(info)),
        None if was_there => {
            hooks::gone(runtime, info);
            None
        }
        remains => remains,
    });
    match (result, buried) {
        (Ok(()), buried) => buried,
        (Err(error), Ok(Some(remains))) => {
            let _ = runtime.empty(remains);
            Err(error)
        }
        (Err(error), _) => Err(error),
    }
}

/// Makes a directory that only this user enters; one that is there is fine.
fn make_directory(path: &Path, step: &'static str) -> Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error::io(step, "mkdir", error).path(path))
        }
        _ => Ok(()),
    }
}
