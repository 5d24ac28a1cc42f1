//! Window sizes of terminals, see ioctl_tty(2).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::{Error, Result};

/// How large a terminal is, in characters. The default is 24 rows of 80 columns.
///
/// ```
/// use coracle::container::WindowSize;
///
/// assert_eq!(WindowSize::default(), WindowSize { rows: 24, columns: 80 });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in each of them.
    pub columns: u16,
}

impl Default for WindowSize {
    fn default() -> Self {
        WindowSize { rows: 24, columns: 80 }
    }
}

impl WindowSize {
    /// The size of a terminal of this program's, as `std::io::stdout()` may be one; `None` for one that has never been told
    /// its size.
    ///
    /// # Errors
    /// ENOTTY for what is no terminal; see [`Error::raw_os_error`].
    ///
    /// ```no_run
    /// use coracle::container::WindowSize;
    ///
    /// let size = WindowSize::of(std::io::stdout()).ok().flatten().unwrap_or_default();
    /// ```
    pub fn of(terminal: impl AsFd) -> Result<Option<WindowSize>> {
        let size = get(terminal.as_fd()).map_err(|error| Error::io("ask a terminal for its size", "ioctl", error))?;
        Ok(Some(size).filter(|size| size.rows > 0 && size.columns > 0))
    }
}

pub(crate) fn get(terminal: BorrowedFd<'_>) -> io::Result<WindowSize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes one `winsize`, and that is what it gets.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    match done {
        0 => Ok(WindowSize { rows: size.ws_row, columns: size.ws_col }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Tells a terminal its size; its foreground process group gets a SIGWINCH if that is another one.
pub(crate) fn set(terminal: BorrowedFd<'_>, size: WindowSize) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads one live `winsize`.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
