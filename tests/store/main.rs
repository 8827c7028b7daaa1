//! The store: one suite for every implementation, then what only one of them has.

mod admission;
mod catalog;
mod conformance;
mod consul;
mod crash;
mod embedded;
mod faults;
mod proxy;
#[allow(dead_code, reason = "the benchmark uses the rest")]
mod server;
