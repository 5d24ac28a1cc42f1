//! run: a command in a new container, as if it ran here.

use coracle::container::Network;
use coracle::isolation::Requirement;
use coracle::security::Profile;
use coracle::{Container, ContainerBuilder, ErrorKind, ExitStatus, Stdio};

use crate::failure::Failure;
use crate::signals::Forwarding;
use crate::terminal::{self, Raw, Watch};
use crate::{Context, cli, mounts, options};

/// Gives the command's status; 125 for our own failure, 126 and 127 for a command that cannot be executed or found,
/// 128 + n after signal n.
pub fn run(context: &mut Context, arguments: cli::Run) -> Result<u8, Failure> {
    run_in(context, arguments).map_err(with_code)
}

/// Ends with the program: a signal to that is the end of the command.
pub fn exec(context: &mut Context, arguments: cli::Exec) -> Result<u8, Failure> {
    exec_in(context, arguments).map_err(with_code)
}

/// As docker has them.
fn with_code(failure: Failure) -> Failure {
    let code = match failure.kind() {
        Some(ErrorKind::CommandNotFound) => 127,
        Some(ErrorKind::CommandNotExecutable) => 126,
        _ => 125,
    };
    failure.exits(code)
}

fn exec_in(context: &mut Context, arguments: cli::Exec) -> Result<u8, Failure> {
    if arguments.detach {
        let refusal = Failure::new(
            ErrorKind::Unsupported,
            "run the command in the background",
            "a command of the command line lives as long as its `coracle exec`",
        );
        return Err(refusal.remedy("leave --detach out, and let the shell run it in the background with `&`"));
    }
    let tty = terminal::wanted(arguments.tty, arguments.interactive)?;
    let watch = tty.map(|_| Watch::start()).transpose()?;
    let engine = context.engine()?;
    let Some((container, command)) = arguments.words.split_first() else {
        return Err(Failure::new(ErrorKind::Invalid, "run a further command", "no container was named"));
    };
    let mut builder = engine.find_container(container)?.exec().command(command);
    for (key, value) in variables(&arguments.env_file, &arguments.env)? {
        builder = match value {
            Some(value) => builder.env(key, value),
            None => builder.env_remove(key),
        };
    }
    if let Some(directory) = arguments.workdir {
        builder = builder.workdir(directory);
    }
    if let Some(user) = arguments.user {
        builder = builder.user(user);
    }
    let stdin = if arguments.interactive { Stdio::Inherit } else { Stdio::Null };
    builder = builder.tty(tty).stdin(stdin).stdout(Stdio::Inherit);
    if tty.is_none() {
        builder = builder.stderr(Stdio::Inherit);
    }
    let raw = tty.map(|_| Raw::output()).transpose()?;
    let exec = builder.spawn()?;
    if let Some(watch) = &watch {
        watch.follow(exec.terminal.as_ref());
    }
    if let (Some(raw), true) = (&raw, arguments.interactive) {
        raw.input()?;
    }
    let status = exec.wait();
    // Before anything is said.
    drop(raw);
    let status = exit_code(&status?);
    match exec.check_output() {
        Ok(()) => Ok(status),
        // As for `run`.
        Err(error) => {
            let code = Failure::from(error).exits(125).tell(context.json);
            Ok(if status == 0 { code } else { status })
        }
    }
}

/// Those of files, and then those of the command line, which count more.
fn variables(
    files: &[std::path::PathBuf],
    single: &[String],
) -> Result<impl Iterator<Item = (String, Option<String>)>, Failure> {
    let files = files.iter().map(|path| options::variables(path)).collect::<Result<Vec<_>, _>>()?;
    let single = single.iter().map(|text| options::variable(text)).collect::<Result<Vec<_>, _>>()?;
    Ok(files.into_iter().flatten().map(|(key, value)| (key, Some(value))).chain(single))
}

fn run_in(context: &mut Context, arguments: cli::Run) -> Result<u8, Failure> {
    let forwarding = Forwarding::start()?;
    let init = arguments.init;
    let (tty, typed) = (arguments.tty, arguments.interactive);
    let builder = describe(context, arguments)?;
    let raw = tty.then(Raw::output).transpose()?;
    let container = forwarding.to(builder.spawn()?, init);
    let typing = raw.as_ref().filter(|_| typed).map_or(Ok(()), Raw::input);
    let status = if typing.is_ok() { container.wait() } else { container.kill().and_then(|()| container.wait()) };
    // Before anything is said.
    drop(raw);
    forwarding.end();
    // The forwarding has given its own up, so this is the last one.
    let lost = container.check_output();
    let closed = std::sync::Arc::into_inner(container).map_or(Ok(()), Container::close);
    typing?;
    let mut status = exit_code(&status?);
    if let Err(error) = lost {
        // A command that failed over it says so itself; one that noticed nothing has not done what was asked.
        let code = Failure::from(error).exits(125).tell(context.json);
        status = if status == 0 { code } else { status };
    }
    if let Err(error) = closed {
        // The command's status says more than what was left behind, and the next command tidies up.
        Failure::from(error).tell(context.json);
    }
    Ok(status)
}

