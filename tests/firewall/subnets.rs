//! Networks without a bridge: what packets do between routed ports, tunnels, bridges, the host and the world.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use rsnet::firewall::Firewall;
use rsnet::model::{Entry, Family, Inbound, Protocol, Zone};

use crate::lab::{A, FAMILIES, Lab, Space, at, eventually, name, publish, run, segment};

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
pub const PORT: u16 = 8080;

/// Every combination of family and protocol.
pub fn ways() -> impl Iterator<Item = (Family, Protocol)> + Clone {
    FAMILIES.into_iter().flat_map(|family| BOTH.map(|protocol| (family, protocol)))
}

/// A host as in [`Lab`] which has also two containers of a network O, whose other host is behind a tunnel, and one of a network Q.
pub struct Routed {
    pub lab: Lab,
    pub o1: Space,
    pub o2: Space,
    /// O's other host, with its own address and that of a container, from which it speaks.
    pub peer: Space,
    q1: Space,
}

impl Routed {
    pub fn new() -> Self {
        let lab = Lab::new();
        let [o1, o2, peer, q1] = [(); 4].map(|()| Space::new());
        tunnel(&peer);
        port(&o1, "rsv-o1", "o1", "o gateway", "src 10.50.0.64", "src fd00:50::1:0");
        port(&o2, "rsv-o2", "o2", "o gateway", "src 10.50.0.64", "src fd00:50::1:0");
        port(&q1, "rsv-q1", "q1", "q gateway", "", "");
        for f in FAMILIES {
            let via = at(f, "host");
            lab.world.run(&format!("ip route add {} via {via}; ip route add {} via {via}", net(f, "50"), net(f, "60")));
        }
        let routed = Routed { lab, o1, o2, peer, q1 };
        routed.everybody().into_iter().for_each(|(_, space)| space.serve(PORT));
        // For others it asks from its link-local address, which must be known to be nobody else's.
        eventually("the host seeks neighbours", || run("ip -6 addr show tentative").is_empty().then_some(()));
        routed
    }

