//! Threads that hold what was made in sandboxes and goes with a file descriptor.
//!
//! Each has descriptors of its own. For when a process is killed, the kernel closes its descriptors one after the other, and to close some takes a
//! grace period of 15 ms: a thousand of them in one table would be 15 s in which what they stand for still stands, and the process does not
//! end. Tables of their own are closed side by side.
//!
//! What runs here must not wake a task of the runtime: that is a write to a descriptor which these threads do not have.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use nix::libc;
use nix::sched::{CloneFlags, setns};
use parking_lot::Mutex;

use super::sandbox::Sandbox;

/// How many threads there are at most. Each has its share of all that is held.
const MOST: usize = 32;

type Job<T> = Box<dyn FnOnce(&mut BTreeMap<usize, T>) + Send>;

/// The threads, none before there is something to hold.
pub struct Holders<T>(Mutex<Threads<T>>);

struct Threads<T> {
    queues: Vec<Sender<Job<T>>>,
    /// How many things were held so far.
    count: usize,
}

/// Something held. Dropping it has it let go, which nobody waits for.
pub struct Held<T: Send + 'static> {
    number: usize,
    queue: Sender<Job<T>>,
}

impl<T> Default for Holders<T> {
    fn default() -> Self {
        Holders(Mutex::new(Threads { queues: Vec::new(), count: 0 }))
    }
}

impl<T: Send + 'static> Holders<T> {
    /// Makes something in a sandbox and holds it. Blocks while it is made. Not to be called in a sandbox, where the threads would be at home.
    pub fn hold<M>(&self, sandbox: &Sandbox, make: M) -> io::Result<Held<T>>
    where
        M: FnOnce() -> io::Result<T> + Send + 'static,
    {
        let (number, queue) = self.0.lock().next()?;
        let (tell, answer) = channel();
        let sandbox = sandbox.clone();
        let job: Job<T> = Box::new(move |held| {
            let made = made_in(&sandbox, make);
            // who asked waits for it
            let _ = tell.send(made.map(|made| drop(held.insert(number, made))));
        });
        queue.send(job).map_err(|_| ended())?;
        answer.recv().map_err(|_| ended())??;
        Ok(Held { number, queue })
    }
}

fn ended() -> io::Error {
    io::Error::other("a defect in rsnet: a thread that holds what was made in sandboxes has ended, see the log")
}

impl<T: Send + 'static> Threads<T> {
    /// A number of its own for what is to be held, and who is to hold it.
    fn next(&mut self) -> io::Result<(usize, Sender<Job<T>>)> {
        if self.queues.len() < MOST {
            let (queue, jobs) = channel();
            thread::Builder::new().name("rsnet-holder".into()).spawn(move || work(&jobs))?;
            self.queues.push(queue);
        }
        let number = self.count;
        self.count += 1;
        // one after the other, and the new one first
        Ok((number, self.queues[number % MOST].clone()))
    }
}

/// The thread is back when it is made: who stands in a sandbox keeps it.
fn made_in<T>(sandbox: &Sandbox, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let home = File::open("/proc/thread-self/ns/net")?;
    sandbox.enter()?;
    let made = make();
    setns(home, CloneFlags::CLONE_NEWNET)?;
    made
}

fn work<T>(jobs: &Receiver<Job<T>>) {
    have_own_descriptors();
    let mut held = BTreeMap::new();
    while let Ok(job) = jobs.recv() {
        job(&mut held);
    }
}

/// `close_range` (Linux 5.9) with `CLOSE_RANGE_UNSHARE`: standard input and output stay. Where it is refused the thread goes on with the
/// process's own descriptors, and a kill takes longer.
fn have_own_descriptors() {
    const UNSHARE: libc::c_uint = 2;
    // SAFETY: it takes three integers. It closes this thread's copies alone, none of which anything on this thread has: it has just begun.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, UNSHARE) };
    if result != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "a thread has no descriptors of its own");
    }
}

impl<T: Send + 'static> Held<T> {
    /// Lets it go, and blocks until it is gone.
    pub fn let_go(self) {
        let (tell, gone) = channel::<()>();
        let number = self.number;
        let job: Job<T> = Box::new(move |held| {
            drop(held.remove(&number));
            drop(tell);
        });
        // the answer is that nobody is left to tell
        let _ = self.queue.send(job).map(|()| gone.recv());
    }
}

impl<T: Send + 'static> Drop for Held<T> {
    fn drop(&mut self) {
        let number = self.number;
        // the thread lives as long as this
        let _ = self.queue.send(Box::new(move |held| drop(held.remove(&number))));
    }
}