/// One number, as shells have it.
pub fn exit_code(status: &ExitStatus) -> u8 {
    u8::try_from(status.shell_code()).unwrap_or(u8::MAX)
}

/// The builder for these options.
fn describe(context: &Context, arguments: cli::Run) -> Result<ContainerBuilder, Failure> {
    if arguments.detach {
        let refusal = Failure::new(
            ErrorKind::Unsupported,
            "run the container in the background",
            "a container of the command line lives as long as its `coracle run`",
        );
        return Err(refusal.remedy("leave --detach out, and let the shell run it in the background with `&`"));
    }
    let tty = terminal::wanted(arguments.tty, arguments.interactive)?;
    let engine = context.engine()?;
    let words = &*arguments.words;
    let (mut builder, command) = match (&arguments.rootfs, &arguments.snapshot, words.split_first()) {
        (Some(directory), ..) => (engine.sandbox_over(absolute(directory)?), words),
        (None, Some(id), _) => (engine.find_snapshot(id)?.container(), words),
        (None, None, Some((image, command))) => (engine.image(image)?.container(), command),
        (None, None, None) => return Err(Failure::new(ErrorKind::Invalid, "run a container", "no image was named")),
    };
    if !command.is_empty() {
        builder = builder.command(command);
    }
    for (key, value) in variables(&arguments.env_file, &arguments.env)? {
        builder = match value {
            Some(value) => builder.env(key, value),
            None => builder.env_remove(key),
        };
    }
    for text in &arguments.volume {
        builder = builder.mount(mounts::volume(text)?);
    }
    for text in &arguments.mount {
        builder = builder.mount(mounts::mount(text)?);
    }
    for text in &arguments.tmpfs {
        builder = builder.mount(mounts::tmpfs(text)?);
    }
    let mut profile = Profile::DEFAULT_2026_11;
    for text in &arguments.security_opt {
        options::security(&mut profile, text)?;
    }
    let mut requirement = Requirement::default();
    for text in &arguments.require {
        requirement = options::require(requirement, text)?;
    }
    builder = arguments.readable.into_iter().fold(builder, ContainerBuilder::readable);
    builder = arguments.cap_add.into_iter().fold(builder, ContainerBuilder::cap_add);
    builder = arguments.cap_drop.into_iter().fold(builder, ContainerBuilder::cap_drop);
    if let Some(text) = &arguments.userns {
        builder = builder.user_namespace(options::id_map(text)?);
    }
    // Each of these replaces a default only when it was given.
    builder = given(builder, arguments.workdir, ContainerBuilder::workdir);
    builder = given(builder, arguments.user, ContainerBuilder::user);
    builder = given(builder, arguments.hostname, ContainerBuilder::hostname);
    builder = given(builder, arguments.name, ContainerBuilder::name);
    builder = given(builder, arguments.stop_signal, ContainerBuilder::stop_signal);
    builder = given(builder, arguments.entrypoint, |builder, word| builder.entrypoint([word]));
    let network = match arguments.network {
        cli::Network::None => Network::None,
        cli::Network::Host => Network::Host,
    };
    let stdin = if arguments.interactive { Stdio::Inherit } else { Stdio::Null };
    if tty.is_none() {
        builder = builder.stderr(Stdio::Inherit);
    }
    Ok(builder
        .network(network)
        .read_only(arguments.read_only)
        .init(arguments.init)
        .keep(!arguments.rm)
        .profile(profile)
        .require(requirement)
        .stdin(stdin)
        .stdout(Stdio::Inherit)
        .tty(tty))
}

fn given<T>(
    builder: ContainerBuilder,
    option: Option<T>,
    set: impl FnOnce(ContainerBuilder, T) -> ContainerBuilder,
) -> ContainerBuilder {
    match option {
        Some(value) => set(builder, value),
        None => builder,
    }
}

fn absolute(path: &std::path::Path) -> Result<std::path::PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::io("find the root directory", Some(path), &error))
}
