//! What was used: processor seconds, memory, questions and bytes.

use std::fs::read_to_string;
use std::ops::Sub;

use rsnet::store::consul::Traffic;

/// Ticks a second of the times in `/proc/PID/stat`; the same on every Linux.
const TICKS: f64 = 100.0;

/// What was used up to a moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// Questions to Consul, by all hosts.
    pub asked: u64,
    /// Bytes of its answers, to all hosts.
    pub heard: u64,
    /// Processor seconds of Consul, all its servers.
    pub consul: f64,
    /// Processor seconds of the hosts.
    pub hosts: f64,
    /// Rows that the hosts' kernels were told: a route, a neighbour, a forwarding entry.
    pub rows: u64,
}

impl Used {
    pub fn now(traffic: impl Iterator<Item = Traffic>, servers: impl Iterator<Item = u32>, rows: u64) -> Self {
        let (asked, heard) = traffic.fold((0, 0), |(asked, heard), one| (asked + one.asked, heard + one.heard));
        Used { asked, heard, consul: servers.map(processor).sum(), hosts: processor(std::process::id()), rows }
    }
}

impl Sub for Used {
    type Output = Used;

    fn sub(self, before: Used) -> Used {
        Used {
            asked: self.asked - before.asked,
            heard: self.heard - before.heard,
            consul: self.consul - before.consul,
            hosts: self.hosts - before.hosts,
            rows: self.rows - before.rows,
        }
    }
}

/// Processor seconds that a process used, in user and kernel mode: fields 14 and 15 of proc(5)'s `stat`.
fn processor(process: u32) -> f64 {
    let stat = read_to_string(format!("/proc/{process}/stat")).expect("a running process");
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = |at: usize| after_name.split_whitespace().nth(at).and_then(|field| field.parse::<f64>().ok()).expect("a number of ticks");
    (ticks(11) + ticks(12)) / TICKS
}

/// Megabytes of a process's own memory: what is shared with others counts by its part (`Pss`).
pub fn memory(process: u32) -> f64 {
    let rollup = read_to_string(format!("/proc/{process}/smaps_rollup")).expect("a running process");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).expect("Linux tells Pss since 4.14");
    line.split_whitespace().next().and_then(|kilobytes| kilobytes.parse::<f64>().ok()).expect("kilobytes") / 1024.0
}
