//! Asks the running daemon.

use std::path::Path;

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::Failure;

/// Where the daemon listens on the host, as a process and as a managed plugin.
pub const SOCKET: &str = "/run/docker/plugins/rsnet.sock";

/// `GET path`, read as JSON.
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, Failure> {
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        format!(
            "connect to {}: {error}; is rsnet running? Start it with `rsnet serve` or `docker plugin enable rsnet/driver`",
            socket.display()
        )
    })?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header("Host", "rsnet").body(Empty::<Bytes>::new())?;
    let (response, _) = tokio::join!(
        async move {
            let response = sender.send_request(request).await?;
            response.into_body().collect().await
        },
        connection
    );
    Ok(serde_json::from_slice(&response?.to_bytes())?)
}
