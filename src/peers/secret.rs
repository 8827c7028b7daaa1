//! What the hosts of a cluster know each other by: 32 random bytes that the first of them writes into the store they share.
//!
//! Whoever can read that store, or the segment between the hosts, has it: it keeps out whoever is neither, as VXLAN itself keeps out nobody.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

use crate::store::{Expect, InvalidKey, Key, Store, StoreError};

/// In the store that hosts share.
const SHARED: &str = "cluster/secret";
/// On this host's disk: a start without the other store has it.
const OWN: &str = "host/secret";
/// Between two looks into the store, if nobody has doubts.
const NOW_AND_THEN: Duration = Duration::from_secs(600);
/// Between two tries.
const AGAIN: Duration = Duration::from_secs(2);

/// What is known of it.
pub struct Secret {
    own: Arc<dyn Store>,
    shared: Arc<dyn Store>,
    known: RwLock<Option<String>>,
    doubt: Notify,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] InvalidKey),
}

impl Secret {
    /// As this host's disk has it.
    pub async fn load(own: Arc<dyn Store>, shared: Arc<dyn Store>) -> Result<Arc<Self>, StoreError> {
        let secret = Secret { own, shared, known: RwLock::default(), doubt: Notify::new() };
        if let Ok(key) = Key::new(OWN) {
            secret.know(secret.own.get(&key).await?.and_then(|entry| text(entry.value)));
        }
        Ok(Arc::new(secret))
    }

    /// Follows the store until the process ends.
    pub async fn follow(self: Arc<Self>) {
        loop {
            match self.read().await {
                Ok(()) => drop(timeout(NOW_AND_THEN, self.doubt.notified()).await),
                Err(error) => debug!("{error}"),
            }
            sleep(AGAIN).await;
        }
    }

    /// Takes what the store says; says what is known here, or something new, where it says nothing.
    async fn read(&self) -> Result<(), Failure> {
        let (shared, own) = (Key::new(SHARED)?, Key::new(OWN)?);
        let found = self.shared.get(&shared).await?;
        let expect = Expect::found(found.as_ref().map(|entry| entry.version));
        let heard = found.and_then(|entry| text(entry.value));
        let secret = match heard {
            Some(secret) => secret,
            None => {
                let secret = self.text().unwrap_or_else(fresh);
                self.shared.put(&shared, secret.clone().into_bytes(), expect).await?;
                secret
            }
        };
        if self.text().as_ref() != Some(&secret) {
            self.own.put(&own, secret.clone().into_bytes(), Expect::Any).await?;
            info!("what hosts know each other by was read from the store");
            self.know(Some(secret));
        }
        Ok(())
    }

    /// Another host has another one: looks into the store again, soon.
    pub fn doubt(&self) {
        self.doubt.notify_one();
    }

    pub(super) fn text(&self) -> Option<String> {
        self.known.read().clone()
    }

    /// In a time that does not tell how much of it is right.
    pub(super) fn is(&self, given: &str) -> bool {
        let known = self.text();
        let known = known.as_deref().unwrap_or_default();
        let differences = known.bytes().zip(given.bytes()).fold(0, |seen, (one, other)| seen | std::hint::black_box(one ^ other));
        !known.is_empty() && known.len() == given.len() && differences == 0
    }

    fn know(&self, secret: Option<String>) {
        *self.known.write() = secret;
    }
}

fn fresh() -> String {
    format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>())
}

/// What is no secret of ours counts as none: it would open the door to whoever sends nothing.
fn text(value: Vec<u8>) -> Option<String> {
    String::from_utf8(value).ok().filter(|text| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Embedded;

    fn store() -> (tempfile::TempDir, Arc<dyn Store>) {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(&directory.path().join("s.redb")).unwrap());
        (directory, store)
    }

    #[tokio::test]
    async fn hosts_of_one_store_come_to_the_same_secret_and_have_it_without_the_store() {
        let ((_s, shared), (_a, a), (_b, b), (_n, nothing)) = (store(), store(), store(), store());
        let (first, second) = (Secret::load(a.clone(), shared.clone()).await.unwrap(), Secret::load(b, shared).await.unwrap());
        assert!(!first.is("") && first.text().is_none());
        let (one, other) = tokio::join!(first.read(), second.read());
        // the slower one is told that somebody was faster, and reads again
        assert!(one.is_ok() || other.is_ok());
        first.read().await.unwrap();
        second.read().await.unwrap();
        let secret = first.text().unwrap();
        assert!(second.is(&secret) && !second.is(&secret[1..]) && !second.is(&secret.replace(&secret[..1], "x")));
        let later = Secret::load(a, nothing).await.unwrap();
        assert_eq!(later.text(), Some(secret.clone()));
        // and a store that lost it has it from whoever comes first
        later.read().await.unwrap();
        assert_eq!(text(later.shared.get(&Key::new(SHARED).unwrap()).await.unwrap().unwrap().value), Some(secret));
    }

    #[tokio::test]
    async fn what_is_no_secret_in_the_store_is_replaced() {
        let ((_s, shared), (_a, a)) = (store(), store());
        shared.put(&Key::new(SHARED).unwrap(), b"open sesame".to_vec(), Expect::Any).await.unwrap();
        let secret = Secret::load(a, shared).await.unwrap();
        secret.read().await.unwrap();
        assert_eq!(secret.text().unwrap().len(), 64);
    }
}
