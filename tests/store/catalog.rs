//! Containers as services in the catalog of a real Consul, as its own command line shows them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rsnet::catalog::{Catalog, Memory, services};
use rsnet::cluster::{Host, View};
use rsnet::docker::{Attachment, Container, Health};
use rsnet::store::Consul;
use tokio::sync::watch;

use super::server::{Server, own_network, wait_until};

/// A host whose engine is this test.
struct World {
    catalog: Catalog,
    memory: Memory,
    runs: Arc<Mutex<Vec<Container>>>,
    views: watch::Sender<Arc<View>>,
    _changes: watch::Sender<u64>,
}

/// Hosts and whether they are alive; this one is h1.
fn view(hosts: &[(&str, bool)]) -> Arc<View> {
    let vtep = "192.0.2.1".parse().unwrap();
    let host = |(name, alive): &(&str, bool)| Host { name: (*name).to_owned(), vtep, alive: *alive, gone_since: None };
    Arc::new(View { hosts: hosts.iter().map(host).collect(), vtep: Some(vtep), ..View::default() })
}

fn container(name: &str, address: &str, health: Option<Health>) -> Container {
    let attachment =
        Attachment { endpoint: "ef".parse().unwrap(), addresses: vec![address.parse().unwrap()], names: vec![name.to_owned()] };
    let attached = [("b1".parse().unwrap(), attachment)].into();
    Container { id: format!("{name:0<64}"), name: name.to_owned(), service: Some("web".to_owned()), port: Some(80), health, attached }
}

impl World {
    fn new(host: &str, consul: Consul) -> World {
        let (views, changes, runs) = (watch::Sender::new(view(&[("h1", true), ("h2", true)])), watch::Sender::new(0), Arc::default());
        let (me, running): (_, Arc<Mutex<Vec<Container>>>) = (host.to_owned(), Arc::clone(&runs));
        let networks = BTreeMap::from([("b1".parse().unwrap(), "blue".to_owned())]);
        let here = move || Some(services(&me, &running.lock().unwrap(), &networks));
        let catalog = Catalog::new(host.to_owned(), Arc::new(consul), views.subscribe(), changes.subscribe(), here);
        World { catalog, memory: Memory::default(), runs, views, _changes: changes }
    }

    async fn run(&mut self, containers: &[Container]) {
        *self.runs.lock().unwrap() = containers.to_vec();
        self.catalog.round(&mut self.memory).await.unwrap();
    }
}

/// What DNS and load balancers are told of the service: its instances that are well.
fn well(consul: &Server) -> Vec<String> {
    let text = consul.get("/v1/health/service/web?passing");
    let found: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let shown = |one: &serde_json::Value| {
        let service = &one["Service"];
        let of = |key: &str| service[key].as_str().unwrap().to_owned();
        format!("{} {} {}:{} {}", one["Node"]["Node"].as_str().unwrap(), of("ID"), of("Address"), service["Port"], service["Tags"])
    };
    let mut shown: Vec<String> = found.iter().map(shown).collect();
    shown.sort();
    shown
}

#[tokio::test]
async fn containers_are_services_with_their_health_and_go_when_they_stop() {
    own_network();
    let consul = Server::dev();
    let mut host = World::new("h1", consul.store());
    let (one, two) = (container("one", "10.50.0.2", None), container("two", "10.50.0.3", Some(Health::Healthy)));
    host.run(&[one.clone(), two.clone()]).await;
    let [first, second] =
        [("one", 2), ("two", 3)].map(|(name, n)| format!("test-h1 rsnet-h1-{name}0000000-blue 10.50.0.{n}:80 [\"blue\"]"));
    assert_eq!(well(&consul), [first.clone(), second.clone()]);

    host.run(&[one.clone(), container("two", "10.50.0.3", Some(Health::Unhealthy))]).await;
    assert_eq!(well(&consul), std::slice::from_ref(&first));
    assert!(consul.consul(&["catalog", "nodes", "-service=web"]).contains("192.0.2.1"));
    host.run(&[one.clone(), two]).await;
    assert_eq!(well(&consul), [first.clone(), second]);
    host.run(&[one]).await;
    assert_eq!(well(&consul), [first]);
    host.run(&[]).await;
    assert!(!consul.consul(&["catalog", "nodes"]).contains("test-h1"));
}

#[tokio::test]
async fn a_start_mends_what_the_catalog_says_of_this_host_and_nothing_else() {
    own_network();
    let consul = Server::dev();
    let one = container("one", "10.50.0.2", None);
    World::new("h1", consul.store()).run(&[one.clone(), container("old", "10.50.0.9", None)]).await;
    World::new("h2", consul.store()).run(&[container("far", "10.50.1.2", None)]).await;
    consul.consul(&["services", "register", "-name=web", "-address=10.9.9.9", "-port=1"]);
    let is_there = || well(&consul).iter().any(|one| one.contains("10.9.9.9"));
    wait_until("the agent to have told of its service", || if is_there() { Ok(()) } else { Err(String::new()) });
    consul.store().deregister("test-h1", Some("rsnet-h1-one0000000-blue")).await.unwrap();
    World::new("h1", consul.store()).run(&[one]).await;
    let left = ["n1 web 10.9.9.9:1 []", "test-h1 rsnet-h1-one0000000-blue 10.50.0.2:80 [\"blue\"]"];
    let far = "test-h2 rsnet-h2-far0000000-blue 10.50.1.2:80 [\"blue\"]";
    assert_eq!(well(&consul), [left[0], left[1], far]);
    // with the setting off
    World::new("h1", consul.store()).catalog.retract().await.unwrap();
    assert_eq!(well(&consul), [left[0], far]);
}

#[tokio::test]
async fn a_host_that_is_gone_has_its_services_taken_out_by_another_and_puts_them_back() {
    own_network();
    let consul = Server::dev();
    let (mut h1, mut h2) = (World::new("h1", consul.store()), World::new("h2", consul.store()));
    h1.run(&[]).await;
    h2.run(&[container("far", "10.50.1.2", None)]).await;
    let far = "test-h2 rsnet-h2-far0000000-blue 10.50.1.2:80 [\"blue\"]";
    h1.views.send_replace(view(&[("h1", true), ("h2", false)]));
    h1.run(&[]).await;
    assert_eq!(well(&consul), [far], "it may be back in a moment");
    later(Duration::from_secs(10)).await;
    h1.run(&[]).await;
    assert!(well(&consul).is_empty());
    later(Duration::from_secs(60)).await;
    h2.run(&[container("far", "10.50.1.2", None)]).await;
    h1.views.send_replace(view(&[("h1", true), ("h2", true)]));
    h1.run(&[]).await;
    assert_eq!(well(&consul), [far]);
    // forgotten
    h1.views.send_replace(view(&[("h1", true)]));
    h1.run(&[]).await;
    later(Duration::from_secs(10)).await;
    h1.run(&[]).await;
    assert!(well(&consul).is_empty());
}

/// So much time goes by while nothing happens.
async fn later(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}
