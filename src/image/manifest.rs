//! Manifests, indexes and descriptors: the documents that name an image's blobs.
//!
//! OCI's [manifest] and [index] and Docker's schema 2 differ only in their media types, so one type reads both. The
//! digest of a document is the digest of its bytes: whoever needs it keeps the bytes, nothing here writes a
//! document back.
//!
//! A document that is a manifest to one reader and an index to another is refused
//! ([CVE-2021-41190](https://github.com/opencontainers/image-spec/security/advisories/GHSA-77vh-xpmg-72qh)): so is
//! one whose own `mediaType` is not the one that its descriptor gave.
//!
//! [manifest]: https://github.com/opencontainers/image-spec/blob/main/manifest.md
//! [index]: https://github.com/opencontainers/image-spec/blob/main/image-index.md

use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::config::{OtherFields, nullable};
use crate::error::{Error, ErrorKind, Result};
use crate::name::{Digest, MediaType, Platform};

/// The largest manifest, index or config that is read, in bytes: 4 MiB, the limit that registries use.
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// What is said about a blob wherever it is named: type, digest and size, see OCI's [descriptor].
///
/// [descriptor]: https://github.com/opencontainers/image-spec/blob/main/descriptor.md
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    pub media_type: MediaType,
    /// The digest of its bytes.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Where else the blob can be had; used by layers that may not be redistributed.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Free-form metadata.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The platform of the image, in the entries of an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Every other field (`artifactType`, `data`, …).
    #[serde(flatten)]
    pub other: OtherFields,
}

/// One image for one platform: a config and layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// The document's own type; absent in some OCI manifests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    #[serde(default, deserialize_with = "nullable")]
    pub layers: Vec<Descriptor>,
    /// Free-form metadata.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Every other field (`subject`, `artifactType`, …).
    #[serde(flatten)]
    pub other: OtherFields,
}

/// Several images under one name, usually one for each platform.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// The document's own type; absent in most OCI layouts' `index.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// Manifests or further indexes.
    #[serde(deserialize_with = "nullable")]
    pub manifests: Vec<Descriptor>,
    /// Free-form metadata.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Every other field.
    #[serde(flatten)]
    pub other: OtherFields,
}

/// A manifest or an index, told apart by what the document says of itself.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "taken apart at once, never kept in numbers")]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// A choice of images.
    Index(Index),
}

impl Document {
    /// Reads a manifest or index of at most 4 MiB; `declared` is the media type that its descriptor or the
    /// registry's `Content-Type` gave, if there was one.
    ///
    /// # Errors
    /// [`Limit`](ErrorKind::Limit) for a larger document; [`Unsupported`](ErrorKind::Unsupported) for schema 1 and
    /// for media types that are no image (the message names the type); [`Invalid`](ErrorKind::Invalid) for bad JSON,
    /// with line and column; [`Corrupt`](ErrorKind::Corrupt) when the document's type is not the declared one;
    /// [`Hostile`](ErrorKind::Hostile) when it can be read as manifest and as index.
    pub fn parse(bytes: &[u8], declared: Option<&MediaType>) -> Result<Document> {
        let shape: Shape = parse_json(STEP, bytes)?;
        if shape.is_schema_1() || declared.is_some_and(is_schema_1) {
            return Err(Error::new(ErrorKind::Unsupported, STEP)
                .because("it is in Docker's schema 1, which has no image ID and was withdrawn in 2017")
                .remedy("convert the image: skopeo copy --format v2s2 SOURCE DESTINATION"));
        }
        match shape.schema_version {
            Some(2) => {}
            Some(other) => {
                return Err(
                    Error::new(ErrorKind::Unsupported, STEP).because(format!("its schemaVersion is {other}, not 2"))
                );
            }
            None => return Err(Error::new(ErrorKind::Invalid, STEP).because("it has no schemaVersion")),
        }
        let (as_manifest, as_index) = (shape.config.is_some() || shape.layers.is_some(), shape.manifests.is_some());
        if as_manifest && as_index {
            return Err(Error::new(ErrorKind::Hostile, STEP)
                .because("it has the fields of a manifest (config, layers) and of an index (manifests) at once"));
        }
        if let (Some(declared), Some(own)) = (declared, &shape.media_type)
            && declared != own
        {
            return Err(Error::new(ErrorKind::Corrupt, STEP).because(format!(
                "its mediaType is {:?}, but its descriptor says {:?}",
                own.as_str(),
                declared.as_str()
            )));
        }
        let index = match shape.media_type.as_ref().or(declared) {
            Some(media_type) if media_type.is_index() => true,
            Some(media_type) if media_type.is_manifest() => false,
            Some(media_type) => return Err(unknown_type(STEP, "manifest or index", media_type)),
            None => as_index,
        };
        if index {
            parse_json(STEP, bytes).map(Document::Index)
        } else {
            parse_json(STEP, bytes).map(Document::Manifest)
        }
    }
}

