//! rsnet beside the real rules of Docker: on nftables' and on the old iptables, with frames of bridges handed to the filter.

use crate::flow::{Flow, Place};
use crate::lab::{Engine, Host, HostSpec, Lab, PATIENCE, wait_until};
use std::net::SocketAddr;

/// Who asks, where, and whether an answer is expected.
struct Cell<'a> {
    from: &'a str,
    run: Box<dyn Fn(&str) -> crate::lab::Output + 'a>,
    to: String,
    answered: bool,
}

impl Cell<'_> {
    /// Answered in time, or not within a second.
    fn check(&self) {
        let ask = |patience: u32| {
            let seen = (self.run)(&format!(
                "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | socat -T{patience} - TCP:{},connect-timeout={patience}",
                self.to
            ));
            if seen.stdout.ends_with("hello\n") { Ok(()) } else { Err(seen.to_string()) }
        };
        match self.answered {
            true => wait_until(&format!("{} to reach {}", self.from, self.to), PATIENCE, || ask(2)),
            false => assert!(ask(1).is_err(), "{} reached {}", self.from, self.to),
        }
    }
}

fn inside<'a>(host: &'a Host, container: &'a str, to: String, answered: bool) -> Cell<'a> {
    Cell { from: container, run: Box::new(move |script| host.in_container(container, script)), to, answered }
}

fn web(host: &Host, name: &str, options: &str) {
    host.docker(&format!("run -d --name {name} {options} box sh -c 'echo hello >index.html; httpd -f -p 80'")).ok();
}

pub fn all_stands_beside_docker_where_bridges_are_filtered(engine: Engine) {
    stands(HostSpec::new("h1").engine(engine));
}

pub fn all_stands_beside_docker_on_legacy_iptables(engine: Engine) {
    stands(HostSpec::new("h1").engine(engine).legacy_iptables());
}

fn stands(spec: HostSpec) {
    let lab = Lab::new();
    let lan = lab.segment(["10.77.0.0/24", "fd77::/64"]);
    let (host, station) = (lab.make(&spec.on(&[&lan])), lab.station("s1", &[&lan]));
    host.start_rsnet();
    host.sh("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP").ok();
    host.sh("echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables; echo 1 >/proc/sys/net/bridge/bridge-nf-call-ip6tables").ok();
    host.docker("network create -d rsnet --ipv6 --subnet 172.30.0.0/24 --subnet fd30::/64 one").ok();
    host.docker(
        "network create -d rsnet --ipv6 --subnet 172.31.0.0/24 --subnet fd31::/64 -o com.docker.network.bridge.enable_icc=false quiet",
    )
    .ok();
    host.docker("network create --subnet 172.29.0.0/24 -o com.docker.network.bridge.name=bluebird theirs").ok();
    web(&host, "web", "--network one --ip 172.30.0.9 --ip6 fd30::9 -p 8080:80 -p 127.0.0.1:8081:80 -p [::1]:8082:80");
    web(&host, "neighbour", "--network one");
    web(&host, "q1", "--network quiet --ip 172.31.0.9 --ip6 fd31::9 -p 8090:80");
    web(&host, "q2", "--network quiet");
    web(&host, "their", "--network theirs --ip 172.29.0.9");
    let (v4, v6) = (host.ipv4(), format!("[{}]", host.ipv6()));
    let from_host = |to: &str, answered| Cell { from: "host", run: Box::new(|script| host.sh(script)), to: to.into(), answered };
    let outside = |to: String, answered| Cell { from: "station", run: Box::new(|script| station.sh(script)), to, answered };
    let cells = [
        outside(format!("{v4}:8080"), true),
        outside(format!("{v6}:8080"), true),
        outside(format!("{v4}:8081"), false),
        outside(format!("{v6}:8082"), false),
        from_host("127.0.0.1:8080", true),
        from_host("127.0.0.1:8081", true),
        // The answer is translated back before the kernel looks at it, and it takes no loopback address from a wire.
        from_host("[::1]:8082", false),
        inside(&host, "web", format!("{v4}:8080"), true),
        inside(&host, "web", format!("{v6}:8080"), true),
        inside(&host, "neighbour", format!("{v4}:8080"), true),
        inside(&host, "neighbour", format!("{v6}:8080"), true),
        inside(&host, "neighbour", "172.30.0.9:80".into(), true),
        inside(&host, "neighbour", "[fd30::9]:80".into(), true),
        inside(&host, "q2", "172.31.0.9:80".into(), false),
        inside(&host, "q2", "[fd31::9]:80".into(), false),
        inside(&host, "q2", format!("{v4}:8080"), true),
        // The question is translated before it leaves the bridge, and ports are isolated (docs/firewall.md).
        inside(&host, "q1", format!("{v4}:8090"), false),
        inside(&host, "q2", format!("{v4}:8090"), false),
        inside(&host, "q2", format!("{v6}:8090"), false),
        inside(&host, "their", format!("{v4}:8090"), true),
        inside(&host, "their", format!("{v4}:8080"), true),
        inside(&host, "their", "172.30.0.9:80".into(), false),
        inside(&host, "web", "172.29.0.9:80".into(), false),
        inside(&host, "web", "172.31.0.9:80".into(), false),
    ];
    cells.iter().for_each(Cell::check);
    host.sh("echo 0 >/proc/sys/net/bridge/bridge-nf-call-ip6tables").ok();
    from_host("[::1]:8082", true).check();
    inside(&host, "q2", format!("{v6}:8090"), true).check();
    host.sh("echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables").ok();
    inside(&host, "q2", format!("{v4}:8090"), true).check();
    host.sh("echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables").ok();
    host.stop_dockerd();
    host.sh("iptables -F DOCKER-USER; ip6tables -F DOCKER-USER || true").ok();
    host.start_dockerd();
    host.sh("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP").ok();
    web(&host, "after", "--network one -p 8085:80");
    outside(format!("{v4}:8085"), true).check();
}

