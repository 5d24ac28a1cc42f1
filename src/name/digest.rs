//! `sha256:…`: bytes named by their hash.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use sha2::Digest as _;

use crate::{Error, ErrorKind, Result};

/// A hash function that may name content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// SHA-256, the one in practical use.
    Sha256,
    /// SHA-512, registered by the OCI specification and rarely met.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub const fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// The number of hexadecimal digits in a digest.
    pub const fn hex_len(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// The name of some bytes: an algorithm and the bytes' hash, written `sha256:` and 64 lower-case hexadecimal digits.
///
/// Parsing is strict, because two spellings of one digest would be two names for one file: capital digits, missing
/// digits and unknown algorithms are [`ErrorKind::Invalid`]. Cloning is cheap.
///
/// ```
/// use coracle::Digest;
///
/// let digest = Digest::of(b"");
/// assert_eq!(digest.to_string(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
/// assert!("sha256:E3B0C4".parse::<Digest>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    /// `sha256:<hex>`, valid by construction.
    text: Arc<str>,
}

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hash in lower-case hexadecimal digits, without the algorithm.
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.as_str().len() + 1..]
    }

    /// The whole name, `sha256:<hex>`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Digest {
        let mut text = String::with_capacity(algorithm.as_str().len() + 1 + algorithm.hex_len());
        text.push_str(algorithm.as_str());
        text.push(':');
        push_hex(&mut text, hash);
        Digest { algorithm, text: text.into() }
    }
}

/// Appends the lower-case hexadecimal digits of `bytes`.
pub(super) fn push_hex(text: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)].into());
        text.push(DIGITS[usize::from(byte & 15)].into());
    }
}

/// Whether `text` consists of lower-case hexadecimal digits only.
pub(super) fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Digest> {
        let invalid =
            |why: String| Err(Error::new(ErrorKind::Invalid, format!("read the digest {text:?}")).because(why));
        let Some((name, hex)) = text.split_once(':') else {
            return invalid("a digest is an algorithm, a colon and hexadecimal digits".into());
        };
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return invalid(format!("the algorithm {name:?} is neither sha256 nor sha512")),
        };
        if hex.len() != algorithm.hex_len() {
            return invalid(format!("{name} takes {} hexadecimal digits, not {}", algorithm.hex_len(), hex.len()));
        }
        if !is_lower_hex(hex) {
            return invalid("only the digits 0-9 and a-f may follow the colon".into());
        }
        Ok(Digest { algorithm, text: text.into() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

super::serde_as_string!(Digest);

/// Computes a [`Digest`] of bytes that come piece by piece.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new(algorithm: Algorithm) -> Hasher {
        Hasher(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
        })
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of everything taken.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(state) => Digest::from_hash(Algorithm::Sha256, &state.finalize()),
            State::Sha512(state) => Digest::from_hash(Algorithm::Sha512, &state.finalize()),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EMPTY_512: &str = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e";

    #[test]
    fn known_answers() {
        assert_eq!(
            Digest::of(b"abc").as_str(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(Hasher::new(Algorithm::Sha512).finish().as_str(), EMPTY_512);
        assert_eq!(EMPTY_512.parse::<Digest>().unwrap().algorithm(), Algorithm::Sha512);
        assert_eq!(Digest::of(b"").hex().len(), 64);
    }

    #[test]
    fn other_spellings_are_refused() {
        let good = Digest::of(b"").to_string();
        for bad in [
            String::new(),
            good.to_uppercase(),
            good.replace("sha256", "SHA256"),
            good.replace("sha256", "md5"),
            good.replace("e3", "E3"),
            good.replace(':', ""),
            good.replace(':', "-"),
            format!(" {good}"),
            format!("{good}\n"),
            format!("{good}0"),
            good[..good.len() - 1].to_owned(),
            good.replace("sha256", "sha512"),
            format!("sha256:{}", "é".repeat(32)),
            format!("sha256:{}", "../".repeat(21) + "."),
        ] {
            assert_eq!(bad.parse::<Digest>().unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }

    #[test]
    fn serde_is_a_string() {
        let digest = Digest::of(b"x");
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(json, format!("\"{digest}\""));
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
        assert!(serde_json::from_str::<Digest>("\"sha256:0\"").is_err());
    }

    proptest! {
        #[test]
        fn any_text_parses_to_itself_or_not_at_all(text in "(sha256|sha512|sha1|[a-z0-9]{0,8})?[:;]?[0-9a-fA-Fg/.]{0,130}") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }

        #[test]
        fn pieces_do_not_matter(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..300) {
            let cut = cut.min(bytes.len());
            let mut hasher = Hasher::new(Algorithm::Sha256);
            hasher.update(&bytes[..cut]);
            hasher.update(&bytes[cut..]);
            let digest = hasher.finish();
            prop_assert_eq!(&digest, &Digest::of(&bytes));
            prop_assert_eq!(&digest.as_str().parse::<Digest>().unwrap(), &digest);
        }
    }
}
