//! How a container comes into its namespaces.
//!
//! Mostly it is born in new ones, by the flags of its clone. Where some are there already, or belong to a user namespace
//! that the host's root has made, or where clocks are to be shifted, the first process enters and makes them step by step
//! and goes on in a child ([`Op::Fork`]): pid and time namespaces are one's children's.
//!
//! ```text
//! with CLONE_NEWNS            host's root, in a mount namespace of its own: maps ids of layers, takes bind sources
//! setns(net, ipc, …)          those that others have made; the rights over them are those of before
//! setns(user)                 root of that namespace from here on, and nobody else
//! unshare(mnt, pid, net, …)   belong to that user namespace
//! timens_offsets              of the children's time namespace, before there is any
//! fork                        the container's first process
//! unshare(cgroup)             as ever
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType as Kind, Spec};

use super::{CLONE_NEWCGROUP, CLONE_NEWNS, CLONE_NEWTIME, CLONE_NEWUSER, Request};
use crate::isolation::validate::{namespaces, refused};
use crate::isolation::{Identity, userns};
use crate::launch::{Op, Plan, Reg};
use crate::{Error, ErrorKind, Result, sys};

/// See the module.
pub(super) struct Ways {
    /// Kinds that are made, but mount, user and cgroup namespaces.
    new: u64,
    /// Has a cgroup namespace of its own.
    cgroup: bool,
    /// Those of others, but a user namespace: kind, register, and what to say of it.
    joined: Vec<(u64, Reg, String)>,
    user: User,
    /// Of a user namespace that the host's root enters; otherwise empty.
    pub(super) maps: [Vec<LinuxIdMapping>; 2],
    /// For `timens_offsets`.
    offsets: Option<String>,
}

/// The user namespace.
enum User {
    /// The host's.
    None,
    /// Born in a new one.
    Own,
    /// One that is there, and what to say of it.
    There(Reg, String),
}

/// The descriptors that a container's namespaces are entered by, opened before there is a plan.
pub(super) struct Doors {
    joined: Vec<(u64, OwnedFd, String)>,
    user: Option<(OwnedFd, String)>,
    /// Of that one, where the host's root enters it.
    maps: [Vec<LinuxIdMapping>; 2],
}

/// `CLONE_NEW*` of a kind.
pub(in crate::isolation) fn flag(kind: Kind) -> u64 {
    // The crate's own numbers are the kernel's.
    kind as u32 as u64
}

impl Doors {
    /// Opens what the spec names, and makes the user namespace that the host's root asks for.
    pub(super) fn open(request: &Request<'_>) -> Result<Doors> {
        let mut doors = Doors { joined: vec![], user: None, maps: [vec![], vec![]] };
        for (index, (kind, path)) in namespaces(request.spec).enumerate() {
            let own_user = kind == Kind::User && !request.identity.is_rootless();
            match path {
                Some(path) => {
                    let opened = open(index, kind, path)?;
                    let what = format!("{kind} {}", path.display());
                    match kind {
                        Kind::User => {
                            if !request.identity.is_rootless() {
                                doors.maps = userns::maps(opened.as_fd(), request.root, request.root_fd)?;
                            }
                            doors.user = Some((opened, what));
                        }
                        _ => doors.joined.push((flag(kind), opened, what)),
                    }
                }
                None if own_user => {
                    let linux = request.spec.linux().as_ref();
                    let maps = |pick: fn(&oci_spec::runtime::Linux) -> &Option<Vec<_>>| {
                        linux.and_then(|linux| pick(linux).as_deref()).unwrap_or_default()
                    };
                    let (uids, gids) =
                        (maps(oci_spec::runtime::Linux::uid_mappings), maps(oci_spec::runtime::Linux::gid_mappings));
                    let made = userns::make(uids, gids, request.root, request.root_fd)?;
                    doors.maps = [uids.to_vec(), gids.to_vec()];
                    doors.user = Some((made, "user namespace of the container".to_owned()));
                }
                None => {}
            }
        }
        Ok(doors)
    }
}

fn open(index: usize, kind: Kind, path: &Path) -> Result<OwnedFd> {
    let field = format!("linux.namespaces[{index}].path");
    let failed = |error: std::io::Error| {
        let step = format!("honour {field} of the container's spec");
        Error::io(step, "open", error).path(path)
    };
    let same = |opened: &OwnedFd| {
        use std::os::unix::fs::MetadataExt;
        let inode = nix::sys::stat::fstat(opened).map(|status| status.st_ino);
        let own = std::fs::metadata("/proc/thread-self/ns/user").map(|status| status.ino());
        inode.ok() == own.ok()
    };
    match sys::namespace::open(path).map_err(failed)? {
        Some((opened, CLONE_NEWUSER)) if kind == Kind::User && same(&opened) => {
            let why = "it is the user namespace that this program is in already";
            Err(refused(field, ErrorKind::Invalid, why).path(path).remedy("leave it out"))
        }
        Some((opened, found)) if found == flag(kind) => Ok(opened),
        Some(_) => Err(refused(field, ErrorKind::Invalid, "it is a namespace of another kind").path(path)),
        None => Err(refused(field, ErrorKind::Invalid, "it is no namespace").path(path)),
    }
}

