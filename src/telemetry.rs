//! Logs and metrics. INFO is a change of state; every line of it names its network or endpoint.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Logs to standard error, in colours only on a terminal; or as JSON, an object a line.
pub fn log(level: Targets, json: bool) {
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let registry = tracing_subscriber::registry().with(level);
    match json {
        true => registry.with(lines.json().flatten_event(true)).init(),
        false => registry.with(lines).init(),
    }
}

/// What is known at the moment when somebody asks.
#[async_trait]
pub trait Figures: Send + Sync {
    /// Registers it; names get the prefix `rsnet_`.
    async fn register(&self, registry: &mut Registry);
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    call: String,
    status: u16,
}

/// What Prometheus may ask.
pub struct Metrics {
    registry: Registry,
    calls: Family<Call, Counter>,
    seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let (calls, seconds) = (Family::default(), Histogram::new(exponential_buckets(0.0001, 2.0, 16)));
        let mut registry = Registry::with_prefix("rsnet");
        registry.register("calls", "Calls of the engine, by name and HTTP status", calls.clone());
        registry.register("call_duration_seconds", "Time from a call's arrival to its answer", seconds.clone());
        Metrics { registry, calls, seconds }
    }
}

impl Metrics {
    /// `router`, with every call counted and timed.
    pub fn around(self: &Arc<Self>, router: Router) -> Router {
        router.layer(from_fn_with_state(self.clone(), count))
    }

    /// `GET /metrics`
    pub fn router(self: &Arc<Self>, figures: Arc<dyn Figures>) -> Router {
        Router::new().route("/metrics", get(show)).with_state((self.clone(), figures))
    }
}

async fn count(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let (call, start) = (request.uri().path().to_owned(), Instant::now());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    // a path that is no call could be anything: not a label
    let call = if status == 404 { "unknown".to_owned() } else { call };
    metrics.calls.get_or_create(&Call { call, status }).inc();
    metrics.seconds.observe(start.elapsed().as_secs_f64());
    response
}

/// Of the OpenMetrics format, which Prometheus reads as its own.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

async fn show(State((metrics, figures)): State<(Arc<Metrics>, Arc<dyn Figures>)>) -> Result<impl IntoResponse, String> {
    let mut now = Registry::with_prefix("rsnet");
    figures.register(&mut now).await;
    let mut text = String::new();
    let written = encode_registry(&mut text, &metrics.registry).and_then(|()| encode_registry(&mut text, &now));
    written.and_then(|()| encode_eof(&mut text)).map_err(|error| error.to_string())?;
    Ok(([(CONTENT_TYPE, OPEN_METRICS)], text))
}
