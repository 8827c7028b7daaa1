//! A Consul that is slow, gone, without a leader, or not what answers: calls end soon with clear words, watches go on.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use rsnet::store::{Consul, Entry, Expect, Key, Leases, Prefix, Snapshots, Store, StoreError};

use super::proxy::{Fault, Proxy};
use super::server::{PATIENCE, Server, own_network, settings, three};

/// A call takes no longer than this, whatever happens.
const LONGEST: Duration = Duration::from_secs(9);

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn below(text: &str) -> Prefix {
    Prefix::below(&key(text))
}

/// A Consul, a proxy before it, and a store that knows only the proxy.
async fn behind_a_proxy() -> (Server, Proxy, Consul) {
    own_network();
    let (consul, proxy, store) = (Server::dev(), Proxy::start(), Consul::new(settings("consul://127.0.0.1:9500/test")));
    store.put(&key("a/1"), b"1".into(), Expect::Any).await.unwrap();
    (consul, proxy, store)
}

/// How a call failed, and how long that took.
async fn failure<T: std::fmt::Debug>(call: impl Future<Output = Result<T, StoreError>>) -> (StoreError, Duration) {
    let start = Instant::now();
    let error = call.await.unwrap_err();
    println!("{:?}: {error}", start.elapsed());
    (error, start.elapsed())
}

/// Waits for the snapshot with these keys; failures before it are what faults are.
async fn until(watch: &mut Snapshots, wanted: &[&str]) {
    let mut seen = vec![];
    let wait = async {
        while let Some(snapshot) = watch.next().await {
            let keys = |entries: Vec<Entry>| entries.into_iter().map(|entry| entry.key.to_string()).collect::<Vec<_>>();
            seen.push(snapshot.map(keys).map_err(|error| error.to_string()));
            if seen.last().is_some_and(|last| last.as_deref().is_ok_and(|keys| keys == wanted)) {
                return;
            }
        }
    };
    let came = tokio::time::timeout(PATIENCE, wait).await;
    came.unwrap_or_else(|_| panic!("waited for {wanted:?}, saw {seen:#?}"));
}

#[tokio::test]
async fn a_consul_that_takes_two_seconds_is_waited_for() {
    let (_consul, proxy, store) = behind_a_proxy().await;
    proxy.does(Fault::Slow(Duration::from_secs(2)));
    let fresh = Consul::new(settings("consul://127.0.0.1:9500/test"));
    fresh.put(&key("a/2"), b"2".into(), Expect::Absent).await.unwrap();
    let start = Instant::now();
    let keys: Vec<Key> = (0..60).map(|i| key(&format!("b/{i}"))).collect();
    let puts = keys.iter().map(|key| store.put(key, vec![], Expect::Absent));
    join_all(puts).await.into_iter().for_each(|put| assert!(put.unwrap() > 0));
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}: they wait for each other", start.elapsed());
    assert_eq!(store.list(&below("b")).await.unwrap().len(), 60);
}

#[tokio::test]
async fn faults_end_calls_soon_and_in_clear_words() {
    let (_consul, proxy, store) = behind_a_proxy().await;
    let soon = Duration::from_secs(2);
    for (fault, limit, words) in [
        (Fault::Dropped, soon, "connection closed"),
        (Fault::Truncated, soon, "read the answer"),
        (Fault::Silent, LONGEST, "no answer within 8 s"),
        (Fault::Says("500 Internal Server Error", "rpc error: EOF"), soon, "500 Internal Server Error: rpc error: EOF"),
        (Fault::Says("429 Too Many Requests", "slow down"), soon, "429 Too Many Requests"),
    ] {
        proxy.does(fault);
        let (read, took) = failure(store.get(&key("a/1"))).await;
        let text = read.to_string();
        assert!(matches!(read, StoreError::Unreachable { sent: false, .. }), "{fault:?}: {text}");
        assert!(text.starts_with("read test/a/1 in consul://127.0.0.1:9500/test: ") && text.contains(words), "{fault:?}: {text}");
        assert!(took < limit, "{fault:?}: {took:?}");
        let (write, took) = failure(store.put(&key("a/1"), b"2".into(), Expect::Any)).await;
        let unknown = write.to_string().contains("whether it was done is unknown");
        assert_eq!(unknown, fault != Fault::Says("429 Too Many Requests", "slow down"), "{fault:?}: {write}");
        assert!(took < limit, "{fault:?}: {took:?}");
    }
}

