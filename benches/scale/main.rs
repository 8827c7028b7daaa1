//! `make bench-scale`: a thousand hosts that share ten networks, as tasks of one process, over a real Consul on its loopback.
//!
//! The hosts are the real cluster room with a Consul client each; there is no kernel behind them, what one would be told is counted from
//! the views. All of them and Consul share this machine's processors, which in the field are a thousand machines'.

#[path = "../../tests/lab/mod.rs"]
mod lab;
mod meter;
mod processes;
mod report;
#[path = "../../tests/store/server.rs"]
#[allow(dead_code, reason = "the store's tests use the rest")]
mod server;
mod simulation;

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use report::Report;

/// What to measure.
#[derive(Parser)]
pub struct Options {
    /// Simulated hosts.
    #[arg(long, default_value_t = 1000)]
    hosts: usize,
    /// Networks that each of them takes part in, 1 to 16.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..=16))]
    networks: u8,
    /// Consul servers: 1 or 3.
    #[arg(long, default_value_t = 1)]
    servers: u8,
    /// Real processes, each in a namespace; 0: none.
    #[arg(long, default_value_t = 50)]
    processes: usize,
    /// Prints JSON instead of the table.
    #[arg(long)]
    json: bool,
    /// What cargo says.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    // A thousand hosts are some 15,000 connections, each an open file here and in Consul, which is started with the same limit.
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    raised.expect("raise the number of open files");
    let mut report = Report::new(&options);
    if options.processes > 0 {
        processes::measure(options.processes, &mut report);
    }
    if options.hosts > 0 {
        own_network();
        simulation::measure(&options, &mut report);
    }
    report.print(options.json);
}

/// With as many ports for connections as there are.
fn own_network() {
    server::own_network();
    let range = "/proc/sys/net/ipv4/ip_local_port_range";
    std::fs::write(range, "1024 65535").expect("write the range of ports of a network namespace of our own");
}
