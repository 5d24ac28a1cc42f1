//! Which device nodes a container may create and open.

use serde::{Deserialize, Serialize};

/// Character or block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// `c` of mknod(1).
    Character,
    /// `b` of mknod(1).
    Block,
}

/// What may be done with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Access {
    /// Open for reading.
    pub read: bool,
    /// Open for writing.
    pub write: bool,
    /// Create nodes of it.
    pub mknod: bool,
}

impl Access {
    /// Everything.
    pub const ALL: Access = Access { read: true, write: true, mknod: true };
    /// Creating nodes only; opening them stays forbidden.
    pub const MKNOD: Access = Access { read: false, write: false, mknod: true };
}

/// Devices that are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Character or block.
    pub kind: DeviceKind,
    /// The major number; `None` is every one.
    pub major: Option<u32>,
    /// The minor number; `None` is every one.
    pub minor: Option<u32>,
    /// What may be done.
    pub access: Access,
}

/// Which device nodes may be used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Devices {
    /// No rule of ours. Safe where nodes cannot be created or opened anyway: in a user namespace, or where every file
    /// system of the container is mounted `nodev`.
    #[default]
    Any,
    /// Those of the rules, and no others.
    Only(Vec<DeviceRule>),
}

impl Devices {
    /// What docker allows, as of November 2026: the memory devices (null, zero, full, random, urandom), tty, console,
    /// ptmx and pseudo terminals; nodes of any device may be created but not opened.
    pub fn docker_2026_11() -> Devices {
        let node = |kind| DeviceRule { kind, major: None, minor: None, access: Access::MKNOD };
        let full =
            |major, minor| DeviceRule { kind: DeviceKind::Character, major: Some(major), minor, access: Access::ALL };
        Devices::Only(vec![
            node(DeviceKind::Character),
            node(DeviceKind::Block),
            full(1, Some(3)),
            full(1, Some(5)),
            full(1, Some(7)),
            full(1, Some(8)),
            full(1, Some(9)),
            full(5, Some(0)),
            full(5, Some(1)),
            full(5, Some(2)),
            full(136, None),
        ])
    }
}

impl DeviceRule {
    /// The line that version 1's `devices.allow` takes.
    pub(crate) fn v1_line(&self) -> String {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        let kind = match self.kind {
            DeviceKind::Character => 'c',
            DeviceKind::Block => 'b',
        };
        let mut line = format!("{kind} {}:{} ", number(self.major), number(self.minor));
        let letters = [(self.access.read, 'r'), (self.access.write, 'w'), (self.access.mknod, 'm')];
        line.extend(letters.into_iter().filter(|(granted, _)| *granted).map(|(_, letter)| letter));
        line
    }
}
