//! Making the store say what this host holds: after a restart, after the store lost its records, after what it did not take in time.

use std::collections::BTreeSet;

use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::admit::of;
use super::error::Error;
use super::record::{HostRecord, Records, block_at, block_key, encode, subnet_at, tell_single};
use super::side::{Side, Write};
use super::text::list;
use super::{Cluster, State, blocks, contend, unless_contended};
use crate::store::{Expect, Op, PORTABLE_OPS, StoreError};

const ACTION: &str = "write what this host holds";

/// A deletion counts twice, a single address as well; and three say what of it all hosts are told.
pub(super) const AT_ONCE: usize = (PORTABLE_OPS - 3) / 2;

impl Cluster {
    /// Gives the blocks back and forgets the network. If the store does not take it now it is done later.
    pub async fn leave(&self, subnets: &[IpNet]) {
        let subnets: BTreeSet<IpNet> = subnets.iter().map(IpNet::trunc).collect();
        self.change(|state| {
            state.networks.retain(|network| !network.sides.iter().any(|side| subnets.contains(&side.subnet)));
            state.macs.retain(|(subnet, _), _| !subnets.contains(subnet));
            state.unsettled.extend(&subnets);
        });
        self.settle(subnets).await;
    }

    /// Of these subnets, and of all where this host's record is not as it should be. Tries once; what fails stays to be done. Whether it
    /// was done.
    pub(super) async fn settle(&self, subnets: BTreeSet<IpNet>) -> bool {
        self.change(|state| state.unsettled.retain(|subnet| !subnets.contains(subnet)));
        let settled = self.within(ACTION.to_owned(), self.settle_alone(&subnets)).await;
        if let Err(error) = &settled {
            self.tell(error);
            self.change(|state| {
                state.unsettled.extend(subnets);
                state.unsettled_record = true;
                // The others could not write either.
                if state.roll.rebuilding.is_some() {
                    state.roll.rebuilding = Some(Instant::now() + self.times.rebuild);
                }
            });
        }
        settled.is_ok()
    }

    async fn settle_alone(&self, subnets: &BTreeSet<IpNet>) -> Result<(), Error> {
        let _alone = self.writes.lock().await;
        self.register().await?;
        self.settle_now(subnets).await
    }

    /// The blocks first, then the record that tells of them: while it is gone, the others go on with the one before. Whoever calls is alone
    /// in writing.
    pub(super) async fn settle_now(&self, subnets: &BTreeSet<IpNet>) -> Result<(), Error> {
        let left = Mutex::default();
        contend(ACTION, || self.settle_some(subnets, &left)).await?;
        for subnet in left.into_inner() {
            self.retire(subnet).await?;
        }
        Ok(())
    }

    /// As much as one commit takes; none: that was not all, or somebody else was faster. Which networks nobody is left in then, too.
    async fn settle_some(&self, subnets: &BTreeSet<IpNet>, left: &Mutex<BTreeSet<IpNet>>) -> Result<Option<()>, Error> {
        let found = self.own_record().await.map_err(Error::store(ACTION))?;
        let subnets = self.change(|state| self.doubtful(state, found.as_ref(), subnets));
        let mut writes = vec![];
        for subnet in subnets {
            let (changes, alone) = self.changes(subnet).await?;
            left.lock().extend(alone.then_some(subnet));
            writes.extend(changes.into_iter().map(|write| write_ops(subnet, write)));
        }
        let whole = writes.len() <= AT_ONCE;
        let mut ops: Vec<Op> = writes.into_iter().take(AT_ONCE).flatten().collect();
        let told = self.known(|state| state.record(&self.me, &[]));
        if whole && found != told {
            ops.extend(self.tell_held(&[]));
        }
        let done = unless_contended(self.commit(ops).await).map_err(Error::store(ACTION))?.filter(|()| whole);
        if done.is_some() {
            self.change(|state| state.unsettled_record = told != state.record(&self.me, &[]));
        }
        Ok(done)
    }

    /// What to write of a subnet, and whether with that it is nobody's any more.
    async fn changes(&self, subnet: IpNet) -> Result<(Vec<Write>, bool), Error> {
        self.settle_macs(subnet).await?;
        let records = self.read(subnet).await?;
        let (joined, writes) = self.decide(subnet, &records);
        let alone = !joined && records.values().all(|found| found.block.owner.host == self.me.host);
        let left = alone && (!writes.is_empty() || self.made(subnet).await.map_err(Error::store(ACTION))?);
        Ok((writes, left))
    }

    /// The subnets whose blocks have to be looked at: these, and those of which this host's record does not say what it holds. If it is gone,
    /// so are those of the others.
    fn doubtful(&self, state: &mut State, found: Option<&HostRecord>, subnets: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
        let found = found.filter(|found| found.id == self.me.id);
        if found.is_none() && state.sides().any(Side::is_told) {
            info!("the store lost its record of this host: it is written again, and what was heard of others before counts meanwhile");
            state.roll.rebuilding = Some(Instant::now() + self.times.rebuild);
        }
        let wanted = state.record(&self.me, &[]);
        let differs = |side: &&Side| {
            let (subnet, wanted) = (&side.subnet, wanted.as_ref());
            found.and_then(|found| found.blocks.get(subnet)) != wanted.and_then(|wanted| wanted.blocks.get(subnet))
        };
        let differing = state.sides().filter(differs).map(|side| side.subnet);
        let strange =
            found.iter().flat_map(|found| found.blocks.keys()).filter(|subnet| !state.sides().any(|side| side.subnet == **subnet));
        subnets.iter().copied().chain(differing).chain(strange.copied()).collect()
    }

