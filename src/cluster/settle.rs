//! Making the store say what this host holds: after a restart, after the store lost its records, after what it did not take in time.

use ipnet::IpNet;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::Cluster;
use super::error::Error;
use super::record::{Records, block_key, encode, subnet_at};
use super::side::{Side, Write};
use super::text::list;
use crate::store::{Expect, Op, PORTABLE_OPS, StoreError};

/// A deletion counts twice.
pub(super) const AT_ONCE: usize = PORTABLE_OPS / 2;
/// So often others may be faster.
pub(super) const TRIES: usize = 20;

impl Cluster {
    /// Gives the blocks back and forgets the network. If the store does not take it now it is done later.
    pub async fn leave(&self, subnets: &[IpNet]) {
        let subnets: std::collections::BTreeSet<IpNet> = subnets.iter().map(IpNet::trunc).collect();
        self.change(|state| {
            state.networks.retain(|network| !network.sides.iter().any(|side| subnets.contains(&side.subnet)));
            state.macs.retain(|(subnet, _), _| !subnets.contains(subnet));
            state.unsettled.extend(&subnets);
        });
        for subnet in subnets {
            self.settle(subnet).await;
        }
    }

    /// Tries once; what fails stays to be done. Whether it was done.
    pub(super) async fn settle(&self, subnet: IpNet) -> bool {
        self.change(|state| state.unsettled.remove(&subnet));
        let settled = self.within(format!("settle the blocks of {subnet}"), self.settle_alone(subnet)).await;
        if let Err(error) = &settled {
            self.tell(error);
            self.change(|state| {
                state.unsettled.insert(subnet);
                // The others could not write either.
                let rebuild = self.times.rebuild;
                state.side(subnet).into_iter().for_each(|side| side.rebuilding = side.rebuilding.map(|_| Instant::now() + rebuild));
            });
        }
        settled.is_ok()
    }

    async fn settle_alone(&self, subnet: IpNet) -> Result<(), Error> {
        let _alone = self.writes.lock().await;
        self.register().await?;
        self.settle_macs(subnet).await?;
        for _ in 0..TRIES {
            let records = self.read(subnet).await?;
            let (joined, writes) = self.decide(subnet, &records);
            if writes.is_empty() {
                return if joined || !records.is_empty() { Ok(()) } else { self.retire(subnet).await };
            }
            let ops = writes.into_iter().take(AT_ONCE).map(|write| op(subnet, write)).collect();
            match self.store.commit(ops).await {
                Ok(_) | Err(StoreError::Conflict { .. }) => {}
                Err(cause) => return Err(Error::store(format!("write the blocks of {subnet}"))(cause)),
            }
        }
        Err(Error::Contended { action: format!("write the blocks of {subnet}") })
    }

    /// Hears what the store says, and whether this host takes part, and what to write.
    fn decide(&self, subnet: IpNet, records: &Records) -> (bool, Vec<Write>) {
        self.change(|state| {
            let asking = state.asking.clone();
            let any = state.borrowing.contains_key(&subnet);
            let Some(side) = state.side(subnet) else { return (false, Side::new(subnet, None).writes(&self.me, records, rand::random())) };
            let before = side.clone();
            side.hear(&self.me, records, Instant::now(), self.times.rebuild);
            tell_lost(&before, side);
            let mut writes = side.writes(&self.me, records, rand::random());
            let asked = |block: &IpNet, side: &Side| asking.contains(block) || any && side.is_single(*block);
            writes.retain(|write| !matches!(write, Write::Delete(block, _) if asked(block, side)));
            (true, writes)
        })
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
            for side in sides.filter(|side| subnets.contains(&side.subnet)) {
                side.lost.extend(side.mine.drain(..).map(|block| (block, String::new())));
            }
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
        let subnets: Vec<IpNet> = entries.iter().filter_map(|entry| subnet_at(&entry.key)).collect();
        self.change(|state| {
            let strange = subnets.into_iter().filter(|subnet| !state.sides().any(|side| side.subnet == *subnet));
            let strange: Vec<IpNet> = strange.collect();
            state.unsettled.extend(strange);
        });
        Ok(())
    }
}

fn op(subnet: IpNet, write: Write) -> Op {
    match write {
        Write::Put(block, record, expect) => Op::Put(block_key(subnet, block), encode(&record), expect),
        Write::Delete(block, version) => Op::Delete(block_key(subnet, block), Expect::Version(version)),
    }
}

fn tell_lost(before: &Side, now: &Side) {
    for (block, owner) in now.lost.iter().filter(|(block, _)| before.mine.contains(block)) {
        error!(
            "{block} of {} belongs to host {owner} now: this host was away for too long. Remove the containers with its addresses",
            now.subnet
        );
    }
    if before.rebuilding.is_none() && now.rebuilding.is_some() {
        info!(subnet = %now.subnet, "the store lost its records: this host writes its own again and relies on what it heard before");
    }
}
