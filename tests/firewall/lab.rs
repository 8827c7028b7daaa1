//! A host with two segments, a bridge of Docker's and an uplink, each container and the world a network namespace of its own.

use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use rsnet::firewall::nftables::Nftables;
use rsnet::model::{Entry, Family, IfName, Inbound, PortRange, Protocol, Zone};

use crate::namespace;
pub use crate::namespace::{eventually, run};

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// The first segment, and the second.
pub const A: &str = "rsb-aaaaaaaaaa";
pub const B: &str = "rsb-bbbbbbbbbb";

pub fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

pub fn publish(protocol: Protocol, host: &str, ports: (u16, u16), to: &str, to_port: u16) -> Entry {
    let (host, to) = (host.parse().unwrap(), to.parse().unwrap());
    Entry::Publish { protocol, host, ports: PortRange::new(ports.0, ports.1), to, to_port }
}

pub fn open(protocol: Protocol, to: &str, first: u16, last: u16) -> Entry {
    Entry::Open { protocol, to: to.parse().unwrap(), ports: PortRange::new(first, last) }
}

/// What every segment has: its entry, and a rule for each family.
pub fn segment(link: &str, rule: Inbound) -> Vec<Entry> {
    let enter = FAMILIES.map(|family| Entry::Enter { zone: Zone::Link(name(link)), family, rule });
    [Entry::Segment { link: name(link) }].into_iter().chain(enter).collect()
}

/// A network namespace, held open.
#[derive(Clone)]
pub struct Space(Arc<File>);

impl Space {
    pub fn of_this_thread() -> Self {
        Space(Arc::new(File::open("/proc/thread-self/ns/net").unwrap()))
    }

    pub fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run("ip link set lo up");
            Space::of_this_thread()
        };
        thread::spawn(make).join().unwrap()
    }

    /// Runs `work` in a thread inside.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        namespace::within(&self.0, work)
    }

    pub fn run(&self, command: &str) -> String {
        self.within(|| run(command))
    }

    /// Answers on a port, over TCP and UDP, with the address from which the question came.
    pub fn serve(&self, port: u16) {
        let bind = |host: &str| {
            let address: SocketAddr = format!("{host}:{port}").parse().unwrap();
            (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap())
        };
        let (tcp, udp) = self.within(|| bind("[::]"));
        thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                let peer = stream.peer_addr().unwrap().ip().to_canonical();
                let _ = stream.write_all(peer.to_string().as_bytes());
            }
        });
        thread::spawn(move || {
            let mut question = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut question) {
                let _ = udp.send_to(peer.ip().to_canonical().to_string().as_bytes(), peer);
            }
        });
    }

    /// Asks, and returns the address from which the server saw the question come. Waits five seconds for an answer.
    pub fn ask(&self, protocol: Protocol, host: &str, port: u16) -> String {
        let seen = self.within(|| question(protocol, host, port, Duration::from_secs(5)));
        seen.unwrap_or_else(|error| panic!("{protocol} {host} {port}: {error}"))
    }

    /// No answer comes in time.
    pub fn assert_no_answer(&self, protocol: Protocol, host: &str, port: u16) {
        let seen = self.within(|| question(protocol, host, port, Duration::from_millis(250)));
        assert!(seen.is_err(), "{protocol} {host} {port}: answered to {seen:?}");
    }
}

