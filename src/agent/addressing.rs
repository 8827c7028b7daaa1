//! Addresses: pools and who has what, durable before it is answered.
//!
//! A pool is named by its subnet. One record stands for the pool, one for each address that was ever handed out in it. An address remembers
//! the MAC it was last given to: who comes back with the same MAC gets the same address while nobody else has it.
//!
//! Pools never overlap, but those of segments: what is behind one parent link of the host is not behind another, and the same subnet may be on
//! both. A user names the segment of a pool by its link (`--ipam-opt parent=eth1`); such a pool is named by both, `10.9.0.0/24@eth1`.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::recovery::{list, records};
use super::{Agent, Error, record};
use crate::addresses::{AddressError, DockerDefaults, Pool, Record, Space};
use crate::cluster::{Standing, View};
use crate::drivers;
use crate::model::{self, Endpoint, Family, IfName, Mac, Network};
use crate::store::{Expect, Key, Op, Store};

/// The name of our address space.
pub const SPACE: &str = "rsnet-local";
/// The host's unique local /48, from which IPv6 pools are chosen.
const ULA: &str = "host/ula";
/// Below it are the pools of segments.
const SEGMENT: &str = "segment";

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
    space: Space,
    ula: Ipv6Net,
    /// Who had an address last, and the other way round.
    macs: HashMap<IpAddr, Mac>,
    homes: HashMap<(IpNet, Mac), IpAddr>,
    /// The blocks of this host, and addresses that it had lent: when nobody leads what is for them to who had them before.
    had: BTreeMap<IpNet, Instant>,
    back: HashMap<IpAddr, Instant>,
    /// Where the records are: nothing in front, or `segment/eth1/`.
    root: String,
    /// The pools of segments, by link.
    segments: BTreeMap<IfName, Addressing>,
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

#[derive(Serialize, Deserialize)]
struct PoolRecord {
    subnet: IpNet,
    range: Option<IpNet>,
}

#[derive(Serialize, Deserialize)]
struct AddressRecord {
    #[serde(flatten)]
    record: Record,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mac: Option<Mac>,
}

impl Addressing {
    pub async fn load(store: &dyn Store) -> Result<Self, Error> {
        let mut addressing = Addressing::empty(ula(store).await?, String::new());
        addressing.restore(store).await?;
        for entry in list(store, SEGMENT).await? {
            let name = entry.key.as_str().split('/').nth(1).and_then(|name| name.parse::<IfName>().ok());
            let Some(name) = name.filter(|name| !addressing.segments.contains_key(name)) else { continue };
            addressing.of(Some(&name)).restore(store).await?;
        }
        Ok(addressing)
    }

    fn empty(ula: Ipv6Net, root: String) -> Self {
        Addressing {
            space: Space::default(),
            ula,
            macs: HashMap::new(),
            homes: HashMap::new(),
            had: BTreeMap::new(),
            back: HashMap::new(),
            root,
            segments: BTreeMap::new(),
        }
    }

    /// The pools of a segment, or those that are of none.
    fn of(&mut self, segment: Option<&IfName>) -> &mut Addressing {
        let Some(segment) = segment else { return self };
        let ula = self.ula;
        self.segments.entry(segment.clone()).or_insert_with(|| Addressing::empty(ula, format!("{SEGMENT}/{segment}/")))
    }

    /// Which of these segments has a pool of this subnet; none: a pool of no segment, or none at all.
    pub fn segment_of(&self, candidates: &[IfName], subnet: IpNet) -> Option<IfName> {
        let has = |name: &&IfName| self.segments.get(*name).is_some_and(|segment| segment.space.pool(&subnet).is_some());
        candidates.iter().find(has).cloned()
    }

    /// The name of the pool that has an address, that of one of these segments first.
    pub fn pool_of(&self, candidates: &[IfName], address: IpAddr) -> Option<String> {
        let of = |segment: Option<&IfName>, addressing: &Addressing| Some(pool_id(segment, addressing.space.pool_of(address)?.subnet()));
        let segments = candidates.iter().filter_map(|name| of(Some(name), self.segments.get(name)?));
        segments.chain(of(None, self)).next()
    }

    async fn restore(&mut self, store: &dyn Store) -> Result<(), Error> {
        let addressing = self;
        for PoolRecord { subnet, range } in records(list(store, &format!("{}pool", addressing.root)).await?) {
            let addresses: Vec<AddressRecord> = records(list(store, &addressing.addresses_key(subnet)).await?).collect();
            addresses.iter().for_each(|address| addressing.remember(subnet, address.record.address, address.mac));
            match addressing.space.request(subnet, range) {
                Ok(pool) => restore(pool, addresses),
                Err(error) => warn!(%subnet, %error, "stored pool is left out"),
            }
        }
        Ok(())
    }

