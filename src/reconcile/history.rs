//! What the looks at the whole host found and did since this process began: for people and for metrics.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use tokio::time::Instant;

use crate::model::Key;

/// All looks so far. What the first one makes is no drift: nothing stood there by this process's plans before.
#[derive(Clone, Debug)]
pub struct History {
    pub looks: u64,
    /// Seconds that looks took.
    pub seconds: Histogram,
    /// None: the first look is not over.
    pub last: Option<Look>,
    /// Differences by what they were of, see [`kind`].
    pub found: BTreeMap<&'static str, u64>,
    /// Those of them that were mended.
    pub healed: BTreeMap<&'static str, u64>,
    /// The last that was mended, and when.
    pub last_healed: Option<(Instant, String)>,
    /// The last that were mended, the last first; no key: something of the firewall.
    pub recent: VecDeque<(Instant, Option<Key>)>,
}

/// How many of them are remembered.
const RECENT: usize = 64;

/// One look at the whole host.
#[derive(Clone, Debug)]
pub struct Look {
    pub at: Instant,
    pub took: Duration,
    pub failed: Vec<Failed>,
}

/// What could not be made as planned.
#[derive(Clone, Debug)]
pub struct Failed {
    /// As an error names it.
    pub object: String,
    /// The whole error.
    pub why: String,
    pub in_firewall: bool,
}

impl Default for History {
    fn default() -> Self {
        // from 1 ms on: a host with nothing on it; up to 8 s
        let seconds = Histogram::new(exponential_buckets(0.001, 2.0, 14));
        let (looks, last, found, healed, last_healed, recent) = Default::default();
        History { looks, seconds, last, found, healed, last_healed, recent }
    }
}

impl History {
    pub(super) fn found(&mut self, kind: &'static str, count: usize) {
        self.count(|history| &mut history.found, kind, count);
    }

    pub(super) fn healed(&mut self, kind: &'static str, count: usize, what: String) {
        self.count(|history| &mut history.healed, kind, count);
        if self.looks > 0 {
            self.last_healed = Some((Instant::now(), what));
        }
    }

    pub(super) fn remember(&mut self, what: Option<Key>) {
        if self.looks > 0 {
            self.recent.truncate(RECENT - 1);
            self.recent.push_front((Instant::now(), what));
        }
    }

    fn count(&mut self, which: impl FnOnce(&mut History) -> &mut BTreeMap<&'static str, u64>, kind: &'static str, count: usize) {
        if self.looks > 0 {
            *which(self).entry(kind).or_default() += count as u64;
        }
    }

    pub(super) fn looked(&mut self, look: Look) {
        self.looks += 1;
        self.seconds.observe(look.took.as_secs_f64());
        self.last = Some(look);
    }
}

/// What a difference is of, in a word: a label of metrics.
pub fn kind(key: &Key) -> &'static str {
    match key {
        Key::HostPort { .. } => "host_port",
        Key::HostSysctl(_) | Key::LinkSysctl(_) => "sysctl",
        Key::Link(_) => "link",
        Key::Attachment(_) => "attachment",
        Key::Address(..) => "address",
        Key::Neighbour(..) => "neighbour",
        Key::Fdb(..) => "fdb",
        Key::Route { .. } => "route",
        Key::Port(_) => "bridge_port",
    }
}

/// The kind of all differences in the firewall.
pub const FIREWALL: &str = "firewall";
