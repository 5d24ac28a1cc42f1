//! Terminals of a container's own.
//!
//! ```text
//! host program                         container
//! Terminal ── master (non-blocking) ── slave ── 0, 1, 2, /dev/console
//!    │  made inside, in the container's devpts, and passed out while the process is set up
//!    └── pidfd: the end of the process is the end of what is read, whoever keeps the slave open
//! ```

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::relay::Relays;
use crate::launch::{Handover, Process};
use crate::sys::terminal as sys;
pub use crate::sys::terminal::WindowSize;
use crate::{Error, ErrorKind, Result};

/// What a container with a terminal gets unless it is set, as docker has it.
pub(super) const TERM: &str = "TERM=xterm";

/// More than a terminal holds of what was written to it and not read: 8 KiB on their way and 4 KiB behind the line
/// discipline.
const REST: usize = 64 * 1024;

/// This program's end of the pseudo-terminal of a [container](super::ContainerBuilder::tty) or of a
/// [further command](super::ExecBuilder::tty): what is written is typed there, and what is read is what is shown there.
/// Clones are the same terminal, for any thread.
///
/// * Reading waits until something is shown, and comes to an end when the process has ended and all that it wrote has been
///   read. What it has started may go on to write, and is not waited for; nor does it matter that nobody has the terminal
///   open for a while.
/// * The terminal holds a few thousand bytes. A container whose terminal nobody reads waits as soon as it is full.
/// * What is typed goes through the line discipline: byte 3 (^C) sends SIGINT to the foreground process group, and byte 4
///   (^D) at the beginning of a line ends the input, as long as the container leaves it so.
/// * When the last clone is dropped while the process lives, [`Container::terminal`](super::Container::terminal) among them,
///   the line is hung up: the session's leader gets a SIGHUP, and whoever uses the terminal an error. A terminal whose
///   output is passed on ([`Stdio::Inherit`](super::Stdio::Inherit)) is held by what does that.
#[derive(Debug, Clone)]
pub struct Terminal(Hold);

#[derive(Debug, Clone)]
enum Hold {
    Own(Arc<Master>),
    /// It is the thread's that passes its output on: hung up when that cannot go on.
    Relayed(Weak<Master>),
}

#[derive(Debug)]
struct Master {
    fd: OwnedFd,
    process: OwnedFd,
    /// How much is read at most after the end of the process, from when that has been seen.
    rest: AtomicUsize,
    /// Nobody reads it any more: what is typed is not waited for.
    given_up: AtomicBool,
}

/// What is known of a terminal before it has been made.
#[derive(Debug)]
pub(super) struct Line {
    handover: Handover,
    /// What is typed, and where goes what is shown; none where that is for the caller.
    input: Option<OwnedFd>,
    shown: Option<OwnedFd>,
}

impl Line {
    /// With the socket over which the master comes.
    pub(super) fn new(input: Option<OwnedFd>, shown: Option<OwnedFd>) -> Result<(Line, OwnedFd)> {
        let (handover, socket) = Handover::new()?;
        Ok((Line { handover, input, shown }, socket))
    }
}

impl Terminal {
    /// The terminal of a process that has been launched, and the threads that type and show.
    pub(super) fn attach(line: Option<Line>, process: &Process, relays: &mut Relays) -> Result<Option<Terminal>> {
        let Some(Line { handover, input, shown }) = line else { return Ok(None) };
        let fail = |syscall| move |error| Error::io("attach the terminal", syscall, error);
        let fd = handover.receive()?;
        let process = process.pidfd().try_clone_to_owned().map_err(fail("fcntl"))?;
        let master = Arc::new(Master { fd, process, rest: AtomicUsize::new(REST), given_up: AtomicBool::new(false) });
        let terminal = match &shown {
            Some(_) => Terminal(Hold::Relayed(Arc::downgrade(&master))),
            None => Terminal(Hold::Own(master.clone())),
        };
        if let Some(to) = shown {
            relays.show(Terminal(Hold::Own(master.clone())), to).map_err(fail("clone"))?;
        }
        if let Some(from) = input {
            // Not what keeps it open.
            let typist = Terminal(Hold::Relayed(Arc::downgrade(&master)));
            relays.type_in(typist, from).map_err(fail("clone"))?;
        }
        Ok(Some(terminal))
    }

    fn master(&self) -> Option<Arc<Master>> {
        match &self.0 {
            Hold::Own(master) => Some(master.clone()),
            Hold::Relayed(master) => master.upgrade(),
        }
    }

    /// Hangs up, as far as this is the only one that holds it.
    pub(super) fn give_up(self) {
        if let Some(master) = self.master() {
            master.given_up.store(true, Ordering::Relaxed);
        }
    }

    /// A pidfd of the process that it was made for.
    pub(super) fn process(&self) -> io::Result<OwnedFd> {
        self.master().ok_or_else(hung_up)?.process.try_clone()
    }

    /// Sets its size. The foreground process group gets a SIGWINCH if that changes it.
    ///
    /// # Errors
    /// Those of ioctl(2); none for a terminal that has been hung up.
    pub fn resize(&self, size: WindowSize) -> Result<()> {
        let Some(master) = self.master() else { return Ok(()) };
        sys::set(master.fd.as_fd(), size).map_err(|error| Error::io("resize the terminal", "ioctl", error))
    }