    /// Of networks that hosts share only this host's blocks are given from, less what is kept for others; gives what is kept no longer.
    pub fn confine(&mut self, view: &View, stored: &[IpNet]) -> Vec<(IpNet, IpAddr)> {
        let (mut returned, mut had) = (Vec::new(), BTreeMap::new());
        for network in &view.networks {
            let Standing { subnets, share, kept, heard_within, .. } = &**network;
            let heard_at = Instant::now() + *heard_within;
            let blocks: Vec<IpNet> = share.mine.blocks.iter().copied().filter(|block| stored.contains(block)).collect();
            for subnet in subnets {
                let Some(pool) = self.space.pool_mut(subnet) else { continue };
                let back = pool.confine(&blocks, kept);
                self.back.extend(back.iter().map(|address| (*address, heard_at)));
                returned.extend(back.into_iter().map(|address| (*subnet, address)));
            }
            // on a segment nobody leads packets to hosts: nobody has to hear of a block first
            if share.vni > 0 {
                had.extend(blocks.into_iter().map(|block| (block, heard_at)));
            }
        }
        self.note(had);
        returned
    }

    /// Blocks that this host has, with when the others have heard of those that it did not have before.
    fn note(&mut self, mut had: BTreeMap<IpNet, Instant>) {
        for (block, heard_at) in &mut had {
            *heard_at = self.had.get(block).copied().unwrap_or(*heard_at);
        }
        self.had = had;
        self.back.retain(|_, heard_at| *heard_at > Instant::now());
    }

    /// When all other hosts have heard that the address is this host's to give.
    fn heard_at(&self, address: IpAddr) -> Option<Instant> {
        let blocks = self.had.iter().filter(|(block, _)| block.contains(&address)).map(|(_, heard_at)| heard_at);
        blocks.chain(self.back.get(&address)).max().copied()
    }

    /// Whether the address is one that may be given here without asking other hosts.
    pub fn covers(&self, subnet: IpNet, address: IpAddr) -> bool {
        self.space.pool(&subnet).is_none_or(|pool| pool.covers(address))
    }

    /// The pools that have little left, see [`Pool::is_short`].
    pub fn short(&self) -> Vec<IpNet> {
        self.space.pools().filter(|pool| pool.is_short()).map(Pool::subnet).collect()
    }

    fn remember(&mut self, subnet: IpNet, address: IpAddr, mac: Option<Mac>) {
        let Some(mac) = mac else { return };
        if let Some(old) = self.macs.insert(address, mac) {
            self.homes.remove(&(subnet, old));
        }
        self.homes.insert((subnet, mac), address);
    }

    fn pool_key(&self, subnet: IpNet) -> String {
        format!("{}pool/{}", self.root, subnet.to_string().replace('/', "-"))
    }

    fn addresses_key(&self, subnet: IpNet) -> String {
        format!("{}address/{}", self.root, subnet.to_string().replace('/', "-"))
    }

    fn address_key(&self, subnet: IpNet, address: IpAddr) -> String {
        format!("{}/{address}", self.addresses_key(subnet))
    }

    fn take(&mut self, subnet: IpNet, new: &NewAddress) -> Result<Record, Error> {
        let home = new.mac.and_then(|mac| self.homes.get(&(subnet, mac)).copied());
        let pool = self.space.pool_mut(&subnet).ok_or_else(|| unknown(&new.pool))?;
        if let Some(address) = new.address {
            return Ok(pool.take(address)?);
        }
        if new.gateway {
            return Ok(pool.allocate_gateway()?);
        }
        match home.filter(|home| pool.covers(*home)).map(|home| pool.take(home)) {
            Some(Ok(taken)) => Ok(taken),
            _ => Ok(pool.allocate()?),
        }
    }
}

fn unknown(pool: &str) -> Error {
    Error::Refused(format!("pool {pool} is not known to rsnet; remove the network and create it again"))
}

