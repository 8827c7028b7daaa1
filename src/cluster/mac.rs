//! MACs that users chose, on a LAN that hosts share: one container of one host has each. Those that nobody chose are random and are not
//! written.

use std::collections::BTreeMap;

use ipnet::IpNet;
use tracing::error;

use super::error::Error;
use super::record::{MacRecord, alive_key, decode, encode, mac_at, mac_key, macs_of};
use super::settle::AT_ONCE;
use super::{Cluster, contend, unless_contended};
use crate::model::Mac;
use crate::store::{Entry, Expect, Op};

/// A MAC of this host's.
#[derive(Clone, Debug)]
pub struct Held {
    /// By whom, for the users of other hosts.
    at: String,
    /// Nobody here has it any more; the store may not say so yet.
    given_up: bool,
}

impl Cluster {
    /// Makes a MAC this host's in the network of the subnet, or says who has it. Within 10 s. Without the store if this host still has it there:
    /// what it gave up since Consul is down.
    pub async fn claim_mac(&self, subnet: IpNet, mac: Mac, at: &str) -> Result<(), Error> {
        let claimed = self.within(format!("claim MAC {mac} in {subnet}"), self.claim_mac_now(subnet, mac, at)).await;
        if claimed.is_err() {
            self.change(|state| state.unsettled.insert(subnet));
        }
        claimed
    }

    /// What this host had by its own disk when it started. No I/O.
    pub fn resume_mac(&self, subnet: IpNet, mac: Mac, at: &str) {
        self.change(|state| state.macs.insert((subnet, mac), Held { at: at.to_owned(), given_up: false }));
    }

    /// Gives a MAC back, as soon as the store takes it. No I/O.
    pub fn give_up_mac(&self, subnet: IpNet, mac: Mac) {
        self.change(|state| {
            let Some(held) = state.macs.get_mut(&(subnet, mac)) else { return };
            held.given_up = true;
            state.unsettled.insert(subnet);
        });
    }

    async fn claim_mac_now(&self, subnet: IpNet, mac: Mac, at: &str) -> Result<(), Error> {
        // whoever gives MACs back is not at it meanwhile
        let _alone = self.writes.lock().await;
        let again = |held: &mut Held| held.given_up = false;
        if self.change(|state| state.macs.get_mut(&(subnet, mac)).map(again)).is_some() {
            return Ok(());
        }
        self.register().await?;
        let failed = || Error::store(format!("claim MAC {mac} in {subnet}"));
        let claim = || async {
            let found = self.store.get(&mac_key(subnet, mac)).await.map_err(failed())?;
            let ops = self.mac_ops(subnet, mac, at, found.as_ref())?;
            unless_contended(self.store.commit(ops).await).map_err(failed())
        };
        contend(&format!("claim MAC {mac} in {subnet}"), claim).await?;
        self.resume_mac(subnet, mac, at);
        Ok(())
    }

    /// It is free, or this host's, or that of one that is gone for long: the transaction says that it still is.
    fn mac_ops(&self, subnet: IpNet, mac: Mac, at: &str, found: Option<&Entry>) -> Result<Vec<Op>, Error> {
        let expect = Expect::found(found.map(|entry| entry.version));
        let record = MacRecord { owner: self.me.clone(), at: at.to_owned() };
        let put = Op::Put(mac_key(subnet, mac), encode(&record), expect);
        let Some(other) = found.and_then(decode::<MacRecord>).filter(|found| found.owner.host != self.me.host) else {
            return Ok(vec![put]);
        };
        let host = other.owner.host;
        if !self.is_long_gone(&host) {
            return Err(Error::MacTaken { mac, host, at: other.at });
        }
        Ok(vec![put, Op::Delete(alive_key(&host), Expect::Absent)])
    }

    /// Makes the store say which MACs are this host's. Whoever calls is alone in writing.
    pub(super) async fn settle_macs(&self, subnet: IpNet) -> Result<(), Error> {
        if self.known(|state| state.sides().any(|side| side.subnet == subnet && side.own.is_none())) {
            return Ok(());
        }
        let failed = || Error::store(format!("write the MACs of {subnet}"));
        let entries = self.store.list(&macs_of(subnet)).await.map_err(failed())?;
        let held = self
            .known(|state| state.macs.iter().filter(|((of, _), _)| *of == subnet).map(|((_, mac), held)| (*mac, held.clone())).collect());
        for ops in self.mac_changes(subnet, &held, &entries).chunks(AT_ONCE) {
            self.store.commit(ops.to_vec()).await.map_err(failed())?;
        }
        self.change(|state| state.macs.retain(|(of, _), held| *of != subnet || !held.given_up));
        Ok(())
    }

    fn mac_changes(&self, subnet: IpNet, held: &BTreeMap<Mac, Held>, entries: &[Entry]) -> Vec<Op> {
        let recorded: BTreeMap<Mac, (&Entry, MacRecord)> =
            entries.iter().filter_map(|entry| Some((mac_at(&entry.key)?, (entry, decode(entry)?)))).collect();
        let wanted: BTreeMap<&Mac, &Held> = held.iter().filter(|(_, held)| !held.given_up).collect();
        let missing = wanted.iter().filter(|(mac, _)| !recorded.contains_key(mac));
        let put = missing.map(|(mac, held)| {
            let record = MacRecord { owner: self.me.clone(), at: held.at.clone() };
            Op::Put(mac_key(subnet, **mac), encode(&record), Expect::Absent)
        });
        let mine = recorded.iter().filter(|(_, (_, record))| record.owner.host == self.me.host);
        let strays = mine.filter(|(mac, (_, record))| record.owner.id != self.me.id || !wanted.contains_key(mac));
        let delete = strays.map(|(_, (entry, _))| Op::Delete(entry.key.clone(), Expect::Version(entry.version)));
        for (mac, (_, record)) in recorded.iter().filter(|(mac, (_, record))| record.owner.host != self.me.host && wanted.contains_key(mac))
        {
            error!("MAC {mac} in {subnet} belongs to host {} now ({}): remove one of the two containers", record.owner.host, record.at);
        }
        put.chain(delete).collect()
    }
}
