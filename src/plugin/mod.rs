//! The plugin's HTTP edge: sockets, bodies, errors, activation. It knows no call but `Plugin.Activate`; `driver` and `ipam` add theirs.
//!
//! The engine sends no `Content-Type`, expects exactly 200 with a JSON object, and reads an error from `Err` or, for IPAM, from `Error`
//! (engine-client of 20.10 to 29). A retry of its may have lost its body: an empty one is refused where one is needed.

mod body;
mod guests;
mod socket;

use std::fmt::Display;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;
use tracing::{debug, warn};

pub use socket::{Sockets, serve};

const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// `calls` and the activation, behind what protects them.
pub fn router(calls: Router) -> Router {
    calls
        .route("/Plugin.Activate", post(async || reply(&json!({ "Implements": ["NetworkDriver", "IpamDriver"] }))))
        .fallback(async || failure(StatusCode::NOT_FOUND, &"no such call"))
        .layer(DefaultBodyLimit::disable()) // axum's own is 2 MB
        .layer(from_fn(to_the_end))
        .layer(from_fn(body::whole))
}

/// Handles a call on a task of its own: one that the engine no longer waits for is done all the same, not half; and one that panics has an
/// answer.
async fn to_the_end(request: Request, next: Next) -> Response {
    let handled = tokio::spawn(next.run(request)).await;
    handled.unwrap_or_else(|_| failure(StatusCode::INTERNAL_SERVER_ERROR, &"rsnet has a defect here; see its log"))
}

/// One call: its body read, handled, answered.
pub async fn call<Q, A, E>(name: &'static str, body: Bytes, handle: impl AsyncFnOnce(Q) -> Result<A, E>) -> Response
where
    Q: DeserializeOwned,
    A: Serialize,
    E: Display,
{
    let query = match read(&body) {
        Ok(query) => query,
        Err(problem) => return failure(StatusCode::BAD_REQUEST, &format!("{name}: {problem}")),
    };
    match handle(query).await {
        Ok(answer) => {
            debug!(call = name, "answered");
            reply(&answer)
        }
        Err(error) => {
            warn!(call = name, %error, "refused");
            failure(StatusCode::INTERNAL_SERVER_ERROR, &error)
        }
    }
}

/// An answer that needs no question.
pub fn reply<A: Serialize>(answer: &A) -> Response {
    match serde_json::to_vec(answer) {
        Ok(body) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response(),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}

fn read<Q: DeserializeOwned>(body: &[u8]) -> Result<Q, String> {
    if body.is_empty() {
        return Err("the request has no body; the engine may have lost it in a retry".to_owned());
    }
    // serde would also take a list for a struct
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err("the request cannot be read: it is no JSON object".to_owned());
    }
    serde_json::from_slice(body).map_err(|error| format!("the request cannot be read: {error}"))
}

fn failure(status: StatusCode, problem: &dyn Display) -> Response {
    let problem = problem.to_string();
    let body = json!({ "Err": problem, "Error": problem }).to_string();
    (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response()
}

/// For fields that Go leaves out, or sends as `null` where a list or map is empty.
pub fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::body::{Body, to_bytes};
    use tokio::sync::Notify;
    use tower::ServiceExt;

    use super::*;

    fn ask(call: &str) -> Request {
        Request::post(call).body(Body::empty()).unwrap()
    }

    #[tokio::test]
    async fn a_call_that_panics_has_an_answer_that_the_engine_can_show() {
        let router = router(Router::new().route("/Panic", post(async || -> Response { panic!("on purpose") })));
        let response = router.oneshot(ask("/Panic")).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = to_bytes(response.into_body(), 1024).await.unwrap();
        assert!(serde_json::from_slice::<serde_json::Value>(&body).unwrap()["Err"].as_str().unwrap().contains("defect"));
    }

    #[tokio::test]
    async fn a_call_that_nobody_waits_for_is_done_to_the_end() {
        let (begun, go, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (tell_begun, wait, tell_done) = (begun.clone(), go.clone(), done.clone());
        let slow = async move || {
            tell_begun.notify_one();
            wait.notified().await;
            tell_done.notify_one();
            reply(&json!({}))
        };
        let router = router(Router::new().route("/Slow", post(slow)));
        let call = tokio::spawn(router.oneshot(ask("/Slow")));
        begun.notified().await;
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        go.notify_one();
        done.notified().await;
    }
}