impl Ways {
    /// What the spec asks for, and a plan that begins so.
    pub(super) fn begin(request: &Request<'_>) -> Result<(Plan, Ways)> {
        let doors = Doors::open(request)?;
        let rootless = request.identity.is_rootless();
        let has_cgroup = namespaces(request.spec).any(|(kind, path)| kind == Kind::Cgroup && path.is_none());
        let apart = flag(Kind::Mount) | flag(Kind::User) | flag(Kind::Cgroup);
        let own = namespaces(request.spec).filter(|(_, path)| path.is_none());
        let new = own.fold(0, |new, (kind, _)| new | flag(kind)) & !apart;
        let plain = doors.joined.is_empty() && doors.user.is_none() && new & CLONE_NEWTIME == 0;
        let user_is_own = rootless && doors.user.is_none();
        // Who is not root makes nothing before he is in a user namespace.
        let mut flags = if rootless && !user_is_own { 0 } else { CLONE_NEWNS };
        if user_is_own {
            flags |= CLONE_NEWUSER;
        }
        if plain {
            flags |= new;
        }
        let mut plan = Plan::new(flags);
        plan.has_own_tree();
        let joined = doors.joined.into_iter().map(|(kind, door, what)| (kind, plan.send(door), what)).collect();
        let user = match doors.user {
            Some((door, what)) => User::There(plan.send(door), what),
            None if rootless => User::Own,
            None => User::None,
        };
        let offsets = if new & CLONE_NEWTIME != 0 { offsets(request.spec) } else { None };
        let new = if plain { 0 } else { new };
        Ok((plan, Ways { new, cgroup: has_cgroup, joined, user, maps: doors.maps, offsets }))
    }

    /// The process is born in a user namespace of its own, whose maps are to be written.
    pub(super) fn is_born_in_user_namespace(&self) -> bool {
        matches!(self.user, User::Own)
    }

    /// The root of the user namespace, as the host has him.
    pub(super) fn root(&self) -> Option<(u32, u32)> {
        let [uids, gids] = &self.maps;
        Some((userns::outside(uids, 0)?, userns::outside(gids, 0)?))
    }

    /// The user namespace that the tree is made for by the host's root, before he enters it.
    pub(super) fn entered(&self, request: &Request<'_>) -> Option<Reg> {
        match self.user {
            User::There(namespace, _) if !request.identity.is_rootless() => Some(namespace),
            _ => None,
        }
    }

    /// Enters and makes what the process was not born in.
    pub(super) fn arrive(&self, plan: &mut Plan, identity: &Identity) {
        let rootless = identity.is_rootless();
        let user = |plan: &mut Plan| {
            let User::There(namespace, what) = &self.user else { return };
            plan.setns(*namespace, CLONE_NEWUSER, what.clone());
            // With one id, it is whatever the map says of that, and setgroups(2) may be denied.
            if !matches!(identity, Identity::Single { .. }) {
                plan.ids(0, 0, Some(&[]));
            }
            // The one before is the host's root's.
            plan.plain(Op::Keyring);
        };
        // Who is not root has rights over the others only by it; root has them before, and may lose them by it.
        if rootless {
            user(plan);
        }
        for (kind, namespace, what) in &self.joined {
            plan.setns(*namespace, *kind, what.clone());
        }
        let mut new = self.new;
        if let User::There(..) = self.user {
            new |= CLONE_NEWNS;
            if !rootless {
                user(plan);
            }
        }
        if new != 0 {
            plan.mask64(Op::Unshare, new);
        }
        if let Some(offsets) = &self.offsets {
            plan.put(Op::TimeOffsets, offsets);
        }
        if !self.joined.is_empty() || new != 0 {
            plan.fork();
            plan.plain(Op::DieWithParent);
            plan.plain(Op::Session);
        }
        // After joining: the namespace's root is the container's own group, and nothing above it can be seen.
        if self.cgroup {
            plan.mask64(Op::Unshare, CLONE_NEWCGROUP);
        }
    }
}

/// `linux.timeOffsets` as the kernel reads them.
fn offsets(spec: &Spec) -> Option<String> {
    let offsets = spec.linux().as_ref().and_then(|linux| linux.time_offsets().as_ref())?;
    let line = |(clock, offset): (&String, &oci_spec::runtime::LinuxTimeOffset)| {
        format!("{clock} {} {}\n", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0))
    };
    let lines: String = offsets.iter().map(line).collect();
    (!lines.is_empty()).then_some(lines)
}
