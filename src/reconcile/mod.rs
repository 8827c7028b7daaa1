//! diff and converge: makes this host have what the plans ask for. Knows no mode and no network, only owners, objects and entries.
//!
//! A request gives an owner a new plan and costs the difference to the owner's old one ([`Reconciler::set`]). Start-up, drift and clean-up
//! look at the whole kernel instead ([`Reconciler::converge`]): memory is never trusted for longer than until the next look.
//!
//! Invariants: a key has one owner, host-wide sysctls apart. Objects are put in the order of their keys, entries change in one step after
//! that, and only then is anything deleted, backwards; so an entry never leads to a link that is not there yet. Deleting a link takes the
//! kernel a grace period of 15 ms and more, for which no answer waits: it is done behind it, before the same name is used again.

mod desired;
mod disposal;
mod history;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, RwLock, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::firewall::{Firewall, FirewallError};
use crate::kernel::{Change, Kernel, KernelError, describe};
use crate::model::{IfName, Key, Object, Plan};
pub use desired::{Conflict, Deviation, Owner};
use desired::{Desired, Difference};
use disposal::Disposal;
use history::{FIREWALL, kind};
pub use history::{Failed, History, KINDS, Look};

/// How long news are gathered before they are judged: a link that is being made tells of itself several times.
const SETTLE: Duration = Duration::from_millis(100);
/// How long no news are trusted.
const LOOK: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Conflict(#[from] Conflict),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Firewall(#[from] FirewallError),
}

impl Error {
    fn told(&self) -> Failed {
        let (object, in_firewall) = match self {
            Error::Conflict(conflict) => (describe(&conflict.what), false),
            Error::Kernel(error) => (error.object.clone(), false),
            Error::Firewall(error) => (error.object.clone(), true),
        };
        Failed { object, why: self.to_string(), in_firewall }
    }
}

/// What a converge mended and could not mend.
#[derive(Debug, Default)]
pub struct Report {
    pub mended: usize,
    /// What was mended, in words.
    pub healed: Vec<String>,
    pub failed: Vec<Error>,
}

/// How the host differs from all plans together.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    pub objects: Vec<Deviation>,
    /// In words, what a converge would do to the firewall.
    pub firewall: Vec<String>,
}

pub struct Reconciler {
    kernel: Arc<dyn Kernel>,
    firewall: Arc<dyn Firewall>,
    desired: Mutex<Desired>,
    disposal: Disposal,
    /// Rung when something was left undone.
    again: Notify,
    /// Requests share it; a converge, which compares everything with everything, has it alone.
    whole: RwLock<()>,
    history: Mutex<History>,
}

impl Reconciler {
    /// Needs a tokio runtime: disposal runs behind the answers.
    pub fn new(kernel: Arc<dyn Kernel>, firewall: Arc<dyn Firewall>) -> Self {
        let disposal = Disposal::start(kernel.clone());
        let (desired, again, whole, history) = Default::default();
        Reconciler { kernel, firewall, desired, disposal, again, whole, history }
    }

    /// Replaces the plan of `owner` without touching the kernel; for what was declared before this process started.
    pub fn expect(&self, owner: &Owner, plan: Plan) -> Result<(), Conflict> {
        self.desired.lock().replace(owner, plan).map(drop)
    }

    /// Replaces the plan of `owner` and makes the difference so. After an error the owner has the new plan and the host a part of it: set
    /// the old one again.
    pub async fn set(&self, owner: &Owner, plan: Plan) -> Result<(), Error> {
        let _shared = self.whole.read().await;
        let difference = self.desired.lock().replace(owner, plan)?;
        if let Err(error) = self.put(&difference.put).await {
            self.desired.lock().keep_entries(owner, difference);
            return Err(error.into());
        }
        self.filter(&difference).await?;
        Ok(self.delete(difference.delete).await?)
    }

    /// The same with a plan that has less than before: whatever fails, all else is done. The first failure is told; the host is as planned after
    /// the next look.
    pub async fn withdraw(&self, owner: &Owner, plan: Plan) -> Result<(), Error> {
        let _shared = self.whole.read().await;
        let difference = self.desired.lock().replace(owner, plan)?;
        let (put, filtered) = (self.put(&difference.put).await, self.filter(&difference).await);
        let deleted = self.delete(difference.delete).await;
        put?;
        filtered?;
        Ok(deleted?)
    }

