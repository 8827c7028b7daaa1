//! Whose this host's blocks are by now, where the store cannot be asked and other hosts can. Pure: what a host asks, what another answers from its
//! roll, and what of the answer counts.
//!
//! A record's version tells when the store took it. At the version where this host's own record last said all that it holds, no other record said
//! it of the same block; so one that does, and is newer, was written by who took the block since. One that is older is what a host says
//! that is itself behind, or what a store says that lost its records and counts from 1 again: it counts for nothing.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::record::Owner;
use super::roll::{Known, Roll};
use super::settle::tell_lost;
use super::side::Side;
use super::{Cluster, State, blocks};

/// What a host that is out of touch with the store holds: whose is it?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inquiry {
    who: Owner,
    /// By subnet.
    blocks: BTreeMap<IpNet, BTreeSet<IpNet>>,
}

/// A block of the asking host's that by the store is another's, or of which an address is that this host had not to give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    subnet: IpNet,
    block: IpNet,
    /// What of the block the other has: all, or one address.
    part: IpNet,
    /// Whose it is.
    host: String,
    /// That of the record which says so (Consul's `ModifyIndex`).
    version: u64,
}

impl Cluster {
    /// What to ask other hosts while the store does not answer. None: this host holds nothing, or has not seen since its start that the store says
    /// so: then nothing can be newer.
    pub fn inquiry(&self) -> Option<Inquiry> {
        self.known(|state| state.vouched.and(inquiry(&self.me, state.sides())))
    }

    /// What this host answers another one, by what it last heard of the store; nothing while it is out of touch itself.
    pub fn testimony(&self, inquiry: &Inquiry) -> Vec<Taken> {
        self.known(|state| if state.in_touch { taken(&state.roll, inquiry) } else { vec![] })
    }

    /// What another host answered: blocks that others took are lost, as if the store had said so. Which.
    pub fn heed(&self, taken: &[Taken]) -> Vec<IpNet> {
        // most answers are empty
        if taken.is_empty() { vec![] } else { self.change(|state| heed(state, taken)) }
    }
}

fn inquiry<'s>(me: &Owner, sides: impl Iterator<Item = &'s Side>) -> Option<Inquiry> {
    let held = sides.filter(|side| !side.mine.is_empty()).map(|side| (side.subnet, side.mine.iter().copied().collect()));
    let blocks: BTreeMap<_, _> = held.collect();
    (!blocks.is_empty()).then(|| Inquiry { who: me.clone(), blocks })
}

/// Of each block only the newest record that has it is believed. A single address of a block says nothing as long as the block is the asking host's: that
/// may have lent it. Where it was forgotten, its blocks were free.
fn taken(roll: &Roll, Inquiry { who, blocks }: &Inquiry) -> Vec<Taken> {
    let of_who = |host: &String, known: &Known| *host == who.host && known.record.id == who.id;
    let own = roll.hosts.get(&who.host).filter(|known| known.version > 0 && of_who(&who.host, known));
    // when the asking host was last heard to have it; 0: it was not
    let heard = |subnet: &IpNet, block: &IpNet| own.filter(|own| has(own, subnet, block)).map_or(0, |own| own.version);
    let mut newest = BTreeMap::<(IpNet, IpNet), Taken>::new();
    // version 0: the store says nothing of it
    for (host, known) in roll.hosts.iter().filter(|(host, known)| known.version > 0 && !of_who(host, known)) {
        for (subnet, asked) in blocks {
            for part in known.record.blocks.get(subnet).into_iter().flatten() {
                let around = || asked.iter().find(|block| blocks::is_one(*part) && block.contains(part) && heard(subnet, block) == 0);
                let Some(block) = asked.get(part).or_else(around) else { continue };
                let taken = Taken { subnet: *subnet, block: *block, part: *part, host: host.clone(), version: known.version };
                let best = newest.entry((*subnet, *block)).or_insert_with(|| taken.clone());
                if best.version < taken.version {
                    *best = taken;
                }
            }
        }
    }
    newest.into_values().filter(|taken| taken.version > heard(&taken.subnet, &taken.block)).collect()
}

fn has(known: &Known, subnet: &IpNet, block: &IpNet) -> bool {
    known.record.blocks.get(subnet).is_some_and(|held| held.contains(block))
}

fn heed(state: &mut State, taken: &[Taken]) -> Vec<IpNet> {
    let Some(vouched) = state.vouched else { return vec![] };
    let (roll, mut lost) = (&state.roll, vec![]);
    for side in state.networks.iter_mut().flat_map(|network| &mut network.sides) {
        let gone: BTreeMap<IpNet, String> =
            taken.iter().filter(|taken| counts(taken, side, roll, vouched)).map(|taken| (taken.block, taken.host.clone())).collect();
        let before = side.clone();
        lost.extend(gone.keys().copied());
        side.lose(gone);
        tell_lost(&before, side);
    }
    lost
}

/// Whether this host holds the block, its own record last said so before the other's did, and it has not heard of the address as one that it lent.
fn counts(taken: &Taken, side: &Side, roll: &Roll, vouched: u64) -> bool {
    let lent = || taken.part != taken.block && roll.within(side.subnet, taken.block).any(|lent| lent == taken.part);
    taken.subnet == side.subnet && taken.version > vouched && side.mine.contains(&taken.block) && !lent()
}

#[cfg(test)]
mod tests {
    use super::super::Wanted;
    use super::super::record::HostRecord;
    use super::super::view::Network;
    use super::*;

    const SUBNET: &str = "10.0.0.0/24";
    /// An address of block 1.
    const SINGLE: &str = "10.0.0.20/32";

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn block(at: u8) -> IpNet {
        IpNet::new([10, 0, 0, at * 16].into(), 28).unwrap()
    }

