//! Published ports: rsnet leads the host's ports to containers itself, without proxies.

use crate::lab::{Engine, Host, HostSpec, Lab, PATIENCE, wait_until};
use crate::traffic::{Place, Question, addresses, ask, icmp, reaches, reaches_all, reaches_none, run, serve, serve_at, tcp, udp};
use std::net::IpAddr;

/// A host with two addresses of each family, and a station beside it.
pub struct World {
    pub _lab: Lab,
    pub host: Host,
    pub station: Host,
}

impl World {
    pub fn new(engine: Engine) -> World {
        World::with(engine, "")
    }

    /// The same with settings of rsnet, `"RSNET_ATTACH=direct"`.
    pub fn with(engine: Engine, settings: &str) -> World {
        let lab = Lab::new();
        let lan = lab.segment(["10.77.0.0/24", "fd77::/64"]);
        let host = lab.make(&HostSpec::new("h1").engine(engine).on(&[&lan]).second_address());
        let station = lab.station("s1", &[&lan]);
        host.start_rsnet_with(settings);
        World { _lab: lab, host, station }
    }

    /// A dual-stack network `172.30.N.0/24`, `fd30:N::/64`.
    pub fn network(&self, name: &str, n: u8, options: &str) {
        let subnets = format!("--ipv6 --subnet 172.30.{n}.0/24 --subnet fd30:{n}::/64");
        self.host.docker(&format!("network create -d rsnet {subnets} {options} {name}")).ok();
    }

    pub fn here(&self) -> Place<'_> {
        Place::Machine(&self.host)
    }

    pub fn outside(&self) -> Place<'_> {
        Place::Machine(&self.station)
    }

    pub fn inside<'a>(&'a self, container: &'a str) -> Place<'a> {
        Place::Container(&self.host, container)
    }

    /// TCP and UDP to a port by the host's first address of each family.
    pub fn all(&self, port: u16) -> Vec<Question> {
        [self.host.ipv4(), self.host.ipv6()].into_iter().flat_map(|to| [tcp(to, port), udp(to, port)]).collect()
    }

    /// Whether frames that cross a bridge pass the filter; on in a new machine whose kernel has `br_netfilter`.
    pub fn bridge_filter(&self, on: bool) {
        let values = ["iptables", "ip6tables"].map(|of| format!("net.bridge.bridge-nf-call-{of}={}", u8::from(on)));
        self.host.sh(&format!("[ ! -d /proc/sys/net/bridge ] || sysctl -qw {}", values.join(" "))).ok();
    }

    /// `rsnet ports --json`
    pub fn ports(&self) -> serde_json::Value {
        serde_json::from_str(self.host.sh("rsnet ports --json").ok()).expect("JSON")
    }
}

pub fn a_published_port_is_reached_from_everywhere_and_the_segments_address_is_kept(engine: Engine) {
    let w = World::new(engine);
    w.network("net", 1, "");
    w.network("other", 2, "");
    run(&w.host, "web", "--network net -p 8080:80 -p 8080:80/udp");
    run(&w.host, "neighbour", "--network net");
    run(&w.host, "stranger", "--network other");
    let _servers = serve(&w.host, "web", &[80]);
    for question in w.all(8080) {
        let station = if question.to.is_ipv4() { w.station.ipv4() } else { w.station.ipv6() };
        assert_eq!(reaches(w.outside(), question), station, "the server sees who asks: {question}");
    }
    // frames that stay on a bridge take another way through the kernel's filter, if br_netfilter is there and on
    for filtered in [true, false] {
        w.bridge_filter(filtered);
        for place in [w.here(), w.inside("web"), w.inside("neighbour"), w.inside("stranger")] {
            reaches_all(place, &w.all(8080));
        }
        for to in [w.host.ipv4(), w.host.ipv6()] {
            let bridge: IpAddr = if to.is_ipv4() { [172, 30, 1, 1].into() } else { "fd30:1::1".parse().expect("an address") };
            assert_eq!(reaches(w.inside("neighbour"), tcp(to, 8080)), bridge, "{to}, filtered: {filtered}");
        }
        reaches_all(w.here(), &[tcp(local(), 8080), udp(local(), 8080)]);
    }
    let proxies = w.host.sh("pgrep -c docker-proxy");
    assert_eq!(proxies.stdout.trim(), "0", "no proxy stands between: {proxies}");
}

