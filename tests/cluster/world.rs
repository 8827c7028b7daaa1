//! Hosts in one process, each with a line to the store that can be cut.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use ipnet::IpNet;
use rsnet::cluster::{Cluster, Identity, Lender, Standing, Times, Uplink, View, Wanted};
use rsnet::model::Share;
use rsnet::store::{Embedded, Entry, Key, Lease, Leases, Op, Prefix, Snapshots, Store, StoreError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub const PATIENCE: Duration = Duration::from_secs(20);

/// A host's line to the store.
pub struct Line {
    store: Arc<dyn Leases>,
    cut: watch::Sender<bool>,
    lease: Mutex<Option<Lease>>,
    pub wrote: AtomicBool,
}

impl Line {
    fn open(&self) -> Result<(), StoreError> {
        let down =
            || StoreError::Unreachable { action: "ask".into(), store: "the test's".into(), sent: false, cause: "the line is cut".into() };
        if *self.cut.borrow() { Err(down()) } else { Ok(()) }
    }
}

#[async_trait]
impl Store for Line {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.open()?;
        self.store.get(key).await
    }
    async fn list(&self, prefix: &Prefix) -> Result<Vec<Entry>, StoreError> {
        self.open()?;
        self.store.list(prefix).await
    }
    async fn commit(&self, ops: Vec<Op>) -> Result<Vec<Option<u64>>, StoreError> {
        self.open()?;
        self.wrote.store(true, Ordering::SeqCst);
        let done = self.store.commit(ops).await;
        // The answer may be lost where the question arrived.
        self.open()?;
        done
    }
    async fn watch(&self, prefix: &Prefix) -> Result<Snapshots, StoreError> {
        self.open()?;
        let (store, prefix, cut) = (self.store.clone(), prefix.clone(), self.cut.subscribe());
        let inner = store.watch(&prefix).await?;
        let next = |(store, prefix, mut cut, inner): (Arc<dyn Leases>, Prefix, watch::Receiver<bool>, Option<Snapshots>)| async move {
            let Some(mut snapshots) = inner else {
                cut.wait_for(|cut| !cut).await.ok()?;
                let mut snapshots = store.watch(&prefix).await.ok()?;
                let first = snapshots.next().await?;
                return Some((first, (store, prefix, cut, Some(snapshots))));
            };
            let heard = tokio::select! {
                biased;
                _ = cut.wait_for(|cut| *cut) => None,
                heard = snapshots.next() => Some(heard?),
            };
            let down =
                || StoreError::Unreachable { action: "watch".into(), store: "the test's".into(), sent: false, cause: "it is cut".into() };
            let rest = heard.is_some().then_some(snapshots);
            Some((heard.unwrap_or_else(|| Err(down())), (store, prefix, cut, rest)))
        };
        Ok(stream::unfold((store, prefix, cut, Some(inner)), next).boxed())
    }
}

#[async_trait]
impl Leases for Line {
    async fn grant(&self, name: &str, ttl: Duration) -> Result<Lease, StoreError> {
        self.open()?;
        let lease = self.store.grant(name, ttl).await?;
        *self.lease.lock().unwrap() = Some(lease.clone());
        Ok(lease)
    }
    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        self.open()?;
        self.store.renew(lease).await
    }
    async fn end(&self, lease: &Lease) -> Result<(), StoreError> {
        self.open()?;
        self.store.end(lease).await
    }
    async fn hold(&self, lease: &Lease, key: &Key, value: Vec<u8>) -> Result<u64, StoreError> {
        self.open()?;
        self.store.hold(lease, key, value).await
    }
    async fn holder(&self, key: &Key) -> Result<Option<Lease>, StoreError> {
        self.open()?;
        self.store.holder(key).await
    }
}

/// A host: its cluster, running.
pub struct Host {
    pub name: String,
    pub cluster: Arc<Cluster>,
    pub line: Arc<Line>,
    task: JoinHandle<()>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn times() -> Times {
    let ms = Duration::from_millis;
    Times {
        lease: Duration::from_secs(10),
        grace: ms(300),
        rebuild: Duration::from_secs(2),
        breath: ms(20),
        again: ms(50),
        answer: ms(1000),
        sweep: Duration::from_secs(60),
        limit: Duration::from_secs(9),
    }
}

impl Host {
    pub fn start(store: &Arc<dyn Leases>, name: &str, number: u8) -> Self {
        Self::start_as(store, name, number, name, vec![], times())
    }

    pub fn start_as(store: &Arc<dyn Leases>, name: &str, number: u8, id: &str, held: Vec<(Wanted, Share)>, times: Times) -> Self {
        let line =
            Arc::new(Line { store: store.clone(), cut: watch::Sender::new(false), lease: Mutex::default(), wrote: AtomicBool::new(false) });
        let identity = Identity { host: name.into(), id: id.into() };
        let uplink = Uplink { vtep: IpAddr::from([192, 0, 2, number]), mtu: 1500, on_link: None };
        let cluster = Cluster::new(line.clone(), identity, times).unwrap();
        held.into_iter().for_each(|(wanted, held)| cluster.resume(wanted, held));
        cluster.leave_by(uplink);
        let task = tokio::spawn(cluster.clone().run());
        Host { name: name.into(), cluster, line, task }
    }

