//! Addresses: pools and who has what, durable before it is answered.
//!
//! A pool is named by its subnet. One record stands for the pool, one for each address that was ever handed out in it. An address remembers
//! the MAC it was last given to: who comes back with the same MAC gets the same address while nobody else has it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::recovery::{list, records};
use super::{Agent, Error, record};
use crate::addresses::{AddressError, DockerDefaults, Pool, Record, Space};
use crate::model::{Endpoint, Family, Mac, Network, Share};
use crate::store::{Expect, Key, Op, Store};

/// The name of our address space.
pub const SPACE: &str = "rsnet-local";
/// The host's unique local /48, from which IPv6 pools are chosen.
const ULA: &str = "host/ula";

/// A pool as the engine asks for it; no subnet: ours to choose.
#[derive(Clone, Debug)]
pub struct NewPool {
    pub family: Family,
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
        let (space, ula) = (Space::default(), ula(store).await?);
        let mut addressing = Addressing { space, ula, macs: HashMap::new(), homes: HashMap::new() };
        for PoolRecord { subnet, range } in records(list(store, "pool").await?) {
            let addresses: Vec<AddressRecord> = records(list(store, &addresses_key(subnet)).await?).collect();
            addresses.iter().for_each(|address| addressing.remember(subnet, address.record.address, address.mac));
            match addressing.space.request(subnet, range) {
                Ok(pool) => restore(pool, addresses),
                Err(error) => warn!(%subnet, %error, "stored pool is left out"),
            }
        }
        Ok(addressing)
    }

    /// Of a network that hosts share, only this host's blocks are given from, less the host's own addresses.
    pub fn confine(&mut self, network: &Network) {
        let Some(Share { mine, .. }) = &network.share else { return };
        for pool in &network.pools {
            if let Some(pool) = self.space.pool_mut(&pool.subnet) {
                pool.confine(&mine.blocks, &mine.homes);
            }
        }
    }

    /// Whether the address is one that may be given here without asking other hosts.
    pub fn covers(&self, subnet: IpNet, address: IpAddr) -> bool {
        self.space.pool(&subnet).is_none_or(|pool| pool.covers(address))
    }

    /// The pools that are more than half used.
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

    fn take(&mut self, subnet: IpNet, new: &NewAddress) -> Result<Record, Error> {
        let home = new.mac.and_then(|mac| self.homes.get(&(subnet, mac)).copied());
        let pool = self.space.pool_mut(&subnet).ok_or_else(|| unknown(&new.pool))?;
        if let Some(address) = new.address {
            return Ok(pool.take(address)?);
        }
        if new.gateway {
            return Ok(pool.allocate_gateway()?);
        }
        match home.map(|home| pool.take(home)) {
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
        let Addressing { space, ula, .. } = &mut *addressing;
        let pool = match (new.subnet, new.family) {
            (Some(subnet), _) => space.request(subnet, new.range)?,
            (None, Family::V4) => space.choose(&DockerDefaults::ipv4(), &in_use)?,
            (None, Family::V6) => space.choose(&DockerDefaults::ipv6(*ula), &in_use)?,
        };
        let (subnet, range) = (pool.subnet(), pool.range());
        let kept = self.keep(&pool_key(subnet), record(&PoolRecord { subnet, range })).await;
        if kept.is_err() {
            space.release(&subnet);
        }
        kept.map(|()| subnet)
    }

    /// IPAM: `ReleasePool`, with all its addresses: after a failure the engine releases no single ones.
    pub async fn release_pool(&self, pool: &str) -> Result<(), Error> {
        let mut addressing = self.addressing.lock().await;
        let Ok(subnet) = pool.parse::<IpNet>() else { return Ok(()) };
        if addressing.space.release(&subnet).is_none() {
            return Ok(());
        }
        addressing.macs.retain(|address, _| !subnet.contains(address));
        addressing.homes.retain(|(home, _), _| *home != subnet);
        let addresses = Op::DeleteBelow(Key::new(addresses_key(subnet))?);
        let pool = Op::Delete(Key::new(pool_key(subnet))?, Expect::Any);
        Ok(self.store.commit(vec![pool, addresses]).await.map(drop)?)
    }

    /// IPAM: `RequestAddress`; gives it with the subnet's prefix length. An address held by a container that went without a word is free.
    pub async fn request_address(&self, new: NewAddress) -> Result<IpNet, Error> {
        if let (Some(address), Ok(subnet)) = (new.address, new.pool.parse()) {
            self.claim(subnet, address).await?;
        }
        match self.take(&new).await {
            Err(Error::Address(AddressError::Taken { address, .. })) => {
                self.forget_holder(address).await?;
                self.take(&new).await
            }
            result => result,
        }
    }

    async fn take(&self, new: &NewAddress) -> Result<IpNet, Error> {
        let mut addressing = self.addressing.lock().await;
        let subnet: IpNet = new.pool.parse().map_err(|_| unknown(&new.pool))?;
        let taken = addressing.take(subnet, new)?;
        let kept = self.keep(&address_key(subnet, taken.address), record(&AddressRecord { record: taken, mac: new.mac })).await;
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

    /// IPAM: `ReleaseAddress`; may come twice.
    pub async fn release_address(&self, pool: &str, address: IpAddr) -> Result<(), Error> {
        let Ok(subnet) = pool.parse() else { return Ok(()) };
        let mut addressing = self.addressing.lock().await;
        let released = addressing.space.pool_mut(&subnet).and_then(|pool| pool.release(address));
        let Some(released) = released else { return Ok(()) };
        let mac = addressing.macs.get(&address).copied();
        self.keep(&address_key(subnet, address), record(&AddressRecord { record: released, mac })).await?;
        drop(addressing);
        self.give_back(subnet, address).await;
        Ok(())
    }

    /// Gives back the addresses of an endpoint that the engine will not speak of again.
    pub(super) async fn release_addresses(&self, endpoint: &Endpoint) -> Result<(), Error> {
        for address in &endpoint.addresses {
            let pool = self.addressing.lock().await.space.pool_of(address.addr()).map(|pool| pool.subnet().to_string());
            if let Some(pool) = pool {
                self.release_address(&pool, address.addr()).await?;
            }
        }
        Ok(())
    }
}

fn segment(subnet: IpNet) -> String {
    subnet.to_string().replace('/', "-")
}

fn pool_key(subnet: IpNet) -> String {
    format!("pool/{}", segment(subnet))
}

fn addresses_key(subnet: IpNet) -> String {
    format!("address/{}", segment(subnet))
}

fn address_key(subnet: IpNet, address: IpAddr) -> String {
    format!("{}/{address}", addresses_key(subnet))
}