#[tokio::test]
async fn what_is_no_consul_is_told_as_such() {
    let (_consul, proxy, store) = behind_a_proxy().await;
    for fault in [
        Fault::Says("200 OK", "<html>please log in</html>"),
        Fault::Says("200 OK", r#"{"some": "json"}"#),
        Fault::Says("200 OK", r#"[{"Key":"test/a/1","Value":"not base64!","ModifyIndex":1}]"#),
        Fault::Says("302 Found", ""),
        Fault::Says("409 Conflict", "{}"),
    ] {
        proxy.does(fault);
        for error in [failure(store.put(&key("a/1"), b"2".into(), Expect::Any)).await.0, failure(store.list(&below("a"))).await.0] {
            let answer = matches!(error, StoreError::Answer { .. });
            assert!(answer && error.to_string().contains("see that RSNET_STORE names a Consul"), "{fault:?}: {error}");
        }
    }
}

#[tokio::test]
async fn a_consul_that_is_not_there_is_told_at_once() {
    own_network();
    let store = Consul::new(settings("consul://127.0.0.1:8500/test"));
    let (error, took) = failure(store.put(&key("a"), vec![], Expect::Any)).await;
    assert!(matches!(error, StoreError::Unreachable { sent: false, .. }), "{error}");
    assert!(error.to_string().contains("Connection refused") && took < Duration::from_secs(2), "{took:?}: {error}");
    let (error, took) = failure(Consul::new(settings("consul://no-such-host.invalid/test")).check()).await;
    assert!(error.to_string().contains("no-such-host.invalid") && took < LONGEST, "{took:?}: {error}");
}

#[tokio::test]
async fn a_read_survives_one_fault_and_a_write_tells_of_it() {
    let (consul, proxy, store) = behind_a_proxy().await;
    for fault in [Fault::Dropped, Fault::Truncated, Fault::Says("500 Internal Server Error", "No cluster leader")] {
        proxy.does_once(fault);
        assert_eq!(store.get(&key("a/1")).await.unwrap().unwrap().value, b"1", "{fault:?}");
    }
    proxy.does_once(Fault::Says("500 Internal Server Error", "No cluster leader"));
    store.put(&key("a/2"), b"2".into(), Expect::Absent).await.unwrap();
    proxy.does_once(Fault::AnswerLost);
    let (error, _) = failure(store.put(&key("a/3"), b"3".into(), Expect::Absent)).await;
    assert!(matches!(error, StoreError::Unreachable { sent: true, .. }), "{error}");
    assert_eq!(consul.consul(&["kv", "get", "test/a/3"]), "3\n", "it was done, as may be");
}

#[tokio::test]
async fn a_watch_goes_on_after_every_fault_with_the_newest_snapshot() {
    let (consul, proxy, store) = behind_a_proxy().await;
    let mut watch = store.watch(&below("a")).await.unwrap();
    until(&mut watch, &["a/1"]).await;
    let mut wanted = vec!["a/1".to_owned()];
    for (i, fault) in [
        Fault::Dropped,
        Fault::Truncated,
        Fault::Says("500 Internal Server Error", "rpc error"),
        Fault::Says("200 OK", "[]"),
        Fault::Says("200 OK", "nonsense"),
        Fault::Slow(Duration::from_secs(2)),
    ]
    .into_iter()
    .enumerate()
    {
        proxy.does(fault);
        // the first ends the question that waits, the second is written while nothing gets through
        for half in ["a", "b"] {
            let name = format!("a/{}{half}", i + 2);
            consul.consul(&["kv", "put", &format!("test/{name}")]);
            wanted.push(name);
        }
        if !matches!(fault, Fault::Slow(_)) {
            tokio::time::sleep(Duration::from_millis(700)).await;
            proxy.does(Fault::None);
        }
        let start = Instant::now();
        until(&mut watch, &wanted.iter().map(String::as_str).collect::<Vec<_>>()).await;
        assert!(start.elapsed() < Duration::from_secs(5), "{fault:?}: in step after {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn consul_down_and_up_again_keeps_leases_and_brings_watches_the_newest() {
    own_network();
    let mut consul = Server::start(1, &["-server", "-bootstrap-expect=1", "-data-dir=data"], &super::server::quick());
    consul.await_leader();
    let store = consul.store();
    super::server::wait_until("the node in the catalog", || match consul.consul(&["catalog", "nodes"]) {
        nodes if nodes.contains("n1") => Ok(()),
        nodes => Err(nodes),
    });
    let lease = store.grant("host", Duration::from_secs(60)).await.unwrap();
    store.hold(&lease, &key("a/held"), vec![]).await.unwrap();
    let mut watch = store.watch(&below("a")).await.unwrap();
    until(&mut watch, &["a/held"]).await;
    consul.kill();
    let (error, took) = failure(store.get(&key("a/held"))).await;
    assert!(matches!(error, StoreError::Unreachable { .. }) && took < Duration::from_secs(2), "{took:?}: {error}");
    assert!(watch.next().await.unwrap().is_err());
    consul.start_again();
    consul.await_leader();
    let up = Instant::now();
    consul.consul(&["kv", "put", "test/a/new"]);
    until(&mut watch, &["a/held", "a/new"]).await;
    assert!(up.elapsed() < Duration::from_secs(5), "in step after {:?}", up.elapsed());
    store.renew(&lease).await.unwrap();
    store.put(&key("a/z"), vec![], Expect::Absent).await.unwrap();
    until(&mut watch, &["a/held", "a/new", "a/z"]).await;
}

/// `-dev` keeps nothing: its index begins anew, lower than what the watch has seen.
#[tokio::test]
async fn a_consul_that_lost_everything_is_seen_and_used() {
    own_network();
    let mut consul = Server::dev();
    let store = consul.store();
    for i in 0..20 {
        store.put(&key(&format!("a/{i}")), vec![], Expect::Any).await.unwrap();
    }
    let mut watch = store.watch(&below("a")).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().len(), 20);
    consul.kill();
    consul.start_again();
    consul.await_leader();
    until(&mut watch, &[]).await;
    store.put(&key("a/again"), vec![], Expect::Absent).await.unwrap();
    until(&mut watch, &["a/again"]).await;
    assert_eq!(consul.consul(&["kv", "get", "test/format"]), "1\n");
}

/// Consul's own blocking query sleeps through this: the tree begins above the prefix, and something below that was deleted lately.
#[tokio::test]
async fn a_store_that_was_emptied_is_seen_by_its_watches() {
    own_network();
    let consul = Server::dev();
    let store = consul.store();
    for name in ["a/b/1", "a/b/2", "a/c"] {
        store.put(&key(name), vec![], Expect::Any).await.unwrap();
    }
    store.delete(&key("a/b/2"), Expect::Any).await.unwrap();
    store.put(&key("a/b/3"), vec![], Expect::Any).await.unwrap();
    let mut watch = store.watch(&below("a/b")).await.unwrap();
    until(&mut watch, &["a/b/1", "a/b/3"]).await;
    let emptied = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        consul.consul(&["kv", "delete", "-recurse", "test/"]);
        Instant::now()
    };
    let ((), start) = futures_util::future::join(until(&mut watch, &[]), emptied).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    store.put(&key("a/b/4"), vec![], Expect::Absent).await.unwrap();
    until(&mut watch, &["a/b/4"]).await;
}

/// Consul's usual session would end with the health of the agent's node.
#[tokio::test]
async fn a_lease_outlives_a_restart_of_the_agent() {
    own_network();
    let servers = three();
    let mut agent = Server::agent_of_three();
    agent.await_leader();
    let known = |word: &str| match servers[0].consul(&["members"]) {
        members if members.lines().any(|line| line.starts_with("n1 ") && line.contains(word)) => Ok(()),
        members => Err(members),
    };
    super::server::wait_until("the agent to be a member", || known("alive"));
    super::server::wait_until("the agent in the catalog", || match servers[0].consul(&["catalog", "nodes"]) {
        nodes if nodes.contains("n1 ") => Ok(()),
        nodes => Err(nodes),
    });
    let store = agent.store();
    let lease = store.grant("host", Duration::from_secs(120)).await.unwrap();
    store.hold(&lease, &key("alive"), b"1".into()).await.unwrap();
    agent.kill();
    super::server::wait_until("the agent to be missed", || known("failed"));
    agent.start_again();
    agent.await_leader();
    store.renew(&lease).await.unwrap();
    assert_eq!(store.holder(&key("alive")).await.unwrap(), Some(lease));
}

/// The leader of three is killed, or only stopped, while a host writes through an agent: nothing acknowledged is lost, and writing goes on.
#[tokio::test]
async fn the_loss_of_a_leader_loses_nothing_and_is_over_soon() {
    for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(lose_the_leader(signal));
        })
        .join()
        .unwrap();
    }
}

