//! Deletions that no answer waits for: one lot after the other, in the order of their coming.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};
use tracing::warn;

use crate::kernel::Kernel;
use crate::model::Key;

pub struct Disposal {
    queue: mpsc::UnboundedSender<Vec<Key>>,
    waiting: Arc<Waiting>,
}

#[derive(Default)]
struct Waiting {
    keys: Mutex<BTreeSet<Key>>,
    done: Notify,
}

impl Waiting {
    fn keys(&self) -> MutexGuard<'_, BTreeSet<Key>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disposal {
    pub fn start(kernel: Arc<dyn Kernel>) -> Self {
        let (queue, lots) = mpsc::unbounded_channel();
        let waiting = Arc::new(Waiting::default());
        tokio::spawn(dispose(kernel, lots, waiting.clone()));
        Disposal { queue, waiting }
    }

    /// What goes together: a link and what is of it.
    pub fn add(&self, lot: Vec<Key>) {
        self.waiting.keys().extend(lot.iter().cloned());
        // the receiver lives as long as the runtime
        let _ = self.queue.send(lot);
    }

    /// Returns once none of `keys` waits to be deleted.
    pub async fn finished(&self, keys: impl Iterator<Item = Key>) {
        let keys: Vec<Key> = keys.collect();
        self.until(|waiting| keys.iter().all(|key| !waiting.contains(key))).await;
    }

    /// What waits to be deleted now.
    pub fn waiting(&self) -> BTreeSet<Key> {
        self.waiting.keys().clone()
    }

    pub async fn finished_all(&self) {
        self.until(BTreeSet::is_empty).await;
    }

    async fn until(&self, reached: impl Fn(&BTreeSet<Key>) -> bool) {
        loop {
            let done = self.waiting.done.notified();
            tokio::pin!(done);
            done.as_mut().enable();
            if reached(&self.waiting.keys()) {
                return;
            }
            done.await;
        }
    }
}

/// What cannot be deleted now is found by the next look at the kernel.
async fn dispose(kernel: Arc<dyn Kernel>, mut queue: mpsc::UnboundedReceiver<Vec<Key>>, waiting: Arc<Waiting>) {
    while let Some(lot) = queue.recv().await {
        if let Err(error) = kernel.delete_all(&lot).await {
            warn!(%error, "could not delete; the next look at the host tries again");
        }
        waiting.keys().retain(|key| !lot.contains(key));
        waiting.done.notify_waiters();
    }
}
