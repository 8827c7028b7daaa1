//! Hosts that do not hear of Consul, of each other, or of both; one way or both ways; healed in any order. Each schedule has a seed.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::size::size;
use super::soak::AtTheEnd;
use super::truth::{Cut, outside, wrong};
use super::witness::{Findings, Witness, look};
use super::{CONSUL, Cluster};
use crate::lab::{Engine, Host, PATIENCE, wait_until};
use crate::traffic::{Place, addresses, icmp, reaches_all, reaches_none, run, serve, tcp, udp};

/// Sixteen blocks of sixteen.
const SUBNET: &str = "10.50.0.0/24";
/// Cuts of a schedule.
const CUTS: usize = 4;
/// After the last cut is mended all rows are right by then. A connection that was cut tries again after a while, a dead one is given up
/// after 25 s.
const HEALED: Duration = Duration::from_secs(40);

/// Drops what comes from and what goes to these machines. A cut replaces the one before.
fn cut(host: &Host, from: &[IpAddr], to: &[IpAddr]) {
    let rules = |hook: &str, field: &str, machines: &[IpAddr]| {
        let drops: String = machines.iter().map(|machine| format!("ip {field} {machine} drop; ")).collect();
        format!("chain {hook} {{ type filter hook {hook} priority -450; {drops} }};")
    };
    let table = format!("table inet cut {{ {} {} }}", rules("input", "saddr", from), rules("output", "daddr", to));
    host.sh(&format!("nft 'table inet cut; delete table inet cut; {table}'")).ok();
}

/// What a host is cut from, by the dice: Consul, the other hosts, or both; what comes, what goes, or both.
fn draw(dice: &mut StdRng, consul: IpAddr, peers: &[IpAddr]) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let machines = match dice.random_range(0..3) {
        0 => vec![consul],
        1 => peers.to_vec(),
        _ => [&[consul], peers].concat(),
    };
    match dice.random_range(0..4) {
        0 => (machines, vec![]),
        1 => (vec![], machines),
        _ => (machines.clone(), machines),
    }
}

/// Blocks and single addresses that Consul has as the host's.
fn blocks(cluster: &Cluster, host: &str) -> Vec<IpNet> {
    let records = cluster.consul.sh("kv get -recurse rsnet/cluster/block").ok().to_owned();
    let own = records.lines().filter(|line| line.contains(&format!("\"host\":\"{host}\"")));
    own.filter_map(|line| line.split(':').next()?.rsplit('/').next()?.replacen('-', "/", 1).parse().ok()).collect()
}

/// What hosts do meanwhile.
struct Life {
    over: AtomicBool,
    started: AtomicUsize,
    refused: Mutex<Vec<String>>,
}

impl Life {
    /// Starts and removes containers, every third with an address anywhere in the subnet. One that names none always starts.
    fn lead(&self, host: &Host, seed: u64) {
        let mut dice = StdRng::seed_from_u64(seed);
        for turn in 0.. {
            if self.over.load(Ordering::SeqCst) {
                break;
            }
            let named = turn % 3 == 2;
            let flag = if named { format!("--ip {}", Ipv4Addr::new(10, 50, 0, dice.random_range(2..255))) } else { String::new() };
            let name = format!("w{}", turn % 3);
            host.docker(&format!("rm -f {name}"));
            let seen = host.docker(&format!("run -d --init --name {name} --network blue {flag} box sleep 1000"));
            assert!(named || seen.succeeded(), "a host starts containers of its own blocks: {seen}");
            self.started.fetch_add(usize::from(seen.succeeded()), Ordering::SeqCst);
            if !seen.succeeded() {
                self.refused.lock().expect("no panic while held").push(seen.stderr);
            }
        }
    }
}

/// One schedule: cuts of hosts by the dice, mended in another order, while all hosts go on. What was seen, and what hosts that were cut
/// from Consul had then.
fn schedule(cluster: &Cluster, seed: u64) -> (Findings, Vec<Cut>, usize) {
    let mut dice = StdRng::seed_from_u64(seed);
    let life = Life { over: AtomicBool::new(false), started: AtomicUsize::new(0), refused: Mutex::default() };
    let witness = Witness::of(&cluster.hosts);
    let (consul, mut cuts) = (cluster.consul.machine.ipv4(), Vec::<Cut>::new());
    std::thread::scope(|scope| {
        let _over = AtTheEnd(&life.over);
        for (number, host) in cluster.hosts.iter().enumerate() {
            let life = &life;
            scope.spawn(move || life.lead(host, seed * 10 + number as u64));
        }
        for _ in 0..CUTS {
            let number = dice.random_range(0..cluster.hosts.len());
            let (host, others) = (&cluster.hosts[number], cluster.hosts.iter().enumerate().filter(|(other, _)| *other != number));
            let peers: Vec<IpAddr> = others.map(|(_, other)| other.ipv4()).collect();
            let (from, to) = draw(&mut dice, consul, &peers);
            let now = witness.elapsed();
            cuts.iter_mut().filter(|cut| cut.host == number).for_each(|cut| cut.until = cut.until.min(now));
            cut(host, &from, &to);
            if from.contains(&consul) || to.contains(&consul) {
                cuts.push(Cut { host: number, from: now, until: Duration::MAX, blocks: blocks(cluster, &host.name) });
            }
            std::thread::sleep(Duration::from_millis(dice.random_range(500..4000)));
        }
        let mut order: Vec<usize> = (0..cluster.hosts.len()).collect();
        order.rotate_left(dice.random_range(0..3));
        for number in order {
            let now = witness.elapsed();
            cuts.iter_mut().filter(|cut| cut.host == number).for_each(|cut| cut.until = cut.until.min(now));
            cut(&cluster.hosts[number], &[], &[]);
            std::thread::sleep(Duration::from_millis(dice.random_range(0..1000)));
        }
    });
    let refused = life.refused.into_inner().expect("no panic while held");
    refused.iter().filter_map(|why| why.lines().next()).for_each(|why| println!("seed {seed}, refused: {why}"));
    (witness.tell(), cuts, life.started.into_inner())
}

