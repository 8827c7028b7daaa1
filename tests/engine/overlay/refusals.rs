//! What cannot be had in a network of several hosts is refused, with who is in the way.

use super::{Cluster, NETWORK};
use crate::lab::Engine;
use crate::traffic::{addresses, icmp, reaches_all, run};

pub fn what_hosts_do_not_agree_on_is_refused_with_both_sides(engine: Engine) {
    let cluster = Cluster::new(engine, 2, "");
    let [h1, h2] = &cluster.hosts[..] else { unreachable!() };
    h1.docker(&format!("network create {NETWORK} --subnet 10.50.0.0/16 blue")).ok();
    let refused = |arguments: &str, parts: &[&str]| {
        let seen = h2.docker(&format!("network create {NETWORK} {arguments} other"));
        parts.iter().for_each(|part| drop(seen.fails_with(part).to_owned()));
    };
    refused("--subnet 10.50.0.0/16 -o vxlan_port=4790", &["host h1", "vxlan_port", "4790 here"]);
    refused("--subnet 10.50.0.0/16 --internal", &["internal", "true here", "false on host h1"]);
    refused("--subnet 10.50.0.0/16 --gateway 10.50.0.9", &["10.50.0.1", "10.50.0.9", "host h1"]);
    refused("--subnet 10.50.8.0/24", &["10.50.8.0/24", "10.50.0.0/16", "overlaps", "host h1"]);
    h2.docker(&format!("network create {NETWORK} --subnet 10.50.0.0/16 -o attach=engine blue")).ok();
    // with its last block the network is gone, and may come back otherwise
    h1.docker("network rm blue").ok();
    h2.docker("network rm blue").ok();
    crate::lab::wait_until("the network to be gone", crate::lab::PATIENCE, || {
        let seen = h2.docker(&format!("network create {NETWORK} --subnet 10.50.0.0/16 --internal blue"));
        if seen.succeeded() { Ok(()) } else { Err(seen.to_string()) }
    });
}

pub fn addresses_are_those_of_the_host_unless_a_user_names_one(engine: Engine) {
    let cluster = Cluster::new(engine, 2, "");
    cluster.create("--subnet 10.50.0.0/16 blue");
    let all = cluster.run("blue", "");
    let [h1, h2] = &cluster.hosts[..] else { unreachable!() };
    // far from every block
    run(h1, "named", "--network blue --ip 10.50.255.250");
    assert_eq!(addresses(h1, "named", "blue"), ["10.50.255.250".parse::<std::net::IpAddr>().unwrap()]);
    reaches_all(cluster.place(1), &[icmp("10.50.255.250".parse().unwrap())]);
    h2.docker("run --rm --network blue --ip 10.50.255.250 box true").fails_with("host h1");
    h2.docker(&format!("run --rm --network blue --ip {} box true", all[0][0])).fails_with("h1");
    h1.docker("rm -f named").ok();
    crate::lab::wait_until("the address to be free", crate::lab::PATIENCE, || {
        let seen = h2.docker("run --rm --network blue --ip 10.50.255.250 box true");
        if seen.succeeded() { Ok(()) } else { Err(seen.to_string()) }
    });
}

pub fn dockers_own_ipam_is_refused_with_a_word(engine: Engine) {
    let cluster = Cluster::new(engine, 2, "");
    for host in &cluster.hosts {
        host.docker("network create -d rsnet -o mode=overlay --subnet 10.50.0.0/16 blue").ok();
    }
    cluster.hosts[1].docker("run --rm --network blue box true").fails_with("--ipam-driver rsnet");
}
