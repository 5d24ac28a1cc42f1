//! PackOwners and extended attributes: how this host sees them, and how an image does.

use super::{PackOptions, PackOwners};
use crate::layer::owner_record::{RECORD, recorded_owner};
use crate::layer::tar::can_be_recorded;
use crate::sys::fs::Stat;

const CAPABILITY: &[u8] = b"security.capability";
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// What becomes of an attribute.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Keep,
    /// It says something about this host and nothing about the file.
    Drop,
    /// It belongs to the file, and a tar has no form for it.
    Unsayable,
}

/// `trusted`: attributes that only root sees belong to the tree, because a container made it.
pub(super) fn fate(name: &[u8], trusted: bool) -> Fate {
    let wanted = name == CAPABILITY
        || ACLS.contains(&name)
        || name.starts_with(b"user.") && !is_overlays(name) && name != RECORD.to_bytes()
        || trusted && name.starts_with(b"trusted.") && !is_overlays(name);
    match (wanted, can_be_recorded(name)) {
        (true, true) => Fate::Keep,
        (true, false) => Fate::Unsayable,
        (false, _) => Fate::Drop,
    }
}

/// Whether overlayfs keeps an attribute for itself under one kind of mount or the other. Where it is a plain attribute,
/// set by anybody, it stays behind as well: in the layer it would be a mark to whoever mounts that the other way.
fn is_overlays(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

impl PackOptions {
    /// The owner that the entry gets; `record` is the value of [`RECORD`].
    pub(super) fn owner(&self, stat: &Stat, record: Option<&[u8]>) -> (u32, u32) {
        /// The kernel's word for ids that are not mapped.
        const NOBODY: u32 = 65534;
        match &self.owners {
            PackOwners::AsFound => (stat.st_uid, stat.st_gid),
            PackOwners::Fixed(uid, gid) => (*uid, *gid),
            PackOwners::Mapped(reown) => reown.container_ids(stat.st_uid, stat.st_gid),
            PackOwners::Recorded => record.and_then(recorded_owner).unwrap_or_else(|| {
                let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
                (if stat.st_uid == uid { 0 } else { NOBODY }, if stat.st_gid == gid { 0 } else { NOBODY })
            }),
        }
    }

    /// The value that the container sees: ids in it are this host's.
    pub(super) fn value(&self, name: &[u8], value: Vec<u8>) -> Vec<u8> {
        let uid = |uid: u32| match &self.owners {
            PackOwners::Mapped(reown) => reown.container_ids(uid, 0).0,
            PackOwners::Recorded if uid == nix::unistd::geteuid().as_raw() => 0,
            _ => uid,
        };
        let gid = |gid: u32| match &self.owners {
            PackOwners::Mapped(reown) => reown.container_ids(0, gid).1,
            _ => gid,
        };
        if name == CAPABILITY {
            capability(value, uid)
        } else if ACLS.contains(&name) {
            acl(value, uid, gid)
        } else {
            value
        }
    }
}

/// File capabilities, see capabilities(7): revision 3 names the root user of the namespace that they were set in, which
/// is the container's; there they are of revision 2.
fn capability(mut value: Vec<u8>, uid: impl Fn(u32) -> u32) -> Vec<u8> {
    const REVISION: u32 = 0xff00_0000;
    let word = |at: usize| Some(u32::from_le_bytes(value.get(at..at + 4)?.try_into().ok()?));
    let (Some(magic), Some(root)) = (word(0), word(20)) else { return value };
    if magic & REVISION != 0x0300_0000 || value.len() != 24 {
        return value;
    }
    match uid(root) {
        0 => {
            value.truncate(20);
            value[..4].copy_from_slice(&(magic & !REVISION | 0x0200_0000).to_le_bytes());
        }
        root => value[20..24].copy_from_slice(&root.to_le_bytes()),
    }
    value
}

/// An ACL as the kernel has it, see acl(5): a version, then entries of a tag, permissions and an id.
fn acl(mut value: Vec<u8>, uid: impl Fn(u32) -> u32, gid: impl Fn(u32) -> u32) -> Vec<u8> {
    const USER: u16 = 2;
    const GROUP: u16 = 8;
    let Some(entries) = value.get_mut(4..) else { return value };
    for entry in entries.as_chunks_mut::<8>().0 {
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let id = match u16::from_le_bytes([entry[0], entry[1]]) {
            USER => uid(id),
            GROUP => gid(id),
            _ => continue,
        };
        entry[4..].copy_from_slice(&id.to_le_bytes());
    }
    value
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_the_host_stays() {
        for (name, kept) in [
            ("user.a", true),
            ("user.overlay.opaque", false),
            ("trusted.overlay.redirect", false),
            ("trusted.a", true),
            ("security.capability", true),
            ("security.selinux", false),
            ("system.posix_acl_access", true),
            ("system.nfs4_acl", false),
            ("user.rootlesscontainers", false),
        ] {
            assert_eq!(fate(name.as_bytes(), true) == Fate::Keep, kept, "{name}");
        }
        assert_eq!(fate(b"trusted.a", false), Fate::Drop);
        assert_eq!(fate(b"user.a=b", false), Fate::Unsayable);
    }

    #[test]
    fn capabilities_of_a_namespace_are_those_of_the_container() {
        let mut value = vec![1, 0, 0, 3, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let second = [&[1, 0, 0, 2], &value[4..]].concat();
        value.extend(1000u32.to_le_bytes());
        assert_eq!(capability(value.clone(), |_| 0), second);
        assert_eq!(capability(value.clone(), |id| id), value);
        assert_eq!(capability(second.clone(), |_| 0), second);
        assert_eq!(capability(vec![1], |_| 0), [1]);
    }

    #[test]
    fn ids_in_acls_are_translated() {
        let entry = |tag: u16, id: u32| [&tag.to_le_bytes()[..], &7u16.to_le_bytes(), &id.to_le_bytes()].concat();
        let list = |ids: [u32; 2]| {
            [&2u32.to_le_bytes()[..], &entry(1, u32::MAX), &entry(2, ids[0]), &entry(8, ids[1])].concat()
        };
        assert_eq!(acl(list([100_004, 100_009]), |id| id - 100_000, |id| id - 100_001), list([4, 100_008 - 100_000]));
    }
}
