//! The allocator trap, and the proof that it works.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI32, Ordering};

/// Status of a process that was caught.
pub const CAUGHT: i32 = 99;

/// Passes on to the system's allocator in the process that first used it, and ends every other one.
pub struct Trap;

static HOME: AtomicI32 = AtomicI32::new(0);

fn check() {
    // SAFETY: takes nothing, cannot fail.
    let here = unsafe { libc::getpid() };
    match HOME.compare_exchange(0, here, Ordering::Relaxed, Ordering::Relaxed) {
        Err(home) if home != here => {
            let text = b"allocator trap: a forked copy of the host program allocates\n";
            // SAFETY: a live buffer with its length; `_exit` runs no handlers.
            unsafe {
                libc::write(2, text.as_ptr().cast(), text.len());
                libc::_exit(CAUGHT)
            }
        }
        _ => {}
    }
}

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Trap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        check();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[test]
fn the_trap_fires() {
    // SAFETY: the child does nothing but allocate, which ends it, or exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let bytes = std::hint::black_box(vec![1u8; 100]);
        // SAFETY: ends this process at once.
        unsafe { libc::_exit(i32::from(bytes[0]) - 1) };
    }
    let mut status = 0;
    // SAFETY: a child of ours and a live integer.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(libc::WEXITSTATUS(status), CAUGHT);
}
