//! A process that runs on in a machine while the test does other things: a daemon, a server, a ping.

use super::output::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The environment of everything that runs in the lab, the same on every developer's machine.
pub const ENVIRONMENT: [(&str, &str); 5] = [
    ("PATH", "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
    ("TERM", "dumb"),
    ("RUST_BACKTRACE", "1"),
];

/// A running process of a machine. It is killed when dropped.
pub struct Process {
    what: String,
    child: Child,
    /// The process itself, as the test's own pid namespace numbers it.
    pub pid: i32,
    /// Where its standard output and error go.
    pub log: PathBuf,
}

impl Process {
    /// Starts `command`, which enters a machine by `nsenter --pid`; what it prints is added to `log`.
    pub fn start(what: &str, mut command: Command, log: &Path) -> Process {
        let file = open_log(log);
        let again = file.try_clone().expect("duplicate the log's file");
        command.stdin(Stdio::null()).stdout(file).stderr(again);
        let child = command.spawn().unwrap_or_else(|e| panic!("start {what}: {e}"));
        let pid = only_child(child.id()).unwrap_or_else(|| panic!("start {what}: it ended at once, see {}", log.display()));
        Process { what: what.to_string(), child, pid, log: log.to_path_buf() }
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid), signal);
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap_or_else(|e| panic!("wait for {}: {e}", self.what))
    }

    /// Waits until it has ended of itself.
    #[track_caller]
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let what = format!("{} to end", self.what);
        wait_until(&what, patience, || self.ended().ok_or_else(|| "it runs on".to_string()))
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    #[track_caller]
    pub fn stop(mut self, patience: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait(patience)
    }

    /// Sends a signal and waits for the end.
    #[track_caller]
    pub fn end_by(mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.wait(super::PATIENCE)
    }

    /// What it has printed so far.
    pub fn printed(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The pid of the one process that `parent` forked: `unshare --fork` and `nsenter --pid` do so once. None if the parent ends first.
pub fn only_child(parent: u32) -> Option<i32> {
    let children = format!("/proc/{parent}/task/{parent}/children");
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        let text = std::fs::read_to_string(&children).ok()?;
        if let Some(pid) = text.split_whitespace().next() {
            return pid.parse().ok();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

fn open_log(log: &Path) -> File {
    let open = OpenOptions::new().create(true).append(true).open(log);
    open.unwrap_or_else(|e| panic!("open the log {}: {e}", log.display()))
}
