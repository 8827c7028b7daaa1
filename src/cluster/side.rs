//! One subnet: whose which block is. Pure: what the store says and what this host holds in, what the host may rely on and what it has to
//! write out. The rule of rules: a block is used only by a host that held it before and whose record is there or was nobody else's since.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::Instant;

use super::blocks;
use super::record::{Block, Found, Owner, Records};
use crate::store::Expect;

/// What this host knows of one subnet of a network that it takes part in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    pub subnet: IpNet,
    pub reserved: Vec<IpAddr>,
    /// This host's, in the order in which it got them, single addresses among them.
    pub mine: Vec<IpNet>,
    /// What was this host's until somebody else took it, and who.
    pub lost: BTreeMap<IpNet, String>,
    /// The other hosts'.
    pub others: BTreeMap<IpNet, Block>,
    /// The store lost its records. Until then what it no longer says of others still counts.
    pub rebuilding: Option<Instant>,
}

/// A change of a block's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    Put(IpNet, Block, Expect),
    /// Gives it back, if it still has this version.
    Delete(IpNet, u64),
}

impl Side {
    pub fn new(subnet: IpNet, reserved: &[IpAddr]) -> Self {
        let (mine, lost, others) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { subnet, reserved: reserved.to_vec(), mine, lost, others, rebuilding: None }
    }

    /// Whether every block of this host's is recorded as such, and no other one.
    pub fn agrees(&self, me: &Owner, records: &Records) -> bool {
        self.writes(me, records, 0).is_empty() && self.taken(me, records).next().is_none()
    }

    /// Takes over what the store says. What others took is lost. If it does not know what is this host's, it has forgotten what is
    /// the others' as well: that counts for `patience` more, except where the store says otherwise.
    pub fn hear(&mut self, me: &Owner, records: &Records, now: Instant, patience: Duration) {
        let taken: BTreeMap<IpNet, String> = self.taken(me, records).collect();
        let forgotten = self.mine.iter().any(|block| !taken.contains_key(block) && !is_whose(me, records.get(block)));
        self.mine.retain(|block| !taken.contains_key(block));
        self.lost.extend(taken);
        self.rebuilding = if forgotten { Some(now + patience) } else { self.rebuilding.filter(|until| now < *until) };
        let heard = records.iter().filter(|(_, found)| found.block.owner != *me && found.block.is_owned());
        let heard: BTreeMap<IpNet, Block> = heard.map(|(net, found)| (*net, found.block.clone())).collect();
        let before = std::mem::take(&mut self.others);
        if self.rebuilding.is_some() {
            let kept = before.into_iter().filter(|(net, _)| !records.contains_key(net) && !self.mine.contains(net));
            self.others = kept.collect();
        }
        self.others.extend(heard);
    }

    /// What must change in the store so that it says what this host holds. `claim` marks what is written.
    pub fn writes(&self, me: &Owner, records: &Records, claim: u64) -> Vec<Write> {
        let put = |(turn, block): (usize, &IpNet)| {
            let wanted = Block { owner: me.clone(), home: self.home_in(*block), turn, claim };
            match records.get(block) {
                None => Some(Write::Put(*block, wanted, Expect::Absent)),
                Some(found) if found.block.owner == *me && found.block.home == wanted.home => None,
                Some(found) if found.block.owner == *me || !found.block.is_owned() => {
                    Some(Write::Put(*block, wanted, Expect::Version(found.version)))
                }
                Some(_) => None,
            }
        };
        let back = |(block, found): (&IpNet, &Found)| {
            let stray = found.block.owner.host == me.host && !(found.block.owner.id == me.id && self.mine.contains(block));
            stray.then_some(Write::Delete(*block, found.version))
        };
        self.mine.iter().enumerate().filter_map(put).chain(records.iter().filter_map(back)).collect()
    }

    /// Blocks to claim one of, the best first: one that is recorded as this host's already, then free ones.
    pub fn free<'a>(&'a self, me: &'a Owner, records: &'a Records) -> impl Iterator<Item = (IpNet, Expect)> + 'a {
        let stray = records.iter().filter(|(net, found)| self.is_fit(**net) && found.block.owner == *me && !self.mine.contains(*net));
        let stray = stray.map(|(net, found)| (*net, Expect::Version(found.version)));
        let broken: BTreeSet<IpNet> = self.singles(me, records).map(|net| blocks::block_of(self.subnet, net.addr())).collect();
        let free = blocks::in_turn(self.subnet, &me.host).filter(move |net| {
            let known = records.contains_key(net) || self.others.contains_key(net) || self.mine.contains(net);
            !known && !broken.contains(net) && self.is_fit(*net)
        });
        stray.chain(free.map(|net| (net, Expect::Absent)))
    }

    /// The others' blocks, with their records, as far as they could be of use.
    pub fn others<'a>(&'a self, me: &'a Owner, records: &'a Records) -> impl Iterator<Item = (IpNet, &'a Found)> + 'a {
        records.iter().filter(|(net, found)| self.is_fit(**net) && found.block.owner.host != me.host).map(|(net, found)| (*net, found))
    }

    /// Single addresses of other hosts.
    pub fn singles<'a>(&'a self, me: &'a Owner, records: &'a Records) -> impl Iterator<Item = IpNet> + 'a {
        records.iter().filter(|(net, found)| blocks::is_single(self.subnet, **net) && found.block.owner != *me).map(|(net, _)| *net)
    }

    /// The owner of the block that an address is in; its own if it is one that was asked for.
    pub fn owner<'a>(&self, records: &'a Records, address: IpAddr) -> Option<&'a Owner> {
        let found = records.get(&blocks::single(address)).or_else(|| records.get(&blocks::block_of(self.subnet, address)));
        found.map(|found| &found.block.owner)
    }

    /// The host's own address on the network.
    pub fn home(&self) -> Option<IpAddr> {
        self.first_block().and_then(|block| blocks::home(self.subnet, block, &self.reserved))
    }

    fn home_in(&self, block: IpNet) -> Option<IpAddr> {
        self.home().filter(|_| self.first_block() == Some(block))
    }

    fn first_block(&self) -> Option<IpNet> {
        self.mine.iter().copied().find(|block| !blocks::is_single(self.subnet, *block))
    }

    /// A block that has an address for a container; the first also has one for the host.
    fn is_fit(&self, block: IpNet) -> bool {
        let needed = if self.first_block().is_none() { 2 } else { 1 };
        !blocks::is_single(self.subnet, block) && blocks::usable(self.subnet, block, &self.reserved).take(needed).count() == needed
    }

    /// What this host held and the store says is another's.
    fn taken<'a>(&'a self, me: &'a Owner, records: &'a Records) -> impl Iterator<Item = (IpNet, String)> + 'a {
        let found = self.mine.iter().filter_map(|block| Some((*block, &records.get(block)?.block)));
        found.filter(|(_, found)| found.owner != *me && found.is_owned()).map(|(block, found)| (block, found.owner.host.clone()))
    }
}

impl Block {
    /// A damaged record is not.
    fn is_owned(&self) -> bool {
        !self.owner.host.is_empty()
    }
}

fn is_whose(owner: &Owner, found: Option<&Found>) -> bool {
    found.is_some_and(|found| found.block.owner == *owner)
}
