//! `kill -9` at random moments: what was acknowledged is there, and no commit is there by half.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rand::RngExt;
use rsnet::store::{Embedded, Expect, Key, Op, Prefix, Store};

const CHILD: &str = "RSNET_TEST_CRASH_CHILD";
const NAME: &str = "crash::no_acknowledged_write_is_lost_by_kill_9";

/// Parent and child in one: the test binary runs itself with this test's name and the file in the environment.
#[test]
fn no_acknowledged_write_is_lost_by_kill_9() {
    if let Some(path) = std::env::var_os(CHILD) {
        return write_for_ever(Path::new(&path));
    }
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 0..20 {
        // Every fourth file is new, so that its making is killed too; the others go on growing.
        let path = dir.path().join(if round % 4 == 3 { format!("{round}") } else { "grown".to_owned() });
        let acks = run_and_kill(&path, round);
        println!("round {round}: {} commits acknowledged", acks.len());
        let present = present(&path);
        if path.ends_with("grown") {
            acknowledged.extend(acks);
            assert!(acknowledged.is_subset(&present), "lost: {:?}", acknowledged.difference(&present).collect::<Vec<_>>());
        } else {
            assert!(BTreeSet::from_iter(acks).is_subset(&present));
        }
    }
    assert!(acknowledged.len() > 100, "only {} commits: the children did not get to work", acknowledged.len());
}

/// Starts a child, lets it work for a random while, kills it, and returns what it acknowledged.
fn run_and_kill(path: &Path, round: usize) -> Vec<String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([NAME, "--exact", "--nocapture"]).env(CHILD, path).env("RSNET_TEST_ROUND", round.to_string());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let output = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).collect::<Vec<_>>());
    std::thread::sleep(Duration::from_micros(rand::rng().random_range(0..200_000)));
    child.kill().unwrap();
    child.wait().unwrap();
    let lines = reader.join().unwrap();
    lines.iter().filter_map(|line| line.split_once("ack ")?.1.strip_suffix('.')).map(str::to_owned).collect()
}

/// The names committed, each of which must be there with both of its halves.
fn present(path: &Path) -> BTreeSet<String> {
    let store = Embedded::open(path).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let names = |half: &str| -> BTreeSet<String> {
        let prefix = Prefix::below(&Key::new(half).unwrap());
        let entries = runtime.block_on(store.list(&prefix)).unwrap();
        entries.into_iter().map(|entry| String::from_utf8(entry.value).unwrap()).collect()
    };
    assert_eq!(names("left"), names("right"), "a commit is there by half");
    names("left")
}

/// Eight tasks that commit and acknowledge. A line that the kill cut short lacks its dot; println's lock keeps lines whole otherwise.
fn write_for_ever(path: &Path) {
    let store = Embedded::open(path).unwrap();
    let round = std::env::var("RSNET_TEST_ROUND").unwrap();
    let writer = async |task: usize| {
        for count in 0.. {
            let name = format!("{round}-{task}-{count}");
            let half = |side: &str| Op::Put(Key::new(format!("{side}/{name}")).unwrap(), name.clone().into(), Expect::Absent);
            store.commit(vec![half("left"), half("right")]).await.unwrap();
            println!("ack {name}.");
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(futures_util::future::join_all((0..8).map(writer)));
}
