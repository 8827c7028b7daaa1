//! What a network of routed ports and tunnels is made of, and two hosts that have one.

use std::fs::File;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sched::{CloneFlags, setns};
use rsnet::kernel::{Kernel, Underlay, Uplink};
use rsnet::model::StaticRoute;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn tunnel() -> Link {
    Link {
        name: name("rsx-77"),
        alias: "rsnet:0123456789abcdef".into(),
        kind: LinkKind::Vxlan { vni: 77, local: ip("192.0.2.1"), port: 4789 },
        mac: Some(mac(1)),
        mtu: Some(1450),
    }
}

fn neighbour(address: &str, last: u8) -> Object {
    Object::Neighbour { link: tunnel().name, address: ip(address), mac: mac(last) }
}

fn forwarding(last: u8, vtep: &str) -> Object {
    Object::Fdb { link: tunnel().name, mac: mac(last), vtep: ip(vtep) }
}

fn by(destination: &str, link: &str, via: Option<&str>, source: Option<&str>) -> Object {
    let kind = RouteKind::Unicast { via: via.map(ip), source: source.map(ip) };
    Object::Route(Route { destination: net(destination), link: name(link), kind })
}

/// The MAC of every gateway.
fn anycast() -> Mac {
    Mac::local([9, 9, 9, 9, 9, 9])
}

fn routed(attachment: Attachment) -> Attachment {
    let AttachmentKind::Veth { peer, .. } = attachment.kind else { panic!("a pair") };
    Attachment { kind: AttachmentKind::Veth { peer, router: Some(anycast()) }, ..attachment }
}

/// One of two hosts: 10.50.0.0/16 and fd50::/64 are the network, and 10.50.N.0/26 and fd50::N:0/112 its block.
struct Side {
    kernel: Netlink,
    n: u8,
    vtep: IpAddr,
    container: PathBuf,
}

impl Side {
    fn home(&self) -> [IpAddr; 2] {
        [ip(&format!("10.50.{}.2", self.n)), ip(&format!("fd50::{}:2", self.n))]
    }

    fn blocks(&self) -> [IpNet; 2] {
        [net(&format!("10.50.{}.0/26", self.n)), net(&format!("fd50::{}:0/112", self.n))]
    }

    fn container(&self) -> [IpAddr; 2] {
        [ip(&format!("10.50.{}.5", self.n)), ip(&format!("fd50::{}:5", self.n))]
    }

    /// Of the network, with what is known of its other host.
    fn network(&self, peer: &Side, mtu: u32) -> Vec<Object> {
        let link = tunnel().name;
        let kind = LinkKind::Vxlan { vni: 77, local: self.vtep, port: 4789 };
        let forwards = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"];
        let mut objects: Vec<Object> = forwards.iter().map(|path| Object::HostSysctl { path: (*path).into(), value: "1".into() }).collect();
        objects.push(Object::Link(Link { kind, mac: Some(mac(self.n)), mtu: Some(mtu), ..tunnel() }));
        objects.extend(self.home().map(|home| Object::Address { link: link.clone(), address: home.into() }));
        objects.extend(peer.home().map(|address| Object::Neighbour { link: link.clone(), address, mac: mac(peer.n) }));
        objects.push(Object::Fdb { link: link.clone(), mac: mac(peer.n), vtep: peer.vtep });
        for (n, destination) in peer.blocks().into_iter().enumerate() {
            let kind = RouteKind::Unicast { via: Some(peer.home()[n]), source: Some(self.home()[n]) };
            objects.push(Object::Route(Route { destination, link: link.clone(), kind }));
        }
        objects
    }

    /// Of its container.
    fn endpoint(&self, mtu: u32) -> Vec<Object> {
        let inward = |destination: &str, via: Option<&str>| StaticRoute { destination: net(destination), via: via.map(ip) };
        let place = Place::Sandbox {
            path: self.container.clone(),
            name: SandboxName::Prefix("eth".into()),
            addresses: vec![IpNet::new(self.container()[0], 16).unwrap(), IpNet::new(self.container()[1], 64).unwrap()],
            sysctls: vec![],
            gateways: vec![],
            routes: vec![
                inward("10.50.0.1/32", None),
                inward("10.50.0.0/17", Some("10.50.0.1")),
                inward("10.50.128.0/17", Some("10.50.0.1")),
                inward("fd50::1/128", None),
                inward("fd50::/65", Some("fd50::1")),
                inward("fd50::8000:0:0:0/65", Some("fd50::1")),
            ],
        };
        let attachment = Attachment { mac: mac(100 + self.n), mtu: Some(mtu), place, ..routed(here("cc")) };
        let link = attachment.host.clone();
        let mut objects = vec![Object::Attachment(attachment)];
        objects.extend(["10.50.0.1/32", "fd50::1/128"].map(|gateway| Object::Address { link: link.clone(), address: net(gateway) }));
        for (address, home) in self.container().into_iter().zip(self.home()) {
            let kind = RouteKind::Unicast { via: None, source: Some(home) };
            objects.push(Object::Route(Route { destination: address.into(), link: link.clone(), kind }));
        }
        objects
    }
}

