//! What goes on for as long as the process lives: the lease, the watches, what is still to be written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::try_join_all;
use ipnet::IpNet;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::admit::of;
use super::error::Error;
use super::record::{Networks, alive, asks_of, changed, decode, hosts, hosts_in, networks, networks_key, shard, shard_at};
use super::{Cluster, State};
use crate::store::{Entry, StoreError};

impl Cluster {
    /// Renews the lease, hears what changes, writes what is not written yet. Ends only by being dropped.
    pub async fn run(self: Arc<Self>) {
        let mut tasks = JoinSet::new();
        tasks.spawn(self.clone().keep_lease());
        tasks.spawn(self.clone().work());
        tasks.spawn(self.clone().sweep_now_and_then());
        tasks.spawn(self.clone().follow_hosts());
        tasks.spawn(self.clone().answer_asks());
        tasks.spawn(self.clone().follow_alive());
        tasks.spawn(self.clone().follow_networks());
        while tasks.join_next().await.is_some() {}
    }

    /// Hears of which hosts the records changed, and reads those.
    async fn follow_hosts(self: Arc<Self>) {
        let (mut read, mut now) = (None, Shards::new());
        loop {
            if let Ok(mut snapshots) = self.store.watch(&changed()).await {
                loop {
                    tokio::select! {
                        heard = snapshots.next() => match heard {
                            Some(Ok(entries)) => now = shards(entries),
                            Some(Err(error)) => debug!("{error}"),
                            None => break,
                        },
                        () = self.reread.notified() => read = None,
                    }
                    self.catch_up(&mut read, &now).await;
                }
            }
            sleep(self.times.again).await;
        }
    }

    /// Reads until what was read is as new as what was heard.
    async fn catch_up(&self, read: &mut Option<Shards>, now: &Shards) {
        while read.as_ref() != Some(now) {
            let began = Instant::now();
            match self.read_hosts(read.as_ref(), now).await {
                Ok(news) => {
                    *read = Some(now.clone());
                    sleep(self.rest(news, began.elapsed())).await;
                }
                Err(error) => {
                    debug!("{error}");
                    sleep(self.times.again).await;
                }
            }
        }
    }

    /// Reads the records of the shards that changed, or all. Only what was read in one go is heard: a host whose own record is gone is to
    /// find that out before it believes that others' are. Of how many hosts it was another than before.
    async fn read_hosts(&self, read: Option<&Shards>, now: &Shards) -> Result<usize, StoreError> {
        let changed = read.map(|read| differing(read, now)).filter(|changed| changed.len() <= FEW);
        let prefixes = changed.as_ref().map_or_else(|| vec![hosts()], |changed| changed.iter().copied().map(hosts_in).collect());
        let entries = try_join_all(prefixes.iter().map(|prefix| self.store.list(prefix))).await?.concat();
        let in_scope = |host: &str| changed.as_ref().is_none_or(|changed| changed.contains(&shard(host)));
        let hear = |state: &mut State| {
            let is_over = state.roll.rebuilding.is_some_and(|until| until <= Instant::now());
            if is_over && changed.is_none() {
                state.roll.rebuild(None);
            }
            self.hear_hosts(state, in_scope, &entries)
        };
        Ok(self.change(hear))
    }

    /// The same before anything was heard, where that is not waited for.
    pub(super) async fn read_all_hosts(&self) -> Result<(), StoreError> {
        self.read_hosts(None, &Shards::new()).await.map(drop)
    }

    /// How long one who follows what changes rests after a reading in which of so many hosts there were news, and which took so long. What one host
    /// changes is heard at once. The more of them change at a time, the longer they are left to it, see [`Times::pause`]: a thousand that
    /// come at once would otherwise have each of them read what the others are only beginning to write. A store that is slow to answer has more to
    /// do than that, if they are many: with a few hosts it has been away.
    fn rest(&self, news: usize, took: Duration) -> Duration {
        let records = self.known(|state| state.roll.hosts.len()).max(news).max(1);
        let pause = self.times.pause(records);
        let longest = (pause + 4 * took.min(pause)).min(LONGEST_REST);
        longest.mul_f64(news as f64 / records as f64).max(self.times.breath)
    }

    async fn follow_alive(self: Arc<Self>) {
        loop {
            if let Ok(mut snapshots) = self.store.watch_keys(&alive()).await {
                while let Some(heard) = snapshots.next().await {
                    let news = self.heard_alive(heard);
                    sleep(self.rest(news, Duration::ZERO)).await;
                }
            }
            sleep(self.times.again).await;
        }
    }

    async fn follow_networks(self: Arc<Self>) {
        loop {
            if let Ok(mut snapshots) = self.store.watch(&networks()).await {
                while let Some(heard) = snapshots.next().await {
                    if let Ok(entries) = heard {
                        self.change(|state| hear_networks(state, entries));
                    }
                    sleep(self.times.breath).await;
                }
            }
            sleep(self.times.again).await;
        }
    }

