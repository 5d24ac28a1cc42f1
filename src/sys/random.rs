//! Random bytes.
#![allow(unsafe_code)] // One system call that the standard library keeps to itself.

use crate::{Error, Result};

/// Fills `buffer` from the kernel's generator, see getrandom(2).
pub(crate) fn fill(buffer: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = &mut buffer[done..];
        // SAFETY: the pointer and the length are those of one live, exclusively borrowed slice.
        let count = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(count) {
            Ok(count) => done += count,
            Err(_) => match nix::errno::Errno::last_raw() {
                libc::EINTR => {}
                errno => return Err(Error::sys("draw random bytes", "getrandom", errno)),
            },
        }
    }
    Ok(())
}
