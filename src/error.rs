//! The one error type: opaque, with a small [`ErrorKind`] to match on and a sentence to read.
//!
//! A message names, in this order, the *step* that failed, the *system call* and *path* where there was one, the
//! *errno* in words, the likely *cause* and the *remedy*:
//!
//! ```text
//! cannot create the user namespace: clone3: Operation not permitted (EPERM); this kernel forbids unprivileged
//! user namespaces; try: sysctl kernel.unprivileged_userns_clone=1
//! ```

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

/// What went wrong, coarse enough to act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument, reference, option or document that cannot mean anything.
    Invalid,
    /// The named thing does not exist.
    NotFound,
    /// The named thing exists already.
    AlreadyExists,
    /// The thing is in use, or in a state that does not allow this.
    Conflict,
    /// The kernel or the file system says that we may not.
    Denied,
    /// This host, kernel or build cannot do it.
    Unsupported,
    /// Bytes do not match their digest, or a document contradicts itself.
    Corrupt,
    /// Input that looks built to escape or to exhaust: nothing of it was followed.
    Hostile,
    /// A stated limit was reached; the message names it.
    Limit,
    /// The disk, the quota or the memory is full.
    Full,
    /// The caller asked for more isolation than could be enforced.
    Weaker,
    /// The command is not in the container (a shell's 127).
    CommandNotFound,
    /// The command is there but cannot be executed (a shell's 126).
    CommandNotExecutable,
    /// The container could not be set up or started.
    Launch,
    /// Any other failure of the host's input and output.
    Io,
}

/// The error of every fallible operation in this crate.
///
/// Opaque on purpose: match on [`kind`](Error::kind), read [`Display`](fmt::Display). Where a function's
/// documentation says nothing else, nothing is left behind after an error.
///
/// ```
/// use coracle::{ErrorKind, Reference};
///
/// let error = "../x".parse::<Reference>().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Invalid);
/// assert!(error.to_string().contains("../x"));
/// ```
pub struct Error(Box<Repr>);

/// The crate's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

struct Repr {
    kind: ErrorKind,
    step: Cow<'static, str>,
    syscall: Option<&'static str>,
    path: Option<PathBuf>,
    errno: Option<i32>,
    cause: Option<Cow<'static, str>>,
    remedy: Option<Cow<'static, str>>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` in `step`; the step completes the phrase "cannot …".
    pub(crate) fn new(kind: ErrorKind, step: impl Into<Cow<'static, str>>) -> Self {
        Error(Box::new(Repr {
            kind,
            step: step.into(),
            syscall: None,
            path: None,
            errno: None,
            cause: None,
            remedy: None,
            source: None,
        }))
    }

    /// An error of a backend of one's own: what could not be done, as in "cannot STEP", and why.
    pub fn of_backend(
        kind: ErrorKind,
        step: impl Into<Cow<'static, str>>,
        cause: impl Into<Cow<'static, str>>,
    ) -> Self {
        Error::new(kind, step).because(cause)
    }

    /// A failed system call: the kind and the usual cause follow from `errno`.
    pub(crate) fn sys(step: impl Into<Cow<'static, str>>, syscall: &'static str, errno: i32) -> Self {
        // Of files that are read or written as a whole, it is the opening that says so.
        let syscall = match (syscall, errno) {
            ("read" | "write", libc::EMFILE | libc::ENFILE) => "open",
            _ => syscall,
        };
        let mut error = Error::new(kind_of_errno(errno), step);
        error.0.syscall = Some(syscall);
        error.0.errno = Some(errno);
        error
    }

    /// A failed operation of the standard library.
    pub(crate) fn io(step: impl Into<Cow<'static, str>>, syscall: &'static str, source: std::io::Error) -> Self {
        // A pipeline hands our own errors through `io::Error`; they come back as they went in.
        if source.get_ref().is_some_and(|inner| inner.is::<Error>()) {
            if let Some(Ok(inner)) = source.into_inner().map(|inner| inner.downcast::<Error>()) {
                return *inner;
            }
            return Error::new(ErrorKind::Io, step);
        }
        match source.raw_os_error() {
            Some(errno) => Error::sys(step, syscall, errno),
            None => {
                let kind = match source.kind() {
                    std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidData => ErrorKind::Corrupt,
                    std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                    std::io::ErrorKind::InvalidInput => ErrorKind::Invalid,
                    _ => ErrorKind::Io,
                };
                let mut error = Error::new(kind, step);
                error.0.syscall = Some(syscall);
                error.0.source = Some(Box::new(source));
                error
            }
        }
    }

