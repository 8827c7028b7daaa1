//! The store: one suite for every implementation, then what only the embedded one has.

mod conformance;
mod crash;
mod embedded;
