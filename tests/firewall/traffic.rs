//! What packets do: every assertion is about what the other side saw.

use std::collections::BTreeSet;

use rsnet::firewall::Firewall;
use rsnet::model::{Entry, Family, Inbound, Protocol, Zone};

use crate::lab::{A, B, FAMILIES, Lab, Space, at, eventually, name, open, publish, run, segment};

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

async fn install(lab: &Lab, entries: impl IntoIterator<Item = Entry>) {
    lab.firewall.converge(&entries.into_iter().collect()).await.unwrap();
}

/// Every combination of family and protocol.
fn ways() -> impl Iterator<Item = (Family, Protocol)> + Clone {
    FAMILIES.into_iter().flat_map(|family| BOTH.map(|protocol| (family, protocol)))
}

fn closed() -> Vec<Entry> {
    [segment(A, Inbound::Closed), segment(B, Inbound::Closed)].concat()
}

fn published(host: &str, ports: (u16, u16), to_port: u16) -> impl Iterator<Item = Entry> {
    ways().map(move |(f, protocol)| publish(protocol, at(f, host), ports, at(f, "a1"), to_port))
}

#[tokio::test]
async fn a_published_port_leads_to_the_container_and_keeps_the_callers_address() {
    let lab = Lab::new();
    lab.a1.serve(8080);
    lab.a1.serve(9005);
    let mappings = [published("any", (80, 80), 8080), published("host", (81, 81), 8080)].into_iter().flatten();
    let ranges = [published("any", (9000, 9010), 9000), published("host", (7000, 7010), 8075)].into_iter().flatten();
    install(&lab, closed().into_iter().chain(mappings).chain(ranges)).await;
    for (f, protocol) in ways() {
        for port in [80, 81, 9005, 7005] {
            assert_eq!(lab.world.ask(protocol, at(f, "host"), port), at(f, "world"), "{port}");
            assert_eq!(lab.host.ask(protocol, at(f, "host"), port), at(f, "host"), "{port}");
        }
        lab.world.assert_no_answer(protocol, at(f, "host"), 8080);
        lab.world.assert_no_answer(protocol, at(f, "host"), 9011);
        lab.world.assert_no_answer(protocol, at(f, "a1"), 8080);
        assert_eq!(lab.host.ask(protocol, at(f, "gateway"), 80), at(f, "gateway"), "any address of the host");
        lab.host.assert_no_answer(protocol, at(f, "gateway"), 81);
    }
}

#[tokio::test]
async fn another_segment_reaches_a_published_port_by_the_hosts_address_only() {
    let lab = Lab::new();
    lab.a1.serve(8080);
    install(&lab, closed().into_iter().chain(published("any", (80, 80), 8080))).await;
    for (f, protocol) in ways() {
        assert_eq!(lab.b1.ask(protocol, at(f, "host"), 80), at(f, "b1"));
        lab.b1.assert_no_answer(protocol, at(f, "a1"), 8080);
    }
}

#[tokio::test]
async fn what_is_published_on_loopback_is_reached_from_the_host_and_from_nowhere_else() {
    let lab = Lab::new();
    lab.a1.serve(8080);
    lab.host.serve(5000);
    let ports = || published("loopback", (80, 80), 8080);
    let any = published("any", (81, 81), 8080);
    install(&lab, closed().into_iter().chain(ports()).chain(any)).await;
    for (f, protocol) in ways() {
        for port in [80, 81] {
            assert_eq!(lab.host.ask(protocol, at(f, "loopback"), port), at(f, "gateway"), "{f} {protocol} {port}");
        }
        lab.world.assert_no_answer(protocol, at(f, "host"), 80);
    }
    // A neighbour, and a container, that send packets to 127.0.0.1 over the wire.
    let misroute = |space: &Space, via: &str| {
        space.run(&format!(
            "sysctl -qw net.ipv4.conf.all.route_localnet=1; ip addr del 127.0.0.1/8 dev lo
             for n in 127.0.0.0/8 127.0.0.1; do ip route del local $n table local 2>/dev/null || true; done
             ip route add 127.0.0.0/8 via {via}"
        ));
    };
    misroute(&lab.world, "192.0.2.1");
    misroute(&lab.b1, "10.2.0.1");
    for (space, port) in [(&lab.world, 80), (&lab.world, 5000), (&lab.b1, 80), (&lab.b1, 5000)] {
        for protocol in BOTH {
            space.assert_no_answer(protocol, "127.0.0.1", port);
        }
    }
}

