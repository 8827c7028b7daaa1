//! What hosts write for each other, and under which keys. docs/store.md has the table.
//!
//! Hosts of a newer release may write more of it: fields and keys that are not known here are left as they are. What this release could misread
//! has another record format, which the store refuses ([`crate::store::FORMAT`]).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::warn;

use super::hash::hash;
use crate::model::{Agreement, Mac};
use crate::store::{Entry, Expect, InvalidKey, Key, Op, Prefix};

/// A host, and which machine has that name: a replacement has the name, not the number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    pub host: String,
    pub id: String,
}

/// `cluster/block/SUBNET/BLOCK`: whose it is. Read only by who wants to change it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    #[serde(flatten)]
    pub owner: Owner,
    /// Random: a block that is claimed again has another version, so that a late answer to the first claim changes nothing.
    pub claim: u64,
}

/// `cluster/host/SHARD/NAME`: what a host tells all others. It changes in the commit that changes its blocks, so that it says the same as they.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    pub id: String,
    pub vtep: IpAddr,
    /// By subnet, in the order in which it got them.
    pub blocks: BTreeMap<IpNet, Vec<IpNet>>,
    /// The addresses that the host itself has on segments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own: Vec<IpAddr>,
    /// Which of its single addresses are the host's own, in networks where it found no block when it came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub homes: Vec<IpAddr>,
}

/// `cluster/networks/all`: every network there is, in one value, so that one compare-and-set decides about all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Networks {
    pub networks: Vec<NetworkRecord>,
    #[serde(flatten)]
    pub unknown: Unknown,
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
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What a newer release says beside what is known here, of something that every host writes.
pub type Unknown = BTreeMap<String, Value>;

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

/// All hosts' records.
pub fn hosts() -> Prefix {
    below("cluster/host")
}

/// Those of one shard.
pub fn hosts_in(shard: u64) -> Prefix {
    below(&format!("cluster/host/{shard:02}"))
}

/// One small value for each shard, another one after each change of a record in it.
pub fn changed() -> Prefix {
    below("cluster/changed")
}

/// So many that what all read at each change is small: one value for each, and then the records of one.
const SHARDS: u64 = 64;

/// The shard that a host's record is in.
pub fn shard(host: &str) -> u64 {
    hash(&[host]) % SHARDS
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
    last(key, 4)?.parse().ok()
}

/// The subnet of a key below `cluster/block` or `cluster/mac`.
pub fn subnet_at(key: &Key) -> Option<IpNet> {
    net(key.as_str().split('/').nth(2)?)
}

pub fn asks_of(host: &str) -> Prefix {
    below(&format!("cluster/ask/{host}"))
}

pub fn host_key(host: &str) -> Key {
    sound(Key::new(format!("cluster/host/{:02}/{host}", shard(host))))
}

/// Says that a host's record is another.
pub fn tell_changed(host: &str) -> Op {
    let key = sound(Key::new(format!("cluster/changed/{:02}", shard(host))));
    Op::Put(key, format!("{:016x}", rand::random::<u64>()).into(), Expect::Any)
}

pub fn alive_key(host: &str) -> Key {
    sound(Key::new(format!("cluster/alive/{host}")))
}

pub fn block_key(subnet: IpNet, block: IpNet) -> Key {
    sound(Key::new(format!("cluster/block/{}/{}", segment(subnet), segment(block))))
}

/// `cluster/single/SUBNET`: another value after each claim of a single address. Who claims a block relies on it.
pub fn singles_key(subnet: IpNet) -> Key {
    sound(Key::new(format!("cluster/single/{}", segment(subnet))))
}

/// Says that a single address was claimed.
pub fn tell_single(subnet: IpNet) -> Op {
    Op::Put(singles_key(subnet), format!("{:016x}", rand::random::<u64>()).into(), Expect::Any)
}

/// That a key is as it was found, and otherwise nothing of a commit is done.
pub fn unchanged(key: Key, found: Option<&Entry>) -> Op {
    match found {
        Some(entry) => Op::Put(key, entry.value.clone(), Expect::Version(entry.version)),
        None => Op::Delete(key, Expect::Absent),
    }
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
    Some((subnet_at(key)?, net(last(key, 4)?)?))
}

/// The host of a key below `cluster/host`.
pub fn host_at(key: &Key) -> Option<&str> {
    last(key, 4)
}

/// The host of a key below `cluster/alive`.
pub fn alive_at(key: &Key) -> Option<&str> {
    last(key, 3)
}

/// The shard of a key below `cluster/changed`.
pub fn shard_at(key: &Key) -> Option<u64> {
    last(key, 3)?.parse().ok()
}

/// The last segment of a key that has so many; others are not known here.
fn last(key: &Key, segments: usize) -> Option<&str> {
    let mut all = key.as_str().split('/');
    all.nth(segments - 1).filter(|_| all.next().is_none())
}

/// The address in a key below `cluster/ask`.
pub fn asked(key: &Key) -> Option<IpAddr> {
    last(key, 5)?;
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

/// A host's record without one of its blocks, and otherwise as it was written.
pub fn without_block(mut record: Value, subnet: IpNet, block: IpNet) -> Value {
    let blocks = record.pointer_mut("/blocks").and_then(|blocks| blocks.get_mut(subnet.to_string()));
    if let Some(held) = blocks.and_then(Value::as_array_mut) {
        held.retain(|held| held.as_str() != Some(&block.to_string()));
    }
    record
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
    Block { owner: Owner { host: String::new(), id: String::new() }, claim: 0 }
}
