//! Macvlan: containers as stations of the segment, among stations that run no rsnet.

mod table;

use crate::lab::{Engine, Host, Lab, PATIENCE, Segment, wait_until};
use table::{Party, expected, seen};

const PREFIXES: [&str; 2] = ["10.77.0.0/24", "fd77::/64"];

/// Two hosts with containers on the segment, and a machine that has neither engine nor rsnet.
struct World {
    host: Host,
    other: Host,
    station: Host,
    _lan: Segment,
}

impl World {
    fn new(lab: &Lab, engine: Engine, settings: &str) -> World {
        let lan = lab.segment(PREFIXES);
        let (host, other) = (lab.host("h1", engine, &[&lan]), lab.host("h2", engine, &[&lan]));
        let station = lab.station("s1", &[&lan]);
        for host in [&host, &other] {
            host.start_rsnet_with(settings);
        }
        World { host, other, station, _lan: lan }
    }

    fn parties(&self, second: bool) -> Vec<Party<'_>> {
        let mut parties = vec![
            Party::container("container", &self.host, "one"),
            Party::container("container of another host", &self.other, "far"),
            Party::machine("the parent's host", &self.host),
            Party::machine("LAN", &self.station),
        ];
        parties.extend(second.then(|| Party::container("neighbour", &self.host, "two")));
        parties
    }
}

/// Makes the network `net`.
#[track_caller]
fn create(host: &Host, options: &str) {
    let subnets = "--ipv6 --subnet 10.77.0.0/24 --subnet fd77::/64 --ip-range 10.77.0.128/25";
    host.docker(&format!("network create -d rsnet -o mode=macvlan -o parent=eth0 {subnets} {options} net")).ok();
}

#[track_caller]
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

fn mac(host: &Host, link: &str) -> String {
    host.sh(&format!("cat /sys/class/net/{link}/address")).ok().to_string()
}

/// Asks everybody for everybody and compares with the page.
#[track_caller]
fn is_as_the_page_says(mode: &str, parties: &[Party]) {
    let page = expected(mode);
    let found = seen(parties);
    println!("### {mode}\n{found}");
    assert_eq!(found, page, "{mode}: who hears whom, and what docs/macvlan.md says");
}

fn table_of(engine: Engine, mode: &str, options: &str, second: bool, relay: bool) {
    for settings in ways(engine) {
        let lab = Lab::new();
        let world = World::new(&lab, engine, settings);
        if relay {
            [&world.host, &world.other].into_iter().for_each(Host::reflect);
        }
        let options = options.replace("STATION", &mac(&world.station, "eth0"));
        create(&world.host, &options);
        create(&world.other, &options);
        let before = mac(&world.host, "eth0");
        run(&world.host, "one", 130, "");
        run(&world.other, "far", 140, "");
        if second {
            run(&world.host, "two", 131, "");
        }
        is_as_the_page_says(mode, &world.parties(second));
        world.host.docker("rm -f one two").ok();
        world.host.docker("network rm net").ok();
        wait_until("the parent to be as it was", PATIENCE, || {
            let link = world.host.sh("ip -d link show eth0").stdout;
            let as_it_was = link.contains(&before) && link.contains("promiscuity 0");
            if as_it_was && world.station.sh(&ping("10.77.0.1")).succeeded() { Ok(()) } else { Err(link) }
        });
    }
}

/// Both ways into a container, where the engine knows both.
fn ways(engine: Engine) -> &'static [&'static str] {
    match engine {
        Engine::V28_5 => &["RSNET_ATTACH=engine", "RSNET_ATTACH=direct"],
        _ => &["RSNET_ATTACH=engine"],
    }
}

pub fn in_mode_bridge_neighbours_meet_on_the_parent(engine: Engine) {
    table_of(engine, "bridge", "", true, false);
}

pub fn in_mode_vepa_neighbours_do_not_meet_without_a_relay(engine: Engine) {
    table_of(engine, "vepa", "-o macvlan_mode=vepa", true, false);
}

pub fn in_mode_vepa_neighbours_meet_by_a_reflective_relay(engine: Engine) {
    table_of(engine, "vepa with a reflective relay", "-o macvlan_mode=vepa", true, true);
}

pub fn in_mode_private_neighbours_never_meet(engine: Engine) {
    table_of(engine, "private", "-o macvlan_mode=private", true, false);
}

pub fn in_mode_passthru_one_container_has_the_parent_for_itself(engine: Engine) {
    table_of(engine, "passthru", "-o macvlan_mode=passthru", false, false);
}

pub fn in_mode_source_only_listed_stations_are_heard(engine: Engine) {
    table_of(engine, "source", "-o macvlan_mode=source -o source_macs=STATION", true, false);
}
