//! Names of containers.

use std::fmt;
use std::str::FromStr;

use super::digest::{is_lower_hex, push_hex};
use crate::{Error, ErrorKind, Result, sys};

/// The name that the engine gives a container: 64 lower-case hexadecimal digits, drawn at random.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

impl ContainerId {
    /// Draws a new ID from the kernel's random numbers (getrandom(2)).
    ///
    /// # Errors
    /// Only where the kernel refuses the call altogether.
    pub fn random() -> Result<ContainerId> {
        let mut bytes = [0; 32];
        sys::random::fill(&mut bytes)?;
        let mut text = String::with_capacity(64);
        push_hex(&mut text, &bytes);
        Ok(ContainerId(text))
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, which lists show.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl FromStr for ContainerId {
    type Err = Error;

    fn from_str(text: &str) -> Result<ContainerId> {
        if text.len() != 64 || !is_lower_hex(text) {
            return Err(Error::new(ErrorKind::Invalid, format!("read the container ID {text:?}"))
                .because("a container ID is 64 digits of 0-9 and a-f"));
        }
        Ok(ContainerId(text.to_owned()))
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

super::serde_as_string!(ContainerId);

/// The name that a person gives a container: `[a-zA-Z0-9][a-zA-Z0-9_.-]+`, at most 255 bytes.
///
/// ```
/// use coracle::name::ContainerName;
///
/// assert!("web-1".parse::<ContainerName>().is_ok());
/// assert!("../web".parse::<ContainerName>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerName(String);

impl ContainerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerName {
    type Err = Error;

    fn from_str(text: &str) -> Result<ContainerName> {
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let rest = bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
        // 255 is the length of a file name; names become file names in many a user's scripts.
        if !first || !rest || !(2..=255).contains(&text.len()) {
            return Err(Error::new(ErrorKind::Invalid, format!("take {text:?} as a container's name")).because(
                "a name is a letter or digit, then at least one more letter, digit, '_', '.' or '-', 255 in all",
            ));
        }
        Ok(ContainerName(text.to_owned()))
    }
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

super::serde_as_string!(ContainerName);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_parse() {
        let (a, b) = (ContainerId::random().unwrap(), ContainerId::random().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.to_string().parse::<ContainerId>().unwrap(), a);
        assert_eq!(a.short().len(), 12);
        assert!(a.short().parse::<ContainerId>().is_err());
    }

    #[test]
    fn names() {
        for good in ["ab", "a.b", "0_", "Web-1", &"x".repeat(255)] {
            assert!(good.parse::<ContainerName>().is_ok(), "{good}");
        }
        for bad in ["", "a", ".", "..", "-ab", "_ab", "a/b", "a b", "a\n", "é1", "ab\0", &"x".repeat(256)] {
            assert_eq!(bad.parse::<ContainerName>().unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }
}