    fn everybody(&self) -> [(&'static str, &Space); 9] {
        let Lab { host, world, a1, b1, docker, .. } = &self.lab;
        let outside = [("host", host), ("world", world), ("a1", a1), ("b1", b1), ("docker", docker)];
        let [host, world, a1, b1, docker] = outside;
        [("o1", &self.o1), ("o2", &self.o2), ("peer", &self.peer), ("q1", &self.q1), host, world, a1, b1, docker]
    }

    pub async fn install(&self, entries: impl IntoIterator<Item = Entry>) {
        self.lab.firewall.converge(&entries.into_iter().collect()).await.unwrap();
    }
}

pub fn net(family: Family, number: &str) -> String {
    match family {
        Family::V4 => format!("10.{number}.0.0/16"),
        Family::V6 => format!("fd00:{number}::/64"),
    }
}

fn pair(host_end: &str, space: &Space) {
    let host = nix::unistd::gettid();
    space.run(&format!("ip link add eth0 type veth peer name {host_end} netns {host}"));
    run(&format!("sysctl -qw net.ipv6.conf.{host_end}.accept_dad=0; ip link set {host_end} up"));
    space.run("sysctl -qw net.ipv6.conf.eth0.accept_dad=0; ip link set eth0 up");
}

/// A container behind a port of its own, all of whose traffic goes to the gateway.
fn port(space: &Space, host_end: &str, who: &str, gateway: &str, home4: &str, home6: &str) {
    pair(host_end, space);
    run(&format!("sysctl -qw net.ipv4.conf.{host_end}.route_localnet=1; ip route append local ::1 dev {host_end} table local proto 195"));
    for (f, home, bits, halves) in [(Family::V4, home4, "/16", ["0.0/17", "128.0/17"]), (Family::V6, home6, "/64", ["", ""])] {
        let (own, gate, options) = (at(f, who), at(f, gateway), if f == Family::V6 { "nodad" } else { "" });
        run(&format!("ip addr add {gate} dev {host_end} {options}; ip route add {own} dev {host_end} {home}"));
        space.run(&format!("ip addr add {own}{bits} dev eth0 {options}; ip route add {gate} dev eth0; ip route add default via {gate}"));
        let prefix = gate.trim_end_matches("0.1");
        match f {
            Family::V4 => halves.iter().for_each(|half| drop(space.run(&format!("ip route add {prefix}{half} via {gate}")))),
            Family::V6 => {
                let prefix = gate.trim_end_matches("::1");
                space.run(&format!("ip route add {prefix}::/65 via {gate}; ip route add {prefix}:0:0:8000::/65 via {gate}"));
            }
        }
    }
}

/// The host's link to O's other host, a pair of links in the place of VXLAN.
fn tunnel(peer: &Space) {
    pair("rsx-1", peer);
    for (f, mine, theirs) in [(Family::V4, "10.50.0.64/26", "10.50.0.128/26"), (Family::V6, "fd00:50::1:0/112", "fd00:50::2:0/112")] {
        let (home, peer_home, options) = (at(f, "o home"), at(f, "peer home"), if f == Family::V6 { "nodad" } else { "" });
        run(&format!("ip addr add {home} dev rsx-1 {options}; ip route add {theirs} via {peer_home} dev rsx-1 onlink src {home}"));
        let container = at(f, "peer");
        peer.run(&format!("ip addr add {container} dev eth0 {options}; ip addr add {peer_home} dev eth0 {options}"));
        peer.run(&format!("ip route add {mine} via {home} dev eth0 onlink src {container}"));
    }
}

fn zones(number: &str) -> impl Iterator<Item = (Family, Zone)> {
    FAMILIES.into_iter().map(move |f| (f, Zone::Subnet(net(f, number).parse().unwrap())))
}

/// What the mode has of a network.
fn network(number: &str) -> Vec<Entry> {
    let entries = |(family, zone): (Family, Zone)| {
        let inner = Entry::Inner { zone: zone.clone() };
        [inner, Entry::Enter { zone: zone.clone(), family, rule: Inbound::Closed }, Entry::Masquerade { zone, family }]
    };
    zones(number).flat_map(entries).collect()
}

/// What the fast way knows of O: its containers here, and those of its other host.
pub fn fast(mtu: u32) -> Vec<Entry> {
    let subnet = |f| net(f, "50").parse().unwrap();
    let local = |who, link| FAMILIES.map(|f| Entry::Local { address: at(f, who).parse().unwrap(), link: name(link) });
    let way = |f| Entry::Way { subnet: subnet(f), link: name("rsx-1"), mtu };
    let remote = |(f, last): (Family, &str)| {
        let (via, link) = (at(f, "peer home").parse().unwrap(), name("rsx-1"));
        Entry::Remote { subnet: subnet(f), first: via, last: last.parse().unwrap(), link, via }
    };
    let remotes = [(Family::V4, "10.50.0.191"), (Family::V6, "fd00:50::2:ffff")].map(remote);
    [local("o1", "rsv-o1"), local("o2", "rsv-o2"), FAMILIES.map(way), remotes].concat()
}

/// The same network where packets take the fast way and where they do not.
pub fn closed() -> Vec<Entry> {
    [walled(), fast(1500)].concat()
}

fn walled() -> Vec<Entry> {
    let masquerade = FAMILIES.map(|family| Entry::Masquerade { zone: Zone::Link(name(A)), family });
    [network("50"), network("60"), segment(A, Inbound::Closed), segment(crate::lab::B, Inbound::Anything), masquerade.to_vec()].concat()
}

fn published(to: &'static str) -> impl Iterator<Item = Entry> {
    ways().map(move |(f, protocol)| publish(protocol, at(f, "any"), (80, 80), at(f, to), PORT))
}

pub fn ping(space: &Space, to: &str) -> bool {
    space.within(|| Command::new("ping").args(["-c1", "-W0.5", to]).output().unwrap().status.success())
}

fn flows() -> String {
    run("conntrack -L -f ipv4 2>/dev/null; conntrack -L -f ipv6 2>/dev/null")
}

/// Who reaches whom without translation.
fn reaches(from: &str, to: &str) -> bool {
    match (from, to) {
        (from, to) if from == to => true,
        ("host", _) => true,
        ("o1" | "o2" | "peer", "o1" | "o2" | "peer") => true,
        (_, "host" | "world") => from != "peer",
        _ => false,
    }
}

/// Those of whom the table decides. How the peer and Docker's bridge route, and what the world may do on Docker's bridge, is not its matter.
fn concerns(from: &str, to: &str) -> bool {
    match (from, to) {
        ("peer", to) => ["o1", "o2", "q1"].contains(&to),
        ("world", "a1") | ("b1" | "docker", "world") => false,
        (from, "docker") => ["o1", "o2", "q1"].contains(&from),
        _ => true,
    }
}

/// All ask at once.
fn matrix(routed: &Routed) {
    std::thread::scope(|scope| {
        for (from, space) in routed.everybody() {
            scope.spawn(move || row(from, space));
        }
    });
}

fn row(from: &str, space: &Space) {
    for to in ["o1", "o2", "peer", "q1", "host", "world", "a1", "docker"].into_iter().filter(|to| concerns(from, to)) {
        for f in FAMILIES {
            assert_eq!(ping(space, at(f, to)), reaches(from, to), "{f}: {from} pings {to}");
        }
        // The host answers datagrams from its address on the network, whichever was asked.
        for (f, protocol) in ways().filter(|(_, protocol)| to != "host" || *protocol == Protocol::Tcp) {
            match reaches(from, to) {
                true => drop(space.ask(protocol, at(f, to), PORT)),
                false => space.assert_no_answer(protocol, at(f, to), PORT),
            }
        }
    }
}

#[tokio::test]
async fn containers_of_a_network_reach_each_other_the_host_and_the_world_and_nobody_else_reaches_them() {
    let routed = Routed::new();
    for entries in [closed(), walled()] {
        routed.install(entries).await;
        matrix(&routed);
    }
}

/// As engines make them: 20.10 has no rules in raw, 28.5 walls its containers and its loopback ports off there.
const DOCKER: &str = "
    for iptables in iptables-TABLES ip6tables-TABLES; do
        $iptables -P FORWARD DROP
        for chain in DOCKER DOCKER-USER DOCKER-FORWARD DOCKER-CT DOCKER-BRIDGE DOCKER-ISOLATION-STAGE-1 DOCKER-ISOLATION-STAGE-2; do
            $iptables -N $chain
        done
        $iptables -A FORWARD -j DOCKER-USER
        $iptables -A FORWARD -m conntrack --ctstate INVALID -j DROP
        $iptables -A FORWARD -j DOCKER-FORWARD
        $iptables -A DOCKER-FORWARD -j DOCKER-CT
        $iptables -A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
        $iptables -A DOCKER-FORWARD -j DOCKER-BRIDGE
        $iptables -A DOCKER-FORWARD -i docker0 -j ACCEPT
        $iptables -A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
        $iptables -A DOCKER-BRIDGE -o docker0 -j DOCKER
        $iptables -A DOCKER ! -i docker0 -o docker0 -j DROP
        $iptables -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
        $iptables -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
    done
    iptables-TABLES -t raw -A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP
    iptables-TABLES -t raw -A PREROUTING -d 127.0.0.1/32 ! -i lo -p tcp --dport 80 -j DROP
    iptables-TABLES -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
    ip6tables-TABLES -t nat -A POSTROUTING -s fd17::/64 ! -o docker0 -j MASQUERADE";

async fn beside_docker(tables: &str) {
    let routed = Routed::new();
    run(&DOCKER.replace("TABLES", tables));
    routed.install(closed().into_iter().chain(published("o1"))).await;
    matrix(&routed);
    callers(&routed).await;
    for (f, protocol) in ways() {
        assert_eq!(routed.lab.docker.ask(protocol, at(f, "host"), 80), at(f, "o gateway"), "Docker's own masquerading");
    }
}

#[tokio::test]
async fn so_where_forward_drops_by_dockers_chains() {
    beside_docker("nft").await;
}

#[tokio::test]
async fn so_where_they_are_legacy_tables() {
    beside_docker("legacy").await;
}

/// Everybody asks a port of the host that leads to o1, and sees an answer; o1 sees from whom.
async fn callers(routed: &Routed) {
    let Lab { host, world, a1, .. } = &routed.lab;
    for (f, protocol) in ways() {
        let ask = |space: &Space, to| space.ask(protocol, at(f, to), 80);
        assert_eq!(ask(world, "host"), at(f, "world"));
        assert_eq!(ask(host, "host"), at(f, "host"));
        assert_eq!(ask(host, "loopback"), at(f, "o gateway"));
        for space in [&routed.o1, &routed.o2] {
            assert_eq!(ask(space, "host"), at(f, "o gateway"), "hairpin");
            assert_eq!(ask(space, "o home"), at(f, "o gateway"), "hairpin by an address in the subnet");
            assert_eq!(ask(space, "o gateway"), at(f, "o gateway"), "hairpin by the gateway");
        }
        assert_eq!(ask(&routed.peer, "o home"), at(f, "o gateway"), "of the same network, on another host");
        assert_eq!(ask(&routed.q1, "host"), at(f, "o gateway"), "masqueraded as to anywhere");
        assert_eq!(ask(a1, "host"), at(f, "o gateway"));
        world.assert_no_answer(protocol, at(f, "o1"), PORT);
    }
}

#[tokio::test]
async fn a_published_port_answers_the_world_the_host_its_loopback_itself_and_its_neighbours() {
    let routed = Routed::new();
    routed.install(closed().into_iter().chain(published("o1"))).await;
    callers(&routed).await;
    run("conntrack -F 2>/dev/null");
    routed.o2.ask(Protocol::Tcp, at(Family::V4, "host"), 80);
    let noted = flows();
    assert!(noted.contains("src=10.50.0.66 dst=192.0.2.1") && noted.contains("src=10.50.0.65 dst=10.50.0.1"), "{noted}");
}

#[tokio::test]
async fn what_stays_inside_a_network_is_not_tracked() {
    let routed = Routed::new();
    routed.install(closed()).await;
    run("conntrack -F 2>/dev/null");
    for (f, protocol) in ways() {
        for (from, to) in [(&routed.o1, "o2"), (&routed.o2, "peer"), (&routed.peer, "o1")] {
            from.ask(protocol, at(f, to), PORT);
            assert!(ping(from, at(f, to)));
        }
    }
    let noted = flows();
    let inside = |line: &&str| line.matches("=10.50.").count() + line.matches("=fd00:50:").count() > 0;
    assert_eq!(noted.lines().filter(inside).collect::<Vec<_>>(), Vec::<&str>::new());
    routed.o1.ask(Protocol::Tcp, at(Family::V4, "world"), PORT);
    routed.lab.host.ask(Protocol::Tcp, at(Family::V4, "o1"), PORT);
    assert_eq!(flows().lines().filter(inside).count(), 2, "to the world and from the host");
}

#[tokio::test]
async fn the_world_sees_the_hosts_address_and_a_network_without_masquerading_shows_its_own() {
    let routed = Routed::new();
    routed.install(closed()).await;
    for (f, protocol) in ways() {
        assert_eq!(routed.o1.ask(protocol, at(f, "world"), PORT), at(f, "host"));
        assert_eq!(routed.o1.ask(protocol, at(f, "peer"), PORT), at(f, "o1"));
        assert_eq!(routed.o1.ask(protocol, at(f, "o home"), PORT), at(f, "o1"), "its own host sees who asks");
        assert_eq!(routed.lab.host.ask(protocol, at(f, "o1"), PORT), at(f, "o home"));
        assert_eq!(routed.lab.host.ask(protocol, at(f, "peer"), PORT), at(f, "o home"));
    }
    routed.install(closed().into_iter().filter(|entry| !matches!(entry, Entry::Masquerade { .. }))).await;
    for (f, protocol) in ways() {
        assert_eq!(routed.o1.ask(protocol, at(f, "world"), PORT), at(f, "o1"));
    }
}

/// Sends datagrams with another's source, and counts those that come in at `to`, before any rule there.
struct Spoof<'a> {
    from: &'a Space,
    to: &'a Space,
    source: &'a str,
    destination: &'a str,
}

