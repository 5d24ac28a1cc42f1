//! Describes a container, as `std::process::Command` describes a process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::{Mount as SpecMount, Spec};

use super::io::{self, Stdio};
use super::record::{self, Info, State};
use super::runtime::Runtime;
use super::user::{self, User};
use super::{Container, ExitStatus, Output, Signal, spec};
use crate::image::{ContainerConfig, Image};
use crate::isolation::{Aspect, Enforcement, Identity, MadeFile, Request, Requirement};
use crate::layer::View;
use crate::name::{ContainerId, ContainerName};
use crate::security::{Capability, CapabilitySet, Profile};
use crate::snapshot::Base;
use crate::{Error, ErrorKind, Result, launch};

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

    /// Nothing on it can be written, on the mounts inside it neither (Linux 5.12).
    #[must_use]
    pub fn read_only(self) -> Mount {
        let option = if matches!(self.0, Kind::Bind { .. }) { "rro" } else { "ro" };
        self.option(option)
    }

    /// A mount option as fstab(5) writes it (`exec`, `size=64m`, `rslave`, …); later ones win.
    #[must_use]
    pub fn option(mut self, option: impl Into<String>) -> Mount {
        match &mut self.0 {
            Kind::Bind { options, .. } | Kind::Tmpfs { options, .. } => options.push(option.into()),
        }
        self
    }

    fn spec(&self) -> Result<SpecMount> {
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
/// Like `std::process::Command` it can be used again: each start makes a container of its own.
#[derive(Debug, Clone)]
#[must_use = "a builder starts nothing by itself"]
pub struct ContainerBuilder {
    runtime: Arc<Runtime>,
    base: From,
    command: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    env: BTreeMap<String, Option<String>>,
    workdir: Option<PathBuf>,
    user: Option<String>,
    hostname: Option<String>,
    network: Network,
    mounts: Vec<Mount>,
    read_only: bool,
    profile: Profile,
    cap_add: Vec<String>,
    cap_drop: Vec<String>,
    init: bool,
    name: Option<String>,
    keep: bool,
    lifetime: Lifetime,
    stop_signal: Option<Signal>,
    requirement: Requirement,
    streams: Arc<std::sync::Mutex<[Option<Stdio>; 3]>>,
}

/// What the container's tree comes from.
#[derive(Debug, Clone)]
enum From {
    Image(Image),
    Directory(PathBuf),
}

/// docker's, for images that set none.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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
        ContainerBuilder::new(self.images().runtime::<Runtime>(), From::Image(self.clone()))
    }
}

impl ContainerBuilder {
    /// A container over a directory of the host.
    pub(crate) fn over_directory(runtime: Arc<Runtime>, directory: PathBuf) -> Self {
        Self::new(runtime, From::Directory(directory))
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
            profile: Profile::DOCKER_2026_11,
            cap_add: vec![],
            cap_drop: vec![],
            init: false,
            name: None,
            keep: false,
            lifetime: Lifetime::default(),
            stop_signal: None,
            requirement: Requirement::default(),
            streams: Arc::default(),
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
    pub fn workdir(mut self, path: impl Into<PathBuf>) -> Self {
        self.workdir = Some(path.into());
        self
    }

    /// `user[:group]`, names or ids, in place of the image's `User`.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// The host name inside; by default the first 12 digits of the container's ID.
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.hostname = Some(name.into());
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

    /// Capabilities, system call filter and masked paths; docker's by default.
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
        self.streams.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[index] = Some(stdio);
        self
    }

