//! The unix sockets: made before anything is served, gone after the last answer.

use std::io;
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// The engine keeps six idle connections; what is beyond this many waits in the socket's queue.
const CONNECTIONS: usize = 256;
/// A request that does not come whole within this time is dropped; the engine's own idle limit is 30 s.
const PATIENCE: Duration = Duration::from_secs(30);

/// Listening sockets, and the files to remove in the end.
#[derive(Default)]
pub struct Sockets {
    listeners: Vec<UnixListener>,
    files: Vec<PathBuf>,
}

impl Sockets {
    /// Makes a socket at each path, in place of one that nobody listens to.
    pub fn bind(paths: &[PathBuf]) -> io::Result<Self> {
        let mut sockets = Sockets::default();
        for path in paths {
            sockets.listeners.push(listen(path).map_err(|error| named(path, &error))?);
            sockets.files.push(path.clone());
        }
        Ok(sockets)
    }

    /// Adds a socket that systemd holds; its file stays.
    pub fn adopt(&mut self, listener: StdListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        self.listeners.push(UnixListener::from_std(listener)?);
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.listeners.is_empty()
    }
}

impl Drop for Sockets {
    /// A socket file that nobody listens to costs the engine 15 s at each look.
    fn drop(&mut self) {
        for file in &self.files {
            if let Err(error) = std::fs::remove_file(file) {
                debug!(file = %file.display(), %error, "socket file is gone already");
            }
        }
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && UnixStream::connect(path).is_err() => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        result => result,
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => "; another rsnet is running",
        io::ErrorKind::PermissionDenied => "; rsnet runs as root",
        _ => "",
    };
    io::Error::new(error.kind(), format!("listen on {}: {error}{hint}", path.display()))
}

/// Answers until `stop`, then finishes the calls under way and removes the socket files.
pub async fn serve(mut sockets: Sockets, router: Router, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let tasks = TaskTracker::new();
    for listener in sockets.listeners.drain(..) {
        tasks.spawn(accept(listener, router.clone(), room.clone(), tasks.clone(), stop.clone()));
    }
    stop.cancelled().await;
    tasks.close();
    tasks.wait().await;
}

async fn accept(listener: UnixListener, router: Router, room: Arc<Semaphore>, tasks: TaskTracker, stop: CancellationToken) {
    loop {
        let next = async {
            let place = room.clone().acquire_owned().await;
            (listener.accept().await, place)
        };
        let (stream, place) = tokio::select! {
            () = stop.cancelled() => return,
            (stream, Ok(place)) = next => (stream, place),
        };
        match stream {
            Ok((stream, _)) => drop(tasks.spawn(converse(TokioIo::new(stream), router.clone(), place, stop.clone()))),
            // out of file descriptors, most likely: others will be closed
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: TokioIo<tokio::net::UnixStream>, router: Router, _place: OwnedSemaphorePermit, stop: CancellationToken) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(64 << 10)
        .serve_connection(stream, TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended");
    }
}
