//! The threads that stand in a host's network namespace, and how a closure gets into another one.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs, statfs};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::wire::Wire;

/// How long a caller waits for a job: far above what any takes, so that only a hang ends it.
const PATIENCE: Duration = Duration::from_secs(30);

type Job = Box<dyn FnOnce(&mut Wire) + Send>;

/// A few threads with a netlink socket each. A thread inherits the network namespace of the one that made it, so whatever a job does
/// (netlink, `/proc/sys/net`, sockets) happens in the namespace in which the crew was mustered.
pub(super) struct Crew {
    jobs: Sender<Job>,
}

impl Crew {
    pub fn muster(size: usize) -> io::Result<Self> {
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..size {
            let (wire, queue) = (Wire::open()?, queue.clone());
            thread::Builder::new().name("rsnet-kernel".into()).spawn(move || work(wire, &queue))?;
        }
        Ok(Crew { jobs })
    }

    /// Runs `job` on one of the threads; to the end, even if the caller no longer waits.
    pub async fn run<T, J>(&self, job: J) -> io::Result<T>
    where
        T: Send + 'static,
        J: FnOnce(&mut Wire) -> io::Result<T> + Send + 'static,
    {
        let (tell, answer) = oneshot::channel();
        let job: Job = Box::new(move |wire| drop(tell.send(job(wire))));
        self.jobs.send(job).map_err(|_| io::Error::other("the threads that speak to the kernel have ended"))?;
        match timeout(PATIENCE, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(io::Error::other("a defect in rsnet: the job panicked, see the log")),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("the kernel is not done after {} s", PATIENCE.as_secs()))),
        }
    }
}

fn work(mut wire: Wire, queue: &Mutex<Receiver<Job>>) {
    while let Some(job) = next(queue) {
        // A panic costs its own caller an answer, not the others a thread; the hook has logged it.
        let _ = catch_unwind(AssertUnwindSafe(|| job(&mut wire)));
    }
}

fn next(queue: &Mutex<Receiver<Job>>) -> Option<Job> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// Whether a namespace is mounted at `path`. Engines up to 27 name sandboxes that are none yet.
pub(super) fn is_sandbox(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC)
}

/// Whether the namespace at `path` is no more. Where the engine's mounts do not come through (a managed plugin on a host whose `/run` is
/// private, as without systemd), the file to mount it on is all there is to see: the engine removes that too, within a minute.
pub(super) fn is_gone(path: &Path) -> bool {
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    !is_sandbox(path) && (!path.exists() || come_through(&mounts(), path))
}

/// Whether mounts made by others below `path` come through to this mount namespace, by its `mountinfo` (proc(5)).
fn come_through(mountinfo: &str, path: &Path) -> bool {
    let rows = mountinfo.lines().map(|line| line.split(' ').collect::<Vec<_>>()).filter(|row| row.len() > 6 && path.starts_with(row[4]));
    let innermost = rows.max_by_key(|row| row[4].len());
    innermost.is_none_or(|row| row[6..].iter().take_while(|field| **field != "-").any(|field| field.contains(':')))
}

/// Opens the namespace at `path`: `NotFound` if there is nothing, `InvalidInput` if it is something else.
pub(super) fn open_namespace(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let named = |error: io::Error| io::Error::new(error.kind(), format!("network namespace {}: {error}", path.display()));
    // Without blocking, should the path be a fifo.
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(named)?;
    if fstatfs(&file)?.filesystem_type() == NSFS_MAGIC {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a network namespace", path.display())))
}

/// Runs `job` in `namespace`, on a thread of its own: no thread that does anything else is ever astray, whatever `job` does.
pub(super) fn within<T: Send>(namespace: &File, job: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let entered = move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            job()
        };
        let thread = thread::Builder::new().name("rsnet-sandbox".into()).spawn_scoped(scope, entered)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a defect in rsnet: the job in the namespace panicked, see the log")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_come_through_to_shared_mounts_and_slaves_only() {
        let mounts = "1 0 0:1 / / rw shared:1 - overlay overlay rw\n\
                      2 1 0:2 / /var/run/docker rw,nosuid master:7 - tmpfs tmpfs rw\n\
                      3 1 0:2 / /private rw - tmpfs tmpfs rw\n";
        assert!(come_through(mounts, Path::new("/run/docker/netns/x")));
        assert!(come_through(mounts, Path::new("/var/run/docker/netns/x")));
        assert!(!come_through(mounts, Path::new("/private/netns/x")));
    }
}