pub fn ranges_and_ports_left_to_rsnet_are_found_by_rsnet_ports(engine: Engine) {
    let w = World::new(engine);
    w.network("net", 1, "");
    run(&w.host, "range", "--network net -p 20000-20099:20000-20099");
    let _range = serve(&w.host, "range", &[20000, 20050, 20099]);
    reaches_all(w.outside(), &[20000, 20050, 20099].map(|port| tcp(w.host.ipv4(), port)));
    reaches_all(w.outside(), &[20000, 20099].map(|port| tcp(w.host.ipv6(), port)));
    assert_eq!(w.ports()[0]["host_ports"], serde_json::json!({"first": 20000, "last": 20099}), "{}", w.ports());

    run(&w.host, "any", "--network net -p 80");
    let _any = serve(&w.host, "any", &[80]);
    let chosen = chosen(&w, 80);
    assert!((32768..=60999).contains(&chosen), "{chosen}");
    reaches_all(w.outside(), &[tcp(w.host.ipv4(), chosen), tcp(w.host.ipv6(), chosen)]);

    let _holder = serve_at(w.here(), &[30000]);
    run(&w.host, "one-of", "--network net -p 30000-30005:81");
    let _one = serve(&w.host, "one-of", &[81]);
    assert_eq!(self::chosen(&w, 81), 30001, "the first that is free: {}", w.ports());
    reaches(w.outside(), tcp(w.host.ipv4(), 30001));
}

/// The host's port for a container's port.
fn chosen(w: &World, container_port: u64) -> u16 {
    let ports = w.ports();
    let found = ports.as_array().expect("a list").iter().find(|port| port["container_port"] == container_port);
    let first = found.unwrap_or_else(|| panic!("{container_port} is not in {ports}"))["host_ports"]["first"].as_u64();
    u16::try_from(first.expect("a number")).expect("a port")
}

fn local() -> IpAddr {
    [127, 0, 0, 1].into()
}

pub fn a_binding_to_loopback_is_reached_from_the_host_and_from_nowhere_else(engine: Engine) {
    let w = World::new(engine);
    w.network("net", 1, "");
    run(&w.host, "web", "--network net -p 127.0.0.1:8080:80 -p 127.0.0.1:8080:80/udp -p [::1]:8080:80 -p [::1]:8080:80/udp");
    run(&w.host, "neighbour", "--network net");
    run(&w.host, "docker", "");
    let _servers = serve(&w.host, "web", &[80]);
    let six: IpAddr = std::net::Ipv6Addr::LOCALHOST.into();
    reaches_all(w.here(), &[tcp(local(), 8080), udp(local(), 8080)]);
    // with it on, the kernel translates an answer to ::1 before it looks for such addresses on the wire, and drops it (docs/bridge.md)
    w.bridge_filter(false);
    reaches_all(w.here(), &[tcp(six, 8080), udp(six, 8080)]);
    for place in [w.outside(), w.inside("neighbour"), w.inside("docker"), w.inside("web")] {
        reaches_none(place, &w.all(8080));
    }
    // those who may send to 127.0.0.1 over the wire: a machine on the segment, and a container
    for (place, gateway) in [(w.outside(), w.host.ipv4()), (w.inside("neighbour"), [172, 30, 1, 1].into())] {
        let wire = "ip route del local 127.0.0.1 dev lo table local; ip route del local 127.0.0.0/8 dev lo table local";
        place.sh(&format!("sysctl -qw net.ipv4.conf.all.route_localnet=1; {wire}; ip route add 127.0.0.1 via {gateway} dev eth0")).ok();
        place.sh("ip route get 127.0.0.1").says(&format!("via {gateway}"));
        reaches_none(place, &[tcp(local(), 8080), udp(local(), 8080)]);
    }
}

