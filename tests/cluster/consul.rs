//! The same on a real Consul: hosts with a client each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rsnet::store::{Key, Leases, Prefix};

use super::scenarios::{await_records, eight, keeps_all, lodge};
use super::server::{Server, own_network};
use super::world::*;

const BLUE: &str = "10.50.0.0/16";

fn on_a_consul(scenario: impl AsyncFnOnce(&mut Server, Arc<dyn Leases>) + Send + 'static) {
    let run = move || {
        own_network();
        // One thread, which is in that network.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut server = Server::dev();
        let store: Arc<dyn Leases> = Arc::new(server.store());
        runtime.block_on(scenario(&mut server, store));
    };
    std::thread::spawn(run).join().unwrap();
}

#[test]
fn eight_hosts_join_at_once() {
    on_a_consul(async |_, store| {
        let start = Instant::now();
        let hosts = eight(&store).await;
        println!("eight hosts in {:?}", start.elapsed());
        let more = hosts[0].cluster.grow(net(BLUE)).await.unwrap();
        let start = Instant::now();
        until("the second block", || when(hosts[7].peers(BLUE).contains(&("h1".into(), more)))).await;
        println!("one more block is known after {:?}", start.elapsed());
    });
}

#[test]
fn a_host_that_finds_no_block_lodges() {
    on_a_consul(async |_, store| lodge(&store).await);
}

#[test]
fn all_keys_deleted() {
    on_a_consul(async |server, store| {
        let hosts = eight(&store).await;
        let records = recorded(&store).await;
        keeps_all(&hosts, async || {
            server.consul(&["kv", "delete", "-recurse", "test/"]);
            await_records(&store, &records).await;
            tokio::time::sleep(times().rebuild + Duration::from_secs(2)).await;
        })
        .await;
    });
}

#[test]
fn a_consul_that_comes_back_empty() {
    on_a_consul(async |server, store| {
        let hosts = eight(&store).await;
        let records = recorded(&store).await;
        keeps_all(&hosts, async || {
            server.kill();
            let start = Instant::now();
            hosts[0].cluster.grow(net(BLUE)).await.unwrap_err();
            assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
            tokio::time::sleep(Duration::from_secs(3)).await;
            server.start_again();
            await_records(&store, &records).await;
            tokio::time::sleep(times().rebuild + Duration::from_secs(3)).await;
        })
        .await;
    });
}

#[test]
fn a_consul_that_hangs() {
    on_a_consul(async |server, store| {
        let hosts = eight(&store).await;
        keeps_all(&hosts, async || {
            server.signal(Signal::SIGSTOP);
            let (start, red) = (Instant::now(), wanted(&["10.60.0.0/16"]));
            let (grown, joined) = tokio::join!(hosts[0].cluster.grow(net(BLUE)), hosts[1].cluster.join(&red));
            println!("{}\n{}", grown.unwrap_err(), joined.unwrap_err());
            assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
            server.signal(Signal::SIGCONT);
            tokio::time::sleep(Duration::from_secs(5)).await;
        })
        .await;
    });
}

#[test]
fn a_lease_that_ends_by_itself_frees_the_name() {
    on_a_consul(async |_, store| {
        let (other, old) = (Host::start(&store, "other", 9), Host::start(&store, "a", 1));
        for host in [&other, &old] {
            host.cluster.join(&wanted(&[BLUE])).await.unwrap();
        }
        old.cut(true);
        let new = Host::start_as(&store, "a", 2, "another machine", vec![], times());
        let start = Instant::now();
        while let Err(error) = new.cluster.join(&wanted(&[BLUE])).await {
            assert!(start.elapsed() < Duration::from_secs(40), "{error}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        println!("the name was free after {:?}", start.elapsed());
        until("agreement", || agree(&[&other, &new], BLUE)).await;
        old.cut(false);
        until("the old one to fence itself", || when(old.mine().is_empty())).await;
    });
}

#[test]
fn a_store_with_records_of_a_newer_format_is_left_as_it_is_and_nobody_loses_a_peer() {
    on_a_consul(async |server, store| {
        let hosts = eight(&store).await;
        let records = recorded(&store).await;
        keeps_all(&hosts, async || {
            server.consul(&["kv", "put", "test/format", "2"]);
            let error = hosts[0].cluster.grow(net(BLUE)).await.unwrap_err().to_string();
            assert!(error.contains("its records have format 2, this rsnet knows up to 1; run the newer rsnet again"), "{error}");
            let keys = server.consul(&["kv", "get", "-keys", "-separator=", "test/cluster"]);
            let keys: Vec<&str> = keys.lines().filter(|key| !key.contains("/alive/")).collect();
            for key in &keys {
                server.consul(&["kv", "put", key, "new"]);
            }
            tokio::time::sleep(times().rebuild + Duration::from_secs(4)).await;
            for key in &keys {
                assert_eq!(server.consul(&["kv", "get", key]), "new\n", "{key}");
            }
            // somebody goes back: what no release can read is written again by whom it belongs to
            server.consul(&["kv", "put", "test/format", "1"]);
            await_readable(&store).await;
        })
        .await;
        assert_eq!(recorded(&store).await, records);
        hosts[0].cluster.grow(net(BLUE)).await.unwrap();
    });
}

async fn await_readable(store: &Arc<dyn Leases>) {
    let prefix = Prefix::below(&Key::new("cluster").unwrap());
    let deadline = Instant::now() + PATIENCE;
    let read = async || store.list(&prefix).await.is_ok_and(|all| !all.iter().any(|entry| entry.value == b"new"));
    while !read().await {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
