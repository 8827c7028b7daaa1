//! Frames of tunnels: who may send them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use rsnet::firewall::Firewall;
use rsnet::model::{Entry, Family, Inbound};

use crate::lab::{A, FAMILIES, Lab, Space, at, eventually, run, segment};

const PORT: u16 = 4789;
/// Of the network, and of somebody else's on the same port.
const OURS: u32 = 77;
const FOREIGN: u32 = 99;
/// The MAC of both tunnels here.
const HERE: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The outer address of the n-th host in the world.
fn outer(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => format!("192.0.2.{n}").parse().unwrap(),
        Family::V6 => format!("2001:db8::{n}").parse().unwrap(),
    }
}

/// A host with two tunnels over this family, behind each an address of its own.
fn host(over: Family) -> Lab {
    let lab = Lab::new();
    for (n, vni) in [(1, OURS), (2, FOREIGN)] {
        let (name, local) = (format!("rsx-{vni}"), at(over, "host"));
        run(&format!("ip link add {name} address 02:00:00:00:00:01 type vxlan id {vni} local {local} dstport {PORT} nolearning"));
        run(&format!("ip addr add 10.{n}0.0.1/24 dev {name}; ip link set {name} up"));
    }
    for n in [20, 21, 22] {
        let options = if over == Family::V4 { "" } else { "nodad" };
        lab.world.run(&format!("ip addr add {} dev eth0 {options}", outer(over, n)));
    }
    lab
}

