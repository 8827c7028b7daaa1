//! A host in memory that answers as the daemon does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use rsnet::agent::{Agent, Settings};
use rsnet::cluster::{Cluster, Identity, Times, Uplink};
use rsnet::firewall::fake::Fake as FakeFirewall;
use rsnet::kernel::fake::{Call, Fake as FakeKernel};
use rsnet::model::{HostLink, Object, OnLink};
use rsnet::reconcile::Reconciler;
use rsnet::store::embedded::Embedded;
use rsnet::store::{Entry, Expect, Key, Lease, Leases, Op, Prefix, Snapshots, Store, StoreError};
use rsnet::{driver, ipam, plugin};
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;

pub const NETWORK: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
pub const ENDPOINT: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
/// A link that the host has.
pub const PARENT: &str = "eth0";
pub const SANDBOX: &str = "/var/run/docker/netns/0123456789ab";

pub use crate::calls::CALLS;

pub struct World {
    pub kernel: Arc<FakeKernel>,
    pub firewall: Arc<FakeFirewall>,
    pub reconciler: Arc<Reconciler>,
    pub router: Router,
    pub disk: Arc<Disk>,
    directory: Arc<TempDir>,
}

/// The embedded store on a disk that can fail.
pub struct Disk {
    store: Arc<Embedded>,
    /// How many commits until the one that fails; negative: none does.
    left: AtomicI64,
}

impl Disk {
    /// The n-th commit from now fails, 0 being the next.
    pub fn fail_nth(&self, n: i64) {
        self.left.store(n, Ordering::Relaxed);
    }

    /// Whether a failure was still to come; it comes no more.
    pub fn heal(&self) -> bool {
        self.left.swap(-1, Ordering::Relaxed) >= 0
    }
}

#[async_trait::async_trait]
impl Store for Disk {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &Prefix) -> Result<Vec<Entry>, StoreError> {
        self.store.list(prefix).await
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Vec<Option<u64>>, StoreError> {
        match self.left.fetch_sub(1, Ordering::Relaxed) == 0 {
            true => Err(StoreError::Io { action: "write", path: "state.redb".into(), cause: "no space left on device".into() }),
            false => self.store.commit(ops).await,
        }
    }

    async fn watch(&self, prefix: &Prefix) -> Result<Snapshots, StoreError> {
        self.store.watch(prefix).await
    }
}

#[async_trait::async_trait]
impl Leases for Disk {
    async fn grant(&self, name: &str, ttl: Duration) -> Result<Lease, StoreError> {
        self.store.grant(name, ttl).await
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        self.store.renew(lease).await
    }

    async fn end(&self, lease: &Lease) -> Result<(), StoreError> {
        self.store.end(lease).await
    }

    async fn hold(&self, lease: &Lease, key: &Key, value: Vec<u8>) -> Result<u64, StoreError> {
        self.store.hold(lease, key, value).await
    }

    async fn holder(&self, key: &Key) -> Result<Option<Lease>, StoreError> {
        self.store.holder(key).await
    }
}

/// What another host wrote in the store: it has a block of each subnet.
async fn a_peer(store: &Embedded) {
    let block = json!({ "host": "h2", "id": "2", "claim": 1 });
    let (four, six) = (("172.18.0.0/16", "172.18.128.0/26"), ("fd00:18::/64", "fd00:18::8000:0/112"));
    let key = |(subnet, block): (&str, &str)| format!("cluster/block/{}/{}", subnet.replace('/', "-"), block.replace('/', "-"));
    let told = json!({ "id": "2", "vtep": "192.0.2.2", "blocks": { four.0: [four.1], six.0: [six.1] } });
    for (key, value) in [
        ("cluster/host/55/h2".to_owned(), told),
        ("cluster/changed/55".to_owned(), json!(1)),
        (key(four), block.clone()),
        (key(six), block),
    ] {
        store.put(&Key::new(key).unwrap(), value.to_string().into_bytes(), Expect::Any).await.unwrap();
    }
}

/// A host with a link and a container's sandbox, where nothing of rsnet is yet.
fn bare() -> Arc<FakeKernel> {
    let kernel = Arc::new(FakeKernel::new());
    kernel.add_sandbox(SANDBOX);
    kernel.add_host_link(PARENT.parse().unwrap(), HostLink { addresses: vec![[10, 0, 0, 1].into()], ..HostLink::default() });
    kernel
}

impl World {
    pub async fn new() -> Self {
        Self::with(&BTreeMap::new()).await
    }

