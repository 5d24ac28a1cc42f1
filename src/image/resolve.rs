//! From a descriptor to one image: through indexes by platform, to a manifest and its config, all checked.

use std::collections::HashSet;

use super::config::Config;
use super::manifest::{Descriptor, Document, Manifest};
use crate::error::{Error, ErrorKind, Result};
use crate::name::{Digest, Platform};

/// Indexes inside indexes: real ones have one level, rarely two.
const MAX_DEPTH: usize = 4;

/// Documents read to resolve one name, so that a small archive cannot ask for a million reads.
const MAX_DOCUMENTS: usize = 512;

const STEP: &str = "choose the image for the platform";

/// Reads a document: the bytes that the descriptor names, with the name of its role for messages.
pub(crate) type Read<'a> = &'a mut dyn FnMut(&Descriptor, &'static str) -> Result<Vec<u8>>;

/// One image, all its documents read and checked against their digests and against each other.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    /// The manifest's descriptor.
    pub descriptor: Descriptor,
    pub manifest: Manifest,
    pub config: Config,
}

impl Resolved {
    /// Refuses an image of another platform where the caller named one.
    pub(crate) fn check_platform(&self, wanted: &Wanted) -> Result<()> {
        if wanted.strict && !wanted.platform.matches(&self.config.platform()) {
            return Err(no_such_platform(wanted, &[self.config.platform()]).path(self.descriptor.digest.as_str()));
        }
        Ok(())
    }
}

/// Which image of a multi-platform one is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Indexes are searched for this platform.
    pub platform: Platform,
    /// A single image of another platform is an error as well, because the caller named the platform.
    pub strict: bool,
}

/// Follows `roots` to the image for the wanted platform. Several roots are a choice, like the entries of an index.
pub(crate) fn resolve(roots: &[Descriptor], wanted: &Wanted, read: Read<'_>) -> Result<Resolved> {
    let mut search =
        Search { wanted, read, documents: 0, seen: HashSet::new(), best: None, offered: Vec::new(), missing: None };
    let (descriptor, manifest) = if let [root] = roots {
        match search.document(root)? {
            Document::Manifest(manifest) => (root.clone(), manifest),
            Document::Index(index) => {
                search.index(&index.manifests, 1)?;
                search.chosen()?
            }
        }
    } else {
        search.index(roots, 0)?;
        search.chosen()?
    };
    let config = search.config(&descriptor, &manifest)?;
    config.check_layer_count(manifest.layers.len()).map_err(|error| within(error, &descriptor.digest))?;
    let resolved = Resolved { descriptor, manifest, config };
    resolved.check_platform(wanted)?;
    Ok(resolved)
}

/// Checks bytes against the descriptor that named them.
pub(crate) fn verify(descriptor: &Descriptor, role: &'static str, bytes: &[u8]) -> Result<()> {
    if bytes.len() as u64 != descriptor.size {
        return Err(Error::new(ErrorKind::Corrupt, format!("read the {role} {}", descriptor.digest)).because(format!(
            "it has {} bytes, but its descriptor says {}",
            bytes.len(),
            descriptor.size
        )));
    }
    Ok(())
}

struct Search<'a, 'r> {
    wanted: &'a Wanted,
    read: Read<'r>,
    documents: usize,
    seen: HashSet<Digest>,
    /// Lower ranks fit better; of equals the first one counts.
    best: Option<(usize, Descriptor)>,
    offered: Vec<Platform>,
    /// A nested document that is not there: only a problem if nothing else fits.
    missing: Option<Error>,
}

impl Search<'_, '_> {
    fn document(&mut self, descriptor: &Descriptor) -> Result<Document> {
        self.count(descriptor)?;
        let bytes = (self.read)(descriptor, "manifest")?;
        verify(descriptor, "manifest", &bytes)?;
        Document::parse(&bytes, Some(&descriptor.media_type)).map_err(|error| within(error, &descriptor.digest))
    }

    fn config(&mut self, descriptor: &Descriptor, manifest: &Manifest) -> Result<Config> {
        manifest.check_image().map_err(|error| within(error, &descriptor.digest))?;
        self.count(&manifest.config)?;
        let bytes = (self.read)(&manifest.config, "image config")?;
        verify(&manifest.config, "image config", &bytes)?;
        Config::parse(&bytes).map_err(|error| within(error, &manifest.config.digest))
    }