/// Consul ends the host's lease now, as it would a minute later by itself.
fn end_lease(cluster: &Cluster, host: &str) {
    let session = format!("{CONSUL} kv get -detailed rsnet/cluster/alive/{host} | sed -n 's/^Session *//p'");
    let request = "PUT /v1/session/destroy/%s HTTP/1.0\\r\\nContent-Length: 0\\r\\n\\r\\n";
    cluster.consul.machine.sh(&format!("printf '{request}' $({session}) | socat -t10 -T10 - TCP:127.0.0.1:8500")).says("200 OK");
}

/// A host renews its lease every 10 s, gives an answer 8 s, and asks others within 2 s.
const NOTICED: Duration = Duration::from_secs(45);

pub fn a_host_that_only_consul_does_not_hear_uses_nothing_any_more_that_was_given_away(engine: Engine) {
    let cluster = Cluster::new(engine, 2, "");
    cluster.create("--subnet 10.50.0.0/16 blue");
    let all = cluster.run("blue", "-p 8080:7");
    let [h1, h2] = &cluster.hosts[..] else { unreachable!() };
    let (consul, given) = (cluster.consul.machine.ipv4(), all[0][0]);
    run(h1, "neighbour", "--network blue");
    let (_c1, _c2) = (serve(h1, "c1", &[7]), serve(h2, "c2", &[7]));
    let (neighbour, world) = (Place::Container(h1, "neighbour"), Place::Machine(h2));
    let published = tcp(h1.ipv4(), 8080);
    reaches_all(neighbour, &[udp(given, 7), udp(all[1][0], 7)]);
    reaches_all(world, &[udp(given, 7), published]);

    cut(h1, &[consul], &[consul]);
    end_lease(&cluster, "h1");
    h2.sh("rsnet host forget h1").ok();
    run(h2, "heir", &format!("--network blue --ip {given}"));
    let began = Instant::now();
    wait_until("h1 to fence itself", NOTICED, || {
        let seen = h1.sh("rsnet doctor");
        if seen.stdout.contains("belong to host h2 now") { Ok(()) } else { Err(seen.to_string()) }
    });
    println!("{engine:?}: fenced {:.1?} after another host's container had the address", began.elapsed());
    // what is being mended comes first there
    wait_until("the status to say so", PATIENCE, || {
        let seen = h1.sh("rsnet status");
        if seen.stdout.contains(&format!("belong to host h2 now: {given}")) { Ok(()) } else { Err(seen.to_string()) }
    });
    let log = std::fs::read_to_string(h1.log("rsnet")).expect("read the log of rsnet");
    assert!(log.contains("belongs to host h2 now") && log.contains("host h2, which it answers, told"), "{log}");
    reaches_none(neighbour, &[udp(given, 7), icmp(given), udp(all[1][0], 7)]);
    reaches_none(Place::Machine(h1), &[udp(given, 7)]);
    reaches_none(world, &[published]);

    cut(h1, &[], &[]);
    h1.docker("rm -f neighbour").ok();
    wait_until("c1 to start with another address", PATIENCE, || match h1.docker("restart c1") {
        seen if seen.succeeded() => Ok(()),
        seen => Err(seen.to_string()),
    });
    assert_ne!(addresses(h1, "c1", "blue")[0], given);
    reaches_all(cluster.place(0), &[icmp(given), udp(all[1][0], 7)]);
    let seen = h1.sh("rsnet doctor; true");
    assert!(!seen.stdout.contains("belong to host"), "{seen}");
}

pub fn in_no_partition_an_address_is_held_twice(engine: Engine) {
    let cluster = Cluster::new(engine, 3, "");
    cluster.create(&format!("--subnet {SUBNET} blue"));
    cluster.run("blue", "");
    for seed in 0..size().schedules {
        let (findings, cuts, started) = schedule(&cluster, seed);
        let healing = Instant::now();
        wait_until(&format!("seed {seed}: all rows to be right"), HEALED, || {
            let wrong = wrong(&look(&cluster.hosts));
            if wrong.is_empty() { Ok(()) } else { Err(format!("{wrong:?}")) }
        });
        let (took, outside) = (healing.elapsed(), outside(&findings.seen, &cuts));
        println!("seed {seed}: {started} starts, {} cuts from Consul, right {took:.1?} after the last was mended; {findings}", cuts.len());
        assert!(findings.doubles.is_empty(), "seed {seed}: {findings}");
        assert!(outside.is_empty(), "seed {seed}: given while cut from Consul, and not of own blocks: {outside:?}\n{cuts:?}");
    }
}
