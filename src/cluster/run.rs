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

    /// Hears that hosts' records changed, and reads those.
    async fn follow_hosts(self: Arc<Self>) {
        loop {
            if let Ok(mut wakes) = self.store.wakes(&changed()).await {
                loop {
                    tokio::select! {
                        woken = wakes.next() => match woken {
                            Some(Ok(())) => sleep(self.lull()).await,
                            Some(Err(error)) => {
                                debug!("{error}");
                                continue;
                            }
                            None => break,
                        },
                        () = self.reread.notified() => self.read.lock().await.shards = None,
                    }
                    self.catch_up().await;
                }
            }
            sleep(self.times.again).await;
        }
    }

    /// Reads what is new, and tries until that is done.
    async fn catch_up(&self) {
        loop {
            match self.read_changes().await {
                Ok(()) => return sleep(self.times.breath).await,
                Err(error) => {
                    debug!("{error}");
                    sleep(self.times.again).await;
                }
            }
        }
    }

    /// What one host changes is read at once. Where many change at a time they are left to it first, see [`Times::pause`]: a thousand that come at
    /// once would otherwise have each of them read what the others are only beginning to write. A store that many read, and that is slow to
    /// answer, has more to do than that.
    pub(super) async fn read_changes(&self) -> Result<(), StoreError> {
        let mut read = self.read.lock().await;
        let mut now = self.shards().await?;
        let many = read.shards.as_ref().is_some_and(|before| differing(before, &now).len() > FEW);
        if many {
            let pause = self.pause();
            sleep((20 * read.took).clamp(pause, 4 * pause)).await;
            now = self.shards().await?;
        }
        let began = Instant::now();
        if read.shards.as_ref() != Some(&now) {
            self.read_hosts(read.shards.as_ref(), &now).await?;
            read.shards = Some(now);
        }
        read.took = if many { began.elapsed() } else { Duration::ZERO };
        Ok(())
    }

    async fn shards(&self) -> Result<Shards, StoreError> {
        let entries = self.store.list(&changed()).await?;
        Ok(entries.into_iter().filter_map(|entry| Some((shard_at(&entry.key)?, entry.value))).collect())
    }

    /// Reads the records of the shards that changed, or all. Only what was read in one go is heard: a host whose own record is gone is to
    /// find that out before it believes that others' are.
    async fn read_hosts(&self, read: Option<&Shards>, now: &Shards) -> Result<(), StoreError> {
        let changed = read.map(|read| differing(read, now)).filter(|changed| changed.len() <= FEW);
        let prefixes = changed.as_ref().map_or_else(|| vec![hosts()], |changed| changed.iter().copied().map(hosts_in).collect());
        let entries = try_join_all(prefixes.iter().map(|prefix| self.store.list(prefix))).await?.concat();
        let in_scope = |host: &str| changed.as_ref().is_none_or(|changed| changed.contains(&shard(host)));
        let hear = |state: &mut State| {
            let is_over = state.roll.rebuilding.is_some_and(|until| until <= Instant::now());
            if is_over && changed.is_none() {
                state.roll.rebuild(None);
            }
            self.hear_hosts(state, in_scope, &entries);
        };
        self.change(hear);
        Ok(())
    }

    /// Who is there is large, and where hosts are many less urgent than what they have: it takes a lease's time anyway until one that died is
    /// seen to be gone, and one that comes says so by its record.
    async fn follow_alive(self: Arc<Self>) {
        loop {
            if let Ok(mut wakes) = self.store.wakes(&alive()).await {
                while let Some(woken) = wakes.next().await {
                    sleep(self.pause().saturating_sub(self.times.breath)).await;
                    let heard = match woken {
                        Ok(()) => self.store.keys(&alive()).await,
                        Err(error) => Err(error),
                    };
                    if !self.heard_alive(heard) {
                        break;
                    }
                }
            }
            sleep(self.jitter(3 * self.times.again)).await;
        }
    }

    fn lull(&self) -> Duration {
        self.known(|state| self.times.lull(state.roll.size()))
    }

    fn pause(&self) -> Duration {
        self.known(|state| self.times.pause(state.roll.size()))
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
            self.recall().await;
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

/// What was read of the hosts' records last.
#[derive(Default)]
pub(super) struct Reading {
    /// None: all are to be read.
    shards: Option<Shards>,
    /// How long it took, if those of many were read.
    took: Duration,
}

/// The shards of the hosts' records, each with the value that is another after each change.
type Shards = BTreeMap<u64, Vec<u8>>;

/// So many changed shards are read one by one, and at once; of more all are, in one.
const FEW: usize = 16;

fn differing(before: &Shards, now: &Shards) -> BTreeSet<u64> {
    before.keys().chain(now.keys()).filter(|shard| before.get(*shard) != now.get(*shard)).cloned().collect()
}

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
