//! Describes a container, as `std::process::Command` describes a process.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::Mount as SpecMount;

use super::edits::Edits;
use super::hooks::Lifecycle;
use super::id_map::IdMap;
use super::io::{self, Stdio};
use super::record::{self, State};
use super::rung::{self, Rung};
use super::runtime::Runtime;
use super::terminal::{Terminal, WindowSize};
use super::{Container, ExitStatus, Output, SavedSnapshot, Signal, spec};
use crate::image::Image;
use crate::isolation::{Enforcement, Requirement, Stream};
use crate::launch::{self, Halts, Process};
use crate::probe::Feature;
use crate::security::Profile;
use crate::{Error, ErrorKind, Result};

/// What a container can reach over the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Network {
    /// A network namespace of its own with nothing but loopback.
    #[default]
    None,
    /// The host's network, as this program has it.
    Host,
}

/// Something of the host, or of memory, that the container finds in its tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Bind { source: PathBuf, target: PathBuf, options: Vec<String> },
    Tmpfs { target: PathBuf, options: Vec<String> },
}

impl Mount {
    /// A file or directory of the host, with the mounts inside it. The target is created where it is missing.
    pub fn bind(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Mount {
        let options = ["rbind", "rprivate", "nosuid"].map(str::to_owned).to_vec();
        Mount(Kind::Bind { source: source.into(), target: target.into(), options })
    }

    /// An empty file system in memory; `noexec`, `nosuid` and `nodev` unless options say otherwise.
    pub fn tmpfs(target: impl Into<PathBuf>) -> Mount {
        let options = ["noexec", "nosuid", "nodev"].map(str::to_owned).to_vec();
        Mount(Kind::Tmpfs { target: target.into(), options })
    }

    /// Of a bind mount: without the mounts inside it, whose places are empty.
    #[must_use]
    pub fn alone(mut self) -> Mount {
        if let Kind::Bind { options, .. } = &mut self.0 {
            options.retain(|option| option != "rbind");
            options.insert(0, "bind".to_owned());
        }
        self
    }

    /// Nothing on it can be written, on the mounts inside it neither (Linux 5.12).
    #[must_use]
    pub fn read_only(self) -> Mount {
        let option = if matches!(self.0, Kind::Bind { .. }) { "rro" } else { "ro" };
        self.option(option)
    }

    /// A mount option as fstab(5) writes it (`exec`, `size=64m`, `rslave`, …); later ones win.
    ///
    /// What limits a bind mount (`ro`, `noexec`, `nosuid`, `nodev`) holds on the mounts inside it, too. With `rslave`
    /// what the host mounts inside a shared mount later appears in the container; nothing ever appears the other way.
    /// With `dev` the device that is bound can be opened; of a directory only the devices that every container has.
    #[must_use]
    pub fn option(mut self, option: impl Into<String>) -> Mount {
        match &mut self.0 {
            Kind::Bind { options, .. } | Kind::Tmpfs { options, .. } => options.push(option.into()),
        }
        self
    }

    /// Where it appears, and whether nothing on it can be written.
    pub(super) fn target(&self) -> (&Path, bool) {
        let (Kind::Bind { target, options, .. } | Kind::Tmpfs { target, options }) = &self.0;
        let last = options.iter().rev().find(|option| matches!(option.as_str(), "ro" | "rro" | "rw"));
        (target, last.is_some_and(|option| option != "rw"))
    }

    /// Whether nothing was asked of it but that it can be written, or cannot.
    pub(super) fn is_plain(&self) -> bool {
        match &self.0 {
            Kind::Bind { options, .. } => {
                let known = ["rbind", "rprivate", "private", "nosuid", "ro", "rro", "rw"];
                options.iter().any(|option| option == "rbind")
                    && options.iter().all(|option| known.contains(&option.as_str()))
            }
            // Refused for another reason.
            Kind::Tmpfs { .. } => true,
        }
    }

    /// What it shows, where that is what is there anyway.
    pub(super) fn in_place(&self) -> Option<&Path> {
        match &self.0 {
            Kind::Bind { source, target, .. } if source == target && target.is_absolute() => Some(target),
            _ => None,
        }
    }

    pub(super) fn spec(&self) -> Result<SpecMount> {
        let text = |path: &Path| {
            path.to_str().map(str::to_owned).ok_or_else(|| {
                Error::new(ErrorKind::Invalid, "mount into the container").path(path).because("the path is not UTF-8")
            })
        };
        let (kind, source, target, options) = match &self.0 {
            Kind::Bind { source, target, options } => ("bind", text(source)?, text(target)?, options),
            Kind::Tmpfs { target, options } => ("tmpfs", "tmpfs".to_owned(), text(target)?, options),
        };
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        spec::mount(kind, &source, &target, &options)
    }
}

/// How long a container lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Lifetime {
    /// It dies with its [`Container`] value, and with this program.
    #[default]
    Throwaway,
    /// It dies with this program; dropping the value leaves it running.
    Attached,
}