#[tokio::test]
async fn a_container_reaches_itself_and_its_neighbour_by_the_published_port() {
    hairpin(false).await;
}

#[tokio::test]
async fn a_container_does_so_too_where_the_bridge_hands_frames_to_the_filter() {
    hairpin(true).await;
}

async fn hairpin(filtered: bool) {
    let lab = Lab::new();
    if filtered {
        run(&format!("ip link set {A} type bridge nf_call_iptables 1 nf_call_ip6tables 1"));
        run("bridge link set dev va1 hairpin on; bridge link set dev va2 hairpin on");
    }
    lab.a1.serve(8080);
    let inner = Entry::Inner { zone: Zone::Link(name(A)) };
    install(&lab, closed().into_iter().chain(published("any", (80, 80), 8080)).chain([inner])).await;
    for (f, protocol) in ways() {
        for space in [&lab.a1, &lab.a2] {
            assert_eq!(space.ask(protocol, at(f, "host"), 80), at(f, "gateway"));
            assert_eq!(space.ask(protocol, at(f, "gateway"), 80), at(f, "gateway"));
        }
        assert_eq!(lab.a2.ask(protocol, at(f, "a1"), 8080), at(f, "a2"));
    }
}

#[tokio::test]
async fn without_inner_containers_of_a_filtered_bridge_reach_the_gateway_and_not_each_other() {
    let lab = Lab::new();
    run(&format!("ip link set {A} type bridge nf_call_iptables 1 nf_call_ip6tables 1"));
    lab.a1.serve(8080);
    lab.host.serve(5000);
    for rule in [Inbound::Closed, Inbound::Anything] {
        install(&lab, segment(A, rule)).await;
        for (f, protocol) in ways() {
            lab.a2.assert_no_answer(protocol, at(f, "a1"), 8080);
            assert_eq!(lab.a2.ask(protocol, at(f, "gateway"), 5000), at(f, "a2"));
        }
    }
}

fn ping(space: &Space, to: &str) -> bool {
    space.within(|| std::process::Command::new("ping").args(["-c1", "-W0.3", to]).output().unwrap().status.success())
}

#[tokio::test]
async fn closed_opened_and_anything_let_in_what_they_say() {
    let lab = Lab::new();
    for port in [80, 85, 91] {
        lab.a1.serve(port);
    }
    let opened = ways().flat_map(|(f, p)| [open(p, at(f, "a1"), 80, 80), open(p, at(f, "a1"), 84, 90)]);
    for (rule, answered, pinged) in
        [(Inbound::Closed, &[][..], false), (Inbound::Opened, &[80, 85][..], true), (Inbound::Anything, &[80, 85, 91][..], true)]
    {
        install(&lab, segment(A, rule).into_iter().chain(segment(B, Inbound::Closed)).chain(opened.clone())).await;
        for (f, protocol) in ways() {
            for port in [80, 85, 91] {
                match answered.contains(&port) {
                    true => assert_eq!(lab.world.ask(protocol, at(f, "a1"), port), at(f, "world"), "{rule:?} {port}"),
                    false => lab.world.assert_no_answer(protocol, at(f, "a1"), port),
                }
            }
            assert_eq!(ping(&lab.world, at(f, "a1")), pinged, "{rule:?}");
            for neighbour in [&lab.b1, &lab.docker] {
                lab_neighbour(neighbour, rule, protocol, at(f, "a1"));
            }
        }
    }
}

/// Another container network of the host gets in only where the ports are open.
fn lab_neighbour(space: &Space, rule: Inbound, protocol: Protocol, to: &str) {
    match rule {
        Inbound::Opened => drop(space.ask(protocol, to, 80)),
        _ => space.assert_no_answer(protocol, to, 80),
    }
    space.assert_no_answer(protocol, to, 91);
}

