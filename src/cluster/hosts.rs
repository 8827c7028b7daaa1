//! This host among the others: its lease, its record, who else is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use tracing::{info, warn};

use super::error::Error;
use super::record::{
    HostRecord, Owner, alive_at, alive_key, block_at, blocks, decode, encode, host_at, host_key, mac_at, macs, subnet_at, tell_changed,
    without_block,
};
use super::roll::{Known, Roll};
use super::side::Side;
use super::{Cluster, State, unless_contended};
use crate::store::{Entry, Expect, Key, Lease, Op, PORTABLE_OPS, StoreError};

/// A deletion counts twice, one operation looks whether the host is gone, and one tells all of it.
const AT_ONCE: usize = (PORTABLE_OPS - 2) / 2;

impl Cluster {
    /// Has this host's name, if that was not done yet.
    pub(super) async fn register(&self) -> Result<(), Error> {
        let mut lease = self.lease.lock().await;
        if lease.is_none() {
            self.enrol(&mut lease).await?;
        }
        Ok(())
    }

    /// The same, it knows where the other hosts are, and its record says what it holds. Whoever calls is alone in writing.
    pub(super) async fn prepare(&self) -> Result<(), Error> {
        self.register().await?;
        if !self.known(|state| state.roll.is_heard) {
            self.read_changes().await.map_err(Error::store("read which hosts there are"))?;
        }
        if self.known(|state| state.unsettled_record) { self.settle_now(&[].into()).await } else { Ok(()) }
    }

    /// The lease's time begins anew; what is not there of this host's records is written again.
    pub(super) async fn renew(&self, again: bool) -> Result<(), Error> {
        let mut lease = self.lease.lock().await;
        let Some(known) = lease.clone() else { return self.enrol(&mut lease).await };
        match self.store.renew(&known).await {
            Err(StoreError::Ended { .. }) => {
                warn!("host {}: its lease ended; it takes a new one", self.me.host);
                *lease = None;
                self.enrol(&mut lease).await
            }
            Ok(()) if again => self.enrol(&mut lease).await,
            renewed => renewed.map_err(Error::store("renew this host's lease")),
        }
    }

    /// The name first: who holds that may write the rest.
    async fn enrol(&self, lease: &mut Option<Lease>) -> Result<(), Error> {
        if self.known(|state| state.uplink.is_none()) {
            return Err(Error::NoWay);
        }
        let failed = || Error::store(format!("register host {}", self.me.host));
        let before = lease.take();
        let anew = before.is_none();
        let mine = match before {
            Some(lease) => lease,
            None => self.store.grant(&format!("rsnet {}", self.me.host), self.times.lease).await.map_err(failed())?,
        };
        if let Err(error) = self.hold_name(&mine).await {
            // It ends by itself otherwise.
            let _ = self.store.end(&mine).await;
            return Err(error);
        }
        self.own_record().await.map_err(failed())?;
        *lease = Some(mine);
        self.change(|state| {
            // No record tells of MACs.
            let segments: Vec<IpNet> = state.sides().filter(|side| side.own.is_some()).map(|side| side.subnet).collect();
            state.unsettled.extend(segments.into_iter().filter(|_| anew));
        });
        Ok(())
    }

    /// What the store says of this host; it is noted whether that is as it should be.
    pub(super) async fn own_record(&self) -> Result<Option<HostRecord>, StoreError> {
        let entry = self.store.get(&host_key(&self.me.host)).await?;
        let found = entry.as_ref().and_then(decode::<HostRecord>);
        self.change(|state| {
            state.own = entry.map(|entry| entry.version);
            state.unsettled_record = found != state.record(&self.me, &[]);
            if found.is_some() && !state.unsettled_record {
                state.vouched = state.own;
            }
        });
        Ok(found)
    }

    /// The operations that tell all hosts what this one holds, `with` what it is about to. They are done only if nobody else changed
    /// this host's record: who takes something away from it does.
    pub(super) fn tell_held(&self, with: &[Side]) -> Vec<Op> {
        let told = |state: &State| {
            let expect = Expect::found(state.own);
            let record = state.record(&self.me, with)?;
            Some(vec![Op::Put(host_key(&self.me.host), encode(&record), expect), tell_changed(&self.me.host)])
        };
        self.known(told).unwrap_or_default()
    }

