//! What is declared on this host, for people: networks and endpoints, a line each.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::recovery::list;
use super::state::{Known, Live, endpoint_key, network_key};
use super::{Agent, Error};
use crate::drivers::{self, Mode};
use crate::model::{Attached, EndpointId, IfName, Mac, Network, NetworkId, Plan};

/// A network of this host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkSeen {
    pub network: NetworkId,
    /// What the user calls it, where the engine has told.
    pub network_name: Option<String>,
    pub mode: String,
    pub subnets: Vec<IpNet>,
    pub internal: bool,
    /// How many other hosts have containers on it; none: it is this host's alone.
    pub peers: Option<usize>,
    /// Of this host.
    pub endpoints: usize,
}

/// An endpoint of this host: a container's place on a network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndpointSeen {
    pub endpoint: EndpointId,
    /// Its container's name: whoever asks for people adds it, the engine knows it.
    pub container: Option<String>,
    pub network: NetworkId,
    pub network_name: Option<String>,
    pub mode: String,
    pub addresses: Vec<IpAddr>,
    pub mac: Mac,
    /// Whether a container has it: before `Join` and after `Leave` none has.
    pub joined: bool,
}

impl Agent {
    /// The networks of this host.
    pub fn list_networks(&self) -> Vec<NetworkSeen> {
        let seen = |live: &Live| NetworkSeen {
            network: live.network.id.clone(),
            network_name: self.names.of(&live.network.id),
            mode: mode(live),
            subnets: live.network.pools.iter().map(|pool| pool.subnet).collect(),
            internal: live.network.internal,
            peers: live.network.share.as_ref().map(|share| share.peers.len()),
            endpoints: live.endpoints.len(),
        };
        self.state.lock().networks.values().map(seen).collect()
    }

    /// The endpoints of this host.
    pub fn list_endpoints(&self) -> Vec<EndpointSeen> {
        let seen = |live: &Live, Known { endpoint, .. }: &Known| EndpointSeen {
            endpoint: endpoint.id.clone(),
            container: None,
            network: endpoint.network.clone(),
            network_name: self.names.of(&endpoint.network),
            mode: mode(live),
            addresses: endpoint.addresses.iter().map(IpNet::addr).collect(),
            mac: endpoint.mac,
            joined: endpoint.attached != Attached::No,
        };
        let state = self.state.lock();
        state.networks.values().flat_map(|live| live.endpoints.values().map(|known| seen(live, known))).collect()
    }
}

fn mode(live: &Live) -> String {
    drivers::kind_name(&live.network.options).to_owned()
}

/// A network with its plans, for whoever compares it with the host.
pub struct Planned {
    /// As people know it.
    pub name: String,
    pub network: Network,
    pub mode: Arc<dyn Mode>,
    /// The network's own.
    pub plan: Plan,
    /// The host's links of its endpoints.
    pub links: Vec<IfName>,
}

impl Agent {
    /// The networks of this host with what is planned for them.
    pub fn planned(&self) -> Vec<Planned> {
        let planned = |live: &Live| {
            let id = &live.network.id;
            Planned {
                name: self.names.show(id),
                network: live.network.clone(),
                mode: live.mode.clone(),
                plan: live.mode.network(),
                links: live.endpoints.values().map(|known| known.endpoint.host_link()).collect(),
            }
        };
        self.state.lock().networks.values().map(planned).collect()
    }

    /// How the store of this host differs from what is declared, in words.
    pub async fn unlike_stored(&self) -> Result<Vec<String>, Error> {
        let _creating = self.locks.hold("create").await;
        let stored: BTreeSet<String> = [list(&*self.store, "network").await?, list(&*self.store, "endpoint").await?]
            .concat()
            .into_iter()
            .map(|entry| entry.key.to_string())
            .collect();
        let declared: BTreeSet<String> = {
            let state = self.state.lock();
            let networks = state.networks.keys().map(network_key);
            networks.chain(state.endpoints().map(|known| endpoint_key(&known.endpoint.network, &known.endpoint.id))).collect()
        };
        let missing = declared.difference(&stored).map(|key| format!("{key} is not stored"));
        let unknown = stored.difference(&declared).map(|key| format!("{key} is stored and cannot be read"));
        Ok(missing.chain(unknown).collect())
    }
}

/// A pool of rsnet's IPAM.
pub struct PoolSeen {
    /// Behind a parent of its own with that before it.
    pub subnet: String,
    /// Of the addresses that are given unnamed.
    pub used: u128,
    pub addresses: u128,
}

impl Agent {
    /// The pools that addresses are given of on this host.
    pub async fn pools(&self) -> Vec<PoolSeen> {
        self.addressing.lock().await.fill()
    }
}
