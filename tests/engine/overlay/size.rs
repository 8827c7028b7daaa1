//! How long the tests of endurance go on: the one place where their sizes are told. `SOAK=full make test` takes the full ones.

/// The sizes of a run.
pub struct Size {
    /// Containers that start and stop while addresses change hands and hosts are killed.
    pub reuses: usize,
    /// Containers whose first packets are looked at.
    pub starts: usize,
    /// Seconds without Consul, and the containers started meanwhile.
    pub without_consul: (u64, usize),
    /// Seconds with a slow Consul.
    pub slow: u64,
    /// Schedules of cuts, each with a seed of its own.
    pub schedules: u64,
    /// Hosts of one network.
    pub hosts: usize,
}

const ORDINARY: Size = Size { reuses: 50, starts: 30, without_consul: (15, 10), slow: 8, schedules: 2, hosts: 4 };
const FULL: Size = Size { reuses: 2000, starts: 1000, without_consul: (300, 100), slow: 90, schedules: 30, hosts: 8 };

pub fn size() -> &'static Size {
    match std::env::var("SOAK").as_deref() {
        Ok("full") => &FULL,
        Ok(other) => panic!("SOAK={other}: full, or not given"),
        Err(_) => &ORDINARY,
    }
}
