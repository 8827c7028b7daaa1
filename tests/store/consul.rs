//! What only Consul has: several servers, keys that others see, a prefix.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use rsnet::store::{Expect, Key, Leases, Op, PORTABLE_BYTES, Prefix, Store, StoreError};

use super::conformance;
use super::server::{Server, own_network, three};

/// The shortest time that Consul gives a lease.
const SHORT: Duration = Duration::from_secs(10);

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

#[tokio::test]
async fn a_consul_agent_keeps_the_contract() {
    own_network();
    let consul = Server::dev();
    conformance::all(&consul.store()).await;
}

#[tokio::test]
async fn an_agent_of_three_servers_keeps_the_contract() {
    own_network();
    let _servers = three();
    let agent = Server::agent_of_three();
    agent.await_leader();
    conformance::all(&agent.store()).await;
}

/// Consul's own command line reads what the store wrote, and the store what that wrote.
#[tokio::test]
async fn what_is_written_is_what_others_read() {
    own_network();
    let consul = Server::dev();
    let store = consul.store();
    store.put(&key("a/fd00::1/x.y_z-1"), b"one".into(), Expect::Absent).await.unwrap();
    assert_eq!(consul.consul(&["kv", "get", "test/a/fd00::1/x.y_z-1"]), "one\n");
    assert_eq!(consul.consul(&["kv", "get", "-keys", "-separator=", ""]), "test/a/fd00::1/x.y_z-1\ntest/format\n");
    consul.consul(&["kv", "put", "test/a/other", "two"]);
    assert_eq!(store.get(&key("a/other")).await.unwrap().unwrap().value, b"two");
    // a folder as Consul's page makes them, and a key that cannot be ours, are nobody's business
    consul.consul(&["kv", "put", "test/a/"]);
    consul.consul(&["kv", "put", "test/a/with space", "x"]);
    consul.consul(&["kv", "put", "testing", "x"]);
    let listed = store.list(&Prefix::all()).await.unwrap();
    assert_eq!(listed.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["a/fd00::1/x.y_z-1", "a/other", "format"]);
}

#[tokio::test]
async fn a_newer_format_is_refused_from_the_next_commit_on_and_what_is_read_not_believed() {
    own_network();
    let consul = Server::dev();
    let store = consul.store();
    store.put(&key("a"), b"1".into(), Expect::Any).await.unwrap();
    consul.consul(&["kv", "put", "test/format", "2"]);
    for error in [store.put(&key("a"), b"2".into(), Expect::Any).await.unwrap_err(), consul.store().check().await.unwrap_err()] {
        assert!(matches!(error, StoreError::Newer { found: 2, .. }), "{error}");
        assert_eq!(
            error.to_string(),
            "open consul://127.0.0.1:8500/test: its records have format 2, this rsnet knows up to 1; run the newer rsnet again"
        );
    }
    assert_eq!(consul.consul(&["kv", "get", "test/a"]), "1\n");
    let another = consul.store();
    let mut watch = another.watch(&Prefix::all()).await.unwrap();
    let read = [store.get(&key("a")).await.unwrap_err(), store.list(&Prefix::all()).await.unwrap_err()];
    for error in read.into_iter().chain([watch.next().await.unwrap().unwrap_err()]) {
        assert!(matches!(error, StoreError::Newer { found: 2, .. }), "{error}");
    }
    consul.consul(&["kv", "put", "test/format", "not a number"]);
    let error = store.put(&key("a"), b"2".into(), Expect::Any).await.unwrap_err().to_string();
    assert!(error.contains("it is no record format of rsnet; choose another prefix in RSNET_STORE"), "{error}");
}

#[tokio::test]
async fn a_check_changes_nothing() {
    own_network();
    let consul = Server::dev();
    let store = consul.store();
    store.check().await.unwrap();
    let before = consul.consul(&["kv", "get", "-detailed", "test/format"]);
    for _ in 0..3 {
        store.check().await.unwrap();
    }
    assert_eq!(consul.consul(&["kv", "get", "-detailed", "test/format"]), before);
}