    fn take_streams(&self) -> [Option<Stdio>; 3] {
        std::mem::take(&mut *self.streams.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Starts it, waits for its end, and returns what it wrote. Standard output and error are captured unless they were
    /// set.
    ///
    /// # Errors
    /// Those of [`spawn`](Self::spawn). A command that fails is no error: see [`Output::status`].
    pub fn output(&self) -> Result<Output> {
        let [stdin, stdout, stderr] = self.take_streams();
        let piped = |stdio: Option<Stdio>| stdio.unwrap_or(Stdio::Piped);
        let mut container = self.start(stdin.unwrap_or_default(), piped(stdout), piped(stderr))?;
        // A writer that stays open would keep the container waiting for the end of its input.
        drop(container.stdin.take());
        let (out, err) = io::read_both(container.stdout.take(), container.stderr.take())?;
        let status = container.wait()?;
        container.close()?;
        Ok(Output { status, stdout: out, stderr: err })
    }

    /// Starts it, waits for its end, and returns its status. Output goes to this program's own unless it was set.
    ///
    /// # Errors
    /// Those of [`spawn`](Self::spawn).
    pub fn status(&self) -> Result<ExitStatus> {
        let [stdin, stdout, stderr] = self.take_streams();
        let own = |stdio: Option<Stdio>| stdio.unwrap_or(Stdio::Inherit);
        let mut container = self.start(stdin.unwrap_or_default(), own(stdout), own(stderr))?;
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
        let [stdin, stdout, stderr] = self.take_streams();
        self.start(stdin.unwrap_or_default(), stdout.unwrap_or_default(), stderr.unwrap_or_default())
    }

    /// What would be enforced for this container on this host, without starting it.
    ///
    /// # Errors
    /// Those of [`spawn`](Self::spawn) that come before the launch.
    pub fn enforcement(&self) -> Result<Enforcement> {
        let mut probe = self.clone();
        probe.name = None;
        let streams = io::connect(Stdio::Null, Stdio::Null, Stdio::Null)?;
        let mut draft = probe.draft()?;
        let (request, _) = probe.request(&mut draft, streams.inside, streams.made)?;
        Ok(probe.runtime.isolation.enforcement(&request))
    }

    fn start(&self, stdin: Stdio, stdout: Stdio, stderr: Stdio) -> Result<Container> {
        let mut draft = self.draft()?;
        let streams = io::connect(stdin, stdout, stderr)?;
        let (enforcement, process) = {
            let (request, waived) = self.request(&mut draft, streams.inside, streams.made)?;
            let enforcement = self.runtime.isolation.enforcement(&request);
            self.requirement.check(&enforcement, &waived)?;
            let plan = self.runtime.isolation.plan(request)?;
            (enforcement, launch::launch(plan, draft.owner.lock(), &self.runtime.root().join("tmp"))?)
        };
        draft.info.pid = Some(process.pid());
        draft.info.start_time = super::start_time(process.pid());
        draft.info.state = State::Running;
        draft.info.started = Some(record::now());
        record::write(self.runtime.root(), &draft.info)?;
        let draft = draft.keep();
        let ends = (streams.stdin, streams.stdout, streams.stderr);
        Ok(Container::running(self.runtime.clone(), draft, process, self.lifetime, enforcement, ends, streams.relays))
    }
}

/// A container that is being made: whatever exists of it is removed again, unless it is kept.
struct Draft {
    runtime: Arc<Runtime>,
    owner: Arc<super::owner::Owner>,
    info: Info,
    group: Option<crate::cgroup::Group>,
    snapshot: crate::snapshot::Snapshot,
    spec: Spec,
    seccomp: Option<Arc<[u8]>>,
    files: Vec<MadeFile>,
    hidden: Vec<PathBuf>,
    kept: bool,
}

/// What is kept of a draft once its process runs.
pub(super) struct Made {
    pub(super) owner: Arc<super::owner::Owner>,
    pub(super) info: Info,
    pub(super) group: Option<crate::cgroup::Group>,
}

impl Draft {
    fn keep(mut self) -> Made {
        self.kept = true;
        Made { owner: self.owner.clone(), info: self.info.clone(), group: self.group.take() }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept {
            // The error that led here is the one to be told; what stays is swept by the next open.
            super::take_away(&self.runtime, &self.info, self.group.as_ref()).ok();
        }
    }
}

impl ContainerBuilder {
    /// Makes what a container has on disk.
    fn draft(&self) -> Result<Draft> {
        let runtime = &self.runtime;
        let name = self.name.as_deref().map(str::parse::<ContainerName>).transpose()?;
        let owner = runtime.owner()?;
        // Until the record is written, nobody removes the image or takes the directory for garbage.
        let _hold = super::hold(runtime)?;
        let layers = match &self.base {
            From::Image(image) => image.ensure_layers(None)?,
            From::Directory(_) => vec![],
        };
        let view = match &self.base {
            From::Image(_) => View::new(layers.iter().rev().map(crate::layer::Layer::tree))?,
            From::Directory(path) => View::new([path])?,
        };
        let id = ContainerId::random()?;
        let decided = self.decide(&id, &view)?;
        let info = Info {
            id,
            name: name.map(|name| name.to_string()),
            image: match &self.base {
                From::Image(image) => Some(image.id().to_string()),
                From::Directory(_) => None,
            },
            base: match &self.base {
                From::Image(image) => image.id().short().to_owned(),
                From::Directory(path) => path.display().to_string(),
            },
            command: decided.shown,
            created: record::now(),
            started: None,
            finished: None,
            state: State::Created,
            exit: None,
            pid: None,
            start_time: None,
            keep: self.keep,
            stop_signal: decided.stop_signal.number(),
            owner: owner.name().to_owned(),
        };
        let directory = record::directory(runtime.root(), &info.id);
        if let Some(name) = &info.name {
            record::take_name(runtime.root(), name, &info.id)?;
        }
        let mut draft = Draft {
            runtime: runtime.clone(),
            owner,
            info,
            group: None,
            snapshot: crate::snapshot::Snapshot {
                root: crate::snapshot::Mount::Tmpfs { mode: 0o755 },
                inner: vec![],
                notes: vec![],
            },
            spec: decided.spec,
            seccomp: decided.seccomp,
            files: decided.files,
            hidden: decided.hidden,
            kept: false,
        };
        super::make_directory(&directory, "make the container's directory")?;
        record::write(runtime.root(), &draft.info)?;
        let base = match &self.base {
            From::Image(_) => Base::Layers(layers),
            From::Directory(path) => Base::Directory(path.clone()),
        };
        draft.snapshot = runtime.snapshotter.prepare(&directory, &base)?;
        if !runtime.identity.is_rootless() {
            draft.group = runtime.make_group(&super::group_name(&draft.info.id));
        }
        Ok(draft)
    }

    fn request<'a>(
        &'a self,
        draft: &'a mut Draft,
        stdio: [std::os::fd::OwnedFd; 3],
        stdio_made: [bool; 3],
    ) -> Result<(Request<'a>, Vec<Aspect>)> {
        let runtime = &self.runtime;
        let mut waived = vec![];
        if self.network == Network::Host {
            waived.push(Aspect::Network);
        }
        if draft.seccomp.is_none() {
            waived.push(Aspect::Syscalls);
        }
        if !self.profile.no_new_privileges() {
            waived.push(Aspect::Privileges);
        }
        let request = Request {
            spec: &draft.spec,
            snapshot: &draft.snapshot,
            root: runtime.root(),
            root_fd: runtime.root_fd(),
            identity: &runtime.identity,
            stdio,
            stdio_made,
            files: std::mem::take(&mut draft.files),
            seccomp: draft.seccomp.as_deref(),
            cgroup: draft.group.as_ref(),
            init: self.init,
            hidden: std::mem::take(&mut draft.hidden),
            volatile: !self.keep,
            overlay_append: runtime.host.has_overlay_append(),
            cgroup_v2: runtime.host.cgroup_mode() == crate::probe::CgroupMode::V2,
        };
        Ok((request, waived))
    }

    /// Image config and options, put together.
    fn decide(&self, id: &ContainerId, view: &View) -> Result<Decision> {
        let config = match &self.base {
            From::Image(image) => Some(&image.config().config),
            From::Directory(_) => None,
        };
        let text = self.user.as_deref().or(config.map(|config| config.user.as_str())).unwrap_or_default();
        let user = user::resolve(text, view)?;
        if let Some(why) = self.runtime.identity.refuses(user.uid, user.gid, &user.groups) {
            return Err(Error::new(ErrorKind::Unsupported, format!("run as the user {text:?}"))
                .because(why)
                .remedy("give this user a range in /etc/subuid and /etc/subgid (usermod --add-subuids), and install uidmap"));
        }
        let hostname = self.hostname()?.unwrap_or_else(|| id.short().to_owned());
        let args = self.args(config)?;
        let stop_signal = match (self.stop_signal, config) {
            (Some(signal), _) => signal,
            (None, Some(config)) if !config.stop_signal.is_empty() => config.stop_signal.parse()?,
            _ => Signal::TERM,
        };
        let capabilities = self.capabilities()?;
        let seccomp = self.profile.seccomp_filter(capabilities)?;
        let host_network = self.network == Network::Host;
        let decided = spec::Decided {
            args: args.clone(),
            env: self.environment(config, &hostname, &user)?,
            cwd: self.working_directory(config)?,
            host_network,
            read_only: self.read_only,
            capabilities,
            no_new_privileges: self.profile.no_new_privileges(),
            masking: self.profile.masking(),
            cpus: self.runtime.host.possible_cpus(),
            mounts: self.mounts.iter().map(Mount::spec).collect::<Result<_>>()?,
            rlimits: vec![],
            user_namespace: self.runtime.identity.is_rootless(),
            files: made_files(&hostname, host_network),
            hostname,
            user,
        };
        Ok(Decision { files: decided.files.clone(), spec: spec::build(decided)?, shown: args, stop_signal, seccomp, hidden: self.hidden() })
    }

    /// Entrypoint and command, as docker puts them together.
    fn args(&self, config: Option<&ContainerConfig>) -> Result<Vec<String>> {
        let entrypoint = self.entrypoint.as_ref().or(config.map(|config| &config.entrypoint));
        // An entrypoint of the caller's makes the image's command meaningless.
        let image_command = config.filter(|_| self.entrypoint.is_none()).map(|config| &config.cmd);
        let command = self.command.as_ref().or(image_command);
        let args: Vec<String> = entrypoint.into_iter().chain(command).flatten().cloned().collect();
        if args.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, "start the container")
                .because("no command was given, and the image has neither Entrypoint nor Cmd")
                .remedy("name a command, e.g. sh"));
        }
        Ok(args)
    }

    /// The image's variables, the caller's over them, and what every container has.
    fn environment(&self, config: Option<&ContainerConfig>, hostname: &str, user: &User) -> Result<Vec<String>> {
        let mut list: Vec<String> = vec![];
        let mut set = |variable: String, over: bool| {
            let key = variable.split_once('=').map_or(variable.as_str(), |(key, _)| key).to_owned();
            match list.iter_mut().find(|known| known.split_once('=').is_some_and(|(known, _)| known == key)) {
                Some(known) if over => *known = variable,
                Some(_) => {}
                None => list.push(variable),
            }
        };
        for variable in config.iter().flat_map(|config| &config.env) {
            // `KEY` alone is no variable.
            if variable.contains('=') {
                set(variable.clone(), true);
            }
        }
        set(PATH.to_owned(), false);
        set(format!("HOSTNAME={hostname}"), false);
        for (key, value) in &self.env {
            if key.is_empty() || key.contains(['=', '\0']) {
                return Err(Error::new(ErrorKind::Invalid, format!("set the variable {key:?}"))
                    .because("a name is not empty and holds neither = nor NUL"));
            }
            if let Some(value) = value {
                set(format!("{key}={value}"), true);
            }
        }
        set(format!("HOME={}", user.home), false);
        list.retain(|variable| {
            variable.split_once('=').is_none_or(|(key, _)| self.env.get(key).is_none_or(Option::is_some))
        });
        Ok(list)
    }

    fn working_directory(&self, config: Option<&ContainerConfig>) -> Result<PathBuf> {
        let path = match (&self.workdir, config) {
            (Some(path), _) => path.clone(),
            (None, Some(config)) if !config.working_dir.is_empty() => PathBuf::from(&config.working_dir),
            _ => PathBuf::from("/"),
        };
        if !path.is_absolute() {
            return Err(Error::new(ErrorKind::Invalid, "enter the working directory")
                .path(&path)
                .because("it has to be an absolute path inside the container"));
        }
        Ok(path)
    }

    fn hostname(&self) -> Result<Option<String>> {
        let Some(name) = &self.hostname else { return Ok(None) };
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.' || byte == b'_';
        if name.is_empty() || name.len() > 63 || name.starts_with(['-', '.']) || !name.bytes().all(sound) {
            return Err(Error::new(ErrorKind::Invalid, format!("use the host name {name:?}"))
                .because("host names are 1 to 63 letters, digits, `-`, `_` and `.`"));
        }
        Ok(Some(name.clone()))
    }

    fn capabilities(&self) -> Result<CapabilitySet> {
        let add = self.cap_add.iter().map(String::as_str);
        let set = self.profile.capabilities().adjusted(add, self.cap_drop.iter().map(String::as_str))?;
        if self.runtime.identity.is_rootless() {
            return Ok(set);
        }
        let possible = CapabilitySet::from_bits_truncate(self.runtime.host.bounding_capabilities());
        for name in &self.cap_add {
            if let Ok(capability) = name.parse::<Capability>() {
                if !possible.contains(capability) {
                    return Err(Error::new(ErrorKind::Denied, format!("give the container {}", capability.name()))
                        .because("this program does not have that capability in its bounding set itself"));
                }
            }
        }
        Ok(set.intersection(possible))
    }

    /// Over a tree of the host the engine's own root can be seen: images and writable parts of all containers.
    fn hidden(&self) -> Vec<PathBuf> {
        let From::Directory(base) = &self.base else { return vec![] };
        let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let (base, root) = (real(base), real(self.runtime.root()));
        root.strip_prefix(&base).map(|inside| vec![Path::new("/").join(inside)]).unwrap_or_default()
    }
}

/// What [`ContainerBuilder::decide`] comes to.
struct Decision {
    spec: Spec,
    shown: Vec<String>,
    stop_signal: Signal,
    seccomp: Option<Arc<[u8]>>,
    files: Vec<MadeFile>,
    hidden: Vec<PathBuf>,
}

/// `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`, as docker makes them.
fn made_files(hostname: &str, host_network: bool) -> Vec<MadeFile> {
    let own = |path: &str| std::fs::read(path).ok().filter(|content| content.len() <= 64 * 1024).filter(|_| host_network);
    let hosts = own("/etc/hosts").unwrap_or_else(|| {
        format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n").into_bytes()
    });
    let resolv = own("/etc/resolv.conf").unwrap_or_else(|| b"# This container has no network.\n".to_vec());
    vec![
        MadeFile { name: "hosts", target: "/etc/hosts", content: hosts },
        MadeFile { name: "hostname", target: "/etc/hostname", content: format!("{hostname}\n").into_bytes() },
        MadeFile { name: "resolv.conf", target: "/etc/resolv.conf", content: resolv },
    ]
}
