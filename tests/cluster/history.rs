//! Seeded schedules of joins, leaves, growth, cuts and ended leases: at no moment do two hosts hold one block, except for one that was
//! taken from a host that was away for longer than the grace, until that is back or hears of it. All the while hosts ask each other, whatever they
//! last heard: what nobody took is lost by no word.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rsnet::cluster::Times;

use super::world::*;

const SMALL: &str = "10.80.0.0/25";

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

async fn schedule(seed: u64, takeover: bool) {
    let (_dir, store) = embedded();
    let grace = if takeover { Duration::from_millis(100) } else { Duration::from_secs(3600) };
    let times = Times { grace, rebuild: Duration::from_millis(500), answer: Duration::from_millis(200), ..times() };
    let hosts: Arc<Vec<Host>> =
        Arc::new((1..=5).map(|n| Host::start_as(&store, &format!("h{n}"), n, &format!("{n}"), vec![], times)).collect());
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
        let mut dice = StdRng::seed_from_u64(seed * 100 + at as u64);
        async move {
            for _ in 0..25 {
                match dice.random_range(0..9) {
                    0..=2 => drop(host.cluster.join(&wanted(&[SMALL])).await),
                    3 => host.cluster.leave(&[net(SMALL)]).await,
                    4 | 5 => drop(host.cluster.grow(net(SMALL)).await),
                    6 => host.cut(true),
                    7 if host.is_cut() => host.expire().await,
                    7 => {
                        let address = std::net::IpAddr::from([10, 80, 0, dice.random_range(2..120)]);
                        drop(host.cluster.claim(net(SMALL), address).await);
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
        let in_it: Vec<&Host> = hosts.iter().filter(|host| host.view().of(net(SMALL)).is_some()).collect();
        let doubles = doubles(&hosts);
        if doubles.is_empty() { agree(&in_it, SMALL) } else { Err(format!("{doubles:?}")) }
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
        join_all(group.iter().map(|seed| schedule(*seed, false))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_blocks_are_taken_from_the_dead_all_agree_in_the_end() {
    for group in (100..130u64).collect::<Vec<_>>().chunks(10) {
        join_all(group.iter().map(|seed| schedule(*seed, true))).await;
    }
}
