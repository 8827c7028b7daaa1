//! Networks: create and delete.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::{info, warn};

use super::state::{Live, Origin, declare_network};
use super::{Agent, Error};
use crate::drivers::{self, Claim, Mode};
use crate::kernel::Surroundings;
use crate::model::{Family, HostLink, IfName, Network, NetworkId, Pool};

/// The MTU of Ethernet, for a host without a default route.
const ETHERNET: u32 = 1500;

/// A network as the engine asks for it.
#[derive(Clone, Debug)]
pub struct NewNetwork {
    pub id: NetworkId,
    pub options: BTreeMap<String, String>,
    pub ipv4: bool,
    pub ipv6: bool,
    pub internal: bool,
    pub pools: Vec<Pool>,
}

impl Agent {
    /// Engine: `CreateNetwork`. On error nothing is left: the engine sends no `DeleteNetwork`.
    pub async fn create_network(&self, new: NewNetwork) -> Result<(), Error> {
        // two networks with overlapping subnets must not pass the check side by side
        let _creating = self.locks.hold("create").await;
        let _held = self.locks.hold(new.id.as_str()).await;
        let created = self.create_alone(new).await;
        if created.is_err() {
            self.leave_unused_alone().await;
        }
        created
    }

    async fn create_alone(&self, new: NewNetwork) -> Result<(), Error> {
        if self.state.lock().networks.contains_key(&new.id) {
            return Err(Error::NetworkExists(new.id));
        }
        let surroundings = self.kernel.surroundings().await?;
        let host_links = self.host_links(&new.options).await?;
        let network = Network { host_links, ..self.with_defaults(new, &surroundings) };
        let network = Network { ranges: self.ranges(&network).await, ..network };
        let mode: Arc<dyn Mode> = drivers::open(&network)?.into();
        self.make_way(&network, &mode.claims()).await?;
        self.check_claims(&mode.claims(), &surroundings)?;
        let (network, mode) = self.share(network, mode).await?;
        self.settle(declare_network(&network.id, None), declare_network(&network.id, Some((&network, &*mode)))).await?;
        info!(network = %network.id, mode = drivers::kind_name(&network.options), "network created");
        mode.warnings().iter().for_each(|warning| warn!(network = %network.id, "{warning}"));
        self.state.lock().networks.insert(network.id.clone(), Live::new(network, mode, Origin::new(false)));
        self.joined.notify_one();
        self.confine().await;
        Ok(())
    }

    /// Engine: `DeleteNetwork`. The engine forgets the network whatever we answer, so do we; unknown ones are gone already.
    pub async fn delete_network(&self, id: &NetworkId) -> Result<(), Error> {
        let _held = self.locks.hold(id.as_str()).await;
        let endpoints: Vec<_> = self.state.lock().networks.get(id).into_iter().flat_map(|live| live.endpoints.keys().cloned()).collect();
        for endpoint in endpoints {
            self.delete_endpoint(id, &endpoint).await?;
        }
        let Some((network, mode)) = self.state.lock().networks.get(id).map(|live| (live.network.clone(), live.mode.clone())) else {
            return Ok(());
        };
        self.withdraw(declare_network(id, Some((&network, &*mode))), declare_network(id, None)).await?;
        self.state.lock().networks.remove(id);
        self.left.notify_one();
        info!(network = %id, "network deleted");
        Ok(())
    }

    async fn host_links(&self, options: &BTreeMap<String, String>) -> Result<BTreeMap<IfName, HostLink>, Error> {
        let mut links = BTreeMap::new();
        for name in drivers::host_links(options) {
            if let Some(link) = self.kernel.host_link(&name).await? {
                links.insert(name, link);
            }
        }
        Ok(links)
    }

