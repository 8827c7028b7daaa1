//! Whole snapshots of a prefix by blocking queries, and the guard that notices what these would sleep through.

use std::sync::{Arc, Weak};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures_util::{StreamExt, stream};
use hyper::StatusCode;
use tokio::sync::watch::{Receiver, Sender};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use futures_util::stream::BoxStream;

use super::super::{FORMAT_KEY, Prefix, StoreError};
use super::client::{Answer, Ask};
use super::{Format, Kv};

/// How long Consul holds a question without news. Then it sends the whole prefix again.
const WAIT: Duration = Duration::from_secs(60);
/// Between an answer and the next question: a prefix that many write at once is not read for every write.
const BREATH: Duration = Duration::from_millis(100);

/// What is read of a prefix again and again.
pub struct Query<T> {
    /// The question, from the prefix's path.
    pub ask: fn(&str) -> String,
    /// What an answer says.
    pub read: fn(&Kv, &Answer) -> Result<Vec<T>, StoreError>,
}

/// One reader of one prefix. Holds the store only while it asks.
struct Watcher<T> {
    kv: Weak<Kv>,
    closed: CancellationToken,
    /// Changes when all that was seen may be gone.
    lost: Receiver<u64>,
    prefix: Prefix,
    query: Query<T>,
    /// What Consul gave with the last answer; 0: answer at once.
    index: u64,
    seen: Option<Vec<T>>,
    /// When to ask next.
    next: Instant,
    /// How long to wait after the next failure.
    pauses: ExponentialBackoff,
}

pub fn snapshots<T: Clone + PartialEq + Send + Sync + 'static>(
    kv: &Arc<Kv>,
    closed: CancellationToken,
    lost: Receiver<u64>,
    prefix: Prefix,
    query: Query<T>,
) -> BoxStream<'static, Result<Vec<T>, StoreError>> {
    let kv = Arc::downgrade(kv);
    let watcher = Watcher { kv, closed, lost, prefix, query, index: 0, seen: None, next: Instant::now(), pauses: pauses() };
    stream::unfold(watcher, Watcher::next).boxed()
}

/// Soon at first, then every three seconds or so: a thousand hosts ask a Consul that comes back a few hundred times a second.
fn pauses() -> ExponentialBackoff {
    let (first, longest) = (Duration::from_millis(200), Duration::from_secs(3));
    ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest).without_max_times().with_jitter().build()
}

impl<T: Clone + PartialEq> Watcher<T> {
    async fn next(mut self) -> Option<(Result<Vec<T>, StoreError>, Self)> {
        let closed = self.closed.clone();
        loop {
            match closed.run_until_cancelled(self.read()).await?? {
                Ok(entries) if self.seen.as_ref() == Some(&entries) => {}
                Ok(entries) => {
                    self.seen = Some(entries.clone());
                    return Some((Ok(entries), self));
                }
                Err(error) => return Some((Err(error), self)),
            }
        }
    }

    /// The prefix once it may have changed. `None`: the store is gone.
    async fn read(&mut self) -> Option<Result<Vec<T>, StoreError>> {
        sleep_until(self.next).await;
        let kv = self.kv.upgrade()?;
        let mut lost = self.lost.clone();
        let answer = tokio::select! {
            answer = self.ask(&kv, self.index) => answer,
            Ok(()) = lost.changed() => {
                // between two that are alike there was another
                self.seen = None;
                self.ask(&kv, 0).await
            }
        };
        self.lost = lost;
        Some(match answer {
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

    /// The prefix, once Consul has something newer than `index`.
    async fn ask(&self, kv: &Kv, index: u64) -> Result<(u64, Vec<T>), StoreError> {
        let (waiting, wait) = if index > 0 { (blocking('&', index), WAIT) } else { (String::new(), Duration::ZERO) };
        let path = kv.path(self.prefix.as_str());
        let ask = Ask::get(format!("kv/{}{waiting}", (self.query.ask)(&path)), format!("watch {path}"));
        let answer = kv.client.ask_and_wait(ask, wait).await?;
        let found = kv.believed((self.query.read)(kv, &answer)?).await?;
        if answer.status == StatusCode::NOT_FOUND {
            kv.occupy(&path).await?;
        }
        Ok((answer.index, found))
    }
}

fn blocking(separator: char, index: u64) -> String {
    format!("{separator}index={index}&wait={}s", WAIT.as_secs())
}

/// Tells watchers when the record format was gone or is another: the store was emptied, or another Consul stands in its place.
///
/// Two things a blocking query sleeps through until its time is over: a Consul whose index begins anew, lower than the one asked for; and
/// the deletion of a tree that begins above the prefix, where anything below the prefix was deleted in the last 15 minutes (Consul 1.8.7
/// takes the index of an empty prefix from the tombstones below it). The key `format` has neither: each round begins with a plain look.
pub async fn guard(kv: Weak<Kv>, closed: CancellationToken, lost: Sender<u64>) {
    let Some(known) = kv.upgrade() else { return };
    let (mut seen, mut waits) = (known.known_format(), pauses());
    drop(known);
    let rounds = async {
        while let Some(kv) = kv.upgrade() {
            match round(&kv, seen).await {
                Ok(format) => {
                    lost.send_if_modified(|times| seen.is_some_and(|seen| seen != format).then(|| *times += 1).is_some());
                    (seen, waits) = (Some(format), pauses());
                }
                Err(_) => sleep(waits.next().unwrap_or(WAIT)).await,
            }
        }
    };
    closed.run_until_cancelled(rounds).await;
}

/// The record format; if it is the one seen before, after Consul had time to have another.
async fn round(kv: &Kv, seen: Option<Format>) -> Result<Format, StoreError> {
    let format = kv.fresh_format().await?;
    if seen == Some(format) {
        let path = kv.path(FORMAT_KEY);
        let ask = Ask::get(format!("kv/{path}{}", blocking('?', format.version)), format!("watch {path}"));
        kv.client.ask_and_wait(ask, WAIT).await?;
        return kv.fresh_format().await;
    }
    Ok(format)
}
