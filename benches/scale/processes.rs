//! Real rsnet processes, each in a namespace on one segment with a Consul, without engines: what an engine would ask is asked over the socket.

use std::time::Instant;

use serde_json::{Value, json};

use crate::lab::{Host, Lab, PATIENCE, wait_until};
use crate::report::Report;

const NETWORK: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const SUBNET: &str = "10.50.0.0/16";
/// Containers that are started to see what that costs the store: fewer than make a host claim a second block.
const STARTS: usize = 20;

pub fn measure(count: usize, report: &mut Report) {
    let lab = Lab::new();
    let segment = lab.segment(["10.77.0.0/24"]);
    let machine = lab.station("consul", &[&segment]);
    let store = machine.ipv4();
    let _consul = machine.start_consul();
    let settings = format!("RSNET_LOG=info RSNET_DOCKER=none RSNET_STORE=consul://{store}:8500/rsnet");
    let hosts: Vec<Host> = (1..=count).map(|n| lab.station(&format!("h{n}"), &[&segment])).collect();
    hosts.iter().for_each(|host| host.start_rsnet_with(&settings));
    let start = Instant::now();
    let pools: Vec<Value> = std::thread::scope(|scope| {
        let created: Vec<_> = hosts.iter().map(|host| scope.spawn(|| create(host))).collect();
        created.into_iter().map(|pool| pool.join().expect("a network")).collect()
    });
    let made = start.elapsed();
    for host in &hosts {
        wait_until("a route to each other host", PATIENCE, || match routes(host) {
            seen if seen == count - 1 => Ok(()),
            seen => Err(format!("{} has {seen}", host.name)),
        });
    }
    let whole = start.elapsed().as_secs_f64();
    let memory = hosts.iter().map(resident).fold(0.0, f64::max);
    report.goal(format!("{count} processes make one network: seconds until each has a route to each other"), whole, 10.0);
    report.fact(format!("of these, {:.2} s until the last of {count} calls CreateNetwork was answered", made.as_secs_f64()));
    report.goal("MB resident, the largest of these processes".to_owned(), memory, 20.0);
    start_containers(&hosts[0], &pools[0], report);
}

/// Asks for a network as an engine does. Its pool.
fn create(host: &Host) -> Value {
    let space = call(host, "IpamDriver.GetDefaultAddressSpaces", &json!({}))["LocalDefaultAddressSpace"].clone();
    let pool = json!({ "AddressSpace": space, "Pool": SUBNET, "SubPool": "", "Options": {}, "V6": false });
    let pool = call(host, "IpamDriver.RequestPool", &pool)["PoolID"].clone();
    let gateway = json!({ "PoolID": pool, "Address": "", "Options": { "RequestAddressType": "com.docker.network.gateway" } });
    let gateway = call(host, "IpamDriver.RequestAddress", &gateway)["Address"].clone();
    let network = json!({
        "NetworkID": NETWORK,
        "Options": { "com.docker.network.generic": { "mode": "overlay" } },
        "IPv4Data": [{ "AddressSpace": space, "Pool": SUBNET, "Gateway": gateway }],
        "IPv6Data": [],
    });
    // The way out to the store is looked for behind the start.
    wait_until("the network", PATIENCE, || {
        let answer = host.plugin("/NetworkDriver.CreateNetwork", &network.to_string()).map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.body) }
    });
    pool
}

fn call(host: &Host, name: &str, body: &Value) -> Value {
    let answer = host.plugin(&format!("/{name}"), &body.to_string()).expect("an answer of rsnet");
    assert_eq!(answer.status, 200, "{name}: {}", answer.body);
    serde_json::from_str(&answer.body).expect("JSON")
}

/// To other hosts.
fn routes(host: &Host) -> usize {
    host.sh("ip -4 route show proto 195 | grep -c ' via ' || true").ok().trim().parse().unwrap_or_default()
}

/// Megabytes.
fn resident(host: &Host) -> f64 {
    let status = host.sh("grep VmRSS: /proc/$(pgrep -of 'rsnet serve')/status");
    let kilobytes = status.ok().split_whitespace().nth(1).and_then(|kilobytes| kilobytes.parse::<f64>().ok());
    kilobytes.map_or(f64::NAN, |kilobytes| kilobytes / 1024.0)
}

/// What the starts of containers say to the store: bytes of this host's wire, on which only the store is, beside as long a time without.
fn start_containers(host: &Host, pool: &Value, report: &mut Report) {
    let (start, before) = (Instant::now(), wire(host));
    let answered = (0..STARTS).map(|n| start_container(host, pool, n)).count();
    let (took, bytes) = (start.elapsed(), wire(host) - before);
    let before = wire(host);
    std::thread::sleep(took);
    let quiet = wire(host) - before;
    report.fact(format!(
        "{answered} containers' starts: {bytes} bytes from and to the store in {:.2} s; as long without a start: {quiet}",
        took.as_secs_f64()
    ));
}

fn start_container(host: &Host, pool: &Value, n: usize) {
    let id = format!("{n:010x}{n:054x}");
    let address = call(host, "IpamDriver.RequestAddress", &json!({ "PoolID": pool, "Address": "", "Options": {} }))["Address"].clone();
    let create = json!({ "NetworkID": NETWORK, "EndpointID": id, "Interface": { "Address": address } });
    call(host, "NetworkDriver.CreateEndpoint", &create);
    let join = json!({ "NetworkID": NETWORK, "EndpointID": id, "SandboxKey": "/var/run/docker/netns/none" });
    call(host, "NetworkDriver.Join", &join);
}

/// Bytes that passed the host's card, both ways.
fn wire(host: &Host) -> u64 {
    let seen = host.sh("cat /sys/class/net/eth0/statistics/[rt]x_bytes");
    seen.ok().lines().filter_map(|bytes| bytes.trim().parse::<u64>().ok()).sum()
}
