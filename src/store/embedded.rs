//! The store of one host: a redb file, made durable before a write returns.
//!
//! One thread owns all writes. Commits that wait while it writes are done together in the next transaction: each is still all or
//! nothing and has a version of its own, but they share one fsync. Reads run where they are called, on the last durable state.
//! Unlike one blocking call per commit, this also keeps a commit whole when the caller's future is dropped.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream;
use parking_lot::Mutex;
use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, Table, TableDefinition};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Entry, FORMAT, FORMAT_KEY, Key, Op, Prefix, Snapshots, Store, StoreError, check};

/// Key to (version, value).
const ENTRIES: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("entries");
/// The version of the last commit, under [`LAST`]: it must not fall back when the newest key is deleted.
const COUNTERS: TableDefinition<&str, u64> = TableDefinition::new("counters");
const LAST: &str = "last";

/// redb would take a GiB.
const CACHE: usize = 16 << 20;
/// Commits in one transaction, and commits that may wait before callers do.
const GROUP: usize = 256;

type Entries<'txn> = Table<'txn, &'static str, (u64, &'static [u8])>;
type Versions = Vec<Option<u64>>;
type Answer = Result<Versions, StoreError>;

/// Bytes that the file system of a directory has left for its owner.
pub fn free(directory: &Path) -> std::io::Result<u64> {
    let seen = nix::sys::statvfs::statvfs(directory)?;
    Ok(seen.blocks_available().saturating_mul(seen.fragment_size()))
}

/// A commit on its way to the writer.
struct Request {
    ops: Vec<Op>,
    answer: oneshot::Sender<Answer>,
}

/// The open file. Dropping it finishes the commits that wait, then closes it.
#[derive(Debug)]
pub struct Embedded {
    db: Arc<Shared>,
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

/// What readers, the writer and watchers have in common.
#[derive(Debug)]
struct Shared {
    db: Database,
    path: PathBuf,
    followers: Mutex<Vec<Follower>>,
}

/// Who watches a part of the store. Only what is written there wakes him: an answer does not wait for others to be woken for nothing.
#[derive(Debug)]
struct Follower {
    prefix: Prefix,
    changed: watch::Sender<()>,
}

impl Embedded {
    /// Opens the file, or makes it, readable by its owner only. Its directory must exist. Reads the whole file once to see that it is
    /// sound. Blocks; call it before serving.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared { db: open_sound(path)?, path: path.to_owned(), followers: Mutex::default() });
        shared.check_format()?;
        let (requests, waiting) = mpsc::channel(GROUP);
        let write_to = shared.clone();
        let writer = std::thread::Builder::new()
            .name("rsnet-store".to_owned())
            .spawn(move || write_to.write_all(waiting))
            .map_err(|error| shared.io("start the writer of")(error))?;
        Ok(Self { db: shared, requests: Some(requests), writer: Some(writer) })
    }

    fn closed(&self) -> StoreError {
        StoreError::Closed { path: self.db.path.clone() }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has said so; there is nothing left to close.
            let _ = writer.join();
        }
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.db.get(key).map_err(self.db.io("read"))
    }

    async fn list(&self, prefix: &Prefix) -> Result<Vec<Entry>, StoreError> {
        self.db.list(prefix)
    }

    async fn commit(&self, ops: Vec<Op>) -> Answer {
        check(&ops)?;
        let (answer, answered) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or_else(|| self.closed())?;
        requests.send(Request { ops, answer }).await.map_err(|_| self.closed())?;
        answered.await.map_err(|_| self.closed())?
    }

    async fn watch(&self, prefix: &Prefix) -> Result<Snapshots, StoreError> {
        let (changed, mut changes) = watch::channel(());
        changes.mark_changed();
        self.db.followers.lock().push(Follower { prefix: prefix.clone(), changed });
        let watcher = Watcher { db: Arc::downgrade(&self.db), prefix: prefix.clone(), changes, seen: None };
        Ok(stream::unfold(watcher, Watcher::next).boxed())
    }
}

