//! A descriptor that a process passes to the host program while it is set up: the master of its terminal.
#![allow(unsafe_code)]

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::parent::pair;
use super::spawn;
use crate::error::{Error, ErrorKind, Result};

/// Our end of the socket over which it comes. The other one is sent along with the plan.
#[derive(Debug)]
pub(crate) struct Handover(OwnedFd);

impl Handover {
    /// The two ends.
    pub(crate) fn new() -> Result<(Handover, OwnedFd)> {
        let (ours, theirs) = pair()?;
        Ok((Handover(ours), theirs))
    }

    /// What a process has passed by now that it has been launched; never waits. [`Unsupported`](ErrorKind::Unsupported) where
    /// its plan had nobody do that.
    pub(crate) fn receive(self) -> Result<OwnedFd> {
        let step = "receive the terminal";
        let mut byte = [0u8; 1];
        let mut space = nix::cmsg_space!(i32);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let mut received = None;
        let length = loop {
            let mut slices = [IoSliceMut::new(&mut byte)];
            let message = match recvmsg::<()>(self.0.as_raw_fd(), &mut slices, Some(&mut space), flags) {
                Ok(message) => message,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(Error::sys(step, "recvmsg", errno as i32)),
            };
            for part in message.cmsgs().into_iter().flatten() {
                if let ControlMessageOwned::ScmRights(raws) = part {
                    for raw in raws {
                        // SAFETY: this message just brought it; dropping it closes it.
                        received = Some(unsafe { spawn::received(raw) });
                    }
                }
            }
            break message.bytes;
        };
        if length == 0 {
            return Err(Error::new(ErrorKind::Unsupported, step).because("this kind of isolation gives no terminals"));
        }
        received.ok_or_else(|| {
            Error::sys(step, "recvmsg", libc::EMFILE)
                .kind_is(ErrorKind::Limit)
                .because("this program has as many open files as it may have")
                .remedy("raise the limit of open files (ulimit -n)")
        })
    }
}
