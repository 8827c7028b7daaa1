//! What an earlier release stored is understood: its records make the host that they made then.
//!
//! `format-1.json` has, for a network of each kind with a container that runs, every record that version 0.1.0 stored, and the host with it. It
//! is never written anew: a release that stores something else gets a file of its own beside it, and reads both.

use std::collections::BTreeMap;
use std::path::Path;

use rsnet::store::Entry;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::faults::{life, running};
use crate::world::{World, networks};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/driver/format-1.json");

#[derive(Serialize, Deserialize)]
struct Case {
    options: Value,
    records: BTreeMap<String, String>,
    host: Vec<String>,
}

/// What later releases give a host beside that, from the same records: the entries of the fast way.
const SINCE: [&str; 3] = ["Local {", "Remote {", "Way {"];

fn lines(host: &str) -> Vec<String> {
    host.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn what_the_first_release_stored_makes_the_same_host_and_can_be_taken_away() {
    let cases: Vec<Case> = serde_json::from_str(&std::fs::read_to_string(FILE).unwrap()).unwrap();
    assert_eq!(cases.len(), networks().len());
    for Case { options, records, host } in cases {
        let world = World::with(&records).await;
        world.converge().await;
        let mut made = lines(&world.host().await);
        made.retain(|line| !SINCE.iter().any(|new| line.starts_with(new)));
        assert_eq!(made, host, "{options}");
        for (call, body) in life(&options).split_off(running(&options)) {
            world.ok(call, body).await;
        }
        assert_eq!(world.host().await, World::new().await.host().await, "{options}");
    }
}

/// To be run by hand, once for each format.
#[tokio::test]
#[ignore = "writes what this release stores, where nothing is written yet"]
async fn write_what_this_release_stores() {
    assert!(!Path::new(FILE).exists(), "{FILE} is there: it belongs to the release that wrote it");
    let mut cases = Vec::new();
    for options in networks() {
        let world = World::new().await;
        for (call, body) in &life(&options)[..running(&options)] {
            world.ok(call, body.clone()).await;
        }
        let host = lines(&world.host().await);
        let text = |entry: Entry| (entry.key.to_string(), String::from_utf8(entry.value).unwrap());
        // leases are over before another release comes
        let records =
            world.records().await.into_iter().map(text).filter(|(key, _)| key != "format" && !key.starts_with("lease/")).collect();
        cases.push(Case { options, records, host });
    }
    std::fs::write(FILE, serde_json::to_string_pretty(&cases).unwrap() + "\n").unwrap();
}
