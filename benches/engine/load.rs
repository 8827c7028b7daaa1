//! What exists must not cost what is asked: many mappings, many endpoints, and what they take of the host.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::lab::Host;
use crate::report::{Report, median};

const NETWORK: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

pub fn measure(host: &Host, report: &mut Report, quick: bool) {
    let idle = resident(host);
    report.fact(format!("rsnet idle: {idle:.1} MB resident, {:.2} % of a core over two seconds", processor(host, Duration::from_secs(2))));
    let network = json!({
        "NetworkID": NETWORK,
        "Options": { "com.docker.network.generic": { "mtu": "1500" } },
        "IPv4Data": [{ "Pool": "10.200.0.0/16", "Gateway": "10.200.0.1/16" }],
        "IPv6Data": [],
    });
    call(host, "CreateNetwork", &network);
    let few: Vec<f64> = (0..10).map(|n| attach(host, n)).collect();
    let last = if quick { 200 } else { 1000 };
    for n in 10..last - 20 {
        attach(host, n);
    }
    let many: Vec<f64> = (last - 20..last).map(|n| attach(host, n)).collect();
    report.fact(format!(
        "attach (CreateEndpoint and Join, to the plugin itself) with up to 10 endpoints {:.2} ms, with {last} {:.2} ms",
        median(few),
        median(many)
    ));
    let full = resident(host);
    report.fact(format!("with {last} endpoints: {full:.1} MB resident, {:.2} % of a core", processor(host, Duration::from_secs(2))));
    mappings(host, report);
    call(host, "DeleteNetwork", &json!({ "NetworkID": NETWORK }));
}

/// Publishes ten thousand ports that are no range, on one endpoint, and takes them back.
fn mappings(host: &Host, report: &mut Report) {
    let port = |n: u32| json!({ "Proto": 6, "Port": 80, "HostPort": 30000 + n, "HostPortEnd": 30000 + n });
    let publish = |count: u32| {
        let ports: Vec<_> = (0..count).map(port).collect();
        let body = json!({ "NetworkID": NETWORK, "EndpointID": endpoint(0), "Options": { "com.docker.network.portmap": ports } });
        timed(|| call(host, "ProgramExternalConnectivity", &body))
    };
    let revoke = || timed(|| call(host, "RevokeExternalConnectivity", &json!({ "NetworkID": NETWORK, "EndpointID": endpoint(0) })));
    let one = (publish(1), revoke());
    let all = (publish(10_000), revoke());
    report.fact(format!("publish and revoke 1 port {:.2} and {:.2} ms, 10,000 single ones {:.1} and {:.1} ms", one.0, one.1, all.0, all.1));
}

fn endpoint(n: usize) -> String {
    format!("{n:010x}{n:054x}")
}

fn attach(host: &Host, n: usize) -> f64 {
    let (id, address) = (endpoint(n), format!("10.200.{}.{}/16", 1 + n / 250, 2 + n % 250));
    let create = json!({ "NetworkID": NETWORK, "EndpointID": id, "Interface": { "Address": address } });
    let join = json!({ "NetworkID": NETWORK, "EndpointID": id, "SandboxKey": "/var/run/docker/netns/none" });
    timed(|| {
        call(host, "CreateEndpoint", &create);
        call(host, "Join", &join);
    })
}

fn call(host: &Host, name: &str, body: &serde_json::Value) {
    let answer = host.plugin(&format!("/NetworkDriver.{name}"), &body.to_string()).expect("an answer of rsnet");
    assert_eq!(answer.status, 200, "{name}: {}", answer.body);
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e3
}

fn process(host: &Host, file: &str) -> String {
    host.sh(&format!("cat /proc/$(pgrep -of 'rsnet serve')/{file}")).ok().to_owned()
}

/// Megabytes.
fn resident(host: &Host) -> f64 {
    let status = process(host, "status");
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    kilobytes.map_or(f64::NAN, |kilobytes: f64| kilobytes / 1024.0)
}

/// Percent of one core; `proc(5)`: fields 14 and 15 are hundredths of seconds.
fn processor(host: &Host, during: Duration) -> f64 {
    let ticks = || process(host, "stat").split_whitespace().skip(13).take(2).filter_map(|n| n.parse::<f64>().ok()).sum::<f64>();
    let before = ticks();
    std::thread::sleep(during);
    (ticks() - before) / during.as_secs_f64()
}
