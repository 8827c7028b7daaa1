//! Who reaches whom: rsnet's bridge beside Docker's own, cell by cell, on one host in one run.
//!
//! Both networks are made with the same options and asked the same questions from the same places. What is open on rsnet's side is told by
//! [`expected`]; every cell where Docker's differs has its [`reason`], which docs/bridge.md tells to users.

use crate::lab::{Engine, Host, HostSpec, Lab};
use crate::traffic::{Answer, Place, Protocol, Question, addresses, asking, icmp, run, serve, tcp, udp};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Where questions come from, as the rows of the table.
const PLACES: [&str; 7] = ["host", "segment", "same network", "other rsnet network", "docker0", "other Docker bridge", "self"];

/// What is asked, as the columns: what the target has on the port, and by which address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Target {
    /// The container's address, a port that is not published.
    Container,
    /// The container's address, a port that is published.
    Behind,
    /// The host's address on the segment, the published port.
    Published,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Cell {
    place: &'static str,
    target: Target,
    protocol: Protocol,
    ipv6: bool,
}

/// The networks compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Default,
    Internal,
    WithoutIcc,
}

impl Kind {
    fn options(self) -> &'static str {
        match self {
            Kind::Default => "",
            Kind::Internal => "--internal",
            Kind::WithoutIcc => "-o com.docker.network.bridge.enable_icc=false",
        }
    }
}

type Table = BTreeMap<Cell, bool>;

/// The host of the matrix: two networks to be compared, and containers on everything that there is.
struct World {
    _lab: Lab,
    host: Host,
    station: Host,
}

impl World {
    fn new(engine: Engine, options: &str) -> World {
        let lab = Lab::new();
        let lan = lab.segment(["10.77.0.0/24", "fd77::/64"]);
        // a Docker with all that it can do for IPv6
        let ip6tables = if engine >= Engine::V28_5 { "" } else { "--experimental --ip6tables" };
        let flags = format!("--ipv6 --fixed-cidr-v6 fd30::/64 {ip6tables}");
        let host = lab.make(&HostSpec::new("h1").engine(engine).on(&[&lan]).dockerd_flags(&flags));
        let station = lab.station("s1", &[&lan]);
        host.start_rsnet();
        let world = World { _lab: lab, host, station };
        world.networks(options);
        world.containers();
        world
    }

    fn networks(&self, options: &str) {
        for (n, driver, network) in [(1, "bridge", "dk"), (2, "bridge", "dk2"), (3, "rsnet", "rs"), (4, "rsnet", "rs2")] {
            let options = if network.ends_with('2') { "" } else { options };
            let subnets = format!("--ipv6 --subnet 172.30.{n}.0/24 --subnet fd30:{n}::/64");
            self.host.docker(&format!("network create -d {driver} {subnets} {options} {network}")).ok();
        }
        // a neighbour on the wire who knows the way tries it
        let (v4, v6) = (self.host.ipv4(), self.host.ipv6());
        self.station.sh(&format!("ip route add 172.30.0.0/16 via {v4}; ip -6 route add fd30::/16 via {v6}")).ok();
    }

    fn containers(&self) {
        run(&self.host, "dk-target", "--network dk -p 8080:80 -p 8080:80/udp");
        run(&self.host, "rs-target", "--network rs -p 8081:80 -p 8081:80/udp");
        for (name, network) in [("dk-same", "dk"), ("rs-same", "rs"), ("dk-other", "dk2"), ("rs-other", "rs2"), ("docker0", "bridge")] {
            run(&self.host, name, &format!("--network {network}"));
        }
    }

    fn place(&self, name: &str, kind: &str) -> (Option<String>, &Host) {
        let container = match name {
            "host" => return (None, &self.host),
            "segment" => return (None, &self.station),
            "same network" => format!("{kind}-same"),
            "self" => format!("{kind}-target"),
            "other rsnet network" => "rs-other".to_string(),
            "other Docker bridge" => "dk-other".to_string(),
            other => other.to_string(),
        };
        (Some(container), &self.host)
    }

    /// All cells about the network `kind`.
    fn table(&self, kind: &str, port: u16) -> Table {
        let target = format!("{kind}-target");
        let _servers = serve(&self.host, &target, &[80, 81]);
        let outside = [self.host.ipv4(), self.host.ipv6()];
        let sides = addresses(&self.host, &target, kind).into_iter().zip(outside);
        let (targets, asked): (Vec<_>, Vec<_>) = sides.flat_map(|(inside, outside)| questions(inside, outside, port)).unzip();
        let mut table = Table::new();
        // twice: a busy machine loses a packet, a wall stays
        for _ in 0..2 {
            let asking = PLACES.map(|place| (place, self.asking(place, kind, &asked)));
            for (place, asking) in asking {
                let answers = asking.join().expect("the asking thread ended well");
                for ((target, question), answer) in targets.iter().zip(&asked).zip(answers) {
                    let cell = Cell { place, target: *target, protocol: question.protocol, ipv6: question.to.is_ipv6() };
                    let open = table.entry(cell).or_default();
                    *open |= answer != Answer::None;
                }
            }
        }
        table
    }

