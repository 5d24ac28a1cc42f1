//! Names of unpacked layers.

use std::fmt;
use std::str::FromStr;

use super::Digest;
use crate::{Error, Result};

/// The digest of a layer's tar *before* compression: names what the layer unpacks to.
///
/// One layer has one DiffID however it was compressed, so layers are stored by it.
/// See [Layer DiffID](https://github.com/opencontainers/image-spec/blob/main/config.md#layer-diffid).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiffId(pub Digest);

/// The digest that names a layer *together with* all layers below it.
///
/// See [Layer ChainID](https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId(pub Digest);

impl DiffId {
    /// The digest itself.
    pub fn digest(&self) -> &Digest {
        &self.0
    }

    /// The hash in hexadecimal digits.
    pub fn hex(&self) -> &str {
        self.0.hex()
    }
}

impl ChainId {
    /// The name of the stack `diff_ids`, lowest layer first; an empty stack has none.
    pub fn of(diff_ids: &[DiffId]) -> Option<ChainId> {
        diff_ids.iter().fold(None, |below, diff_id| Some(ChainId::on(below.as_ref(), diff_id)))
    }

    /// The name of the layer `diff_id` on top of `below`.
    pub fn on(below: Option<&ChainId>, diff_id: &DiffId) -> ChainId {
        match below {
            None => ChainId(diff_id.0.clone()),
            Some(below) => ChainId(Digest::of(format!("{below} {diff_id}").as_bytes())),
        }
    }

    /// The digest itself.
    pub fn digest(&self) -> &Digest {
        &self.0
    }

    /// The hash in hexadecimal digits.
    pub fn hex(&self) -> &str {
        self.0.hex()
    }
}

macro_rules! digest_newtype {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($type), "({})"), self.0)
            }
        }
        impl FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                text.parse().map($type)
            }
        }
        super::serde_as_string!($type);
    };
}
digest_newtype!(DiffId);
digest_newtype!(ChainId);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_folded_from_below() {
        let [a, b, c] = ["a", "b", "c"].map(|text| DiffId(Digest::of(text.as_bytes())));
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(std::slice::from_ref(&a)).unwrap().digest(), a.digest());
        let ab = Digest::of(format!("{a} {b}").as_bytes());
        assert_eq!(ChainId::of(&[a.clone(), b.clone()]).unwrap().0, ab);
        assert_eq!(ChainId::of(&[a, b, c.clone()]).unwrap().0, Digest::of(format!("{ab} {c}").as_bytes()));
    }
}
