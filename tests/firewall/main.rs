//! The firewall in real network namespaces, with real packets; `nft`, `iptables` and `conntrack` as the second opinion. Needs root.

mod fast;
mod flows;
mod lab;
mod legacy;
#[path = "../lab/namespace.rs"]
#[allow(dead_code, reason = "others use the rest")]
mod namespace;
mod subnets;
mod trace;
mod traffic;
mod tunnels;

use std::collections::BTreeSet;
use std::time::Duration;

use lab::{name, open, publish, run};
use nix::sched::{CloneFlags, unshare};
use rsnet::firewall::Firewall;
use rsnet::firewall::nftables::Nftables;
use rsnet::model::{Entry, Family, Inbound, Protocol, Zone};

/// A firewall in a fresh network namespace, which the calling thread enters. Every test has a process of its own.
fn fresh() -> Nftables {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    Nftables::open().unwrap()
}

fn one_of_each() -> BTreeSet<Entry> {
    let link = || name("rsb-0123456789");
    BTreeSet::from([
        Entry::Segment { link: link() },
        Entry::Inner { zone: Zone::Link(link()) },
        Entry::Internal { zone: Zone::Link(name("rsb-9876543210")) },
        Entry::Enter { zone: Zone::Link(link()), family: Family::V4, rule: Inbound::Opened },
        Entry::Trusted { from: name("lan0"), to: link() },
        Entry::Masquerade { zone: Zone::Link(link()), family: Family::V4 },
        Entry::SourceNat { link: link(), source: "192.0.2.1".parse().unwrap() },
        Entry::SourceNat { link: link(), source: "2001:db8::1".parse().unwrap() },
        publish(Protocol::Tcp, "0.0.0.0", (80, 80), "172.18.0.2", 8080),
        publish(Protocol::Udp, "127.0.0.1", (53, 53), "172.18.0.2", 53),
        publish(Protocol::Tcp, "0.0.0.0", (20000, 20999), "172.18.0.2", 20000),
        publish(Protocol::Tcp, "::", (80, 80), "fd00::2", 8080),
        publish(Protocol::Sctp, "::1", (9, 9), "fd00::2", 9),
        publish(Protocol::Tcp, "2001:db8::1", (20000, 20999), "fd00::2", 20000),
        open(Protocol::Tcp, "172.18.0.2", 80, 90),
        open(Protocol::Udp, "fd00::2", 53, 53),
    ])
}

/// What there is of a network without a bridge.
fn subnets() -> BTreeSet<Entry> {
    let of = |subnet: &str| Zone::Subnet(subnet.parse().unwrap());
    let family = Family::V4;
    BTreeSet::from([
        Entry::Inner { zone: of("10.50.0.0/16") },
        Entry::Inner { zone: of("fd00:50::/64") },
        Entry::Direct { subnet: "10.50.0.0/16".parse().unwrap() },
        Entry::Direct { subnet: "fd00:50::/64".parse().unwrap() },
        Entry::Enter { zone: of("10.50.0.0/16"), family, rule: Inbound::Closed },
        Entry::Enter { zone: of("fd00:50::/64"), family: Family::V6, rule: Inbound::Opened },
        Entry::Internal { zone: of("10.51.0.0/16") },
        Entry::Internal { zone: of("fd00:51::/64") },
        Entry::Masquerade { zone: of("10.50.0.0/16"), family },
        Entry::Masquerade { zone: of("fd00:50::/64"), family: Family::V6 },
        Entry::Tunnel { port: 4789, vni: 4097 },
        Entry::Member { vtep: "192.0.2.2".parse().unwrap(), port: 4789, vni: 4097 },
        Entry::Member { vtep: "2001:db8::2".parse().unwrap(), port: 4789, vni: 4097 },
    ])
}

/// What the fast way has of it.
fn paths() -> BTreeSet<Entry> {
    let address = |text: &str| text.parse().unwrap();
    let remote = |subnet: &str, first, last, link, via| Entry::Remote {
        subnet: subnet.parse().unwrap(),
        first: address(first),
        last: address(last),
        link: name(link),
        via: address(via),
    };
    let way = |subnet: &str, link| Entry::Way { subnet: subnet.parse().unwrap(), link: name(link), mtu: 1450 };
    BTreeSet::from([
        Entry::Local { address: address("10.50.0.66"), link: name("rsv-0123456789") },
        Entry::Local { address: address("fd00:50::1:2"), link: name("rsv-0123456789") },
        way("10.50.0.0/16", "rsx-4097"),
        way("10.50.0.0/16", "eth0"),
        way("fd00:50::/64", "rsx-4097"),
        remote("10.50.0.0/16", "10.50.0.128", "10.50.0.191", "rsx-4097", "10.50.0.128"),
        remote("10.50.0.0/16", "10.50.3.0", "10.50.3.62", "eth0", "192.0.2.2"),
        remote("fd00:50::/64", "fd00:50::2:0", "fd00:50::2:ffff", "rsx-4097", "fd00:50::2:0"),
    ])
}

