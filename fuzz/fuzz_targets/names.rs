//! Digests, platforms, media types, names of containers.
#![no_main]

use coracle::Platform;
use coracle::name::{ContainerId, ContainerName, Digest, MediaType};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        assert!(digest.hex().bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
    }
    if let Ok(platform) = text.parse::<Platform>() {
        let normal = platform.normalized();
        assert_eq!(normal.normalized(), normal);
        assert!(platform.matches(&platform));
        assert_eq!(normal.to_string().parse::<Platform>().expect("what is printed can be read").normalized(), normal);
    }
    let Ok(media_type) = text.parse::<MediaType>();
    assert_eq!(media_type.as_str(), text);
    // These become names of files.
    if let Ok(name) = text.parse::<ContainerName>() {
        assert!(!name.as_str().starts_with('.') && !name.as_str().contains('/'));
    }
    if let Ok(id) = text.parse::<ContainerId>() {
        assert!(id.as_str().starts_with(id.short()));
    }
});
