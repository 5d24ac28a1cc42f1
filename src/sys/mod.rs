//! The only door to the kernel.

pub(crate) mod trial;
