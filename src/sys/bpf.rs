//! Programs that the kernel runs for a control group, see bpf(2).
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Programs of groups above and other programs of this one stay in force: all of them have to allow.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The front of `union bpf_attr` for `BPF_PROG_LOAD`; kernels take what is shorter than theirs as followed by zeroes.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
}

/// The front of `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Has the kernel ask this program for each device node that a process of the version 2 group `group` creates or opens.
/// It stays as long as the group.
pub(crate) fn restrict_devices(group: BorrowedFd<'_>, program: &[[u8; 8]]) -> Result<(), Errno> {
    let license = c"Apache-2.0";
    let mut name = [0; 16];
    name[..15].copy_from_slice(b"coracle_devices");
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
        name,
    };
    // SAFETY: the attribute is of the size that is given, and its two pointers are to the instructions, as many as it
    // counts, and to a string with its end; all three outlive the call, which only reads them.
    let raw = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
    let raw = Errno::result(raw)?;
    // SAFETY: the kernel just made this descriptor (close-on-exec, as all of bpf(2)) and nobody else has it.
    let loaded = unsafe { OwnedFd::from_raw_fd(raw as i32) };
    let attach = Attach {
        target: group.as_raw_fd() as u32,
        program: loaded.as_fd().as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the attribute is of the size that is given and holds two descriptors that are open during the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>()) };
    Errno::result(done).map(drop)
}
