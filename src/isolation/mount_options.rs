//! Mount options as fstab(5), mount(8) and the OCI runtime spec write them, parsed into what the kernel takes.

use crate::{Error, ErrorKind, Result};

pub(crate) const RDONLY: u64 = 0x1;
pub(crate) const NOSUID: u64 = 0x2;
pub(crate) const NODEV: u64 = 0x4;
pub(crate) const NOEXEC: u64 = 0x8;
const ATIME: u64 = 0x70;
/// Attributes of which a user namespace may not change those that it inherits, not even to stricter ones.
const TIMES: u64 = ATIME | NODIRATIME;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;

const MS_PRIVATE: u64 = 1 << 18;
pub(crate) const MS_SLAVE: u64 = 1 << 19;
const MS_UNBINDABLE: u64 = 1 << 17;
const MS_SHARED: u64 = 1 << 20;

/// Parsed options of one mount.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// `MOUNT_ATTR_*` to set.
    pub(crate) set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub(crate) clear: u64,
    /// The attributes apply to the mounts inside, too.
    pub(crate) recursive_attributes: bool,
    /// `MOUNT_ATTR_*` to set and to clear on the mounts inside as well, said in so many words (`rnoexec`, `rsuid`, …).
    pub(crate) everywhere: (u64, u64),
    /// Ids are shown as a map says; whether on the mounts inside, too.
    pub(crate) idmap: Option<bool>,
    /// It is a bind mount.
    pub(crate) bind: bool,
    /// A bind mount with the mounts inside.
    pub(crate) recursive: bool,
    /// One of `MS_PRIVATE`, `MS_SLAVE`, … or 0.
    pub(crate) propagation: u64,
    /// The propagation applies to the mounts inside, too.
    pub(crate) recursive_propagation: bool,
    /// Devices on it may be opened: said in so many words.
    pub(crate) devices: bool,
    /// The rest: options of the file system, `key` or `key=value`.
    pub(crate) data: Vec<(String, Option<String>)>,
}

/// Parses a list of options; later ones win.
pub(crate) fn parse(options: &[String]) -> Result<Options> {
    let mut out = Options::default();
    for option in options {
        out.apply(option)?;
    }
    Ok(out)
}

/// `MS_*` of a word for propagation, and whether it goes for the mounts inside, too.
pub(crate) fn propagation(word: &str) -> Option<(u64, bool)> {
    let (kind, recursive) = match word.strip_prefix('r') {
        Some(kind) => (kind, true),
        None => (word, false),
    };
    let kind = match kind {
        "private" => MS_PRIVATE,
        "slave" => MS_SLAVE,
        "shared" => MS_SHARED,
        "unbindable" => MS_UNBINDABLE,
        _ => return None,
    };
    Some((kind, recursive))
}

impl Options {
    fn turn(&mut self, on: bool, attribute: u64) {
        if on {
            self.set |= attribute;
            self.clear &= !attribute;
        } else {
            self.clear |= attribute;
            self.set &= !attribute;
        }
    }

    /// What is set on the mount alone, and what on those inside, too, where they come along: a limit that ends at the
    /// next mount would be none. What is cleared is cleared on the mount alone: those inside keep their limits.
    pub(crate) fn split(&self) -> (u64, u64) {
        (self.set & TIMES, self.set & !TIMES)
    }

    /// An option with `r` in front, of the mount and the mounts inside it.
    fn turn_all(&mut self, on: bool, attribute: u64) {
        self.turn(on, attribute);
        let (set, clear) = &mut self.everywhere;
        let (put, take) = if on { (set, clear) } else { (clear, set) };
        *put |= attribute;
        *take &= !attribute;
    }

    fn access_time_all(&mut self, kind: u64) {
        self.access_time(kind);
        self.everywhere = (self.everywhere.0 & !ATIME | kind, self.everywhere.1 | ATIME);
    }

    fn propagate(&mut self, kind: u64, recursive: bool) {
        self.propagation = kind;
        self.recursive_propagation = recursive;
    }

    fn access_time(&mut self, kind: u64) {
        // Access time is a field of several bits, not a flag: the whole field is cleared first (mount_setattr(2)).
        self.clear |= ATIME;
        self.set = self.set & !ATIME | kind;
    }

