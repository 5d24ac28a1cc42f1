//! A user namespace with an id map of the caller's, made by the host's root.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, User};

use super::Stream;
use crate::launch::{Op, Opener, Plan};
use crate::{Error, ErrorKind, Result, sys};

const CLONE_NEWUSER: u64 = 0x1000_0000;
const STEP: &str = "make a user namespace";

/// Streams that were made for the container become its user's, as the host has him: from inside they belong to nobody,
/// and could not be opened again (`echo > /dev/stderr`).
pub(super) fn give_away(
    (stdio, made): (&[Stream; 3], [bool; 3]),
    user: &User,
    [uids, gids]: [&[LinuxIdMapping]; 2],
) -> Result<()> {
    let (Some(uid), Some(gid)) = (outside(uids, user.uid()), outside(gids, user.gid())) else { return Ok(()) };
    for (stream, made) in stdio.iter().zip(made) {
        if let (Stream::Fd(fd), true) = (stream, made) {
            nix::unistd::fchown(fd, Some(uid.into()), Some(gid.into()))
                .map_err(|errno| Error::sys("hand the streams to the container's user", "fchown", errno as i32))?;
        }
    }
    Ok(())
}

/// The maps of one that is there: users and groups, as the host's root has them.
pub(super) fn maps(namespace: BorrowedFd<'_>, root: &Path, lease: BorrowedFd<'_>) -> Result<[Vec<LinuxIdMapping>; 2]> {
    let mut plan = Plan::new(0);
    plan.plain(Op::DieWithParent);
    let register = plan.send_copy(namespace)?;
    // Those who are in there may not look at it; and entering takes the death signal away.
    plan.word(Op::Dumpable, 0);
    plan.setns(register, CLONE_NEWUSER, "user namespace".to_owned());
    plan.plain(Op::StillAlive);
    let parked = Opener::start(plan, lease, &root.join("tmp"))?;
    let maps = maps_of(parked.pid())?;
    match parked.lives() {
        true => Ok(maps),
        false => Err(Error::new(ErrorKind::Launch, "enter the user namespace").because("the process was killed")),
    }
}

/// The maps of the user namespace that a process is in: users and groups, as this program has them. Whose number it is has
/// to be found out afterwards.
pub(crate) fn maps_of(pid: u32) -> Result<[Vec<LinuxIdMapping>; 2]> {
    let mut maps = [vec![], vec![]];
    for (name, map) in ["uid_map", "gid_map"].iter().zip(&mut maps) {
        let path = PathBuf::from(format!("/proc/{pid}/{name}"));
        let step = "read the map of the user namespace";
        let text = std::fs::read_to_string(&path).map_err(|error| Error::io(step, "read", error).path(&path))?;
        for line in text.lines() {
            let words: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            if let [inside, outside, size] = words[..] {
                let range = LinuxIdMappingBuilder::default().container_id(inside).host_id(outside).size(size).build();
                map.extend(range);
            }
        }
    }
    Ok(maps)
}

/// The host's number of an id inside.
pub(super) fn outside(map: &[LinuxIdMapping], id: u32) -> Option<u32> {
    map.iter().find_map(|range| {
        let offset = id.checked_sub(range.container_id()).filter(|offset| *offset < range.size())?;
        range.host_id().checked_add(offset)
    })
}

/// Makes one: a process is born in it, gets the maps, and ends when the namespace has been opened, which lives as long
/// as somebody has it open. `root` is the engine's.
pub(super) fn make(
    uids: &[LinuxIdMapping],
    gids: &[LinuxIdMapping],
    root: &Path,
    lease: BorrowedFd<'_>,
) -> Result<OwnedFd> {
    let mut plan = Plan::new(CLONE_NEWUSER);
    plan.plain(Op::DieWithParent);
    let parked = Opener::start(plan, lease, &root.join("tmp"))?;
    // Its number is its own as long as its value is held: its guardian keeps it, and reaps it alone.
    let process = PathBuf::from(format!("/proc/{}", parked.pid()));
    for (name, map) in [("uid_map", uids), ("gid_map", gids)] {
        let mut lines = String::new();
        for range in map {
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "{} {} {}", range.container_id(), range.host_id(), range.size());
        }
        let path = process.join(name);
        let file = std::fs::File::options().write(true).open(&path);
        // In one go, as the kernel wants it.
        let written = file.and_then(|mut file| file.write_all(lines.as_bytes()));
        written.map_err(|error| {
            let denied = error.raw_os_error() == Some(libc::EPERM);
            let error = Error::io(STEP, "write", error).path(&path);
            match denied {
                true => error
                    .kind_is(ErrorKind::Denied)
                    .because("this program has not CAP_SETUID, CAP_SETGID and, to map the host's root, CAP_SETFCAP"),
                false => error.because("the kernel refused the map"),
            }
        })?;
    }
    let path = process.join("ns/user");
    let opened = sys::namespace::open(&path).map_err(|error| Error::io(STEP, "open", error).path(&path))?;
    match opened {
        Some((namespace, CLONE_NEWUSER)) if parked.lives() => Ok(namespace),
        _ => Err(Error::new(ErrorKind::Launch, STEP).because("the process that was born in it was killed")),
    }
}
