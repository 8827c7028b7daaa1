//! What a fresh process does with what an earlier one declared, and what is done about containers that went without a word.
//!
//! The engine never repeats `CreateNetwork` after a reboot, and after a crash it may never send the `DeleteEndpoint` of a container that
//! died with it (a v1 plugin that is not loaded yet is told nothing). An endpoint whose sandbox is gone has no container.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tracing::{info, warn};

use super::addressing::Addressing;
use super::state::{Known, Live, Presence, State, endpoint_owner, network_owner};
use super::{Agent, Error, Settings};
use crate::drivers;
use crate::kernel::Kernel;
use crate::model::{Endpoint, Network};
use crate::reconcile::Reconciler;
use crate::store::{Entry, Key, Prefix, Store};

/// How long an engine up to 27 may take from `Join` to a running container.
const AWAITED: Duration = Duration::from_secs(60);
/// How often the agent looks for containers that are gone.
const COLLECT: Duration = Duration::from_secs(30);

impl Agent {
    /// Reads what was declared. The host is not touched: the reconciler's first look does that, with all of it known.
    pub async fn load(
        kernel: Arc<dyn Kernel>,
        store: Arc<dyn Store>,
        reconciler: Arc<Reconciler>,
        settings: Settings,
    ) -> Result<Agent, Error> {
        let state = Mutex::new(read(&*store).await?);
        let addressing = tokio::sync::Mutex::new(Addressing::load(&*store).await?);
        let agent = Agent { kernel, store, reconciler, state, addressing, locks: Default::default(), names: Arc::default(), settings };
        agent.forget_vanished().await?;
        agent.expect_all();
        Ok(agent)
    }

    /// Tells the reconciler what must be there.
    fn expect_all(&self) {
        for live in self.state().networks.values() {
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
            tokio::time::sleep(COLLECT).await;
            if let Err(error) = self.forget_vanished().await {
                warn!(%error, "could not forget containers that are gone; trying again");
            }
        }
    }

    pub(super) async fn forget_vanished(&self) -> Result<(), Error> {
        let vanished: Vec<Endpoint> = self.state().endpoints().filter(|known| self.is_lost(known)).map(|k| k.endpoint.clone()).collect();
        for endpoint in vanished {
            info!(network = %endpoint.network, endpoint = %endpoint.id, "the container is gone; its endpoint is removed");
            self.delete_endpoint(&endpoint.network, &endpoint.id).await?;
            self.release_addresses(&endpoint).await?;
        }
        Ok(())
    }

    fn is_lost(&self, known: &Known) -> bool {
        let due = match known.presence {
            Presence::Seen => true,
            Presence::Awaited(since) => since.elapsed() > AWAITED,
        };
        due && self.has_vanished(&known.endpoint)
    }
}

async fn read(store: &dyn Store) -> Result<State, Error> {
    let mut state = State::default();
    for network in records::<Network>(list(store, "network").await?) {
        match drivers::open(&network) {
            Ok(mode) => drop(state.networks.insert(network.id.clone(), Live { network, mode: mode.into(), endpoints: BTreeMap::new() })),
            Err(error) => warn!(network = %network.id, %error, "options of an earlier version cannot be read; the network is left out"),
        }
    }
    for endpoint in records::<Endpoint>(list(store, "endpoint").await?) {
        if let Some(live) = state.networks.get_mut(&endpoint.network) {
            let presence = Presence::of_stored(&endpoint);
            live.endpoints.insert(endpoint.id.clone(), Known { endpoint, presence });
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
