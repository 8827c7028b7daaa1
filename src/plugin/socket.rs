//! The unix sockets: made before anything is served, gone after the last answer.

use std::io;
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::guests::{Guests, Seat};

/// A request's head that does not come whole within this time is dropped; the engine's own idle limit is 30 s.
const PATIENCE: Duration = Duration::from_secs(30);
/// What connections without a call under way still have, once the daemon is asked to end, to finish their request.
const FAREWELL: Duration = Duration::from_secs(1);

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
    let (guests, tasks) = (Arc::new(Guests::default()), TaskTracker::new());
    for listener in sockets.listeners.drain(..) {
        tasks.spawn(accept(listener, router.clone(), guests.clone(), tasks.clone(), stop.clone()));
    }
    stop.cancelled().await;
    tasks.close();
    tasks.wait().await;
}

async fn accept(listener: UnixListener, router: Router, guests: Arc<Guests>, tasks: TaskTracker, stop: CancellationToken) {
    loop {
        let next = async {
            let (stream, _) = listener.accept().await?;
            Ok::<_, io::Error>((stream, guests.admit().await))
        };
        let next = tokio::select! {
            () = stop.cancelled() => return,
            next = next => next,
        };
        match next {
            Ok((stream, seat)) => drop(tasks.spawn(converse(TokioIo::new(stream), router.clone(), seat, stop.clone()))),
            // out of file descriptors, most likely: others will be closed
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: TokioIo<tokio::net::UnixStream>, router: Router, seat: Seat, stop: CancellationToken) {
    let guest = seat.guest();
    let answers = TowerToHyperService::new(router);
    // who asks is to be found in the request
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(guest.clone());
        answers.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(64 << 10)
        .serve_connection(stream, service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = guest.dismissed() => return debug!("connection ended to make room"),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match timeout(FAREWELL, &mut connection).await {
                Err(_) if !guest.has_call() => return,
                Err(_) => connection.await,
                Ok(ended) => ended,
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended");
    }
}
