//! Networks that hosts share: hosts with an engine and an rsnet each, and one Consul, on one segment.

use crate::lab::{Engine, Host, HostSpec, Lab, Output, PATIENCE, Process, Segment, wait_until};

const CONSUL: &str = "/var/cache/rsnet/consul/usr/bin/consul";
/// The options of every network here.
const NETWORK: &str = "-d rsnet --ipam-driver rsnet -o mode=overlay";

/// Hosts on one segment, and their Consul.
pub struct Cluster {
    pub hosts: Vec<Host>,
    pub consul: Consul,
    pub segment: Segment,
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
        self.process.take().map(|process| process.end_by(nix::sys::signal::Signal::SIGKILL));
    }

    pub fn sh(&self, arguments: &str) -> Output {
        self.machine.sh(&format!("{CONSUL} {arguments}"))
    }
}

impl Cluster {
    pub fn new(engine: Engine, count: usize, settings: &str) -> Cluster {
        let lab = Lab::new();
        let segment = lab.segment(["10.77.0.0/24", "fd77::/64"]);
        let consul = Consul::start(lab.station("consul", &[&segment]));
        let hosts: Vec<Host> = (1..=count).map(|n| lab.make(&HostSpec::new(&format!("h{n}")).engine(engine).on(&[&segment]))).collect();
        let cluster = Cluster { hosts, consul, segment, _lab: lab };
        cluster.hosts.iter().for_each(|host| cluster.start_rsnet(host, settings));
        cluster
    }

    pub fn start_rsnet(&self, host: &Host, settings: &str) {
        host.start_rsnet_with(&format!("RSNET_STORE=consul://{}:8500/rsnet {settings}", self.consul.machine.ipv4()));
    }

    pub fn create(&self, arguments: &str) {
        self.hosts.iter().for_each(|host| drop(host.docker(&format!("network create {NETWORK} {arguments}")).ok().to_owned()));
    }

    /// A container on each host, `c1` on `h1` …, and their addresses.
    pub fn run(&self, arguments: &str) -> Vec<Vec<String>> {
        let run = |(n, host): (usize, &Host)| {
            let name = format!("c{}", n + 1);
            host.docker(&format!("run -d --name {name} {arguments} box sleep 10000")).ok();
            addresses(host, &name)
        };
        self.hosts.iter().enumerate().map(run).collect()
    }
}

fn addresses(host: &Host, container: &str) -> Vec<String> {
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}";
    host.docker(&format!("inspect -f '{format}' {container}")).ok().split_whitespace().map(str::to_owned).collect()
}

/// Both ways into a container, where the engine knows both.
fn ways(engine: Engine) -> &'static [&'static str] {
    match engine {
        Engine::V28_5 => &["engine", "direct"],
        _ => &["engine"],
    }
}

/// Every container reaches every other by every address, with the first packet.
#[track_caller]
fn all_meet(cluster: &Cluster, addresses: &[Vec<String>]) {
    for (n, host) in cluster.hosts.iter().enumerate() {
        for (m, others) in addresses.iter().enumerate() {
            for address in others {
                let seen = host.in_container(&format!("c{}", n + 1), &format!("ping -c 1 -W 2 {address}"));
                assert!(seen.succeeded(), "c{} to {address} of c{}: {seen}", n + 1, m + 1);
            }
        }
    }
}

pub fn containers_on_three_hosts_reach_each_other(engine: Engine) {
    for way in ways(engine) {
        let cluster = Cluster::new(engine, 3, "");
        cluster.create(&format!("--ipv6 --subnet 10.50.0.0/16 --subnet fd50::/64 -o attach={way} blue"));
        let addresses = cluster.run("--network blue");
        assert!(addresses.iter().all(|both| both.len() == 2), "{addresses:?}");
        all_meet(&cluster, &addresses);
    }
}
