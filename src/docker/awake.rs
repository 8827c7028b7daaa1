//! When the engine can be asked without being started by it.
//!
//! systemd holds the engine's socket (`docker.socket`) and starts an engine for whoever connects. Somebody who has stopped his engine wants it to stay
//! so. What tells that one runs is its file `docker.pid`, beside its socket (dockerd's `--pidfile`); it stands from the engine's start to its end.

use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

use super::AGAIN;

/// For so long an engine that tells nothing any more may be at its end: it stops its containers, and what connects meanwhile waits in the socket
/// for the next one. dockerd's `--shutdown-timeout` is 15 s unless set.
const ENDING: Duration = Duration::from_secs(60);

/// One run of the engine: when it wrote its file. None where nobody would start it, and so nothing has to be known.
pub type Run = Option<SystemTime>;

/// Waits until the engine at `socket` runs, and not the one that has just ended.
pub async fn awake(socket: &Path, ended: Run) -> Run {
    let patience = Instant::now() + ENDING;
    while is_held(socket) {
        match run(socket) {
            None => {}
            same if same == ended && Instant::now() < patience => {}
            run => return run,
        }
        sleep(AGAIN).await;
    }
    None
}

fn run(socket: &Path) -> Run {
    std::fs::metadata(socket.with_file_name("docker.pid")).and_then(|file| file.modified()).ok()
}

/// Whether systemd may hold the socket: it runs the host that this directory is of.
fn is_held(socket: &Path) -> bool {
    socket.with_file_name("systemd").join("system").exists()
}
