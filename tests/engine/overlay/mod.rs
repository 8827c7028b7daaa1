//! Networks that hosts share: hosts with an engine and an rsnet each, and one Consul, on one segment.

mod faults;
mod reach;
mod refusals;
mod size;
mod soak;
mod transport;
mod truth;
mod witness;

use std::net::IpAddr;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::compose::COMPOSE;
use crate::lab::{Engine, Host, HostSpec, Lab, Output, PATIENCE, Process, wait_until};
use crate::traffic::{Place, addresses, run};
pub use faults::*;
pub use reach::*;
pub use refusals::*;
pub use soak::*;
pub use transport::*;

const CONSUL: &str = "/var/cache/rsnet/consul/usr/bin/consul";
/// The options of every network here.
const NETWORK: &str = "-d rsnet --ipam-driver rsnet -o mode=overlay";

/// Hosts on one segment, and their Consul.
pub struct Cluster {
    pub hosts: Vec<Host>,
    pub consul: Consul,
    _lab: Lab,
}

pub struct Consul {
    pub machine: Host,
    process: Option<Process>,
}

impl Consul {
    fn start(machine: Host) -> Consul {
        let mut consul = Consul { machine, process: None };
        consul.start_again();
        consul
    }

    /// With all that it had: it keeps its keys on the machine's disk.
    pub fn start_again(&mut self) {
        let address = self.machine.ipv4();
        let agent = format!("{CONSUL} agent -server -bootstrap -data-dir /var/lib/consul -bind {address} -client '{address} 127.0.0.1'");
        self.process = Some(self.machine.spawn("consul", &agent));
        wait_until("Consul to have a leader", PATIENCE, || match self.sh("kv put probe 1") {
            seen if seen.succeeded() => Ok(()),
            seen => Err(seen.to_string()),
        });
    }

    pub fn kill(&mut self) {
        self.process.take().expect("Consul runs").end_by(Signal::SIGKILL);
    }

    pub fn sh(&self, arguments: &str) -> Output {
        self.machine.sh(&format!("{CONSUL} {arguments}"))
    }
}

impl Cluster {
    pub fn new(engine: Engine, count: usize, settings: &str) -> Cluster {
        Cluster::prepared(engine, count, settings, |_| ())
    }

    /// With something done to each host before its rsnet starts.
    pub fn prepared(engine: Engine, count: usize, settings: &str, prepare: impl Fn(&Host)) -> Cluster {
        let lab = Lab::new();
        let segment = lab.segment(["10.77.0.0/24", "fd77::/64"]);
        let consul = Consul::start(lab.station("consul", &[&segment]));
        let project = Path::new(env!("CARGO_MANIFEST_DIR"));
        let spec = |n| HostSpec::new(&format!("h{n}")).engine(engine).on(&[&segment]).showing(project).showing(Path::new(COMPOSE));
        let hosts: Vec<Host> = (1..=count).map(|n| lab.make(&spec(n))).collect();
        let cluster = Cluster { hosts, consul, _lab: lab };
        for host in &cluster.hosts {
            prepare(host);
            cluster.start_rsnet(host, settings);
        }
        cluster
    }

    pub fn start_rsnet(&self, host: &Host, settings: &str) {
        host.start_rsnet_with(&format!("{} {settings}", self.settings()));
    }

    /// What each rsnet is told of the store.
    pub fn settings(&self) -> String {
        format!("RSNET_STORE=consul://{}:8500/rsnet", self.consul.machine.ipv4())
    }

    pub fn create(&self, arguments: &str) {
        self.hosts.iter().for_each(|host| drop(host.docker(&format!("network create {NETWORK} {arguments}")).ok().to_owned()));
    }

    /// A container on each host, `c1` on `h1` …, and their addresses on the network.
    pub fn run(&self, network: &str, flags: &str) -> Vec<Vec<IpAddr>> {
        let run = |(n, host): (usize, &Host)| {
            let name = format!("c{}", n + 1);
            run(host, &name, &format!("--network {network} {flags}"));
            addresses(host, &name, network)
        };
        self.hosts.iter().enumerate().map(run).collect()
    }

    /// The container of the nth host.
    pub fn place(&self, n: usize) -> Place<'_> {
        Place::Container(&self.hosts[n], ["c1", "c2", "c3"][n])
    }
}

/// Both ways into a container, where the engine knows both.
fn ways(engine: Engine) -> &'static [&'static str] {
    match engine {
        Engine::V28_5 => &["engine", "direct"],
        _ => &["engine"],
    }
}