fn restore(pool: &mut Pool, addresses: Vec<AddressRecord>) {
    for address in addresses {
        if let Err(error) = pool.restore(address.record) {
            warn!(pool = %pool.subnet(), %error, "stored address is left out");
        }
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
        let addressing = addressing.of(new.segment.as_ref());
        let Addressing { space, ula, .. } = addressing;
        let pool = match (new.subnet, new.family) {
            (Some(subnet), _) => space.request(subnet, new.range)?,
            (None, _) if new.segment.is_some() => {
                return Err(Error::Refused("--ipam-opt parent=… is for the LAN's own subnet: give it with --subnet".to_owned()));
            }
            (None, Family::V4) => space.choose(&DockerDefaults::ipv4(), &in_use)?,
            (None, Family::V6) => space.choose(&DockerDefaults::ipv6(*ula), &in_use)?,
        };
        let (subnet, range) = (pool.subnet(), pool.range());
        let kept = self.keep(&addressing.pool_key(subnet), record(&PoolRecord { subnet, range })).await;
        if kept.is_err() {
            addressing.space.release(&subnet);
        }
        kept.map(|()| subnet)
    }

    /// IPAM: `ReleasePool`, with all its addresses: after a failure the engine releases no single ones.
    pub async fn release_pool(&self, pool: &str) -> Result<(), Error> {
        let Some((segment, subnet)) = parse_pool_id(pool) else { return Ok(()) };
        let mut addressing = self.addressing.lock().await;
        let addressing = addressing.of(segment.as_ref());
        if addressing.space.release(&subnet).is_none() {
            return Ok(());
        }
        addressing.macs.retain(|address, _| !subnet.contains(address));
        addressing.homes.retain(|(home, _), _| *home != subnet);
        let addresses = Op::DeleteBelow(Key::new(addressing.addresses_key(subnet))?);
        let pool = Op::Delete(Key::new(addressing.pool_key(subnet))?, Expect::Any);
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
        let heard_at = self.addressing.lock().await.heard_at(address);
        if let Some(heard_at) = heard_at {
            sleep_until(heard_at).await;
        }
    }

    pub(super) async fn take(&self, new: &NewAddress) -> Result<IpNet, Error> {
        let (segment, subnet) = parse_pool_id(&new.pool).ok_or_else(|| unknown(&new.pool))?;
        let mut addressing = self.addressing.lock().await;
        let addressing = addressing.of(segment.as_ref());
        let taken = addressing.take(subnet, new)?;
        let kept = self.keep(&addressing.address_key(subnet, taken.address), record(&AddressRecord { record: taken, mac: new.mac })).await;
        if kept.is_err() {
            addressing.space.pool_mut(&subnet).and_then(|pool| pool.release(taken.address));
        }
        kept?;
        if addressing.space.pool(&subnet).is_some_and(Pool::is_short) {
            self.short.notify_one();
        }
        addressing.remember(subnet, taken.address, new.mac);
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
        let addressing = addressing.of(segment.as_ref());
        let released = addressing.space.pool_mut(&subnet).and_then(|pool| pool.release(address));
        let Some(released) = released else { return Ok(()) };
        let mac = addressing.macs.get(&address).copied();
        self.keep(&addressing.address_key(subnet, address), record(&AddressRecord { record: released, mac })).await
    }

    /// The parts of a network's subnets that addresses are given of, if all of its pools are ours and none is that of a segment.
    pub(super) async fn ranges(&self, network: &Network) -> Option<Vec<IpNet>> {
        let links = drivers::host_links(&network.options);
        let addressing = self.addressing.lock().await;
        let range = |pool: &model::Pool| {
            let ours = pool.space == SPACE && addressing.segment_of(&links, pool.subnet).is_none();
            addressing.space.pool(&pool.subnet).filter(|_| ours).map(|found| found.range().unwrap_or(pool.subnet))
        };
        network.pools.iter().map(range).collect()
    }

    /// Gives back the addresses of an endpoint that the engine will not speak of again.
    pub(super) async fn release_addresses(&self, endpoint: &Endpoint) -> Result<(), Error> {
        let links = { self.state().networks.get(&endpoint.network).map(|live| drivers::host_links(&live.network.options)) };
        let links = links.unwrap_or_default();
        for address in &endpoint.addresses {
            let Some(pool) = self.addressing.lock().await.pool_of(&links, address.addr()) else { continue };
            self.release_address(&pool, address.addr()).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_new_to_this_host_is_given_when_the_others_have_heard() {
        let mut addressing = Addressing::empty("fd00::/48".parse().unwrap(), String::new());
        let (old, new): (IpNet, IpNet) = ("10.50.0.0/30".parse().unwrap(), "10.50.0.8/30".parse().unwrap());
        let back: IpAddr = "10.50.0.2".parse().unwrap();
        let rest = Duration::from_secs(1);
        let hold = |addressing: &mut Addressing, blocks: &[IpNet]| {
            addressing.note(blocks.iter().map(|block| (*block, Instant::now() + rest)).collect());
        };
        hold(&mut addressing, &[old]);
        tokio::time::advance(2 * rest).await;
        addressing.back.insert(back, Instant::now() + rest);
        hold(&mut addressing, &[old, new]);
        let waits = |addressing: &Addressing, address: IpAddr| addressing.heard_at(address).is_some_and(|at| at > Instant::now());
        assert!(waits(&addressing, new.addr()) && waits(&addressing, back) && !waits(&addressing, "10.50.0.1".parse().unwrap()));
        tokio::time::advance(rest).await;
        hold(&mut addressing, &[old, new]);
        assert!(!waits(&addressing, new.addr()) && !waits(&addressing, back));
        hold(&mut addressing, &[old]);
        hold(&mut addressing, &[old, new]);
        assert!(waits(&addressing, new.addr()), "it was another host's meanwhile");
    }
}
