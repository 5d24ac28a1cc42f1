//! Taking in images from archives and layouts.
//!
//! | source | recognised by |
//! |---|---|
//! | an OCI image layout, as a directory or a tar | `oci-layout` and `index.json` |
//! | a Docker archive (`docker save`, `skopeo copy … docker-archive:`), as a tar or unpacked | `manifest.json` |
//! | both in one, as `docker save` writes since version 25 | the layout counts, `manifest.json` adds names |
//!
//! A tar may be plain or compressed with gzip or zstd, and is read once, front to back, so a pipe will do. Since such
//! archives may name their layers last, blobs go straight into the store under a lease, and what turns out not to be
//! wanted is collected afterwards. Blobs that the store has are skipped without being read.
//!
//! Archives are hostile input: names in them are keys of a map and never opened as paths, every blob is checked
//! against the digest that names it, every layer against the DiffID in the config, and documents, nesting and member
//! counts are bounded.

mod archive;
mod directory;
mod docker;
mod known;
mod layout;
mod session;

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

pub(super) use self::layout::{layer_type, layer_type_of};
pub(super) use self::session::Session;
use super::config::Config;
use super::manifest::{Descriptor, MAX_DOCUMENT, Manifest};
use super::{Image, Images, Observer, Resolved, Wanted, blobs_of, index, resolve};
use crate::error::{Error, ErrorKind, Result};
use crate::name::{DiffId, Digest, MediaType, Platform, Reference};

/// Where images are loaded from.
#[non_exhaustive]
pub enum LoadSource {
    /// A directory that holds an OCI image layout or an unpacked Docker archive, or a file that holds a tar of one.
    Path(PathBuf),
    /// A tar as a stream, such as standard input; read to its end.
    Stream(Box<dyn Read + Send>),
}

impl<P: Into<PathBuf>> From<P> for LoadSource {
    fn from(path: P) -> Self {
        LoadSource::Path(path.into())
    }
}

/// How images are loaded. The default takes every image of the archive for the engine's platform, under the names
/// that the archive gives them.
#[derive(Clone, Default)]
pub struct LoadOptions {
    /// Choose this platform from multi-platform images, and refuse single images of another one.
    pub platform: Option<Platform>,
    /// Name the image so, and by nothing else. Of several images in the archive, the one that already has this name,
    /// or this tag without a repository, is taken.
    pub reference: Option<Reference>,
    /// Receives what happens on the way.
    pub progress: Option<Observer>,
}

/// An image that a source offers, and what the source calls it.
#[derive(Debug)]
struct Candidate<T> {
    image: T,
    names: Vec<Reference>,
    /// A tag without a repository: it picks an image but cannot name it.
    bare: Option<String>,
}

/// What a source offers, whatever its form.
trait Bundle {
    /// One of the documents at the top: `oci-layout`, `index.json`, `manifest.json`, `repositories`.
    fn document(&mut self, name: &'static str) -> Result<Option<Vec<u8>>>;
    /// Takes in a blob of `blobs/` that the store does not have; false if the source has none of that digest.
    fn blob(&mut self, session: &mut Session, digest: &Digest, size: u64) -> Result<bool>;
    /// Takes in a file by its path in a Docker archive; of a layer it is known what it is when it is not compressed, and
    /// one that the store has is not read then.
    fn member(&mut self, session: &mut Session, path: &str, layer: Option<&DiffId>) -> Result<Option<(Digest, u64)>>;
    /// Whether it has nothing at all.
    fn is_empty(&self) -> bool {
        false
    }
}

impl Images {
    /// Takes in the images of an archive or layout, unpacks their layers and names them. All or nothing: the images
    /// become visible together, or, after an error, not at all.
    ///
    /// Images that are there already are named again and otherwise left as they are; only unpacked layers that
    /// [`Engine::check`](crate::Engine::check) has found changed are unpacked anew. A name that another image had
    /// moves; that image stays, nameless if this was its last name.
    ///
    /// # Errors
    /// * [`Invalid`](ErrorKind::Invalid): not an image archive, or a name in it that cannot be one.
    /// * [`Corrupt`](ErrorKind::Corrupt): cut short, a blob without the bytes that its digest promises, documents that
    ///   contradict each other.
    /// * [`NotFound`](ErrorKind::NotFound): a blob that a manifest names is missing, or nothing fits the platform.
    /// * [`Unsupported`](ErrorKind::Unsupported): unknown media types or compression, schema 1.
    /// * [`Hostile`](ErrorKind::Hostile), [`Limit`](ErrorKind::Limit): paths that leave the archive, documents over
    ///   4 MiB or nested without end.
    ///
    /// The message names the blob or the path in the archive.
    pub fn load(&self, source: impl Into<LoadSource>, options: &LoadOptions) -> Result<Vec<Image>> {
        let mut session = Session::new(self.clone(), options.progress.clone())?;
        let loaded = self.load_in(&mut session, source.into(), options);
        let keep = match &loaded {
            Ok(images) => images.iter().flat_map(blobs_of).collect::<HashSet<Digest>>(),
            Err(_) => HashSet::new(),
        };
        // Garbage is no reason to fail a load that succeeded, and must not hide why it failed.
        let _ = session.finish(&keep);
        loaded
    }