    /// Its size, as it was set last: the container may do so as well.
    ///
    /// # Errors
    /// Those of ioctl(2); ENOTCONN for a terminal that has been hung up.
    pub fn size(&self) -> Result<WindowSize> {
        let fail = |error| Error::io("ask a terminal for its size", "ioctl", error);
        let master = self.master().ok_or_else(hung_up).map_err(fail)?;
        sys::get(master.fd.as_fd()).map_err(fail)
    }

    /// A descriptor of it for an event loop. It does not block, and tells what pty(7) says: EIO as long as nobody in the
    /// container has the terminal open. As long as it is open the line is not hung up.
    ///
    /// # Errors
    /// Those of fcntl(2); ENOTCONN for a terminal that has been hung up.
    pub fn try_clone_fd(&self) -> Result<OwnedFd> {
        let fail = |error| Error::io("duplicate the terminal", "fcntl", error);
        self.master().ok_or_else(hung_up).and_then(|master| master.fd.try_clone()).map_err(fail)
    }

    /// Everything that is shown up to the end, unless that is passed on.
    ///
    /// # Errors
    /// [`Limit`](ErrorKind::Limit) when it is more than `limit` bytes.
    pub(super) fn collect(&self, limit: u64) -> Result<Vec<u8>> {
        let Hold::Own(master) = &self.0 else { return Ok(vec![]) };
        let mut shown = vec![];
        let mut buffer = vec![0; REST];
        loop {
            match master.read(&mut buffer) {
                Ok(0) => return Ok(shown),
                Ok(count) if (shown.len() + count) as u64 > limit => {
                    return Err(Error::new(ErrorKind::Limit, "collect the container's output")
                        .because(format!(
                            "the terminal has shown more than output_limit = {limit} bytes; what wrote it was killed"
                        ))
                        .remedy("raise the limit, or read from the terminal piece by piece"));
                }
                Ok(count) => shown.extend_from_slice(&buffer[..count]),
                Err(error) => return Err(Error::io("read the container's output", "read", error)),
            }
        }
    }
}

fn hung_up() -> io::Error {
    Errno::ENOTCONN.into()
}

/// What poll(2) says of each, once one of them is ready or the time is over.
fn look<const N: usize>(wanted: [(BorrowedFd<'_>, PollFlags); N], limit: PollTimeout) -> io::Result<[bool; N]> {
    let mut fds = wanted.map(|(fd, flags)| PollFd::new(fd, flags));
    loop {
        match poll(&mut fds, limit) {
            Ok(_) => return Ok(fds.map(|fd| fd.any().unwrap_or(true))),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

impl Master {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let end = (self.process.as_fd(), PollFlags::POLLIN);
        let mut pause = 1u16;
        loop {
            // Before the look at what is there: afterwards it could have written once more, and ended.
            let [ended] = look([end], PollTimeout::ZERO)?;
            let limit = if ended { self.rest.load(Ordering::Relaxed).min(buffer.len()) } else { buffer.len() };
            if limit == 0 {
                return Ok(0);
            }
            match nix::unistd::read(&self.fd, &mut buffer[..limit]) {
                Ok(0) | Err(Errno::EAGAIN | Errno::EIO) if ended => return Ok(0),
                // Nobody has it open. There is no event for that somebody has again.
                Ok(0) | Err(Errno::EIO) => {
                    look([end], PollTimeout::from(pause))?;
                    pause = (2 * pause).min(64);
                }
                Ok(count) => {
                    if ended {
                        let less = |rest: usize| Some(rest.saturating_sub(count));
                        let _ = self.rest.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
                    }
                    return Ok(count);
                }
                Err(Errno::EAGAIN) => drop(look([(self.fd.as_fd(), PollFlags::POLLIN), end], PollTimeout::NONE)?),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        // The kernel would take it, and nobody ever read it.
        if let [true] = look([(self.process.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO)? {
            return Err(Errno::EPIPE.into());
        }
        loop {
            match nix::unistd::write(&self.fd, bytes) {
                Ok(count) => return Ok(count),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let wanted = [(self.fd.as_fd(), PollFlags::POLLOUT), (self.process.as_fd(), PollFlags::POLLIN)];
                    // Whoever waits here holds it open, and there is no event for that it has been given up.
                    let [_, ended] = look(wanted, PollTimeout::from(250u16))?;
                    if ended || self.given_up.load(Ordering::Relaxed) {
                        return Err(Errno::EPIPE.into());
                    }
                }
                Err(Errno::EIO) => return Err(Errno::EPIPE.into()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Read for &Terminal {
    /// Zero bytes at the end of the process, see [`Terminal`].
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.master().map_or(Ok(0), |master| master.read(buffer))
    }
}

impl Read for Terminal {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for &Terminal {
    /// Waits for room. [`BrokenPipe`](io::ErrorKind::BrokenPipe) when the process has ended;
    /// [`NotConnected`](io::ErrorKind::NotConnected) when it has been hung up.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.master().ok_or_else(hung_up)?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Terminal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
