//! Errors of the command line and the exit statuses that go with them.

use std::path::Path;

use coracle::{Error, ErrorKind};
use nix::errno::Errno;
use serde_json::{Value, json};

use crate::output;

/// What made a command fail, and the status to exit with.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    what: What,
}

#[derive(Debug)]
enum What {
    Library(Error),
    Own(Box<Own>),
    /// Nobody is left to tell.
    ReaderGone,
}

/// The parts of a message, as the library's errors have them.
#[derive(Debug)]
struct Own {
    kind: String,
    message: String,
    step: Option<String>,
    path: Option<String>,
    errno: Option<i32>,
    cause: Option<String>,
    remedy: Option<String>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure { code: 1, what: What::Library(error) }
    }
}

impl Failure {
    /// Our own refusal: `step` completes "cannot …".
    pub fn new(kind: ErrorKind, step: &str, cause: impl Into<String>) -> Failure {
        let cause = cause.into();
        Failure::own(Own {
            kind: name(kind),
            message: format!("cannot {step}: {cause}"),
            step: Some(step.to_owned()),
            path: None,
            errno: None,
            cause: Some(cause),
            remedy: None,
        })
    }

    /// A file that could not be read or written.
    pub fn io(step: &str, path: Option<&Path>, error: &std::io::Error) -> Failure {
        let path = path.map(|path| path.display().to_string());
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            std::io::ErrorKind::StorageFull => ErrorKind::Full,
            _ => ErrorKind::Io,
        };
        let shown = path.as_ref().map(|path| format!("{path:?}: ")).unwrap_or_default();
        // As the library has them.
        let said = match error.raw_os_error().map(Errno::from_raw) {
            Some(errno) if errno != Errno::UnknownErrno => format!("{} ({errno:?})", errno.desc()),
            _ => error.to_string(),
        };
        let failure = Failure::own(Own {
            kind: name(kind),
            message: format!("cannot {step}: {shown}{said}"),
            step: Some(step.to_owned()),
            path,
            errno: error.raw_os_error(),
            cause: Some(said),
            remedy: None,
        });
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) if failure.has_path() => {
                failure.remedy("correct the path; a relative one starts in the working directory")
            }
            Some(Errno::EACCES) if failure.has_path() => {
                failure.remedy("run as its owner or as root, or change its mode")
            }
            Some(Errno::ENOSPC | Errno::EDQUOT) => failure.remedy("free some space where the output goes"),
            Some(Errno::EAGAIN) => failure.remedy("raise `ulimit -u`, the limit of processes and threads"),
            _ => failure,
        }
    }

    /// Arguments that cannot be understood; from clap's text, which has several paragraphs.
    pub fn usage(text: &str, help: &str) -> Failure {
        let paragraph = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut paragraphs = text.split("\n\n").map(paragraph);
        let first = paragraphs.next().unwrap_or_default();
        let message = first.strip_prefix("error: ").unwrap_or(&first).to_owned();
        let tips = paragraphs.filter_map(|text| text.strip_prefix("tip: ").map(str::to_owned));
        let remedy = tips.chain([help.to_owned()]).collect::<Vec<_>>().join(", or ");
        Failure::own(Own {
            kind: "usage".to_owned(),
            message: format!("{message}; try: {remedy}"),
            step: None,
            path: None,
            errno: None,
            cause: Some(message),
            remedy: Some(remedy),
        })
    }

    /// Whoever read our output has gone.
    pub fn reader_gone() -> Failure {
        // As if SIGPIPE had ended us, which a Rust program ignores.
        Failure { code: 128 + 13, what: What::ReaderGone }
    }

    fn own(own: Own) -> Failure {
        Failure { code: 1, what: What::Own(Box::new(own)) }
    }

    fn has_path(&self) -> bool {
        matches!(&self.what, What::Own(own) if own.path.is_some())
    }

    /// Says what would help.
    pub fn remedy(mut self, remedy: &str) -> Failure {
        if let What::Own(own) = &mut self.what {
            own.message = format!("{}; try: {remedy}", own.message);
            own.remedy = Some(remedy.to_owned());
        }
        self
    }

    /// Exits with this status in place of 1.
    pub fn exits(mut self, code: u8) -> Failure {
        if !matches!(self.what, What::ReaderGone) {
            self.code = code;
        }
        self
    }

    /// The library's kind of error, if it is one of the library's.
    pub fn kind(&self) -> Option<ErrorKind> {
        match &self.what {
            What::Library(error) => Some(error.kind()),
            _ => None,
        }
    }

    /// One line for people or one object for programs, on standard error; gives the exit status.
    pub fn tell(&self, json: bool) -> u8 {
        match (&self.what, json) {
            (What::ReaderGone, _) => {}
            (_, true) => output::complain(&json!({ "error": self.json() }).to_string()),
            (_, false) => output::complain(&format!("coracle: {}", self.message())),
        }
        self.code
    }

    /// The sentence, on one line.
    pub fn message(&self) -> String {
        match &self.what {
            What::ReaderGone => String::new(),
            What::Library(error) => one_line(&error.to_string()),
            What::Own(own) => one_line(&own.message),
        }
    }

    /// The parts.
    pub fn json(&self) -> Value {
        match &self.what {
            What::ReaderGone => Value::Null,
            What::Library(error) => json!({
                "kind": name(error.kind()),
                "message": error.to_string(),
                "step": error.step(),
                "syscall": error.syscall(),
                "path": error.failed_path().map(|path| path.display().to_string()),
                "errno": error.raw_os_error(),
                "cause": error.cause(),
                "remedy": error.remedy_hint(),
            }),
            What::Own(own) => json!({
                "kind": own.kind,
                "message": own.message,
                "step": own.step,
                "syscall": null,
                "path": own.path,
                "errno": own.errno,
                "cause": own.cause,
                "remedy": own.remedy,
            }),
        }
    }
}

/// `CommandNotFound` as `command_not_found`.
fn name(kind: ErrorKind) -> String {
    let mut name = String::new();
    for letter in format!("{kind:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

/// Without line breaks and other control characters, which may come from names that others chose.
pub fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}
