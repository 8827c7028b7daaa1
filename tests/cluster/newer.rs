//! Hosts of a newer release in the cluster: what they write beside what is known here is left as it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use rsnet::store::{Entry, Expect, Key, Leases, Op, Prefix};
use serde_json::{Value, json};

use super::world::*;

const SMALL: &str = "10.70.0.0/28";
/// Of four blocks.
const SUBNET: &str = "cluster/block/10.70.0.0-28";

/// Beside and below all that is watched or listed, with names that come before and after those that are known.
const KEYS: [&str; 16] = [
    "cluster/a",
    "cluster/alive/a/b",
    "cluster/alive/new/z",
    "cluster/ask/a/10.70.0.9",
    "cluster/ask/a/10.70.0.9/n/new",
    "cluster/block/10.70.0.0-28/10.70.0.0-30/new",
    "cluster/block/10.70.0.0-28/new",
    "cluster/block/new/10.70.0.0-30",
    "cluster/changed/new",
    "cluster/changed/new/07",
    "cluster/host/new",
    "cluster/host/00/a/new",
    "cluster/mac/10.70.0.0-28/new",
    "cluster/networks/a",
    "cluster/networks/new",
    "cluster/z/new",
];

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

async fn below(store: &Arc<dyn Leases>, text: &str) -> Vec<Entry> {
    store.list(&Prefix::below(&key(text))).await.unwrap()
}

/// As a newer release might write the record: with one more field.
async fn add(store: &Arc<dyn Leases>, entry: Entry, at: &str) {
    let mut value: Value = serde_json::from_slice(&entry.value).unwrap();
    value.pointer_mut(at).unwrap()["new"] = json!({ "of": ["a", "newer", "release"] });
    store.put(&entry.key, value.to_string().into(), Expect::Version(entry.version)).await.unwrap();
}

async fn add_to_all_of(store: &Arc<dyn Leases>, host: &str) {
    for entry in below(store, SUBNET).await {
        if String::from_utf8_lossy(&entry.value).contains(&format!("\"host\":\"{host}\"")) && !KEYS.contains(&entry.key.as_str()) {
            add(store, entry, "").await;
        }
    }
    let record = record_of(store, host).await;
    let shard = record.key.as_str().split('/').nth(2).unwrap().to_owned();
    add(store, record, "").await;
    store.put(&key(&format!("cluster/changed/{shard}")), b"new".into(), Expect::Any).await.unwrap();
}

async fn record_of(store: &Arc<dyn Leases>, host: &str) -> Entry {
    let records = below(store, "cluster/host").await;
    records.into_iter().find(|entry| entry.key.as_str().ends_with(&format!("/{host}"))).unwrap()
}

async fn unknown(store: &Arc<dyn Leases>) -> BTreeMap<String, (Vec<u8>, u64)> {
    let all = below(store, "cluster").await.into_iter();
    all.filter(|entry| KEYS.contains(&entry.key.as_str())).map(|entry| (entry.key.to_string(), (entry.value, entry.version))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_newer_release_writes_beside_is_left_as_it_is() {
    let (_dir, store) = embedded();
    let like_ours = json!({ "host": "n", "id": "n", "claim": 1, "vtep": "192.0.2.77", "blocks": {}, "new": 1 }).to_string();
    let put = |text: &&str| Op::Put(key(text), like_ours.clone().into(), Expect::Absent);
    store.commit(KEYS.iter().map(put).collect()).await.unwrap();
    let strange = unknown(&store).await;
    assert_eq!(strange.len(), KEYS.len());
    let short = rsnet::cluster::Times { sweep: std::time::Duration::from_millis(100), ..times() };
    let start = |name: &str, number| Host::start_as(&store, name, number, name, vec![], short);
    let (a, n) = (start("a", 1), start("n", 9));
    for host in [&a, &n] {
        host.cluster.join(&wanted(&[SMALL])).await.unwrap();
        host.cluster.grow(net(SMALL)).await.unwrap();
    }
    until("agreement", || agree(&[&a, &n], SMALL)).await;
    add_to_all_of(&store, "n").await;
    let all = store.get(&key("cluster/networks/all")).await.unwrap().unwrap();
    add(&store, all, "/networks/0").await;
    let all = store.get(&key("cluster/networks/all")).await.unwrap().unwrap();
    add(&store, all, "").await;
    // another network comes and goes, which is written into the same record
    a.cluster.join(&wanted(&["10.80.0.0/16"])).await.unwrap();
    assert!(networks(&store).await.contains("10.80.0.0/16"));
    a.cluster.leave(&[net("10.80.0.0/16")]).await;
    let deadline = std::time::Instant::now() + PATIENCE;
    while networks(&store).await.contains("10.80.0.0/16") {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(times().again).await;
    }
    // a host that comes now reads it all, and takes a block of one that is gone
    n.cut(true);
    n.expire().await;
    let c = start("c", 3);
    let deadline = std::time::Instant::now() + PATIENCE;
    let share = loop {
        match c.cluster.join(&wanted(&[SMALL])).await {
            Ok(share) => break share,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(times().again).await;
    };
    let taken = share.mine.blocks[0];
    let names = |host: &Host| host.view().hosts.iter().map(|host| host.name.clone()).collect::<Vec<_>>();
    until("all to hear of it", || when(names(&a) == ["a", "c", "n"] && a.peers(SMALL).contains(&("c".to_owned(), taken)))).await;
    let record: Value = serde_json::from_slice(&record_of(&store, "n").await.value).unwrap();
    let new = json!({ "of": ["a", "newer", "release"] });
    assert_eq!(record["new"], new, "{record}");
    assert_eq!(record["blocks"][SMALL].as_array().unwrap().len(), 1, "{record}");
    let table: Value = serde_json::from_str(&networks(&store).await).unwrap();
    assert_eq!((&table["new"], &table["networks"][0]["new"]), (&new, &new), "{table}");
    c.cluster.forget("n").await.unwrap();
    until("n to be forgotten", || when(names(&a) == ["a", "c"])).await;
    assert_eq!(unknown(&store).await, strange);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_record_cannot_be_read_is_where_it_was() {
    let (_dir, store) = embedded();
    let (a, b) = (Host::start(&store, "a", 1), Host::start(&store, "b", 2));
    for host in [&a, &b] {
        host.cluster.join(&wanted(&[SMALL])).await.unwrap();
    }
    until("agreement", || agree(&[&a, &b], SMALL)).await;
    let before = a.peers(SMALL);
    b.cut(true);
    let record = record_of(&store, "b").await;
    let shard = record.key.as_str().rsplit_once('/').unwrap().0.to_owned();
    let other = json!({ "id": "x", "vtep": "192.0.2.77", "blocks": {} }).to_string();
    let damaged = [
        Op::Put(record.key, b"{".into(), Expect::Any),
        Op::Put(key(&format!("{shard}/x")), other.into(), Expect::Absent),
        Op::Put(key(&shard.replace("/host/", "/changed/")), b"new".into(), Expect::Any),
    ];
    store.commit(damaged.into()).await.unwrap();
    until("a to hear of both", || when(a.view().hosts.iter().any(|host| host.name == "x"))).await;
    assert_eq!(a.peers(SMALL), before);
    b.cut(false);
    until("agreement", || agree(&[&a, &b], SMALL)).await;
}
