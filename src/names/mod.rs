//! NAMES: what containers are called, on all hosts that share a network, and how hosts tell each other.
//!
//! Owns the [`Directory`], which is asked for each query of a container, and what keeps it true: this host's containers come from the engine
//! (`docker/`), the others' from their hosts (`peers/`). Nothing of it is on the way of a driver call, nothing is written to a store.
//!
//! Hosts tell each other directly, each the others that have the network too, and again until it is taken: hosts that reach each other end up with
//! the same.

mod book;
mod directory;
mod exchange;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::agent::{Agent, Error, Of};
use crate::cluster::View;
use crate::docker;
use crate::model::NetworkId;
use crate::peers::Peers;
use book::Book;
pub use directory::{Directory, Entry, Named, Zone};

/// How often it is looked at what this host has, if nothing says that it changed.
const NOW_AND_THEN: Duration = Duration::from_secs(10);

/// What containers of a network are called, for people.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listing {
    pub network: NetworkId,
    /// What the user calls the network, where the engine has told.
    pub network_name: Option<String>,
    /// Whether other hosts have it too; names of networks that they do not have are Docker's own affair.
    pub shared: bool,
    /// Whether the engine tells this host's names.
    pub in_touch: bool,
    pub containers: Vec<Listed>,
}

/// One of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listed {
    pub host: String,
    /// Its own name first.
    pub names: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

/// This host's part in the names of all hosts.
pub struct Names {
    me: String,
    book: Book,
    agent: Arc<Agent>,
    engine: Arc<docker::Names>,
    views: watch::Receiver<Arc<View>>,
    /// None: hosts do not talk to each other.
    peers: Option<Arc<Peers>>,
    /// There may be something to tell other hosts.
    changed: watch::Sender<u64>,
}

impl Names {
    /// Of a host called `me`.
    pub fn new(me: String, agent: Arc<Agent>, views: watch::Receiver<Arc<View>>, peers: Option<Arc<Peers>>) -> Arc<Self> {
        let engine = agent.names();
        let (book, changed) = Default::default();
        Arc::new(Names { me, book, agent, engine, views, peers, changed })
    }

    /// What is known.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.book.directory
    }

    /// What other hosts ask, for [`crate::peers::serve`].
    pub fn routes(self: &Arc<Self>) -> Router {
        exchange::routes(self.clone())
    }

    /// Keeps the directory true, and tells the other hosts; until it is dropped.
    pub async fn run(self: Arc<Self>) {
        let (mut views, mut engine) = (self.views.clone(), self.engine.changes());
        let mut couriers = exchange::Couriers::default();
        loop {
            views.mark_unchanged();
            engine.mark_unchanged();
            self.look();
            couriers.tend(&self);
            // nobody tells when the agent has a network more
            let _ = timeout(NOW_AND_THEN, async {
                tokio::select! { _ = views.changed() => {}, _ = engine.changed() => {} }
            })
            .await;
        }
    }

    /// All that is known of a network.
    pub fn of(&self, of: &Of) -> Result<Listing, Error> {
        self.look();
        let network = self.agent.find(&of.network)?;
        let listed = |Entry { host, named }| Listed {
            host: host.unwrap_or_else(|| self.me.clone()),
            names: named.names,
            addresses: named.addresses,
        };
        let containers = self.directory().entries(&network).into_iter().map(listed).collect();
        let shared = self.agent.shared_networks().iter().any(|(id, _)| *id == network);
        Ok(Listing { shared, network_name: self.engine.of(&network), in_touch: self.engine.in_touch(), network, containers })
    }

    /// Takes what this host has, and which hosts there are, from whom it is known by.
    fn look(&self) {
        let view = self.views.borrow().clone();
        let zone = |(id, subnets): (NetworkId, Vec<IpNet>)| (id.clone(), Zone { name: self.engine.of(&id), subnets });
        let zones: BTreeMap<NetworkId, Zone> = self.agent.shared_networks().into_iter().map(zone).collect();
        let hosts: BTreeSet<String> = view.hosts.iter().map(|host| host.name.clone()).filter(|host| *host != self.me).collect();
        let alive = view.hosts.iter().filter(|host| host.alive && host.name != self.me).map(|host| host.name.clone()).collect();
        let shared = shared(&view, zones.values());
        let here = self.here();
        let of_zone = |(id, zone): (&NetworkId, &Zone)| Some((zone.key()?, here.get(id).cloned().unwrap_or_default()));
        // half of what runs would take the names of the other half from the other hosts
        let here = if self.engine.has_told() { zones.iter().filter_map(of_zone).collect() } else { BTreeMap::new() };
        self.directory().set_zones(zones);
        self.directory().set_hosts(&hosts, alive);
        if self.book.set(here, shared) {
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// This host's containers, by network.
    fn here(&self) -> BTreeMap<NetworkId, Vec<Named>> {
        let mut here = BTreeMap::<NetworkId, Vec<Named>>::new();
        for (network, attachment) in self.engine.containers().into_iter().flat_map(|container| container.attached) {
            here.entry(network).or_default().push(Named { names: attachment.names, addresses: attachment.addresses });
        }
        here
    }
}

/// The networks that other hosts have too, by host.
fn shared<'z>(view: &View, zones: impl Iterator<Item = &'z Zone>) -> BTreeMap<String, BTreeSet<IpNet>> {
    let mut shared = BTreeMap::<String, BTreeSet<IpNet>>::new();
    for key in zones.filter_map(Zone::key) {
        for peer in view.of(key).into_iter().flat_map(|standing| standing.share.others()) {
            shared.entry(peer.host.clone()).or_default().insert(key);
        }
    }
    shared
}
