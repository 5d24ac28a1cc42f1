//! Further commands in a container that runs.
//!
//! ```text
//! Container::exec ── ExecBuilder ── plan ──────────── guardian ────────────── Exec
//!                    the container's own  groups, then   joins by pidfd, goes
//!                    user, variables, …   namespaces     on in a child
//! ```
//! Nobody who has run the container is needed for that, only its record and its first process.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Process as SpecProcess, Spec, UserBuilder};
use serde::{Deserialize, Serialize};

use super::builder::Slots;
use super::io::{self, Stdio};
use super::record::Info;
use super::relay::Relays;
use super::rung::Rung;
use super::runtime::Runtime;
use super::terminal::{TERM, Terminal, WindowSize};
use super::user::{self, User};
use super::{Container, Control, ExitStatus, Inner, Output, Signal, owner};
use crate::isolation::{ExecRequest, Ground, Joining, maps_of};
use crate::launch::{self, Process};
use crate::security::{Capability, CapabilitySet, Landlock, Seccomp};
use crate::sys::path::Root;
use crate::sys::pidfd;
use crate::{Error, ErrorKind, Result};

/// What further commands of a container are started with: kept in its record, so that another program can start them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Template {
    /// Whose ids the container runs with, see [`Identity::name`](crate::isolation::Identity::name).
    identity: String,
    namespaces: Vec<LinuxNamespaceType>,
    /// Without its arguments.
    process: SpecProcess,
    filter: Filter,
    /// Flags of seccomp(2).
    #[serde(default)]
    filter_flags: u32,
    /// See personality(2).
    #[serde(default)]
    personality: Option<u32>,
    /// What landlock allows on top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layer: Option<Landlock>,
}

/// How containers of this rung are started, in a few words.
fn name_of(rung: &Rung) -> String {
    match (rung.ground(), rung.backend.name()) {
        (Ground::Mounts, "namespaces") => rung.identity.name().to_owned(),
        _ => format!("by {}, {}", rung.backend.name(), rung.identity.name()),
    }
}

/// Which system call filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Filter {
    None,
    #[serde(rename = "docker-2026-11")]
    Docker2026_11,
    #[serde(rename = "strict-2026-11")]
    Strict2026_11,
    /// One of the caller's own: `struct sock_filter` entries in hexadecimal digits.
    Program(String),
}

impl Template {
    /// As the record holds it. Nothing else of a record may become unreadable by it.
    pub(super) fn of(
        rung: &Rung,
        spec: &Spec,
        (seccomp, filter_flags): (&Seccomp, u32),
        program: Option<&[u8]>,
        layer: Option<&Landlock>,
    ) -> Option<serde_json::Value> {
        let mut process = spec.process().clone()?;
        process.set_args(None);
        let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        let namespaces = namespaces.into_iter().flatten().map(|namespace| namespace.typ()).collect();
        let filter = match (seccomp, program) {
            (Seccomp::Docker2026_11, _) => Filter::Docker2026_11,
            (Seccomp::Strict2026_11, _) => Filter::Strict2026_11,
            (_, Some(program)) => Filter::Program(program.iter().map(|byte| format!("{byte:02x}")).collect()),
            (_, None) => Filter::None,
        };
        let identity = name_of(rung);
        let personality = crate::isolation::persona(spec);
        let layer = layer.cloned();
        let template = Template { identity, namespaces, process, filter, filter_flags, personality, layer };
        serde_json::to_value(template).ok()
    }