pub fn networks_that_come_and_go_cost_no_packet(engine: Engine) {
    costs_no_packet(HostSpec::new("h1").engine(engine));
}

pub fn networks_that_come_and_go_cost_no_packet_on_legacy_iptables(engine: Engine) {
    costs_no_packet(HostSpec::new("h1").engine(engine).legacy_iptables());
}

/// Engines up to 27 take their jump to DOCKER-USER out of FORWARD and put it in again whenever a network is made.
fn costs_no_packet(spec: HostSpec) {
    let lab = Lab::new();
    let lan = lab.segment(["10.77.0.0/24", "fd77::/64"]);
    let (host, station) = (lab.make(&spec.on(&[&lan])), lab.station("s1", &[&lan]));
    host.start_rsnet();
    host.sh("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP").ok();
    host.docker("network create -d rsnet --ipv6 --subnet 172.30.1.0/24 --subnet fd30:1::/64 net").ok();
    host.docker("run -d --name web --network net -p 8080:80 -p 8080:80/udp box sleep 10000").ok();
    Place::container(&host, "web").echo(80);
    Place::host(&station).echo(7);
    let (inside, outside) = (Place::container(&host, "web"), Place::host(&station));
    let at = |address, port| SocketAddr::new(address, port);
    let flows = [
        inside.ask("container to the world", at(station.ipv4(), 7)),
        inside.ask("container to the world by IPv6", at(station.ipv6(), 7)),
        outside.ask("segment to a published UDP port", at(host.ipv4(), 8080)),
        outside.ask("segment to a published UDP port by IPv6", at(host.ipv6(), 8080)),
        outside.converse("segment to a published TCP port", at(host.ipv4(), 8080)),
    ];
    for n in 0..10 {
        for driver in ["bridge", "rsnet"] {
            host.docker(&format!("network create -d {driver} --subnet 172.29.{n}.0/24 more")).ok();
            host.docker("network rm more").ok();
        }
    }
    flows.into_iter().for_each(Flow::none_missing);
}
