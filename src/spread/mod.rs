//! SPREAD: networks that appear by themselves on every host that wants that, and go when they are removed on one.
//!
//! Owns the records `cluster/spread/NAME` of the shared store, and beside them on this host's disk which of its networks followed which
//! record. Looks at the engine, the store and that memory, decides for each name ([`decide`]) and does it; again whenever one of the three
//! changes. Nothing is on the way of a call: what the engine is asked to make comes back as a call like any other. So there is no loop either: a
//! network that is as its record says is not told to anybody.
//!
//! An engine removes a network whatever its driver answers. So one that is still in use elsewhere cannot be kept: it comes back. The other
//! hosts are asked first, so that they need not remove theirs; what they do then is right whatever they answered.

mod decide;
mod others;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::routing::get;
use futures_util::StreamExt;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};
use tracing::{debug, info, warn};

use crate::docker::{EngineError, Found, Networks, Spec};
use crate::model::NetworkId;
use crate::plugin::reply;
use crate::store::{Entry, Expect, InvalidKey, Key, Prefix, Store, StoreError};
pub use others::{Asked, Others, routes};

use decide::{Act, Followed, Here, Record, decide};

/// How often all is looked at though nothing was heard: what failed is tried again.
const AGAIN: Duration = Duration::from_secs(30);
/// Between two looks: what changes comes in several pieces.
const BREATH: Duration = Duration::from_millis(100);
/// In seconds: for how long the store says that a network was removed, to hosts that were away.
const REMEMBERED: u64 = 30 * 24 * 3600;

/// Of the shared store.
const RECORDS: &str = "cluster/spread";
/// Of this host's disk.
const MEMORY: &str = "spread";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] InvalidKey),
}

/// What is in the way of networks, for people: `GET /rsnet/spread`. None: this host takes no part.
pub fn router(spread: Option<Arc<Spread>>) -> Router {
    let problems = move || async move { reply(&spread.map(|spread| spread.problems()).unwrap_or_default()) };
    Router::new().route("/rsnet/spread", get(problems))
}

/// This host's part in it.
pub struct Spread {
    host: String,
    shared: Arc<dyn Store>,
    own: Arc<dyn Store>,
    engine: Arc<dyn Networks>,
    /// None: they cannot be asked.
    others: Option<Arc<dyn Others>>,
    is_shared: Box<dyn Fn(&NetworkId) -> bool + Send + Sync>,
    problems: Mutex<BTreeMap<String, String>>,
}

/// A name, and all that is known of it.
struct Known {
    name: String,
    here: Option<Here>,
    record: Option<(Record, u64)>,
    followed: Option<Followed>,
}

impl Spread {
    /// `shared` is the store of all hosts, `own` this host's. `is_shared` tells of one of rsnet's networks whether hosts share it.
    pub fn new(
        host: String,
        shared: Arc<dyn Store>,
        own: Arc<dyn Store>,
        engine: Arc<dyn Networks>,
        others: Option<Arc<dyn Others>>,
        is_shared: impl Fn(&NetworkId) -> bool + Send + Sync + 'static,
    ) -> Self {
        Spread { host, shared, own, engine, others, is_shared: Box::new(is_shared), problems: Mutex::default() }
    }

    /// What is not as it should be, by the names of networks: for people.
    pub fn problems(&self) -> BTreeMap<String, String> {
        self.problems.lock().clone()
    }

    /// Until it is dropped. `networks` changes when the engine's do.
    pub async fn run(&self, networks: watch::Receiver<u64>) {
        let records = Notify::new();
        tokio::join!(self.listen(&records), self.look(&records, networks));
    }

