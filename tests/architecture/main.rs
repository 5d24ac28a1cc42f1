//! What the package promises about its own shape: who may use whom, where `unsafe` lives, how long a file may be, what
//! a feature may pull in. These tests read the sources and ask cargo; they run no container.
#![allow(clippy::unwrap_used, clippy::panic)]

mod advisories;
mod dependencies;
mod direction;
mod files;
mod scan;
mod source;
#[path = "../support/mod.rs"]
mod support;
mod unsafe_code;

use std::fmt::Display;

/// Fails with all violations at once, one a line.
fn assert_none<T: Display>(rule: &str, violations: &[T]) {
    if !violations.is_empty() {
        let lines: Vec<String> = violations.iter().map(|violation| format!("  {violation}")).collect();
        panic!("{rule}:\n{}", lines.join("\n"));
    }
}
