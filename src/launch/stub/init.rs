//! Pid 1 for containers that asked for one: reaps orphans, forwards signals, ends as the command ends.

use crate::arch::{AUDIT_ARCH, nr};
use crate::child::{Child, Trouble, at};
use crate::protocol::Sys;
use crate::{descriptors, kernel};

/// Splits this process: returns in the child, which goes on to be the command; the parent stays as pid 1.
///
/// It has given up privileges as the command does, holds no descriptor, so that there is nothing in it to steal, and
/// where the command has a system call filter it can do nothing but what it is there for. Should any of this fail, an
/// error returns in pid 1, and the command is gone.
pub fn stay_behind(child: &mut Child<'_>) -> Result<(), Trouble> {
    let command = match kernel::fork(0, None).map_err(at(Sys::Clone))? {
        0 => return Ok(()),
        pid => pid,
    };
    if let Err(trouble) = confine(child) {
        let _ = kernel::kill(command, kernel::SIGKILL);
        return Err(trouble);
    }
    kernel::set_signal_mask(u64::MAX);
    // The last one: its end is what the host program waits for.
    kernel::close(child.report);
    loop {
        let signal = match kernel::wait_signal(u64::MAX) {
            Ok(signal) => signal,
            Err(_) => continue,
        };
        if signal != kernel::SIGCHLD {
            let _ = kernel::kill(command, signal);
            continue;
        }
        while let Some(ended) = kernel::reap() {
            if ended.pid == command {
                const CLD_EXITED: u32 = 1;
                // A shell's convention, since pid 1 cannot die of a signal that comes from inside.
                let code = if ended.code == CLD_EXITED { ended.status } else { 128 + ended.status };
                kernel::exit(code as i32);
            }
        }
    }
}

fn confine(child: &mut Child<'_>) -> Result<(), Trouble> {
    // Pipes of the command would never reach their end if pid 1 held them too. Before the filter, which allows no more
    // of this than one close.
    descriptors::keep_only(Some(child.procfs), 0, core::iter::once(child.report)).map_err(at(Sys::CloseRange))?;
    // There is nothing in it to protect any more, and whoever made a container without being root could not enter it by a
    // process that may not be looked at.
    crate::child::dumpable(true)?;
    if child.has_filter() {
        // Nothing is executed here, so no privilege is lost by it that the command might gain by executing.
        child.held_capabilities()?;
        kernel::no_new_privileges().map_err(at(Sys::Prctl))?;
        kernel::seccomp(&filter(), 0).map_err(at(Sys::Seccomp))?;
    }
    Ok(())
}

/// What pid 1 does from then on. A filter of the caller's, made for the command, may well refuse that.
fn filter() -> [u8; 8 * INSTRUCTIONS] {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const KILL_PROCESS: u32 = 0x8000_0000;
    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;
    let mut program = [0u8; 8 * INSTRUCTIONS];
    let mut place = program.chunks_exact_mut(8);
    let mut put = |code: u16, if_true: u8, if_false: u8, value: u32| {
        if let Some(place) = place.next() {
            let word = code as u64 | (if_true as u64) << 16 | (if_false as u64) << 24 | (value as u64) << 32;
            // Both architectures are little-endian, and `struct sock_filter` is half word, byte, byte, word.
            place.copy_from_slice(&word.to_le_bytes());
        }
    };
    // struct seccomp_data: number at 0, architecture at 4.
    put(LOAD, 0, 0, 4);
    put(JUMP_IF_EQUAL, 1, 0, AUDIT_ARCH);
    put(RETURN, 0, 0, KILL_PROCESS);
    put(LOAD, 0, 0, 0);
    for (index, call) in CALLS.iter().enumerate() {
        // Over the calls that follow and the refusal.
        put(JUMP_IF_EQUAL, (CALLS.len() - index) as u8, 0, *call as u32);
    }
    put(RETURN, 0, 0, EPERM);
    put(RETURN, 0, 0, ALLOW);
    program
}

const CALLS: [usize; 8] = [
    nr::RT_SIGTIMEDWAIT,
    nr::KILL,
    nr::WAITID,
    nr::RT_SIGPROCMASK,
    nr::CLOSE,
    nr::EXIT_GROUP,
    // A report, should one be left to write.
    nr::WRITE,
    // The kernel's own way on after a stop.
    nr::RESTART_SYSCALL,
];
const INSTRUCTIONS: usize = CALLS.len() + 6;
