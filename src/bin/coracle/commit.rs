//! commit and diff: images of what containers have changed.

use coracle::ErrorKind;
use coracle::image::{CommitOptions, Running};
use coracle::layer::{ChangeKind, Compression, EncoderOptions};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::{Context, change, cli, image};

pub fn commit(context: &mut Context, arguments: cli::Commit) -> Result<u8, Failure> {
    if let (Some(cli::LayerCompression::None), Some(_)) = (arguments.compression, arguments.level) {
        let cause = "there is no level of no compression";
        let refusal = Failure::new(ErrorKind::Invalid, "commit the container", cause);
        return Err(refusal.remedy("leave --level out, or choose gzip or zstd"));
    }
    let engine = context.engine()?;
    let container = engine.find_container(&arguments.container)?;
    let clamp_mtime = source_date_epoch("commit the container")?;
    let mut options = CommitOptions {
        reference: arguments.reference.as_deref().map(str::parse).transpose()?,
        author: arguments.author,
        comment: arguments.message,
        created: clamp_mtime.map(rfc3339).transpose()?,
        clamp_mtime,
        encoding: arguments
            .compression
            .map(|it| it.encoding(arguments.level))
            .unwrap_or(EncoderOptions { level: arguments.level, ..EncoderOptions::default() }),
        running: if arguments.no_pause { Running::Refuse } else { Running::Freeze },
        ..CommitOptions::default()
    };
    if !arguments.change.is_empty() {
        // A container over a directory has no image to take this from; `commit` says so.
        if let Some(id) = container.info().image {
            let mut config = engine.image(&id)?.config().config.clone();
            for instruction in &arguments.change {
                change::apply(&mut config, instruction)?;
            }
            options.config = Some(config);
        }
    }
    let image = container.commit(&options)?;
    if context.json {
        context.out.json(&image::summary(&image, &image.tags()?));
    } else {
        context.out.line(image.id());
    }
    Ok(0)
}

pub fn diff(context: &mut Context, arguments: &cli::Diff) -> Result<u8, Failure> {
    let changes = context.engine()?.find_container(&arguments.container)?.changes()?;
    let letter = |kind| match kind {
        ChangeKind::Added => "A",
        ChangeKind::Removed => "D",
        ChangeKind::Modified => "C",
    };
    if context.json {
        let list: Vec<Value> = changes
            .iter()
            .map(|change| json!({ "kind": letter(change.kind), "path": change.path.to_string_lossy() }))
            .collect();
        context.out.json(&list);
        return Ok(0);
    }
    for change in &changes {
        context.out.line(format_args!("{} {}", letter(change.kind), change.path.display()));
    }
    Ok(0)
}

impl cli::LayerCompression {
    /// How a layer is compressed, with this level.
    pub fn encoding(self, level: Option<u32>) -> EncoderOptions {
        let compression = match self {
            cli::LayerCompression::None => Compression::None,
            cli::LayerCompression::Gzip => Compression::Gzip,
            cli::LayerCompression::Zstd => Compression::Zstd,
        };
        EncoderOptions { compression, level, ..EncoderOptions::default() }
    }
}

/// The time that everything is to be of, see <https://reproducible-builds.org/specs/source-date-epoch/>.
pub fn source_date_epoch(step: &str) -> Result<Option<i64>, Failure> {
    const NAME: &str = "SOURCE_DATE_EPOCH";
    let Some(value) = std::env::var_os(NAME).filter(|value| !value.is_empty()) else { return Ok(None) };
    let seconds = value.to_str().and_then(|value| value.parse().ok());
    let refusal = || {
        let cause = format!("{NAME} is {value:?}, and not a number of seconds since 1970");
        Failure::new(ErrorKind::Invalid, step, cause)
    };
    seconds.map(Some).ok_or_else(refusal)
}

/// A time as image configs have it.
pub fn rfc3339(seconds: i64) -> Result<String, Failure> {
    jiff::Timestamp::from_second(seconds)
        .map(|time| time.to_string())
        .map_err(|error| Failure::new(ErrorKind::Invalid, "use SOURCE_DATE_EPOCH", error.to_string()))
}
