//! The command line from outside: arguments in, statuses and text out.
//!
//! Runs as root and as anybody else. What needs a container is skipped, loudly, where the host cannot run one; with
//! `CORACLE_NO_SKIP` in the environment a skip is a failure.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod shared;
mod support;

mod commit;
mod crash;
mod exec;
mod hosts;
mod images;
mod ladder;
mod lifecycle;
mod limits;
mod options;
mod output;
mod run;
mod signals;
mod snapshots;
mod system;
mod terminal;
mod usage;
