//! Image config and caller's options, decided into one spec.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::Spec;

use super::builder::{ContainerBuilder, From, Mount, Network, PATH};
use super::rung::Rung;
use super::user::{self, User};
use super::{Signal, edits, spec};
use crate::image::ContainerConfig;
use crate::isolation::{Ground, Identity, MadeFile};
use crate::layer::View;
use crate::name::ContainerId;
use crate::security::{Capability, CapabilitySet, Landlock, LandlockLayer, Seccomp};
use crate::{Error, ErrorKind, Result};

impl ContainerBuilder {
    /// Image config and options, put together.
    pub(super) fn decide(&self, rung: &Rung, id: &ContainerId, view: &View) -> Result<Decision> {
        let config = self.base.image().map(|image| &image.config().config);
        let text = self.user.as_deref().or(config.map(|config| config.user.as_str())).unwrap_or_default();
        let mut own = String::new();
        if let (true, Identity::Caller { uid, gid }) = (text.is_empty(), &rung.identity) {
            own = format!("{uid}:{gid}");
        }
        let user = user::resolve(if own.is_empty() { text } else { &own }, view)?;
        if let Some((why, remedy)) = rung.identity.refuses(user.uid, user.gid, &user.groups) {
            let step = format!("run as the user {text:?}");
            return Err(Error::new(ErrorKind::Unsupported, step).because(why).remedy(remedy));
        }
        let on_host = rung.ground() == Ground::Host;
        let host_network = self.network == Network::Host;
        // On the host's network, a name that nobody there knows is of no use.
        let own = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok().filter(|_| host_network || on_host);
        let own = || own().map(|name| name.trim_end().to_owned()).filter(|name| is_sound(name));
        let hostname = self.sound_hostname()?.or_else(own).unwrap_or_else(|| id.short().to_owned());
        let args = self.args(config)?;
        let stop_signal = match (self.stop_signal, config) {
            (Some(signal), _) => signal,
            (None, Some(config)) if !config.stop_signal.is_empty() => config.stop_signal.parse()?,
            _ => Signal::TERM,
        };
        let capabilities = self.capabilities(rung)?;
        let (writable, readable) = self.places();
        let decided = spec::Decided {
            args: args.clone(),
            env: self.environment(config, &hostname, &user)?,
            terminal: self.tty,
            cwd: self.working_directory(config)?,
            host_network,
            read_only: self.read_only,
            capabilities,
            no_new_privileges: self.profile.no_new_privs
                || rung.ground() != Ground::Mounts
                || self.profile.landlock != LandlockLayer::None
                || !readable.is_empty(),
            masking: self.profile.masking,
            cpus: self.runtime.host.possible_cpus(),
            mounts: self.mounts.iter().map(Mount::spec).collect::<Result<_>>()?,
            rlimits: vec![],
            user_namespace: rung.identity.is_rootless(),
            files: made_files(&hostname, host_network),
            hostname,
            user,
        };
        let (mut files, mut shown) = (decided.files.clone(), args);
        let mut spec = spec::build(decided)?;
        let mut kept = capabilities;
        if let Some(map) = self.id_map {
            map.apply(&mut spec, &self.runtime)?;
        }
        if self.edit(&mut spec)? {
            if let Some(name) = edits::hostname(&spec)? {
                files = made_files(name, host_network);
            }
            if let Some(process) = spec.process() {
                kept = edits::bounding(process);
                shown = process.args().clone().unwrap_or_default();
            }
        }
        let runtime = &self.runtime;
        let (filter, seccomp_flags) = self.filter(&spec)?;
        let seccomp = match spec.linux().as_ref().is_some_and(|linux| linux.seccomp().is_some()) {
            // Read anew at each start, so that none would ever be found again.
            true => filter.compile(kept, runtime.host.kernel())?.map(Arc::from),
            false => runtime.filters.get(&filter, kept, runtime.host.kernel())?,
        };
        let wants_layer = self.profile.landlock != LandlockLayer::None || !readable.is_empty();
        let layer = (wants_layer && rung.ground() == Ground::Mounts)
            .then(|| crate::isolation::layer(&spec, &readable, &writable));
        let hidden = self.hidden(&spec)?;
        Ok(Decision {
            files,
            layer,
            spec,
            shown,
            stop_signal,
            filter,
            seccomp,
            seccomp_flags,
            hidden,
            writable,
            readable,
        })
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
                .because(match config {
                    Some(_) => "no command was given, and the image has neither Entrypoint nor Cmd",
                    None => "no command was given, and a directory has none of its own",
                })
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
        if self.tty.is_some() {
            set(super::terminal::TERM.to_owned(), false);
        }
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
        // As text, which is how docker takes it: what is missing of it is made.
        let mut clean = PathBuf::from("/");
        for part in path.components() {
            match part {
                Component::Normal(name) => clean.push(name),
                Component::ParentDir => drop(clean.pop()),
                _ => {}
            }
        }
        Ok(clean)
    }

    fn sound_hostname(&self) -> Result<Option<String>> {
        let Some(name) = &self.hostname else { return Ok(None) };
        if !is_sound(name) {
            return Err(Error::new(ErrorKind::Invalid, format!("use the host name {name:?}"))
                .because("host names are 1 to 63 letters, digits, `-`, `_` and `.`"));
        }
        Ok(Some(name.clone()))
    }

