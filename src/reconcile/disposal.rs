//! Deletions that no answer waits for. What comes while some are under way is deleted together after them.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use crate::kernel::Kernel;
use crate::model::Key;

pub struct Disposal {
    waiting: Arc<Waiting>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Waiting {
    /// Those that are being deleted among them.
    keys: Mutex<BTreeSet<Key>>,
    come: Notify,
    done: Notify,
}

impl Disposal {
    pub fn start(kernel: Arc<dyn Kernel>) -> Self {
        let waiting = Arc::new(Waiting::default());
        let task = AbortOnDropHandle::new(tokio::spawn(dispose(kernel, waiting.clone())));
        Disposal { waiting, _task: task }
    }

    pub fn add(&self, keys: Vec<Key>) {
        self.waiting.keys.lock().extend(keys);
        self.waiting.come.notify_one();
    }

    /// Returns once none of `keys` waits to be deleted.
    pub async fn finished(&self, keys: impl Iterator<Item = Key>) {
        let keys: Vec<Key> = keys.collect();
        self.until(|waiting| keys.iter().all(|key| !waiting.contains(key))).await;
    }

    /// What waits to be deleted now.
    pub fn waiting(&self) -> BTreeSet<Key> {
        self.waiting.keys.lock().clone()
    }

    pub async fn finished_all(&self) {
        self.until(BTreeSet::is_empty).await;
    }

    async fn until(&self, reached: impl Fn(&BTreeSet<Key>) -> bool) {
        loop {
            let done = self.waiting.done.notified();
            tokio::pin!(done);
            done.as_mut().enable();
            if reached(&self.waiting.keys.lock()) {
                return;
            }
            done.await;
        }
    }
}

/// What cannot be deleted now is found by the next look at the kernel. Nothing that waits is added again: nobody makes it before it is gone.
async fn dispose(kernel: Arc<dyn Kernel>, waiting: Arc<Waiting>) {
    loop {
        waiting.come.notified().await;
        let lot = waiting.keys.lock().clone();
        let backwards: Vec<Key> = lot.iter().rev().cloned().collect();
        if let Err(error) = kernel.delete_all(&backwards).await {
            warn!(%error, "could not delete; the next look at the host tries again");
        }
        waiting.keys.lock().retain(|key| !lot.contains(key));
        waiting.done.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fake::{Call, Effect, Fake};
    use crate::model::{IfName, Link, LinkKind, Object};

    #[tokio::test]
    async fn what_cannot_be_deleted_keeps_nothing_else_from_going() {
        let kernel = Arc::new(Fake::new());
        let keys = ["a", "b", "c"].map(|id| Key::Link(IfName::of("rsb-", id)));
        for name in keys.iter().filter_map(Key::link).cloned() {
            kernel.put(&Object::Link(Link { name, alias: "rsnet:a".into(), kind: LinkKind::Dummy, mac: None, mtu: None })).await.unwrap();
        }
        let stuck = keys[1].clone();
        kernel.fail_matching(move |call| *call == Call::Delete(stuck.clone()), Effect::None);
        let disposal = Disposal::start(kernel.clone());
        keys.iter().for_each(|key| disposal.add(vec![key.clone()]));
        disposal.finished_all().await;
        assert!(kernel.objects().into_keys().eq([keys[1].clone()]));
    }
}
