//! Leases: how a host says that it is there, and how the others see that it no longer is.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{Embedded, Expect, Key, Op, Prefix, Store, StoreError};

/// A lease by its id: Consul's session id. Worth keeping: a process that comes back renews the one it had.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lease(pub String);

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Leases and the keys that live as long as they.
///
/// On a store that hosts share, a lease that is not renewed for its time ends, at the latest after twice as long. On the embedded store
/// nobody else could miss this host: a lease ends by [`Leases::end`] only, and outlives the process.
#[async_trait]
pub trait Leases: Store {
    /// A new lease. `name` is for people who look into the store. `ttl`: 10 s to a day; Consul takes nothing else.
    async fn grant(&self, name: &str, ttl: Duration) -> Result<Lease, StoreError>;

    /// Its time begins anew. [`StoreError::Ended`]: it is over, and what it held is gone.
    async fn renew(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Ends it now: every key it holds is removed. One that is over is ended already.
    async fn end(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Writes a value that is removed when the lease ends, and returns its version. Again with the same lease it is a usual write.
    /// [`StoreError::Held`]: another lease holds the key, which one [`Leases::holder`] tells.
    async fn hold(&self, lease: &Lease, key: &Key, value: Vec<u8>) -> Result<u64, StoreError>;

    /// The lease that holds a key.
    async fn holder(&self, key: &Key) -> Result<Option<Lease>, StoreError>;
}

/// Leases are plain records here: `lease/id/ID` is there while a lease is, `lease/of/KEY` says who holds a key.
#[async_trait]
impl Leases for Embedded {
    async fn grant(&self, name: &str, _ttl: Duration) -> Result<Lease, StoreError> {
        let lease = Lease(format!("{:032x}", rand::random::<u128>()));
        self.put(&record(&lease)?, name.into(), Expect::Absent).await?;
        Ok(lease)
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let found = self.get(&record(lease)?).await?;
        found.map(drop).ok_or_else(|| StoreError::Ended { lease: lease.clone() })
    }

    async fn end(&self, lease: &Lease) -> Result<(), StoreError> {
        let mut ops = vec![Op::Delete(record(lease)?, Expect::Any)];
        let records = self.list(&Prefix::all()).await?.into_iter().filter(|entry| entry.value == lease.0.as_bytes());
        for entry in records {
            let Some(Ok(held)) = entry.key.as_str().strip_prefix(HOLDERS).map(Key::new) else { continue };
            ops.extend([Op::Delete(held, Expect::Any), Op::Delete(entry.key, Expect::Any)]);
        }
        self.commit(ops).await.map(drop)
    }

    async fn hold(&self, lease: &Lease, key: &Key, value: Vec<u8>) -> Result<u64, StoreError> {
        self.renew(lease).await?;
        let mark = holder_record(key)?;
        let seen = Expect::found(self.get(&mark).await?.map(|entry| entry.version));
        if self.holder(key).await?.is_some_and(|holder| holder != *lease) {
            return Err(StoreError::Held { key: key.clone() });
        }
        let ops = vec![Op::Put(key.clone(), value, Expect::Any), Op::Put(mark, lease.0.clone().into(), seen)];
        match self.commit(ops).await {
            Err(StoreError::Conflict { .. }) => Err(StoreError::Held { key: key.clone() }),
            versions => Ok(versions?.first().copied().flatten().unwrap_or_default()),
        }
    }

    async fn holder(&self, key: &Key) -> Result<Option<Lease>, StoreError> {
        let there = self.get(key).await?.is_some();
        let holder = self.get(&holder_record(key)?).await?.filter(|_| there);
        Ok(holder.map(|entry| Lease(String::from_utf8_lossy(&entry.value).into_owned())))
    }
}

fn record(lease: &Lease) -> Result<Key, StoreError> {
    Key::new(format!("lease/id/{lease}")).map_err(|_| StoreError::Ended { lease: lease.clone() })
}

/// What the records of holders start with.
const HOLDERS: &str = "lease/of/";

/// A key after a literal is a key.
fn holder_record(key: &Key) -> Result<Key, StoreError> {
    Key::new(format!("{HOLDERS}{key}")).map_err(|_| StoreError::Refused { key: key.clone(), cause: "no lease can hold it" })
}
