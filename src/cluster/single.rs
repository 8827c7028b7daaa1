//! One address outside this host's blocks. A user named it: it is claimed if its block is nobody's, else asked of the block's owner. Or no
//! block is left: then any will do, of any owner.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rand::seq::SliceRandom;
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::error::Error;
use super::record::{Ask, Owner, Records, ask_key, asked, block_key, decode, encode, tell_single};
use super::side::Side;
use super::view::heard_within;
use super::{Cluster, Lender, State, blocks, contend};
use crate::store::{Entry, Expect, Key, Op, StoreError};

/// Between two looks for the answer.
const LOOK: std::time::Duration = std::time::Duration::from_millis(100);

/// So many hosts are asked at once.
const ASKED: usize = 8;

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
            Found::Owner(owner) => self.ask(subnet, address, owner.host).await,
        }
    }

    /// Claims it if nobody has its block. That is looked at in the same transaction, which also says so to whoever claims the block meanwhile.
    async fn claim_free(&self, subnet: IpNet, address: IpAddr) -> Result<Found, Error> {
        let _alone = self.writes.lock().await;
        let action = format!("claim {address} in {subnet}");
        let claim = || async {
            self.prepare().await?;
            let side = self.known_side(subnet)?;
            if side.mine.iter().any(|block| block.contains(&address)) {
                return Ok(Some(Found::Ours));
            }
            let records = self.read(subnet).await?;
            if let Some(owner) = side.owner(&records, address).filter(|owner| **owner != self.me) {
                return strangers(&side, &records, address, owner).map(Some);
            }
            let done = self.commit_own(self.single_ops(&side, address, &records)).await.map_err(Error::store(&action))?;
            done.map(|()| self.hold_single(subnet, address, Side::hold_single).map(|()| Found::Ours)).transpose()
        };
        contend(&action, claim).await
    }

    fn single_ops(&self, side: &Side, address: IpAddr, records: &Records) -> Vec<Op> {
        let subnet = side.subnet;
        let expect = |net: IpNet| Expect::found(records.get(&net).map(|found| found.version));
        let (single, block) = (blocks::single(address), side.block_of(address));
        let claim = Op::Put(block_key(subnet, single), encode(&Side::record(&self.me, rand::random())), expect(single));
        // A block that the store still says is this host's is about to be given back.
        let free = Op::Delete(block_key(subnet, block), expect(block));
        let told = self.tell_held(&[with_single(side.clone(), address, Side::hold_single)]);
        [claim, free, tell_single(subnet)].into_iter().chain(told).collect()
    }

    /// The store says that it is this host's: all hosts are told. Whoever calls is alone in writing.
    async fn hold_given(&self, subnet: IpNet, address: IpAddr, hold: fn(&mut Side, IpAddr)) -> Result<(), Error> {
        let action = format!("claim {address} in {subnet}");
        let tell = || async {
            self.prepare().await?;
            let told = self.tell_held(&[with_single(self.known_side(subnet)?, address, hold)]);
            let done = self.commit_own(told).await.map_err(Error::store(&action))?;
            done.map(|()| self.hold_single(subnet, address, hold)).transpose()
        };
        contend(&action, tell).await
    }

    fn hold_single(&self, subnet: IpNet, address: IpAddr, hold: fn(&mut Side, IpAddr)) -> Result<(), Error> {
        self.change(|state| state.side(subnet).map(|side| hold(side, address))).ok_or(Error::NotJoined { subnet })
    }

    /// Gives one back that was claimed. If the store does not take it now it is done later.
    pub async fn release(&self, subnet: IpNet, address: IpAddr) {
        if self.change(|state| state.side(subnet).is_some_and(|side| side.give_up(address))) {
            self.settle([subnet].into()).await;
        }
    }

    async fn ask(&self, subnet: IpNet, address: IpAddr, host: String) -> Result<(), Error> {
        let refused = self.ask_all(subnet, address, std::slice::from_ref(&host)).await?.pop();
        let _alone = self.writes.lock().await;
        let records = self.read(subnet).await?;
        if records.get(&blocks::single(address)).is_some_and(|found| found.block.owner == self.me) {
            return self.hold_given(subnet, address, Side::hold_single).await;
        }
        Err(match refused {
            Some((host, why)) => Error::Taken { subnet, address, host, why },
            None => Error::Silent { subnet, address, host },
        })
    }

    /// Makes any address this host's that another has free, or its own on the network if it has none. Within 10 s.
    pub async fn borrow(&self, subnet: IpNet) -> Result<IpAddr, Error> {
        let borrowed = self.within(format!("borrow an address of {subnet}"), self.borrow_now(subnet));
        self.borrowing(subnet, borrowed).await
    }

    /// What is given meanwhile is no stray, nor is it before all have heard of it.
    pub(super) async fn borrowing<T>(&self, subnet: IpNet, borrow: impl Future<Output = T>) -> T {
        let heard_within = self.known(|state| heard_within(&state.roll, &self.times));
        let until = |time| self.change(|state| state.borrowing.insert(subnet, Instant::now() + time));
        until(self.times.limit);
        let borrowed = borrow.await;
        until(heard_within);
        borrowed
    }

    async fn borrow_now(&self, subnet: IpNet) -> Result<IpAddr, Error> {
        self.register().await?;
        let lent = self.ask_around(&self.known_side(subnet)?, || self.hold_granted(subnet)).await?;
        lent.map_err(|said| Error::NoneLent { subnet, said })
    }

    /// Asks the hosts that have blocks for any address, some at a time, until `take` finds what one of them gave. Or what each said.
    pub(super) async fn ask_around<A>(&self, side: &Side, take: impl Fn() -> A) -> Result<Result<IpAddr, Vec<(String, String)>>, Error>
    where
        A: Future<Output = Result<Option<IpAddr>, Error>>,
    {
        // More may have been given than was needed.
        if let Some(address) = take().await? {
            return Ok(Ok(address));
        }
        let mut said = Vec::new();
        for some in self.lenders(side).await?.chunks(ASKED) {
            let refused = self.ask_all(side.subnet, side.subnet.network(), some).await?;
            if let Some(address) = take().await? {
                return Ok(Ok(address));
            }
            let silent = some.iter().filter(|host| !refused.iter().any(|(other, _)| other == *host));
            said.extend(silent.map(|host| (host.clone(), "does not answer".to_owned())).collect::<Vec<_>>());
            said.extend(refused);
        }
        Ok(Err(said))
    }

    /// The other hosts that have blocks, in any order.
    async fn lenders(&self, side: &Side) -> Result<Vec<String>, Error> {
        let records = self.read(side.subnet).await?;
        let owners: BTreeSet<String> = side.others(&self.me, &records).map(|(_, found)| found.block.owner.host.clone()).collect();
        let mut owners: Vec<String> = owners.into_iter().filter(|host| !host.is_empty()).collect();
        owners.shuffle(&mut rand::rng());
        Ok(owners)
    }

    /// Takes an address that another host gave this one, and that nobody here named.
    async fn hold_granted(&self, subnet: IpNet) -> Result<Option<IpAddr>, Error> {
        let _alone = self.writes.lock().await;
        let Some(address) = self.granted(&self.known_side(subnet)?).await? else { return Ok(None) };
        self.hold_given(subnet, address, Side::hold_borrowed).await?;
        Ok(Some(address))
    }

    /// An address that another host gave this one, and that nobody here named. Whoever calls is alone in writing.
    pub(super) async fn granted(&self, side: &Side) -> Result<Option<IpAddr>, Error> {
        let records = self.read(side.subnet).await?;
        let asking = self.known(|state| state.asking.clone());
        let ours = |net: &IpNet| side.is_single(*net) && records[net].block.owner == self.me;
        let fresh = records.keys().filter(|net| ours(net) && !side.mine.contains(net) && !asking.contains(net));
        let granted: Vec<IpNet> = fresh.copied().collect();
        let Some(address) = granted.first().map(IpNet::addr) else { return Ok(None) };
        self.change(|state| state.granted.insert(side.subnet, granted));
        Ok(Some(address))
    }

    /// Asks hosts for an address until one has said yes, or each no, or time is over; who said no, and why. With the questions gone nobody can
    /// say yes any more: what was said is there.
    async fn ask_all(&self, subnet: IpNet, address: IpAddr, hosts: &[String]) -> Result<Vec<(String, String)>, Error> {
        let failed = || Error::store(format!("ask hosts {} for an address of {subnet}", hosts.join(", ")));
        // one that was seen gone a moment ago may be on its way back: a store that lost all says it of everybody
        let is_back = |(since, _): &(Instant, _)| since.elapsed() < self.times.answer;
        let there = |host: &&String| self.known(|state| state.roll.gone.get(*host).is_none_or(is_back));
        let asked: Vec<(String, Key)> =
            hosts.iter().filter(there).map(|host| (host.clone(), ask_key(host, address, &self.me.host))).collect();
        if asked.is_empty() {
            return Ok(vec![]);
        }
        let ask = encode(&Ask { who: self.me.clone(), subnet, refused: None });
        self.store.commit(asked.iter().map(|(_, key)| Op::Put(key.clone(), ask.clone(), Expect::Any)).collect()).await.map_err(failed())?;
        let refused = self.answers(&asked).await;
        let withdrawn = self.store.commit(asked.into_iter().map(|(_, key)| Op::Delete(key, Expect::Any)).collect()).await;
        withdrawn.map_err(failed())?;
        refused.map_err(failed())
    }

    async fn answers(&self, asked: &[(String, Key)]) -> Result<Vec<(String, String)>, StoreError> {
        let deadline = Instant::now() + self.times.answer;
        loop {
            let (mut refused, mut granted) = (Vec::new(), false);
            for (host, key) in asked {
                match self.store.get(key).await?.map(|entry| decode::<Ask>(&entry)) {
                    Some(Some(Ask { refused: Some(why), .. })) => refused.push((host.clone(), why)),
                    Some(_) => {}
                    None => granted = true,
                }
            }
            if granted || refused.len() == asked.len() || Instant::now() > deadline {
                return Ok(refused);
            }
            sleep(LOOK).await;
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
        let address = match self.lent(lender, ask.subnet, address, &ask.who.host).await {
            Ok(address) => address,
            Err(why) => {
                let refusal = Ask { refused: Some(why), ..ask };
                return self.store.put(&entry.key, encode(&refusal), Expect::Version(entry.version)).await.map(drop);
            }
        };
        let done = Op::Delete(entry.key.clone(), Expect::Version(entry.version));
        let record = encode(&Side::record(&ask.who, rand::random()));
        let give = Op::Put(block_key(ask.subnet, blocks::single(address)), record, Expect::Absent);
        let given = self.store.commit(vec![done, give, tell_single(ask.subnet)]).await;
        // Of every other failure it is not known whether it is done.
        match &given {
            Err(StoreError::Conflict { .. }) => lender.restore(address).await,
            _ => self.expect_lent(ask.subnet, address),
        }
        given.map(drop)
    }

    /// Whoever has it tells so in the time that a call has, and this host hears of it.
    fn expect_lent(&self, subnet: IpNet, address: IpAddr) {
        self.change(|state| {
            let heard = Instant::now() + self.times.limit + heard_within(&state.roll, &self.times);
            state.lent.insert((subnet, address), heard)
        });
    }

    /// What was lent and is in nobody's name has come back before this host heard that it was gone. Not while the store is made whole: it may
    /// say so of what somebody has.
    pub(super) async fn recall(&self) {
        let is_due = |(_, at): &(&(IpNet, IpAddr), &Instant)| **at <= Instant::now();
        let due = |state: &State| state.lent.iter().filter(is_due).map(|(lent, _)| *lent).collect::<Vec<_>>();
        for (subnet, address) in self.known(|state| if state.roll.rebuilding.is_none() { due(state) } else { vec![] }) {
            let found = self.store.get(&block_key(subnet, blocks::single(address))).await;
            if !matches!(found, Ok(None)) {
                let later = Instant::now() + self.times.limit;
                self.change(|state| {
                    state.lent.entry((subnet, address)).and_modify(|at| *at = later);
                });
            } else if let (Some(_), Some(lender)) = (self.change(|state| state.lent.remove(&(subnet, address))), self.lender.get()) {
                lender.restore(address).await;
            }
        }
    }

    /// The address that another host may have, kept for it.
    async fn lent(&self, lender: &Arc<dyn Lender>, subnet: IpNet, wanted: IpAddr, to: &str) -> Result<IpAddr, String> {
        let address = if wanted == subnet.network() { lender.lend_any(subnet, to).await? } else { wanted };
        match self.holds(subnet, address) {
            true if wanted == address => lender.lend(address, to).await.map(|()| address),
            true => Ok(address),
            false if wanted == address => Err("it was, and gave it back; try again".to_owned()),
            // One that it borrowed itself and is just giving back.
            false => {
                lender.restore(address).await;
                Err("it has none of its own".to_owned())
            }
        }
    }
}

fn with_single(mut side: Side, address: IpAddr, hold: fn(&mut Side, IpAddr)) -> Side {
    hold(&mut side, address);
    side
}

/// Another host's block can be asked for, not an address that it asked for itself.
fn strangers(side: &Side, records: &Records, address: IpAddr, owner: &Owner) -> Result<Found, Error> {
    if records.contains_key(&blocks::single(address)) {
        let (host, why) = (owner.host.clone(), "asked for by name, or borrowed".to_owned());
        return Err(Error::Taken { subnet: side.subnet, address, host, why });
    }
    Ok(Found::Owner(owner.clone()))
}
