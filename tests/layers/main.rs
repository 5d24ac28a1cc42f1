//! Layers on their way out and in again: what containers change, what is packed of it, and what every reader makes of
//! that.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod commit;
mod dependent;
mod interop;
mod memory;
mod overlay;
#[path = "../support/mod.rs"]
mod shared;
#[path = "../container/support.rs"]
#[allow(dead_code)] // It serves more than is tested here.
mod support;
