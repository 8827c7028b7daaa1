//! What a fresh process does with what an earlier one declared, and what is done about containers that went without a word.
//!
//! The engine never repeats `CreateNetwork` after a reboot, and after a crash it may never send the `DeleteEndpoint` of a container that
//! died with it (a v1 plugin that is not loaded yet is told nothing). An endpoint whose sandbox is gone has no container.
//!
//! A call that was under way when the process died is not repeated either: the engine takes it for failed and, of a `DeleteNetwork`, for
//! done. Such networks are known by the engine's list, or by another one in their place.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tracing::{info, warn};

use super::addressing::{Addressing, SPACE, pool_id};
use super::shared::wanted;
use super::state::{Known, Live, Origin, Presence, State, endpoint_owner, network_owner};
use super::twins::at;
use super::{Agent, Error, Settings};
use crate::cluster::Cluster;
use crate::drivers::{self, Mode};
use crate::kernel::{Kernel, Whereabouts};
use crate::model::{Attached, Endpoint, Network};
use crate::reconcile::Reconciler;
use crate::store::{Entry, Key, Prefix, Store};

/// How long an engine may take to list a network that it made.
const LISTED: Duration = Duration::from_secs(20);
/// How often the agent looks for containers and networks that are gone: a call of the system for each container.
const COLLECT: Duration = Duration::from_secs(10);

impl Agent {
    /// Reads what was declared. The host is not touched: the reconciler's first look does that, with all of it known.
    pub async fn load(
        kernel: Arc<dyn Kernel>,
        store: Arc<dyn Store>,
        reconciler: Arc<Reconciler>,
        cluster: Arc<Cluster>,
        settings: Settings,
    ) -> Result<Agent, Error> {
        let state = read(&*store).await?;
        let mut addressing = Addressing::load(&*store).await?;
        for (Live { network, .. }, agreement) in state.shared() {
            if let Some(share) = network.share.clone() {
                cluster.resume(wanted(agreement, BTreeSet::new()), share);
            }
        }
        for Known { endpoint, .. } in state.endpoints() {
            state.lan_of(endpoint).into_iter().for_each(|subnet| cluster.resume_mac(subnet, endpoint.mac, &at(endpoint)));
        }
        addressing.confine(&cluster.views().borrow(), &state.blocks());
        let (state, addressing) = (Mutex::new(state), tokio::sync::Mutex::new(addressing));
        let (locks, names, strangers, short, joined, left, moved) = Default::default();
        let agent =
            Agent { kernel, store, reconciler, state, addressing, locks, names, strangers, cluster, short, joined, left, moved, settings };
        agent.forget_vanished().await?;
        agent.expect_all();
        Ok(agent)
    }

    /// Tells the reconciler what must be there.
    fn expect_all(&self) {
        for live in self.state.lock().networks.values() {
            let network = (network_owner(&live.network.id), live.mode.network());
            let endpoints = live
                .endpoints
                .values()
                .map(|Known { endpoint, .. }| (endpoint_owner(&endpoint.network, &endpoint.id), live.mode.endpoint(endpoint)));
            for (owner, plan) in std::iter::once(network).chain(endpoints) {
                if let Err(error) = self.reconciler.expect(&owner, plan) {
                    warn!(%error, %owner, "declared twice; the second is left out");
                }
            }
        }
    }

    /// Forgets endpoints whose containers are gone, now and then until the process ends.
    pub async fn collect(&self) {
        loop {
            tokio::select! { () = tokio::time::sleep(COLLECT) => {}, () = self.left.notified() => {} }
            self.leave_unused().await;
            if let Err(error) = self.forget_vanished().await {
                warn!(%error, "could not forget containers that are gone; trying again");
            }
            if let Err(error) = self.follow_host_links().await {
                warn!(%error, "could not follow the addresses of the host's links; trying again");
            }
            self.stand();
            if let Err(error) = self.forget_unknown().await {
                warn!(%error, "could not forget networks that the engine has not; trying again");
            }
        }
    }

    async fn forget_vanished(&self) -> Result<(), Error> {
        self.forget(|mode, known| self.is_lost(mode, known)).await
    }

    /// Forgets who had an address that the engine asks for again, if its container is gone.
    pub(super) async fn forget_holder(&self, address: IpAddr) -> Result<(), Error> {
        let holds = |known: &Known| known.endpoint.addresses.iter().any(|held| held.addr() == address);
        self.forget(|mode, known| holds(known) && self.has_vanished(mode, known)).await
    }

