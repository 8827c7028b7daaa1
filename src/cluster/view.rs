//! What a host makes of what the store says: pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::records::{Block, NetworkRecord, Snapshot};
use super::{Error, blocks};
use crate::model::{Agreement, Member, Share};

/// What this host last heard, of each network that it takes part in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub shares: BTreeMap<Vec<IpNet>, Share>,
}

impl View {
    pub fn share(&self, subnets: &[IpNet]) -> Option<Share> {
        self.shares.get(subnets).cloned()
    }
}

/// The network, if it is there and was made alike; an error if something else is in its way.
pub fn agree(networks: &[NetworkRecord], wanted: &Agreement) -> Result<Option<NetworkRecord>, Error> {
    let overlaps = |network: &&NetworkRecord| {
        let pairs = network.agreement.subnets.iter().flat_map(|a| wanted.subnets.iter().map(move |b| (a, b)));
        pairs.into_iter().any(|(a, b)| a.contains(b) || b.contains(a))
    };
    let Some(found) = networks.iter().find(overlaps) else { return Ok(None) };
    if found.agreement.subnets != wanted.subnets {
        return Err(Error::Refused(format!(
            "subnet {} overlaps {}, a network that host {} made; give the same --subnet to take part in it, or choose another",
            text(&wanted.subnets),
            text(&found.agreement.subnets),
            found.by
        )));
    }
    match difference(&found.agreement, wanted) {
        Some(difference) => Err(Error::Refused(format!(
            "network {} was made by host {} {difference}; give the same on every host, or remove it from all first",
            text(&found.agreement.subnets),
            found.by
        ))),
        None => Ok(Some(found.clone())),
    }
}

fn text(subnets: &[IpNet]) -> String {
    subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

fn difference(theirs: &Agreement, ours: &Agreement) -> Option<String> {
    let names = theirs.options.keys().chain(ours.options.keys());
    let value =
        |agreement: &Agreement, name| agreement.options.get(name).map_or("nothing".to_owned(), |value: &String| format!("{name}={value}"));
    let mut options = names.filter(|name| theirs.options.get(*name) != ours.options.get(*name));
    if let Some(name) = options.next() {
        return Some(format!("with {}, here it is {}", value(theirs, name), value(ours, name)));
    }
    let reserved = |agreement: &Agreement| {
        let mut all = agreement.reserved.clone();
        all.sort();
        all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let (a, b) = (reserved(theirs), reserved(ours));
    (a != b).then(|| format!("with gateway and reserved addresses {a}, here they are {b}"))
}

/// A network as the store says it now. What this host holds it says itself, unless another has it. `doubtful`: what the store lacks of
/// others may only be not written back yet.
pub fn heard(host: &str, agreement: &Agreement, known: &Share, snapshot: &Snapshot, doubtful: bool) -> Share {
    let mut members: BTreeMap<String, Member> = BTreeMap::new();
    let all = || agreement.subnets.iter().flat_map(|subnet| snapshot.blocks.get(subnet).into_iter().flatten());
    for (block, (Block { host: owner, home }, _)) in all().filter(|(_, (block, _))| block.host != host) {
        let Some(vtep) = vtep(owner, known, snapshot) else { continue };
        let member = members.entry(owner.clone()).or_insert_with(|| Member {
            host: owner.clone(),
            vtep,
            mac: blocks::mac(owner, known.vni),
            homes: Vec::new(),
            blocks: Vec::new(),
        });
        member.blocks.push(*block);
        member.homes.extend(home);
    }
    if doubtful {
        let written: Vec<IpNet> = all().map(|(block, _)| *block).collect();
        known.peers.iter().for_each(|peer| keep(&mut members, peer, &written));
    }
    let lost = |block: &IpNet| members.values().any(|member| member.blocks.contains(block));
    let mut mine = known.mine.clone();
    mine.blocks.retain(|block| !lost(block));
    mine.homes.retain(|home| mine.blocks.iter().any(|block| block.contains(home)));
    Share { mine, peers: members.into_values().collect(), ..known.clone() }
}

/// Where a host is: as it says itself, or as it was last heard.
fn vtep(owner: &str, known: &Share, snapshot: &Snapshot) -> Option<IpAddr> {
    let said = snapshot.hosts.get(owner).map(|record| record.vtep);
    said.or_else(|| known.peers.iter().find(|peer| peer.host == owner).map(|peer| peer.vtep))
}

/// What was known of a host and nobody has written yet.
fn keep(members: &mut BTreeMap<String, Member>, peer: &Member, written: &[IpNet]) {
    let missing: Vec<IpNet> = peer.blocks.iter().filter(|block| !written.contains(block)).copied().collect();
    if missing.is_empty() {
        return;
    }
    let member = members.entry(peer.host.clone()).or_insert_with(|| Member { homes: Vec::new(), blocks: Vec::new(), ..peer.clone() });
    member.homes.extend(peer.homes.iter().filter(|home| missing.iter().any(|block| block.contains(*home))));
    member.blocks.extend(missing);
}

type Missing = Vec<(IpNet, IpNet, Block)>;
type Spare = Vec<(IpNet, IpNet, u64)>;

/// What the store lacks of this host, and what it says is this host's and is not.
pub fn differences<'h>(host: &str, snapshot: &Snapshot, held: impl Iterator<Item = (&'h Agreement, &'h Member)>) -> (Missing, Spare) {
    let (mut missing, mut kept) = (Vec::new(), Vec::new());
    for (agreement, mine) in held {
        for (subnet, block) in mine.blocks.iter().filter_map(|block| Some((agreement.subnets.iter().find(|s| s.contains(block))?, block))) {
            kept.push((*subnet, *block));
            if !snapshot.blocks.get(subnet).is_some_and(|blocks| blocks.contains_key(block)) {
                let home = mine.homes.iter().copied().find(|home| block.contains(home));
                missing.push((*subnet, *block, Block { host: host.to_owned(), home }));
            }
        }
    }
    let all = snapshot.blocks.iter().flat_map(|(subnet, blocks)| blocks.iter().map(move |(block, record)| (*subnet, *block, record)));
    let spare = all.filter(|(subnet, block, (record, _))| record.host == host && !kept.contains(&(*subnet, *block)));
    (missing, spare.map(|(subnet, block, (_, version))| (subnet, block, *version)).collect())
}