pub fn a_binding_to_one_address_of_the_host_is_reached_by_that_one_only(engine: Engine) {
    let w = World::new(engine);
    w.network("net", 1, "");
    let [one, second]: [Vec<IpAddr>; 2] = [true, false].map(|v4| w.host.addresses().into_iter().filter(|a| a.is_ipv4() == v4).collect());
    run(&w.host, "web", &format!("--network net -p {}:8080:80 -p [{}]:8080:80", one[1], second[1]));
    let _servers = serve(&w.host, "web", &[80]);
    reaches_all(w.outside(), &[tcp(one[1], 8080), tcp(second[1], 8080)]);
    reaches_none(w.outside(), &[tcp(one[0], 8080), tcp(second[0], 8080)]);
    // what the other address has on the port is somebody else's
    run(&w.host, "other", &format!("--network net -p {}:8080:80", one[0]));
    let _others = serve(&w.host, "other", &[80]);
    reaches_all(w.outside(), &[tcp(one[0], 8080)]);
}

pub fn a_port_that_is_taken_is_refused_with_who_has_it(engine: Engine) {
    let w = World::new(engine);
    w.network("net", 1, "");
    run(&w.host, "first", "--network net -p 8080:80");
    run(&w.host, "docker", "-p 8082:80");
    let _squatter = w.host.spawn("squatter", "socat TCP6-LISTEN:8081,ipv6only=0,fork PIPE");
    w.host.wait_listening("tcp", 8081);
    let refused = |flags: &str, reasons: &[&str]| {
        let seen = w.host.docker(&format!("run -d --name loser --network net {flags} box sleep 1000"));
        for reason in reasons {
            seen.fails_with(reason);
        }
        w.host.docker("rm -f loser").ok();
    };
    let first = w.host.docker("inspect -f '{{.NetworkSettings.Networks.net.EndpointID}}' first");
    refused("-p 8080:80", &["8080", "published already", &first.ok()[..10]]);
    refused("-p 127.0.0.1:8080:80", &["published already"]);
    refused("-p 8081:80", &["port 8081/tcp", "in use by socat (pid"]);
    refused("-p 8082:80", &["port 8082/tcp", "in use by docker"]);
    // nothing is left of those who lost: the next one gets what they had besides
    run(&w.host, "winner", "--network net -p 8080:80/udp -p 8083:80");
    let _servers = serve(&w.host, "winner", &[80]);
    reaches_all(w.outside(), &[tcp(w.host.ipv4(), 8083), udp(w.host.ipv4(), 8080)]);
    // the other way round: Docker is refused what rsnet has
    let seen = w.host.docker("run -d --name loser -p 8083:80 box sleep 1000");
    seen.fails_with("8083");
}

pub fn a_port_is_free_after_disconnect_and_removal_and_kept_over_a_restart(engine: Engine) {
    let w = World::new(engine);
    w.network("net", 1, "");
    w.network("second", 2, "");
    run(&w.host, "web", "--network net -p 8080:80");
    {
        let _servers = serve(&w.host, "web", &[80]);
        reaches(w.outside(), tcp(w.host.ipv4(), 8080));
    }
    w.host.docker("restart -t 0 web").ok();
    let servers = serve(&w.host, "web", &[80]);
    reaches_all(w.outside(), &[tcp(w.host.ipv4(), 8080), tcp(w.host.ipv6(), 8080)]);
    w.host.docker("network disconnect net web").ok();
    reaches_none(w.outside(), &[tcp(w.host.ipv4(), 8080)]);
    free(&w, 8080);
    w.host.docker("network connect second web").ok();
    reaches_all(w.outside(), &[tcp(w.host.ipv4(), 8080), tcp(w.host.ipv6(), 8080)]);
    drop(servers);
    w.host.docker("rm -f web").ok();
    free(&w, 8080);
    assert_eq!(w.ports(), serde_json::json!([]));
}

/// A process of the host gets the port.
fn free(w: &World, port: u16) {
    let _servers = serve_at(w.here(), &[port]);
    reaches(w.outside(), tcp(w.host.ipv4(), port));
}

