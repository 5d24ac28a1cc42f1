//! ps, wait, kill, stop, rm.

use std::collections::HashMap;
use std::time::Duration;

use coracle::container::{Info, State};
use coracle::{Engine, ErrorKind, ExitStatus};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::table::Table;
use crate::{Context, cli, human, run};

/// What is said about a container to programs.
pub fn summary(info: &Info) -> Value {
    json!({
        "id": info.id.to_string(),
        "name": info.name,
        "image": info.image,
        "base": info.base,
        "command": info.command,
        "created": info.created,
        "started": info.started,
        "finished": info.finished,
        "state": info.state,
        "exit": info.exit.as_ref().map(exit),
        "pid": info.pid,
        "keep": info.keep,
        "stop_signal": info.stop_signal,
    })
}

fn exit(status: &ExitStatus) -> Value {
    json!({
        "code": status.code(),
        "signal": status.signal(),
        "status": run::exit_code(status),
        "cpu_microseconds": status.cpu_time().as_micros() as u64,
        "peak_memory": status.peak_memory(),
    })
}

pub fn list(context: &mut Context, arguments: &cli::Ps) -> Result<u8, Failure> {
    let engine = context.engine()?;
    let mut containers = engine.containers()?;
    containers.retain(|info| arguments.all || info.state == State::Running);
    // docker's order: the latest first.
    containers.reverse();
    // One that goes meanwhile takes nothing any more.
    let usage = |info: &Info| engine.find_container(&info.id.to_string()).and_then(|container| container.usage()).ok();
    if context.json {
        let with_size = |info| {
            let mut object = summary(info);
            if let (true, Some(object)) = (arguments.size, object.as_object_mut()) {
                let usage = usage(info);
                object.insert("bytes".to_owned(), usage.map(|usage| usage.bytes).into());
                object.insert("inodes".to_owned(), usage.map(|usage| usage.inodes).into());
            }
            object
        };
        context.out.json(&containers.iter().map(with_size).collect::<Vec<_>>());
        return Ok(0);
    }
    let id = |info: &Info| if arguments.no_trunc { info.id.to_string() } else { info.id.short().to_owned() };
    if arguments.quiet {
        for info in &containers {
            context.out.line(id(info));
        }
        return Ok(0);
    }
    let images = tagged_images(&engine);
    let size = arguments.size.then_some("SIZE".to_owned());
    let head = ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES"].map(str::to_owned);
    let mut table = Table::new(head.into_iter().chain(size));
    for info in &containers {
        let command = info.command.iter().map(|word| human::quoted(word)).collect::<Vec<_>>().join(" ");
        let command = if arguments.no_trunc { command } else { human::shorten(&command, 20) };
        let size = arguments.size.then(|| usage(info).map_or_else(|| "-".to_owned(), |usage| human::size(usage.bytes)));
        let row = [
            id(info),
            base(info, &images),
            format!("\"{command}\""),
            human::ago(Some(&info.created)),
            status(info),
            info.name.clone().unwrap_or_default(),
        ];
        table.row(row.into_iter().chain(size));
    }
    context.out.text(&table.render());
    Ok(0)
}

/// What a container was started from: the name that was used, as long as it means that image.
fn base(info: &Info, images: &HashMap<String, String>) -> String {
    match &info.image {
        Some(id) if info.base.contains(':') && images.get(&info.base) != Some(id) => human::short_id(id).to_owned(),
        _ => info.base.clone(),
    }
}

/// The ID of the image that each name means.
fn tagged_images(engine: &Engine) -> HashMap<String, String> {
    let (images, _) = engine.images().list_whole().unwrap_or_default();
    let named = images.iter().flat_map(|listed| listed.tags.iter().map(move |name| (name.familiar(), listed)));
    named.map(|(name, listed)| (name, listed.image.id().to_string())).collect()
}

/// A name for each image that has one. A damaged image must not keep containers from being listed.
pub fn image_names(engine: &Engine) -> HashMap<String, String> {
    let (images, _) = engine.images().list_whole().unwrap_or_default();
    let named =
        images.iter().filter_map(|listed| Some((listed.image.id().to_string(), listed.tags.first()?.familiar())));
    named.collect()
}

