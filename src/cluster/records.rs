//! What stands in the store, and under which keys.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::Agreement;
use crate::store::{Entry, Expect, InvalidKey, Key, Op, Prefix, StoreError};

/// A host that has been there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Its outer address.
    pub vtep: IpAddr,
}

/// A network, as its first host made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    #[serde(flatten)]
    pub agreement: Agreement,
    pub vni: u32,
    /// The host that made it, for people.
    pub by: String,
}

/// A block of addresses, or a single one that a user chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Whose it is.
    pub host: String,
    /// The host's own address, in the first of its blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<IpAddr>,
}

/// All that the store says at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub hosts: BTreeMap<String, HostRecord>,
    pub networks: Vec<NetworkRecord>,
    pub networks_version: Option<u64>,
    /// By subnet and block, each with its version.
    pub blocks: BTreeMap<IpNet, BTreeMap<IpNet, (Block, u64)>>,
}

impl Snapshot {
    /// What cannot be read is left out: a newer rsnet may have written it.
    pub fn read(entries: Vec<Entry>) -> Self {
        let mut snapshot = Snapshot::default();
        for entry in entries {
            match entry.key.as_str().split('/').collect::<Vec<_>>()[..] {
                [_, "networks"] => {
                    snapshot.networks = networks(Some(&entry));
                    snapshot.networks_version = Some(entry.version);
                }
                [_, "host", name] => snapshot.hosts.extend(read(&entry).map(|host| (name.to_owned(), host))),
                [_, "block", subnet, block] => {
                    if let (Some(subnet), Some(block), Some(record)) = (net(subnet), net(block), read(&entry)) {
                        snapshot.blocks.entry(subnet).or_default().insert(block, (record, entry.version));
                    }
                }
                _ => {}
            }
        }
        snapshot
    }

    pub fn network(&self, subnets: &[IpNet]) -> Option<&NetworkRecord> {
        self.networks.iter().find(|network| network.agreement.subnets == subnets)
    }

    pub fn blocks_of(&self, subnet: IpNet) -> BTreeMap<IpNet, (Block, u64)> {
        self.blocks.get(&subnet).cloned().unwrap_or_default()
    }

    /// Who has an address: alone, or in a block.
    pub fn holder(&self, subnet: IpNet, address: IpAddr) -> Option<(IpNet, &Block)> {
        let mut holders = self.blocks.get(&subnet)?.iter().filter(|(block, _)| block.contains(&address));
        holders.next_back().map(|(block, (record, _))| (*block, record))
    }

    pub fn knows(&self, host: &str, vtep: IpAddr) -> bool {
        self.hosts.get(host).is_some_and(|record| record.vtep == vtep)
    }
}

fn read<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    serde_json::from_slice(&entry.value).ok()
}

pub fn networks(entry: Option<&Entry>) -> Vec<NetworkRecord> {
    entry.and_then(read).unwrap_or_default()
}

/// Records have string keys and no floats: they always serialise.
pub fn value<T: Serialize + ?Sized>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).unwrap_or_default()
}

/// `10.50.0.0/16` as a part of a key.
fn segment(net: IpNet) -> String {
    net.to_string().replace('/', "-")
}

fn net(segment: &str) -> Option<IpNet> {
    segment.replace('-', "/").parse().ok()
}

fn key(text: impl Into<String>) -> Result<Key, StoreError> {
    Key::new(text).map_err(|InvalidKey(text)| StoreError::Setting {
        name: "host",
        path: text.into(),
        cause: "a host's name has letters, digits, - . and _ only".to_owned(),
    })
}

pub fn all() -> Prefix {
    Prefix::below(&root())
}

fn root() -> Key {
    // of letters only
    Key::new("cluster").unwrap_or_else(|_| unreachable!())
}

pub fn networks_key() -> Result<Key, StoreError> {
    key("cluster/networks")
}

pub fn host_key(host: &str) -> Result<Key, StoreError> {
    key(format!("cluster/host/{host}"))
}

pub fn alive_key(host: &str) -> Result<Key, StoreError> {
    key(format!("cluster/alive/{host}"))
}

pub fn block_key(subnet: IpNet, block: IpNet) -> Result<Key, StoreError> {
    key(format!("cluster/block/{}/{}", segment(subnet), segment(block)))
}

/// Only where nobody has it.
pub fn put_block(subnet: IpNet, block: IpNet, record: &Block) -> Result<Op, StoreError> {
    Ok(Op::Put(block_key(subnet, block)?, value(record), Expect::Absent))
}
