//! Steps that set what a process has besides its tree: how it is scheduled, settings of its namespaces, its label.

use crate::child::{self, Child, Trouble, at, given};
use crate::kernel::{self, SchedulerAttributes};
use crate::protocol::{FOREIGN, Reader, Sys};

const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// Writes one value to a file of a procfs in one go, as procfs takes it. Nothing that is mounted on it is entered, and
/// what is found has to be of procfs.
pub fn put(procfs: i32, path: &[u8], value: &[u8]) -> Result<(), Trouble> {
    let rules = kernel::RESOLVE_BENEATH | kernel::RESOLVE_NO_MAGICLINKS | kernel::RESOLVE_NO_XDEV;
    let file = match kernel::openat2(procfs, path, kernel::O_WRONLY, rules) {
        // Refused by a filter around us, or older than 5.6.
        Err(kernel::ENOSYS) => kernel::openat(procfs, path, kernel::O_WRONLY | kernel::O_NOFOLLOW, 0),
        other => other,
    }
    .map_err(at(Sys::Openat))?;
    let done = match kernel::fstatfs(file) {
        Ok((PROC_SUPER_MAGIC, _)) => match kernel::write(file, value) {
            Ok(count) if count == value.len() => Ok(()),
            Ok(_) => Err(Trouble(Sys::Write, kernel::EINVAL, 0)),
            Err(errno) => Err(Trouble(Sys::Write, errno, 0)),
        },
        Ok(_) => Err(Trouble(Sys::Fstatfs, 0, FOREIGN)),
        Err(errno) => Err(Trouble(Sys::Fstatfs, errno, 0)),
    };
    kernel::close(file);
    done
}

pub fn sysctl(child: &Child<'_>, mut p: Reader<'_>) -> Result<(), Trouble> {
    let (procfs, path, value) = (p.u32()?, p.cstr()?, p.blob()?);
    let procfs = match given(procfs) {
        Some(register) => child.register(register)?,
        None => child.procfs,
    };
    put(procfs, path, value)
}

pub fn scheduler(mut p: Reader<'_>) -> Result<(), Trouble> {
    let attributes = SchedulerAttributes {
        size: size_of::<SchedulerAttributes>() as u32,
        policy: p.u32()?,
        flags: p.u64()?,
        nice: p.u32()?,
        priority: p.u32()?,
        runtime: p.u64()?,
        deadline: p.u64()?,
        period: p.u64()?,
    };
    kernel::sched_setattr(&attributes).map_err(at(Sys::SchedSetattr))
}

/// The file belongs to who the process is only while that may be dumped, which whoever is the host's root can do without.
pub fn time_offsets(child: &Child<'_>, mut p: Reader<'_>) -> Result<(), Trouble> {
    let offsets = p.blob()?;
    match put(child.procfs, b"self/timens_offsets\0", offsets) {
        Err(Trouble(Sys::Openat, kernel::EACCES, _)) => {
            child::dumpable(true)?;
            let put = put(child.procfs, b"self/timens_offsets\0", offsets);
            child::dumpable(false)?;
            put
        }
        other => other,
    }
}