    fn load_in(&self, session: &mut Session, source: LoadSource, options: &LoadOptions) -> Result<Vec<Image>> {
        let wanted = Wanted {
            platform: options.platform.clone().unwrap_or_else(|| self.platform().clone()),
            strict: options.platform.is_some(),
        };
        let (mut images, path) = match source {
            LoadSource::Stream(stream) => {
                let archive = archive::Archive::read(session, stream).map_err(|error| of_archive(error, None))?;
                let gathered = gather(&mut { archive }, session, &wanted, options);
                (gathered.map_err(|error| of_archive(error, None))?, None)
            }
            LoadSource::Path(path) => (gather_at(&path, session, &wanted, options)?, Some(path)),
        };
        if let Err(error) = unpack(session, &images, options) {
            // The kernel's refusals say nothing about the blobs.
            let refused = matches!(error.kind(), ErrorKind::Io | ErrorKind::Full | ErrorKind::Denied);
            if refused || !session.find_damage(layers_of(&images)).unwrap_or(false) {
                return Err(error);
            }
            // A pipe has given its bytes.
            let Some(path) = path.filter(|path| path.is_file() || path.is_dir()) else {
                return Err(error.remedy("load the image from a file or a directory, which can be read twice"));
            };
            images = gather_at(&path, session, &wanted, options)?;
            unpack(session, &images, options)?;
        }
        self.content().update_index(|entries| {
            for (image, names) in &images {
                self.set_names(entries, image, names);
                index::keep(entries, image.entry());
            }
            Ok(())
        })?;
        Ok(images.into_iter().map(|(image, names)| image.called_as(names)).collect())
    }
}

/// An image, and what the source calls it.
type Named = (Image, Vec<Reference>);

/// [`gather`] of a directory or a file.
fn gather_at(path: &Path, session: &mut Session, wanted: &Wanted, options: &LoadOptions) -> Result<Vec<Named>> {
    let open = |error| Error::of_path(STEP, "open", error, path);
    let file = File::open(path).map_err(open)?;
    if file.metadata().map_err(open)?.is_dir() {
        gather(&mut directory::Directory::new(path.to_owned())?, session, wanted, options)
    } else {
        archive::Archive::read_file(session, file).and_then(|mut it| gather(&mut it, session, wanted, options))
    }
    .map_err(|error| of_archive(error, Some(path)))
    .map_err(|error| if error.failed_path().is_some() { error } else { error.path(path) })
}

/// Says of an error which archive it was, where it names at most something in the archive, and what helps.
fn of_archive(error: Error, path: Option<&Path>) -> Error {
    let damaged = matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid) && error.raw_os_error().is_none();
    let mut error = error;
    if let Some(path) = path
        && let Some(within) = error.failed_path().filter(|it| it.is_relative() && !it.starts_with(path))
    {
        let within = within.display().to_string();
        error = error.of_part(&within).path(path);
    }
    if damaged && error.remedy_hint().is_none() {
        error = error.remedy("get or write the archive again: it is damaged, was cut short, or is none");
    }
    error
}

fn unpack(session: &mut Session, images: &[Named], options: &LoadOptions) -> Result<()> {
    for (image, _) in images {
        session.hold_layers(image)?;
        image.ensure_layers(options.progress.as_ref())?;
    }
    Ok(())
}

