//! Signals that `run` receives go to the container.
//!
//! They are blocked before the program has a second thread, so that every thread inherits that, and one thread waits
//! for them. That is this program's business and not the library's, which leaves signals alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coracle::container::Signal;
use coracle::{Container, ErrorKind};
use nix::sys::signal::{SigSet, Signal as Number};

use crate::failure::Failure;
use crate::terminal;

/// And [`Number::SIGWINCH`], which is about the terminal that the container's is shown on.
const FORWARDED: [Number; 6] =
    [Number::SIGINT, Number::SIGTERM, Number::SIGHUP, Number::SIGQUIT, Number::SIGUSR1, Number::SIGUSR2];

/// Hands signals on to a container, from its start to its end.
pub struct Forwarding(Arc<Mutex<State>>);

enum State {
    /// There is no container yet, as far as is known here: signals wait.
    Starting(Vec<Number>),
    Running {
        target: Target,
        interrupts: Interrupts,
    },
    Ended,
}

impl Forwarding {
    /// Takes the signals over. Call it while the program has one thread.
    pub fn start() -> Result<Forwarding, Failure> {
        let step = "take signals over";
        let set: SigSet = FORWARDED.into_iter().chain([Number::SIGWINCH]).collect();
        set.thread_block().map_err(|errno| Failure::new(ErrorKind::Io, step, errno.desc()))?;
        let state = Arc::new(Mutex::new(State::Starting(vec![])));
        let shared = state.clone();
        std::thread::Builder::new()
            .name("coracle-signals".into())
            .spawn(move || {
                loop {
                    if let Ok(signal) = set.wait() {
                        handle(&shared, signal);
                    }
                }
            })
            .map_err(|error| Failure::io(step, None, &error))?;
        Ok(Forwarding(state))
    }

    /// From now on signals go to this container, whose first process may be an init.
    pub fn to(&self, container: Container, init: bool) -> Arc<Container> {
        let container = Arc::new(container);
        let target = Target { container: container.clone(), init };
        let mut state = lock(&self.0);
        let running = State::Running { target: target.clone(), interrupts: Interrupts::default() };
        if let State::Starting(waiting) = std::mem::replace(&mut *state, running) {
            for number in waiting {
                // It was meant to end what was being started, and a command that has no handler, or none yet, would
                // not hear it.
                let lost = ends_programs(number) && !target.hears(number);
                target.forward(if lost { Number::SIGKILL } else { number });
            }
        }
        target.resize();
        container
    }

    /// The container has ended. Nobody but the caller has it now.
    pub fn end(&self) {
        *lock(&self.0) = State::Ended;
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What signals are forwarded to.
#[derive(Clone)]
struct Target {
    container: Arc<Container>,
    init: bool,
}

impl Target {
    fn forward(&self, number: Number) {
        if let Ok(signal) = Signal::from_number(number as i32) {
            // A container that has ended already needs no signal.
            let _ = self.container.signal(signal);
        }
    }

    fn resize(&self) {
        self.container.terminal.as_ref().map(terminal::fit);
    }

    /// Does a signal reach anybody? An init waits for all of them; any other first process needs a handler.
    fn hears(&self, number: Number) -> bool {
        self.init || self.container.pid().is_some_and(|pid| handles(pid, number))
    }
}

/// How long a start may go on after a signal that asks to end.
const GRACE: Duration = Duration::from_secs(2);

fn handle(state: &Mutex<State>, number: Number) {
    match &mut *lock(state) {
        // While it is being started it gets the size in the end.
        state if number == Number::SIGWINCH => {
            if let State::Running { target, .. } = state {
                target.resize();
            }
            return;
        }
        State::Starting(waiting) => waiting.push(number),
        State::Running { target, interrupts } => {
            let lost = number == Number::SIGINT && interrupts.are_lost(target);
            return target.forward(if lost { Number::SIGKILL } else { number });
        }
        State::Ended => return,
    }
    let begin = Instant::now();
    while ends_programs(number) && matches!(&*lock(state), State::Starting(_)) {
        if begin.elapsed() > GRACE {
            // What was begun dies with us, and is swept by the next open of the root.
            terminal::restore();
            std::process::exit(128 + number as i32);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn ends_programs(number: Number) -> bool {
    !matches!(number, Number::SIGUSR1 | Number::SIGUSR2)
}

/// The first process of a pid namespace gets only signals that it has a handler for. Who presses ^C at a command
/// without one would press in vain.
#[derive(Default)]
struct Interrupts {
    last: Option<Instant>,
    count: u32,
}

impl Interrupts {
    const ENOUGH: u32 = 3;
    const PAUSE: Duration = Duration::from_secs(5);

    /// Is this one of several in a row that nobody hears?
    fn are_lost(&mut self, target: &Target) -> bool {
        let now = Instant::now();
        let in_a_row = self.last.is_some_and(|last| now.duration_since(last) < Interrupts::PAUSE);
        self.count = if in_a_row { self.count + 1 } else { 1 };
        self.last = Some(now);
        self.count >= Interrupts::ENOUGH && !target.hears(Number::SIGINT)
    }
}

/// Has the process a handler for a signal? See `SigCgt` in proc_pid_status(5).
fn handles(pid: u32, number: Number) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    caught & (1 << (number as i32 - 1)) != 0
}
