//! How queries ended, for metrics.

use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// Counts from the start of this process on.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Seconds to the answer, by who gave it: `answered_by` is `rsnet` or `docker`.
    pub seconds: Family<Answerer, Histogram, fn() -> Histogram>,
    /// Queries that nobody answered.
    pub failed: Counter,
}

type Answerer = [(&'static str, &'static str); 1];
const RSNET: Answerer = [("answered_by", "rsnet")];
const DOCKER: Answerer = [("answered_by", "docker")];

impl Default for Tally {
    /// Both answerers are there from the beginning on, so that what has not happened yet is 0 and not unknown.
    fn default() -> Self {
        let seconds = Family::<_, _, fn() -> Histogram>::new_with_constructor(histogram);
        for answerer in [RSNET, DOCKER] {
            drop(seconds.get_or_create(&answerer));
        }
        Tally { seconds, failed: Counter::default() }
    }
}

/// From 50 µs on, which an answer from memory takes at most, up to 13 s: longer Docker's resolver is not waited for.
fn histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.00005, 4.0, 10))
}

impl Tally {
    /// A query that came at `since` is answered by what rsnet knows.
    pub fn known(&self, since: Instant) {
        self.seconds.get_or_create(&RSNET).observe(since.elapsed().as_secs_f64());
    }

    /// Docker's resolver answered it, or nobody.
    pub fn passed(&self, since: Instant, answered: bool) {
        if answered {
            self.seconds.get_or_create(&DOCKER).observe(since.elapsed().as_secs_f64());
        } else {
            self.failed.inc();
        }
    }
}
