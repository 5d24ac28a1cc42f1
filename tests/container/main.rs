//! Containers as an embedding program sees them. Every test of this binary runs under an allocator that ends any
//! process that allocates and is not the test program itself: that nothing of ours runs in a forked copy of the host.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unsafe_code)]

mod basics;
mod exec;
mod host;
mod input;
mod ladder;
mod lifetime;
mod records;
mod removed;
mod rootfs;
mod security;
#[path = "../support/mod.rs"]
mod shared;
mod snapshots;
mod support;
mod trap;

#[global_allocator]
static ALLOCATOR: trap::Trap = trap::Trap;