/// A container that is being described. Made by [`Image::container`] and
/// [`Engine::sandbox`](crate::Engine::sandbox); a terminal method starts it: [`spawn`](Self::spawn),
/// [`status`](Self::status), [`output`](Self::output).
///
/// Like `std::process::Command` it can be used again: each start makes a container of its own. Streams are the
/// exception: they are for the next start only. A clone has streams of its own, set as they are here at that moment;
/// it keeps a [`Stdio::Fd`] open until it is started or dropped.
#[derive(Debug, Clone)]
#[must_use = "a builder starts nothing by itself"]
pub struct ContainerBuilder {
    pub(super) runtime: Arc<Runtime>,
    pub(super) base: From,
    pub(super) command: Option<Vec<String>>,
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) env: BTreeMap<String, Option<String>>,
    pub(super) workdir: Option<PathBuf>,
    pub(super) user: Option<String>,
    pub(super) hostname: Option<String>,
    pub(super) network: Network,
    pub(super) mounts: Vec<Mount>,
    pub(super) read_only: bool,
    pub(super) readable: Vec<PathBuf>,
    pub(super) profile: Profile,
    pub(super) cap_add: Vec<String>,
    pub(super) cap_drop: Vec<String>,
    pub(super) init: bool,
    pub(super) name: Option<String>,
    pub(super) keep: bool,
    pub(super) id_map: Option<IdMap>,
    pub(super) edits: Edits,
    lifetime: Lifetime,
    pub(super) stop_signal: Option<Signal>,
    requirement: Requirement,
    output_limit: u64,
    pub(super) tty: Option<WindowSize>,
    streams: Slots,
}

/// The streams of the next start.
#[derive(Debug, Default)]
pub(super) struct Slots(std::sync::Mutex<[Option<Slot>; 3]>);

/// A [`Stdio`] that can be cloned without an error to hide: the descriptor is duplicated by the start that needs it.
#[derive(Debug, Clone)]
enum Slot {
    Null,
    Piped,
    Inherit,
    Fd(Arc<OwnedFd>),
}

impl Slots {
    fn lock(&self) -> std::sync::MutexGuard<'_, [Option<Slot>; 3]> {
        // Nothing happens under the lock but moves of whole values.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn set(&self, index: usize, stdio: Stdio) {
        self.lock()[index] = Some(match stdio {
            Stdio::Null => Slot::Null,
            Stdio::Piped => Slot::Piped,
            Stdio::Inherit => Slot::Inherit,
            Stdio::Fd(fd) => Slot::Fd(Arc::new(fd)),
        });
    }

    pub(super) fn take(&self) -> Result<[Option<Stdio>; 3]> {
        let [stdin, stdout, stderr] = std::mem::take(&mut *self.lock());
        let stdio = |slot: Option<Slot>| -> Result<Option<Stdio>> {
            Ok(match slot {
                None => None,
                Some(Slot::Null) => Some(Stdio::Null),
                Some(Slot::Piped) => Some(Stdio::Piped),
                Some(Slot::Inherit) => Some(Stdio::Inherit),
                Some(Slot::Fd(fd)) => {
                    let own = Arc::try_unwrap(fd).or_else(|shared| shared.try_clone());
                    Some(Stdio::Fd(
                        own.map_err(|error| Error::io("connect the container's input and output", "fcntl", error))?,
                    ))
                }
            })
        };
        Ok([stdio(stdin)?, stdio(stdout)?, stdio(stderr)?])
    }
}

