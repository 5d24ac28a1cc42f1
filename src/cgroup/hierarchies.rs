//! Which hierarchies are mounted, and where in them this process is.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::limits::{Controllers, Version, Why};
use crate::probe::CgroupMode;
use crate::{Error, Result};

/// The hierarchies of this host as this process sees them: found once, then only a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    pub(crate) all: Vec<Hierarchy>,
}

/// One hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) version: Version,
    /// Version 1: those of its controllers that we use. Version 2 tells in `cgroup.controllers`.
    pub(crate) controllers: Controllers,
    /// Where it is mounted.
    pub(crate) mount: PathBuf,
    /// The directory of the group that this process is in, or why there is none.
    pub(crate) own: Result<PathBuf, Why>,
}

/// One line of mountinfo.
struct Mount<'a> {
    root: PathBuf,
    point: PathBuf,
    read_only: bool,
    kind: &'a str,
    options: &'a str,
}

impl Hierarchies {
    /// Reads `/proc/self/mountinfo` and `/proc/self/cgroup`.
    ///
    /// # Errors
    /// When one of them cannot be read: procfs is not mounted.
    pub fn detect() -> Result<Hierarchies> {
        let read = |path: &str| {
            std::fs::read_to_string(path).map_err(|error| {
                Error::io("find the cgroups of this process", "read", error).path(path).remedy("mount procfs on /proc")
            })
        };
        Ok(Hierarchies::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?))
    }

    /// From the text of the two files; formats in proc_pid_mountinfo(5) and cgroups(7).
    pub(crate) fn parse(mountinfo: &str, cgroup: &str) -> Hierarchies {
        let mounts: Vec<Mount<'_>> = mountinfo.lines().filter_map(parse_mount).collect();
        let mut all = Vec::new();
        for line in cgroup.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            let version = if controllers.is_empty() { Version::V2 } else { Version::V1 };
            let ours = Controllers::of_names(controllers.split(','));
            if version == Version::V1 && ours.is_empty() {
                continue;
            }
            let candidates: Vec<&Mount<'_>> = mounts
                .iter()
                .filter(|mount| match version {
                    Version::V2 => mount.kind == "cgroup2",
                    Version::V1 => {
                        let has = |name: &str| mount.options.split(',').any(|option| option == name);
                        mount.kind == "cgroup" && controllers.split(',').all(has)
                    }
                })
                .collect();
            let Some(first) = candidates.first() else { continue };
            // The same hierarchy may be mounted several times: take a mount that shows our group and can be written.
            let shows = |mount: &&&Mount<'_>| own_directory(mount, path).is_ok();
            let best = candidates.iter().filter(shows).find(|mount| !mount.read_only);
            let best = best.or(candidates.iter().find(shows)).unwrap_or(first);
            all.push(Hierarchy {
                version,
                controllers: ours,
                mount: best.point.clone(),
                own: own_directory(best, path),
            });
        }
        Hierarchies { all }
    }

    /// Version 1, version 2 or both.
    pub fn mode(&self) -> CgroupMode {
        let has = |version| self.all.iter().any(|hierarchy| hierarchy.version == version);
        match (has(Version::V2), has(Version::V1)) {
            (true, true) => CgroupMode::Hybrid,
            (true, false) => CgroupMode::Unified,
            (false, true) => CgroupMode::Legacy,
            (false, false) => CgroupMode::None,
        }
    }
}

/// `id parent major:minor root point options [tags…] - kind source super-options`
fn parse_mount(line: &str) -> Option<Mount<'_>> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(3);
    let (root, point, mount_options) = (front.next()?, front.next()?, front.next()?);
    let mut back = back.split(' ');
    let (kind, _source, options) = (back.next()?, back.next()?, back.next().unwrap_or(""));
    matches!(kind, "cgroup" | "cgroup2").then(|| Mount {
        root: unescape(root),
        point: unescape(point),
        read_only: mount_options.split(',').any(|option| option == "ro"),
        kind,
        options,
    })
}

/// Undoes the octal escapes of mountinfo: `\040` is a space.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let digits = bytes.get(index + 1..index + 4).filter(|digits| digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match digits {
            Some(digits) if bytes[index] == b'\\' => {
                let value = digits.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                out.push(value as u8);
                index += 4;
            }
            _ => {
                out.push(bytes[index]);
                index += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

/// Where `path` of /proc/self/cgroup is below a mount that shows the hierarchy from its `root` on.
fn own_directory(mount: &Mount<'_>, path: &str) -> Result<PathBuf, Why> {
    let below = Path::new(path).strip_prefix(&mount.root).ok();
    // A group outside of the cgroup namespace's root reads as `/../other`.
    let climbs = |path: &Path| path.components().any(|part| part == std::path::Component::ParentDir);
    match below.filter(|below| !climbs(below) && !climbs(&mount.root)) {
        Some(below) if below.as_os_str().is_empty() => Ok(mount.point.clone()),
        Some(below) => Ok(mount.point.join(below)),
        None => Err(Why::new(
            format!("the cgroup of this process, {path}, is outside of what {} shows", mount.point.display()),
            "mount the hierarchy from its root, or give the program a cgroup namespace of its own",
        )),
    }
}
