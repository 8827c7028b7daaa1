//! Composition root: the only place that knows all concrete types. Everything is built before anything runs.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use futures_util::FutureExt;
use listenfd::ListenFd;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::agent::{self, Agent, Explainer, HostAnswer, HostQuestion, OtherHosts};
use crate::cluster::{Cluster, Identity, Times, Uplink};
use crate::config::{self, Settings};
use crate::dns::Dns;
use crate::docker;
use crate::firewall::nftables::Nftables;
use crate::inspect::Sources;
use crate::kernel::sandbox::Mounts;
use crate::kernel::{Kernel, Netlink, NetlinkConfig, Underlay};
use crate::model::{NetworkId, OnLink};
use crate::names::{Directory, Names};
use crate::peers::{self, Peers, Secret};
use crate::plugin::{self, Sockets};
use crate::reconcile::Reconciler;
use crate::spread::{self, Spread};
use crate::store::consul::Consul;
use crate::store::embedded::Embedded;
use crate::store::{Expect, Key, Leases, Store};
use crate::telemetry::Metrics;
use crate::{driver, inspect, ipam};

type Failure = Box<dyn std::error::Error>;

/// How long the last deletions may take after the last answer.
const LAST_DELETIONS: Duration = Duration::from_secs(2);

/// Bytes: the MTU of Ethernet.
const ETHERNET: u32 = 1500;

/// How often a shared store that cannot be reached is asked again.
const AGAIN: Duration = Duration::from_secs(5);

/// How often sandboxes are looked at where nothing says that they are others.
const SANDBOXES: Duration = Duration::from_secs(5);
/// How soon they are looked at again: several come at once, and a look costs 3 µs for each.
const GATHERED: Duration = Duration::from_millis(50);

/// The daemon, ready to run.
pub struct App {
    agent: Arc<Agent>,
    reconciler: Arc<Reconciler>,
    sockets: Sockets,
    router: Router,
    metrics: Option<(TcpListener, Router)>,
    docker: Option<PathBuf>,
    cluster: Arc<Cluster>,
    kernel: Arc<Netlink>,
    underlay: Option<config::Underlay>,
    consul: Option<Arc<Consul>>,
    dns: Arc<Dns>,
    names: Arc<Names>,
    explainer: Arc<Explainer>,
    /// What other hosts know this one by, and the port where they ask it; none: there are none, or hosts do not ask each other.
    listening: Option<(Arc<Secret>, u16)>,
    spread: Option<Arc<Spread>>,
}

