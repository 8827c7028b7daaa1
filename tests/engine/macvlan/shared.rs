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
    assert!(cut_off[0].contains("claim a block of 10.77.0.0/23"), "{cut_off:?}");
    h3.mend();
    given.add((vec![wait_until("h3 to have more", PATIENCE, || take(h3))], vec![]));
    given.add(take_on(&[h1, h2, h3], 20));
    h2.kill_rsnet();
    h2.cut();
    let lost = given.add(take_on(&[h1, h3], ROOM));
    assert_eq!(lost.len(), 2, "h2 still has its blocks");
    lost.iter().for_each(|refusal| assert!(refusal.contains("all belong to other hosts"), "{refusal}"));
    println!("{} addresses given", given.0.len());
    assert!(given.0.len() >= 300, "{}", given.0.len());
    h2.mend();
    cluster.start_rsnet(h2, "");
    given.add(take_on(&[h2], ROOM));
    if given.0.len() != ROOM {
        let all: IpNet = LAN.parse().unwrap();
        let missing: Vec<_> = all.hosts().filter(|a| !given.0.contains(a)).collect();
        println!("MISSING {missing:?}\n{}", cluster.consul.sh("kv get -recurse rsnet/cluster/block").stdout);
    }
    assert_eq!(given.0.len(), ROOM, "all that there is");
}
