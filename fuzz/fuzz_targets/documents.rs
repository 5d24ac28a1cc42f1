//! Manifests, indexes and configs.
#![no_main]

use coracle::image::{Config, Document};
use coracle::name::MediaType;
use libfuzzer_sys::fuzz_target;

const DECLARED: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v1+json",
    "text/html",
];

fuzz_target!(|bytes: &[u8]| {
    let alone = Document::parse(bytes, None);
    for declared in DECLARED {
        let Ok(declared) = declared.parse::<MediaType>();
        // A declaration can make a document unacceptable, never acceptable as something else.
        if let (Ok(document), Ok(alone)) = (Document::parse(bytes, Some(&declared)), &alone) {
            assert_eq!(std::mem::discriminant(&document), std::mem::discriminant(alone));
        }
    }
    if let Ok(config) = Config::parse(bytes) {
        let _ = config.platform();
    }
});
