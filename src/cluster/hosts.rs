//! This host among the others: its lease, its record, who else is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::{info, warn};

use super::error::Error;
use super::record::{self, Block, HostRecord, Owner, alive_key, block_key, blocks, decode, encode, host_key, last, macs, subnet_at};
use super::{Cluster, State, Uplink};
use crate::store::{Entry, Expect, Lease, Op, PORTABLE_OPS, StoreError};

/// A deletion counts twice, and one operation looks whether the host is gone.
const AT_ONCE: usize = (PORTABLE_OPS - 1) / 2;

impl Cluster {
    /// Has this host's name and says where it is, if that was not done yet.
    pub(super) async fn register(&self) -> Result<(), Error> {
        let mut lease = self.lease.lock().await;
        if lease.is_none() {
            self.enrol(&mut lease).await?;
        }
        Ok(())
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
        let Uplink { vtep, .. } = self.known(|state| state.uplink.clone()).ok_or(Error::NoWay)?;
        let failed = || Error::store(format!("register host {}", self.me.host));
        let before = lease.take();
        let mine = match before.clone() {
            Some(lease) => lease,
            None => self.store.grant(&format!("rsnet {}", self.me.host), self.times.lease).await.map_err(failed())?,
        };
        if let Err(error) = self.hold_name(&mine).await {
            // It ends by itself otherwise.
            let _ = self.store.end(&mine).await;
            return Err(error);
        }
        let anew = self.write_record(HostRecord { id: self.me.id.clone(), vtep }).await.map_err(failed())? || before.is_none();
        // Who joins a network now has to know where its other hosts are; later the watch tells.
        let entries = if self.known(|state| state.recorded.is_none()) { self.store.list(&record::hosts()).await } else { Ok(vec![]) };
        let hosts = decoded(&entries.map_err(failed())?);
        *lease = Some(mine);
        self.change(|state| {
            // What was heard before is newer than nothing, and no older than this.
            let known = hosts.into_iter().filter(|(name, _)| !state.hosts.contains_key(name)).collect::<Vec<_>>();
            Arc::make_mut(&mut state.hosts).extend(known);
            if anew {
                state.unsettle_all();
            }
        });
        Ok(())
    }

    /// All hosts hear of what is written: only what differs is. Whether it was.
    async fn write_record(&self, record: HostRecord) -> Result<bool, StoreError> {
        let key = host_key(&self.me.host);
        let found = self.store.get(&key).await?;
        let differs = found.as_ref().and_then(decode) != Some(record.clone());
        if differs {
            self.store.put(&key, encode(&record), Expect::Any).await?;
        }
        Ok(differs)
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

    /// All hosts' records.
    pub(super) fn hear_hosts(&self, state: &mut State, entries: &[Entry]) {
        let heard = decoded(entries);
        if heard.get(&self.me.host).is_none_or(|record| record.id != self.me.id) {
            self.enrol.notify_one();
        }
        state.recorded = Some(heard.keys().cloned().collect());
        if heard.iter().any(|(name, record)| state.hosts.get(name) != Some(record)) {
            Arc::make_mut(&mut state.hosts).extend(heard);
        }
    }

    /// Who is there.
    pub(super) fn hear_alive(&self, state: &mut State, entries: &[Entry]) {
        state.alive = entries.iter().map(|entry| last(&entry.key).to_owned()).collect();
        state.alive_is_heard = true;
        if !state.alive.contains(&self.me.host) {
            self.enrol.notify_one();
        }
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
        let known = self.known(|state| state.hosts.contains_key(host)) && !host.is_empty();
        let record = if known { self.store.get(&host_key(host)).await.map_err(failed())? } else { None };
        let theirs = self.all_of(host).await.map_err(failed())?;
        if record.is_none() && theirs.is_empty() {
            return Err(unknown());
        }
        let gone = || Op::Delete(alive_key(host), Expect::Absent);
        let deletions = theirs.iter().map(|entry| Op::Delete(entry.key.clone(), Expect::Version(entry.version)));
        let record = record.map(|entry| Op::Delete(entry.key, Expect::Version(entry.version)));
        for ops in deletions.chain(record).collect::<Vec<_>>().chunks(AT_ONCE) {
            match self.store.commit([gone()].into_iter().chain(ops.iter().cloned()).collect()).await {
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
        let entries = blocks.into_iter().chain(macs);
        Ok(entries.filter(|entry| decode::<Owner>(entry).is_some_and(|owner| owner.host == host)).collect())
    }

    /// Gives a block's record to another host, see [`super::single`].
    pub(super) fn grant_op(&self, subnet: ipnet::IpNet, address: std::net::IpAddr, to: &record::Owner) -> Op {
        let record = Block { owner: to.clone(), home: None, own: vec![], turn: usize::from(u16::MAX), claim: rand::random() };
        Op::Put(block_key(subnet, super::blocks::single(address)), encode(&record), Expect::Absent)
    }
}

fn decoded(entries: &[Entry]) -> BTreeMap<String, HostRecord> {
    entries.iter().filter_map(|entry| Some((last(&entry.key).to_owned(), decode(entry)?))).collect()
}
