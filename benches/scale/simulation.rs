//! The simulated hosts, and what happens to them.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rsnet::cluster::{Cluster, Identity, Times, Uplink, View, Wanted};
use rsnet::model::{Member, Roster};
use rsnet::store::Consul;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::Options;
use crate::meter::{Used, memory};
use crate::report::Report;
use crate::server::{Server, quick};

/// How long anything may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(300);
/// So long nothing happens, to see what that costs.
const QUIET: Duration = Duration::from_secs(20);

pub fn measure(options: &Options, report: &mut Report) {
    let servers = consul(options.servers);
    let runtime = |threads| tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().expect("a runtime");
    let (all, apart) = (runtime(2), runtime(1));
    all.block_on(async {
        let apart = apart.handle().clone();
        let mut world = World { servers, networks: networks(options.networks), hosts: vec![], apart, rows: Arc::default() };
        world.run(options.hosts, report).await;
    });
}

/// One server or three, whose leader or agent all hosts ask: in the field each asks an agent of its own. None with `-dev`, which has all
/// answers indented for people.
fn consul(count: u8) -> Vec<Server> {
    let mut settings = quick();
    settings["limits"] = serde_json::json!({ "http_max_conns_per_client": 19_000 });
    let others = ["-bootstrap-expect=3", "-retry-join=127.0.0.1", "-retry-join=127.0.0.2", "-retry-interval=1s"];
    let arguments = if count == 1 { &["-bootstrap-expect=1"][..] } else { &others };
    let arguments = [&["-server", "-data-dir=data"], arguments].concat();
    let servers: Vec<Server> = (1..=count).map(|n| Server::start(n, &arguments, &settings)).collect();
    servers.iter().for_each(|server| drop(server.await_leader()));
    servers
}

/// The sixteenths of 10.0.0.0/8.
fn networks(count: u8) -> Vec<Wanted> {
    let wanted = |n: u8| {
        let base = Ipv4Addr::new(10, n * 16, 0, 0);
        let subnet = IpNet::new(base.into(), 12).expect("a length below 32");
        Wanted { subnets: vec![subnet], reserved: subnet.hosts().take(1).collect(), ..Wanted::default() }
    };
    (0..count).map(wanted).collect()
}

struct World {
    servers: Vec<Server>,
    networks: Vec<Wanted>,
    hosts: Vec<Host>,
    /// Where the host that does something alone is: in the field it is a machine, and does not stand in line with those who hear of it.
    apart: Handle,
    rows: Arc<AtomicU64>,
}

struct Host {
    name: String,
    cluster: Arc<Cluster>,
    store: Arc<Consul>,
    on: Handle,
    /// The cluster's part, and the counting kernel's.
    tasks: [JoinHandle<()>; 2],
}

impl World {
    async fn run(&mut self, count: usize, report: &mut Report) {
        let (failed, mut joined) = (Arc::new(AtomicU64::new(0)), Duration::ZERO);
        self.line(report, "all join at once", Some(60.0), async |world| {
            world.start(0, &world.apart.clone());
            (1..count).for_each(|n| world.start(n, &Handle::current()));
            (0..count).for_each(|n| drop(world.join(n, failed.clone())));
            let start = Instant::now();
            world.until("all to take part", |host| host.view().networks.len() == world.networks.len()).await;
            joined = start.elapsed();
            world.until("the first full mesh", |host| host.knows(count - 1, world.networks.len())).await;
        })
        .await;
        report.fact(format!("all took part after {:.1} s", joined.as_secs_f64()));
        report.fact(format!("joins that failed and were tried again: {}", failed.load(Ordering::Relaxed)));
        report.fact(format!(
            "memory: {:.1} MB a simulated host, {:.0} MB Consul",
            memory(std::process::id()) / count as f64,
            self.consul_memory()
        ));
        self.line(report, "nothing happens, for 20 s", None, async |_| tokio::time::sleep(QUIET).await).await;
        let last = count;
        self.line(report, "one more joins", Some(2.0), async |world| {
            world.start(last, &world.apart.clone());
            let join = world.join(last, failed.clone());
            world.until("all to know one more", |host| host.knows(count, world.networks.len())).await;
            join.await.expect("a host joins");
        })
        .await;
        self.line(report, "one claims one more block", Some(2.0), async |world| {
            let subnet = world.networks[0].subnets[0];
            let cluster = world.hosts[0].cluster.clone();
            let block = world.apart.spawn(async move { cluster.grow(subnet).await }).await.expect("a task").expect("a block");
            let name = world.hosts[0].name.clone();
            world.until("all to know a block", |host| host.name == name || host.peer(0, &name, |peer| peer.blocks.contains(&block))).await;
        })
        .await;
        let dead = self.hosts.pop().expect("a host");
        dead.tasks.iter().for_each(JoinHandle::abort);
        let name = dead.name.clone();
        drop(dead);
        self.line(report, "one dies (its lease has 30 to 60 s)", None, async |world| {
            world.until("all to see it dead", |host| host.sees_dead(&name)).await;
        })
        .await;
        self.line(report, "it is forgotten", Some(2.0), async |world| {
            let (cluster, name) = (world.hosts[0].cluster.clone(), name.clone());
            world.apart.spawn(async move { cluster.forget(&name).await }).await.expect("a task").expect("to forget a dead host");
            world.until("all to forget it", |host| host.knows(count - 1, world.networks.len())).await;
        })
        .await;
    }

