//! `rsnet doctor` on a host whose kernel, firewall and disk are real: each fault is one finding, and what is ours heals.

use rsnet::store::{Expect, Key, Store};
use serde_json::json;

use super::bench::Bench;
use super::daemon::{Daemon, ENDPOINT, NETWORK, text};
use super::engine::Engine;
use super::namespace::run;
use super::server::wait_until;

const BRIDGE: &str = "rsb-0123456789";
const OVERLAY: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// A host with a bridge network that has one endpoint, and an overlay network.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.create(NETWORK, "10.9.0", json!({}));
    bench.create(OVERLAY, "10.50.0", json!({ "mode": "overlay" }));
    let interface = json!({ "Address": "10.9.0.2/24", "AddressIPv6": "", "MacAddress": "02:42:00:00:00:02" });
    let new = json!({ "NetworkID": NETWORK, "EndpointID": ENDPOINT, "Interface": interface, "Options": {} });
    bench.call("NetworkDriver.CreateEndpoint", new);
    let sandbox = "/var/run/docker/netns/0123456789ab";
    bench.call("NetworkDriver.Join", json!({ "NetworkID": NETWORK, "EndpointID": ENDPOINT, "SandboxKey": sandbox, "Options": {} }));
    assert_eq!(bench.doctor(false).findings, [], "the host is healthy");
    bench
}

/// Does harm, and expects one finding of this check which names all of `words`; its fix is tried.
#[track_caller]
fn one_finding(bench: &Bench, harm: &str, check: &str, words: &[&str]) {
    run(harm);
    let findings = bench.doctor(false).findings;
    assert_eq!(findings.len(), 1, "after `{harm}`: {findings:#?}");
    assert_eq!(findings[0].check, check, "after `{harm}`: {findings:#?}");
    for word in words {
        let told = format!("{} {} {}", findings[0].what, findings[0].meaning, findings[0].remedy);
        assert!(told.contains(word), "{word} is not in what is told after `{harm}`: {findings:#?}");
    }
}

/// The same of something of ours: `--fix` says what it put right, and nothing is wrong any more.
#[track_caller]
fn heals(bench: &Bench, harm: &str, check: &str, words: &[&str]) {
    one_finding(bench, harm, check, words);
    assert!(bench.doctor(false).findings[0].heals, "{harm}");
    let fixed = bench.doctor(true);
    assert!(!fixed.healed.is_empty() && fixed.failed.is_empty(), "after `{harm}`: {fixed:#?}");
    assert_eq!(fixed.findings, [], "after `{harm}` and --fix");
}

/// The same of somebody else's: `--fix` changes nothing about it, and what `undo` does is the end of it.
#[track_caller]
fn stays_until(bench: &Bench, harm: &str, undo: &str, check: &str, words: &[&str]) {
    one_finding(bench, harm, check, words);
    assert_eq!(bench.doctor(true).findings.len(), 1, "after `{harm}` and --fix");
    run(undo);
    bench.converge();
    assert_eq!(bench.doctor(false).findings, [], "after `{harm}` and `{undo}`");
}

#[test]
fn what_is_taken_from_us_is_named_once_and_healed() {
    let bench = bench();
    heals(&bench, &format!("ip link del {BRIDGE}"), "drift", &["network 0123456789", "link rsb-0123456789 is missing"]);
    heals(&bench, &format!("ip address del 10.9.0.1/24 dev {BRIDGE}"), "drift", &["address 10.9.0.1/24 on rsb-0123456789 is missing"]);
    heals(&bench, &format!("ip link set {BRIDGE} mtu 1300"), "drift", &["link rsb-0123456789 is altered"]);
    heals(&bench, "ip link set rsv-fedcba9876 nomaster", "drift", &["bridge port rsv-fedcba9876 is missing"]);
    heals(&bench, "sysctl -qw net.ipv4.ip_forward=0", "drift", &["ip_forward"]);
    heals(&bench, "nft delete table inet rsnet", "firewall", &["table inet rsnet"]);
    heals(&bench, "nft flush set inet rsnet segments", "firewall", &["add elements to set inet rsnet segments"]);
    heals(&bench, "iptables -P FORWARD DROP", "firewall", &["chain ip filter FORWARD"]);
    let left = "ip link add rsb-ffffffffff type bridge && ip link set rsb-ffffffffff alias rsnet:x up";
    heals(&bench, left, "leftover", &["link rsb-ffffffffff is left over"]);
}

