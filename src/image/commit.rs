//! From an image and what a container has changed to an image of one layer more.

use std::collections::HashSet;

use super::config::{ContainerConfig, History};
use super::load::{Session, layer_type_of};
use super::manifest::Descriptor;
use super::{Image, Images, blobs_of, created_or_now};
use crate::error::{Error, ErrorKind, Result};
use crate::layer::{self, EncoderOptions, PackOptions, PackSource};
use crate::name::{DiffId, MediaType, Reference};

/// What a committed image is like, and how it is made. The default is a nameless image that was made now and runs what
/// its parent runs.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// Its name.
    pub reference: Option<Reference>,
    /// Who made it.
    pub author: String,
    /// A remark for the history.
    pub comment: String,
    /// What its containers run; as its parent says without this.
    pub config: Option<ContainerConfig>,
    /// When it was made, RFC 3339. Together with unchanged files and [`clamp_mtime`](CommitOptions::clamp_mtime) this
    /// makes the image's ID the same again.
    pub created: Option<String>,
    /// Later times of files become this one, in seconds since 1970; see [`PackOptions::clamp_mtime`].
    pub clamp_mtime: Option<i64>,
    /// How the layer is compressed.
    pub encoding: EncoderOptions,
    /// What to do about a container that runs.
    pub running: Running,
}

/// What to do about a container that runs: while its processes write, its files are not of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Running {
    /// They are frozen for as long as their files are read, as docker does it; this needs a control group.
    #[default]
    Freeze,
    /// It is refused.
    Refuse,
}

const STEP: &str = "commit the container";

impl Images {
    /// Makes an image of `parent` and a layer more for each of `sources` (lowest first) that has changes, and unpacks
    /// these. Where there are no changes at all there is no more layer either, as with docker, but a step in the history.
    ///
    /// What `hold_still` returns is kept for as long as the sources are read, and no longer.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for a time that is none, [`NotFound`](ErrorKind::NotFound) for a parent whose
    /// blobs are gone, and those of [`layer::pack()`]. Nothing is left behind.
    pub(crate) fn commit<H>(
        &self,
        parent: &Image,
        (sources, packing): (&[PackSource<'_>], &PackOptions),
        created_by: &str,
        options: &CommitOptions,
        hold_still: impl FnOnce() -> Result<H>,
    ) -> Result<Image> {
        let mut session = Session::new(self.clone(), None)?;
        let changes = (sources, packing);
        let committed = self.commit_in(&mut session, parent, changes, created_by, options, hold_still);
        let keep = committed.as_ref().map(blobs_of).unwrap_or_default().into_iter().collect::<HashSet<_>>();
        // Garbage is no reason to fail a commit that succeeded, and must not hide why it failed.
        let _ = session.finish(&keep);
        committed
    }

    fn commit_in<H>(
        &self,
        session: &mut Session,
        parent: &Image,
        (sources, packing): (&[PackSource<'_>], &PackOptions),
        created_by: &str,
        options: &CommitOptions,
        hold_still: impl FnOnce() -> Result<H>,
    ) -> Result<Image> {
        let created = created_or_now(STEP, options.created.as_deref())?;
        let mut layers = Vec::new();
        for layer in &parent.manifest().layers {
            if !session.has(&layer.digest, layer.size)? {
                return Err(Error::new(ErrorKind::NotFound, STEP)
                    .path(layer.digest.as_str())
                    .because("the store does not have this layer of the container's image"));
            }
            layers.push(Descriptor { media_type: oci_type(&layer.media_type), ..layer.clone() });
        }
        let mut config = parent.config().clone();
        config.created = Some(created.clone());
        config.author.clone_from(&options.author);
        if let Some(changed) = &options.config {
            config.config = changed.clone();
        }
        // What docker noted about the container that the parent was made in.
        for stale in ["container", "container_config", "id", "parent"] {
            config.other.remove(stale);
        }
        let step = History {
            created: Some(created),
            created_by: created_by.to_owned(),
            author: options.author.clone(),
            comment: options.comment.clone(),
            ..History::default()
        };
        let steps = config.history.len();
        let held = hold_still()?;
        for source in sources {
            if let Some((layer, diff_id)) = add_layer(session, *source, packing, &options.encoding)? {
                layers.push(layer);
                config.rootfs.diff_ids.push(diff_id);
                config.history.push(step.clone());
            }
        }
        drop(held);
        if config.history.len() == steps {
            config.history.push(History { empty_layer: true, ..step });
        }
        self.put_image(session, config, layers, options.reference.as_ref(), None)
    }
}

/// Packs the changes into a blob; `None` where there are none.
fn add_layer(
    session: &mut Session,
    source: PackSource<'_>,
    packing: &PackOptions,
    encoding: &EncoderOptions,
) -> Result<Option<(Descriptor, DiffId)>> {
    let mut diff_id = None;
    let mut is_empty = false;
    let written = session.write("the container's changes", |ingest| {
        let (packed, encoded, _) = layer::encode(source, packing, encoding, ingest)?;
        diff_id = encoded.digest;
        is_empty = packed.entries == 0;
        // An error is how a blob is not kept.
        if is_empty { Err(Error::new(ErrorKind::NotFound, STEP).because("nothing was changed")) } else { Ok(()) }
    });
    if is_empty {
        return Ok(None);
    }
    let (digest, size) = written?;
    let diff_id = DiffId(diff_id.unwrap_or_else(|| digest.clone()));
    Ok(Some((Descriptor::new(layer_type_of(encoding.compression), digest, size), diff_id)))
}

/// The name that OCI has for one of docker's types of layers: a manifest holds types of one family.
fn oci_type(media_type: &MediaType) -> MediaType {
    match media_type {
        MediaType::DockerLayer => MediaType::OciLayer,
        MediaType::DockerLayerGzip => MediaType::OciLayerGzip,
        MediaType::DockerLayerZstd => MediaType::OciLayerZstd,
        MediaType::DockerLayerForeignGzip => MediaType::OciLayerNondistributableGzip,
        other => other.clone(),
    }
}
