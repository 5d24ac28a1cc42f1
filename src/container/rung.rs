//! Which rung of the ladder a container is started on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::builder::{ContainerBuilder, From};
use super::runtime::Runtime;
use crate::isolation::{Ground, Identity, Isolation};
use crate::probe::{Feature, Finding, Host, State};
use crate::security::LandlockLayer;
use crate::{Error, ErrorKind, Result};

/// A backend of isolation, and whose ids its containers run with.
#[derive(Debug)]
pub(crate) struct Rung {
    pub(crate) backend: Arc<dyn Isolation>,
    pub(crate) identity: Identity,
    /// Why this host cannot do it, as far as that is known without trying.
    out_of_reach: Option<Finding>,
}

impl Rung {
    /// `identity` is what containers in namespaces have; `needs` is what the host has to offer, where that is known.
    pub(crate) fn new(backend: Arc<dyn Isolation>, needs: Option<Feature>, host: &Host, identity: &Identity) -> Rung {
        let identity = match (backend.ground(), identity) {
            (Ground::Mounts, identity) | (_, identity @ Identity::Host) => identity.clone(),
            // Root without all of root's capabilities is nobody else, either.
            _ => Identity::Caller { uid: host.uid(), gid: host.gid() },
        };
        let out_of_reach = needs.map(|needs| host.finding(needs)).filter(|finding| finding.state == State::No);
        Rung { backend, identity, out_of_reach }
    }

    fn out_of_reach(&self) -> Option<Error> {
        let finding = self.out_of_reach.as_ref()?;
        Some(finding.error(format!("isolate the container by {}", self.backend.name())))
    }

    pub(super) fn ground(&self) -> Ground {
        self.backend.ground()
    }
}

/// Whether a launch failed because the host makes no namespaces, or no mounts in them, rather than because of what was asked.
pub(super) fn is_refusal(error: &Error) -> bool {
    let calls =
        ["clone3", "clone", "unshare", "mount", "fsopen", "fsmount", "open_tree", "move_mount", "mount_setattr"];
    let call = error.syscall().is_some_and(|call| calls.contains(&call) || matches!(call, "pivot_root" | "write"));
    match error.raw_os_error() {
        Some(libc::EPERM | libc::ENOSYS) => call,
        // Of a security module. Of other calls it may be about what was to be mounted.
        Some(libc::EACCES) => matches!(error.syscall(), Some("clone3" | "clone" | "unshare" | "mount" | "pivot_root")),
        // The limit of namespaces.
        Some(libc::ENOSPC) => matches!(error.syscall(), Some("clone3" | "clone" | "unshare")),
        _ => false,
    }
}

