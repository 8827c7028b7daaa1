//! Hosts that share a network: they hear of each other, and where their blocks are full, or there is none for them, they borrow addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use rsnet::agent::{Agent, Settings};
use rsnet::cluster::{Cluster, Identity, Times, Uplink};
use rsnet::kernel::fake::{Call, Effect, Fake as FakeKernel};
use rsnet::model::Object;
use rsnet::reconcile::Reconciler;
use rsnet::store::Leases;
use rsnet::store::embedded::Embedded;
use rsnet::{driver, ipam, plugin};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::world::NETWORK;

/// Four blocks of four addresses: less the subnet's own, its broadcast, the gateway and one of each host's, ten for containers.
const SUBNET: &str = "10.50.0.0/28";
const HOSTS: [&str; 3] = ["a", "b", "c"];
const ROOM: usize = 10;

/// A host that goes on by itself, with a disk of its own and a store that it shares.
struct Host {
    cluster: Arc<Cluster>,
    kernel: Arc<FakeKernel>,
    router: Router,
    _tasks: JoinSet<()>,
    disk: TempDir,
}

impl Host {
    async fn start(shared: &Arc<Embedded>, name: &str) -> Self {
        let host = Host::alone(shared, name).await;
        host.make_network().await.unwrap();
        host
    }

    /// Without the network.
    async fn alone(shared: &Arc<Embedded>, name: &str) -> Self {
        Self::of(shared, name, tempfile::tempdir().unwrap()).await
    }

    /// Another process on what the first one's disk had when it was killed.
    async fn start_again(mut self, shared: &Arc<Embedded>, name: &str) -> Self {
        self._tasks.shutdown().await;
        let disk = tempfile::tempdir().unwrap();
        std::fs::copy(self.disk.path().join("state.redb"), disk.path().join("state.redb")).unwrap();
        Self::of(shared, name, disk).await
    }

    async fn of(shared: &Arc<Embedded>, name: &str, disk: TempDir) -> Self {
        let store = Arc::new(Embedded::open(&disk.path().join("state.redb")).unwrap());
        let ms = Duration::from_millis;
        let times = Times { breath: ms(20), again: ms(50), answer: ms(1000), ..Times::default() };
        let identity = Identity { host: name.to_owned(), id: name.to_owned() };
        let cluster = Cluster::new(shared.clone() as Arc<dyn Leases>, identity, times).unwrap();
        cluster.leave_by(Uplink { vtep: [192, 0, 2, name.as_bytes()[0]].into(), mtu: 1500, on_link: None });
        let kernel = Arc::new(FakeKernel::new());
        let reconciler = Arc::new(Reconciler::new(kernel.clone(), Arc::<rsnet::firewall::fake::Fake>::default()));
        let settings = Settings { shared: true, ..Settings::default() };
        let agent = Arc::new(Agent::load(kernel.clone(), store, reconciler, cluster.clone(), settings).await.unwrap());
        cluster.lend_by(agent.clone());
        let mut tasks = JoinSet::new();
        let follower = agent.clone();
        tasks.spawn(cluster.clone().run());
        tasks.spawn(async move { follower.follow().await });
        let router = plugin::router(driver::router(agent.clone()).merge(ipam::router(agent)));
        Host { cluster, kernel, router, _tasks: tasks, disk }
    }

    async fn call(&self, call: &str, body: Value) -> Result<Value, String> {
        let request = Request::post(format!("/{call}")).body(Body::from(body.to_string())).unwrap();
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let status = answer.status();
        let answer: Value = serde_json::from_slice(&to_bytes(answer.into_body(), 1 << 20).await.unwrap()).unwrap();
        if status == 200 { Ok(answer) } else { Err(answer["Err"].as_str().unwrap().to_owned()) }
    }

