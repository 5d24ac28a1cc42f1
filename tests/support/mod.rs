//! What several test programs share.
#![allow(dead_code)] // Each of them uses its own part.

pub mod skip;
