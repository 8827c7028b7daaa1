//! What a packet's way costs: container to container, through a published port from the segment, and out to the segment.

use serde_json::json;

use crate::lab::Host;
use crate::lifecycle::{container, create, remove, start};
use crate::report::Report;
use crate::{REAL, Way, me};

pub fn measure(host: &Host, station: &Host, report: &mut Report, rounds: usize) {
    let ends: Vec<_> = REAL.iter().enumerate().map(|(at, way)| Ends::new(host, *way, 7000 + 10 * at)).collect();
    let outside = station.spawn("outside", &format!("{} answer 5000", me().display()));
    let sink = station.spawn("sink", "iperf3 -s -p 5201");
    station.wait_listening("tcp", 5201);
    for at in 1..=rounds {
        eprintln!("traffic: round {at} of {rounds}");
        // each begins in turn
        let (later, first) = ends.split_at(at % ends.len());
        first.iter().chain(later).for_each(|ends| ends.round(host, station, report));
    }
    ends.iter().filter(|ends| ends.way.driver == "rsnet").for_each(|ends| ends.many_mappings(host, station, report, rounds));
    outside.stop(PATIENCE);
    sink.stop(PATIENCE);
    ends.iter().for_each(|ends| ends.end(host));
}

pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// A server and a client in one network.
struct Ends {
    way: Way,
    server: String,
    client: String,
    port: usize,
    network: String,
    processes: Vec<crate::lab::Process>,
}

impl Ends {
    fn new(host: &Host, way: Way, port: usize) -> Self {
        let network = format!("traffic-{}", way.driver_and_way());
        create(host, &network, way, None);
        let published = json!({ "5000/tcp": [{ "HostPort": port.to_string() }], "5201/tcp": [{ "HostPort": (port + 1).to_string() }] });
        let exposed = json!({ "5000/tcp": {}, "5201/tcp": {} });
        let plain = json!({ "NetworkMode": network });
        let open = json!({ "NetworkMode": network, "PortBindings": published });
        let made = |config, exposed| {
            container(host, &json!({ "Image": "box", "Cmd": ["sleep", "9999"], "HostConfig": config, "ExposedPorts": exposed }))
        };
        let (server, client) = (made(open, exposed), made(plain, json!({})));
        start(host, &server);
        start(host, &client);
        let answer = host.spawn_in_container(&server, &format!("answer-{port}"), &format!("{} answer 5000", me().display()));
        let sink = host.spawn_in_container(&server, &format!("sink-{port}"), "iperf3 -s -p 5201");
        Ends { way, server, client, port, network, processes: vec![answer, sink] }
    }

    fn round(&self, host: &Host, station: &Host, report: &mut Report) {
        let inner =
            host.docker(&format!("inspect -f '{{{{range .NetworkSettings.Networks}}}}{{{{.IPAddress}}}}{{{{end}}}}' {}", self.server));
        let inner = inner.ok().trim().to_owned();
        let (outer, station_address) = (host.ipv4(), station.ipv4());
        let program = me();
        let program = program.display();
        let inside = |script: &str| figure(host.in_container(&self.client, script).ok());
        let from_station = |script: &str| figure(station.sh(script).ok());
        let mut add = |line: &str, figure: f64| report.add(line, self.way, figure);
        add("container to container, Gbit/s", inside(&gigabits(&inner, 5201)));
        add("container to container, µs a round trip", inside(&format!("{program} ask {inner}:5000 5000")));
        add("published port from the segment, Gbit/s", from_station(&gigabits(&outer.to_string(), self.port + 1)));
        add("published port from the segment, µs a round trip", from_station(&format!("{program} ask {outer}:{} 5000", self.port)));
        add("published port, connections a second", from_station(&format!("{program} connect {outer}:{} 2000", self.port)));
        add("container to the segment, Gbit/s", inside(&gigabits(&station_address.to_string(), 5201)));
        add("container to the segment, µs a round trip", inside(&format!("{program} ask {station_address}:5000 5000")));
    }

    /// New connections through one published port, alone and as one of ten thousand that are no range.
    fn many_mappings(&self, host: &Host, station: &Host, report: &mut Report, rounds: usize) {
        let seen = host.docker(&format!(
            "inspect -f '{{{{range .NetworkSettings.Networks}}}}{{{{.NetworkID}}}} {{{{.EndpointID}}}}{{{{end}}}}' {}",
            self.server
        ));
        let seen = seen.ok().trim().to_owned();
        let (network, endpoint) = seen.split_once(' ').expect("two ids");
        let port = |at: usize| json!({ "Proto": 6, "Port": 5000, "HostPort": 10_000 + at, "HostPortEnd": 10_000 + at });
        let connect = format!("{} connect {}:10000 2000", me().display(), host.ipv4());
        for _ in 0..rounds {
            for (line, count) in
                [("through the only mapping, connections a second", 1), ("through one of 10,000, connections a second", 10_000)]
            {
                let ports: Vec<_> = (0..count).map(port).collect();
                let body = json!({ "NetworkID": network, "EndpointID": endpoint, "Options": { "com.docker.network.portmap": ports } });
                let answer = host.plugin("/NetworkDriver.ProgramExternalConnectivity", &body.to_string()).expect("an answer of rsnet");
                assert_eq!(answer.status, 200, "{}", answer.body);
                report.add(line, self.way, figure(station.sh(&connect).ok()));
            }
        }
        // the next way publishes the same
        let revoked =
            host.plugin("/NetworkDriver.RevokeExternalConnectivity", &json!({ "NetworkID": network, "EndpointID": endpoint }).to_string());
        assert_eq!(revoked.expect("an answer of rsnet").status, 200);
    }

    fn end(&self, host: &Host) {
        self.processes.iter().for_each(|process| process.signal(nix::sys::signal::Signal::SIGTERM));
        remove(host, &self.client);
        remove(host, &self.server);
        host.docker(&format!("network rm {}", self.network)).ok();
    }
}

/// A script that prints the throughput to an iperf3 server.
pub fn gigabits(address: &str, port: usize) -> String {
    format!("iperf3 -c {address} -p {port} -t 1 -J | jq .end.sum_received.bits_per_second/1e9")
}

/// The number that a program printed.
pub fn figure(printed: &str) -> f64 {
    printed.trim().parse().unwrap_or_else(|_| panic!("not a figure: {printed:?}"))
}