    fn asking(&self, place: &str, kind: &str, asked: &[Question]) -> std::thread::JoinHandle<Vec<Answer>> {
        let (container, host) = self.place(place, kind);
        asking(container.as_deref().map_or(Place::Machine(host), |container| Place::Container(host, container)), asked)
    }
}

fn questions(inside: std::net::IpAddr, outside: std::net::IpAddr, port: u16) -> Vec<(Target, Question)> {
    vec![
        (Target::Container, tcp(inside, 81)),
        (Target::Container, udp(inside, 81)),
        (Target::Container, icmp(inside)),
        (Target::Behind, tcp(inside, 80)),
        (Target::Behind, udp(inside, 80)),
        (Target::Published, tcp(outside, port)),
        (Target::Published, udp(outside, port)),
    ]
}

/// The table for people: a row a place, a column a question.
fn shown(table: &Table) -> String {
    let mut text = String::new();
    let columns: std::collections::BTreeSet<_> = table.keys().map(|cell| (cell.target, cell.protocol, cell.ipv6)).collect();
    for place in PLACES {
        let row = columns.iter().map(|&(target, protocol, ipv6)| if table[&Cell { place, target, protocol, ipv6 }] { 'x' } else { '.' });
        writeln!(text, "{place:20} {}", row.map(|c| format!("{c:5}")).collect::<String>()).expect("a string takes all");
    }
    let names = columns.iter().map(|(target, protocol, ipv6)| format!("{target:?} {protocol:?} v{}", if *ipv6 { 6 } else { 4 }));
    text + &names.collect::<Vec<_>>().join(" | ")
}

/// What is open on rsnet's side, whatever Docker does.
fn expected(kind: Kind, cell: &Cell) -> bool {
    let within = cell.place == "same network" || cell.place == "self";
    match (kind, cell.target) {
        (Kind::Internal, Target::Published) => false,
        (Kind::WithoutIcc, Target::Published) => !within,
        (_, Target::Published) => true,
        (Kind::WithoutIcc, _) => cell.place == "host" || cell.place == "self",
        (Kind::Default | Kind::Internal, _) => cell.place == "host" || within,
    }
}

/// Why Docker's answer is the other one, if it is. docs/bridge.md says the same.
fn reason(engine: Engine, kind: Kind, cell: &Cell) -> Option<&'static str> {
    let within = cell.place == "same network" || cell.place == "self";
    match (kind, cell.target) {
        (Kind::Default | Kind::WithoutIcc, Target::Behind) if cell.place == "segment" && engine < Engine::V28_5 => {
            Some("before engine 28.0 who routes to a container's address enters by published ports; rsnet opens the host's address only")
        }
        (Kind::WithoutIcc, Target::Published) if within => {
            Some("rsnet isolates bridge ports, and with bridge-nf-call-iptables the kernel hands the translated frame from port to port")
        }
        (Kind::Internal, Target::Container | Target::Behind) if cell.place == "same network" && cell.ipv6 && engine == Engine::V20_10 => {
            Some("20.10 with ip6tables drops IPv6 between neighbours of an internal network")
        }
        _ => None,
    }
}

fn compare(engine: Engine, kind: Kind) {
    let world = World::new(engine, kind.options());
    let (docker, rsnet) = (world.table("dk", 8080), world.table("rs", 8081));
    println!("{engine:?}, {kind:?}\nDocker's bridge\n{}\nrsnet\n{}", shown(&docker), shown(&rsnet));
    for (cell, open) in &rsnet {
        assert_eq!(*open, expected(kind, cell), "rsnet, {cell:?} (true: open)");
        let why = reason(engine, kind, cell);
        assert_eq!(
            docker[cell] != *open,
            why.is_some(),
            "{cell:?}: Docker's is {}, rsnet's {open}; the reason known: {why:?}",
            docker[cell]
        );
    }
}

pub fn the_default_network(engine: Engine) {
    compare(engine, Kind::Default);
}

pub fn an_internal_network(engine: Engine) {
    compare(engine, Kind::Internal);
}

pub fn a_network_without_icc(engine: Engine) {
    compare(engine, Kind::WithoutIcc);
}
