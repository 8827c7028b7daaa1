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
        tasks.spawn(self.clone().follow());
        tasks.spawn(self.clone().answer_asks());
        tasks.spawn(self.clone().follow_networks());
        while tasks.join_next().await.is_some() {}
    }

    /// A host says first that it is there, and looks who else is: a thousand that come at once then know how many they are, and how often to
    /// ask what is new.
    async fn follow(self: Arc<Self>) {
        if let Err(error) = self.within("register this host".to_owned(), self.register()).await {
            debug!("{error}");
        }
        self.heard_alive(self.store.keys(&alive()).await);
        tokio::join!(self.follow_alive(), self.follow_hosts());
    }

    /// Hears that hosts' records changed, and reads those.
    async fn follow_hosts(&self) {
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
                        () = self.reread.notified() => *self.read.lock().await = None,
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

    /// What one host changes is read at once, what many change at a time when they are done: a thousand that come at once would otherwise have
    /// each of them read, again and again, what the others are only beginning to write, and the store no time for those.
    pub(super) async fn read_changes(&self) -> Result<(), StoreError> {
        let mut read = self.read.lock().await;
        let now = self.calm(read.as_ref()).await?;
        if read.as_ref() != Some(&now) {
            self.read_hosts(read.as_ref(), &now).await?;
            *read = Some(now);
        }
        Ok(())
    }

    /// The shards once no more than a few of them change from one look to the next, or did so for as long as is waited for that.
    async fn calm(&self, read: Option<&Shards>) -> Result<Shards, StoreError> {
        let mut now = self.shards().await?;
        let mut before = read.unwrap_or(&now).clone();
        let patience = Instant::now() + CALM * self.pause();
        while differing(&before, &now).len() > FEW && Instant::now() < patience {
            sleep(self.jitter(self.pause())).await;
            before = std::mem::replace(&mut now, self.shards().await?);
        }
        Ok(now)
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
                state.roll.rebuilding = None;
            }
            self.hear_hosts(state, in_scope, &entries);
        };
        self.change(hear);
        Ok(())
    }

    /// Who is there is large, and where hosts are many less urgent than what they have: it takes a lease's time anyway until one that died is
    /// seen to be gone, and one that comes says so by its record.
    async fn follow_alive(&self) {
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
                    sleep(self.times.breath).await;
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
        // The way out is looked for at the same time; where it is known, that is nothing to enrol again for.
        let has_way = self.known(|state| state.uplink.is_some());
        let _ = timeout(if has_way { Duration::ZERO } else { self.times.again }, self.enrol.notified()).await;
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

/// The shards of the hosts' records, each with the value that is another after each change.
pub(super) type Shards = BTreeMap<u64, Vec<u8>>;

/// So many changed shards are read one by one, and at once; of more all are, in one.
const FEW: usize = 16;

/// Pauses in which many may go on changing their records before these are read all the same.
const CALM: u32 = 4;

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