    /// The same for a host that a block is taken from.
    pub(super) async fn tell_taken(&self, host: &str, subnet: IpNet, block: IpNet) -> Result<Vec<Op>, StoreError> {
        let entry = self.store.get(&host_key(host)).await?;
        let Some((record, entry)) = entry.and_then(|entry| Some((decode(&entry)?, entry))) else { return Ok(vec![]) };
        let record = without_block(record, subnet, block);
        Ok(vec![Op::Put(entry.key, encode(&record), Expect::Version(entry.version)), tell_changed(host)])
    }

    /// One commit of such operations.
    pub(super) async fn commit(&self, mut ops: Vec<Op>) -> Result<(), StoreError> {
        let mut seen = BTreeSet::new();
        ops.retain(|op| seen.insert(op.key().clone()));
        let own = ops.iter().position(|op| *op.key() == self.own_key());
        let versions = self.store.commit(ops).await?;
        if let Some(own) = own {
            self.change(|state| {
                state.own = versions.get(own).copied().flatten();
                state.vouched = state.own;
            });
        }
        Ok(())
    }

    /// The same where a conflict may be that this host's own record is not as it last wrote it; none: there was one, look again.
    pub(super) async fn commit_own(&self, ops: Vec<Op>) -> Result<Option<()>, StoreError> {
        let done = unless_contended(self.commit(ops).await)?;
        if done.is_none() {
            self.change(|state| state.unsettled_record = true);
        }
        Ok(done)
    }

    pub(super) fn own_key(&self) -> Key {
        host_key(&self.me.host)
    }

    async fn hold_name(&self, lease: &Lease) -> Result<(), Error> {
        let (key, failed) = (alive_key(&self.me.host), || Error::store(format!("register host {}", self.me.host)));
        let value = self.me.id.clone().into_bytes();
        match self.store.hold(lease, &key, value.clone()).await {
            Err(StoreError::Held { .. }) => {}
            held => return held.map(drop).map_err(failed()),
        }
        // It is held by the process that this one follows on, or by another machine.
        let found = self.store.get(&key).await.map_err(failed())?;
        if found.is_some_and(|entry| entry.value != value) {
            return Err(self.name_taken().await);
        }
        if let Some(earlier) = self.store.holder(&key).await.map_err(failed())? {
            self.store.end(&earlier).await.map_err(failed())?;
        }
        self.store.hold(lease, &key, value).await.map(drop).map_err(failed())
    }

    async fn name_taken(&self) -> Error {
        let host = self.me.host.clone();
        match self.store.get(&host_key(&host)).await {
            Ok(entry) => {
                let record = entry.as_ref().and_then(decode::<HostRecord>);
                let taken = Error::NameTaken { host, at: record.map_or_else(String::new, |record| format!(" at {}", record.vtep)) };
                self.fence_all(&taken);
                taken
            }
            Err(error) => Error::store(format!("register host {host}"))(error),
        }
    }

    /// The records of the hosts in scope. That of this host, or one that says what this host holds too, may be older than what this host
    /// wrote last: that is looked at where nothing is being written.
    pub(super) fn hear_hosts(&self, state: &mut State, in_scope: impl Fn(&str) -> bool, entries: &[Entry]) {
        let heard = decoded(&state.roll, entries, &self.me.host);
        if in_scope(&self.me.host) {
            let mine = heard.get(&self.me.host).map(|known| &*known.record);
            state.unsettled_record |= mine != state.record(&self.me, &[]).as_ref();
            if mine.is_some_and(|record| record.id != self.me.id) {
                self.enrol.notify_one();
            }
        }
        let differing = state.roll.hear(in_scope, heard);
        let told = |name: &String| state.roll.hosts.get(name).map(|known| &known.record.blocks);
        let others = differing.iter().filter(|name| **name != self.me.host).filter_map(told);
        let contested = |blocks: &BTreeMap<_, Vec<_>>| {
            let held = |side: &&Side| blocks.get(&side.subnet).is_some_and(|blocks| side.mine.iter().any(|mine| blocks.contains(mine)));
            state.sides().filter(held).map(|side| side.subnet).collect::<Vec<_>>()
        };
        let contested: Vec<_> = others.flat_map(contested).collect();
        state.unsettled.extend(contested);
    }

