//! THE REMOTE NETWORK-DRIVER API that Docker calls (not `drivers/`, which holds the modes): wire types, and handlers that decide nothing.

mod wire;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use serde_json::json;

use crate::agent::{Agent, Error};
use crate::model::Family;
use crate::plugin::{call, reply};
use wire::{CreateEndpoint, CreateNetwork, Empty, EndpointId, GwAllocCheck, Join, NetworkId, Program};

pub fn router(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/NetworkDriver.GetCapabilities", post(capabilities))
        .route("/NetworkDriver.GwAllocCheck", post(gateway_check))
        .route("/NetworkDriver.AllocateNetwork", post(async || reply(&json!({ "Options": {} }))))
        .route("/NetworkDriver.FreeNetwork", post(nothing))
        .route("/NetworkDriver.CreateNetwork", post(create_network))
        .route("/NetworkDriver.DeleteNetwork", post(delete_network))
        .route("/NetworkDriver.CreateEndpoint", post(create_endpoint))
        .route("/NetworkDriver.EndpointOperInfo", post(async || reply(&json!({ "Value": {} }))))
        .route("/NetworkDriver.DeleteEndpoint", post(delete_endpoint))
        .route("/NetworkDriver.Join", post(join))
        .route("/NetworkDriver.Leave", post(leave))
        .route("/NetworkDriver.ProgramExternalConnectivity", post(program))
        .route("/NetworkDriver.RevokeExternalConnectivity", post(revoke))
        .route("/NetworkDriver.DiscoverNew", post(nothing))
        .route("/NetworkDriver.DiscoverDelete", post(nothing))
        .with_state(agent)
}

type Calls = State<Arc<Agent>>;

/// One scope for all modes: `local`, since outside Swarm a global driver has no store behind it (engine 23.0 and newer).
async fn capabilities() -> Response {
    reply(&json!({ "Scope": "local", "ConnectivityScope": "local", "GwAllocChecker": true }))
}

async fn nothing() -> Response {
    reply(&Empty {})
}

async fn gateway_check(State(agent): Calls, body: Bytes) -> Response {
    call("GwAllocCheck", body, async |query: GwAllocCheck| {
        let without = agent.without_gateway(query.options.generic, query.options.internal)?;
        let answer = json!({ "SkipIPv4": without.contains(&Family::V4), "SkipIPv6": without.contains(&Family::V6) });
        Ok::<_, Error>(answer)
    })
    .await
}

async fn create_network(State(agent): Calls, body: Bytes) -> Response {
    call("CreateNetwork", body, async |query: CreateNetwork| agent.create_network(query.parse()?).await.map(Empty::from)).await
}

async fn delete_network(State(agent): Calls, body: Bytes) -> Response {
    call("DeleteNetwork", body, async |query: NetworkId| agent.delete_network(&query.network).await.map(Empty::from)).await
}

async fn create_endpoint(State(agent): Calls, body: Bytes) -> Response {
    call("CreateEndpoint", body, async |query: CreateEndpoint| {
        let new = query.parse()?;
        let given = new.mac.is_some();
        let mac = agent.create_endpoint(new).await?;
        // to repeat what the engine sent counts as changing it
        let answer = if given { json!({}) } else { json!({ "Interface": { "MacAddress": mac } }) };
        Ok::<_, Error>(answer)
    })
    .await
}

async fn delete_endpoint(State(agent): Calls, body: Bytes) -> Response {
    call("DeleteEndpoint", body, async |query: EndpointId| agent.delete_endpoint(&query.network, &query.endpoint).await.map(Empty::from))
        .await
}

async fn join(State(agent): Calls, body: Bytes) -> Response {
    let asked = body.clone();
    call("Join", body, async |query: Join| {
        let joined = agent.join(&query.network, &query.endpoint, query.sandbox_key).await?;
        // behind the answer: a thousand ports take longer to read than a link to make
        tokio::spawn(async move { agent.warn_of_ports(&query.network, &query.endpoint, &wire::ports(&asked)) });
        Ok::<_, Error>(wire::Joined::from(joined))
    })
    .await
}

async fn leave(State(agent): Calls, body: Bytes) -> Response {
    call("Leave", body, async |query: EndpointId| agent.leave(&query.network, &query.endpoint).await.map(Empty::from)).await
}

async fn program(State(agent): Calls, body: Bytes) -> Response {
    call("ProgramExternalConnectivity", body, async |query: Program| {
        let ports = query.ports()?;
        agent.publish(&query.network, &query.endpoint, &ports).await.map(Empty::from)
    })
    .await
}

async fn revoke(State(agent): Calls, body: Bytes) -> Response {
    call("RevokeExternalConnectivity", body, async |query: EndpointId| {
        agent.unpublish(&query.network, &query.endpoint).await.map(Empty::from)
    })
    .await
}
