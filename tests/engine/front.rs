//! The firewalls that distributions bring, in front of rsnet: ufw and firewalld with their own rules, as `docs/firewall.md` tells.

use crate::lab::{Engine, HostSpec, Lab, PATIENCE, Process, wait_until};
use crate::publish::World;
use crate::traffic::{Servers, addresses, reaches, reaches_all, reaches_none, run, serve, serve_at, tcp, udp};

/// What listens on the host itself, and on the station.
const OWN: u16 = 9000;

/// A host with a network of gateway mode nat and one of mode routed, and servers everywhere.
struct Front {
    w: World,
    _servers: Vec<Servers>,
}

impl Front {
    fn new(spec: HostSpec) -> Front {
        let lab = Lab::new();
        let lan = lab.segment(["10.77.0.0/24", "fd77::/64"]);
        let host = lab.make(&spec.on(&[&lan]));
        let station = lab.station("s1", &[&lan]);
        host.start_rsnet();
        let w = World { _lab: lab, host, station };
        w.routes();
        w.network("net", 1, "");
        w.network("routed", 2, "-o gateway_mode=routed");
        run(&w.host, "web", "--network net -p 8080:80 -p 8080:80/udp -p 127.0.0.1:8081:80");
        run(&w.host, "open", "--network routed -p 80");
        run(&w.host, "docker", "");
        let servers = vec![
            serve(&w.host, "web", &[80]),
            serve(&w.host, "open", &[80, 81]),
            serve_at(w.here(), &[OWN]),
            serve_at(w.outside(), &[OWN]),
        ];
        reaches_all(w.outside(), &w.all(OWN));
        Front { w, _servers: servers }
    }

    /// The firewall in front does its work: what listens on the host is closed.
    fn is_guarded(&self) {
        let w = &self.w;
        reaches_none(w.outside(), &w.all(OWN));
    }

    /// Published ports answer, and the server sees who asks.
    fn publishes(&self) {
        let w = &self.w;
        for question in w.all(8080) {
            let station = if question.to.is_ipv4() { w.station.ipv4() } else { w.station.ipv6() };
            assert_eq!(reaches(w.outside(), question), station, "{question}");
        }
        reaches_all(w.here(), &w.all(8080));
        reaches_all(w.here(), &[tcp([127, 0, 0, 1].into(), 8081)]);
        reaches_none(w.outside(), &[tcp(w.host.ipv4(), 8081)]);
    }

    /// Containers reach the world, each other by published ports, and who asks from outside enters by the gateway mode's rules.
    fn all_works(&self) {
        let w = &self.w;
        self.publishes();
        reaches_all(w.inside("docker"), &[tcp(w.host.ipv4(), 8080)]);
        for container in ["web", "open"] {
            reaches_all(w.inside(container), &w.all(8080));
            let station = [w.station.ipv4(), w.station.ipv6()];
            reaches_all(w.inside(container), &station.map(|to| tcp(to, OWN)));
            reaches_all(w.inside(container), &station.map(|to| udp(to, OWN)));
        }
        let open = addresses(&w.host, "open", "routed");
        reaches_all(w.outside(), &[tcp(open[0], 80), tcp(open[1], 80)]);
        reaches_none(w.outside(), &[tcp(open[0], 81), tcp(open[1], 81), udp(open[0], 80)]);
        let web = addresses(&w.host, "web", "net");
        reaches_none(w.outside(), &[tcp(web[0], 80), tcp(web[1], 80)]);
        reaches_none(w.inside("open"), &[tcp(web[0], 80), tcp(web[1], 80)]);
    }
}

#[test]
fn ufw_in_front_hides_the_hosts_own_ports_and_nothing_of_rsnet() {
    ufw(HostSpec::new("h1").engine(Engine::V20_10));
}

#[test]
fn so_does_ufw_on_legacy_iptables() {
    ufw(HostSpec::new("h1").engine(Engine::V20_10).legacy_iptables());
}

fn ufw(spec: HostSpec) {
    let front = Front::new(spec);
    let host = &front.w.host;
    host.sh("ufw --force enable").says("Firewall is active");
    host.sh("ufw status verbose").says("Default: deny (incoming), allow (outgoing), deny (routed)");
    front.is_guarded();
    front.all_works();
    reaches_none(front.w.inside("web"), &front.w.all(OWN));
    host.sh("ufw reload").says("Firewall reloaded");
    front.is_guarded();
    front.all_works();
    // and where it stood there first
    host.stop_rsnet();
    host.sh("rsnet cleanup").ok();
    host.start_rsnet();
    front.all_works();
}

#[test]
fn behind_firewalld_ports_are_published_and_its_zones_let_containers_out() {
    let front = Front::new(HostSpec::new("h1").engine(Engine::V20_10).dockerd_flags("--live-restore"));
    let w = &front.w;
    let _daemons = firewalld(&w.host);
    front.is_guarded();
    front.publishes();
    reaches_none(w.inside("web"), &[tcp(w.station.ipv4(), OWN), tcp(w.station.ipv6(), OWN)]);
    for commands in crate::docs::blocks("docs/firewall.md").iter().filter(|block| block.contains("firewall-cmd")) {
        w.host.sh(&format!("set -e\n{commands}")).ok();
    }
    front.is_guarded();
    front.all_works();
    reaches_all(w.inside("web"), &[tcp(w.host.ipv4(), OWN), tcp(w.host.ipv6(), OWN)]);
    let table = w.host.sh("nft list table inet rsnet").ok().to_string();
    w.host.sh("firewall-cmd --reload").says("success");
    assert_eq!(w.host.sh("nft list table inet rsnet").ok(), table, "a reload leaves the table alone");
    front.all_works();
    // an engine that finds firewalld at its start writes its rules by it, and again after a reload
    w.host.stop_dockerd();
    w.host.start_dockerd();
    w.host.sh("iptables -S FORWARD").says("-j DOCKER");
    front.all_works();
    w.host.sh("firewall-cmd --reload").says("success");
    front.all_works();
}

/// Starts firewalld, and the message bus that it needs.
pub fn firewalld(host: &crate::lab::Host) -> [Process; 2] {
    host.sh("mkdir -p /run/dbus").ok();
    let bus = host.spawn("dbus", "dbus-daemon --system --nofork --nopidfile");
    wait_until("the message bus", PATIENCE, || {
        host.sh("test -S /run/dbus/system_bus_socket").succeeded().then_some(()).ok_or(bus.printed())
    });
    let firewalld = host.spawn("firewalld", "firewalld --nofork --nopid");
    let running = || {
        let state = host.sh("firewall-cmd --state");
        if state.stdout.trim() == "running" { Ok(()) } else { Err(format!("{state}\n{}", firewalld.printed())) }
    };
    wait_until("firewalld to run", PATIENCE, running);
    [bus, firewalld]
}
