//! What a network of several hosts does when its store, its daemon or a host fails.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Cluster, ways};
use crate::flow::{Flow, Place};
use crate::lab::{Engine, PATIENCE, wait_until};
use crate::standing::{difference, own};
use crate::traffic::{addresses, icmp, reaches_all, run};

const WIPES: usize = 20;
const KILLS: usize = 20;

/// Questions from `c1` to `c2` all the while.
pub(super) fn flows(cluster: &Cluster, all: &[Vec<std::net::IpAddr>]) -> Vec<Flow> {
    Place::container(&cluster.hosts[1], "c2").echo(7);
    let client = Place::container(&cluster.hosts[0], "c1");
    let to = SocketAddr::new(all[1][0], 7);
    vec![client.ask("c1 asks c2", to), client.converse("c1 talks with c2", to)]
}

pub fn without_consul_traffic_goes_on_and_containers_start(engine: Engine) {
    let mut cluster = Cluster::new(engine, 2, "");
    cluster.create("--subnet 10.50.0.0/16 blue");
    let all = cluster.run("blue", "");
    let flows = flows(&cluster, &all);
    cluster.consul.kill();
    let mut started = Vec::new();
    for round in 0..3 {
        for host in &cluster.hosts {
            run(host, &format!("more{round}"), "--network blue");
            started.extend(addresses(host, &format!("more{round}"), "blue"));
        }
    }
    cluster.hosts[0].kill_rsnet();
    cluster.start_rsnet(&cluster.hosts[0], "");
    for n in [0, 1] {
        reaches_all(cluster.place(n), &started.iter().map(|to| icmp(*to)).collect::<Vec<_>>());
    }
    cluster.hosts[0].docker("network create -d rsnet --ipam-driver rsnet -o mode=overlay --subnet 10.60.0.0/16 red").fails_with("consul");
    cluster.consul.start_again();
    wait_until("a network to be made again", PATIENCE, || {
        let seen = cluster.hosts[0].docker("network create -d rsnet --ipam-driver rsnet -o mode=overlay --subnet 10.60.0.0/16 red");
        if seen.succeeded() { Ok(()) } else { Err(seen.to_string()) }
    });
    flows.into_iter().for_each(Flow::none_missing);
}

pub fn a_wiped_consul_is_rebuilt_from_the_hosts(engine: Engine) {
    let cluster = Cluster::new(engine, 2, "");
    cluster.create("--subnet 10.50.0.0/16 blue");
    let all = cluster.run("blue", "");
    let keys = || cluster.consul.sh("kv get -recurse rsnet/cluster/block | sed 's/,\"claim.*//'").stdout;
    let (before, rows) = (keys(), cluster.hosts.iter().map(own).collect::<Vec<_>>());
    let flows = flows(&cluster, &all);
    for _ in 0..WIPES {
        cluster.consul.sh("kv delete -recurse rsnet").ok();
        wait_until("the blocks to be back", PATIENCE, || {
            let now = keys();
            if now == before { Ok(()) } else { Err(difference(&before, &now)) }
        });
    }
    flows.into_iter().for_each(Flow::none_missing);
    for (host, before) in cluster.hosts.iter().zip(rows) {
        assert_eq!(own(host), before, "{}", difference(&before, &own(host)));
    }
}

pub fn kills_and_reboots_of_a_host_lose_no_network(engine: Engine) {
    for way in ways(engine) {
        let mut cluster = Cluster::new(engine, 2, "");
        cluster.create(&format!("--subnet 10.50.0.0/16 -o attach={way} blue"));
        let all = cluster.run("blue", "--restart always");
        let before = own(&cluster.hosts[0]);
        let flows = flows(&cluster, &all);
        for round in 0..KILLS {
            let host = &cluster.hosts[round % 2];
            std::thread::sleep(Duration::from_millis(rand::random_range(0..150)));
            host.kill_rsnet();
            cluster.start_rsnet(host, "");
        }
        flows.into_iter().for_each(Flow::none_missing);
        assert_eq!(own(&cluster.hosts[0]), before, "{}", difference(&before, &own(&cluster.hosts[0])));
        cluster.hosts[0].reboot();
        cluster.start_rsnet(&cluster.hosts[0], "");
        cluster.hosts[0].start_dockerd();
        wait_until("c1 to run again", PATIENCE, || {
            let seen = cluster.hosts[0].docker("inspect -f {{.State.Running}} c1");
            if seen.stdout.contains("true") { Ok(()) } else { Err(seen.to_string()) }
        });
        let back = addresses(&cluster.hosts[0], "c1", "blue");
        reaches_all(cluster.place(1), &[icmp(back[0])]);
        reaches_all(cluster.place(0), &[icmp(all[1][0])]);
    }
}

