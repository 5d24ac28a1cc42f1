//! An OCI image layout's `index.json`: which images it offers, and under which names.
//!
//! The specification leaves the form of `org.opencontainers.image.ref.name` open, and writers differ: umoci and
//! skopeo write a bare tag (`latest`), podman and this crate a whole reference, Docker and containerd a bare tag and
//! beside it the whole reference as `io.containerd.image.name`.

use std::collections::HashMap;

use super::Candidate;
use crate::content::REF_NAME;
use crate::error::{Error, ErrorKind, Result};
use crate::image::manifest::{Descriptor, Document};
use crate::layer::Compression;
use crate::name::{Digest, MediaType, Platform, Reference};

/// Where containerd and Docker put the whole name.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// The images that an `index.json` offers, each as one manifest or index, or as several manifests of which the platform
/// chooses.
pub(super) fn candidates(index: &[u8]) -> Result<Vec<Candidate<Vec<Descriptor>>>> {
    let at = |error: Error| error.in_step("read the manifest", || STEP.to_owned()).path("index.json");
    let Document::Index(index) = Document::parse(index, None).map_err(at)? else {
        return Err(at(Error::new(ErrorKind::Invalid, STEP)).because("it is an image manifest, not an index"));
    };
    let mut candidates: Vec<Candidate<Vec<Descriptor>>> = Vec::new();
    // Maps, for an index may have tens of thousands of entries.
    let mut known: HashMap<Key, usize> = HashMap::new();
    let mut nameless: HashMap<Platform, usize> = HashMap::new();
    for entry in index.manifests {
        let (name, bare) = name_of(&entry)?;
        let key = match (&name, &bare, &entry.platform) {
            (Some(name), ..) => Some(Key::Name(name.clone())),
            (None, Some(bare), _) => Some(Key::Bare(bare.clone())),
            (None, None, Some(platform)) => {
                let count = nameless.entry(platform.clone()).or_default();
                *count += 1;
                Some(Key::Nameless(*count))
            }
            (None, None, None) => None,
        };
        match key.as_ref().and_then(|key| known.get(key)) {
            Some(at) => candidates[*at].image.push(entry),
            None => {
                known.extend(key.map(|key| (key, candidates.len())));
                candidates.push(Candidate { image: vec![entry], names: name.into_iter().collect(), bare });
            }
        }
    }
    // Several names of one image are one candidate.
    let mut merged: Vec<Candidate<Vec<Descriptor>>> = Vec::new();
    let mut known: HashMap<Vec<Digest>, usize> = HashMap::new();
    for candidate in candidates {
        let digests = candidate.image.iter().map(|root| root.digest.clone()).collect();
        let first = *known.entry(digests).or_insert(merged.len());
        match merged.get_mut(first) {
            Some(other) if !candidate.names.is_empty() => other.names.extend(candidate.names),
            _ => merged.push(candidate),
        }
    }
    Ok(merged)
}

/// What entries of one image have in common.
#[derive(PartialEq, Eq, Hash)]
enum Key {
    Name(Reference),
    Bare(String),
    /// Nameless entries that differ in platform are one image that was written without an index around it: the first ones
    /// of each platform, then the second ones.
    Nameless(usize),
}

fn name_of(entry: &Descriptor) -> Result<(Option<Reference>, Option<String>)> {
    let bare = entry.annotations.get(REF_NAME).filter(|name| !name.contains(['/', ':', '@']));
    let whole = entry.annotations.get(CONTAINERD_NAME).or(entry.annotations.get(REF_NAME).filter(|_| bare.is_none()));
    let name = whole.map(|text| text.parse::<Reference>()).transpose().map_err(|error| error.path("index.json"))?;
    Ok((name, bare.cloned()))
}

/// Checks the `oci-layout` file that marks a layout.
pub(super) fn check_version(marker: &[u8]) -> Result<()> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Marker {
        image_layout_version: String,
    }
    let marker: Marker = crate::image::manifest::parse_json(STEP, marker).map_err(|error| error.path("oci-layout"))?;
    if marker.image_layout_version.starts_with("1.") {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unsupported, STEP)
        .path("oci-layout")
        .because(format!("its imageLayoutVersion is {:?}; only 1.x is defined", marker.image_layout_version)))
}

