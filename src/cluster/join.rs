//! Taking part in a network, and one more block of it.

use ipnet::IpNet;
use tokio::time::Instant;
use tracing::{info, warn};

use super::admit::{admit, of};
use super::error::Error;
use super::record::{Networks, Records, alive_key, block_key, blocks_of, decode, encode, networks_key, records};
use super::side::Side;
use super::text::list;
use super::view::Network;
use super::{Cluster, State, Wanted};
use crate::model::{Agreement, Share};
use crate::store::{Entry, Expect, Op, StoreError};

/// So often others may be faster.
const TRIES: usize = 100;

/// What a claim comes to.
enum Claim {
    Done(Records),
    /// The record that it relied on is another by now.
    Stale,
}

impl Cluster {
    /// Takes part in a network: makes its record if this host is the first, and claims a block of each subnet. Again with the same, it
    /// tells what is. Within 10 s, also while the store is down; what was claimed before it failed is given back.
    pub async fn join(&self, wanted: &Wanted) -> Result<Share, Error> {
        let subnets = wanted.agreement().subnets;
        let action = format!("join the network of {}", list(&subnets));
        let joined = self.within(action, self.join_alone(wanted)).await;
        if joined.is_err() {
            self.change(|state| state.unsettled.extend(subnets));
        }
        joined
    }

    async fn join_alone(&self, wanted: &Wanted) -> Result<Share, Error> {
        let _alone = self.writes.lock().await;
        let agreement = wanted.agreement();
        if let Some(share) = self.known(|state| self.joined(state, &agreement)) {
            return Ok(share);
        }
        self.register().await?;
        let mut sides = wanted.sides();
        let vni = self.first_blocks(wanted, &mut sides).await?;
        let network = Network { wanted: wanted.clone(), vni, sides };
        info!(subnets = list(&agreement.subnets), vni, "takes part in a network that hosts share");
        self.change(|state| {
            state.unsettled.retain(|subnet| !agreement.subnets.contains(subnet));
            let standing = self.standing(state, &network);
            state.networks.push(network);
            standing.map(|standing| standing.share).ok_or(Error::NoWay)
        })
    }

    fn joined(&self, state: &State, agreement: &Agreement) -> Option<Share> {
        let network = state.networks.iter().find(|network| network.wanted.agreement() == *agreement)?;
        Some(self.standing(state, network)?.share)
    }

