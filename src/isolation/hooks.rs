//! Launch plans of hooks: programs of the host that a container's spec names, see
//! <https://github.com/opencontainers/runtime-spec/blob/main/config.md#posix-platform-hooks>.
//!
//! They are launched by the guardian as containers are, so that what the host program does about its children touches
//! none of them.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use oci_spec::runtime::{Hook, LinuxNamespaceType as Kind};

use super::Identity;
use super::namespaces::flag;
use crate::Result;
use crate::launch::{Op, Plan};

/// When a container that is being made waits for hooks.
#[derive(Debug)]
pub(crate) struct Stops {
    /// The container's end.
    pub(crate) socket: OwnedFd,
    /// When its namespaces and mounts are there, and the host's tree can still be seen.
    pub(crate) early: bool,
    /// When its tree is its own, and nothing but the command is to come.
    pub(crate) late: bool,
}

/// Where a hook runs.
pub(crate) enum Place<'a> {
    /// Where this program is.
    Host,
    /// In these namespaces of a container's first process, which still sees the host's tree.
    Container { process: BorrowedFd<'a>, kinds: &'a [Kind], identity: &'a Identity },
}

/// The plan of one hook, with its streams.
pub(crate) fn plan(hook: &Hook, place: Place<'_>, stdio: [OwnedFd; 3]) -> Result<Plan> {
    let mut plan = Plan::new(0);
    plan.plain(Op::DieWithParent);
    let joins = matches!(place, Place::Container { .. });
    match place {
        Place::Host => plan.plain(Op::Session),
        Place::Container { process, kinds, identity } => {
            let kinds = kinds.iter().fold(0, |kinds, kind| kinds | flag(*kind));
            let process = plan.send_copy(process)?;
            plan.join(process, kinds);
            plan.plain(Op::Keyring);
            if kinds & flag(Kind::User) != 0 && !matches!(identity, Identity::Single { .. }) {
                plan.ids(0, 0, Some(&[]));
            }
        }
    }
    plan.word(Op::Umask, 0o022);
    let stdio = stdio.map(|stream| plan.send(stream));
    plan.stdio(stdio);
    use nix::sys::resource::{Resource, getrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        plan.files(soft, hard);
    }
    if joins {
        plan.beside();
        plan.plain(Op::DieWithParent);
        plan.plain(Op::Session);
    }
    let path = hook.path().as_os_str().as_bytes().to_vec();
    let words = |list: &Option<Vec<String>>| -> Vec<Vec<u8>> {
        list.iter().flatten().map(|word| word.clone().into_bytes()).collect()
    };
    let mut arguments = words(hook.args());
    if arguments.is_empty() {
        arguments.push(path.clone());
    }
    plan.exec(&[path], &arguments, &words(hook.env()));
    Ok(plan)
}
