//! `registry/repository:tag@digest`.

use std::fmt;
use std::str::FromStr;

use super::Digest;
use super::digest::is_lower_hex;
use crate::{Error, ErrorKind, Result};

/// The registry that a name without one means.
const DEFAULT_REGISTRY: &str = "docker.io";
/// An older name of the same.
const LEGACY_REGISTRY: &str = "index.docker.io";
/// Where names without a slash live in the default registry.
const OFFICIAL_PREFIX: &str = "library/";
/// Longest path of a repository, in bytes.
const MAX_REPOSITORY: usize = 255;
/// Longest tag, in bytes.
const MAX_TAG: usize = 128;

/// Which image: a registry, a repository in it, and a tag or a digest or both.
///
/// The grammar and the rules of completion are docker's
/// ([distribution/reference](https://github.com/distribution/reference)): a first component with a dot, a colon or a
/// capital letter, or `localhost`, is a registry; otherwise the registry is `docker.io`, and there a name without a
/// slash lives in `library/`. Without tag and digest the tag is `latest`.
///
/// Repositories with capital letters, 64 hexadecimal digits alone (an image ID), paths over 255 bytes and tags over
/// 128 bytes are [`ErrorKind::Invalid`]; the message names the part that is at fault.
///
/// ```
/// use coracle::Reference;
///
/// let debian: Reference = "debian".parse()?;
/// assert_eq!(debian.to_string(), "docker.io/library/debian:latest");
/// assert_eq!(debian.familiar(), "debian:latest");
///
/// let own: Reference = "localhost:5000/team/app:v1".parse()?;
/// assert_eq!((own.registry(), own.repository(), own.tag()), ("localhost:5000", "team/app", Some("v1")));
/// assert!("Debian".parse::<Reference>().is_err());
/// # Ok::<(), coracle::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry's host, with its port where one was given: `docker.io`, `localhost:5000`, `[::1]:443`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path of the repository inside the registry: `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; absent only where a digest was given without one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest or index, where one was given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository without tag and digest: `docker.io/library/debian`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same repository with another tag, and without a digest.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where `tag` is not a tag.
    pub fn with_tag(&self, tag: &str) -> Result<Reference> {
        check_tag(tag).map_err(|why| invalid(tag, "tag", why))?;
        Ok(Reference { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// The same repository and tag, pinned to `digest`.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference { digest: Some(digest), ..self.clone() }
    }

    /// The shortest spelling that means the same: `debian:latest`.
    pub fn familiar(&self) -> String {
        let mut text = String::new();
        if self.registry == DEFAULT_REGISTRY {
            match self.repository.strip_prefix(OFFICIAL_PREFIX) {
                Some(name) if !name.contains('/') => text.push_str(name),
                // Left long where the shorter form would be read as a registry.
                _ if self.repository.split_once('/').is_some_and(|(first, _)| is_registry(first)) => {
                    text.push_str(&self.name());
                }
                _ => text.push_str(&self.repository),
            }
        } else {
            text.push_str(&self.name());
        }
        self.push_suffix(&mut text);
        text
    }

    fn push_suffix(&self, text: &mut String) {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(digest.as_str());
        }
    }
}

/// Whether the first component of a name is meant as a registry.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.contains(|c: char| c.is_ascii_uppercase())
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference> {
        if text.is_empty() {
            return Err(invalid(text, "name", "it is empty"));
        }
        if text.len() == 64 && is_lower_hex(text) {
            return Err(invalid(text, "name", "64 hexadecimal digits are an image ID, not a repository"));
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let digest = digest
                    .parse::<Digest>()
                    .map_err(|error| invalid(text, "digest", error.cause().unwrap_or("it is malformed").to_owned()))?;
                (rest, Some(digest))
            }
        };
        // A colon after the last slash starts the tag; one before it belongs to a registry's port.
        let name_end = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_end..].find(':') {
            None => (rest, None),
            Some(colon) => (&rest[..name_end + colon], Some(&rest[name_end + colon + 1..])),
        };
        if let Some(tag) = tag {
            check_tag(tag).map_err(|why| invalid(text, "tag", why))?;
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if is_registry(first) => (first, path),
            _ => (DEFAULT_REGISTRY, name),
        };
        check_registry(registry).map_err(|why| invalid(text, "registry", why))?;
        let registry = if registry == LEGACY_REGISTRY { DEFAULT_REGISTRY } else { registry };
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("{OFFICIAL_PREFIX}{path}")
        } else {
            path.to_owned()
        };
        // The path as it was written, so that the message is about what the caller sees.
        check_repository(path).map_err(|why| invalid(text, "repository", why))?;
        if repository.len() > MAX_REPOSITORY {
            return Err(invalid(text, "repository", format!("it is longer than {MAX_REPOSITORY} bytes")));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Reference { registry: registry.to_owned(), repository, tag, digest })
    }
}

