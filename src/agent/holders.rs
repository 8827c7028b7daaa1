//! Who has which addresses of a network, for people.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Agent, Error};
use crate::model::{Mac, Member, Network, NetworkId};

/// A network whose addresses somebody asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Of {
    /// A name, an id or the beginning of one.
    pub network: String,
}

/// Who has which addresses of a network, as this host last heard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Holders {
    pub network: NetworkId,
    /// What the user calls the network, where the engine has told.
    pub network_name: Option<String>,
    pub subnets: Vec<IpNet>,
    /// Whether other hosts have it too.
    pub shared: bool,
    /// Whether the store answered last time.
    pub in_touch: bool,
    /// This host first.
    pub hosts: Vec<Holder>,
    /// The containers of this host.
    pub containers: Vec<Holding>,
}

/// A host and its addresses.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Holder {
    pub host: String,
    pub alive: bool,
    /// Its own addresses on the network.
    pub own: Vec<IpAddr>,
    pub blocks: Vec<IpNet>,
    /// How many addresses containers have; only of this host.
    pub in_use: Option<usize>,
}

/// A container and its addresses.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Holding {
    pub endpoint: String,
    /// Its name: whoever asks for people adds it, the engine knows it.
    pub container: Option<String>,
    pub addresses: Vec<IpAddr>,
    pub mac: Mac,
}

impl Agent {
    /// As this host last heard.
    pub fn holders(&self, of: &Of) -> Result<Holders, Error> {
        let id = self.find(&of.network)?;
        let network = self.network(&id)?;
        let containers: Vec<Holding> = {
            let state = self.state.lock();
            let endpoints = state.networks.get(&id).into_iter().flat_map(|live| live.endpoints.values());
            let holding = |endpoint: &crate::model::Endpoint| Holding {
                endpoint: endpoint.id.to_string(),
                container: None,
                addresses: endpoint.addresses.iter().map(IpNet::addr).collect(),
                mac: endpoint.mac,
            };
            endpoints.map(|known| holding(&known.endpoint)).collect()
        };
        let subnets: Vec<IpNet> = network.pools.iter().map(|pool| pool.subnet).collect();
        let in_use = containers.iter().map(|container| container.addresses.len()).sum();
        Ok(Holders {
            network_name: self.names.of(&id),
            shared: network.share.is_some(),
            in_touch: self.view().in_touch,
            hosts: self.each_holder(&network, &subnets, in_use),
            network: id,
            subnets,
            containers,
        })
    }

    /// A network of this host alone is its own altogether.
    fn each_holder(&self, network: &Network, subnets: &[IpNet], in_use: usize) -> Vec<Holder> {
        let Some(share) = &network.share else {
            let host = "this host".to_owned();
            return vec![Holder { host, alive: true, own: Vec::new(), blocks: subnets.to_vec(), in_use: Some(in_use) }];
        };
        let view = self.view();
        let of = |member: &Member, in_use: Option<usize>| Holder {
            host: member.host.clone(),
            alive: in_use.is_some() || view.is_alive(&member.host),
            own: member.homes.clone(),
            blocks: member.blocks.clone(),
            in_use,
        };
        let peers = share.others().map(|peer| of(peer, None));
        std::iter::once(of(&share.mine, Some(in_use))).chain(peers).collect()
    }
}
