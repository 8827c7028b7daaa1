//! What a host tells the rest of rsnet about the networks it takes part in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use super::blocks;
use super::hash::hash;
use super::record::Owner;
use super::roll::{Known, News, Roll};
use super::side::Side;
use super::{Times, Uplink};
use crate::model::{Mac, Member, Named, Roster, Share};

/// The networks of this host and the hosts that there are, as last heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Shared between views for as long as nothing changes: there are many hosts, and what is said of one network is large.
    pub networks: Vec<Arc<Standing>>,
    /// This host among them.
    pub hosts: Roster<Host>,
    /// Whether the store answered last time. What is told here stays as it was while it does not.
    pub in_touch: bool,
    /// This host's own outer address; none: not known yet.
    pub vtep: Option<IpAddr>,
}

impl View {
    /// Whether a host renews its lease, as last heard.
    pub fn is_alive(&self, host: &str) -> bool {
        self.hosts.get(host).is_some_and(|host| host.alive)
    }

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

impl Named for Host {
    fn name(&self) -> &str {
        &self.name
    }
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
    fn standing(&self, me: &Owner, uplink: &Uplink, peers: Roster<Member>, roll: &Roll, times: &Times) -> Standing {
        let Uplink { vtep, mtu, on_link } = uplink.clone();
        let share = Share { vni: self.vni, mtu, on_link, mine: self.mine(me, vtep), peers };
        let lost = self.sides.iter().flat_map(|side| side.lost.clone()).collect();
        let kept = self.sides.iter().flat_map(|side| kept(side, roll)).collect();
        Standing { subnets: self.wanted.agreement().subnets, share, kept, heard_within: heard_within(roll, times), lost }
    }

    fn mine(&self, me: &Owner, vtep: IpAddr) -> Member {
        let blocks = self.sides.iter().flat_map(|side| side.mine.iter().copied()).collect();
        let homes = self.sides.iter().flat_map(|side| side.home().into_iter().chain(side.own.clone().unwrap_or_default())).collect();
        Member { host: me.host.clone(), vtep, mac: mac(&me.host, self.vni), homes, blocks }
    }

    /// One of the others, where its record says that it is; none: it has nothing of the network.
    fn peer(&self, host: &str, known: &Known, roll: &Roll) -> Option<Member> {
        let (mut homes, mut blocks, mut is_there) = (vec![], vec![], false);
        for side in &self.sides {
            let Some(held) = known.record.blocks.get(&side.subnet) else { continue };
            let is_theirs = |block: &IpNet| !side.mine.contains(block) && roll.is_theirs(host, side.subnet, *block);
            let before = blocks.len();
            blocks.extend(held.iter().copied().filter(is_theirs));
            let theirs = &blocks[before..];
            homes.extend(side.home_in(theirs, &known.record.homes).into_iter().chain(on_segment(side, &known.record.own)));
            is_there |= !theirs.is_empty() || side.own.is_some();
        }
        let (vtep, mac) = (known.record.vtep, mac(host, self.vni));
        is_there.then(|| Member { host: host.to_owned(), vtep, mac, homes, blocks })
    }
}

/// So long after something was written all hosts that can be reached have acted on it, unless many change at that time.
pub fn heard_within(roll: &Roll, times: &Times) -> Duration {
    times.lull(roll.size()) + times.pause(roll.size()) + times.breath
}

/// What was told of a network, and what of this host it was told from.
pub struct Told {
    pub network: Network,
    uplink: Uplink,
    pub standing: Arc<Standing>,
}

impl Told {
    pub fn new(network: &Network, me: &Owner, uplink: &Uplink, roll: &Roll, times: &Times) -> Self {
        let peers = roll.others().filter_map(|(host, known)| network.peer(host, known, roll)).collect();
        let standing = network.standing(me, uplink, peers, roll, times);
        Told { network: network.clone(), uplink: uplink.clone(), standing: standing.into() }
    }

    pub fn is_of(&self, network: &Network, uplink: &Uplink) -> bool {
        self.network == *network && self.uplink == *uplink
    }

