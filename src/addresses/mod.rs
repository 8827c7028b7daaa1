//! POOLS AND ADDRESSES: which subnet, and which address in it, comes next. Pure: no I/O, no async, no clock, no randomness.
//!
//! A [`Space`] owns the [`Pool`]s of one of Docker's address spaces; its pools never overlap. A [`Pool`] owns the state of every address
//! in it. Each change of an address comes back as a [`Record`] for the caller to persist under that address (the newest replaces the
//! older); a pool rebuilt from its records with [`Pool::restore`], in any order, answers as the old one would have.
//!
//! What the engine asks is told in Docker's IPAM remote protocol (libnetwork `docs/ipam.md`); texts of the wire are not known here.

mod pool;
mod runs;
mod space;

pub use pool::{AddressError, Pool, Record, State};
pub use space::{DefaultPool, DockerDefaults, PoolError, Space};
