//! Which device nodes a container may create and open.
//!
//! Version 1 takes the rules as lines; for version 2 they become a small program that the kernel asks for each node, see
//! [`program`].

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
    /// All of one node.
    pub(crate) fn node(kind: DeviceKind, major: u32, minor: u32) -> DeviceRule {
        DeviceRule { kind, major: Some(major), minor: Some(minor), access: Access::ALL }
    }

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

/// The rules as a program of type `BPF_PROG_TYPE_CGROUP_DEVICE`, 8 bytes for each instruction. It gets a
/// `struct bpf_cgroup_dev_ctx` (access and kind in one word, major, minor) and returns 1 where a rule allows all of the
/// access that is asked for, else 0. No loop, no memory, no helper: every kernel that has the type takes it.
pub(crate) fn program(rules: &[DeviceRule]) -> Vec<[u8; 8]> {
    const LOAD_WORD: u8 = 0x61;
    const MOVE: u8 = 0xbf;
    const SET: u8 = 0xb7;
    const AND: u8 = 0x54;
    const SHIFT_RIGHT: u8 = 0x74;
    const JUMP_UNLESS_EQUAL: u8 = 0x56;
    const EXIT: u8 = 0x95;
    // Registers.
    const RESULT: u8 = 0;
    const CONTEXT: u8 = 1;
    const KIND: u8 = 2;
    const ACCESS: u8 = 3;
    const MAJOR: u8 = 4;
    const MINOR: u8 = 5;
    const SPARE: u8 = 6;
    // `struct bpf_insn`: the registers share a byte, whose lower half is the target on little-endian machines.
    let instruction = |code: u8, to: u8, from: u8, offset: i16, value: u32| {
        let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
        let ([a, b], [c, d, e, f]) = (offset.to_ne_bytes(), value.to_ne_bytes());
        [code, registers, a, b, c, d, e, f]
    };
    let mut program = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE, ACCESS, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules {
        let kind = match rule.kind {
            DeviceKind::Block => 1,
            DeviceKind::Character => 2,
        };
        let Access { read, write, mknod } = rule.access;
        let allowed = u32::from(mknod) | u32::from(read) << 1 | u32::from(write) << 2;
        // Each test that fails goes on behind the rule.
        let mut tests = vec![(KIND, kind)];
        tests.extend(rule.major.map(|major| (MAJOR, major)));
        tests.extend(rule.minor.map(|minor| (MINOR, minor)));
        let mut behind = tests.len() as i16 + 5;
        for (register, value) in tests {
            behind -= 1;
            program.push(instruction(JUMP_UNLESS_EQUAL, register, 0, behind, value));
        }
        program.extend([
            instruction(MOVE, SPARE, ACCESS, 0, 0),
            instruction(AND, SPARE, 0, 0, !allowed),
            instruction(JUMP_UNLESS_EQUAL, SPARE, 0, 2, 0),
            instruction(SET, RESULT, 0, 0, 1),
            instruction(EXIT, 0, 0, 0, 0),
        ]);
    }
    program.extend([instruction(SET, RESULT, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    program
}
