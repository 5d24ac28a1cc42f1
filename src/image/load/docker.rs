//! The `manifest.json` of `docker save`: names, configs and layers by their paths in the archive.

use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};
use crate::image::config::nullable;
use crate::image::manifest::parse_json;
use crate::name::{Digest, Reference};

/// One image of the archive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Saved {
    /// The path of the config.
    pub config: String,
    #[serde(default, deserialize_with = "nullable")]
    repo_tags: Vec<String>,
    /// The paths of the layers, lowest first.
    #[serde(default, deserialize_with = "nullable")]
    pub layers: Vec<String>,
}

impl Saved {
    /// The names that the archive gives to the image.
    pub fn names(&self) -> Result<Vec<Reference>> {
        self.repo_tags.iter().map(|text| text.parse().map_err(|error: Error| error.path("manifest.json"))).collect()
    }

    /// The digest that the config's file is named after, where it is: `<hex>.json`, `sha256:<hex>` and
    /// `blobs/sha256/<hex>` are in use.
    pub fn named_digest(&self) -> Option<Digest> {
        let name = self.config.rsplit('/').next()?;
        let name = name.strip_suffix(".json").unwrap_or(name);
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        format!("sha256:{hex}").parse().ok()
    }
}

/// Reads `manifest.json`.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Saved>> {
    let at = |error: Error| error.path("manifest.json");
    parse_json(STEP, bytes).map_err(|error| {
        // In skopeo's `dir:` form the file of this name is the image's manifest itself.
        if bytes.trim_ascii_start().starts_with(b"{") {
            at(Error::new(ErrorKind::Unsupported, STEP))
                .because("it is a manifest, as skopeo's `dir:` directories have it, not a list of saved images")
                .remedy("skopeo copy dir:DIRECTORY oci:OTHER, and load that")
        } else {
            at(error)
        }
    })
}

const STEP: &str = "read the Docker archive";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_writer_names_its_config() {
        let digest = Digest::of(b"");
        for path in ["HEX.json", "sha256:HEX", "blobs/sha256/HEX"] {
            let text = format!(r#"[{{"Config":"{path}","RepoTags":null,"Layers":null}}]"#).replace("HEX", digest.hex());
            let saved = parse(text.as_bytes()).unwrap();
            assert_eq!(saved[0].named_digest().as_ref(), Some(&digest));
            assert!(saved[0].names().unwrap().is_empty() && saved[0].layers.is_empty());
        }
        assert_eq!(parse(br#"[{"Config":"config.json"}]"#).unwrap()[0].named_digest(), None);
    }

    #[test]
    fn bad_names_are_errors() {
        let saved = parse(br#"[{"Config":"c","RepoTags":["../x"]}]"#).unwrap();
        let error = saved[0].names().unwrap_err();
        assert!(error.to_string().contains("../x") && error.to_string().contains("manifest.json"), "{error}");
        assert!(parse(b"{}").unwrap_err().to_string().contains("manifest.json"));
    }
}
