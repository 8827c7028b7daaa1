//! What containers are called, as the other hosts know it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Cluster;
use crate::lab::{Engine, Host, PATIENCE, asks, wait_until};
use crate::traffic::{addresses, run};

/// From `docker start` returning. 100 ms is what it is to be; a shared machine may be slow.
const HEARD: Duration = Duration::from_secs(2);

/// A container's names and addresses.
type Called = (Vec<String>, Vec<IpAddr>);

/// The names and addresses of a host's containers on a network, as `host` knows them.
fn known(host: &Host, network: &str, of: &str) -> Vec<Called> {
    try_known(host, network, of).expect("an answer")
}

/// The engine may not have told a network's name yet.
fn try_known(host: &Host, network: &str, of: &str) -> Result<Vec<Called>, String> {
    let body = serde_json::json!({ "network": network }).to_string();
    let answer = host.plugin("/rsnet/names", &body).expect("an answer").body;
    let listing: Value = serde_json::from_str(&answer).expect("JSON");
    let containers = listing["containers"].as_array().ok_or(answer)?;
    let read = |value: &Value| serde_json::from_value::<Vec<String>>(value.clone()).expect("strings");
    let ips = |value: &Value| read(value).iter().map(|address| address.parse().expect("an address")).collect();
    Ok(containers.iter().filter(|one| one["host"] == of).map(|one| (read(&one["names"]), ips(&one["addresses"]))).collect())
}

/// Waits until `host` knows exactly these containers of the other one, by name. How long that took.
fn knows(host: &Host, of: &str, names: &[&str]) -> Duration {
    let began = Instant::now();
    wait_until(&format!("{} to know {names:?} of {of}", host.name), PATIENCE, || {
        let known = try_known(host, "blue", of)?;
        let seen: Vec<&str> = known.iter().map(|(names, _)| names[0].as_str()).collect();
        if seen == names { Ok(()) } else { Err(format!("it knows {known:?}")) }
    });
    began.elapsed()
}

/// Waits until the instances of a service that are well are as many in Consul's catalog, all of host h2.
fn well(cluster: &Cluster, service: &str, count: usize) {
    let ask = asks(&format!("GET /v1/health/service/{service}?passing HTTP/1.0"), "127.0.0.1:8500");
    wait_until(&format!("{count} of {service} to be well"), PATIENCE, || {
        let seen = cluster.consul.machine.sh(&ask);
        let right = seen.stdout.starts_with("HTTP/1.0 200") && seen.stdout.matches("\"ID\":\"rsnet-h2-").count() == count;
        if right { Ok(()) } else { Err(seen.to_string()) }
    });
}

/// What the hosts are told besides.
const CATALOG: &str = "RSNET_CATALOG=on";

pub fn what_containers_are_called_is_known_on_the_other_hosts(engine: Engine) {
    let cluster = Cluster::new(engine, 2, CATALOG);
    cluster.create("--ipv6 --subnet 10.50.0.0/16 --subnet fd00:50::/64 blue");
    cluster.create("--subnet 10.60.0.0/16 red");
    let [h1, h2] = &cluster.hosts[..] else { unreachable!("two hosts") };

    run(h2, "web1", "--network blue --network-alias web --hostname Shop");
    knows(h1, "h2", &["web1"]);
    well(&cluster, "web1", 1);
    let (names, at) = known(h1, "blue", "h2").remove(0);
    for name in ["web1", "web", "shop"] {
        assert!(names.iter().any(|known| known == name), "{name} is not among {names:?}");
    }
    assert_eq!(at, addresses(h2, "web1", "blue"));
    assert_eq!(known(h1, "red", "h2"), []);
    h1.sh("rsnet names blue").says("web1");
    h1.docker("network create -d rsnet --ipam-driver rsnet alone").ok();
    h1.sh("rsnet names alone").says("Only this host has the network");

    run(h1, "shell", "--network blue");
    for name in ["web1", "web", "shop"] {
        h1.docker(&format!("exec shell ping -c 1 -W 2 {name}")).ok();
    }
    h2.docker("exec web1 ping -c 1 -W 2 shell").ok();

    // a LAN whose addresses the hosts share is a network like that
    for host in [h1, h2] {
        let lan = "-d rsnet --ipam-driver rsnet -o mode=macvlan -o parent=eth0 --subnet 10.77.0.0/24 --gateway 10.77.0.1";
        host.docker(&format!("network create {lan} lan")).ok();
    }
    run(h2, "printer", "--network lan --network-alias paper");
    wait_until("the printer to be known", PATIENCE, || match &try_known(h1, "lan", "h2")?[..] {
        [(names, at)] if names.contains(&"paper".to_owned()) && *at == addresses(h2, "printer", "lan") => Ok(()),
        known => Err(format!("{known:?}")),
    });

    let mut figures = Vec::new();
    for _ in 0..5 {
        h2.docker("kill web1").ok();
        knows(h1, "h2", &[]);
        h2.docker("start web1").ok();
        figures.push(knows(h1, "h2", &["web1"]));
    }
    println!("known on the other host after docker start returned: {figures:.1?}");
    assert!(figures.iter().all(|took| *took < HEARD), "{figures:?}");

    h2.docker("rename web1 web2").ok();
    knows(h1, "h2", &["web2"]);
    h2.docker("network disconnect blue web2").ok();
    knows(h1, "h2", &[]);
    h2.docker("network connect --alias other blue web2").ok();
    knows(h1, "h2", &["web2"]);
    assert!(known(h1, "blue", "h2")[0].0.contains(&"other".to_owned()));

    h1.kill_rsnet();
    cluster.start_rsnet(h1, CATALOG);
    knows(h1, "h2", &["web2"]);

    h2.kill_rsnet();
    knows(h1, "h2", &["web2"]);
    cluster.consul.sh("kv delete rsnet/cluster/alive/h2").ok();
    knows(h1, "h2", &[]);
    cluster.start_rsnet(h2, CATALOG);
    knows(h1, "h2", &["web2"]);
    h2.stop_dockerd();
    h2.start_dockerd();
    knows(h1, "h2", &[]);
    h2.docker("start web2").ok();
    knows(h1, "h2", &["web2"]);

    h1.docker("rm -f shell").ok();
    h1.docker("network rm blue").ok();
    cluster.create_on(&[0], "--ipv6 --subnet 10.50.0.0/16 --subnet fd00:50::/64 blue");
    knows(h1, "h2", &["web2"]);

    // and in the catalog of Consul, with its health
    well(&cluster, "web1", 0);
    well(&cluster, "web2", 1);
    run(h2, "frail", "--network blue --health-cmd 'test -e /tmp/well' --health-interval 1s --health-retries 1");
    wait_until("an ill instance", PATIENCE, || match cluster.consul.sh("catalog nodes -service=frail") {
        seen if seen.stdout.contains("rsnet-h2") => Ok(()),
        seen => Err(seen.to_string()),
    });
    well(&cluster, "frail", 0);
    h2.docker("exec frail touch /tmp/well").ok();
    well(&cluster, "frail", 1);
    h2.docker("kill frail").ok();
    well(&cluster, "frail", 0);
}
