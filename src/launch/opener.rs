//! Files that only another user namespace lets us open, handed over by a stub that stays in it.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::parent::{Process, launch, pair};
use super::plan::Plan;
use super::protocol::Op;
use super::spawn;
use crate::Result;

/// The kernel lets no attribute be longer than 64 KiB.
const ANSWER: usize = 4 + 65536;

const OPEN: u32 = 0;
const ATTRIBUTE: u32 = 1;

/// A stub that opens files for us. It ends with this value.
#[derive(Debug)]
pub(crate) struct Opener {
    /// One question at a time.
    socket: Mutex<OwnedFd>,
    process: Process,
}

impl Opener {
    /// Starts it where `plan` leads; for `lease` and `fallback` see [`launch`].
    pub(crate) fn start(mut plan: Plan, lease: BorrowedFd<'_>, fallback: &Path) -> Result<Opener> {
        let (socket, theirs) = pair()?;
        let theirs = plan.send(theirs);
        plan.on(Op::Serve, theirs);
        let process = launch(plan, lease, fallback)?;
        Ok(Opener { socket: Mutex::new(socket), process })
    }

    /// The number of its process, which stays its own as long as this value is there and it [lives](Opener::lives).
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether its process has not ended.
    pub(crate) fn lives(&self) -> bool {
        matches!(self.process.look(), Ok(None))
    }

    /// openat(2) there.
    pub(crate) fn open(&self, dir: BorrowedFd<'_>, name: &CStr, flags: i32) -> io::Result<OwnedFd> {
        let (_, file) = self.ask(OPEN, flags as u32, dir, name)?;
        file.ok_or_else(|| io::Error::from_raw_os_error(libc::EMFILE))
    }

    /// fgetxattr(2) there.
    pub(crate) fn attribute(&self, file: BorrowedFd<'_>, name: &CStr) -> io::Result<Vec<u8>> {
        self.ask(ATTRIBUTE, 0, file, name).map(|(value, _)| value)
    }

    fn ask(&self, what: u32, flags: u32, file: BorrowedFd<'_>, name: &CStr) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
        // A question and its answer leave the socket as they found it, so a panic in between broke nothing else.
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let (what, flags) = (what.to_ne_bytes(), flags.to_ne_bytes());
        let parts = [IoSlice::new(&what), IoSlice::new(&flags), IoSlice::new(name.to_bytes_with_nul())];
        let rights = [file.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&rights)];
        again(|| sendmsg::<()>(socket.as_raw_fd(), &parts, &rights, MsgFlags::MSG_NOSIGNAL, None))?;
        let (answer, file) = receive(socket.as_fd())?;
        match answer.split_first_chunk::<4>() {
            Some((errno, value)) => match i32::from_ne_bytes(*errno) {
                0 => Ok((value.to_vec(), file)),
                errno => Err(io::Error::from_raw_os_error(errno)),
            },
            // It was killed.
            None => Err(io::Error::from_raw_os_error(libc::ECONNRESET)),
        }
    }
}

fn again<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

/// One answer, and the descriptor with it.
fn receive(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut bytes = vec![0; ANSWER];
    let mut space = nix::cmsg_space!([i32; 2]);
    let mut file = None;
    let length = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
        {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        for part in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(raws) = part {
                for raw in raws {
                    // SAFETY: this message just brought it; dropping it closes it.
                    file = Some(unsafe { spawn::received(raw) });
                }
            }
        }
        break message.bytes;
    };
    bytes.truncate(length);
    Ok((bytes, file))
}
