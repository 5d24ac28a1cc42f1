//! What this host has for each rung of the ladder of isolation, see [`isolation`](crate::isolation).

use super::report::{Feature, Finding, OUTER_FILTER, State};
use super::{Host, KernelVersion};
use crate::sys::trial::Trial;

/// What changing the root of a container takes, and giving its files and processes to their users.
const CHROOT: [(u32, &str); 6] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (18, "CAP_SYS_CHROOT"),
];

impl Host {
    pub(super) fn namespace_rung(&self) -> Finding {
        let what = Feature::NamespaceIsolation;
        let mounts = self.finding(Feature::MountInterface);
        if mounts.state == State::No {
            return Finding { what, ..mounts };
        }
        if self.is_root() && self.unshare_mount != Trial::Reached {
            return Finding::no(what, "a system call filter refuses unshare(CLONE_NEWNS)", OUTER_FILTER);
        }
        if self.is_root() {
            return Finding::yes(what, "images and host commands, as root");
        }
        match self.finding(Feature::UserNamespaces) {
            finding if finding.state == State::Yes => {
                let ids = match self.has(Feature::SubordinateIds) {
                    true => "images and host commands, with a range of ids",
                    false => "images and host commands, with one user id",
                };
                Finding::yes(what, ids)
            }
            finding => Finding { what, ..finding },
        }
    }

    pub(super) fn landlock_rung(&self) -> Finding {
        let what = Feature::LandlockIsolation;
        let landlock = self.finding(Feature::Landlock);
        if landlock.state == State::No {
            return Finding { what, ..landlock };
        }
        let seccomp = self.finding(Feature::Seccomp);
        if seccomp.state == State::No && self.kernel >= KernelVersion::new(4, 14) {
            return Finding { what, ..seccomp };
        }
        let detail = "host commands whose writes are confined to given directories";
        match self.landlock_abi {
            Some(6..) => Finding::yes(what, detail),
            _ => Finding::partial(
                what,
                detail,
                "before landlock version 6 (Linux 6.12) processes and abstract sockets of the host are not kept out of reach",
                "a newer kernel",
            ),
        }
    }

    pub(super) fn chroot_rung(&self) -> Finding {
        let what = Feature::ChrootIsolation;
        if self.uid != 0 || self.nested {
            let cause = match self.nested {
                true => format!("this process is uid {} inside a user namespace", self.uid),
                false => format!("this process is uid {}", self.uid),
            };
            return Finding::no(what, cause, "run this program as root");
        }
        let missing: Vec<&str> =
            CHROOT.iter().filter(|(number, _)| self.effective & 1 << number == 0).map(|(_, name)| *name).collect();
        match missing.is_empty() {
            true => Finding::yes(what, "images, from a copy of their tree, as root"),
            false => Finding::no(
                what,
                format!("this process is uid 0 without {}", missing.join(", ")),
                "give it these capabilities",
            ),
        }
    }
}
