//! Macvlan: containers as stations of the segment, among stations that run no rsnet.

pub mod live;
pub mod overlap;
pub mod shared;
mod table;

use std::time::Duration;

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
    if engine >= Engine::V28_5 { &["RSNET_ATTACH=engine", "RSNET_ATTACH=direct"] } else { &["RSNET_ATTACH=engine"] }
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

pub fn what_will_not_work_is_said(engine: Engine) {
    let lab = Lab::new();
    let (lan, second) = (lab.segment(PREFIXES), lab.segment(["10.78.0.0/24"]));
    let host = lab.host("h1", engine, &[&lan, &second]);
    let _stranger = lab.station("s1", &[&lan]);
    host.start_rsnet();
    host.sh("ip link add br9 type bridge; ip link set eth1 master br9").ok();
    let make = |options: &str| host.docker(&format!("network create -d rsnet -o mode=macvlan {options} --subnet 10.77.0.0/24 bad"));
    for (options, refusal) in [
        ("", "option parent is missing"),
        ("-o parent=eth7", "parent eth7 does not exist"),
        ("-o parent=eth1", "port of br9"),
        ("-o parent=eth0 -o macvlan_mode=brigde", "did you mean bridge"),
        ("-o parent=eth0 -o macvlan_mode=source", "needs source_macs"),
        ("-o parent=eth0 -o macvlan_mode=vepa -o host_access=true", "needs macvlan_mode=bridge"),
        ("-o parent=eth0 -o colour=red", "colour=red is unknown"),
    ] {
        make(options).fails_with(refusal);
    }
    a_vlan_is_made_or_refused(&host);
    a_segment_without_parent_is_made_or_refused(&host);
    create(&host, "-o macvlan_mode=passthru");
    make("-o parent=eth0 -o macvlan_mode=private --ip-range 10.77.0.0/25").fails();
    host.docker("network rm net").ok();
    create(&host, "--gateway 10.77.0.9");
    host.docker("run --rm --network net --ip 10.77.0.150 --ip6 fd77::150 -p 8080:80 box true").fails_with("leave -p out");
    // on a busy machine the stranger may answer later than is waited for
    wait_until("a container with a stranger's address to be refused", PATIENCE, || {
        let taken = host.docker("run --rm --network net --ip 10.77.0.2 --ip6 fd77::150 box true");
        let refused = taken.stderr.contains("address 10.77.0.2 is in use on the segment of eth0, by MAC 02:72:73:");
        if refused { Ok(()) } else { Err(taken.to_string()) }
    });
    host.docker("network rm net").ok();
    assert_eq!(host.sh("ls /sys/class/net | grep '^rs' | wc -l").ok(), "0", "nothing is left behind");
}

/// In the log of rsnet.
#[track_caller]
fn logs(host: &Host, words: &str) {
    wait_until(&format!("rsnet to log {words:?}"), PATIENCE, || {
        let log = std::fs::read_to_string(host.log("rsnet")).unwrap_or_default();
        if log.contains(words) { Ok(()) } else { Err(log) }
    });
}

pub fn a_stranger_who_answers_late_is_told_in_the_log(engine: Engine) {
    let lab = Lab::new();
    let lan = lab.segment(PREFIXES);
    let (host, stranger) = (lab.host("h1", engine, &[&lan]), lab.station("s1", &[&lan]));
    host.start_rsnet();
    create(&host, "");
    stranger.cut();
    let run = format!("run -d --stop-signal KILL --name one --network net --ip {} box sleep 10000", stranger.ipv4());
    std::thread::scope(|scope| {
        let running = scope.spawn(|| host.docker(&run));
        logs(&host, "a container joined");
        stranger.mend();
        running.join().expect("docker run ends").ok();
    });
    // of whichever family
    logs(&host, "is in use on the segment of eth0 too, by MAC 02:72:73:");
}