/// Reads the prefix again after each commit that concerns it, and passes on what differs. Holds the file only while it reads.
struct Watcher {
    db: Weak<Shared>,
    prefix: Prefix,
    changes: watch::Receiver<()>,
    seen: Option<Vec<Entry>>,
}

impl Watcher {
    async fn next(mut self) -> Option<(Result<Vec<Entry>, StoreError>, Self)> {
        loop {
            self.changes.changed().await.ok()?;
            let now = match self.db.upgrade()?.list(&self.prefix) {
                Ok(now) => now,
                Err(error) => return Some((Err(error), self)),
            };
            if self.seen.as_ref() != Some(&now) {
                self.seen = Some(now.clone());
                return Some((Ok(now), self));
            }
        }
    }
}

impl Shared {
    fn io<E: std::fmt::Display>(&self, action: &'static str) -> impl Fn(E) -> StoreError + use<'_, E> {
        move |cause| StoreError::Io { action, path: self.path.clone(), cause: cause.to_string() }
    }

    fn get(&self, key: &Key) -> Result<Option<Entry>, redb::Error> {
        let table = self.db.begin_read()?.open_table(ENTRIES)?;
        let found = table.get(key.as_str())?;
        Ok(found.map(|found| entry(key.clone(), found.value())))
    }

    fn list(&self, prefix: &Prefix) -> Result<Vec<Entry>, StoreError> {
        self.scan(prefix).map_err(self.io("read"))
    }

    fn scan(&self, prefix: &Prefix) -> Result<Vec<Entry>, redb::Error> {
        let table = self.db.begin_read()?.open_table(ENTRIES)?;
        let mut entries = Vec::new();
        for row in table.range(prefix.as_str()..)? {
            let (key, value) = row?;
            if !key.value().starts_with(prefix.as_str()) {
                break;
            }
            let invalid = |error: super::InvalidKey| redb::Error::Corrupted(error.to_string());
            entries.push(entry(Key::new(key.value()).map_err(invalid)?, value.value()));
        }
        Ok(entries)
    }

    /// Writes the format into a new file; refuses one that is newer or none of ours.
    fn check_format(&self) -> Result<(), StoreError> {
        let found = self.format().map_err(|error| corrupt(&self.path, error))?;
        match found {
            found if found > FORMAT => Err(StoreError::Newer { path: self.path.clone(), found }),
            FORMAT => Ok(()),
            found => Err(corrupt(&self.path, format!("no such record format: {found}"))),
        }
    }

    fn format(&self) -> Result<u64, redb::Error> {
        let txn = begin(&self.db)?;
        let fresh = txn.list_tables()?.next().is_none();
        let mut entries = txn.open_table(ENTRIES)?;
        if fresh {
            entries.insert(FORMAT_KEY, (1, FORMAT.to_string().as_bytes()))?;
            txn.open_table(COUNTERS)?.insert(LAST, 1)?;
        }
        let text = entries.get(FORMAT_KEY)?.map(|found| String::from_utf8_lossy(found.value().1).into_owned());
        drop(entries);
        if fresh {
            txn.commit()?
        } else {
            txn.abort()?
        }
        let unknown = || redb::Error::Corrupted(format!("record format {text:?}"));
        text.as_deref().and_then(|text| text.parse().ok()).ok_or_else(unknown)
    }

    /// The writer's life: wait for one commit, take what else waits, write, answer.
    fn write_all(&self, mut waiting: mpsc::Receiver<Request>) {
        while let Some(first) = waiting.blocking_recv() {
            let mut group = vec![first];
            while group.len() < GROUP {
                let Ok(next) = waiting.try_recv() else { break };
                group.push(next);
            }
            match self.write(&group) {
                Ok((answers, changed)) => {
                    // Watchers are woken first: whoever has the answer can rely on it.
                    if changed {
                        self.wake(&group);
                    }
                    group.into_iter().zip(answers).for_each(|(request, answer)| reply(request, answer));
                }
                Err(error) => {
                    let error = self.io("write")(error);
                    group.into_iter().for_each(|request| reply(request, Err(error.clone())));
                }
            }
        }
    }

    /// Those who watch what these commits change; whoever watches no more is forgotten.
    fn wake(&self, group: &[Request]) {
        let mut followers = self.followers.lock();
        followers.retain(|follower| !follower.changed.is_closed());
        let ops = || group.iter().flat_map(|request| &request.ops);
        let concerned = followers.iter().filter(|follower| ops().any(|op| concerns(op, &follower.prefix)));
        concerned.for_each(|follower| follower.changed.send_replace(()));
    }

    /// One transaction for the whole group. Returns the answers, and whether any commit changed anything.
    fn write(&self, group: &[Request]) -> Result<(Vec<Answer>, bool), redb::Error> {
        let txn = begin(&self.db)?;
        let mut entries = txn.open_table(ENTRIES)?;
        let mut counters = txn.open_table(COUNTERS)?;
        let before = counters.get(LAST)?.map_or(0, |last| last.value());
        let mut last = before;
        let mut answers = Vec::with_capacity(group.len());
        for request in group {
            answers.push(match conflict(&entries, &request.ops)? {
                Some(conflict) => Err(conflict),
                None => Ok(apply(&mut entries, &request.ops, &mut last)?),
            });
        }
        counters.insert(LAST, last)?;
        drop((entries, counters));
        if last == before {
            txn.abort()?
        } else {
            txn.commit()?
        }
        Ok((answers, last != before))
    }
}

/// Whether what it changes may be in this part of the store.
fn concerns(op: &Op, part: &Prefix) -> bool {
    match op {
        Op::Put(key, ..) | Op::Delete(key, _) => key.as_str().starts_with(part.as_str()),
        Op::DeleteBelow(key) => {
            let tree = Prefix::below(key);
            tree.as_str().starts_with(part.as_str()) || part.as_str().starts_with(tree.as_str())
        }
    }
}

fn reply(request: Request, answer: Answer) {
    // A caller that no longer waits has its commit all the same.
    let _ = request.answer.send(answer);
}

fn entry(key: Key, (version, value): (u64, &[u8])) -> Entry {
    Entry { key, value: value.to_owned(), version }
}

fn begin(db: &Database) -> Result<redb::WriteTransaction, redb::Error> {
    let mut txn = db.begin_write()?;
    txn.set_durability(redb::Durability::Immediate)?;
    // One fsync a commit. redb's quick repair would take two, and save at the next opening the walk through the file that checks it anyway.
    txn.set_quick_repair(false);
    Ok(txn)
}

/// The first expectation that does not hold.
fn conflict(entries: &Entries<'_>, ops: &[Op]) -> Result<Option<StoreError>, redb::Error> {
    for op in ops {
        let (Op::Put(key, _, expected) | Op::Delete(key, expected)) = op else { continue };
        let found = entries.get(key.as_str())?.map(|found| found.value().0);
        if !expected.holds(found) {
            return Ok(Some(StoreError::Conflict { key: key.clone(), expected: *expected }));
        }
    }
    Ok(None)
}

/// Does the operations. `last` grows by one if they change anything.
fn apply(entries: &mut Entries<'_>, ops: &[Op], last: &mut u64) -> Result<Versions, redb::Error> {
    let version = *last + 1;
    let mut versions = Vec::with_capacity(ops.len());
    for op in ops {
        let (changed, now) = apply_one(entries, op, version)?;
        if changed {
            *last = version;
        }
        versions.push(now);
    }
    Ok(versions)
}

/// Whether anything changed, and the key's version afterwards.
fn apply_one(entries: &mut Entries<'_>, op: &Op, version: u64) -> Result<(bool, Option<u64>), redb::Error> {
    match op {
        Op::Put(key, value, _) => {
            let same = entries.get(key.as_str())?.filter(|found| found.value().1 == value).map(|found| found.value().0);
            if same.is_some() {
                return Ok((false, same));
            }
            entries.insert(key.as_str(), (version, value.as_slice()))?;
            Ok((true, Some(version)))
        }
        Op::Delete(key, _) => Ok((entries.remove(key.as_str())?.is_some(), None)),
        Op::DeleteBelow(key) => {
            // '0' is the byte after '/': the range holds exactly what starts with "key/".
            let (from, to) = (format!("{key}/"), format!("{key}0"));
            let mut removed = false;
            entries.retain_in(from.as_str()..to.as_str(), |_, _| {
                removed = true;
                false
            })?;
            Ok((removed, None))
        }
    }
}

fn corrupt(path: &Path, cause: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt { path: path.to_owned(), cause: cause.to_string() }
}

/// Opens the file and walks it. redb asserts on some kinds of damage; those end here too.
fn open_sound(path: &Path) -> Result<Database, StoreError> {
    let file = lock(path)?;
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let mut db = Builder::new().set_cache_size(CACHE).create_file(file)?;
        let sound = db.check_integrity()?;
        Ok((db, sound))
    }));
    match opened {
        Ok(Ok((db, true))) => Ok(db),
        Ok(Ok((_, false))) => Err(corrupt(path, "its checksums do not fit")),
        Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => Err(StoreError::InUse { path: path.to_owned() }),
        // redb reports a foreign file and a cut one as I/O errors of these kinds.
        Ok(Err(DatabaseError::Storage(StorageError::Io(error)))) if !is_damage(&error) => {
            Err(StoreError::Io { action: "open", path: path.to_owned(), cause: error.to_string() })
        }
        Ok(Err(error)) => Err(corrupt(path, error)),
        Err(_) => Err(corrupt(path, "reading it failed an assertion of redb")),
    }
}