#[tokio::test]
async fn an_internal_segment_speaks_only_within_itself_whatever_is_published() {
    let lab = Lab::new();
    lab.a1.serve(8080);
    lab.world.serve(5000);
    let internal = [Entry::Internal { zone: Zone::Link(name(A)) }, Entry::Inner { zone: Zone::Link(name(A)) }];
    install(&lab, segment(A, Inbound::Anything).into_iter().chain(internal).chain(published("any", (80, 80), 8080))).await;
    for (f, protocol) in ways() {
        lab.world.assert_no_answer(protocol, at(f, "host"), 80);
        lab.world.assert_no_answer(protocol, at(f, "a1"), 8080);
        lab.a1.assert_no_answer(protocol, at(f, "world"), 5000);
        assert_eq!(lab.a2.ask(protocol, at(f, "a1"), 8080), at(f, "a2"));
    }
}

#[tokio::test]
async fn a_trusted_link_enters_a_closed_segment_and_no_other_does() {
    let lab = Lab::new();
    lab.a1.serve(8080);
    install(&lab, closed().into_iter().chain([Entry::Trusted { from: name("wan0"), to: name(A) }])).await;
    for (f, protocol) in ways() {
        assert_eq!(lab.world.ask(protocol, at(f, "a1"), 8080), at(f, "world"));
        lab.b1.assert_no_answer(protocol, at(f, "a1"), 8080);
    }
}

#[tokio::test]
async fn the_world_sees_the_address_that_masquerade_or_source_nat_gives() {
    let lab = Lab::new();
    lab.world.serve(5000);
    run("ip addr add 192.0.2.77/24 dev wan0; ip addr add 2001:db8::77/64 dev wan0 nodad preferred_lft 0");
    let masquerade = FAMILIES.map(|family| Entry::Masquerade { zone: Zone::Link(name(A)), family });
    let fixed = ["192.0.2.77", "2001:db8::77"].map(|source| Entry::SourceNat { link: name(A), source: source.parse().unwrap() });
    install(&lab, closed()).await;
    for (f, protocol) in ways() {
        assert_eq!(lab.a1.ask(protocol, at(f, "world"), 5000), at(f, "a1"), "untranslated");
    }
    install(&lab, closed().into_iter().chain(masquerade.clone())).await;
    for (f, protocol) in ways() {
        assert_eq!(lab.a1.ask(protocol, at(f, "world"), 5000), at(f, "host"), "masqueraded");
    }
    install(&lab, closed().into_iter().chain(masquerade).chain(fixed)).await;
    for (f, protocol) in ways() {
        let source = if f == Family::V4 { "192.0.2.77" } else { "2001:db8::77" };
        assert_eq!(lab.a1.ask(protocol, at(f, "world"), 5000), source, "a given source");
    }
}

/// As Docker's chains are where it turned forwarding on itself, with one port of its own published.
const DOCKER: &str = "
    for iptables in iptables-nft ip6tables-nft; do
        $iptables -P FORWARD DROP
        for chain in DOCKER-USER DOCKER-ISOLATION-STAGE-1 DOCKER-ISOLATION-STAGE-2; do $iptables -N $chain; done
        $iptables -A DOCKER-USER -j RETURN
        $iptables -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
        $iptables -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
        $iptables -A FORWARD -j DOCKER-USER
        $iptables -A FORWARD -j DOCKER-ISOLATION-STAGE-1
        $iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
        $iptables -A FORWARD -i docker0 -j ACCEPT
    done
    iptables-nft -A FORWARD -d 172.17.0.2 ! -i docker0 -o docker0 -p tcp --dport 6000 -j ACCEPT
    iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -p tcp --dport 60 -j DNAT --to 172.17.0.2:6000";

/// The same of an engine whose firewall backend is nftables: a table for each family, and in it two chains for each bridge.
const NATIVE: &str = "
    for family in ip ip6; do
        nft \"table $family docker-bridges {
            chain filter-forward-in__docker0 {
                ct state established,related accept
                iifname docker0 accept
                meta l4proto tcp ct status dnat tcp dport 6000 accept
                drop
            }
            chain filter-forward-out__docker0 { accept; }
            map in-jumps { type ifname : verdict; elements = { docker0 : jump filter-forward-in__docker0 }; }
            map out-jumps { type ifname : verdict; elements = { docker0 : jump filter-forward-out__docker0 }; }
            chain filter-FORWARD {
                type filter hook forward priority filter
                oifname vmap @in-jumps
                iifname vmap @out-jumps
            }
        }\"
    done
    nft \"table ip docker-bridges { chain nat { type nat hook prerouting priority dstnat; fib daddr type local tcp dport 60 dnat to 172.17.0.2:6000; }; }\"";

