//! How this host stands, in few numbers: `rsnet status`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::agent::Agent;
use crate::dns::Dns;
use crate::firewall::Firewall;
use crate::kernel::Kernel;
use crate::names::Names;
use crate::peers::Peers;
use crate::reconcile::{History, Reconciler};
use crate::store::consul::Consul;

/// After so long without a look at the whole host nobody works here any more.
const STALE: Duration = Duration::from_secs(300);

/// What the daemon can be asked about itself.
pub struct Sources {
    pub agent: Arc<Agent>,
    pub reconciler: Arc<Reconciler>,
    /// The store that hosts share; none: this host is alone.
    pub consul: Option<Arc<Consul>>,
    pub kernel: Arc<dyn Kernel>,
    pub firewall: Arc<dyn Firewall>,
    /// Where this host's own state is.
    pub data_dir: PathBuf,
    pub started: Instant,
    pub dns: Arc<Dns>,
    pub names: Arc<Names>,
    /// None: hosts do not ask each other.
    pub peers: Option<Arc<Peers>>,
}

/// The daemon that answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Version {
    pub version: String,
    /// Seconds since it was started.
    pub up: u64,
}

/// How this host stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Overview {
    #[serde(flatten)]
    pub daemon: Version,
    pub store: StoreSeen,
    /// How many of each mode.
    pub networks: BTreeMap<String, usize>,
    /// How many on networks of each mode.
    pub endpoints: BTreeMap<String, usize>,
    pub hosts: HostsSeen,
    pub drift: Drift,
}

/// The store that hosts share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoreSeen {
    /// `embedded`, or Consul's address.
    pub place: String,
    pub in_touch: bool,
    /// Seconds since it last answered.
    pub heard: Option<u64>,
    /// Why it did not the last time.
    pub problem: Option<String>,
}

/// The hosts that share networks, this one among them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HostsSeen {
    pub known: usize,
    /// The names of those that are not alive.
    pub gone: Vec<String>,
}

/// What others took away or altered, and rsnet put back, since the daemon was started.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Drift {
    pub found: u64,
    pub healed: u64,
    /// The last that was put back.
    pub last: Option<String>,
    /// Seconds since then.
    pub last_ago: Option<u64>,
    /// Whether the first look at the whole host is over.
    pub looked: bool,
    /// What could not be made as planned, in the last look.
    pub failing: Vec<String>,
}

impl Sources {
    pub fn version(&self) -> Version {
        Version { version: env!("CARGO_PKG_VERSION").to_owned(), up: self.started.elapsed().as_secs() }
    }

    /// Whether this process still does its work: it looks at the whole host every minute.
    pub fn alive(&self) -> Result<&'static str, String> {
        let last = self.reconciler.history().last.map_or(self.started.elapsed(), |look| look.at.elapsed());
        if last < STALE { Ok("alive") } else { Err(format!("the last look at the host was {} s ago", last.as_secs())) }
    }

    /// Whether the host is as planned since this process began, so that calls find what they build on. A store that is away is no reason.
    pub fn ready(&self) -> Result<&'static str, String> {
        let looked = self.reconciler.history().last.is_some();
        if looked { Ok("ready") } else { Err("the first look at the whole host is not over".to_owned()) }
    }

    pub fn overview(&self) -> Overview {
        let (mut networks, mut endpoints) = (BTreeMap::new(), BTreeMap::new());
        for network in self.agent.list_networks() {
            *networks.entry(network.mode.clone()).or_default() += 1;
            *endpoints.entry(network.mode).or_default() += network.endpoints;
        }
        let hosts = self.agent.hosts();
        let gone = hosts.hosts.iter().filter(|host| !host.alive).map(|host| host.name.clone()).collect();
        Overview {
            daemon: self.version(),
            store: self.store(hosts.in_touch),
            networks,
            endpoints,
            hosts: HostsSeen { known: hosts.hosts.len(), gone },
            drift: Drift::of(&self.reconciler.history()),
        }
    }

    pub(super) fn store(&self, lease_renewed: bool) -> StoreSeen {
        let Some(consul) = &self.consul else {
            return StoreSeen { place: "embedded".to_owned(), in_touch: true, heard: None, problem: None };
        };
        let contact = consul.contact();
        StoreSeen {
            place: consul.address().to_string(),
            in_touch: lease_renewed && contact.problem.is_none(),
            heard: contact.heard.map(|at| at.elapsed().as_secs()),
            problem: contact.problem,
        }
    }
}

impl Drift {
    fn of(history: &History) -> Self {
        let last = history.last_healed.clone();
        let failing = history.last.iter().flat_map(|look| look.failed.iter().map(|failed| failed.why.clone()));
        Drift {
            found: history.found.values().sum(),
            healed: history.healed.values().sum(),
            last_ago: last.as_ref().map(|(at, _)| at.elapsed().as_secs()),
            last: last.map(|(_, what)| what),
            looked: history.last.is_some(),
            failing: failing.collect(),
        }
    }
}
