//! What works across hosts: names, questions, networks that spread, the way out of the tunnels.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::warn;

use super::base::Base;
use super::{AGAIN, Failure};
use crate::agent::{Agent, Explainer, HostAnswer, HostQuestion, OtherHosts};
use crate::catalog::{self, Catalog};
use crate::cluster::{Cluster, Uplink};
use crate::config::{self, Settings};
use crate::dns::Dns;
use crate::docker;
use crate::fencing;
use crate::kernel::sandbox::Mounts;
use crate::kernel::{Kernel, Netlink, Underlay};
use crate::model::{NetworkId, OnLink};
use crate::names::{Directory, Names};
use crate::peers::{self, Peers, Secret};
use crate::spread::{self, Spread};

/// How often sandboxes are looked at where nothing says that they are others.
const SANDBOXES: Duration = Duration::from_secs(5);
/// How soon they are looked at again: several come at once, and a look costs 3 µs for each.
const GATHERED: Duration = Duration::from_millis(50);

/// The parts of the daemon that other hosts are for. On a host alone they have nothing to do.
pub struct Across {
    pub dns: Arc<Dns>,
    pub names: Arc<Names>,
    /// None: hosts do not ask each other.
    pub peers: Option<Arc<Peers>>,
    pub explainer: Arc<Explainer>,
    pub spread: Option<Arc<Spread>>,
    /// What other hosts know this one by, and the port where they ask it; none: there are none, or hosts do not ask each other.
    listening: Option<(Arc<Secret>, u16)>,
    underlay: Option<config::Underlay>,
    /// Whether it is wanted; none: there is no catalog.
    catalog: Option<(Catalog, bool)>,
}

impl Across {
    pub async fn build(settings: &Settings, base: &Base) -> Result<Self, Failure> {
        let Base { agent, cluster, store, .. } = base;
        let listening = match settings.peer_port.filter(|_| base.consul.is_some()) {
            Some(port) => Some((Secret::load(store.clone(), base.shared()).await?, port)),
            None => None,
        };
        let me = || settings.host.clone();
        let peer = |(secret, port): &(Arc<Secret>, u16)| Arc::new(Peers::new(me(), *port, secret.clone(), cluster.views()));
        let peers = listening.as_ref().map(peer);
        let names = Names::new(me(), agent.clone(), cluster.views(), peers.clone());
        let directory = names.directory().clone();
        let others = Arc::new(Others { peers: peers.clone(), directory: directory.clone() });
        Ok(Across {
            dns: Arc::new(Dns::new(directory)),
            names,
            explainer: Arc::new(Explainer::new(me(), agent.clone(), base.firewall.clone(), others)),
            spread: spreading(settings, base, peers.clone()).map(Arc::new),
            peers,
            listening,
            underlay: settings.underlay.clone(),
            catalog: in_catalog(settings, base),
        })
    }

    /// All that goes on for as long as the daemon runs.
    pub fn spawn(self, base: &Base, background: &mut JoinSet<()>) {
        let Across { dns, names, peers, explainer, spread, listening, underlay, catalog } = self;
        let routes = names.routes().merge(spread::routes(spread.clone())).merge(questions(explainer));
        let routes = routes.merge(fencing::routes(base.cluster.clone()));
        background.spawn(names.run());
        if let Some((secret, port)) = listening {
            background.spawn(secret.clone().follow());
            background.spawn(peers::serve(routes, secret, base.cluster.views(), port));
        }
        if let Some(peers) = peers {
            background.spawn(fencing::run(base.cluster.clone(), peers));
        }
        if let Some(consul) = &base.consul {
            let store = consul.address().authority.clone();
            background.spawn(find_way_out(base.kernel.clone(), underlay, store, base.cluster.clone()));
            background.spawn(answer_in_sandboxes(dns, base.agent.clone()));
        }
        if let Some(spread) = spread {
            let networks = base.agent.names().network_changes();
            background.spawn(async move { spread.run(networks).await });
        }
        match catalog {
            Some((catalog, true)) => drop(background.spawn(catalog.run())),
            // a token that has no right to the catalog sees nothing there
            Some((catalog, false)) => drop(background.spawn(async move { drop(catalog.retract().await) })),
            None => {}
        }
    }
}

/// Networks that appear by themselves, if that is wanted and can be.
fn spreading(settings: &Settings, base: &Base, peers: Option<Arc<Peers>>) -> Option<Spread> {
    let (Some(shared), Some(socket)) = (&base.consul, &settings.docker) else {
        if settings.spread {
            warn!("RSNET_SPREAD=on does nothing here: it needs RSNET_STORE=consul://… and the engine's API, RSNET_DOCKER");
        }
        return None;
    };
    let others = peers.map(|peers| Arc::new(spread::Asked { peers, views: base.cluster.views() }) as Arc<dyn spread::Others>);
    let engine = Arc::new(docker::Socket { path: socket.clone(), names: base.agent.names() });
    let (agent, own) = (base.agent.clone(), base.store.clone());
    settings.spread.then(|| Spread::new(settings.host.clone(), shared.clone(), own, engine, others, move |id| agent.shares(id)))
}

/// This host's part in Consul's catalog, and whether that is wanted.
fn in_catalog(settings: &Settings, base: &Base) -> Option<(Catalog, bool)> {
    let (wanted, host) = (settings.catalog, settings.host.clone());
    if wanted && (base.consul.is_none() || settings.docker.is_none()) {
        warn!("RSNET_CATALOG=on does nothing here: it needs RSNET_STORE=consul://… and the engine's API, RSNET_DOCKER");
    }
    let (agent, engine, me) = (base.agent.clone(), base.agent.names(), host.clone());
    let changes = engine.changes();
    let here = move || {
        let named = agent.shared_networks().into_iter().filter_map(|(id, _)| Some((id.clone(), engine.of(&id)?))).collect();
        engine.has_told().then(|| catalog::services(&me, &engine.containers(), &named))
    };
    Some((Catalog::new(host, base.consul.clone()?, base.cluster.views(), changes, here), wanted))
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

/// What may say by which way this host's tunnels leave: the setting alone, or else the way to the store, or that to anywhere.
async fn ways_out(setting: &Option<config::Underlay>, store: &str) -> Vec<Underlay> {
    match setting {
        Some(config::Underlay::Link(name)) => vec![Underlay::Link(name.clone())],
        Some(config::Underlay::Address(address)) => vec![Underlay::Address(*address)],
        None => {
            let store = tokio::net::lookup_host(store).await.into_iter().flatten().map(|socket| Underlay::Toward(socket.ip()));
            store.chain(Underlay::anywhere()).collect()
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
