//! Bodies: whole before a call begins, in bounded time and memory.

use std::error::Error;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::LengthLimitError;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::failure;
use super::guests::Guest;

/// Bytes. A container with 65,535 published ports asks in 6 MB.
const LARGEST: usize = 8 << 20;
/// Bytes. What most calls are far below; larger ones are read a few at a time.
const ORDINARY: u64 = 64 << 10;
/// How many larger bodies are in memory at a time: 64 MB at most.
static LARGE: Semaphore = Semaphore::const_new(8);
/// The engine writes a request in one go: what has not come after this time will not come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for the whole body; only then is it a call.
pub async fn whole(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let reading = async {
        let small = length.or(Some(0).filter(|_| !parts.headers.contains_key(header::TRANSFER_ENCODING)));
        // never closed
        let room = if small.is_some_and(|length| length <= ORDINARY) { None } else { LARGE.acquire().await.ok() };
        (read(body, length).await, room)
    };
    let (read, _room) = match timeout(PATIENCE, reading).await {
        Ok((Ok(bytes), room)) => (bytes, room),
        Ok((Err(refusal), _)) => return refusal,
        Err(_) => return failure(StatusCode::REQUEST_TIMEOUT, &format!("the body did not come whole within {PATIENCE:?}")),
    };
    let _call = parts.extensions.get::<Guest>().map(Guest::call);
    next.run(Request::from_parts(parts, Body::from(read))).await
}

async fn read(body: Body, length: Option<u64>) -> Result<Bytes, Response> {
    let too_large = || failure(StatusCode::PAYLOAD_TOO_LARGE, &format!("the body is larger than {LARGEST} bytes"));
    if length.is_some_and(|length| length > LARGEST as u64) {
        return Err(too_large());
    }
    to_bytes(body, LARGEST).await.map_err(|error| match error.source() {
        Some(source) if source.is::<LengthLimitError>() => too_large(),
        _ => failure(StatusCode::BAD_REQUEST, &format!("the body cannot be read: {error}")),
    })
}