/// The error of a container for which no rung is strong enough, or within reach: why the first is not, and why the others
/// would not do. Where there is but one, its own.
pub(super) fn none_of(mut errors: Vec<(&'static str, Error)>) -> Error {
    if errors.is_empty() {
        return Error::new(ErrorKind::Unsupported, "isolate the container").because("there is no backend for it");
    }
    let (_, first) = errors.remove(0);
    if errors.is_empty() {
        return first;
    }
    let why = |error: &Error| error.cause().map_or_else(|| error.to_string(), str::to_owned);
    let mut cause = why(&first);
    let mut remedies: Vec<String> = first.remedy_hint().map(str::to_owned).into_iter().collect();
    for (name, error) in &errors {
        cause.push_str(&format!("; {name} would not do: {}", why(error)));
        if error.kind() != ErrorKind::Weaker
            && let Some(remedy) = error.remedy_hint()
        {
            remedies.push(format!("for {name}: {remedy}"));
        }
    }
    if errors.iter().any(|(_, error)| error.kind() == ErrorKind::Weaker) {
        remedies.push("or require less, with a `Requirement` (--require)".to_owned());
    }
    Error::new(ErrorKind::Weaker, "isolate the container as much as required")
        .because(cause)
        .remedy(remedies.join("; "))
        .source_is(first)
}

impl ContainerBuilder {
    /// The engine's root.
    pub(crate) fn root(&self) -> &Path {
        self.runtime.root()
    }

    /// Whether its tree is a directory of the host's.
    pub(crate) fn is_over_host(&self) -> bool {
        matches!(self.base, From::Directory(_))
    }

    /// Whether a part of its tree alone can be read.
    pub(crate) fn is_confined(&self) -> bool {
        !self.readable.is_empty()
    }

    /// Whether what was asked for can be had on this ground at all.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported), with what would help.
    pub(super) fn fits(&self, rung: &Rung) -> Result<()> {
        let name = rung.backend.name();
        let refuse = |why: &str| {
            Error::new(ErrorKind::Unsupported, format!("isolate the container by {name}")).because(why.to_owned())
        };
        if rung.ground() == Ground::Mounts {
            return Ok(());
        }
        if self.tty.is_some() {
            return Err(refuse("a terminal of its own takes a devpts that is mounted for it")
                .remedy("leave the terminal out: what is inherited is relayed through pipes"));
        }
        if !self.edits.is_empty() || self.id_map.is_some() {
            return Err(refuse("changes of the spec, and ids of its own, are for containers in namespaces")
                .remedy("leave them out"));
        }
        if self.hostname.is_some() {
            return Err(refuse("a host name of its own takes a namespace").remedy("leave the host name out"));
        }
        // The engine's root is not to be read there, let alone written: what its records say is done.
        let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let own = real(self.runtime.root());
        let meets = |path: &Path| own.starts_with(real(path)) || real(path).starts_with(&own);
        let mut writable = self.mounts.iter().filter(|mount| !mount.target().1);
        if writable.any(|mount| meets(mount.target().0)) {
            return Err(
                refuse("the engine's root is in what it may write").remedy("allow it less, or use another root")
            );
        }
        if let (Ground::Directory, From::Directory(path)) = (rung.ground(), &self.base)
            && meets(path)
        {
            return Err(refuse("the engine's root is in the directory").remedy("use another root, outside of it"));
        }
        if rung.ground() == Ground::Directory
            && self.profile.landlock != LandlockLayer::None
            && self.runtime.host.landlock_abi().is_none()
        {
            return Err(refuse("landlock is to lie on top, and is not there").remedy("use another profile"));
        }
        match (rung.ground(), &self.base) {
            (Ground::Host, From::Image(_) | From::Saved(_)) => {
                return Err(refuse("it runs commands of the host, and cannot make an image the root").remedy(
                    "a host or a surrounding container that allows namespaces (`coracle doctor` says more), or as root the \
                     chroot rung",
                ));
            }
            (Ground::Host, From::Directory(path)) if path != Path::new("/") => {
                return Err(refuse("it cannot make a directory the root")
                    .remedy("run it over / (Engine::sandbox, --rootfs /), and name what it may read and write"));
            }
            (Ground::Host, From::Directory(_)) => {
                if !self.read_only {
                    return Err(refuse("it cannot throw writes away").remedy(
                        "make the root read-only (--read-only), and name the directories that may be written, each as a \
                         bind mount of a directory onto itself (-v DIR:DIR)",
                    ));
                }
                if let Some(mount) = self.mounts.iter().find(|mount| !mount.is_plain()) {
                    return Err(refuse("of a mount, it knows no more than whether it can be written")
                        .remedy(format!("leave the options of {mount:?} out, and the mounts inside it in")));
                }
                let below = |path: &Path| {
                    let mut writable = self.mounts.iter().filter(|mount| !mount.target().1);
                    writable.any(|other| path.starts_with(other.target().0))
                };
                if let Some(mount) = self.mounts.iter().find(|mount| mount.target().1 && below(mount.target().0)) {
                    return Err(refuse("what is below a directory that can be written can be written, too")
                        .remedy(format!("leave {mount:?} out, or name less to be written")));
                }
                if let Some(mount) = self.mounts.iter().find(|mount| mount.in_place().is_none()) {
                    return Err(refuse("it mounts nothing, and can only allow what is there where it is").remedy(
                        format!("in place of {mount:?}, a bind mount of a directory onto itself (-v DIR:DIR)"),
                    ));
                }
            }
            (_, From::Directory(_)) if !self.read_only => {
                return Err(refuse("writes to a directory of the host cannot be thrown away without mounts")
                    .remedy("make its root read-only, or import the directory as an image, and run that"));
            }
            _ if !self.mounts.is_empty() => {
                return Err(refuse("it mounts nothing").remedy("leave the mounts out, or put the files into the image"));
            }
            _ => {}
        }
        Ok(())
    }

    /// What the caller mounted writable, and read-only, as paths of the command's tree.
    pub(super) fn places(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let (mut writable, mut readable) = (vec![], self.readable.clone());
        for mount in &self.mounts {
            let (target, read_only) = mount.target();
            match read_only {
                false => writable.push(target.to_owned()),
                // Where everything else can be read, too, it needs no mention.
                true if !self.readable.is_empty() => readable.push(target.to_owned()),
                true => {}
            }
        }
        (writable, readable)
    }
}

impl Runtime {
    /// The rungs that a container may be started on, the strongest first, and for those that are known to be out of reach
    /// why.
    pub(super) fn rungs(&self) -> impl Iterator<Item = (&Rung, Option<Error>)> {
        self.ladder.iter().map(|rung| (rung, rung.out_of_reach()))
    }
}
