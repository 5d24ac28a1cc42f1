//! The four functions that the compiler may call behind our back. `#![no_builtins]` keeps their loops from being
//! turned into calls of themselves.
//!
//! SAFETY, for all: the compiler calls them with the C contract, i.e. `n` bytes are valid at each pointer.

/// memcpy(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    let mut at = 0;
    while at < n {
        // SAFETY: see the file's header.
        unsafe { *to.add(at) = *from.add(at) };
        at += 1;
    }
    to
}

/// memmove(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    if (to as usize) < from as usize {
        // SAFETY: copying upwards never overwrites a byte that is still to be read.
        return unsafe { memcpy(to, from, n) };
    }
    let mut at = n;
    while at > 0 {
        at -= 1;
        // SAFETY: see the file's header; copying downwards, for the same reason.
        unsafe { *to.add(at) = *from.add(at) };
    }
    to
}

/// memset(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
    let mut at = 0;
    while at < n {
        // SAFETY: see the file's header.
        unsafe { *to.add(at) = byte as u8 };
        at += 1;
    }
    to
}

/// memcmp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    let mut at = 0;
    while at < n {
        // SAFETY: see the file's header.
        let (x, y) = unsafe { (*a.add(at), *b.add(at)) };
        if x != y {
            return x as i32 - y as i32;
        }
        at += 1;
    }
    0
}

/// bcmp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the contracts are the same.
    unsafe { memcmp(a, b, n) }
}

/// The prebuilt `core` names it in its unwind tables; nothing here unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
