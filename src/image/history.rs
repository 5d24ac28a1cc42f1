//! How an image came to be, step by step, with the layer that each step made.

use super::config::{Config, History};
use super::manifest::{Descriptor, Manifest};
use crate::name::DiffId;

/// One step of an image's making and what it left.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Step {
    /// What the config tells about the step; empty where it tells of fewer steps than there are layers.
    pub history: History,
    /// The layer that the step made: its DiffID and its blob. `None` where the step changed no files.
    pub layer: Option<(DiffId, Descriptor)>,
}

/// Pairs the config's history with the layers, lowest first. Neither list is trusted to be as long as the other.
pub(super) fn steps(config: &Config, manifest: &Manifest) -> Vec<Step> {
    let mut layers = config.rootfs.diff_ids.iter().cloned().zip(manifest.layers.iter().cloned());
    let mut steps: Vec<Step> = config
        .history
        .iter()
        .map(|history| {
            let layer = if history.empty_layer { None } else { layers.next() };
            Step { history: history.clone(), layer }
        })
        .collect();
    steps.extend(layers.map(|layer| Step { history: History::default(), layer: Some(layer) }));
    steps
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::name::{Digest, MediaType};

    fn steps_of(history: serde_json::Value, layers: usize) -> Vec<(String, Option<u64>)> {
        let digest = Digest::of(b"");
        let config = json!({"rootfs": {"type": "layers", "diff_ids": vec![&digest; layers]}, "history": history});
        let descriptor = |size| Descriptor::new(MediaType::OciLayer, digest.clone(), size);
        let manifest = Manifest::new(descriptor(0), (1..=layers as u64).map(descriptor).collect());
        steps(&serde_json::from_value(config).unwrap(), &manifest)
            .into_iter()
            .map(|step| (step.history.created_by, step.layer.map(|(_, blob)| blob.size)))
            .collect()
    }

    #[test]
    fn steps_take_the_layers_in_turn() {
        let history = json!([{"created_by": "a"}, {"created_by": "b", "empty_layer": true}, {"created_by": "c"}]);
        let expected = [("a".to_owned(), Some(1)), ("b".to_owned(), None), ("c".to_owned(), Some(2))];
        assert_eq!(steps_of(history.clone(), 2), expected);
        assert_eq!(steps_of(history.clone(), 1)[2], ("c".to_owned(), None));
        assert_eq!(steps_of(history, 3)[3], (String::new(), Some(3)));
        assert_eq!(steps_of(json!(null), 1), [(String::new(), Some(1))]);
    }
}
