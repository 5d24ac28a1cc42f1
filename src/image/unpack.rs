//! From an image to the unpacked layers that a container stands on.

use super::{Image, Observer, Progress};
use crate::error::Result;
use crate::layer::{Layer, LayerProgress};
use crate::name::{DiffId, Digest};

impl Image {
    /// The image's unpacked layers, lowest first. What is not unpacked yet is unpacked now, several layers at a time;
    /// where all are there, this costs a look at each.
    ///
    /// Whoever lets something stand on the layers shares [`Images::lock`](super::Images::lock) from before this call
    /// until a removal can see that they are in use, or holds their DiffIDs by a lease.
    pub(crate) fn ensure_layers(&self, progress: Option<&Observer>) -> Result<Vec<Layer>> {
        let layers: Vec<(Digest, DiffId)> =
            self.layers().map(|(diff_id, blob)| (blob.digest.clone(), diff_id.clone())).collect();
        let observer = progress.map(|observer| move |it: LayerProgress| observer(Progress::Layer(it)));
        let observer = observer.as_ref().map(|it| it as &(dyn Fn(LayerProgress) + Send + Sync));
        self.images().layers().ensure_all(&layers, observer)
    }

    /// Bytes of the regular files in the image's unpacked layers, as `docker images` counts them; `None` while not all
    /// of them are unpacked. Layers that other images share are counted.
    ///
    /// # Errors
    /// Only those of reading the layers' records.
    pub fn unpacked_size(&self) -> Result<Option<u64>> {
        let layers = self.images().layers().find(&self.config().rootfs.diff_ids)?;
        Ok(layers.map(|layers| layers.iter().map(Layer::bytes).fold(0, u64::saturating_add)))
    }
}