    /// The network's number. Every claim relies on the record from which that was read: a network is not removed under it.
    async fn first_blocks(&self, wanted: &Wanted, sides: &mut [Side]) -> Result<u32, Error> {
        'again: for _ in 0..TRIES {
            let (vni, record) = self.admitted(wanted, None).await?;
            for side in sides.iter_mut() {
                side.mine.clear();
                match self.claim_block(side, Some(&record)).await? {
                    Claim::Done(records) => side.hear(&self.me, &records, Instant::now(), self.times.rebuild),
                    Claim::Stale => continue 'again,
                }
            }
            return Ok(vni);
        }
        Err(Error::Contended { action: format!("join the network of {}", list(&wanted.agreement().subnets)) })
    }

    /// The network's number, and the record of all networks in which it stands.
    pub(super) async fn admitted(&self, wanted: &Wanted, held: Option<u32>) -> Result<(u32, Entry), Error> {
        let action = || format!("join the network of {}", list(&wanted.agreement().subnets));
        for _ in 0..TRIES {
            let (networks, entry) = self.networks().await.map_err(Error::store(action()))?;
            let (vni, changed) = admit(&networks, wanted, held, &self.me.host)?;
            let (Some(entry), None) = (entry.clone(), &changed) else {
                let expect = entry.map_or(Expect::Absent, |entry| Expect::Version(entry.version));
                let value = encode(&changed.unwrap_or(networks));
                match self.store.put(&networks_key(), value.clone(), expect).await {
                    Ok(version) => return Ok((vni, Entry { key: networks_key(), value, version })),
                    Err(StoreError::Conflict { .. }) => continue,
                    Err(error) => return Err(Error::store(action())(error)),
                }
            };
            return Ok((vni, entry));
        }
        Err(Error::Contended { action: action() })
    }

    pub(super) async fn networks(&self) -> Result<(Networks, Option<Entry>), StoreError> {
        let entry = self.store.get(&networks_key()).await?;
        let networks = entry.as_ref().and_then(decode).unwrap_or_default();
        Ok((networks, entry))
    }

    /// One more block of a subnet of a network that this host takes part in.
    pub async fn grow(&self, subnet: IpNet) -> Result<IpNet, Error> {
        let grown = self.within(format!("claim a block of {subnet}"), self.grow_alone(subnet)).await;
        if grown.is_err() {
            self.change(|state| state.unsettled.insert(subnet));
        }
        grown
    }

    async fn grow_alone(&self, subnet: IpNet) -> Result<IpNet, Error> {
        let _alone = self.writes.lock().await;
        self.register().await?;
        let mut side = self.known_side(subnet)?;
        self.claim_block(&mut side, None).await?;
        let block = side.mine.last().copied().ok_or(Error::NotJoined { subnet })?;
        let still = self.change(|state| state.side(subnet).map(|side| side.mine.push(block)).is_some());
        if still { Ok(block) } else { Err(Error::NotJoined { subnet }) }
    }

    pub(super) fn known_side(&self, subnet: IpNet) -> Result<Side, Error> {
        self.known(|state| state.sides().find(|side| side.subnet == subnet).cloned()).ok_or(Error::NotJoined { subnet })
    }

    /// What the store says of a subnet.
    pub(super) async fn read(&self, subnet: IpNet) -> Result<Records, Error> {
        let entries = self.store.list(&blocks_of(subnet)).await;
        entries.map(|entries| records(&entries)).map_err(Error::store(format!("read the blocks of {subnet}")))
    }

    /// Adds a block to the side's own. Who joins tries the first without a look at the records, which may be many: the store refuses what
    /// is not free. A look afterwards shows whether somebody claimed a single address in it meanwhile: then it is given back, and another tried.
    async fn claim_block(&self, side: &mut Side, relied: Option<&Entry>) -> Result<Claim, Error> {
        let subnet = side.subnet;
        let mut records = Records::new();
        if relied.is_none() || self.choice(side, &records).is_none() {
            records = self.read(subnet).await?;
        }
        for _ in 0..TRIES {
            let (block, mut ops) = self.choice(side, &records).ok_or(Error::Exhausted { subnet })?;
            ops.extend(relied.map(|entry| Op::Put(entry.key.clone(), entry.value.clone(), Expect::Version(entry.version))));
            let outcome = self.store.commit(ops).await;
            match outcome {
                Err(StoreError::Conflict { key, .. }) if relied.is_some_and(|entry| entry.key == key) => return Ok(Claim::Stale),
                Err(StoreError::Conflict { .. }) => records = self.read(subnet).await?,
                Err(error) => return Err(Error::store(format!("claim a block of {subnet}"))(error)),
                Ok(versions) => {
                    records = self.read(subnet).await?;
                    if !side.singles(&self.me, &records).any(|single| block.contains(&single)) {
                        side.mine.push(block);
                        return Ok(Claim::Done(records));
                    }
                    let version = versions.first().copied().flatten().map_or(Expect::Any, Expect::Version);
                    let back = self.store.delete(&block_key(subnet, block), version).await;
                    back.map_err(Error::store(format!("give back {block} of {subnet}")))?;
                    records.remove(&block);
                }
            }
        }
        Err(Error::Contended { action: format!("claim a block of {subnet}") })
    }

    /// The next block to try, and how it is claimed: one that is free, else one whose owner is gone for long.
    fn choice(&self, side: &Side, records: &Records) -> Option<(IpNet, Vec<Op>)> {
        let put = |block: IpNet, expect: Expect| {
            let mut with = side.clone();
            with.mine.push(block);
            let record = with.record(&self.me, side.mine.len(), block, rand::random());
            Op::Put(block_key(side.subnet, block), encode(&record), expect)
        };
        if let Some((block, expect)) = side.free(&self.me, records).next() {
            return Some((block, vec![put(block, expect)]));
        }
        let (block, found) = side.others(&self.me, records).find(|(_, found)| self.is_long_gone(&found.block.owner.host))?;
        let owner = &found.block.owner.host;
        warn!("claim {block} of {}: no block is free, and its owner {owner} is gone for long", side.subnet);
        let gone = Op::Delete(alive_key(owner), Expect::Absent);
        Some((block, vec![put(block, Expect::Version(found.version)), gone]))
    }

    pub(super) fn is_long_gone(&self, host: &str) -> bool {
        self.known(|state| state.gone.get(host).is_some_and(|(since, _)| since.elapsed() >= self.times.grace))
    }

    /// The record of a network that nobody has a block of any more goes. It is marked first: a host that joins meanwhile either is seen
    /// by the look behind the mark, or takes the mark away and so saves the record.
    pub(super) async fn retire(&self, subnet: IpNet) -> Result<(), Error> {
        let failed = || Error::store(format!("remove the record of the network of {subnet}"));
        let (networks, entry) = self.networks().await.map_err(failed())?;
        let (Some(at), Some(entry)) = (of(&networks, subnet), entry) else { return Ok(()) };
        let marked = encode(&super::admit::marked(&networks, at, true));
        let version = match self.store.put(&networks_key(), marked, Expect::Version(entry.version)).await {
            Err(StoreError::Conflict { .. }) => return Err(Error::Contended { action: format!("remove the network of {subnet}") }),
            version => version.map_err(failed())?,
        };
        for subnet in &networks.networks[at].agreement.subnets {
            if !self.read(*subnet).await?.is_empty() {
                return Ok(());
            }
        }
        let fewer = encode(&super::admit::without(&networks, at));
        match self.store.put(&networks_key(), fewer, Expect::Version(version)).await {
            // Somebody joined this network, or one beside it was made: then it is tried again.
            Err(StoreError::Conflict { .. }) => Err(Error::Contended { action: format!("remove the network of {subnet}") }),
            done => done.map(drop).map_err(failed()),
        }
    }

    /// Whether a block is one of those that an address may be asked of.
    pub(super) fn holds(&self, subnet: IpNet, address: std::net::IpAddr) -> bool {
        self.known(|state| state.sides().any(|side| side.subnet == subnet && side.mine.contains(&side.block_of(address))))
    }
}
