//! What is declared, in memory: a copy of the store's records with each network's options parsed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::{Declaration, record};
use crate::drivers::Mode;
use crate::model::{Agreement, Endpoint, EndpointId, Mac, Network, NetworkId, Plan};
use crate::reconcile::Owner;

/// How long an engine up to 27 may take from `Join` to a running container.
pub const AWAITED: Duration = Duration::from_secs(60);

#[derive(Default)]
pub struct State {
    pub networks: BTreeMap<NetworkId, Live>,
}

pub struct Live {
    pub network: Network,
    pub mode: Arc<dyn Mode>,
    pub endpoints: BTreeMap<EndpointId, Known>,
    pub origin: Origin,
    /// The MAC that an address had last. It is given again with the address: engines before 28.0 announce no IPv6 address, and neighbours
    /// would go on sending to the old one. Random all the same, and another on every host.
    pub macs: BTreeMap<IpAddr, Mac>,
}

/// Since when this process has known a network, and from where.
pub struct Origin {
    pub since: Instant,
    /// An earlier process declared it and the engine has not spoken of it since: it may never have had the answer, or have forgotten it.
    pub unheard: bool,
}

impl Origin {
    pub fn new(unheard: bool) -> Self {
        Origin { since: Instant::now(), unheard }
    }
}

#[derive(Clone)]
pub struct Known {
    pub endpoint: Endpoint,
    pub presence: Presence,
}

/// What this process knows of an endpoint's container.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Its sandbox was there: where it is not, the container is gone.
    Seen,
    /// Nothing was seen yet: `Join` is to come, and engines up to 27 make the sandbox a while after it.
    Awaited(Instant),
    /// An earlier process declared it: the engine may be about to move its link, or have just moved it back.
    Stored(Instant),
}

impl Presence {
    pub fn awaited() -> Self {
        Presence::Awaited(Instant::now())
    }

    /// Whether a container that does not show will not come.
    pub fn is_over(self) -> bool {
        match self {
            Presence::Seen => true,
            Presence::Awaited(since) | Presence::Stored(since) => since.elapsed() > AWAITED,
        }
    }

    /// Where the engine asks for what the endpoint has, only a container that this process is making may still come.
    pub fn asked(self) -> Self {
        if let Presence::Stored(_) = self { Presence::Seen } else { self }
    }
}

impl Live {
    pub fn new(network: Network, mode: Arc<dyn Mode>, origin: Origin) -> Self {
        Live { network, mode, endpoints: BTreeMap::new(), origin, macs: BTreeMap::new() }
    }
}

impl State {
    pub fn endpoint(&self, network: &NetworkId, endpoint: &EndpointId) -> Option<Known> {
        self.networks.get(network)?.endpoints.get(endpoint).cloned()
    }

    /// This host's blocks of the networks that hosts share.
    pub fn blocks(&self) -> Vec<IpNet> {
        let shares = self.networks.values().filter_map(|live| live.network.share.as_ref());
        shares.flat_map(|share| share.mine.blocks.iter().copied()).collect()
    }

    /// The networks that hosts share, and what they agree on.
    pub fn shared(&self) -> impl Iterator<Item = (&Live, Agreement)> {
        let shared = self.networks.values().filter(|live| live.network.share.is_some());
        shared.filter_map(|live| Some((live, live.mode.agreement()?)))
    }

    /// What names the LAN whose addresses hosts share, if the endpoint is on one with a MAC that a user chose.
    pub fn lan_of(&self, endpoint: &Endpoint) -> Option<IpNet> {
        let live = self.networks.get(&endpoint.network).filter(|live| endpoint.mac_given && live.network.share.is_some())?;
        live.mode.agreement().filter(|agreement| agreement.segment.is_some())?.subnets.iter().min().copied()
    }

    pub fn mode(&self, network: &NetworkId) -> Option<Arc<dyn Mode>> {
        self.networks.get(network).map(|live| live.mode.clone())
    }

    pub fn endpoints(&self) -> impl Iterator<Item = &Known> {
        self.networks.values().flat_map(|live| live.endpoints.values())
    }
}

pub fn network_key(id: &NetworkId) -> String {
    format!("network/{id}")
}

pub fn endpoint_key(network: &NetworkId, endpoint: &EndpointId) -> String {
    format!("endpoint/{network}/{endpoint}")
}

pub fn network_owner(id: &NetworkId) -> Owner {
    Owner { network: id.short().to_owned(), endpoint: None }
}

pub fn endpoint_owner(network: &NetworkId, endpoint: &EndpointId) -> Owner {
    Owner { network: network.short().to_owned(), endpoint: Some(endpoint.short().to_owned()) }
}

pub fn declare_network(id: &NetworkId, declared: Option<(&Network, &dyn Mode)>) -> Declaration {
    Declaration {
        key: network_key(id),
        owner: network_owner(id),
        value: declared.and_then(|(network, _)| record(network)),
        plan: declared.map_or_else(Plan::default, |(_, mode)| mode.network()),
    }
}

pub fn declare_endpoint(mode: &dyn Mode, network: &NetworkId, id: &EndpointId, declared: Option<&Endpoint>) -> Declaration {
    Declaration {
        key: endpoint_key(network, id),
        owner: endpoint_owner(network, id),
        value: declared.and_then(record),
        plan: declared.map_or_else(Plan::default, |endpoint| mode.endpoint(endpoint)),
    }
}