impl Spoof<'_> {
    /// Something comes in, be the machine as busy as it likes.
    fn arrives(&self) -> bool {
        self.comes_in_within(Duration::from_secs(10))
    }

    /// Nothing has come in after a quarter of a second.
    fn stays_away(&self) -> bool {
        !self.comes_in_within(Duration::from_millis(250))
    }

    fn comes_in_within(&self, patience: Duration) -> bool {
        let Spoof { from, to, source, .. } = self;
        let (packet, bits, nodad) = if source.contains(':') { ("ip6", "128", "nodad") } else { ("ip", "32", "") };
        to.run(&format!(
            "nft 'add table inet seen; delete table inet seen; add table inet seen
                  add chain inet seen c {{ type filter hook prerouting priority -400; }}
                  add rule inet seen c {packet} saddr {source} udp dport 9 counter'"
        ));
        from.run(&format!("ip addr add {source}/{bits} dev eth0 {nodad}"));
        let seen = || !to.run("nft list chain inet seen c").contains("packets 0");
        let deadline = Instant::now() + patience;
        while !seen() && Instant::now() < deadline {
            self.send();
            std::thread::sleep(Duration::from_millis(5));
        }
        from.run(&format!("ip addr del {source}/{bits} dev eth0"));
        seen()
    }

    fn send(&self) {
        self.from.within(|| {
            let socket = UdpSocket::bind((self.source.parse::<IpAddr>().unwrap(), 0)).unwrap();
            let _ = socket.send_to(b"?", (self.destination.parse::<IpAddr>().unwrap(), 9));
        });
    }
}