/// Opens the store and the kernel, reads what is declared, and listens; answers nothing yet and leaves the host as it is.
pub async fn build(settings: Settings) -> Result<App, Failure> {
    std::fs::create_dir_all(&settings.data_dir).map_err(|error| format!("create {}: {error}", settings.data_dir.display()))?;
    let store = Arc::new(Embedded::open(&settings.data_dir.join("state.redb"))?);
    let (kernel, firewall) = host(&settings)?;
    let reconciler = Arc::new(Reconciler::new(kernel.clone(), firewall.clone()));
    let consul = settings.consul.clone().map(Consul::new).map(Arc::new);
    let shared: Arc<dyn Leases> = match &consul {
        Some(consul) => consul.clone(),
        None => store.clone(),
    };
    let identity = Identity { host: settings.host.clone(), id: machine_id(&*store).await? };
    let cluster = Cluster::new(shared.clone(), identity, Times::default())?;
    let listening = match settings.peer_port.filter(|_| consul.is_some()) {
        Some(port) => Some((Secret::load(store.clone(), shared).await?, port)),
        None => None,
    };
    let peer = |(secret, port): &(Arc<Secret>, u16)| Peers::new(settings.host.clone(), *port, secret.clone(), cluster.views());
    let peers = listening.as_ref().map(peer).map(Arc::new);
    let agent_settings = agent::Settings { way: settings.attach, shared: consul.is_some() };
    let agent = Arc::new(Agent::load(kernel.clone(), store.clone(), reconciler.clone(), cluster.clone(), agent_settings).await?);
    let others = peers.clone().map(|peers| Arc::new(spread::Asked { peers, views: cluster.views() }) as Arc<dyn spread::Others>);
    let names = Names::new(settings.host.clone(), agent.clone(), cluster.views(), peers.clone());
    let dns = Arc::new(Dns::new(names.directory().clone()));
    let metrics = Arc::new(Metrics::default());
    let spread = spreading(&settings, &consul, store, &agent, others).map(Arc::new);
    let sources = Arc::new(Sources {
        agent: agent.clone(),
        reconciler: reconciler.clone(),
        consul: consul.clone(),
        kernel: kernel.clone(),
        firewall: firewall.clone(),
        data_dir: settings.data_dir.clone(),
        started: Instant::now(),
        dns: dns.clone(),
    });
    let others = Others { peers, directory: names.directory().clone() };
    let explainer = Arc::new(Explainer::new(settings.host.clone(), agent.clone(), firewall, Arc::new(others)));
    let told = inspect::router(agent.clone(), names.clone())
        .merge(inspect::state_router(sources))
        .merge(inspect::explain_router(explainer.clone()));
    let calls = driver::router(agent.clone()).merge(ipam::router(agent.clone())).merge(told).merge(spread::router(spread.clone()));
    let shown = match settings.metrics {
        Some(address) => Some((TcpListener::bind(address).await?, metrics.router())),
        None => None,
    };
    let sockets = sockets(&settings)?;
    let router = metrics.around(plugin::router(calls));
    cluster.lend_by(agent.clone());
    if consul.is_none() {
        // this host has no others to reach
        cluster.leave_by(Uplink { vtep: Ipv4Addr::LOCALHOST.into(), mtu: ETHERNET, on_link: None });
    }
    let (underlay, docker) = (settings.underlay, settings.docker);
    Ok(App {
        agent,
        reconciler,
        cluster,
        kernel,
        underlay,
        sockets,
        router,
        metrics: shown,
        docker,
        consul,
        dns,
        names,
        explainer,
        listening,
        spread,
    })
}

/// Networks that appear by themselves, if that is wanted and can be.
fn spreading(
    settings: &Settings,
    consul: &Option<Arc<Consul>>,
    own: Arc<dyn Store>,
    agent: &Arc<Agent>,
    others: Option<Arc<dyn spread::Others>>,
) -> Option<Spread> {
    let (Some(shared), Some(socket)) = (consul, &settings.docker) else {
        if settings.spread {
            warn!("RSNET_SPREAD=on does nothing here: it needs RSNET_STORE=consul://… and the engine's API, RSNET_DOCKER");
        }
        return None;
    };
    let (engine, agent) = (Arc::new(docker::Socket(socket.clone())), agent.clone());
    settings.spread.then(|| Spread::new(settings.host.clone(), shared.clone(), own, engine, others, move |id| agent.shares(id)))
}

/// What tells this machine from another that gets its name: random, on its own disk.
async fn machine_id(store: &dyn Store) -> Result<String, Failure> {
    let key = Key::new("host/id")?;
    if let Some(entry) = store.get(&key).await? {
        return Ok(String::from_utf8(entry.value)?);
    }
    let id = format!("{:032x}", rand::random::<u128>());
    store.put(&key, id.clone().into_bytes(), Expect::Absent).await?;
    Ok(id)
}

/// The kernel and the firewall of the network namespace that this process is in.
fn host(settings: &Settings) -> Result<(Arc<Netlink>, Arc<Nftables>), Failure> {
    let config = NetlinkConfig { proc_sys_net: settings.proc_sys_net.clone(), ..NetlinkConfig::default() };
    Ok((Arc::new(Netlink::new(config)?), Arc::new(Nftables::open()?)))
}

