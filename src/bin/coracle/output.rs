//! Standard output and error. Nothing here panics when a reader has gone.

use std::fmt::Display;
use std::io::{self, Write};

use serde::Serialize;

use crate::failure::Failure;

/// Standard output. The first failure is kept for [`finish`](Output::finish), so that a reader who goes away does not
/// stop work half way.
#[derive(Debug, Default)]
pub struct Output {
    failed: Option<io::Error>,
}

impl Output {
    /// Some text as it is.
    pub fn text(&mut self, text: &str) {
        if self.failed.is_none() {
            self.failed = io::stdout().lock().write_all(text.as_bytes()).err();
        }
    }

    /// One line.
    pub fn line(&mut self, line: impl Display) {
        self.text(&format!("{line}\n"));
    }

    /// One document on one line.
    pub fn json(&mut self, value: &impl Serialize) {
        self.document(serde_json::to_string(value));
    }

    /// One document, indented.
    pub fn pretty_json(&mut self, value: &impl Serialize) {
        self.document(serde_json::to_string_pretty(value));
    }

    fn document(&mut self, text: serde_json::Result<String>) {
        match text {
            Ok(text) => self.line(text),
            Err(error) => self.failed = self.failed.take().or(Some(error.into())),
        }
    }

    /// Has everything arrived?
    pub fn finish(&mut self) -> Result<(), Failure> {
        match self.failed.take().or_else(|| io::stdout().lock().flush().err()) {
            None => Ok(()),
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::reader_gone()),
            Some(error) => Err(Failure::io("write the output", None, &error)),
        }
    }
}

/// A line on standard error, as far as somebody reads it.
pub fn complain(line: &str) {
    // There is nobody to tell that there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{line}");
}
