//! Taking part in a network, and one more block of it. Who finds none at first begins without, see [`super::lodge`].

use std::collections::BTreeSet;
use std::fmt::Display;

use ipnet::IpNet;
use tracing::{info, warn};

use super::admit::{admit, of};
use super::error::Error;
use super::record::{Networks, Records, alive_key, block_key, blocks_of, decode, encode, networks_key, records, singles_key, unchanged};
use super::side::Side;
use super::text::list;
use super::view::{Network, Told};
use super::{Cluster, Wanted, contend, unless_contended};
use crate::model::{Agreement, Share};
use crate::store::{Entry, Expect, Op, StoreError};

/// What the store says of a subnet, and of the single addresses in it whether one was claimed since.
#[derive(Default)]
struct Looked {
    records: Records,
    singles: Option<Entry>,
}

/// A block to claim.
struct Choice {
    block: IpNet,
    claim: Op,
    /// Whose it is, and is to be no more.
    from: Option<String>,
}

impl Cluster {
    /// Takes part in a network: makes its record if this host is the first, and claims a block of each subnet; where none is free it borrows
    /// one address. Again with the same, it tells what is. Within 10 s, also while the store is down; what was claimed before it failed is given back.
    pub async fn join(&self, wanted: &Wanted) -> Result<Share, Error> {
        let joined = self.within(joining(wanted), self.join_alone(wanted)).await;
        if joined.is_err() {
            // of a block whose claim was not answered it tells
            self.change(|state| state.unsettled_record = true);
        }
        joined
    }

    async fn join_alone(&self, wanted: &Wanted) -> Result<Share, Error> {
        let _alone = self.writes.lock().await;
        let agreement = wanted.agreement();
        if let Some(share) = self.joined(&agreement) {
            return Ok(share);
        }
        let (vni, sides) = self.first_sides(wanted).await?;
        let network = Network { wanted: wanted.clone(), vni, sides };
        info!(subnets = list(&agreement.subnets), vni, "takes part in a network that hosts share");
        self.change(|state| {
            state.unsettled.retain(|subnet| !agreement.subnets.contains(subnet));
            state.networks.push(network);
        });
        self.joined(&agreement).ok_or(Error::NoWay)
    }

    fn joined(&self, agreement: &Agreement) -> Option<Share> {
        let of = |told: &Told| (told.network.wanted.agreement() == *agreement).then(|| told.standing.share.clone());
        self.known(|state| state.told.iter().find_map(of))
    }

    /// The network's number, and its sides with a block each, or what there is for want of one. Every claim relies on the record from which
    /// the number was read: a network is not removed under it.
    async fn first_sides(&self, wanted: &Wanted) -> Result<(u32, Vec<Side>), Error> {
        let claim = || async {
            self.prepare().await?;
            let ((vni, record), mut sides) = (self.admitted(wanted, None).await?, wanted.sides());
            for at in 0..sides.len() {
                let Some(side) = self.first_side(&sides, at, &record).await? else { return Ok(None) };
                sides[at] = side;
            }
            Ok(Some((vni, sides)))
        };
        contend(&joining(wanted), claim).await
    }

    /// None: a record that it relied on is another by now.
    async fn first_side(&self, sides: &[Side], at: usize, relied: &Entry) -> Result<Option<Side>, Error> {
        match self.claim_block(sides, at, Some(relied)).await {
            Ok(block) => Ok(block.map(|block| with_block(&sides[at], block))),
            Err(Error::Exhausted { .. }) => self.lodge(sides, at, relied).await,
            Err(error) => Err(error),
        }
    }

    /// The network's number, and the record of all networks in which it stands.
    pub(super) async fn admitted(&self, wanted: &Wanted, held: Option<u32>) -> Result<(u32, Entry), Error> {
        // What was heard is good enough to rely on where nothing has to be changed: if it is old, the claim fails.
        if let Some(heard) = self.known(|state| state.heard_networks.clone())
            && let Ok((vni, None)) = admit(&decode(&heard).unwrap_or_default(), wanted, held, &self.me.host)
        {
            return Ok((vni, heard));
        }
        let action = joining(wanted);
        let admitted = || async {
            let (networks, entry) = self.networks().await.map_err(Error::store(&action))?;
            let (vni, changed) = admit(&networks, wanted, held, &self.me.host)?;
            if let (Some(entry), None) = (&entry, &changed) {
                return Ok(Some((vni, entry.clone())));
            }
            // until this host has joined: nobody else removes what it makes
            self.change(|state| state.unsettled.extend(wanted.agreement().subnets));
            let (key, value) = (networks_key(), encode(&changed.unwrap_or(networks)));
            let put = self.store.put(&key, value.clone(), Expect::found(entry.map(|entry| entry.version))).await;
            let version = unless_contended(put).map_err(Error::store(&action))?;
            Ok(version.map(|version| (vni, Entry { key, value, version })))
        };
        contend(&action, admitted).await
    }