    /// A name of something that waits to be deleted is used again when that is gone.
    async fn put(&self, objects: &[Object]) -> Result<(), KernelError> {
        self.disposal.finished(objects.iter().map(Object::key)).await;
        if objects.is_empty() { Ok(()) } else { self.kernel.put_all(objects).await }
    }

    async fn filter(&self, Difference { remove, add, .. }: &Difference) -> Result<(), FirewallError> {
        if remove.is_empty() && add.is_empty() { Ok(()) } else { self.firewall.apply(remove, add).await }
    }

    /// What stands on a link that is deleted goes with it. What takes the kernel a grace period is done behind the answer.
    async fn delete(&self, mut keys: Vec<Key>) -> Result<(), KernelError> {
        let doomed: BTreeSet<IfName> = keys.iter().filter_map(Key::link).cloned().collect();
        keys.retain(|key| !key.stands_on().is_some_and(|link| doomed.contains(link)));
        let (later, now): (Vec<Key>, Vec<Key>) = keys.into_iter().partition(Key::is_deleted_behind);
        later.iter().for_each(|key| self.kernel.retire(key));
        if !later.is_empty() {
            self.disposal.add(later);
        }
        if now.is_empty() { Ok(()) } else { self.kernel.delete_all(&now).await }
    }

    /// Looks at everything and makes it as the plans ask. What fails is reported and does not keep the rest from being mended.
    pub async fn converge(&self) -> Result<Report, Error> {
        let _alone = self.whole.write().await;
        let began = Instant::now();
        let (delete, put): (Vec<_>, Vec<_>) = self.deviations().await?.into_iter().partition(|one| matches!(one, Deviation::Extra(_)));
        let mut report = Report::default();
        self.mend(put, &mut report).await;
        self.mend_firewall(&mut report).await;
        self.sweep(delete, &mut report).await;
        let look = Look { at: Instant::now(), took: began.elapsed(), failed: report.failed.iter().map(Error::told).collect() };
        self.history.lock().looked(look);
        Ok(report)
    }

    /// The same look, and nothing is changed: what a converge would mend now.
    pub async fn compare(&self) -> Result<Comparison, Error> {
        let _alone = self.whole.write().await;
        let entries = self.desired.lock().entries();
        Ok(Comparison { objects: self.deviations().await?, firewall: self.firewall.compare(&entries).await? })
    }

    /// What does not stand as these owners planned it; mends nothing.
    pub async fn rows(&self, owners: &[Owner]) -> Result<Vec<Deviation>, Error> {
        let _shared = self.whole.read().await;
        let of_them =
            |one: &Deviation| matches!(one, Deviation::Missing(owner, _) | Deviation::Altered(owner, _) if owners.contains(owner));
        Ok(self.deviations().await?.into_iter().filter(of_them).collect())
    }

    /// How the kernel differs from all plans. What waits to be deleted is no difference.
    async fn deviations(&self) -> Result<Vec<Deviation>, Error> {
        let waiting: BTreeSet<IfName> = self.disposal.waiting().iter().filter_map(Key::link).cloned().collect();
        let is_going = |key: &Key| key.link().or(key.stands_on()).is_some_and(|link| waiting.contains(link));
        let wanted: Vec<Object> = self.desired.lock().objects().values().map(|(_, object)| object.clone()).collect();
        let seen = self.kernel.observe(&wanted).await?;
        let mut deviations = self.desired.lock().deviations(&seen);
        deviations.retain(|one| !matches!(one, Deviation::Extra(key) if is_going(key)));
        Ok(deviations)
    }

    async fn mend(&self, deviations: Vec<Deviation>, report: &mut Report) {
        for deviation in deviations {
            let key = deviation.key();
            self.history.lock().found(kind(&key), 1);
            let (mended, owner) = match &deviation {
                Deviation::Missing(owner, object) | Deviation::Altered(owner, object) => (self.kernel.put(object).await, Some(owner)),
                Deviation::Extra(key) => (self.kernel.delete(key).await, None),
            };
            match mended {
                Ok(()) => {
                    let what = describe(&key);
                    let (network, endpoint) = (owner.map(|owner| &owner.network), owner.and_then(|owner| owner.endpoint.as_ref()));
                    info!(object = what, network, endpoint, "mended");
                    self.history.lock().healed(kind(&key), 1, what.clone());
                    self.history.lock().remember(Some(key));
                    report.note(1, [what]);
                }
                Err(error) => report.failed.push(error.into()),
            }
        }
    }