/// An Ethernet frame with a datagram from .9 to .1 of 10.N0.0.0/24 in it, in VXLAN's header.
fn frame(vni: u32, n: u8, content: &[u8]) -> Vec<u8> {
    let length = |above: usize| ((above + content.len()) as u16).to_be_bytes();
    let vxlan = [[8, 0, 0, 0], (vni << 8).to_be_bytes()].concat();
    let ethernet = [&HERE[..], &[2, 0, 0, 0, 0, 9], &[8, 0]].concat();
    let mut ip = [&[0x45, 0], &length(28)[..], &[0, 0, 0, 0, 64, 17, 0, 0], &[10, n * 10, 0, 9], &[10, n * 10, 0, 1]].concat();
    let words = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
    let folded = (words & 0xffff) + (words >> 16);
    ip[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    let udp = [&5000u16.to_be_bytes()[..], &5000u16.to_be_bytes(), &length(8), &[0, 0], content].concat();
    [vxlan, ethernet, ip, udp].concat()
}

/// The outer host sends a frame; whether it comes out of the tunnel.
fn comes_out(world: &Space, from: IpAddr, to: &str, vni: u32, content: &[u8]) -> bool {
    let n = if vni == OURS { 1 } else { 2 };
    let heard = UdpSocket::bind(format!("10.{n}0.0.1:5000")).unwrap();
    heard.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let to = SocketAddr::new(to.parse().unwrap(), PORT);
    world.within(|| UdpSocket::bind((from, 0)).unwrap().send_to(&frame(vni, n, content), to).unwrap());
    let mut received = [0; 4096];
    heard.recv(&mut received).is_ok_and(|length| received[..length] == *content)
}

async fn only_members_are_heard(over: Family) {
    let lab = host(over);
    let [peer, joiner, stranger] = [20, 21, 22].map(|n| outer(over, n));
    let to = at(over, "host");
    let sends = |from, vni, mark| comes_out(&lab.world, from, to, vni, &[mark]);
    eventually("it is the table that stops it", || sends(stranger, OURS, 1).then_some(()));
    let member = |vtep| Entry::Member { vtep, port: PORT, vni: OURS };
    let network = BTreeSet::from([Entry::Tunnel { port: PORT, vni: OURS }, member(peer)]);
    lab.firewall.converge(&network).await.unwrap();
    assert!(!sends(stranger, OURS, 2), "{over}: a stranger's frame");
    assert!(sends(peer, OURS, 3), "{over}: a member's frame");
    assert!(sends(stranger, FOREIGN, 4), "{over}: a frame of somebody else's tunnel on the same port");
    assert!(!sends(joiner, OURS, 5));
    lab.firewall.apply(&[], &[member(joiner)]).await.unwrap();
    assert!(sends(joiner, OURS, 6), "{over}: who is a member now");
    lab.firewall.apply(&[member(peer)], &[]).await.unwrap();
    assert!(!sends(peer, OURS, 7), "{over}: who is none any more");
}

#[tokio::test]
async fn frames_come_out_of_a_tunnel_only_if_a_member_sent_them_over_ipv4() {
    only_members_are_heard(Family::V4).await;
}

#[tokio::test]
async fn frames_come_out_of_a_tunnel_only_if_a_member_sent_them_over_ipv6() {
    only_members_are_heard(Family::V6).await;
}

/// Whether the kernel tracks what was sent from a UDP port.
fn is_tracked(family: Family, port: u16) -> bool {
    let family = if family == Family::V4 { "ipv4" } else { "ipv6" };
    run(&format!("conntrack -L -f {family} -p udp --sport {port} 2>/dev/null")).contains("udp")
}

/// Both ways of a tunnel have source ports of their own: neither answers the other. Over IPv6 a router's "packet too big" answers what was sent.
#[tokio::test]
async fn what_a_tunnel_carries_is_tracked_only_where_a_router_may_answer_it() {
    for over in FAMILIES {
        let lab = host(over);
        let peer = outer(over, 20);
        let member = Entry::Member { vtep: peer, port: PORT, vni: OURS };
        lab.firewall.converge(&BTreeSet::from([Entry::Tunnel { port: PORT, vni: OURS }, member])).await.unwrap();
        let send = |from: SocketAddr, to: IpAddr, vni| {
            UdpSocket::bind(from).unwrap().send_to(&frame(vni, 1, &[1]), (to, PORT)).unwrap();
        };
        let here: IpAddr = at(over, "host").parse().unwrap();
        lab.world.within(|| [(7001, OURS), (7002, FOREIGN)].into_iter().for_each(|(port, vni)| send((peer, port).into(), here, vni)));
        [(7003, OURS), (7004, FOREIGN)].into_iter().for_each(|(port, vni)| send((here, port).into(), peer, vni));
        eventually("what is none of ours is tracked", || [7002, 7004].iter().all(|port| is_tracked(over, *port)).then_some(()));
        assert!(!is_tracked(over, 7001), "{over}: what came");
        assert_eq!(is_tracked(over, 7003), over == Family::V6, "{over}: what was sent");
    }
}

/// The kernel puts fragments together before it takes a frame out: so it does before the table looks.
#[tokio::test]
async fn a_frame_in_fragments_is_no_way_past() {
    for over in FAMILIES {
        let lab = host(over);
        lab.world.run("ip link set eth0 mtu 1280");
        let sends = |mark| comes_out(&lab.world, outer(over, 22), at(over, "host"), OURS, &[&[mark][..], &[0; 3000]].concat());
        eventually("it is the table that stops it", || sends(1).then_some(()));
        lab.firewall.converge(&BTreeSet::from([Entry::Tunnel { port: PORT, vni: OURS }])).await.unwrap();
        assert!(!sends(2), "{over}");
    }
}

/// On its way out it would get the address of its host, which is a member over there.
#[tokio::test]
async fn no_container_sends_a_frame_to_another_host() {
    for over in FAMILIES {
        let lab = host(over);
        let to = SocketAddr::new(at(over, "world").parse().unwrap(), PORT);
        let heard = lab.world.within(|| UdpSocket::bind(to).unwrap());
        heard.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let arrives = |from: &Space, vni, mark: u8| {
            let frame = frame(vni, 1, &[mark]);
            from.within(|| UdpSocket::bind((over.unspecified(), 0)).unwrap().send_to(&frame, to).unwrap());
            // what was sent before may come late
            let mut received = [0; 4096];
            std::iter::from_fn(|| heard.recv(&mut received).ok().map(|length| received[..length].to_vec())).any(|seen| seen == frame)
        };
        eventually("it is the table that stops it", || arrives(&lab.a1, OURS, 1).then_some(()));
        let mut network = BTreeSet::from([Entry::Tunnel { port: PORT, vni: OURS }]);
        network.extend(segment(A, Inbound::Closed));
        lab.firewall.converge(&network).await.unwrap();
        for (name, from) in [("a container on a bridge", &lab.a1), ("one on Docker's", &lab.docker)] {
            assert!(!arrives(from, OURS, 2), "{over}: {name}");
            assert!(arrives(from, FOREIGN, 3), "{over}: {name}, a tunnel of its own");
        }
    }
}
