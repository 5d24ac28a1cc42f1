//! Closing what a process is not to have.

use crate::kernel::{self, Outcome};
use crate::protocol::MAX_FDS;
use crate::tree;

/// Closes every descriptor from `first` on but those of `keep`, of which there may be as many as one message carries
/// and a few more. Without `procfs` it is looked for at `/proc`.
pub fn keep_only(procfs: Option<i32>, first: i32, keep: impl Iterator<Item = i32>) -> Outcome<()> {
    let mut sorted = [-1i32; MAX_FDS + 8];
    let mut count = 0;
    for descriptor in keep.filter(|descriptor| *descriptor >= first) {
        // Sorted as they come; mostly they come sorted.
        let mut at = count;
        while at > 0 && sorted.get(at - 1).is_some_and(|before| *before > descriptor) {
            sorted.copy_within(at - 1..at, at);
            at -= 1;
        }
        *sorted.get_mut(at).filter(|_| count + 1 < MAX_FDS + 8).ok_or(kernel::EINVAL)? = descriptor;
        count += 1;
    }
    let keep = sorted.get(..count).unwrap_or(&[]);
    let mut next = first;
    for descriptor in keep.iter().chain([&i32::MAX]) {
        if *descriptor > next && kernel::close_range(next as u32, (*descriptor - 1) as u32, 0).is_err() {
            // A filter around the host program refuses the call.
            return each(procfs, |descriptor| {
                if descriptor >= first && !keep.contains(&descriptor) {
                    kernel::close(descriptor);
                }
            });
        }
        next = next.max(descriptor.saturating_add(1));
    }
    Ok(())
}

/// Leaves nothing but 0, 1 and 2 to the program that is executed next.
pub fn close_on_exec(procfs: i32) -> Outcome<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // Before Linux 5.11 the flag is unknown. Without procfs there is nothing open but what was made close-on-exec.
    if kernel::close_range(3, u32::MAX, CLOSE_RANGE_CLOEXEC).is_ok() || procfs < 0 {
        return Ok(());
    }
    let mut done = Ok(());
    each(Some(procfs), |descriptor| {
        if descriptor > 2 {
            done = done.and(kernel::set_close_on_exec(descriptor));
        }
    })?;
    done
}

/// Calls `f` with every descriptor, as procfs lists them.
fn each(procfs: Option<i32>, mut f: impl FnMut(i32)) -> Outcome<()> {
    let flags = kernel::O_RDONLY | kernel::O_DIRECTORY;
    let list = match procfs {
        Some(procfs) => kernel::openat(procfs, b"self/fd\0", flags, 0)?,
        None => kernel::openat(kernel::AT_FDCWD, b"/proc/self/fd\0", flags, 0)?,
    };
    let done = tree::each_entry(list, |name| {
        let digits = name.iter().take_while(|byte| byte.is_ascii_digit());
        let number = digits.fold(0i32, |number, digit| number.wrapping_mul(10).wrapping_add((digit - b'0') as i32));
        if number != list {
            f(number);
        }
        Ok(())
    });
    kernel::close(list);
    done
}
