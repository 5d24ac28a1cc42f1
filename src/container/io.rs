//! Standard input, output and error of a container.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, SFlag, fstat, makedev};
use nix::sys::statfs::fstatfs;

use super::relay::Relays;
use super::terminal::{Line, Terminal, WindowSize};
use crate::isolation::{Console, Stream};
use crate::{Error, ErrorKind, Result};

/// Where one of the three streams goes. The default is [`Null`](Stdio::Null), as docker has it.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum Stdio {
    /// `/dev/null`: the container's own, never the host's.
    #[default]
    Null,
    /// A pipe whose other end is a field of [`Container`](super::Container).
    Piped,
    /// This program's own stream.
    ///
    /// Pipes and sockets are handed in as they are, and `/dev/null` is the container's own. A terminal never is handed
    /// in, since a process that has it could type into it; nor is anything else that has a name (a regular file, a
    /// directory, a device, a named pipe), since whoever has a descriptor has the file itself, with its owner and mode:
    /// root in a container could make it set-user-ID. What goes to and from those is copied by threads of this program
    /// through pipes, up to the container's end. Standard output and error that are one file share one pipe, so that
    /// their order stays.
    ///
    /// Standard input is read by descriptor, past the buffer of `std::io::stdin`, and only while the container runs;
    /// of a regular file, up to a pipe's size (64 KiB) more than the container has taken may have been read.
    Inherit,
    /// This descriptor, as it is. The container gets the file behind it, and may change its mode and owner where its
    /// user may: hand in a pipe where that matters. Only a `/dev/null` becomes the container's own.
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
    pub(super) inside: [Stream; 3],
    /// Made for this container, so they may be given to its user.
    pub(super) made: [bool; 3],
    pub(super) stdin: Option<PipeWriter>,
    pub(super) stdout: Option<PipeReader>,
    pub(super) stderr: Option<PipeReader>,
    pub(super) relays: Relays,
    /// What is to become of a terminal, inside and here.
    pub(super) console: Option<Console>,
    pub(super) line: Option<Line>,
}

/// The streams as the caller set them, or left them.
pub(super) type Set = [Option<Stdio>; 3];

/// What a caller has of a container's or a command's streams.
pub(super) type Ends = (Option<PipeWriter>, Option<PipeReader>, Option<PipeReader>, Option<Terminal>);

fn fail(syscall: &'static str) -> impl Fn(io::Error) -> Error {
    move |error| Error::io("connect the container's input and output", syscall, error)
}

/// How an inherited stream gets in, see [`Stdio::Inherit`].
#[derive(Debug, PartialEq, Eq)]
enum Way {
    Null,
    AsItIs,
    Relay,
}

fn kind_of(status: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT
}

fn is_null(status: &FileStat) -> bool {
    kind_of(status) == SFlag::S_IFCHR && status.st_rdev == makedev(1, 3)
}

fn way(stream: BorrowedFd<'_>, status: &FileStat) -> Way {
    const PIPEFS_MAGIC: libc::c_long = 0x5049_5045;
    match kind_of(status) {
        SFlag::S_IFCHR if is_null(status) => Way::Null,
        SFlag::S_IFSOCK => Way::AsItIs,
        // Pipes of pipe(2) have a file system of their own; one with a name is a file of the host.
        SFlag::S_IFIFO if fstatfs(stream).is_ok_and(|all| all.filesystem_type().0 == PIPEFS_MAGIC) => Way::AsItIs,
        // Files without a type are the kernel's own (eventfd(2) and the like).
        kind if kind.is_empty() => Way::AsItIs,
        _ => Way::Relay,
    }
}

/// What a caller hands in.
fn handed(fd: OwnedFd) -> Result<Stream> {
    Ok(if is_null(&status_of(fd.as_fd())?) { Stream::Null } else { Stream::Fd(fd) })
}

fn status_of(stream: BorrowedFd<'_>) -> Result<FileStat> {
    fstat(stream).map_err(|errno| Error::sys("connect the container's input and output", "fstat", errno as i32))
}

