//! The store that hosts share: Consul's KV, every key below one prefix of it.
//!
//! A commit is one transaction, a watch is a blocking query that reads the whole prefix again, a lease is a session. Nothing is opened
//! before the first call: a Consul that comes up later, or a certificate that does, needs no restart. `docs/store.md` tells the limits and
//! why this client is our own.
//!
//! Every commit also says which record format the writer saw. A newer rsnet that raised it is so never written over by an older one, and
//! a commit after all keys were lost finds that out. What is read is not believed either once that was seen.

mod access;
mod catalog;
mod client;
mod clock;
mod lease;
mod settings;
mod watch;
mod wire;

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use futures_util::StreamExt;
use hyper::StatusCode;
use parking_lot::Mutex;
use tokio::sync::watch::Receiver;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::client::{Answer, Ask, Client};
use self::watch::Query;
use super::{Entry, Expect, FORMAT, FORMAT_KEY, Key, Op, Prefix, Snapshots, Store, StoreError, Wakes, check};

pub use catalog::{Node, Service};
pub use client::{Contact, Traffic};
pub use settings::{Address, Identity, Settings, Token};

/// Consul's limit for a transaction.
const TXN_OPS: usize = 64;

/// What no [`Key`] ends in.
const OCCUPIED: char = '~';

/// A Consul. Dropping it ends its watches.
pub struct Consul {
    kv: Arc<Kv>,
    closed: CancellationToken,
    _close: DropGuard,
    /// What the guard tells watchers, once there is a first watcher.
    lost: OnceLock<Receiver<u64>>,
}

/// What calls and watches have in common.
struct Kv {
    client: Client,
    /// The key `format` where it was found to be ours.
    format: Mutex<Option<Format>>,
}

/// The key `format`, with what tells it from one that was written anew: a Consul that lost everything counts its versions again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Format {
    version: u64,
    /// Random since it was written.
    mark: u64,
}

impl Consul {
    /// A store with these settings. Asks nobody yet.
    pub fn new(settings: Settings) -> Self {
        let closed = CancellationToken::new();
        let kv = Kv { client: Client::new(settings), format: Mutex::new(None) };
        Self { kv: Arc::new(kv), closed: closed.clone(), _close: closed.drop_guard(), lost: OnceLock::new() }
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.kv.client.settings.address
    }

    /// How it stands with it.
    pub fn contact(&self) -> Contact {
        self.kv.client.contact()
    }

    /// What this host asked and was answered.
    pub fn traffic(&self) -> Traffic {
        self.kv.client.traffic()
    }

    /// Whether Consul can be reached, lets us read and write, and has records that we know. Writes the record format if there is none,
    /// and again as it is if there is one: that changes nothing, and shows that we may.
    pub async fn check(&self) -> Result<(), StoreError> {
        let format = self.kv.fresh_format().await?;
        self.kv.put_format(format.mark, format.version).await.map(drop)
    }
}

#[async_trait]
impl Store for Consul {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.kv.get(key).await
    }

    async fn list(&self, prefix: &Prefix) -> Result<Vec<Entry>, StoreError> {
        let answer = self.kv.ask_below(prefix, "recurse").await?;
        self.kv.believed(self.kv.entries(&answer)?).await
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Vec<Option<u64>>, StoreError> {
        check(&ops)?;
        if ops.is_empty() {
            return Ok(vec![]);
        }
        self.kv.commit(&ops).await
    }

    async fn watch(&self, prefix: &Prefix) -> Result<Snapshots, StoreError> {
        let query = Query { ask: |path| format!("{path}?recurse"), read: Kv::entries };
        Ok(watch::snapshots(&self.kv, self.closed.clone(), self.lost(), prefix.clone(), query))
    }

    /// Of keys that go on behind the next `/` Consul tells only the part before: asked without its own `/`, a prefix is one.
    async fn wakes(&self, prefix: &Prefix) -> Result<Wakes, StoreError> {
        let query =
            Query { ask: |path| format!("{}?keys&separator=/", path.trim_end_matches('/')), read: |_, answer| Ok(vec![answer.index]) };
        let changes = watch::snapshots(&self.kv, self.closed.clone(), self.lost(), prefix.clone(), query);
        Ok(changes.map(|heard| heard.map(drop)).boxed())
    }

    async fn keys(&self, prefix: &Prefix) -> Result<Vec<Key>, StoreError> {
        let answer = self.kv.ask_below(prefix, "keys").await?;
        self.kv.believed(self.kv.keys(&answer)?).await
    }
}

impl Consul {
    /// What the guard tells, which the first watcher starts.
    fn lost(&self) -> Receiver<u64> {
        let guard = || {
            let (tell, told) = tokio::sync::watch::channel(0);
            tokio::spawn(watch::guard(Arc::downgrade(&self.kv), self.closed.clone(), tell));
            told
        };
        self.lost.get_or_init(guard).clone()
    }
}

/// A transaction, and which of our operations each of Consul's stands for.
#[derive(Default)]
struct Txn<'a> {
    ops: Vec<wire::Op<'a>>,
    of: Vec<usize>,
}

