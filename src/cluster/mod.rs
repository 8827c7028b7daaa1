//! THE CONTROL PLANE of networks that hosts share: who is there, which networks there are, and whose each block of addresses is.
//!
//! All of it stands in the store under `cluster/` (docs/store.md). What this host holds it knows by itself, from its own disk; the store
//! says what the others hold. So a store that is down, or was wiped, changes nothing here: what cannot be read stays as it was last heard, and
//! what is missing of ours is written back. Knows no kernel, no mode and no Docker.

mod blocks;
mod records;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use ipnet::IpNet;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::model::{Agreement, Member, Share};
use crate::store::{Entry, Expect, Key, Lease, Leases, Op, StoreError};
use records::{Block, HostRecord, NetworkRecord, Snapshot};
pub use view::View;

/// How long a host may be silent before it counts as gone.
const LEASE: Duration = Duration::from_secs(30);
const RENEW: Duration = Duration::from_secs(10);
/// How long, after all was lost from the store, the others have to write back what they hold.
const REBUILD: Duration = Duration::from_secs(90);
/// How often what could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// A network to take part in.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub agreement: Agreement,
    /// Numbers that VXLAN links of others on this host use.
    pub foreign_vnis: BTreeSet<u32>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The way by which this host's tunnels leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// The outer address.
    pub vtep: IpAddr,
    /// Bytes.
    pub mtu: u32,
}

pub struct Cluster {
    store: Arc<dyn Leases>,
    host: String,
    state: Mutex<State>,
    views: watch::Sender<Arc<View>>,
    /// One change of what this host holds at a time: between a claim and its being known it must not look like one to give back.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    uplink: Option<Uplink>,
    held: BTreeMap<Vec<IpNet>, Held>,
}

/// A network that this host takes part in.
struct Held {
    agreement: Agreement,
    share: Share,
    /// Until then what the store lacks of others may only be not written back yet.
    rebuilt: Option<Instant>,
}

impl Cluster {
    pub fn new(store: Arc<dyn Leases>, host: String) -> Self {
        Cluster { store, host, state: Mutex::default(), views: watch::Sender::default(), changing: tokio::sync::Mutex::default() }
    }

    /// What this host last heard of each network; wakes when it is another.
    pub fn views(&self) -> watch::Receiver<Arc<View>> {
        self.views.subscribe()
    }

    /// By which way the tunnels leave. Until it is known no network can be joined.
    pub fn leave_by(&self, uplink: Uplink) {
        self.state().uplink = Some(uplink);
    }

    /// What this host holds by its own disk. To be called before [`Cluster::run`]; asks nobody.
    pub fn resume(&self, agreement: Agreement, share: Share) {
        self.state().held.insert(agreement.subnets.clone(), Held { agreement, share, rebuilt: None });
        self.publish();
    }

    /// The networks that this host takes part in, by their subnets.
    pub fn joined(&self) -> Vec<Vec<IpNet>> {
        self.state().held.keys().cloned().collect()
    }

    /// Takes part in a network; makes it if this host is the first.
    pub async fn join(&self, wanted: &Wanted) -> Result<Share, Error> {
        let _changing = self.changing.lock().await;
        let subnets = &wanted.agreement.subnets;
        let uplink = self.uplink()?;
        self.introduce(uplink).await?;
        let NetworkRecord { vni, .. } = self.enter(wanted).await?;
        let mine = Member { host: self.host.clone(), vtep: uplink.vtep, mac: blocks::mac(&self.host, vni), homes: vec![], blocks: vec![] };
        let mut share = Share { vni, mtu: uplink.mtu, mine, peers: Vec::new() };
        for subnet in subnets {
            let (block, home) = self.take(*subnet, &wanted.agreement.reserved, true).await?;
            share.mine.blocks.push(block);
            share.mine.homes.extend(home);
        }
        self.resume(wanted.agreement.clone(), share.clone());
        self.look().await?;
        Ok(self.state().held.get(subnets).map_or(share, |held| held.share.clone()))
    }

