//! One LAN, three hosts that share its addresses by a Consul, and what each of them may give while it sees no other.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::lab::{Engine, Host, PATIENCE, wait_until};
use crate::overlay::Cluster;
use crate::traffic::{addresses, icmp, reaches_all, run};

const NETWORK: &str = "-d rsnet --ipam-driver rsnet -o mode=macvlan -o parent=eth0";
/// The machines of the lab are in it: the Consul, which is the gateway here, at 10.77.0.1, the hosts behind it.
const LAN: &str = "10.77.0.0/23";
const MACHINES: [&str; 4] = ["10.77.0.1", "10.77.0.2", "10.77.0.3", "10.77.0.4"];
/// All of 10.77.0.0/23 but the two that stand for it, and the machines.
const ROOM: usize = 512 - 2 - 4;

/// Asks a host's IPAM driver as the engine does.
fn take(host: &Host) -> Result<IpAddr, String> {
    let body = json!({ "PoolID": LAN, "Address": "", "Options": {} }).to_string();
    let answer = host.plugin("/IpamDriver.RequestAddress", &body).map_err(|error| error.to_string())?;
    let body: Value = serde_json::from_str(&answer.body).map_err(|error| error.to_string())?;
    let address = body["Address"].as_str().and_then(|address| address.parse::<IpNet>().ok());
    address.map(|address| address.addr()).ok_or(answer.body)
}