    fn read<'a>(runtime: &'a Runtime, info: &Info) -> Result<(Template, &'a Rung)> {
        let step = "start a command in the container";
        let template = info.template.clone().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, step)
                .because("an earlier release started it, and has not written down how")
        })?;
        let template: Template = serde_json::from_value(template).map_err(|error| {
            Error::new(ErrorKind::Unsupported, step)
                .because("what its record says of how it was started is damaged, or of another release")
                .source_is(error)
        })?;
        // Its users are others, and the steps that make a process one of them.
        let Some(rung) = runtime.ladder.iter().find(|rung| name_of(rung) == template.identity) else {
            let own = runtime.ladder.first().map(name_of).unwrap_or_default();
            return Err(Error::new(ErrorKind::Unsupported, step)
                .because(format!("it was started {}, and this program would start one {own}", template.identity))
                .remedy("use a program that starts containers as that one does"));
        };
        Ok((template, rung))
    }

    /// The filter's program, for this machine.
    fn program(&self, runtime: &Runtime) -> Result<Option<Arc<[u8]>>> {
        let named = match &self.filter {
            Filter::None => return Ok(None),
            Filter::Docker2026_11 => Seccomp::Docker2026_11,
            Filter::Strict2026_11 => Seccomp::Strict2026_11,
            Filter::Program(digits) => {
                let pairs = digits.as_bytes().chunks(2);
                let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
                let program: Option<Vec<u8>> = pairs.map(byte).collect();
                let program = program.ok_or_else(|| {
                    Error::new(ErrorKind::Corrupt, "read the container's record").because("its filter is damaged")
                })?;
                return Ok(Some(program.into()));
            }
        };
        let sets = self.process.capabilities().as_ref();
        let bounding = sets.and_then(|sets| sets.bounding().as_ref()).into_iter().flatten();
        let names = bounding.filter_map(|capability| format!("CAP_{capability}").parse::<Capability>().ok());
        let capabilities = names.fold(CapabilitySet::EMPTY, CapabilitySet::with);
        runtime.filters.get(&named, capabilities, runtime.host.kernel())
    }
}

/// A further command that is being described; see [`Container::exec`]. It works like a
/// [`ContainerBuilder`](super::ContainerBuilder): it can be used again, and its streams are for the next start only.
#[derive(Debug, Clone)]
#[must_use = "a builder starts nothing by itself"]
pub struct ExecBuilder {
    inner: Arc<Inner>,
    command: Vec<String>,
    env: BTreeMap<String, Option<String>>,
    workdir: Option<PathBuf>,
    user: Option<String>,
    streams: Slots,
    tty: Option<WindowSize>,
    output_limit: u64,
}

/// A further command that was started in a container. Dropping the value kills it, and so does the end of the container
/// or of this program.
#[derive(Debug)]
pub struct Exec {
    /// Standard input, when it is [`Stdio::Piped`].
    pub stdin: Option<PipeWriter>,
    /// Standard output, when it is [`Stdio::Piped`].
    pub stdout: Option<PipeReader>,
    /// Standard error, when it is [`Stdio::Piped`].
    pub stderr: Option<PipeReader>,
    /// Its terminal, when it was given [one](ExecBuilder::tty).
    pub terminal: Option<Terminal>,
    inner: Arc<Inner>,
    process: Process,
    relays: Relays,
    output_limit: u64,
    _owner: Arc<owner::Owner>,
}

impl Container {
    /// Describes a further command for this container, which has to be running: one of this program's, or of another's.
    ///
    /// It is the container's equal: it has its user, variables, working directory, capabilities and system call filter, lives
    /// in its namespaces and its control group, and is killed when its first process ends. While it is set up it cannot be
    /// traced from inside, and of the host it holds nothing but its streams.
    ///
    /// ```no_run
    /// # fn main() -> coracle::Result<()> {
    /// # let engine = coracle::Engine::open_default()?;
    /// let container = engine.find_container("web")?;
    /// let out = container.exec().command(["cat", "/etc/hostname"]).output()?;
    /// assert!(out.status.success());
    /// # Ok(())
    /// # }
    /// ```
    pub fn exec(&self) -> ExecBuilder {
        ExecBuilder {
            inner: self.inner.clone(),
            command: vec![],
            env: BTreeMap::new(),
            workdir: None,
            user: None,
            streams: Slots::default(),
            tty: None,
            output_limit: io::OUTPUT_LIMIT,
        }
    }
}

impl ExecBuilder {
    /// Command and arguments. The image's entrypoint has no part in it.
    pub fn command(mut self, words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.command = words.into_iter().map(Into::into).collect();
        self
    }

    /// One more argument.
    pub fn arg(mut self, word: impl Into<String>) -> Self {
        self.command.push(word.into());
        self
    }

