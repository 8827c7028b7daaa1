//! Looks at all hosts every 100 ms: which addresses their containers have, as these see themselves, and where the hosts' rows lead.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use super::truth::{Holding, Look, Row, Wrong, doubles, holdings, wrong};
use crate::lab::Host;

const PERIOD: Duration = Duration::from_millis(100);
/// What an rsnet that has just started needs to hear from Consul what happened meanwhile, and to make it so.
const TO_HEAR: Duration = Duration::from_secs(2);

/// Where a host is seen: its network, its containers' networks, its outer addresses.
#[derive(Clone)]
struct Seat {
    own: PathBuf,
    sandboxes: PathBuf,
    outer: Vec<IpAddr>,
    /// Until when it is deaf.
    deaf: Option<Instant>,
}

impl Seat {
    fn of(host: &Host) -> Seat {
        Seat {
            own: host.path("/proc/1/ns/net"),
            sandboxes: host.path("/run/docker/netns"),
            outer: host.addresses(),
            deaf: Some(Instant::now() + TO_HEAR),
        }
    }
}

/// A thread that looks, until it is asked what it saw.
pub struct Witness {
    seats: Arc<Mutex<Vec<Seat>>>,
    stop: Arc<AtomicBool>,
    began: Instant,
    looking: JoinHandle<Vec<Look>>,
}

impl Witness {
    pub fn of<'a>(hosts: impl IntoIterator<Item = &'a Host>) -> Witness {
        let seats = Arc::new(Mutex::new(hosts.into_iter().map(Seat::of).collect::<Vec<_>>()));
        let stop = Arc::new(AtomicBool::new(false));
        let (own, over) = (seats.clone(), stop.clone());
        let began = Instant::now();
        let looking = std::thread::spawn(move || look_on(began, &own, &over));
        Witness { seats, stop, began, looking }
    }

    /// The time by which it tells.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// A host that was rebooted is another to look at.
    pub fn find_again(&self, number: usize, host: &Host) {
        self.seats.lock().expect("no panic while held")[number] = Seat::of(host);
    }

    /// A host's rsnet is away for so long, and another begins then.
    pub fn deafen(&self, number: usize, away: Duration) {
        self.seats.lock().expect("no panic while held")[number].deaf = Some(Instant::now() + away + TO_HEAR);
    }

    /// What was wrong.
    pub fn tell(self) -> Findings {
        self.stop.store(true, Ordering::Relaxed);
        Findings::of(&self.looking.join().expect("looking did not panic"))
    }
}

/// What was wrong in a series of looks.
pub struct Findings {
    pub looks: usize,
    /// The longest time between two looks.
    pub gap: Duration,
    /// Holdings of addresses.
    pub seen: Vec<Holding>,
    /// Row seconds: how long rows led to a host that does not hold the address, and for how long to nobody.
    pub wrong: Duration,
    pub nowhere: Duration,
    /// Both, on hosts that could not know.
    pub deaf: Duration,
    /// Each wrong row with when it was first seen and for how long.
    pub rows: Vec<(Wrong, Duration, Duration)>,
    pub doubles: Vec<(Holding, Holding)>,
}

impl Findings {
    fn of(looks: &[Look]) -> Findings {
        let mut rows: BTreeMap<Wrong, Vec<(Duration, Duration)>> = BTreeMap::new();
        let mut last = Duration::ZERO;
        let mut gap = Duration::ZERO;
        for look in looks {
            for wrong in wrong(look) {
                let times = rows.entry(wrong).or_default();
                match times.last_mut().filter(|(from, long)| *from + *long == last) {
                    Some((from, long)) => *long = look.at - *from,
                    None => times.push((look.at, Duration::ZERO)),
                }
            }
            gap = gap.max(look.at - last);
            last = look.at;
        }
        // a row is wrong for a look's time at least
        let rows = rows.into_iter().flat_map(|(wrong, times)| times.into_iter().map(move |(from, long)| (wrong, from, long + PERIOD)));
        let rows: Vec<_> = rows.collect();
        let sum = |of: &dyn Fn(&Wrong) -> bool| rows.iter().filter(|(row, ..)| of(row)).map(|(.., long)| *long).sum();
        let held = holdings(looks);
        let (wrong, nowhere) = (sum(&|row| !row.deaf && row.leads.is_some()), sum(&|row| !row.deaf && row.leads.is_none()));
        let (deaf, doubles) = (sum(&|row| row.deaf), doubles(&held));
        Findings { looks: looks.len(), gap, seen: held, wrong, nowhere, deaf, rows, doubles }
    }
}

impl std::fmt::Display for Findings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Findings { looks, gap, seen, wrong, nowhere, deaf, .. } = self;
        writeln!(
            f,
            "{looks} looks, {gap:.2?} apart at most; {} holdings; wrong rows: {wrong:.1?}; to nobody: {nowhere:.1?}; where rsnet was away: {deaf:.1?}",
            seen.len()
        )?;
        for (Wrong { on, address, leads, holder, deaf }, from, long) in self.rows.iter().take(40) {
            let leads = leads.map_or("nobody".to_owned(), |host| format!("h{}", host + 1));
            let deaf = if *deaf { " (rsnet away)" } else { "" };
            writeln!(f, "  h{}{deaf} leads {address} to {leads}, h{} holds it: from {from:.2?} for {long:.2?}", on + 1, holder + 1)?;
        }
        self.doubles.iter().take(20).try_for_each(|(one, other)| writeln!(f, "  held twice: {one:?} {other:?}"))
    }
}

