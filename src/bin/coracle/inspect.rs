//! inspect: everything about images and containers, always as JSON.

use coracle::{Engine, ErrorKind, Image};
use serde_json::{Value, json};

use crate::cli::Type;
use crate::failure::Failure;
use crate::{Context, cli, container, image};

pub fn inspect(context: &mut Context, arguments: &cli::Inspect) -> Result<u8, Failure> {
    let engine = context.engine()?;
    let mut list = vec![];
    let status = context.each(&arguments.names, |_, name| {
        list.push(find(&engine, name, arguments.kind)?);
        Ok(())
    });
    context.out.pretty_json(&list);
    Ok(status)
}

fn find(engine: &Engine, name: &str, kind: Option<Type>) -> Result<Value, Failure> {
    if kind != Some(Type::Image) {
        match engine.find_container(name) {
            Ok(found) => return Ok(with_type("container", container::summary(&found.info()))),
            Err(error) if kind.is_none() && error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    match engine.image(name) {
        Ok(image) => of_image(&image),
        // What can be no image's name could still have been a container's.
        Err(error) if kind.is_none() && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Invalid) => {
            let cause = match error.kind() {
                ErrorKind::NotFound => "no container and no image has this name or ID".to_owned(),
                _ => format!("no container has this name or ID, and {error}"),
            };
            Err(Failure::new(error.kind(), &format!("find {name:?}"), cause))
        }
        Err(error) => Err(error.into()),
    }
}

fn with_type(kind: &str, mut object: Value) -> Value {
    if let Some(object) = object.as_object_mut() {
        object.insert("type".to_owned(), kind.into());
    }
    object
}

fn of_image(image: &Image) -> Result<Value, Failure> {
    let mut object = with_type("image", image::summary(image, &image.tags()?));
    let layers = image.layers().map(|(diff_id, blob)| {
        json!({
            "diff_id": diff_id.to_string(),
            "digest": blob.digest.to_string(),
            "media_type": blob.media_type.as_str(),
            "size": blob.size,
        })
    });
    let config = image.config();
    if let Some(object) = object.as_object_mut() {
        object.insert("author".to_owned(), config.author.clone().into());
        object.insert("layers".to_owned(), layers.collect());
        // As the image has it, with the field names of the image specification.
        object.insert("config".to_owned(), json!(config.config));
        object.insert("manifest".to_owned(), json!(image.manifest()));
    }
    Ok(object)
}