/// Makes the streams, or what is needed for a terminal, as they were set; `output` is where output goes that was not.
pub(super) fn connect_as_set(
    tty: Option<WindowSize>,
    [stdin, stdout, stderr]: [Option<Stdio>; 3],
    output: fn() -> Stdio,
) -> Result<Streams> {
    let Some(size) = tty else {
        return connect(stdin.unwrap_or_default(), stdout.unwrap_or_else(output), stderr.unwrap_or_else(output));
    };
    if stderr.is_some() {
        return Err(Error::new(ErrorKind::Invalid, "connect the container's terminal")
            .because("standard error was set, and with a terminal that is the terminal, as standard output is")
            .remedy("leave standard error out, or the terminal"));
    }
    let own = |own: BorrowedFd<'_>| own.try_clone_to_owned().map_err(fail("fcntl"));
    let input = match stdin {
        None | Some(Stdio::Null | Stdio::Piped) => None,
        Some(Stdio::Inherit) => Some(own(io::stdin().as_fd())?),
        Some(Stdio::Fd(fd)) => Some(fd),
    };
    let shown = match stdout {
        // What is set to go nowhere does, and keeps nobody waiting.
        Some(Stdio::Null) => Some(File::options().write(true).open("/dev/null").map_err(fail("open"))?.into()),
        Some(Stdio::Fd(fd)) => Some(fd),
        other => match other.unwrap_or_else(output) {
            Stdio::Inherit => Some(own(io::stdout().as_fd())?),
            _ => None,
        },
    };
    let streams = connect(Stdio::Null, Stdio::Null, Stdio::Null)?;
    let (line, socket) = Line::new(input, shown)?;
    Ok(Streams { console: Some(Console { socket, size }), line: Some(line), ..streams })
}

/// Makes the streams. Nothing is left behind after an error.
pub(super) fn connect(stdin: Stdio, stdout: Stdio, stderr: Stdio) -> Result<Streams> {
    let mut relays = Relays::default();
    let (input, our_input, input_made) = match stdin {
        Stdio::Null => (Stream::Null, None, false),
        Stdio::Fd(fd) => (handed(fd)?, None, false),
        Stdio::Piped => {
            let (reader, writer) = io::pipe().map_err(fail("pipe2"))?;
            (Stream::Fd(reader.into()), Some(writer), true)
        }
        Stdio::Inherit => {
            let own = io::stdin();
            let status = status_of(own.as_fd())?;
            let copy = || own.as_fd().try_clone_to_owned().map_err(fail("fcntl"));
            match way(own.as_fd(), &status) {
                Way::Null => (Stream::Null, None, false),
                Way::AsItIs => (Stream::Fd(copy()?), None, false),
                Way::Relay => (Stream::Fd(relays.input(copy()?).map_err(fail("clone"))?.into()), None, true),
            }
        }
    };
    // What standard output is relayed to, and the pipe that leads there.
    let mut shared: Option<(FileStat, PipeWriter)> = None;
    let mut output = |stdio: Stdio, own: BorrowedFd<'_>| -> Result<(Stream, Option<PipeReader>, bool)> {
        Ok(match stdio {
            Stdio::Null => (Stream::Null, None, false),
            Stdio::Fd(fd) => (handed(fd)?, None, false),
            Stdio::Piped => {
                let (reader, writer) = io::pipe().map_err(fail("pipe2"))?;
                (Stream::Fd(writer.into()), Some(reader), true)
            }
            Stdio::Inherit => {
                let status = status_of(own)?;
                let copy = || own.try_clone_to_owned().map_err(fail("fcntl"));
                match way(own, &status) {
                    Way::Null => return Ok((Stream::Null, None, false)),
                    Way::AsItIs => return Ok((Stream::Fd(copy()?), None, false)),
                    Way::Relay => {}
                }
                let same = |other: &FileStat| (other.st_dev, other.st_ino) == (status.st_dev, status.st_ino);
                let writer = match shared.take() {
                    Some((other, writer)) if same(&other) => writer,
                    _ => relays.output(copy()?).map_err(fail("clone"))?,
                };
                let inside = writer.try_clone().map_err(fail("fcntl"))?;
                shared = Some((status, writer));
                (Stream::Fd(inside.into()), None, true)
            }
        })
    };
    let (out, our_out, out_made) = output(stdout, io::stdout().as_fd())?;
    let (err, our_err, err_made) = output(stderr, io::stderr().as_fd())?;
    // The container has to be the last to write.
    drop(shared);
    Ok(Streams {
        inside: [input, out, err],
        made: [input_made, out_made, err_made],
        stdin: our_input,
        stdout: our_out,
        stderr: our_err,
        relays,
        console: None,
        line: None,
    })
}

/// What is captured of one stream unless the caller says otherwise: more than anybody wants to hold in memory.
pub(super) const OUTPUT_LIMIT: u64 = 1 << 30;

