//! What only a file has: locks, formats, damage.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Instant;

use futures_util::StreamExt;
use rsnet::store::{Embedded, Expect, Key, Leases, Prefix, Store, StoreError};
use tempfile::TempDir;

use super::conformance;

fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rsnet.redb");
    (dir, path)
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

async fn filled(path: &std::path::Path, count: usize) {
    let store = Embedded::open(path).unwrap();
    let (store, puts) = (&store, 0..count);
    let put = async |i: usize| store.put(&key(&format!("a/{i}")), vec![7; 300], Expect::Any).await.unwrap();
    futures_util::future::join_all(puts.map(put)).await;
}

#[tokio::test]
async fn the_embedded_store_keeps_the_contract() {
    let (_dir, path) = place();
    conformance::all(&Embedded::open(&path).unwrap()).await;
}

#[tokio::test]
async fn what_was_written_is_there_after_opening_again_and_versions_go_on() {
    let (_dir, path) = place();
    let store = Embedded::open(&path).unwrap();
    store.put(&key("a"), b"1".into(), Expect::Any).await.unwrap();
    let newest = store.put(&key("b"), b"1".into(), Expect::Any).await.unwrap();
    store.delete(&key("b"), Expect::Any).await.unwrap();
    drop(store);
    let store = Embedded::open(&path).unwrap();
    assert_eq!(store.get(&key("a")).await.unwrap().unwrap().value, b"1");
    assert!(store.put(&key("b"), b"1".into(), Expect::Absent).await.unwrap() > newest);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
}

#[tokio::test]
async fn a_lease_outlives_the_process() {
    let (_dir, path) = place();
    let store = Embedded::open(&path).unwrap();
    let lease = store.grant("host", std::time::Duration::from_secs(10)).await.unwrap();
    store.hold(&lease, &key("alive"), b"1".into()).await.unwrap();
    drop(store);
    let store = Embedded::open(&path).unwrap();
    store.renew(&lease).await.unwrap();
    store.end(&lease).await.unwrap();
    assert_eq!(store.get(&key("alive")).await.unwrap(), None);
}

#[tokio::test]
async fn a_second_open_names_the_file_and_the_likely_cause() {
    let (_dir, path) = place();
    let first = Embedded::open(&path).unwrap();
    let error = Embedded::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()) && text.contains("another rsnet is running"), "{text}");
    drop(first);
    Embedded::open(&path).unwrap();
}

#[tokio::test]
async fn a_watch_ends_with_its_store_and_does_not_keep_the_file() {
    let (_dir, path) = place();
    let store = Embedded::open(&path).unwrap();
    let mut watch = store.watch(&Prefix::all()).await.unwrap();
    assert!(watch.next().await.unwrap().is_ok());
    drop(store);
    Embedded::open(&path).unwrap();
    assert!(watch.next().await.is_none());
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let (_dir, path) = place();
    drop(Embedded::open(&path).unwrap());
    let entries = redb::TableDefinition::<&str, (u64, &[u8])>::new("entries");
    let db = redb::Database::create(&path).unwrap();
    let txn = db.begin_write().unwrap();
    txn.open_table(entries).unwrap().insert("format", (9, b"2".as_slice())).unwrap();
    txn.commit().unwrap();
    drop(db);
    let error = Embedded::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 2, .. }), "{error}");
    assert!(error.to_string().contains("have format 2, this rsnet knows up to 1"), "{error}");
}

#[test]
fn a_foreign_file_is_refused_and_left_alone() {
    let (_dir, path) = place();
    for text in ["x", "some text that is longer than a magic number"] {
        std::fs::write(&path, text).unwrap();
        let error = Embedded::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
}

#[test]
fn a_missing_directory_is_an_error_of_the_disk() {
    let (dir, _) = place();
    let error = Embedded::open(&dir.path().join("none/rsnet.redb")).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
}

#[test]
fn a_file_whose_making_was_killed_is_made_again() {
    let (_dir, path) = place();
    std::fs::write(&path, vec![0; 100_000]).unwrap();
    Embedded::open(&path).unwrap();
}

/// Damage anywhere is refused, or the file still holds exactly what was written; nothing panics.
#[tokio::test]
async fn a_damaged_file_is_refused_or_whole() {
    let (_dir, path) = place();
    filled(&path, 200).await;
    let sound = std::fs::read(&path).unwrap();
    let expected = Embedded::open(&path).unwrap().list(&Prefix::all()).await.unwrap();
    let mut refused = 0;
    let spots = (0..400).step_by(9).chain((0..sound.len()).step_by(sound.len() / 150));
    for spot in spots {
        std::fs::write(&path, &sound).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&sound[spot..sound.len().min(spot + 16)].iter().map(|byte| !byte).collect::<Vec<_>>(), spot as u64).unwrap();
        match Embedded::open(&path) {
            Ok(store) => assert_eq!(store.list(&Prefix::all()).await.unwrap(), expected, "damaged at {spot}"),
            Err(StoreError::Corrupt { .. }) => refused += 1,
            Err(error) => panic!("damaged at {spot}: {error}"),
        }
    }
    assert!(refused > 5, "{refused}");
    for length in [1, 9, 64, 4096, sound.len() / 2, sound.len() - 1] {
        std::fs::write(&path, &sound[..length]).unwrap();
        let error = Embedded::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "cut to {length}: {error}");
    }
}

#[tokio::test]
async fn commits_that_wait_share_the_disk() {
    let (_dir, path) = place();
    let store = Embedded::open(&path).unwrap();
    let put = async |i: usize| store.put(&key(&format!("a/{i}")), vec![7; 300], Expect::Any).await.unwrap();
    let start = Instant::now();
    for i in 0..200 {
        put(i).await;
    }
    let one_by_one = start.elapsed();
    let start = Instant::now();
    futures_util::future::join_all((200..400).map(put)).await;
    let together = start.elapsed();
    println!("200 commits: {one_by_one:?} one by one, {together:?} together");
    assert!(together < one_by_one / 2, "{one_by_one:?} one by one, {together:?} together");
}