fn invalid(text: &str, part: &str, why: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, format!("read the image reference {text:?}"))
        .because(format!("its {part} is not valid: {why}"))
}

/// `[\w][\w.-]{0,127}`
fn check_tag(tag: &str) -> Result<(), String> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = tag.bytes();
    match bytes.next() {
        None => return Err("it is empty".into()),
        Some(first) if !word(first) => return Err("it starts with something else than a letter, digit or '_'".into()),
        Some(_) => {}
    }
    if !bytes.all(|byte| word(byte) || matches!(byte, b'.' | b'-')) {
        return Err("letters, digits, '_', '.' and '-' are allowed".into());
    }
    if tag.len() > MAX_TAG {
        return Err(format!("it is longer than {MAX_TAG} bytes"));
    }
    Ok(())
}

/// Components of lower-case letters and digits, joined inside by one `.`, one or two `_`, or any number of `-`.
fn check_repository(path: &str) -> Result<(), String> {
    for component in path.split('/') {
        if component.is_empty() {
            return Err("a component is empty".into());
        }
        if let Some(bad) = component.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-')) {
            return Err(if bad.is_ascii_uppercase() {
                format!("{bad:?} in {component:?}: repository names are lower-case")
            } else {
                format!("{bad:?} in {component:?}")
            });
        }
        let separator = |c: char| matches!(c, '.' | '_' | '-');
        if component.starts_with(separator) || component.ends_with(separator) {
            return Err(format!("{component:?} starts or ends with a separator"));
        }
        for run in component.split(|c: char| !separator(c)).filter(|run| !run.is_empty()) {
            if !(matches!(run, "." | "_" | "__") || run.bytes().all(|byte| byte == b'-')) {
                return Err(format!("{run:?} in {component:?} is not a separator"));
            }
        }
    }
    Ok(())
}

/// A DNS name, an IPv4 address or a bracketed IPv6 address, with an optional port.
fn check_registry(registry: &str) -> Result<(), String> {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or("']' is missing")?;
            if address.is_empty() || !address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':') {
                return Err(format!("{address:?} is not an IPv6 address"));
            }
            match rest.strip_prefix(':') {
                None if rest.is_empty() => return Ok(()),
                None => return Err(format!("{rest:?} after ']'")),
                Some(port) => ("", Some(port)),
            }
        }
        None => match registry.split_once(':') {
            None => (registry, None),
            Some((host, port)) => (host, Some(port)),
        },
    };
    if let Some(port) = port
        && (port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()))
    {
        return Err(format!("{port:?} is not a port"));
    }
    if registry.starts_with('[') {
        return Ok(());
    }
    for component in host.split('.') {
        let inside = component.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if component.is_empty() || !inside || component.starts_with('-') || component.ends_with('-') {
            return Err(format!("{host:?} is not a host name"));
        }
    }
    Ok(())
}

impl fmt::Display for Reference {
    /// The canonical spelling, with nothing left out: `docker.io/library/debian:latest`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.name();
        self.push_suffix(&mut text);
        f.pad(&text)
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

super::serde_as_string!(Reference);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn parts(text: &str) -> (String, String, Option<String>) {
        let it: Reference = text.parse().unwrap();
        (it.registry, it.repository, it.tag)
    }

    #[test]
    fn completion() {
        let cases = [
            ("debian", "docker.io", "library/debian", "latest"),
            ("debian:12", "docker.io", "library/debian", "12"),
            ("a/b", "docker.io", "a/b", "latest"),
            ("docker.io/debian", "docker.io", "library/debian", "latest"),
            ("index.docker.io/debian", "docker.io", "library/debian", "latest"),
            ("docker.io/library/debian", "docker.io", "library/debian", "latest"),
            ("localhost/x", "localhost", "x", "latest"),
            ("localhost:5000/x:1", "localhost:5000", "x", "1"),
            ("localhost:5000", "docker.io", "library/localhost", "5000"),
            ("quay.io/a/b/c", "quay.io", "a/b/c", "latest"),
            ("UPPER/x", "UPPER", "x", "latest"),
            ("[::1]:443/x", "[::1]:443", "x", "latest"),
            ("[fd00::2]/x", "[fd00::2]", "x", "latest"),
            ("127.0.0.1/x", "127.0.0.1", "x", "latest"),
            ("a--b__c.d_e", "docker.io", "library/a--b__c.d_e", "latest"),
            ("foo_bar.com:8080", "docker.io", "library/foo_bar.com", "8080"),
        ];
        for (text, registry, repository, tag) in cases {
            assert_eq!(parts(text), (registry.into(), repository.into(), Some(tag.into())), "{text}");
        }
    }

