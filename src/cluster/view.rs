//! What a host tells the rest of rsnet about the networks it takes part in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use super::blocks;
use super::hash::hash;
use super::record::{Block, HostRecord, Owner};
use super::side::Side;
use super::{Times, Uplink};
use crate::model::{Mac, Member, Share};

/// The networks of this host and the hosts that there are, as last heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Shared between views for as long as nothing changes: there are many hosts, and what is said of one network is large.
    pub networks: Vec<Arc<Standing>>,
    /// By name; this host among them.
    pub hosts: Vec<Host>,
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
    pub fn standing(&self, me: &Owner, uplink: &Uplink, hosts: &BTreeMap<String, HostRecord>, times: &Times) -> Standing {
        let Uplink { vtep, mtu, on_link } = uplink.clone();
        let share = Share { vni: self.vni, mtu, on_link, mine: self.mine(me, vtep), peers: self.peers(me, hosts) };
        let lost = self.sides.iter().flat_map(|side| side.lost.clone()).collect();
        let records = self.sides.iter().map(|side| side.others.len() + side.mine.len()).max();
        let heard_within = times.pause(records.unwrap_or_default()) + times.breath;
        let kept = self.sides.iter().flat_map(kept).collect();
        Standing { subnets: self.wanted.agreement().subnets, share, kept, heard_within, lost }
    }

    fn mine(&self, me: &Owner, vtep: IpAddr) -> Member {
        let blocks = self.sides.iter().flat_map(|side| side.mine.iter().copied()).collect();
        let homes = self.sides.iter().flat_map(|side| side.home().into_iter().chain(side.own.clone().unwrap_or_default())).collect();
        Member { host: me.host.clone(), vtep, mac: mac(&me.host, self.vni), homes, blocks }
    }

    /// The others, each where its host record says that it is. A block of a machine that was replaced leads nowhere.
    fn peers(&self, me: &Owner, hosts: &BTreeMap<String, HostRecord>) -> Vec<Member> {
        let there = |owner: &Owner| owner.host != me.host && hosts.get(&owner.host).is_some_and(|record| is_same(&record.id, &owner.id));
        let all =
            self.sides.iter().enumerate().flat_map(|(side, of)| of.others.iter().map(move |(net, block)| Held { side, net: *net, block }));
        let mut held: Vec<Held> = all.filter(|held| there(&held.block.owner)).collect();
        held.sort_by(|one, next| one.order().cmp(&next.order()));
        // Remembered and heard blocks of one host are of two owners for as long as a lost store is rebuilt.
        let each = held.chunk_by(|one, next| one.block.owner.host == next.block.owner.host);
        each.map(|held| self.peer(held, hosts[&held[0].block.owner.host].vtep)).collect()
    }

    /// From all that one host has, which is something.
    fn peer(&self, held: &[Held], vtep: IpAddr) -> Member {
        let host = held[0].block.owner.host.clone();
        let homes = held.iter().flat_map(|held| held.block.home.iter().chain(&held.block.own)).copied().collect();
        Member { mac: mac(&host, self.vni), host, vtep, homes, blocks: held.iter().map(|held| held.net).collect() }
    }
}

/// A block of another host.
struct Held<'a> {
    side: usize,
    net: IpNet,
    block: &'a Block,
}

impl Held<'_> {
    /// By host; and of one host in the order in which it got them.
    fn order(&self) -> (&Owner, usize, usize, IpNet) {
        (&self.block.owner, self.side, self.block.turn, self.net)
    }
}

/// What was told of a network, and all that it was told from: as long as that is the same, it is not made again.
pub struct Told {
    pub network: Network,
    pub uplink: Uplink,
    pub hosts: Arc<BTreeMap<String, HostRecord>>,
    pub standing: Arc<Standing>,
}

impl Told {
    pub fn is_of(&self, network: &Network, uplink: &Uplink, hosts: &Arc<BTreeMap<String, HostRecord>>) -> bool {
        self.network == *network && self.uplink == *uplink && self.hosts == *hosts
    }
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
