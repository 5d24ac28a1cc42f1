//! Builds the carried stub.
fn main() {}
