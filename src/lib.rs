//! rsnet: a Docker-compatible network driver and IPAM plugin.
