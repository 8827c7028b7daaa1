//! PERSISTENCE: what was declared, as small values under keys. One trait, [`Store`]; [`embedded`] keeps it in a file of this host,
//! [`consul`] where several hosts share it.
//!
//! Knows nothing of what a value means, and never decides anything. Every implementation passes the same conformance suite
//! (`tests/store/conformance.rs`), so that versions, conflicts and watches mean the same everywhere: what Consul's KV makes of them.

pub mod consul;
pub mod embedded;
mod key;
mod lease;

use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

pub use consul::Consul;
pub use embedded::Embedded;
pub use key::{InvalidKey, Key, Prefix};
pub use lease::{Lease, Leases};

/// The record format this program reads and writes, as text under the key [`FORMAT_KEY`].
pub const FORMAT: u64 = 1;

/// Where the record format stands. Only the store itself writes it.
pub const FORMAT_KEY: &str = "format";

/// How many operations one [`Store::commit`] may have on every store, where a deletion that expects a version counts twice: Consul's
/// limit of 64 for a transaction, less the one that looks at the record format. The embedded store has none.
pub const PORTABLE_OPS: usize = 63;

/// How many bytes the values of one [`Store::commit`] may have together on every store: Consul takes requests of 512 KiB, and values in
/// them grow by a third. The embedded store has no limit.
pub const PORTABLE_BYTES: usize = 360 << 10;

/// One value as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub key: Key,
    /// What, as the writer gave it.
    pub value: Vec<u8>,
    /// Consul's `ModifyIndex`: the number of the commit that last changed the value. Never 0, and a key that was deleted and made again
    /// has a higher one than before.
    pub version: u64,
}

/// What must be true of a key for an operation to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// The key is not there.
    Absent,
    /// The key is there with this version.
    Version(u64),
}

impl Expect {
    /// That a key is as it was found, with this version or not there.
    pub fn found(version: Option<u64>) -> Self {
        version.map_or(Expect::Absent, Expect::Version)
    }

    /// Whether it holds for a key found with `version`.
    pub fn holds(self, version: Option<u64>) -> bool {
        match self {
            Expect::Any => true,
            Expect::Absent => version.is_none(),
            Expect::Version(expected) => version == Some(expected),
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expect::Any => f.write_str("anything"),
            Expect::Absent => f.write_str("no value"),
            Expect::Version(version) => write!(f, "version {version}"),
        }
    }
}

/// One change. Expectations are all looked at before the first change is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a value. One equal to what is there changes nothing: the version stays and no watcher wakes.
    Put(Key, Vec<u8>, Expect),
    /// Removes a key; one that is not there is removed already.
    Delete(Key, Expect),
    /// Removes all keys below this one, not the key itself. A watch of a part of that tree may see it late, after a minute; one of the
    /// tree, or of more, sees it at once.
    DeleteBelow(Key),
}

impl Op {
    /// The key it names.
    pub fn key(&self) -> &Key {
        let (Op::Put(key, ..) | Op::Delete(key, _) | Op::DeleteBelow(key)) = self;
        key
    }
}

/// Why the store did not do something. A commit that failed has changed nothing, except as [`StoreError::Io`] says.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// An expectation did not hold: somebody else was faster.
    #[error("write {key}: expected {expected}, found something else; read it again and decide anew")]
    Conflict {
        /// The key.
        key: Key,
        /// What the caller expected.
        expected: Expect,
    },
    /// A commit that is refused whatever is stored: a key named twice, one below a tree that is deleted, or the store's own key.
    #[error("write {key}: {cause}; this is an error in rsnet, please report it")]
    Refused {
        /// The key.
        key: Key,
        /// Why.
        cause: &'static str,
    },
    /// Another process has the file.
    #[error("open {}: it is in use by another process; most likely another rsnet is running: stop it, or choose another RSNET_DATA_DIR", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A newer rsnet wrote it.
    #[error("open {}: its records have format {found}, this rsnet knows up to {FORMAT}; run the newer rsnet again", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// It is no store, or damaged.
    #[error("open {}: the file is damaged or not a store of rsnet ({cause}); put back a copy of it, or move it away to start empty", .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        cause: String,
    },
    /// The disk failed. Of a commit it is then unknown whether it is done; the embedded store takes no more until it is opened again.
    #[error("{action} {}: {cause}; see to the disk and restart rsnet", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What went wrong.
        cause: String,
    },
    /// The store that hosts share gave no answer, or none of use. Try again later.
    #[error("{action} in {store}: {cause}; {}", reach_text(*.sent))]
    Unreachable {
        /// What was being done, with the key.
        action: String,
        /// The store's address.
        store: String,
        /// Whether the store may have heard it: of a commit it is then unknown whether it is done.
        sent: bool,
        /// What went wrong.
        cause: String,
    },
    /// The store that hosts share knows us not, or does not let us.
    #[error(
        "{action} in {store}: {cause}; give a token with the policy that comes with rsnet, by RSNET_STORE_TOKEN_FILE or RSNET_STORE_TOKEN"
    )]
    Denied {
        /// What was being done, with the key.
        action: String,
        /// The store's address.
        store: String,
        /// What it said.
        cause: String,
    },
    /// The store that hosts share answered what makes no sense, or what trying again would not change.
    #[error("{action} in {store}: {cause}; see that RSNET_STORE names a Consul, and what its log says")]
    Answer {
        /// What was being done, with the key.
        action: String,
        /// The store's address.
        store: String,
        /// What it said.
        cause: String,
    },
    /// The lease was not renewed in time, or was ended.
    #[error("renew or use lease {lease}: it is over, and what it held is gone; take a new one")]
    Ended {
        /// The lease.
        lease: Lease,
    },
    /// Another lease holds the key.
    #[error("hold {key}: another lease holds it; end that one, or wait until it ends")]
    Held {
        /// The key.
        key: Key,
    },
    /// A file that a setting names cannot be used.
    #[error("read {name}={} (RSNET_{}): {cause}; mend the file, it is then read again", .path.display(), .name.to_uppercase())]
    Setting {
        /// The setting.
        name: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The store's writer is gone.
    #[error("write {}: the store is closed; restart rsnet", .path.display())]
    Closed {
        /// The file.
        path: PathBuf,
    },
}

