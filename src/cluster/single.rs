//! One address outside this host's blocks, which a user asked for: claimed if its block is nobody's, else asked of the block's owner.

use std::net::IpAddr;

use ipnet::IpNet;
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::error::Error;
use super::record::{Ask, Owner, Records, ask_key, asked, block_key, decode, encode, tell_single};
use super::side::Side;
use super::{Cluster, blocks};
use crate::store::{Entry, Expect, Key, Op, StoreError};

/// So often others may be faster.
const TRIES: usize = 20;
/// Between two looks for the answer.
const LOOK: std::time::Duration = std::time::Duration::from_millis(100);

/// What became of a try.
enum Found {
    Ours,
    Owner(Owner),
}

impl Cluster {
    /// Makes one address of the subnet this host's, if it is not yet in one of its blocks. Within 10 s.
    pub async fn claim(&self, subnet: IpNet, address: IpAddr) -> Result<(), Error> {
        let single = blocks::single(address);
        self.change(|state| state.asking.insert(single));
        let claimed = self.within(format!("claim {address} in {subnet}"), self.claim_now(subnet, address)).await;
        self.change(|state| {
            state.asking.remove(&single);
            if claimed.is_err() {
                state.unsettled.insert(subnet);
            }
        });
        claimed
    }

    async fn claim_now(&self, subnet: IpNet, address: IpAddr) -> Result<(), Error> {
        let side = self.known_side(subnet)?;
        if !subnet.contains(&address) || blocks::usable(subnet, blocks::single(address), &side.reserved).next().is_none() {
            return Err(Error::Unusable { subnet, address });
        }
        match self.claim_free(subnet, address).await? {
            Found::Ours => Ok(()),
            Found::Owner(owner) => self.ask(subnet, address, &owner).await,
        }
    }

    /// Claims it if nobody has its block. That is looked at in the same transaction; who claims the block at the same moment looks
    /// for single addresses afterwards.
    async fn claim_free(&self, subnet: IpNet, address: IpAddr) -> Result<Found, Error> {
        let _alone = self.writes.lock().await;
        for _ in 0..TRIES {
            self.prepare().await?;
            let side = self.known_side(subnet)?;
            if side.mine.iter().any(|block| block.contains(&address)) {
                return Ok(Found::Ours);
            }
            let records = self.read(subnet).await?;
            if let Some(owner) = side.owner(&records, address).filter(|owner| **owner != self.me) {
                return strangers(&side, &records, address, owner);
            }
            match self.commit(self.single_ops(&side, address, &records)).await {
                Ok(()) => return self.hold_single(subnet, address).map(|()| Found::Ours),
                Err(StoreError::Conflict { .. }) => self.change(|state| state.unsettled_record = true),
                Err(cause) => return Err(Error::store(format!("claim {address} in {subnet}"))(cause)),
            }
        }
        Err(Error::Contended { action: format!("claim {address} in {subnet}") })
    }

    fn single_ops(&self, side: &Side, address: IpAddr, records: &Records) -> Vec<Op> {
        let subnet = side.subnet;
        let expect = |net: IpNet| records.get(&net).map_or(Expect::Absent, |found| Expect::Version(found.version));
        let (single, block) = (blocks::single(address), side.block_of(address));
        let claim = Op::Put(block_key(subnet, single), encode(&Side::record(&self.me, rand::random())), expect(single));
        // A block that the store still says is this host's is about to be given back.
        let free = Op::Delete(block_key(subnet, block), expect(block));
        let told = self.tell_held(&[with_single(side.clone(), address)]);
        [claim, free, tell_single(subnet)].into_iter().chain(told).collect()
    }

    /// The store says that it is this host's: all hosts are told.
    async fn tell_single_held(&self, subnet: IpNet, address: IpAddr) -> Result<(), Error> {
        let _alone = self.writes.lock().await;
        for _ in 0..TRIES {
            self.prepare().await?;
            match self.commit(self.tell_held(&[with_single(self.known_side(subnet)?, address)])).await {
                Ok(()) => return self.hold_single(subnet, address),
                Err(StoreError::Conflict { .. }) => self.change(|state| state.unsettled_record = true),
                Err(cause) => return Err(Error::store(format!("claim {address} in {subnet}"))(cause)),
            }
        }
        Err(Error::Contended { action: format!("claim {address} in {subnet}") })
    }

