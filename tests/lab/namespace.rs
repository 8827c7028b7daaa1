//! A host or a container as bare namespaces, for tests that need no engine.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// How long anything may take that is to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a shell command in the namespaces of the calling thread and returns what it wrote.
#[track_caller]
pub fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Tries until there is a result.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Some(result) => return result,
            None => assert!(Instant::now() < deadline, "{what}: not in {PATIENCE:?}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The mounts and links of this thread, and of those that it makes, are a host's of its own.
pub fn become_a_host() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    run("ip link set lo up");
}

/// A network namespace like those that the engine makes: with loopback only, mounted at `name` in `directory`.
pub fn sandbox(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, "").unwrap();
    run(&format!("unshare --net={} ip link set lo up", path.display()));
    path
}

/// Runs `work` on a thread inside.
pub fn within<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    };
    std::thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}