    pub(super) async fn networks(&self) -> Result<(Networks, Option<Entry>), StoreError> {
        let entry = self.store.get(&networks_key()).await?;
        let networks = entry.as_ref().and_then(decode).unwrap_or_default();
        Ok((networks, entry))
    }

    /// One more block of a subnet of a network that this host takes part in.
    pub async fn grow(&self, subnet: IpNet) -> Result<IpNet, Error> {
        let grown = self.within(claiming("a block", subnet), self.grow_alone(subnet)).await;
        if grown.is_err() {
            self.change(|state| state.unsettled.insert(subnet));
        }
        grown
    }

    async fn grow_alone(&self, subnet: IpNet) -> Result<IpNet, Error> {
        let _alone = self.writes.lock().await;
        let claim = || async {
            self.prepare().await?;
            self.claim_block(&[self.known_side(subnet)?], 0, None).await
        };
        let block = contend(&claiming("a block", subnet), claim).await?;
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

    async fn look(&self, subnet: IpNet) -> Result<Looked, Error> {
        // Before the records: a single address that is claimed in between is seen in one of the two.
        let singles = self.store.get(&singles_key(subnet)).await.map_err(Error::store(format!("read the blocks of {subnet}")))?;
        Ok(Looked { records: self.read(subnet).await?, singles })
    }

    /// One more block for one of the sides; none: a record that it relied on is another by now. Who joins tries the first without a look at the
    /// records, which may be many: the store refuses what is not free, and all of it where single addresses were claimed since the look.
    async fn claim_block(&self, sides: &[Side], at: usize, relied: Option<&Entry>) -> Result<Option<IpNet>, Error> {
        if relied.is_some()
            && let Some(choice) = self.choice(&sides[at], None)
            && let Some(done) = self.try_choice(sides, at, relied, choice, None).await?
        {
            return Ok(done);
        }
        let claim = || async {
            let subnet = sides[at].subnet;
            let looked = self.look(subnet).await?;
            let choice = self.choice(&sides[at], Some(&looked)).ok_or(Error::Exhausted { subnet })?;
            self.try_choice(sides, at, relied, choice, looked.singles.as_ref()).await
        };
        contend(&claiming("a block", sides[at].subnet), claim).await
    }

    /// None: look again; none within: a record that it relied on is another by now.
    async fn try_choice(
        &self,
        sides: &[Side],
        at: usize,
        relied: Option<&Entry>,
        choice: Choice,
        singles: Option<&Entry>,
    ) -> Result<Option<Option<IpNet>>, Error> {
        let (block, subnet) = (choice.block, sides[at].subnet);
        let failed = Error::store(claiming(block, subnet));
        let mut ops = vec![unchanged(singles_key(subnet), singles)];
        ops.extend(relied.map(|entry| unchanged(entry.key.clone(), Some(entry))));
        match self.claim_ops(sides, at, choice).await {
            Ok(more) => ops.extend(more),
            Err(error) => return Err(failed(error)),
        }
        let done = self.commit_relying(ops).await.map_err(failed)?;
        Ok(done.map(|done| done.map(|()| block)))
    }

    /// None: look again; none within: a record that it relied on is another by now.
    pub(super) async fn commit_relying(&self, ops: Vec<Op>) -> Result<Option<Option<()>>, StoreError> {
        match self.commit(ops).await {
            Ok(()) => Ok(Some(Some(()))),
            Err(StoreError::Conflict { key, .. }) if key == networks_key() => {
                self.change(|state| state.heard_networks = None);
                Ok(Some(None))
            }
            Err(StoreError::Conflict { key, .. }) if key == self.own_key() => {
                self.change(|state| state.unsettled_record = true);
                Ok(Some(None))
            }
            Err(StoreError::Conflict { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The claim, and what is told of it.
    async fn claim_ops(&self, sides: &[Side], at: usize, choice: Choice) -> Result<Vec<Op>, StoreError> {
        let mut with = sides.to_vec();
        with[at] = with_block(&sides[at], choice.block);
        let mut ops = vec![choice.claim];
        ops.extend(self.tell_held(&with));
        if let Some(host) = choice.from {
            ops.push(Op::Delete(alive_key(&host), Expect::Absent));
            ops.extend(self.tell_taken(&host, sides[at].subnet, choice.block).await?);
        }
        Ok(ops)
    }

    /// The next block to try: one that is free, else one whose owner is gone for long.
    fn choice(&self, side: &Side, looked: Option<&Looked>) -> Option<Choice> {
        let unread = Records::new();
        let records = looked.map_or(&unread, |looked| &looked.records);
        let put = |block, expect| Op::Put(block_key(side.subnet, block), encode(&Side::record(&self.me, rand::random())), expect);
        let avoided = self.known(|state| {
            let heard = looked.is_none() || state.roll.rebuilding.is_some();
            let held = state.roll.held(side.subnet).filter(|_| heard);
            held.flat_map(|held| held.blocks).copied().collect::<BTreeSet<_>>()
        });
        if let Some((block, expect)) = side.free(&self.me, records, &avoided).next() {
            return Some(Choice { block, claim: put(block, expect), from: None });
        }
        let (block, found) = side.others(&self.me, records).find(|(_, found)| self.is_long_gone(&found.block.owner.host))?;
        let owner = &found.block.owner.host;
        warn!("claim {block} of {}: no block is free, and its owner {owner} is gone for long", side.subnet);
        Some(Choice { block, claim: put(block, Expect::Version(found.version)), from: Some(owner.clone()) })
    }

    pub(super) fn is_long_gone(&self, host: &str) -> bool {
        self.known(|state| state.roll.gone.get(host).is_some_and(|(since, _)| since.elapsed() >= self.times.grace))
    }

    /// The record of a network that nobody has a block of any more goes. It is marked first: a host that joins meanwhile either is seen
    /// by the look behind the mark, or takes the mark away and so saves the record.
    pub(super) async fn retire(&self, subnet: IpNet) -> Result<(), Error> {
        let failed = || Error::store(format!("remove the record of the network of {subnet}"));
        let (networks, entry) = self.networks().await.map_err(failed())?;
        let (Some(at), Some(entry)) = (of(&networks, subnet), entry) else { return Ok(()) };
        let marked = encode(&super::admit::marked(&networks, at, true));
        let contended = || Error::Contended { action: format!("remove the network of {subnet}") };
        let version = unless_contended(self.store.put(&networks_key(), marked, Expect::Version(entry.version)).await);
        let version = version.map_err(failed())?.ok_or_else(contended)?;
        for subnet in &networks.networks[at].agreement.subnets {
            if !self.read(*subnet).await?.is_empty() {
                return Ok(());
            }
        }
        let fewer = Op::Put(networks_key(), encode(&super::admit::without(&networks, at)), Expect::Version(version));
        let singles = networks.networks[at].agreement.subnets.iter().map(|subnet| Op::Delete(singles_key(*subnet), Expect::Any));
        let removed = unless_contended(self.store.commit([fewer].into_iter().chain(singles).collect()).await);
        // Somebody joined this network, or one beside it was made: then it is tried again.
        removed.map_err(failed())?.map(drop).ok_or_else(contended)
    }

    /// Whether a block is one of those that an address may be asked of.
    pub(super) fn holds(&self, subnet: IpNet, address: std::net::IpAddr) -> bool {
        self.known(|state| state.sides().any(|side| side.subnet == subnet && side.mine.contains(&side.block_of(address))))
    }
}

fn with_block(side: &Side, block: IpNet) -> Side {
    let mut with = side.clone();
    with.mine.push(block);
    with
}

fn joining(wanted: &Wanted) -> String {
    format!("join the network of {}", list(&wanted.agreement().subnets))
}

fn claiming(what: impl Display, subnet: IpNet) -> String {
    format!("claim {what} of {subnet}")
}
