//! A user namespace of root's, as an option of the builder.

use oci_spec::runtime::{LinuxIdMappingBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, Spec};

use super::builder::ContainerBuilder;
use super::runtime::Runtime;
use crate::{Error, ErrorKind, Result};

/// Which users and groups of the host stand for those of a container: its ids 0, 1, 2, … are so many ids of the host,
/// from a first one on. See user_namespaces(7).
///
/// ```
/// use coracle::container::IdMap;
///
/// // root inside is user and group 300000 outside, who owns nothing there.
/// let map = IdMap::new(300_000, 300_000, 65_536);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMap {
    uid: u32,
    gid: u32,
    size: u32,
}

impl IdMap {
    /// `size` ids, from `uid` and from `gid` of the host on. That they are ids is found out when a container is started.
    pub const fn new(uid: u32, gid: u32, size: u32) -> IdMap {
        IdMap { uid, gid, size }
    }

    /// Asks for it in the spec.
    pub(super) fn apply(self, spec: &mut Spec, runtime: &Runtime) -> Result<()> {
        let step = "give the container a user namespace";
        if runtime.identity.is_rootless() {
            return Err(Error::new(ErrorKind::Unsupported, step)
                .because("without root it has one already, whose map is that of /etc/subuid and /etc/subgid"));
        }
        let invalid = |error: oci_spec::OciSpecError| Error::new(ErrorKind::Invalid, step).source_is(error);
        let map = |first| LinuxIdMappingBuilder::default().container_id(0u32).host_id(first).size(self.size).build();
        let namespace = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::User).build().map_err(invalid)?;
        let (uids, gids) = (map(self.uid).map_err(invalid)?, map(self.gid).map_err(invalid)?);
        if let Some(linux) = spec.linux_mut() {
            linux.set_uid_mappings(Some(vec![uids])).set_gid_mappings(Some(vec![gids]));
            linux.namespaces_mut().get_or_insert_default().push(namespace);
        }
        Ok(())
    }
}

impl ContainerBuilder {
    /// Gives the container a user namespace of its own, where this program is root: root inside is somebody outside who
    /// owns nothing. No two containers share one.
    ///
    /// Files keep their owners: the layers and the writable part are *shown* with mapped ids (Linux 5.19 and a file system
    /// that can do so: ext4, xfs, btrfs, from 6.3 on tmpfs), nothing is ever changed for it. On disk, and so in
    /// [commits](crate::Container::commit) and snapshots, is what is seen inside. Where the kernel cannot do that, starting
    /// the container is an [`Unsupported`](ErrorKind::Unsupported) error; so it is over a directory of the host, and
    /// without root, where there is such a namespace anyway. Files of bind mounts belong to nobody inside, unless
    /// the mount has the option `idmap`, with which they are shown as the layers are.
    ///
    /// ```no_run
    /// use coracle::container::IdMap;
    ///
    /// # fn main() -> coracle::Result<()> {
    /// # let engine = coracle::Engine::open_default()?;
    /// # let image = engine.load("debian.tar")?;
    /// let map = IdMap::new(300_000, 300_000, 65_536);
    /// let out = image.container().user_namespace(map).command(["cat", "/proc/self/uid_map"]).output()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn user_namespace(mut self, map: IdMap) -> Self {
        self.id_map = Some(map);
        self
    }
}
