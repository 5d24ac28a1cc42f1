//! Pid 1 for containers that asked for one: reaps orphans, forwards signals, ends as the command ends.

use crate::kernel;

/// Splits this process: returns in the child, which goes on to be the command; the parent stays as pid 1.
///
/// It runs after privileges were dropped and holds no descriptor, so there is nothing in it to steal.
pub fn stay_behind() -> Result<(), i32> {
    let command = match kernel::fork(0, None)? {
        0 => return Ok(()),
        pid => pid,
    };
    // Pipes of the command would never reach their end if pid 1 held them too.
    let _ = kernel::close_range(0, u32::MAX, 0);
    kernel::set_signal_mask(u64::MAX);
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