    /// All that no plan has goes together, many links in little more time than one; then each is asked for, to tell of it.
    async fn sweep(&self, extra: Vec<Deviation>, report: &mut Report) {
        let keys: Vec<Key> = extra.iter().map(Deviation::key).collect();
        if !keys.is_empty()
            && let Err(error) = self.kernel.delete_all(&keys).await
        {
            debug!(%error, "could not delete all at once");
        }
        self.mend(extra, report).await;
    }

    async fn mend_firewall(&self, report: &mut Report) {
        let entries = self.desired.lock().entries();
        match self.firewall.converge(&entries).await {
            Ok(0) => {}
            Ok(count) => {
                info!(count, "mended in the firewall, of all networks");
                self.history.lock().found(FIREWALL, count);
                self.history.lock().healed(FIREWALL, count, "the firewall".to_owned());
                self.history.lock().remember(None);
                report.note(count, [format!("{count} differences in the firewall")]);
            }
            Err(error) => report.failed.push(error.into()),
        }
    }

    /// What all looks found and did.
    pub fn history(&self) -> History {
        self.history.lock().clone()
    }

    /// Converges at once, and then whenever the kernel or the firewall differs from the plans; until the process ends.
    pub async fn watch(&self) {
        let (mut kernel, mut firewall) = (self.kernel.changes(), self.firewall.changes());
        let mut next = Instant::now();
        loop {
            tokio::select! {
                () = sleep_until(next) => next = self.look().await,
                change = kernel.recv() => if self.concerns(change, &mut kernel).await { next = Instant::now() },
                _ = firewall.recv() => next = self.look().await,
                () = self.again.notified() => next = Instant::now(),
            }
        }
    }

    /// Converges and says when to look again: soon if something could not be mended.
    async fn look(&self) -> Instant {
        let soon = match self.converge().await {
            Ok(report) => report.tell(),
            Err(error) => {
                warn!(%error, "could not look at the host's networks; trying again");
                true
            }
        };
        Instant::now() + if soon { Duration::from_secs(2) } else { LOOK }
    }

    /// Gathers news for a moment and says whether the last of each object differs from its plan.
    async fn concerns(&self, first: Option<Change>, more: &mut mpsc::Receiver<Change>) -> bool {
        let Some(first) = first else { return std::future::pending().await };
        let mut news = News::default();
        news.add(first);
        let end = Instant::now() + SETTLE;
        while let Ok(Some(change)) = timeout(end - Instant::now(), more.recv()).await {
            news.add(change);
        }
        let desired = self.desired.lock();
        news.lost || desired.disagrees(&news.now, &news.gone) || news.went.iter().any(|key| desired.is_known_by_number(key))
    }

    /// Has [`Reconciler::watch`] look at the host now.
    pub fn look_again(&self) {
        self.again.notify_one();
    }

    /// Makes the host have nothing of ours. To be called where nothing is expected.
    pub async fn clear(&self) -> Result<Report, Error> {
        let first = self.converge().await?;
        self.firewall.clear().await?;
        Ok(first)
    }

    /// Waits until nothing that was deleted is left, `limit` at most.
    pub async fn idle(&self, limit: Duration) {
        if timeout(limit, self.disposal.finished_all()).await.is_err() {
            warn!("links that were to be deleted are left for the next start");
        }
    }
}

impl Report {
    fn note(&mut self, count: usize, what: impl IntoIterator<Item = String>) {
        self.mended += count;
        self.healed.extend(what);
    }

    /// Logs what was mended and what failed; true if anything did.
    fn tell(&self) -> bool {
        debug!(mended = self.mended, failed = self.failed.len(), "looked at the whole host");
        for error in &self.failed {
            warn!(%error, "not as it should be; trying again");
        }
        !self.failed.is_empty()
    }
}

/// The last that was heard of each object.
#[derive(Default)]
struct News {
    now: std::collections::BTreeMap<Key, Object>,
    gone: BTreeSet<Key>,
    /// Those that were gone at some time, whether they are back or not.
    went: BTreeSet<Key>,
    lost: bool,
}

impl News {
    fn add(&mut self, change: Change) {
        match change {
            Change::Now(object) => {
                self.gone.remove(&object.key());
                self.now.insert(object.key(), *object);
            }
            Change::Gone(key) => {
                self.now.remove(&key);
                self.went.insert(key.clone());
                self.gone.insert(key);
            }
            Change::Lost => self.lost = true,
        }
    }
}
