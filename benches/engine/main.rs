//! `make bench`: rsnet beside Docker's own bridge and the least remote drivers, on one engine, in one run, in turn. Prints medians, and the
//! ratio to Docker's bridge. `BENCH=quick` makes fewer rounds, `PARTS=macvlan` only one of the parts.
//!
//! Asked to by its first argument, the program is one of its own helpers: a floor driver, or an end of a conversation.

#[path = "../../tests/lab/mod.rs"]
mod lab;

mod floor;
mod goals;
mod lifecycle;
mod load;
mod macvlan;
mod overlay;
mod probe;
mod report;
mod traffic;

use std::time::Duration;

use lab::{Engine, Host, HostSpec, Lab, wait_until};
use report::Report;

/// One way to have a network, a column of a table.
#[derive(Clone, Copy)]
pub struct Way {
    pub name: &'static str,
    pub driver: &'static str,
    /// `-o` options as JSON.
    pub options: &'static str,
}

const DOCKER: Way = Way { name: "Docker bridge", driver: "bridge", options: "{}" };
const ENGINE: Way = Way { name: "rsnet engine", driver: "rsnet", options: r#"{"attach":"engine"}"# };
const DIRECT: Way = Way { name: "rsnet direct", driver: "rsnet", options: r#"{"attach":"direct"}"# };
const NOTHING: Way = Way { name: "floor: nothing", driver: "floor-nothing", options: "{}" };
const MOVED: Way = Way { name: "floor: moved", driver: "floor-moved", options: "{}" };
const MADE: Way = Way { name: "floor: made", driver: "floor-made", options: "{}" };
const REAL: [Way; 3] = [DOCKER, ENGINE, DIRECT];
const ALL: [Way; 6] = [DOCKER, ENGINE, DIRECT, NOTHING, MOVED, Way { name: "floor: made", driver: "floor-made", options: "{}" }];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "floor", kind] => floor::serve(kind),
        [_, "answer", port] => probe::answer(port),
        [_, "ask", address, rounds] => probe::ask(address, rounds),
        [_, "latency", address, rounds] => probe::latency(address, rounds),
        [_, "connect", address, rounds] => probe::connect(address, rounds),
        _ => measure(),
    }
}

fn measure() {
    let quick = std::env::var("BENCH").is_ok_and(|mode| mode == "quick");
    let parts = std::env::var("PARTS").unwrap_or_else(|_| "bridge macvlan".to_owned());
    tell_machine();
    if parts.contains("overlay") {
        return overlay::measure(quick);
    }
    let lab = Lab::new();
    let segment = &lab.segment(macvlan::PREFIXES);
    let [second, third] = &["10.78.0.0/24", "10.79.0.0/24"].map(|prefix| lab.segment([prefix]));
    let engine = Engine::V28_5;
    let station = lab.make(&HostSpec::new("station").on(&[segment]).showing(&me()));
    let host = lab.make(&HostSpec::new("host").engine(engine).on(&[segment, second, third]).showing(&me()));
    // on the disk that has Docker's data: the rest of a lab host is in memory, where a write that waits for the disk costs nothing
    host.start_rsnet_with("RSNET_LOG=info RSNET_DATA_DIR=/var/lib/docker/rsnet");
    // thousands of connections to one port leave no free one behind
    station.sh("sysctl -qw net.ipv4.tcp_tw_reuse=1").ok();
    if parts.contains("bridge") {
        measure_bridge(&host, &station, quick);
    }
    if parts.contains("macvlan") {
        // a thousand links are deleted behind the last answers, each for a while in which nobody else makes one
        wait_until("the links of the bridge's part to be gone", Duration::from_secs(60), || {
            let left = host.sh("! ls /sys/class/net | grep ^rsv-");
            if left.code == 0 { Ok(()) } else { Err(left.to_string()) }
        });
        measure_macvlan(&host, &station, quick);
    }
}

fn tell_machine() {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = Engine::V28_5.version();
    println!("Engine {version}, kernel {}. Medians; in brackets the ratio to the first column in the same run.\n", kernel.trim());
}

fn measure_bridge(host: &Host, station: &Host, quick: bool) {
    let rounds = if quick { 5 } else { 25 };
    let _floors = ["nothing", "moved", "made"].map(|kind| host.spawn(kind, &format!("{} floor {kind}", me().display())));
    for kind in ["nothing", "moved", "made"] {
        let socket = host.path(&format!("/run/docker/plugins/floor-{kind}.sock"));
        let listens = || std::os::unix::net::UnixStream::connect(&socket).map_err(|error| error.to_string());
        wait_until("a floor driver to listen", Duration::from_secs(10), listens);
    }
    let mut report = Report::new("Bridge", &ALL, goals::bridge);
    lifecycle::measure(host, &mut report, rounds, None);
    lifecycle::measure_ports(host, &mut report, rounds);
    lifecycle::end(host, &report);
    traffic::measure(host, station, &mut report, if quick { 1 } else { 15 });
    load::measure(host, &mut report, quick);
}

fn measure_macvlan(host: &Host, station: &Host, quick: bool) {
    let mut report = Report::new("Macvlan", &macvlan::ALL, goals::macvlan);
    lifecycle::measure(host, &mut report, if quick { 5 } else { 25 }, Some(["eth1", "eth2"]));
    lifecycle::end(host, &report);
    drop(report);
    let mut report = Report::new("Macvlan, the way to the segment", &macvlan::WITH_HAND, goals::macvlan_traffic);
    macvlan::traffic(host, station, &mut report, if quick { 1 } else { 15 });
}

/// This program's file.
pub fn me() -> std::path::PathBuf {
    std::env::current_exe().expect("a running program has a file")
}