    fn count(&mut self, descriptor: &Descriptor) -> Result<()> {
        self.documents += 1;
        if self.documents <= MAX_DOCUMENTS {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Limit, STEP)
            .because(format!("its indexes name more than {MAX_DOCUMENTS} documents"))
            .path(descriptor.digest.as_str()))
    }

    fn index(&mut self, entries: &[Descriptor], depth: usize) -> Result<()> {
        for entry in entries {
            if is_attestation(entry) || !self.seen.insert(entry.digest.clone()) {
                continue;
            }
            if entry.media_type.is_index() {
                if depth >= MAX_DEPTH {
                    return Err(Error::new(ErrorKind::Limit, STEP)
                        .path(entry.digest.as_str())
                        .because(format!("indexes are nested more than {MAX_DEPTH} levels deep")));
                }
                match self.document(entry) {
                    Ok(Document::Index(nested)) => self.index(&nested.manifests, depth + 1)?,
                    // The descriptor's type was checked against the document's.
                    Ok(Document::Manifest(_)) => {}
                    Err(error) => self.may_be_missing(error)?,
                }
            } else if entry.media_type.is_manifest() {
                match self.platform(entry) {
                    Ok(platform) => self.offer(entry, platform),
                    Err(error) => self.may_be_missing(error)?,
                }
            }
        }
        Ok(())
    }

    /// The platform of an index's entry: what the entry says, or else what the image's config says.
    fn platform(&mut self, entry: &Descriptor) -> Result<Platform> {
        if let Some(platform) = &entry.platform {
            return Ok(platform.normalized());
        }
        match self.document(entry)? {
            Document::Manifest(manifest) => Ok(self.config(entry, &manifest)?.platform()),
            Document::Index(_) => Err(Error::new(ErrorKind::Corrupt, STEP).path(entry.digest.as_str())),
        }
    }

    fn offer(&mut self, entry: &Descriptor, platform: Platform) {
        if let Some(rank) = self.wanted.platform.rank(&platform)
            && self.best.as_ref().is_none_or(|(best, _)| rank < *best)
        {
            self.best = Some((rank, entry.clone()));
        }
        if !self.offered.contains(&platform) {
            self.offered.push(platform);
        }
    }

    fn may_be_missing(&mut self, error: Error) -> Result<()> {
        if error.kind() != ErrorKind::NotFound {
            return Err(error);
        }
        self.missing.get_or_insert(error);
        Ok(())
    }

    fn chosen(&mut self) -> Result<(Descriptor, Manifest)> {
        match (self.best.take(), self.missing.take()) {
            (Some((_, descriptor)), _) => match self.document(&descriptor)? {
                Document::Manifest(manifest) => Ok((descriptor, manifest)),
                Document::Index(_) => Err(Error::new(ErrorKind::Corrupt, STEP).path(descriptor.digest.as_str())),
            },
            (None, Some(missing)) => Err(missing),
            (None, None) => Err(no_such_platform(self.wanted, &self.offered)),
        }
    }
}

/// BuildKit lists its provenance and SBOM documents as images of an unknown platform.
fn is_attestation(entry: &Descriptor) -> bool {
    entry.annotations.contains_key("vnd.docker.reference.type")
        || entry.platform.as_ref().is_some_and(|platform| platform.os == "unknown")
}

fn no_such_platform(wanted: &Wanted, offered: &[Platform]) -> Error {
    let offered: Vec<String> = offered.iter().map(ToString::to_string).collect();
    let offered = if offered.is_empty() { "no image at all".to_owned() } else { offered.join(", ") };
    Error::new(ErrorKind::NotFound, STEP)
        .because(format!("the image has nothing for {}; it offers {offered}", wanted.platform))
        .remedy("name one of these platforms")
}