fn layers_of(images: &[Named]) -> impl Iterator<Item = &Digest> {
    images.iter().flat_map(|(image, _)| image.manifest().layers.iter().map(|layer| &layer.digest))
}

/// Names that one archive may give.
const MAX_NAMES: usize = 10_000;

/// Reads what the source offers; afterwards every blob of the chosen images is in the store, and leased.
fn gather(
    bundle: &mut dyn Bundle,
    session: &mut Session,
    wanted: &Wanted,
    options: &LoadOptions,
) -> Result<Vec<Named>> {
    let saved = bundle.document("manifest.json")?.map(|bytes| docker::parse(&bytes)).transpose()?;
    let mut found = Vec::new();
    if let Some(index) = bundle.document("index.json")? {
        if let Some(marker) = bundle.document("oci-layout")? {
            layout::check_version(&marker)?;
        }
        for candidate in choose(layout::candidates(&index)?, options)? {
            found.push((from_layout(bundle, session, wanted, &candidate.image)?, candidate.names));
        }
        add_saved_names(&mut found, saved.as_deref().unwrap_or_default())?;
    } else if let Some(saved) = saved {
        let mut candidates = Vec::new();
        for image in saved {
            candidates.push(Candidate { names: image.names()?, image, bare: None });
        }
        for candidate in choose(candidates, options)? {
            let resolved = from_saved(bundle, session, &candidate.image)?;
            resolved.check_platform(wanted)?;
            found.push((resolved, candidate.names));
        }
    } else {
        return Err(not_an_archive(bundle)?);
    }
    if found.is_empty() {
        return Err(Error::new(ErrorKind::Invalid, STEP).because("it holds no image"));
    }
    let names: usize = found.iter().map(|(_, names)| names.len()).sum();
    if names > MAX_NAMES {
        return Err(Error::new(ErrorKind::Limit, STEP)
            .because(format!("it gives {names} names; the limit for one archive is {MAX_NAMES}")));
    }
    if let (Some(name), [(_, names)]) = (&options.reference, found.as_mut_slice()) {
        *names = vec![name.clone()];
    }
    Ok(found.into_iter().map(|(resolved, names)| (Image::new(session.images().clone(), resolved), names)).collect())
}

/// With a reference asked for, the one image that it can mean.
fn choose<T>(mut candidates: Vec<Candidate<T>>, options: &LoadOptions) -> Result<Vec<Candidate<T>>> {
    let Some(reference) = &options.reference else { return Ok(candidates) };
    if candidates.len() <= 1 {
        return Ok(candidates);
    }
    let offered: Vec<String> =
        candidates.iter().flat_map(|it| it.names.iter().map(Reference::familiar).chain(it.bare.clone())).collect();
    candidates.retain(|it| it.names.contains(reference) || it.bare.is_some() && it.bare.as_deref() == reference.tag());
    if candidates.len() == 1 {
        return Ok(candidates);
    }
    Err(Error::new(ErrorKind::Invalid, STEP)
        .because(format!(
            "it holds several images and {} of them can be meant by {:?}; it calls them {offered:?}",
            candidates.len(),
            reference.familiar()
        ))
        .remedy("load them under their own names, and tag them then"))
}

/// An image of an OCI layout.
fn from_layout(
    bundle: &mut dyn Bundle,
    session: &mut Session,
    wanted: &Wanted,
    roots: &[Descriptor],
) -> Result<Resolved> {
    let mut resolved = resolve::resolve(roots, wanted, &mut |descriptor, role| {
        if descriptor.size > MAX_DOCUMENT {
            return Err(Error::new(ErrorKind::Limit, format!("read the {role}"))
                .path(descriptor.digest.as_str())
                .because(format!("it has {} bytes; the limit for documents is {MAX_DOCUMENT}", descriptor.size)));
        }
        fetch(bundle, session, descriptor, role)?;
        session.images().content().read_blob(&descriptor.digest, MAX_DOCUMENT)
    })?;
    // Annotations belong to the entry of the source's index, not to ours.
    let Descriptor { media_type, digest, size, .. } = resolved.descriptor;
    resolved.descriptor = Descriptor::new(media_type, digest, size);
    let layers = resolved.manifest.layers.len();
    for (position, layer) in resolved.manifest.layers.iter().enumerate() {
        fetch(bundle, session, layer, format!("layer {} of {layers}", position + 1))?;
    }
    Ok(resolved)
}

