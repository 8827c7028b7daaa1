//! What hosts of a network go through, on the embedded store; `consul` repeats the part that depends on the store.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use ipnet::IpNet;
use rsnet::cluster::Wanted;
use rsnet::model::{Mac, Segment};
use rsnet::store::{Expect, Key, Leases, Op};

use super::world::*;

const BLUE: &str = "10.50.0.0/16";

/// Eight hosts that all join at once, in agreement.
pub async fn eight(store: &Arc<dyn Leases>) -> Vec<Host> {
    let hosts: Vec<Host> = (1..=8).map(|n| Host::start(store, &format!("h{n}"), n)).collect();
    let wanted = wanted(&[BLUE, "fd00:50::/64"]);
    let shares = join_all(hosts.iter().map(|host| host.cluster.join(&wanted))).await;
    let vnis: std::collections::BTreeSet<u32> = shares.into_iter().map(|share| share.unwrap().vni).collect();
    assert_eq!(vnis.len(), 1, "{vnis:?}");
    let all: Vec<&Host> = hosts.iter().collect();
    until("agreement", || agree(&all, BLUE)).await;
    hosts
}

/// Hosts a and b, in agreement.
async fn two(store: &Arc<dyn Leases>) -> (Host, Host) {
    let (a, b) = (Host::start(store, "a", 1), Host::start(store, "b", 2));
    for host in [&a, &b] {
        host.cluster.join(&wanted(&[BLUE])).await.unwrap();
    }
    until("agreement", || agree(&[&a, &b], BLUE)).await;
    (a, b)
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_hosts_that_join_at_once_have_one_number_and_no_block_twice() {
    let (_dir, store) = embedded();
    let hosts = eight(&store).await;
    for host in &hosts {
        let mine = host.standing(BLUE).share.mine;
        assert_eq!((mine.blocks.len(), mine.homes.len()), (2, 2), "one block and one home of each family: {mine:?}");
        assert!(mine.homes.iter().all(|home| mine.blocks.iter().any(|block| block.contains(home))));
    }
    let more = hosts[0].cluster.grow(net(BLUE)).await.unwrap();
    until("the second block", || when(hosts[7].peers(BLUE).contains(&("h1".into(), more)))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_networks_have_two_numbers_and_nothing_idle_is_written() {
    let (_dir, store) = embedded();
    let (a, b) = (Host::start(&store, "a", 1), Host::start(&store, "b", 2));
    let (blue, red) = (wanted(&[BLUE]), wanted(&["10.60.0.0/16"]));
    let (blue, red) = tokio::join!(a.cluster.join(&blue), b.cluster.join(&red));
    assert_ne!(blue.unwrap().vni, red.unwrap().vni);
    until("rest", || when(a.view().in_touch && b.view().in_touch && a.view().hosts.len() == 2)).await;
    // what was joined is settled some time after; then there is nothing to write any more
    let mut since = Instant::now();
    until("a second in which nothing is written", || {
        if [&a, &b].iter().any(|host| host.line.wrote.swap(false, Ordering::SeqCst)) {
            since = Instant::now();
        }
        when(since.elapsed() > Duration::from_secs(1))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_or_overlaps_is_refused_in_words() {
    let (_dir, store) = embedded();
    let (a, b) = (Host::start(&store, "a", 1), Host::start(&store, "b", 2));
    let mut blue = wanted(&[BLUE]);
    a.cluster.join(&blue).await.unwrap();
    blue.options.insert("mtu".into(), "9000".into());
    let error = b.cluster.join(&blue).await.unwrap_err().to_string();
    assert!(error.contains("option mtu is 9000 here and not given on host a, which made it"), "{error}");
    let error = b.cluster.join(&wanted(&["10.50.4.0/22"])).await.unwrap_err().to_string();
    assert!(error.contains("10.50.4.0/22") && error.contains("the network of 10.50.0.0/16"), "{error}");
    let mut taken = wanted(&[BLUE]);
    taken.foreign_vnis.insert(a.standing(BLUE).share.vni);
    let error = b.cluster.join(&taken).await.unwrap_err().to_string();
    assert!(error.contains("is that of another VXLAN device on this host"), "{error}");
    assert!(b.mine().is_empty() && recorded(&store).await.len() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_record_of_a_network_goes_with_its_last_block() {
    let (_dir, store) = embedded();
    let (a, b) = (Host::start(&store, "a", 1), Host::start(&store, "b", 2));
    let blue = wanted(&[BLUE, "fd00:50::/64"]);
    let first = a.cluster.join(&blue).await.unwrap();
    b.cluster.join(&blue).await.unwrap();
    a.cluster.leave(&blue.subnets).await;
    assert!(networks(&store).await.contains(BLUE));
    until("one host", || when(b.peers(BLUE).is_empty())).await;
    b.cluster.leave(&blue.subnets).await;
    assert_eq!((recorded(&store).await, networks(&store).await.contains(BLUE)), (vec![], false));
    let again = a.cluster.join(&blue).await.unwrap();
    assert_eq!((again.vni, again.mine), (first.vni, first.mine), "the same again");
    until("a to hear that b left", || when(a.peers(BLUE).is_empty())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_while_the_store_is_down_gives_back_later() {
    let (_dir, store) = embedded();
    let a = Host::start(&store, "a", 1);
    a.cluster.join(&wanted(&[BLUE])).await.unwrap();
    a.cut(true);
    a.cluster.leave(&[net(BLUE)]).await;
    assert!(a.view().networks.is_empty());
    assert_eq!(recorded(&store).await.len(), 1);
    a.cut(false);
    let deadline = Instant::now() + PATIENCE;
    while !recorded(&store).await.is_empty() || networks(&store).await.contains(BLUE) {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// No view loses a peer at any time while `what` happens; afterwards all agree and hold what they held.
pub async fn keeps_all(hosts: &[Host], what: impl AsyncFnOnce()) {
    let all: Vec<&Host> = hosts.iter().collect();
    let before: Vec<_> = hosts.iter().map(|host| host.standing(BLUE)).collect();
    let watched = hosts.iter().zip(&before).map(|(host, before)| {
        let (mut views, before, name) = (host.cluster.views(), before.clone(), host.name.clone());
        tokio::spawn(async move {
            loop {
                let now = views.borrow_and_update().of(net(BLUE)).cloned();
                assert_eq!(now.as_ref(), Some(&before), "{name}");
                if views.changed().await.is_err() {
                    return;
                }
            }
        })
    });
    let watched: Vec<_> = watched.collect();
    what().await;
    for task in watched {
        task.abort();
        let ended = task.await;
        assert!(ended.as_ref().is_err_and(tokio::task::JoinError::is_cancelled), "{ended:?}");
    }
    agree(&all, BLUE).unwrap();
}

pub async fn await_records(store: &Arc<dyn Leases>, wanted: &[String]) {
    let deadline = Instant::now() + PATIENCE;
    while store.list(&rsnet::store::Prefix::all()).await.is_err() || recorded(store).await != wanted {
        assert!(Instant::now() < deadline, "{:?}", recorded(store).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_store_is_rebuilt_and_nobody_loses_a_peer() {
    let (_dir, store) = embedded();
    let hosts = eight(&store).await;
    let (records, table) = (recorded(&store).await, networks(&store).await);
    keeps_all(&hosts, async || {
        for _ in 0..2 {
            store.commit(vec![Op::DeleteBelow(Key::new("cluster").unwrap())]).await.unwrap();
            await_records(&store, &records).await;
            tokio::time::sleep(times().rebuild + Duration::from_millis(500)).await;
        }
    })
    .await;
    assert_eq!(networks(&store).await.replace(char::is_numeric, ""), table.replace(char::is_numeric, ""));
    assert!(hosts[0].view().hosts.iter().all(|host| host.alive), "{:?}", hosts[0].view().hosts);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_starts_again_and_joins_at_once_keeps_its_peers_whether_the_store_is_empty_or_not() {
    let (_dir, store) = embedded();
    let (a, b) = two(&store).await;
    let held = a.standing(BLUE).share;
    drop(a);
    for round in 0..40 {
        b.cut(round >= 20);
        if round >= 20 {
            store.commit(vec![Op::DeleteBelow(Key::new("cluster").unwrap()), Op::DeleteBelow(Key::new("lease").unwrap())]).await.unwrap();
        }
        let a = [Host::start_as(&store, "a", 1, "a", vec![(wanted(&[BLUE]), held.clone())], times())];
        let (mut views, blue) = (a[0].cluster.views(), a[0].standing(BLUE));
        let join = async {
            a[0].cluster.join(&wanted(&["10.60.0.0/16"])).await.unwrap();
            tokio::time::sleep(Duration::from_millis(40)).await;
        };
        let seen = async {
            while views.changed().await.is_ok() {
                assert_eq!(views.borrow_and_update().of(net(BLUE)), Some(&blue), "round {round}");
            }
        };
        tokio::select! { () = join => {}, () = seen => {} }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_claims_again_after_a_wipe_goes_when_its_time_is_over() {
    let (_dir, store) = embedded();
    let (a, b) = two(&store).await;
    b.cut(true);
    let start = Instant::now();
    store.commit(vec![Op::DeleteBelow(Key::new("cluster").unwrap())]).await.unwrap();
    until("b to be dropped", || when(a.peers(BLUE).is_empty())).await;
    assert!(start.elapsed() >= times().rebuild, "{:?}", start.elapsed());
    b.cut(false);
    until("agreement", || agree(&[&a, &b], BLUE)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_store_all_stays_and_what_is_new_is_refused() {
    let (_dir, store) = embedded();
    let hosts = eight(&store).await;
    keeps_all(&hosts, async || {
        hosts.iter().for_each(|host| host.cut(true));
        until("it to show", || when(hosts.iter().all(|host| !host.view().in_touch || host.view().networks.len() == 1))).await;
        let error = hosts[0].cluster.grow(net(BLUE)).await.unwrap_err().to_string();
        assert!(error.contains("10.50.0.0/16") && error.contains("the line is cut"), "{error}");
        assert!(hosts[0].cluster.join(&wanted(&["10.60.0.0/16"])).await.is_err());
        tokio::time::sleep(Duration::from_secs(3)).await;
        hosts.iter().for_each(|host| host.cut(false));
        tokio::time::sleep(Duration::from_secs(1)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_hosts_block_is_taken_only_after_the_grace_and_only_in_need() {
    let (_dir, store) = embedded();
    let small = "10.70.0.0/28";
    let (a, b, c) = (Host::start(&store, "a", 1), Host::start(&store, "b", 2), Host::start(&store, "c", 3));
    for host in [&a, &b] {
        host.cluster.join(&wanted(&[small])).await.unwrap();
        host.cluster.grow(net(small)).await.unwrap();
    }
    until("a full subnet", || agree(&[&a, &b], small)).await;
    let error = c.cluster.join(&wanted(&[small])).await.unwrap_err().to_string();
    let said = ["of 10.70.0.0/28: no block of it is free, and no other host lends an address: ", "a: does not answer", "a larger subnet"];
    assert!(said.iter().all(|said| error.contains(said)), "{error}");
    assert!(c.mine().is_empty() && c.view().networks.is_empty());
    a.cut(true);
    a.expire().await;
    until("a to be gone", || when(c.view().hosts.iter().any(|host| host.name == "a" && !host.alive))).await;
    assert!(c.cluster.join(&wanted(&[small])).await.is_err(), "before the grace is over");
    assert_eq!(b.peers(small).len(), 2, "what a has stays until somebody needs it");
    let joined = async {
        loop {
            match c.cluster.join(&wanted(&[small])).await {
                Ok(share) => break share,
                Err(_) => tokio::time::sleep(times().again).await,
            }
        }
    };
    let taken = tokio::time::timeout(20 * times().grace, joined).await.expect("a block once the grace is over").mine.blocks[0];
    assert!(a.mine().contains(&taken));
    until("the taking", || when(b.peers(small).contains(&("c".into(), taken)) && !b.peers(small).contains(&("a".into(), taken)))).await;
    a.cut(false);
    until("a to fence itself", || when(a.standing(small).lost.get(&taken).is_some_and(|owner| owner == "c"))).await;
    assert!(!a.mine().contains(&taken) && a.mine().len() == 1);
    until("agreement", || agree(&[&a, &b, &c], small)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_machine_of_a_name_is_refused_until_the_first_is_dead() {
    let (_dir, store) = embedded();
    let (other, old) = (Host::start(&store, "other", 9), Host::start(&store, "a", 1));
    for host in [&other, &old] {
        host.cluster.join(&wanted(&[BLUE])).await.unwrap();
    }
    let new = Host::start_as(&store, "a", 2, "another machine", vec![], times());
    let error = new.cluster.join(&wanted(&[BLUE])).await.unwrap_err().to_string();
    assert!(error.contains("another machine of that name is alive at 192.0.2.1"), "{error}");
    old.cut(true);
    old.expire().await;
    new.cluster.join(&wanted(&[BLUE])).await.unwrap();
    until("the new machine at its place", || agree(&[&other, &new], BLUE)).await;
    old.cut(false);
    until("the old one to fence itself", || when(old.mine().is_empty())).await;
    until("agreement", || agree(&[&other, &new], BLUE)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_host_is_forgotten_and_a_living_one_is_not() {
    let (_dir, store) = embedded();
    let (a, b) = two(&store).await;
    let error = a.cluster.forget("b").await.unwrap_err().to_string();
    assert!(error.contains("it is alive"), "{error}");
    assert!(a.cluster.forget("nobody").await.unwrap_err().to_string().contains("knows no such host"));
    b.cut(true);
    b.expire().await;
    a.cluster.forget("b").await.unwrap();
    until("b to be forgotten", || when(a.peers(BLUE).is_empty() && a.view().hosts.len() == 1)).await;
    b.cut(false);
    until("its return", || agree(&[&a, &b], BLUE)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_is_claimed_lent_refused_or_not_answered_for() {
    let (_dir, store) = embedded();
    let (a, b) = two(&store).await;
    let block = *b.mine().first().unwrap();
    let mut inside = block.hosts().skip(5);
    let (lent, busy) = (inside.next().unwrap(), inside.next().unwrap());
    let error = a.cluster.claim(net(BLUE), lent).await.unwrap_err().to_string();
    assert!(error.contains("belongs to host b, which does not answer"), "{error}");
    let owner = Arc::new(Owner { refuses: Some(busy), free: Default::default(), lent: Default::default() });
    b.cluster.lend_by(owner.clone());
    a.cluster.claim(net(BLUE), lent).await.unwrap();
    assert_eq!(*owner.lent.lock().unwrap(), [(lent, "a".to_owned())]);
    until("b to keep it", || when(b.standing(BLUE).kept.contains(&lent))).await;
    let error = a.cluster.claim(net(BLUE), busy).await.unwrap_err().to_string();
    assert!(error.contains("host b has it (container web)"), "{error}");
    until("agreement", || agree(&[&a, &b], BLUE)).await;
    let free = address("10.50.77.7");
    assert!(!a.peers(BLUE).iter().any(|(_, block)| block.contains(&free)));
    a.cluster.claim(net(BLUE), free).await.unwrap();
    let error = b.cluster.claim(net(BLUE), free).await.unwrap_err().to_string();
    assert!(error.contains("host a has it"), "{error}");
    assert!(a.cluster.claim(net(BLUE), address("10.50.0.1")).await.unwrap_err().to_string().contains("no container can have it"));
    until("agreement", || agree(&[&a, &b], BLUE)).await;
    a.cluster.release(net(BLUE), lent).await;
    a.cluster.release(net(BLUE), free).await;
    until("b to have it back", || when(!b.standing(BLUE).kept.contains(&lent))).await;
    assert_eq!(recorded(&store).await.len(), 2);
    let asks = store.list(&rsnet::store::Prefix::below(&Key::new("cluster/ask").unwrap())).await.unwrap();
    assert_eq!(asks, [], "no question is left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_seen_gone_a_moment_ago_is_asked_all_the_same() {
    let (_dir, store) = embedded();
    let (a, b) = two(&store).await;
    let lent = b.mine().first().unwrap().hosts().nth(5).unwrap();
    b.cluster.lend_by(Arc::new(Owner { refuses: None, free: vec![].into(), lent: Default::default() }));
    b.cut(true);
    b.expire().await;
    until("b to be gone", || when(a.view().hosts.iter().any(|host| host.name == "b" && !host.alive))).await;
    let ((), claimed) = tokio::join!(async { b.cut(false) }, a.cluster.claim(net(BLUE), lent));
    claimed.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_several_lend_one_is_borrowed_and_the_rest_goes_back() {
    let (_dir, store) = embedded();
    let hosts = ["a", "b", "c", "d"].map(|name| Host::start(&store, name, name.as_bytes()[0]));
    for host in &hosts {
        host.cluster.join(&wanted(&[BLUE])).await.unwrap();
    }
    let all: Vec<&Host> = hosts.iter().collect();
    until("agreement", || agree(&all, BLUE)).await;
    let lent: Vec<IpAddr> = hosts[1..].iter().map(|host| host.mine().first().unwrap().hosts().nth(5).unwrap()).collect();
    for (host, address) in hosts[1..].iter().zip(&lent) {
        host.cluster.lend_by(Arc::new(Owner { refuses: None, free: vec![*address].into(), lent: Default::default() }));
    }
    let kept = |host: &Host| host.standing(BLUE).kept.iter().any(|address| lent.contains(address));
    let borrowed = [hosts[0].cluster.borrow(net(BLUE)).await.unwrap(), hosts[0].cluster.borrow(net(BLUE)).await.unwrap()];
    assert!(lent.contains(&borrowed[0]) && lent.contains(&borrowed[1]) && borrowed[0] != borrowed[1]);
    until("two to be lent and no more", || when(hosts[1..].iter().filter(|host| kept(host)).count() == 2)).await;
    for address in borrowed {
        hosts[0].cluster.release(net(BLUE), address).await;
    }
    until("all to have their own", || when(!hosts.iter().any(kept))).await;
    assert!(hosts[0].cluster.borrow(net(BLUE)).await.unwrap_err().to_string().contains("b: has none free"));
}

/// Hosts a and b have all of the small subnet's four blocks, and a lends some addresses; c comes.
pub async fn lodge(store: &Arc<dyn Leases>) {
    let small = "10.70.0.0/28";
    let wanted = wanted(&[small, "fd00:70::/64"]);
    let [a, b, c] = ["a", "b", "c"].map(|name| Host::start(store, name, name.as_bytes()[0]));
    for host in [&a, &b] {
        host.cluster.join(&wanted).await.unwrap();
        host.cluster.grow(net(small)).await.unwrap();
    }
    // no block's first but that of the gateway's, nor the broadcast
    let spare = |block: &IpNet| if block.contains(&address("10.70.0.1")) { address("10.70.0.3") } else { block.hosts().last().unwrap() };
    let free: Vec<IpAddr> = a.mine().iter().filter(|block| net(small).contains(*block)).map(spare).collect();
    let (free, lent) = (free.into(), Default::default());
    a.cluster.lend_by(Arc::new(Owner { refuses: None, free, lent }));
    b.cluster.lend_by(Arc::new(Owner { refuses: None, free: Default::default(), lent: Default::default() }));
    let mine = c.cluster.join(&wanted).await.unwrap().mine;
    let home = mine.homes[0];
    assert_eq!(
        (mine.blocks[0], mine.blocks[1].prefix_len(), mine.homes.len()),
        (home.into(), 112, 2),
        "of the other family a block: {mine:?}"
    );
    let all = [&a, &b, &c];
    until("agreement", || agree(&all, small)).await;
    until("its home to be kept by both", || when([&a, &c].iter().all(|host| host.standing(small).kept.contains(&home)))).await;
    let borrowed = c.cluster.borrow(net(small)).await.unwrap();
    assert!(borrowed != home && !c.standing(small).kept.contains(&borrowed), "this one is a container's");
    until("agreement", || agree(&all, small)).await;
    for address in [home, borrowed] {
        c.cluster.release(net(small), address).await;
    }
    until("one to be back", || when(!a.standing(small).kept.contains(&borrowed))).await;
    // what it is at home at is its own through a loss of all keys, a start and a block that comes
    let records = recorded(store).await;
    store.commit(vec![Op::DeleteBelow(Key::new("cluster").unwrap())]).await.unwrap();
    await_records(store, &records).await;
    let held = c.standing(small).share;
    assert_eq!(held.mine, mine);
    drop(c);
    let c = Host::start_as(store, "c", b'c', "c", vec![(wanted.clone(), held.clone())], times());
    assert_eq!(c.standing(small).share, held, "before anything was asked");
    b.cluster.leave(&wanted.subnets).await;
    let block = c.cluster.grow(net(small)).await.unwrap();
    until("agreement", || agree(&[&a, &c], small)).await;
    let now = c.standing(small).share.mine;
    assert!(now.homes == mine.homes && now.blocks.contains(&block), "{now:?}");
    c.cluster.leave(&wanted.subnets).await;
    until("a to have it back", || when(!a.standing(small).kept.contains(&home))).await;
    until("agreement", || agree(&[&a], small)).await;
    assert_eq!(recorded(store).await.len(), 3, "what a has");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_block_is_at_home_at_an_address_that_another_lent() {
    let (_dir, store) = embedded();
    lodge(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_come_at_once_the_last_address_is_ones_home() {
    let (_dir, store) = embedded();
    let small = "10.70.0.0/28";
    let [a, b, c] = ["a", "b", "c"].map(|name| Host::start(&store, name, name.as_bytes()[0]));
    a.cluster.join(&wanted(&[small])).await.unwrap();
    while a.cluster.grow(net(small)).await.is_ok() {}
    let last = a.mine().last().unwrap().hosts().last().unwrap();
    a.cluster.lend_by(Arc::new(Owner { refuses: None, free: vec![last].into(), lent: Default::default() }));
    let wanted = wanted(&[small]);
    let (b_has, c_has) = tokio::join!(b.cluster.join(&wanted), c.cluster.join(&wanted));
    let (host, share, refused) = match (b_has, c_has) {
        (Ok(share), Err(error)) => (&b, share, error),
        (Err(error), Ok(share)) => (&c, share, error),
        both => panic!("{both:?}"),
    };
    assert_eq!(share.mine.homes, [last]);
    assert!(refused.to_string().contains("a: has none free"), "{refused}");
    until("agreement", || agree(&[&a, host], small)).await;
}

/// Of a host that asks and is gone before anybody hears that it had the address.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_lent_and_given_back_unheard_of_is_the_lenders_again() {
    let (_dir, store) = embedded();
    let quick = rsnet::cluster::Times { limit: Duration::from_secs(1), ..times() };
    let a = Host::start_as(&store, "a", 1, "a", vec![], quick);
    a.cluster.join(&wanted(&[BLUE])).await.unwrap();
    let spare = a.mine().first().unwrap().hosts().nth(5).unwrap();
    let owner = Arc::new(Owner { refuses: None, free: vec![spare].into(), lent: Default::default() });
    a.cluster.lend_by(owner.clone());
    let ask = format!(r#"{{"host":"z","id":"z","subnet":"{BLUE}","refused":null}}"#);
    store.put(&Key::new("cluster/ask/a/10.50.0.0/z").unwrap(), ask.into(), Expect::Absent).await.unwrap();
    let given = Key::new(format!("cluster/block/10.50.0.0-16/{spare}-32")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while store.get(&given).await.unwrap().is_none() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(*owner.lent.lock().unwrap(), [(spare, "z".to_owned())]);
    // it is z's for as long as the store says so, and no longer
    tokio::time::sleep(3 * quick.limit).await;
    assert_eq!(owner.lent.lock().unwrap().len(), 1);
    store.commit(vec![Op::Delete(given, Expect::Any)]).await.unwrap();
    until("it to be back", || when(owner.lent.lock().unwrap().is_empty())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_starts_again_has_what_its_disk_says_and_gives_back_the_rest() {
    let (_dir, store) = embedded();
    let (a, b) = (Host::start(&store, "a", 1), Host::start(&store, "b", 2));
    let (blue, red) = (wanted(&[BLUE]), wanted(&["10.60.0.0/16"]));
    b.cluster.join(&blue).await.unwrap();
    a.cluster.join(&blue).await.unwrap();
    until("agreement", || agree(&[&a, &b], BLUE)).await;
    let (held, name) = (a.standing(BLUE).share, a.name.clone());
    a.cluster.grow(net(BLUE)).await.unwrap();
    a.cluster.join(&red).await.unwrap();
    drop(a);
    let short = rsnet::cluster::Times { sweep: Duration::from_millis(100), ..times() };
    let a = Host::start_as(&store, &name, 1, &name, vec![(blue, held.clone())], short);
    assert_eq!(a.standing(BLUE).share, held, "before anything was asked");
    await_gone(&store, 2).await;
    until("agreement", || agree(&[&a, &b], BLUE)).await;
    assert_eq!(a.standing(BLUE).share, held);
    assert!(!networks(&store).await.contains("10.60"));
}

async fn await_gone(store: &Arc<dyn Leases>, left: usize) {
    let deadline = Instant::now() + PATIENCE;
    while recorded(store).await.len() != left || networks(store).await.contains("10.60") {
        assert!(Instant::now() < deadline, "{:?}", recorded(store).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_records_are_written_again_by_their_owner() {
    let (_dir, store) = embedded();
    let short = rsnet::cluster::Times { sweep: Duration::from_millis(100), ..times() };
    let hosts: Vec<Host> = (1..=3).map(|n| Host::start_as(&store, &format!("h{n}"), n, &format!("{n}"), vec![], short)).collect();
    for host in &hosts {
        host.cluster.join(&wanted(&[BLUE])).await.unwrap();
    }
    let all: Vec<&Host> = hosts.iter().collect();
    until("agreement", || agree(&all, BLUE)).await;
    for prefix in ["cluster/block", "cluster/host"] {
        let prefix = rsnet::store::Prefix::below(&Key::new(prefix).unwrap());
        let (damaged, gone) = match &store.list(&prefix).await.unwrap()[..] {
            [damaged, gone, ..] => (damaged.key.clone(), gone.key.clone()),
            found => panic!("{found:?}"),
        };
        store.commit(vec![Op::Put(damaged.clone(), b"{".into(), Expect::Any), Op::Delete(gone.clone(), Expect::Any)]).await.unwrap();
        let deadline = Instant::now() + PATIENCE;
        for key in [damaged, gone] {
            while store.get(&key).await.unwrap().is_none_or(|entry| entry.value == b"{") {
                assert!(Instant::now() < deadline, "{key}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        until("agreement", || agree(&all, BLUE)).await;
    }
    assert!(hosts.iter().all(|host| host.standing(BLUE).lost.is_empty()));
}

fn lan(own: &str) -> Wanted {
    let segment = Segment { ranges: vec![net("10.77.0.64/27")], own: vec![address(own)] };
    let options = [("mode".to_owned(), "macvlan".to_owned()), ("--ip-range".to_owned(), "10.77.0.64/27".to_owned())].into();
    Wanted { segment: Some(segment), options, ..wanted(&["10.77.0.0/24"]) }
}

const LAN: &str = "10.77.0.0/24";

#[tokio::test(flavor = "multi_thread")]
async fn a_lan_has_no_number_and_blocks_of_its_range_without_the_hosts_own_addresses() {
    let (_dir, store) = embedded();
    let (a, b) = (Host::start(&store, "a", 1), Host::start(&store, "b", 2));
    a.cluster.join(&lan("10.77.0.66")).await.unwrap();
    b.cluster.join(&lan("10.77.0.67")).await.unwrap();
    while a.cluster.grow(net(LAN)).await.is_ok() {}
    let a_and_b = [&a, &b];
    until("agreement", || agree(&a_and_b, LAN)).await;
    let all: BTreeSet<IpNet> = a.mine().union(&b.mine()).copied().collect();
    assert!(all.len() == 8 && all.iter().all(|block| block.prefix_len() == 30 && net("10.77.0.64/27").contains(block)), "{all:?}");
    let standing = a.standing(LAN);
    assert_eq!((standing.share.vni, standing.share.mine.homes), (0, vec![address("10.77.0.66")]));
    let kept: Vec<_> = a_and_b.iter().flat_map(|host| host.standing(LAN).kept).collect();
    let own = [address("10.77.0.66"), address("10.77.0.67")];
    assert!(own.iter().all(|own| kept.contains(own)) && kept.len() == 2, "whoever has the block keeps them: {kept:?}");
    b.cluster.stand_at(&[net(LAN)], &[address("10.77.0.70")]);
    until("the new address to be heard of", || {
        let kept: Vec<_> = a_and_b.iter().flat_map(|host| host.standing(LAN).kept).collect();
        when(kept.contains(&address("10.77.0.70")) && !kept.contains(&address("10.77.0.67")))
    })
    .await;
    let mut wide = lan("10.77.0.68");
    wide.options.insert("--ip-range".into(), "10.77.0.64/26".into());
    let error = Host::start(&store, "c", 3).cluster.join(&wide).await.unwrap_err().to_string();
    assert!(error.contains("option --ip-range is 10.77.0.64/26 here and 10.77.0.64/27 on host a"), "{error}");
    let error = Host::start(&store, "d", 4).cluster.join(&wanted(&[LAN])).await.unwrap_err().to_string();
    assert!(error.contains("option --ip-range is not given here"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_block_on_a_lan_is_there_without_and_borrows_for_its_containers() {
    let (_dir, store) = embedded();
    let [a, b] = ["a", "b"].map(|name| Host::start(&store, name, name.as_bytes()[0]));
    a.cluster.join(&lan("10.77.0.3")).await.unwrap();
    while a.cluster.grow(net(LAN)).await.is_ok() {}
    let lent = a.mine().first().unwrap().addr();
    a.cluster.lend_by(Arc::new(Owner { refuses: None, free: vec![lent].into(), lent: Default::default() }));
    let mine = b.cluster.join(&lan("10.77.0.70")).await.unwrap().mine;
    assert_eq!((mine.blocks, mine.homes), (vec![], vec![address("10.77.0.70")]));
    let own = || when(a.standing(LAN).kept.contains(&address("10.77.0.70")));
    until("its own address to be kept", own).await;
    until("agreement", || agree(&[&a, &b], LAN)).await;
    assert_eq!(a.standing(LAN).share.peers.len(), 1);
    assert_eq!(b.cluster.borrow(net(LAN)).await.unwrap(), lent);
    b.cluster.release(net(LAN), lent).await;
    until("it to be back", || when(!a.standing(LAN).kept.contains(&lent))).await;
    own().unwrap();
    let held = b.standing(LAN).share;
    drop(b);
    let b = Host::start_as(&store, "b", b'b', "b", vec![(lan("10.77.0.70"), held.clone())], times());
    assert_eq!(b.standing(LAN).share, held);
    b.cluster.leave(&[net(LAN)]).await;
    until("b to be gone", || when(a.standing(LAN).share.peers.is_empty())).await;
}

async fn macs(store: &Arc<dyn Leases>) -> Vec<String> {
    let entries = store.list(&rsnet::store::Prefix::below(&Key::new("cluster/mac").unwrap())).await.unwrap();
    entries.into_iter().map(|entry| entry.key.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mac_is_one_hosts_until_that_gives_it_up_or_is_gone_for_long() {
    let (_dir, store) = embedded();
    let (a, b) = (Host::start(&store, "a", 1), Host::start(&store, "b", 2));
    for (host, own) in [(&a, "10.77.0.66"), (&b, "10.77.0.67")] {
        host.cluster.join(&lan(own)).await.unwrap();
    }
    let mac: Mac = "02:00:00:00:00:77".parse().unwrap();
    let claim = async |host: &Host| host.cluster.claim_mac(net(LAN), mac, "10.77.0.80").await.map_err(|error| error.to_string());
    // at once: one of them
    let (one, other) = tokio::join!(claim(&a), claim(&b));
    assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
    let (has, wants) = if one.is_ok() { (&a, &b) } else { (&b, &a) };
    let refusal = claim(wants).await.unwrap_err();
    assert!(refusal.contains(&format!("host {} has it (10.77.0.80)", has.name)), "{refusal}");
    assert_eq!(macs(&store).await, ["cluster/mac/10.77.0.0-24/02:00:00:00:00:77"]);
    // a container that starts again while the store is down; the store's loss of all
    has.cut(true);
    has.cluster.give_up_mac(net(LAN), mac);
    claim(has).await.unwrap();
    has.cut(false);
    claim(wants).await.unwrap_err();
    store.commit(vec![Op::DeleteBelow(Key::new("cluster").unwrap())]).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while macs(&store).await.is_empty() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // given up, it is the other's
    has.cluster.give_up_mac(net(LAN), mac);
    while claim(wants).await.is_err() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // whose line is cut for longer than the grace
    wants.cut(true);
    wants.expire().await;
    while let Err(error) = claim(has).await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    has.cluster.leave(&[net(LAN)]).await;
    assert_eq!(macs(&store).await, Vec::<String>::new());
}
