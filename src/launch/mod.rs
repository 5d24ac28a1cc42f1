//! Launch: a plan of typed steps, made in the parent where everything may fail politely, and walked by the carried stub.
//!
//! ```text
//! plan.rs      the list of steps, as bytes
//! settings.rs  steps for what a spec says besides the tree
//! protocol.rs  what travels between host, guardian and first process (compiled into both programs)
//! spawn.rs     starts the guardian
//! parent.rs    sends plans, hears how processes start and end
//! opener.rs    files that only another user namespace lets us open
//! handover.rs  descriptors that a process passes to us while it is set up
//! failure.rs   step + errno -> a sentence
//! fuzzed.rs    plans that are none, for the fuzz target
//! stub/        the program that walks plans: no_std, no allocator; built by build.rs
//! ```

mod failure;
#[cfg(fuzzing)]
pub(crate) mod fuzzed;
mod handover;
mod opener;
mod parent;
mod plan;
mod protocol;
mod settings;
mod spawn;
#[cfg(test)]
mod tests;

pub(crate) use handover::Handover;
pub(crate) use opener::Opener;
pub(crate) use parent::{Ended, Halts, Process, halts, in_memory, launch, launch_or, signal_past};
pub use plan::Plan;
pub(crate) use plan::{Base, Care, Create, Payload, Reg, When};
pub(crate) use protocol::Op;
pub(crate) use settings::Scheduling;
