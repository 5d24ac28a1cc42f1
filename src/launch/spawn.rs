//! Starts the guardian: a process that executes the carried stub and is no child of the host program.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::{SigSet, SigmaskHow};

use crate::content::tmp::TmpFile;
use crate::error::{Error, ErrorKind, Result};

/// The carried stub, as `build.rs` made it.
pub(crate) static STUB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/coracle-stub"));

const STEP: &str = "start the guardian of the containers";

/// Everything the two short-lived processes read, in one place that their assembly can index.
#[repr(C)]
struct Spawn {
    socket: i64,
    program: i64,
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
    empty: *const libc::c_char,
    errno: i64,
}

/// Executes the stub with `socket` as its descriptor 0, in a process that init (or the nearest subreaper) adopts.
///
/// Two clones that share memory, as posix_spawn(3) makes one: the first has no exit signal, so that neither SIGCHLD
/// handlers nor `waitpid(-1)` loops of the host program ever see it; the second executes the stub, and is an orphan as
/// soon as the first has ended. exec would set the exit signal of a direct child to SIGCHLD again.
pub(crate) fn guardian(socket: BorrowedFd<'_>, fallback: &Path) -> Result<()> {
    let program = executable(fallback)?;
    let name: &CStr = c"coracle-guardian";
    let argv = [name.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null()];
    let mut spawn = Spawn {
        socket: socket.as_raw_fd().into(),
        program: program.as_raw_fd().into(),
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        empty: c"".as_ptr(),
        errno: 0,
    };
    // A handler of the host must not run in a process that shares its memory. This is this thread's mask only.
    let blocked = |mask: &SigSet| {
        mask.thread_swap_mask(SigmaskHow::SIG_SETMASK)
            .map_err(|errno| Error::sys(STEP, "pthread_sigmask", errno as i32))
    };
    let before = blocked(&SigSet::all())?;
    // SAFETY: `spawn` and all it points to outlive the call, which returns after the stub was executed or refused.
    let first = unsafe { clone_twice_and_execute(&mut spawn) };
    blocked(&before)?;
    if first < 0 {
        let error = Error::sys(STEP, "clone", -first as i32);
        return Err(match -first as i32 {
            libc::EAGAIN => super::failure::no_more_processes(error),
            _ => error.because("the kernel refused a new process"),
        });
    }
    // `__WALL`, since it has no exit signal. If the host's own `waitpid(-1, __WALL)` was faster: fine, it is gone.
    loop {
        // SAFETY: a null status pointer is allowed.
        let reaped = unsafe { libc::waitpid(first as libc::pid_t, std::ptr::null_mut(), libc::__WALL) };
        if reaped >= 0 || nix::errno::Errno::last() != nix::errno::Errno::EINTR {
            break;
        }
    }
    // Of clone(2), for execveat(2) by an unchanged user knows no such limit.
    if spawn.errno == i64::from(libc::EAGAIN) {
        return Err(super::failure::no_more_processes(Error::sys(STEP, "clone", libc::EAGAIN)));
    }
    if spawn.errno != 0 {
        return Err(Error::sys(STEP, "execveat", spawn.errno as i32)
            .because("the carried stub could not be executed from a memfd")
            .remedy("allow memfds to be executed: sysctl vm.memfd_noexec=0"));
    }
    Ok(())
}

