//! What lies between hosts: several ways out, IPv6, a router that drops ICMP.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;

use super::{Cluster, spec};
use crate::flow;
use crate::lab::{Engine, Host, Lab};
use crate::traffic::{icmp, reaches_all};

/// The outer sources and destinations of the tunnels' next packets, as they come in at the host.
fn outer(cluster: &Cluster, at: usize, while_asking: impl FnOnce()) -> BTreeSet<String> {
    let filter = "-nn -Q in -i any -c 20 udp dst port 4789";
    let capture = flow::Place::host(&cluster.hosts[at]).spawn(move || {
        let output = Command::new("timeout").args(["10", "tcpdump"]).args(filter.split(' ')).output().expect("start tcpdump");
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    while_asking();
    let seen = capture.join().expect("tcpdump's thread ended well");
    // 14:00:00.000000 eth1 In IP 10.78.0.103.40000 > 10.78.0.104.4789: VXLAN …
    let ends = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == ">")?;
        let address = |word: &str| word.rsplit_once('.').map(|(address, _)| address.to_owned());
        Some(format!("{} > {}", address(words[at - 1])?, address(words[at + 1])?))
    };
    seen.lines().filter(|line| line.contains("VXLAN")).filter_map(ends).collect()
}

/// Each container asks the other a number of times.
fn talk(cluster: &Cluster, all: &[Vec<IpAddr>]) {
    for to in &all[1] {
        cluster.place(0).sh(&format!("ping -c 30 -i 0.1 {to}")).ok();
    }
}

/// Each host has two cards with two addresses each, and a default route by each card; Consul is behind the first.
pub fn tunnels_leave_by_the_address_that_was_announced(engine: Engine) {
    let lab = Lab::new();
    let (first, second) = (lab.segment(["10.77.0.0/24"]), lab.segment(["10.78.0.0/24"]));
    let consul = lab.station("consul", &[&first]);
    let gateways = (lab.station("gateway1", &[&first]).ipv4(), lab.station("gateway2", &[&second]).ipv4());
    let hosts: Vec<Host> = (1..=2).map(|n| lab.make(&spec(n, engine).on(&[&first, &second]).second_address())).collect();
    for host in &hosts {
        let (by_first, by_second) = gateways;
        host.sh(&format!("ip route add default via {by_first} metric 10 && ip route add default via {by_second} metric 20")).ok();
    }
    let announced: Vec<IpAddr> = hosts.iter().map(|host| host.addresses()[3]).collect();
    let cluster = Cluster::of(lab, consul, hosts, |host| format!("RSNET_UNDERLAY={}", host.addresses()[3]));
    cluster.create("--subnet 10.50.0.0/16 blue");
    let all = cluster.run("blue", "");
    reaches_all(cluster.place(0), &[icmp(all[1][0])]);
    for host in &cluster.hosts {
        announced.iter().for_each(|address| drop(host.sh("rsnet hosts").says(&address.to_string()).to_owned()));
    }
    let expected = |from: usize, to: usize| BTreeSet::from([format!("{} > {}", announced[from], announced[to])]);
    assert_eq!(outer(&cluster, 1, || talk(&cluster, &all)), expected(0, 1), "as h2 sees it");
    assert_eq!(outer(&cluster, 0, || talk(&cluster, &all)), expected(1, 0), "as h1 sees it");
}

pub fn an_underlay_of_ipv6_carries_both_families(engine: Engine) {
    let lab = Lab::new();
    let segment = lab.segment(["10.77.0.0/24", "fd77::/64"]);
    let consul = lab.station("consul", &[&segment]);
    let hosts: Vec<Host> = (1..=2).map(|n| lab.make(&spec(n, engine).on(&[&segment]))).collect();
    let cluster = Cluster::of(lab, consul, hosts, |host| format!("RSNET_UNDERLAY={}", host.ipv6()));
    cluster.create("--ipv6 --subnet 10.50.0.0/16 --subnet fd50::/64 blue");
    let all = cluster.run("blue", "");
    cluster.place(0).sh("ip link show eth0").says("mtu 1430 ");
    reaches_all(cluster.place(0), &all[1].iter().map(|to| icmp(*to)).collect::<Vec<_>>());
    let [h1, h2] = [0, 1].map(|n| cluster.hosts[n].ipv6());
    assert_eq!(outer(&cluster, 1, || talk(&cluster, &all)), BTreeSet::from([format!("{h1} > {h2}")]));
    large(&cluster, &all);
}

/// 64 KB each way over each family.
fn large(cluster: &Cluster, all: &[Vec<IpAddr>]) {
    for n in [0, 1] {
        flow::Place::container(&cluster.hosts[n], ["c1", "c2"][n]).echo(7);
    }
    for (from, to) in [(0, 1), (1, 0)].into_iter().flat_map(|(from, at)| all[at].iter().map(move |to| (from, to))) {
        let to = if to.is_ipv6() { format!("TCP6:[{to}]") } else { format!("TCP:{to}") };
        let script = format!("head -c 65536 /dev/zero | socat -t5 - {to}:7,connect-timeout=5 | wc -c");
        cluster.place(from).sh(&script).says("65536");
    }
}

/// The second host is behind a router that drops all ICMP; the segment behind it takes packets of this size, the first one 1500 or as much.
pub fn a_router_that_says_nothing_is_no_hindrance_at_any_mtu(engine: Engine) {
    for mtu in [1400, 1500, 9000] {
        let lab = Lab::new();
        let (near, far) = (lab.segment(["10.77.0.0/24"]), lab.segment(["10.78.0.0/24"]));
        let router = lab.router("router", &[&near, &far]);
        let silent = "nft 'table inet silent { chain c { type filter hook output priority 0; meta l4proto { icmp, icmpv6 } drop; }; \
            chain f { type filter hook forward priority 0; meta l4proto { icmp, icmpv6 } drop; }; }'";
        router.sh(silent).ok();
        let consul = lab.station("consul", &[&near]);
        let hosts = vec![lab.make(&spec(1, engine).on(&[&near])), lab.make(&spec(2, engine).on(&[&far]))];
        if mtu > 1500 {
            router.set_mtu(mtu);
            hosts.iter().for_each(|host| host.set_mtu(mtu));
        } else {
            hosts[1].set_mtu(mtu);
            router.set_mtu_of(1, mtu);
        }
        let cluster = Cluster::of(lab, consul, hosts, |_| String::new());
        cluster.create("--subnet 10.50.0.0/16 blue");
        let all = cluster.run("blue", "");
        reaches_all(cluster.place(0), &[icmp(all[1][0])]);
        large(&cluster, &all);
        drop(router);
    }
}