#[tokio::test]
async fn nobody_sends_with_the_address_of_a_container() {
    let routed = Routed::new();
    let world = &routed.lab.world;
    let strangers = [("10.50.0.77", "203.0.113.7"), ("fd00:50::1:7", "2001:db8:7::7")];
    // Without the table each of them arrives: so it is the table that stops them.
    for guarded in [false, true] {
        if guarded {
            routed.install(closed()).await;
        }
        let is_right = |from: &Space, to: &Space, f, source: &str, destination| {
            let spoof = Spoof { from, to, source, destination: at(f, destination) };
            if guarded { spoof.stays_away() } else { spoof.arrives() }
        };
        for (f, (free, foreign)) in FAMILIES.into_iter().zip(strangers) {
            for source in [at(f, "peer"), at(f, "o gateway"), free, foreign] {
                let source = if guarded || source != at(f, "o gateway") { source } else { free };
                assert!(is_right(&routed.o1, &routed.o2, f, source, "o2"), "{source} within");
                assert!(is_right(&routed.o1, world, f, source, "world"), "{source} to the world");
                assert!(is_right(&routed.q1, &routed.o2, f, source, "o2"), "{source} from another network");
            }
            assert!(is_right(world, &routed.o2, f, free, "o2"), "the world");
            assert!(is_right(&routed.lab.a1, &routed.o2, f, free, "o2"), "a bridge");
            assert!(is_right(&routed.peer, &routed.o2, f, at(f, "o1"), "o2"), "another host with an address of ours");
        }
    }
}