/// What Docker's `icc=false` makes different from this, the matrix shows: it turns the filter on.
pub fn without_icc_neighbours_meet_by_published_ports_only(engine: Engine) {
    let w = World::new(engine);
    w.bridge_filter(false);
    w.network("net", 1, "-o icc=false");
    run(&w.host, "web", "--network net -p 8080:80 -p 8080:80/udp");
    run(&w.host, "neighbour", "--network net");
    let _servers = serve(&w.host, "web", &[80]);
    for place in [w.inside("web"), w.inside("neighbour"), w.outside()] {
        reaches_all(place, &w.all(8080));
    }
    for to in addresses(&w.host, "web", "net") {
        reaches_none(w.inside("neighbour"), &[tcp(to, 80), udp(to, 80), icmp(to)]);
    }
}

/// This machine's kernel may have no SCTP sockets; its packets are translated all the same.
pub fn publish_engine_shows_ports_in_docker_ps_and_they_answer(engine: Engine) {
    let w = World::new(engine);
    w.host.docker("network create -d rsnet -o publish=engine net").ok();
    run(&w.host, "web", "--network net -p 8080:80");
    run(&w.host, "friend", "--network net");
    let _servers = serve(&w.host, "web", &[80]);
    w.host.docker("ps").says("0.0.0.0:8080->80/tcp");
    assert_eq!(reaches(w.outside(), tcp(w.host.ipv4(), 8080)), w.station.ipv4());
    let gateway = w.host.docker("network inspect -f '{{(index .IPAM.Config 0).Gateway}}' docker_gwbridge");
    assert_eq!(reaches(w.outside(), tcp(w.host.ipv6(), 8080)).to_string(), gateway.ok(), "IPv6 comes by the engine's proxy");
    reaches(w.inside("friend"), tcp(addresses(&w.host, "web", "net")[0], 80));
    assert_eq!(w.ports(), serde_json::json!([]));
}

pub fn published_ports_move_with_the_containers_gateway(engine: Engine) {
    let w = World::new(engine);
    w.network("a", 1, "");
    w.network("b", 2, "");
    run(&w.host, "web", "--network b -p 8080:80");
    let _servers = serve(&w.host, "web", &[80]);
    let through = |network: &str| {
        let own = addresses(&w.host, "web", network)[0].to_string();
        let ports = w.ports();
        let listed = ports.as_array().is_some_and(|all| all.len() == 1 && all[0]["container"][0] == own);
        assert!(listed, "published through {network} ({own}) only: {ports}");
        reaches_all(w.outside(), &[tcp(w.host.ipv4(), 8080), tcp(w.host.ipv6(), 8080)]);
    };
    through("b");
    // by name, until engine 28.0 lets the user say
    w.host.docker("network connect a web").ok();
    through("a");
    w.host.docker("network disconnect a web").ok();
    through("b");
    if engine >= Engine::V28_5 {
        w.network("c", 3, "");
        w.host.docker("network connect --gw-priority 10 c web").ok();
        through("c");
        w.host.docker("network disconnect c web").ok();
        through("b");
    }
}

pub fn a_container_on_rsnet_and_dockers_bridge_publishes_by_its_gateway(engine: Engine) {
    let w = World::new(engine);
    w.network("zz", 1, "");
    w.host.docker("network create --subnet 172.30.9.0/24 aa").ok();
    run(&w.host, "web", "--network zz -p 8080:80");
    run(&w.host, "on-rsnet", "--network zz");
    run(&w.host, "on-docker", "--network aa");
    let _servers = serve(&w.host, "web", &[80, 81]);
    reaches(w.outside(), tcp(w.host.ipv4(), 8080));
    w.host.docker("network connect aa web").ok();
    reaches(w.outside(), tcp(w.host.ipv4(), 8080));
    reaches(w.inside("on-rsnet"), tcp(addresses(&w.host, "web", "zz")[0], 81));
    reaches(w.inside("on-docker"), tcp(addresses(&w.host, "web", "aa")[0], 81));
    w.host.docker("network disconnect aa web").ok();
    wait_until("the port to answer through rsnet again", PATIENCE, || {
        let answer = ask(w.outside(), &[tcp(w.host.ipv4(), 8080)])[0];
        answer.seen().map(drop).ok_or_else(|| format!("{answer:?}"))
    });
    w.host.docker("network disconnect zz web").ok();
    w.host.docker("network connect aa web").ok();
    reaches(w.outside(), tcp(w.host.ipv4(), 8080));
    assert_eq!(w.ports(), serde_json::json!([]), "the engine's bridge has it now");
}
