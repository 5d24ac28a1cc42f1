//! How a container ended.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::launch::Ended;

/// How the first process of a container ended, and what it used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    #[serde(default)]
    cpu_us: u64,
    #[serde(default)]
    peak_bytes: u64,
}

impl ExitStatus {
    /// Ended by itself with status 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// The status that it exited with, 0 to 255; `None` after a deadly signal.
    pub fn code(&self) -> Option<i32> {
        self.code
    }

    /// The signal that ended it; `None` after an exit.
    pub fn signal(&self) -> Option<i32> {
        self.signal
    }

    /// One number, as shells have it: the code, or 128 + the signal.
    pub fn shell_code(&self) -> i32 {
        match (self.code, self.signal) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128 + signal,
            (None, None) => 255,
        }
    }

    /// Processor time of the first process and of the children that it waited for.
    pub fn cpu_time(&self) -> Duration {
        Duration::from_micros(self.cpu_us)
    }

    /// Largest resident set of one of these processes, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.peak_bytes
    }
}

impl From<Ended> for ExitStatus {
    fn from(ended: Ended) -> Self {
        ExitStatus {
            code: ended.code,
            signal: ended.signal,
            cpu_us: (ended.user + ended.system).as_micros() as u64,
            peak_bytes: ended.peak,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit status {code}"),
            (None, Some(signal)) => match nix::sys::signal::Signal::try_from(signal) {
                Ok(known) => write!(f, "killed by {known}"),
                Err(_) => write!(f, "killed by signal {signal}"),
            },
            (None, None) => f.write_str("ended in an unknown way"),
        }
    }
}

/// What [`output`](super::ContainerBuilder::output) returns.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Everything that it wrote to standard output.
    pub stdout: Vec<u8>,
    /// Everything that it wrote to standard error.
    pub stderr: Vec<u8>,
}