#[tokio::test]
async fn other_hosts_without_a_tunnel_come_by_any_link_and_nobody_else_does() {
    let routed = Routed::new();
    let (world, direct) = (&routed.lab.world, FAMILIES.map(|f| Entry::Direct { subnet: net(f, "50").parse().unwrap() }));
    for f in FAMILIES {
        run(&format!("ip route add unreachable {}", net(f, "50")));
    }
    routed.install(closed().into_iter().chain(direct)).await;
    for (f, free) in FAMILIES.into_iter().zip(["10.50.0.77", "fd00:50::1:7"]) {
        let spoof = |from, to, source, destination| Spoof { from, to, source, destination };
        assert!(spoof(world, &routed.o2, at(f, "peer"), at(f, "o2")).arrives(), "from another host's container, by the uplink");
        for (from, source, why) in [
            (world, at(f, "o1"), "a container here"),
            (world, free, "nobody"),
            (world, at(f, "o home"), "this host"),
            (&routed.o1, at(f, "peer"), "another host's, by a container"),
        ] {
            assert!(spoof(from, &routed.o2, source, at(f, "o2")).stays_away(), "{f}: {why}");
        }
        assert!(spoof(world, &routed.q1, at(f, "peer"), at(f, "q1")).stays_away(), "another network");
    }
}

#[tokio::test]
async fn an_internal_network_speaks_only_within_itself_whatever_is_published() {
    let routed = Routed::new();
    let internal = zones("50").map(|(_, zone)| Entry::Internal { zone });
    routed.install(closed().into_iter().chain(published("o1")).chain(internal)).await;
    for (f, protocol) in ways() {
        for to in ["o2", "peer"] {
            routed.o1.ask(protocol, at(f, to), PORT);
        }
        routed.o1.assert_no_answer(protocol, at(f, "world"), PORT);
        routed.o1.assert_no_answer(protocol, at(f, "q1"), PORT);
        routed.lab.world.assert_no_answer(protocol, at(f, "host"), 80);
        routed.q1.assert_no_answer(protocol, at(f, "host"), 80);
        assert_eq!(routed.lab.host.ask(protocol, at(f, "o1"), PORT), at(f, "o home"));
    }
}

