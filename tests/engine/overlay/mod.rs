//! Networks that hosts share: hosts with an engine and an rsnet each, and one Consul, on one segment.

mod builds;
mod faults;
mod first;
mod lodge;
mod names;
mod outage;
mod partition;
mod reach;
mod refusals;
mod resolve;
mod size;
mod soak;
mod spread;
mod transport;
mod truth;
mod underlay;
mod witness;

use std::net::IpAddr;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::compose::COMPOSE;
use crate::lab::{Engine, Host, HostSpec, Lab, Output, PATIENCE, Process, wait_until};
use crate::traffic::{Place, addresses, run};
pub use faults::*;
pub use first::*;
pub use lodge::*;
pub use names::*;
pub use outage::*;
pub use partition::*;
pub use reach::*;
pub use refusals::*;
pub use resolve::*;
pub use soak::*;
pub use spread::*;
pub use transport::*;
pub use underlay::*;

const CONSUL: &str = Host::CONSUL;
/// The options of every network here.
const NETWORK: &str = "-d rsnet --ipam-driver rsnet -o mode=overlay";

/// Hosts on one segment, and their Consul.
pub struct Cluster {
    pub hosts: Vec<Host>,
    /// The one that the hosts ask, and the other servers if there are three.
    pub consul: Consul,
    pub servers: Vec<Consul>,
    _lab: Lab,
}

pub struct Consul {
    pub machine: Host,
    /// How many servers there are, and one of the others.
    joins: String,
    process: Option<Process>,
}

impl Consul {
    fn on(machine: Host, joins: &str) -> Consul {
        Consul { machine, joins: joins.to_owned(), process: None }
    }

    /// With all that it had: it keeps its keys on the machine's disk.
    pub fn start_again(&mut self) {
        self.start();
        wait_until("Consul to have a leader", PATIENCE, || match self.sh("kv put probe 1") {
            seen if seen.succeeded() => Ok(()),
            seen => Err(seen.to_string()),
        });
    }

    pub fn start(&mut self) {
        let (address, joins, name) = (self.machine.ipv4(), &self.joins, &self.machine.name);
        let agent =
            format!("{CONSUL} agent -server {joins} -node {name} -data-dir /var/lib/consul -bind {address} -client '{address} 127.0.0.1'");
        self.process = Some(self.machine.spawn("consul", &agent));
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
        Cluster::made(engine, count, settings, prepare, &["-bootstrap"])
    }

    /// With three Consul servers.
    pub fn on_three_servers(engine: Engine, count: usize) -> Cluster {
        let three = "-bootstrap-expect=3 -retry-join=10.77.0.1 -retry-interval=1s -hcl 'performance { raft_multiplier = 1 }'";
        Cluster::made(engine, count, "", |_| (), &[three; 3])
    }

    /// With one Consul server for each of the flags.
    fn made(engine: Engine, count: usize, settings: &str, prepare: impl Fn(&Host), joins: &[&str]) -> Cluster {
        let lab = Lab::new();
        let segment = lab.segment(["10.77.0.0/24", "fd77::/64"]);
        let server = |(n, joins): (usize, &&str)| Consul::on(lab.station(["consul", "consul2", "consul3"][n], &[&segment]), joins);
        let mut servers: Vec<Consul> = joins.iter().enumerate().map(server).collect();
        let mut consul = servers.remove(0);
        servers.iter_mut().for_each(Consul::start);
        consul.start_again();
        let hosts: Vec<Host> = (1..=count).map(|n| lab.make(&spec(n, engine).on(&[&segment]))).collect();
        let cluster = Cluster { hosts, consul, servers, _lab: lab };
        for host in &cluster.hosts {
            prepare(host);
            cluster.start_rsnet(host, settings);
        }
        cluster
    }

    /// Of machines that stand as they should, with settings for each host.
    pub fn of(lab: Lab, consul: Host, hosts: Vec<Host>, settings: impl Fn(&Host) -> String) -> Cluster {
        let mut consul = Consul::on(consul, "-bootstrap");
        consul.start_again();
        let cluster = Cluster { hosts, consul, servers: vec![], _lab: lab };
        cluster.hosts.iter().for_each(|host| cluster.start_rsnet(host, &settings(host)));
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
        self.create_on(&(0..self.hosts.len()).collect::<Vec<_>>(), arguments);
    }

    /// On some of the hosts, by number.
    pub fn create_on(&self, hosts: &[usize], arguments: &str) {
        hosts.iter().for_each(|n| drop(self.hosts[*n].docker(&format!("network create {NETWORK} {arguments}")).ok().to_owned()));
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
        Place::Container(&self.hosts[n], ["c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8"][n])
    }
}

/// A host, on no segment yet.
fn spec(n: usize, engine: Engine) -> HostSpec {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    HostSpec::new(&format!("h{n}")).engine(engine).showing(project).showing(Path::new(COMPOSE))
}

/// Both ways into a container, where the engine knows both.
fn ways(engine: Engine) -> &'static [&'static str] {
    if engine >= Engine::V28_5 { &["engine", "direct"] } else { &["engine"] }
}