impl Manifest {
    /// Checks that this is the manifest of an image that can be unpacked here: the config's and the layers' media
    /// types are known ones.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported), naming the media type and the layer's place (counted from 1).
    pub(crate) fn check_image(&self) -> Result<()> {
        if !self.config.media_type.is_config() {
            return Err(unknown_type(STEP, "image config", &self.config.media_type)
                .remedy("this is an artifact of another kind (a chart, a signature, …), not a container image"));
        }
        for (position, layer) in self.layers.iter().enumerate() {
            if !layer.media_type.is_layer() {
                return Err(unknown_type(
                    STEP,
                    &format!("layer {} of {}", position + 1, self.layers.len()),
                    &layer.media_type,
                ));
            }
        }
        Ok(())
    }

    /// A manifest for blobs of our own making.
    pub(crate) fn new(config: Descriptor, layers: Vec<Descriptor>) -> Manifest {
        Manifest {
            schema_version: 2,
            media_type: Some(MediaType::OciManifest),
            config,
            layers,
            annotations: BTreeMap::new(),
            other: OtherFields::new(),
        }
    }

    /// The document's bytes, for a manifest of our own making.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| Error::new(ErrorKind::Invalid, "write the manifest").source_is(error))
    }
}

impl Descriptor {
    /// A descriptor without the optional parts.
    pub(crate) fn new(media_type: MediaType, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type,
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
            other: OtherFields::new(),
        }
    }
}

/// The fields that tell the kinds of documents apart; a field that is there twice is an error.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<MediaType>,
    #[serde(default)]
    config: Option<IgnoredAny>,
    #[serde(default)]
    layers: Option<IgnoredAny>,
    #[serde(default)]
    manifests: Option<IgnoredAny>,
    #[serde(default)]
    fs_layers: Option<IgnoredAny>,
}

impl Shape {
    fn is_schema_1(&self) -> bool {
        self.schema_version == Some(1) || self.fs_layers.is_some() || self.media_type.as_ref().is_some_and(is_schema_1)
    }
}

fn is_schema_1(media_type: &MediaType) -> bool {
    matches!(media_type, MediaType::DockerManifestV1 | MediaType::DockerManifestV1Signed)
}

/// The error for a media type that stands where `role` is needed.
pub(crate) fn unknown_type(step: &'static str, role: &str, media_type: &MediaType) -> Error {
    Error::new(ErrorKind::Unsupported, step).because(format!(
        "the media type {:?} of its {role} is not one that this version understands",
        media_type.as_str()
    ))
}

const STEP: &str = "read the manifest";

