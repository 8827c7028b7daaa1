//! What every [`Store`] does, and every [`Leases`]. Each scenario keeps to keys of its own, so that the suite also runs on a store others use.

use futures_util::StreamExt;
use rsnet::store::{Entry, Expect, Key, Lease, Leases, Op, PORTABLE_BYTES, PORTABLE_OPS, Prefix, Snapshots, Store, StoreError};

/// Runs the whole suite.
pub async fn all(store: &dyn Leases) {
    a_key_is_written_read_and_deleted(store).await;
    expectations_hold_or_conflict(store).await;
    versions_grow_as_consuls_modify_index(store).await;
    a_prefix_is_cut_between_segments(store).await;
    a_commit_is_all_or_nothing(store).await;
    a_commit_may_be_as_large_as_is_portable(store).await;
    the_stores_own_key_and_doubles_are_refused(store).await;
    a_watch_yields_whole_snapshots(store).await;
    who_is_woken_finds_which_keys_are_there(store).await;
    one_of_many_wins_a_key(store).await;
    a_lease_takes_its_keys_with_it(store).await;
    a_key_is_held_by_one_lease(store).await;
}

fn key(text: &str) -> Key {
    Key::new(format!("conformance/{text}")).unwrap()
}

fn put(text: &str, value: &str, expect: Expect) -> Op {
    Op::Put(key(text), value.into(), expect)
}

async fn value(store: &dyn Store, text: &str) -> Option<String> {
    let found = store.get(&key(text)).await.unwrap();
    found.map(|entry| String::from_utf8(entry.value).unwrap())
}

fn keys(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.key.as_str().strip_prefix("conformance/").unwrap()).collect()
}

async fn a_key_is_written_read_and_deleted(store: &dyn Store) {
    let at = key("simple/fd00::1.a_b-c");
    assert_eq!(store.get(&at).await.unwrap(), None);
    let value: Vec<u8> = (0..=255).collect();
    let version = store.put(&at, value.clone(), Expect::Any).await.unwrap();
    assert_eq!(store.get(&at).await.unwrap(), Some(Entry { key: at.clone(), value, version }));
    store.put(&at, vec![], Expect::Any).await.unwrap();
    assert_eq!(store.get(&at).await.unwrap().unwrap().value, b"");
    store.delete(&at, Expect::Any).await.unwrap();
    assert_eq!(store.get(&at).await.unwrap(), None);
    store.delete(&at, Expect::Any).await.unwrap();
}

async fn expectations_hold_or_conflict(store: &dyn Store) {
    let at = key("expect");
    let one = store.put(&at, b"1".into(), Expect::Absent).await.unwrap();
    let conflict = |result: Result<u64, StoreError>| match result {
        Err(StoreError::Conflict { key, .. }) => assert_eq!(key, at),
        other => panic!("expected a conflict, got {other:?}"),
    };
    conflict(store.put(&at, b"2".into(), Expect::Absent).await);
    conflict(store.put(&at, b"2".into(), Expect::Version(one + 1)).await);
    let two = store.put(&at, b"2".into(), Expect::Version(one)).await.unwrap();
    conflict(store.delete(&at, Expect::Version(one)).await.map(|()| 0));
    conflict(store.delete(&at, Expect::Absent).await.map(|()| 0));
    store.delete(&at, Expect::Version(two)).await.unwrap();
    conflict(store.put(&at, b"3".into(), Expect::Version(two)).await);
    conflict(store.delete(&at, Expect::Version(two)).await.map(|()| 0));
    store.delete(&at, Expect::Absent).await.unwrap();
}

async fn versions_grow_as_consuls_modify_index(store: &dyn Store) {
    let (a, b) = (key("versions/a"), key("versions/b"));
    let first = store.put(&a, b"1".into(), Expect::Any).await.unwrap();
    assert!(first > 0);
    let other = store.put(&b, b"1".into(), Expect::Any).await.unwrap();
    assert!(other > first, "one counter for all keys");
    assert_eq!(store.put(&a, b"1".into(), Expect::Any).await.unwrap(), first, "an equal value keeps its version");
    store.delete(&a, Expect::Any).await.unwrap();
    let again = store.put(&a, b"1".into(), Expect::Absent).await.unwrap();
    assert!(again > other, "a key made again never has an old version");
    let both = store.commit(vec![put("versions/a", "2", Expect::Any), put("versions/b", "2", Expect::Any)]).await.unwrap();
    assert_eq!(both[0], both[1], "one version for one commit");
    assert!(both[0] > Some(again));
}

