//! The caller's own terminal, while a container's is shown on it: raw mode and back, and its size.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle::ErrorKind;
use coracle::container::{Terminal, WindowSize};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::termios::{self, OutputFlags, SetArg, Termios};
use nix::unistd::{getpgrp, tcgetpgrp};

use crate::failure::Failure;

/// What is known of the modes, for whoever has to restore them.
struct Modes {
    /// Those before the first change, of the terminals on these descriptors, last changed last.
    saved: Vec<(On, Termios)>,
    /// The program is ending: they stay as they are.
    leaving: bool,
}

static MODES: Mutex<Modes> = Mutex::new(Modes { saved: vec![], leaving: false });

#[derive(Clone, Copy)]
enum On {
    Input,
    Output,
}

impl On {
    fn get(self) -> nix::Result<Termios> {
        match self {
            On::Input => termios::tcgetattr(std::io::stdin()),
            On::Output => termios::tcgetattr(std::io::stdout()),
        }
    }

    fn set(self, modes: &Termios) -> nix::Result<()> {
        match self {
            On::Input => termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, modes),
            On::Output => termios::tcsetattr(std::io::stdout(), SetArg::TCSANOW, modes),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole values are moved in and out of each.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The size of the terminal that is asked for by these options, if one is.
pub fn wanted(tty: bool, interactive: bool) -> Result<Option<WindowSize>, Failure> {
    if !tty {
        return Ok(None);
    }
    if interactive && !std::io::stdin().is_terminal() {
        // docker's words.
        let refusal = Failure::new(ErrorKind::Invalid, "give the command a terminal", "the input device is not a TTY");
        return Err(refusal.remedy("leave -t out: -i alone passes standard input on"));
    }
    Ok(Some(size().unwrap_or_default()))
}

/// The size of what people look at.
fn size() -> Option<WindowSize> {
    let size = |found: coracle::Result<Option<WindowSize>>| found.ok().flatten();
    size(WindowSize::of(std::io::stdout()))
        .or_else(|| size(WindowSize::of(std::io::stdin())))
        .or_else(|| size(WindowSize::of(std::io::stderr())))
}

/// Gives the container's terminal the size of the caller's.
pub fn fit(terminal: &Terminal) {
    if let Some(size) = size() {
        // One that is gone needs none.
        let _ = terminal.resize(size);
    }
}

/// Changed modes of the caller's terminal; those before are back when it is dropped, or by [`restore`].
pub struct Raw(());

impl Raw {
    /// Output is shown as it comes, before there is any: ends of lines are the container's terminal's. ^C goes on to end what
    /// is being started.
    pub fn output() -> Result<Raw, Failure> {
        let raw = Raw(());
        // In the background, to change modes would stop this program; there it may well run as long as it only writes.
        let foreground = tcgetpgrp(std::io::stdout()).map_or(true, |group| group == getpgrp());
        if std::io::stdout().is_terminal() && foreground {
            change(On::Output, |modes| modes.output_flags.remove(OutputFlags::OPOST))?;
        }
        Ok(raw)
    }

    /// Input is passed on as it is typed: from now on ^C is the container's.
    pub fn input(&self) -> Result<(), Failure> {
        change(On::Input, termios::cfmakeraw)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        set_back(&mut lock(&MODES));
    }
}

fn change(on: On, how: impl FnOnce(&mut Termios)) -> Result<(), Failure> {
    let fail = |errno: nix::errno::Errno| Failure::new(ErrorKind::Io, "set the modes of the terminal", errno.desc());
    let mut modes = lock(&MODES);
    if !modes.leaving {
        let saved = on.get().map_err(fail)?;
        let mut changed = saved.clone();
        how(&mut changed);
        // Before anything is changed, so that there is no instant in which it could not be undone.
        modes.saved.push((on, saved));
        // At once: output that nobody takes, after ^S, keeps neither this nor whoever has to restore them.
        on.set(&changed).map_err(fail)?;
    }
    Ok(())
}

/// Gives the terminal its modes back, for good: the program ends next.
pub fn restore() {
    let mut modes = lock(&MODES);
    modes.leaving = true;
    set_back(&mut modes);
}

fn set_back(modes: &mut Modes) {
    if modes.saved.is_empty() {
        return;
    }
    // In the background this signal would stop us; blocked, it does not keep us from what has to be done.
    let stop = SigSet::from(Signal::SIGTTOU);
    let before = stop.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK);
    while let Some((on, saved)) = modes.saved.pop() {
        let _ = on.set(&saved);
    }
    if let Ok(before) = before {
        let _ = before.thread_set_mask();
    }
}

/// Sees to the terminal of a further command: a signal that ends this program, and so the command, ends it with the modes
/// as they were.
pub struct Watch(Arc<Mutex<Option<Terminal>>>);

impl Watch {
    /// Takes the signals over. Call it while the program has one thread.
    pub fn start() -> Result<Watch, Failure> {
        let step = "take signals over";
        let ends = [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGALRM,
            Signal::SIGXCPU,
        ];
        let set: SigSet = ends.into_iter().chain([Signal::SIGWINCH]).collect();
        set.thread_block().map_err(|errno| Failure::new(ErrorKind::Io, step, errno.desc()))?;
        let terminal = Arc::new(Mutex::new(None));
        let shared = terminal.clone();
        std::thread::Builder::new()
            .name("coracle-signals".into())
            .spawn(move || {
                loop {
                    match set.wait() {
                        Ok(Signal::SIGWINCH) => drop(lock(&shared).as_ref().map(fit)),
                        Ok(signal) => {
                            restore();
                            std::process::exit(128 + signal as i32);
                        }
                        Err(_) => {}
                    }
                }
            })
            .map_err(|error| Failure::io(step, None, &error))?;
        Ok(Watch(terminal))
    }

    /// From now on this one has the size of the caller's.
    pub fn follow(&self, terminal: Option<&Terminal>) {
        *lock(&self.0) = terminal.cloned();
        // Afterwards, so that a size that is new since it was started is not lost.
        terminal.map(fit);
    }
}