fn all() -> BTreeSet<Entry> {
    [one_of_each(), subnets(), paths()].into_iter().flatten().collect()
}

#[tokio::test]
async fn nft_reads_the_table_as_it_is_meant() {
    let firewall = fresh();
    assert!(firewall.converge(&all()).await.unwrap() > 0);
    insta::assert_snapshot!(run("nft list table inet rsnet"));
}

/// Links are shown by name; their numbers vary.
#[tokio::test]
async fn nft_reads_the_table_of_the_fast_way_as_it_is_meant() {
    let firewall = fresh();
    run("ip link add rsv-0123456789 type veth peer name rsx-4097; ip link add eth0 type veth peer name eth1");
    firewall.converge(&all()).await.unwrap();
    insta::assert_snapshot!(run("nft list table netdev rsnet"));
}

#[tokio::test]
async fn a_second_convergence_finds_nothing_and_sends_nothing() {
    let firewall = fresh();
    firewall.converge(&all()).await.unwrap();
    let other = Nftables::open().unwrap();
    let mut changes = other.changes();
    assert_eq!(firewall.converge(&all()).await.unwrap(), 0);
    assert_eq!(Nftables::open().unwrap().converge(&all()).await.unwrap(), 0, "a fresh process sees the same");
    assert!(tokio::time::timeout(Duration::from_millis(100), changes.recv()).await.is_err());
}

#[tokio::test]
async fn whatever_is_altered_by_hand_is_noticed_and_mended() {
    let firewall = fresh();
    firewall.converge(&all()).await.unwrap();
    let good = run("nft -s list table inet rsnet");
    let handle = |chain: &str, of: &str| {
        let listing = run(&format!("nft -a list chain inet rsnet {chain}"));
        let line = listing.lines().find(|line| line.contains(of)).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().to_owned()
    };
    let established = handle("forward", "established");
    for (harm, differences) in [
        ("flush ruleset".to_owned(), None),
        ("delete table inet rsnet".to_owned(), None),
        ("delete element inet rsnet publish4_any { tcp . 80 }".to_owned(), Some(1)),
        ("add element inet rsnet publish4_any { tcp . 81 : 172.18.0.9 . 81 }".to_owned(), Some(1)),
        (
            "delete element inet rsnet enter { ipv4 . rsb-0123456789 }; add element inet rsnet enter { ipv4 . rsb-0123456789 : accept }"
                .to_owned(),
            Some(2),
        ),
        ("add element inet rsnet open4 { 10.0.0.0/8 . tcp . 1-9 }".to_owned(), Some(1)),
        ("add element inet rsnet inner4 { 10.0.0.0/8 . 10.50.0.1 }".to_owned(), Some(1)),
        ("delete element inet rsnet enter6 { ipv6 . fd00:50::/64 }".to_owned(), Some(1)),
        (format!("delete rule inet rsnet forward handle {established}"), None),
        ("flush chain inet rsnet forward".to_owned(), None),
        ("insert rule inet rsnet forward accept".to_owned(), None),
        ("add chain inet rsnet mine".to_owned(), None),
        ("add chain inet rsnet forward { policy drop; }".to_owned(), None),
        ("add set inet rsnet mine { type ifname; }".to_owned(), None),
    ] {
        run(&format!("nft '{harm}'"));
        let mended = firewall.converge(&all()).await.unwrap();
        assert!(differences.map_or(mended > 0, |wanted| wanted == mended), "{harm}: {mended}");
        assert_eq!(run("nft -s list table inet rsnet"), good, "{harm}");
        assert_eq!(firewall.converge(&all()).await.unwrap(), 0, "{harm}");
    }
}

#[tokio::test]
async fn a_change_is_applied_whole_or_not_at_all() {
    let firewall = fresh();
    firewall.converge(&BTreeSet::new()).await.unwrap();
    let before = run("nft list table inet rsnet");
    let good = publish(Protocol::Tcp, "0.0.0.0", (80, 80), "172.18.0.2", 80);
    let absent = publish(Protocol::Tcp, "0.0.0.0", (81, 81), "172.18.0.2", 80);
    let error = firewall.apply(&[absent], std::slice::from_ref(&good)).await.unwrap_err();
    assert_eq!(error.to_string(), "remove elements from set inet rsnet publish4_any: No such file or directory (os error 2)");
    let mixed = publish(Protocol::Tcp, "0.0.0.0", (81, 81), "fd00::2", 80);
    assert!(firewall.apply(&[], &[good.clone(), mixed]).await.is_err());
    assert_eq!(run("nft list table inet rsnet"), before);
    firewall.apply(&[], std::slice::from_ref(&good)).await.unwrap();
    assert_eq!(firewall.converge(&BTreeSet::from([good.clone()])).await.unwrap(), 0);
    firewall.apply(&[good], &[]).await.unwrap();
    assert_eq!(run("nft list table inet rsnet"), before);
}

