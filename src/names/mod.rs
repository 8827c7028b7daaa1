//! What containers are called, on all hosts that share a network.
//!
//! Owns the [`Directory`]: pure, asked for each query of a container.

mod directory;

pub use directory::{Directory, Entry, Named, Zone};
