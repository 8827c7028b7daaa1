//! One subnet behind two parents: two LANs that know nothing of each other.

use super::{mac, ping};
use crate::lab::{Engine, Host, Lab};

const LAN: &str = "--subnet 10.77.0.0/24 --ip-range 10.77.0.128/25";

fn network(host: &Host, name: &str, parent: &str, options: &str) -> crate::lab::Output {
    host.docker(&format!("network create -d rsnet -o mode=macvlan -o parent={parent} --ipam-driver rsnet {LAN} {options} {name}"))
}

/// Both networks have a container and a station of the same addresses; each container meets its own.
#[track_caller]
fn meet_their_own(host: &Host, stations: [&Host; 2]) {
    for (container, station) in ["left", "right"].into_iter().zip(stations) {
        host.in_container(container, &ping("10.77.0.9")).ok();
        host.in_container(container, "ip neigh show 10.77.0.9").says(&mac(station, "eth0"));
        host.in_container(container, "ip -o -4 addr show scope global").says("10.77.0.130/24");
    }
}

pub fn one_subnet_may_be_behind_two_parents_with_rsnets_ipam(engine: Engine) {
    let lab = Lab::new();
    let (first, second) = (lab.segment(["10.1.0.0/24"]), lab.segment(["10.2.0.0/24"]));
    let host = lab.host("h1", engine, &[&first, &second]);
    let stations = [&lab.station("s1", &[&first]), &lab.station("s2", &[&second])];
    for station in stations {
        station.sh("ip addr add 10.77.0.9/24 dev eth0").ok();
    }
    host.start_rsnet();
    network(&host, "plain", "eth0", "").ok();
    network(&host, "twice", "eth1", "").fails_with("--ipam-opt parent=LINK");
    host.docker("network rm plain").ok();
    let docker = |parent: &str| host.docker(&format!("network create -d rsnet -o mode=macvlan -o parent={parent} {LAN} of-{parent}"));
    docker("eth0").ok();
    docker("eth1").fails_with("Pool overlaps with other one on this address space");
    host.docker("network rm of-eth0").ok();
    for (name, container, parent) in [("a", "left", "eth0"), ("b", "right", "eth1")] {
        network(&host, name, parent, &format!("--ipam-opt parent={parent}")).ok();
        host.docker(&format!("run -d --stop-signal KILL --name {container} --network {name} --ip 10.77.0.130 box sleep 10000")).ok();
    }
    host.docker("network create -d rsnet -o mode=macvlan -o parent=eth0 -o host_access=true --subnet 10.78.0.0/24 near").ok();
    let far = "network create -d rsnet -o mode=macvlan -o parent=eth1 -o host_access=true --ipam-driver rsnet --subnet 10.78.0.0/24 far";
    host.docker(far).fails_with("the host has one way to 10.78.0.0/24 only");
    network(&host, "third", "eth1", "--ipam-opt parent=eth1").fails_with("overlaps");
    meet_their_own(&host, stations);
    host.kill_rsnet();
    host.start_rsnet();
    host.docker("restart -t 0 left right").ok();
    meet_their_own(&host, stations);
    host.docker("run --rm --network a --ip 10.77.0.130 box true").fails();
    host.docker("rm -f left right").ok();
    host.docker("network rm a b").ok();
    network(&host, "plain", "eth0", "").ok();
    network(&host, "again", "eth1", "--ipam-opt parent=eth1").ok();
}