    #[test]
    fn digests() {
        let digest = Digest::of(b"");
        let it: Reference = format!("debian@{digest}").parse().unwrap();
        assert_eq!((it.tag(), it.digest()), (None, Some(&digest)));
        assert_eq!(it.familiar(), format!("debian@{digest}"));
        let it: Reference = format!("debian:12@{digest}").parse().unwrap();
        assert_eq!((it.tag(), it.digest()), (Some("12"), Some(&digest)));
        assert_eq!(it.with_tag("13").unwrap().to_string(), "docker.io/library/debian:13");
    }

    #[test]
    fn familiar_means_the_same() {
        for (text, familiar) in [
            ("docker.io/library/debian", "debian:latest"),
            ("docker.io/a/b:c", "a/b:c"),
            ("docker.io/library/a/b", "library/a/b:latest"),
            ("docker.io/a.b/c", "docker.io/a.b/c:latest"),
            ("docker.io/localhost/c", "docker.io/localhost/c:latest"),
            ("quay.io/x", "quay.io/x:latest"),
        ] {
            let it: Reference = text.parse().unwrap();
            assert_eq!(it.familiar(), familiar);
            assert_eq!(familiar.parse::<Reference>().unwrap(), it);
        }
    }

    #[test]
    fn the_faulty_part_is_named() {
        let long_tag = format!("a:{}", "t".repeat(129));
        let long_name = "x/".repeat(127) + "xx";
        let long_official = "x".repeat(248);
        let image_id = "0123456789abcdef".repeat(4);
        let cases = [
            ("", "name"),
            (image_id.as_str(), "name"),
            ("Debian", "repository"),
            ("a/B", "repository"),
            ("../x", "registry"),
            ("a/../x", "repository"),
            ("/x", "repository"),
            ("x/", "repository"),
            ("a//b", "repository"),
            ("a..b", "repository"),
            ("a___b", "repository"),
            ("a._b", "repository"),
            ("-a", "repository"),
            ("a-", "repository"),
            ("a b", "repository"),
            ("a\n", "repository"),
            ("é", "repository"),
            ("https://docker.io/x", "registry"),
            ("a:", "tag"),
            ("a:-x", "tag"),
            ("a:x y", "tag"),
            ("a:b:c", "tag"),
            (&long_tag, "tag"),
            (&long_name, "repository"),
            (&long_official, "repository"),
            ("a@sha256:0", "digest"),
            ("a@", "digest"),
            ("a.b:x/y", "registry"),
            ("-a.b/y", "registry"),
            ("[::1/x", "registry"),
            ("[::1]x.y/x", "registry"),
            ("a.b:/x", "registry"),
        ];
        for (text, part) in cases {
            let error = text.parse::<Reference>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(&format!("its {part} is not valid")), "{text}: {error}");
        }
    }

    #[test]
    fn the_limits_themselves_are_fine() {
        assert!(format!("a:{}", "t".repeat(128)).parse::<Reference>().is_ok());
        assert!(("x/".repeat(127) + "x").parse::<Reference>().is_ok());
    }

    proptest! {
        #[test]
        fn nothing_panics_and_both_spellings_come_back(text in "[a-zA-Z0-9./:@_\\[\\]é -]{0,40}") {
            if let Ok(it) = text.parse::<Reference>() {
                prop_assert_eq!(&it.to_string().parse::<Reference>().unwrap(), &it);
                prop_assert_eq!(&it.familiar().parse::<Reference>().unwrap(), &it);
            }
        }

        #[test]
        fn well_formed_text_is_taken(
            registry in "([a-z][a-z0-9]{0,8}\\.[a-z]{2,5}(:[0-9]{1,5})?/)?",
            path in "[a-z0-9]{1,8}([._-][a-z0-9]{1,4})?(/[a-z0-9]{1,8}(__|--?)[a-z0-9]{1,8}){0,3}",
            tag in "(:[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127})?",
            pinned in any::<bool>(),
        ) {
            let mut text = format!("{registry}{path}{tag}");
            if pinned {
                text = format!("{text}@{}", Digest::of(text.as_bytes()));
            }
            let it: Reference = text.parse().unwrap();
            prop_assert_eq!(it.digest().is_some(), pinned);
            prop_assert_eq!(&it.to_string().parse::<Reference>().unwrap(), &it);
            prop_assert!(it.repository().ends_with(&path) || path.split('/').next().unwrap().contains('.'));
        }
    }
}
