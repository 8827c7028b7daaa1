//! The operator's side: the command line, `doctor` and what is seen from outside, on a daemon in a network namespace of its own. No engine.

mod bench;
mod commands;
mod consul;
mod daemon;
mod doctor;
mod engine;
#[path = "../lab/http.rs"]
mod http;
#[path = "../lab/namespace.rs"]
#[allow(dead_code, reason = "others use the rest")]
mod namespace;
mod seen;
#[path = "../store/server.rs"]
#[allow(dead_code, reason = "the suite of the store uses the rest")]
mod server;