    async fn answer_asks(self: Arc<Self>) {
        let prefix = asks_of(&self.me.host);
        loop {
            if let Ok(mut snapshots) = self.store.watch(&prefix).await {
                while let Some(heard) = snapshots.next().await {
                    self.answer(&heard.unwrap_or_default()).await;
                }
            }
            sleep(self.times.again).await;
        }
    }

    /// Three times in a lease's time; at once when the store says that this host is not there.
    async fn keep_lease(self: Arc<Self>) {
        let mut again = false;
        // The way out is looked for at the same time.
        if self.known(|state| state.uplink.is_none()) {
            let _ = timeout(self.times.again, self.enrol.notified()).await;
        }
        loop {
            let renewed = self.within("renew this host's lease".to_owned(), self.renew(again)).await;
            let pause = if renewed.is_ok() { self.times.lease / 3 } else { self.jitter(self.times.again) };
            if let Err(error) = &renewed {
                self.tell(error);
            }
            self.change(|state| state.in_touch = renewed.is_ok());
            again = timeout(pause, self.enrol.notified()).await.is_ok();
            if again {
                sleep(self.jitter(self.times.breath / 2)).await;
            }
        }
    }

    /// Writes what is to be written, until the store took it.
    async fn work(self: Arc<Self>) {
        loop {
            let _ = timeout(self.times.again, self.work.notified()).await;
            self.end_rebuilding();
            self.end_borrowing();
            let (subnets, record, networks) =
                self.known(|state| (state.unsettled.clone(), state.unsettled_record, state.unsettled_networks));
            let mut done = !networks || self.settle_networks().await;
            if record || !subnets.is_empty() {
                done &= self.settle(subnets).await;
            }
            if !done {
                sleep(self.jitter(self.times.again)).await;
            }
        }
    }

    /// What others gave and nobody here needs goes back.
    fn end_borrowing(&self) {
        let now = Instant::now();
        if self.known(|state| state.borrowing.values().any(|until| *until <= now)) {
            self.change(|state| {
                let over: Vec<IpNet> = state.borrowing.extract_if(.., |_, until| *until <= now).map(|(subnet, _)| subnet).collect();
                state.granted.retain(|subnet, _| !over.contains(subnet));
                state.unsettled.extend(over);
            });
        }
    }

    /// Whoever has not written again what it had by now does not have it.
    fn end_rebuilding(&self) {
        if self.known(|state| state.roll.rebuilding.is_some_and(|until| until <= Instant::now())) {
            self.reread.notify_one();
        }
    }

    async fn sweep_now_and_then(self: Arc<Self>) {
        let mut pause = self.times.sweep.mul_f64(rand::random::<f64>() / 4.0);
        loop {
            sleep(pause).await;
            if let Err(error) = self.sweep().await {
                self.tell(&error);
            }
            pause = self.times.sweep;
        }
    }

    /// Half of it to all of it.
    fn jitter(&self, time: Duration) -> Duration {
        time.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }

    /// Says what failed behind an answer, each thing once until something else fails.
    pub(super) fn tell(&self, error: &Error) {
        let text = error.to_string();
        let before = std::mem::replace(&mut *self.told.lock(), text.clone());
        if before == text {
            debug!("{text}");
        } else {
            warn!("{text}");
        }
    }
}

/// The shards of the hosts' records, each with the value that is another after each change.
type Shards = BTreeMap<u64, Vec<u8>>;

/// So many changed shards are read one by one; of more all are, in one.
const FEW: usize = 16;

fn shards(entries: Vec<Entry>) -> Shards {
    entries.into_iter().filter_map(|entry| Some((shard_at(&entry.key)?, entry.value))).collect()
}

fn differing(before: &Shards, now: &Shards) -> BTreeSet<u64> {
    before.keys().chain(now.keys()).filter(|shard| before.get(*shard) != now.get(*shard)).cloned().collect()
}

/// Whatever the store takes.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// The record of all networks: it must have this host's.
fn hear_networks(state: &mut State, entries: Vec<Entry>) {
    state.heard_networks = entries.into_iter().find(|entry| entry.key == networks_key());
    let heard: Networks = state.heard_networks.as_ref().and_then(decode).unwrap_or_default();
    let there = |network: &super::view::Network| {
        let subnets = network.wanted.agreement().subnets;
        let found = subnets.first().and_then(|subnet| of(&heard, *subnet)).map(|at| &heard.networks[at]);
        found.is_some_and(|found| found.vni == network.vni && found.agreement.subnets == subnets)
    };
    state.unsettled_networks |= !state.networks.iter().all(there);
}
