//! A host that is cut off from the store, and not from its peers: what it hears from them of its own blocks.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rsnet::cluster::Times;
use rsnet::store::{Key, Leases, Op};

use super::world::*;

/// Four blocks of four.
const SMALL: &str = "10.70.0.0/28";
const BLUE: &str = "10.50.0.0/16";

/// Hosts a and b have two blocks each, which is all there are; c has none. They renew their leases three times in `lease`.
async fn full(store: &Arc<dyn Leases>, lease: Duration) -> [Host; 3] {
    let times = Times { lease, ..times() };
    let start = |(name, number): (&str, u8)| Host::start_as(store, name, number, name, vec![], times);
    let [a, b, c] = [("a", 1), ("b", 2), ("c", 3)].map(start);
    for host in [&a, &b] {
        host.cluster.join(&wanted(&[SMALL])).await.unwrap();
        host.cluster.grow(net(SMALL)).await.unwrap();
    }
    until("a full subnet", || agree(&[&a, &b], SMALL)).await;
    [a, b, c]
}

async fn gone(host: &Host, seen_by: &[&Host]) {
    host.cut(true);
    host.expire().await;
    let is_gone = |by: &&Host| by.view().hosts.iter().any(|other| other.name == host.name && !other.alive);
    until("it to be gone", || when(seen_by.iter().all(is_gone))).await;
}

/// The first block that a host gets.
async fn joins(host: &Host) -> IpNet {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match host.cluster.join(&wanted(&[SMALL])).await {
            Ok(share) => return share.mine.blocks[0],
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(times().again).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_cut_off_uses_no_block_any_more_that_a_peer_knows_to_be_taken() {
    let (_dir, store) = embedded();
    let [a, b, c] = full(&store, times().lease).await;
    gone(&a, &[&b, &c]).await;
    assert_eq!([a.ask(&b), a.ask(&c)], [vec![], vec![]], "nobody has taken anything");
    let taken = joins(&c).await;
    assert!(a.mine().contains(&taken), "a does not know of it");
    until("b to know", || when(b.peers(SMALL).contains(&("c".into(), taken)))).await;
    let inquiry = a.cluster.inquiry().unwrap();
    assert_eq!(a.ask(&b), [taken]);
    assert!(a.is_cut() && a.mine().len() == 1 && !a.mine().contains(&taken), "{:?}", a.mine());
    assert_eq!(a.standing(SMALL).lost, [(taken, "c".to_owned())].into());
    assert_eq!([a.ask(&b), a.ask(&c)], [vec![], vec![]], "what it has left is its own");
    a.cut(false);
    until("agreement", || agree(&[&a, &b, &c], SMALL)).await;
    assert_eq!(a.mine().len(), 1);
    assert_eq!(b.cluster.testimony(&inquiry).len(), 1);
    b.cut(true);
    until("b to be silent once it is cut off itself", || when(!b.view().in_touch && b.cluster.testimony(&inquiry).is_empty())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_was_forgotten_goes_on_until_another_has_its_block() {
    let (_dir, store) = embedded();
    let [a, b, c] = full(&store, times().lease).await;
    gone(&a, &[&b, &c]).await;
    b.cluster.forget("a").await.unwrap();
    until("all to have heard", || when([&b, &c].iter().all(|host| host.view().hosts.iter().all(|other| other.name != "a")))).await;
    assert_eq!([a.ask(&b), a.ask(&c)], [vec![], vec![]], "its blocks are nobody's");
    let taken = joins(&c).await;
    until("c to have heard of itself", || when(!a.ask(&c).is_empty())).await;
    assert_eq!(a.standing(SMALL).lost, [(taken, "c".to_owned())].into());
    a.cut(false);
    until("agreement", || agree(&[&a, &b, &c], SMALL)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_of_a_forgotten_hosts_block_is_enough() {
    let (_dir, store) = embedded();
    let (a, b) = (Host::start(&store, "a", 1), Host::start(&store, "b", 2));
    for host in [&a, &b] {
        host.cluster.join(&wanted(&[BLUE])).await.unwrap();
    }
    let block = *a.mine().first().unwrap();
    let address: IpAddr = block.hosts().nth(5).unwrap();
    gone(&a, &[&b]).await;
    b.cluster.forget("a").await.unwrap();
    b.cluster.claim(net(BLUE), address).await.unwrap();
    until("a to hear of it", || when(a.ask(&b) == [block])).await;
    assert_eq!((a.mine().len(), a.standing(BLUE).lost), (0, [(block, "b".to_owned())].into()));
}

/// It gave the block back, and another host has it since.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_says_that_is_itself_behind_takes_nothing_away() {
    let (_dir, store) = embedded();
    // it does not notice that it is cut off, else it would say nothing at all
    let [a, b, c] = full(&store, Duration::from_secs(600)).await;
    b.cut(true);
    let behind = a.mine();
    a.cluster.leave(&[net(SMALL)]).await;
    let freed = recorded(&store).await.len();
    assert_eq!(freed, 2, "only b's are left");
    joins(&c).await;
    c.cluster.grow(net(SMALL)).await.unwrap();
    assert_eq!(c.mine(), behind);
    let said = b.cluster.testimony(&carried(&c.cluster.inquiry().unwrap()));
    assert_eq!(said.len(), 2, "it believes that they are a's: {said:?}");
    assert_eq!((c.cluster.heed(&carried(&said)), c.mine()), (vec![], behind));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_store_is_away_for_all_or_lost_all_nobody_loses_anything() {
    let (_dir, store) = embedded();
    let hosts = full(&store, times().lease).await;
    hosts[2].cluster.join(&wanted(&[BLUE])).await.unwrap();
    let before = hosts.each_ref().map(Host::mine);
    let nobody_loses = || {
        for (one, other) in hosts.iter().flat_map(|one| hosts.iter().map(move |other| (one, other))) {
            assert_eq!(one.ask(other), [], "{} by the word of {}", one.name, other.name);
        }
    };
    hosts.iter().for_each(|host| host.cut(true));
    until("all to notice", || {
        nobody_loses();
        when(hosts.iter().all(|host| !host.view().in_touch))
    })
    .await;
    nobody_loses();
    store.commit(vec![Op::DeleteBelow(Key::new("cluster").unwrap())]).await.unwrap();
    hosts[1..].iter().for_each(|host| host.cut(false));
    until("the others to have written again what they had", || {
        nobody_loses();
        when(hosts[1].peers(SMALL).is_empty())
    })
    .await;
    assert_eq!(hosts.each_ref().map(Host::mine), before);
}
