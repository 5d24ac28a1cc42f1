//! mod
mod config;
mod manifest;
mod resolve;
