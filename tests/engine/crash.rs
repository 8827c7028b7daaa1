//! `kill -9` of rsnet: running containers do not notice, and a fresh process leaves nothing behind of what was under way.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::flow::{Flow, Place};
use crate::lab::{Engine, Host, Lab, wait_until};
use crate::standing::{difference, foreign, make_foreign, standing};

const KILLS: usize = 50;
/// The options of the networks that come and go, one a guest.
const GUESTS: [&str; 4] = ["", "", "-o mode=macvlan -o parent=eth0 --subnet 10.79.0.0/24", "-o mode=none"];
/// The engine waits 1, 2, 4 … 16 s before it repeats a call; rsnet gives an endpoint 60 s before it counts as lost.
const SETTLED: Duration = Duration::from_secs(180);

pub fn fifty_kills_cost_running_containers_no_packet(engine: Engine) {
    let lab = Lab::new();
    let lan = lab.segment(["10.77.0.0/24", "fd77::/64"]);
    let host = lab.host("h1", engine, &[&lan]);
    let station = lab.station("s1", &[&lan]);
    host.start_rsnet();
    three_containers(&host);
    let flows = flows(&host, &station);
    for _ in 0..KILLS {
        std::thread::sleep(Duration::from_millis(rand::random_range(0..150)));
        host.kill_rsnet();
        std::thread::sleep(Duration::from_millis(rand::random_range(0..30)));
        host.start_rsnet();
    }
    flows.into_iter().for_each(Flow::none_missing);
}

pub fn kills_amid_calls_leave_nothing_behind(engine: Engine) {
    storm(engine, "RSNET_ATTACH=engine");
}

pub fn kills_amid_calls_leave_nothing_behind_in_sandboxes(engine: Engine) {
    storm(engine, "RSNET_ATTACH=direct");
}

fn three_containers(host: &Host) {
    host.docker("network create -d rsnet --ipv6 --subnet 172.30.1.0/24 --subnet fd30:1::/64 net").ok();
    let run =
        |name: &str, more: &str| host.docker(&format!("run -d --stop-signal KILL --name {name} --network net {more} box sleep 10000"));
    run("client", "--ip 172.30.1.10").ok();
    run("server", "--ip 172.30.1.80 -p 8080:80 -p 9090:80/udp").ok();
    host.docker("network create -d rsnet -o mode=macvlan -o parent=eth0 --subnet 10.77.0.0/24 --ip-range 10.77.0.128/25 lan").ok();
    host.docker("run -d --stop-signal KILL --name station --network lan --ip 10.77.0.180 box sleep 10000").ok();
    Place::container(host, "server").echo(80);
    Place::container(host, "station").echo(80);
    Place::host(host).echo(7);
}