    async fn make_network(&self) -> Result<Value, String> {
        self.call("IpamDriver.RequestPool", json!({ "AddressSpace": "rsnet-local", "Pool": SUBNET })).await.unwrap();
        let gateway =
            json!({ "PoolID": SUBNET, "Address": "10.50.0.1", "Options": { "RequestAddressType": "com.docker.network.gateway" } });
        self.call("IpamDriver.RequestAddress", gateway).await.unwrap();
        let network = json!({
            "NetworkID": NETWORK,
            "Options": { "com.docker.network.generic": { "mode": "overlay" } },
            "IPv4Data": [{ "AddressSpace": "rsnet-local", "Pool": SUBNET, "Gateway": "10.50.0.1/28" }],
            "IPv6Data": [],
        });
        self.call("NetworkDriver.CreateNetwork", network).await
    }

    async fn remove_network(&self) {
        self.call("NetworkDriver.DeleteNetwork", json!({ "NetworkID": NETWORK })).await.unwrap();
        self.call("IpamDriver.ReleasePool", json!({ "PoolID": SUBNET })).await.unwrap();
        // as who looks after what is gone does behind the answer
        self.cluster.leave(&[SUBNET.parse().unwrap()]).await;
    }

    /// What a container gets.
    async fn take(&self) -> Result<String, String> {
        let answer = self.call("IpamDriver.RequestAddress", json!({ "PoolID": SUBNET })).await?;
        Ok(answer["Address"].as_str().unwrap().split('/').next().unwrap().to_owned())
    }

    async fn give(&self, address: &str) {
        self.call("IpamDriver.ReleaseAddress", json!({ "PoolID": SUBNET, "Address": address })).await.unwrap();
    }

    /// Whether its containers' packets go to others.
    fn leads_on(&self) -> bool {
        self.kernel.objects().values().any(|object| matches!(object, Object::Neighbour { .. }))
    }

    /// Single addresses that it holds of others' blocks.
    fn borrowed(&self) -> usize {
        let view = self.cluster.views().borrow().clone();
        view.networks[0].share.mine.blocks.iter().filter(|block| block.prefix_len() == 32).count()
    }

    /// Its own address on the network.
    fn home(&self) -> IpAddr {
        self.cluster.views().borrow().networks[0].share.mine.homes[0]
    }

    /// Whether it has heard that another host is at home there.
    fn knows_home(&self, home: IpAddr) -> bool {
        self.cluster.views().borrow().networks[0].share.others().any(|peer| peer.homes.contains(&home))
    }

    /// Whether it leads to another host by an address of that one's own.
    fn leads_by(&self, home: IpAddr) -> bool {
        let by = |object: &Object| matches!(object, Object::Neighbour { address, .. } if *address == home);
        self.kernel.objects().values().any(by)
    }

    /// Addresses of its blocks that others have.
    fn lent(&self) -> usize {
        let view = self.cluster.views().borrow().clone();
        let standing = &view.networks[0];
        standing.kept.iter().filter(|kept| !standing.share.mine.homes.contains(kept)).count()
    }
}

async fn some(names: &[&str]) -> (TempDir, Arc<Embedded>, Vec<Host>) {
    let disk = tempfile::tempdir().unwrap();
    let shared = Arc::new(Embedded::open(&disk.path().join("shared.redb")).unwrap());
    let mut hosts = Vec::new();
    for name in names {
        hosts.push(Host::start(&shared, name).await);
    }
    (disk, shared, hosts)
}

async fn three() -> (TempDir, Vec<Host>) {
    let (disk, _, hosts) = some(&HOSTS).await;
    (disk, hosts)
}

