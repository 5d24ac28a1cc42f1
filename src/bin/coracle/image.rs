//! load, import, images, tag, rmi, history.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::Path;

use coracle::image::{FileOwner, ImportOptions, ImportSource, Listed, LoadOptions, LoadSource};
use coracle::{ErrorKind, Image, Reference};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::progress::Bars;
use crate::table::Table;
use crate::{Context, change, cli, commit, human};

/// What every list says about an image.
pub fn summary(image: &Image, names: &[Reference]) -> Value {
    json!({
        "id": image.id().to_string(),
        "digest": image.digest().to_string(),
        "names": names.iter().map(Reference::familiar).collect::<Vec<_>>(),
        "created": image.config().created,
        "size": image.size(),
        "platform": image.platform().to_string(),
    })
}

/// Standard input as a stream, unless a person would have to type a tar.
fn standard_input(step: &str) -> Result<std::fs::File, Failure> {
    let input = std::io::stdin();
    if input.is_terminal() {
        let refusal = Failure::new(ErrorKind::Invalid, step, "standard input is a terminal");
        return Err(refusal.remedy("name a file, or write `< FILE`"));
    }
    // Not through std's small buffer: the library reads in large pieces.
    let copy = input.as_fd().try_clone_to_owned().map_err(|error| Failure::io(step, None, &error))?;
    Ok(copy.into())
}

pub fn load(context: &mut Context, arguments: cli::Load) -> Result<u8, Failure> {
    let source = match arguments.file.or(arguments.input) {
        Some(path) if path != Path::new("-") => LoadSource::Path(path),
        _ => LoadSource::Stream(Box::new(standard_input("load an image")?)),
    };
    let engine = context.engine()?;
    let bars = Bars::new(context.json);
    let options = LoadOptions { platform: arguments.platform, progress: bars.observer(), ..LoadOptions::default() };
    let loaded = engine.images().load(source, &options);
    drop((options, bars));
    let mut list = vec![];
    for image in loaded? {
        // What this load gave it; the store may have other names for the same image.
        let names = image.called();
        if context.json {
            list.push(summary(&image, names));
            continue;
        }
        for name in names {
            context.out.line(format_args!("Loaded image: {}", name.familiar()));
        }
        if names.is_empty() {
            context.out.line(format_args!("Loaded image ID: {}", image.id()));
        }
    }
    if context.json {
        context.out.json(&list);
    }
    Ok(0)
}

pub fn import(context: &mut Context, arguments: cli::Import) -> Result<u8, Failure> {
    if !arguments.source.is_dir() {
        for (option, given) in
            [("--owner", arguments.owner.is_some()), ("--compression", arguments.compression.is_some())]
        {
            if given {
                let cause = format!("{option} is for directories, and a tar is taken as it is");
                let refusal = Failure::new(ErrorKind::Invalid, "import an image", cause);
                return Err(refusal.remedy("leave it out, or unpack the tar and import the directory"));
            }
        }
    }
    let clamp_mtime = commit::source_date_epoch("import an image")?;
    let mut options = ImportOptions {
        reference: arguments.reference.as_deref().map(str::parse).transpose()?,
        platform: arguments.platform,
        comment: arguments.message,
        owner: arguments.owner.as_deref().map(owner).transpose()?.unwrap_or_default(),
        created: clamp_mtime.map(commit::rfc3339).transpose()?,
        clamp_mtime,
        encoding: arguments.compression.map(|compression| compression.encoding(None)),
        ..ImportOptions::default()
    };
    for instruction in &arguments.change {
        change::apply(&mut options.config, instruction)?;
    }
    let source = match arguments.source {
        path if path == Path::new("-") => ImportSource::Stream(Box::new(standard_input("import an image")?)),
        path => ImportSource::Path(path),
    };
    let engine = context.engine()?;
    let bars = Bars::new(context.json);
    options.progress = bars.observer();
    let imported = engine.images().import(source, &options);
    drop((options, bars));
    let image = imported?;
    if context.json {
        context.out.json(&summary(&image, &image.tags()?));
    } else {
        context.out.line(image.id());
    }
    Ok(0)
}

fn owner(text: &str) -> Result<FileOwner, Failure> {
    let ids = text.split_once(':').and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
    let refusal = || Failure::new(ErrorKind::Invalid, &format!("give files to {text:?}"), "expected UID:GID");
    ids.map(|(uid, gid)| FileOwner::Fixed(uid, gid)).ok_or_else(refusal)
}

