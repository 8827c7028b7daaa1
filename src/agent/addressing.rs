//! Addresses: pools and who has what, durable before it is answered.
//!
//! A pool is named by its subnet. One record stands for the pool, one for each address that was ever handed out in it. An address remembers
//! the MAC it was last given to: who comes back with the same MAC gets the same address while nobody else has it.
//!
//! Pools never overlap, but those of segments: what is behind one parent link of the host is not behind another, and the same subnet may be on
//! both. A user names the segment of a pool by its link (`--ipam-opt parent=eth1`); such a pool is named by both, `10.9.0.0/24@eth1`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use tokio::time::{Instant, sleep_until};

use super::overview::PoolSeen;
use super::pools::{AddressRecord, PoolRecord, Pools, SEGMENT, unknown_pool};
use super::recovery::list;
use super::resting::Resting;
use super::{Agent, Error, record};
use crate::addresses::{AddressError, DockerDefaults, Pool};
use crate::cluster::{Standing, View};
use crate::drivers;
use crate::model::{self, Endpoint, Family, IfName, Mac, Network};
use crate::store::{Expect, Key, Op, Store};

/// The name of our address space.
pub const SPACE: &str = "rsnet-local";
/// The host's unique local /48, from which IPv6 pools are chosen.
const ULA: &str = "host/ula";

/// A pool as the engine asks for it; no subnet: ours to choose.
#[derive(Clone, Debug)]
pub struct NewPool {
    pub family: Family,
    /// The link of the host behind which the pool's addresses are; none: they are nobody else's on this host.
    pub segment: Option<IfName>,
    pub subnet: Option<IpNet>,
    pub range: Option<IpNet>,
}

/// An address as the engine asks for it; no address: ours to choose.
#[derive(Clone, Debug)]
pub struct NewAddress {
    pub pool: String,
    pub address: Option<IpAddr>,
    pub gateway: bool,
    /// Of the container, if the engine tells; it makes one up for those that have none of their own.
    pub mac: Option<Mac>,
}

pub struct Addressing {
    ula: Ipv6Net,
    /// By the link that they are behind; none: they are of no segment.
    pools: BTreeMap<Option<IfName>, Pools>,
    resting: Resting,
}

/// The name of a pool, as the engine is told it.
pub fn pool_id(segment: Option<&IfName>, subnet: IpNet) -> String {
    segment.map_or_else(|| subnet.to_string(), |segment| format!("{subnet}@{segment}"))
}

fn parse_pool_id(id: &str) -> Option<(Option<IfName>, IpNet)> {
    match id.split_once('@') {
        Some((subnet, segment)) => Some((Some(segment.parse().ok()?), subnet.parse().ok()?)),
        None => Some((None, id.parse().ok()?)),
    }
}

impl Addressing {
    pub async fn load(store: &dyn Store) -> Result<Self, Error> {
        let mut addressing = Addressing { ula: ula(store).await?, pools: BTreeMap::new(), resting: Resting::default() };
        let stored = list(store, SEGMENT).await?;
        let segments: BTreeSet<IfName> = stored.iter().filter_map(|entry| entry.key.as_str().split('/').nth(1)?.parse().ok()).collect();
        for segment in [None].into_iter().chain(segments.iter().map(Some)) {
            addressing.of(segment).restore(store).await?;
        }
        Ok(addressing)
    }

    /// The pools of a segment, or those that are of none.
    fn of(&mut self, segment: Option<&IfName>) -> &mut Pools {
        self.pools.entry(segment.cloned()).or_insert_with(|| Pools::of(segment))
    }

    fn pool(&self, segment: Option<&IfName>, subnet: IpNet) -> Option<&Pool> {
        self.pools.get(&segment.cloned())?.space.pool(&subnet)
    }

    /// Which of these segments has a pool of this subnet; none: a pool of no segment, or none at all.
    pub fn segment_of(&self, candidates: &[IfName], subnet: IpNet) -> Option<IfName> {
        candidates.iter().find(|name| self.pool(Some(name), subnet).is_some()).cloned()
    }

    /// The name of the pool that has an address, that of one of these segments first.
    pub fn pool_of(&self, candidates: &[IfName], address: IpAddr) -> Option<String> {
        let of = |segment: Option<&IfName>| {
            let pools = self.pools.get(&segment.cloned())?;
            Some(pool_id(segment, pools.space.pool_of(address)?.subnet()))
        };
        candidates.iter().map(Some).chain([None]).find_map(of)
    }

