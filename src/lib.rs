//! A container engine that a Rust program carries with it.

mod error;

pub mod cgroup;
pub mod container;
pub mod content;
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

pub use container::{Container, ContainerBuilder, ExitStatus, Output, Stdio};
pub use engine::{Engine, EngineOptions, SnapshotterChoice};
pub use error::{Error, ErrorKind, Result};
pub use image::Image;
pub use name::{ContainerId, Digest, Platform, Reference};
pub use repository::Repository;
