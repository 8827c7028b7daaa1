//! The threads that stand in a host's network namespace, and how a closure gets into another one.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs, statfs};
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::wire::Wire;

/// How long a caller waits for a job: far above what any takes, so that only a hang ends it.
const PATIENCE: Duration = Duration::from_secs(30);

type Job = Box<dyn FnOnce(&mut Wire) + Send>;

/// A few threads with a netlink socket each. A thread inherits the network namespace of the one that made it, so whatever a job does
/// (netlink, `/proc/sys/net`, sockets) happens in the namespace in which the crew was mustered.
pub(super) struct Crew {
    queue: Arc<Queue>,
}

/// Jobs in the order of their coming. One wakes one thread and no other: to wake a thread takes as long as most jobs do.
#[derive(Default)]
struct Queue {
    jobs: Mutex<Jobs>,
    come: Condvar,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    /// The crew is gone: no more will come.
    over: bool,
}

impl Crew {
    pub fn muster(size: usize) -> io::Result<Self> {
        let crew = Crew { queue: Arc::default() };
        for _ in 0..size {
            let (wire, queue) = (Wire::open()?, crew.queue.clone());
            thread::Builder::new().name("rsnet-kernel".into()).spawn(move || work(wire, &queue))?;
        }
        Ok(crew)
    }

    /// Runs `job` on one of the threads; to the end, even if the caller no longer waits.
    pub async fn run<T, J>(&self, job: J) -> io::Result<T>
    where
        T: Send + 'static,
        J: FnOnce(&mut Wire) -> io::Result<T> + Send + 'static,
    {
        let (tell, answer) = oneshot::channel();
        let job: Job = Box::new(move |wire| drop(tell.send(job(wire))));
        self.queue.jobs.lock().waiting.push_back(job);
        self.queue.come.notify_one();
        match timeout(PATIENCE, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(io::Error::other("a defect in rsnet: the job panicked, see the log")),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("the kernel is not done after {} s", PATIENCE.as_secs()))),
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.queue.jobs.lock().over = true;
        self.queue.come.notify_all();
    }
}

impl Queue {
    /// The next job, once there is one; none: the crew is gone, and all that came was done.
    fn next(&self) -> Option<Job> {
        let none_yet = |jobs: &mut Jobs| jobs.waiting.is_empty() && !jobs.over;
        let mut jobs = self.jobs.lock();
        self.come.wait_while(&mut jobs, none_yet);
        jobs.waiting.pop_front()
    }
}

fn work(mut wire: Wire, queue: &Queue) {
    while let Some(job) = queue.next() {
        // A panic costs its own caller an answer, not the others a thread; the hook has logged it.
        let _ = catch_unwind(AssertUnwindSafe(|| job(&mut wire)));
    }
}

/// Whether a namespace is mounted at `path`. Engines up to 27 name sandboxes that are none yet.
pub(super) fn is_sandbox(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC)
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