    fn capabilities(&self, rung: &Rung) -> Result<CapabilitySet> {
        let add = self.cap_add.iter().map(String::as_str);
        let drop = self.cap_drop.iter().map(String::as_str);
        let basis = match rung.ground() {
            Ground::Mounts => self.profile.capabilities,
            // There they count on the host.
            Ground::Host => CapabilitySet::EMPTY,
            // Without those that lead out, or reach what is shared with the host.
            Ground::Directory => OUTWARD.into_iter().fold(self.profile.capabilities, CapabilitySet::without),
        };
        let set = basis.adjusted(add, drop)?;
        if rung.identity.is_rootless() {
            return Ok(set);
        }
        let possible = match rung.identity {
            Identity::Caller { .. } => CapabilitySet::EMPTY,
            _ => CapabilitySet::from_bits_truncate(self.runtime.host.bounding_capabilities()),
        };
        for name in &self.cap_add {
            if let Ok(capability) = name.parse::<Capability>()
                && !possible.contains(capability)
            {
                return Err(Error::new(ErrorKind::Denied, format!("give the container {}", capability.name()))
                    .because("this program does not have that capability in its bounding set itself"));
            }
        }
        Ok(set.intersection(possible))
    }

    /// Over a tree of the host, and in what is bound of it, the engine's own root can be seen: images and writable parts of
    /// all containers, and records, of which the host does what they say.
    fn hidden(&self, spec: &Spec) -> Result<Vec<PathBuf>> {
        let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let own = real(self.runtime.root());
        let base = match &self.base {
            From::Directory(base) => Some((base.as_path(), Path::new("/"))),
            _ => None,
        };
        let binds = spec.mounts().iter().flatten().filter_map(|mount| {
            let is_bind = mount.typ().as_deref().is_none_or(|kind| kind == "bind" || kind == "none");
            is_bind.then(|| Some((mount.source().as_deref()?, mount.destination().as_path())))?
        });
        let mut hidden = vec![];
        for (source, target) in base.into_iter().chain(binds) {
            let source = real(source);
            if let Ok(inside) = own.strip_prefix(&source) {
                if inside.as_os_str().is_empty() {
                    return Err(Error::new(ErrorKind::Invalid, "mount into the container")
                        .path(source)
                        .because("it is the engine's root, of which the host does what it says")
                        .remedy("mount something else, or use another root"));
                }
                hidden.push(target.join(inside));
            } else if source.starts_with(&own) {
                return Err(Error::new(ErrorKind::Invalid, "mount into the container")
                    .path(source)
                    .because("it is in the engine's root, which is the engine's alone")
                    .remedy("mount something else, or use another root"));
            }
        }
        Ok(hidden)
    }
}

/// Capabilities that a changed root does not hold.
const OUTWARD: [Capability; 12] = [
    Capability::SysChroot,
    Capability::Mknod,
    Capability::Kill,
    Capability::NetRaw,
    Capability::NetAdmin,
    Capability::SysAdmin,
    Capability::SysPtrace,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::DacReadSearch,
    Capability::Bpf,
    Capability::SysBoot,
];

pub(super) fn is_sound(hostname: &str) -> bool {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.' || byte == b'_';
    (1..=63).contains(&hostname.len()) && !hostname.starts_with(['-', '.']) && hostname.bytes().all(sound)
}

/// What [`ContainerBuilder::decide`] comes to.
pub(super) struct Decision {
    pub(super) spec: Spec,
    pub(super) shown: Vec<String>,
    pub(super) stop_signal: Signal,
    pub(super) filter: Seccomp,
    pub(super) seccomp: Option<Arc<[u8]>>,
    pub(super) seccomp_flags: u32,
    pub(super) files: Vec<MadeFile>,
    pub(super) hidden: Vec<PathBuf>,
    pub(super) writable: Vec<PathBuf>,
    pub(super) readable: Vec<PathBuf>,
    /// What landlock allows on top of namespaces.
    pub(super) layer: Option<Landlock>,
}

/// `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`, as docker makes them.
fn made_files(hostname: &str, host_network: bool) -> Vec<MadeFile> {
    let own =
        |path: &str| std::fs::read(path).ok().filter(|content| content.len() <= 64 * 1024).filter(|_| host_network);
    let hosts = own("/etc/hosts").map_or_else(
        || {
            format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n")
                .into_bytes()
        },
        |hosts| with_name(hosts, hostname),
    );
    let resolv = own("/etc/resolv.conf").unwrap_or_else(|| b"# This container has no network.\n".to_vec());
    vec![
        MadeFile { name: "hosts", target: "/etc/hosts", content: hosts },
        MadeFile { name: "hostname", target: "/etc/hostname", content: format!("{hostname}\n").into_bytes() },
        MadeFile { name: "resolv.conf", target: "/etc/resolv.conf", content: resolv },
    ]
}

/// The lines of hosts(5), and one for `hostname` where none names it.
fn with_name(mut hosts: Vec<u8>, hostname: &str) -> Vec<u8> {
    let names = |line: &[u8]| {
        let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).skip(1);
        words.any(|word| word.eq_ignore_ascii_case(hostname.as_bytes()))
    };
    if !hosts.split(|byte| *byte == b'\n').any(names) {
        if !hosts.is_empty() && !hosts.ends_with(b"\n") {
            hosts.push(b'\n');
        }
        hosts.extend_from_slice(format!("127.0.1.1\t{hostname}\n").as_bytes());
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_added_to_hosts_once() {
        let with = |hosts: &[u8]| with_name(hosts.to_vec(), "box");
        for known in [&b"10.0.0.1 other BOX # x\n"[..], b"127.0.1.1\tbox"] {
            assert_eq!(with(known), known);
        }
        assert_eq!(with(b""), b"127.0.1.1\tbox\n");
        assert_eq!(with(b"box a # box"), b"box a # box\n127.0.1.1\tbox\n");
    }
}
