//! CATALOG: this host's containers as services in Consul's catalog, for programs that look for services there. Off unless a setting says so.
//!
//! Owns the node `rsnet-HOST` of the catalog. What is to be there is decided purely ([`services`]) from what the engine told; a round compares it
//! with what is there and mends the difference. So a start, a change and what somebody else altered are the same, and nothing is remembered.
//! No call waits for it, and no name of rsnet's own depends on it.
//!
//! A host that is gone cannot take its services away: when its lease is over the others do.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::cluster::View;
use crate::docker::{Container, Health};
use crate::model::NetworkId;
use crate::store::StoreError;
use crate::store::consul::{Consul, Node, Service};

/// How often the catalog is read though nothing was heard.
const AGAIN: Duration = Duration::from_secs(60);
/// How often it is looked whether something is to be done.
const TICK: Duration = Duration::from_secs(10);
/// Between two rounds: what changes comes in several pieces.
const BREATH: Duration = Duration::from_millis(200);
/// How long a host is dead or forgotten before it counts as gone: a store that lost its keys has it again by then.
const GRACE: Duration = Duration::from_secs(10);

/// The services that containers are, by id: one for each network of these, which has a name.
pub fn services(host: &str, containers: &[Container], networks: &BTreeMap<NetworkId, String>) -> BTreeMap<String, Service> {
    let of = |container: &Container| -> Vec<(String, Service)> {
        let on = |(network, attachment): (&NetworkId, &crate::docker::Attachment)| {
            let (network, address) = (networks.get(network)?, *attachment.addresses.first()?);
            let short = &container.id[..container.id.len().min(10)];
            Some((format!("rsnet-{host}-{short}-{network}"), service(container, network, address)))
        };
        container.attached.iter().filter_map(on).collect()
    };
    containers.iter().flat_map(of).collect()
}

fn service(container: &Container, network: &str, address: IpAddr) -> Service {
    let (passing, output) = match container.health {
        None => (true, "runs"),
        Some(Health::Starting) => (false, "starting"),
        Some(Health::Healthy) => (true, "healthy"),
        Some(Health::Unhealthy) => (false, "unhealthy"),
    };
    Service {
        name: container.service.clone().unwrap_or_else(|| container.name.clone()),
        address,
        port: container.port.unwrap_or_default(),
        tags: vec![network.to_owned()],
        passing,
        output: output.to_owned(),
    }
}

/// This host's part in the catalog.
pub struct Catalog {
    host: String,
    consul: Arc<Consul>,
    views: watch::Receiver<Arc<View>>,
    changes: watch::Receiver<u64>,
    here: Box<dyn Fn() -> Option<BTreeMap<String, Service>> + Send + Sync>,
}

/// What this process knows from one round to the next.
#[derive(Default)]
pub struct Memory {
    /// Other hosts that it heard of at any time, and of those that are not alive since when.
    met: BTreeMap<String, Option<Instant>>,
    /// Those that are gone, and have nothing in the catalog.
    cleared: BTreeSet<String>,
    /// What the last round made so, and when.
    done: Option<(Instant, Node, BTreeSet<String>)>,
}

impl Catalog {
    /// Of a host called `host`. `here` tells its [`services`]; none: it is not known yet. `changes` counts when they may be others.
    pub fn new(
        host: String,
        consul: Arc<Consul>,
        views: watch::Receiver<Arc<View>>,
        changes: watch::Receiver<u64>,
        here: impl Fn() -> Option<BTreeMap<String, Service>> + Send + Sync + 'static,
    ) -> Self {
        Catalog { host, consul, views, changes, here: Box::new(here) }
    }

    /// Until it is dropped.
    pub async fn run(self) {
        let (mut views, mut changes) = (self.views.clone(), self.changes.clone());
        let (mut memory, mut told) = (Memory::default(), String::new());
        loop {
            views.mark_unchanged();
            changes.mark_unchanged();
            let problem = self.round(&mut memory).await.err().map_or_else(String::new, |error| error.to_string());
            if problem != told && !problem.is_empty() {
                warn!("{problem}. RSNET_CATALOG=on needs packaging/consul-policy-catalog.hcl too where Consul has ACLs; trying again");
            }
            told = problem;
            sleep(BREATH).await;
            let heard = async {
                tokio::select! { _ = views.changed() => {}, _ = changes.changed() => {} }
            };
            let _ = timeout(TICK, heard).await;
        }
    }

    /// Makes the catalog say what is. Does nothing where it did that less than a minute ago.
    pub async fn round(&self, memory: &mut Memory) -> Result<(), StoreError> {
        let view = self.views.borrow().clone();
        let (Some(services), Some(address)) = ((self.here)(), view.vtep) else { return Ok(()) };
        let gone = memory.gone(&view, &self.host, Instant::now());
        let wanted = Node { name: self.node(&self.host), address, services };
        if memory.done.as_ref().is_some_and(|(at, node, left)| at.elapsed() < AGAIN && *node == wanted && *left == gone) {
            return Ok(());
        }
        memory.done = None;
        self.settle(&wanted).await?;
        for host in &gone {
            if memory.cleared.insert(host.clone())
                && let Err(error) = self.clear(host).await
            {
                memory.cleared.remove(host);
                return Err(error);
            }
        }
        memory.done = Some((Instant::now(), wanted, gone));
        Ok(())
    }

    /// What a host that had the setting before left there; to be called where it has not.
    pub async fn retract(&self) -> Result<(), StoreError> {
        self.clear(&self.host).await
    }

    async fn settle(&self, wanted: &Node) -> Result<(), StoreError> {
        if wanted.services.is_empty() {
            return self.clear(&self.host).await;
        }
        let found = self.consul.node(&wanted.name).await?;
        let moved = found.as_ref().is_some_and(|found| found.address != wanted.address);
        let there = found.map_or_else(BTreeMap::new, |found| found.services);
        for id in there.keys().filter(|id| !wanted.services.contains_key(*id)) {
            self.consul.deregister(&wanted.name, Some(id)).await?;
        }
        for (id, service) in wanted.services.iter().filter(|(id, service)| moved || there.get(*id) != Some(service)) {
            self.consul.register(&wanted.name, wanted.address, id, service).await?;
        }
        Ok(())
    }

    async fn clear(&self, host: &str) -> Result<(), StoreError> {
        let node = self.node(host);
        if self.consul.node(&node).await?.is_some() {
            self.consul.deregister(&node, None).await?;
            info!("services of host {host} are taken out of the catalog");
        }
        Ok(())
    }

    /// `rsnet-h1`; two clusters in one Consul differ by their prefix.
    fn node(&self, host: &str) -> String {
        format!("{}-{host}", self.consul.address().prefix.as_str().replace('/', "-"))
    }
}

impl Memory {
    /// Hosts that are dead or forgotten.
    fn gone(&mut self, view: &View, me: &str, now: Instant) -> BTreeSet<String> {
        for host in view.hosts.iter().filter(|host| host.name != me) {
            self.met.entry(host.name.clone()).or_default();
        }
        let alive: BTreeSet<&str> = view.hosts.iter().filter(|host| host.alive).map(|host| host.name.as_str()).collect();
        for (host, since) in &mut self.met {
            *since = if alive.contains(host.as_str()) { None } else { since.or(Some(now)) };
        }
        let long = |since: &Option<Instant>| since.is_some_and(|since| now.duration_since(since) >= GRACE);
        let gone: BTreeSet<String> = self.met.iter().filter(|(_, since)| long(since)).map(|(host, _)| host.clone()).collect();
        self.cleared.retain(|host| gone.contains(host));
        gone
    }
}
