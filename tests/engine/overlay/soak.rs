//! Hours of life in a minute, under the eyes of a witness: containers come and go, their addresses change hosts, hosts die and return.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use rand::RngExt;

use super::Cluster;
use super::size::size;
use super::witness::Witness;
use crate::lab::{Engine, Host};

/// Thirty addresses, in blocks of four: hosts take from one another all the time.
const SMALL: &str = "10.50.0.0/27";
/// Containers that a host has at a time.
const AT_A_TIME: usize = 2;

/// Addresses that were given up, and by whom: the last one first, and to another host.
struct Pool(Mutex<Vec<(IpAddr, usize)>>);

impl Pool {
    fn take(&self, host: usize) -> Option<IpAddr> {
        let mut all = self.0.lock().expect("no panic while held");
        let at = all.iter().rposition(|(_, last)| *last != host)?;
        Some(all.remove(at).0)
    }

    /// To be the next, or, where it could not be had, the last.
    fn put(&self, address: IpAddr, host: usize, next: bool) {
        let mut all = self.0.lock().expect("no panic while held");
        let at = if next { all.len() } else { 0 };
        all.insert(at, (address, host));
    }
}

/// Says so when it goes, also when it goes by a panic: threads that wait for it would wait for good.
pub struct AtTheEnd<'a>(pub &'a AtomicBool);

impl Drop for AtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What all hosts' life comes to.
struct Life {
    pool: Pool,
    started: AtomicUsize,
    refused: Mutex<Vec<String>>,
    over: AtomicBool,
}

impl Life {
    fn goes_on(&self, starts: usize) -> bool {
        !self.over.load(Ordering::SeqCst) && self.started.load(Ordering::SeqCst) < starts
    }

    /// Starts containers on a host and removes them, every other one with an address that another host had last.
    fn lead(&self, number: usize, host: &RwLock<&mut Host>, starts: usize) {
        let mut running: Vec<(String, Option<IpAddr>)> = Vec::new();
        for turn in 0.. {
            if !self.goes_on(starts) {
                break;
            }
            if running.len() == AT_A_TIME {
                let (name, address) = running.remove(0);
                let gone = host.read().expect("no panic while held").docker(&format!("rm -f {name}")).succeeded();
                address.into_iter().for_each(|address| self.pool.put(address, number, gone));
            }
            let address = if turn % 2 == 0 { self.pool.take(number) } else { None };
            let flag = address.map_or(String::new(), |address| format!("--ip {address}"));
            let name = format!("w{turn}");
            let seen = host
                .read()
                .expect("no panic while held")
                .docker(&format!("run -d --init --name {name} --network blue {flag} box sleep 1000"));
            if seen.succeeded() {
                self.started.fetch_add(1, Ordering::SeqCst);
                running.push((name, address));
            } else {
                self.refused.lock().expect("no panic while held").push(seen.stderr.lines().next().unwrap_or_default().to_owned());
                host.read().expect("no panic while held").docker(&format!("rm -f {name}"));
                address.into_iter().for_each(|address| self.pool.put(address, usize::MAX, false));
            }
        }
    }
}

pub fn no_row_ever_leads_to_a_host_that_does_not_hold_the_address(engine: Engine) {
    let mut cluster = Cluster::new(engine, 3, "");
    cluster.create(&format!("--subnet {SMALL} blue"));
    let settings = cluster.settings();
    let starts = size().reuses;
    let pool = Pool(Mutex::new((4..16).map(|n| (IpAddr::from(Ipv4Addr::new(10, 50, 0, n * 2)), usize::MAX)).collect()));
    let life = Life { pool, started: AtomicUsize::new(0), refused: Mutex::default(), over: AtomicBool::new(false) };
    let witness = Witness::of(&cluster.hosts);
    let hosts: Vec<_> = cluster.hosts.iter_mut().map(RwLock::new).collect();
    let (mut kills, mut reboots) = (0, 0);
    std::thread::scope(|scope| {
        let over = AtTheEnd(&life.over);
        let lead = |(number, host)| {
            let life = &life;
            scope.spawn(move || life.lead(number, host, starts))
        };
        let lives: Vec<_> = hosts.iter().enumerate().map(lead).collect();
        let chaos = scope.spawn(|| {
            let _over = AtTheEnd(&life.over);
            while !life.over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(rand::random_range(500..2500)));
                let number = rand::random_range(0..hosts.len());
                if rand::rng().random_bool(0.7) {
                    let host = hosts[number].read().expect("no panic while held");
                    let away = Duration::from_millis(rand::random_range(0..1000));
                    witness.deafen(number, away);
                    host.kill_rsnet();
                    std::thread::sleep(away);
                    host.start_rsnet_with(&settings);
                    kills += 1;
                } else {
                    let mut host = hosts[number].write().expect("no panic while held");
                    host.reboot();
                    witness.find_again(number, &host);
                    host.start_rsnet_with(&settings);
                    witness.deafen(number, Duration::ZERO);
                    host.start_dockerd();
                    reboots += 1;
                }
            }
        });
        lives.into_iter().for_each(|life| life.join().expect("life goes on"));
        drop(over);
        chaos.join().expect("chaos goes on");
    });
    let findings = witness.tell();
    let (started, refused) = (life.started.into_inner(), life.refused.into_inner().expect("no panic while held"));
    println!("{started} starts, {kills} kills, {reboots} reboots, {} refused\n{findings}", refused.len());
    refused.iter().take(60).for_each(|why| println!("refused: {why}"));
    assert!(started >= starts, "only {started} of {starts} containers started");
    assert!(findings.wrong.is_zero() && findings.nowhere.is_zero() && findings.doubles.is_empty(), "{findings}");
}