    /// Sets a variable, in place of the container's if that has it.
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(key.into(), Some(value.into()));
        self
    }

    /// Takes a variable away that the container has.
    pub fn env_remove(mut self, key: impl Into<String>) -> Self {
        self.env.insert(key.into(), None);
        self
    }

    /// An absolute path inside, of a directory that is there.
    pub fn workdir(mut self, path: impl Into<PathBuf>) -> Self {
        self.workdir = Some(path.into());
        self
    }

    /// `user[:group]`, names or numbers, as the container's files say now.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Gives it a pseudo-terminal of this size in place of three streams, or none again, as
    /// [`ContainerBuilder::tty`](super::ContainerBuilder::tty) does. It is made in the devpts that the container has at
    /// `/dev/pts` now; the container's `/dev/console` stays what it is.
    ///
    /// # Errors
    /// Of the start: [`Hostile`](ErrorKind::Hostile) when something else is at `/dev/pts`, or nothing; otherwise as there.
    pub fn tty(mut self, size: impl Into<Option<WindowSize>>) -> Self {
        self.tty = size.into();
        self
    }

    /// Standard input of the next start; the starts after it get [`Stdio::Null`] again.
    pub fn stdin(self, stdio: impl Into<Stdio>) -> Self {
        self.streams.set(0, stdio.into());
        self
    }

    /// Standard output of the next start.
    pub fn stdout(self, stdio: impl Into<Stdio>) -> Self {
        self.streams.set(1, stdio.into());
        self
    }

    /// Standard error of the next start.
    pub fn stderr(self, stdio: impl Into<Stdio>) -> Self {
        self.streams.set(2, stdio.into());
        self
    }

    /// How many bytes of each stream [`output`](Self::output) and [`Exec::wait_with_output`] hold in memory at most; 1 GiB
    /// by default. A command that writes more is killed, and that is a [`Limit`](ErrorKind::Limit) error.
    pub fn output_limit(mut self, bytes: u64) -> Self {
        self.output_limit = bytes;
        self
    }

    /// Starts it, waits for its end, and returns what it wrote. Standard output and error are captured unless they were
    /// set.
    ///
    /// # Errors
    /// Those of [`spawn`](Self::spawn) and of [`Exec::wait_with_output`]. A command that fails is no error: see
    /// [`Output::status`].
    pub fn output(&self) -> Result<Output> {
        self.named(self.start(|| Stdio::Piped))?.wait_with_output()
    }

    /// Starts it, waits for its end, and returns its status. Output goes to this program's own unless it was set.
    ///
    /// # Errors
    /// Those of [`spawn`](Self::spawn), [`Exec::wait`] and [`Exec::check_output`].
    pub fn status(&self) -> Result<ExitStatus> {
        let mut exec = self.named(self.start(|| Stdio::Inherit))?;
        drop(exec.stdin.take());
        let status = exec.wait()?;
        exec.check_output()?;
        Ok(status)
    }

    /// Starts it and returns when its command has been executed. All three streams are [`Stdio::Null`] unless they were
    /// set.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) when the container is not running;
    /// [`CommandNotFound`](ErrorKind::CommandNotFound) and
    /// [`CommandNotExecutable`](ErrorKind::CommandNotExecutable) for the command;
    /// [`NotFound`](ErrorKind::NotFound) for a user that the container does not know;
    /// [`Weaker`](ErrorKind::Weaker) when it could not be put into the container's control group;
    /// [`Launch`](ErrorKind::Launch) for what the kernel refused. No process is left after any of them.
    pub fn spawn(&self) -> Result<Exec> {
        self.named(self.start(Stdio::default))
    }

    fn named<T>(&self, result: Result<T>) -> Result<T> {
        self.inner.named(result)
    }

    /// `output` is where output goes that was not set.
    fn start(&self, output: fn() -> Stdio) -> Result<Exec> {
        let set = self.streams.take()?;
        let runtime = &self.inner.runtime;
        let (info, container) = self.inner.first_process()?;
        let (template, rung) = Template::read(runtime, &info)?;
        let process = self.process(&template, rung, &container)?;
        let program = template.program(runtime)?;
        let joining = joining(runtime, &info)?;
        let maps = maps(runtime, &template.namespaces, container.pid).map_err(|error| match container.has_ended() {
            Ok(true) => not_running().source_is(error),
            _ => error,
        })?;
        let owner = runtime.owner()?;
        let mut streams = io::connect_as_set(self.tty, set, output)?;
        let plan = rung.backend.exec(ExecRequest {
            process: &process,
            namespaces: &template.namespaces,
            container: container.fd(),
            identity: &rung.identity,
            layer: template.layer.as_ref(),
            host: &runtime.host,
            stdio: streams.inside,
            stdio_made: streams.made,
            console: streams.console,
            seccomp: program.as_deref(),
            seccomp_flags: template.filter_flags,
            personality: template.personality,
            maps: maps.each_ref().map(Vec::as_slice),
            joining,
        })?;
        let launched = launch::launch(plan, owner.lock(), &runtime.root().join("tmp"));
        // Killed with it, if it has ended meanwhile, and that is all there is to say.
        let process = launched.map_err(|error| match container.has_ended() {
            Ok(true) => not_running().source_is(error),
            _ => error,
        })?;
        let terminal = Terminal::attach(streams.line, &process, &mut streams.relays).inspect_err(|_| {
            if process.signal(libc::SIGKILL).is_ok() {
                let _ = process.wait(None);
            }
        })?;
        Ok(Exec {
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            terminal,
            inner: self.inner.clone(),
            process,
            relays: streams.relays,
            output_limit: self.output_limit,
            _owner: owner,
        })
    }

    /// What the container's processes have, changed as was asked.
    fn process(&self, template: &Template, rung: &Rung, container: &First<'_>) -> Result<SpecProcess> {
        let invalid = |step: &str, why: &'static str| Error::new(ErrorKind::Invalid, step.to_owned()).because(why);
        if self.command.is_empty() {
            return Err(invalid("start a command in the container", "none was given").remedy("name a command, e.g. sh"));
        }
        let mut process = template.process.clone();
        process.set_args(Some(self.command.clone()));
        let mut env: Vec<String> = process.env().clone().unwrap_or_default();
        let mut set = |key: &str, value: Option<&str>| {
            let of_key = |variable: &String| variable.split_once('=').is_some_and(|(known, _)| known == key);
            let at = env.iter().position(of_key);
            env.retain(|variable| !of_key(variable));
            if let Some(value) = value {
                env.insert(at.unwrap_or(env.len()).min(env.len()), format!("{key}={value}"));
            }
        };
        if let Some(text) = &self.user {
            let User { uid, gid, groups, home } = container.user(text)?;
            if let Some((why, remedy)) = rung.identity.refuses(uid, gid, &groups) {
                let step = format!("run as the user {text:?}");
                return Err(Error::new(ErrorKind::Unsupported, step).because(why).remedy(remedy));
            }
            let shown = (template.process.user().uid(), template.process.user().gid());
            if rung.identity.shows_one() && (uid, gid) != shown {
                return Err(Error::new(ErrorKind::Unsupported, format!("run as the user {text:?}"))
                    .because(format!("in this container one user id is shown, {}:{}", shown.0, shown.1))
                    .remedy("give this user a range in /etc/subuid and /etc/subgid, and start the container again"));
            }
            set("HOME", Some(&home));
            let all = std::iter::once(gid).chain(groups).collect::<Vec<_>>();
            let mut user = UserBuilder::default().uid(uid).gid(gid).additional_gids(all);
            if let Some(umask) = process.user().umask() {
                user = user.umask(umask);
            }
            let user = user
                .build()
                .map_err(|error| Error::new(ErrorKind::Invalid, "write the command's spec").source_is(error))?;
            process.set_user(user);
        }
        for (key, value) in &self.env {
            if key.is_empty() || key.contains(['=', '\0']) {
                return Err(invalid(
                    &format!("set the variable {key:?}"),
                    "a name is not empty and holds neither = nor NUL",
                ));
            }
            set(key, value.as_deref());
        }
        if self.tty.is_some() && !self.env.contains_key("TERM") && !env.iter().any(|known| known.starts_with("TERM=")) {
            env.push(TERM.to_owned());
        }
        process.set_env(Some(env));
        if let Some(path) = &self.workdir {
            if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
                return Err(invalid(
                    "enter the working directory",
                    "it has to be an absolute path inside the container, without `..`",
                )
                .path(path));
            }
            process.set_cwd(path.clone());
        }
        Ok(process)
    }
}