fn question(protocol: Protocol, host: &str, port: u16, patience: Duration) -> io::Result<String> {
    let host: IpAddr = host.parse().unwrap();
    let to = SocketAddr::new(host, port);
    match protocol {
        Protocol::Tcp => {
            let mut stream = TcpStream::connect_timeout(&to, patience)?;
            stream.set_read_timeout(Some(patience))?;
            io::read_to_string(&mut stream)
        }
        _ => {
            let socket = UdpSocket::bind(if host.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(patience))?;
            socket.send(b"?")?;
            let mut answer = [0; 64];
            let length = socket.recv(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
        }
    }
}

pub struct Lab {
    pub firewall: Nftables,
    pub host: Space,
    /// Beyond the uplink, 192.0.2.9 and 2001:db8::9; knows the way to the first segment.
    pub world: Space,
    /// In the first segment, .2 and .3 of 10.1.0.0/24 and fd01::/64.
    pub a1: Space,
    pub a2: Space,
    /// In the second segment, .2 of 10.2.0.0/24 and fd02::/64.
    pub b1: Space,
    /// On `docker0`, .2 of 172.17.0.0/24 and fd17::/64.
    pub docker: Space,
}

/// The address of somebody in the lab.
pub fn at(family: Family, who: &str) -> &'static str {
    match (family, who) {
        (Family::V4, "host") => "192.0.2.1",
        (Family::V6, "host") => "2001:db8::1",
        (Family::V4, "world") => "192.0.2.9",
        (Family::V6, "world") => "2001:db8::9",
        (Family::V4, "loopback") => "127.0.0.1",
        (Family::V6, "loopback") => "::1",
        (Family::V4, "any") => "0.0.0.0",
        (Family::V6, "any") => "::",
        (Family::V4, "gateway") => "10.1.0.1",
        (Family::V6, "gateway") => "fd01::1",
        (Family::V4, "a1") => "10.1.0.2",
        (Family::V6, "a1") => "fd01::2",
        (Family::V4, "a2") => "10.1.0.3",
        (Family::V6, "a2") => "fd01::3",
        (Family::V4, "b1") => "10.2.0.2",
        (Family::V6, "b1") => "fd02::2",
        (Family::V4, "docker gateway") => "172.17.0.1",
        (Family::V6, "docker gateway") => "fd17::1",
        (Family::V4, "docker") => "172.17.0.2",
        (Family::V6, "docker") => "fd17::2",
        (Family::V4, "o gateway") => "10.50.0.1",
        (Family::V6, "o gateway") => "fd00:50::1",
        (Family::V4, "o home") => "10.50.0.64",
        (Family::V6, "o home") => "fd00:50::1:0",
        (Family::V4, "o1") => "10.50.0.65",
        (Family::V6, "o1") => "fd00:50::1:1",
        (Family::V4, "o2") => "10.50.0.66",
        (Family::V6, "o2") => "fd00:50::1:2",
        (Family::V4, "peer home") => "10.50.0.128",
        (Family::V6, "peer home") => "fd00:50::2:0",
        (Family::V4, "peer") => "10.50.0.129",
        (Family::V6, "peer") => "fd00:50::2:1",
        (Family::V4, "q gateway") => "10.60.0.1",
        (Family::V6, "q gateway") => "fd00:60::1",
        (Family::V4, "q1") => "10.60.0.65",
        (Family::V6, "q1") => "fd00:60::1:1",
        _ => panic!("{who}"),
    }
}

impl Lab {
    /// The calling thread enters the host's namespace.
    pub fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let firewall = Nftables::open().unwrap();
        let [world, a1, a2, b1, docker] = [(); 5].map(|()| Space::new());
        run("ip link set lo up; sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
             sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0");
        for (bridge, v4, v6) in
            [(A, "10.1.0.1/24", "fd01::1/64"), (B, "10.2.0.1/24", "fd02::1/64"), ("docker0", "172.17.0.1/24", "fd17::1/64")]
        {
            run(&format!(
                "ip link add {bridge} type bridge; ip link set {bridge} up; ip addr add {v4} dev {bridge}
                 ip addr add {v6} dev {bridge} nodad; sysctl -qw net.ipv4.conf.{bridge}.route_localnet=1"
            ));
        }
        run(&format!("ip route add local ::1 dev {A} table local proto 195"));
        wire(&world, "wan0", None, ["192.0.2.9/24", "2001:db8::9/64"], "");
        run("ip addr add 192.0.2.1/24 dev wan0; ip addr add 2001:db8::1/64 dev wan0 nodad");
        world.run("ip route add 10.1.0.0/24 via 192.0.2.1; ip route add fd01::/64 via 2001:db8::1");
        wire(&a1, "va1", Some(A), ["10.1.0.2/24", "fd01::2/64"], "ip route add default via 10.1.0.1; ip route add default via fd01::1");
        wire(&a2, "va2", Some(A), ["10.1.0.3/24", "fd01::3/64"], "ip route add default via 10.1.0.1; ip route add default via fd01::1");
        wire(&b1, "vb1", Some(B), ["10.2.0.2/24", "fd02::2/64"], "ip route add default via 10.2.0.1; ip route add default via fd02::1");
        let docker_gateway = "ip route add default via 172.17.0.1; ip route add default via fd17::1";
        wire(&docker, "vd", Some("docker0"), ["172.17.0.2/24", "fd17::2/64"], docker_gateway);
        Lab { firewall, host: Space::of_this_thread(), world, a1, a2, b1, docker }
    }
}

/// A pair of links between this thread's namespace and `space`.
fn wire(space: &Space, host_end: &str, bridge: Option<&str>, addresses: [&str; 2], then: &str) {
    let host = nix::unistd::gettid();
    space.run(&format!("ip link add eth0 type veth peer name {host_end} netns {host}"));
    let master = bridge.map(|bridge| format!("ip link set {host_end} master {bridge}; ")).unwrap_or_default();
    run(&format!("{master}ip link set {host_end} up"));
    let [v4, v6] = addresses;
    space.run(&format!("ip link set eth0 up; ip addr add {v4} dev eth0; ip addr add {v6} dev eth0 nodad; {then}"));
}
