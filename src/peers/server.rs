//! Where other hosts ask this one: on its outer address only, wherever that is now.

use std::collections::HashMap;
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
use parking_lot::Mutex;
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
const HEAD: Duration = Duration::from_secs(20);
/// How long one answer may take, body and all.
const LIMIT: Duration = Duration::from_secs(10);
/// How many connections there are at a time: two for each of a thousand hosts. More wait.
const CONNECTIONS: usize = 2048;
/// How many of them from one address: a host uses one or two, and its containers, who may come by its address, cannot take the others' place.
const OF_ONE: usize = 64;
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
    let (room, sources, mut connections) = (Arc::new(Semaphore::new(CONNECTIONS)), Sources::default(), JoinSet::new());
    loop {
        while connections.try_join_next().is_some() {}
        // never closed
        let seat = room.clone().acquire_owned().await.ok();
        match listener.accept().await {
            Ok((stream, from)) => {
                let (place, routes) = (sources.enter(from.ip()), routes.clone());
                connections.spawn(async move {
                    if let Some(_place) = place {
                        converse(stream, routes).await;
                    }
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

/// How many connections there are from each address.
#[derive(Clone, Default)]
struct Sources(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One of them, until it is dropped.
struct Place(Sources, IpAddr);

impl Sources {
    /// None: there are enough.
    fn enter(&self, from: IpAddr) -> Option<Place> {
        let mut counts = self.0.lock();
        let count = counts.entry(from).or_default();
        let free = *count < OF_ONE;
        *count += usize::from(free);
        free.then(|| Place(self.clone(), from))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.0.0.lock();
        match counts.get_mut(&self.1) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(counts.remove(&self.1)),
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

#[cfg(test)]
mod tests {
    use axum::Extension;
    use axum::routing::post;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::cluster::Host;
    use crate::peers::{Error, Peers};
    use crate::store::{Embedded, Store};

    type Views = watch::Sender<Arc<View>>;

    /// What host a sees of itself and of b, both on this machine's loopback.
    fn view(a: &str, b: &str) -> Arc<View> {
        let host = |name: &str, vtep: &str| Host { name: name.to_owned(), vtep: vtep.parse().unwrap(), alive: true, gone_since: None };
        Arc::new(View { hosts: [host("a", a), host("b", b)].into_iter().collect(), vtep: Some(a.parse().unwrap()), ..View::default() })
    }

    fn store(directory: &tempfile::TempDir, name: &str) -> Arc<dyn Store> {
        Arc::new(Embedded::open(&directory.path().join(name)).unwrap())
    }

    /// As host a has it, with the secret of that store.
    async fn secret(own: Arc<dyn Store>, shared: Arc<dyn Store>) -> Arc<Secret> {
        let secret = Secret::load(own, shared).await.unwrap();
        tokio::spawn(secret.clone().follow());
        while secret.text().is_none() {
            sleep(Duration::from_millis(5)).await;
        }
        secret
    }

    fn routes() -> Router {
        let greet = async |Extension(Asker(host)): Extension<Asker>, body: Bytes| {
            call(body, async |name: String| Ok::<_, String>(format!("hello {name} of {host}"))).await
        };
        let sleep = async || sleep(Duration::from_secs(60)).await;
        Router::new().route("/greet", post(greet)).route("/sleep", post(sleep))
    }

    /// Host a listens where `views` say, at a port that was free a moment ago.
    async fn listening(directory: &tempfile::TempDir, at: &str) -> (u16, Views, Arc<dyn Store>) {
        let port = std::net::TcpListener::bind((at, 0)).unwrap().local_addr().unwrap().port();
        let (views, shared) = (Views::new(view(at, "127.0.0.1")), store(directory, "shared"));
        let secret = secret(store(directory, "a"), shared.clone()).await;
        tokio::spawn(serve(routes(), secret, views.subscribe(), port));
        (port, views, shared)
    }

    /// Asks until it is not refused because nobody listens yet.
    async fn greet(b: &Peers) -> Result<String, Error> {
        for _ in 0..200 {
            match b.ask_json::<String>("a", "/greet", &"x").await {
                Err(Error::Unreachable { .. }) => sleep(Duration::from_millis(20)).await,
                answer => return answer,
            }
        }
        b.ask_json::<String>("a", "/greet", &"x").await
    }

    #[tokio::test]
    async fn a_host_answers_those_of_its_store_and_follows_its_address() {
        let directory = tempfile::tempdir().unwrap();
        let (port, views, shared) = listening(&directory, "127.0.7.1").await;
        let b = Peers::new("b".to_owned(), port, secret(store(&directory, "b"), shared).await, views.subscribe());
        assert_eq!(greet(&b).await.unwrap(), "hello x of b");
        let refused = b.ask("a", "/later", vec![]).await.unwrap_err();
        assert!(matches!(&refused, Error::Refused { problem, .. } if problem.contains("earlier version")), "{refused}");
        let unreadable = b.ask_json::<String>("a", "/greet", &7).await.unwrap_err();
        assert!(matches!(&unreadable, Error::Refused { problem, .. } if problem.contains("cannot be read")), "{unreadable}");
        assert!(matches!(b.ask("c", "/greet", vec![]).await, Err(Error::Unknown { .. })));
        let large = b.ask("a", "/greet", vec![b' '; LARGEST + 1]).await.unwrap_err();
        assert!(matches!(large, Error::Refused { .. } | Error::Unreachable { .. }), "{large}");
        let reach = b.reach();
        assert!(reach.answered == 1 && reach.failed >= 4 && (reach.reached, reach.missed) == (0, 1), "{reach:?}");

        views.send_replace(view("127.0.7.2", "127.0.0.1"));
        assert_eq!(greet(&b).await.unwrap(), "hello x of b");
        assert_eq!((b.reach().answered, b.reach().reached, b.reach().missed), (2, 1, 0));
        assert!(TcpStream::connect(("127.0.7.1", port)).await.is_err(), "it no longer listens where it was");
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err(), "nor anywhere else");
    }

    #[tokio::test]
    async fn who_does_not_have_the_secret_gets_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let (port, views, _shared) = listening(&directory, "127.0.7.3").await;
        let stranger =
            Peers::new("b".to_owned(), port, secret(store(&directory, "b"), store(&directory, "other")).await, views.subscribe());
        let refused = greet(&stranger).await.unwrap_err();
        assert!(matches!(&refused, Error::Refused { problem, .. } if problem.contains("another secret")), "{refused}");
        // and no route is told from none
        for request in ["POST /greet HTTP/1.1\r\nhost: a\r\n\r\n", "GET /nothing HTTP/1.1\r\nhost: a\r\nauthorization: Bearer \r\n\r\n"] {
            let mut connection = TcpStream::connect(("127.0.7.3", port)).await.unwrap();
            connection.write_all(request.as_bytes()).await.unwrap();
            let mut answer = [0; 12];
            connection.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 401");
        }
    }

    #[tokio::test]
    async fn connections_that_say_nothing_keep_no_other_host_out() {
        let directory = tempfile::tempdir().unwrap();
        let (port, views, shared) = listening(&directory, "127.0.7.5").await;
        let b = Peers::new("b".to_owned(), port, secret(store(&directory, "b"), shared).await, views.subscribe());
        greet(&b).await.unwrap();
        let mut silent = Vec::new();
        for _ in 0..=OF_ONE {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind("127.0.7.6:0".parse().unwrap()).unwrap();
            silent.push(socket.connect(format!("127.0.7.5:{port}").parse().unwrap()).await.unwrap());
        }
        let closed = silent.last_mut().unwrap().read(&mut [0; 1]).await;
        assert!(closed.as_ref().is_ok_and(|read| *read == 0) || closed.is_err(), "the last of them has no place: {closed:?}");
        let other = Peers::new("c".to_owned(), port, b.secret.clone(), views.subscribe());
        assert_eq!(other.ask_json::<String>("a", "/greet", &"x").await.unwrap(), "hello x of c");
    }

    #[tokio::test]
    async fn a_host_that_does_not_answer_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let (port, views, shared) = listening(&directory, "127.0.7.4").await;
        let b = Peers::new("b".to_owned(), port, secret(store(&directory, "b"), shared).await, views.subscribe());
        greet(&b).await.unwrap();
        let silent = b.ask("a", "/sleep", vec![]).await.unwrap_err();
        assert!(matches!(&silent, Error::Unreachable { cause, .. } if cause.contains("no answer")), "{silent}");
    }
}