pub fn a_mac_is_one_container_s_on_a_parent(engine: Engine) {
    let lab = Lab::new();
    let lan = lab.segment(PREFIXES);
    let host = lab.host("h1", engine, &[&lan]);
    host.start_rsnet();
    create(&host, "");
    host.docker("network create -d rsnet -o mode=macvlan -o parent=eth0 --subnet 10.78.0.0/24 other").ok();
    run(&host, "one", 130, "--mac-address 02:00:00:00:00:77");
    for network in ["net", "other"] {
        let twin = host.docker(&format!("run --rm --network {network} --mac-address 02:00:00:00:00:77 box true"));
        twin.fails_with("MAC 02:00:00:00:00:77 is in use on eth0 by endpoint");
        assert!(twin.stderr.contains("(10.77.0.130, fd77::130)"), "{twin}");
    }
    host.docker("kill one").ok();
    host.docker("run --rm --network other --mac-address 02:00:00:00:00:77 box true").ok();
    host.docker("start one").ok();
}

/// Engines from 28.0 on do not come to publish where they were told of no gateway; those before it take one of the subnet's addresses.
pub fn publishing_is_refused_or_explained(engine: Engine) {
    let lab = Lab::new();
    let lan = lab.segment(PREFIXES);
    let host = lab.host("h1", engine, &[&lan]);
    host.start_rsnet();
    create(&host, "");
    let started = host.docker("run -d --stop-signal KILL --network net -p 8080:80 box sleep 10000");
    if engine >= Engine::V28_5 {
        started.ok();
        logs(&host, "leave -p out and reach it by its own address");
    } else {
        started.fails_with("leave -p out and reach it by its own address");
    }
}

/// Tried here on a kernel without 802.1Q.
fn a_vlan_is_made_or_refused(host: &Host) {
    let made = host.docker("network create -d rsnet -o mode=macvlan -o parent=eth0.10 --subnet 10.79.0.0/24 vlan");
    if host.sh("ip link add link eth0 name probe type vlan id 9 && ip link del probe").succeeded() {
        host.sh("ip link show eth0.10").ok();
        host.docker("network rm vlan").ok();
        wait_until("the VLAN to go", PATIENCE, || {
            let seen = host.sh("ip link show eth0.10");
            if seen.succeeded() { Err(seen.to_string()) } else { Ok(()) }
        });
    } else {
        made.fails_with("this kernel has no VLANs");
    }
}

/// Tried here on a kernel without dummy links.
fn a_segment_without_parent_is_made_or_refused(host: &Host) {
    let made = host.docker("network create -d rsnet -o mode=macvlan --internal --subnet 10.79.0.0/24 alone");
    if !host.sh("ip link add probe type dummy && ip link del probe").succeeded() {
        made.fails_with("this kernel has no dummy links");
        return;
    }
    host.docker("run -d --stop-signal KILL --name one --network alone --ip 10.79.0.10 box sleep 10000").ok();
    host.docker("run --rm --network alone box ping -c1 -W1 10.79.0.10").ok();
    host.sh(&ping("10.79.0.10")).fails();
    host.docker("rm -f one").ok();
    host.docker("network rm alone").ok();
}

pub fn the_host_and_its_containers_reach_each_other_with_host_access(engine: Engine) {
    for settings in ways(engine) {
        let lab = Lab::new();
        let lan = lab.segment(PREFIXES);
        let mut host = lab.host("h1", engine, &[&lan]);
        let station = lab.station("s1", &[&lan]);
        host.start_rsnet_with(settings);
        create(&host, "-o host_access=true");
        run(&host, "one", 130, "--restart always");
        both_ways(&host, &station);
        host.reboot();
        host.start_rsnet_with(settings);
        host.start_dockerd();
        both_ways(&host, &station);
        host.sh("ip addr add 10.77.0.99/24 dev eth0; ip addr del fd77::1/64 dev eth0; ip addr add fd77::99/64 dev eth0 nodad").ok();
        for target in ["10.77.0.1", "10.77.0.99", "fd77::99"] {
            reaches(&host, "one", target);
        }
        host.in_container("one", &ping("fd77::1")).fails();
        host.docker("rm -f one").ok();
        host.docker("network rm net").ok();
        wait_until("the host's station to go", PATIENCE, || {
            let seen = host.sh("ls /sys/class/net | grep '^rs'; ip route show proto 195; ip -6 route show proto 195").stdout;
            if seen.is_empty() { Ok(()) } else { Err(seen) }
        });
    }
}