/// The second host, whose namespace is mounted at the path.
fn neighbour_host(host: &Host) -> (Netlink, PathBuf) {
    let path = host.sandbox("second");
    let home = File::open("/proc/thread-self/ns/net").unwrap();
    setns(File::open(&path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
    let kernel = Netlink::new(NetlinkConfig::default()).unwrap();
    setns(home, CloneFlags::CLONE_NEWNET).unwrap();
    (kernel, path)
}

async fn joined_over(vteps: [&str; 2], length: u8, mtu: u32) {
    let host = Host::new();
    let (kernel, second) = neighbour_host(&host);
    run(&format!("ip link add eth0 type veth peer name eth0 netns {}", second.display()));
    run(&format!("ip addr add {}/{length} dev eth0 nodad; ip link set eth0 up", vteps[0]));
    run(&inside(&second, &format!("ip addr add {}/{length} dev eth0 nodad", vteps[1])));
    run(&inside(&second, "ip link set eth0 up"));
    let (one, two) = (host.sandbox("one"), host.sandbox("two"));
    let a = Side { kernel: host.kernel, n: 1, vtep: ip(vteps[0]), container: one };
    let b = Side { kernel, n: 2, vtep: ip(vteps[1]), container: two };
    for (side, peer) in [(&a, &b), (&b, &a)] {
        let objects: Vec<Object> = side.network(peer, mtu).into_iter().chain(side.endpoint(mtu)).collect();
        side.kernel.put_all(&objects).await.unwrap();
        let seen = side.kernel.observe(&objects).await.unwrap();
        for wanted in &objects {
            let seen = seen.iter().find(|seen| seen.key() == wanted.key());
            assert!(seen.is_some_and(|seen| wanted.is_met_by(seen)), "{wanted:?}: {seen:?}");
        }
        assert_eq!(seen.len(), objects.len(), "{seen:#?}");
    }
    for n in [0, 1] {
        let full = mtu - [28, 48][n];
        let ping = |to: IpAddr| format!("ping -c 2 -i 0.01 -W 2 -M do -s {full} {to}");
        run(&inside(&a.container, &ping(b.container()[n])));
        run(&inside(&b.container, &ping(a.container()[n])));
        run(&ping(b.container()[n]));
        run(&ping(a.container()[n]));
        run(&inside(&a.container, &ping(b.home()[n])));
        run(&inside(&a.container, &ping(ip(["10.50.0.1", "fd50::1"][n]))));
    }
}

#[tokio::test]
async fn containers_of_two_hosts_reach_each_other_over_ipv4() {
    joined_over(["192.0.2.1", "192.0.2.2"], 24, 1450).await;
}

#[tokio::test]
async fn containers_of_two_hosts_reach_each_other_over_ipv6() {
    joined_over(["2001:db8::1", "2001:db8::2"], 64, 1430).await;
}

fn shown(command: &str) -> Value {
    json(command)[0].clone()
}

/// An uplink with the outer addresses of the tunnel.
fn underlay() {
    uplink();
    run("ip addr add 192.0.2.1/24 dev uplink; ip addr add 192.0.2.9/24 dev uplink; ip addr add 2001:db8::1/64 dev uplink nodad");
}

#[tokio::test]
async fn a_tunnel_is_made_as_asked_and_made_once() {
    let host = Host::new();
    underlay();
    for local in ["192.0.2.1", "2001:db8::1"] {
        let kind = LinkKind::Vxlan { vni: 16_777_215, local: ip(local), port: 4790 };
        let wanted = Object::Link(Link { kind, ..tunnel() });
        host.put(&wanted).await;
        let link = shown("ip -j -d link show rsx-77");
        let data = &link["linkinfo"]["info_data"];
        assert_eq!((&data["id"], &data["port"], &data["learning"]), (&16_777_215.into(), &4790.into(), &false.into()), "{link}");
        assert_eq!(data[if local.contains(':') { "local6" } else { "local" }], local, "{link}");
        assert!(data.get("group").is_none() && data.get("remote").is_none(), "{link}");
        assert_eq!((&link["address"], &link["mtu"]), (&mac(1).to_string().into(), &1450.into()));
        assert_eq!(link["ifalias"], "rsnet:0123456789abcdef");
        assert!(is_up(&link));
        host.put_again(&wanted).await;
        assert_eq!(host.observed(&wanted).await, Some(wanted));
    }
    assert_eq!(shown("ip -j addr show rsx-77")["addr_info"], serde_json::json!([]), "it has nothing to say by itself");
    assert_eq!(run("cat /proc/sys/net/ipv6/conf/rsx-77/accept_ra /proc/sys/net/ipv6/conf/rsx-77/disable_ipv6"), "0\n0\n");
    host.kernel.delete(&Key::Link(tunnel().name)).await.unwrap();
    assert!(!run("ip -o link").contains("rsx-77"));
}

#[tokio::test]
async fn a_tunnel_is_altered_in_place_or_made_anew() {
    let host = Host::new();
    underlay();
    host.put(&Object::Link(tunnel())).await;
    let index = || shown("ip -j link show rsx-77")["ifindex"].clone();
    let first = index();
    run("ip link set rsx-77 down");
    let wanted = Object::Link(Link { mac: Some(mac(2)), mtu: Some(1300), ..tunnel() });
    assert!(!wanted.is_met_by(&host.observed(&wanted).await.unwrap()));
    host.put(&wanted).await;
    assert_eq!((host.observed(&wanted).await, index()), (Some(wanted), first));
    for (vni, local, port) in [(78, "192.0.2.1", 4789), (78, "192.0.2.9", 4789), (78, "192.0.2.9", 4790), (78, "2001:db8::1", 4790)] {
        let wanted = Object::Link(Link { kind: LinkKind::Vxlan { vni, local: ip(local), port }, ..tunnel() });
        assert!(!wanted.is_met_by(&host.observed(&wanted).await.unwrap()));
        host.put(&wanted).await;
        assert_eq!(host.observed(&wanted).await, Some(wanted));
    }
}

#[tokio::test]
async fn a_tunnel_that_somebody_had_learn_is_made_anew() {
    let host = Host::new();
    underlay();
    let mut changes = host.kernel.changes();
    let wanted = Object::Link(tunnel());
    host.put(&wanted).await;
    await_change(&mut changes, |change| *change == Change::Now(Box::new(wanted.clone()))).await;
    run("ip link set rsx-77 type vxlan learning");
    await_change(&mut changes, |change| matches!(change, Change::Now(seen) if !wanted.is_met_by(seen))).await;
    host.put(&wanted).await;
    assert_eq!(shown("ip -j -d link show rsx-77")["linkinfo"]["info_data"]["learning"], false);
    assert_eq!(host.observed(&wanted).await, Some(wanted));
}

#[tokio::test]
async fn a_taken_number_or_udp_port_is_named_with_who_has_it() {
    let host = Host::new();
    underlay();
    run("ip link add theirs type vxlan id 77 dstport 4789 local 192.0.2.1");
    let error = host.kernel.put(&Object::Link(tunnel())).await.unwrap_err();
    assert_eq!(error.cause.kind(), std::io::ErrorKind::AlreadyExists);
    assert!(error.to_string().contains("VNI 77 on UDP port 4789 is taken by the VXLAN device theirs"), "{error}");
    let elsewhere = host.sandbox("s");
    run(&format!("ip link set theirs netns {}", elsewhere.display()));
    let error = host.kernel.put(&Object::Link(tunnel())).await.unwrap_err();
    assert!(error.to_string().contains("in another network namespace"), "{error}");
    run(&inside(&elsewhere, "ip link del theirs"));

    let socket = std::net::UdpSocket::bind("0.0.0.0:4789").unwrap();
    let error = host.kernel.put(&Object::Link(tunnel())).await.unwrap_err();
    assert_eq!(error.cause.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&format!("(pid {})", std::process::id())), "{error}");
    assert!(!Object::Link(tunnel()).is_met_by(&host.observed(&Object::Link(tunnel())).await.unwrap()));
    drop(socket);
    host.put(&Object::Link(tunnel())).await;
    assert_eq!(host.observed(&Object::Link(tunnel())).await, Some(Object::Link(tunnel())));
}

#[tokio::test]
async fn a_tunnel_shares_its_udp_port_with_others_that_are_not_ours() {
    let host = Host::new();
    underlay();
    run("ip link add theirs type vxlan id 4097 dstport 4789 nolearning; ip link set theirs up");
    host.put(&Object::Link(tunnel())).await;
    assert_eq!(host.kernel.surroundings().await.unwrap().vnis.into_iter().collect::<Vec<_>>(), [4097], "77 is ours");
    host.kernel.delete(&Key::Link(name("theirs"))).await.unwrap_err();
}

#[tokio::test]
async fn neighbours_come_are_replaced_and_go() {
    let host = Host::new();
    underlay();
    host.put(&Object::Link(tunnel())).await;
    run("ip neigh add 192.0.2.7 lladdr 02:00:00:00:00:07 dev uplink nud permanent");
    run("ip neigh add 10.50.9.9 lladdr 02:00:00:00:00:07 dev rsx-77 nud reachable");
    for address in ["10.50.2.2", "fd50::2:2"] {
        let (first, second) = (neighbour(address, 2), neighbour(address, 3));
        host.put(&first).await;
        host.put_again(&first).await;
        assert_eq!(host.observed(&first).await.as_ref(), Some(&first));
        host.put(&second).await;
        let entry = shown(&format!("ip -j neigh show {address}"));
        assert_eq!((&entry["dev"], &entry["lladdr"]), (&"rsx-77".into(), &mac(3).to_string().into()), "{entry}");
        assert_eq!(entry["state"], serde_json::json!(["PERMANENT"]));
        assert_eq!(host.observed(&first).await.as_ref(), Some(&second));
        host.kernel.delete(&first.key()).await.unwrap();
        host.kernel.delete(&first.key()).await.unwrap();
        assert_eq!(host.observed(&first).await, None);
    }
    let seen = host.kernel.observe(&[]).await.unwrap();
    assert_eq!(seen, [Object::Link(tunnel())], "neither what ages nor what is on the links of others");
    host.kernel.delete(&Key::Neighbour(name("rsx-78"), ip("10.50.2.2"))).await.unwrap();
}

#[tokio::test]
async fn neighbours_on_a_routed_port_are_seen_where_they_are_wanted() {
    let host = Host::new();
    host.put(&Object::Attachment(routed(here("aa")))).await;
    let wanted = Object::Neighbour { link: name("rsv-aa"), address: ip("fd50::1:5"), mac: mac(7) };
    host.put(&wanted).await;
    assert_eq!(host.observed(&wanted).await.as_ref(), Some(&wanted));
}

#[tokio::test]
async fn forwarding_entries_are_replaced_and_never_added() {
    let host = Host::new();
    underlay();
    host.put(&Object::Link(tunnel())).await;
    let entries = || {
        let entries = json("bridge -j fdb show dev rsx-77");
        entries.as_array().unwrap().iter().map(|e| format!("{} {} {}", e["mac"], e["dst"], e["state"])).collect::<Vec<_>>()
    };
    let line = |vtep: &str| vec![format!("{:?} {vtep:?} \"permanent\"", mac(2).to_string())];
    let first = forwarding(2, "192.0.2.2");
    host.put(&first).await;
    host.put_again(&first).await;
    assert_eq!(entries(), line("192.0.2.2"));
    for damage in [
        "bridge fdb replace MAC dev rsx-77 dst 192.0.2.66 self permanent",
        "bridge fdb replace MAC dev rsx-77 dst 192.0.2.2 self dynamic",
        "bridge fdb del MAC dev rsx-77 self",
    ] {
        run(&damage.replace("MAC", &mac(2).to_string()));
        assert_ne!(host.observed(&first).await.as_ref(), Some(&first), "after {damage}");
        host.put(&first).await;
        assert_eq!((entries(), host.observed(&first).await.as_ref()), (line("192.0.2.2"), Some(&first)), "after {damage}");
    }
    run("bridge fdb append MAC dev rsx-77 dst 192.0.2.66 self permanent".replace("MAC", &mac(2).to_string()).as_str());
    assert_eq!(entries(), line("192.0.2.2"), "the kernel keeps one destination for a MAC");
    host.put(&forwarding(2, "192.0.2.3")).await;
    assert_eq!(entries(), line("192.0.2.3"));
    host.kernel.delete(&first.key()).await.unwrap();
    host.kernel.delete(&first.key()).await.unwrap();
    assert_eq!(entries(), [""; 0]);
    let over_ipv6 = forwarding(2, "2001:db8::2");
    host.kernel.delete(&Key::Link(tunnel().name)).await.unwrap();
    host.put(&Object::Link(Link { kind: LinkKind::Vxlan { vni: 77, local: ip("2001:db8::1"), port: 4789 }, ..tunnel() })).await;
    host.put(&over_ipv6).await;
    assert_eq!(host.observed(&over_ipv6).await, Some(over_ipv6));
}

#[tokio::test]
async fn rows_that_somebody_alters_or_deletes_are_news() {
    let host = Host::new();
    underlay();
    host.put(&Object::Link(tunnel())).await;
    let mut changes = host.kernel.changes();
    let rows = [neighbour("10.50.2.2", 2), neighbour("fd50::2:2", 2), forwarding(2, "192.0.2.2")];
    let mac_ = mac(2);
    let damage = [
        ("ip neigh replace 10.50.2.2 lladdr 02:00:00:00:00:07 dev rsx-77 nud permanent".to_owned(), "ip neigh del 10.50.2.2 dev rsx-77"),
        ("ip neigh replace fd50::2:2 lladdr 02:00:00:00:00:07 dev rsx-77 nud permanent".to_owned(), "ip neigh del fd50::2:2 dev rsx-77"),
        (format!("bridge fdb replace {mac_} dev rsx-77 dst 192.0.2.66 self permanent"), "bridge fdb del MAC dev rsx-77 self"),
    ];
    for (row, (altered, deleted)) in rows.iter().zip(damage) {
        host.put(row).await;
        await_change(&mut changes, |change| *change == Change::Now(Box::new(row.clone()))).await;
        run(&altered);
        await_change(&mut changes, |change| matches!(change, Change::Now(seen) if seen.key() == row.key() && **seen != *row)).await;
        run(&deleted.replace("MAC", &mac_.to_string()));
        await_change(&mut changes, |change| *change == Change::Gone(row.key())).await;
    }
    host.put(&rows[0]).await;
    await_change(&mut changes, |change| *change == Change::Now(Box::new(rows[0].clone()))).await;
    run("ip neigh change 10.50.2.2 dev rsx-77 nud stale");
    await_change(&mut changes, |change| *change == Change::Gone(rows[0].key())).await;
}

#[tokio::test]
async fn rows_that_were_there_before_the_process_are_news_when_they_go() {
    let host = Host::new();
    underlay();
    host.put(&Object::Link(tunnel())).await;
    host.put(&forwarding(2, "192.0.2.2")).await;
    let fresh = Netlink::new(NetlinkConfig::default()).unwrap();
    let mut changes = fresh.changes();
    run(&format!("bridge fdb del {} dev rsx-77 self", mac(2)));
    await_change(&mut changes, |change| *change == Change::Gone(forwarding(2, "192.0.2.2").key())).await;
}

#[tokio::test]
async fn a_route_of_ours_is_replaced_and_may_stand_on_any_link() {
    let host = Host::new();
    underlay();
    host.put(&Object::Link(tunnel())).await;
    for (home, other, block, far, farther, near) in [
        ("10.50.1.2/32", "10.50.1.3/32", "10.50.2.0/26", "10.50.2.2", "10.50.2.3", "192.0.2.2"),
        ("fd50::1:2/128", "fd50::1:3/128", "fd50::2:0/112", "fd50::2:2", "fd50::2:3", "2001:db8::2"),
    ] {
        for address in [home, other] {
            host.put(&Object::Address { link: tunnel().name, address: net(address) }).await;
        }
        let (home, other) = (home.split('/').next(), other.split('/').next());
        let wanted = [
            by(block, "rsx-77", Some(far), home),
            by(block, "rsx-77", Some(far), other),
            by(block, "rsx-77", Some(farther), other),
            by(block, "uplink", Some(near), home),
            by(block, "uplink", None, None),
            by(block, "rsx-77", Some(far), home),
        ];
        for route in wanted {
            host.put(&route).await;
            host.put_again(&route).await;
            assert_eq!(host.observed(&route).await.as_ref(), Some(&route));
            let family = if block.contains(':') { "-6" } else { "-4" };
            let all = json(&format!("ip -j {family} route show {block}"));
            assert_eq!(all.as_array().map(Vec::len), Some(1), "{route:?}: {all}");
            let Object::Route(Route { link, kind: RouteKind::Unicast { via, source }, .. }) = &route else { panic!() };
            assert_eq!(all[0]["dev"], link.as_str());
            assert_eq!(all[0]["gateway"].as_str(), via.map(|ip| ip.to_string()).as_deref(), "{all}");
            assert_eq!(all[0]["prefsrc"].as_str(), source.map(|ip| ip.to_string()).as_deref(), "{all}");
        }
        let on_theirs = by(block, "uplink", Some(near), home);
        host.put(&on_theirs).await;
        host.kernel.delete(&on_theirs.key()).await.unwrap();
        assert_eq!(host.observed(&on_theirs).await, None);
    }
}

#[tokio::test]
async fn a_route_by_a_next_hop_does_not_join_or_replace_another_owner_s() {
    let host = Host::new();
    underlay();
    host.put(&Object::Link(tunnel())).await;
    run("ip route add 10.50.2.0/26 via 192.0.2.2; ip -6 route add fd50::2:0/112 via 2001:db8::2");
    let before = fingerprint();
    for (block, far) in [("10.50.2.0/26", "10.50.3.2"), ("fd50::2:0/112", "fd50::3:2")] {
        let route = by(block, "rsx-77", Some(far), None);
        let error = host.kernel.put(&route).await.unwrap_err();
        assert_eq!(error.cause.kind(), std::io::ErrorKind::AlreadyExists, "{error}");
        assert!(error.to_string().contains(&format!("somebody else's route to {block}")), "{error}");
        host.kernel.delete(&route.key()).await.unwrap();
        assert_eq!(fingerprint(), before);
    }
    let error = host.kernel.put(&by("fd50::3:0/112", "rsx-77", Some("fd50::2:2"), None)).await.unwrap_err().to_string();
    assert!(error.contains("somebody else's route leads to fd50::2:2 by another link"), "{error}");
}

#[tokio::test]
async fn a_peer_that_was_on_the_segment_is_reached_by_the_tunnel_whichever_block_comes_first() {
    let host = Host::new();
    underlay();
    host.put(&Object::Link(tunnel())).await;
    for blocks in [["fd50::2:0/112", "fd50::3:0/112"], ["fd50::3:0/112", "fd50::2:0/112"]] {
        for block in blocks {
            host.put(&by(block, "uplink", Some("2001:db8::2"), None)).await;
        }
        for block in blocks {
            host.put(&by(block, "rsx-77", Some("fd50::2:2"), None)).await;
        }
        let shown = json("ip -6 -j route show proto 195");
        let lines: Vec<String> = shown.as_array().unwrap().iter().map(|r| format!("{} {}", r["dst"], r["dev"])).collect();
        assert_eq!(lines, ["\"fd50::2:0/112\" \"rsx-77\"", "\"fd50::3:0/112\" \"rsx-77\""]);
    }
}

/// Somebody asks for the way all the time.
#[tokio::test]
async fn between_the_segment_and_the_tunnel_there_is_no_moment_without_a_way() {
    let host = Host::new();
    underlay();
    host.put(&Object::Link(tunnel())).await;
    run("ip addr add fd50::1:2/128 dev rsx-77 nodad");
    let blocks = ["fd50::2:0/112", "fd50::3:0/112"];
    let ways = [("uplink", "2001:db8::2"), ("rsx-77", "fd50::2:2")];
    let over = Arc::new(AtomicBool::new(false));
    let is_over = over.clone();
    for block in blocks {
        host.put(&by(block, ways[0].0, Some(ways[0].1), None)).await;
    }
    let asking = std::thread::spawn(move || {
        let socket = || UdpSocket::bind("[fd50::1:2]:0").unwrap();
        let ask = || ["[fd50::2:5]:9", "[fd50::3:5]:9"].iter().filter(|to| socket().connect(to).is_err()).count();
        std::iter::repeat_with(ask).take_while(|_| !is_over.load(Ordering::Relaxed)).sum::<usize>()
    });
    for (link, via) in ways.iter().cycle().skip(1).take(301) {
        for block in blocks {
            host.put(&by(block, link, Some(via), None)).await;
        }
    }
    over.store(true, Ordering::Relaxed);
    assert_eq!(asking.join().unwrap(), 0);
    assert_eq!(json("ip -6 -j route show proto 195").as_array().unwrap().len(), 2, "{}", run("ip -6 route show proto 195"));
}

#[tokio::test]
async fn a_routed_port_has_the_router_s_mac_and_its_addresses_at_once() {
    let host = Host::new();
    let mut changes = host.kernel.changes();
    let sandbox = host.sandbox("s");
    for wanted in [routed(here("aa")), routed(in_sandbox("bb", 5, &sandbox))] {
        let (link, wanted) = (wanted.host.clone(), Object::Attachment(wanted));
        host.put(&wanted).await;
        host.put_again(&wanted).await;
        let port = shown(&format!("ip -j link show {link}"));
        assert_eq!(port["address"], anycast().to_string());
        assert!(host.observed(&wanted).await.is_some_and(|seen| wanted.is_met_by(&seen)));
        let address = Object::Address { link: link.clone(), address: net("fd50::1/128") };
        host.put(&address).await;
        assert_eq!(host.observed(&address).await.as_ref(), Some(&address));
        assert_eq!(run(&format!("cat /proc/sys/net/ipv6/conf/{link}/accept_ra")), "0\n");

        run(&format!("ip link set {link} address 02:00:00:00:00:07"));
        await_change(&mut changes, |change| matches!(change, Change::Now(seen) if seen.key() == wanted.key() && !wanted.is_met_by(seen)))
            .await;
        host.put(&wanted).await;
        assert!(host.observed(&wanted).await.is_some_and(|seen| wanted.is_met_by(&seen)));
        assert_eq!(host.observed(&address).await.as_ref(), Some(&address), "mended in place");
    }
    let local = "ip -6 -j addr show dev rsv-bb scope link";
    poll("a link-local address", || shown(local)["addr_info"].as_array().is_some_and(|infos| !infos.is_empty()));
    assert!(shown(local)["addr_info"][0].get("tentative").is_none(), "{}", run(local));
}

#[tokio::test]
async fn a_lost_pair_is_made_again_with_its_routes() {
    let host = Host::new();
    let sandbox = host.sandbox("s");
    let inward = |destination: &str, via: Option<&str>| StaticRoute { destination: net(destination), via: via.map(ip) };
    let mut wanted = routed(in_sandbox("aa", 7, &sandbox));
    if let Place::Sandbox { routes, gateways, .. } = &mut wanted.place {
        *routes = vec![
            inward("10.8.0.1/32", None),
            inward("10.8.0.0/17", Some("10.8.0.1")),
            inward("fd08::1/128", None),
            inward("fd08::/65", Some("fd08::1")),
        ];
        *gateways = vec![ip("10.8.0.1"), ip("fd08::1")];
    }
    for _ in 0..2 {
        host.put(&Object::Attachment(wanted.clone())).await;
        let routes = |family: &str| run(&inside(&sandbox, &format!("ip {family} route show")));
        for line in ["10.8.0.1 dev net0 scope link", "10.8.0.0/17 via 10.8.0.1 dev net0", "default via 10.8.0.1 dev net0"] {
            assert!(routes("-4").contains(line), "{line}: {}", routes("-4"));
        }
        for line in ["fd08::1 dev net0", "fd08::/65 via fd08::1 dev net0", "default via fd08::1 dev net0"] {
            assert!(routes("-6").contains(line), "{line}: {}", routes("-6"));
        }
        run("ip link del rsv-aa");
    }
}

#[tokio::test]
async fn the_way_out_is_told_by_link_by_address_and_by_destination() {
    let host = Host::new();
    underlay();
    run("ip link set uplink mtu 1460; ip addr add 192.0.2.200/24 dev uplink valid_lft 600 preferred_lft 600");
    run(
        "ip route add 198.51.100.0/24 via 192.0.2.254 mtu 1400; ip route add unreachable 203.0.113.0/24; ip route add blackhole 10.66.0.0/16",
    );
    let way = |source: &str, mtu: u32| {
        let subnet = if source.contains(':') { net("2001:db8::/64") } else { net("192.0.2.0/24") };
        Some(Uplink { source: ip(source), link: name("uplink"), subnet, mtu })
    };
    for (wanted, expected) in [
        (Underlay::Link(name("uplink")), way("192.0.2.1", 1460)),
        (Underlay::Link(name("segment")), None),
        (Underlay::Link(name("lo")), None),
        (Underlay::Link(name("absent")), None),
        (Underlay::Address(ip("192.0.2.9")), way("192.0.2.9", 1460)),
        (Underlay::Address(ip("192.0.2.200")), way("192.0.2.200", 1460)),
        (Underlay::Address(ip("2001:db8::1")), way("2001:db8::1", 1460)),
        (Underlay::Address(ip("192.0.2.77")), None),
        (Underlay::Address(ip("127.0.0.1")), None),
        (Underlay::Toward(ip("192.0.2.5")), way("192.0.2.1", 1460)),
        (Underlay::Toward(ip("2001:db8::5")), way("2001:db8::1", 1460)),
        (Underlay::Toward(ip("198.51.100.1")), way("192.0.2.1", 1400)),
        (Underlay::Toward(ip("192.0.2.9")), None),
        (Underlay::Toward(ip("::1")), None),
        (Underlay::Toward(ip("203.0.113.1")), None),
        (Underlay::Toward(ip("10.66.0.1")), None),
        (Underlay::Toward(ip("2001:db8:1::1")), None),
        (Underlay::Toward(ip("8.8.8.8")), None),
    ] {
        assert_eq!(host.kernel.underlay(&wanted).await.unwrap(), expected, "{wanted:?}");
    }
    run("ip addr flush dev uplink scope global; ip addr add 2001:db8::2/64 dev uplink nodad");
    assert_eq!(host.kernel.underlay(&Underlay::Link(name("uplink"))).await.unwrap(), way("2001:db8::2", 1460));
}

/// The gateway's address stands on every port.
#[tokio::test]
async fn two_thousand_ports_stand_side_by_side() {
    let host = Host::new();
    for n in 0..2000_u16 {
        let attachment = routed(here(&format!("p{n}")));
        let link = attachment.host.clone();
        let address = |text: &str| Object::Address { link: link.clone(), address: net(text) };
        let to = |text: String| {
            Object::Route(Route { destination: net(&text), link: link.clone(), kind: RouteKind::Unicast { via: None, source: None } })
        };
        let (a, b) = (n / 250, n % 250 + 2);
        let objects = [
            Object::Attachment(attachment),
            address("10.50.0.1/32"),
            address("fd50::1/128"),
            to(format!("10.50.{}.{b}/32", a + 1)),
            to(format!("fd50::{}:{b}/128", a + 1)),
        ];
        for object in &objects {
            host.put(object).await;
        }
    }
    assert_eq!(host.kernel.observe(&[]).await.unwrap().len(), 5 * 2000);
    for address in ["10.50.0.1/32", "fd50::1/128"] {
        host.kernel.delete(&Key::Address(name("rsv-p1000"), net(address))).await.unwrap();
    }
    let mut left = host.kernel.observe(&[]).await.unwrap();
    left.retain(|object| object.key().link().or(object.key().stands_on()) != Some(&name("rsv-p1000")));
    assert_eq!(left.len(), 5 * 1999, "gone from one port and from no other");
}

/// As [`making_an_attachment_waits_for_no_grace_period`], of a container with the routes of a network without a bridge.
#[tokio::test]
async fn making_a_routed_port_waits_for_no_grace_period() {
    let host = Host::new();
    let (kernel, _) = neighbour_host(&host);
    let mut side = Side { kernel, n: 1, vtep: ip("192.0.2.1"), container: PathBuf::new() };
    let mut took = Vec::new();
    for n in 0..20 {
        side.container = host.sandbox(&format!("s{n}"));
        let mut objects = side.endpoint(1450);
        // without a source: that stands on the tunnel, which is not made here
        objects.retain(|object| !matches!(object, Object::Route(_)));
        let start = Instant::now();
        side.kernel.put_all(&objects).await.unwrap();
        took.push(start.elapsed());
        for object in objects.iter().rev() {
            side.kernel.delete(&object.key()).await.unwrap();
        }
    }
    // a grace period is waited for each time or never: the machine may be busy at one time and another
    assert!(took.iter().min() < Some(&Duration::from_millis(10)), "{took:?}");
}

#[tokio::test]
async fn what_belongs_to_nobody_is_unreachable_and_more_special_routes_lead_on() {
    let host = Host::new();
    let nowhere = |text: &str| Object::Route(Route { destination: net(text), link: name("lo"), kind: RouteKind::Unreachable });
    for (subnet, inside) in [("10.50.0.0/16", "10.50.0.0/26"), ("fd50::/64", "fd50::/112")] {
        let wanted = nowhere(subnet);
        for _ in 0..2 {
            host.kernel.put(&wanted).await.unwrap();
        }
        let seen = host.kernel.observe(std::slice::from_ref(&wanted)).await.unwrap();
        assert_eq!(seen, std::slice::from_ref(&wanted));
        let family = if subnet.contains(':') { "-6" } else { "-4" };
        assert!(run(&format!("ip {family} route show proto 195")).contains(&format!("unreachable {subnet}")));
        run(&format!("ip {family} route add {inside} dev lo proto 77"));
        host.kernel.delete(&wanted.key()).await.unwrap();
        assert!(run(&format!("ip {family} route show proto 195")).is_empty(), "deleted");
        assert!(run(&format!("ip {family} route show proto 77")).contains(inside), "another's stays");
    }
}