    /// Of networks that hosts share only this host's blocks are given from, less what is kept for others; gives what is kept no longer.
    pub fn confine(&mut self, view: &View, stored: &[IpNet]) -> Vec<(IpNet, IpAddr)> {
        let (mut returned, mut back, mut held) = (Vec::new(), Vec::new(), BTreeMap::new());
        for network in &view.networks {
            let Standing { subnets, share, kept, heard_within, .. } = &**network;
            let heard_at = Instant::now() + *heard_within;
            let blocks: Vec<IpNet> = share.mine.blocks.iter().copied().filter(|block| stored.contains(block)).collect();
            for subnet in subnets {
                let Some(pool) = self.of(None).space.pool_mut(subnet) else { continue };
                let free = pool.confine(&blocks, kept);
                back.extend(free.iter().map(|address| (*address, heard_at)));
                returned.extend(free.into_iter().map(|address| (*subnet, address)));
            }
            // on a segment nobody leads packets to hosts: nobody has to hear of a block first
            if share.vni > 0 {
                held.extend(blocks.into_iter().map(|block| (block, heard_at)));
            }
        }
        self.resting.note(held, back);
        returned
    }

    /// Whether the address is one that may be given here without asking other hosts.
    pub fn covers(&self, subnet: IpNet, address: IpAddr) -> bool {
        self.pool(None, subnet).is_none_or(|pool| pool.covers(address))
    }

    fn all(&self) -> impl Iterator<Item = (Option<&IfName>, &Pool)> {
        self.pools.iter().flat_map(|(segment, pools)| pools.space.pools().map(move |pool| (segment.as_ref(), pool)))
    }

    /// How full each pool is.
    pub fn fill(&self) -> Vec<PoolSeen> {
        let seen = |(segment, pool): (Option<&IfName>, &Pool)| {
            let (used, addresses) = pool.fill();
            PoolSeen { subnet: pool_id(segment, pool.subnet()), used, addresses }
        };
        self.all().map(seen).collect()
    }

    /// The pools that have little left, see [`Pool::is_short`]; of segments nobody asks for more.
    pub fn short(&self) -> Vec<IpNet> {
        self.all().filter(|(segment, pool)| segment.is_none() && pool.is_short()).map(|(_, pool)| pool.subnet()).collect()
    }
}