    /// Who is there; an error: nobody knows. Whether the store said it.
    pub(super) fn heard_alive(&self, heard: Result<Vec<Key>, StoreError>) -> bool {
        let alive = heard.ok().map(|keys| keys.iter().filter_map(alive_at).map(str::to_owned).collect::<BTreeSet<_>>());
        // while it is out of touch it enrols anyway
        if alive.as_ref().is_some_and(|alive| !alive.contains(&self.me.host)) && self.known(|state| state.in_touch) {
            self.enrol.notify_one();
        }
        let is_said = alive.is_some();
        self.change(|state| state.roll.hear_alive(alive));
        is_said
    }

    /// Frees all that a dead host had.
    pub async fn forget(&self, host: &str) -> Result<(), Error> {
        self.within(format!("forget host {host}"), self.forget_now(host)).await?;
        info!(host, "the host is forgotten");
        Ok(())
    }

    async fn forget_now(&self, host: &str) -> Result<(), Error> {
        let failed = || Error::store(format!("forget host {host}"));
        let unknown = || Error::Unknown { host: host.to_owned() };
        let known = self.known(|state| state.roll.hosts.contains_key(host)) && !host.is_empty();
        let record = if known { self.store.get(&host_key(host)).await.map_err(failed())? } else { None };
        let theirs = self.all_of(host).await.map_err(failed())?;
        if record.is_none() && theirs.is_empty() {
            return Err(unknown());
        }
        let gone = || Op::Delete(alive_key(host), Expect::Absent);
        let deletions = theirs.iter().map(|entry| Op::Delete(entry.key.clone(), Expect::Version(entry.version)));
        // First nobody is told of its blocks any more, then they go.
        let record = record.map(|entry| Op::Delete(entry.key, Expect::Version(entry.version)));
        for ops in record.into_iter().chain(deletions).collect::<Vec<_>>().chunks(AT_ONCE) {
            match self.store.commit([gone(), tell_changed(host)].into_iter().chain(ops.iter().cloned()).collect()).await {
                Err(StoreError::Conflict { key, .. }) if key == alive_key(host) => return Err(Error::Alive { host: host.to_owned() }),
                done => done.map(drop).map_err(failed())?,
            }
        }
        let subnets: Vec<_> = theirs.iter().filter_map(|entry| subnet_at(&entry.key)).collect();
        self.change(|state| state.unsettled.extend(subnets));
        Ok(())
    }

    /// The records of all that a host has.
    pub(super) async fn all_of(&self, host: &str) -> Result<Vec<Entry>, StoreError> {
        let (blocks, macs) = (blocks(), macs());
        let (blocks, macs) = tokio::try_join!(self.store.list(&blocks), self.store.list(&macs))?;
        let is_known = |entry: &Entry| block_at(&entry.key).is_some() || mac_at(&entry.key).is_some();
        let entries = blocks.into_iter().chain(macs).filter(is_known);
        Ok(entries.filter(|entry| decode::<Owner>(entry).is_some_and(|owner| owner.host == host)).collect())
    }
}

/// A record that is as it was known is not read again. Where that of another host cannot be read, what was known of that host stays.
fn decoded(roll: &Roll, entries: &[Entry], me: &str) -> BTreeMap<String, Known> {
    let known = |entry: &Entry| {
        let name = host_at(&entry.key)?;
        let before = roll.hosts.get(name);
        let same = before.filter(|known| known.version == entry.version).cloned();
        let read = || Some(Known { record: Arc::new(decode(entry)?), version: entry.version });
        let known = same.or_else(read).or_else(|| before.filter(|_| name != me).cloned())?;
        Some((name.to_owned(), known))
    };
    entries.iter().filter_map(known).collect()
}