/// The sockets that systemd hands over, or else those of the settings.
fn sockets(settings: &Settings) -> Result<Sockets, Failure> {
    let mut handed = ListenFd::from_env();
    let mut sockets = Sockets::default();
    for index in 0..handed.len() {
        if let Some(listener) = handed.take_unix_listener(index)? {
            sockets.adopt(listener)?;
        }
    }
    Ok(if sockets.is_empty() { Sockets::bind(&settings.sockets)? } else { sockets })
}

impl App {
    /// Serves until SIGTERM or SIGINT. Calls under way are finished; networks, containers and firewall stay as they are.
    pub async fn run(self) -> Result<(), Failure> {
        let stop = stop_on_signals()?;
        let reconciler = self.reconciler.clone();
        let mut watch = Box::pin(async move { reconciler.watch().await });
        // its first look has the host to itself before any call is answered
        let _ = (&mut watch).now_or_never();
        let names = self.agent.names();
        let (dns, joined) = (self.dns.clone(), self.agent.clone());
        let (collector, follower, cluster) = (self.agent.clone(), self.agent, self.cluster.clone());
        let mut background = vec![
            tokio::spawn(watch),
            tokio::spawn(async move { collector.collect().await }),
            tokio::spawn(async move { follower.follow().await }),
            tokio::spawn(async move { cluster.run().await }),
        ];
        let store = self.consul.as_ref().map(|consul| consul.address().authority.clone());
        let routes = self.names.routes().merge(spread::routes(self.spread.clone())).merge(questions(self.explainer));
        let views = self.cluster.views();
        background.push(tokio::spawn(self.names.run()));
        background.extend(self.listening.iter().map(|(secret, _)| tokio::spawn(secret.clone().follow())));
        background.extend(self.listening.map(|(secret, port)| tokio::spawn(peers::serve(routes, secret, views, port))));
        background.extend(store.map(|store| tokio::spawn(find_way_out(self.kernel, self.underlay, store, self.cluster))));
        background.extend(self.docker.map(|socket| tokio::spawn(async move { names.learn(&socket).await })));
        if self.consul.is_some() {
            // there are other hosts
            background.push(tokio::spawn(answer_in_sandboxes(dns, joined)));
        }
        background.extend(self.consul.map(|store| tokio::spawn(reach(store))));
        background.extend(self.spread.map(|spread| tokio::spawn(async move { spread.run().await })));
        let metrics = self.metrics.map(|(listener, router)| tokio::spawn(axum::serve(listener, router).into_future()));
        info!("rsnet {} is ready", env!("CARGO_PKG_VERSION"));
        plugin::serve(self.sockets, self.router, stop).await;
        background.iter().for_each(tokio::task::JoinHandle::abort);
        metrics.inspect(tokio::task::JoinHandle::abort);
        tokio::join!(self.reconciler.idle(LAST_DELETIONS), timeout(LAST_DELETIONS, self.dns.close()).map(drop));
        Ok(())
    }
}

/// Has queries answered in the sandboxes that there are, whenever they may be others: when the engine says so, and when one is mounted, which
/// engines up to 27 do a while after they named it, or unmounted, which they all do without a word after a crash.
async fn answer_in_sandboxes(dns: Arc<Dns>, agent: Arc<Agent>) {
    let mounts = Mounts::watch().inspect_err(|error| warn!(%error, "watch the mounts: names are answered in new containers late"));
    loop {
        dns.keep(&agent.sandboxes());
        let mounted = async {
            match &mounts {
                Ok(mounts) => mounts.changed().await,
                Err(_) => std::future::pending().await,
            }
        };
        sleep(GATHERED).await;
        tokio::select! { () = agent.sandboxes_change() => {}, _ = mounted => {}, () = sleep(SANDBOXES) => {} }
    }
}

/// The other hosts, as the search for a fault asks them.
struct Others {
    peers: Option<Arc<Peers>>,
    directory: Arc<Directory>,
}

