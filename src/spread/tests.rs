//! Hosts with engines in memory and one store.

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::docker::PoolSpec;
use crate::store::embedded::Embedded;

static IDS: AtomicU64 = AtomicU64::new(1);

/// An engine in memory.
#[derive(Default)]
struct Fake {
    networks: Mutex<BTreeMap<NetworkId, (String, Option<Spec>)>>,
    used: Mutex<BTreeSet<String>>,
    made: AtomicU64,
}

impl Fake {
    fn make(&self, name: &str, spec: Option<Spec>) -> NetworkId {
        let id: NetworkId = format!("{:064x}", IDS.fetch_add(1, Ordering::Relaxed)).parse().unwrap();
        self.networks.lock().insert(id.clone(), (name.to_owned(), spec));
        id
    }

    /// As its user; an engine refuses it of one that is in use.
    fn rm(&self, name: &str) {
        if !self.used.lock().contains(name) {
            self.networks.lock().retain(|_, (other, _)| other != name);
        }
    }

    fn has(&self, name: &str) -> Option<Option<Spec>> {
        self.networks.lock().values().find(|(other, _)| other == name).map(|(_, spec)| spec.clone())
    }
}

#[async_trait]
impl Networks for Fake {
    async fn all(&self) -> Result<Vec<Found>, EngineError> {
        let networks = self.networks.lock();
        Ok(networks.iter().map(|(id, (name, spec))| Found { id: id.clone(), name: name.clone(), spec: spec.clone() }).collect())
    }

    async fn create(&self, name: &str, spec: &Spec) -> Result<NetworkId, EngineError> {
        assert!(self.has(name).is_none(), "{name} is there");
        self.made.fetch_add(1, Ordering::Relaxed);
        Ok(self.make(name, Some(spec.clone())))
    }

    async fn remove(&self, id: &NetworkId) -> Result<Vec<String>, EngineError> {
        let name = self.networks.lock()[id].0.clone();
        if self.used.lock().contains(&name) {
            return Ok(vec!["web".to_owned()]);
        }
        self.networks.lock().remove(id);
        Ok(vec![])
    }

    async fn users(&self, id: &NetworkId) -> Vec<String> {
        let name = self.networks.lock()[id].0.clone();
        if self.used.lock().contains(&name) { vec!["web".to_owned()] } else { vec![] }
    }
}

struct Host {
    spread: Spread,
    engine: Arc<Fake>,
    _disk: TempDir,
}

fn disk() -> (TempDir, Arc<Embedded>) {
    let disk = tempfile::tempdir().unwrap();
    let store = Embedded::open(&disk.path().join("store.redb")).unwrap();
    (disk, Arc::new(store))
}

fn hosts(names: &[&str]) -> (TempDir, Arc<Embedded>, Vec<Host>) {
    let (directory, shared) = disk();
    let host = |name: &&str| {
        let ((_disk, own), engine) = (disk(), Arc::new(Fake::default()));
        Host { spread: Spread::new((*name).to_owned(), shared.clone(), own, engine.clone(), None, |_| true), engine, _disk }
    };
    let hosts = names.iter().map(host).collect();
    (directory, shared, hosts)
}

fn spec(subnet: &str) -> Spec {
    let pool = PoolSpec { subnet: subnet.parse().unwrap(), range: None, gateway: None, auxiliary: BTreeMap::new() };
    Spec { ipv4: true, options: BTreeMap::from([("mode".to_owned(), "overlay".to_owned())]), pools: vec![pool], ..Spec::default() }
}

/// Rounds on these hosts until nobody does anything.
async fn rest(hosts: &[&Host]) {
    for _ in 0..12 {
        let mut done = 0;
        for host in hosts {
            done += host.spread.round().await.unwrap();
        }
        if done == 0 {
            return;
        }
    }
    panic!("there is no end to it");
}

fn all(hosts: &[Host]) -> Vec<&Host> {
    hosts.iter().collect()
}

#[tokio::test]
async fn what_one_host_makes_all_have_and_later_ones_too_and_one_removal_removes_it() {
    let (_disk, _store, hosts) = hosts(&["a", "b", "c"]);
    hosts[0].engine.make("blue", Some(spec("10.50.0.0/16")));
    rest(&[&hosts[0], &hosts[1]]).await;
    assert_eq!(hosts[1].engine.has("blue"), Some(Some(spec("10.50.0.0/16"))));
    rest(&all(&hosts)).await;
    assert_eq!(hosts[2].engine.has("blue"), hosts[0].engine.has("blue"), "who comes later has it too");
    hosts[1].engine.rm("blue");
    rest(&all(&hosts)).await;
    assert!(hosts.iter().all(|host| host.engine.has("blue").is_none()));
    hosts[2].engine.make("blue", Some(spec("10.60.0.0/16")));
    rest(&all(&hosts)).await;
    assert!(hosts.iter().all(|host| host.engine.has("blue") == Some(Some(spec("10.60.0.0/16")))), "another of the same name");
    let made: Vec<u64> = hosts.iter().map(|host| host.engine.made.load(Ordering::Relaxed)).collect();
    assert_eq!(made, [1, 2, 1], "no more than needed");
}