async fn a_prefix_is_cut_between_segments(store: &dyn Store) {
    for text in ["list/b", "list/a/2", "list/a/10", "list/a", "list/ab", "lists"] {
        store.put(&key(text), b"x".into(), Expect::Any).await.unwrap();
    }
    let list = async |text| store.list(&Prefix::below(&key(text))).await.unwrap();
    assert_eq!(keys(&list("list").await), ["list/a", "list/a/10", "list/a/2", "list/ab", "list/b"]);
    assert_eq!(keys(&list("list/a").await), ["list/a/10", "list/a/2"]);
    assert_eq!(keys(&list("list/none").await), [""; 0]);
    store.commit(vec![Op::DeleteBelow(key("list/a"))]).await.unwrap();
    assert_eq!(keys(&list("list").await), ["list/a", "list/ab", "list/b"]);
    store.commit(vec![Op::DeleteBelow(key("list/a"))]).await.unwrap();
    let all = store.list(&Prefix::all()).await.unwrap();
    assert!(all.iter().any(|entry| entry.key.as_str() == "format" && entry.value == b"1"));
}

async fn a_commit_is_all_or_nothing(store: &dyn Store) {
    store.put(&key("atomic/old"), b"old".into(), Expect::Any).await.unwrap();
    let swap = |expect| {
        vec![put("atomic/new", "new", Expect::Absent), Op::Delete(key("atomic/old"), Expect::Any), put("atomic/third", "3", expect)]
    };
    let refused = store.commit(swap(Expect::Version(1))).await;
    assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
    assert_eq!((value(store, "atomic/new").await, value(store, "atomic/old").await), (None, Some("old".to_owned())));
    let versions = store.commit(swap(Expect::Absent)).await.unwrap();
    assert_eq!((versions[0].is_some(), versions[1], versions[2]), (true, None, versions[0]));
    assert_eq!((value(store, "atomic/new").await, value(store, "atomic/old").await), (Some("new".to_owned()), None));
}

async fn a_commit_may_be_as_large_as_is_portable(store: &dyn Store) {
    let share = vec![b'x'; PORTABLE_BYTES / PORTABLE_OPS];
    let many = |expect| (0..PORTABLE_OPS).map(|i| Op::Put(key(&format!("many/{i}")), share.clone(), expect)).collect();
    store.commit(many(Expect::Absent)).await.unwrap();
    let listed = store.list(&Prefix::below(&key("many"))).await.unwrap();
    assert_eq!((listed.len(), listed[7].value.len()), (PORTABLE_OPS, share.len()));
    let again = store.commit(many(Expect::Absent)).await;
    assert!(matches!(again, Err(StoreError::Conflict { .. })), "{again:?}");
    store.commit(vec![Op::DeleteBelow(key("many"))]).await.unwrap();
}

async fn the_stores_own_key_and_doubles_are_refused(store: &dyn Store) {
    let own = store.put(&Key::new("format").unwrap(), b"2".into(), Expect::Any).await;
    assert!(matches!(own, Err(StoreError::Refused { .. })), "{own:?}");
    let twice = store.commit(vec![put("twice", "1", Expect::Any), Op::Delete(key("twice"), Expect::Any)]).await;
    assert!(matches!(twice, Err(StoreError::Refused { .. })), "{twice:?}");
    let below = store.commit(vec![Op::DeleteBelow(key("tree")), put("tree/leaf", "1", Expect::Any)]).await;
    assert!(matches!(below, Err(StoreError::Refused { .. })), "{below:?}");
    assert_eq!(store.commit(vec![]).await.unwrap(), []);
}

async fn snapshot(watch: &mut Snapshots) -> Vec<Entry> {
    let next = tokio::time::timeout(std::time::Duration::from_secs(20), watch.next());
    next.await.expect("a snapshot in time").expect("an open watch").unwrap()
}

async fn a_watch_yields_whole_snapshots(store: &dyn Store) {
    let mut watch = store.watch(&Prefix::below(&key("watch"))).await.unwrap();
    assert_eq!(snapshot(&mut watch).await, []);
    store.put(&key("watch/a"), b"1".into(), Expect::Any).await.unwrap();
    assert_eq!(keys(&snapshot(&mut watch).await), ["watch/a"]);
    // Neither a foreign key nor an equal value shows; what comes next is the state after all four.
    store.put(&key("watched"), b"1".into(), Expect::Any).await.unwrap();
    store.put(&key("watch/a"), b"1".into(), Expect::Any).await.unwrap();
    store.put(&key("watch/b"), b"1".into(), Expect::Any).await.unwrap();
    store.delete(&key("watch/a"), Expect::Any).await.unwrap();
    let mut seen = snapshot(&mut watch).await;
    while keys(&seen) != ["watch/b"] {
        seen = snapshot(&mut watch).await;
    }
    store.commit(vec![Op::DeleteBelow(key("watch")), put("watcher", "1", Expect::Any)]).await.unwrap();
    assert_eq!(snapshot(&mut watch).await, []);
    store.put(&key("watch/c"), b"1".into(), Expect::Any).await.unwrap();
    let seen = snapshot(&mut watch).await;
    assert_eq!(keys(&seen), ["watch/c"]);
    let mut late = store.watch(&Prefix::below(&key("watch"))).await.unwrap();
    assert_eq!(snapshot(&mut late).await, seen);
}

