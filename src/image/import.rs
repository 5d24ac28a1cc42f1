//! From a plain root file system to an image of one layer.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use super::config::{Config, ContainerConfig, History, RootFs};
use super::load::{Session, layer_type, layer_type_of};
use super::manifest::{Descriptor, Manifest};
use super::{Image, Images, Observer, Resolved, blobs_of, index};
use crate::content::Ingest;
use crate::error::{Error, ErrorKind, Result};
use crate::layer::{self, Compression, Decoder, EncoderOptions, Limits, PackOptions, PackOwners, PackSource, exceeded};
use crate::name::{Algorithm, DiffId, Hasher, MediaType, Platform, Reference};

/// Where a root file system comes from.
#[non_exhaustive]
pub enum ImportSource {
    /// A directory, or a file that holds a tar, plain or compressed with gzip or zstd.
    Path(PathBuf),
    /// A tar as a stream, such as standard input; read to its end.
    Stream(Box<dyn Read + Send>),
}

impl<P: Into<PathBuf>> From<P> for ImportSource {
    fn from(path: P) -> Self {
        ImportSource::Path(path.into())
    }
}

/// Whose the files of an imported directory are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FileOwner {
    /// Whoever owns them in the directory, by number.
    #[default]
    AsFound,
    /// One uid and gid for everything, such as 0 and 0 for a tree that an ordinary user put together.
    Fixed(u32, u32),
}

/// What an imported image is like. The default is a nameless image for the engine's platform that was made now and
/// runs nothing by itself.
#[derive(Clone, Default)]
pub struct ImportOptions {
    /// Its name.
    pub reference: Option<Reference>,
    /// What it is for.
    pub platform: Option<Platform>,
    /// What its containers run.
    pub config: ContainerConfig,
    /// A remark for the history.
    pub comment: String,
    /// When it was made, RFC 3339. Together with an unchanged source this makes the image's ID the same again.
    pub created: Option<String>,
    /// Whose the files of a directory are. A tar's owners are taken as they are.
    pub owner: FileOwner,
    /// Later times of a directory's files become this one, in seconds since 1970; see [`PackOptions::clamp_mtime`].
    pub clamp_mtime: Option<i64>,
    /// How the layer of a directory is compressed; not at all without this.
    pub encoding: Option<EncoderOptions>,
    /// Receives what happens on the way.
    pub progress: Option<Observer>,
}

impl Images {
    /// Makes an image of one layer from a root file system, and unpacks it.
    ///
    /// A tar is kept as it is, compressed or not. Of a directory everything below it is taken, sockets excepted; the
    /// mode of the directory itself is not, `/` of the image gets 0755.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for an empty source or a time that is none;
    /// [`Unsupported`](ErrorKind::Unsupported) for other compressions; [`Corrupt`](ErrorKind::Corrupt),
    /// [`Hostile`](ErrorKind::Hostile) and [`Limit`](ErrorKind::Limit) for a tar that cannot be unpacked;
    /// [`Conflict`](ErrorKind::Conflict) for a directory that changes while it is read. Nothing is left behind.
    pub fn import(&self, source: impl Into<ImportSource>, options: &ImportOptions) -> Result<Image> {
        let mut session = Session::new(self.clone(), options.progress.clone())?;
        let source = source.into();
        let path = match &source {
            ImportSource::Path(path) => Some(path.clone()),
            ImportSource::Stream(_) => None,
        };
        let imported = self.import_in(&mut session, source, options).map_err(|error| match path {
            // Told by whoever unpacks the layer, and that knows no file.
            Some(path) if error.failed_path().is_none() && error.step() == "read the tar" => error.path(path),
            _ => error,
        });
        let keep =
            imported.as_ref().map(|image| blobs_of(image).into_iter().collect()).unwrap_or_else(|_| HashSet::new());
        // Garbage is no reason to fail an import that succeeded, and must not hide why it failed.
        let _ = session.finish(&keep);
        imported
    }

    fn import_in(&self, session: &mut Session, source: ImportSource, options: &ImportOptions) -> Result<Image> {
        let created = created_or_now(STEP, options.created.as_deref())?;
        let (layer, diff_id) = take_layer(session, source, options, &self.layers().options().limits)?;
        let platform = options.platform.as_ref().unwrap_or(self.platform()).normalized();
        let config = Config {
            created: Some(created.clone()),
            architecture: platform.architecture,
            variant: platform.variant.unwrap_or_default(),
            os: platform.os,
            os_version: platform.os_version.unwrap_or_default(),
            config: options.config.clone(),
            rootfs: RootFs { diff_ids: vec![diff_id], ..RootFs::default() },
            history: vec![History {
                created: Some(created),
                created_by: "coracle import".into(),
                comment: options.comment.clone(),
                ..History::default()
            }],
            ..Config::default()
        };
        self.put_image(session, config, vec![layer], options.reference.as_ref(), options.progress.as_ref())
    }