#[tokio::test]
async fn what_is_in_use_elsewhere_comes_back() {
    let (_disk, store, hosts) = hosts(&["a", "b", "c"]);
    hosts[0].engine.make("blue", Some(spec("10.50.0.0/16")));
    rest(&all(&hosts)).await;
    hosts[1].engine.used.lock().insert("blue".to_owned());
    hosts[0].engine.rm("blue");
    rest(&all(&hosts)).await;
    assert!(hosts.iter().all(|host| host.engine.has("blue").is_some()));
    let record = store.get(&Key::new("cluster/spread/blue").unwrap()).await.unwrap().unwrap();
    let record: Record = serde_json::from_slice(&record.value).unwrap();
    assert_eq!((record.by, record.used), ("b".to_owned(), vec!["web".to_owned()]), "who uses it");
    hosts[1].engine.used.lock().clear();
    hosts[2].engine.rm("blue");
    rest(&all(&hosts)).await;
    assert!(hosts.iter().all(|host| host.engine.has("blue").is_none()));
}

#[tokio::test]
async fn what_a_newer_release_says_of_a_network_stays_for_as_long_as_that_is_the_same() {
    let (_disk, store, hosts) = hosts(&["a", "b"]);
    let key = Key::new("cluster/spread/blue").unwrap();
    let colour = async || {
        let record: serde_json::Value = serde_json::from_slice(&store.get(&key).await.unwrap().unwrap().value).unwrap();
        (record["by"].as_str().unwrap().to_owned(), record.get("colour").cloned())
    };
    hosts[0].engine.make("blue", Some(spec("10.50.0.0/16")));
    rest(&all(&hosts)).await;
    let mut record: serde_json::Value = serde_json::from_slice(&store.get(&key).await.unwrap().unwrap().value).unwrap();
    record["colour"] = "deep".into();
    store.put(&key, serde_json::to_vec(&record).unwrap(), Expect::Any).await.unwrap();
    hosts[1].engine.used.lock().insert("blue".to_owned());
    hosts[0].engine.rm("blue");
    rest(&all(&hosts)).await;
    assert_eq!(colour().await, ("b".to_owned(), Some("deep".into())), "b keeps it");
    hosts[1].engine.used.lock().clear();
    hosts[0].engine.rm("blue");
    rest(&all(&hosts)).await;
    hosts[0].engine.make("blue", Some(spec("10.60.0.0/16")));
    rest(&all(&hosts)).await;
    assert_eq!(colour().await, ("a".to_owned(), None), "another of the same name");
}

/// Hosts that can be asked.
struct Reached(Vec<Arc<Spread>>);

#[async_trait]
impl Others for Reached {
    async fn users(&self, name: &str) -> BTreeMap<String, Vec<String>> {
        let mut users = BTreeMap::new();
        for host in &self.0 {
            users.insert(host.host.clone(), host.users_here(name).await);
        }
        users.into_iter().filter(|(_, users)| !users.is_empty()).collect()
    }
}

#[tokio::test]
async fn where_others_can_be_asked_none_removes_what_one_of_them_uses() {
    let (_disk, _store, mut hosts) = hosts(&["a", "b", "c"]);
    hosts[0].engine.make("blue", Some(spec("10.50.0.0/16")));
    rest(&all(&hosts)).await;
    hosts[1].engine.used.lock().insert("blue".to_owned());
    let mut asking = hosts.remove(0);
    let others = hosts.into_iter().map(|host| (Arc::new(host.spread), host.engine, host._disk)).collect::<Vec<_>>();
    asking.spread.others = Some(Arc::new(Reached(others.iter().map(|(spread, ..)| spread.clone()).collect())));
    asking.engine.rm("blue");
    for _ in 0..4 {
        asking.spread.round().await.unwrap();
        for (spread, ..) in &others {
            spread.round().await.unwrap();
        }
    }
    let made = |engine: &Fake| engine.made.load(Ordering::Relaxed);
    assert_eq!((made(&asking.engine), others.iter().map(|(_, engine, _)| made(engine)).collect::<Vec<_>>()), (1, vec![1, 1]));
    assert!(asking.engine.has("blue").is_some());
}

