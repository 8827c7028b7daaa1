//! A real kernel and firewall in a namespace of the test's own, and all of the daemon but its watch: nothing heals by itself.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use nix::mount::{MsFlags, mount};
use rsnet::agent::{Agent, Settings};
use rsnet::cluster::{Cluster, Identity, Times, Uplink};
use rsnet::dns::Dns;
use rsnet::firewall::nftables::Nftables;
use rsnet::inspect::{self, Checkup, Sources};
use rsnet::kernel::{Netlink, NetlinkConfig};
use rsnet::names::Names;
use rsnet::reconcile::Reconciler;
use rsnet::store::embedded::Embedded;
use rsnet::{driver, plugin};
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;

use super::namespace::{become_a_host, run};

pub struct Bench {
    runtime: tokio::runtime::Runtime,
    router: Router,
    pub reconciler: Arc<Reconciler>,
    pub store: Arc<Embedded>,
    /// What counts as the data directory: a file system of its own, of 64 MB.
    pub disk: PathBuf,
    _dir: TempDir,
}

impl Bench {
    /// A host with an uplink, `eth0` of 1500 bytes, and nothing of ours.
    pub fn new() -> Self {
        become_a_host();
        run("ip link add eth0 type veth peer name lan0 && ip link set lan0 up && ip link set eth0 up");
        run("ip address add 10.77.0.2/24 dev eth0 && ip route add default via 10.77.0.1");
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        std::fs::create_dir(&disk).unwrap();
        mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=64m")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (router, reconciler, store) = runtime.block_on(build(&dir, disk.clone()));
        let bench = Bench { runtime, router, reconciler, store, disk, _dir: dir };
        bench.converge();
        bench
    }

    pub fn converge(&self) {
        self.runtime.block_on(self.reconciler.converge()).unwrap();
    }

    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// A call that must succeed.
    pub fn call(&self, call: &str, body: Value) -> Value {
        self.send(Request::post(format!("/{call}")).body(Body::from(body.to_string())).unwrap())
    }

    /// `rsnet doctor`, as far as the daemon sees; with `--fix`.
    pub fn doctor(&self, fix: bool) -> Checkup {
        let request = if fix { Request::post("/rsnet/doctor/fix") } else { Request::get("/rsnet/doctor") };
        serde_json::from_value(self.send(request.body(Body::from("{}")).unwrap())).unwrap()
    }

    fn send(&self, request: Request<Body>) -> Value {
        self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.unwrap();
            let status = response.status();
            let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
            assert!(status.is_success(), "{}", String::from_utf8_lossy(&bytes));
            serde_json::from_slice(&bytes).unwrap()
        })
    }

    /// A network on `NET.0/24` with these options.
    pub fn create(&self, id: &str, net: &str, options: Value) {
        let pool = json!({ "Gateway": format!("{net}.1/24"), "Pool": format!("{net}.0/24"), "AddressSpace": "rsnet-local" });
        let options = json!({ "com.docker.network.generic": options });
        self.call("NetworkDriver.CreateNetwork", json!({ "NetworkID": id, "Options": options, "IPv4Data": [pool], "IPv6Data": [] }));
    }

    /// What is found now, by check; all else is the same as the doctor says.
    pub fn checks(&self) -> BTreeSet<String> {
        self.doctor(false).findings.into_iter().map(|finding| finding.check).collect()
    }
}

async fn build(dir: &TempDir, data_dir: PathBuf) -> (Router, Arc<Reconciler>, Arc<Embedded>) {
    let store = Arc::new(Embedded::open(&dir.path().join("state.redb")).unwrap());
    let kernel = Arc::new(Netlink::new(NetlinkConfig::default()).unwrap());
    let firewall = Arc::new(Nftables::open().unwrap());
    let reconciler = Arc::new(Reconciler::new(kernel.clone(), firewall.clone()));
    let identity = Identity { host: "h1".to_owned(), id: "1".to_owned() };
    let cluster = Cluster::new(store.clone(), identity, Times::default()).unwrap();
    cluster.leave_by(Uplink { vtep: [10, 77, 0, 2].into(), mtu: 1500, on_link: None });
    let agent = Agent::load(kernel.clone(), store.clone(), reconciler.clone(), cluster.clone(), Settings::default()).await.unwrap();
    let agent = Arc::new(agent);
    let names = Names::new("h1".to_owned(), agent.clone(), cluster.views(), None);
    let sources = Sources {
        agent: agent.clone(),
        reconciler: reconciler.clone(),
        consul: None,
        kernel,
        firewall,
        data_dir,
        started: Instant::now(),
        dns: Arc::new(Dns::new(names.directory().clone())),
        names,
        peers: None,
    };
    let router = plugin::router(driver::router(agent).merge(inspect::state_router(Arc::new(sources))));
    (router, reconciler, store)
}