/// Whether a host has heard of another on the network.
fn has_heard(cluster: &Cluster) -> bool {
    cluster.views().borrow().networks.first().is_some_and(|network| !network.share.peers.is_empty())
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn fill(host: &Host, room: usize) -> BTreeSet<String> {
    let mut taken = BTreeSet::new();
    for _ in 0..room {
        let address = host.take().await.unwrap();
        assert!(taken.insert(address.clone()), "{address} twice");
    }
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_has_every_address_that_is_free_anywhere_and_gives_it_back() {
    let (_disk, hosts) = three().await;
    for host in [&hosts[0], &hosts[1], &hosts[0]] {
        let taken = fill(host, ROOM).await;
        let error = host.take().await.unwrap_err();
        assert!(error.contains("none is free on this host, and no other lends one") && error.contains("c: has none free"), "{error}");
        assert!(host.borrowed() > 0);
        for address in &taken {
            host.give(address).await;
        }
        until("all to have their own again", || hosts.iter().all(|host| host.borrowed() + host.lent() == 0)).await;
    }
}

/// The first host's kernel is so slow that the other is heard of before the network is there.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_while_a_network_is_made_is_reached_when_it_is() {
    let disk = tempfile::tempdir().unwrap();
    let shared = Arc::new(Embedded::open(&disk.path().join("shared.redb")).unwrap());
    let first = Arc::new(Host::alone(&shared, "a").await);
    let (cluster, mut waited) = (first.cluster.clone(), false);
    let slow = move |_: &Call| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !waited && !has_heard(&cluster) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        // who follows what is heard has had a turn
        std::thread::sleep(Duration::from_millis(if waited { 0 } else { 200 }));
        waited = true;
        false
    };
    first.kernel.fail_matching(slow, Effect::None);
    let making = tokio::spawn({
        let first = first.clone();
        async move { first.make_network().await }
    });
    until("the first to take part", || !first.cluster.views().borrow().networks.is_empty()).await;
    let _second = Host::start(&shared, "b").await;
    making.await.unwrap().unwrap();
    until("the first to lead packets to the second", || first.leads_on()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_borrow_at_once_never_get_one_address_twice() {
    let (_disk, hosts) = three().await;
    let each = hosts.iter().map(|host| async {
        let mut taken = Vec::new();
        for _ in 0..5 {
            taken.extend(host.take().await.ok());
        }
        taken
    });
    let taken: Vec<String> = futures_util::future::join_all(each).await.concat();
    let distinct: BTreeSet<&String> = taken.iter().collect();
    assert_eq!(distinct.len(), taken.len(), "{taken:?}");
    assert_eq!(taken.len(), ROOM, "{taken:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_does_not_answer_is_named() {
    let (_disk, mut hosts) = three().await;
    hosts[2]._tasks.abort_all();
    let first = &hosts[0];
    let error = loop {
        if let Err(error) = first.take().await {
            break error;
        }
    };
    assert!(error.contains("c: does not answer") && error.contains("b: has none free"), "{error}");
}

/// As many hosts as there are blocks, and two more: room for 16 less the subnet's own, its broadcast, the gateway and a home for each.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_for_which_there_is_no_block_takes_part_with_addresses_that_others_lend() {
    let (_disk, shared, hosts) = some(&["a", "b", "c", "d"]).await;
    let late = Host::start(&shared, "e").await;
    let home = late.home();
    assert_eq!(late.borrowed(), 1, "no block");
    let mut taken = BTreeSet::new();
    for _ in 0..8 {
        assert!(taken.insert(late.take().await.unwrap()), "{taken:?}");
    }
    assert!(!taken.contains(&home.to_string()) && late.borrowed() == 9, "{home} {taken:?}");
    late.take().await.unwrap_err();
    let sixth = Host::alone(&shared, "f").await;
    let refused = sixth.make_network().await.unwrap_err();
    let said = [
        "the network of 10.50.0.0/28: no block of it is free, and no other host lends an address: ",
        "a: has none free",
        "a larger subnet",
    ];
    assert!(said.iter().all(|said| refused.contains(said)), "{refused}");

    let late = late.start_again(&shared, "e").await;
    assert_eq!((late.home(), late.borrowed()), (home, 9));
    until("all to lead to it", || hosts.iter().all(|host| host.leads_by(home))).await;
    // an engine that gives back what it never had changes nothing
    late.give(&home.to_string()).await;
    for address in &taken {
        late.give(address).await;
    }
    let lent = || hosts.iter().map(Host::lent).sum::<usize>();
    until("one to be lent", || (late.borrowed(), lent()) == (1, 1)).await;
    assert!(late.home() == home && late.take().await.unwrap() != home.to_string());
    sixth.remove_network().await;
    sixth.make_network().await.unwrap();
    until("both to know each other", || late.knows_home(sixth.home()) && sixth.leads_by(home)).await;

    for host in [&late, &sixth] {
        host.remove_network().await;
    }
    until("all to have their own again", || lent() == 0).await;
    // there is one more home than with three hosts
    fill(&hosts[0], ROOM - 1).await;
}
