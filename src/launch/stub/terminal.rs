//! Steps that give a process a terminal of its own. The pair is made in the container's own devpts, by the descriptor of
//! that mount, and what comes of it is looked at before it is used: no path leads to either end.

use crate::child::{Child, Trouble, at, given};
use crate::kernel;
use crate::mount::{self, Links, Target};
use crate::protocol::{Reader, Sys};

const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;
/// Device numbers of `ptmx` and, with the number of the pair, of the slaves.
const MASTER: (u32, u32) = (5, 2);
const SLAVE_MAJOR: u32 = 136;

/// `devpts: reg, master: reg, slave: reg, uid: u32, rows: u32, columns: u32`.
pub fn open(child: &mut Child<'_>, mut p: Reader<'_>) -> Result<(), Trouble> {
    let (devpts, master, slave) = (p.u32()?, p.u32()?, p.u32()?);
    let (uid, rows, columns) = (p.u32()?, p.u32()? as u16, p.u32()? as u16);
    let ours = match given(devpts) {
        Some(register) => pair(child.register(register)?),
        None => {
            // Whoever is root in the container may have put anything there.
            let found = mount::ensure(child.root()?, b"dev/pts\0", Target::Existing, None, Links::Refused)?;
            let ours = pair(found);
            kernel::close(found);
            ours
        }
    }?;
    child.fill(master, ours.0)?;
    child.fill(slave, ours.1)?;
    kernel::set_window_size(ours.0, rows, columns).map_err(at(Sys::Ioctl))?;
    // Group and mode are those that the mount says.
    kernel::fchown(ours.1, uid, u32::MAX).map_err(at(Sys::Fchown))
}

/// Master and slave; both are closed by what ends this process, should a later step fail.
fn pair(devpts: i32) -> Result<(i32, i32), Trouble> {
    on_devpts(devpts)?;
    let master = open_master(devpts)?;
    on_devpts(master)?;
    let status = kernel::status(master).map_err(at(Sys::Statx))?;
    if !status.is_character_device() || status.special != MASTER {
        return Err(Trouble(Sys::Statx, 0, 0));
    }
    let number = kernel::terminal_number(master).map_err(at(Sys::Ioctl))?;
    kernel::unlock_terminal(master).map_err(at(Sys::Ioctl))?;
    let slave = kernel::terminal_peer(master).map_err(at(Sys::Ioctl))?;
    on_devpts(slave)?;
    let found = kernel::status(slave).map_err(at(Sys::Statx))?;
    let is_peer = found.device == status.device && found.special == (SLAVE_MAJOR, number);
    if found.is_character_device() && is_peer { Ok((master, slave)) } else { Err(Trouble(Sys::Statx, 0, 0)) }
}

/// Nothing that was mounted over its name. It does not block: that is for the host program to wait for, which gets it.
fn open_master(devpts: i32) -> Result<i32, Trouble> {
    const STRAIGHT: u64 = kernel::RESOLVE_BENEATH | kernel::RESOLVE_NO_SYMLINKS | kernel::RESOLVE_NO_XDEV;
    let flags = kernel::O_RDWR | kernel::O_NOFOLLOW | kernel::O_NOCTTY | kernel::O_NONBLOCK;
    match kernel::openat2(devpts, b"ptmx\0", flags, STRAIGHT) {
        // Refused by a filter around us: what is opened is looked at afterwards all the same.
        Err(kernel::ENOSYS | kernel::EPERM) => kernel::openat(devpts, b"ptmx\0", flags, 0).map_err(at(Sys::Openat)),
        other => other.map_err(at(Sys::Openat2)),
    }
}

fn on_devpts(file: i32) -> Result<(), Trouble> {
    match kernel::fstatfs(file).map_err(at(Sys::Fstatfs))? {
        (DEVPTS_SUPER_MAGIC, _) => Ok(()),
        _ => Err(Trouble(Sys::Fstatfs, 0, 0)),
    }
}

/// `socket: reg, fd: reg`. The socket is closed afterwards: the other end hears of it at once, whatever follows.
pub fn pass(child: &mut Child<'_>, mut p: Reader<'_>) -> Result<(), Trouble> {
    let (socket, terminal) = (p.u32()?, p.u32()?);
    kernel::send_with(child.register(socket)?, b"\0", child.register(terminal)?, None).map_err(at(Sys::Sendmsg))?;
    child.fill(socket, -1)?;
    child.fill(terminal, -1)
}

/// Verify after enforcing: this process leads the terminal's foreground process group.
pub fn control() -> Result<(), Trouble> {
    kernel::set_controlling_terminal(0).map_err(at(Sys::Ioctl))?;
    let foreground = kernel::foreground_group(0).map_err(at(Sys::Ioctl))?;
    match kernel::getpid() {
        Ok(own) if own == foreground => Ok(()),
        _ => Err(Trouble(Sys::Ioctl, 0, 0)),
    }
}
