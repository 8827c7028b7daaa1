//! What rsnet tells people about itself, and takes from them: the command line's questions, as `/rsnet/…` on the plugin's own socket.

mod checkup;
mod overview;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{get, post};

use crate::agent::{Agent, Explainer};
use crate::names::Names;
use crate::plugin::{call, reply};
pub use checkup::Checkup;
pub use overview::{Drift, HostsSeen, Overview, Sources, StoreSeen, Version};

pub fn router(agent: Arc<Agent>, names: Arc<Names>) -> Router {
    let of_names = Router::new().route("/rsnet/names", post(of_network)).with_state(names);
    Router::new()
        .route("/rsnet/ports", get(async |State(agent): State<Arc<Agent>>| reply(&agent.published())))
        .route("/rsnet/networks", get(async |State(agent): State<Arc<Agent>>| reply(&agent.list_networks())))
        .route("/rsnet/endpoints", get(async |State(agent): State<Arc<Agent>>| reply(&agent.list_endpoints())))
        .route("/rsnet/macvlan/sources", post(sources))
        .route("/rsnet/addresses", post(addresses))
        .route("/rsnet/hosts", get(async |State(agent): State<Arc<Agent>>| reply(&agent.hosts())))
        .route("/rsnet/hosts/forget", post(forget))
        .with_state(agent)
        .merge(of_names)
}

async fn of_network(State(names): State<Arc<Names>>, body: Bytes) -> Response {
    call("names", body, async |query| names.of(&query)).await
}

/// Why somebody reaches somebody, or not.
pub fn explain_router(explainer: Arc<Explainer>) -> Router {
    Router::new().route("/rsnet/explain", post(explain)).with_state(explainer)
}

async fn explain(State(explainer): State<Arc<Explainer>>, body: Bytes) -> Response {
    call("explain", body, async |query| explainer.explain(&query).await).await
}

/// What tells of the daemon itself.
pub fn state_router(sources: Arc<Sources>) -> Router {
    Router::new()
        .route("/rsnet/version", get(async |State(sources): State<Arc<Sources>>| reply(&sources.version())))
        .route("/rsnet/status", get(async |State(sources): State<Arc<Sources>>| reply(&sources.overview())))
        .route("/rsnet/doctor", get(async |State(sources): State<Arc<Sources>>| reply(&sources.checkup().await)))
        .route("/rsnet/doctor/fix", post(async |State(sources): State<Arc<Sources>>| reply(&sources.fix().await)))
        .with_state(sources)
}

async fn forget(State(agent): State<Arc<Agent>>, body: Bytes) -> Response {
    call("host forget", body, async |query| agent.forget_host(&query).await).await
}

async fn addresses(State(agent): State<Arc<Agent>>, body: Bytes) -> Response {
    call("addresses", body, async |query| agent.holders(&query)).await
}

async fn sources(State(agent): State<Arc<Agent>>, body: Bytes) -> Response {
    call("macvlan sources", body, async |change| agent.change_sources(&change).await).await
}
