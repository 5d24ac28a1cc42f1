//! Steps that make a landlock ruleset. It takes effect right before the command is executed, see
//! [`Child::held`](crate::child::Child).

use crate::child::{Child, Trouble, at};
use crate::kernel;
use crate::mount::{self, Links, Target};
use crate::protocol::{Reader, Sys};

/// To execute, write, read and truncate it, and ioctl(2) on it.
const OF_FILES: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15;

pub fn ruleset(child: &mut Child<'_>, mut p: Reader<'_>) -> Result<(), Trouble> {
    let (out, fs, net, scoped) = (p.u32()?, p.u64()?, p.u64()?, p.u64()?);
    let ruleset = kernel::landlock_ruleset(fs, net, scoped).map_err(at(Sys::LandlockCreate))?;
    child.fill(out, ruleset)
}

pub fn allow(child: &mut Child<'_>, mut p: Reader<'_>) -> Result<(), Trouble> {
    let (ruleset, allowed, beneath) = (p.u32()?, p.u64()?, p.u32()?);
    // What was optional and is not there.
    let Ok(beneath) = child.register(beneath) else { return Ok(()) };
    let is_directory = kernel::status(beneath).map_err(at(Sys::Statx))?.is_directory();
    // The kernel refuses a rule on a file that names what only directories have.
    let allowed = if is_directory { allowed } else { allowed & OF_FILES };
    kernel::landlock_allow(child.register(ruleset)?, allowed, beneath).map_err(at(Sys::LandlockAdd))
}

pub fn handle(child: &mut Child<'_>, mut p: Reader<'_>) -> Result<(), Trouble> {
    let (out, path, optional) = (p.u32()?, p.cstr()?, p.u32()? != 0);
    match mount::ensure(child.root()?, path, Target::Existing, None, Links::Followed) {
        Ok(handle) => child.fill(out, handle),
        Err(Trouble(_, kernel::ENOENT | kernel::ENOTDIR, _)) if optional => Ok(()),
        Err(trouble) => Err(trouble),
    }
}