/// Reads JSON under the limits that hold for every document: 4 MiB, and serde_json's 128 levels of nesting.
pub(crate) fn parse_json<T: DeserializeOwned>(step: &'static str, bytes: &[u8]) -> Result<T> {
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(Error::new(ErrorKind::Limit, step)
            .because(format!("it has {} bytes; the limit for documents is {MAX_DOCUMENT}", bytes.len())));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        // serde_json has no other sign for its depth limit than the text.
        let (kind, what) = if error.to_string().contains("recursion limit") {
            (ErrorKind::Hostile, "it is nested more than 127 levels deep")
        } else {
            (ErrorKind::Invalid, "it is not the JSON document that it should be")
        };
        Error::new(kind, step).because(format!("{what}: {error}")).source_is(error)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

    fn descriptor(media_type: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{DIGEST}","size":3}}"#)
    }

    fn manifest(config: &str, layer: &str) -> String {
        format!(r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#, descriptor(config), descriptor(layer))
    }

    fn read(text: &str, declared: Option<&str>) -> Result<Document> {
        let declared = declared.map(MediaType::from);
        Document::parse(text.as_bytes(), declared.as_ref())
    }

    #[test]
    fn both_families_are_read() {
        for (config, layer) in [
            ("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+zstd"),
            ("application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip"),
        ] {
            let Document::Manifest(manifest) = read(&manifest(config, layer), None).unwrap() else {
                panic!("an index?")
            };
            manifest.check_image().unwrap();
            assert_eq!(manifest.layers[0].size, 3);
        }
        let index = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json",
            "manifests":[{{"mediaType":"{OCI}","digest":"{DIGEST}","size":3,
                "platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}}]}}"#
        );
        let Document::Index(index) = read(&index, None).unwrap() else { panic!("a manifest?") };
        let platform = index.manifests[0].platform.as_ref().unwrap();
        assert_eq!(platform.normalized().to_string(), "linux/arm64");
    }

    #[test]
    fn bad_documents_are_named() {
        let both = manifest("a", "b").replace("\"config\"", "\"manifests\":[],\"config\"");
        let wrong_own = manifest("a", "b").replace("\"config\"", "\"mediaType\":\"text/html\",\"config\"");
        let cases = [
            (both.as_str(), None, ErrorKind::Hostile, "at once"),
            (wrong_own.as_str(), Some(OCI), ErrorKind::Corrupt, "text/html"),
            (wrong_own.as_str(), None, ErrorKind::Unsupported, "text/html"),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, None, ErrorKind::Unsupported, "skopeo copy"),
            (r#"{"schemaVersion":3}"#, None, ErrorKind::Unsupported, "is 3"),
            (r#"{"manifests":[]}"#, None, ErrorKind::Invalid, "schemaVersion"),
            (r#"{"schemaVersion":2}"#, None, ErrorKind::Invalid, "config"),
            (r#"{"schemaVersion":2,"config":{},"layers":[]}"#, Some(OCI), ErrorKind::Invalid, "mediaType"),
            (r#"{"schemaVersion":2,"layers":[],"layers":[]}"#, None, ErrorKind::Invalid, "duplicate"),
            (r#"{"schemaVersion":2,"#, None, ErrorKind::Invalid, "line 1"),
        ];
        for (text, declared, kind, part) in cases {
            let error = read(text, declared).unwrap_err();
            assert_eq!(error.kind(), kind, "{text}: {error}");
            assert!(error.to_string().contains(part), "{error}");
        }
        let negative = manifest("a", "b").replace(":3}", ":-3}");
        assert_eq!(read(&negative, None).unwrap_err().kind(), ErrorKind::Invalid);
        let wide = format!(r#"{{"schemaVersion":2,"x":"{}"}}"#, "x".repeat(5 << 20));
        assert_eq!(read(&wide, None).unwrap_err().kind(), ErrorKind::Limit);
        let deep = format!(r#"{{"schemaVersion":2,"x":{}{}}}"#, "[".repeat(50_000), "]".repeat(50_000));
        assert_eq!(read(&deep, None).unwrap_err().kind(), ErrorKind::Hostile);
    }

    #[test]
    fn an_artifact_is_not_an_image() {
        let chart = manifest("application/vnd.cncf.helm.config.v1+json", "application/vnd.oci.image.layer.v1.tar");
        let Document::Manifest(chart) = read(&chart, None).unwrap() else { panic!("an index?") };
        assert!(chart.check_image().unwrap_err().to_string().contains("helm"));
        let odd = manifest("application/vnd.oci.image.config.v1+json", "application/x-squashfs");
        let Document::Manifest(odd) = read(&odd, None).unwrap() else { panic!("an index?") };
        let error = odd.check_image().unwrap_err();
        assert!(error.to_string().contains("squashfs") && error.to_string().contains("layer 1 of 1"), "{error}");
    }
}