#[tokio::test]
async fn ten_thousand_published_ports_are_one_batch_and_one_more_costs_microseconds() {
    let firewall = fresh();
    let all: BTreeSet<_> = (0..10_000).map(|n| publish(Protocol::Tcp, "0.0.0.0", (n + 1, n + 1), "172.18.0.2", 80)).collect();
    let start = std::time::Instant::now();
    firewall.converge(&all).await.unwrap();
    println!("built in {:?}", start.elapsed());
    let start = std::time::Instant::now();
    assert_eq!(firewall.converge(&all).await.unwrap(), 0);
    println!("compared in {:?}", start.elapsed());
    let mut times = Vec::new();
    for n in 0..200 {
        let one = [publish(Protocol::Tcp, "0.0.0.0", (60_000, 60_000), &format!("172.19.0.{}", n / 2), 80)];
        let start = std::time::Instant::now();
        let (remove, add) = if n % 2 == 0 { (&[][..], &one[..]) } else { (&one[..], &[][..]) };
        firewall.apply(remove, add).await.unwrap();
        times.push(start.elapsed());
    }
    times.sort();
    println!("one element: median {:?}, p99 {:?}", times[100], times[198]);
    assert!(times[100] < Duration::from_millis(1), "{:?}", times[100]);
    assert_eq!(firewall.converge(&BTreeSet::new()).await.unwrap(), 10_000);
}

#[tokio::test]
async fn what_others_change_wakes_and_what_we_change_does_not() {
    let firewall = fresh();
    let mut changes = firewall.changes();
    firewall.converge(&one_of_each()).await.unwrap();
    run("nft add table inet other; nft add table ip filter; nft add chain ip filter DOCKER; nft add rule ip filter DOCKER counter");
    assert!(tokio::time::timeout(Duration::from_millis(200), changes.recv()).await.is_err(), "none of this concerns us");
    for theirs in [
        "nft flush ruleset",
        "nft add table ip filter; nft add chain ip filter DOCKER-USER",
        "nft add rule ip filter DOCKER-USER counter return",
        "nft flush chain ip filter DOCKER-USER",
        "nft add chain ip filter FORWARD",
        "nft add chain ip filter DOCKER-BRIDGE",
        "nft add table ip6 docker-bridges; nft add chain ip6 docker-bridges filter-forward-in__bluebird",
    ] {
        run(theirs);
        tokio::time::timeout(Duration::from_secs(2), changes.recv()).await.expect(theirs).expect(theirs);
        firewall.converge(&one_of_each()).await.unwrap();
        while changes.try_recv().is_ok() {}
    }
    run("nft add rule ip6 docker-bridges filter-forward-in__bluebird tcp dport 80 accept");
    assert!(tokio::time::timeout(Duration::from_millis(200), changes.recv()).await.is_err(), "a port that Docker publishes");
    run("nft add element inet rsnet segments { eth0 }");
    tokio::time::timeout(Duration::from_secs(2), changes.recv()).await.expect("an element").expect("an element");
}

const DOCKER_CHAINS: &str = "
    for iptables in iptables-nft ip6tables-nft; do
        $iptables -P FORWARD DROP
        $iptables -N DOCKER-USER
        $iptables -A DOCKER-USER -s 10.9.8.7 -j DROP 2>/dev/null || $iptables -A DOCKER-USER -s fd09::7 -j DROP
        $iptables -A DOCKER-USER -j RETURN
        $iptables -A FORWARD -j DOCKER-USER
        $iptables -A FORWARD -j RETURN
    done";

const OURS: &str = "-A FORWARD -i rsb-+ -m comment --comment \"rsnet: decided in table inet rsnet\" -j ACCEPT
-A FORWARD -o rsb-+ -m comment --comment \"rsnet: decided in table inet rsnet\" -j ACCEPT
";