    /// Gives back all that this host holds of a network. What the store does not hear now it hears later.
    pub async fn leave(&self, subnets: &[IpNet]) {
        let _changing = self.changing.lock().await;
        self.state().held.remove(subnets);
        self.publish();
        if let Err(error) = self.look().await {
            warn!(%error, ?subnets, "could not give back this host's blocks; trying again");
        }
    }

    /// One more block of a subnet.
    pub async fn grow(&self, subnet: IpNet) -> Result<IpNet, Error> {
        let _changing = self.changing.lock().await;
        let (block, _) = self.take(subnet, &[], false).await?;
        self.add(subnet, block);
        Ok(block)
    }

    /// One address that is not in this host's blocks.
    pub async fn claim(&self, subnet: IpNet, address: IpAddr) -> Result<(), Error> {
        let _changing = self.changing.lock().await;
        let block = IpNet::from(address);
        let snapshot = self.list().await?;
        if let Some((held, Block { host, .. })) = snapshot.holder(subnet, address) {
            let kind = if held == block { "is in use there" } else { "is in one of its blocks" };
            return Err(Error::Refused(format!("address {address} of {subnet} belongs to host {host}: it {kind}; choose another --ip")));
        }
        let around = blocks::around(subnet, address);
        let unclaimed = Op::Delete(records::block_key(subnet, around)?, Expect::Absent);
        let record = Block { host: self.host.clone(), home: None };
        self.store.commit(vec![unclaimed, records::put_block(subnet, block, &record)?]).await?;
        self.add(subnet, block);
        Ok(())
    }

    /// Gives back an address that was claimed alone.
    pub async fn release(&self, subnet: IpNet, address: IpAddr) {
        let _changing = self.changing.lock().await;
        let block = IpNet::from(address);
        for held in self.state().held.values_mut().filter(|held| held.agreement.subnets.contains(&subnet)) {
            held.share.mine.blocks.retain(|mine| *mine != block);
        }
        self.publish();
        if let Err(error) = self.look().await {
            warn!(%error, %address, "could not give back an address; trying again");
        }
    }

    /// Keeps this host known and follows the others until the process ends.
    pub async fn run(&self) {
        tokio::join!(self.stay(), self.follow());
    }

