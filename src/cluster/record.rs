//! What hosts write for each other, and under which keys. docs/store.md has the table.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::model::{Agreement, Mac};
use crate::store::{Entry, InvalidKey, Key, Prefix};

/// A host, and which machine has that name: a replacement has the name, not the number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    pub host: String,
    pub id: String,
}

/// `cluster/block/SUBNET/BLOCK`: whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    #[serde(flatten)]
    pub owner: Owner,
    /// The host's own address, if it is in this block.
    pub home: Option<IpAddr>,
    /// On a segment, in one of the host's blocks: the addresses that the host itself has there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own: Vec<IpAddr>,
    /// The owner's blocks in the order in which it got them.
    pub turn: usize,
    /// Random: a block that is claimed again has another version, so that a late answer to the first claim changes nothing.
    pub claim: u64,
}

/// `cluster/host/NAME`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    pub id: String,
    pub vtep: IpAddr,
}

/// `cluster/networks/all`: every network there is, in one value, so that one compare-and-set decides about all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Networks {
    pub networks: Vec<NetworkRecord>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// 0 of a segment.
    pub vni: u32,
    pub made_by: String,
    #[serde(flatten)]
    pub agreement: Agreement,
    /// Its last host is about to remove it. Who joins takes this away first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub closing: bool,
}

/// `cluster/ask/OWNER/ADDRESS/HOST`: may `who` have an address of the owner's block? Any of them, where it is the subnet's own, which no
/// container has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    #[serde(flatten)]
    pub who: Owner,
    pub subnet: IpNet,
    /// The owner says no, and why. If it says yes the question is gone and the address is the asker's.
    pub refused: Option<String>,
}

/// `cluster/mac/SUBNET/MAC`: whose container has a MAC that a user chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MacRecord {
    #[serde(flatten)]
    pub owner: Owner,
    /// For people: its addresses.
    pub at: String,
}

/// What the store says of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub block: Block,
    pub version: u64,
}

/// What the store says of a subnet.
pub type Records = BTreeMap<IpNet, Found>;

pub fn networks_key() -> Key {
    sound(Key::new("cluster/networks/all"))
}

pub fn networks() -> Prefix {
    below("cluster/networks")
}

pub fn hosts() -> Prefix {
    below("cluster/host")
}

pub fn alive() -> Prefix {
    below("cluster/alive")
}

pub fn blocks() -> Prefix {
    below("cluster/block")
}

pub fn blocks_of(subnet: IpNet) -> Prefix {
    below(&format!("cluster/block/{}", segment(subnet)))
}

pub fn macs() -> Prefix {
    below("cluster/mac")
}

pub fn macs_of(subnet: IpNet) -> Prefix {
    below(&format!("cluster/mac/{}", segment(subnet)))
}

pub fn mac_key(subnet: IpNet, mac: Mac) -> Key {
    sound(Key::new(format!("cluster/mac/{}/{mac}", segment(subnet))))
}

/// The MAC in a key below `cluster/mac`.
pub fn mac_at(key: &Key) -> Option<Mac> {
    last(key).parse().ok()
}

/// The subnet of a key below `cluster/block` or `cluster/mac`.
pub fn subnet_at(key: &Key) -> Option<IpNet> {
    net(key.as_str().split('/').nth(2)?)
}

pub fn asks_of(host: &str) -> Prefix {
    below(&format!("cluster/ask/{host}"))
}

pub fn host_key(host: &str) -> Key {
    sound(Key::new(format!("cluster/host/{host}")))
}

pub fn alive_key(host: &str) -> Key {
    sound(Key::new(format!("cluster/alive/{host}")))
}

pub fn block_key(subnet: IpNet, block: IpNet) -> Key {
    sound(Key::new(format!("cluster/block/{}/{}", segment(subnet), segment(block))))
}

pub fn ask_key(owner: &str, address: IpAddr, asker: &str) -> Key {
    sound(Key::new(format!("cluster/ask/{owner}/{address}/{asker}")))
}

/// `10.50.0.0-26`: a key has no slash within a segment.
fn segment(net: IpNet) -> String {
    format!("{}-{}", net.addr(), net.prefix_len())
}

fn net(segment: &str) -> Option<IpNet> {
    segment.replacen('-', "/", 1).parse().ok()
}

/// Subnet and block of a key below `cluster/block`.
pub fn block_at(key: &Key) -> Option<(IpNet, IpNet)> {
    let (subnet, block) = key.as_str().strip_prefix(blocks().as_str())?.split_once('/')?;
    Some((net(subnet)?, net(block)?))
}

/// The last segment of a key: a host's name below `cluster/host` and `cluster/alive`.
pub fn last(key: &Key) -> &str {
    key.as_str().rsplit('/').next().unwrap_or_default()
}

/// The address in a key below `cluster/ask`.
pub fn asked(key: &Key) -> Option<IpAddr> {
    key.as_str().split('/').nth(3)?.parse().ok()
}

fn below(key: &str) -> Prefix {
    Prefix::below(&sound(Key::new(key)))
}

/// Host names are checked where they come from, addresses have no other characters.
fn sound(key: Result<Key, InvalidKey>) -> Key {
    key.expect("a key of literals, addresses and checked host names")
}

pub fn encode(value: &impl Serialize) -> Vec<u8> {
    // Strings, numbers and addresses always serialise.
    serde_json::to_vec(value).unwrap_or_default()
}

/// A value that somebody else damaged counts as not there: it is said, and written anew by whom it belongs to.
pub fn decode<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    let value = serde_json::from_slice(&entry.value);
    value.inspect_err(|error| warn!("read {}: {error}; delete that key in the store, its owner writes it again", entry.key)).ok()
}

/// The blocks of one subnet. A damaged one is nobody's.
pub fn records(entries: &[Entry]) -> Records {
    let found = |entry: &Entry| {
        let block = decode(entry).unwrap_or_else(nobodys);
        Some((block_at(&entry.key)?.1, Found { block, version: entry.version }))
    };
    entries.iter().filter_map(found).collect()
}

fn nobodys() -> Block {
    Block { owner: Owner { host: String::new(), id: String::new() }, home: None, own: vec![], turn: 0, claim: 0 }
}