#[async_trait]
impl OtherHosts for Others {
    async fn ask(&self, host: &str, question: &HostQuestion) -> Result<HostAnswer, String> {
        let peers = self.peers.as_ref().ok_or("hosts do not ask each other here (RSNET_PEER_PORT is 0, or there is no Consul)")?;
        peers.ask_json(host, "/explain", question).await.map_err(|error| error.to_string())
    }

    fn addresses(&self, networks: &[NetworkId], name: &str) -> Vec<IpAddr> {
        self.directory.addresses(networks, &name.to_ascii_lowercase()).unwrap_or_default()
    }
}

/// What they ask here.
fn questions(explainer: Arc<Explainer>) -> Router {
    let answer = async |State(explainer): State<Arc<Explainer>>, body: Bytes| {
        peers::call(body, async |question: HostQuestion| explainer.answer(&question).await).await
    };
    Router::new().route("/explain", post(answer)).with_state(explainer)
}

/// What may say by which way this host's tunnels leave: the setting alone, or else the way to the store, or that to anywhere. The addresses
/// of the latter are of the documentation (RFC 5737, RFC 3849): nothing is sent to them.
async fn ways_out(setting: &Option<config::Underlay>, store: &str) -> Vec<Underlay> {
    let anywhere = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])].map(Underlay::Toward);
    match setting {
        Some(config::Underlay::Link(name)) => vec![Underlay::Link(name.clone())],
        Some(config::Underlay::Address(address)) => vec![Underlay::Address(*address)],
        None => {
            let store = tokio::net::lookup_host(store).await.into_iter().flatten().map(|socket| Underlay::Toward(socket.ip()));
            store.chain(anywhere).collect()
        }
    }
}

/// Tells the cluster by which way tunnels leave, as soon as there is one, and when it has another MTU. The address is the first that was found.
async fn find_way_out(kernel: Arc<Netlink>, setting: Option<config::Underlay>, store: String, cluster: Arc<Cluster>) {
    let mut found = None;
    loop {
        let ways = match found {
            Some(address) => vec![Underlay::Address(address)],
            None => ways_out(&setting, &store).await,
        };
        for way in ways {
            if let Ok(Some(uplink)) = kernel.underlay(&way).await {
                found = Some(uplink.source);
                let on_link = Some(OnLink { link: uplink.link, subnet: uplink.subnet });
                cluster.leave_by(Uplink { vtep: uplink.source, mtu: uplink.mtu, on_link });
                break;
            }
        }
        sleep(AGAIN).await;
    }
}

/// Says why the store that hosts share cannot be used, each reason once, and when it can. No network waits for it.
async fn reach(store: Arc<Consul>) {
    let mut told = String::new();
    while let Err(error) = store.check().await {
        let reason = error.to_string();
        if reason != told {
            warn!("{reason}. Networks of this host are served all the same; asking again every {} s", AGAIN.as_secs());
        }
        told = reason;
        sleep(AGAIN).await;
    }
    info!("the store {} is there", store.address());
}

fn stop_on_signals() -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut term, mut interrupt, stopping) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, stop.clone());
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
        stopping.cancel();
    });
    Ok(stop)
}

/// Makes the host have nothing of rsnet's; with `forget` also the store. Refused while a daemon has the store.
pub async fn clean(settings: &Settings, forget: bool) -> Result<usize, Failure> {
    let file = settings.data_dir.join("state.redb");
    let store = if file.exists() { Some(Embedded::open(&file)?) } else { None };
    let (kernel, firewall) = host(settings)?;
    let report = Reconciler::new(kernel, firewall).clear().await?;
    if let Some(error) = report.failed.into_iter().next() {
        return Err(error.into());
    }
    drop(store);
    if forget && file.exists() {
        std::fs::remove_file(&file)?;
    }
    Ok(report.mended)
}
