//! `make bench-overlay`: two hosts on one segment. Docker's own overlay (a Swarm of the two engines), rsnet's, and the bare segment, in turn.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::{Engine, Host, HostSpec, Lab, PATIENCE, Process, wait_until};
use crate::lifecycle::{container, remove, start};
use crate::report::Report;
use crate::traffic::figure;
use crate::{MOVED, NOTHING, Way, goals, me};

pub const DOCKER: Way = Way { name: "Docker overlay", driver: "overlay", options: "{}" };
pub const ENGINE: Way =
    Way { name: "rsnet vxlan, engine", driver: "rsnet", options: r#"{"mode":"overlay","attach":"engine","vxlan_port":"4800"}"# };
pub const DIRECT: Way =
    Way { name: "rsnet vxlan, direct", driver: "rsnet", options: r#"{"mode":"overlay","attach":"direct","vxlan_port":"4801"}"# };
/// Routes on the segment instead of tunnels.
pub const ROUTED: Way = Way {
    name: "rsnet transport=direct",
    driver: "rsnet",
    options: r#"{"mode":"overlay","attach":"direct","transport":"direct","vxlan_port":"4802"}"#,
};
/// From host to host, without containers.
const BARE: Way = Way { name: "bare segment", driver: "", options: "{}" };
/// The first is what the others are compared with.
const ALL: [Way; 6] = [DOCKER, ENGINE, DIRECT, BARE, NOTHING, MOVED];
const WITH_ROUTED: [Way; 7] = [DOCKER, ENGINE, DIRECT, ROUTED, BARE, NOTHING, MOVED];

/// Of one second for each kind of traffic, in a round.
const RUNS: usize = 3;

/// `ROUTED=no` leaves `transport=direct` out.
pub fn measure(quick: bool) {
    let lab = Lab::new();
    let segment = lab.segment(["10.77.0.0/24"]);
    let machine = lab.station("consul", &[&segment]);
    let store = machine.ipv4();
    let _consul = machine.start_consul();
    let [near, far] = ["near", "far"].map(|name| {
        let host = lab.make(&HostSpec::new(name).engine(Engine::V28_5).on(&[&segment]).showing(&me()));
        host.start_rsnet_with(&format!("RSNET_LOG=info RSNET_DATA_DIR=/var/lib/docker/rsnet RSNET_STORE=consul://{store}:8500/rsnet"));
        host
    });
    swarm(&near, &far);
    let _floors = ["nothing", "moved"].map(|kind| near.spawn(kind, &format!("{} floor {kind}", me().display())));
    let ways: &'static [Way] = if std::env::var("ROUTED").is_ok_and(|routed| routed == "no") { &ALL } else { &WITH_ROUTED };
    let mut report = Report::new("Overlay", ways, goals::overlay);
    let pairs: Vec<Pair> = ways.iter().enumerate().map(|(at, way)| Pair::new(&near, &far, *way, at)).collect();
    let rounds = if quick { 2 } else { 11 };
    for at in 1..=rounds {
        eprintln!("overlay: round {at} of {rounds}");
        // each begins in turn
        let (later, first) = pairs.split_at(at % pairs.len());
        let in_turn = || first.iter().chain(later);
        // not right after traffic, which not all have
        in_turn().filter(|pair| !pair.way.driver.is_empty()).for_each(|pair| pair.life(&near, &mut report));
        let talking: Vec<&Pair> = in_turn().filter(|pair| !pair.way.is_floor()).collect();
        // many short runs in turn: what else the machine does in one of them is less than what is to be told apart
        for _ in 0..RUNS {
            talking.iter().for_each(|pair| pair.throughput(&near, &mut report));
        }
        talking.iter().for_each(|pair| pair.answers(&near, &mut report));
    }
}

/// Makes the two engines a Swarm: Docker's overlay needs one.
fn swarm(near: &Host, far: &Host) {
    let address = near.ipv4();
    near.docker(&format!("swarm init --advertise-addr {address}")).ok();
    let token = near.docker("swarm join-token -q manager").ok().trim().to_owned();
    far.docker(&format!("swarm join --advertise-addr {} --token {token} {address}:2377", far.ipv4())).ok();
}

/// A server on the far host and a client on the near one, in one network.
struct Pair {
    way: Way,
    network: String,
    client: Option<String>,
    server: IpAddr,
    /// On the near host, in no network yet.
    guest: String,
    _processes: Vec<Process>,
}

impl Pair {
    fn new(near: &Host, far: &Host, way: Way, at: usize) -> Self {
        let network = if way.driver.is_empty() { "none".to_owned() } else { create(near, far, way, at) };
        let guest = container(near, &json!({ "Image": "box", "Cmd": ["sleep", "9999"] }));
        start(near, &guest);
        let run = |host: &Host| {
            let id = container(host, &json!({ "Image": "box", "Cmd": ["sleep", "9999"], "HostConfig": { "NetworkMode": network } }));
            start(host, &id);
            id
        };
        let serve = [format!("{} answer 5000", me().display()), "iperf3 -s -p 5201".to_owned()];
        if way.driver.is_empty() {
            let processes = serve.iter().enumerate().map(|(at, command)| far.spawn(&format!("bare-{at}"), command)).collect();
            return Pair { way, network, client: None, server: far.ipv4(), guest, _processes: processes };
        }
        if way.is_floor() {
            return Pair { way, network, client: None, server: far.ipv4(), guest, _processes: vec![] };
        }
        let (server, client) = (run(far), run(near));
        let inspect = format!("inspect -f '{{{{range .NetworkSettings.Networks}}}}{{{{.IPAddress}}}}{{{{end}}}}' {server}");
        let address = far.docker(&inspect).ok().trim().parse().expect("an address");
        let name = |at| format!("{}-{at}", way.driver_and_way());
        let processes = serve.iter().enumerate().map(|(at, command)| far.spawn_in_container(&server, &name(at), command)).collect();
        Pair { way, network, client: Some(client), server: address, guest, _processes: processes }
    }

    fn inside(&self, near: &Host, script: &str) -> String {
        match &self.client {
            Some(client) => near.in_container(client, script).ok().to_owned(),
            None => near.sh(script).ok().to_owned(),
        }
    }

    fn throughput(&self, near: &Host, report: &mut Report) {
        let server = self.server;
        for (line, flags) in [("one TCP stream", "-P 1"), ("eight TCP streams", "-P 8"), ("UDP", "-u -b 0 -l 1400")] {
            let busy = processor();
            let script =
                format!("iperf3 -c {server} -p 5201 -t 1 {flags} -J | jq '.end.sum_received.bytes*8/1e9,.end.sum_received.seconds'");
            let seen = self.inside(near, &script);
            let busy = processor() - busy;
            let (gigabits, seconds) = seen.trim().split_once('\n').expect("two figures");
            let (gigabits, seconds) = (figure(gigabits), figure(seconds));
            report.add(&format!("{line}, Gbit/s"), self.way, gigabits / seconds);
            report.add(&format!("{line}, CPU ms a gigabit"), self.way, busy * 1e3 / gigabits);
        }
    }

    fn answers(&self, near: &Host, report: &mut Report) {
        let seen = self.inside(near, &format!("{} latency {}:5000 10000", me().display(), self.server));
        let seen: Vec<f64> = seen.split_whitespace().map(figure).collect();
        let [rate, half, most, worst] = seen[..] else { panic!("four figures: {seen:?}") };
        report.add("questions and answers a second", self.way, rate);
        report.add("µs a round trip", self.way, half);
        report.add("µs a round trip, 99 of 100", self.way, most);
        report.add("µs a round trip, 999 of 1,000", self.way, worst);
    }

    /// Containers that come and go, and when the far host first answers one.
    fn life(&self, near: &Host, report: &mut Report) {
        let ping = json!({
            "Image": "box", "Cmd": ["ping", "-c", "9", self.server.to_string()], "HostConfig": { "NetworkMode": self.network },
        });
        let id = container(near, &ping);
        report.add("container start, ms", self.way, timed(|| start(near, &id)));
        if self.client.is_some() {
            report.add("first reply from the other host, ms late", self.way, first_reply(near, &id));
        }
        remove(near, &id);
        let body = json!({ "Container": self.guest }).to_string();
        let call = |what: &str| {
            let answer = near.api("POST", &format!("/networks/{}/{what}", self.network), &body).expect("an answer of the engine");
            assert!(answer.status < 300, "{what}: {}", answer.body);
        };
        report.add("connect, ms", self.way, timed(|| call("connect")));
        report.add("disconnect, ms", self.way, timed(|| call("disconnect")));
    }
}

/// The network on both hosts; a Swarm's is made once.
fn create(near: &Host, far: &Host, way: Way, at: usize) -> String {
    let name = format!("over-{}", way.driver_and_way().replace([',', '='], "-"));
    let options: Value = serde_json::from_str(way.options).expect("JSON");
    let subnet = format!("10.{}.0.0/20", 90 + at);
    let ipam = if way.driver == "rsnet" { "rsnet" } else { "default" };
    let body = json!({
        "Name": name, "Driver": way.driver, "Options": options, "Attachable": way.driver == "overlay",
        "Scope": if way.driver == "overlay" { "swarm" } else { "local" },
        "IPAM": { "Driver": ipam, "Config": [{ "Subnet": subnet }] },
    });
    let hosts: &[&Host] = if way.driver == "rsnet" { &[near, far] } else { &[near] };
    for host in hosts {
        wait_until("a network", PATIENCE, || {
            let answer = host.api("POST", "/networks/create", &body.to_string()).map_err(|error| error.to_string())?;
            if answer.status < 300 { Ok(()) } else { Err(answer.body) }
        });
    }
    name
}

/// A ping says with which of its packets, one a second, it was answered first.
fn first_reply(near: &Host, id: &str) -> f64 {
    wait_until("the first reply", PATIENCE, || {
        let log = near.docker(&format!("logs {id}"));
        let line = log.ok().lines().find(|line| line.contains("seq=")).map(str::to_owned).ok_or_else(|| log.ok().to_owned())?;
        let number = |after: &str| line.split(after).nth(1).and_then(|rest| rest.split_whitespace().next()).map(figure);
        Ok(number("seq=").unwrap_or_default() * 1e3 + number("time=").unwrap_or_default())
    })
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    let took = start.elapsed().as_secs_f64() * 1e3;
    std::thread::sleep(Duration::from_millis(80));
    took
}

/// Seconds that this machine's processors were busy, all together: both hosts are on it, and the kernel's part is nobody's process.
fn processor() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").expect("the kernel's times");
    let times: Vec<f64> =
        stat.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // All but idle and waiting for the disk, in hundredths of a second.
    (times.iter().take(8).sum::<f64>() - times[3] - times[4]) / 100.0
}
