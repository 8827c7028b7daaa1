//! The pools of one segment, or those that are of none: who has which address, who had it last, and where that is stored.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::Error;
use super::addressing::NewAddress;
use super::recovery::{list, records};
use crate::addresses::{Pool, Record, Space};
use crate::model::{IfName, Mac};
use crate::store::Store;

/// Below it are the pools of segments.
pub const SEGMENT: &str = "segment";

pub struct Pools {
    pub space: Space,
    /// Who had an address last, and the other way round.
    macs: HashMap<IpAddr, Mac>,
    homes: HashMap<(IpNet, Mac), IpAddr>,
    /// Where the records are: nothing in front, or `segment/eth1/`.
    root: String,
}

#[derive(Serialize, Deserialize)]
pub struct PoolRecord {
    pub subnet: IpNet,
    pub range: Option<IpNet>,
}

#[derive(Serialize, Deserialize)]
pub struct AddressRecord {
    #[serde(flatten)]
    pub record: Record,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
}

impl Pools {
    /// None yet.
    pub fn of(segment: Option<&IfName>) -> Self {
        let root = segment.map(|segment| format!("{SEGMENT}/{segment}/")).unwrap_or_default();
        Pools { space: Space::default(), macs: HashMap::new(), homes: HashMap::new(), root }
    }

    /// Reads what is stored.
    pub async fn restore(&mut self, store: &dyn Store) -> Result<(), Error> {
        for PoolRecord { subnet, range } in records(list(store, &format!("{}pool", self.root)).await?) {
            let addresses: Vec<AddressRecord> = records(list(store, &self.addresses_key(subnet)).await?).collect();
            addresses.iter().for_each(|address| self.remember(subnet, address.record.address, address.mac));
            match self.space.request(subnet, range) {
                Ok(pool) => restore(pool, addresses),
                Err(error) => warn!(%subnet, %error, "stored pool is left out"),
            }
        }
        Ok(())
    }

    pub fn pool_key(&self, subnet: IpNet) -> String {
        format!("{}pool/{}", self.root, subnet.to_string().replace('/', "-"))
    }

    pub fn addresses_key(&self, subnet: IpNet) -> String {
        format!("{}address/{}", self.root, subnet.to_string().replace('/', "-"))
    }

    pub fn address_key(&self, subnet: IpNet, address: IpAddr) -> String {
        format!("{}/{address}", self.addresses_key(subnet))
    }

    /// Who comes back has the address that he had, if nobody else has it now.
    pub fn take(&mut self, subnet: IpNet, new: &NewAddress) -> Result<Record, Error> {
        let home = new.mac.and_then(|mac| self.homes.get(&(subnet, mac)).copied());
        let pool = self.space.pool_mut(&subnet).ok_or_else(|| unknown_pool(&new.pool))?;
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

    pub fn remember(&mut self, subnet: IpNet, address: IpAddr, mac: Option<Mac>) {
        let Some(mac) = mac else { return };
        if let Some(old) = self.macs.insert(address, mac) {
            self.homes.remove(&(subnet, old));
        }
        self.homes.insert((subnet, mac), address);
    }

    /// Whose the address was last.
    pub fn last(&self, address: IpAddr) -> Option<Mac> {
        self.macs.get(&address).copied()
    }

    /// Takes a pool away, with who had what in it; false: there is none.
    pub fn release(&mut self, subnet: IpNet) -> bool {
        if self.space.release(&subnet).is_none() {
            return false;
        }
        self.macs.retain(|address, _| !subnet.contains(address));
        self.homes.retain(|(home, _), _| *home != subnet);
        true
    }
}

pub fn unknown_pool(pool: &str) -> Error {
    Error::Refused(format!("pool {pool} is not known to rsnet; remove the network and create it again"))
}

fn restore(pool: &mut Pool, addresses: Vec<AddressRecord>) {
    for address in addresses {
        if let Err(error) = pool.restore(address.record) {
            warn!(pool = %pool.subnet(), %error, "stored address is left out");
        }
    }
}
