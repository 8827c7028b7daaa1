//! Whole snapshots of a prefix by blocking queries.

use std::sync::{Arc, Weak};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::super::{Entry, Prefix, Snapshots, StoreError};
use super::Kv;
use super::client::Ask;

/// How long Consul holds a question without news. Then it sends the whole prefix again; and what it does not wake us for (see
/// `docs/store.md`) is seen.
const WAIT: Duration = Duration::from_secs(60);
/// Between an answer and the next question: a prefix that many write at once is not read for every write.
const BREATH: Duration = Duration::from_millis(100);

/// One reader of one prefix. Holds the store only while it asks.
struct Watcher {
    kv: Weak<Kv>,
    closed: CancellationToken,
    prefix: Prefix,
    /// What Consul gave with the last answer; 0: answer at once.
    index: u64,
    seen: Option<Vec<Entry>>,
    /// When to ask next.
    next: Instant,
    /// How long to wait after the next failure.
    pauses: ExponentialBackoff,
}

pub fn snapshots(kv: &Arc<Kv>, closed: CancellationToken, prefix: Prefix) -> Snapshots {
    let kv = Arc::downgrade(kv);
    let watcher = Watcher { kv, closed, prefix, index: 0, seen: None, next: Instant::now(), pauses: pauses() };
    stream::unfold(watcher, Watcher::next).boxed()
}

/// Soon at first, then every three seconds or so: a thousand hosts ask a Consul that comes back a few hundred times a second.
fn pauses() -> ExponentialBackoff {
    let (first, longest) = (Duration::from_millis(200), Duration::from_secs(3));
    ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest).without_max_times().with_jitter().build()
}

impl Watcher {
    async fn next(mut self) -> Option<(Result<Vec<Entry>, StoreError>, Self)> {
        let closed = self.closed.clone();
        loop {
            let read = closed.run_until_cancelled(self.read()).await??;
            let fresh = read.map(|entries| (self.seen.as_ref() != Some(&entries)).then_some(entries));
            match fresh {
                Ok(None) => {}
                Ok(Some(entries)) => {
                    self.seen = Some(entries.clone());
                    return Some((Ok(entries), self));
                }
                Err(error) => return Some((Err(error), self)),
            }
        }
    }

    /// The prefix once it may have changed. `None`: the store is gone.
    async fn read(&mut self) -> Option<Result<Vec<Entry>, StoreError>> {
        sleep_until(self.next).await;
        let kv = self.kv.upgrade()?;
        Some(match self.ask(&kv).await {
            Ok((index, entries)) => {
                // One that fell back is of a Consul that lost something: ask for all of it at once.
                self.index = if index < self.index { 0 } else { index };
                (self.next, self.pauses) = (Instant::now() + BREATH, pauses());
                Ok(entries)
            }
            Err(error) => {
                self.index = 0;
                self.next = Instant::now() + self.pauses.next().unwrap_or(BREATH);
                Err(error)
            }
        })
    }

    async fn ask(&self, kv: &Kv) -> Result<(u64, Vec<Entry>), StoreError> {
        let path = kv.list_path(&self.prefix);
        let waiting = if self.index > 0 { format!("&index={}&wait={}s", self.index, WAIT.as_secs()) } else { String::new() };
        let ask = Ask::get(format!("{path}{waiting}"), format!("watch {}", kv.path(self.prefix.as_str())));
        let answer = kv.client.ask_and_wait(ask, if self.index > 0 { WAIT } else { Duration::ZERO }).await?;
        let entries = kv.entries(&answer).await?;
        Ok((answer.index, entries))
    }
}
