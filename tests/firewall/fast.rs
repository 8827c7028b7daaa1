//! The fast way: what takes it, what does not, and that it is gone when it must be.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use rsnet::firewall::Firewall;
use rsnet::model::{Entry, Family, Flow, Protocol, Stage, Trace};

use crate::lab::{FAMILIES, Space, at, eventually, run};
use crate::subnets::{PORT, Routed, closed, fast, net, ping, ways};

/// How many packets took it so far: to containers of this host, to the other host, and from it. None where its chains are not there.
fn taken(family: Family) -> [u64; 3] {
    let subnet = net(family, "50").replace(':', "_");
    let listing = run(&format!(
        "for way in port to-rsx-1 from-rsx-1; do nft list chain netdev rsnet $way-{subnet} 2>/dev/null || echo packets 0; done"
    ));
    let counts = listing.lines().filter_map(|line| line.split_once("packets ")?.1.split(' ').next()?.parse().ok());
    counts.collect::<Vec<u64>>().try_into().unwrap_or_else(|_| panic!("{listing}"))
}

fn all_taken() -> u64 {
    FAMILIES.into_iter().flat_map(taken).sum()
}

/// Does `what` by the long way: not one packet of it takes the other.
fn goes_long(what: &str, act: impl FnOnce()) {
    let before = all_taken();
    act();
    assert_eq!(all_taken(), before, "{what}");
}