    /// What of a subnet's records is another's is lost. Whether this host takes part, and what to write.
    fn decide(&self, subnet: IpNet, records: &Records) -> (bool, Vec<Write>) {
        self.change(|state| {
            let asking = state.asking.clone();
            let any = state.borrowing.contains_key(&subnet);
            let Some(side) = state.side(subnet) else { return (false, Side::new(subnet, None).writes(&self.me, records, rand::random())) };
            let before = side.clone();
            side.hear(&self.me, records);
            tell_lost(&before, side);
            let mut writes = side.writes(&self.me, records, rand::random());
            let asked = |block: &IpNet, side: &Side| asking.contains(block) || any && side.is_single(*block);
            writes.retain(|write| !matches!(write, Write::Delete(block, _) if asked(block, side)));
            (true, writes)
        })
    }

    /// Whether this host made the network's record. Who only failed to join leaves the record alone: to mark it would fail all others that join.
    async fn made(&self, subnet: IpNet) -> Result<bool, StoreError> {
        let (networks, _) = self.networks().await?;
        Ok(of(&networks, subnet).is_some_and(|at| networks.networks[at].made_by == self.me.host))
    }

    /// The same for the record of all networks: puts back those of this host's that are not there.
    pub(super) async fn settle_networks(&self) -> bool {
        self.change(|state| state.unsettled_networks = false);
        let settled = self.within("write the networks' record".to_owned(), self.settle_networks_alone()).await;
        if let Err(error) = &settled {
            self.tell(error);
            self.change(|state| state.unsettled_networks = true);
        }
        settled.is_ok()
    }

    async fn settle_networks_alone(&self) -> Result<(), Error> {
        let _alone = self.writes.lock().await;
        self.register().await?;
        for network in self.known(|state| state.networks.clone()) {
            let subnets = network.wanted.agreement().subnets;
            match self.admitted(&network.wanted, Some(network.vni)).await {
                Ok((vni, _)) => self.renumber(&subnets, vni),
                Err(refused @ (Error::Overlap { .. } | Error::Differs { .. })) => self.fence(&subnets, &refused),
                Err(refused @ Error::VniHere { .. }) => error!("{refused}"),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Another host made the record anew, before this one, with another number.
    fn renumber(&self, subnets: &[IpNet], vni: u32) {
        self.change(|state| {
            let networks = state.networks.iter_mut().filter(|network| network.vni != vni);
            for network in networks.filter(|network| network.wanted.agreement().subnets == subnets) {
                warn!("the network of {} has VNI {vni} now, it had {}", list(subnets), network.vni);
                network.vni = vni;
            }
        });
    }

    /// This host uses nothing of a network any more.
    fn fence(&self, subnets: &[IpNet], why: &Error) {
        error!("{why}; nothing of it is used on this host any more");
        self.change(|state| {
            let sides = state.networks.iter_mut().flat_map(|network| &mut network.sides);
            sides.filter(|side| subnets.contains(&side.subnet)).for_each(Side::lose_all);
        });
    }

    /// Another machine has this host's name, and with it all that it had.
    pub(super) fn fence_all(&self, why: &Error) {
        let subnets: Vec<IpNet> = self.known(|state| state.sides().filter(|side| !side.mine.is_empty()).map(|side| side.subnet).collect());
        if !subnets.is_empty() {
            self.fence(&subnets, why);
        }
    }

    /// Looks for blocks of this host in networks that it has no part in: a crash left them.
    pub(super) async fn sweep(&self) -> Result<(), Error> {
        let entries = self.all_of(&self.me.host).await.map_err(Error::store("read the blocks of all networks"))?;
        let subnets: BTreeSet<IpNet> = entries.iter().filter_map(|entry| subnet_at(&entry.key)).collect();
        let recorded: BTreeSet<(IpNet, IpNet)> = entries.iter().filter_map(|entry| block_at(&entry.key)).collect();
        self.change(|state| {
            let strange = subnets.into_iter().filter(|subnet| !state.sides().any(|side| side.subnet == *subnet));
            let of = |side: &Side| -> BTreeSet<IpNet> {
                recorded.iter().filter(|(subnet, _)| *subnet == side.subnet).map(|(_, block)| *block).collect()
            };
            let differing = state.sides().filter(|side| of(side) != side.mine.iter().copied().collect());
            let unsettled: Vec<IpNet> = strange.chain(differing.map(|side| side.subnet)).collect();
            state.unsettled.extend(unsettled);
            state.unsettled_record = true;
        });
        Ok(())
    }
}

fn write_ops(subnet: IpNet, write: Write) -> Vec<Op> {
    match write {
        Write::Put(block, record, expect) => {
            let single = blocks::is_one(block).then(|| tell_single(subnet));
            [Op::Put(block_key(subnet, block), encode(&record), expect)].into_iter().chain(single).collect()
        }
        Write::Delete(block, version) => vec![Op::Delete(block_key(subnet, block), Expect::Version(version))],
    }
}

pub(super) fn tell_lost(before: &Side, now: &Side) {
    for (block, owner) in now.lost.iter().filter(|(block, _)| before.mine.contains(block)) {
        error!(
            "{block} of {} belongs to host {owner} now: this host was out of touch for too long. Restart the containers with its addresses: they get others",
            now.subnet
        );
    }
}
