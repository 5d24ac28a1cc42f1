//! A container engine that a Rust program carries with it: images, containers and repositories as typed values.
//!
//! ```no_run
//! # fn main() -> coracle::Result<()> {
//! let engine = coracle::Engine::open_default()?; // rootful or rootless, by who we are
//! let image = engine.load("debian.tar")?;
//! let out = image.container().command(["cat", "/etc/os-release"]).output()?;
//! assert!(out.status.success());
//!
//! // With nothing loaded at all: a throwaway sandbox over the host, writes thrown away.
//! let out = engine.sandbox().command(["id"]).output()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | [`Engine`] | the chosen roots and backends; hands out the three values below |
//! | [`Image`] | a read-only template: manifest, config and layers. Its ID is the digest of its config, so two tags with one ID are one image |
//! | [`Container`] | a running (or stopped) instance of an image: a thin writable layer on top, isolated processes inside |
//! | [`Repository`] | a named set of tags |
//! | [layer] | one tar of changes, compressed in transit and identified unpacked by its DiffID |
//! | [snapshot] | a tree that a container can be started on: layers below, a writable directory on top; one that is [saved](container::SavedSnapshot) can be started on again |
//! | [isolation] | what turns a process spec into a launch plan, and says how much of it is enforced |
//! | launch plan | the flat list of typed steps that the child walks after clone |
//!
//! # Promises to the embedding program
//!
//! * Safe from any thread and any async worker, concurrently. Nothing process-wide is touched: not the working directory,
//!   umask, environment, signal handlers, dumpability. Every descriptor is close-on-exec. Whatever the host program does
//!   with SIGCHLD costs no exit status, and containers are never its children.
//! * Between clone and exec nothing allocates, locks or formats, since that code is a program without an allocator.
//! * A launch does not take longer when the host program has more memory.
//! * Nothing is silently weaker than asked: [`isolation::Enforcement`] is a value, [`isolation::Requirement`] a minimum.
//! * An [`Error`] names step, system call, path, errno, likely cause and remedy.
//! * When the host program is killed, its containers die with it, and the next open of the root sweeps what is left.
//! * The store survives a crash at any instant: what is visible is whole.
//! * Several engines with different roots live in one process; only [`Engine::open_default`] reads the environment.
//!
//! # Features
//!
//! | feature | adds | pulls in |
//! |---|---|---|
//! | `zstd` (default) | layers and archives compressed with zstd | the reference C library |
//! | `cli` | the command line `coracle` | clap, indicatif |
//! | `cgroups-rs` | a second [cgroup] driver | cgroups-rs and what it brings |
//!
//! Without any of them there is no network stack, no TLS and no C code in the tree.
//!
//! More in [`_docs`]: [design](_docs::design), [threat model](_docs::threats), [kernel features](_docs::kernel),
//! [platforms, files and variables](_docs::platform), [coming from Docker](_docs::docker).

#[cfg(not(target_os = "linux"))]
compile_error!("coracle is made of Linux namespaces and supports Linux only");

mod error;

pub mod cgroup;
pub mod container;
pub mod content;
pub mod contract;
mod engine;
pub mod image;
pub mod isolation;
mod launch;
pub mod layer;
pub mod name;
pub mod probe;
pub mod repository;
pub mod security;
pub mod snapshot;
mod sys;
pub mod system;

#[cfg(fuzzing)]
pub mod fuzzing;

pub use container::{Container, ContainerBuilder, ExitStatus, Output, Stdio};
pub use engine::{Engine, EngineOptions, IsolationChoice, SnapshotterChoice};
pub use error::{Error, ErrorKind, Result};
pub use image::Image;
pub use name::{ContainerId, Digest, Platform, Reference};
pub use repository::Repository;

/// The guide: design, threats, kernel features, platforms, coming from Docker. Documentation only.
#[cfg(doc)]
pub mod _docs {
    #[doc = include_str!("_docs/design.md")]
    pub mod design {}
    #[doc = include_str!("_docs/threats.md")]
    pub mod threats {}
    #[doc = include_str!("_docs/kernel.md")]
    pub mod kernel {}
    #[doc = include_str!("_docs/platform.md")]
    pub mod platform {}
    #[doc = include_str!("_docs/docker.md")]
    pub mod docker {}
}

/// The README's examples are compiled with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
