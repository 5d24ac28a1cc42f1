//! Containers as an embedding program sees them. Every test of this binary runs under an allocator that ends any
//! process that allocates and is not the test program itself: that nothing of ours runs in a forked copy of the host.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unsafe_code)]

mod basics;
mod exec;
mod hooks;
mod host;
mod input;
mod ladder;
mod leaks;
mod lifetime;
mod namespaces;
mod records;
mod removed;
mod rootfs;
mod security;
#[path = "../support/mod.rs"]
mod shared;
mod snapshots;
mod spec;
mod support;
mod terminal;
mod trap;
mod userns;

#[global_allocator]
static ALLOCATOR: trap::Trap = trap::Trap;
