//! What a host tells the rest of rsnet about the networks it takes part in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::SystemTime;

use ipnet::IpNet;

use super::Uplink;
use super::blocks;
use super::hash::hash;
use super::record::{Block, HostRecord, Owner};
use super::side::Side;
use crate::model::{Mac, Member, Share};

/// The networks of this host and the hosts that there are, as last heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub networks: Vec<Standing>,
    /// By name; this host among them.
    pub hosts: Vec<Host>,
    /// Whether the store answered last time. What is told here stays as it was while it does not.
    pub in_touch: bool,
}

impl View {
    /// The network that a subnet belongs to.
    pub fn of(&self, subnet: IpNet) -> Option<&Standing> {
        self.networks.iter().find(|network| network.subnets.contains(&subnet))
    }
}

/// A network as it stands for this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// In ascending order.
    pub subnets: Vec<IpNet>,
    pub share: Share,
    /// Addresses in this host's blocks that its allocator must give to nobody: its own, and those that other hosts asked for.
    pub kept: Vec<IpAddr>,
    /// Blocks that were this host's until another took them, with that one's name: nothing on this host may use them.
    pub lost: BTreeMap<IpNet, String>,
}

/// A host of the store, whichever networks it takes part in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub name: String,
    pub vtep: IpAddr,
    pub alive: bool,
    /// Since when this host has seen it dead.
    pub gone_since: Option<SystemTime>,
}

/// A network of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub wanted: super::Wanted,
    pub vni: u32,
    pub sides: Vec<Side>,
}

/// The MAC of a host on a network. From what is never used again for something else, and known to all: nobody has to store it.
pub fn mac(host: &str, vni: u32) -> Mac {
    let [_, _, a, b, c, d, e, f] = hash(&[host, &vni.to_string()]).to_be_bytes();
    Mac::local([a, b, c, d, e, f])
}

impl Network {
    pub fn standing(&self, me: &Owner, uplink: &Uplink, hosts: &BTreeMap<String, HostRecord>) -> Standing {
        let Uplink { vtep, mtu, on_link } = uplink.clone();
        let share = Share { vni: self.vni, mtu, on_link, mine: self.mine(me, vtep), peers: self.peers(me, hosts) };
        let lost = self.sides.iter().flat_map(|side| side.lost.clone()).collect();
        Standing { subnets: self.wanted.agreement().subnets, share, kept: self.sides.iter().flat_map(kept).collect(), lost }
    }

    fn mine(&self, me: &Owner, vtep: IpAddr) -> Member {
        let blocks = self.sides.iter().flat_map(|side| side.mine.iter().copied()).collect();
        let homes = self.sides.iter().flat_map(|side| side.home().into_iter().chain(side.own.clone().unwrap_or_default())).collect();
        Member { host: me.host.clone(), vtep, mac: mac(&me.host, self.vni), homes, blocks }
    }

    /// The others, each where its host record says that it is. A block of a machine that was replaced leads nowhere.
    fn peers(&self, me: &Owner, hosts: &BTreeMap<String, HostRecord>) -> Vec<Member> {
        let owners: BTreeSet<&Owner> = self.sides.iter().flat_map(|side| side.others.values().map(|block| &block.owner)).collect();
        let there = |owner: &&Owner| owner.host != me.host && hosts.get(&owner.host).is_some_and(|record| is_same(&record.id, &owner.id));
        let mut peers: BTreeMap<&str, Member> = BTreeMap::new();
        for owner in owners.into_iter().filter(there) {
            let member = self.peer(owner, hosts[&owner.host].vtep);
            // Remembered and heard blocks of one host are of two owners for as long as a lost store is rebuilt.
            let known = peers.entry(&owner.host).or_insert_with(|| Member { homes: vec![], blocks: vec![], ..member.clone() });
            known.homes.extend(member.homes);
            known.blocks.extend(member.blocks);
        }
        peers.into_values().collect()
    }

    fn peer(&self, owner: &Owner, vtep: IpAddr) -> Member {
        let all: Vec<_> = self.sides.iter().flat_map(|side| blocks_of(side, owner)).collect();
        let homes = all.iter().flat_map(|(_, _, block)| block.home.iter().chain(&block.own)).copied().collect();
        let blocks = all.iter().map(|(_, net, _)| *net).collect();
        Member { host: owner.host.clone(), vtep, mac: mac(&owner.host, self.vni), homes, blocks }
    }
}

/// An owner's, in the order in which it got them.
fn blocks_of<'s>(side: &'s Side, owner: &Owner) -> Vec<(usize, IpNet, &'s Block)> {
    let theirs = side.others.iter().filter(|(_, block)| block.owner == *owner);
    let mut blocks: Vec<_> = theirs.map(|(net, block)| (block.turn, *net, block)).collect();
    blocks.sort_by_key(|(turn, net, _)| (*turn, *net));
    blocks
}

/// What was remembered has no machine's number.
fn is_same(id: &str, other: &str) -> bool {
    id.is_empty() || other.is_empty() || id == other
}

/// The addresses of hosts, and what was lent.
fn kept(side: &Side) -> Vec<IpAddr> {
    let lent = side.others.keys().filter(|net| side.is_single(**net)).map(|net| net.addr());
    let hosts = side.own.as_ref().map_or_else(|| homes(side), |own| on_segment(side, own));
    let within = |address: &IpAddr| side.mine.iter().any(|block| block.contains(address));
    let kept: BTreeSet<IpAddr> = lent.chain(hosts).filter(within).collect();
    kept.into_iter().collect()
}

/// The host's own address in its first block; in large ones also that which would be its own if it lost the first.
fn homes(side: &Side) -> Vec<IpAddr> {
    let large = |block: &&IpNet| !side.is_single(**block) && block.max_prefix_len() - block.prefix_len() >= 4;
    let spare = side.mine.iter().filter(large).filter_map(|block| blocks::home(side.subnet, *block, &side.reserved));
    side.home().into_iter().chain(spare).collect()
}

/// What the hosts themselves have there, and the routers.
fn on_segment(side: &Side, own: &[IpAddr]) -> Vec<IpAddr> {
    let theirs = side.others.values().flat_map(|block| &block.own);
    own.iter().chain(theirs).chain(&side.reserved).copied().collect()
}
