//! Deletions that no answer waits for: one after the other, in the order of their coming.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};
use tracing::warn;

use crate::kernel::Kernel;
use crate::model::Key;

pub struct Disposal {
    queue: mpsc::UnboundedSender<Key>,
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
        let (queue, keys) = mpsc::unbounded_channel();
        let waiting = Arc::new(Waiting::default());
        tokio::spawn(dispose(kernel, keys, waiting.clone()));
        Disposal { queue, waiting }
    }

    pub fn add(&self, key: Key) {
        self.waiting.keys().insert(key.clone());
        // the receiver lives as long as the runtime
        let _ = self.queue.send(key);
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
async fn dispose(kernel: Arc<dyn Kernel>, mut queue: mpsc::UnboundedReceiver<Key>, waiting: Arc<Waiting>) {
    while let Some(key) = queue.recv().await {
        if let Err(error) = kernel.delete(&key).await {
            warn!(%error, "could not delete; the next look at the host tries again");
        }
        waiting.keys().remove(&key);
        waiting.done.notify_waiters();
    }
}
