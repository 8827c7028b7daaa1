//! One question to Consul's HTTP API and its answer: addressing, time-outs, and what a failure means. Knows nothing of keys and values.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use backon::{ExponentialBuilder, Retryable};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::super::StoreError;
use super::access::{Access, Door};
use super::clock;
use super::settings::Settings;

/// How long a call may take with all it tries: a second more than a Consul agent waits for a leader to be elected (7 s).
const PATIENCE: Duration = Duration::from_secs(8);
/// Questions under way at once, those that wait for a change left out. An agent takes 200 connections of one client.
const AT_ONCE: usize = 64;
/// The longest answer that is read, in bytes.
const LONGEST: usize = 64 << 20;

/// What Consul says when it has done nothing: no leader to pass the question on to; just started, and its node not yet known.
const UNDONE: [&[u8]; 2] = [b"No cluster leader", b"Missing node registration"];

/// A question.
#[derive(Clone, Debug)]
pub struct Ask {
    method: Method,
    /// Below `/v1/`, with `?` and parameters.
    path: String,
    body: Vec<u8>,
    /// Whether asking twice is the same as once.
    repeatable: bool,
    /// What to call it in an error: `read rsnet/a`.
    action: String,
}

impl Ask {
    /// Reads.
    pub fn get(path: String, action: String) -> Self {
        Self { method: Method::GET, path, body: Vec::new(), repeatable: true, action }
    }

    /// Changes.
    pub fn put(path: &str, body: Vec<u8>, action: String) -> Self {
        Self { method: Method::PUT, path: path.to_owned(), body, repeatable: false, action }
    }

    /// The same, where asking twice is the same as once.
    pub fn repeatable(self) -> Self {
        Self { repeatable: true, ..self }
    }
}

/// An answer that makes sense to the asker: 200, 404 or 409.
pub struct Answer {
    pub status: StatusCode,
    /// `X-Consul-Index`; 0 where Consul gave none.
    pub index: u64,
    pub body: Bytes,
    action: String,
    store: String,
}

impl Answer {
    /// What the body says.
    pub fn json<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T, StoreError> {
        serde_json::from_slice(&self.body).map_err(|error| self.strange(error))
    }

    /// The error of an answer that is not what Consul would say.
    pub fn strange(&self, cause: impl std::fmt::Display) -> StoreError {
        StoreError::Answer { action: self.action.clone(), store: self.store.clone(), cause: cause.to_string() }
    }

    /// The error of an answer that says that the token is not good enough.
    pub fn denied(&self, cause: &str) -> StoreError {
        StoreError::Denied { action: self.action.clone(), store: self.store.clone(), cause: cause.to_owned() }
    }
}

/// What was asked and answered since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Questions, each try counted.
    pub asked: u64,
    /// Bytes of the answers, without their headers.
    pub heard: u64,
}

/// How it stands with Consul.
#[derive(Clone, Debug, Default)]
pub struct Contact {
    /// When it last answered.
    pub heard: Option<Instant>,
    /// Why the last question had no answer; none: it had one, or nothing was asked yet.
    pub problem: Option<String>,
    /// By how many seconds this host's clock is ahead of Consul's, as far as whole seconds tell.
    pub ahead: Option<i64>,
}

/// Asks.
pub struct Client {
    pub settings: Settings,
    door: Door,
    at_once: Semaphore,
    asked: AtomicU64,
    heard: AtomicU64,
    contact: Mutex<Contact>,
}

impl Client {
    pub fn new(settings: Settings) -> Self {
        let (asked, heard, contact) = Default::default();
        Self { settings, door: Door::default(), at_once: Semaphore::new(AT_ONCE), asked, heard, contact }
    }

    pub fn traffic(&self) -> Traffic {
        Traffic { asked: self.asked.load(Ordering::Relaxed), heard: self.heard.load(Ordering::Relaxed) }
    }

    /// How it stands.
    pub fn contact(&self) -> Contact {
        self.contact.lock().clone()
    }