/// So many on each of the hosts, all at once; fewer where one has none left, and why.
fn take_on(hosts: &[&Host], count: usize) -> (Vec<IpAddr>, Vec<String>) {
    let on_one = |host: &Host| {
        let mut taken = Vec::new();
        for _ in 0..count {
            match take(host) {
                Ok(address) => taken.push(address),
                Err(refusal) => return (taken, Some(refusal)),
            }
        }
        (taken, None)
    };
    let all: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = hosts.iter().map(|host| scope.spawn(move || on_one(host))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    (all.iter().flat_map(|(taken, _)| taken.clone()).collect(), all.into_iter().filter_map(|(_, refusal)| refusal).collect())
}

/// What was given anywhere: each address once, and none of the machines'.
#[derive(Default)]
struct Given(BTreeSet<IpAddr>);

impl Given {
    #[track_caller]
    fn add(&mut self, (addresses, refusals): (Vec<IpAddr>, Vec<String>)) -> Vec<String> {
        for address in addresses {
            assert!(!MACHINES.contains(&address.to_string().as_str()), "{address} is a machine's");
            assert!(self.0.insert(address), "{address} was given twice");
        }
        refusals
    }
}

fn networks(cluster: &Cluster, arguments: &str) {
    let create = format!("network create {NETWORK} {arguments} lan");
    cluster.hosts.iter().for_each(|host| drop(host.docker(&create).ok().to_owned()));
}

/// What `rsnet addresses --json` says that a host has.
fn blocks_of(addresses: &Value, host: &str) -> BTreeSet<String> {
    let hosts = addresses["hosts"].as_array().into_iter().flatten();
    let blocks = hosts.filter(|seen| seen["host"] == host).flat_map(|seen| seen["blocks"].as_array().cloned().unwrap_or_default());
    blocks.filter_map(|block| block.as_str().map(str::to_owned)).collect()
}

pub fn a_mac_that_a_user_chose_is_one_host_s_of_a_lan(engine: Engine) {
    let mut cluster = Cluster::new(engine, 2, "");
    networks(&cluster, "--subnet 10.77.0.0/24 --gateway 10.77.0.1 --ip-range 10.77.0.128/26");
    let index = |cluster: &Cluster| cluster.consul.sh("kv get -recurse rsnet/cluster/mac").stdout;
    run(&cluster.hosts[0], "plain", "--network lan");
    assert_eq!(index(&cluster), "", "nothing is written for a container without --mac-address");
    run(&cluster.hosts[0], "one", "--network lan --mac-address 02:00:00:00:00:77");
    let one = addresses(&cluster.hosts[0], "one", "lan")[0];
    run(&cluster.hosts[0], "named", "--network lan --ip 10.77.0.200");
    let twin = "run --rm --network lan --mac-address 02:00:00:00:00:77 box true";
    cluster.hosts[1].docker(twin).fails_with(&format!("claim MAC 02:00:00:00:00:77: host h1 has it ({one})"));
    // who has which, on both hosts
    let here = cluster.hosts[0].sh("rsnet addresses lan");
    for part in ["h1", "h2", "one", &one.to_string(), "02:00:00:00:00:77", "plain", "10.77.0.200"] {
        here.says(part);
    }
    wait_until("h2 to know what h1 has", PATIENCE, || {
        let there: Value = serde_json::from_str(cluster.hosts[1].sh("rsnet addresses lan --json").ok()).expect("JSON");
        let [h1, h2] = ["h1", "h2"].map(|host| blocks_of(&there, host));
        let apart = !h2.is_empty() && h1.is_disjoint(&h2);
        if apart && h1.contains("10.77.0.200/32") { Ok(()) } else { Err(there.to_string()) }
    });
    // what is written survives a lost store, a killed rsnet, and the container's restart while Consul is down
    cluster.consul.sh("kv delete -recurse rsnet").ok();
    wait_until("the MAC to be written again, and h2 to be there again", PATIENCE, || {
        let seen = index(&cluster) + &cluster.consul.sh("kv get -keys rsnet/cluster/alive/").stdout;
        if seen.contains("77") && seen.contains("alive/h2") { Ok(()) } else { Err(seen) }
    });
    cluster.hosts[0].kill_rsnet();
    cluster.start_rsnet(&cluster.hosts[0], "");
    cluster.consul.kill();
    cluster.hosts[0].docker("restart -t 0 one").ok();
    cluster.hosts[1].docker("run --rm --network lan --mac-address 02:00:00:00:00:78 box true").fails_with("claim MAC 02:00:00:00:00:78");
    run(&cluster.hosts[1], "two", "--network lan");
    cluster.consul.start_again();
    wait_until("h1 to be refused for", PATIENCE, || {
        let seen = cluster.hosts[1].docker(twin);
        if seen.stderr.contains("host h1 has it") { Ok(()) } else { Err(seen.to_string()) }
    });
    cluster.hosts[0].docker("rm -f one").ok();
    wait_until("the MAC to be free", PATIENCE, || {
        let seen = cluster.hosts[1].docker(twin);
        if seen.succeeded() { Ok(()) } else { Err(seen.to_string()) }
    });
}

pub fn three_hosts_never_give_one_address_of_a_lan_twice(engine: Engine) {
    let cluster = Cluster::new(engine, 3, "");
    let [h1, h2, h3] = &cluster.hosts[..] else { unreachable!() };
    let mut given = Given::default();
    for host in [h1, h2, h3] {
        host.docker(&format!("network create {NETWORK} --subnet {LAN} --gateway 10.77.0.1 lan")).ok();
        for n in 0..5 {
            run(host, &format!("c{n}"), "--network lan");
            given.add((addresses(host, &format!("c{n}"), "lan"), vec![]));
        }
    }
    let containers: Vec<_> = given.0.iter().map(|address| icmp(*address)).collect();
    reaches_all(crate::traffic::Place::Container(h1, "c0"), &containers);
    let none: [String; 0] = [];
    assert_eq!(given.add(take_on(&[h1, h2, h3], 60)), none);
    h3.cut();
    assert_eq!(given.add(take_on(&[h1, h2], 30)), none);
    let cut_off = given.add(take_on(&[h3], 60));
    assert!(cut_off[0].contains("10.77.0.0/23") && cut_off[0].to_lowercase().contains("consul"), "{cut_off:?}");
    h3.mend();
    given.add((vec![wait_until("h3 to have more", PATIENCE, || take(h3))], vec![]));
    given.add(take_on(&[h1, h2, h3], 20));
    h2.kill_rsnet();
    h2.cut();
    let lost = given.add(take_on(&[h1, h3], ROOM));
    assert_eq!(lost.len(), 2, "h2 still has its blocks");
    lost.iter().for_each(|refusal| assert!(refusal.contains("no other lends one") && refusal.contains("h2: does not answer"), "{refusal}"));
    println!("{} addresses given", given.0.len());
    assert!(given.0.len() >= 300, "{}", given.0.len());
    h2.mend();
    cluster.start_rsnet(h2, "");
    wait_until("h2 to have given all of its own", PATIENCE, || {
        let refusals = given.add(take_on(&[h2], ROOM));
        if refusals.iter().all(|refusal| refusal.contains("no other lends one")) { Ok(()) } else { Err(format!("{refusals:?}")) }
    });
    assert_eq!(given.0.len(), ROOM, "all that there is");
}
