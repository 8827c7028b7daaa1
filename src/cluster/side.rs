//! One subnet: which of its blocks are this host's. Pure: what the store says and what this host holds in, what the host may rely on and what
//! it has to write out. The rule of rules: a block is used only by a host that held it before and whose record is there or was nobody
//! else's since.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::blocks;
use super::record::{Block, Found, Owner, Records};
use crate::model::Segment;
use crate::store::Expect;

/// What this host knows of one subnet of a network that it takes part in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    pub subnet: IpNet,
    /// What is cut into blocks: the subnet or a part of it.
    pub range: IpNet,
    /// On a segment the addresses that this host itself has there; none: it has one of its own, see [`Side::home_in`].
    pub own: Option<Vec<IpAddr>>,
    pub reserved: Vec<IpAddr>,
    /// This host's, in the order in which it got them, single addresses among them.
    pub mine: Vec<IpNet>,
    /// Which of the single addresses is the host's own: it found no block when it came.
    pub lodging: Option<IpAddr>,
    /// What was this host's until somebody else took it, and who.
    pub lost: BTreeMap<IpNet, String>,
}

/// A change of a block's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    Put(IpNet, Block, Expect),
    /// Gives it back, if it still has this version.
    Delete(IpNet, u64),
}

impl Side {
    pub fn new(subnet: IpNet, segment: Option<&Segment>) -> Self {
        let (reserved, mine, lost) = (Vec::new(), Vec::new(), BTreeMap::new());
        let range = segment.and_then(|segment| segment.ranges.iter().copied().find(|range| subnet.contains(range))).unwrap_or(subnet);
        let own = segment.map(|segment| segment.own.iter().copied().filter(|own| subnet.contains(own)).collect());
        Self { subnet, range, own, reserved, mine, lodging: None, lost }
    }

    fn length(&self) -> u8 {
        blocks::length(self.range, self.own.is_some())
    }

    /// The block that an address belongs to; one outside the range belongs to one that nobody claims.
    pub fn block_of(&self, address: IpAddr) -> IpNet {
        blocks::block_of(self.length(), address)
    }

    /// Whether it is one address that was asked for or borrowed, and no block.
    pub fn is_single(&self, block: IpNet) -> bool {
        block.prefix_len() > self.length()
    }

    /// What is to be recorded of a block of this host's.
    pub fn record(me: &Owner, claim: u64) -> Block {
        Block { owner: me.clone(), claim }
    }

    /// Takes over what the store says: what others took is lost.
    pub fn hear(&mut self, me: &Owner, records: &Records) {
        self.lose(self.taken(me, records).collect());
    }

    /// What others took, and who.
    pub fn lose(&mut self, taken: BTreeMap<IpNet, String>) {
        self.mine.retain(|block| !taken.contains_key(block));
        self.lost.extend(taken);
        self.lodging = self.lodging.filter(|home| self.mine.contains(&blocks::single(*home)));
    }

    /// One more single address, the last of all.
    pub fn hold_single(&mut self, address: IpAddr) {
        self.mine.retain(|block| *block != blocks::single(address));
        self.mine.push(blocks::single(address));
    }

    /// A single address that another host lent: the host's own if it has none yet.
    pub fn hold_borrowed(&mut self, address: IpAddr) {
        if self.is_homeless() {
            self.lodging = Some(address);
        }
        self.hold_single(address);
    }

    /// Whether the host should have an address of its own on the network, and has none.
    pub fn is_homeless(&self) -> bool {
        self.own.is_none() && self.home().is_none()
    }

    /// Whether the others hear of it: a host on a segment is there whether it has addresses to give or not.
    pub fn is_told(&self) -> bool {
        self.own.is_some() || !self.mine.is_empty()
    }

    /// Gives up a single address; the host's own is not given up while it takes part. Whether there was one.
    pub fn give_up(&mut self, address: IpAddr) -> bool {
        let single = blocks::single(address);
        let held = self.is_single(single) && self.lodging != Some(address);
        let at = self.mine.iter().position(|block| *block == single).filter(|_| held);
        at.map(|at| self.mine.remove(at)).is_some()
    }

