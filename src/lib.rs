//! rsnet: a Docker-compatible network driver and IPAM plugin. `docs/architecture.md` tells how the rooms belong together.

pub mod addresses;
pub mod agent;
pub mod app;
pub mod catalog;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod dns;
pub mod docker;
pub mod doctor;
pub mod driver;
pub mod drivers;
pub mod explain;
pub mod fencing;
pub mod firewall;
pub mod inspect;
pub mod ipam;
pub mod kernel;
pub mod model;
pub mod names;
pub mod peers;
pub mod plugin;
pub mod reconcile;
pub mod spread;
pub mod store;
pub mod telemetry;