    async fn listen(&self, records: &Notify) {
        loop {
            let heard = match below_records() {
                Ok(prefix) => self.shared.watch(&prefix).await,
                Err(_) => return,
            };
            if let Ok(mut snapshots) = heard {
                while let Some(heard) = snapshots.next().await {
                    if heard.is_ok() {
                        records.notify_one();
                    }
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn look(&self, records: &Notify, mut networks: watch::Receiver<u64>) {
        loop {
            networks.mark_unchanged();
            if let Err(error) = self.round().await {
                debug!(%error, "networks of other hosts could not be looked at; trying again");
            }
            tokio::time::sleep(BREATH).await;
            tokio::select! { () = records.notified() => {}, _ = networks.changed() => {}, () = tokio::time::sleep(AGAIN) => {} }
        }
    }

    /// Looks at all and does what follows; how much that was.
    pub async fn round(&self) -> Result<usize, Error> {
        let (known, mut done) = (self.known().await?, 0);
        let names: BTreeSet<String> = known.iter().map(|known| known.name.clone()).collect();
        self.problems.lock().retain(|name, _| names.contains(name));
        for known in known {
            let act = decide(known.record.as_ref().map(|(record, _)| record), known.here.as_ref(), known.followed.as_ref());
            let idle = matches!(act, Act::Nothing | Act::Clash);
            match self.act(&known, act).await {
                Ok(problem) => {
                    done += usize::from(!idle && problem.is_none());
                    self.note(&known.name, problem);
                }
                // another host was faster: it is looked at again
                Err(Error::Store(StoreError::Conflict { .. })) => {}
                Err(error) => self.note(&known.name, Some(error.to_string())),
            }
        }
        Ok(done)
    }

    async fn known(&self) -> Result<Vec<Known>, Error> {
        let records = self.shared.list(&below_records()?).await?;
        let memory = self.own.list(&Prefix::below(&Key::new(MEMORY)?)).await?;
        let mut known: BTreeMap<String, Known> = BTreeMap::new();
        for Found { id, name, spec } in self.engine.all().await? {
            let shared = spec.is_some() && (self.is_shared)(&id);
            let of = at(&mut known, &name);
            // a name may be that of several networks
            if of.here.is_none() || shared {
                of.here = Some(Here { id, spec, shared });
            }
        }
        for entry in records {
            at(&mut known, last(&entry.key)).record = decode(&entry).map(|record| (record, entry.version));
        }
        for entry in memory {
            at(&mut known, last(&entry.key)).followed = decode(&entry);
        }
        Ok(known.into_values().collect())
    }

    /// What is in the way, if anything is.
    async fn act(&self, known: &Known, act: Act) -> Result<Option<String>, Error> {
        let Known { name, here, record, .. } = known;
        let spec = here.as_ref().and_then(|here| here.spec.clone());
        match (act, here, record) {
            (Act::Announce(birth), Some(here), _) => self.announce(known, here, birth.unwrap_or_else(rand::random), vec![]).await?,
            (Act::Follow(birth), Some(here), _) => self.remember(name, birth, &here.id).await?,
            (Act::Create, _, Some((record, _))) => self.create(name, record).await?,
            (Act::Withdraw, _, Some((record, version))) => self.withdraw(name, record, *version).await?,
            (Act::Remove, Some(here), Some((record, _))) => return self.remove(known, here, record).await,
            (Act::Forget, ..) => {
                self.own.delete(&Key::new(format!("{MEMORY}/{name}"))?, Expect::Any).await?;
            }
            (Act::Nothing, _, Some((record, version))) if record.spec.is_none() && now().saturating_sub(record.at) > REMEMBERED => {
                self.shared.delete(&Key::new(format!("{RECORDS}/{name}"))?, Expect::Version(*version)).await?;
            }
            (Act::Clash, _, Some((record, _))) => return Ok(Some(clash(name, record, spec.as_ref()))),
            _ => {}
        }
        Ok(None)
    }

    async fn announce(&self, known: &Known, here: &Here, birth: u64, used: Vec<String>) -> Result<(), Error> {
        let (name, expect) = (&known.name, Expect::found(known.record.as_ref().map(|(_, version)| *version)));
        // one that comes back is another to those who have removed theirs, and the same to its users
        let same = known.record.iter().filter(|(record, _)| record.birth == birth || !used.is_empty());
        let unknown = same.flat_map(|(record, _)| record.unknown.clone()).collect();
        let record = Record { birth, by: self.host.clone(), at: now(), spec: here.spec.clone(), used, unknown };
        self.write(name, &record, expect).await?;
        info!(network = %name, "the other hosts are told to have this network");
        self.remember(name, birth, &here.id).await
    }

    /// Says that it is to go, unless it is in use.
    async fn withdraw(&self, name: &str, record: &Record, version: u64) -> Result<(), Error> {
        let users = match &self.others {
            Some(others) => others.users(name).await,
            None => BTreeMap::new(),
        };
        if let Some((by, used)) = users.into_iter().next() {
            return self.create(name, &Record { by, used, ..record.clone() }).await;
        }
        info!(network = %name, "removed here; the other hosts remove it too");
        let gone = Record { by: self.host.clone(), at: now(), spec: None, used: vec![], ..record.clone() };
        self.write(name, &gone, Expect::Version(version)).await
    }

    /// The containers on this host's network of the name, for whom it would have to stay.
    async fn users_here(&self, name: &str) -> Vec<String> {
        let networks = self.engine.all().await.unwrap_or_default();
        match networks.into_iter().find(|found| found.name == name && found.spec.is_some()) {
            Some(found) => self.engine.users(&found.id).await,
            None => vec![],
        }
    }

    async fn create(&self, name: &str, record: &Record) -> Result<(), Error> {
        let Some(spec) = &record.spec else { return Ok(()) };
        let id = self.engine.create(name, spec).await?;
        match record.used.is_empty() {
            true => info!(network = %name, by = %record.by, "network made, as on another host"),
            false => warn!(
                network = %name,
                "it was removed while host {} used it (containers {}), and is made again; remove these first",
                record.by,
                record.used.join(", ")
            ),
        }
        self.remember(name, record.birth, &id).await
    }

    /// One that is in use stays, and with it those of all hosts, unless they have another by now.
    async fn remove(&self, known: &Known, here: &Here, record: &Record) -> Result<Option<String>, Error> {
        let used = self.engine.remove(&here.id).await?;
        if used.is_empty() {
            info!(network = %known.name, by = %record.by, "network removed, as on another host");
            return Ok(None);
        }
        if record.spec.is_some() {
            return Ok(Some(clash(&known.name, record, here.spec.as_ref())));
        }
        warn!(network = %known.name, "host {} removed it while containers here use it: {}; it stays", record.by, used.join(", "));
        self.announce(known, here, rand::random(), used).await?;
        Ok(None)
    }

    async fn write(&self, name: &str, record: &Record, expect: Expect) -> Result<(), Error> {
        Ok(self.shared.put(&Key::new(format!("{RECORDS}/{name}"))?, encode(record), expect).await.map(drop)?)
    }

    async fn remember(&self, name: &str, birth: u64, id: &NetworkId) -> Result<(), Error> {
        let followed = Followed { birth, id: id.clone() };
        Ok(self.own.put(&Key::new(format!("{MEMORY}/{name}"))?, encode(&followed), Expect::Any).await.map(drop)?)
    }

    /// Says it once.
    fn note(&self, name: &str, problem: Option<String>) {
        let mut problems = self.problems.lock();
        let before = match &problem {
            Some(problem) => problems.insert(name.to_owned(), problem.clone()),
            None => problems.remove(name),
        };
        if let Some(problem) = problem.filter(|problem| before.as_ref() != Some(problem)) {
            warn!(network = %name, "{problem}");
        }
    }
}

fn clash(name: &str, record: &Record, here: Option<&Spec>) -> String {
    let what = if here.is_some() { "differs from" } else { "is not rsnet's, unlike" };
    format!(
        "this host's network {name} {what} the one that host {} made under that name; it is left alone; remove it here, or choose another name",
        record.by
    )
}

fn at<'k>(known: &'k mut BTreeMap<String, Known>, name: &str) -> &'k mut Known {
    let empty = || Known { name: name.to_owned(), here: None, record: None, followed: None };
    known.entry(name.to_owned()).or_insert_with(empty)
}

fn below_records() -> Result<Prefix, InvalidKey> {
    Ok(Prefix::below(&Key::new(RECORDS)?))
}

fn last(key: &Key) -> &str {
    key.as_str().rsplit('/').next().unwrap_or_default()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Strings, numbers and addresses always serialise.
fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// A damaged one counts as not there.
fn decode<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    let value = serde_json::from_slice(&entry.value);
    value.inspect_err(|error| warn!("read {}: {error}; delete that key", entry.key)).ok()
}