/// RFC 4193: forty random bits, the same for this host's life.
async fn ula(store: &dyn Store) -> Result<Ipv6Net, Error> {
    let key = Key::new(ULA)?;
    let stored = store.get(&key).await?.and_then(|entry| serde_json::from_slice(&entry.value).ok());
    if let Some(ula) = stored {
        return Ok(ula);
    }
    let [a, b, c, d, e]: [u8; 5] = rand::random();
    let base = Ipv6Addr::from([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let ula = Ipv6Net::new_assert(base, 48);
    if let Some(value) = record(&ula) {
        store.put(&key, value, Expect::Any).await?;
    }
    Ok(ula)
}

impl Agent {
    /// IPAM: `RequestPool`; gives the subnet, which is also the pool's name. Where the engine asks for any pool again and again, keeping
    /// those it did not like, each answer is another one.
    pub async fn request_pool(&self, new: NewPool) -> Result<IpNet, Error> {
        let in_use: Vec<IpNet> = self.kernel.surroundings().await?.subnets.into_iter().map(|(subnet, _)| subnet).collect();
        let mut addressing = self.addressing.lock().await;
        let ula = addressing.ula;
        let pools = addressing.of(new.segment.as_ref());
        let space = &mut pools.space;
        let pool = match (new.subnet, new.family) {
            (Some(subnet), _) => space.request(subnet, new.range)?,
            (None, _) if new.segment.is_some() => {
                return Err(Error::Refused("--ipam-opt parent=… is for the LAN's own subnet: give it with --subnet".to_owned()));
            }
            (None, Family::V4) => space.choose(&DockerDefaults::ipv4(), &in_use)?,
            (None, Family::V6) => space.choose(&DockerDefaults::ipv6(ula), &in_use)?,
        };
        let (subnet, range) = (pool.subnet(), pool.range());
        let kept = self.keep(&pools.pool_key(subnet), record(&PoolRecord { subnet, range })).await;
        if kept.is_err() {
            pools.space.release(&subnet);
        }
        kept.map(|()| subnet)
    }

    /// IPAM: `ReleasePool`, with all its addresses: after a failure the engine releases no single ones.
    pub async fn release_pool(&self, pool: &str) -> Result<(), Error> {
        let Some((segment, subnet)) = parse_pool_id(pool) else { return Ok(()) };
        let mut addressing = self.addressing.lock().await;
        let pools = addressing.of(segment.as_ref());
        if !pools.release(subnet) {
            return Ok(());
        }
        let addresses = Op::DeleteBelow(Key::new(pools.addresses_key(subnet))?);
        let pool = Op::Delete(Key::new(pools.pool_key(subnet))?, Expect::Any);
        Ok(self.store.commit(vec![pool, addresses]).await.map(drop)?)
    }

    /// IPAM: `RequestAddress`; gives it with the subnet's prefix length. An address held by a container that went without a word is free.
    pub async fn request_address(&self, new: NewAddress) -> Result<IpNet, Error> {
        if let (Some(address), Ok(subnet)) = (new.address, new.pool.parse()) {
            self.claim(subnet, address).await?;
        }
        let taken = match self.take(&new).await {
            Err(Error::Address(AddressError::Taken { address, .. })) => {
                self.forget_holder(address).await?;
                self.take(&new).await?
            }
            Err(error @ Error::Address(AddressError::Exhausted { .. })) => self.take_more(&new, error).await?,
            result => result?,
        };
        if self.settings.shared && !new.gateway {
            self.rest(taken.addr()).await;
        }
        Ok(taken)
    }

    /// Waits until the other hosts have heard that the address is this one's to give.
    async fn rest(&self, address: IpAddr) {
        let heard_at = self.addressing.lock().await.resting.heard_at(address);
        if let Some(heard_at) = heard_at {
            sleep_until(heard_at).await;
        }
    }

    pub(super) async fn take(&self, new: &NewAddress) -> Result<IpNet, Error> {
        let (segment, subnet) = parse_pool_id(&new.pool).ok_or_else(|| unknown_pool(&new.pool))?;
        let mut addressing = self.addressing.lock().await;
        let pools = addressing.of(segment.as_ref());
        let taken = pools.take(subnet, new)?;
        let kept = self.keep(&pools.address_key(subnet, taken.address), record(&AddressRecord { record: taken, mac: new.mac })).await;
        if kept.is_err() {
            pools.space.pool_mut(&subnet).and_then(|pool| pool.release(taken.address));
        }
        kept?;
        if pools.space.pool(&subnet).is_some_and(Pool::is_short) {
            self.short.notify_one();
        }
        pools.remember(subnet, taken.address, new.mac);
        Ok(IpNet::new(taken.address, subnet.prefix_len()).unwrap_or(subnet))
    }

    /// IPAM: `ReleaseAddress`; may come twice. One of another host's block is given back first: free here, it would be given again.
    pub async fn release_address(&self, pool: &str, address: IpAddr) -> Result<(), Error> {
        if let Some((None, subnet)) = parse_pool_id(pool) {
            self.give_back(subnet, address).await;
        }
        self.free(pool, address).await
    }

    /// Makes an address of a pool one that may be given.
    pub(super) async fn free(&self, pool: &str, address: IpAddr) -> Result<(), Error> {
        let Some((segment, subnet)) = parse_pool_id(pool) else { return Ok(()) };
        let mut addressing = self.addressing.lock().await;
        let pools = addressing.of(segment.as_ref());
        let released = pools.space.pool_mut(&subnet).and_then(|pool| pool.release(address));
        let Some(released) = released else { return Ok(()) };
        let mac = pools.last(address);
        self.keep(&pools.address_key(subnet, address), record(&AddressRecord { record: released, mac })).await
    }

    /// The parts of a network's subnets that addresses are given of, if all of its pools are ours and none is that of a segment.
    pub(super) async fn ranges(&self, network: &Network) -> Option<Vec<IpNet>> {
        let links = drivers::host_links(&network.options);
        let addressing = self.addressing.lock().await;
        let range = |pool: &model::Pool| {
            let ours = pool.space == SPACE && addressing.segment_of(&links, pool.subnet).is_none();
            addressing.pool(None, pool.subnet).filter(|_| ours).map(|found| found.range().unwrap_or(pool.subnet))
        };
        network.pools.iter().map(range).collect()
    }

    /// Gives back the addresses of an endpoint that the engine will not speak of again.
    pub(super) async fn release_addresses(&self, endpoint: &Endpoint) -> Result<(), Error> {
        let links = { self.state.lock().networks.get(&endpoint.network).map(|live| drivers::host_links(&live.network.options)) };
        let links = links.unwrap_or_default();
        for address in &endpoint.addresses {
            let Some(pool) = self.addressing.lock().await.pool_of(&links, address.addr()) else { continue };
            self.release_address(&pool, address.addr()).await?;
        }
        Ok(())
    }
}
