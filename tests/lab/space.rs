//! One machine's namespaces: network, mounts, processes, host name, cgroups.
//!
//! Owns: their making, entering and end. Must not: know what a host is made of.

use super::{cgroup::Cgroup, process};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

/// What the first process of a space does: it reaps what has lost its parent, and it ends when the test does, since its standard input
/// is a pipe from the test. With it ends every process of the space, and with those its namespaces.
const INIT: &str = "echo ready; while read -r _; do :; done";

/// Moves itself into the cgroups named by their `cgroup.procs` files, then becomes the command after `--`.
const JOIN: &str = r#"while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@""#;

/// A set of namespaces that lives until it is dropped.
pub struct Space {
    holder: Child,
    /// The first process inside, as the test's own pid namespace numbers it.
    pub init: i32,
    pub cgroup: Cgroup,
}

impl Space {
    /// New namespaces; `name` names the cgroup and, after its last dash, the machine.
    pub fn new(name: &str) -> Space {
        let cgroup = Cgroup::new(name);
        let mut command = Command::new("sh");
        command.args(["-ec", JOIN, "join"]).args(cgroup.procs_files()).arg("--");
        command.args("unshare --net --mount --pid --uts --ipc --cgroup --fork --kill-child --mount-proc bash -c".split(' '));
        command.arg(format!("hostname {}; ip link set lo up; {INIT}", name.rsplit('-').next().unwrap_or(name)));
        command.env_clear().envs(process::ENVIRONMENT);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.current_dir("/"); // what stands in the root moves along when the root is changed
        let mut holder = command.spawn().expect("start sh");
        await_ready(name, &mut holder);
        let init = process::only_child(holder.id()).expect("unshare forked");
        Space { holder, init, cgroup }
    }

    /// A command that will run inside: all namespaces and the space's root directory.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(self.entered(program));
        command.env_clear().envs(process::ENVIRONMENT);
        command
    }

    /// The same, in the space's cgroup too: for what runs on. (Joining costs milliseconds, a short command does without.)
    pub fn service(&self, program: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-ec", JOIN, "join"]).args(self.cgroup.procs_files());
        command.args(["--", "nsenter"]).args(self.entered(program));
        command.env_clear().envs(process::ENVIRONMENT);
        command
    }

    /// The arguments of `nsenter` that lead inside.
    fn entered(&self, program: &str) -> Vec<String> {
        let all = "--net --mount --pid --uts --ipc --cgroup --root --wd --";
        let target = format!("--target={}", self.init);
        [&target].into_iter().map(String::as_str).chain(all.split(' ')).chain([program]).map(String::from).collect()
    }

    /// Runs `work` in the space's network and mount namespaces, on a thread of its own that ends with it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let open = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", self.init)).expect("the space is alive");
        let (net, mnt) = (open("net"), open("mnt"));
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                unshare(CloneFlags::CLONE_FS).expect("unshare the working directory");
                setns(net, CloneFlags::CLONE_NEWNET).expect("enter the network namespace");
                setns(mnt, CloneFlags::CLONE_NEWNS).expect("enter the mount namespace");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Runs `job` in a network namespace, on a thread of its own.
pub fn spawn_in<T: Send + 'static>(network: File, job: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    std::thread::spawn(move || {
        setns(network, CloneFlags::CLONE_NEWNET).expect("enter the network namespace");
        job()
    })
}

impl Drop for Space {
    /// As pulling the plug: every process inside is killed, and is gone when this returns.
    fn drop(&mut self) {
        self.cgroup.freeze(false); // what is frozen does not die
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.init), nix::sys::signal::SIGKILL);
        let _ = self.holder.wait();
        self.cgroup.remove();
    }
}

/// Waits until the first process of a space says that it is there.
fn await_ready(name: &str, holder: &mut Child) {
    let mut line = String::new();
    let stdout = holder.stdout.take().expect("stdout is piped");
    BufReader::new(stdout).read_line(&mut line).expect("read from the space's first process");
    if line != "ready\n" {
        let mut error = String::new();
        let _ = holder.stderr.take().expect("stderr is piped").read_to_string(&mut error);
        panic!("make the namespaces of {name} with unshare: {error}");
    }
}