fn at(address: impl Into<std::net::IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

fn flows(host: &Host, station: &Host) -> Vec<Flow> {
    let (client, here, outside) = (Place::container(host, "client"), Place::host(host), Place::host(station));
    vec![
        client.ask("container to container", at([172, 30, 1, 80], 80)),
        client.ask("container to host", at([172, 30, 1, 1], 7)),
        here.ask("host to container", at([172, 30, 1, 80], 80)),
        outside.ask("segment to a published UDP port", at(host.ipv4(), 9090)),
        outside.ask("segment to a published UDP port by IPv6", at(host.ipv6(), 9090)),
        outside.converse("segment to a published TCP port", at(host.ipv4(), 8080)),
        outside.ask("segment to a macvlan", at([10, 77, 0, 180], 80)),
        here.converse("host to a published TCP port", at([127, 0, 0, 1], 8080)),
    ]
}

/// Kills rsnet at random moments while networks and containers come and go; in the end all is as if none of them had ever been.
fn storm(engine: Engine, settings: &str) {
    let lab = Lab::new();
    let lan = lab.segment(["10.77.0.0/24", "fd77::/64"]);
    let host = lab.host("h1", engine, &[&lan]);
    host.start_rsnet_with(settings);
    three_containers(&host);
    make_foreign(&host);
    let before = (standing(&host), foreign(&host));
    let flow = Place::container(&host, "client").ask("container to container", at([172, 30, 1, 80], 80));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let guests: Vec<_> = (1..=GUESTS.len())
            .map(|n| {
                let (host, stop) = (&host, &stop);
                scope.spawn(move || come_and_go(host, n, stop))
            })
            .collect();
        for _ in 0..KILLS {
            std::thread::sleep(Duration::from_millis(rand::random_range(20..400)));
            host.kill_rsnet();
            host.start_rsnet_with(settings);
        }
        stop.store(true, Ordering::Relaxed);
        let rounds: usize = guests.into_iter().map(|guest| guest.join().expect("a guest ended well")).sum();
        println!("{rounds} rounds of networks and containers in {KILLS} kills");
        assert!(rounds > 0, "nothing came and went");
    });
    flow.none_missing();
    everybody_leaves(&host);
    let as_before = || {
        let now = standing(&host);
        if now == before.0 { Ok(()) } else { Err(difference(&before.0, &now)) }
    };
    wait_until("what the guests had to be gone", SETTLED, as_before);
    let now = foreign(&host);
    assert!(now == before.1, "what is not rsnet's has changed:\n{}", difference(&before.1, &now));
    a_fresh_process_finds_nothing_to_mend(&host, settings);
}

/// What a guest does until it is told to stop; how often. Any of it may fail while rsnet is dead, and is undone as far as the engine can.
fn come_and_go(host: &Host, guest: usize, stop: &AtomicBool) -> usize {
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let (net, name) = (format!("guests{guest}"), format!("guest{guest}"));
        let options = GUESTS[guest - 1];
        let ports = format!("-p {}:80 -p {}:53/udp", 10000 + guest, 10000 + guest);
        let published = if options.contains("macvlan") { "" } else { &ports };
        host.docker(&format!("network create -d rsnet --ipam-driver rsnet {options} {net}"));
        host.docker(&format!("run -d --stop-signal KILL --name {name} --network {net} {published} box sleep 10000"));
        host.docker(&format!("network connect net {name}"));
        host.docker(&format!("network disconnect net {name}"));
        host.docker(&format!("restart {name}"));
        host.docker(&format!("rm -f {name}"));
        host.docker(&format!("network rm {net}"));
        rounds += 1;
    }
    rounds
}

/// Takes away at the engine what the guests left there.
fn everybody_leaves(host: &Host) {
    let gone = || {
        let left = host.sh("docker ps -aq --filter name=guest | xargs -r docker rm -f; docker network ls -q --filter name=guests | xargs -r docker network rm");
        let none = host.sh("docker ps -aq --filter name=guest; docker network ls -q --filter name=guests");
        if none.ok().is_empty() { Ok(()) } else { Err(left.to_string()) }
    };
    wait_until("the engine to have no guests", SETTLED, gone);
}

/// Kernel and firewall agree with what is declared: only the sockets that hold host ports, which died with the process, are made again.
fn a_fresh_process_finds_nothing_to_mend(host: &Host, settings: &str) {
    host.kill_rsnet();
    let logged = || std::fs::read_to_string(host.log("rsnet")).expect("rsnet has a log");
    let old = logged().len();
    host.start_rsnet_with(settings);
    let looked = || {
        let log = logged()[old..].to_string();
        if log.contains("looked at the whole host") { Ok(log) } else { Err(log) }
    };
    let log = wait_until("rsnet to look at the host", Duration::from_secs(10), looked);
    let mended: Vec<&str> = log.lines().filter(|line| line.contains("mended object") || line.contains("mended in")).collect();
    let beyond: Vec<_> = mended.iter().filter(|line| !line.contains("object=\"host port ")).collect();
    assert!(beyond.is_empty(), "a fresh process mended:\n{beyond:#?}");
}
