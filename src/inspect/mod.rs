//! What rsnet tells people about itself: the questions of the command line, as `GET /rsnet/…` on the plugin's own socket.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::get;

use crate::agent::Agent;
use crate::plugin::reply;

pub fn router(agent: Arc<Agent>) -> Router {
    Router::new().route("/rsnet/ports", get(async |State(agent): State<Arc<Agent>>| reply(&agent.published()))).with_state(agent)
}
