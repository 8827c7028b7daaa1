//! Who hears whom on a segment: everybody asks everybody, and calls to all.
//!
//! Owns: how a question is asked and what counts as heard. Must not: know modes.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::flow::Place;
use crate::lab::Host;

const ECHO: u16 = 7;
const CALLS: u16 = 7001;
/// Administratively scoped, and of the link.
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 7, 7, 7);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 0, 7);
const EVERYBODY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 255);
/// The columns: to one, to all, to a group.
const COLUMNS: [&str; 5] = ["IPv4", "IPv6", "broadcast", "IPv4 multicast", "IPv6 multicast"];

/// Somebody on the segment.
pub struct Party<'l> {
    role: &'l str,
    place: Place,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
}

/// Who hears whom, by what.
type Heard = BTreeSet<(String, String, usize)>;

impl<'l> Party<'l> {
    #[track_caller]
    pub fn container(role: &'l str, host: &Host, name: &str) -> Party<'l> {
        let show = "ip -o addr show scope global | awk '{ print $4 }' | cut -d/ -f1";
        Party::new(role, Place::container(host, name), host.in_container(name, show).ok())
    }

    #[track_caller]
    pub fn machine(role: &'l str, host: &Host) -> Party<'l> {
        Party::new(role, Place::host(host), host.sh("ip -o addr show dev eth0 scope global | awk '{ print $4 }' | cut -d/ -f1").ok())
    }

    #[track_caller]
    fn new(role: &'l str, place: Place, addresses: &str) -> Party<'l> {
        let addresses: Vec<IpAddr> = addresses.lines().map(|line| line.parse().expect("an address")).collect();
        let ipv4 = addresses.iter().find_map(|a| if let IpAddr::V4(a) = a { Some(*a) } else { None }).expect("an IPv4 address");
        let ipv6 = addresses.iter().find_map(|a| if let IpAddr::V6(a) = a { Some(*a) } else { None }).expect("an IPv6 address");
        Party { role, place, ipv4, ipv6 }
    }

    /// The number of the link that the segment is on; to be called in the place.
    fn link() -> u32 {
        let name = ["eth0", "net0"].into_iter().find(|name| nix::net::if_::if_nametoindex(*name).is_ok());
        nix::net::if_::if_nametoindex(name.expect("the place has a link")).expect("it has just been there")
    }

    /// Notes who calls, until the test ends.
    fn listen(&self, heard: &Arc<Mutex<Heard>>) {
        let (tell, ready) = std::sync::mpsc::channel();
        let (me, ipv4, heard) = (self.role.to_owned(), self.ipv4, heard.clone());
        self.place.spawn(move || {
            let four = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, CALLS)).expect("bind for calls");
            four.join_multicast_v4(&GROUP, &ipv4).expect("join the group");
            let six = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, CALLS + 1)).expect("bind for calls");
            six.join_multicast_v6(&GROUP6, Party::link()).expect("join the group");
            for socket in [four, six] {
                let (me, heard) = (me.clone(), heard.clone());
                std::thread::spawn(move || note(&socket, &me, &heard));
            }
            tell.send(()).expect("the test waits");
        });
        ready.recv().expect("it listens");
    }

    /// Calls to all and to the groups.
    fn call(&self) {
        let (me, ipv4, ipv6) = (self.role.to_owned(), self.ipv4, self.ipv6);
        let calling = self.place.spawn(move || {
            let four = UdpSocket::bind((ipv4, 0)).expect("bind to call");
            four.set_broadcast(true).expect("may call to all");
            let six = UdpSocket::bind((ipv6, 0)).expect("bind to call");
            let group6 = SocketAddrV6::new(GROUP6, CALLS + 1, 0, Party::link());
            // a call is not answered, so it is made more than once
            for _ in 0..3 {
                let _ = four.send_to(format!("2{me}").as_bytes(), (EVERYBODY, CALLS));
                let _ = four.send_to(format!("3{me}").as_bytes(), (GROUP, CALLS));
                let _ = six.send_to(format!("4{me}").as_bytes(), group6);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        calling.join().expect("calling did not panic");
    }

    /// Asks one; whether it answered.
    fn ask(&self, to: IpAddr) -> std::thread::JoinHandle<bool> {
        let from: IpAddr = if to.is_ipv4() { self.ipv4.into() } else { self.ipv6.into() };
        self.place.spawn(move || {
            let socket = UdpSocket::bind((from, 0)).expect("bind to ask");
            socket.set_read_timeout(Some(Duration::from_millis(400))).expect("set a timeout");
            let asked = |_| {
                let sent = socket.send_to(b"?", SocketAddr::new(to, ECHO)).is_ok();
                // neighbours that do not exist are an error of the socket too
                if !sent {
                    std::thread::sleep(Duration::from_millis(400));
                }
                sent && socket.recv(&mut [0; 8]).is_ok()
            };
            (0..5).any(asked)
        })
    }
}

fn note(socket: &UdpSocket, me: &str, heard: &Mutex<Heard>) {
    let mut call = [0; 64];
    while let Ok(length) = socket.recv(&mut call) {
        let text = String::from_utf8_lossy(&call[..length]).into_owned();
        let column = text[..1].parse().expect("a call begins with its column");
        heard.lock().expect("no panic while held").insert((text[1..].to_owned(), me.to_owned(), column));
    }
}

/// The rows of the table: everybody to everybody, but for what is the same seen from the other side.
fn rows<'p, 'l>(parties: &'p [Party<'l>]) -> Vec<(&'p Party<'l>, &'p Party<'l>)> {
    let by = |role: &str| parties.iter().find(|party| party.role == role);
    let pairs = [
        ("container", "neighbour"),
        ("container", "the parent's host"),
        ("the parent's host", "container"),
        ("container", "LAN"),
        ("LAN", "container"),
        ("container", "container of another host"),
        ("container of another host", "container"),
        ("LAN", "the parent's host"),
        ("the parent's host", "LAN"),
    ];
    pairs.into_iter().filter_map(|(from, to)| Some((by(from)?, by(to)?))).collect()
}

/// The table as it is, in the form of the page.
pub fn seen(parties: &[Party]) -> String {
    let heard = Arc::new(Mutex::new(Heard::new()));
    for party in parties {
        party.place.echo(ECHO);
        party.listen(&heard);
    }
    parties.iter().for_each(Party::call);
    let asked: Vec<_> = rows(parties).iter().map(|(from, to)| [from.ask(to.ipv4.into()), from.ask(to.ipv6.into())]).collect();
    for ((from, to), answers) in rows(parties).iter().zip(asked) {
        for (column, answer) in answers.into_iter().enumerate() {
            if answer.join().expect("asking did not panic") {
                heard.lock().expect("no panic while held").insert((from.role.to_owned(), to.role.to_owned(), column));
            }
        }
    }
    let heard = heard.lock().expect("no panic while held");
    let mut table = format!("| from | to | {} |\n|{}\n", COLUMNS.join(" | "), "---|".repeat(COLUMNS.len() + 2));
    for (from, to) in rows(parties) {
        let cell = |column| if heard.contains(&(from.role.to_owned(), to.role.to_owned(), column)) { "yes" } else { "–" };
        let cells: Vec<_> = (0..COLUMNS.len()).map(cell).collect();
        writeln!(table, "| {} | {} | {} |", from.role, to.role, cells.join(" | ")).expect("a string takes it");
    }
    table
}

/// The table of a mode in docs/macvlan.md.
#[track_caller]
pub fn expected(mode: &str) -> String {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/macvlan.md")).expect("read docs/macvlan.md");
    let section = page.split("\n### ").find(|section| section.lines().next() == Some(mode));
    let lines = section.unwrap_or_default().lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    lines.map(|line| format!("{line}\n")).collect()
}
