//! Signals by name and number.

use std::str::FromStr;

use crate::{Error, ErrorKind, Result};

/// A signal: `TERM`, `SIGTERM`, `15`, `RTMIN+3`; see signal(7).
///
/// ```
/// use coracle::container::Signal;
///
/// assert_eq!("SIGTERM".parse::<Signal>()?, Signal::TERM);
/// assert_eq!("rtmin+3".parse::<Signal>()?.number(), 37);
/// assert!("0".parse::<Signal>().is_err());
/// # Ok::<(), coracle::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

const REALTIME_MIN: i32 = 34;
const LAST: i32 = 64;

impl Signal {
    /// Asks to end.
    pub const TERM: Signal = Signal(libc::SIGTERM);
    /// Ends, unasked.
    pub const KILL: Signal = Signal(libc::SIGKILL);
    /// What ^C sends.
    pub const INT: Signal = Signal(libc::SIGINT);
    /// The terminal is gone; for many daemons: read the configuration again.
    pub const HUP: Signal = Signal(libc::SIGHUP);

    /// A signal by its number, 1 to 64.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for every other number.
    pub fn from_number(number: i32) -> Result<Signal> {
        match number {
            1..=LAST => Ok(Signal(number)),
            _ => Err(unknown(&number.to_string())),
        }
    }

    /// Its number on this architecture.
    pub fn number(self) -> i32 {
        self.0
    }
}

fn unknown(text: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("use the signal {text:?}"))
        .because("signals are names such as TERM or SIGTERM, RTMIN+n, RTMAX-n, and numbers from 1 to 64")
}

impl FromStr for Signal {
    type Err = Error;

    fn from_str(text: &str) -> Result<Signal> {
        if let Ok(number) = text.parse::<i32>() {
            return Signal::from_number(number);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let offset = |rest: &str| rest.get(1..).and_then(|digits| digits.parse::<i32>().ok());
        let number = match name {
            "RTMIN" => Some(REALTIME_MIN),
            "RTMAX" => Some(LAST),
            "POLL" => Some(libc::SIGIO),
            "IOT" => Some(libc::SIGABRT),
            _ => match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
                (Some(rest), _) if rest.starts_with('+') => offset(rest).map(|offset| REALTIME_MIN + offset),
                (_, Some(rest)) if rest.starts_with('-') => offset(rest).map(|offset| LAST - offset),
                _ => nix::sys::signal::Signal::from_str(&format!("SIG{name}")).ok().map(|signal| signal as i32),
            },
        };
        match number {
            Some(number) if (1..=LAST).contains(&number) => Ok(Signal(number)),
            _ => Err(unknown(text)),
        }
    }
}
