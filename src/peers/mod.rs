//! PEERS: the hosts of one cluster talk to each other directly, by HTTP on their outer addresses, where the tunnels end too.
//!
//! Owns the connection: who may talk ([`Secret`]), where it is listened ([`serve`]), how a host is asked ([`Peers`]), and the bounds of all that.
//! Knows nothing of what is said: rooms above bring routes of their own, which [`serve`] puts behind what protects them. Nothing here is on the
//! way of a container's start.
//!
//! What is not answered is asked again by whoever asked: a message that is lost must be one that can be sent twice.

mod secret;
mod server;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::cluster::View;

pub use secret::Secret;
pub use server::{Asker, call, serve};

/// The TCP port that hosts are asked at unless a setting says otherwise; the same on all of them.
pub const PORT: u16 = 4795;
/// Bytes: the largest question and the largest answer.
pub const LARGEST: usize = 4 << 20;

/// How long a host may take to be reached.
const CONNECT: Duration = Duration::from_secs(1);
/// How long one question may take from beginning to end.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection that is not used is kept; less than [`server`] keeps it.
const IDLE: Duration = Duration::from_secs(15);
/// How many hosts are asked at a time.
const AT_ONCE: usize = 256;
/// Who asks: its host's name.
const HOST: &str = "rsnet-host";

/// Why a host did not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The store tells of no such host.
    #[error("ask host {host}: the store knows no such host; `rsnet hosts` lists them")]
    Unknown { host: String },
    /// What hosts know each other by was never read.
    #[error("ask host {host}: the store has not told yet what hosts know each other by; see that it can be reached")]
    NoSecret { host: String },
    /// It cannot be reached, or did not answer in time.
    #[error("ask host {host} at {at}: {cause}; see that rsnet runs there and that no firewall is before that port")]
    Unreachable { host: String, at: SocketAddr, cause: String },
    /// It answered that it will not, or cannot.
    #[error("ask host {host} at {at}: {problem}")]
    Refused { host: String, at: SocketAddr, problem: String },
    /// Its answer makes no sense here.
    #[error("ask host {host} at {at}: its answer cannot be read: {cause}; see that its rsnet is of the same version")]
    Answer { host: String, at: SocketAddr, cause: String },
}

/// The other hosts, to be asked.
pub struct Peers {
    me: String,
    port: u16,
    secret: Arc<Secret>,
    views: watch::Receiver<Arc<View>>,
    http: Client<HttpConnector, Full<Bytes>>,
    turns: Semaphore,
    told: Mutex<Told>,
}

/// How questions to other hosts ended, from the start of this process on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Questions that were answered.
    pub answered: u64,
    /// Questions that were not, whatever the reason.
    pub failed: u64,
    /// Hosts that are alive and answered the last question.
    pub reached: usize,
    /// Hosts that are alive and did not.
    pub missed: usize,
}

#[derive(Default)]
struct Told {
    answered: u64,
    failed: u64,
    /// Whether a host answered the last question.
    last: BTreeMap<String, bool>,
}

impl Peers {
    /// Of a host called `me`. The others are those of the views; all listen at `port`.
    pub fn new(me: String, port: u16, secret: Arc<Secret>, views: watch::Receiver<Arc<View>>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_nodelay(true);
        let http = Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE).pool_timer(TokioTimer::new()).build(connector);
        Peers { me, port, secret, views, http, turns: Semaphore::new(AT_ONCE), told: Mutex::default() }
    }

    /// This host's name.
    pub fn me(&self) -> &str {
        &self.me
    }

    /// Asks a host, by its name, and returns what it answers, at most [`LARGEST`] bytes. Within 5 s of its turn: 256 are asked at a time.
    /// `path` is one of the routes that the other side serves, `/names`.
    pub async fn ask(&self, host: &str, path: &str, body: Vec<u8>) -> Result<Bytes, Error> {
        let answer = self.ask_untold(host, path, body).await;
        let mut told = self.told.lock();
        match answer {
            Ok(_) => told.answered += 1,
            Err(_) => told.failed += 1,
        }
        told.last.insert(host.to_owned(), answer.is_ok());
        answer
    }

    /// How questions ended so far. Of hosts that were never asked nothing is said.
    pub fn reach(&self) -> Reach {
        let (view, mut told) = (self.views.borrow().clone(), self.told.lock());
        told.last.retain(|name, _| view.is_alive(name));
        let reached = told.last.values().filter(|answered| **answered).count();
        Reach { answered: told.answered, failed: told.failed, reached, missed: told.last.len() - reached }
    }

    async fn ask_untold(&self, host: &str, path: &str, body: Vec<u8>) -> Result<Bytes, Error> {
        let at = self.find(host)?;
        let request = self.request(host, at, path, body)?;
        // never closed
        let _turn = self.turns.acquire().await.ok();
        let unreachable = |cause: String| Error::Unreachable { host: host.to_owned(), at, cause };
        let answered = timeout(PATIENCE, self.send(request)).await.map_err(|_| unreachable(format!("no answer within {PATIENCE:?}")))?;
        match answered.map_err(unreachable)? {
            (StatusCode::OK, body) => Ok(body),
            (status, body) => {
                if status == StatusCode::UNAUTHORIZED {
                    self.secret.doubt();
                }
                let problem = String::from_utf8_lossy(&body[..body.len().min(500)]).into_owned();
                let problem = if problem.is_empty() { status.to_string() } else { problem };
                Err(Error::Refused { host: host.to_owned(), at, problem })
            }
        }
    }

    /// The same with JSON there and back, as [`call`] reads and answers it.
    pub async fn ask_json<A: DeserializeOwned>(&self, host: &str, path: &str, question: &impl Serialize) -> Result<A, Error> {
        let unreadable = |cause: serde_json::Error| match self.find(host) {
            Ok(at) => Error::Answer { host: host.to_owned(), at, cause: cause.to_string() },
            Err(error) => error,
        };
        let body = serde_json::to_vec(question).map_err(unreadable)?;
        let answer = self.ask(host, path, body).await?;
        serde_json::from_slice(&answer).map_err(unreadable)
    }

    /// Where a host is asked.
    fn find(&self, host: &str) -> Result<SocketAddr, Error> {
        let view = self.views.borrow();
        let found = view.hosts.get(host);
        found.map(|found| SocketAddr::new(found.vtep, self.port)).ok_or_else(|| Error::Unknown { host: host.to_owned() })
    }

    fn request(&self, host: &str, at: SocketAddr, path: &str, body: Vec<u8>) -> Result<Request<Full<Bytes>>, Error> {
        let secret = self.secret.text().ok_or_else(|| Error::NoSecret { host: host.to_owned() })?;
        let request = Request::post(format!("http://{at}{path}"));
        let request = request.header("authorization", format!("Bearer {secret}")).header(HOST, &self.me);
        let unfit = |error: axum::http::Error| Error::Refused { host: host.to_owned(), at, problem: error.to_string() };
        request.body(Full::from(body)).map_err(unfit)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), String> {
        let response = self.http.request(request).await.map_err(|error| innermost(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(|error| error.to_string())?;
        Ok((status, body.to_bytes()))
    }
}

/// hyper's own words say only that there was an error.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// This host's outer address, as soon as there is one.
async fn own_address(views: &mut watch::Receiver<Arc<View>>) -> Option<IpAddr> {
    views.wait_for(|view| view.vtep.is_some()).await.ok()?.vtep
}
