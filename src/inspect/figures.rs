//! What Prometheus is told beyond the engine's calls. Names follow its conventions: base units, `_total` for what only grows, moments as
//! seconds since 1970. docs/operations.md lists them.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::Sources;
use crate::reconcile::{History, KINDS};
use crate::store::consul::Consul;
use crate::store::embedded;
use crate::telemetry::Figures;

type Labels = Vec<(&'static str, String)>;

#[async_trait]
impl Figures for Sources {
    async fn register(&self, to: &mut Registry) {
        to.register("build", "The version of this daemon", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        gauge(to, "start_time_seconds", "When this daemon was started", moment(self.started.elapsed()));
        self.declared(to);
        self.pools(to).await;
        drift(to, &self.reconciler.history());
        self.stores(to);
        self.names(to);
    }
}

impl Sources {
    fn declared(&self, to: &mut Registry) {
        let overview = self.overview();
        let of_mode = |counts: &std::collections::BTreeMap<String, usize>| -> Vec<(String, f64)> {
            counts.iter().map(|(mode, count)| (mode.clone(), *count as f64)).collect()
        };
        gauges(to, "networks", "Networks of this host", "mode", of_mode(&overview.networks));
        gauges(to, "endpoints", "Endpoints of this host", "mode", of_mode(&overview.endpoints));
        let known = overview.hosts.known;
        gauge(to, "hosts_known", "Hosts that share networks, this one among them, as it last heard", known as f64);
        gauge(to, "hosts_alive", "Those of them that renew their lease", (known - overview.hosts.gone.len()) as f64);
        gauge(to, "store_up", "1 if the store can be used", f64::from(u8::from(overview.store.in_touch)));
    }

    async fn pools(&self, to: &mut Registry) {
        let pools = self.agent.pools().await;
        let used = pools.iter().map(|pool| (pool.subnet.clone(), pool.used as f64)).collect();
        let all = pools.iter().map(|pool| (pool.subnet.clone(), pool.addresses as f64)).collect();
        gauges(to, "pool_used_addresses", "Addresses in use of those that rsnet's IPAM gives here", "subnet", used);
        gauges(
            to,
            "pool_addresses",
            "Addresses that rsnet's IPAM gives here; of a shared network those of this host's blocks",
            "subnet",
            all,
        );
    }

    fn stores(&self, to: &mut Registry) {
        if let Ok(free) = embedded::free(&self.data_dir) {
            gauge(to, "state_free_bytes", "What the disk of this host's own state has left", free as f64);
        }
        if let Some(consul) = &self.consul {
            of_consul(to, consul);
        }
    }
}

impl Sources {
    fn names(&self, to: &mut Registry) {
        let tally = self.dns.tally();
        to.register("dns_query_duration_seconds", "Time from a container's query to its answer, by who gave it", tally.seconds);
        to.register("dns_queries_failed", "Queries of containers that nobody answered", tally.failed);
        let [here, elsewhere] = self.names.directory().count().map(|count| count as f64);
        let known = vec![("this host".to_owned(), here), ("others".to_owned(), elsewhere)];
        gauges(to, "names_known", "Names of containers on networks that hosts share", "of", known);
        if let Some(reach) = self.peers.as_ref().map(|peers| peers.reach()) {
            let asked = vec![("answered".to_owned(), reach.answered), ("failed".to_owned(), reach.failed)];
            counters(to, "peer_questions", "Questions to other hosts", "result", asked);
            gauge(to, "peers_reached", "Hosts alive that answered the last question", reach.reached as f64);
            gauge(to, "peers_missed", "Hosts alive that did not", reach.missed as f64);
        }
    }
}

fn of_consul(to: &mut Registry, consul: &Consul) {
    let (contact, traffic) = (consul.contact(), consul.traffic());
    if let Some(heard) = contact.heard {
        gauge(to, "store_last_contact_timestamp_seconds", "When the store last answered", moment(heard.elapsed()));
    }
    if let Some(ahead) = contact.ahead {
        gauge(to, "store_clock_ahead_seconds", "By how much this host's clock is ahead of the store's", ahead as f64);
    }
    counter(to, "store_requests", "Questions to the store, each try counted", traffic.asked);
    counter(to, "store_received_bytes", "Bytes of the store's answers", traffic.heard);
}

fn drift(to: &mut Registry, history: &History) {
    let of_kind = |counts: &std::collections::BTreeMap<&str, u64>| -> Vec<(String, u64)> {
        KINDS.iter().map(|kind| ((*kind).to_owned(), counts.get(kind).copied().unwrap_or(0))).collect()
    };
    counters(to, "drift_found", "What others took away or altered", "kind", of_kind(&history.found));
    counters(to, "drift_healed", "What of that was put back", "kind", of_kind(&history.healed));
    to.register("converge_duration_seconds", "Time of a look at the whole host, with what it mended", history.seconds.clone());
    let failing = history.last.as_ref().map_or(0, |look| look.failed.len());
    gauge(to, "converge_failing", "Things that could not be made as planned in the last look", failing as f64);
    if let Some(look) = &history.last {
        gauge(to, "converge_last_timestamp_seconds", "When the last look at the whole host ended", moment(look.at.elapsed()));
    }
}

/// Seconds since 1970 of what is so long ago.
fn moment(ago: Duration) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(ago).as_secs_f64()
}

fn gauge(to: &mut Registry, name: &str, help: &str, value: f64) {
    let gauge = Gauge::<f64, AtomicU64>::default();
    gauge.set(value);
    to.register(name, help, gauge);
}

fn gauges(to: &mut Registry, name: &str, help: &str, label: &'static str, values: Vec<(String, f64)>) {
    let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
    for (of, value) in values {
        family.get_or_create(&vec![(label, of)]).set(value);
    }
    to.register(name, help, family);
}

fn counter(to: &mut Registry, name: &str, help: &str, value: u64) {
    let counter = Counter::<u64>::default();
    counter.inc_by(value);
    to.register(name, help, counter);
}

fn counters(to: &mut Registry, name: &str, help: &str, label: &'static str, values: Vec<(String, u64)>) {
    let family = Family::<Labels, Counter>::default();
    for (of, value) in values {
        family.get_or_create(&vec![(label, of)]).inc_by(value);
    }
    to.register(name, help, family);
}
