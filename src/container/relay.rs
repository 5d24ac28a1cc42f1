//! Threads that copy between this program's own streams and a container's pipes.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{read, write};

use super::terminal::Terminal;

/// What is copied at once: as much as a pipe holds.
const PIECE: usize = 64 * 1024;

/// What is typed at once.
const TYPED: usize = 4096;

/// How long to wait between two looks at threads that may not be joined yet.
const PAUSE: Duration = Duration::from_millis(1);

/// The relays of one container. Dropping them tells them that the container has ended.
#[derive(Default, Debug)]
pub(super) struct Relays {
    /// Locked by who waits for them, for as long as that takes.
    outputs: Mutex<Vec<JoinHandle<Option<Errno>>>>,
    /// The first failure to pass output on, until somebody has been told.
    failure: Mutex<Option<Errno>>,
    /// Its writer is never written to: what readers wait for is that it is closed.
    bell: Mutex<Option<(PipeReader, PipeWriter)>>,
}

/// A list and two options are whole whatever a thread that panicked was about.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Relays {
    /// A pipe into which what is read from `from` goes, as long as the container runs.
    pub(super) fn input(&mut self, from: OwnedFd) -> io::Result<PipeReader> {
        let ended = self.ended()?;
        let (reader, writer) = io::pipe()?;
        // Its own end only, so that the container cannot make the thread wait by filling the pipe itself.
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // Not joined: another reader of the stream may take what poll(2) has seen, and a read then waits for more.
        spawn("coracle-stdin", move || feed(from.as_fd(), writer.as_fd(), ended.as_fd()))?;
        Ok(reader)
    }

    /// A pipe out of which everything goes to `to`.
    pub(super) fn output(&mut self, to: OwnedFd) -> io::Result<PipeWriter> {
        let ended = self.ended()?;
        let (reader, writer) = io::pipe()?;
        let thread = spawn("coracle-output", move || drain(reader.as_fd(), to.as_fd(), ended.as_fd()))?;
        lock(&self.outputs).push(thread);
        Ok(writer)
    }

    /// Shows on `to` what a terminal shows, up to the end of its process.
    pub(super) fn show(&mut self, terminal: Terminal, to: OwnedFd) -> io::Result<()> {
        let thread = spawn("coracle-output", move || show(terminal, to.as_fd()))?;
        lock(&self.outputs).push(thread);
        Ok(())
    }

    /// Types on a terminal what is read from `from`, as long as its process runs.
    pub(super) fn type_in(&mut self, terminal: Terminal, from: OwnedFd) -> io::Result<()> {
        let ended = terminal.process()?;
        // Not joined, as for input of a pipe.
        spawn("coracle-stdin", move || type_in(&terminal, from.as_fd(), ended.as_fd())).map(drop)
    }

    /// The container has ended: reads no more input, and waits until everything that it wrote has arrived, at most for
    /// `limit`. A terminal that its user has stopped takes nothing for as long as he likes.
    pub(super) fn finish(&self, limit: Option<Duration>) {
        *lock(&self.bell) = None;
        let Some(limit) = limit else { return self.join(lock(&self.outputs)) };
        let begin = Instant::now();
        loop {
            let outputs = match self.outputs.try_lock() {
                Ok(outputs) => Some(outputs),
                Err(TryLockError::Poisoned(outputs)) => Some(outputs.into_inner()),
                // Somebody waits for them without a limit.
                Err(TryLockError::WouldBlock) => None,
            };
            if let Some(outputs) = outputs
                && outputs.iter().all(JoinHandle::is_finished)
            {
                return self.join(outputs);
            }
            let left = limit.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(PAUSE.min(left));
        }
    }

    fn join(&self, mut outputs: MutexGuard<'_, Vec<JoinHandle<Option<Errno>>>>) {
        for thread in outputs.drain(..) {
            let lost = thread.join().unwrap_or(Some(Errno::EIO));
            let mut failure = lock(&self.failure);
            *failure = failure.or(lost);
        }
    }

    /// Why part of the output is lost, for the first who asks. A reader who went away wanted no more of it, which is no
    /// failure.
    pub(super) fn failure(&self) -> Option<Errno> {
        lock(&self.failure).take().filter(|errno| *errno != Errno::EPIPE)
    }

    fn ended(&mut self) -> io::Result<PipeReader> {
        let mut bell = lock(&self.bell);
        let bell = match &mut *bell {
            Some(bell) => bell,
            none => none.insert(io::pipe()?),
        };
        bell.0.try_clone()
    }
}

fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.into()).spawn(move || {
        // A pipe that the container closed or a file that is full must not end the host program. Both signals go to
        // the thread that wrote, so that the mask of this thread is enough.
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGPIPE);
        signals.add(Signal::SIGXFSZ);
        let _ = signals.thread_block();
        work()
    })
}

fn wait<const N: usize>(wanted: [(BorrowedFd<'_>, PollFlags); N], limit: PollTimeout) -> Option<[PollFlags; N]> {
    let mut fds = wanted.map(|(fd, flags)| PollFd::new(fd, flags));
    loop {
        match poll(&mut fds, limit) {
            Ok(_) => return Some(fds.map(|fd| fd.revents().unwrap_or(PollFlags::POLLERR))),
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// Copies input, and takes none that could not be passed on: the pipe has to have room, its reader has to be there and
/// the container has to run.
fn feed(from: BorrowedFd<'_>, pipe: BorrowedFd<'_>, ended: BorrowedFd<'_>) {
    let mut buffer = vec![0; PIECE];
    let (mut start, mut end) = (0, 0);
    loop {
        let room = [(pipe, PollFlags::POLLOUT), (ended, PollFlags::POLLIN)];
        let Some([room, over]) = wait(room, PollTimeout::NONE) else { return };
        if !over.is_empty() || room.contains(PollFlags::POLLERR) {
            return;
        }
        if start == end {
            // No flags: of the pipe, only that it has lost its reader.
            let more = [(from, PollFlags::POLLIN), (pipe, PollFlags::empty()), (ended, PollFlags::POLLIN)];
            let Some([more, lost, over]) = wait(more, PollTimeout::NONE) else { return };
            if !over.is_empty() || !lost.is_empty() {
                return;
            }
            if more.is_empty() {
                continue;
            }
            match read(from, &mut buffer) {
                Ok(0) => return,
                Ok(count) => (start, end) = (0, count),
                Err(Errno::EINTR | Errno::EAGAIN) => continue,
                Err(_) => return,
            }
        }
        match write(pipe, &buffer[start..end]) {
            Ok(count) => start += count,
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => return,
        }
    }
}

/// Copies output to the end of the pipe, or to what is in it when the container has ended: a descriptor of it that
/// somebody outside holds keeps nobody waiting. Returns what kept it from that: the container then finds its pipe
/// closed.
fn drain(pipe: BorrowedFd<'_>, to: BorrowedFd<'_>, ended: BorrowedFd<'_>) -> Option<Errno> {
    let mut buffer = vec![0; PIECE];
    let mut last = false;
    // Who still writes after the end is waited for no longer than until what was in the pipe then has been read.
    let mut left = usize::MAX;
    loop {
        if left == 0 {
            return None;
        }
        let limit = if last { PollTimeout::ZERO } else { PollTimeout::NONE };
        let wanted = [(pipe, PollFlags::POLLIN), (ended, PollFlags::POLLIN)];
        let Some([more, over]) = wait(wanted, limit) else { return Some(Errno::EIO) };
        if more.is_empty() {
            if last {
                return None;
            }
            last = !over.is_empty();
            continue;
        }
        if left == usize::MAX && !over.is_empty() {
            left = fcntl(pipe, FcntlArg::F_GETPIPE_SZ).map_or(0, |size| usize::try_from(size).unwrap_or(0));
        }
        match read(pipe, &mut buffer) {
            Ok(0) => return None,
            Ok(count) => {
                if left != usize::MAX {
                    left = left.saturating_sub(count);
                }
                if let Err(errno) = write_all(to, &buffer[..count]) {
                    return Some(errno);
                }
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Some(errno),
        }
    }
}

/// Copies what a terminal shows. Returns what kept it from that: the terminal is then hung up, unless somebody else has it.
fn show(terminal: Terminal, to: BorrowedFd<'_>) -> Option<Errno> {
    let mut buffer = vec![0; PIECE];
    loop {
        match (&terminal).read(&mut buffer) {
            Ok(0) => return None,
            Ok(count) => {
                if let Err(errno) = write_all(to, &buffer[..count]) {
                    terminal.give_up();
                    return Some(errno);
                }
            }
            Err(error) => return Some(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)),
        }
    }
}

/// Types, and takes no more input than could be passed on but for one piece: what a program does not read stays in the
/// terminal, which holds a few thousand bytes.
fn type_in(terminal: &Terminal, from: BorrowedFd<'_>, ended: BorrowedFd<'_>) {
    let mut buffer = vec![0; TYPED];
    loop {
        let Some([more, over]) = wait([(from, PollFlags::POLLIN), (ended, PollFlags::POLLIN)], PollTimeout::NONE)
        else {
            return;
        };
        if !over.is_empty() {
            return;
        }
        if more.is_empty() {
            continue;
        }
        match read(from, &mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                if (&mut &*terminal).write_all(&buffer[..count]).is_err() {
                    return;
                }
            }
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => return,
        }
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(to, bytes) {
            // Files give no such answer; one that did would keep us here for ever.
            Ok(0) => return Err(Errno::EIO),
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            // Somebody made the stream non-blocking.
            Err(Errno::EAGAIN) => drop(wait([(to, PollFlags::POLLOUT)], PollTimeout::NONE).ok_or(Errno::EIO)?),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Read, Write};
    use std::time::Duration;

    use super::*;

    #[test]
    fn input_goes_in_to_its_end() {
        let (from, mut typing) = io::pipe().unwrap();
        let mut relays = Relays::default();
        let mut inside = relays.input(from.into()).unwrap();
        let sent = vec![7; 300_000];
        let copy = sent.clone();
        let typist = std::thread::spawn(move || typing.write_all(&copy).unwrap());
        let mut got = vec![];
        inside.read_to_end(&mut got).unwrap();
        typist.join().unwrap();
        assert!(got == sent);
    }

    #[test]
    fn input_after_the_end_is_the_hosts() {
        for finish in [true, false] {
            let (mut from, mut typing) = io::pipe().unwrap();
            let mut relays = Relays::default();
            let mut inside = relays.input(from.try_clone().unwrap().into()).unwrap();
            typing.write_all(b"1").unwrap();
            let mut byte = [0];
            inside.read_exact(&mut byte).unwrap();
            // Either is an end: the container is gone, or it has closed its input.
            match finish {
                true => relays.finish(None),
                false => drop(inside),
            }
            std::thread::sleep(Duration::from_millis(100));
            typing.write_all(b"2").unwrap();
            std::thread::sleep(Duration::from_millis(100));
            drop(typing);
            let mut rest = String::new();
            from.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, "2");
        }
    }

    #[test]
    fn output_is_complete_and_waits_for_nobody_else() {
        let (mut reader, to) = io::pipe().unwrap();
        let mut relays = Relays::default();
        let mut inside = relays.output(to.into()).unwrap();
        let collector = std::thread::spawn(move || {
            let mut got = vec![];
            reader.read_to_end(&mut got).unwrap();
            got.len()
        });
        inside.write_all(&vec![b'x'; 500_000]).unwrap();
        // Still open here.
        relays.finish(None);
        assert_eq!(collector.join().unwrap(), 500_000);
        drop(inside);
    }

    #[test]
    fn output_that_nobody_takes_keeps_no_longer_than_allowed() {
        let (mut reader, to) = io::pipe().unwrap();
        let mut relays = Relays::default();
        let mut inside = relays.output(to.into()).unwrap();
        // More than the other pipe holds, and no more than both.
        inside.write_all(&vec![b'x'; 100_000]).unwrap();
        relays.finish(Some(Duration::ZERO));
        std::thread::scope(|scope| {
            scope.spawn(|| relays.finish(None));
            // Whoever waits without a limit keeps nobody either.
            let begin = Instant::now();
            relays.finish(Some(Duration::from_millis(50)));
            assert!((50..10_000).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
            let mut got = vec![0; 100_000];
            reader.read_exact(&mut got).unwrap();
        });
        relays.finish(Some(Duration::from_secs(60)));
        assert_eq!(relays.failure(), None);
        drop(inside);
    }

    #[test]
    fn output_that_is_lost_is_told_once() {
        let lost = |to: OwnedFd| {
            let mut relays = Relays::default();
            let mut inside = relays.output(to).unwrap();
            // The pipe may be closed already.
            let _ = inside.write_all(b"x");
            drop(inside);
            relays.finish(None);
            (relays.failure(), relays.failure())
        };
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        assert_eq!(lost(full.into()), (Some(Errno::ENOSPC), None));
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        assert_eq!(lost(writer.into()), (None, None));
    }
}