impl Clone for Slots {
    fn clone(&self) -> Self {
        Slots(std::sync::Mutex::new(self.lock().clone()))
    }
}

/// What the container's tree comes from.
#[derive(Debug, Clone)]
pub(super) enum From {
    Image(Image),
    Saved(SavedSnapshot),
    Directory(PathBuf),
}

impl From {
    /// The image whose configuration counts.
    pub(super) fn image(&self) -> Option<&Image> {
        match self {
            From::Image(image) => Some(image),
            // One that is damaged is told when its layers are asked for.
            From::Saved(saved) => saved.image().ok(),
            From::Directory(_) => None,
        }
    }
}

/// docker's, for images that set none.
pub(super) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Image {
    /// Describes a container of this image.
    ///
    /// ```no_run
    /// # fn main() -> coracle::Result<()> {
    /// let engine = coracle::Engine::open_default()?;
    /// let image = engine.load("debian.tar")?;
    /// let out = image.container().command(["cat", "/etc/os-release"]).output()?;
    /// assert!(out.status.success());
    /// # Ok(())
    /// # }
    /// ```
    pub fn container(&self) -> ContainerBuilder {
        // Only an engine makes `Images`, and it always attaches its runtime.
        let Some(runtime) = self.images().runtime::<Runtime>() else { unreachable!("images are made by an engine") };
        ContainerBuilder::new(runtime, From::Image(self.clone()))
    }
}

impl ContainerBuilder {
    /// A container over a directory of the host.
    pub(crate) fn over_directory(runtime: Arc<Runtime>, directory: PathBuf) -> Self {
        Self::new(runtime, From::Directory(directory))
    }

    /// A container that starts on a saved snapshot.
    pub(super) fn over_saved(runtime: Arc<Runtime>, saved: SavedSnapshot) -> Self {
        Self::new(runtime, From::Saved(saved))
    }

    fn new(runtime: Arc<Runtime>, base: From) -> Self {
        ContainerBuilder {
            runtime,
            base,
            command: None,
            entrypoint: None,
            env: BTreeMap::new(),
            workdir: None,
            user: None,
            hostname: None,
            network: Network::default(),
            mounts: vec![],
            read_only: false,
            readable: vec![],
            profile: Profile::DEFAULT_2026_11,
            cap_add: vec![],
            cap_drop: vec![],
            init: false,
            name: None,
            keep: false,
            id_map: None,
            edits: Edits::default(),
            lifetime: Lifetime::default(),
            stop_signal: None,
            requirement: Requirement::default(),
            output_limit: io::OUTPUT_LIMIT,
            tty: None,
            streams: Slots::default(),
        }
    }

    /// Command and arguments, in place of the image's `Cmd`; the image's `Entrypoint` stays in front of them.
    pub fn command(mut self, words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.command = Some(words.into_iter().map(Into::into).collect());
        self
    }

    /// One more argument.
    pub fn arg(mut self, word: impl Into<String>) -> Self {
        self.command.get_or_insert_default().push(word.into());
        self
    }

    /// Replaces the image's `Entrypoint`, and with it the image's `Cmd`. Empty takes the entrypoint away.
    pub fn entrypoint(mut self, words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.entrypoint = Some(words.into_iter().map(Into::into).filter(|word: &String| !word.is_empty()).collect());
        self
    }

