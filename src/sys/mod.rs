//! The only door to the kernel. Everything above speaks in descriptors and typed values; `unsafe` lives in this
//! folder and in `launch/`.

pub(crate) mod bpf;
pub(crate) mod fs;
pub(crate) mod namespace;
pub(crate) mod path;
pub(crate) mod pidfd;
pub(crate) mod random;
pub(crate) mod reflink;
pub(crate) mod terminal;
pub(crate) mod trial;
pub(crate) mod usage;
pub(crate) mod xattr;