    /// From the store.
    pub fn cut(&self, cut: bool) {
        self.line.cut.send_replace(cut);
    }

    pub fn is_cut(&self) -> bool {
        *self.line.cut.borrow()
    }

    /// As if it had not renewed its lease in time.
    pub async fn expire(&self) {
        let lease = self.line.lease.lock().unwrap().clone();
        if let Some(lease) = lease {
            self.line.store.end(&lease).await.unwrap();
        }
    }

    pub fn view(&self) -> Arc<View> {
        self.cluster.views().borrow().clone()
    }

    pub fn standing(&self, subnet: &str) -> Standing {
        self.view().of(net(subnet)).unwrap_or_else(|| panic!("{} has no part in {subnet}", self.name)).clone()
    }

    /// Asks another host whose its blocks are by now, as if both could reach each other; what it loses by that.
    pub fn ask(&self, other: &Host) -> Vec<IpNet> {
        let Some(inquiry) = self.cluster.inquiry() else { return vec![] };
        self.cluster.heed(&carried(&other.cluster.testimony(&carried(&inquiry))))
    }

    pub fn mine(&self) -> BTreeSet<IpNet> {
        self.view().networks.iter().flat_map(|network| network.share.mine.blocks.clone()).collect()
    }

    /// Host and blocks of all peers in a network.
    pub fn peers(&self, subnet: &str) -> BTreeSet<(String, IpNet)> {
        let peers = self.standing(subnet).share.peers;
        peers.iter().flat_map(|peer| peer.blocks.iter().map(|block| (peer.host.clone(), *block))).collect()
    }
}

/// As it comes to another host.
pub fn carried<T: Serialize + DeserializeOwned>(said: &T) -> T {
    serde_json::from_slice(&serde_json::to_vec(said).unwrap()).unwrap()
}

pub fn embedded() -> (tempfile::TempDir, Arc<dyn Leases>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
    (dir, Arc::new(store))
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn wanted(subnets: &[&str]) -> Wanted {
    let subnets: Vec<IpNet> = subnets.iter().map(|subnet| net(subnet)).collect();
    let reserved = subnets.iter().filter_map(|subnet| subnet.hosts().next()).collect();
    Wanted { subnets, reserved, ..Wanted::default() }
}

/// What all say of each other is what each says of itself.
pub fn agree(hosts: &[&Host], subnet: &str) -> Result<(), String> {
    let all: BTreeSet<(String, IpNet)> =
        hosts.iter().flat_map(|host| host.standing(subnet).share.mine.blocks.into_iter().map(|block| (host.name.clone(), block))).collect();
    let distinct: BTreeSet<IpNet> = all.iter().map(|(_, block)| *block).collect();
    assert_eq!(distinct.len(), all.len(), "a block twice: {all:?}");
    for host in hosts {
        let others: BTreeSet<_> = all.iter().filter(|(name, _)| *name != host.name).cloned().collect();
        let told = host.peers(subnet);
        if told != others {
            return Err(format!("{} says {told:?}, they say {others:?}", host.name));
        }
        for peer in host.standing(subnet).share.others() {
            let own = hosts.iter().find(|other| other.name == peer.host).unwrap().standing(subnet).share.mine;
            if peer.vtep != own.vtep || peer.mac != own.mac || peer.homes != own.homes {
                return Err(format!("{} says {peer:?}, it says {own:?}", host.name));
            }
        }
    }
    Ok(())
}

pub async fn until<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(why) => assert!(Instant::now() < deadline, "waited for {what}: {why}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn when(holds: bool) -> Result<(), String> {
    holds.then_some(()).ok_or_else(|| "not yet".to_owned())
}

/// Keys below `cluster/block`.
pub async fn recorded(store: &Arc<dyn Leases>) -> Vec<String> {
    let entries = store.list(&Prefix::below(&Key::new("cluster/block").unwrap())).await.unwrap();
    entries.into_iter().map(|entry| entry.key.to_string()).collect()
}

pub async fn networks(store: &Arc<dyn Leases>) -> String {
    let entry = store.get(&Key::new("cluster/networks/all").unwrap()).await.unwrap();
    entry.map(|entry| String::from_utf8(entry.value).unwrap()).unwrap_or_default()
}

/// Lends whatever is asked for, except for what it says no to.
pub struct Owner {
    pub refuses: Option<IpAddr>,
    /// What it gives to who wants any, the last first.
    pub free: Mutex<Vec<IpAddr>>,
    pub lent: Mutex<Vec<(IpAddr, String)>>,
}

#[async_trait]
impl Lender for Owner {
    async fn lend(&self, address: IpAddr, to: &str) -> Result<(), String> {
        if self.refuses == Some(address) {
            return Err("container web".into());
        }
        self.lent.lock().unwrap().push((address, to.to_owned()));
        Ok(())
    }
    async fn lend_any(&self, _: IpNet, to: &str) -> Result<IpAddr, String> {
        let address = self.free.lock().unwrap().pop().ok_or("has none free")?;
        self.lent.lock().unwrap().push((address, to.to_owned()));
        Ok(address)
    }
    async fn restore(&self, address: IpAddr) {
        self.lent.lock().unwrap().retain(|(lent, _)| *lent != address);
    }
}