/// `Up 3 minutes`, `Exited (0) 2 hours ago`.
fn status(info: &Info) -> String {
    match (info.state, &info.exit) {
        (State::Running, _) => format!("Up {}", human::since(info.started.as_deref())),
        (State::Exited, Some(status)) => {
            format!("Exited ({}) {}", run::exit_code(status), human::ago(info.finished.as_deref()))
        }
        (State::Created, _) => "Created".to_owned(),
        (State::Dead, _) => "Dead".to_owned(),
        (other, _) => other.to_string(),
    }
}

/// A line or an object per container that something was done to.
struct Done(Vec<Value>);

impl Done {
    fn add(&mut self, context: &mut Context, name: &str, line: String, details: Value) {
        if !context.json {
            return context.out.line(line);
        }
        let mut object = json!({ "name": name });
        if let (Some(object), Value::Object(details)) = (object.as_object_mut(), details) {
            object.extend(details);
        }
        self.0.push(object);
    }

    fn end(self, context: &mut Context, status: u8) -> Result<u8, Failure> {
        if context.json {
            context.out.json(&self.0);
        }
        Ok(status)
    }
}

/// Runs or is about to: its command may be seen to run a moment before the record says so.
fn lives(info: &Info) -> bool {
    matches!(info.state, State::Created | State::Running)
}

pub fn wait(context: &mut Context, arguments: &cli::Names) -> Result<u8, Failure> {
    let engine = context.engine()?;
    let mut done = Done(vec![]);
    let status = context.each(&arguments.names, |context, name| {
        let status = engine.find_container(name)?.wait()?;
        done.add(context, name, run::exit_code(&status).to_string(), exit(&status));
        Ok(())
    });
    done.end(context, status)
}

pub fn kill(context: &mut Context, arguments: &cli::Kill) -> Result<u8, Failure> {
    let engine = context.engine()?;
    let mut done = Done(vec![]);
    let status = context.each(&arguments.containers.names, |context, name| {
        let container = engine.find_container(name)?;
        let info = container.info();
        if !lives(&info) {
            let cause = format!("it is not running, but {}", info.state);
            return Err(Failure::new(ErrorKind::Conflict, &format!("signal the container {name:?}"), cause));
        }
        container.signal(arguments.signal)?;
        done.add(context, name, name.to_owned(), json!({ "id": info.id.to_string() }));
        Ok(())
    });
    done.end(context, status)
}

/// All of them at once, since each may take the whole time.
pub fn stop(context: &mut Context, arguments: &cli::Stop) -> Result<u8, Failure> {
    let engine = context.engine()?;
    let patience = Duration::from_secs(arguments.time);
    let names = &arguments.containers.names;
    let results: Vec<Result<String, Failure>> = std::thread::scope(|scope| {
        let threads: Vec<_> = names.iter().map(|name| scope.spawn(|| stop_one(&engine, name, patience))).collect();
        let lost = || Failure::new(ErrorKind::Io, "stop the container", "the thread that did it panicked");
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(lost()))).collect()
    });
    let mut results = results.into_iter();
    let mut done = Done(vec![]);
    let status = context.each(names, |context, name| {
        if let Some(result) = results.next() {
            done.add(context, name, name.to_owned(), json!({ "id": result? }));
        }
        Ok(())
    });
    done.end(context, status)
}

fn stop_one(engine: &Engine, name: &str, patience: Duration) -> Result<String, Failure> {
    let container = engine.find_container(name)?;
    let id = container.id().to_string();
    if lives(&container.info()) {
        ended(container.stop(patience))?;
    }
    Ok(id)
}

/// That it has ended is all that counts here, even where its exit status is lost.
fn ended(result: coracle::Result<ExitStatus>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != ErrorKind::Launch => Err(error.into()),
        _ => Ok(()),
    }
}

pub fn remove(context: &mut Context, arguments: &cli::Rm) -> Result<u8, Failure> {
    let engine = context.engine()?;
    let mut done = Done(vec![]);
    let status = context.each(&arguments.containers.names, |context, name| {
        let container = engine.find_container(name)?;
        let id = container.id().to_string();
        if arguments.force && lives(&container.info()) {
            container.kill()?;
            ended(container.wait())?;
        }
        match container.remove() {
            // One that is not kept goes by itself.
            Err(error) if engine.find_container(&id).is_ok() => return Err(error.into()),
            _ => {}
        }
        done.add(context, name, name.to_owned(), json!({ "id": id }));
        Ok(())
    });
    done.end(context, status)
}