pub fn what_is_deleted_or_altered_of_an_overlay_is_back_within_a_second(engine: Engine) {
    let cluster = Cluster::new(engine, 2, "");
    cluster.create("--ipv6 --subnet 10.50.0.0/16 --subnet fd50::/64 blue");
    cluster.run("blue", "-p 8080:7");
    let host = &cluster.hosts[0];
    let before = own(host);
    let tunnel = host.sh("ls /sys/class/net | grep ^rsx-").ok().trim().to_owned();
    let port = host.sh("ls /sys/class/net | grep ^rsv-").ok().trim().to_owned();
    let damages = [
        format!("ip route del $(ip route show proto 195 dev {tunnel} | head -1)"),
        format!("ip route replace $(ip route show proto 195 dev {port} | head -1 | cut -d' ' -f1) dev lo proto 195"),
        format!("ip -6 route del $(ip -6 route show proto 195 dev {tunnel} | head -1)"),
        format!("ip neigh del $(ip -4 neigh show dev {tunnel} nud permanent | head -1 | cut -d' ' -f1) dev {tunnel}"),
        format!(
            "ip neigh replace $(ip -4 neigh show dev {tunnel} nud permanent | head -1 | cut -d' ' -f1) lladdr 02:00:00:00:00:01 dev {tunnel} nud permanent"
        ),
        format!("bridge fdb del $(bridge fdb show dev {tunnel} | grep dst | head -1 | cut -d' ' -f1-3) dev {tunnel}"),
        format!("bridge fdb replace $(bridge fdb show dev {tunnel} | grep dst | head -1 | cut -d' ' -f1) dst 10.77.0.99 dev {tunnel}"),
        format!("ip addr flush dev {tunnel}"),
        format!("ip addr del 10.50.0.1/32 dev {port}"),
        format!("ip link set {tunnel} down"),
        format!("ip link set {tunnel} mtu 1300"),
        format!("ip link set {tunnel} address 02:00:00:00:00:01"),
        format!("ip link del {tunnel}"),
        "nft delete table inet rsnet".to_owned(),
    ];
    for damage in damages {
        host.sh(&damage).ok();
        wait_until(&format!("all to be back after `{damage}`"), Duration::from_millis(1500), || {
            let now = own(host);
            if now == before { Ok(()) } else { Err(difference(&before, &now)) }
        });
    }
}

/// Its lease is of 30 s, which Consul doubles.
const GONE: Duration = Duration::from_secs(90);

pub fn a_host_that_will_not_come_back_is_forgotten(engine: Engine) {
    let cluster = Cluster::new(engine, 2, "");
    cluster.create("--subnet 10.50.0.0/16 blue");
    cluster.run("blue", "");
    let [h1, h2] = &cluster.hosts[..] else { unreachable!() };
    h1.sh("rsnet hosts").says("h2");
    h1.sh("rsnet host forget h2").fails_with("alive");
    let block = h1.sh("ip route show proto 195 via any | grep /26 | cut -d' ' -f1").ok().trim().to_owned();
    h2.kill_rsnet();
    wait_until("h2 to be gone", GONE, || {
        let seen = h1.sh("rsnet hosts");
        if seen.stdout.contains("gone for") { Ok(()) } else { Err(seen.to_string()) }
    });
    h1.sh(&format!("ip route show {block}")).says("rsx-");
    h1.sh("rsnet host forget h2").ok();
    wait_until("the way to h2 to be gone", PATIENCE, || {
        let seen = h1.sh(&format!("ip route show {block}; rsnet hosts"));
        if seen.stdout.contains("rsx-") || seen.stdout.contains("h2") { Err(seen.to_string()) } else { Ok(()) }
    });
    cluster.start_rsnet(h2, "");
    wait_until("h2 to be there again", PATIENCE, || {
        let seen = h1.sh("rsnet hosts");
        if seen.stdout.contains("h2") { Ok(()) } else { Err(seen.to_string()) }
    });
}