    /// Somebody else has all that this host had.
    pub fn lose_all(&mut self) {
        self.lodging = None;
        self.lost.extend(self.mine.drain(..).map(|block| (block, String::new())));
    }

    /// What must change in the store so that it says what this host holds. `claim` marks what is written.
    pub fn writes(&self, me: &Owner, records: &Records, claim: u64) -> Vec<Write> {
        let put = |block: &IpNet| match records.get(block) {
            None => Some(Write::Put(*block, Self::record(me, claim), Expect::Absent)),
            Some(found) if !found.block.is_owned() => Some(Write::Put(*block, Self::record(me, claim), Expect::Version(found.version))),
            Some(_) => None,
        };
        let back = |(block, found): (&IpNet, &Found)| {
            let stray = found.block.owner.host == me.host && !(found.block.owner.id == me.id && self.mine.contains(block));
            stray.then_some(Write::Delete(*block, found.version))
        };
        self.mine.iter().filter_map(put).chain(records.iter().filter_map(back)).collect()
    }

    /// Blocks to claim one of, the best first: one that is recorded as this host's already, then free ones. `avoided`: those that are
    /// another's though no record says so.
    pub fn free<'a>(
        &'a self,
        me: &'a Owner,
        records: &'a Records,
        avoided: &'a BTreeSet<IpNet>,
    ) -> impl Iterator<Item = (IpNet, Expect)> + 'a {
        let stray = records.iter().filter(|(net, found)| self.is_fit(**net) && found.block.owner == *me && !self.mine.contains(*net));
        let stray = stray.map(|(net, found)| (*net, Expect::Version(found.version)));
        let broken: BTreeSet<IpNet> = self.singles(me, records).map(|net| self.block_of(net.addr())).collect();
        let free = blocks::in_turn(self.range, self.length(), &me.host).filter(move |net| {
            let known = records.contains_key(net) || avoided.contains(net) || self.mine.contains(net);
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
        records.iter().filter(|(net, found)| self.is_single(**net) && found.block.owner != *me).map(|(net, _)| *net)
    }

    /// The owner of the block that an address is in; its own if it is one that was asked for.
    pub fn owner<'a>(&self, records: &'a Records, address: IpAddr) -> Option<&'a Owner> {
        let found = records.get(&blocks::single(address)).or_else(|| records.get(&self.block_of(address)));
        found.map(|found| &found.block.owner)
    }

    /// The host's own address on the network.
    pub fn home(&self) -> Option<IpAddr> {
        self.home_in(&self.mine, self.lodging.as_slice())
    }

    /// The same of any host, from what it holds: the single address that it says is its own, else the first of its first block. So it stays what
    /// it is when a host that found no block gets one.
    pub fn home_in(&self, held: &[IpNet], lodgings: &[IpAddr]) -> Option<IpAddr> {
        if self.own.is_some() {
            return None;
        }
        let lodging = lodgings.iter().copied().find(|home| held.contains(&blocks::single(*home)));
        let first = || held.iter().copied().find(|block| !self.is_single(*block));
        lodging.or_else(|| blocks::home(self.subnet, first()?, &self.reserved))
    }

    /// A block that has an address for a container, and one for the host if that is to have one of it.
    fn is_fit(&self, block: IpNet) -> bool {
        let needed = if self.is_homeless() { 2 } else { 1 };
        !self.is_single(block)
            && self.range.contains(&block)
            && blocks::usable(self.subnet, block, &self.reserved).take(needed).count() == needed
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a host may do between two moments of the others.
    #[derive(Clone, Debug)]
    enum Act {
        /// Reads; chooses, and writes what it chose with its next act.
        Choose,
        Claim,
        /// Reads, hears, writes.
        Settle,
        Leave,
        Wipe,
        Damage,
    }

    fn acts() -> impl Strategy<Value = Vec<(usize, Act)>> {
        let act = prop_oneof![
            4 => Just(Act::Choose),
            4 => Just(Act::Claim),
            4 => Just(Act::Settle),
            1 => Just(Act::Leave),
            1 => Just(Act::Wipe),
            1 => Just(Act::Damage),
        ];
        prop::collection::vec((0usize..4, act), 1..120)
    }

    struct World {
        subnet: IpNet,
        version: u64,
        records: Records,
        hosts: Vec<(Owner, Side, Claiming)>,
    }

    /// A claim that is decided and not yet written.
    type Claiming = Option<(IpNet, Expect)>;

    impl World {
        fn new() -> Self {
            let subnet: IpNet = "10.0.0.0/25".parse().unwrap();
            let host = |n: usize| (Owner { host: format!("h{n}"), id: n.to_string() }, Side::new(subnet, None), None);
            World { subnet, version: 0, records: Records::new(), hosts: (0..4).map(host).collect() }
        }

        /// As the store does: all or nothing.
        fn commit(&mut self, writes: &[Write]) -> bool {
            let version = |net: &IpNet| self.records.get(net).map(|found| found.version);
            let holds = writes.iter().all(|write| match write {
                Write::Put(net, _, expect) => expect.holds(version(net)),
                Write::Delete(net, expected) => version(net) == Some(*expected),
            });
            if holds {
                self.version += 1;
                for write in writes.iter().cloned() {
                    match write {
                        Write::Put(net, block, _) => drop(self.records.insert(net, Found { block, version: self.version })),
                        Write::Delete(net, _) => drop(self.records.remove(&net)),
                    }
                }
            }
            holds
        }

        fn act(&mut self, at: usize, act: Act) {
            let (me, mut side, mut chosen) = self.hosts[at].clone();
            match act {
                Act::Choose => chosen = side.free(&me, &self.records, &BTreeSet::new()).next(),
                Act::Claim => {
                    if let Some((block, expect)) = chosen.take() {
                        let record = Side::record(&me, self.version);
                        if self.commit(&[Write::Put(block, record, expect)]) && !side.mine.contains(&block) {
                            side.mine.push(block);
                        }
                    }
                }
                Act::Settle => {
                    side.hear(&me, &self.records);
                    let writes = side.writes(&me, &self.records, self.version);
                    // A host does one thing at a time: what it chose before is chosen anew.
                    chosen = None;
                    self.commit(&writes);
                }
                Act::Leave => {
                    side = Side::new(self.subnet, None);
                    chosen = None;
                }
                Act::Wipe => self.records.clear(),
                Act::Damage => {
                    if let Some(found) = self.records.values_mut().next() {
                        found.block.owner = Owner { host: String::new(), id: String::new() };
                        self.version += 1;
                        found.version = self.version;
                    }
                }
            }
            self.hosts[at] = (me, side, chosen);
        }

        /// Everybody settles until nobody has anything to write.
        fn rest(&mut self) {
            for _ in 0..4 {
                (0..4).for_each(|at| self.act(at, Act::Settle));
            }
        }

        fn holders(&self) -> BTreeMap<IpNet, Vec<String>> {
            let mut holders: BTreeMap<IpNet, Vec<String>> = BTreeMap::new();
            for (me, side, _) in &self.hosts {
                side.mine.iter().for_each(|block| holders.entry(*block).or_default().push(me.host.clone()));
            }
            holders
        }
    }

    /// What becomes of a host on a subnet of 16 blocks, by number, and of 128 addresses.
    #[derive(Clone, Debug)]
    enum Turn {
        Block(u8),
        Borrow(u8),
        Named(u8),
        GiveUp(u8),
        /// Somebody else has what it has from here on.
        Lose(u8),
    }

    fn turns() -> impl Strategy<Value = Vec<Turn>> {
        let turn = prop_oneof![
            (0u8..16).prop_map(Turn::Block),
            (0u8..128).prop_map(Turn::Borrow),
            (0u8..128).prop_map(Turn::Named),
            (0u8..128).prop_map(Turn::GiveUp),
            (0u8..128).prop_map(Turn::Lose),
        ];
        prop::collection::vec(turn, 1..40)
    }

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn take(side: &mut Side, me: &Owner, turn: &Turn) -> Option<IpNet> {
        match *turn {
            Turn::Block(at) => {
                let block = side.block_of(address(at * 8));
                if !side.mine.contains(&block) && side.is_fit(block) {
                    side.mine.push(block);
                }
            }
            Turn::Borrow(last) => side.hold_borrowed(address(last)),
            Turn::Named(last) => side.hold_single(address(last)),
            Turn::GiveUp(last) => drop(side.give_up(address(last))),
            Turn::Lose(last) => {
                let lost = side.mine.iter().copied().find(|net| net.contains(&address(last)));
                let other = Owner { host: "other".into(), id: "2".into() };
                let records = lost.map(|net| (net, Found { block: Side::record(&other, 1), version: 1 })).into_iter().collect();
                side.hear(me, &records);
                return lost;
            }
        }
        None
    }

    #[test]
    fn who_found_no_block_is_at_home_at_what_it_borrowed_and_stays_there_when_a_block_comes() {
        let mut side = Side::new("10.0.0.0/25".parse().unwrap(), None);
        [9, 17].into_iter().for_each(|last| side.hold_borrowed(address(last)));
        side.mine.push("10.0.0.32/29".parse().unwrap());
        assert_eq!(side.home(), Some(address(9)));
        assert!(side.give_up(address(17)) && !side.give_up(address(9)));
        assert_eq!(Side { lodging: None, ..side }.home_in(&["10.0.0.9/32".parse().unwrap()], &[]), None, "a user asked for it");
    }

    proptest! {
        #[test]
        fn a_host_and_its_peers_agree_on_its_home_which_moves_only_when_it_is_lost(turns in turns()) {
            let me = Owner { host: "me".into(), id: "1".into() };
            let (mut side, peer) = (Side::new("10.0.0.0/25".parse().unwrap(), None), Side::new("10.0.0.0/25".parse().unwrap(), None));
            for turn in turns {
                let before = side.home();
                let lost = take(&mut side, &me, &turn);
                let home = side.home();
                prop_assert_eq!(peer.home_in(&side.mine, side.lodging.as_slice()), home);
                prop_assert!(home.is_none_or(|home| side.mine.iter().any(|net| net.contains(&home))), "{:?} {:?}", home, side);
                let stays = before.filter(|home| !lost.is_some_and(|lost| lost.contains(home)));
                prop_assert!(stays.is_none() || stays == home, "{:?} moved to {:?} by {:?}", stays, home, turn);
                prop_assert!(!matches!(turn, Turn::Block(_) | Turn::Borrow(_)) || home.is_some(), "{:?}", side);
            }
        }

        #[test]
        fn no_block_has_two_hosts_whatever_they_do_at_once(acts in acts()) {
            let mut world = World::new();
            for (at, act) in acts.into_iter().filter(|(_, act)| !matches!(act, Act::Wipe)) {
                world.act(at, act);
                prop_assert!(world.holders().values().all(|holders| holders.len() == 1), "{:?}", world.holders());
            }
        }

        #[test]
        fn after_wipes_and_damage_each_block_has_one_host_and_the_store_says_which(acts in acts()) {
            let mut world = World::new();
            acts.into_iter().for_each(|(at, act)| world.act(at, act));
            world.rest();
            let holders = world.holders();
            prop_assert!(holders.values().all(|holders| holders.len() == 1), "{holders:?}");
            let owned = world.records.iter().filter(|(_, found)| found.block.is_owned());
            let recorded: BTreeMap<IpNet, Vec<String>> = owned.map(|(net, found)| (*net, vec![found.block.owner.host.clone()])).collect();
            prop_assert_eq!(&recorded, &holders);
            for (me, side, _) in &world.hosts {
                prop_assert!(side.writes(me, &world.records, 0).is_empty());
            }
        }
    }
}