    fn compare_clocks(&self, headers: &hyper::HeaderMap) {
        let theirs = headers.get("Date").and_then(|value| clock::seconds(value.to_str().ok()?));
        let ours = SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|since| i64::try_from(since.as_secs()).ok());
        if let (Some(theirs), Some(ours)) = (theirs, ours) {
            self.contact.lock().ahead = Some(ours - theirs);
        }
    }

    /// Notes how a question ended. What Consul refuses it has heard.
    fn note<T>(&self, ended: Result<T, StoreError>) -> Result<T, StoreError> {
        let mut contact = self.contact.lock();
        contact.problem = ended.as_ref().err().map(ToString::to_string);
        if !matches!(ended, Err(StoreError::Unreachable { .. })) {
            contact.heard = Some(Instant::now());
        }
        ended
    }

    /// Asks, and again a few times: a question that can be repeated whatever went wrong, another only where Consul has not heard it.
    pub async fn ask(&self, ask: Ask) -> Result<Answer, StoreError> {
        let answer = self.ask_aside(ask).await;
        self.note(answer)
    }

    /// The same of what is no part of the store: how it ends says nothing of how it stands with that.
    pub async fn ask_aside(&self, ask: Ask) -> Result<Answer, StoreError> {
        let again = |error: &StoreError| matches!(error, StoreError::Unreachable { sent: false, .. });
        let pauses = ExponentialBuilder::new().with_min_delay(Duration::from_millis(100)).with_max_times(2).with_jitter();
        let all = async {
            // The semaphore is never closed.
            let _turn = self.at_once.acquire().await;
            (|| self.ask_once(&ask)).retry(pauses).when(again).await
        };
        let late = || self.unreachable(&ask, true, format!("no answer within {} s", PATIENCE.as_secs()));
        timeout(PATIENCE, all).await.unwrap_or_else(|_| Err(late()))
    }

    /// Asks one question that Consul may take `wait` to answer.
    pub async fn ask_and_wait(&self, ask: Ask, wait: Duration) -> Result<Answer, StoreError> {
        // Consul adds up to a sixteenth, so that not all wake together.
        let patience = wait + wait / 16 + PATIENCE;
        let late = || self.unreachable(&ask, true, format!("no answer within {} s", patience.as_secs()));
        self.note(timeout(patience, self.ask_once(&ask)).await.unwrap_or_else(|_| Err(late())))
    }

    async fn ask_once(&self, ask: &Ask) -> Result<Answer, StoreError> {
        let access = self.door.access(&self.settings)?;
        self.asked.fetch_add(1, Ordering::Relaxed);
        let request = self.request(ask, &access).map_err(|error| self.unreachable(ask, false, error.to_string()))?;
        let answer = access.http.request(request).await;
        let answer = answer.map_err(|error| self.unreachable(ask, !error.is_connect(), causes(&error)))?;
        let (status, index) = (answer.status(), index(answer.headers()));
        self.compare_clocks(answer.headers());
        let body = Limited::new(answer.into_body(), LONGEST).collect().await;
        let body = body.map_err(|error| self.unreachable(ask, true, format!("read the answer: {}", causes(&*error))))?.to_bytes();
        self.heard.fetch_add(body.len() as u64, Ordering::Relaxed);
        self.judge(ask, Answer { status, index, body, action: ask.action.clone(), store: self.settings.address.to_string() })
    }

    fn request(&self, ask: &Ask, access: &Access) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let address = &self.settings.address;
        let scheme = if address.https { "https" } else { "http" };
        let more = if ask.path.contains('?') { '&' } else { '?' };
        let datacenter = self.settings.datacenter.iter().map(|name| format!("{more}dc={name}")).collect::<String>();
        let uri = format!("{scheme}://{}/v1/{}{datacenter}", address.authority, ask.path);
        let mut request = Request::builder().method(&ask.method).uri(uri);
        if let Some(token) = &access.token {
            request = request.header("X-Consul-Token", token);
        }
        request.body(Full::new(ask.body.clone().into()))
    }

    /// Sorts out the answers that are errors whatever was asked.
    fn judge(&self, ask: &Ask, answer: Answer) -> Result<Answer, StoreError> {
        let words = || {
            let text = String::from_utf8_lossy(&answer.body[..answer.body.len().min(300)]);
            format!("{}: {}", answer.status, text.split_whitespace().collect::<Vec<_>>().join(" "))
        };
        match answer.status {
            StatusCode::OK | StatusCode::NOT_FOUND | StatusCode::CONFLICT => Ok(answer),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(answer.denied(&words())),
            StatusCode::TOO_MANY_REQUESTS => Err(self.unreachable(ask, false, words())),
            status if status.is_server_error() => Err(self.unreachable(ask, !UNDONE.contains(&&*answer.body), words())),
            _ => Err(answer.strange(words())),
        }
    }

    fn unreachable(&self, ask: &Ask, sent: bool, cause: String) -> StoreError {
        let sent = sent && !ask.repeatable;
        StoreError::Unreachable { action: ask.action.clone(), store: self.settings.address.to_string(), sent, cause }
    }
}

fn index(headers: &hyper::HeaderMap) -> u64 {
    let text = headers.get("X-Consul-Index").and_then(|value| value.to_str().ok());
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// An error with what caused it, down to the one that says something.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut texts = vec![error.to_string()];
    let mut next = error.source();
    while let Some(error) = next {
        let text = error.to_string();
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    texts.join(": ")
}