fn said_to_ping(space: &Space, arguments: &str) -> String {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let output = space.within(|| Command::new("ping").args(["-c1", "-W0.5"]).args(&arguments).output().unwrap());
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn packets_inside_a_network_take_it_here_and_between_hosts_and_answers_too() {
    let routed = Routed::new();
    routed.install(closed()).await;
    for (f, protocol) in ways() {
        let mut before = taken(f);
        let mut grown = || {
            let now = taken(f);
            let grown = [0, 1, 2].map(|n| now[n] > before[n]);
            before = now;
            grown
        };
        assert_eq!(routed.o1.ask(protocol, at(f, "o2"), PORT), at(f, "o1"));
        assert_eq!(grown(), [true, false, false], "{f} {protocol}");
        assert_eq!(routed.o1.ask(protocol, at(f, "peer"), PORT), at(f, "o1"));
        assert_eq!(grown(), [false, true, true], "{f} {protocol}");
        assert_eq!(routed.peer.ask(protocol, at(f, "o2"), PORT), at(f, "peer"));
        assert_eq!(grown(), [false, true, true], "{f} {protocol}");
        assert!(ping(&routed.o2, at(f, "peer")));
        assert_eq!(grown(), [false, true, true], "{f} ping");
        // on its way to a container the host itself does not come in anywhere
        assert_eq!(routed.lab.host.ask(protocol, at(f, "o1"), PORT), at(f, "o home"));
        assert_eq!(grown(), [false; 3], "{f} {protocol}");
    }
}

#[tokio::test]
async fn what_needs_the_host_goes_the_long_way_and_is_answered_there() {
    let routed = Routed::new();
    routed.install(closed()).await;
    for f in FAMILIES {
        let (o2, peer) = (at(f, "o2"), at(f, "peer"));
        for to in [o2, peer] {
            assert!(ping(&routed.o1, to), "neighbours know each other");
            goes_long("its time ends here", || {
                let said = said_to_ping(&routed.o1, &format!("-t 1 {to}"));
                assert!(said.contains("exceeded"), "{said}");
            });
            goes_long("fragments", || assert!(said_to_ping(&routed.o1, &format!("-s 4000 {to}")).contains("4008 bytes from")));
        }
        goes_long("from the other host, its time ends here", || {
            let said = said_to_ping(&routed.peer, &format!("-t 1 {}", at(f, "o1")));
            assert!(said.contains("exceeded"), "{said}");
        });
        for to in ["o gateway", "o home", "host", "world"] {
            goes_long(to, || assert!(ping(&routed.o1, at(f, to)), "{to}"));
        }
    }
    let o2 = at(Family::V4, "o2");
    goes_long("options", || drop(said_to_ping(&routed.o1, &format!("-T tsonly {o2}"))));
    goes_long("broadcast", || drop(said_to_ping(&routed.o1, "-b 10.50.255.255")));
    goes_long("multicast", || drop(said_to_ping(&routed.o1, "-I eth0 224.0.0.1")));
}

/// The whole frame of an echo's answer that nobody waits for, from o1 to o2, to this station and perhaps with a VLAN's tag.
fn frame(station: &str, tag: &[u8]) -> Vec<u8> {
    let octets = |mac: &str| mac.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect::<Vec<u8>>();
    let mut header = [&[0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0][..], &[10, 50, 0, 65], &[10, 50, 0, 66]].concat();
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    header[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    let echo = [0, 0, 0xff, 0xff, 0, 0, 0, 0];
    [&octets(station)[..], &octets("02:00:00:00:00:01"), tag, &[8, 0], &header, &echo].concat()
}

fn send_frame(from: &Space, frame: &[u8]) {
    let octal: String = frame.iter().map(|byte| format!("\\{byte:03o}")).collect();
    from.run(&format!("printf '{octal}' | socat -u - INTERFACE:eth0"));
}

#[tokio::test]
async fn frames_for_others_and_frames_of_a_vlan_do_not_take_it() {
    let routed = Routed::new();
    routed.install(closed()).await;
    assert!(ping(&routed.o1, at(Family::V4, "o2")));
    run("ip link set rsv-o1 promisc on");
    let mac = run("ip -o link show rsv-o1 | sed 's/.*ether //; s/ .*//'");
    let before = all_taken();
    send_frame(&routed.o1, &frame(&mac, &[]));
    assert_eq!(all_taken(), before + 1, "the frame is sound");
    goes_long("for another station", || send_frame(&routed.o1, &frame("02:00:00:00:00:77", &[])));
    goes_long("for all", || send_frame(&routed.o1, &frame("ff:ff:ff:ff:ff:ff", &[])));
    goes_long("with a tag", || send_frame(&routed.o1, &frame(&mac, &[0x81, 0, 0, 5])));
}

#[tokio::test]
async fn what_is_larger_than_a_port_takes_is_told_so() {
    let routed = Routed::new();
    for space in [&routed.o1, &routed.o2] {
        space.run("ip link set eth0 mtu 1300");
    }
    run("ip link set rsv-o1 mtu 1300; ip link set rsv-o2 mtu 1300");
    routed.install(closed().into_iter().filter(|entry| !matches!(entry, Entry::Way { .. })).chain(fast(1300))).await;
    for (f, most) in [(Family::V4, 1300 - 28), (Family::V6, 1300 - 48)] {
        let o1 = at(f, "o1");
        let before = taken(f)[2];
        assert!(said_to_ping(&routed.peer, &format!("-M do -s {most} {o1}")).contains("bytes from"));
        assert_eq!(taken(f)[2], before + 1, "just so large");
        goes_long("one byte more", || {
            let said = said_to_ping(&routed.peer, &format!("-M do -s {} {o1}", most + 1)).to_lowercase();
            assert!(said.contains("frag needed") || said.contains("too big"), "{said}");
        });
    }
}

#[tokio::test]
async fn long_streams_pass_in_both_directions() {
    const BYTES: usize = 8 << 20;
    let routed = Routed::new();
    routed.install(closed()).await;
    for (server, client, to) in [(&routed.peer, &routed.o1, "peer"), (&routed.o1, &routed.peer, "o1"), (&routed.o2, &routed.o1, "o2")] {
        for f in FAMILIES {
            let before = all_taken();
            let listener = server.within(|| TcpListener::bind("[::]:9000").unwrap());
            let sent = std::thread::spawn(move || listener.accept().unwrap().0.write_all(&vec![7; BYTES]).unwrap());
            let mut stream = client.within(|| TcpStream::connect((at(f, to), 9000)).unwrap());
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            sent.join().unwrap();
            assert!(all.len() == BYTES && all.iter().all(|byte| *byte == 7), "{f} to {to}: {}", all.len());
            // the kernel hands on tens of kilobytes at a time
            let packets = all_taken() - before;
            assert!((100..BYTES as u64 / 1448).contains(&packets), "{f} to {to}: {packets}");
        }
    }
}

#[tokio::test]
async fn a_peer_or_a_container_that_goes_is_gone_from_it_with_the_same_change() {
    let routed = Routed::new();
    routed.install(closed()).await;
    let of = |link: &str| -> Vec<Entry> {
        let stands_on = |entry: &Entry| match entry {
            Entry::Local { link: on, .. } | Entry::Way { link: on, .. } | Entry::Remote { link: on, .. } => on.as_str() == link,
            _ => false,
        };
        closed().into_iter().filter(stands_on).collect()
    };
    for (link, to) in [("rsx-1", "peer"), ("rsv-o2", "o2")] {
        assert!(ping(&routed.o1, at(Family::V4, to)));
        routed.lab.firewall.apply(&of(link), &[]).await.unwrap();
        // the route is still there
        goes_long(to, || assert!(FAMILIES.into_iter().all(|f| ping(&routed.o1, at(f, to))), "{to}"));
        routed.lab.firewall.apply(&[], &of(link)).await.unwrap();
        let before = all_taken();
        assert!(ping(&routed.o1, at(Family::V4, to)) && all_taken() > before, "{to}");
    }
    assert_eq!(routed.lab.firewall.converge(&closed().into_iter().collect()).await.unwrap(), 0);
}

#[tokio::test]
async fn damage_is_mended_and_a_link_that_was_made_again_is_found() {
    let routed = Routed::new();
    let all: BTreeSet<Entry> = closed().into_iter().collect();
    routed.install(closed()).await;
    for harm in [
        "nft delete table netdev rsnet",
        "nft flush chain netdev rsnet plain",
        "nft delete element netdev rsnet ports4 '{ \"rsv-o1\" . 10.50.0.65 }'",
        "nft flush map netdev rsnet via6",
        "nft flush map netdev rsnet from4; nft flush chain netdev rsnet from-rsx-1-10.50.0.0/16",
        "nft add rule netdev rsnet to-rsx-1-10.50.0.0/16 drop",
        "nft delete element netdev rsnet to4 '{ 10.50.0.128/26 }'; nft add element netdev rsnet to4 '{ 10.50.0.128/25 : drop }'",
        "ip link del rsv-o2; ip link add rsv-o2 type veth peer name away; ip link set rsv-o2 up",
    ] {
        run(harm);
        assert!(routed.lab.firewall.converge(&all).await.unwrap() > 0, "{harm}");
        assert_eq!(routed.lab.firewall.converge(&all).await.unwrap(), 0, "{harm}");
    }
    assert!(run("nft list map netdev rsnet here4").contains("rsv-o2"), "by its new number");
    let hooked: String = run("nft list table netdev rsnet").lines().filter(|line| line.contains("hook ingress")).collect();
    assert!(["rsv-o1", "rsv-o2", "rsx-1"].into_iter().all(|link| hooked.contains(link)), "{hooked}");
    run("ip link del rsv-o2");
    let (gone, fewer): (BTreeSet<Entry>, BTreeSet<Entry>) = all.into_iter().partition(|entry| format!("{entry:?}").contains("rsv-o2"));
    routed.lab.firewall.apply(&Vec::from_iter(gone), &[]).await.expect("a link whose number nobody knows any more is no hindrance");
    routed.lab.firewall.converge(&fewer).await.unwrap();
    let left = run("nft list table netdev rsnet");
    assert!(!left.contains("rsv-o2") && !left.contains(at(Family::V4, "o2")), "nothing stays of a link that is gone: {left}");
}

#[tokio::test]
async fn while_rules_of_others_name_its_packets_all_pass_by_those_rules() {
    let routed = Routed::new();
    let all: BTreeSet<Entry> = closed().into_iter().collect();
    routed.install(closed()).await;
    let mut changes = routed.lab.firewall.changes();
    let (o2, peer) = (at(Family::V4, "o2"), at(Family::V4, "peer"));
    for (put, away) in [
        (
            format!(
                "nft 'add table inet mine; add chain inet mine f {{ type filter hook forward priority 0; }}; add rule inet mine f ip daddr {o2} drop'"
            ),
            "nft delete table inet mine",
        ),
        (format!("iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER; iptables -A DOCKER-USER -d {o2} -j DROP"), "iptables -F"),
    ] {
        assert!(ping(&routed.o1, o2));
        while changes.try_recv().is_ok() {}
        run(&put);
        tokio::time::timeout(Duration::from_secs(5), changes.recv()).await.unwrap();
        routed.lab.firewall.converge(&all).await.unwrap();
        goes_long("somebody else decides", || assert!(!ping(&routed.o1, o2) && ping(&routed.o1, peer)));
        // what comes meanwhile does not take it either
        let o1: Vec<Entry> = fast(1500).into_iter().take(1).collect();
        routed.lab.firewall.apply(&o1, &[]).await.unwrap();
        routed.lab.firewall.apply(&[], &o1).await.unwrap();
        goes_long("somebody else decides", || assert!(ping(&routed.o1, peer)));
        while changes.try_recv().is_ok() {}
        run(away);
        tokio::time::timeout(Duration::from_secs(5), changes.recv()).await.unwrap();
        routed.lab.firewall.converge(&all).await.unwrap();
        let before = all_taken();
        assert!(ping(&routed.o1, o2) && all_taken() > before);
    }
}

#[tokio::test]
async fn packets_that_take_it_are_followed_all_the_same() {
    let routed = Routed::new();
    routed.install(closed()).await;
    for f in FAMILIES {
        let (from, to) = (at(f, "o1").parse().unwrap(), at(f, "peer").parse().unwrap());
        let flow = Flow { from, to, port: Some((Protocol::Udp, PORT)) };
        let tracer = routed.lab.firewall.trace(&Trace { flow, source: 34567, tunnel: None }).unwrap();
        let before = taken(f);
        let (tool, host) = if f == Family::V4 { ("UDP4", at(f, "peer").to_owned()) } else { ("UDP6", format!("[{}]", at(f, "peer"))) };
        routed.o1.run(&format!("echo x | socat -t 0.3 - {tool}:{host}:{PORT},sourceport=34567"));
        let mut trails = Vec::new();
        eventually("question and answer to be seen", || {
            trails.extend(tracer.trails());
            let out = |back| trails.iter().any(|trail| trail.back == back && trail.stage == Stage::Out && trail.dropped.is_none());
            (out(false) && out(true)).then_some(())
        });
        assert!(trails.iter().any(|trail| !trail.back && trail.by.as_deref() == Some("rsv-o1")), "{trails:#?}");
        let now = taken(f);
        assert!(now[1] > before[1] && now[2] > before[2], "by the fast way");
    }
    assert!(!run("nft list tables").contains("explain"));
}