/// The media type of a layer blob, by how it begins.
pub(crate) fn layer_type(beginning: &[u8]) -> MediaType {
    layer_type_of(Compression::detect(beginning))
}

/// The type of a layer that is compressed like that.
pub(crate) fn layer_type_of(compression: Compression) -> MediaType {
    match compression {
        Compression::Gzip => MediaType::OciLayerGzip,
        Compression::Zstd => MediaType::OciLayerZstd,
        // Unpacking refuses what is not a tar, by name.
        _ => MediaType::OciLayer,
    }
}

const STEP: &str = "read the OCI image layout";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn entry(content: &str, annotations: Value) -> Value {
        json!({"mediaType": MediaType::OciManifest, "digest": Digest::of(content.as_bytes()), "size": 1, "annotations": annotations})
    }

    fn read(entries: Vec<Value>) -> Result<Vec<Candidate<Vec<Descriptor>>>> {
        candidates(&serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": entries})).unwrap())
    }

    #[test]
    fn names_of_all_writers_are_understood() {
        let found = read(vec![
            entry("a", json!({REF_NAME: "latest"})),
            entry("b", json!({REF_NAME: "docker.io/library/debian:12"})),
            entry("c", json!({REF_NAME: "12", CONTAINERD_NAME: "docker.io/library/alpine:12"})),
            entry("d", Value::Null),
        ])
        .unwrap();
        let names: Vec<_> = found.iter().map(|it| it.names.first().map(Reference::familiar)).collect();
        assert_eq!(names, [None, Some("debian:12".into()), Some("alpine:12".into()), None]);
        let bare: Vec<_> = found.iter().map(|it| it.bare.as_deref()).collect();
        assert_eq!(bare, [Some("latest"), None, Some("12"), None]);
    }

    #[test]
    fn two_names_are_one_image_and_one_name_may_have_platforms() {
        let two = read(vec![entry("a", json!({REF_NAME: "x/a:1"})), entry("a", json!({REF_NAME: "x/a:2"}))]).unwrap();
        assert_eq!((two.len(), two[0].names.len()), (1, 2));
        let on = |content: &str, architecture: &str, annotations: Value| {
            let mut entry = entry(content, annotations);
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            entry
        };
        let named = json!({REF_NAME: "x/a:1"});
        let found = read(vec![on("a", "amd64", named.clone()), on("b", "arm64", named)]).unwrap();
        assert_eq!((found.len(), found[0].image.len()), (1, 2));
        let found = read(vec![on("a", "amd64", json!({})), on("b", "arm64", json!({}))]).unwrap();
        assert_eq!((found.len(), found[0].image.len()), (1, 2));
        let found = read(vec![on("a", "amd64", json!({})), on("b", "amd64", json!({}))]).unwrap();
        assert_eq!(found.len(), 2);
        let nameless = |content: &str, architecture: &str| on(content, architecture, json!({}));
        let found = read(vec![
            nameless("a", "amd64"),
            entry("x", json!({})),
            nameless("b", "amd64"),
            nameless("c", "arm64"),
            nameless("d", "arm64"),
        ]);
        let digests = |content: &[&str]| content.iter().map(|text| Digest::of(text.as_bytes())).collect::<Vec<_>>();
        let found: Vec<Vec<Digest>> =
            found.unwrap().into_iter().map(|it| it.image.into_iter().map(|root| root.digest).collect()).collect();
        assert_eq!(found, [digests(&["a", "c"]), digests(&["x"]), digests(&["b", "d"])]);
    }

    #[test]
    fn bad_names_and_versions_are_named() {
        let error = read(vec![entry("a", json!({REF_NAME: "../x"}))]).unwrap_err();
        assert!(error.to_string().contains("../x") && error.to_string().contains("index.json"), "{error}");
        check_version(br#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        assert!(check_version(br#"{"imageLayoutVersion":"2.0.0"}"#).unwrap_err().to_string().contains("2.0.0"));
    }
}