    /// Makes an image of a config and layers that the store has, unpacks them, and makes it visible.
    pub(super) fn put_image(
        &self,
        session: &mut Session,
        config: Config,
        layers: Vec<Descriptor>,
        name: Option<&Reference>,
        progress: Option<&Observer>,
    ) -> Result<Image> {
        let bytes = config.to_bytes()?;
        // The same checks as for the configs of others.
        let config = Config::parse(&bytes)?;
        let config_descriptor = Descriptor::new(MediaType::OciConfig, session.put(&bytes)?, bytes.len() as u64);
        let manifest = Manifest::new(config_descriptor, layers);
        let bytes = manifest.to_bytes()?;
        let descriptor = Descriptor::new(MediaType::OciManifest, session.put(&bytes)?, bytes.len() as u64);
        let image = Image::new(self.clone(), Resolved { descriptor, manifest, config });
        let image = image.called_as(name.into_iter().cloned().collect());
        session.hold_layers(&image)?;
        image.ensure_layers(progress)?;
        self.content().update_index(|entries| {
            self.set_names(entries, &image, name.map_or(&[], std::slice::from_ref));
            index::keep(entries, image.entry());
            Ok(())
        })?;
        Ok(image)
    }
}

/// A time as configs have it: the one that the caller names, or now.
pub(super) fn created_or_now(step: &'static str, created: Option<&str>) -> Result<String> {
    let Some(text) = created else { return Ok(jiff::Timestamp::now().to_string()) };
    match text.parse::<jiff::Timestamp>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => {
            Err(Error::new(ErrorKind::Invalid, step)
                .because(format!("the time {text:?} is not an RFC 3339 time: {error}")))
        }
    }
}

/// Takes in the one layer; gives its blob and its DiffID.
fn take_layer(
    session: &mut Session,
    source: ImportSource,
    options: &ImportOptions,
    limits: &Limits,
) -> Result<(Descriptor, DiffId)> {
    match source {
        ImportSource::Stream(stream) => take_tar(session, "the stream", stream),
        ImportSource::Path(path) => {
            let open = |error| Error::of_path(STEP, "open", error, &path);
            let file = File::open(&path).map_err(open)?;
            if !file.metadata().map_err(open)?.is_dir() {
                return take_tar(session, &path.to_string_lossy(), file);
            }
            let encoding = options
                .encoding
                .clone()
                .unwrap_or(EncoderOptions { compression: Compression::None, ..EncoderOptions::default() });
            let packing = PackOptions {
                owners: match options.owner {
                    FileOwner::AsFound => PackOwners::AsFound,
                    FileOwner::Fixed(uid, gid) => PackOwners::Fixed(uid, gid),
                },
                clamp_mtime: options.clamp_mtime,
                limits: limits.clone(),
                ..PackOptions::default()
            };
            let mut diff_id = None;
            let (digest, size) = session.write(&path.to_string_lossy(), |ingest| {
                let (_, encoded, _) = layer::encode(PackSource::Directory(&path), &packing, &encoding, ingest)?;
                diff_id = encoded.digest;
                Ok(())
            })?;
            let diff_id = DiffId(diff_id.unwrap_or_else(|| digest.clone()));
            Ok((Descriptor::new(layer_type_of(encoding.compression), digest, size), diff_id))
        }
    }
}

/// Buffers of this size on both sides of the decompressor.
const BUFFER: usize = 256 << 10;

fn take_tar(session: &mut Session, name: &str, source: impl Read) -> Result<(Descriptor, DiffId)> {
    let mut diff_id = None;
    let limits = session.images().layers().options().limits.clone();
    let root = session.images().content().root().to_owned();
    let (digest, size) = session.write(name, |ingest| {
        let tee = Tee { source, ingest, most: limits.bytes, root: &root };
        let mut decoder = Decoder::with_window(BufReader::with_capacity(BUFFER, tee), limits.zstd_window)?;
        // Of a plain tar, the blob's digest is the DiffID.
        let mut hasher = (decoder.compression() != Compression::None).then(|| Hasher::new(Algorithm::Sha256));
        let mut buffer = vec![0; BUFFER];
        let mut read = 0u64;
        loop {
            match decoder.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    read += count as u64;
                    // Or what cannot be unpacked would first be taken in, or inflated, to its end.
                    if read > limits.bytes {
                        return Err(exceeded("bytes", limits.bytes));
                    }
                    if let Some(hasher) = &mut hasher {
                        hasher.update(&buffer[..count]);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(STEP, "read", error).path(name)),
            }
        }
        if decoder.into_inner().into_inner().ingest.written() == 0 {
            return Err(Error::new(ErrorKind::Invalid, STEP).path(name).because("it is empty"));
        }
        diff_id = hasher.map(Hasher::finish);
        Ok(())
    })?;
    let media_type = layer_type(&session.beginning(&digest)?);
    let diff_id = diff_id.unwrap_or_else(|| digest.clone());
    Ok((Descriptor::new(media_type, digest, size), DiffId(diff_id)))
}

/// What is read from the source also goes into the blob.
struct Tee<'a, R> {
    source: R,
    ingest: &'a mut Ingest,
    /// Bytes that it may have: one that inflates to nothing has no other end.
    most: u64,
    /// Where the blob is written.
    root: &'a Path,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.ingest.write_all(&buffer[..count]).map_err(|error| match error.raw_os_error() {
            // Nothing is wrong with the source.
            Some(_) => Error::io(STEP, "write", error).path(self.root).into(),
            None => error,
        })?;
        if self.ingest.written() > self.most {
            return Err(exceeded("bytes", self.most).into());
        }
        Ok(count)
    }
}

const STEP: &str = "import the root file system";