/// The maps of a user namespace that the host's root has given a container whose first process is `pid`.
pub(super) fn maps(runtime: &Runtime, kinds: &[LinuxNamespaceType], pid: u32) -> Result<[Vec<LinuxIdMapping>; 2]> {
    match runtime.identity.is_rootless() || !kinds.contains(&LinuxNamespaceType::User) {
        true => Ok([vec![], vec![]]),
        false => maps_of(pid),
    }
}

/// How a process comes into the container's control group.
pub(super) fn joining(runtime: &Runtime, info: &Info) -> Result<Joining> {
    let mut joining = Joining::default();
    if info.groups.is_empty() {
        return Ok(joining);
    }
    let step = "join the container's control group";
    let weaker = |why: &'static str| Error::new(ErrorKind::Weaker, step).because(why);
    let group = runtime
        .open_recorded_group(&super::group_name(&info.id), &info.groups)?
        .ok_or_else(|| weaker("it is not where the container's record says"))?;
    let paths = group.paths();
    if paths.len() < info.groups.len() {
        return Err(weaker("a part of it is not where the container's record says"));
    }
    for path in paths {
        let fail = |error| Error::io(step, "open", error).path(&path).kind_is(ErrorKind::Weaker);
        match File::options().write(true).open(path.join("tasks")) {
            Ok(tasks) => joining.tasks.push(tasks.into()),
            // Version 2.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                joining.born_in = Some(File::open(&path).map_err(fail)?.into());
            }
            Err(error) => return Err(fail(error)),
        }
    }
    Ok(joining)
}