fn reach_text(sent: bool) -> &'static str {
    if sent {
        "whether it was done is unknown: read it again; see that Consul runs there and has a leader"
    } else {
        "see that Consul runs there and has a leader"
    }
}

/// Whole snapshots of a prefix, see [`Store::watch`].
pub type Snapshots = BoxStream<'static, Result<Vec<Entry>, StoreError>>;

/// See [`Store::wakes`].
pub type Wakes = BoxStream<'static, Result<(), StoreError>>;

/// Keys and values that survive this process. Every write that returned is durable.
#[async_trait]
pub trait Store: Send + Sync {
    /// The value under a key.
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError>;

    /// All entries of a prefix, in the bytewise order of their keys.
    async fn list(&self, prefix: &Prefix) -> Result<Vec<Entry>, StoreError>;

    /// All of the operations or none, each key at most once. Returns each key's version afterwards, `None` for what was deleted.
    /// A commit whose future is dropped may still be done. See [`PORTABLE_OPS`].
    async fn commit(&self, ops: Vec<Op>) -> Result<Vec<Option<u64>>, StoreError>;

    /// The prefix as it is now, then again whenever it changed. Never events: states that came and went while nobody looked are left
    /// out, the newest never is. A failure is told, and the watch goes on: the next snapshot is the newest there is. Ends when the store
    /// is dropped.
    async fn watch(&self, prefix: &Prefix) -> Result<Snapshots, StoreError>;

    /// Once, then whenever something of the prefix may be another. Says not what, and so costs the same however much there is: for readers who
    /// ask for it when they have waited for more of it. Otherwise as [`Store::watch`].
    async fn wakes(&self, prefix: &Prefix) -> Result<Wakes, StoreError> {
        Ok(self.watch(prefix).await?.map(|heard| heard.map(drop)).boxed())
    }

    /// The keys of a prefix, for those to whom their being there says enough.
    async fn keys(&self, prefix: &Prefix) -> Result<Vec<Key>, StoreError> {
        Ok(self.list(prefix).await?.into_iter().map(|entry| entry.key).collect())
    }

    /// Writes one value and returns its version.
    async fn put(&self, key: &Key, value: Vec<u8>, expect: Expect) -> Result<u64, StoreError> {
        let versions = self.commit(vec![Op::Put(key.clone(), value, expect)]).await?;
        let refused = || StoreError::Refused { key: key.clone(), cause: "the store gave it no version" };
        versions.first().copied().flatten().ok_or_else(refused)
    }

    /// Removes one key; one that is not there is removed already, unless a version was expected.
    async fn delete(&self, key: &Key, expect: Expect) -> Result<(), StoreError> {
        self.commit(vec![Op::Delete(key.clone(), expect)]).await.map(drop)
    }
}

/// What every store refuses before it looks at what is stored.
fn check(ops: &[Op]) -> Result<(), StoreError> {
    let mut seen = std::collections::BTreeSet::new();
    for key in ops.iter().map(Op::key) {
        let refused = |cause| Err(StoreError::Refused { key: key.clone(), cause });
        if key.as_str() == FORMAT_KEY {
            return refused("the key belongs to the store");
        }
        if !seen.insert(key) {
            return refused("named twice in one commit");
        }
    }
    // What Consul does one after the other would fail here, and what the embedded store looks at first would not.
    let trees = ops.iter().filter_map(|op| if let Op::DeleteBelow(key) = op { Some(Prefix::below(key)) } else { None });
    for tree in trees {
        if let Some(key) = seen.iter().find(|key| key.as_str().starts_with(tree.as_str())) {
            return Err(StoreError::Refused { key: (*key).clone(), cause: "its tree is deleted in the same commit" });
        }
    }
    Ok(())
}