    fn known(id: &str, blocks: &[IpNet], version: u64) -> Known {
        let blocks = [(net(SUBNET), blocks.to_vec())].into();
        Known { record: HostRecord { id: id.into(), vtep: [192, 0, 2, 1].into(), blocks, own: vec![], homes: vec![] }.into(), version }
    }

    fn heard(records: &[(&str, Known)]) -> Roll {
        let mut roll = Roll::new("peer");
        roll.hear(|_| true, records.iter().map(|(name, known)| ((*name).to_owned(), known.clone())).collect());
        roll
    }

    fn side(mine: &[IpNet]) -> Side {
        Side { mine: mine.to_vec(), ..Side::new(net(SUBNET), None) }
    }

    fn asked(mine: &[IpNet]) -> Option<Inquiry> {
        inquiry(&Owner { host: "me".into(), id: "1".into() }, [&side(mine)].into_iter())
    }

    /// What a host called `peer` answers who holds blocks 1 and 2, after it heard these records: block, holder, version.
    fn answered(records: &[(&str, Known)]) -> Vec<(IpNet, String, u64)> {
        let taken = taken(&heard(records), &asked(&[block(1), block(2)]).unwrap());
        taken.into_iter().map(|taken| (taken.block, taken.host, taken.version)).collect()
    }

    /// A host that holds blocks 1 and 2, as its own record of that version last said.
    fn holder(vouched: Option<u64>, roll: Roll) -> State {
        let wanted = Wanted { subnets: vec![net(SUBNET)], ..Wanted::default() };
        let network = Network { wanted, vni: 1, sides: vec![side(&[block(1), block(2)])] };
        State { vouched, roll, networks: vec![network], ..State::default() }
    }

    /// What that host loses by a word that `part` of a block is that of host a.
    fn loses(mut state: State, block: IpNet, part: IpNet, version: u64) -> Vec<IpNet> {
        let lost = heed(&mut state, &[Taken { subnet: net(SUBNET), block, part, host: "a".into(), version }]);
        let side = &state.networks[0].sides[0];
        assert!(lost.iter().all(|lost| side.lost[lost] == "a" && !side.mine.contains(lost)), "{side:?}");
        assert_eq!(side.mine.len() + lost.len(), 2);
        lost
    }

    #[test]
    fn who_holds_nothing_asks_nothing() {
        assert_eq!(asked(&[]), None);
    }

    #[test]
    fn a_host_answers_with_what_is_anothers_by_the_newest_record_and_with_nothing_else() {
        let mine = || ("me", known("1", &[block(1), block(2)], 5));
        let a = |version| ("a", known("2", &[block(2)], version));
        let is_as = |version| vec![(block(2), "a".to_owned(), version)];
        assert_eq!(answered(&[mine(), ("a", known("2", &[block(3)], 9))]), []);
        assert_eq!(answered(&[("me", known("1", &[block(1)], 9)), a(9)]), is_as(9), "taken in one commit");
        assert_eq!(answered(&[mine(), a(9)]), is_as(9), "of which only one half was heard");
        assert_eq!(answered(&[a(9)]), is_as(9), "from a host that was forgotten");
        assert_eq!(answered(&[mine(), a(4)]), [], "given back before, which was not heard");
        assert_eq!(answered(&[a(9), ("b", known("3", &[block(2)], 12))]), [(block(2), "b".to_owned(), 12)], "from one to the next");
    }

    #[test]
    fn a_host_answers_with_what_it_has_itself_and_what_another_machine_of_the_name_has() {
        for name in ["peer", "me"] {
            assert_eq!(answered(&[(name, known("2", &[block(2)], 9))]), [(block(2), name.to_owned(), 9)]);
        }
    }

    #[test]
    fn a_single_address_is_its_block_only_where_that_is_nobodys() {
        let single = || ("a", known("2", &[net(SINGLE)], 9));
        assert_eq!(answered(&[("me", known("1", &[block(1), block(2)], 5)), single()]), [], "it may be lent");
        assert_eq!(answered(&[single()]), [(block(1), "a".to_owned(), 9)]);
        let borrowed = taken(&heard(&[("a", known("2", &[block(1)], 9))]), &asked(&[net(SINGLE)]).unwrap());
        assert_eq!(borrowed, [], "a block is not each of its addresses");
    }

    #[test]
    fn what_only_a_disk_remembers_or_the_store_lost_is_no_answer() {
        assert_eq!(answered(&[("a", known("2", &[block(2)], 0))]), []);
    }

    #[test]
    fn only_what_is_newer_than_the_own_record_takes_a_block_away() {
        let with = |vouched, version| loses(holder(vouched, Roll::default()), block(2), block(2), version);
        assert_eq!(with(Some(5), 6), [block(2)]);
        // equal; older; of a store that counts from 1 again; nothing to compare with
        for (vouched, version) in [(Some(5), 5), (Some(5), 4), (Some(5000), 30), (None, 6)] {
            assert_eq!(with(vouched, version), [], "own record {vouched:?}, word {version}");
        }
    }

    #[test]
    fn an_address_that_was_lent_takes_nothing_away_and_one_that_was_not_does() {
        let with = |roll| loses(holder(Some(5), roll), block(1), net(SINGLE), 9);
        assert_eq!(with(heard(&[("a", known("2", &[net(SINGLE)], 4))])), []);
        assert_eq!(with(Roll::default()), [block(1)]);
    }

    #[test]
    fn what_a_host_does_not_hold_it_does_not_lose() {
        assert_eq!(loses(holder(Some(5), Roll::default()), block(3), block(3), 6), []);
    }
}
