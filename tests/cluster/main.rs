//! The overlay's hosts, several in one process, on the embedded store and on a real Consul.

mod consul;
mod fencing;
mod history;
mod newer;
mod scenarios;
#[path = "../store/server.rs"]
#[allow(dead_code, reason = "the store's tests use the rest")]
mod server;
mod world;
