//! Opens files for the host program in a user namespace in which this process is root: files of other ids of the range,
//! and files whose modes shut out their owner.
//!
//! ```text
//! host program                                            here
//!   | -- what: u32, flags: u32, name with its NUL [file] -> |
//!   | <- errno: u32 [the opened file], or errno and value - |
//! ```

use crate::arch::EpollEvent;
use crate::kernel;

/// Bytes of a request: a name has at most 255, one of an attribute included.
const REQUEST: usize = 512;
/// Bytes of an answer: the kernel lets no attribute be longer than 64 KiB.
const ANSWER: usize = 4 + 65536;

/// Answers one request after the other until the host program closes its end.
pub fn serve(socket: i32) -> ! {
    let Ok(epoll) = kernel::epoll_create() else { kernel::exit(126) };
    if kernel::epoll_add(epoll, socket, 0).is_err() {
        kernel::exit(126);
    }
    let mut request = [0u8; REQUEST];
    let mut answer = [0u8; ANSWER];
    loop {
        let (mut fds, mut count) = ([-1; 2], 0);
        let length = match kernel::receive(socket, &mut request, &mut fds, &mut count) {
            Ok(0) => kernel::exit(0),
            Ok(length) => length,
            Err(kernel::EAGAIN) => {
                match kernel::epoll_wait(epoll, &mut [EpollEvent { events: 0, data: 0 }]) {
                    Ok(_) | Err(kernel::EINTR) => continue,
                    Err(_) => kernel::exit(126),
                }
            }
            Err(_) => kernel::exit(126),
        };
        let sent = match reply(request.get(..length).unwrap_or(&[]), fds[0], &mut answer) {
            Ok(Reply::File(file)) => {
                let sent = kernel::send_with(socket, &0u32.to_ne_bytes(), file, None);
                kernel::close(file);
                sent
            }
            Ok(Reply::Bytes(length)) => kernel::send(socket, answer.get(..4 + length).unwrap_or(&[])),
            Err(errno) => kernel::send(socket, &errno.to_ne_bytes()),
        };
        for descriptor in fds.iter().take(count) {
            kernel::close(*descriptor);
        }
        if sent.is_err() {
            kernel::exit(126);
        }
    }
}

enum Reply {
    File(i32),
    /// So many bytes stand behind the errno, which is 0.
    Bytes(usize),
}

fn reply(request: &[u8], file: i32, answer: &mut [u8]) -> kernel::Outcome<Reply> {
    let word = |at: usize| match request.get(at..at + 4) {
        Some([a, b, c, d]) => Ok(u32::from_ne_bytes([*a, *b, *c, *d])),
        _ => Err(kernel::EINVAL),
    };
    let name = request.get(8..).unwrap_or(&[]);
    let (head, value) = answer.split_at_mut_checked(4).ok_or(kernel::EINVAL)?;
    head.fill(0);
    match word(0)? {
        0 => kernel::openat(file, name, word(4)?, 0).map(Reply::File),
        1 => kernel::fgetxattr(file, name, value).map(Reply::Bytes),
        _ => Err(kernel::EINVAL),
    }
}