    /// Engine: `GwAllocCheck` (28.0 and newer), before the network has pools: the families that need no gateway address.
    pub fn without_gateway(&self, options: BTreeMap<String, String>, internal: bool) -> Result<Vec<Family>, Error> {
        let asked = Network {
            id: "0".parse()?,
            // nor is the host looked at
            host_links: drivers::host_links(&options).into_iter().map(|name| (name, HostLink::default())).collect(),
            options,
            ipv4: true,
            // which families there are is not told; what depends on it is looked at when the network is made
            ipv6: false,
            internal,
            pools: Vec::new(),
            host_mtu: ETHERNET,
            host_without_ipv6: false,
            host_way: self.settings.way,
            ranges: None,
            share: None,
        };
        Ok(drivers::open(&asked)?.without_gateway())
    }

    fn with_defaults(&self, new: NewNetwork, surroundings: &Surroundings) -> Network {
        let NewNetwork { id, options, ipv4, ipv6, internal, pools } = new;
        let host_mtu = surroundings.mtu.unwrap_or(ETHERNET);
        let host_without_ipv6 = surroundings.without_ipv6;
        Network {
            id,
            options,
            ipv4,
            ipv6,
            internal,
            pools,
            host_mtu,
            host_without_ipv6,
            host_way: self.settings.way,
            host_links: BTreeMap::new(),
            ranges: None,
            share: None,
        }
    }

    /// Forgets what an earlier process declared where the engine now makes `new`: in one address space it gives out no subnet twice, so it
    /// does not know the other. It takes a call that was under way when rsnet died for failed, or for done.
    async fn make_way(&self, new: &Network, claims: &[Claim]) -> Result<(), Error> {
        let overlaps = |live: &Live| live.mode.claims().iter().any(|old| claims.iter().any(|claim| claim.meets(old)));
        let same_space = |live: &Live| live.network.spaces().any(|old| new.spaces().any(|space| space == old));
        let forgotten = |live: &&Live| live.origin.unheard && live.endpoints.is_empty() && overlaps(live) && same_space(live);
        let forgotten: Vec<NetworkId> = {
            let state = self.state.lock();
            let candidates = state.networks.values().filter(forgotten).map(|live| live.network.id.clone());
            candidates.filter(|id| self.names.of(id).is_none()).collect()
        };
        for id in forgotten {
            info!(network = %id, by = %new.id, "the engine gave its subnet to another network; it is removed");
            self.delete_network(&id).await?;
        }
        Ok(())
    }

    /// A subnet must not overlap another network's, nor swallow one that the host is on: packets to it would go astray. A parent that one
    /// network has for itself is no other's.
    fn check_claims(&self, claims: &[Claim], surroundings: &Surroundings) -> Result<(), Error> {
        let networks: Vec<_> = {
            let state = self.state.lock();
            state.networks.values().flat_map(|live| live.mode.claims().into_iter().map(|net| (net, live.network.id.clone()))).collect()
        };
        for claim in claims {
            if let Some((other, id)) = networks.iter().find(|(other, _)| other.meets(claim)) {
                return Err(Error::Refused(conflict(claim, other, &self.names.show(id))));
            }
            let Claim::Subnet(subnet) = claim else { continue };
            if let Some((net, link)) = surroundings.subnets.iter().find(|(net, _)| subnet.contains(net)) {
                return Err(Error::Refused(format!(
                    "subnet {subnet} covers {net}, which the host reaches by {link}; choose another --subnet"
                )));
            }
        }
        Ok(())
    }
}

fn conflict(claim: &Claim, other: &Claim, network: &str) -> String {
    match (claim, other) {
        (Claim::Subnet(claim), Claim::Subnet(other) | Claim::Way { subnet: other, .. })
        | (Claim::Way { subnet: claim, .. }, Claim::Subnet(other)) => {
            format!("subnet {claim} overlaps {other} of network {network}; choose another --subnet")
        }
        (Claim::Way { subnet, link: claim }, Claim::Way { link, .. }) => {
            format!(
                "the host has one way to {subnet} only, and with host_access=true it is by {link}, to network {network}, not by {claim}; leave \
                 host_access out for one of the two"
            )
        }
        (Claim::Parent { link, .. }, _) | (_, Claim::Parent { link, .. }) => {
            format!("link {link} is the parent of network {network}, and one of the two is to have it alone; choose another parent")
        }
    }
}
