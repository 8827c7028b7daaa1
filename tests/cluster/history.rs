//! Seeded schedules of joins, leaves, growth, cuts and ended leases: at no moment do two hosts hold one block, except for one that was
//! taken from a host that was away for longer than the grace, until that is back or hears of it. All the while hosts ask each other, whatever they
//! last heard: what nobody took is lost by no word.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use ipnet::IpNet;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rsnet::cluster::{Cluster, Lender, Times};

use super::world::*;

const SMALL: &str = "10.80.0.0/25";
/// Eight blocks of four addresses: there is not one for each that wants one.
const CROWDED: &str = "10.81.0.0/27";

/// Lends what is free in its host's blocks, each address once.
struct Lends {
    cluster: Weak<Cluster>,
    lent: Mutex<BTreeSet<IpAddr>>,
}

impl Lends {
    fn free(&self) -> Option<IpAddr> {
        let view = self.cluster.upgrade()?.views().borrow().clone();
        let standing = view.of(net(CROWDED))?;
        let blocks = standing.share.mine.blocks.iter().filter(|block| block.prefix_len() < 32);
        let addresses = net(CROWDED).hosts().skip(1).filter(|address| !standing.kept.contains(address));
        let mine: Vec<IpAddr> = addresses.filter(|address| blocks.clone().any(|block| block.contains(address))).collect();
        let mut lent = self.lent.lock().unwrap();
        mine.into_iter().find(|address| lent.insert(*address))
    }
}

#[async_trait]
impl Lender for Lends {
    async fn lend(&self, _: IpAddr, _: &str) -> Result<(), String> {
        Err("container web".into())
    }
    async fn lend_any(&self, _: IpNet, _: &str) -> Result<IpAddr, String> {
        self.free().ok_or_else(|| "has none free".to_owned())
    }
    async fn restore(&self, _: IpAddr) {}
}

/// Who holds a block with whom. Looked at twice: what one gave up and the other got in between is no double.
fn doubles(hosts: &[Host]) -> Vec<String> {
    let mut found = vec![];
    for (at, a) in hosts.iter().enumerate() {
        for b in &hosts[at + 1..] {
            let both: Vec<_> = a.mine().intersection(&b.mine()).copied().collect();
            let still = a.mine();
            found.extend(both.into_iter().filter(|block| still.contains(block)).map(|block| format!("{block}: {} {}", a.name, b.name)));
        }
    }
    found
}

async fn schedule(seed: u64, takeover: bool, subnet: &'static str) {
    let (_dir, store) = embedded();
    let grace = if takeover { Duration::from_millis(100) } else { Duration::from_secs(3600) };
    let times = Times { grace, rebuild: Duration::from_millis(500), answer: Duration::from_millis(200), ..times() };
    let hosts: Arc<Vec<Host>> =
        Arc::new((1..=5).map(|n| Host::start_as(&store, &format!("h{n}"), n, &format!("{n}"), vec![], times)).collect());
    for host in hosts.iter().filter(|_| subnet == CROWDED) {
        host.cluster.lend_by(Arc::new(Lends { cluster: Arc::downgrade(&host.cluster), lent: Mutex::default() }));
    }
    let addresses: Vec<IpAddr> = net(subnet).hosts().skip(1).collect();
    let over = Arc::new(AtomicBool::new(false));
    let checker = {
        let (hosts, over) = (hosts.clone(), over.clone());
        tokio::spawn(async move {
            let mut worst = vec![];
            while !over.load(Ordering::SeqCst) && worst.is_empty() {
                if !takeover {
                    worst = doubles(&hosts);
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            worst
        })
    };
    let asker = {
        let (hosts, over) = (hosts.clone(), over.clone());
        tokio::spawn(async move {
            let (mut dice, mut lost) = (StdRng::seed_from_u64(seed), vec![]);
            while !over.load(Ordering::SeqCst) {
                let [one, other] = [(); 2].map(|()| &hosts[dice.random_range(0..hosts.len())]);
                lost.extend(one.ask(other).into_iter().map(|block| format!("{block}: {} by the word of {}", one.name, other.name)));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            lost
        })
    };
    let acts = hosts.iter().enumerate().map(|(at, host)| {
        let addresses = &addresses;
        let mut dice = StdRng::seed_from_u64(seed * 100 + at as u64);
        async move {
            for _ in 0..25 {
                match dice.random_range(0..9) {
                    0..=2 => drop(host.cluster.join(&wanted(&[subnet])).await),
                    3 => host.cluster.leave(&[net(subnet)]).await,
                    4 | 5 => drop(host.cluster.grow(net(subnet)).await),
                    6 => host.cut(true),
                    7 if host.is_cut() => host.expire().await,
                    7 => {
                        let address = addresses[dice.random_range(0..addresses.len())];
                        drop(host.cluster.claim(net(subnet), address).await);
                    }
                    _ => host.cut(false),
                }
                tokio::time::sleep(Duration::from_millis(dice.random_range(0..40))).await;
            }
        }
    });
    join_all(acts).await;
    hosts.iter().for_each(|host| host.cut(false));
    until(&format!("seed {seed}: agreement"), || {
        let in_it: Vec<&Host> = hosts.iter().filter(|host| host.view().of(net(subnet)).is_some()).collect();
        let doubles = doubles(&hosts);
        if doubles.is_empty() { agree(&in_it, subnet) } else { Err(format!("{doubles:?}")) }
    })
    .await;
    over.store(true, Ordering::SeqCst);
    assert_eq!(checker.await.unwrap(), Vec::<String>::new(), "seed {seed}");
    let lost = asker.await.unwrap();
    assert!(takeover || lost.is_empty(), "seed {seed}: nobody took anything: {lost:?}");
    let held: usize = hosts.iter().map(|host| host.mine().len()).sum();
    let deadline = std::time::Instant::now() + PATIENCE;
    while recorded(&store).await.len() != held {
        assert!(std::time::Instant::now() < deadline, "seed {seed}: {held} held, recorded {:?}", recorded(&store).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_block_is_ever_held_twice_in_thirty_schedules() {
    for group in (0..30u64).collect::<Vec<_>>().chunks(10) {
        join_all(group.iter().map(|seed| schedule(*seed, false, SMALL))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_blocks_are_taken_from_the_dead_all_agree_in_the_end() {
    for group in (100..130u64).collect::<Vec<_>>().chunks(10) {
        join_all(group.iter().map(|seed| schedule(*seed, true, SMALL))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_hosts_find_no_block_nothing_is_held_twice_and_all_know_where_each_is_at_home() {
    for group in (200..220u64).collect::<Vec<_>>().chunks(10) {
        join_all(group.iter().map(|seed| schedule(*seed, false, CROWDED))).await;
    }
}
