//! Asks the running daemon.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper::http::request::Builder;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use super::Failure;
use crate::docker::{self, Seen};

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

/// Prints an answer as it is.
pub fn print_json(answer: &impl Serialize) -> Result<(), Failure> {
    println!("{}", serde_json::to_string_pretty(answer)?);
    Ok(())
}

/// Where the engine tells people's names for things; a managed plugin cannot ask there.
const ENGINE: &str = "/var/run/docker.sock";

/// A network as the engine of this host knows it; what was typed for its id where it does not tell.
pub async fn network(typed: &str) -> Seen {
    let unknown = || Seen { id: typed.to_owned(), containers: HashMap::new() };
    docker::look(Path::new(ENGINE), typed).await.unwrap_or_else(unknown)
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
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        format!(
            "connect to {}: {error}; is rsnet running? Start it with `rsnet serve` or `docker plugin enable rsnet/driver`",
            socket.display()
        )
    })?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let request = request.header("Host", "rsnet").body(Full::<Bytes>::from(body))?;
    let answered = async move {
        let response = sender.send_request(request).await?;
        let done = response.status().is_success();
        response.into_body().collect().await.map(|body| (done, body.to_bytes()))
    };
    let (answer, _) = tokio::join!(answered, connection);
    match answer? {
        (true, body) => Ok(serde_json::from_slice(&body)?),
        (false, body) => Err(serde_json::from_slice::<Refusal>(&body)?.problem.into()),
    }
}