/// Makes sure that the store has a blob.
fn fetch(bundle: &mut dyn Bundle, session: &mut Session, blob: &Descriptor, role: impl Into<String>) -> Result<()> {
    if session.has(&blob.digest, blob.size)? || bundle.blob(session, &blob.digest, blob.size)? {
        return Ok(());
    }
    if let Some(error) = session.wrong_size(&blob.digest, blob.size) {
        return Err(error);
    }
    let error = Error::new(ErrorKind::NotFound, format!("take in the {}", role.into())).path(blob.digest.as_str());
    Err(if blob.media_type.is_foreign_layer() {
        error
            .because("the archive leaves out this layer, for it may not be redistributed")
            .remedy("save the archive with a program that has the layer")
    } else {
        error.because("the blob is missing from the archive").remedy("write the archive again")
    })
}

/// An image of a Docker archive. Such an archive has no manifest, so one is made; it is the same each time.
fn from_saved(bundle: &mut dyn Bundle, session: &mut Session, saved: &docker::Saved) -> Result<Resolved> {
    let missing = |path: &str| {
        Error::new(ErrorKind::NotFound, STEP)
            .path(path)
            .because("manifest.json names it, but the archive does not have it")
    };
    let (digest, size) = bundle.member(session, &saved.config, None)?.ok_or_else(|| missing(&saved.config))?;
    if let Some(named) = saved.named_digest().filter(|named| *named != digest) {
        return Err(Error::new(ErrorKind::Corrupt, STEP)
            .path(&saved.config)
            .because(format!("the config is called {named}, but its bytes have the digest {digest}")));
    }
    let at = |error: Error| if error.failed_path().is_some() { error } else { error.path(&saved.config) };
    let bytes = session.images().content().read_blob(&digest, MAX_DOCUMENT).map_err(at)?;
    let config = Config::parse(&bytes).map_err(at)?;
    config.check_layer_count(saved.layers.len()).map_err(at)?;
    let config_descriptor = Descriptor::new(MediaType::OciConfig, digest, size);
    let mut layers = Vec::new();
    for (path, diff_id) in saved.layers.iter().zip(&config.rootfs.diff_ids) {
        let (digest, size) = bundle.member(session, path, Some(diff_id))?.ok_or_else(|| missing(path))?;
        let media_type = layout::layer_type(&session.beginning(&digest)?);
        if media_type == MediaType::OciLayer && digest != *diff_id.digest() {
            return Err(Error::new(ErrorKind::Corrupt, STEP)
                .path(path)
                .because(format!("the layer has the digest {digest}, but the config says {diff_id}")));
        }
        layers.push(Descriptor::new(media_type, digest, size));
    }
    let manifest = Manifest::new(config_descriptor, layers);
    let bytes = manifest.to_bytes()?;
    let digest = session.put(&bytes)?;
    Ok(Resolved { descriptor: Descriptor::new(MediaType::OciManifest, digest, bytes.len() as u64), manifest, config })
}

/// Adds the names that `manifest.json` has for images that were found through `index.json`.
fn add_saved_names(found: &mut [(Resolved, Vec<Reference>)], saved: &[docker::Saved]) -> Result<()> {
    for saved in saved {
        let Some(config) = saved.named_digest() else { continue };
        for (_, names) in found.iter_mut().filter(|(resolved, _)| resolved.manifest.config.digest == config) {
            for name in saved.names()? {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
    }
    Ok(())
}

fn not_an_archive(bundle: &mut dyn Bundle) -> Result<Error> {
    if bundle.document("repositories")?.is_some() {
        return Ok(Error::new(ErrorKind::Unsupported, STEP)
            .because("it is an archive of Docker 1.9 or older, without manifest.json")
            .remedy("load it with Docker and save it again"));
    }
    if bundle.is_empty() {
        return Ok(Error::new(ErrorKind::Invalid, STEP)
            .because("it is empty")
            .remedy("look at what was to write it; docker save and skopeo copy write archives"));
    }
    Ok(Error::new(ErrorKind::Invalid, STEP)
        .because("it is no image archive: it has neither index.json nor manifest.json")
        .remedy("a plain root file system becomes an image by import"))
}

const STEP: &str = "load the image archive";
