//! Standard input, output and error of a container.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use crate::{Error, Result};

/// Where one of the three streams goes. The default is [`Null`](Stdio::Null), as docker has it.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum Stdio {
    /// `/dev/null`.
    #[default]
    Null,
    /// A pipe whose other end is a field of [`Container`](super::Container).
    Piped,
    /// This program's own stream. A terminal is never handed in, since a process that has it could type into it: what
    /// goes through is copied by a thread of this program.
    Inherit,
    /// This descriptor, as it is.
    Fd(OwnedFd),
}

impl From<File> for Stdio {
    fn from(file: File) -> Self {
        Stdio::Fd(file.into())
    }
}

impl From<OwnedFd> for Stdio {
    fn from(fd: OwnedFd) -> Self {
        Stdio::Fd(fd)
    }
}

impl From<PipeReader> for Stdio {
    fn from(pipe: PipeReader) -> Self {
        Stdio::Fd(pipe.into())
    }
}

impl From<PipeWriter> for Stdio {
    fn from(pipe: PipeWriter) -> Self {
        Stdio::Fd(pipe.into())
    }
}

/// The three streams: what goes in, and what is kept here.
pub(super) struct Streams {
    pub(super) inside: [OwnedFd; 3],
    /// Made for this container, so they may be given to its user.
    pub(super) made: [bool; 3],
    pub(super) stdin: Option<PipeWriter>,
    pub(super) stdout: Option<PipeReader>,
    pub(super) stderr: Option<PipeReader>,
    pub(super) relays: Relays,
}

/// Threads that copy between a terminal and the container.
#[derive(Default, Debug)]
pub(super) struct Relays {
    outputs: Vec<JoinHandle<()>>,
}

impl Relays {
    /// Waits until everything that the container wrote is on the terminal.
    pub(super) fn finish(&mut self) {
        for thread in self.outputs.drain(..) {
            let _ = thread.join();
        }
    }
}

fn fail(syscall: &'static str) -> impl Fn(io::Error) -> Error {
    move |error| Error::io("connect the container's input and output", syscall, error)
}

fn null() -> Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/null");
    file.map(OwnedFd::from).map_err(|error| fail("open")(error).path("/dev/null"))
}

fn is_terminal(stream: impl AsFd) -> bool {
    std::io::IsTerminal::is_terminal(&stream.as_fd())
}

/// Makes the streams. Nothing is left behind after an error.
pub(super) fn connect(stdin: Stdio, stdout: Stdio, stderr: Stdio) -> Result<Streams> {
    let mut relays = Relays::default();
    let (input, our_input, input_made) = match stdin {
        Stdio::Null => (null()?, None, false),
        Stdio::Fd(fd) => (fd, None, false),
        Stdio::Piped => {
            let (reader, writer) = io::pipe().map_err(fail("pipe2"))?;
            (reader.into(), Some(writer), true)
        }
        Stdio::Inherit if is_terminal(io::stdin()) => {
            let (reader, writer) = io::pipe().map_err(fail("pipe2"))?;
            // Not joined: it may sit in a read that nobody will ever answer.
            std::thread::Builder::new()
                .name("coracle-stdin".into())
                .spawn(move || copy(&mut io::stdin().lock(), &mut { writer }))
                .map_err(fail("clone"))?;
            (reader.into(), None, true)
        }
        Stdio::Inherit => (io::stdin().as_fd().try_clone_to_owned().map_err(fail("fcntl"))?, None, false),
    };
    let mut output = |stdio: Stdio, standard: Standard| -> Result<(OwnedFd, Option<PipeReader>, bool)> {
        Ok(match stdio {
            Stdio::Null => (null()?, None, false),
            Stdio::Fd(fd) => (fd, None, false),
            Stdio::Piped => {
                let (reader, writer) = io::pipe().map_err(fail("pipe2"))?;
                (writer.into(), Some(reader), true)
            }
            Stdio::Inherit if standard.is_terminal() => {
                let (mut reader, writer) = io::pipe().map_err(fail("pipe2"))?;
                let thread = std::thread::Builder::new()
                    .name("coracle-output".into())
                    .spawn(move || match standard {
                        Standard::Output => copy(&mut reader, &mut io::stdout()),
                        Standard::Error => copy(&mut reader, &mut io::stderr()),
                    })
                    .map_err(fail("clone"))?;
                relays.outputs.push(thread);
                (writer.into(), None, true)
            }
            Stdio::Inherit => (standard.copy().map_err(fail("fcntl"))?, None, false),
        })
    };
    let (out, our_out, out_made) = output(stdout, Standard::Output)?;
    let (err, our_err, err_made) = output(stderr, Standard::Error)?;
    Ok(Streams {
        inside: [input, out, err],
        made: [input_made, out_made, err_made],
        stdin: our_input,
        stdout: our_out,
        stderr: our_err,
        relays,
    })
}

#[derive(Clone, Copy)]
enum Standard {
    Output,
    Error,
}

impl Standard {
    fn is_terminal(self) -> bool {
        match self {
            Standard::Output => is_terminal(io::stdout()),
            Standard::Error => is_terminal(io::stderr()),
        }
    }

    fn copy(self) -> io::Result<OwnedFd> {
        match self {
            Standard::Output => io::stdout().as_fd().try_clone_to_owned(),
            Standard::Error => io::stderr().as_fd().try_clone_to_owned(),
        }
    }
}

/// Copies until one side ends; every piece is flushed, since a person may be watching.
fn copy(from: &mut dyn Read, to: &mut dyn Write) {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                if to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Reads both pipes to their ends at once, so that neither fills up while the other is waited for.
pub(super) fn read_both(stdout: Option<PipeReader>, stderr: Option<PipeReader>) -> Result<(Vec<u8>, Vec<u8>)> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut pipes = [(stdout, Vec::new()), (stderr, Vec::new())];
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let mut ready = [false; 2];
        {
            let mut fds = Vec::with_capacity(2);
            let mut which = Vec::with_capacity(2);
            for (index, (pipe, _)) in pipes.iter().enumerate() {
                if let Some(pipe) = pipe {
                    fds.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
                    which.push(index);
                }
            }
            if fds.is_empty() {
                break;
            }
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(Error::sys("read the container's output", "poll", errno as i32)),
            }
            for (fd, index) in fds.iter().zip(which) {
                ready[index] = fd.any().unwrap_or(true);
            }
        }
        for (index, (pipe, bytes)) in pipes.iter_mut().enumerate() {
            let Some(reader) = pipe.as_mut().filter(|_| ready[index]) else { continue };
            match reader.read(&mut buffer) {
                Ok(0) => *pipe = None,
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read the container's output", "read", error)),
            }
        }
    }
    let [(_, out), (_, err)] = pipes;
    Ok((out, err))
}
