//! How to read a blob.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

macro_rules! media_types {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The type of a blob, as manifests and descriptors state it.
        ///
        /// Parsing never fails: what this crate does not understand is kept as [`MediaType::Other`], so that a
        /// document survives a round trip. Comparison is by the exact text; parameters (`; charset=…`) are not stripped.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum MediaType {
            $($(#[$doc])* #[doc = concat!("\n\n`", $text, "`")] $name,)*
            /// Anything else, as it was written.
            Other(String),
        }

        impl MediaType {
            /// The text that stands in documents and headers.
            pub fn as_str(&self) -> &str {
                match self {
                    $(MediaType::$name => $text,)*
                    MediaType::Other(text) => text,
                }
            }
        }

        impl From<&str> for MediaType {
            fn from(text: &str) -> Self {
                match text {
                    $($text => MediaType::$name,)*
                    other => MediaType::Other(other.to_owned()),
                }
            }
        }

        #[cfg(test)]
        const KNOWN: &[&str] = &[$($text,)*];
    };
}

media_types! {
    /// An OCI image index: one image for several platforms.
    OciIndex = "application/vnd.oci.image.index.v1+json",
    /// An OCI image manifest.
    OciManifest = "application/vnd.oci.image.manifest.v1+json",
    /// An OCI image config.
    OciConfig = "application/vnd.oci.image.config.v1+json",
    /// An OCI layer, an uncompressed tar.
    OciLayer = "application/vnd.oci.image.layer.v1.tar",
    /// An OCI layer, a tar in gzip.
    OciLayerGzip = "application/vnd.oci.image.layer.v1.tar+gzip",
    /// An OCI layer, a tar in zstd.
    OciLayerZstd = "application/vnd.oci.image.layer.v1.tar+zstd",
    /// An OCI layer that registries do not hand on, an uncompressed tar (deprecated).
    OciLayerNondistributable = "application/vnd.oci.image.layer.nondistributable.v1.tar",
    /// An OCI layer that registries do not hand on, a tar in gzip (deprecated).
    OciLayerNondistributableGzip = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    /// An OCI layer that registries do not hand on, a tar in zstd (deprecated).
    OciLayerNondistributableZstd = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    /// The empty JSON object that stands for "no config".
    OciEmpty = "application/vnd.oci.empty.v1+json",
    /// A docker manifest list: one image for several platforms.
    DockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json",
    /// A docker image manifest, schema 2.
    DockerManifest = "application/vnd.docker.distribution.manifest.v2+json",
    /// A docker image manifest, schema 1 (obsolete; recognised to be refused by name).
    DockerManifestV1 = "application/vnd.docker.distribution.manifest.v1+json",
    /// A signed docker image manifest, schema 1 (obsolete; recognised to be refused by name).
    DockerManifestV1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws",
    /// A docker image config.
    DockerConfig = "application/vnd.docker.container.image.v1+json",
    /// A docker layer, an uncompressed tar.
    DockerLayer = "application/vnd.docker.image.rootfs.diff.tar",
    /// A docker layer, a tar in gzip.
    DockerLayerGzip = "application/vnd.docker.image.rootfs.diff.tar.gzip",
    /// A docker layer, a tar in zstd.
    DockerLayerZstd = "application/vnd.docker.image.rootfs.diff.tar.zstd",
    /// A docker layer that has to be fetched from the URLs in its descriptor, a tar in gzip.
    DockerLayerForeignGzip = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
}

impl MediaType {
    /// Whether it is a list of manifests.
    pub fn is_index(&self) -> bool {
        matches!(self, MediaType::OciIndex | MediaType::DockerManifestList)
    }

    /// Whether it is a manifest of one image that this crate reads (schema 1 is not).
    pub fn is_manifest(&self) -> bool {
        matches!(self, MediaType::OciManifest | MediaType::DockerManifest)
    }

    /// Whether it is an image config.
    pub fn is_config(&self) -> bool {
        matches!(self, MediaType::OciConfig | MediaType::DockerConfig)
    }

    /// Whether it is a filesystem layer.
    pub fn is_layer(&self) -> bool {
        use MediaType::*;
        matches!(self, OciLayer | OciLayerGzip | OciLayerZstd | DockerLayer | DockerLayerGzip | DockerLayerZstd)
            || self.is_foreign_layer()
    }

    /// Whether it is a layer that registries do not hand on.
    pub fn is_foreign_layer(&self) -> bool {
        use MediaType::*;
        matches!(
            self,
            OciLayerNondistributable
                | OciLayerNondistributableGzip
                | OciLayerNondistributableZstd
                | DockerLayerForeignGzip
        )
    }
}

impl FromStr for MediaType {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.into())
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

super::serde_as_string!(MediaType);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_comes_back_as_itself() {
        for text in KNOWN {
            let media_type = MediaType::from(*text);
            assert!(!matches!(media_type, MediaType::Other(_)));
            assert_eq!(media_type.as_str(), *text);
        }
        assert_eq!(MediaType::from("text/plain").as_str(), "text/plain");
    }

    #[test]
    fn the_classes_do_not_overlap() {
        for text in KNOWN {
            let it = MediaType::from(*text);
            let classes = [it.is_index(), it.is_manifest(), it.is_config(), it.is_layer()];
            assert!(classes.iter().filter(|class| **class).count() <= 1, "{text}");
        }
    }
}