#[tokio::test]
async fn opened_and_anything_let_the_world_in_and_other_networks_only_where_open() {
    let routed = Routed::new();
    let open = ways().map(|(f, protocol)| crate::lab::open(protocol, at(f, "o1"), PORT, PORT));
    for (rule, networks) in [(Inbound::Opened, true), (Inbound::Anything, false)] {
        let entries = closed().into_iter().filter(|entry| !matches!(entry, Entry::Enter { zone: Zone::Subnet(_), .. }));
        let enter = zones("50").map(|(family, zone)| Entry::Enter { zone, family, rule });
        routed.install(entries.chain(enter).chain(open.clone())).await;
        for (f, protocol) in ways() {
            assert_eq!(routed.lab.world.ask(protocol, at(f, "o1"), PORT), at(f, "world"));
            for space in [&routed.q1, &routed.lab.a1, &routed.lab.docker] {
                match networks {
                    true => drop(space.ask(protocol, at(f, "o1"), PORT)),
                    false => space.assert_no_answer(protocol, at(f, "o1"), PORT),
                }
                space.assert_no_answer(protocol, at(f, "o2"), PORT);
            }
        }
    }
}

#[tokio::test]
async fn containers_do_not_reach_what_listens_on_the_hosts_loopback() {
    let routed = Routed::new();
    routed.lab.host.serve(5000);
    routed.o1.run(
        "sysctl -qw net.ipv4.conf.all.route_localnet=1; ip addr del 127.0.0.1/8 dev lo
         for n in 127.0.0.0/8 127.0.0.1; do ip route del local $n table local 2>/dev/null || true; done
         ip route add 127.0.0.0/8 via 10.50.0.1",
    );
    assert_eq!(routed.o1.ask(Protocol::Tcp, "127.0.0.1", 5000), at(Family::V4, "o1"), "it is the table that stops it");
    routed.install(closed()).await;
    for protocol in BOTH {
        routed.o1.assert_no_answer(protocol, "127.0.0.1", 5000);
    }
}

/// Duplicate address detection, and neighbours that are asked again when they were not heard of for long.
#[tokio::test]
async fn neighbours_are_found_on_a_guarded_port() {
    let routed = Routed::new();
    routed.install(closed()).await;
    routed.o1.run("sysctl -qw net.ipv6.conf.eth0.accept_dad=1; ip addr add fd00:50::1:1f/128 dev eth0");
    eventually("no duplicate, is the answer", || (!routed.o1.run("ip -6 addr show dev eth0").contains("tentative")).then_some(()));
    routed.o1.run("ip addr del fd00:50::1:1f/128 dev eth0");
    for f in FAMILIES {
        let gateway = at(f, "o gateway");
        assert!(ping(&routed.o1, gateway));
        routed.o1.run(&format!("ip neigh change {gateway} dev eth0 nud probe"));
        let state = || routed.o1.run(&format!("ip neigh show {gateway} dev eth0"));
        eventually("found again", || state().contains("REACHABLE").then_some(()));
        run("ip neigh flush dev rsv-o1");
        assert!(ping(&routed.lab.host, at(f, "o1")));
    }
    assert!(!run("ip -6 addr show dev rsv-o1").contains("dadfailed"));
}

/// What is not tracked can be too large as well: the host says so, and takes fragments.
#[tokio::test]
async fn packets_that_are_too_large_for_the_tunnel_are_sent_back_or_in_fragments() {
    let routed = Routed::new();
    run("ip link set rsx-1 mtu 1400");
    routed.peer.run("ip link set eth0 mtu 1400");
    routed.install(walled().into_iter().chain(fast(1400))).await;
    for (f, told) in [(Family::V4, "Frag needed and DF set (mtu = 1400)"), (Family::V6, "Packet too big: mtu=1400")] {
        let sized = |how: &str| routed.o1.run(&format!("ping -c1 -W1 {how} -s 1450 {} || true", at(f, "peer")));
        let refused = sized("-M do");
        assert!(refused.contains(told), "{refused}");
        let answered = sized(if f == Family::V4 { "-M dont" } else { "" });
        assert!(answered.contains(" 0% packet loss"), "{answered}");
    }
}

#[tokio::test]
async fn everything_works_again_after_a_flush() {
    let routed = Routed::new();
    let entries: BTreeSet<_> = closed().into_iter().chain(published("o1")).collect();
    routed.install(entries.clone()).await;
    run("nft flush ruleset");
    for (f, protocol) in ways() {
        routed.lab.world.assert_no_answer(protocol, at(f, "host"), 80);
    }
    assert!(routed.lab.firewall.converge(&entries).await.unwrap() > 0);
    assert_eq!(routed.lab.firewall.converge(&entries).await.unwrap(), 0);
    callers(&routed).await;
}
