//! The root as a whole: what check, df and prune say of it; what crashes and crowds do to it.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod crash;
mod crowd;
#[allow(dead_code)] // Written for the tests of containers, which use more of it.
#[path = "../container/support.rs"]
mod lab;
#[path = "../support/mod.rs"]
mod shared;
mod support;
mod whole;
