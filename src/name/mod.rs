//! Names: pure values that say *which* thing is meant. Nothing here touches a file or the network, except that
//! [`ContainerId::random`] asks the kernel for random bytes.
//!
//! | name | says | specified by |
//! |---|---|---|
//! | [`Reference`] | an image in a repository of a registry, by tag or digest | [distribution/reference](https://github.com/distribution/reference) |
//! | [`Digest`] | bytes, by their hash | [OCI descriptor](https://github.com/opencontainers/image-spec/blob/main/descriptor.md#digests) |
//! | [`DiffId`], [`ChainId`] | an unpacked layer, and a layer on top of others | [OCI config](https://github.com/opencontainers/image-spec/blob/main/config.md) |
//! | [`Platform`] | the operating system and CPU that an image is for | [OCI index](https://github.com/opencontainers/image-spec/blob/main/image-index.md) |
//! | [`MediaType`] | how to read a blob | [OCI media types](https://github.com/opencontainers/image-spec/blob/main/media-types.md) |
//! | [`ContainerId`], [`ContainerName`] | a container: drawn at random, and given by a person | |

mod chain_id;
mod container_id;
mod digest;
mod media_type;
mod platform;
mod reference;

pub use chain_id::{ChainId, DiffId};
pub use container_id::{ContainerId, ContainerName};
pub use digest::{Algorithm, Digest, Hasher};
pub use media_type::MediaType;
pub use platform::Platform;
pub use reference::Reference;

/// Implements serde for a type that is one string on the wire, through its `FromStr` and `Display`.
macro_rules! serde_as_string {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
use serde_as_string;