    /// A failed operation on a path that the caller chose.
    pub(crate) fn of_path(
        step: impl Into<Cow<'static, str>>,
        syscall: &'static str,
        source: std::io::Error,
        path: &Path,
    ) -> Self {
        let error = Error::io(step, syscall, source).path(path);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {
                error.because("nothing on this host has that path").remedy("correct it; `ls` shows what is there")
            }
            _ => error,
        }
    }

    /// Names the path that it happened to.
    pub(crate) fn path(mut self, path: impl AsRef<Path>) -> Self {
        self.0.path = Some(path.as_ref().to_owned());
        self
    }

    /// Says the likely cause.
    pub(crate) fn because(mut self, cause: impl Into<Cow<'static, str>>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// Says what would help.
    pub(crate) fn remedy(mut self, remedy: impl Into<Cow<'static, str>>) -> Self {
        self.0.remedy = Some(remedy.into());
        self
    }

    /// Overrides the kind that an errno suggested.
    pub(crate) fn kind_is(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Says more of the step, when it is `step` that failed.
    pub(crate) fn in_step(mut self, step: &str, more: impl FnOnce() -> String) -> Self {
        if self.0.step == step {
            self.0.step = more().into();
        }
        self
    }

    /// Says which one, where the step speaks of `thing` and not of its name.
    pub(crate) fn which(mut self, thing: &str, name: &str) -> Self {
        if self.0.step.ends_with(thing) {
            self.0.step = format!("{} {name:?}", self.0.step).into();
        }
        self
    }

    /// Says what it was all for; where the cause was not said, what has failed so far is the cause.
    pub(crate) fn on_the_way_to(mut self, step: impl Into<Cow<'static, str>>) -> Self {
        let inner = std::mem::replace(&mut self.0.step, step.into());
        if self.cause().is_none() && self.0.errno.is_none() {
            let source = self.0.source.as_ref().map(|source| format!(": {source}")).unwrap_or_default();
            self.0.cause = Some(format!("this failed: {inner}{source}").into());
        }
        self
    }

    /// Says in the cause which part of the thing at the path it was.
    pub(crate) fn of_part(mut self, part: &str) -> Self {
        match &self.0.cause {
            Some(cause) if cause.contains(part) => {}
            Some(cause) => self.0.cause = Some(format!("of {part:?} in it: {cause}").into()),
            None if self.0.errno.is_none() => self.0.cause = Some(format!("it was {part:?} in it").into()),
            None => {}
        }
        self
    }

    /// Keeps the error that caused this one.
    pub(crate) fn source_is(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What went wrong, to match on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The step that failed; completes "cannot …".
    pub fn step(&self) -> &str {
        &self.0.step
    }

    /// The system call that failed, by its name in section 2 of the manual.
    pub fn syscall(&self) -> Option<&str> {
        self.0.syscall
    }

    /// The path that it failed on, as this process or (inside a container) the workload would write it.
    pub fn failed_path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// The error number, see errno(3).
    pub fn raw_os_error(&self) -> Option<i32> {
        self.0.errno
    }

    /// The likely cause, when one is known.
    pub fn cause(&self) -> Option<&str> {
        self.0.cause.as_deref().or(self.usual().map(|(cause, _)| cause))
    }

    /// What to do about it, when something is known to help.
    pub fn remedy_hint(&self) -> Option<&str> {
        self.0.remedy.as_deref().or(self.usual().map(|(_, remedy)| remedy))
    }

    /// What the errno mostly means, for what the step has not said itself.
    fn usual(&self) -> Option<(&'static str, &'static str)> {
        let errno = self.0.errno?;
        if (errno, self.0.syscall) == (libc::EAGAIN, Some("clone")) {
            let remedy = "raise `ulimit -u` or the pids limit of the cgroup that this program runs in";
            return Some(("the limit of processes and threads is reached", remedy));
        }
        // Whether a file is the host's is known only where it is named, and a step that gives a cause knows better.
        let of_files =
            || usual_of_files(errno, self.0.path.as_ref().filter(|_| self.0.cause.is_none()).and(self.0.syscall)?);
        usual(errno).or_else(of_files)
    }
}

fn kind_of_errno(errno: i32) -> ErrorKind {
    match errno {
        libc::ENOENT | libc::ENOTDIR => ErrorKind::NotFound,
        libc::EEXIST => ErrorKind::AlreadyExists,
        libc::EPERM | libc::EACCES | libc::EROFS => ErrorKind::Denied,
        libc::ENOSYS | libc::EOPNOTSUPP => ErrorKind::Unsupported,
        libc::EBUSY | libc::ENOTEMPTY => ErrorKind::Conflict,
        libc::ENOSPC | libc::EDQUOT | libc::ENOMEM => ErrorKind::Full,
        libc::EMFILE | libc::ENFILE | libc::EFBIG => ErrorKind::Limit,
        _ => ErrorKind::Io,
    }
}

/// Cause and remedy for the errnos that people really meet, where the step has nothing better to say.
fn usual(errno: i32) -> Option<(&'static str, &'static str)> {
    Some(match errno {
        libc::ENOSPC => (
            "the file system is full: it has no space or no inodes left",
            "free some space or inodes (see df and df -i), or choose another root with --root",
        ),
        libc::EFBIG => ("a file would grow over the limit of this process", "raise it with `ulimit -f`"),
        libc::EDQUOT => ("the disk quota is used up", "free some space, or choose another root with --root"),
        libc::EROFS => ("the file system is mounted read-only", "choose a root on a writable file system"),
        libc::EMFILE => ("this process has too many open files", "raise its limit with `ulimit -n`"),
        libc::ENFILE => ("the machine has too many open files", "raise fs.file-max"),
        libc::ENOMEM => ("the machine or the cgroup is out of memory", "free memory, or raise the limit"),
        _ => return None,
    })
}

/// The same for calls that name a file of the host. Elsewhere these errnos mean many things.
fn usual_of_files(errno: i32, syscall: &str) -> Option<(&'static str, &'static str)> {
    let changes =
        matches!(syscall, "mkdir" | "rename" | "unlink" | "symlink" | "unlinkat" | "chmod" | "fchmod" | "fchown");
    Some(match (errno, syscall) {
        (libc::EACCES, "open" | "stat" | "realpath" | "readlink" | "access") => (
            "this user may not read it, or not enter a directory on the way to it",
            "run as its owner or as root, or change its mode",
        ),
        (libc::EACCES, _) if changes => {
            ("this user may not write to the directory", "run as its owner or as root, or change its mode")
        }
        (libc::EPERM, _) if changes => (
            "it belongs to somebody else, or it is immutable",
            "run as its owner or as root; lsattr(1) shows what is immutable",
        ),
        _ => return None,
    })
}

/// `Operation not permitted (EPERM)`.
struct Errno(i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = nix::errno::Errno::from_raw(self.0);
        match errno {
            nix::errno::Errno::UnknownErrno => write!(f, "error {}", self.0),
            known => write!(f, "{} ({known:?})", known.desc()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let repr = &*self.0;
        write!(f, "cannot {}", repr.step)?;
        if let Some(syscall) = repr.syscall {
            write!(f, ": {syscall}")?;
        }
        if let Some(path) = &repr.path {
            let lead = if repr.syscall.is_some() { " " } else { ": " };
            // Debug formatting keeps control characters of hostile names off the terminal.
            write!(f, "{lead}{path:?}")?;
        }
        if let Some(errno) = repr.errno {
            write!(f, ": {}", Errno(errno))?;
        } else if let (Some(source), None) = (&repr.source, &repr.cause) {
            write!(f, ": {source}")?;
        }
        if let Some(cause) = self.cause() {
            write!(f, "; {cause}")?;
        }
        if let Some(remedy) = self.remedy_hint() {
            write!(f, "; try: {remedy}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

impl From<Error> for std::io::Error {
    /// Carries our error through an interface that speaks `io::Error`; `Error::io` takes it out again.
    fn from(error: Error) -> Self {
        std::io::Error::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_names_everything() {
        let error = Error::sys("open the store", "openat", libc::ENOSPC).path("/x").because("why").remedy("what");
        assert_eq!(
            error.to_string(),
            "cannot open the store: openat \"/x\": No space left on device (ENOSPC); why; try: what"
        );
        assert_eq!(error.kind(), ErrorKind::Full);
    }

    #[test]
    fn the_parts_say_what_the_sentence_says() {
        let bare = Error::sys("open the store", "openat", libc::ENOSPC);
        assert!(bare.cause().is_some_and(|cause| cause.contains("no inodes")));
        assert!(bare.remedy_hint().is_some_and(|remedy| bare.to_string().ends_with(remedy)));
        let own = Error::sys("open the store", "openat", libc::ENOSPC).because("why");
        assert_eq!(own.cause(), Some("why"));
        assert!(own.remedy_hint().is_some());
        let file = |errno| Error::sys("read it", "open", errno).path("/x");
        assert!(file(libc::EACCES).cause().is_some() && file(libc::EACCES).remedy_hint().is_some());
        // Not of a file, or known better.
        assert_eq!(Error::sys("read it", "open", libc::EACCES).cause(), None);
        assert_eq!(file(libc::EACCES).because("why").remedy_hint(), None);
        assert_eq!(Error::sys("mount it", "move_mount", libc::EPERM).path("/x").cause(), None);
    }

    #[test]
    fn our_error_survives_io() {
        let io: std::io::Error = Error::new(ErrorKind::Hostile, "unpack").into();
        assert_eq!(Error::io("read", "read", io).kind(), ErrorKind::Hostile);
    }
}
