//! Launch: a plan of typed steps, made in the parent where everything may fail politely, and walked by the carried stub.
//!
//! ```text
//! plan.rs      the list of steps, as bytes
//! protocol.rs  what travels between host, guardian and first process (compiled into both programs)
//! spawn.rs     starts the guardian
//! parent.rs    sends plans, hears how processes start and end
//! opener.rs    files that only another user namespace lets us open
//! failure.rs   step + errno -> a sentence
//! stub/        the program that walks plans: no_std, no allocator; built by build.rs
//! ```

mod failure;
mod opener;
mod parent;
mod plan;
mod protocol;
mod spawn;
#[cfg(test)]
mod tests;

pub(crate) use opener::Opener;
pub(crate) use parent::{Ended, Process, in_memory, launch, launch_or, signal_past};
pub use plan::Plan;
pub(crate) use plan::{Base, Care, Create, Payload, Reg, When};
pub(crate) use protocol::Op;
