//! What goes on for as long as the process lives: the lease, the watches, what is still to be written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use ipnet::IpNet;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::admit::of;
use super::error::Error;
use super::record::{Networks, alive, asks_of, blocks_of, decode, hosts, networks, records};
use super::{Cluster, State};
use crate::store::{Entry, Prefix, StoreError};

impl Cluster {
    /// Renews the lease, hears what changes, writes what is not written yet. Ends only by being dropped.
    pub async fn run(self: Arc<Self>) {
        let mut tasks = JoinSet::new();
        tasks.spawn(self.clone().keep_lease());
        tasks.spawn(self.clone().work());
        tasks.spawn(self.clone().sweep_now_and_then());
        tasks.spawn(self.clone().follow_subnets());
        tasks.spawn(self.clone().answer_asks());
        tasks.spawn(self.clone().listen(hosts(), |cluster, heard| {
            if let Ok(entries) = heard {
                cluster.change(|state| cluster.hear_hosts(state, &entries));
            }
        }));
        tasks.spawn(self.clone().listen(alive(), Cluster::heard_alive));
        tasks.spawn(self.clone().listen(networks(), |cluster, heard| {
            if let Ok(entries) = heard {
                cluster.change(|state| hear_networks(state, &entries));
            }
        }));
        while tasks.join_next().await.is_some() {}
    }

    fn heard_alive(&self, heard: Result<Vec<Entry>, StoreError>) {
        self.change(|state| match heard {
            Ok(entries) => self.hear_alive(state, &entries),
            // Nobody knows who was there meanwhile: what is counted are times in which a host was seen dead throughout.
            Err(_) => state.alive_is_heard = false,
        });
    }

    fn heard_blocks(&self, subnet: IpNet, heard: Result<Vec<Entry>, StoreError>) {
        let Ok(entries) = heard else { return };
        let records = records(&entries);
        self.change(|state| {
            let Some(side) = state.side(subnet) else { return };
            if side.agrees(&self.me, &records) {
                side.hear(&self.me, &records, Instant::now(), self.times.rebuild);
            } else {
                // It may be older than what this host wrote last: that is looked at where nothing is being written.
                state.unsettled.insert(subnet);
            }
        });
    }

    /// Hears a prefix for good. Between two snapshots it takes a breath: what changes once is heard at once. What changes all the time is
    /// read ever less often, see [`Times::pause`]: a thousand hosts that come at once would otherwise have each of them read what the
    /// others are only beginning to write.
    async fn listen(self: Arc<Self>, prefix: Prefix, hear: impl Fn(&Cluster, Result<Vec<Entry>, StoreError>)) {
        let breath = self.times.breath;
        loop {
            if let Ok(mut snapshots) = self.store.watch(&prefix).await {
                let (mut pause, mut rested) = (breath, None::<Instant>);
                while let Some(heard) = snapshots.next().await {
                    if let Err(error) = &heard {
                        debug!("{error}");
                    }
                    let longest = self.times.pause(heard.as_ref().map_or(0, Vec::len));
                    hear(&self, heard);
                    let ready = rested.is_some_and(|since| since.elapsed() < breath);
                    pause = if ready { (2 * pause).min(longest) } else { breath };
                    sleep(pause).await;
                    rested = Some(Instant::now());
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

    /// One listener for each subnet of a network that this host takes part in.
    async fn follow_subnets(self: Arc<Self>) {
        let (mut views, mut tasks) = (self.views(), JoinSet::new());
        let mut followed: BTreeMap<IpNet, AbortHandle> = BTreeMap::new();
        loop {
            let wanted: Vec<IpNet> = self.known(|state| state.sides().map(|side| side.subnet).collect());
            followed.retain(|subnet, task| {
                let stays = wanted.contains(subnet);
                if !stays {
                    task.abort();
                }
                stays
            });
            for subnet in wanted {
                followed.entry(subnet).or_insert_with(|| {
                    let hear = move |cluster: &Cluster, heard| cluster.heard_blocks(subnet, heard);
                    tasks.spawn(self.clone().listen(blocks_of(subnet), hear))
                });
            }
            while tasks.try_join_next().is_some() {}
            if views.changed().await.is_err() {
                return;
            }
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
            let (subnets, networks) = self.known(|state| (state.unsettled.clone(), state.unsettled_networks));
            let mut done = !networks || self.settle_networks().await;
            for subnet in subnets {
                done &= self.settle(subnet).await;
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
                state.unsettled.extend(over);
            });
        }
    }

    /// Whoever has not written again what it had by now does not have it.
    fn end_rebuilding(&self) {
        let now = Instant::now();
        let over = |state: &State| -> Vec<IpNet> {
            state.sides().filter(|side| side.rebuilding.is_some_and(|until| until <= now)).map(|side| side.subnet).collect()
        };
        let over = self.known(over);
        if !over.is_empty() {
            self.change(|state| state.unsettled.extend(over));
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
        let news = self.known_quietly(&text);
        if news {
            warn!("{text}");
        } else {
            debug!("{text}");
        }
    }

    fn known_quietly(&self, text: &str) -> bool {
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let news = *told != text;
        if news {
            text.clone_into(&mut told);
        }
        news
    }
}

/// The record of all networks: it must have this host's.
fn hear_networks(state: &mut State, entries: &[Entry]) {
    let heard: Networks = entries.first().and_then(decode).unwrap_or_default();
    let there = |network: &super::view::Network| {
        let subnets = network.wanted.agreement().subnets;
        let found = subnets.first().and_then(|subnet| of(&heard, *subnet)).map(|at| &heard.networks[at]);
        found.is_some_and(|found| found.vni == network.vni && found.agreement.subnets == subnets)
    };
    state.unsettled_networks |= !state.networks.iter().all(there);
}