impl<'a> Txn<'a> {
    fn push(&mut self, of: usize, op: wire::Op<'a>) {
        self.ops.push(op);
        self.of.push(of);
    }
}

/// Of a transaction that was done.
struct Reply {
    done: wire::Done,
    answer: Answer,
}

impl Reply {
    /// The version that a key was written with.
    fn version(&self, path: &str) -> Result<u64, StoreError> {
        self.done.index_of(path).ok_or_else(|| self.answer.strange(format!("no word of {path}")))
    }
}

/// Of one of which nothing was done: this operation of ours could not be.
struct Refusal {
    of: usize,
    what: String,
    answer: Answer,
}

impl Refusal {
    /// An operation that expects something was refused for that: what a token may not do is said otherwise.
    fn error(&self, of: &Op) -> StoreError {
        match of {
            Op::Put(key, _, expected) | Op::Delete(key, expected) if *expected != Expect::Any => {
                StoreError::Conflict { key: key.clone(), expected: *expected }
            }
            _ => self.answer.strange(&self.what),
        }
    }
}

impl Kv {
    /// The path of a key, or of the start of keys, in Consul.
    fn path(&self, key: impl std::fmt::Display) -> String {
        format!("{}/{key}", self.client.settings.address.prefix)
    }

    async fn ask_below(&self, prefix: &Prefix, what: &str) -> Result<Answer, StoreError> {
        let path = self.path(prefix.as_str());
        self.client.ask(Ask::get(format!("kv/{path}?{what}"), format!("list {path}"))).await
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.format().await?;
        let path = self.path(key);
        let answer = self.client.ask(Ask::get(format!("kv/{path}"), format!("read {path}"))).await?;
        Ok(self.entries(&answer)?.into_iter().next())
    }

    /// What was found below a prefix, if its format is ours. Nothing is believed only if the format can be read: Consul leaves out what a
    /// token may not see, without a word.
    async fn believed<T>(&self, found: Vec<T>) -> Result<Vec<T>, StoreError> {
        if found.is_empty() {
            self.fresh_format().await?
        } else {
            self.format().await?
        };
        Ok(found)
    }

    /// A key of ours. Folders that Consul's own page makes, and others that cannot be ours, are left out.
    fn key(&self, path: &str) -> Option<Key> {
        let below = path.strip_prefix(self.client.settings.address.prefix.as_str())?.strip_prefix('/')?;
        Key::new(below).ok()
    }

