//! snapshot, snapshots: what stopped containers had written, for others to start on.

use coracle::Engine;
use coracle::container::{SavedSnapshot, SnapshotInfo};
use serde_json::{Value, json};

use crate::cli::SnapshotCommand;
use crate::container::image_names;
use crate::failure::Failure;
use crate::table::Table;
use crate::{Context, cli, human};

pub fn snapshot(context: &mut Context, arguments: &cli::Snapshot) -> Result<u8, Failure> {
    match &arguments.command {
        Some(SnapshotCommand::Ls(arguments)) => return list(context, arguments),
        Some(SnapshotCommand::Rm(names)) => return remove(context, &names.names),
        None => {}
    }
    let engine = context.engine()?;
    let mut done = vec![];
    let status = context.each(&arguments.names, |context, name| {
        let saved = engine.find_container(name)?.snapshot()?;
        if !context.json {
            context.out.line(saved.id());
        }
        done.push(summary(saved.info()));
        Ok(())
    });
    if context.json {
        context.out.json(&done);
    }
    Ok(status)
}

fn summary(info: &SnapshotInfo) -> Value {
    json!({
        "id": info.id.to_string(),
        "image": info.image,
        "parent": info.parent.as_ref().map(ToString::to_string),
        "container": info.container.to_string(),
        "created": info.created,
    })
}

pub fn list(context: &mut Context, arguments: &cli::Snapshots) -> Result<u8, Failure> {
    let engine = context.engine()?;
    let mut snapshots = engine.snapshots()?;
    // The latest first, as containers are listed.
    snapshots.reverse();
    let id = |info: &SnapshotInfo| {
        if arguments.no_trunc { info.id.to_string() } else { info.id.short().to_owned() }
    };
    if arguments.quiet && !context.json {
        for info in &snapshots {
            context.out.line(id(info));
        }
        return Ok(0);
    }
    let size = |info: &SnapshotInfo| find(&engine, info).and_then(|saved| Ok(saved.usage()?));
    if context.json {
        let with_size = |info| {
            let mut object = summary(info);
            if let (Some(object), Ok(usage)) = (object.as_object_mut(), size(info)) {
                object.insert("bytes".to_owned(), usage.bytes.into());
                object.insert("inodes".to_owned(), usage.inodes.into());
            }
            object
        };
        context.out.json(&snapshots.iter().map(with_size).collect::<Vec<_>>());
        return Ok(0);
    }
    let names = image_names(&engine);
    let mut table = Table::new(["SNAPSHOT ID", "IMAGE", "CONTAINER", "CREATED", "SIZE"]);
    for info in &snapshots {
        table.row([
            id(info),
            names.get(&info.image).cloned().unwrap_or_else(|| human::short_id(&info.image).to_owned()),
            info.container.short().to_owned(),
            human::ago(Some(&info.created)),
            size(info).map_or_else(|_| "-".to_owned(), |usage| human::size(usage.bytes)),
        ]);
    }
    context.out.text(&table.render());
    Ok(0)
}

fn find(engine: &Engine, info: &SnapshotInfo) -> Result<SavedSnapshot, Failure> {
    Ok(engine.find_snapshot(&info.id.to_string())?)
}

fn remove(context: &mut Context, names: &[String]) -> Result<u8, Failure> {
    let engine = context.engine()?;
    let mut done = vec![];
    let status = context.each(names, |context, name| {
        let saved = engine.find_snapshot(name)?;
        let id = saved.id().to_string();
        saved.remove()?;
        if !context.json {
            context.out.line(name);
        }
        done.push(json!({ "name": name, "id": id }));
        Ok(())
    });
    if context.json {
        context.out.json(&done);
    }
    Ok(status)
}