    /// What was heard since costs as much as there is of it, not as there are hosts; of many at once, all is told anew.
    pub fn hear(mut self, news: &News, me: &Owner, roll: &Roll, times: &Times) -> Self {
        let hosts: BTreeSet<&String> = self.network.sides.iter().filter_map(|side| news.get(&side.subnet)).flatten().collect();
        if hosts.is_empty() && self.standing.heard_within == heard_within(roll, times) {
            return self;
        }
        if hosts.len() > roll.hosts.len() / 4 {
            return Self::new(&self.network, me, &self.uplink, roll, times);
        }
        let mut peers = self.standing.share.peers.clone();
        for host in hosts {
            peers.set(host, roll.hosts.get(host).and_then(|known| self.network.peer(host, known, roll)));
        }
        self.standing = self.network.standing(me, &self.uplink, peers, roll, times).into();
        self
    }
}

/// The addresses of hosts, and what was lent.
fn kept(side: &Side, roll: &Roll) -> Vec<IpAddr> {
    let lent = side.mine.iter().flat_map(|block| roll.within(side.subnet, *block)).filter(|net| side.is_single(*net)).map(|net| net.addr());
    let hosts = side.own.as_ref().map_or_else(|| homes(side), |own| hosts_on_segment(side, own, roll));
    let within = |address: &IpAddr| side.mine.iter().any(|block| block.contains(address));
    let kept: BTreeSet<IpAddr> = lent.chain(hosts.into_iter().filter(within)).collect();
    kept.into_iter().collect()
}

/// The host's own address; in large blocks also that which would be its own if it lost the first.
fn homes(side: &Side) -> Vec<IpAddr> {
    let large = |block: &&IpNet| !side.is_single(**block) && block.max_prefix_len() - block.prefix_len() >= 4;
    let spare = side.mine.iter().filter(large).filter_map(|block| blocks::home(side.subnet, *block, &side.reserved));
    side.home().into_iter().chain(spare).collect()
}

/// What the hosts themselves have there, and the routers.
fn hosts_on_segment(side: &Side, own: &[IpAddr], roll: &Roll) -> Vec<IpAddr> {
    let theirs = roll.others().flat_map(|(_, known)| on_segment(side, &known.record.own));
    own.iter().chain(&side.reserved).copied().chain(theirs).collect()
}

/// Which of a host's addresses are on the segment.
fn on_segment<'a>(side: &'a Side, own: &'a [IpAddr]) -> impl Iterator<Item = IpAddr> + 'a {
    own.iter().copied().filter(|own| side.own.is_some() && side.subnet.contains(own))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::record::HostRecord;
    use super::super::{Uplink, Wanted};
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    /// Two subnets of one network, and one that this host has no part in.
    const SUBNETS: [&str; 3] = ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24"];

    fn network() -> Network {
        let side = |subnet: IpNet| Side { mine: vec![blocks::block_of(28, subnet.addr())], ..Side::new(subnet, None) };
        let sides = SUBNETS[..2].iter().map(|subnet| side(net(subnet))).collect();
        Network { wanted: Wanted { subnets: SUBNETS[..2].iter().map(|subnet| net(subnet)).collect(), ..Wanted::default() }, vni: 7, sides }
    }

    /// Blocks of 16 addresses and single addresses, of few enough that hosts meet. A lodger is at home at its single ones.
    fn record(vtep: u8, held: &[(usize, u8, bool)], lodges: bool) -> HostRecord {
        let mut record = HostRecord { id: "1".into(), vtep: [192, 0, 2, vtep].into(), blocks: BTreeMap::new(), own: vec![], homes: vec![] };
        for (subnet, at, single) in held {
            let block = IpNet::new([10, 0, *subnet as u8, at * 16].into(), if *single { 32 } else { 28 }).unwrap();
            let blocks = record.blocks.entry(net(SUBNETS[*subnet])).or_default();
            blocks.retain(|held| *held != block);
            blocks.push(block);
            record.homes.extend((lodges && *single).then(|| block.addr()));
        }
        record
    }

    fn held() -> impl Strategy<Value = Option<Vec<(usize, u8, bool)>>> {
        prop::option::weighted(0.8, prop::collection::vec((0usize..3, 0u8..5, any::<bool>()), 0..5))
    }

    proptest! {
        #[test]
        fn what_is_told_step_by_step_is_what_would_be_told_at_once(acts in prop::collection::vec((0usize..9, 1u8..3, held(), any::<bool>()), 1..60)) {
            let me = Owner { host: "me".into(), id: "1".into() };
            let uplink = Uplink { vtep: [192, 0, 2, 9].into(), mtu: 1500, on_link: None };
            let (mut roll, times, network) = (Roll::new("me"), Times::default(), network());
            let mut told = Told::new(&network, &me, &uplink, &roll, &times);
            for (version, (who, vtep, held, lodges)) in (1u64..).zip(acts) {
                let name = ["a", "b", "c", "d", "e", "f", "g", "h", "me"][who];
                let known = held.map(|held| Known { record: record(vtep, &held, lodges).into(), version });
                roll.hear(|of| of == name, known.into_iter().map(|known| (name.to_owned(), known)).collect());
                roll.review();
                told = told.hear(&roll.news(), &me, &roll, &times);
                let afresh = Told::new(&network, &me, &uplink, &roll, &times);
                prop_assert_eq!(&told.standing, &afresh.standing);
            }
        }
    }
}
