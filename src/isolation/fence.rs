//! A filter beside the profile's, for commands that no namespace holds: what would undo their isolation is refused.

use crate::probe::KernelVersion;
use crate::security::CapabilitySet;
use crate::security::seccomp::{Action, Arch, Comparison, Condition, Policy, Rule, Target};
use crate::{Error, ErrorKind, Result};

/// Other roots, mounts and namespaces; files by handle; rings, whose requests no filter sees; and what the kernel should not
/// be asked by untrusted code.
const REFUSED: [&str; 27] = [
    "chroot",
    "pivot_root",
    "mount",
    "umount",
    "umount2",
    "open_tree",
    "move_mount",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "mount_setattr",
    "setns",
    "unshare",
    "open_by_handle_at",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "bpf",
    "userfaultfd",
    "perf_event_open",
    "add_key",
    "request_key",
    "keyctl",
    "kexec_load",
    "swapon",
    "quotactl",
];

/// Calls that give a file its mode, and which argument that is.
const MODES: [(&str, u8); 9] = [
    ("chmod", 1),
    ("fchmod", 1),
    ("fchmodat", 2),
    ("fchmodat2", 2),
    ("open", 2),
    ("openat", 3),
    ("creat", 1),
    ("mknod", 1),
    ("mknodat", 2),
];

const SET_USER_ID: u64 = 0o4000;
const SET_GROUP_ID: u64 = 0o2000;
const NAMESPACES: u64 = 0x7e02_0000;
const AF_UNIX: u64 = 1;

/// The program. `without_network`: no sockets but those of the file system. `on_host`: files are the host's, so that none may
/// get a set-id bit.
///
/// # Errors
/// `Unsupported` on an instruction set without tables.
pub(super) fn program(kernel: KernelVersion, without_network: bool, on_host: bool) -> Result<Vec<u8>> {
    let arch = Arch::native().ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, "compile the system call filter")
            .because(format!("there are no system call tables for {}", std::env::consts::ARCH))
    })?;
    policy(without_network, on_host).compile(&Target { arch, kernel, capabilities: CapabilitySet::EMPTY })
}

fn policy(without_network: bool, on_host: bool) -> Policy {
    let refused = Action::Errno(libc::EPERM as u16);
    let absent = Action::Errno(libc::ENOSYS as u16);
    let when = |name: &'static str, argument, comparison, value| Rule {
        conditions: vec![Condition { argument, comparison, value }],
        ..Rule::always(refused, [name])
    };
    let mut rules = vec![Rule::always(refused, REFUSED)];
    // Flags of clone3 are in memory; C libraries fall back to clone.
    rules.push(Rule::always(absent, ["clone3"]));
    for bit in (0..64).map(|bit| 1u64 << bit).filter(|bit| NAMESPACES & bit != 0) {
        rules.push(when("clone", 0, Comparison::MaskedEqual(bit), bit));
    }
    // Limits of others are as good as a signal to them, and landlock does not keep them out of reach.
    rules.push(when("prlimit64", 0, Comparison::NotEqual, 0));
    if on_host {
        for (name, argument) in MODES {
            for bit in [SET_USER_ID, SET_GROUP_ID] {
                rules.push(when(name, argument, Comparison::MaskedEqual(bit), bit));
            }
        }
        // Its mode is in memory.
        rules.push(Rule::always(absent, ["openat2"]));
    }
    if without_network {
        rules.push(when("socket", 0, Comparison::NotEqual, AF_UNIX));
        // The 32-bit call, whose family is in memory.
        rules.push(Rule::always(absent, ["socketcall"]));
    }
    Policy { default: Action::Allow, rules, with_32_bit: true }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn it_compiles_for_every_kind_of_command() {
        for (network, host) in [(false, false), (true, false), (false, true), (true, true)] {
            let program = program(KernelVersion::new(6, 1), network, host).unwrap();
            assert!(!program.is_empty() && program.len().is_multiple_of(8));
        }
    }
}