    fn apply(&mut self, option: &str) -> Result<()> {
        match option {
            "defaults" | "" => {}
            "ro" => self.turn(true, RDONLY),
            "rw" => self.turn(false, RDONLY),
            "rro" => {
                self.turn(true, RDONLY);
                self.recursive_attributes = true;
            }
            "rrw" => self.turn_all(false, RDONLY),
            "rsuid" => self.turn_all(false, NOSUID),
            "rnosuid" => self.turn_all(true, NOSUID),
            "rdev" => {
                self.turn_all(false, NODEV);
                self.devices = true;
            }
            "rnodev" => self.turn_all(true, NODEV),
            "rexec" => self.turn_all(false, NOEXEC),
            "rnoexec" => self.turn_all(true, NOEXEC),
            "rsymfollow" => self.turn_all(false, NOSYMFOLLOW),
            "rnosymfollow" => self.turn_all(true, NOSYMFOLLOW),
            "rdiratime" => self.turn_all(false, NODIRATIME),
            "rnodiratime" => self.turn_all(true, NODIRATIME),
            "rrelatime" | "ratime" => self.access_time_all(0),
            "rnoatime" => self.access_time_all(NOATIME),
            "rstrictatime" => self.access_time_all(STRICTATIME),
            "idmap" => self.idmap = Some(false),
            "ridmap" => self.idmap = Some(true),
            "suid" => self.turn(false, NOSUID),
            "nosuid" => self.turn(true, NOSUID),
            "dev" => {
                self.turn(false, NODEV);
                self.devices = true;
            }
            "nodev" => self.turn(true, NODEV),
            "exec" => self.turn(false, NOEXEC),
            "noexec" => self.turn(true, NOEXEC),
            "nosymfollow" => self.turn(true, NOSYMFOLLOW),
            "symfollow" => self.turn(false, NOSYMFOLLOW),
            "diratime" => self.turn(false, NODIRATIME),
            "nodiratime" => self.turn(true, NODIRATIME),
            "relatime" | "atime" => self.access_time(0),
            "noatime" => self.access_time(NOATIME),
            "strictatime" => self.access_time(STRICTATIME),
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "private" => self.propagate(MS_PRIVATE, false),
            "rprivate" => self.propagate(MS_PRIVATE, true),
            "slave" => self.propagate(MS_SLAVE, false),
            "rslave" => self.propagate(MS_SLAVE, true),
            "unbindable" => self.propagate(MS_UNBINDABLE, false),
            "runbindable" => self.propagate(MS_UNBINDABLE, true),
            "shared" | "rshared" => {
                return Err(Error::new(ErrorKind::Invalid, format!("use the mount option {option:?}"))
                    .because("what a container mounts never appears on the host")
                    .remedy("`rslave`, with which what the host mounts appears in the container"));
            }
            "tmpcopyup" => {
                return Err(Error::new(ErrorKind::Unsupported, format!("use the mount option {option:?}"))
                    .because("what an image has below a mount is not copied into it"));
            }
            "remount" | "move" | "rec" => {
                return Err(Error::new(ErrorKind::Invalid, format!("use the mount option {option:?}"))
                    .because("a container's mounts are made once, before it starts"));
            }
            other => {
                let (key, value) = match other.split_once('=') {
                    Some((key, value)) => (key, Some(value.to_owned())),
                    None => (other, None),
                };
                if key.is_empty() || other.contains('\0') {
                    return Err(Error::new(ErrorKind::Invalid, format!("use the mount option {option:?}")));
                }
                self.data.push((key.to_owned(), value));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(options: &[&str]) -> Options {
        parse(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn later_options_win_and_data_is_kept() {
        let options = of(&["ro", "rbind", "rw", "noatime", "size=64k", "rprivate"]);
        assert_eq!((options.set, options.clear & RDONLY), (NOATIME, RDONLY));
        assert!(options.bind && options.recursive && options.recursive_propagation);
        assert_eq!(options.data, [("size".to_owned(), Some("64k".to_owned()))]);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for option in ["remount", "shared", "rshared", "tmpcopyup"] {
            let error = parse(&[option.to_owned()]).unwrap_err().to_string();
            assert!(error.contains(&format!("{option:?}")), "{error}");
        }
    }

    #[test]
    fn access_times_stay_on_the_mount_itself() {
        assert_eq!(of(&["rbind", "noexec", "nosuid", "noatime"]).split(), (NOATIME, NOEXEC | NOSUID));
    }
}