#[tokio::test]
async fn beside_docker_with_a_dropping_policy_all_works_and_the_walls_stand_both_ways() {
    beside_docker(DOCKER, "docker0").await;
}

#[tokio::test]
async fn so_beside_docker_on_legacy_tables() {
    beside_docker(&legacy(), "docker0").await;
}

#[tokio::test]
async fn so_where_a_user_chose_the_name_of_dockers_bridge() {
    beside_docker(DOCKER, "bluebird").await;
}

#[tokio::test]
async fn so_with_both() {
    beside_docker(&legacy(), "bluebird").await;
}

#[tokio::test]
async fn so_where_docker_filters_with_tables_of_its_own() {
    for bridge in ["docker0", "bluebird"] {
        beside_docker(NATIVE, bridge).await;
    }
}

fn legacy() -> String {
    DOCKER.replace("-nft", "-legacy")
}

async fn beside_docker(docker: &str, bridge: &str) {
    let lab = Lab::new();
    run(&format!("ip link set docker0 down; ip link set docker0 name {bridge}; ip link set {bridge} up"));
    run(&format!("ip -6 addr replace fd17::1/64 dev {bridge} nodad"));
    eventually("the bridge is up", || ping(&lab.docker, at(Family::V6, "docker gateway")).then_some(()));
    run(&docker.replace("docker0", bridge));
    for space in [&lab.a1, &lab.docker] {
        space.serve(6000);
    }
    lab.world.serve(5000);
    let masquerade = FAMILIES.map(|family| Entry::Masquerade { zone: Zone::Link(name(A)), family });
    let entries = segment(A, Inbound::Anything).into_iter().chain(masquerade).chain(published("any", (80, 80), 6000));
    install(&lab, entries).await;
    for (f, protocol) in ways() {
        assert_eq!(lab.world.ask(protocol, at(f, "host"), 80), at(f, "world"));
        assert_eq!(lab.world.ask(protocol, at(f, "a1"), 6000), at(f, "world"));
        assert_eq!(lab.a1.ask(protocol, at(f, "world"), 5000), at(f, "host"));
        assert_eq!(lab.docker.ask(protocol, at(f, "host"), 80), at(f, "docker"), "our published port from Docker's network");
        lab.a1.assert_no_answer(protocol, at(f, "docker"), 6000);
        lab.docker.assert_no_answer(protocol, at(f, "a1"), 6000);
        lab.world.assert_no_answer(protocol, at(f, "docker"), 6000);
    }
    lab.a1.ask(Protocol::Tcp, "192.0.2.1", 60);
}

/// A bridge that Docker does not name is the way to somewhere: to the wire, or to virtual machines.
#[tokio::test]
async fn a_bridge_that_is_none_of_dockers_stays_reachable() {
    let lab = Lab::new();
    run("ip link set docker0 down; ip link set docker0 name br-lan; ip link set br-lan up");
    run("ip -6 addr replace fd17::1/64 dev br-lan nodad");
    eventually("the bridge is up", || ping(&lab.docker, at(Family::V6, "docker gateway")).then_some(()));
    lab.docker.serve(6000);
    install(&lab, closed()).await;
    for (f, protocol) in ways() {
        assert_eq!(lab.a1.ask(protocol, at(f, "docker"), 6000), at(f, "a1"));
    }
}

#[tokio::test]
async fn everything_works_again_after_a_flush() {
    let lab = Lab::new();
    lab.a1.serve(8080);
    let entries: BTreeSet<_> = closed().into_iter().chain(published("any", (80, 80), 8080)).collect();
    install(&lab, entries.clone()).await;
    run("nft flush ruleset");
    lab.world.assert_no_answer(Protocol::Tcp, at(Family::V4, "host"), 80);
    install(&lab, entries).await;
    assert_eq!(lab.world.ask(Protocol::Tcp, at(Family::V4, "host"), 80), at(Family::V4, "world"));
    lab.world.assert_no_answer(Protocol::Tcp, at(Family::V4, "a1"), 8080);
}
