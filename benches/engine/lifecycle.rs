//! Networks and containers that come and go, by the engine's API; rounds of all ways in turn, so that a slow moment meets all.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Way;
use crate::lab::Host;
use crate::report::Report;

/// Lets what is done behind an answer be done, so that no figure carries the last one's.
const REST: Duration = Duration::from_millis(80);

/// How often a thousand ports are published by each way that is done with it in a second.
const PORT_ROUNDS: usize = 7;

/// Networks and containers of each way, in turn; `parents` of the network that stands and of the one that comes and goes, for macvlan.
pub fn measure(host: &Host, report: &mut Report, rounds: usize, parents: Option<[&str; 2]>) {
    let ways = report.ways();
    let standing = container(host, &json!({ "Image": "box", "Cmd": ["sleep", "9999"] }));
    start(host, &standing);
    ways.iter().for_each(|way| drop(create(host, &network_of(*way), *way, parents.map(|[stands, _]| stands))));
    for at in 1..=rounds {
        eprintln!("life cycle: round {at} of {rounds}");
        // each begins in turn
        let (later, first) = ways.split_at(at % ways.len());
        for way in first.iter().chain(later).copied() {
            round(host, report, way, &standing, parents.map(|[_, passes]| passes));
        }
    }
    remove(host, &standing);
}

/// Removes the networks that [`measure`] left standing.
pub fn end(host: &Host, report: &Report) {
    report.ways().iter().for_each(|way| drop(call(host, "DELETE", &format!("/networks/{}", network_of(*way)), "")));
}

/// A thousand ports published by each way of `report`, as often as `rounds` says, but not by Docker: its own bridge takes a minute and a half.
pub fn measure_ports(host: &Host, report: &mut Report, rounds: usize) {
    for at in 1..=PORT_ROUNDS.min(rounds) {
        for way in report.ways().iter().filter(|way| at == 1 || way.driver != "bridge").copied() {
            eprintln!("1,000 ports: round {at}, {}", way.name);
            many_ports(host, report, way);
        }
    }
}

fn network_of(way: Way) -> String {
    format!("standing-{}", way.driver_and_way())
}

impl Way {
    /// It is no network that carries anything, but the least that a remote driver does.
    pub fn is_floor(&self) -> bool {
        self.driver.starts_with("floor-")
    }

    /// A word for names.
    pub fn driver_and_way(&self) -> String {
        self.name.replace([' ', ':'], "-")
    }
}

fn round(host: &Host, report: &mut Report, way: Way, standing: &str, parent: Option<&str>) {
    let (network, own) = (network_of(way), format!("passing-{}", way.driver_and_way()));
    let (connect, disconnect) = (format!("/networks/{network}/connect"), format!("/networks/{network}/disconnect"));
    let body = json!({ "Container": standing }).to_string();
    report.add("network create, ms", way, timed(|| drop(create(host, &own, way, parent))));
    report.add("network delete, ms", way, timed(|| drop(call(host, "DELETE", &format!("/networks/{own}"), ""))));
    report.add("connect, ms", way, timed(|| drop(call(host, "POST", &connect, &body))));
    report.add("disconnect, ms", way, timed(|| drop(call(host, "POST", &disconnect, &body))));
    let id = container(host, &json!({ "Image": "box", "Cmd": ["sleep", "9999"], "HostConfig": { "NetworkMode": network } }));
    report.add("container start, ms", way, timed(|| start(host, &id)));
    report.add("container remove, ms", way, timed(|| remove(host, &id)));
}

/// A thousand ports. The engine's API knows no ranges: `docker run -p 20000-20999:20000-20999` sends these too. The floors publish nothing:
/// theirs is what the engine itself needs.
fn many_ports(host: &Host, report: &mut Report, way: Way) {
    let bindings: serde_json::Map<String, Value> =
        (20000..21000).map(|port| (format!("{port}/tcp"), json!([{ "HostPort": port.to_string() }]))).collect();
    let exposed: serde_json::Map<String, Value> = bindings.keys().map(|port| (port.clone(), json!({}))).collect();
    let config = json!({
        "Image": "box", "Cmd": ["sleep", "9999"], "ExposedPorts": exposed,
        "HostConfig": { "NetworkMode": network_of(way), "PortBindings": bindings },
    });
    let id = container(host, &config);
    report.add("1,000 ports: container start, ms", way, timed(|| start(host, &id)));
    let processes = host.sh("pgrep -c docker-proxy || true").ok().trim().parse().unwrap_or_default();
    report.add("1,000 ports: processes", way, processes);
    report.add("1,000 ports: container remove, ms", way, timed(|| remove(host, &id)));
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    let took = start.elapsed().as_secs_f64() * 1e3;
    std::thread::sleep(REST);
    took
}

/// A network; `parent` is the link that macvlan needs.
pub fn create(host: &Host, name: &str, way: Way, parent: Option<&str>) -> String {
    let mut options: Value = serde_json::from_str(way.options).expect("JSON");
    if let Some(parent) = parent {
        options["parent"] = json!(parent);
    }
    let body = json!({ "Name": name, "Driver": way.driver, "Options": options });
    call(host, "POST", "/networks/create", &body.to_string())
}

pub fn container(host: &Host, config: &Value) -> String {
    let answer = call(host, "POST", "/containers/create", &config.to_string());
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    answer["Id"].as_str().expect("an id").to_owned()
}

pub fn start(host: &Host, id: &str) {
    call(host, "POST", &format!("/containers/{id}/start"), "");
}

pub fn remove(host: &Host, id: &str) {
    call(host, "DELETE", &format!("/containers/{id}?force=1"), "");
}

fn call(host: &Host, method: &str, path: &str, body: &str) -> String {
    let answer = host.api(method, path, body).expect("an answer of the engine");
    assert!(answer.status < 300, "{method} {path}: {} {}", answer.status, answer.body);
    answer.body
}