    /// Follows the store. What it lacks of ours is written back.
    async fn follow(&self) {
        loop {
            match self.store.watch(&records::all()).await {
                Ok(mut snapshots) => {
                    while let Some(snapshot) = snapshots.next().await {
                        match snapshot {
                            Ok(entries) => self.told(entries).await,
                            Err(error) => warn!(%error, "the store cannot be followed; networks stay as they are"),
                        }
                    }
                    return;
                }
                Err(error) => warn!(%error, "the store cannot be followed; networks stay as they are"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn told(&self, entries: Vec<Entry>) {
        let _changing = self.changing.lock().await;
        if let Err(error) = self.hear(Snapshot::read(entries)).await {
            warn!(%error, "what this host holds could not be written to the store; trying again with its next news");
        }
    }

    /// Says that this host is there, for as long as it is.
    async fn stay(&self) {
        let mut lease = None;
        loop {
            if let Err(error) = self.stay_with(&mut lease).await {
                warn!(%error, host = self.host, "could not say that this host is there; trying again");
            }
            tokio::time::sleep(if lease.is_some() { RENEW } else { AGAIN }).await;
        }
    }

    async fn stay_with(&self, lease: &mut Option<Lease>) -> Result<(), StoreError> {
        if let Some(mine) = lease.as_ref() {
            match self.store.renew(mine).await {
                Err(StoreError::Ended { .. }) => *lease = None,
                result => return result,
            }
        }
        let Some(Uplink { vtep, .. }) = self.state().uplink else { return Ok(()) };
        let (key, value) = (records::alive_key(&self.host)?, vtep.to_string().into_bytes());
        let granted = self.store.grant(&format!("rsnet {}", self.host), LEASE).await?;
        match self.store.hold(&granted, &key, value.clone()).await {
            Err(StoreError::Held { .. }) => {
                self.store.end(&granted).await?;
                return self.succeed(&key, &value).await;
            }
            result => drop(result?),
        }
        *lease = Some(granted);
        Ok(())
    }

    /// Ends the lease that an earlier process of this host left. Another host of the same name is left alone.
    async fn succeed(&self, key: &Key, value: &[u8]) -> Result<(), StoreError> {
        match (self.store.get(key).await?, self.store.holder(key).await?) {
            (Some(entry), Some(lease)) if entry.value == value => self.store.end(&lease).await,
            (Some(entry), _) => {
                let other = String::from_utf8_lossy(&entry.value).into_owned();
                error!(host = self.host, %other, "another host of this name is there: give each its own RSNET_HOST");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn uplink(&self) -> Result<Uplink, Error> {
        let unknown = "this host has no way to the others yet: no route leads to the store or out of the host; name an interface or an address \
                       by RSNET_UNDERLAY";
        self.state().uplink.ok_or_else(|| Error::Refused(unknown.to_owned()))
    }

    /// Writes this host's own record, if it is another than the one that stands.
    async fn introduce(&self, uplink: Uplink) -> Result<(), Error> {
        let record = HostRecord { vtep: uplink.vtep };
        Ok(self.store.put(&records::host_key(&self.host)?, records::value(&record), Expect::Any).await.map(drop)?)
    }

    /// The network's record: found, and like ours, or made. One key holds those of all networks, so that no two can be made side by side that
    /// overlap or have one number.
    async fn enter(&self, wanted: &Wanted) -> Result<NetworkRecord, Error> {
        loop {
            let found = self.store.get(&records::networks_key()?).await?;
            let mut networks = records::networks(found.as_ref());
            if let Some(record) = view::agree(&networks, &wanted.agreement)? {
                return Ok(record);
            }
            let vni = blocks::vni(&wanted.agreement.subnets, |vni| {
                wanted.foreign_vnis.contains(&vni) || networks.iter().any(|network| network.vni == vni)
            });
            let record = NetworkRecord { agreement: wanted.agreement.clone(), vni, by: self.host.clone() };
            networks.push(record.clone());
            match self.write_networks(&networks, found.map(|entry| entry.version)).await {
                Err(StoreError::Conflict { .. }) => {}
                result => return Ok(result.map(|()| record)?),
            }
        }
    }

    async fn write_networks(&self, networks: &[NetworkRecord], version: Option<u64>) -> Result<(), StoreError> {
        let expect = version.map_or(Expect::Absent, Expect::Version);
        self.store.put(&records::networks_key()?, records::value(&networks), expect).await.map(drop)
    }

    /// A block of the subnet that nobody has, with an address for this host itself if it has none there yet.
    async fn take(&self, subnet: IpNet, reserved: &[IpAddr], first: bool) -> Result<(IpNet, Option<IpAddr>), Error> {
        let taken = self.list().await?.blocks_of(subnet);
        for block in blocks::candidates(subnet, &self.host).filter(|block| !taken.keys().any(|other| other.contains(block))) {
            let home = if first { blocks::home(subnet, block, reserved, taken.keys()) } else { None };
            if first && home.is_none() {
                continue;
            }
            let record = Block { host: self.host.clone(), home };
            match self.store.commit(vec![records::put_block(subnet, block, &record)?]).await {
                Err(StoreError::Conflict { .. }) => {}
                result => return Ok(result.map(|_| (block, home))?),
            }
        }
        Err(Error::Refused(format!(
            "subnet {subnet}: every block of addresses belongs to a host already; forget hosts that are gone, or make the network with a larger --subnet"
        )))
    }

    fn add(&self, subnet: IpNet, block: IpNet) {
        for held in self.state().held.values_mut().filter(|held| held.agreement.subnets.contains(&subnet)) {
            held.share.mine.blocks.push(block);
        }
        self.publish();
    }

    async fn list(&self) -> Result<Snapshot, Error> {
        Ok(Snapshot::read(self.store.list(&records::all()).await?))
    }

    async fn look(&self) -> Result<(), Error> {
        let snapshot = self.list().await?;
        self.hear(snapshot).await
    }

    /// Takes in what the store says, and writes what it lacks of ours or has too much.
    async fn hear(&self, snapshot: Snapshot) -> Result<(), Error> {
        let now = Instant::now();
        for held in self.state().held.values_mut() {
            held.hear(&self.host, &snapshot, now);
        }
        self.publish();
        self.write_back(&snapshot).await
    }

    async fn write_back(&self, snapshot: &Snapshot) -> Result<(), Error> {
        let (uplink, missing, spare, lost) = {
            let state = self.state();
            let (missing, spare) =
                view::differences(&self.host, snapshot, state.held.values().map(|held| (&held.agreement, &held.share.mine)));
            let lost: Vec<_> =
                state.held.values().filter(|held| snapshot.network(&held.agreement.subnets).is_none()).map(Held::record).collect();
            (state.uplink, missing, spare, lost)
        };
        if let Some(uplink) = uplink.filter(|uplink| !missing.is_empty() && !snapshot.knows(&self.host, uplink.vtep)) {
            self.introduce(uplink).await?;
        }
        if !lost.is_empty() {
            self.restore_networks(lost).await?;
        }
        for (subnet, block, record) in missing {
            info!(%subnet, %block, "the store lacked a block of this host; it is written back");
            self.write(records::put_block(subnet, block, &record)?).await?;
        }
        for (subnet, block, version) in spare {
            self.write(Op::Delete(records::block_key(subnet, block)?, Expect::Version(version))).await?;
        }
        self.drop_empty_networks().await
    }

    /// Somebody else who was faster is heard of with the next snapshot.
    async fn write(&self, op: Op) -> Result<(), Error> {
        match self.store.commit(vec![op]).await {
            Err(StoreError::Conflict { .. }) => Ok(()),
            result => Ok(result.map(drop)?),
        }
    }

    async fn restore_networks(&self, lost: Vec<NetworkRecord>) -> Result<(), Error> {
        loop {
            let found = self.store.get(&records::networks_key()?).await?;
            let mut networks = records::networks(found.as_ref());
            let known: Vec<_> = networks.iter().map(|network| network.agreement.subnets.clone()).collect();
            networks.extend(lost.iter().filter(|record| !known.contains(&record.agreement.subnets)).cloned());
            if networks.len() == known.len() {
                return Ok(());
            }
            match self.write_networks(&networks, found.map(|entry| entry.version)).await {
                Err(StoreError::Conflict { .. }) => {}
                result => return Ok(result?),
            }
        }
    }

    /// Networks go with their last block.
    async fn drop_empty_networks(&self) -> Result<(), Error> {
        let snapshot = self.list().await?;
        let empty = |network: &NetworkRecord| network.agreement.subnets.iter().all(|subnet| snapshot.blocks_of(*subnet).is_empty());
        if !snapshot.networks.iter().any(empty) {
            return Ok(());
        }
        let left: Vec<_> = snapshot.networks.iter().filter(|network| !empty(network)).cloned().collect();
        match self.write_networks(&left, snapshot.networks_version).await {
            Err(StoreError::Conflict { .. }) => Ok(()),
            result => Ok(result?),
        }
    }

    fn publish(&self) {
        let shares = self.state().held.iter().map(|(subnets, held)| (subnets.clone(), held.share.clone())).collect();
        let view = Arc::new(View { shares });
        self.views.send_if_modified(|known| {
            *known != view && {
                *known = view;
                true
            }
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // nothing that holds it can panic half-way through a change
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn record(&self) -> NetworkRecord {
        NetworkRecord { agreement: self.agreement.clone(), vni: self.share.vni, by: self.share.mine.host.clone() }
    }

    fn hear(&mut self, host: &str, snapshot: &Snapshot, now: Instant) {
        if snapshot.network(&self.agreement.subnets).is_none() {
            self.rebuilt = Some(now + REBUILD);
        }
        let doubtful = self.rebuilt.is_some_and(|rebuilt| now < rebuilt);
        let heard = view::heard(host, &self.agreement, &self.share, snapshot, doubtful);
        for block in self.share.mine.blocks.iter().filter(|block| !heard.mine.blocks.contains(block)) {
            error!(%block, "another host has this host's block of addresses now: it is used no more; restart containers that have addresses of it");
        }
        self.share = heard;
    }
}