/// The first process of a container: nothing that its number names by now, but that process.
struct First<'a> {
    fd: Handle<'a>,
    pid: u32,
}

enum Handle<'a> {
    Ours(BorrowedFd<'a>),
    Opened(OwnedFd),
}

impl First<'_> {
    fn fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            Handle::Ours(fd) => *fd,
            Handle::Opened(fd) => fd.as_fd(),
        }
    }

    fn has_ended(&self) -> Result<bool> {
        pidfd::wait(self.fd(), Some(Duration::ZERO)).map_err(|error| Error::io("look at the container", "poll", error))
    }

    /// As the container's passwd(5) and group(5) say now, looked for beneath its root.
    fn user(&self, text: &str) -> Result<User> {
        let step = "look up the user in the container";
        let link = PathBuf::from(format!("/proc/{}/root", self.pid));
        let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(&link, flags, nix::sys::stat::Mode::empty())
            .map_err(|errno| Error::sys(step, "open", errno as i32).path(&link))?;
        // Whose root that is, is known as long as the process has not ended.
        if self.has_ended()? {
            return Err(not_running());
        }
        let root = Root::new(root);
        let read = |path: &std::ffi::CStr| -> Result<Vec<u8>> {
            let fail = |syscall: &'static str| {
                move |error| Error::io(step, syscall, error).path(Path::new(&*path.to_string_lossy()))
            };
            // What lies there may be anything: a pipe that nobody writes to, a file without an end.
            let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
            let file = match root.open_in_root(path, flags, 0) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
                other => File::from(other.map_err(fail("openat2"))?),
            };
            let status = file.metadata().map_err(fail("fstat"))?;
            if !status.is_file() {
                return Err(Error::new(ErrorKind::Hostile, step)
                    .path(Path::new(&*path.to_string_lossy()))
                    .because("it is no plain file"));
            }
            let mut bytes = vec![];
            file.take(user::LIMIT + 1).read_to_end(&mut bytes).map_err(fail("read"))?;
            if bytes.len() as u64 > user::LIMIT {
                return Err(Error::new(ErrorKind::Limit, step)
                    .path(Path::new(&*path.to_string_lossy()))
                    .because(format!("it has more than {} bytes", user::LIMIT)));
            }
            Ok(bytes)
        };
        user::resolve_in(text, &read(c"/etc/passwd")?, &read(c"/etc/group")?)
    }
}