    /// Sets a variable, over the image's.
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(key.into(), Some(value.into()));
        self
    }

    /// Takes a variable of the image away.
    pub fn env_remove(mut self, key: impl Into<String>) -> Self {
        self.env.insert(key.into(), None);
        self
    }

    /// The directory that the command starts in, in place of the image's `WorkingDir`; created where it is missing.
    /// Empty is the image's again.
    pub fn workdir(mut self, path: impl Into<PathBuf>) -> Self {
        self.workdir = Some(path.into()).filter(|path: &PathBuf| !path.as_os_str().is_empty());
        self
    }

    /// `user[:group]`, names or ids, in place of the image's `User`. Empty is the image's again, as docker has it, and
    /// not root.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into()).filter(|user: &String| !user.is_empty());
        self
    }

    /// The host name inside; by default, and when empty, the host's own on the [host's network](Network::Host) and the
    /// first 12 digits of the container's ID otherwise. `/etc/hosts` knows it.
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.hostname = Some(name.into()).filter(|name: &String| !name.is_empty());
        self
    }

    /// What it can reach over the network; nothing by default.
    pub fn network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    /// Something of the host, or of memory, in its tree.
    pub fn mount(mut self, mount: Mount) -> Self {
        self.mounts.push(mount);
        self
    }

    /// The container's own tree cannot be written; mounts can.
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Only this path of its tree can be read, and those that are named in further calls, and what is mounted; by landlock.
    /// A command needs its libraries, too: `/usr`, `/lib`, `/lib64`, `/etc` are common. With it, nothing can be written but
    /// mounts.
    pub fn readable(mut self, path: impl Into<PathBuf>) -> Self {
        self.readable.push(path.into());
        self
    }

    /// Capabilities, system call filter, masked paths and no-new-privileges; [`Profile::DEFAULT_2026_11`] by default.
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// Adds a capability (`NET_ADMIN`, `CAP_NET_ADMIN`, `ALL`) to the profile's.
    pub fn cap_add(mut self, name: impl Into<String>) -> Self {
        self.cap_add.push(name.into());
        self
    }

    /// Takes a capability (or `ALL`) from the profile's.
    pub fn cap_drop(mut self, name: impl Into<String>) -> Self {
        self.cap_drop.push(name.into());
        self
    }

    /// Puts a small init in front of the command, which reaps orphans and forwards signals.
    pub fn init(mut self, init: bool) -> Self {
        self.init = init;
        self
    }

    /// A name, unique in the engine's root: `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Keeps the container after its end, listed with its exit status, until it is removed.
    pub fn keep(mut self, keep: bool) -> Self {
        self.keep = keep;
        self
    }

    /// How long it lives; by default as long as its value.
    pub fn lifetime(mut self, lifetime: Lifetime) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// The signal that [`Container::stop`] sends first, in place of the image's `StopSignal`.
    pub fn stop_signal(mut self, signal: Signal) -> Self {
        self.stop_signal = Some(signal);
        self
    }

    /// The least isolation that is accepted; see [`Requirement`].
    pub fn require(mut self, requirement: Requirement) -> Self {
        self.requirement = requirement;
        self
    }

    /// How many bytes of each stream [`output`](Self::output) and [`Container::wait_with_output`] hold in memory at most;
    /// 1 GiB by default. A container that writes more is killed, and that is a [`Limit`](ErrorKind::Limit) error.
    pub fn output_limit(mut self, bytes: u64) -> Self {
        self.output_limit = bytes;
        self
    }

    /// Gives it a pseudo-terminal of this size in place of three streams, or none again; see [`Terminal`]. So with every
    /// start from now on.
    ///
    /// The terminal is of the container's own devpts and belongs to its user. It is the controlling terminal of the
    /// command's session, and `/dev/console` as well. `TERM` is `xterm` unless the image or the caller sets it.
    ///
    /// What is typed and shown goes through a field of [`Container`], unless streams say otherwise: [`Stdio::Inherit`] and
    /// [`Stdio::Fd`] have this program's threads type what they read from it and write to it what is shown, as it comes,
    /// and standard output that was set to [`Stdio::Null`] is read and dropped. A terminal of this program's is for the caller
    /// to set to raw mode. [`output`](Self::output) captures what is shown as standard output, with the terminal's own ends
    /// of lines (`\r\n`), and [`status`](Self::status) writes it to this program's. The end of what is typed is not the end of
    /// a terminal's input: ^D is.
    ///
    /// # Errors
    /// Of the start: [`Invalid`](ErrorKind::Invalid) when standard error is set, which is standard output here, or when a mount
    /// of the caller's stands in place of `/dev/pts` or `/dev`; [`Limit`](ErrorKind::Limit) when the machine has as many
    /// pseudo-terminals as it may have. Nothing is left behind.
    ///
    /// ```no_run
    /// use std::io::{Read, Write};
    /// use coracle::container::WindowSize;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let engine = coracle::Engine::open_default()?;
    /// let image = engine.image("debian:12")?;
    /// let container = image.container().command(["bash"]).tty(WindowSize { rows: 50, columns: 132 }).spawn()?;
    /// let mut terminal = container.terminal.clone().ok_or("it has one")?;
    /// terminal.write_all(b"tty; exit\n")?;
    /// let mut shown = String::new();
    /// terminal.read_to_string(&mut shown)?;
    /// assert!(shown.contains("/dev/pts/0"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn tty(mut self, size: impl Into<Option<WindowSize>>) -> Self {
        self.tty = size.into();
        self
    }

    /// Standard input of the next start; the starts after it get [`Stdio::Null`] again.
    pub fn stdin(self, stdio: impl Into<Stdio>) -> Self {
        self.stream(0, stdio.into())
    }

    /// Standard output of the next start.
    pub fn stdout(self, stdio: impl Into<Stdio>) -> Self {
        self.stream(1, stdio.into())
    }

    /// Standard error of the next start.
    pub fn stderr(self, stdio: impl Into<Stdio>) -> Self {
        self.stream(2, stdio.into())
    }

    fn stream(self, index: usize, stdio: Stdio) -> Self {
        self.streams.set(index, stdio);
        self
    }

    /// Starts it, waits for its end, and returns what it wrote. Standard output and error are captured unless they were
    /// set.
    ///
    /// # Errors
    /// Those of [`spawn`](Self::spawn) and of [`Container::wait_with_output`]. A command that fails is no error: see
    /// [`Output::status`].
    pub fn output(&self) -> Result<Output> {
        self.start(|| Stdio::Piped)?.wait_with_output()
    }

    /// Starts it, waits for its end, and returns its status. Output goes to this program's own unless it was set.
    ///
    /// # Errors
    /// Those of [`spawn`](Self::spawn).
    pub fn status(&self) -> Result<ExitStatus> {
        let mut container = self.start(|| Stdio::Inherit)?;
        drop(container.stdin.take());
        let status = container.wait()?;
        container.close()?;
        Ok(status)
    }

    /// Starts it and returns when its command has been executed. All three streams are [`Stdio::Null`] unless they were
    /// set.
    ///
    /// # Errors
    /// [`CommandNotFound`](ErrorKind::CommandNotFound) and
    /// [`CommandNotExecutable`](ErrorKind::CommandNotExecutable) for the command;
    /// [`Weaker`](ErrorKind::Weaker) when less isolation could be enforced than is required;
    /// [`Invalid`](ErrorKind::Invalid) for options that cannot mean anything; [`Launch`](ErrorKind::Launch) for what the
    /// kernel refused. Nothing is left behind after any of them.
    pub fn spawn(&self) -> Result<Container> {
        self.start(Stdio::default)
    }

    /// What would be enforced for this container on this host, without starting it.
    ///
    /// # Errors
    /// Those of [`spawn`](Self::spawn) that come before the launch.
    pub fn enforcement(&self) -> Result<Enforcement> {
        let mut probe = self.clone();
        probe.name = None;
        let mut errors = vec![];
        for (rung, out_of_reach) in self.runtime.rungs() {
            if let Err(error) = out_of_reach.map_or_else(|| self.fits(rung), Err) {
                errors.push((rung.backend.name(), error));
                continue;
            }
            let streams = io::connect(Stdio::Null, Stdio::Null, Stdio::Null)?;
            let mut draft = probe.draft(rung)?;
            let (request, _) = probe.request(&mut draft, rung, streams.inside, streams.made, None)?;
            return Ok(rung.backend.enforcement(&request));
        }
        Err(rung::none_of(errors))
    }

    /// Where the probe knows why the kernel makes no namespaces here, it says so better than an errno.
    fn explain(&self, rung: &Rung, error: Error) -> Error {
        let host = &self.runtime.host;
        if error.syscall() == Some("clone3") && rung.identity.is_rootless() && !host.has(Feature::UserNamespaces) {
            return host
                .finding(Feature::UserNamespaces)
                .error("create the container's user namespace")
                .source_is(error);
        }
        error
    }

    /// On the strongest rung that is within reach. A weaker one is tried only where a stronger one turns out not to be: what
    /// is weaker enforces no requirement that a stronger one does not. `output` is where output goes that was not set.
    fn start(&self, output: fn() -> Stdio) -> Result<Container> {
        let mut errors = vec![];
        let mut set = Some(self.streams.take()?);
        let mut streams = None;
        for (rung, out_of_reach) in self.runtime.rungs() {
            let tried = match out_of_reach.map_or_else(|| self.fits(rung), Err) {
                Ok(()) => self.start_on(rung, (&mut set, output), &mut streams),
                Err(error) => Err((error, true)),
            };
            match tried {
                Ok(container) => return Ok(container),
                Err((error, true)) => errors.push((rung.backend.name(), error)),
                Err((error, false)) if errors.is_empty() => return Err(error),
                Err((error, false)) => {
                    errors.push((rung.backend.name(), error));
                    break;
                }
            }
        }
        Err(rung::none_of(errors))
    }

    /// After an error: whether a weaker rung may still do.
    fn start_on(
        &self,
        rung: &Rung,
        (set, output): (&mut Option<io::Set>, fn() -> Stdio),
        connected: &mut Option<io::Streams>,
    ) -> Result<Container, (Error, bool)> {
        let last = |error| (error, false);
        let mut draft = self.draft(rung).map_err(last)?;
        if let Some(set) = set.take() {
            *connected = Some(io::connect_as_set(self.tty, set, output).map_err(last)?);
        }
        let Some(streams) = connected else { return Err(last(rung::none_of(vec![]))) };
        let inside = std::mem::replace(&mut streams.inside, [Stream::Null, Stream::Null, Stream::Null]);
        let (enforcement, process) = {
            let hooks = Lifecycle::of(&draft, rung);
            let (stops, ours) = hooks.as_ref().map_or(Ok(None), Lifecycle::stops).map_err(last)?.unzip();
            let made = self.request(&mut draft, rung, inside, streams.made, streams.console.take());
            let (mut request, waived) = made.map_err(last)?;
            request.stops = stops;
            let enforcement = rung.backend.enforcement(&request);
            self.requirement.check(&enforcement, &waived).map_err(last)?;
            let plan = rung.backend.plan(request).map_err(last)?;
            let mut at = |stop, process: &Process| match &hooks {
                Some(hooks) => hooks.at(stop, &draft, process),
                None => Ok(()),
            };
            let halts = ours.map(|socket| Halts { socket, at: &mut at });
            let fallback = self.runtime.root().join("tmp");
            match launch::launch_or(plan, draft.owner.lock(), &fallback, halts) {
                Ok(process) => {
                    if let Some(hooks) = &hooks {
                        hooks.started(&draft, &process);
                    }
                    (enforcement, process)
                }
                Err((error, back)) => {
                    streams.inside = back.map(|fd| fd.map_or(Stream::Null, Stream::Fd));
                    let goes_on = rung::is_refusal(&error) && self.runtime.ladder.len() > 1;
                    return Err((self.explain(rung, error), goes_on));
                }
            }
        };
        let Some(mut streams) = connected.take() else { return Err(last(rung::none_of(vec![]))) };
        // Its files go with the draft, so it has to be gone before.
        let end = |process: &launch::Process| {
            if process.signal(libc::SIGKILL).is_ok() {
                let _ = process.wait(None);
            }
        };
        let terminal = Terminal::attach(streams.line.take(), &process, &mut streams.relays);
        let terminal = terminal.inspect_err(|_| end(&process)).map_err(last)?;
        draft.info.pid = Some(process.pid());
        draft.info.start_time = super::start_time(process.pid()).ok().flatten();
        draft.info.watched = process.is_watched();
        draft.info.state = State::Running;
        draft.info.started = Some(record::now());
        if let Err(error) = record::append(self.runtime.root(), &draft.info) {
            end(&process);
            return Err(last(error));
        }
        let draft = draft.keep(self.base.image().map(|image| image.images().clone()));
        let ends = (streams.stdin, streams.stdout, streams.stderr, terminal);
        Ok(Container::running(
            self.runtime.clone(),
            draft,
            process,
            self.lifetime,
            enforcement,
            ends,
            streams.relays,
            self.output_limit,
        ))
    }
}