fn is_damage(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof)
}

/// The file, made if it is not there, locked, and empty again if the process that made it was killed before it was a store.
fn lock(path: &Path) -> Result<File, StoreError> {
    let failed = |error: std::io::Error| StoreError::Io { action: "open", path: path.to_owned(), cause: error.to_string() };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(failed)?;
    file.try_lock().map_err(|_| StoreError::InUse { path: path.to_owned() })?;
    if never_begun(&file).map_err(failed)? {
        file.set_len(0).map_err(failed)?;
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The name must survive a power cut too, not only what is in the file.
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
    Ok(file)
}

/// redb writes the first bytes of a new file, its magic number, last: zeros there mean that nothing was ever committed.
fn never_begun(mut file: &File) -> std::io::Result<bool> {
    let mut magic = [0; 9];
    let long_enough = file.metadata()?.len() >= magic.len() as u64;
    if long_enough {
        file.read_exact(&mut magic)?;
    }
    Ok(magic == [0; 9] && (long_enough || file.metadata()?.len() == 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Expect;

    #[test]
    fn who_watches_is_woken_by_what_is_in_his_part_and_by_no_more() {
        let key = |text| Key::new(text).unwrap();
        let part = Prefix::below(&key("a/b"));
        for near in [Op::Put(key("a/b/c"), vec![], Expect::Any), Op::Delete(key("a/b/c/d"), Expect::Any)] {
            assert!(concerns(&near, &part) && concerns(&near, &Prefix::all()), "{near:?}");
        }
        for tree in ["a", "a/b", "a/b/c"] {
            assert!(concerns(&Op::DeleteBelow(key(tree)), &part), "{tree}");
        }
        for far in [Op::Put(key("a/bc"), vec![], Expect::Any), Op::Delete(key("a/b"), Expect::Any), Op::DeleteBelow(key("a/bc"))] {
            assert!(!concerns(&far, &part), "{far:?}");
        }
    }
}
