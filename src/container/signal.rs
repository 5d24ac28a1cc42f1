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
        let offset = |rest: &str, sign| {
            let digits = rest.strip_prefix(sign)?;
            // `parse` would take a sign of its own.
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<i32>().ok())?
        };
        let number = match name {
            "RTMIN" => Some(REALTIME_MIN),
            "RTMAX" => Some(LAST),
            "POLL" => Some(libc::SIGIO),
            "IOT" => Some(libc::SIGABRT),
            _ => match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
                (Some(rest), _) => offset(rest, '+').and_then(|offset| REALTIME_MIN.checked_add(offset)),
                (_, Some(rest)) => offset(rest, '-').and_then(|offset| LAST.checked_sub(offset)),
                _ => nix::sys::signal::Signal::from_str(&format!("SIG{name}")).ok().map(|signal| signal as i32),
            },
        };
        match number {
            Some(number) if (1..=LAST).contains(&number) => Ok(Signal(number)),
            _ => Err(unknown(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn realtime_signals_are_a_distance_in_digits() {
        let number = |text: &str| text.parse::<Signal>().unwrap().number();
        assert_eq!(["RTMIN", "RTMIN+0", "SIGRTMIN+30", "RTMAX-30", "RTMAX"].map(number), [34, 34, 64, 34, 64]);
        // An image says what its stop signal is.
        for text in [
            "RTMIN+31",
            "RTMIN+2147483647",
            "RTMIN+99999999999",
            "RTMAX-2147483647",
            "RTMAX--2147483648",
            "RTMIN+-5",
            "RTMIN++5",
            "RTMAX-+5",
            "RTMIN+",
            "RTMIN-1",
            "RTMAX+1",
            "RTMIN5",
        ] {
            assert_eq!(text.parse::<Signal>().unwrap_err().kind(), ErrorKind::Invalid, "{text}");
        }
    }
}
