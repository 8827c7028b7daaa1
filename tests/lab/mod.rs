//! The lab: Docker hosts, LAN machines and routers on one machine, made of namespaces.
//!
//! A test makes a [`Lab`], segments in it, and hosts on the segments; every host has its own network, mounts, processes, cgroups and
//! disk, and where asked its own Docker Engine. All of it is gone when the values are dropped, when the test panics, and when the test
//! is killed: a host lives only as long as the pipe that its first process reads from ([`space`]).
//!
//! What a test asserts is what the other side saw. A failure prints what was run, what was seen and what was expected; the logs of
//! every host's engine and rsnet are kept under `target/lab-logs/<test>/` and their tails are printed.
//!
//! Owns: everything outside rsnet that a test on a real engine needs. Must not: know rsnet's code; it only starts the program.
#![allow(dead_code)] // every test binary includes the whole lab and uses its part of it

mod cgroup;
mod disk;
mod host;
mod http;
mod output;
mod process;
mod segment;
mod space;

pub use host::{Engine, Host, HostSpec};
pub use output::{Output, wait_until};
#[allow(unused_imports)]
pub use process::Process;
pub use segment::Segment;
#[allow(unused_imports)]
pub use space::spawn_in;

use space::Space;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// How long anything in the lab may take before it counts as failed.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// A script that sends a line, as `GET / HTTP/1.0`, and an empty one to `10.0.0.1:80`, behind which may stand options of socat's. It prints what is
/// answered, and waits ten seconds for that.
pub fn asks(line: &str, to: &str) -> String {
    format!("printf '{line}\\r\\n\\r\\n' | socat -t10 -T10 - TCP:{to}")
}

/// The same for a page; a connection must stand after two seconds.
pub fn asks_for(path: &str, at: &str) -> String {
    asks(&format!("GET {path} HTTP/1.0"), &format!("{at},connect-timeout=2"))
}

/// Labs made by this process so far; part of their names.
static LABS: AtomicU32 = AtomicU32::new(0);

/// One test's set of machines and wires.
pub struct Lab {
    inner: Arc<Inner>,
}

/// What segments and hosts keep alive: the wires.
struct Inner {
    /// `rsl<pid>-<n>`, the prefix of every directory and cgroup of this lab.
    name: String,
    /// `target/lab-logs/<test>`.
    logs: PathBuf,
    /// The namespace that holds the segments' bridges.
    switch: Space,
    /// Links and bridges made so far; part of their names.
    wires: AtomicU32,
}

impl Lab {
    /// An empty lab. Removes first what labs of dead processes left behind.
    ///
    /// Panics without root: the tests run as root or they fail, they never pass by not running.
    pub fn new() -> Lab {
        assert!(nix::unistd::geteuid().is_root(), "the tests on real hosts need root (they make namespaces): run `sudo make test`");
        disk::sweep();
        cgroup::sweep();
        let name = format!("rsl{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::SeqCst));
        let inner = Inner { logs: log_directory(), switch: Space::new(&format!("{name}-switch")), wires: AtomicU32::new(0), name };
        Lab { inner: Arc::new(inner) }
    }

    /// A segment (an Ethernet) with one prefix or two, `["10.77.0.0/24", "fd77::/64"]`.
    pub fn segment<const N: usize>(&self, prefixes: [&str; N]) -> Segment {
        Segment::new(&self.inner, &prefixes)
    }

    /// A LAN machine without Docker, on these segments: it serves, and it asks from the outside.
    pub fn station(&self, name: &str, segments: &[&Segment]) -> Host {
        Host::new(&self.inner, &HostSpec::new(name).on(segments))
    }

    /// A machine that forwards between these segments. Hosts made after it get it as their default gateway.
    pub fn router(&self, name: &str, segments: &[&Segment]) -> Host {
        let router = self.station(name, segments);
        let on = "net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1";
        router.sh(&format!("sysctl -q -w {on}")).ok();
        for segment in segments {
            segment.route_by(&router);
        }
        router
    }

    /// A Docker host on these segments, its engine running, the image `box` there. The daemon rsnet is not started.
    pub fn host(&self, name: &str, engine: Engine, segments: &[&Segment]) -> Host {
        self.make(&HostSpec::new(name).engine(engine).on(segments))
    }

    /// A host as specified, its engine (if it has one) running.
    pub fn make(&self, spec: &HostSpec) -> Host {
        let host = self.boot(spec);
        if spec.has_engine() {
            host.start_dockerd();
        }
        host
    }

    /// A host as specified, with nothing started on it.
    pub fn boot(&self, spec: &HostSpec) -> Host {
        Host::new(&self.inner, spec)
    }
}

impl Default for Lab {
    fn default() -> Lab {
        Lab::new()
    }
}

/// `target/lab-logs/<test>`, made if missing. A test's thread carries its name.
fn log_directory() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target/tmp has a parent");
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("unnamed").replace("::", ".");
    let logs = target.join("lab-logs").join(test);
    std::fs::create_dir_all(&logs).unwrap_or_else(|e| panic!("create {}: {e}", logs.display()));
    logs
}

/// Runs this machine's `ip` in the network namespace of the process `pid`; panics if it fails.
#[track_caller]
fn ip(pid: i32, args: &str) {
    try_ip(pid, args).ok();
}

/// Runs this machine's `ip` in the network namespace of the process `pid`.
fn try_ip(pid: i32, args: &str) -> Output {
    let mut command = std::process::Command::new("nsenter");
    command.arg(format!("--net=/proc/{pid}/ns/net")).arg("ip").args(args.split_whitespace());
    Output::of("the lab's wiring", &format!("ip {args}"), command)
}