async fn who_is_woken_finds_which_keys_are_there(store: &dyn Store) {
    let prefix = Prefix::below(&key("keys"));
    let mut wakes = store.wakes(&prefix).await.unwrap();
    let mut until = async |wanted: &[&str]| {
        let wanted: Vec<Key> = wanted.iter().map(|text| key(text)).collect();
        let seen = async {
            loop {
                wakes.next().await.unwrap().unwrap();
                if store.keys(&prefix).await.unwrap() == wanted {
                    return;
                }
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), seen).await.expect("the keys in time");
    };
    until(&[]).await;
    for text in ["keys", "keysmith", "keys/b", "keys/a/2"] {
        store.put(&key(text), b"1".into(), Expect::Any).await.unwrap();
    }
    until(&["keys/a/2", "keys/b"]).await;
    store.put(&key("keys/b"), b"2".into(), Expect::Any).await.unwrap();
    until(&["keys/a/2", "keys/b"]).await;
    store.delete(&key("keys/b"), Expect::Any).await.unwrap();
    until(&["keys/a/2"]).await;
    store.commit(vec![Op::DeleteBelow(key("keys"))]).await.unwrap();
    until(&[]).await;
}

async fn one_of_many_wins_a_key(store: &dyn Store) {
    let claim =
        |who: usize| store.commit(vec![put("claim", &who.to_string(), Expect::Absent), put(&format!("claimed/{who}"), "", Expect::Any)]);
    let results = futures_util::future::join_all((0..100).map(claim)).await;
    let winners: Vec<usize> = (0..100).filter(|&who| results[who].is_ok()).collect();
    assert_eq!(winners.len(), 1);
    assert_eq!(value(store, "claim").await, Some(winners[0].to_string()));
    let claimed = store.list(&Prefix::below(&key("claimed"))).await.unwrap();
    assert_eq!(keys(&claimed), [format!("claimed/{}", winners[0])]);
}

/// As long a time as no test takes.
const LONG: std::time::Duration = std::time::Duration::from_secs(600);

async fn a_lease_takes_its_keys_with_it(store: &dyn Leases) {
    let lease = store.grant("host-1", LONG).await.unwrap();
    let mut watch = store.watch(&Prefix::below(&key("alive"))).await.unwrap();
    assert_eq!(snapshot(&mut watch).await, []);
    let version = store.hold(&lease, &key("alive/1"), b"10.0.0.1".into()).await.unwrap();
    let seen = snapshot(&mut watch).await;
    assert_eq!(seen, [Entry { key: key("alive/1"), value: b"10.0.0.1".into(), version }]);
    assert_eq!(store.hold(&lease, &key("alive/1"), b"10.0.0.1".into()).await.unwrap(), version, "an equal value keeps its version");
    store.hold(&lease, &key("alive/1"), b"10.0.0.2".into()).await.unwrap();
    assert_eq!(snapshot(&mut watch).await[0].value, b"10.0.0.2");
    store.put(&key("kept/1"), b"1".into(), Expect::Any).await.unwrap();
    store.renew(&lease).await.unwrap();
    store.end(&lease).await.unwrap();
    assert_eq!(snapshot(&mut watch).await, []);
    assert_eq!(value(store, "kept/1").await, Some("1".to_owned()), "only what it held is gone");
    ended(store.renew(&lease).await);
    ended(store.hold(&lease, &key("alive/1"), vec![]).await.map(drop));
    store.end(&lease).await.unwrap();
    ended(store.renew(&Lease("no such/lease".to_owned())).await);
}

async fn a_key_is_held_by_one_lease(store: &dyn Leases) {
    let (one, two) = (store.grant("host-1", LONG).await.unwrap(), store.grant("host-2", LONG).await.unwrap());
    assert_ne!(one, two);
    assert_eq!(store.holder(&key("held")).await.unwrap(), None);
    store.hold(&one, &key("held"), b"one".into()).await.unwrap();
    let refused = store.hold(&two, &key("held"), b"two".into()).await;
    assert!(matches!(refused, Err(StoreError::Held { .. })), "{refused:?}");
    assert_eq!(store.holder(&key("held")).await.unwrap(), Some(one.clone()));
    store.end(&one).await.unwrap();
    // at once: nobody waits for a lock that nobody has
    store.hold(&two, &key("held"), b"two".into()).await.unwrap();
    assert_eq!((value(store, "held").await, store.holder(&key("held")).await.unwrap()), (Some("two".to_owned()), Some(two.clone())));
    // a key that is deleted is held no more, and its lease lives on
    store.delete(&key("held"), Expect::Any).await.unwrap();
    assert_eq!(store.holder(&key("held")).await.unwrap(), None);
    let three = store.grant("host-3", LONG).await.unwrap();
    store.hold(&three, &key("held"), b"three".into()).await.unwrap();
    store.renew(&two).await.unwrap();
    store.end(&two).await.unwrap();
    assert_eq!(value(store, "held").await, Some("three".to_owned()));
    store.end(&three).await.unwrap();
}

fn ended(result: Result<(), StoreError>) {
    assert!(matches!(result, Err(StoreError::Ended { .. })), "{result:?}");
}
