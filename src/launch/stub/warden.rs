//! What stays behind where there is no pid namespace: the command's parent, which takes in all that comes of it
//! (`PR_SET_CHILD_SUBREAPER`), forwards signals, and ends as the command ends, after it has killed what that left.
//!
//! It never runs anything of the command's, holds no descriptor but that of procfs, cannot be traced, and has every signal
//! blocked but those that cannot be. Who kills it from outside ends the command with it (by the death signal), and may leave
//! others behind: a control group or the next open of the root finds those, where there is a group.

use crate::child::{Child, Trouble, at, dumpable};
use crate::protocol::{END_TREE, HOLD_TREE, Sys};
use crate::{descriptors, kernel};

const PR_SET_PDEATHSIG: usize = 1;
const PR_SET_CHILD_SUBREAPER: usize = 36;

/// Rounds of killing, after which there is somebody who makes processes faster than one can end them one by one.
const ROUNDS: u32 = 1 << 16;

/// Splits this process: returns in the child, which goes on to be the command, in a session of its own.
pub fn stay_behind(child: &mut Child<'_>) -> Result<(), Trouble> {
    // From here on a signal is for the loop below to take.
    kernel::set_signal_mask(u64::MAX);
    kernel::prctl(PR_SET_CHILD_SUBREAPER, 1, 0).map_err(at(Sys::Prctl))?;
    let command = match kernel::fork(0, None).map_err(at(Sys::Clone))? {
        0 => {
            kernel::setsid().map_err(at(Sys::Setsid))?;
            kernel::prctl(PR_SET_PDEATHSIG, kernel::SIGKILL as usize, 0).map_err(at(Sys::Prctl))?;
            return Ok(());
        }
        pid => pid,
    };
    if let Err(trouble) = withdraw(child) {
        let _ = kernel::kill(command, kernel::SIGKILL);
        return Err(trouble);
    }
    // The guardian may have died before it was to be told. Its end of the pipe says so.
    if kernel::hung_up(child.life()) {
        end_all(child.procfs, command);
        kernel::exit(127);
    }
    // The last ones: the end of the report is what the host program waits for.
    kernel::close(child.life());
    kernel::close(child.report);
    watch(child.procfs, command)
}

/// Gives up what it does not need.
fn withdraw(child: &Child<'_>) -> Result<(), Trouble> {
    dumpable(false)?;
    kernel::prctl(PR_SET_PDEATHSIG, END_TREE as usize, 0).map_err(at(Sys::Prctl))?;
    let mut keep = [child.report, child.life(), child.procfs];
    keep.sort_unstable();
    descriptors::keep_only(Some(child.procfs), 0, keep.into_iter()).map_err(at(Sys::CloseRange))
}

fn watch(procfs: i32, command: i32) -> ! {
    loop {
        match kernel::wait_signal(u64::MAX) {
            Ok(kernel::SIGCHLD) => {
                while let Some(ended) = kernel::reap() {
                    if ended.pid == command {
                        end_all(procfs, 0);
                        end_as(ended);
                    }
                }
            }
            Ok(END_TREE) => {
                end_all(procfs, command);
                die_of(kernel::SIGKILL);
            }
            Ok(HOLD_TREE) => {
                let _ = kernel::kill(command, kernel::SIGSTOP);
            }
            Ok(signal) => {
                let _ = kernel::kill(command, signal);
            }
            Err(_) => {}
        }
    }
}

/// Kills everything that came of the command, until nothing is left: what a killed process leaves becomes a child of this
/// one. `command` is its pid while it has not been reaped, else 0.
fn end_all(procfs: i32, command: i32) {
    for _ in 0..ROUNDS {
        while kernel::reap().is_some() {}
        match kill_children(procfs) {
            Some(0) => return,
            Some(_) => {}
            None => {
                // Without the list of children (CONFIG_PROC_CHILDREN) nobody is known but the command and its group.
                if command > 0 {
                    let _ = kernel::kill(-command, kernel::SIGKILL);
                    let _ = kernel::kill(command, kernel::SIGKILL);
                }
                return;
            }
        }
        // Each of them ends with a signal, and one that has come already waits.
        let _ = kernel::wait_signal(1 << (kernel::SIGCHLD - 1));
    }
}

/// How many there were; `None` where the kernel does not tell.
fn kill_children(procfs: i32) -> Option<u32> {
    let list = kernel::openat(procfs, b"thread-self/children\0", kernel::O_RDONLY, 0).ok()?;
    let mut buffer = [0u8; 1024];
    let (mut pid, mut count) = (0i32, 0u32);
    loop {
        let length = kernel::read(list, &mut buffer).unwrap_or(0);
        for byte in buffer.get(..length).unwrap_or(&[]) {
            if byte.is_ascii_digit() {
                pid = pid.wrapping_mul(10).wrapping_add((byte - b'0') as i32);
            } else if pid > 0 {
                // No pid can have been reused: this process is the parent and has not reaped it.
                let _ = kernel::kill(pid, kernel::SIGKILL);
                count = count.saturating_add(1);
                pid = 0;
            }
        }
        if length == 0 {
            break;
        }
    }
    kernel::close(list);
    Some(count)
}

fn end_as(ended: kernel::Ended) -> ! {
    const CLD_EXITED: u32 = 1;
    match ended.code {
        CLD_EXITED => kernel::exit(ended.status as i32),
        _ => die_of(ended.status),
    }
}

/// As the command died; of a signal that makes a core file this process, which may not be looked at, makes none.
fn die_of(signal: u32) -> ! {
    // Of no other that may be waiting.
    kernel::set_signal_mask(!(1u64.checked_shl(signal.wrapping_sub(1)).unwrap_or(0)));
    let _ = kernel::kill(kernel::own_pid(), signal);
    kernel::exit(128 + signal as i32)
}
