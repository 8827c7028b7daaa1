//! Where other hosts ask this one: on its outer address only, wherever that is now.

use std::fmt::Display;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::{HOST, LARGEST, Secret, own_address};
use crate::cluster::View;

/// A request's head must come within this time; so long is an unused connection kept.
const HEAD: Duration = Duration::from_secs(30);
/// How long one answer may take, body and all.
const LIMIT: Duration = Duration::from_secs(10);
/// How many connections there are at a time: two for each of a thousand hosts. More wait.
const CONNECTIONS: usize = 2048;
/// Between two tries to listen.
const AGAIN: Duration = Duration::from_secs(2);

/// Which host asks, in the extensions of a request. Any host of the cluster can say that it is any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker(pub String);

/// Answers other hosts by `routes` at this host's outer address, and at the next one when that changes; until it is dropped. Only who has the
/// secret gets to a route; a body has at most [`LARGEST`] bytes.
pub async fn serve(routes: Router, secret: Arc<Secret>, mut views: watch::Receiver<Arc<View>>, port: u16) {
    let routes = routes
        .fallback(async || (StatusCode::NOT_FOUND, "this rsnet does not know that question; it may be of an earlier version"))
        .layer(DefaultBodyLimit::max(LARGEST))
        .layer(from_fn_with_state(secret, admit));
    while let Some(address) = own_address(&mut views).await {
        tokio::select! {
            () = listen(SocketAddr::new(address, port), &routes) => {}
            () = moved(&mut views, address) => {}
        }
    }
}

/// Returns when the outer address is another.
async fn moved(views: &mut watch::Receiver<Arc<View>>, from: IpAddr) {
    // without views there are no hosts to listen to
    let _ = views.wait_for(|view| view.vtep.is_some_and(|vtep| vtep != from)).await;
}

/// Never returns. All connections end when it is dropped.
async fn listen(at: SocketAddr, routes: &Router) {
    let listener = bind(at).await;
    info!(%at, "listening to other hosts");
    let (room, mut connections) = (Arc::new(Semaphore::new(CONNECTIONS)), JoinSet::new());
    loop {
        while connections.try_join_next().is_some() {}
        // never closed
        let seat = room.clone().acquire_owned().await.ok();
        match listener.accept().await {
            Ok((stream, _)) => {
                let routes = routes.clone();
                connections.spawn(async move {
                    converse(stream, routes).await;
                    drop(seat);
                });
            }
            Err(error) => {
                debug!(%error, "accept another host's connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The address may not be there yet, or the port be another's for a while.
async fn bind(at: SocketAddr) -> TcpListener {
    let mut told = None;
    loop {
        match TcpListener::bind(at).await {
            Ok(listener) => return listener,
            Err(error) if told != Some(error.kind()) => {
                told = Some(error.kind());
                let hint =
                    if error.kind() == io::ErrorKind::AddrInUse { "; give another RSNET_PEER_PORT, the same on every host" } else { "" };
                warn!("listen to other hosts on {at}: {error}{hint}. Names of containers do not get here; trying again");
            }
            Err(_) => {}
        }
        sleep(AGAIN).await;
    }
}

async fn converse(stream: TcpStream, routes: Router) {
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    if let Err(error) = connection.await {
        debug!(%error, "another host's connection ended");
    }
}

/// Only whom the secret makes one of us, and for no longer than [`LIMIT`].
async fn admit(State(secret): State<Arc<Secret>>, mut request: Request, next: Next) -> Response {
    let asker = header(&request, HOST).map(str::to_owned).map(Asker);
    let is_ours = header(&request, "authorization").and_then(|value| value.strip_prefix("Bearer ")).is_some_and(|given| secret.is(given));
    if !is_ours {
        secret.doubt();
        return (StatusCode::UNAUTHORIZED, "this host knows another secret, or none yet; see that both hosts have the same store")
            .into_response();
    }
    let Some(asker) = asker else { return (StatusCode::BAD_REQUEST, "the request does not say which host asks").into_response() };
    request.extensions_mut().insert(asker);
    let slow = |_| (StatusCode::SERVICE_UNAVAILABLE, "it takes too long").into_response();
    timeout(LIMIT, next.run(request)).await.unwrap_or_else(slow)
}

fn header<'r>(request: &'r Request, name: &str) -> Option<&'r str> {
    request.headers().get(name).and_then(|value| value.to_str().ok())
}

/// One question: its body read as JSON, handled, answered as JSON. An empty body is `null`.
pub async fn call<Q, A, E>(body: Bytes, handle: impl AsyncFnOnce(Q) -> Result<A, E>) -> Response
where
    Q: DeserializeOwned,
    A: Serialize,
    E: Display,
{
    let body: &[u8] = if body.is_empty() { b"null" } else { &body };
    let question = match serde_json::from_slice(body) {
        Ok(question) => question,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("the question cannot be read: {error}")).into_response(),
    };
    let failed = |error: &dyn Display| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
    match handle(question).await {
        Ok(answer) => serde_json::to_vec(&answer).map_or_else(|error| failed(&error), IntoResponse::into_response),
        Err(error) => failed(&error),
    }
}