    async fn forget(&self, is_gone: impl Fn(&dyn Mode, &Known) -> bool) -> Result<(), Error> {
        let gone = |live: &Live| live.endpoints.values().filter(|known| is_gone(&*live.mode, known)).cloned().collect::<Vec<_>>();
        let gone: Vec<Known> = self.state.lock().networks.values().flat_map(gone).collect();
        for Known { endpoint, .. } in gone {
            info!(network = %endpoint.network, endpoint = %endpoint.id, "the container is gone; its endpoint is removed");
            self.delete_endpoint(&endpoint.network, &endpoint.id).await?;
            self.release_addresses(&endpoint).await?;
        }
        Ok(())
    }

    /// Forgets networks that the engine, which can be asked, does not have: it does not repeat a `DeleteNetwork` that nobody answered.
    async fn forget_unknown(&self) -> Result<(), Error> {
        let forgotten =
            |live: &&Live| live.endpoints.is_empty() && live.origin.since.elapsed() > LISTED && self.names.lack(&live.network.id);
        let unknown: Vec<Network> = self.state.lock().networks.values().filter(forgotten).map(|live| live.network.clone()).collect();
        for network in unknown {
            info!(network = %network.id, "the engine does not have the network; it is removed");
            let pools = self.pools_of(&network).await;
            self.delete_network(&network.id).await?;
            let others: Vec<Network> = self.state.lock().networks.values().map(|live| live.network.clone()).collect();
            let mut in_use = BTreeSet::new();
            for other in &others {
                in_use.extend(self.pools_of(other).await);
            }
            for pool in pools.difference(&in_use) {
                self.release_pool(pool).await?;
            }
        }
        Ok(())
    }

    /// The names of the pools that a network has from us.
    async fn pools_of(&self, network: &Network) -> BTreeSet<String> {
        let links = drivers::host_links(&network.options);
        let addressing = self.addressing.lock().await;
        let ours = network.pools.iter().filter(|pool| pool.space == SPACE);
        ours.map(|pool| pool_id(addressing.segment_of(&links, pool.subnet).as_ref(), pool.subnet)).collect()
    }

    /// Whether the endpoint's container is gone. That its sandbox cannot be seen does not prove it: to a managed plugin on a host whose `/run`
    /// is private no sandbox ever shows. A link whose other end is in no sandbox that we see, and not here either, is in a container.
    fn is_lost(&self, mode: &dyn Mode, known: &Known) -> bool {
        match &known.endpoint.attached {
            Attached::No | Attached::Joining(_) => known.presence.is_over(),
            Attached::Joined(sandbox) if self.kernel.is_sandbox(&sandbox.path) => false,
            Attached::Joined(_) => match self.whereabouts(mode, &known.endpoint) {
                Whereabouts::Nowhere => true,
                Whereabouts::Host => known.presence.is_over(),
                Whereabouts::Away => false,
            },
        }
    }

    /// The same where the engine asks for what the endpoint has: it would not, were it about to move a link of before this process.
    pub(super) fn has_vanished(&self, mode: &dyn Mode, known: &Known) -> bool {
        self.is_lost(mode, &Known { endpoint: known.endpoint.clone(), presence: known.presence.asked() })
    }

    fn whereabouts(&self, mode: &dyn Mode, endpoint: &Endpoint) -> Whereabouts {
        mode.endpoint(endpoint).attachment().map_or(Whereabouts::Nowhere, |attachment| self.kernel.whereabouts(attachment))
    }
}

async fn read(store: &dyn Store) -> Result<State, Error> {
    let mut state = State::default();
    for network in records::<Network>(list(store, "network").await?) {
        match drivers::open(&network) {
            Ok(mode) => {
                let live = Live::new(network, mode.into(), Origin::new(true));
                state.networks.insert(live.network.id.clone(), live);
            }
            Err(error) => warn!(network = %network.id, %error, "options of an earlier version cannot be read; the network is left out"),
        }
    }
    for endpoint in records::<Endpoint>(list(store, "endpoint").await?) {
        if let Some(live) = state.networks.get_mut(&endpoint.network) {
            live.macs.extend(endpoint.addresses.iter().map(|address| (address.addr(), endpoint.mac)));
            live.endpoints.insert(endpoint.id.clone(), Known { endpoint, presence: Presence::Stored(Instant::now()) });
        }
    }
    Ok(state)
}

/// All that is stored below a key.
pub async fn list(store: &dyn Store, key: &str) -> Result<Vec<Entry>, Error> {
    Ok(store.list(&Prefix::below(&Key::new(key)?)).await?)
}

/// A record that cannot be read is left where it is, and said.
pub fn records<T: DeserializeOwned>(entries: Vec<Entry>) -> impl Iterator<Item = T> {
    entries.into_iter().filter_map(|entry| match serde_json::from_slice(&entry.value) {
        Ok(record) => Some(record),
        Err(error) => {
            warn!(key = %entry.key, %error, "record cannot be read; it is left out");
            None
        }
    })
}