    /// The keys that an answer to `?keys` names.
    fn keys(&self, answer: &Answer) -> Result<Vec<Key>, StoreError> {
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(vec![]);
        }
        Ok(answer.json::<Vec<String>>()?.iter().filter_map(|path| self.key(path)).collect())
    }

    fn entries(&self, answer: &Answer) -> Result<Vec<Entry>, StoreError> {
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(vec![]);
        }
        let mut entries = Vec::new();
        for pair in answer.json::<Vec<wire::Pair>>()? {
            let Some(key) = self.key(&pair.key) else { continue };
            let value = pair.bytes().map_err(|error| answer.strange(format!("the value of {}: {error}", pair.key)))?;
            entries.push(Entry { key, value, version: pair.modify_index });
        }
        Ok(entries)
    }

    async fn commit(&self, ops: &[Op]) -> Result<Vec<Option<u64>>, StoreError> {
        let txn = self.txn(ops);
        if txn.ops.len() >= TXN_OPS {
            return Err(StoreError::Refused { key: ops[0].key().clone(), cause: "more operations than Consul takes in one transaction" });
        }
        match self.transact(&txn, ops[0].key()).await? {
            Ok(done) => ops.iter().map(|op| self.version(&done, op)).collect(),
            Err(refusal) => Err(refusal.error(&ops[refusal.of])),
        }
    }

    /// A transaction behind a look at the record format. If that is not what we saw, it is read again, and all tried once more.
    async fn transact(&self, txn: &Txn<'_>, key: &Key) -> Result<Result<Reply, Refusal>, StoreError> {
        let path = self.path(key);
        let mut last = None;
        for again in [false, true] {
            let format = if again { self.fresh_format().await? } else { self.format().await? };
            let format = wire::Op::check(self.path(FORMAT_KEY), format.version);
            let answer = self.send(&[&format], &txn.ops, &path).await?;
            let done: wire::Done = answer.json()?;
            if answer.status == StatusCode::OK {
                return Ok(Ok(Reply { done, answer }));
            }
            let wrong = done.wrong().ok_or_else(|| answer.strange("a conflict without a reason"))?;
            if let Some(at) = wrong.op_index.checked_sub(1) {
                let of = *txn.of.get(at).ok_or_else(|| answer.strange(&wrong.what))?;
                return Ok(Err(Refusal { of, what: wrong.what, answer }));
            }
            last = Some(answer.strange(wrong.what));
        }
        Err(last.unwrap_or_else(|| StoreError::Refused { key: key.clone(), cause: "it was not tried" }))
    }

    /// Operations to Consul. Those that the token does not allow are an error, which Consul answers like a conflict.
    async fn send(&self, first: &[&wire::Op<'_>], rest: &[wire::Op<'_>], path: &str) -> Result<Answer, StoreError> {
        let ops: Vec<_> = first.iter().copied().chain(rest).collect();
        // Strings and numbers always serialise.
        let body = serde_json::to_vec(&ops).unwrap_or_default();
        let answer = self.client.ask(Ask::put("txn", body, format!("write {path}"))).await?;
        let denied = answer.status == StatusCode::CONFLICT && String::from_utf8_lossy(&answer.body).contains("Permission denied");
        if denied { Err(answer.denied("Permission denied")) } else { Ok(answer) }
    }

    /// What Consul has to do. A condition on a key to be deleted is an operation of its own: `delete-cas` is content with a key that is
    /// not there.
    fn txn(&self, ops: &[Op]) -> Txn<'static> {
        let mut txn = Txn::default();
        for (at, op) in ops.iter().enumerate() {
            let path = self.path(op.key());
            match op {
                Op::Put(_, value, Expect::Any) => txn.push(at, wire::Op::set(path, value, None)),
                Op::Put(_, value, Expect::Absent) => txn.push(at, wire::Op::set(path, value, Some(0))),
                // To Consul 0 means absent; no key ever has it.
                Op::Put(_, _, Expect::Version(0)) => txn.push(at, wire::Op::check(path, 0)),
                Op::Put(_, value, Expect::Version(version)) => txn.push(at, wire::Op::set(path, value, Some(*version))),
                Op::Delete(_, Expect::Any) => txn.push(at, wire::Op::plain("delete", path)),
                Op::Delete(_, Expect::Absent) => txn.push(at, wire::Op::plain("check-not-exists", path)),
                Op::Delete(_, Expect::Version(version)) => {
                    txn.push(at, wire::Op::check(path.clone(), *version));
                    txn.push(at, wire::Op::plain("delete", path));
                }
                Op::DeleteBelow(_) => txn.push(at, wire::Op::plain("delete-tree", format!("{path}/"))),
            }
        }
        txn
    }

    /// The version of what an operation wrote.
    fn version(&self, done: &Reply, op: &Op) -> Result<Option<u64>, StoreError> {
        let Op::Put(key, ..) = op else { return Ok(None) };
        done.version(&self.path(key)).map(Some)
    }

    /// Puts a key that is none of ours below a watched prefix where there is no other. Of an empty prefix Consul takes the index of all keys,
    /// and wakes whoever waits for one at every write of anybody: a thousand hosts, ten times a second each.
    async fn occupy(&self, path: &str) -> Result<(), StoreError> {
        let set = wire::Op::set(format!("{path}{OCCUPIED}"), b"", None);
        self.send(&[], &[set], path).await.map(drop)
    }

    /// The record format as last seen, which is ours; written if there is none.
    async fn format(&self) -> Result<Format, StoreError> {
        match self.known_format() {
            Some(format) => Ok(format),
            None => self.fresh_format().await,
        }
    }

    /// The same as it is now. One that is not ours is looked at again before anything else is believed.
    async fn fresh_format(&self) -> Result<Format, StoreError> {
        let format = self.sound_format().await;
        if !matches!(format, Err(StoreError::Unreachable { .. })) {
            *self.format.lock() = format.as_ref().ok().copied();
        }
        format
    }

    async fn sound_format(&self) -> Result<Format, StoreError> {
        match self.found_format().await? {
            Some(format) => Ok(format),
            None => self.write_format().await,
        }
    }

    fn known_format(&self) -> Option<Format> {
        *self.format.lock()
    }

    async fn found_format(&self) -> Result<Option<Format>, StoreError> {
        let path = self.path(FORMAT_KEY);
        let answer = self.client.ask(Ask::get(format!("kv/{path}"), format!("read {path}"))).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let Some(pair) = answer.json::<Vec<wire::Pair>>()?.into_iter().next() else { return Err(answer.strange("an empty answer")) };
        let text = pair.bytes().ok().and_then(|bytes| String::from_utf8(bytes).ok());
        match text.and_then(|text| text.parse::<u64>().ok()) {
            Some(FORMAT) => Ok(Some(Format { version: pair.modify_index, mark: pair.flags })),
            Some(found) if found > FORMAT => Err(StoreError::Newer { path: self.client.settings.address.to_string().into(), found }),
            _ => Err(answer.strange("it is no record format of rsnet; choose another prefix in RSNET_STORE")),
        }
    }

    /// Writes the format unless somebody else was faster: what is there then counts.
    async fn write_format(&self) -> Result<Format, StoreError> {
        let answer = self.put_format(rand::random(), 0).await?;
        self.found_format().await?.ok_or_else(|| answer.strange("the record format is neither there nor can it be written"))
    }

    async fn put_format(&self, mark: u64, version: u64) -> Result<Answer, StoreError> {
        let path = self.path(FORMAT_KEY);
        let put = wire::Op::set(path.clone(), FORMAT.to_string().as_bytes(), Some(version)).flagged(mark);
        self.send(&[&put], &[], &path).await
    }
}
