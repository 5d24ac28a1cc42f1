//! The carried stub: the guardian of all containers of one host program, and each container's first process until exec.
//!
//! Gate: this program has no allocator, no standard library, no libc, no threads and no locks. It is compiled by the
//! crate's `build.rs`, embedded, and executed from a sealed memfd. Whatever runs between clone and exec is in this
//! folder; there is no other such code in the crate.
//!
//! Everything it is told arrives over the socket on descriptor 0 and is checked as hostile input would be.

#![no_std]
#![no_main]
#![no_builtins]
#![deny(unsafe_op_in_unsafe_fn)]

mod arch;
mod child;
mod descriptors;
mod guardian;
mod init;
mod kernel;
mod landlock;
mod mem;
mod mount;
#[path = "../protocol.rs"]
mod protocol;
mod serve;
mod settings;
mod terminal;
mod tree;
mod warden;

/// Called by the entry point in `arch` with the initial stack pointer (unused: arguments and environment are empty).
extern "C" fn entry(_stack: usize) -> ! {
    guardian::run()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Every index is checked before use, so this is unreachable but for a bug. A first process that dies here closes the
    // report pipe without having said READY, and a guardian its channels: both are errors of the launch.
    kernel::exit(125)
}