/// The stub as something to execute: a sealed memfd, so that nothing inside a container can write to the program that
/// its first process came from; where memfds may not be executed, a file in `fallback`, opened read-only and unlinked.
fn executable(fallback: &Path) -> Result<OwnedFd> {
    const MFD_EXEC: libc::c_uint = 0x10;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let mut errno = 0;
    for flags in [flags | MFD_EXEC, flags] {
        // SAFETY: the name is a C string; the result is a new descriptor or -1.
        let raw = unsafe { libc::memfd_create(c"coracle".as_ptr(), flags) };
        if raw < 0 {
            errno = nix::errno::Errno::last() as i32;
            // Kernels before 6.3 do not know the flag.
            if errno == libc::EINVAL {
                continue;
            }
            break;
        }
        // SAFETY: the kernel just made this descriptor and nobody else has it.
        let memfd = unsafe { OwnedFd::from_raw_fd(raw) };
        let mut file = File::from(memfd);
        file.write_all(STUB).map_err(|error| Error::io(STEP, "write", error))?;
        let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
        // SAFETY: plain integers.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
            return Err(Error::sys(STEP, "fcntl", nix::errno::Errno::last() as i32));
        }
        return Ok(file.into());
    }
    let refused = Error::sys(STEP, "memfd_create", errno).because("memfds may not be executed here");
    if fallback.as_os_str().is_empty() {
        return Err(refused);
    }
    in_file(fallback)
}

/// The stub as a file in `dir`, under a name of its own and locked as long as it has one, so that no sweep takes it. What is
/// returned can only be read and executed, and has no name any more.
fn in_file(dir: &Path) -> Result<OwnedFd> {
    let failed = |syscall| move |error| Error::io(STEP, syscall, error).path(dir);
    let mut file = TmpFile::create(dir)?;
    file.file().write_all(STUB).map_err(failed("write"))?;
    file.file().set_permissions(std::fs::Permissions::from_mode(0o500)).map_err(failed("fchmod"))?;
    let open = File::open(format!("/proc/self/fd/{}", file.file().as_raw_fd())).map_err(failed("open"))?;
    // Nothing is executed that somebody can write to.
    drop(file);
    Ok(open.into())
}

/// clone(`CLONE_VM | CLONE_VFORK`), in it clone(`CLONE_VM | CLONE_VFORK | SIGCHLD`), in that dup3 and execveat.
///
/// # Safety
///
/// `spawn` and what it points to are valid for the call, and all signals are blocked in this thread. Then this is
/// sound: the two processes run on this thread's memory while it is suspended, and execute only the instructions
/// below, which call no function, push nothing on the stack, and write nothing but `spawn.errno`.
#[cfg(target_arch = "x86_64")]
unsafe fn clone_twice_and_execute(spawn: *mut Spawn) -> i64 {
    let pid: i64;
    // SAFETY: see above.
    unsafe {
        std::arch::asm!(
            "mov eax, 56",
            "mov edi, 0x4100",
            "xor esi, esi",
            "xor edx, edx",
            "xor r10d, r10d",
            "xor r8d, r8d",
            "syscall",
            "test rax, rax",
            "jnz 9f",
            // the first process
            "mov eax, 56",
            "mov edi, 0x4111",
            "xor esi, esi",
            "xor edx, edx",
            "xor r10d, r10d",
            "xor r8d, r8d",
            "syscall",
            "test rax, rax",
            "jz 2f",
            "jns 3f",
            "neg rax",
            "mov [r12 + 40], rax",
            "3:",
            "xor edi, edi",
            "mov eax, 231",
            "syscall",
            "ud2",
            // the second process
            "2:",
            "mov eax, 292",
            "mov rdi, [r12]",
            "xor esi, esi",
            "xor edx, edx",
            "syscall",
            "test rax, rax",
            "js 4f",
            "mov eax, 322",
            "mov rdi, [r12 + 8]",
            "mov rsi, [r12 + 32]",
            "mov rdx, [r12 + 16]",
            "mov r10, [r12 + 24]",
            "mov r8d, 0x1000",
            "syscall",
            "4:",
            "neg rax",
            "mov [r12 + 40], rax",
            "mov edi, 127",
            "mov eax, 231",
            "syscall",
            "ud2",
            "9:",
            in("r12") spawn,
            lateout("rax") pid,
            out("rdi") _, out("rsi") _, out("rdx") _, out("r10") _, out("r8") _, out("rcx") _, out("r11") _,
            options(nostack),
        );
    }
    pid
}