#[track_caller]
fn both_ways(host: &Host, station: &Host) {
    wait_until("the container to run", PATIENCE, || {
        let seen = host.docker("inspect -f '{{.State.Running}}' one");
        if seen.stdout.contains("true") { Ok(()) } else { Err(seen.to_string()) }
    });
    for target in ["10.77.0.1", "fd77::1", "10.77.0.2", "fd77::2"] {
        reaches(host, "one", target);
    }
    for (from, target) in [(host, "10.77.0.130"), (host, "fd77::130"), (station, "10.77.0.130"), (station, "10.77.0.1")] {
        wait_until(&format!("{} to reach {target}", from.name), PATIENCE, || {
            let seen = from.sh(&ping(target));
            if seen.succeeded() { Ok(()) } else { Err(seen.to_string()) }
        });
    }
}

/// As fast as the engine goes; RESTARTS says how often, a thousand by hand.
pub fn restarts_with_a_fixed_mac_and_address_never_fail(engine: Engine) {
    let restarts: usize = std::env::var("RESTARTS").ok().and_then(|text| text.parse().ok()).unwrap_or(30);
    for settings in ways(engine) {
        let lab = Lab::new();
        let lan = lab.segment(PREFIXES);
        let host = lab.host("h1", engine, &[&lan]);
        host.start_rsnet_with(settings);
        create(&host, "");
        run(&host, "one", 130, "--mac-address 02:00:00:00:00:77");
        let began = std::time::Instant::now();
        for _ in 0..restarts {
            host.docker("restart -t 0 one").ok();
        }
        println!("{settings}: {restarts} restarts, {} ms each", began.elapsed().as_millis() as usize / restarts);
        assert!(host.in_container("one", "ip link").ok().contains("02:00:00:00:00:77"));
        assert_eq!(host.sh("ls /sys/class/net | grep '^rs' | wc -l").ok(), "0", "no link is left on the host");
    }
}

/// The name of a container's link.
const NAME: &str = "ip -o link show type macvlan | cut -d: -f2 | cut -d@ -f1";
/// A parent, and the station at its other end.
const UPLINK: &str =
    "ip link add up0 type veth peer name up1 && ip addr add 10.77.0.2/24 dev up1 && ip link set up1 up && ip link set up0 up";

pub fn a_lost_child_or_parent_comes_back_into_the_container(engine: Engine) {
    for settings in ways(engine) {
        let lab = Lab::new();
        let host = lab.host("h1", engine, &[]);
        host.start_rsnet_with(settings);
        host.sh(UPLINK).ok();
        let net = "-o mode=macvlan -o parent=up0 --ipv6 --subnet 10.77.0.0/24 --subnet fd77::/64 --gateway 10.77.0.2";
        host.docker(&format!("network create -d rsnet {net} net")).ok();
        run(&host, "one", 130, "");
        reaches(&host, "one", "10.77.0.2");
        let before = inside(&host);
        for damage in ["ip link del $L", "ip link set $L down"] {
            host.in_container("one", &format!("L=$({NAME}); {damage}")).ok();
            comes_back(&host, &before, Duration::from_secs(2));
        }
        host.kill_rsnet();
        host.in_container("one", &format!("ip link del $({NAME})")).ok();
        host.start_rsnet_with(settings);
        comes_back(&host, &before, Duration::from_secs(5));
        host.sh("ip link del up0").ok();
        host.sh(&format!("{UPLINK}; ip link set up0 mtu 1400")).ok();
        comes_back(&host, &before, Duration::from_secs(5));
        reaches(&host, "one", "10.77.0.2");
        // the kernel lowers a child's with its parent's, and raises none
        for mtu in [1400, 1500] {
            host.sh(&format!("ip link set up0 mtu {mtu}")).ok();
            wait_until("the MTU to follow", Duration::from_secs(2), || {
                let seen = host.in_container("one", "ip link");
                if seen.stdout.contains(&format!("mtu {mtu}")) { Ok(()) } else { Err(seen.to_string()) }
            });
        }
    }
}

fn inside(host: &Host) -> String {
    let show = "ip -o addr show scope global | awk '{ print $2, $4 }'; ip route show default | cut -d' ' -f1-5; ip -o link show up | grep -o 'link/ether [^ ]*'";
    host.in_container("one", show).stdout
}

#[track_caller]
fn comes_back(host: &Host, before: &str, within: Duration) {
    wait_until("the container's link to be as before", within, || {
        let now = inside(host);
        if now == before { Ok(()) } else { Err(now) }
    });
}
