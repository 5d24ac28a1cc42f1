//! Conformance suites: what an implementation of one of this crate's traits has to keep, as code that tries it.
//!
//! Every backend of the crate runs them in its tests; whoever writes one of their own runs them too:
//!
//! ```no_run
//! # use std::sync::Arc;
//! use coracle::{EngineOptions, contract, layer::Ownership, snapshot};
//!
//! # fn main() -> coracle::Result<()> {
//! // In place of `Overlay`, your own.
//! let backend = Arc::new(snapshot::Overlay::new(Ownership::Full));
//! let engine = EngineOptions::new("/var/tmp/a-root-for-this").snapshot_backend(backend).open()?;
//! for clause in contract::snapshotter(&engine)? {
//!     println!("kept: {clause}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A suite stops at the first clause that is broken: the error's step is the clause, its cause what was found instead.

mod fixture;
mod snapshotter;

pub use snapshotter::snapshotter;

use crate::{Error, ErrorKind, Result};

/// What a suite is at: its error and its report name it.
type Clause = &'static str;

/// An error unless something holds.
fn require(holds: bool, clause: Clause, found: impl Into<String>) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, format!("keep the contract, which says: {clause}")).because(found.into()))
}

/// A failure of what a clause asks for.
fn in_clause<T>(clause: Clause, result: Result<T>) -> Result<T> {
    result.map_err(|error| {
        let step = format!("keep the contract, which says: {clause}");
        Error::new(error.kind(), step).because(error.to_string()).source_is(error)
    })
}
