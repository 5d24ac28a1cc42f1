//! Image references: what is accepted means one thing, however it is written.
#![no_main]

use coracle::Reference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(reference) = text.parse::<Reference>() else { return };
    for written in [reference.to_string(), reference.familiar()] {
        let again: Reference = written.parse().expect("what is printed can be read");
        assert_eq!(again, reference, "{written}");
    }
    assert!(!reference.registry().is_empty() && !reference.repository().is_empty());
    assert!(!reference.repository().split('/').any(|component| component.is_empty() || component.starts_with('.')));
    assert!(reference.repository().len() <= 255);
});