#[test]
fn what_others_do_is_named_once_and_left_to_them() {
    let bench = bench();
    let mine = "nft add table inet mine && nft 'add chain inet mine forward { type filter hook forward priority 5; policy drop; }'";
    stays_until(&bench, mine, "nft delete table inet mine", "blocked", &["chain forward of table inet mine", "policy"]);
    let front = ("iptables -I FORWARD -j DROP", "iptables -D FORWARD -j DROP");
    stays_until(&bench, front.0, front.1, "blocked", &["chain FORWARD of table ip filter", "everything"]);
    run("iptables -N DOCKER-USER && iptables -A DOCKER-USER -j RETURN && iptables -A FORWARD -j DOCKER-USER");
    bench.converge();
    let rule = format!("DOCKER-USER -i {BRIDGE} -j REJECT");
    stays_until(&bench, &format!("iptables -I {rule}"), &format!("iptables -D {rule}"), "blocked", &["from or for a network of rsnet"]);
    let rule = "DOCKER-USER -s 10.9.0.2 -j DROP";
    stays_until(&bench, &format!("iptables -I {rule}"), &format!("iptables -D {rule}"), "blocked", &["from or for a network of rsnet"]);
    let mtu = ("ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500");
    stays_until(&bench, mtu.0, mtu.1, "mtu", &["network 0123456789", "1500", "eth0 takes 1400"]);
    let forwarding = ("sysctl -qw net.ipv4.conf.eth0.forwarding=0", "sysctl -qw net.ipv4.conf.eth0.forwarding=1");
    stays_until(&bench, forwarding.0, forwarding.1, "forwarding", &["sysctl -w net.ipv4.conf.eth0.forwarding=1"]);
    let squat = format!("ip link del {BRIDGE} && ip link add {BRIDGE} type bridge");
    one_finding(&bench, &squat, "drift", &[]);
    assert!(bench.doctor(true).findings[0].meaning.contains("cannot make it so"), "{:#?}", bench.doctor(false));
    run(&format!("ip link del {BRIDGE}"));
    assert_eq!(bench.doctor(true).findings, []);
    let tunnel = run("ip -br link show type vxlan").split(['@', ' ']).next().unwrap().to_owned();
    let vni = tunnel.trim_start_matches("rsx-");
    let foreign = format!("ip link del {tunnel} && ip link add vx0 type vxlan id {vni} dstport 4789 local 10.77.0.2 && ip link set vx0 up");
    stays_until(&bench, &foreign, "ip link del vx0", "tunnel", &["vx0", vni, "ip link del vx0"]);
}

#[test]
fn rules_that_are_not_about_us_or_let_us_pass_are_no_findings() {
    let bench = bench();
    run("nft -f - <<'END'
table inet zones {
  chain forward {
    type filter hook forward priority 5; policy drop;
    ct state established accept
    iifname \"rsb-*\" accept
    oifname \"rsb-*\" accept
    reject
  }
}
table ip lan {
  chain forward {
    type filter hook forward priority 6; policy accept;
    iifname \"eth1\" drop
    ip saddr 10.10.0.0/16 drop
    jump more
  }
  chain more {
    tcp dport 25 drop
    return
    drop
  }
}
END
iptables -N DOCKER-USER && iptables -A DOCKER-USER -j RETURN && iptables -A FORWARD -j DOCKER-USER
iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT && iptables -A FORWARD -j DROP && iptables -P FORWARD DROP");
    bench.converge();
    assert_eq!(bench.doctor(false).findings, []);
}

#[test]
fn a_full_disk_and_a_lost_record_are_named() {
    let bench = bench();
    std::fs::write(bench.disk.join("ballast"), vec![0; 60 << 20]).unwrap();
    assert_eq!(bench.checks(), ["disk".to_owned()].into());
    std::fs::remove_file(bench.disk.join("ballast")).unwrap();
    let key = Key::new(format!("endpoint/{NETWORK}/{ENDPOINT}")).unwrap();
    bench.run(bench.store.delete(&key, Expect::Any)).unwrap();
    assert_eq!(bench.checks(), ["records".to_owned()].into());
}

#[test]
fn a_healthy_host_is_told_to_be_so_with_the_names_that_people_know() {
    let engine = Engine::start(&[(NETWORK, "blue")], &[(ENDPOINT, "web", NETWORK)]);
    let daemon = Daemon::start(&[]).with_a_bridge().beside(engine);
    let output = daemon.rsnet("doctor");
    assert_eq!((output.status.code(), text(&output).as_str()), (Some(0), "Nothing is wrong.\n"));
    assert!(text(&daemon.rsnet("networks")).contains("blue"));
    assert!(text(&daemon.rsnet("endpoints")).contains("web"));
}

#[test]
fn what_engine_and_daemon_know_apart_is_named_and_ends_with_3() {
    let lost = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    let engine = Engine::start(&[(NETWORK, "blue"), (lost, "red")], &[]);
    let daemon = Daemon::start(&[]).with_a_bridge().beside(engine);
    let output = daemon.rsnet("doctor");
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output).starts_with("1 thing is wrong.\n\n1. the engine has network red (bbbbbbbbbb)"), "{}", text(&output));
    drop(daemon);
    let without = Daemon::start_here(&[]);
    let findings = without.json("doctor")["findings"].take();
    let silent = |finding: &serde_json::Value| finding["check"] == "engine";
    assert!(findings.as_array().unwrap().iter().any(silent), "{findings:#}");
}

#[test]
fn a_store_that_is_away_is_named_until_it_is_there() {
    let daemon = Daemon::start(&[("RSNET_STORE", "consul://127.0.0.1:8500/rsnet")]).beside(Engine::start(&[], &[]));
    let checks = || {
        let findings = daemon.json("doctor")["findings"].take();
        let of = |finding: &serde_json::Value| finding["check"].as_str().unwrap().to_owned();
        findings.as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    wait_until("the store to be named", || if checks() == ["store"] { Ok(()) } else { Err(format!("{:?}", checks())) });
    let _consul = super::server::Server::dev();
    wait_until("nothing to be wrong", || if checks().is_empty() { Ok(()) } else { Err(format!("{:?}\n{}", checks(), daemon.log())) });
}