pub fn list(context: &mut Context, arguments: &cli::Images) -> Result<u8, Failure> {
    // One that is damaged must not hide the others.
    let (images, damaged) = context.engine()?.images().list_whole()?;
    show_list(context, arguments, &images);
    let status = u8::from(!damaged.is_empty());
    for error in damaged {
        Failure::from(error).tell(context.json);
    }
    Ok(status)
}

fn show_list(context: &mut Context, arguments: &cli::Images, images: &[Listed]) {
    if context.json {
        let list: Vec<Value> = images.iter().map(|listed| summary(&listed.image, &listed.tags)).collect();
        return context.out.json(&list);
    }
    let id = |image: &Image| {
        if arguments.no_trunc { image.id().to_string() } else { image.id().short().to_owned() }
    };
    if arguments.quiet {
        return images.iter().for_each(|listed| context.out.line(id(&listed.image)));
    }
    let mut table = Table::new(["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]);
    for listed in images {
        let mut row = |repository: String, tag: String| {
            let created = human::ago(listed.image.config().created.as_deref());
            table.row([repository, tag, id(&listed.image), created, human::size(listed.image.size())]);
        };
        for name in &listed.tags {
            let tag = name.tag().unwrap_or("<none>");
            let familiar = name.familiar();
            let repository = familiar.split_once('@').map_or(familiar.as_str(), |(name, _)| name);
            let repository = repository.strip_suffix(tag).and_then(|name| name.strip_suffix(':')).unwrap_or(repository);
            row(repository.to_owned(), tag.to_owned());
        }
        if listed.tags.is_empty() {
            row("<none>".to_owned(), "<none>".to_owned());
        }
    }
    context.out.text(&table.render());
}

pub fn tag(context: &mut Context, arguments: &cli::Tag) -> Result<u8, Failure> {
    let target: Reference = arguments.target.parse()?;
    let engine = context.engine()?;
    let image = engine.image(&arguments.source)?;
    engine.images().tag(&image, &target)?;
    if context.json {
        context.out.json(&summary(&image, &image.tags()?));
    }
    Ok(0)
}

pub fn remove(context: &mut Context, arguments: &cli::Rmi) -> Result<u8, Failure> {
    let engine = context.engine()?;
    let mut list = vec![];
    let status = context.each(&arguments.names, |context, name| {
        let removed = engine.remove_image(name, arguments.force)?;
        if context.json {
            list.push(json!({
                "name": name,
                "untagged": removed.untagged.iter().map(Reference::familiar).collect::<Vec<_>>(),
                "deleted": removed.deleted.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "freed": removed.freed,
            }));
            return Ok(());
        }
        for name in &removed.untagged {
            context.out.line(format_args!("Untagged: {}", name.familiar()));
        }
        for id in &removed.deleted {
            context.out.line(format_args!("Deleted: {id}"));
        }
        Ok(())
    });
    if context.json {
        context.out.json(&list);
    }
    Ok(status)
}

pub fn history(context: &mut Context, arguments: &cli::History) -> Result<u8, Failure> {
    let image = context.engine()?.image(&arguments.image)?;
    let mut steps = image.history();
    steps.reverse();
    let layer = |step: &coracle::image::Step| step.layer.as_ref().map(|(diff_id, _)| diff_id.to_string());
    if context.json {
        let steps: Vec<Value> = steps
            .iter()
            .map(|step| {
                json!({
                    "created": step.history.created,
                    "created_by": step.history.created_by,
                    "author": step.history.author,
                    "comment": step.history.comment,
                    "diff_id": layer(step),
                    "digest": step.layer.as_ref().map(|(_, blob)| blob.digest.to_string()),
                    "size": step.layer.as_ref().map_or(0, |(_, blob)| blob.size),
                })
            })
            .collect();
        context.out.json(&steps);
        return Ok(0);
    }
    let shown = |id: String| if arguments.no_trunc { id } else { human::short_id(&id).to_owned() };
    if arguments.quiet {
        for step in &steps {
            context.out.line(layer(step).map_or("<none>".to_owned(), shown));
        }
        return Ok(0);
    }
    let mut table = Table::new(["LAYER", "CREATED", "CREATED BY", "SIZE", "COMMENT"]);
    for step in &steps {
        let by = &step.history.created_by;
        table.row([
            layer(step).map_or("<none>".to_owned(), shown),
            human::ago(step.history.created.as_deref()),
            if arguments.no_trunc { by.clone() } else { human::shorten(by, 45) },
            human::size(step.layer.as_ref().map_or(0, |(_, blob)| blob.size)),
            step.history.comment.clone(),
        ]);
    }
    context.out.text(&table.render());
    Ok(0)
}