fn look_on(began: Instant, seats: &Mutex<Vec<Seat>>, stop: &AtomicBool) -> Vec<Look> {
    let mut looks = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let seats = seats.lock().expect("no panic while held").clone();
        looks.push(look_once(began, &seats));
        std::thread::sleep((now + PERIOD).saturating_duration_since(Instant::now()));
    }
    looks
}

fn look_once(began: Instant, seats: &[Seat]) -> Look {
    let (at, now) = (began.elapsed(), Instant::now());
    let held = || seats.iter().map(held).collect();
    let before = held();
    let rows = seats.iter().map(|seat| rows(seat, seats)).collect();
    let deaf = seats.iter().enumerate().filter(|(_, seat)| seat.deaf.is_some_and(|until| now < until)).map(|(number, _)| number);
    Look { at, before, rows, after: held(), deaf: deaf.collect() }
}

/// One look.
pub fn look(hosts: &[Host]) -> Look {
    let seats: Vec<Seat> = hosts.iter().map(Seat::of).collect();
    std::thread::scope(|scope| scope.spawn(|| look_once(Instant::now(), &seats)).join().expect("looking did not panic"))
}

/// The addresses of the host's containers, and its own on the network. None where the machine is off.
fn held(seat: &Seat) -> BTreeSet<IpAddr> {
    let sandboxes = std::fs::read_dir(&seat.sandboxes).into_iter().flatten().flatten().map(|entry| entry.path());
    let inside = sandboxes.filter_map(|sandbox| addresses(&sandbox, |_| true)).flatten();
    inside.chain(addresses(&seat.own, |link| link.starts_with("rsx-")).into_iter().flatten()).collect()
}

/// IPv4 addresses on some links of a network namespace, if it is one.
fn addresses(namespace: &PathBuf, of: impl Fn(&str) -> bool) -> Option<Vec<IpAddr>> {
    enter(namespace)?;
    let all = nix::ifaddrs::getifaddrs().ok()?;
    let address = |link: nix::ifaddrs::InterfaceAddress| {
        let address = IpAddr::from(link.address?.as_sockaddr_in()?.ip());
        (of(&link.interface_name) && !address.is_loopback()).then_some(address)
    };
    Some(all.filter_map(address).collect())
}

fn enter(namespace: &PathBuf) -> Option<()> {
    setns(File::open(namespace).ok()?, CloneFlags::CLONE_NEWNET).ok()
}

/// Where the host's rows lead, by what they say themselves: route, neighbour, forwarding entry, and whose outer address that is.
fn rows(seat: &Seat, seats: &[Seat]) -> Vec<Row> {
    let own = seats.iter().position(|other| other.own == seat.own);
    if enter(&seat.own).is_none() {
        return Vec::new();
    }
    let (routes, neighbours, forwarding) =
        (list("ip", "-j -4 route show table all proto 195"), list("ip", "-j -4 neigh show nud permanent"), list("bridge", "-j fdb show"));
    let peer = |via: &str| {
        let mac = neighbours.iter().find(|row| row["dst"] == via)?["lladdr"].as_str()?;
        let outer: IpAddr = forwarding.iter().find(|row| row["mac"] == mac && row["dst"].is_string())?["dst"].as_str()?.parse().ok()?;
        seats.iter().position(|seat| seat.outer.contains(&outer))
    };
    let row = |route: &Value| {
        let to: &str = route["dst"].as_str()?;
        let to = to.parse().or_else(|_| to.parse::<IpAddr>().map(IpNet::from)).ok()?;
        let leads = match (route["gateway"].as_str(), route["type"].as_str()) {
            (_, Some("unreachable")) => None,
            (Some(via), _) => peer(via),
            (None, _) => own,
        };
        Some(Row { to, leads })
    };
    let homes =
        addresses(&seat.own, |link| link.starts_with("rsx-")).into_iter().flatten().map(|home| Row { to: IpNet::from(home), leads: own });
    let neighbours = neighbours.iter().filter(|row| row["dev"].as_str().is_some_and(|dev| dev.starts_with("rsx-")));
    let neighbours = neighbours
        .filter_map(|row| row["dst"].as_str())
        .filter_map(|home| Some(Row { to: IpNet::from(home.parse::<IpAddr>().ok()?), leads: peer(home) }));
    homes.chain(neighbours).chain(routes.iter().filter_map(row)).collect()
}

/// What a tool lists in the network that this thread is in.
fn list(tool: &str, arguments: &str) -> Vec<Value> {
    let output = Command::new(tool).args(arguments.split(' ')).output().unwrap_or_else(|e| panic!("start {tool}: {e}"));
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}
