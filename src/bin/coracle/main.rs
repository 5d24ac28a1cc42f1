//! The command line `coracle`: docker's verbs over the crate's public interface.
//!
//! ```text
//! main.rs      from arguments to an exit status
//! cli.rs       what can be typed
//! image.rs     load, import, images, tag, rmi, history      change.rs: Dockerfile instructions of import
//! run.rs       run, exec      options.rs: mounts, variables, security options      signals.rs: forwarding
//! terminal.rs  raw mode and size of the caller's own terminal
//! container.rs ps, wait, kill, stop, rm
//! snapshot.rs  snapshot, snapshots
//! inspect.rs   inspect
//! commit.rs    commit, diff
//! system.rs    system check, df, prune
//! doctor.rs    doctor, version
//! failure.rs   errors and exit statuses      output.rs, table.rs, human.rs, progress.rs: what people and programs read
//! ```
//!
//! It translates and decides nothing: whatever it can do, a Rust program can do with the crate.

mod change;
mod cli;
mod commit;
mod container;
mod doctor;
mod failure;
mod human;
mod image;
mod inspect;
mod mounts;
mod options;
mod output;
mod progress;
mod run;
mod signals;
mod snapshot;
mod system;
mod table;
mod terminal;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind as Usage};
use coracle::{Engine, EngineOptions, IsolationChoice};
use nix::sys::signal::{SigSet, Signal};

use cli::{Cli, Command};
use failure::Failure;
use output::Output;

/// What every command gets.
struct Context {
    root: Option<PathBuf>,
    isolation: IsolationChoice,
    json: bool,
    out: Output,
}

impl Context {
    /// The engine over the chosen root.
    fn engine(&self) -> Result<Engine, Failure> {
        Ok(match &self.root {
            Some(root) => EngineOptions::new(root).isolation(self.isolation).open()?,
            None => Engine::open_default_with(|options| options.isolation(self.isolation))?,
        })
    }

    /// Does something with each name in turn, and goes on after a failure; gives the exit status.
    fn each(&mut self, names: &[String], mut act: impl FnMut(&mut Self, &str) -> Result<(), Failure>) -> u8 {
        let mut status = 0;
        for name in names {
            if let Err(failure) = act(self, name) {
                failure.tell(self.json);
                status = 1;
            }
        }
        status
    }
}

fn main() -> ExitCode {
    // A file that grows over its limit is an error to be told. Blocked and not ignored: containers get it as ever.
    // Where that cannot be, we die of it as before.
    let _ = SigSet::from(Signal::SIGXFSZ).thread_block();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(error, &arguments),
    };
    let isolation = match cli.isolation {
        cli::Isolation::Auto => IsolationChoice::Auto,
        cli::Isolation::Namespaces => IsolationChoice::Namespaces,
        cli::Isolation::Landlock => IsolationChoice::Landlock,
        cli::Isolation::Chroot => IsolationChoice::Chroot,
    };
    let mut context = Context { root: cli.root, isolation, json: cli.json, out: Output::default() };
    let json = context.json;
    let result = dispatch(cli.command, &mut context);
    // A reader that went away or a full disk must not be hidden by a command that succeeded.
    let result = result.and_then(|status| context.out.finish().map(|()| status));
    ExitCode::from(result.unwrap_or_else(|failure| failure.tell(json)))
}

fn dispatch(command: Command, context: &mut Context) -> Result<u8, Failure> {
    match command {
        Command::Load(arguments) => image::load(context, arguments),
        Command::Import(arguments) => image::import(context, arguments),
        Command::Images(arguments) => image::list(context, &arguments),
        Command::Tag(arguments) => image::tag(context, &arguments),
        Command::Rmi(arguments) => image::remove(context, &arguments),
        Command::History(arguments) => image::history(context, &arguments),
        Command::Inspect(arguments) => inspect::inspect(context, &arguments),
        Command::Run(arguments) => run::run(context, *arguments),
        Command::Exec(arguments) => run::exec(context, arguments),
        Command::Commit(arguments) => commit::commit(context, arguments),
        Command::Diff(arguments) => commit::diff(context, &arguments),
        Command::Ps(arguments) => container::list(context, &arguments),
        Command::Wait(arguments) => container::wait(context, &arguments),
        Command::Kill(arguments) => container::kill(context, &arguments),
        Command::Stop(arguments) => container::stop(context, &arguments),
        Command::Rm(arguments) => container::remove(context, &arguments),
        Command::System(command) => system::system(context, &command),
        Command::Snapshot(arguments) => snapshot::snapshot(context, &arguments),
        Command::Snapshots(arguments) => snapshot::list(context, &arguments),
        Command::Doctor => doctor::doctor(context),
        Command::Version => doctor::version(context),
    }
}

/// Arguments that say nothing, or ask for help.
fn usage(error: clap::Error, arguments: &[OsString]) -> ExitCode {
    match error.kind() {
        Usage::DisplayHelp | Usage::DisplayVersion => {
            let mut out = Output::default();
            out.text(&error.render().to_string());
            match out.finish() {
                Ok(()) => ExitCode::SUCCESS,
                Err(failure) => ExitCode::from(failure.tell(false)),
            }
        }
        Usage::DisplayHelpOnMissingArgumentOrSubcommand => {
            output::complain(error.render().to_string().trim_end());
            ExitCode::from(2)
        }
        _ => {
            let (command, json) = guess(arguments);
            // The statuses of `run` and `exec` below 125 are the command's.
            let code = if matches!(command.as_deref(), Some("run" | "exec")) { 125 } else { 2 };
            let help = command.map_or("coracle --help".to_owned(), |command| format!("coracle {command} --help"));
            let failure = misunderstood(&error, arguments, &help);
            ExitCode::from(failure.exits(code).tell(json))
        }
    }
}

/// What is wrong with the arguments, where that can be said better than clap does.
fn misunderstood(error: &clap::Error, arguments: &[OsString], help: &str) -> Failure {
    let text = error.render().to_string();
    if error.kind() == Usage::InvalidUtf8 {
        let bad: Vec<String> =
            arguments.iter().filter(|it| it.to_str().is_none()).map(|it| format!("{it:?}")).collect();
        let text = format!("not UTF-8, which all arguments but paths of the host have to be: {}", bad.join(", "));
        return Failure::usage(&text, help);
    }
    let option = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (Usage::UnknownArgument, Some(ContextValue::String(option))) if option.starts_with('-') => option,
        _ => return Failure::usage(&text, help),
    };
    let name = option.split_once('=').map_or(option.as_str(), |(name, _)| name);
    if let Some((cause, remedy)) = options::of_docker(name) {
        return Failure::usage(&format!("there is no option {name}: {cause}"), remedy.unwrap_or(help));
    }
    // That it could be meant as a word is a tip for few; a similar name is one for many.
    let similar = match error.get(ContextKind::SuggestedArg) {
        Some(ContextValue::String(similar)) => format!("\n\ntip: a similar one is {similar}"),
        _ => String::new(),
    };
    Failure::usage(&format!("there is no option {name}{similar}"), help)
}

/// The command and whether errors are wanted as JSON, from arguments that could not be parsed.
fn guess(arguments: &[OsString]) -> (Option<String>, bool) {
    let mut json = false;
    let mut words = arguments.iter().skip(1).map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        match &*word {
            "--root" | "--isolation" => drop(words.next()),
            "--json" => json = true,
            "--" => break,
            option if option.starts_with('-') => {}
            command => {
                let known = Cli::knows(command).then(|| command.to_owned());
                return (known, json || words.any(|word| word == "--json"));
            }
        }
    }
    (None, json)
}
