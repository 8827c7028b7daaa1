//! The store that hosts share: Consul's KV, every key below one prefix of it.
//!
//! A commit is one transaction, a watch is a blocking query that reads the whole prefix again, a lease is a session. Nothing is opened
//! before the first call: a Consul that comes up later, or a certificate that does, needs no restart. `docs/store.md` tells the limits and
//! why this client is our own.
//!
//! Every commit also says which record format the writer saw. A newer rsnet that raised it is so never written over by an older one, and
//! a commit after all keys were lost finds that out.

mod access;
mod client;
mod lease;
mod settings;
mod watch;
mod wire;

use std::sync::Arc;

use async_trait::async_trait;
use hyper::StatusCode;
use tokio::sync::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::client::{Answer, Ask, Client};
use super::{Entry, Expect, FORMAT, FORMAT_KEY, Key, Op, Prefix, Snapshots, Store, StoreError, check};

pub use settings::{Address, Identity, Settings, Token};

/// Consul's limit for a transaction.
const TXN_OPS: usize = 64;

/// A Consul. Dropping it ends its watches.
pub struct Consul {
    kv: Arc<Kv>,
    closed: CancellationToken,
    _close: DropGuard,
}

/// What calls and watches have in common.
struct Kv {
    client: Client,
    /// The version of the key `format` where it was found to be ours.
    format: Mutex<Option<u64>>,
}

impl Consul {
    /// A store with these settings. Asks nobody yet.
    pub fn new(settings: Settings) -> Self {
        let closed = CancellationToken::new();
        let kv = Kv { client: Client::new(settings), format: Mutex::new(None) };
        Self { kv: Arc::new(kv), closed: closed.clone(), _close: closed.drop_guard() }
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.kv.client.settings.address
    }

    /// Whether Consul can be reached, lets us read and write, and has records that we know. Writes the record format if there is none.
    pub async fn check(&self) -> Result<(), StoreError> {
        *self.kv.format.lock().await = None;
        self.kv.format().await.map(drop)
    }
}

