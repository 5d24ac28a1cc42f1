//! What a backend may know of a launch.

use std::fmt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::{Identity, Request, bare, namespaces};
use crate::Result;
use crate::launch::Plan;
use crate::probe::Host;
use crate::snapshot::Snapshot;

impl<'a> Request<'a> {
    /// The container, as the [OCI runtime spec](https://github.com/opencontainers/runtime-spec/blob/main/config.md) has it. What
    /// it asks for in namespaces a backend without them brings about in other ways, or says that it does not.
    pub fn spec(&self) -> &'a Spec {
        self.spec
    }

    /// Command and arguments.
    pub fn command(&self) -> &'a [String] {
        let process = self.spec.process().as_ref();
        process.and_then(|process| process.args().as_deref()).unwrap_or(&[])
    }

    /// What this host can do.
    pub fn host(&self) -> &'a Host {
        self.host
    }

    /// What was prepared to start on; of no meaning on [the host's own tree](super::Ground::Host).
    pub fn snapshot(&self) -> &'a Snapshot {
        self.snapshot
    }

    /// Whether the network is to be out of reach.
    pub fn without_network(&self) -> bool {
        namespaces::has(self.spec, LinuxNamespaceType::Network)
    }

    /// Whether nothing but [`writable`](Self::writable) paths can be written.
    pub fn is_read_only(&self) -> bool {
        self.spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false)
    }

    /// What was mounted writable: paths of the command's tree.
    pub fn writable(&self) -> &'a [PathBuf] {
        self.writable
    }

    /// Of the command's tree only these can be read, and what is writable; everything where there are none.
    pub fn readable(&self) -> &'a [PathBuf] {
        self.readable
    }

    /// The working directory.
    pub fn working_directory(&self) -> &'a Path {
        self.spec.process().as_ref().map_or(Path::new("/"), |process| process.cwd())
    }

    /// Whether the command runs with the caller's own ids, for want of a right to others.
    pub fn is_as_caller(&self) -> bool {
        matches!(self.identity, Identity::Caller { .. })
    }

    /// A plan that runs the command on the [host's own tree](super::Ground::Host), and isolates nothing by itself but what no
    /// backend does without: a session and keyring of its own, the control group, the container's user and capabilities,
    /// no-new-privileges, the system call filter, none of the host's descriptors; and a process that stays behind as the
    /// parent of all that comes of the command, and kills that when it ends.
    ///
    /// A filter of the crate's own refuses what would undo the isolation of such a command (mounts, namespaces, io_uring,
    /// files with set-id bits) and, where the network is to be out of reach, sockets but those of the file system.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for a spec without a process or a command, and those of duplicating
    /// descriptors.
    pub fn bare_plan(self) -> Result<Plan> {
        bare::plan(self, None)
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("command", &self.command()).field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl<'a> super::ExecRequest<'a> {
    /// Command and arguments.
    pub fn command(&self) -> &'a [String] {
        self.process.args().as_deref().unwrap_or(&[])
    }

    /// What this host can do.
    pub fn host(&self) -> &'a Host {
        self.host
    }
}

impl fmt::Debug for super::ExecRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecRequest").field("process", &self.process).finish_non_exhaustive()
    }
}
