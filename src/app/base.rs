//! What the daemon stands on: its store, the kernel, the firewall, the cluster, and the agent above them.

use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{info, warn};

use super::{AGAIN, Failure};
use crate::agent::{self, Agent};
use crate::cluster::{Cluster, Identity, Times, Uplink};
use crate::config::Settings;
use crate::firewall::nftables::Nftables;
use crate::kernel::{Netlink, NetlinkConfig};
use crate::reconcile::Reconciler;
use crate::store::consul::Consul;
use crate::store::embedded::Embedded;
use crate::store::{Expect, Key, Leases, Store};

/// Bytes: the MTU of Ethernet.
const ETHERNET: u32 = 1500;

pub struct Base {
    pub store: Arc<Embedded>,
    pub kernel: Arc<Netlink>,
    pub firewall: Arc<Nftables>,
    pub reconciler: Arc<Reconciler>,
    /// None: this host is alone.
    pub consul: Option<Arc<Consul>>,
    pub cluster: Arc<Cluster>,
    pub agent: Arc<Agent>,
}

impl Base {
    /// Reads what is declared; leaves the host as it is.
    pub async fn open(settings: &Settings) -> Result<Self, Failure> {
        let data = &settings.data_dir;
        std::fs::create_dir_all(data).map_err(|error| format!("create {}: {error}", data.display()))?;
        let store = Arc::new(Embedded::open(&data.join("state.redb"))?);
        let (kernel, firewall) = host(settings)?;
        let reconciler = Arc::new(Reconciler::new(kernel.clone(), firewall.clone()));
        let consul = settings.consul.clone().map(Consul::new).map(Arc::new);
        let identity = Identity { host: settings.host.clone(), id: machine_id(&*store).await? };
        let cluster = Cluster::new(shared(&consul, &store), identity, Times::default())?;
        let given = agent::Settings { way: settings.attach, shared: consul.is_some() };
        let agent = Arc::new(Agent::load(kernel.clone(), store.clone(), reconciler.clone(), cluster.clone(), given).await?);
        cluster.lend_by(agent.clone());
        if consul.is_none() {
            // this host has no others to reach
            cluster.leave_by(Uplink { vtep: Ipv4Addr::LOCALHOST.into(), mtu: ETHERNET, on_link: None });
        }
        Ok(Base { store, kernel, firewall, reconciler, consul, cluster, agent })
    }

    /// The store of all hosts, or of this one where there are no others.
    pub fn shared(&self) -> Arc<dyn Leases> {
        shared(&self.consul, &self.store)
    }

    /// All that goes on for as long as the daemon runs, but the watch over the host.
    pub fn spawn(&self, background: &mut JoinSet<()>) {
        let (collector, follower, cluster) = (self.agent.clone(), self.agent.clone(), self.cluster.clone());
        background.spawn(async move { collector.collect().await });
        background.spawn(async move { follower.follow().await });
        background.spawn(cluster.run());
        if let Some(consul) = &self.consul {
            background.spawn(reach(consul.clone()));
        }
    }
}

fn shared(consul: &Option<Arc<Consul>>, store: &Arc<Embedded>) -> Arc<dyn Leases> {
    match consul {
        Some(consul) => consul.clone(),
        None => store.clone(),
    }
}

/// What tells this machine from another that gets its name: random, on its own disk.
async fn machine_id(store: &dyn Store) -> Result<String, Failure> {
    let key = Key::new("host/id")?;
    if let Some(entry) = store.get(&key).await? {
        return Ok(String::from_utf8(entry.value)?);
    }
    let id = format!("{:032x}", rand::random::<u128>());
    store.put(&key, id.clone().into_bytes(), Expect::Absent).await?;
    Ok(id)
}

/// The kernel and the firewall of the network namespace that this process is in.
pub fn host(settings: &Settings) -> Result<(Arc<Netlink>, Arc<Nftables>), Failure> {
    let config = NetlinkConfig { proc_sys_net: settings.proc_sys_net.clone(), ..NetlinkConfig::default() };
    Ok((Arc::new(Netlink::new(config)?), Arc::new(Nftables::open()?)))
}

/// Says why the store that hosts share cannot be used, each reason once, and when it can. No network waits for it.
async fn reach(store: Arc<Consul>) {
    let mut told = String::new();
    while let Err(error) = store.check().await {
        let reason = error.to_string();
        if reason != told {
            warn!("{reason}. Networks of this host are served all the same; asking again every {} s", AGAIN.as_secs());
        }
        told = reason;
        sleep(AGAIN).await;
    }
    info!("the store {} is there", store.address());
}