/// See the other architecture.
///
/// # Safety
///
/// As there.
#[cfg(target_arch = "aarch64")]
unsafe fn clone_twice_and_execute(spawn: *mut Spawn) -> i64 {
    let pid: i64;
    // SAFETY: see above.
    unsafe {
        std::arch::asm!(
            "mov x8, #220",
            "mov x0, #0x4100",
            "mov x1, xzr",
            "mov x2, xzr",
            "mov x3, xzr",
            "mov x4, xzr",
            "svc 0",
            "cbnz x0, 9f",
            // the first process
            "mov x8, #220",
            "mov x0, #0x4111",
            "mov x1, xzr",
            "mov x2, xzr",
            "mov x3, xzr",
            "mov x4, xzr",
            "svc 0",
            "cbz x0, 2f",
            "tbz x0, #63, 3f",
            "neg x0, x0",
            "str x0, [x20, #40]",
            "3:",
            "mov x0, xzr",
            "mov x8, #94",
            "svc 0",
            "brk #1",
            // the second process
            "2:",
            "mov x8, #24",
            "ldr x0, [x20]",
            "mov x1, xzr",
            "mov x2, xzr",
            "svc 0",
            "tbnz x0, #63, 4f",
            "mov x8, #281",
            "ldr x0, [x20, #8]",
            "ldr x1, [x20, #32]",
            "ldr x2, [x20, #16]",
            "ldr x3, [x20, #24]",
            "mov x4, #0x1000",
            "svc 0",
            "4:",
            "neg x0, x0",
            "str x0, [x20, #40]",
            "mov x0, #127",
            "mov x8, #94",
            "svc 0",
            "brk #1",
            "9:",
            in("x20") spawn,
            lateout("x0") pid,
            out("x1") _, out("x2") _, out("x3") _, out("x4") _, out("x8") _,
            options(nostack),
        );
    }
    pid
}

/// The effective capabilities of the calling thread, bit n for number n; none when the kernel does not say.
pub(crate) fn effective_capabilities() -> u64 {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0u32];
    let mut data = [0u32; 6];
    // SAFETY: version 3 of the header asks for two entries of three words, which `data` has; both live for the call.
    let done = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) };
    if done < 0 { 0 } else { u64::from(data[0]) | u64::from(data[3]) << 32 }
}

/// Has the calling thread a system call filter?
pub(crate) fn is_filtered() -> bool {
    // SAFETY: plain integers; the option has no arguments and changes nothing.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) == 2 }
}

/// A pidfd of this process, for the guardian to see it end (Linux 5.3).
pub(crate) fn own_pidfd() -> Result<OwnedFd> {
    // SAFETY: plain integers; the result is a new close-on-exec descriptor or -1.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) };
    if raw < 0 {
        return Err(Error::sys(STEP, "pidfd_open", nix::errno::Errno::last() as i32)
            .kind_is(ErrorKind::Unsupported)
            .because("Linux 5.12 or later is needed"));
    }
    // SAFETY: the kernel just made this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw as i32) })
}

/// Takes ownership of a descriptor that came with a message.
///
/// # Safety
///
/// `raw` was received by this process a moment ago and nothing else has it.
pub(crate) unsafe fn received(raw: i32) -> OwnedFd {
    // SAFETY: the caller's promise.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn many_that_need_a_file_at_once_get_the_whole_stub() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let file = File::from(in_file(dir.path()).unwrap());
                        let mut bytes = vec![0; STUB.len() + 1];
                        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), STUB.len());
                        assert_eq!(&bytes[..STUB.len()], STUB);
                        let status = file.metadata().unwrap();
                        assert_eq!((status.nlink(), status.mode() & 0o777), (0, 0o500));
                        assert!(file.write_at(b"x", 0).is_err());
                    }
                });
            }
            // What every open of a root does.
            for _ in 0..100 {
                crate::content::tmp::sweep(dir.path()).unwrap();
            }
        });
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