/// Reads both pipes at once, so that neither fills up while the other is waited for: to their ends or, where a pidfd is
/// given, until that process has ended and what was in the pipes then has been read. Others may have them open.
///
/// # Errors
/// [`Limit`](ErrorKind::Limit) when one of them has more than `limit` bytes (CVE-2022-31030: a container that writes
/// without end takes the host's memory).
pub(super) fn read_both(
    stdout: Option<PipeReader>,
    stderr: Option<PipeReader>,
    limit: u64,
    until: Option<BorrowedFd<'_>>,
) -> Result<(Vec<u8>, Vec<u8>)> {
    let collected = |pipe, name| Collected { pipe, bytes: vec![], name, limit };
    let mut both = [collected(stdout, "standard output"), collected(stderr, "standard error")];
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let mut fds = Vec::with_capacity(3);
        fds.extend(both.iter().filter_map(|one| Some(PollFd::new(one.pipe.as_ref()?.as_fd(), PollFlags::POLLIN))));
        if fds.is_empty() {
            break;
        }
        fds.extend(until.map(|process| PollFd::new(process, PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => return Err(Error::sys("read the container's output", "poll", errno as i32)),
        }
        let ended = until.is_some() && fds.pop().is_some_and(|fd| fd.any().unwrap_or(true));
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        let open = both.iter_mut().filter(|one| one.pipe.is_some());
        for one in open.zip(ready).filter_map(|(one, ready)| ready.then_some(one)) {
            one.read(&mut buffer)?;
        }
        if ended {
            for one in &mut both {
                one.read_rest(&mut buffer)?;
            }
            break;
        }
    }
    let [out, err] = both;
    Ok((out.bytes, err.bytes))
}

/// A stream that is being read.
struct Collected {
    /// Open until its end has been read.
    pipe: Option<PipeReader>,
    bytes: Vec<u8>,
    name: &'static str,
    limit: u64,
}

impl Collected {
    /// Reads once, and waits if there is nothing.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let Some(reader) = &mut self.pipe else { return Ok(0) };
        match reader.read(buffer) {
            Ok(0) => {
                self.pipe = None;
                Ok(0)
            }
            Ok(count) if (self.bytes.len() + count) as u64 > self.limit => {
                let (name, limit) = (self.name, self.limit);
                Err(Error::new(ErrorKind::Limit, "collect the container's output")
                    .because(format!("{name} has more than output_limit = {limit} bytes; what wrote it was killed"))
                    .remedy("raise the limit, or read from a pipe (Stdio::Piped) piece by piece"))
            }
            Ok(count) => {
                self.bytes.extend_from_slice(&buffer[..count]);
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(Error::io("read the container's output", "read", error)),
        }
    }

    /// Reads what is in the pipe, and no more than a pipe can hold: whoever still writes is not waited for.
    fn read_rest(&mut self, buffer: &mut [u8]) -> Result<()> {
        let Some(pipe) = &self.pipe else { return Ok(()) };
        let size = nix::fcntl::fcntl(pipe, nix::fcntl::FcntlArg::F_GETPIPE_SZ).unwrap_or(0);
        let mut left = usize::try_from(size).unwrap_or(0);
        while let (Some(pipe), 1..) = (&self.pipe, left) {
            let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::ZERO) {
                Ok(0) => break,
                Ok(_) => left = left.saturating_sub(self.read(buffer)?),
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(Error::sys("read the container's output", "poll", errno as i32)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_of_the_host_are_not_handed_in() {
        let way = |stream: &dyn AsFd| way(stream.as_fd(), &fstat(stream.as_fd()).unwrap());
        let (reader, writer) = io::pipe().unwrap();
        assert_eq!((way(&reader), way(&writer)), (Way::AsItIs, Way::AsItIs));
        assert_eq!(way(&std::os::unix::net::UnixDatagram::unbound().unwrap()), Way::AsItIs);
        assert_eq!(way(&File::open("/dev/null").unwrap()), Way::Null);
        let dir = tempfile::tempdir().unwrap();
        let named = dir.path().join("named");
        nix::unistd::mkfifo(&named, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [named.as_path(), dir.path(), "/dev/zero".as_ref(), "/proc/version".as_ref()] {
            // For reading and writing, or a pipe with a name waits for the other end.
            let fifo = path == named;
            assert_eq!(way(&File::options().read(true).write(fifo).open(path).unwrap()), Way::Relay, "{path:?}");
        }
    }

    #[test]
    fn a_null_device_that_is_handed_in_becomes_the_containers_own() {
        assert!(matches!(handed(File::open("/dev/null").unwrap().into()), Ok(Stream::Null)));
        assert!(matches!(handed(tempfile::tempfile().unwrap().into()), Ok(Stream::Fd(_))));
    }
}
