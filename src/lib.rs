pub mod config;
pub mod drivers;
pub mod firewall;
pub mod kernel;
pub mod model;
pub mod plugin;
pub mod reconcile;
pub mod telemetry;
