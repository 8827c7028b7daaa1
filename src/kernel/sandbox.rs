//! Containers' network namespaces for whoever has business of his own in them: which there are, sockets and work inside.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::crew::{is_sandbox, open_namespace};

/// One container's network namespace. It is known by the kernel's number too: another one at the same path is another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    path: PathBuf,
    number: u64,
}

impl Sandbox {
    /// The one that is at `path` now. None: there is nothing, or (engines up to 27) what is to become one.
    pub fn at(path: &Path) -> Option<Sandbox> {
        let number = fs::metadata(path).ok().filter(|_| is_sandbox(path))?.ino();
        Some(Sandbox { path: path.to_owned(), number })
    }

    /// Runs `job` inside, on a thread of its own. `NotFound`: it is gone.
    pub async fn run<T, J>(&self, job: J) -> io::Result<T>
    where
        T: Send + 'static,
        J: FnOnce() -> io::Result<T> + Send + 'static,
    {
        let (tell, answer) = oneshot::channel();
        let sandbox = self.clone();
        let inside = move || drop(tell.send(sandbox.enter().and_then(|()| job())));
        thread::Builder::new().name("rsnet-sandbox".into()).spawn(inside)?;
        answer.await.unwrap_or_else(|_| Err(io::Error::other("a defect in rsnet: the job in the namespace panicked, see the log")))
    }

    /// The calling thread does nothing else any more.
    pub(super) fn enter(&self) -> io::Result<()> {
        let namespace = open_namespace(&self.path)?;
        if namespace.metadata()?.ino() != self.number {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{} is another network namespace by now", self.path.display())));
        }
        Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
    }
}

impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// How a socket asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    Datagram,
    Stream,
}

/// A socket in the network namespace of the calling thread, not blocking, at any port of `from`, whose packets carry `mark`.
pub fn marked_socket(asks: Asks, from: Ipv4Addr, mark: u32) -> io::Result<OwnedFd> {
    let kind = match asks {
        Asks::Datagram => SockType::Datagram,
        Asks::Stream => SockType::Stream,
    };
    let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    setsockopt(&socket, sockopt::Mark, &mark)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(from, 0)))?;
    Ok(socket)
}

/// Tells that something was mounted or unmounted where this process sees it: so sandboxes come and go.
pub struct Mounts(AsyncFd<File>);

impl Mounts {
    /// From now on. To be called within a tokio runtime.
    pub fn watch() -> io::Result<Self> {
        let table = File::open("/proc/self/mountinfo")?;
        // SAFETY: a `File` owns its descriptor, which stays what it is while the `AsyncFd` holds the file.
        Ok(Mounts(unsafe { AsyncFd::register_with_interest(table, Interest::PRIORITY) }?))
    }

    /// Waits for the next change, or for one since the last call.
    pub async fn changed(&self) -> io::Result<()> {
        self.0.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }
}
