//! From what a person types to an image: a name, an ID or the beginning of one.

use crate::error::{Error, ErrorKind, Result};
use crate::image::{Image, ImageId, Images, index};
use crate::name::{Digest, Reference};

/// What a person may have meant, in the order in which it is tried.
pub(super) enum Meaning {
    /// A whole digest, of a config (an image ID) or of a manifest.
    Digest(Digest),
    /// A name; with the digits, the beginning of an ID as well.
    Name(Reference, Option<String>),
    /// The beginning of an ID, which cannot be a name.
    Prefix(String),
}

impl Meaning {
    pub fn of(text: &str) -> Result<Meaning> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let is_hex = !digits.is_empty() && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if is_hex && digits.len() == 64 {
            return Ok(Meaning::Digest(format!("sha256:{digits}").parse()?));
        }
        let prefix = (is_hex && digits.len() < 64).then(|| digits.to_owned());
        match (text.parse::<Reference>(), prefix) {
            // `sha256:abc` reads as repository `sha256` with tag `abc`; nobody means that.
            (_, Some(prefix)) if digits.len() != text.len() => Ok(Meaning::Prefix(prefix)),
            (Ok(name), prefix) => Ok(Meaning::Name(name, prefix)),
            (Err(_), Some(prefix)) => Ok(Meaning::Prefix(prefix)),
            (Err(error), None) => Err(error),
        }
    }
}

impl Images {
    /// The image that a text means: a name (`debian`, `debian:12`, `ghcr.io/a/b@sha256:…`), an image ID or manifest
    /// digest, whole or, for IDs, its first digits. A name counts before an ID that begins alike.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when nothing is called so; [`Invalid`](ErrorKind::Invalid) when the text can
    /// be no name, and when several IDs begin with it (the message lists them);
    /// [`Corrupt`](ErrorKind::Corrupt) when the image's own documents are damaged or missing.
    pub fn resolve(&self, text: &str) -> Result<Image> {
        let found = match Meaning::of(text)? {
            Meaning::Digest(digest) => self.with_digest(&digest)?,
            Meaning::Prefix(prefix) => self.with_prefix(&prefix)?,
            Meaning::Name(name, prefix) => match (self.find_named(&name)?, prefix) {
                (Some(image), _) => Some(image),
                (None, Some(prefix)) => self.with_prefix(&prefix)?,
                (None, None) => None,
            },
        };
        found.ok_or_else(|| not_found(text))
    }

    /// The image with an ID.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when there is none.
    pub fn get(&self, id: &ImageId) -> Result<Image> {
        self.find(|image| image.id() == id)?.pop().ok_or_else(|| not_found(&id.to_string()))
    }

    /// The image with a name.
    pub(super) fn named(&self, name: &Reference) -> Result<Image> {
        self.find_named(name)?.ok_or_else(|| not_found(&name.familiar()))
    }

    fn find_named(&self, name: &Reference) -> Result<Option<Image>> {
        let entries = self.content().tags()?;
        let entry = match name.digest() {
            None => entries.iter().find(|entry| index::is_named(entry, name)),
            // Only the name of the repository matters beside a digest, as with docker.
            Some(digest) => entries.iter().find(|entry| {
                entry.digest == *digest && index::name_of(entry).is_some_and(|other| other.name() == name.name())
            }),
        };
        let Some(entry) = entry else { return Ok(None) };
        match self.open_entry(entry) {
            Ok(image) => Ok(Some(image.called_as(vec![name.clone()]))),
            // Removed since the index was read.
            Err(_) if !self.content().tags()?.contains(entry) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn with_digest(&self, digest: &Digest) -> Result<Option<Image>> {
        Ok(self.find(|image| image.id().digest() == digest || image.digest() == digest)?.pop())
    }

    fn with_prefix(&self, prefix: &str) -> Result<Option<Image>> {
        let mut found = self.find(|image| image.id().digest().hex().starts_with(prefix))?;
        if found.len() > 1 {
            let ids: Vec<&str> = found.iter().map(|image| image.id().short()).collect();
            return Err(Error::new(ErrorKind::Invalid, "find the image")
                .path(prefix)
                .because(format!("{} image IDs begin so: {}", found.len(), ids.join(", ")))
                .remedy("more digits"));
        }
        Ok(found.pop())
    }

    /// All images that fit, each once. An image that cannot be opened has no ID to be found by.
    fn find(&self, fits: impl Fn(&Image) -> bool) -> Result<Vec<Image>> {
        let mut found: Vec<Image> = Vec::new();
        for entry in self.content().tags()? {
            let Ok(image) = self.open_entry(&entry) else { continue };
            if fits(&image) && !found.contains(&image) {
                found.push(image);
            }
        }
        Ok(found)
    }
}

fn not_found(text: &str) -> Error {
    Error::new(ErrorKind::NotFound, "find the image")
        .path(text)
        .because("no image here has this name or ID")
        .remedy("list the images; load or import the one you mean")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn texts_mean_what_docker_makes_of_them() {
        let shape = |text: &str| match Meaning::of(text) {
            Ok(Meaning::Digest(_)) => "digest".to_owned(),
            Ok(Meaning::Prefix(prefix)) => format!("prefix {prefix}"),
            Ok(Meaning::Name(name, prefix)) => {
                format!("{}{}", name.familiar(), prefix.map(|p| format!(" or {p}")).unwrap_or_default())
            }
            Err(error) => format!("{:?}", error.kind()),
        };
        let hex = "0".repeat(64);
        assert_eq!(shape(&hex), "digest");
        assert_eq!(shape(&format!("sha256:{hex}")), "digest");
        assert_eq!(shape("sha256:abc"), "prefix abc");
        assert_eq!(shape("abc"), "abc:latest or abc");
        assert_eq!(shape("abc:1"), "abc:1");
        assert_eq!(shape("debian"), "debian:latest");
        assert_eq!(shape("../x"), "Invalid");
        assert_eq!(shape(""), "Invalid");
        assert_eq!(shape("Debian"), "Invalid");
    }
}
