//! What the command line says of hosts with an engine: nothing is wrong where nothing is, and each fault is one finding.

use serde_json::Value;

use crate::lab::{Engine, Host, PATIENCE, wait_until};
use crate::overlay::Cluster;

/// What `rsnet doctor` finds.
fn checks(host: &Host) -> Vec<String> {
    let seen = host.sh("rsnet doctor --json");
    let told: Value = serde_json::from_str(&seen.stdout).unwrap_or_else(|error| panic!("{error}: {seen}"));
    let of = |finding: &Value| finding["check"].as_str().expect("a word").to_owned();
    told["findings"].as_array().expect("a list").iter().map(of).collect()
}

/// Does harm, expects this finding alone, and none after the harm is undone.
#[track_caller]
fn named(host: &Host, harm: &str, undo: &str, check: &str) {
    host.sh(harm).ok();
    wait_until(&format!("`{harm}` to be named {check}"), PATIENCE, || is(&checks(host), &[check]));
    host.sh(undo).ok();
    wait_until(&format!("nothing to be wrong after `{undo}`"), PATIENCE, || is(&checks(host), &[]));
}

fn is(seen: &[String], wanted: &[&str]) -> Result<(), String> {
    if seen == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
}

/// A drop where the engine has administrators put one.
fn administrators(engine: Engine) -> (&'static str, &'static str) {
    if engine.uses_iptables() {
        return ("iptables -I DOCKER-USER -i rsb-+ -j DROP", "iptables -D DOCKER-USER -i rsb-+ -j DROP");
    }
    let table = "nft 'table inet admin { chain f { type filter hook forward priority -1; iifname \"rsb-*\" drop; }; }'";
    (table, "nft delete table inet admin")
}

pub fn each_fault_of_a_host_is_one_finding_and_a_healthy_one_has_none(engine: Engine) {
    let mut cluster = Cluster::new(engine, 2, "");
    cluster.create("--subnet 10.50.0.0/16 -o mtu=1450 wide");
    cluster.run("wide", "");
    for host in &cluster.hosts {
        host.docker("network create -d rsnet --ipam-driver rsnet --ipv6 near").ok();
        host.docker("run -d --name web --network near -p 8080:80 box sleep 10000").ok();
        wait_until("a healthy host", PATIENCE, || is(&checks(host), &[]));
        let status = host.sh("rsnet status").ok().to_owned();
        assert!(status.starts_with("All is well.\n") && status.lines().count() <= 10, "{status}");
        host.sh("rsnet endpoints").says("web");
        host.sh("rsnet networks").says("wide");
    }
    let h1 = &cluster.hosts[0];
    named(h1, "iptables -I FORWARD -j DROP", "iptables -D FORWARD -j DROP", "blocked");
    let (harm, undo) = administrators(engine);
    named(h1, harm, undo, "blocked");
    let mine = "nft add table inet mine && nft 'add chain inet mine f { type filter hook forward priority 9; policy drop; }'";
    named(h1, mine, "nft delete table inet mine", "blocked");
    let card = h1.sh("ip -o route get 10.77.0.200 | sed 's/.* dev \\([^ ]*\\).*/\\1/'").ok().trim().to_owned();
    named(h1, &format!("ip link set {card} mtu 1400"), &format!("ip link set {card} mtu 1500"), "mtu");
    let state = "/var/lib/rsnet/state.redb";
    h1.stop_rsnet();
    h1.sh(&format!("mv {state} /tmp/ && rsnet status; test $? = 1")).ok();
    cluster.start_rsnet(h1, "");
    let lost = checks(h1).into_iter().filter(|check| check.starts_with("lost")).collect::<Vec<_>>();
    assert_eq!(lost, ["lost_network", "lost_network"], "its state is gone: both networks are unknown");
    h1.stop_rsnet();
    h1.sh(&format!("mv /tmp/state.redb {state}")).ok();
    cluster.start_rsnet(h1, "");
    wait_until("all to be known again", PATIENCE, || is(&checks(h1), &[]));
    cluster.consul.kill();
    let (h1, h2) = (&cluster.hosts[0], &cluster.hosts[1]);
    [h1, h2].iter().for_each(|host| wait_until("the store to be missed", PATIENCE, || is(&checks(host), &["store"])));
    assert_eq!(h1.sh("rsnet status >/dev/null; echo $?").stdout.trim(), "3");
    cluster.consul.start_again();
    let h1 = &cluster.hosts[0];
    wait_until("nothing to be wrong with Consul there", PATIENCE, || is(&checks(h1), &[]));
    h1.stop_dockerd();
    assert_eq!(checks(h1), ["engine"]);
}
