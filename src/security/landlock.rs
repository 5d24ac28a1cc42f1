//! Landlock: what a process may open, decided by itself and for good; see landlock(7).
//!
//! Rights come in interface versions (ABI). What a kernel does not know it does not restrict, so whoever builds on a
//! ruleset asks [`Host::landlock_abi`](crate::probe::Host::landlock_abi) what it is worth:
//!
//! | version | Linux | restricts also |
//! |---|---|---|
//! | 1 | 5.13 | opening, listing, making and removing files |
//! | 2 | 5.19 | linking and renaming across directories (refused altogether before) |
//! | 3 | 6.2 | truncating |
//! | 4 | 6.7 | binding and connecting TCP sockets |
//! | 5 | 6.10 | ioctl(2) on devices |
//! | 6 | 6.12 | signals and abstract sockets to the outside |
//!
//! What came later is not handled, so that no new kernel changes somebody's sandbox unseen.
//!
//! Never restricted: looking at a file's metadata, changing it (owner, mode, times, attributes) where one's user may,
//! sockets with a name in the file system, and descriptors that are open already.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const MAKE_CHAR: u64 = 1 << 6;
const MAKE_BLOCK: u64 = 1 << 11;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;

const READ: u64 = EXECUTE | READ_FILE | READ_DIR;

const BIND_TCP: u64 = 1 << 0;
const CONNECT_TCP: u64 = 1 << 1;

const ABSTRACT_SOCKETS: u64 = 1 << 0;
const SIGNALS: u64 = 1 << 1;

/// Whether landlock lies on top of what else isolates a container; see [`Profile::landlock`](super::Profile::landlock).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LandlockLayer {
    /// It does not.
    #[default]
    None,
    /// As of November 2026: the command changes no mount, makes no device node, traces nothing that it has not started,
    /// opens no TCP connection and signals nobody outside; with a read-only root, it writes nowhere but to what was
    /// mounted writable. No-new-privileges is on.
    Layer2026_11,
}

/// What is allowed beneath a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Access {
    Read,
    Write,
    /// Writing to files that are there, and no more.
    Use,
}

/// A landlock ruleset: nothing is allowed but what it lists.
///
/// ```
/// use coracle::security::Landlock;
///
/// let mut ruleset = Landlock::nothing();
/// ruleset.read("/usr").read("/etc").write("/tmp/work");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Landlock {
    rules: Vec<(PathBuf, Access, bool)>,
    tcp: bool,
    outside: bool,
}

/// Rights that a ruleset handles, as the kernel takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handled {
    pub(crate) files: u64,
    pub(crate) network: u64,
    pub(crate) scoped: u64,
}

impl Landlock {
    /// Nothing is allowed.
    pub fn nothing() -> Landlock {
        Landlock::default()
    }

    /// Files at or beneath this path can be read and executed, directories listed.
    pub fn read(&mut self, path: impl Into<PathBuf>) -> &mut Self {
        self.rule(path.into(), Access::Read, false)
    }

    /// The same, and they can be written, made and removed, but for device nodes, which can be used and not made.
    pub fn write(&mut self, path: impl Into<PathBuf>) -> &mut Self {
        self.rule(path.into(), Access::Write, false)
    }

    /// Files that are there can be written to. Where the path is missing, that is no error.
    pub(crate) fn r#use(&mut self, path: impl Into<PathBuf>) -> &mut Self {
        self.rule(path.into(), Access::Use, true)
    }

    /// [`write`](Self::write), where the path is there.
    pub(crate) fn write_if_there(&mut self, path: impl Into<PathBuf>) -> &mut Self {
        self.rule(path.into(), Access::Write, true)
    }

    fn rule(&mut self, path: PathBuf, access: Access, optional: bool) -> &mut Self {
        self.rules.push((path, access, optional));
        self
    }

    /// TCP sockets can be bound and connected.
    pub fn tcp(&mut self) -> &mut Self {
        self.tcp = true;
        self
    }

    /// Processes outside can be signalled, and their abstract sockets connected to.
    pub fn outside(&mut self) -> &mut Self {
        self.outside = true;
        self
    }

    /// What a kernel of this version is asked to restrict.
    pub(crate) fn handled(&self, abi: u32) -> Handled {
        let files = match abi {
            0 | 1 => REFER - 1,
            2 => TRUNCATE - 1,
            3 | 4 => IOCTL_DEV - 1,
            _ => (IOCTL_DEV << 1) - 1,
        };
        Handled {
            files,
            network: if abi >= 4 && !self.tcp { BIND_TCP | CONNECT_TCP } else { 0 },
            scoped: if abi >= 6 && !self.outside { ABSTRACT_SOCKETS | SIGNALS } else { 0 },
        }
    }

    /// Each rule: the path, the rights, and whether the path may be missing.
    pub(crate) fn rules(&self, abi: u32) -> impl Iterator<Item = (&Path, u64, bool)> {
        let all = self.handled(abi).files;
        self.rules.iter().map(move |(path, access, optional)| {
            // Whoever gives a place in `/dev` gives what is there.
            let devices = if path.starts_with("/dev") { 0 } else { IOCTL_DEV };
            let rights = match access {
                Access::Read => READ,
                Access::Write => !(MAKE_CHAR | MAKE_BLOCK | devices),
                Access::Use => WRITE_FILE | READ_FILE | TRUNCATE,
            };
            (path.as_path(), rights & all, *optional)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_handles_what_it_knows() {
        let ruleset = Landlock::nothing();
        let files = |abi| ruleset.handled(abi).files;
        assert_eq!([1, 2, 3, 4, 5, 6, 7].map(files), [0x1fff, 0x3fff, 0x7fff, 0x7fff, 0xffff, 0xffff, 0xffff]);
        assert_eq!([3, 4].map(|abi| ruleset.handled(abi).network), [0, 3]);
        assert_eq!([5, 6, 99].map(|abi| ruleset.handled(abi).scoped), [0, 3, 3]);
        let mut open = Landlock::nothing();
        open.tcp().outside();
        assert_eq!((open.handled(7).network, open.handled(7).scoped), (0, 0));
    }

    #[test]
    fn nobody_makes_devices() {
        let mut ruleset = Landlock::nothing();
        ruleset.read("/").write("/tmp").write("/dev/pts");
        for abi in 1..=7 {
            let all = ruleset.handled(abi).files;
            let rules: Vec<u64> = ruleset.rules(abi).map(|(_, rights, _)| rights).collect();
            assert!(
                rules.iter().all(|rights| rights & (MAKE_CHAR | MAKE_BLOCK) == 0 && rights & !all == 0),
                "{rules:x?}"
            );
            assert_eq!(rules[0], READ);
            assert_eq!(rules[1] & IOCTL_DEV, 0);
            assert_eq!(rules[2] & IOCTL_DEV != 0, abi >= 5);
        }
    }
}