    /// One line of the table.
    async fn line(&mut self, report: &mut Report, what: &str, limit: Option<f64>, work: impl AsyncFnOnce(&mut World)) {
        let (start, before) = (Instant::now(), self.used());
        work(self).await;
        report.add(what, start.elapsed().as_secs_f64(), limit, self.used() - before);
    }

    fn used(&self) -> Used {
        let traffic = self.hosts.iter().map(|host| host.store.traffic());
        Used::now(traffic, self.servers.iter().map(Server::id), self.rows.load(Ordering::Relaxed))
    }

    fn consul_memory(&self) -> f64 {
        self.servers.iter().map(|server| memory(server.id())).sum()
    }

    /// A host that comes.
    fn start(&mut self, n: usize, on: &Handle) {
        let identity = Identity { host: format!("host-{n:04}"), id: format!("{:032x}", rand::random::<u128>()) };
        let store = Arc::new(self.servers[n % self.servers.len()].store());
        let name = identity.host.clone();
        let cluster = Cluster::new(store.clone(), identity, Times::default()).expect("a sound name");
        let number = u32::try_from(n).expect("few hosts");
        cluster.leave_by(Uplink { vtep: IpAddr::from(Ipv4Addr::from_bits(0xac10_0001 + number)), mtu: 1500, on_link: None });
        let tasks = [on.spawn(cluster.clone().run()), on.spawn(count_rows(cluster.clone(), self.rows.clone()))];
        self.hosts.push(Host { name, cluster, store, on: on.clone(), tasks });
    }

    /// Has it join all networks, one after the other, as somebody who types `docker network create` until it works.
    fn join(&self, at: usize, failed: Arc<AtomicU64>) -> JoinHandle<()> {
        let (cluster, networks) = (self.hosts[at].cluster.clone(), self.networks.clone());
        self.hosts[at].on.spawn(async move {
            for wanted in networks {
                while let Err(error) = cluster.join(&wanted).await {
                    if failed.fetch_add(1, Ordering::Relaxed) == 0 {
                        eprintln!("the first that failed: {error}");
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        })
    }

    /// Waits until something has held on each host: it holds on from then on.
    async fn until(&self, what: &str, holds: impl Fn(&Host) -> bool) {
        let (deadline, mut last, mut waiting) = (Instant::now() + PATIENCE, Instant::now(), &self.hosts[..]);
        loop {
            let done = waiting.iter().take_while(|host| holds(host)).count();
            waiting = &waiting[done..];
            let Some(host) = waiting.first() else { return };
            assert!(Instant::now() < deadline, "waited for {what}: {} does not", host.name);
            if last.elapsed() > Duration::from_secs(5) {
                last = Instant::now();
                let done = self.hosts.iter().filter(|host| holds(host)).count();
                eprintln!("  {what}: {done} hosts so far, {:?}", self.used());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Host {
    fn view(&self) -> Arc<View> {
        self.cluster.views().borrow().clone()
    }

    /// Whether it takes part in all networks and has that many peers in each.
    fn knows(&self, peers: usize, networks: usize) -> bool {
        let view = self.view();
        view.networks.len() == networks && view.networks.iter().all(|network| network.share.peers.len() == peers)
    }

    fn peer(&self, network: usize, name: &str, is: impl Fn(&Member) -> bool) -> bool {
        let view = self.view();
        view.networks[network].share.peers.get(name).is_some_and(is)
    }

    fn sees_dead(&self, name: &str) -> bool {
        self.view().hosts.get(name).is_some_and(|host| !host.alive)
    }
}

/// The kernel of a host, which only counts: of a peer that is another, new or gone, its neighbour, its forwarding entry and its routes.
async fn count_rows(cluster: Arc<Cluster>, rows: Arc<AtomicU64>) {
    let mut views = cluster.views();
    let mut before = Arc::new(View::default());
    while views.changed().await.is_ok() {
        let view = views.borrow_and_update().clone();
        let news = view.networks.iter().filter(|network| !before.networks.iter().any(|old| Arc::ptr_eq(old, network)));
        for network in news {
            let old = before.of(network.subnets[0]).map(|old| old.share.peers.clone()).unwrap_or_default();
            rows.fetch_add(differing(&network.share.peers, &old), Ordering::Relaxed);
        }
        before = view;
    }
}

/// Both in the order of their names.
fn differing(peers: &Roster<Member>, before: &Roster<Member>) -> u64 {
    let (mut now, mut old, mut rows) = (peers.shared().peekable(), before.shared().peekable(), 0);
    loop {
        let order = match (now.peek(), old.peek()) {
            (None, None) => return rows,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(now), Some(old)) if Arc::ptr_eq(now, old) => std::cmp::Ordering::Equal,
            (Some(now), Some(old)) => now.host.cmp(&old.host),
        };
        let now = if order.is_le() { now.next() } else { None };
        let old = if order.is_ge() { old.next() } else { None };
        rows += if now == old { 0 } else { now.or(old).map_or(0, |peer| rows_of(peer)) };
    }
}

fn rows_of(peer: &Member) -> u64 {
    (2 * peer.homes.len() + peer.blocks.len()) as u64
}