#[tokio::test]
async fn forward_gets_two_rules_that_iptables_can_read_behind_the_administrators() {
    let firewall = fresh();
    run(DOCKER_CHAINS);
    let user = ["iptables-nft", "ip6tables-nft"].map(|iptables| run(&format!("{iptables} -S DOCKER-USER")));
    firewall.converge(&one_of_each()).await.unwrap();
    let expected = |behind: &str| format!("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n{OURS}{behind}");
    for iptables in ["iptables-nft", "ip6tables-nft"] {
        let forward = || run(&format!("{iptables} -S FORWARD"));
        assert_eq!(forward(), expected("-A FORWARD -j RETURN\n"));
        // Docker's own way to ask and to change still works, and an engine that takes its jump out and in changes nothing of ours.
        run(&format!("{iptables} -C FORWARD -j DOCKER-USER; {iptables} -D FORWARD -j DOCKER-USER; {iptables} -I FORWARD -j DOCKER-USER"));
        assert_eq!(forward(), expected("-A FORWARD -j RETURN\n"));
    }
    assert_eq!(firewall.converge(&one_of_each()).await.unwrap(), 0);
    assert_eq!(["iptables-nft", "ip6tables-nft"].map(|iptables| run(&format!("{iptables} -S DOCKER-USER"))), user);
    run("iptables-nft -D FORWARD 2; iptables-nft -D FORWARD 2");
    assert_eq!(firewall.converge(&one_of_each()).await.unwrap(), 2);
    // In front of the jump they would pass by the administrator's rules.
    run("ip6tables-nft -A FORWARD -s fd08::/64 -j DOCKER-USER");
    assert_eq!(firewall.converge(&one_of_each()).await.unwrap(), 4);
    assert!(run("ip6tables-nft -S FORWARD").ends_with(OURS), "{}", run("ip6tables-nft -S FORWARD"));
    assert_eq!(firewall.converge(&one_of_each()).await.unwrap(), 0);
}

#[tokio::test]
async fn a_segment_with_a_name_of_the_users_passes_forward_by_itself() {
    let firewall = fresh();
    run(DOCKER_CHAINS);
    let mine = Entry::Segment { link: name("mine0") };
    firewall.converge(&BTreeSet::new()).await.unwrap();
    firewall.apply(&[], std::slice::from_ref(&mine)).await.unwrap();
    let rules = run("iptables-nft -S FORWARD");
    assert!(rules.contains("-i mine0 -m comment") && rules.contains("-o mine0 -m comment"), "{rules}");
    assert_eq!(firewall.converge(&BTreeSet::from([mine.clone()])).await.unwrap(), 0);
    firewall.apply(&[mine], &[]).await.unwrap();
    assert!(!run("iptables-nft -S FORWARD").contains("mine0"));
    assert_eq!(firewall.converge(&BTreeSet::new()).await.unwrap(), 0);
}

#[tokio::test]
async fn routed_ports_and_tunnels_pass_forward_only_while_there_are_networks_of_them() {
    let firewall = fresh();
    run(DOCKER_CHAINS);
    run("iptables-legacy -N DOCKER-USER; ip6tables-legacy -P FORWARD DROP");
    let binaries = ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"];
    let passes = || {
        let rules = binaries.map(|iptables| run(&format!("{iptables} -S FORWARD 2>&1")));
        let has = |link: &str| rules.each_ref().map(|r| r.contains(&format!("-i {link}")) && r.contains(&format!("-o {link}")));
        [has("rsb-+"), has("rsv-+"), has("rsx-+")]
    };
    let only_bridges = [[true; 4], [false; 4], [false; 4]];
    firewall.converge(&one_of_each()).await.unwrap();
    assert_eq!(passes(), only_bridges);
    let network: Vec<_> = subnets().into_iter().collect();
    let all = || one_of_each().union(&subnets()).cloned().collect();
    firewall.apply(&[], &network).await.unwrap();
    assert_eq!(passes(), [[true; 4]; 3]);
    assert_eq!(firewall.converge(&all()).await.unwrap(), 0);
    firewall.apply(&network[1..], &[]).await.unwrap();
    assert_eq!(passes(), [[true; 4]; 3], "one is left");
    firewall.apply(&network[..1], &[]).await.unwrap();
    assert_eq!(passes(), only_bridges);
    assert_eq!(firewall.converge(&one_of_each()).await.unwrap(), 0);
    assert_eq!(firewall.converge(&all()).await.unwrap(), network.len() + 4 + 16, "each subnet is told three times");
    assert_eq!(passes(), [[true; 4]; 3]);
}

#[tokio::test]
async fn clearing_leaves_nothing_of_ours_and_all_of_theirs() {
    let firewall = fresh();
    run(DOCKER_CHAINS);
    run("nft add table inet other");
    let before = run("nft -s list ruleset");
    firewall.converge(&one_of_each()).await.unwrap();
    firewall.clear().await.unwrap();
    assert_eq!(run("nft -s list ruleset"), before);
    firewall.clear().await.unwrap();
}
