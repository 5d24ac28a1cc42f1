//! Images.
mod config;
mod manifest;