    /// On a disk that has these records.
    pub async fn with(records: &BTreeMap<String, String>) -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let store = Embedded::open(&directory.path().join("state.redb")).unwrap();
        for (key, value) in records {
            store.put(&Key::new(key).unwrap(), value.clone().into_bytes(), Expect::Any).await.unwrap();
        }
        drop(store);
        Self::start(bare(), Arc::default(), directory).await
    }

    /// All that is on the disk but what belongs to the store itself.
    pub async fn records(&self) -> Vec<Entry> {
        self.disk.list(&Prefix::all()).await.unwrap()
    }

    async fn start(kernel: Arc<FakeKernel>, firewall: Arc<FakeFirewall>, directory: Arc<TempDir>) -> Self {
        let store = Arc::new(Embedded::open(&directory.path().join("state.redb")).unwrap());
        a_peer(&store).await;
        let disk = Arc::new(Disk { store, left: AtomicI64::new(-1) });
        let reconciler = Arc::new(Reconciler::new(kernel.clone(), firewall.clone()));
        let identity = Identity { host: "h1".to_owned(), id: "1".to_owned() };
        let cluster = Cluster::new(disk.clone(), identity, Times::default()).unwrap();
        let on_link = OnLink { link: PARENT.parse().unwrap(), subnet: "192.0.2.0/24".parse().unwrap() };
        cluster.leave_by(Uplink { vtep: [192, 0, 2, 1].into(), mtu: 1500, on_link: Some(on_link) });
        let agent = Arc::new(Agent::load(kernel.clone(), disk.clone(), reconciler.clone(), cluster, Settings::default()).await.unwrap());
        let router = plugin::router(driver::router(agent.clone()).merge(ipam::router(agent)));
        World { kernel, firewall, reconciler, router, disk, directory }
    }

    /// The process dies and a new one starts on the same host and disk.
    pub async fn restart(self) -> Self {
        let World { kernel, firewall, directory, reconciler, router, disk } = self;
        reconciler.idle(Duration::from_secs(1)).await;
        drop((reconciler, router, disk));
        Self::start(kernel, firewall, directory).await
    }

    pub async fn send(&self, call: &str, body: impl ToString) -> (u16, Value) {
        let request = Request::post(format!("/{call}")).body(Body::from(body.to_string())).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or_else(|_| json!({ "text": String::from_utf8_lossy(&bytes) })))
    }

    /// Sends a call that must succeed.
    pub async fn ok(&self, call: &str, body: Value) -> Value {
        let (status, answer) = self.send(call, &body).await;
        assert_eq!(status, 200, "{call} {body} → {answer}");
        answer
    }

    /// Sends a call that must be refused; its message.
    pub async fn refused(&self, call: &str, body: Value) -> String {
        let (status, answer) = self.send(call, &body).await;
        assert_ne!(status, 200, "{call} {body} → {answer}");
        assert_eq!(answer["Err"], answer["Error"]);
        answer["Err"].as_str().unwrap().to_owned()
    }

    /// Waits for what is done behind the answers; then what stands on the host, as far as a host shows it, and what the firewall holds.
    pub async fn host(&self) -> String {
        self.reconciler.idle(Duration::from_secs(1)).await;
        let objects = self.kernel.objects().into_values().filter_map(|object| match object {
            Object::HostSysctl { .. } => None,
            // what a published port asks of its link stays with the link
            Object::LinkSysctl { path, .. } if path.contains("rsv-") => None,
            Object::Attachment(attachment) => Some(format!("Attachment {} mtu {}", attachment.host, attachment.mtu.unwrap_or(0))),
            object => Some(format!("{object:?}")),
        });
        let entries = self.firewall.entries().into_iter().map(|entry| format!("{entry:?}"));
        objects.chain(entries).collect::<Vec<_>>().join("\n")
    }

    /// Converges; the calls that it made to change anything.
    pub async fn converge(&self) -> Vec<Call> {
        self.kernel.take_calls();
        let report = self.reconciler.converge().await.unwrap();
        assert!(report.failed.is_empty(), "{:?}", report.failed);
        self.kernel.take_calls().into_iter().filter(|call| !matches!(call, Call::Observe)).collect()
    }
}

/// A network of each kind, by its options: what every suite runs over.
pub fn networks() -> Vec<Value> {
    vec![
        json!({}),
        json!({ "mode": "macvlan", "parent": PARENT, "host_access": "true" }),
        json!({ "mode": "macvlan", "parent": PARENT, "macvlan_mode": "source", "source_macs": "02:00:00:00:00:01", "slaac": "true" }),
        json!({ "mode": "none" }),
        json!({ "mode": "overlay" }),
        json!({ "mode": "overlay", "transport": "auto", "attach": "direct" }),
    ]
}

pub fn create_network() -> Value {
    create_network_with(json!({}))
}

pub fn create_network_with(options: Value) -> Value {
    json!({
        "NetworkID": NETWORK,
        "Options": {
            "com.docker.network.enable_ipv4": true,
            "com.docker.network.enable_ipv6": true,
            "com.docker.network.generic": options,
        },
        "IPv4Data": [{ "AddressSpace": "LocalDefault", "Pool": "172.18.0.0/16", "Gateway": "172.18.0.1/16", "AuxAddresses": null }],
        "IPv6Data": [{ "AddressSpace": "LocalDefault", "Pool": "fd00:18::/64", "Gateway": "fd00:18::1/64" }],
    })
}

pub fn create_endpoint() -> Value {
    json!({
        "NetworkID": NETWORK,
        "EndpointID": ENDPOINT,
        "Interface": { "Address": "172.18.0.2/16", "AddressIPv6": "fd00:18::2/64", "MacAddress": "02:42:00:00:00:02" },
        "Options": { "com.docker.network.endpoint.exposedports": [], "com.docker.network.portmap": [] },
    })
}

/// With addresses that this host may give on such a network: of an overlay those of its own blocks, which its name decides about.
pub fn create_endpoint_on(options: &Value) -> Value {
    let mut body = create_endpoint();
    if options["mode"] == "overlay" {
        body["Interface"]["Address"] = json!("172.18.245.200/16");
        body["Interface"]["AddressIPv6"] = json!("fd00:18::c162:2656:cb2:8/64");
    }
    body
}

pub fn endpoint() -> Value {
    json!({ "NetworkID": NETWORK, "EndpointID": ENDPOINT })
}

pub fn join() -> Value {
    json!({ "NetworkID": NETWORK, "EndpointID": ENDPOINT, "SandboxKey": SANDBOX, "Options": {} })
}

pub fn program(ports: Value) -> Value {
    json!({ "NetworkID": NETWORK, "EndpointID": ENDPOINT, "Options": { "com.docker.network.portmap": ports } })
}

pub fn port(host: u16, container: u16) -> Value {
    json!({ "Proto": 6, "IP": "", "Port": container, "HostIP": "", "HostPort": host, "HostPortEnd": host })
}
