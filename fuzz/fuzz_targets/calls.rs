//! The wire: any bytes as the body of any call, one after the other on one host in memory. Nothing panics, and the answer is one of three.
#![no_main]

use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use libfuzzer_sys::fuzz_target;
use rsnet::agent::{Agent, Settings};
use rsnet::cluster::{Cluster, Identity, Times, Uplink};
use rsnet::firewall::fake::Fake as FakeFirewall;
use rsnet::kernel::fake::Fake as FakeKernel;
use rsnet::reconcile::Reconciler;
use rsnet::store::embedded::Embedded;
use rsnet::{driver, ipam, plugin};
use tower::ServiceExt;

#[path = "../../tests/driver/calls.rs"]
mod calls;
use calls::CALLS;

// a call is a byte that names it and a body that ends with a line
fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Arc::new(Embedded::open(&directory.path().join("state.redb")).expect("a store"));
        let kernel = Arc::new(FakeKernel::new());
        let reconciler = Arc::new(Reconciler::new(kernel.clone(), Arc::new(FakeFirewall::default())));
        let identity = Identity { host: "h1".to_owned(), id: "1".to_owned() };
        let cluster = Cluster::new(store.clone(), identity, Times::default()).expect("a name");
        cluster.leave_by(Uplink { vtep: [192, 0, 2, 1].into(), mtu: 1500, on_link: None });
        let agent = Arc::new(Agent::load(kernel, store, reconciler, cluster, Settings::default()).await.expect("an agent"));
        let router = plugin::router(driver::router(agent.clone()).merge(ipam::router(agent)));
        for line in data.split(|byte| *byte == b'\n') {
            let Some((call, body)) = line.split_first() else { continue };
            let path = format!("/{}", CALLS[usize::from(*call) % CALLS.len()]);
            let request = Request::post(path).body(Body::from(body.to_vec())).expect("a request");
            let answer = router.clone().oneshot(request).await.expect("an answer");
            assert!([200, 400, 500].contains(&answer.status().as_u16()), "{answer:?}");
        }
    });
});
