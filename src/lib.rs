//! rsnet: a Docker-compatible network driver and IPAM plugin.

pub mod firewall;
pub mod kernel;
pub mod model;
