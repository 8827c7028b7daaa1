//! Macvlan: containers as stations of the segment, among stations that run no rsnet.

use crate::lab::{Engine, Host, Lab, PATIENCE, Segment, wait_until};

const PREFIXES: [&str; 2] = ["10.77.0.0/24", "fd77::/64"];

fn create(host: &Host, name: &str, options: &str) {
    let subnets = "--ipv6 --subnet 10.77.0.0/24 --subnet fd77::/64 --ip-range 10.77.0.128/25";
    host.docker(&format!("network create -d rsnet -o mode=macvlan -o parent=eth0 {subnets} {options} {name}")).ok();
}

fn run(host: &Host, name: &str, number: u32, options: &str) {
    let at = format!("--ip 10.77.0.{number} --ip6 fd77::{number}");
    host.docker(&format!("run -d --stop-signal KILL --name {name} --network net {at} {options} box sleep 10000")).ok();
}

fn ping(target: &str) -> String {
    format!("ping -c1 -W1 {target}")
}

#[track_caller]
fn reaches(from: &Host, container: &str, target: &str) {
    wait_until(&format!("{container} to reach {target}"), PATIENCE, || {
        let seen = from.in_container(container, &ping(target));
        if seen.succeeded() { Ok(()) } else { Err(seen.to_string()) }
    });
}

pub fn containers_are_stations_of_the_segment(engine: Engine) {
    let lab = Lab::new();
    let lan: Segment = lab.segment(PREFIXES);
    let host = lab.host("h1", engine, &[&lan]);
    let station = lab.station("s1", &[&lan]);
    host.start_rsnet();
    create(&host, "net", "");
    run(&host, "one", 130, "");
    run(&host, "two", 131, "");
    for target in ["10.77.0.131".to_string(), "fd77::131".to_string(), station.ipv4().to_string(), station.ipv6().to_string()] {
        reaches(&host, "one", &target);
    }
    station.sh(&ping("10.77.0.130")).ok();
    host.docker("rm -f one two").ok();
    host.docker("network rm net").ok();
}
