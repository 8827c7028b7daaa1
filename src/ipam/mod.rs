//! THE REMOTE IPAM API that Docker calls, twin of `driver/`: wire types, and handlers that decide nothing.
//!
//! Nothing on the wire links a pool to a network. In an answer of 200 the engine reads an error from `Error`, not
//! `Err`; ours come with status 500 and both.

mod wire;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use serde_json::json;

use crate::agent::{self, Agent, Error};
use crate::plugin::{call, reply};
use wire::{PoolId, ReleaseAddress, RequestAddress, RequestPool};

pub fn router(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/IpamDriver.GetCapabilities", post(capabilities))
        .route("/IpamDriver.GetDefaultAddressSpaces", post(spaces))
        .route("/IpamDriver.RequestPool", post(request_pool))
        .route("/IpamDriver.ReleasePool", post(release_pool))
        .route("/IpamDriver.RequestAddress", post(request_address))
        .route("/IpamDriver.ReleaseAddress", post(release_address))
        .with_state(agent)
}

type Calls = State<Arc<Agent>>;

/// No replay: what was given is kept here, and before 29.0 a replay could ask for an empty pool and get another one. MAC addresses are
/// wanted in requests: who comes back with the same one gets the same address.
async fn capabilities() -> Response {
    reply(&json!({ "RequiresMACAddress": true, "RequiresRequestReplay": false }))
}

async fn spaces() -> Response {
    reply(&json!({ "LocalDefaultAddressSpace": agent::SPACE, "GlobalDefaultAddressSpace": "rsnet-global" }))
}

async fn request_pool(State(agent): Calls, body: Bytes) -> Response {
    call("RequestPool", body, async |query: RequestPool| {
        let new = query.parse()?;
        let segment = new.segment.clone();
        let subnet = agent.request_pool(new).await?;
        Ok::<_, Error>(json!({ "PoolID": agent::pool_id(segment.as_ref(), subnet), "Pool": subnet, "Data": {} }))
    })
    .await
}

async fn release_pool(State(agent): Calls, body: Bytes) -> Response {
    call("ReleasePool", body, async |query: PoolId| agent.release_pool(&query.pool).await.map(|()| json!({}))).await
}

async fn request_address(State(agent): Calls, body: Bytes) -> Response {
    call("RequestAddress", body, async |query: RequestAddress| {
        let address = agent.request_address(query.parse()?).await?;
        Ok::<_, Error>(json!({ "Address": address, "Data": {} }))
    })
    .await
}

async fn release_address(State(agent): Calls, body: Bytes) -> Response {
    call("ReleaseAddress", body, async |query: ReleaseAddress| agent.release_address(&query.pool, query.address).await.map(|()| json!({})))
        .await
}
