//! Macvlan: Docker's, rsnet's both ways, and a link made by hand. What a packet's way to the segment costs.

use serde_json::json;

use crate::lab::Host;
use crate::lifecycle::{container, remove, start};
use crate::report::Report;
use crate::traffic::{PATIENCE, figure, gigabits};
use crate::{Way, me};

const DOCKER: Way = Way { name: "Docker macvlan", driver: "macvlan", options: "{}" };
pub const ENGINE: Way = Way { name: "rsnet macvlan engine", driver: "rsnet", options: r#"{"mode":"macvlan","attach":"engine"}"# };
pub const DIRECT: Way = Way { name: "rsnet macvlan direct", driver: "rsnet", options: r#"{"mode":"macvlan","attach":"direct"}"# };
const HAND: Way = Way { name: "made by hand", driver: "null", options: "{}" };
/// Those that the engine knows.
pub const ALL: [Way; 3] = [DOCKER, ENGINE, DIRECT];

/// The first is what the others are compared with.
pub const WITH_HAND: [Way; 4] = [HAND, DOCKER, ENGINE, DIRECT];
/// The prefixes of the segment, one for each: engines let no two networks share one.
pub const PREFIXES: [&str; 4] = ["10.77.0.0/24", "10.77.1.0/24", "10.77.2.0/24", "10.77.3.0/24"];

/// From a container on the segment's own subnet to another machine on it.
pub fn traffic(host: &Host, station: &Host, report: &mut Report, rounds: usize) {
    let outside = station.spawn("outside", &format!("{} answer 5000", me().display()));
    let sink = station.spawn("sink", "iperf3 -s -p 5201");
    station.wait_listening("tcp", 5201);
    let clients: Vec<_> = WITH_HAND.into_iter().enumerate().map(|(at, way)| Client::new(host, way, at)).collect();
    for at in 1..=rounds {
        eprintln!("macvlan: round {at} of {rounds}");
        let (later, first) = clients.split_at(at % clients.len());
        first.iter().chain(later).for_each(|client| client.measure(host, report));
    }
    outside.stop(PATIENCE);
    sink.stop(PATIENCE);
    clients.iter().for_each(|client| remove(host, &client.id));
}

/// A container in a network of its own on the segment of `eth0`.
struct Client {
    way: Way,
    id: String,
    /// The station's address in the same prefix.
    station: String,
}

impl Client {
    fn new(host: &Host, way: Way, at: usize) -> Self {
        let mode = if way.driver == "null" { "none".to_owned() } else { network(host, way, PREFIXES[at]) };
        let id = container(host, &json!({ "Image": "box", "Cmd": ["sleep", "9999"], "HostConfig": { "NetworkMode": mode } }));
        start(host, &id);
        if way.driver == "null" {
            let pid = host.docker(&format!("inspect -f '{{{{.State.Pid}}}}' {id}")).ok().trim().to_owned();
            host.sh(&format!("ip link add hand link eth0 type macvlan mode bridge && ip link set hand netns {pid}")).ok();
            host.sh(&format!("nsenter -n -t {pid} sh -c 'ip addr add 10.77.{at}.200/24 dev hand && ip link set hand up'")).ok();
        }
        Client { way, id, station: format!("10.77.{at}.1") }
    }

    fn measure(&self, host: &Host, report: &mut Report) {
        let inside = |script: &str| figure(host.in_container(&self.id, script).ok());
        report.add("container to the segment, Gbit/s", self.way, inside(&gigabits(&self.station, 5201)));
        let ask = format!("{} ask {}:5000 5000", me().display(), self.station);
        report.add("container to the segment, µs a round trip", self.way, inside(&ask));
    }
}

fn network(host: &Host, way: Way, prefix: &str) -> String {
    let name = format!("lan-{}", way.driver_and_way());
    let mut options: serde_json::Value = serde_json::from_str(way.options).expect("JSON");
    options["parent"] = json!("eth0");
    let ipam = json!({ "Config": [{ "Subnet": prefix, "IPRange": prefix.replace(".0/24", ".128/25") }] });
    let body = json!({ "Name": name, "Driver": way.driver, "Options": options, "IPAM": ipam });
    let answer = host.api("POST", "/networks/create", &body.to_string()).expect("an answer of the engine");
    assert!(answer.status < 300, "{}", answer.body);
    name
}