    fn hold_single(&self, subnet: IpNet, address: IpAddr) -> Result<(), Error> {
        let hold = |side: &mut Side| *side = with_single(side.clone(), address);
        self.change(|state| state.side(subnet).map(hold)).ok_or(Error::NotJoined { subnet })
    }

    /// Gives one back that was claimed. If the store does not take it now it is done later.
    pub async fn release(&self, subnet: IpNet, address: IpAddr) {
        let held = self.change(|state| {
            let side = state.side(subnet)?;
            let at = side.mine.iter().position(|block| *block == blocks::single(address) && side.is_single(*block))?;
            Some(side.mine.remove(at))
        });
        if held.is_some() {
            self.settle([subnet].into()).await;
        }
    }

    async fn ask(&self, subnet: IpNet, address: IpAddr, owner: &Owner) -> Result<(), Error> {
        let silent = || Error::Silent { subnet, address, host: owner.host.clone() };
        if self.known(|state| state.roll.gone.contains_key(&owner.host)) {
            return Err(silent());
        }
        let (key, failed) =
            (ask_key(&owner.host, address, &self.me.host), || Error::store(format!("ask host {} for {address}", owner.host)));
        let ask = Ask { who: self.me.clone(), subnet, refused: None };
        self.store.put(&key, encode(&ask), Expect::Any).await.map_err(failed())?;
        let deadline = Instant::now() + self.times.answer;
        while Instant::now() < deadline {
            sleep(LOOK).await;
            match self.store.get(&key).await.map_err(failed())?.map(|entry| decode::<Ask>(&entry)) {
                Some(Some(Ask { refused: Some(why), .. })) => {
                    self.withdraw(&key).await;
                    return Err(Error::Taken { subnet, address, host: owner.host.clone(), why });
                }
                Some(_) => {}
                None => break,
            }
        }
        self.withdraw(&key).await;
        // With the question gone the owner can no longer say yes; what it said is there.
        let records = self.read(subnet).await?;
        let granted = records.get(&blocks::single(address)).is_some_and(|found| found.block.owner == self.me);
        if granted { self.tell_single_held(subnet, address).await } else { Err(silent()) }
    }

    async fn withdraw(&self, key: &Key) {
        if let Err(error) = self.store.delete(key, Expect::Any).await {
            debug!("withdraw {key}: {error}");
        }
    }

    /// Answers the questions of other hosts for addresses of this one's blocks.
    pub(super) async fn answer(&self, entries: &[Entry]) {
        for entry in entries {
            let (Some(address), Some(ask)) = (asked(&entry.key), decode::<Ask>(entry)) else { continue };
            if ask.refused.is_none()
                && let Err(error) = self.answer_one(entry, address, ask).await
            {
                debug!("answer {}: {error}", entry.key);
            }
        }
    }

    /// Yes is one transaction: the question goes, the address is the asker's. A question that was withdrawn is not answered.
    async fn answer_one(&self, entry: &Entry, address: IpAddr, ask: Ask) -> Result<(), StoreError> {
        let Some(lender) = self.lender.get() else { return Ok(()) };
        let own = self.holds(ask.subnet, address);
        let lent = if own { lender.lend(address, &ask.who.host).await } else { Err("it was, and gave it back; try again".to_owned()) };
        if let Err(why) = lent {
            let refusal = Ask { refused: Some(why), ..ask };
            return self.store.put(&entry.key, encode(&refusal), Expect::Version(entry.version)).await.map(drop);
        }
        let done = Op::Delete(entry.key.clone(), Expect::Version(entry.version));
        let given = self.store.commit([done].into_iter().chain(self.grant_ops(ask.subnet, address, &ask.who)).collect()).await;
        // Of every other failure it is not known whether it is done: then the address stays lent until the next start.
        if let Err(StoreError::Conflict { .. }) = &given {
            lender.restore(address).await;
        }
        given.map(drop)
    }
}

fn with_single(mut side: Side, address: IpAddr) -> Side {
    side.mine.retain(|block| *block != blocks::single(address));
    side.mine.push(blocks::single(address));
    side
}

/// Another host's block can be asked for, not an address that it asked for itself.
fn strangers(side: &Side, records: &Records, address: IpAddr, owner: &Owner) -> Result<Found, Error> {
    if records.contains_key(&blocks::single(address)) {
        let (host, why) = (owner.host.clone(), "asked for by name".to_owned());
        return Err(Error::Taken { subnet: side.subnet, address, host, why });
    }
    Ok(Found::Owner(owner.clone()))
}