#[tokio::test]
async fn a_host_that_was_away_removes_what_was_removed_meanwhile_and_has_what_was_made() {
    let (_disk, _store, hosts) = hosts(&["a", "b"]);
    let [a, b] = [&hosts[0], &hosts[1]];
    for (name, subnet) in [("gone", "10.50.0.0/16"), ("anew", "10.60.0.0/16")] {
        a.engine.make(name, Some(spec(subnet)));
    }
    rest(&[a, b]).await;
    a.engine.rm("gone");
    a.engine.rm("anew");
    rest(&[a]).await;
    a.engine.make("anew", Some(spec("10.70.0.0/16")));
    rest(&[a]).await;
    rest(&[b, a]).await;
    for host in [a, b] {
        assert_eq!((host.engine.has("gone"), host.engine.has("anew")), (None, Some(Some(spec("10.70.0.0/16")))));
    }
}

#[tokio::test]
async fn a_name_that_is_another_networks_is_told_and_left_alone() {
    let (_disk, _store, hosts) = hosts(&["a", "b", "c"]);
    hosts[1].engine.make("blue", Some(spec("10.99.0.0/16")));
    hosts[2].engine.make("blue", None);
    hosts[0].engine.make("blue", Some(spec("10.50.0.0/16")));
    rest(&all(&hosts)).await;
    for (host, said, has) in [(1, "differs from", Some(spec("10.99.0.0/16"))), (2, "is not rsnet's", None)] {
        let problem = hosts[host].spread.problems()["blue"].clone();
        assert!(problem.contains(said) && problem.contains("host a made"), "{problem}");
        assert_eq!(hosts[host].engine.has("blue"), Some(has));
        hosts[host].engine.rm("blue");
    }
    rest(&all(&hosts)).await;
    assert!(hosts.iter().all(|host| host.engine.has("blue") == Some(Some(spec("10.50.0.0/16"))) && host.spread.problems().is_empty()));
}

#[tokio::test]
async fn a_store_that_lost_all_is_told_again_and_removes_nothing() {
    let (_disk, store, hosts) = hosts(&["a", "b"]);
    hosts[0].engine.make("blue", Some(spec("10.50.0.0/16")));
    rest(&all(&hosts)).await;
    store.commit(vec![crate::store::Op::DeleteBelow(Key::new("cluster").unwrap())]).await.unwrap();
    rest(&[&hosts[1], &hosts[0]]).await;
    assert!(hosts.iter().all(|host| host.engine.has("blue").is_some()));
    hosts[0].engine.rm("blue");
    rest(&all(&hosts)).await;
    assert!(hosts.iter().all(|host| host.engine.has("blue").is_none()), "they agree on what it is");
}

#[derive(Clone, Debug)]
enum Step {
    Make(usize, u8),
    Remove(usize),
    Use(usize, bool),
    Round(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let host = 0usize..3;
    let step = prop_oneof![
        2 => (host.clone(), 0u8..2).prop_map(|(host, subnet)| Step::Make(host, subnet)),
        1 => host.clone().prop_map(Step::Remove),
        1 => (host.clone(), any::<bool>()).prop_map(|(host, used)| Step::Use(host, used)),
        4 => host.prop_map(Step::Round),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// In whatever order hosts are heard: it comes to an end, and then all have the same, or say what is in the way.
    #[test]
    fn hosts_come_to_rest_with_the_same_networks_whatever_their_users_do(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_disk, _store, hosts) = hosts(&["a", "b", "c"]);
            for step in steps {
                match step {
                    Step::Make(host, n) if hosts[host].engine.has("blue").is_none() => {
                        hosts[host].engine.make("blue", Some(spec(&format!("10.{n}.0.0/16"))));
                    }
                    Step::Make(..) => {}
                    Step::Remove(host) => hosts[host].engine.rm("blue"),
                    Step::Use(host, true) if hosts[host].engine.has("blue").is_some() => {
                        hosts[host].engine.used.lock().insert("blue".to_owned());
                    }
                    Step::Use(host, _) => hosts[host].engine.used.lock().clear(),
                    Step::Round(host) => drop(hosts[host].spread.round().await.unwrap()),
                }
            }
            rest(&all(&hosts)).await;
            let have: Vec<_> = hosts.iter().map(|host| host.engine.has("blue")).collect();
            let clean = hosts.iter().all(|host| host.spread.problems().is_empty());
            prop_assert!(!clean || have.iter().all(|has| *has == have[0]), "{have:?}");
            Ok(())
        })?;
    }
}
