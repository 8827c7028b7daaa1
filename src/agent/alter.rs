//! Networks that change while containers are on them.
//!
//! The engine has no call for it. What changes is the network's own record; its mode is read from it anew, and the plans of the network and
//! of each of its endpoints follow. No container is touched but by the difference.

use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tracing::info;

use super::state::{Known, declare_network, endpoint_owner};
use super::{Agent, Error};
use crate::drivers::{self, Mode};
use crate::model::{EndpointId, Mac, Network, NetworkId};

/// From whom the containers of a network in macvlan's mode source take frames, for people.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sources {
    pub network: NetworkId,
    /// What the user calls the network, where the engine has told.
    pub network_name: Option<String>,
    pub source_macs: Vec<Mac>,
}

/// Whom they are to hear from now on, too and no more. With neither it is a question.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChangeSources {
    /// A name, an id or the beginning of one.
    pub network: String,
    pub add: Vec<Mac>,
    pub remove: Vec<Mac>,
}

impl Agent {
    /// Changes whom the containers of a network hear, at once and for good, and tells whom that is.
    pub async fn change_sources(&self, change: &ChangeSources) -> Result<Sources, Error> {
        let id = self.find(&change.network)?;
        let _held = self.locks.hold(id.as_str()).await;
        let network = self.network(&id)?;
        let (options, source_macs) = drivers::with_sources(&network.options, &change.add, &change.remove).map_err(Error::Refused)?;
        self.alter(Network { options, ..network }).await?;
        Ok(Sources { network_name: self.names.of(&id), network: id, source_macs })
    }

    /// Has networks follow the addresses of the host's links that they stand on.
    pub(super) async fn follow_host_links(&self) -> Result<(), Error> {
        let networks: Vec<Network> = self.state.lock().networks.values().map(|live| live.network.clone()).collect();
        for network in networks {
            let mut host_links = network.host_links.clone();
            for (name, link) in &mut host_links {
                // of one that is away nothing is known
                link.addresses = self.kernel.addresses(name).await?.unwrap_or_else(|| std::mem::take(&mut link.addresses));
            }
            if host_links != network.host_links {
                let _held = self.locks.hold(network.id.as_str()).await;
                self.alter(Network { host_links, ..self.network(&network.id)? }).await?;
            }
        }
        Ok(())
    }

    pub fn find(&self, wanted: &str) -> Result<NetworkId, Error> {
        let known: Vec<NetworkId> = self.state.lock().networks.keys().cloned().collect();
        let named = known.iter().find(|id| id.as_str() == wanted || self.names.of(id).as_deref() == Some(wanted));
        let mut begun = known.iter().filter(|id| !wanted.is_empty() && id.as_str().starts_with(wanted));
        match (named, begun.next(), begun.next()) {
            (Some(id), ..) | (None, Some(id), None) => Ok(id.clone()),
            _ => Err(Error::Refused(format!(
                "network {wanted} is not known to rsnet by that name; give its id, which `docker network ls --filter driver=rsnet` shows"
            ))),
        }
    }

    pub(super) fn network(&self, id: &NetworkId) -> Result<Network, Error> {
        let network = self.state.lock().networks.get(id).map(|live| live.network.clone());
        network.ok_or_else(|| Error::UnknownNetwork(id.clone()))
    }

    pub(super) fn mode(&self, id: &NetworkId) -> Result<Arc<dyn Mode>, Error> {
        let mode = self.state.lock().mode(id);
        mode.ok_or_else(|| Error::UnknownNetwork(id.clone()))
    }

    /// Makes a network be as `after` says, and its containers with it. The network's lock is held.
    async fn alter(&self, after: Network) -> Result<(), Error> {
        let before = self.network(&after.id)?;
        if before == after {
            return Ok(());
        }
        let old = self.mode(&after.id)?;
        let mode: Arc<dyn Mode> = drivers::open(&after)?.into();
        self.settle(declare_network(&after.id, Some((&before, &*old))), declare_network(&after.id, Some((&after, &*mode)))).await?;
        info!(network = %after.id, "network altered");
        self.adopt(after, mode).await
    }

    /// Goes on with a network that is stored and planned, and renews its containers.
    pub(super) async fn adopt(&self, network: Network, mode: Arc<dyn Mode>) -> Result<(), Error> {
        let id = network.id.clone();
        let mut renewed = Ok(());
        for endpoint in self.replace(network, mode) {
            renewed = renewed.and(self.renew(&id, &endpoint).await);
        }
        renewed
    }

    /// Remembers the network; gives those of its endpoints whose plans may be other ones now.
    fn replace(&self, network: Network, mode: Arc<dyn Mode>) -> Vec<EndpointId> {
        let mut state = self.state.lock();
        let Some(live) = state.networks.get_mut(&network.id) else { return Vec::new() };
        let same = live.network.is_alike_here(&network);
        let has = |network: &Network, address: &IpNet| network.share.as_ref().is_some_and(|share| share.mine.has(address.addr()));
        let moved = |known: &Known| known.endpoint.addresses.iter().any(|address| has(&live.network, address) != has(&network, address));
        let renewed = live.endpoints.iter().filter(|(_, known)| !same || moved(known)).map(|(id, _)| id.clone()).collect();
        (live.network, live.mode) = (network, mode);
        renewed
    }

    /// Makes an endpoint be as its network's mode says now. What the host refuses, the reconciler tries again.
    async fn renew(&self, network: &NetworkId, id: &EndpointId) -> Result<(), Error> {
        let _held = self.locks.hold(id.as_str()).await;
        let (Some(mode), Some(known)) = ({ self.state.lock().mode(network) }, { self.state.lock().endpoint(network, id) }) else {
            return Ok(());
        };
        let made = self.reconciler.set(&endpoint_owner(network, id), mode.endpoint(&known.endpoint)).await;
        made.inspect_err(|_| self.reconciler.look_again())?;
        Ok(())
    }
}
