//! What is declared on this host, for people: networks and endpoints, a line each.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Agent;
use super::state::{Known, Live};
use crate::drivers;
use crate::model::{Attached, EndpointId, Mac, NetworkId};

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
        self.state().networks.values().map(seen).collect()
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
        let state = self.state();
        state.networks.values().flat_map(|live| live.endpoints.values().map(|known| seen(live, known))).collect()
    }
}

fn mode(live: &Live) -> String {
    drivers::kind_name(&live.network.options).to_owned()
}