#[tokio::test]
async fn a_store_that_lost_all_keys_is_written_again() {
    own_network();
    let consul = Server::dev();
    let store = consul.store();
    store.put(&key("a"), b"1".into(), Expect::Any).await.unwrap();
    consul.consul(&["kv", "delete", "-recurse", "test/"]);
    assert_eq!(store.list(&Prefix::below(&key("b"))).await.unwrap(), []);
    store.put(&key("a"), b"2".into(), Expect::Absent).await.unwrap();
    assert_eq!(consul.consul(&["kv", "get", "-recurse", "test/"]), "test/a:2\ntest/format:1\n");
}

#[tokio::test]
async fn consuls_limits_are_told_and_not_hidden() {
    own_network();
    let consul = Server::dev();
    let store = consul.store();
    let many = (0..64).map(|i| Op::Put(key(&format!("many/{i}")), vec![], Expect::Any)).collect();
    let error = store.commit(many).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error}");
    let error = store.put(&key("big"), vec![7; 400 << 10], Expect::Any).await.unwrap_err().to_string();
    assert!(error.contains("write test/big in consul://127.0.0.1:8500/test: 413") && error.contains("too large"), "{error}");
    store.put(&key("big"), vec![7; PORTABLE_BYTES], Expect::Any).await.unwrap();
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_ends_in_time() {
    own_network();
    let consul = Server::dev();
    let store = consul.store();
    let (kept, left) = (store.grant("kept", SHORT).await.unwrap(), store.grant("left", SHORT).await.unwrap());
    store.hold(&kept, &key("alive/kept"), vec![]).await.unwrap();
    store.hold(&left, &key("alive/left"), vec![]).await.unwrap();
    let mut watch = store.watch(&Prefix::below(&key("alive"))).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().len(), 2);
    let (start, mut renewals) = (Instant::now(), tokio::time::interval(SHORT / 3));
    let seen = loop {
        tokio::select! {
            seen = watch.next() => break seen.unwrap().unwrap(),
            _ = renewals.tick() => store.renew(&kept).await.unwrap(),
        }
    };
    let after = start.elapsed();
    assert_eq!(seen.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["alive/kept"]);
    assert!(after > SHORT - Duration::from_secs(1) && after < SHORT * 2 + Duration::from_secs(2), "{after:?}");
    assert!(matches!(store.renew(&left).await, Err(StoreError::Ended { .. })));
}

#[tokio::test]
async fn who_waits_for_the_first_key_of_a_prefix_sleeps_while_others_are_written() {
    own_network();
    let consul = Server::dev();
    let (store, writer) = (consul.store(), consul.store());
    let mut snapshots = store.watch(&Prefix::below(&key("a"))).await.unwrap();
    assert_eq!(snapshots.next().await.unwrap().unwrap(), []);
    let heard = tokio::spawn(async move { snapshots.next().await });
    let write = async |at: &str| {
        for n in 0..1000 {
            writer.put(&key(&format!("b/{at}/{n}")), b"1".into(), Expect::Any).await.unwrap();
        }
    };
    // what it asks at first
    write("1").await;
    let asked = store.traffic().asked;
    write("2").await;
    assert_eq!(store.traffic().asked, asked, "nothing that it waits for was written");
    assert_eq!(store.list(&Prefix::below(&key("a"))).await.unwrap(), [], "what keeps the prefix from being empty is none of ours");
    writer.put(&key("a/one"), b"1".into(), Expect::Any).await.unwrap();
    let heard = heard.await.unwrap().unwrap().unwrap();
    assert_eq!(heard.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["a/one"]);
}

#[tokio::test]
async fn a_watch_ends_with_its_store() {
    own_network();
    let consul = Server::dev();
    let store = consul.store();
    let mut watch = store.watch(&Prefix::all()).await.unwrap();
    watch.next().await.unwrap().unwrap();
    let waiting = tokio::spawn(async move {
        while let Some(snapshot) = watch.next().await {
            snapshot.unwrap();
        }
    });
    store.put(&key("a"), vec![], Expect::Any).await.unwrap();
    drop(store);
    tokio::time::timeout(Duration::from_secs(2), waiting).await.expect("it ends at once").unwrap();
}
