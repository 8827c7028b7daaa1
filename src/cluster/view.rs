//! What a host tells the rest of rsnet about the networks it takes part in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use super::blocks;
use super::hash::hash;
use super::record::Owner;
use super::roll::{Held, Roll, doubled};
use super::side::Side;
use super::{Times, Uplink};
use crate::model::{Mac, Member, Share};

/// The networks of this host and the hosts that there are, as last heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Shared between views for as long as nothing changes: there are many hosts, and what is said of one network is large.
    pub networks: Vec<Arc<Standing>>,
    /// By name; this host among them.
    pub hosts: Arc<Vec<Host>>,
    /// Whether the store answered last time. What is told here stays as it was while it does not.
    pub in_touch: bool,
    /// This host's own outer address; none: not known yet.
    pub vtep: Option<IpAddr>,
}

impl View {
    /// The network that a subnet belongs to.
    pub fn of(&self, subnet: IpNet) -> Option<&Standing> {
        self.networks.iter().map(AsRef::as_ref).find(|network: &&Standing| network.subnets.contains(&subnet))
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
    /// So long after something was written all hosts that can be reached have acted on it.
    pub heard_within: Duration,
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
    pub fn standing(&self, me: &Owner, uplink: &Uplink, roll: &Roll, times: &Times) -> Standing {
        let Uplink { vtep, mtu, on_link } = uplink.clone();
        let held: Vec<(&Side, Vec<Held>)> = self.sides.iter().map(|side| (side, roll.held(&me.host, side.subnet).collect())).collect();
        let share = Share { vni: self.vni, mtu, on_link, mine: self.mine(me, vtep), peers: self.peers(&held) };
        let lost = self.sides.iter().flat_map(|side| side.lost.clone()).collect();
        let kept = held.iter().flat_map(|(side, held)| kept(side, held, me, roll)).collect();
        Standing { subnets: self.wanted.agreement().subnets, share, kept, heard_within: heard_within(roll, times), lost }
    }

    fn mine(&self, me: &Owner, vtep: IpAddr) -> Member {
        let blocks = self.sides.iter().flat_map(|side| side.mine.iter().copied()).collect();
        let homes = self.sides.iter().flat_map(|side| side.home().into_iter().chain(side.own.clone().unwrap_or_default())).collect();
        Member { host: me.host.clone(), vtep, mac: mac(&me.host, self.vni), homes, blocks }
    }

    /// The others, each where its record says that it is.
    fn peers(&self, held: &[(&Side, Vec<Held>)]) -> Vec<Member> {
        let mut peers: BTreeMap<&str, Member> = BTreeMap::new();
        for (side, held) in held {
            let doubled = doubled(held);
            for Held { host, known, blocks } in held {
                let is_theirs = |block: &IpNet| !side.mine.contains(block) && doubled.get(block).is_none_or(|owner| owner == host);
                let blocks: Vec<IpNet> = blocks.iter().copied().filter(is_theirs).collect();
                if blocks.is_empty() {
                    continue;
                }
                let peer = peers.entry(*host).or_insert_with(|| self.peer(host, known.record.vtep));
                peer.homes.extend(side.home_in(&blocks).into_iter().chain(on_segment(side, &known.record.own)));
                peer.blocks.extend(blocks);
            }
        }
        peers.into_values().collect()
    }

    fn peer(&self, host: &str, vtep: IpAddr) -> Member {
        Member { host: host.to_owned(), vtep, mac: mac(host, self.vni), homes: vec![], blocks: vec![] }
    }
}

/// So long after something was written all hosts that can be reached have acted on it.
fn heard_within(roll: &Roll, times: &Times) -> Duration {
    times.pause(roll.hosts.len()) + times.breath
}

/// What was told of a network, and all that it was told from: as long as that is the same, it is not made again.
pub struct Told {
    network: Network,
    uplink: Uplink,
    /// What was known of the others, see [`Roll::turn`].
    turns: Vec<u64>,
    pub standing: Arc<Standing>,
}

impl Told {
    pub fn new(network: &Network, uplink: &Uplink, roll: &Roll, standing: Standing) -> Self {
        Told { network: network.clone(), uplink: uplink.clone(), turns: turns(network, roll), standing: Arc::new(standing) }
    }

    pub fn is_of(&self, network: &Network, uplink: &Uplink, roll: &Roll, times: &Times) -> bool {
        let same = self.network == *network && self.uplink == *uplink && self.turns == turns(network, roll);
        same && self.standing.heard_within == heard_within(roll, times)
    }
}

fn turns(network: &Network, roll: &Roll) -> Vec<u64> {
    network.sides.iter().map(|side| roll.turn(side.subnet)).collect()
}

/// The addresses of hosts, and what was lent.
fn kept(side: &Side, held: &[Held], me: &Owner, roll: &Roll) -> Vec<IpAddr> {
    let lent = held.iter().flat_map(|held| held.blocks).filter(|net| side.is_single(**net)).map(IpNet::addr);
    let hosts = side.own.as_ref().map_or_else(|| homes(side), |own| hosts_on_segment(side, own, me, roll));
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
fn hosts_on_segment(side: &Side, own: &[IpAddr], me: &Owner, roll: &Roll) -> Vec<IpAddr> {
    let others = roll.hosts.iter().filter(|(name, _)| **name != me.host);
    let theirs = others.flat_map(|(_, known)| on_segment(side, &known.record.own));
    own.iter().chain(&side.reserved).copied().chain(theirs).collect()
}

/// Which of a host's addresses are on the segment.
fn on_segment<'a>(side: &'a Side, own: &'a [IpAddr]) -> impl Iterator<Item = IpAddr> + 'a {
    own.iter().copied().filter(|own| side.own.is_some() && side.subnet.contains(own))
}
