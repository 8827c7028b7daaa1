//! What a network of routed ports and tunnels is made of, and two hosts that have one.

use std::fs::File;

use nix::sched::setns;
use rsnet::kernel::Kernel;
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