#[async_trait]
impl Store for Consul {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.kv.get(key).await
    }

    async fn list(&self, prefix: &Prefix) -> Result<Vec<Entry>, StoreError> {
        let ask = Ask::get(self.kv.list_path(prefix), format!("list {}", self.kv.path(prefix.as_str())));
        let answer = self.kv.client.ask(ask).await?;
        self.kv.entries(&answer).await
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Vec<Option<u64>>, StoreError> {
        check(&ops)?;
        if ops.is_empty() {
            return Ok(vec![]);
        }
        self.kv.commit(&ops).await
    }

    async fn watch(&self, prefix: &Prefix) -> Result<Snapshots, StoreError> {
        Ok(watch::snapshots(&self.kv, self.closed.clone(), prefix.clone()))
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

/// What became of a transaction.
enum Outcome {
    Done(wire::Done),
    /// Nothing was done: this operation of ours could not be.
    Refused(Refusal),
}

struct Refusal {
    of: usize,
    what: String,
    answer: Answer,
}

impl Kv {
    /// The path of a key, or of the start of keys, in Consul.
    fn path(&self, key: impl std::fmt::Display) -> String {
        format!("{}/{key}", self.client.settings.address.prefix)
    }

    fn list_path(&self, prefix: &Prefix) -> String {
        format!("kv/{}?recurse", self.path(prefix.as_str()))
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        let path = self.path(key);
        let answer = self.client.ask(Ask::get(format!("kv/{path}"), format!("read {path}"))).await?;
        Ok(self.decode(&answer)?.into_iter().next())
    }

    /// The entries of an answer about a prefix. One without any is believed only if the format can be read: Consul leaves out what
    /// a token may not see, without a word.
    async fn entries(&self, answer: &Answer) -> Result<Vec<Entry>, StoreError> {
        let entries = self.decode(answer)?;
        if entries.is_empty() {
            *self.format.lock().await = None;
            self.format().await?;
        }
        Ok(entries)
    }

    fn decode(&self, answer: &Answer) -> Result<Vec<Entry>, StoreError> {
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(vec![]);
        }
        let root = self.path("");
        let mut entries = Vec::new();
        for pair in answer.json::<Vec<wire::Pair>>()? {
            // Folders that Consul's own page makes, and other keys that cannot be ours, are left out.
            let Some(key) = pair.key.strip_prefix(&root).and_then(|key| Key::new(key).ok()) else { continue };
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
            Outcome::Done(done) => Ok(ops.iter().map(|op| self.version(&done, op)).collect()),
            Outcome::Refused(refusal) => Err(self.conflict(&ops[refusal.of], &refusal).await),
        }
    }

    /// A transaction behind a look at the record format. If that is not what we saw, it is read again, and all tried once more.
    async fn transact(&self, txn: &Txn<'_>, key: &Key) -> Result<Outcome, StoreError> {
        let path = self.path(key);
        let mut last = None;
        for _ in 0..2 {
            let format = wire::Op::check(self.path(FORMAT_KEY), self.format().await?);
            let answer = self.send(&[&format], &txn.ops, &path).await?;
            let done: wire::Done = answer.json()?;
            if answer.status == StatusCode::OK {
                return Ok(Outcome::Done(done));
            }
            let wrong = done.wrong().ok_or_else(|| answer.strange("a conflict without a reason"))?;
            if let Some(at) = wrong.op_index.checked_sub(1) {
                let of = *txn.of.get(at).ok_or_else(|| answer.strange(&wrong.what))?;
                return Ok(Outcome::Refused(Refusal { of, what: wrong.what, answer }));
            }
            *self.format.lock().await = None;
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

    fn version(&self, done: &wire::Done, op: &Op) -> Option<u64> {
        matches!(op, Op::Put(..)).then(|| done.index_of(&self.path(op.key()))).flatten()
    }

    /// Why an operation was refused. What is there now may be newer than what it met.
    async fn conflict(&self, op: &Op, refusal: &Refusal) -> StoreError {
        let (Op::Put(key, _, expected) | Op::Delete(key, expected)) = op else { return refusal.answer.strange(&refusal.what) };
        if *expected == Expect::Any {
            return refusal.answer.strange(&refusal.what);
        }
        let conflict =
            |found: Option<Entry>| StoreError::Conflict { key: key.clone(), expected: *expected, found: found.map(|entry| entry.version) };
        self.get(key).await.map_or_else(|error| error, conflict)
    }

    /// The version of the record format, which is ours; written if there is none.
    async fn format(&self) -> Result<u64, StoreError> {
        let mut known = self.format.lock().await;
        if let Some(version) = *known {
            return Ok(version);
        }
        let found = match self.found_format().await? {
            Some(version) => version,
            None => self.write_format().await?,
        };
        *known = Some(found);
        Ok(found)
    }

    async fn found_format(&self) -> Result<Option<u64>, StoreError> {
        let path = self.path(FORMAT_KEY);
        let answer = self.client.ask(Ask::get(format!("kv/{path}"), format!("read {path}"))).await?;
        let Some(entry) = self.decode(&answer)?.into_iter().next() else { return Ok(None) };
        match std::str::from_utf8(&entry.value).ok().and_then(|text| text.parse::<u64>().ok()) {
            Some(FORMAT) => Ok(Some(entry.version)),
            Some(found) if found > FORMAT => Err(StoreError::Newer { path: self.client.settings.address.to_string().into(), found }),
            _ => Err(answer.strange("it is no record format of rsnet; choose another prefix in RSNET_STORE")),
        }
    }

    /// Writes the format unless somebody else was faster, and returns its version.
    async fn write_format(&self) -> Result<u64, StoreError> {
        let path = self.path(FORMAT_KEY);
        let put = wire::Op::set(path.clone(), FORMAT.to_string().as_bytes(), Some(0));
        let answer = self.send(&[&put], &[], &path).await?;
        let done: wire::Done = answer.json()?;
        match done.index_of(&path) {
            Some(version) => Ok(version),
            None => self.found_format().await?.ok_or_else(|| answer.strange("the record format is neither there nor can it be written")),
        }
    }
}
