//! Asks the running daemon.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper::http::request::Builder;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Failure;
use crate::docker::{self, Engine, Inspected, Seen};
use crate::model::NetworkId;

/// Where the daemon listens on the host, as a process and as a managed plugin.
const SOCKET: &str = "/run/docker/plugins/rsnet.sock";

/// What every question to the daemon can be asked with.
#[derive(Args)]
pub struct Asking {
    /// Print JSON, with all there is
    #[arg(long)]
    pub json: bool,
    /// The daemon's socket
    #[arg(long, default_value = SOCKET)]
    pub socket: PathBuf,
}

/// What a question about one network can be asked with.
#[derive(Args)]
pub struct AskingOf {
    /// Name or id of the network
    pub network: String,
    #[command(flatten)]
    pub asking: Asking,
}

/// How long the daemon may take for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the engine tells people's names for things; the daemon may not be let near it.
const ENGINE: &str = "/var/run/docker.sock";

/// The engine's socket: that of `DOCKER_HOST` if it is one, as for `docker`.
fn engine_socket() -> PathBuf {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    host.strip_prefix("unix://").unwrap_or(ENGINE).into()
}

/// What the engine of this host calls things; `Err` says why it does not tell.
pub async fn engine() -> Result<Engine, String> {
    let socket = engine_socket();
    docker::ask(&socket).await.map_err(|problem| format!("does not answer at {}: {problem}", socket.display()))
}

/// The name of a network, or else its id.
pub fn named(name: Option<&String>, id: &NetworkId) -> String {
    name.cloned().unwrap_or_else(|| id.short().to_owned())
}

/// A network as the engine of this host knows it; what was typed for its id where it does not tell.
pub async fn network(typed: &str) -> Seen {
    let unknown = || Seen { id: typed.to_owned(), containers: HashMap::new() };
    docker::look(&engine_socket(), typed).await.unwrap_or_else(unknown)
}

/// A container as the engine of this host knows it.
pub async fn container(typed: &str) -> Inspected {
    docker::find(&engine_socket(), typed).await
}

/// `GET path`, read as JSON.
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, Failure> {
    ask(socket, Request::get(path), Vec::new()).await
}

/// `POST path` with `question` as JSON, read as JSON.
pub async fn post<T: DeserializeOwned>(socket: &Path, path: &str, question: &impl Serialize) -> Result<T, Failure> {
    ask(socket, Request::post(path), serde_json::to_vec(question)?).await
}

/// What a refusal says.
#[derive(Deserialize)]
struct Refusal {
    #[serde(rename = "Err")]
    problem: String,
}

async fn ask<T: DeserializeOwned>(socket: &Path, request: Builder, body: Vec<u8>) -> Result<T, Failure> {
    let late = || format!("the daemon at {} does not answer within {} s; see its log", socket.display(), PATIENCE.as_secs());
    timeout(PATIENCE, ask_patiently(socket, request, body)).await.unwrap_or_else(|_| Err(late().into()))
}

/// Why nobody can be asked, and what to do.
fn nobody(socket: &Path, error: &io::Error) -> String {
    let remedy = match error.kind() {
        ErrorKind::PermissionDenied => "only root may ask: type it with sudo",
        _ => "rsnet does not run here. Start it: `docker plugin enable rsnet/driver`, `systemctl start rsnet` or `rsnet serve`",
    };
    format!("connect to {}: {error}; {remedy}", socket.display())
}

async fn ask_patiently<T: DeserializeOwned>(socket: &Path, request: Builder, body: Vec<u8>) -> Result<T, Failure> {
    let stream = UnixStream::connect(socket).await.map_err(|error| nobody(socket, &error))?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let request = request.header("Host", "rsnet").body(Full::<Bytes>::from(body))?;
    let answered = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        response.into_body().collect().await.map(|body| (status, body.to_bytes()))
    };
    let (answer, _) = tokio::join!(answered, connection);
    match answer? {
        (status, body) if status.is_success() => Ok(serde_json::from_slice(&body)?),
        (StatusCode::NOT_FOUND, _) => {
            Err("the daemon does not know that question: it is of another version; compare `rsnet version`".into())
        }
        (_, body) => Err(serde_json::from_slice::<Refusal>(&body)?.problem.into()),
    }
}