fn not_running() -> Error {
    Error::new(ErrorKind::Conflict, "start a command in the container")
        .because("the container is not running")
        .remedy("`coracle ps -a` shows how it ended")
}

impl Inner {
    /// What is known of it, and its first process, which has not ended.
    fn first_process(&self) -> Result<(Info, First<'_>)> {
        let fd = match &self.control {
            // Its end is for `wait` to hear of.
            Control::Own(own) => Handle::Ours(own.process.pidfd()),
            Control::Foreign(foreign) => {
                let fd = foreign.process()?.ok_or_else(not_running)?.try_clone_to_owned();
                Handle::Opened(fd.map_err(|error| Error::io("start a command in the container", "fcntl", error))?)
            }
        };
        // Read after one that was being started has been waited for.
        let info = self.info();
        let first = First { fd, pid: info.pid.ok_or_else(not_running)? };
        match first.has_ended()? {
            true => Err(not_running()),
            false => Ok((info, first)),
        }
    }
}

impl Exec {
    /// Its pid, as this program sees pids. Reused by the kernel once it has ended.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits for its end. May be called from several threads and again: the answer stays the same.
    ///
    /// # Errors
    /// [`Launch`](ErrorKind::Launch) when the exit status is lost, because the guardian was killed.
    pub fn wait(&self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.wait_at_most(None)? {
                return Ok(status);
            }
        }
    }

    /// [`wait`](Exec::wait), at most for `limit`; `None` when it still runs then.
    ///
    /// # Errors
    /// As [`wait`](Exec::wait).
    pub fn wait_timeout(&self, limit: Duration) -> Result<Option<ExitStatus>> {
        self.wait_at_most(Some(limit))
    }

    /// Its exit status, if it has ended; never waits.
    ///
    /// # Errors
    /// As [`wait`](Exec::wait).
    pub fn try_wait(&self) -> Result<Option<ExitStatus>> {
        self.wait_at_most(Some(Duration::ZERO))
    }

    fn wait_at_most(&self, limit: Option<Duration>) -> Result<Option<ExitStatus>> {
        let begin = Instant::now();
        let Some(ended) = self.inner.named(self.process.wait(limit))? else { return Ok(None) };
        // What it has started may go on to write there, and is not waited for.
        self.relays.finish(limit.map(|limit| limit.saturating_sub(begin.elapsed())));
        Ok(Some(ExitStatus::from(ended)))
    }

    /// Sends it a signal; one that has ended is left alone.
    ///
    /// # Errors
    /// Only those of talking to the guardian.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.inner.named(self.process.signal(signal.number()).map(drop))
    }

    /// Kills it. What it has started in the container stays.
    ///
    /// # Errors
    /// As [`signal`](Exec::signal).
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)
    }

    /// As [`Container::check_output`].
    ///
    /// # Errors
    /// As there.
    pub fn check_output(&self) -> Result<()> {
        if self.try_wait()?.is_some() {
            self.relays.finish(None);
        }
        super::lost_output(&self.relays)
    }

    /// Waits, collecting what it writes; returns when it has ended and what it wrote has been read, even if something that
    /// it has started keeps the pipes open.
    ///
    /// # Errors
    /// As [`wait`](Exec::wait); [`Limit`](ErrorKind::Limit) when a stream has more than the
    /// [`output_limit`](ExecBuilder::output_limit), and the command has been killed for that.
    pub fn wait_with_output(mut self) -> Result<Output> {
        drop(self.stdin.take());
        let terminal = self.terminal.take();
        let read = match &terminal {
            Some(terminal) => terminal.collect(self.output_limit).map(|shown| (shown, vec![])),
            None => {
                io::read_both(self.stdout.take(), self.stderr.take(), self.output_limit, Some(self.process.pidfd()))
            }
        };
        let (stdout, stderr) = match read {
            Err(error) if error.kind() == ErrorKind::Limit => {
                self.kill()?;
                let _ = self.wait();
                return Err(self.inner.lock().which(error));
            }
            other => self.inner.named(other)?,
        };
        let status = self.wait()?;
        self.check_output()?;
        Ok(Output { status, stdout, stderr })
    }
}