async fn lose_the_leader(signal: Signal) {
    own_network();
    let servers = three();
    let agent = Server::agent_of_three();
    let leader = agent.await_leader();
    let store = agent.store();
    let mut watch = store.watch(&below("a")).await.unwrap();
    store.put(&key("a/000"), vec![], Expect::Any).await.unwrap();
    let lost = servers.iter().find(|server| leader.starts_with(&format!("{}:", server.host()))).unwrap();
    lost.signal(signal);
    let (start, mut acknowledged, mut gap) = (Instant::now(), vec!["a/000".to_owned()], Duration::ZERO);
    let mut last = Instant::now();
    for i in 1.. {
        let name = format!("a/{i:03}");
        match store.put(&key(&name), vec![], Expect::Any).await {
            Ok(_) => {
                acknowledged.push(name);
                gap = gap.max(last.elapsed());
                last = Instant::now();
            }
            Err(error) => println!("{:?}: {error}", start.elapsed()),
        }
        let elected = servers.iter().any(|server| !std::ptr::eq(server, lost) && server.leader().is_some_and(|now| now != leader));
        if (elected && acknowledged.len() > 20) || start.elapsed() > PATIENCE {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("{signal}: {} writes acknowledged, the longest gap {gap:?}", acknowledged.len());
    assert!(gap < Duration::from_secs(20) && acknowledged.len() > 20, "{gap:?}, {}", acknowledged.len());
    let listed: Vec<String> = store.list(&below("a")).await.unwrap().into_iter().map(|entry| entry.key.to_string()).collect();
    assert!(acknowledged.iter().all(|name| listed.contains(name)), "{acknowledged:?} {listed:?}");
    until(&mut watch, &listed.iter().map(String::as_str).collect::<Vec<_>>()).await;
}