/// Says in which blob it happened.
fn within(error: Error, digest: &Digest) -> Error {
    if error.failed_path().is_some() { error } else { error.path(digest.as_str()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use serde_json::{Value, json};

    use super::*;
    use crate::name::MediaType;

    #[derive(Default)]
    struct Blobs(HashMap<Digest, Vec<u8>>);

    impl Blobs {
        fn put(&mut self, value: &Value) -> Value {
            let bytes = serde_json::to_vec(value).unwrap();
            let digest = Digest::of(&bytes);
            let size = bytes.len();
            self.0.insert(digest.clone(), bytes);
            json!({ "digest": digest, "size": size, "mediaType": value.get("mediaType") })
        }

        fn image(&mut self, architecture: &str, diff_ids: usize, layers: usize) -> Value {
            let digest = Digest::of(b"layer");
            let mut config = self.put(&json!({
                "os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": vec![&digest; diff_ids]}
            }));
            config["mediaType"] = json!(MediaType::OciConfig);
            let layer = json!({"mediaType": MediaType::OciLayer, "digest": digest, "size": 1});
            self.put(&json!({
                "schemaVersion": 2, "mediaType": MediaType::OciManifest, "config": config, "layers": vec![layer; layers]
            }))
        }

        fn index(&mut self, manifests: Vec<Value>) -> Value {
            self.put(&json!({"schemaVersion": 2, "mediaType": MediaType::OciIndex, "manifests": manifests}))
        }

        fn resolve(&self, root: &Value, platform: &str, strict: bool) -> Result<Resolved> {
            let wanted = Wanted { platform: platform.parse().unwrap(), strict };
            let root: Descriptor = serde_json::from_value(root.clone()).unwrap();
            resolve(std::slice::from_ref(&root), &wanted, &mut |descriptor, role| {
                self.0.get(&descriptor.digest).cloned().ok_or_else(|| {
                    Error::new(ErrorKind::NotFound, format!("read the {role}")).path(descriptor.digest.as_str())
                })
            })
        }
    }

    fn with_platform(mut descriptor: Value, architecture: &str) -> Value {
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        descriptor
    }

    #[test]
    fn platforms_are_chosen_from_indexes_nested_and_unlabelled() {
        let mut blobs = Blobs::default();
        let arm = blobs.image("arm64", 1, 1);
        let amd = blobs.image("amd64", 1, 1);
        let mut attestation = with_platform(blobs.image("amd64", 0, 0), "unknown");
        attestation["platform"]["os"] = json!("unknown");
        let inner = blobs.index(vec![with_platform(arm, "arm64"), attestation]);
        let outer = blobs.index(vec![inner, amd.clone()]);
        assert_eq!(blobs.resolve(&outer, "linux/arm64", true).unwrap().config.architecture, "arm64");
        assert_eq!(blobs.resolve(&outer, "linux/amd64", true).unwrap().config.architecture, "amd64");
        let error = blobs.resolve(&outer, "linux/s390x", false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("it offers linux/arm64, linux/amd64"), "{error}");
        blobs.resolve(&amd, "linux/arm64", false).unwrap();
        assert!(blobs.resolve(&amd, "linux/arm64", true).unwrap_err().to_string().contains("linux/amd64"));
    }

    #[test]
    fn other_platforms_may_be_absent_but_not_the_wanted_one() {
        let mut blobs = Blobs::default();
        let amd = blobs.image("amd64", 1, 1);
        let gone =
            with_platform(json!({"mediaType": MediaType::OciManifest, "digest": Digest::of(b"?"), "size": 9}), "arm64");
        let index = blobs.index(vec![gone, with_platform(amd, "amd64")]);
        blobs.resolve(&index, "linux/amd64", true).unwrap();
        let error = blobs.resolve(&index, "linux/arm64", true).unwrap_err();
        assert_eq!(
            (error.kind(), error.failed_path().unwrap().to_str()),
            (ErrorKind::NotFound, Some(Digest::of(b"?").as_str()))
        );
    }

    #[test]
    fn nests_and_crowds_end() {
        let mut blobs = Blobs::default();
        let mut index = blobs.image("amd64", 1, 1);
        for _ in 0..8 {
            index = blobs.index(vec![index]);
        }
        let error = blobs.resolve(&index, "linux/amd64", false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit);
        assert!(error.to_string().contains("4 levels"), "{error}");
        // Entries without a platform cost a read each.
        let many = (0..1000).map(|n| blobs.image(&format!("a{n}"), 0, 0)).collect();
        let many = blobs.index(many);
        assert_eq!(blobs.resolve(&many, "linux/amd64", false).unwrap_err().kind(), ErrorKind::Limit);
    }

    #[test]
    fn contradictions_are_named_with_their_blob() {
        let mut blobs = Blobs::default();
        let uneven = blobs.image("amd64", 2, 1);
        let error = blobs.resolve(&uneven, "linux/amd64", false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(uneven["digest"].as_str().unwrap()), "{error}");
        let mut wrong_size = blobs.image("amd64", 1, 1);
        wrong_size["size"] = json!(7);
        let error = blobs.resolve(&wrong_size, "linux/amd64", false).unwrap_err();
        assert!(error.to_string().contains("its descriptor says 7"), "{error}");
        let mut wrong_type = blobs.image("amd64", 1, 1);
        wrong_type["mediaType"] = json!(MediaType::DockerManifest);
        assert_eq!(blobs.resolve(&wrong_type, "linux/amd64", false).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
