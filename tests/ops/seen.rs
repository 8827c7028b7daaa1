//! What is seen from outside: metrics, probes, the log, and the files for Prometheus and Grafana.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::{Value, json};

use super::daemon::{Daemon, ENDPOINT, NETWORK};
use super::namespace::run;
use super::server::{Server, wait_until};

const METRICS: [(&str, &str); 2] = [("RSNET_METRICS", "127.0.0.1:9100"), ("RSNET_STORE", "consul://127.0.0.1:8500/rsnet")];

/// `GET path` where metrics are; status and body.
fn get(path: &str) -> (u16, String) {
    let mut stream = wait_until("the port of the metrics", || TcpStream::connect("127.0.0.1:9100").map_err(|error| error.to_string()));
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The samples, `name{labels}` to value.
fn samples() -> BTreeMap<String, f64> {
    let (status, text) = get("/metrics");
    assert_eq!(status, 200);
    assert!(text.ends_with("# EOF\n"), "{text}");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.rsplit_once(' ').unwrap()).map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

fn names(samples: &BTreeMap<String, f64>) -> BTreeSet<String> {
    samples.keys().map(|sample| sample.split('{').next().unwrap().to_owned()).collect()
}

/// A daemon that has everything of which there are metrics, and the Consul that it needs.
fn daemon() -> (Server, Daemon) {
    super::server::own_network();
    run("ip link add eth0 type veth peer name lan0 && ip link set lan0 up && ip link set eth0 up");
    run("ip address add 10.77.0.2/24 dev eth0 && ip route add default via 10.77.0.1");
    let consul = Server::dev();
    let daemon = Daemon::start_here(&METRICS).with_a_bridge();
    let pool = json!({ "AddressSpace": "rsnet-local", "Pool": "10.60.0.0/24", "SubPool": "", "Options": {}, "V6": false });
    daemon.call("IpamDriver.RequestPool", &pool);
    let address = json!({ "PoolID": "10.60.0.0/24", "Address": "10.60.0.9", "Options": {} });
    daemon.call("IpamDriver.RequestAddress", &address);
    wait_until("the store to be there", || if samples()["rsnet_store_up"] == 1.0 { Ok(()) } else { Err(daemon.log()) });
    (consul, daemon)
}

fn file(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The metrics of ours that an expression names.
fn named(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("rsnet_")).map(str::to_owned).collect()
}

#[test]
fn metrics_follow_the_conventions_and_tell_what_is_there() {
    let (_consul, daemon) = daemon();
    let (_, text) = get("/metrics");
    let types: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    for (name, kind) in &types {
        assert!(name.starts_with("rsnet_"), "{name}");
        assert!(!name.ends_with("_total") && text.contains(&format!("# HELP {name} ")), "{name} of type {kind}");
    }
    let seen = samples();
    let is = |sample: &str, value: f64| assert_eq!(seen.get(sample), Some(&value), "{sample} in\n{text}");
    is(&format!("rsnet_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")), 1.0);
    is("rsnet_networks{mode=\"bridge\"}", 1.0);
    is("rsnet_endpoints{mode=\"bridge\"}", 1.0);
    is("rsnet_pool_used_addresses{subnet=\"10.60.0.0/24\"}", 1.0);
    is("rsnet_pool_addresses{subnet=\"10.60.0.0/24\"}", 254.0);
    is("rsnet_calls_total{call=\"/NetworkDriver.CreateNetwork\",status=\"200\"}", 1.0);
    is("rsnet_drift_found_total{kind=\"address\"}", 0.0);
    is("rsnet_converge_failing", 0.0);
    is("rsnet_dns_query_duration_seconds_count{answered_by=\"rsnet\"}", 0.0);
    is("rsnet_names_known{of=\"others\"}", 0.0);
    is("rsnet_peers_missed", 0.0);
    assert!(seen["rsnet_converge_duration_seconds_count"] >= 1.0 && seen["rsnet_store_requests_total"] > 0.0);
    run("ip address del 10.9.0.1/24 dev rsb-0123456789");
    wait_until("drift to be counted", || {
        let seen = samples();
        let counts = ["found", "healed"].map(|what| seen[&format!("rsnet_drift_{what}_total{{kind=\"address\"}}")]);
        if counts == [1.0, 1.0] { Ok(()) } else { Err(format!("{counts:?}\n{}", daemon.log())) }
    });
}

#[test]
fn every_metric_of_the_dashboard_the_alerts_and_the_page_exists() {
    let (_consul, _daemon) = daemon();
    let there = names(&samples());
    let dashboard: Value = serde_json::from_str(&file("packaging/grafana/rsnet.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets: Vec<&Value> = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap()).collect();
    assert!(panels.len() >= 10 && targets.len() >= panels.len());
    let mut used: BTreeSet<String> = targets.iter().flat_map(|target| named(target["expr"].as_str().unwrap())).collect();
    used.extend(rules().iter().flat_map(|rule| named(&rule["expr"])));
    used.extend(file("docs/operations.md").split('`').skip(1).step_by(2).flat_map(named));
    let missing: Vec<&String> = used.difference(&there).collect();
    assert!(missing.is_empty(), "{missing:?} are not among\n{there:#?}");
}

/// The rules of the alerts' file, which is as regular as this reads it: two levels above, then `key: value` lines.
fn rules() -> Vec<BTreeMap<String, String>> {
    let text = file("packaging/prometheus/alerts.yml");
    let body = text.split_once("    rules:\n").expect("groups with rules").1;
    let rule = |text: &str| -> BTreeMap<String, String> {
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        lines
            .map(|line| line.trim().split_once(':').unwrap_or_else(|| panic!("no key: {line}")))
            .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
            .collect()
    };
    body.split("      - ").skip(1).map(rule).collect()
}

#[test]
fn every_alert_is_whole_and_told_on_the_page() {
    let (rules, page) = (rules(), file("docs/operations.md"));
    assert!(rules.len() >= 8);
    for rule in &rules {
        for key in ["alert", "expr", "for", "severity", "summary", "description"] {
            assert!(rule.get(key).is_some_and(|value| !value.is_empty()), "{key} of {rule:?}");
        }
        let plain = |text: &str| text.starts_with('"') || (!text.contains(": ") && !text.contains(" #"));
        assert!(plain(&rule["summary"]) && plain(&rule["description"]), "a colon or a hash needs quotes: {rule:?}");
        let balanced = |open, close| rule["expr"].matches(open).count() == rule["expr"].matches(close).count();
        assert!(balanced('(', ')') && balanced('{', '}') && balanced('[', ']'), "{}", rule["expr"]);
        assert!(page.contains(&format!("| `{}` |", rule["alert"])), "docs/operations.md does not tell of {}", rule["alert"]);
    }
}

#[test]
fn probes_say_that_the_daemon_lives_and_is_ready() {
    let _daemon = Daemon::start(&METRICS);
    assert_eq!(get("/healthz"), (200, "alive\n".to_owned()));
    let ready = || if get("/readyz") == (200, "ready\n".to_owned()) { Ok(()) } else { Err(format!("{:?}", get("/readyz"))) };
    wait_until("the daemon to be ready without its store", ready);
    assert_eq!(get("/nosuch").0, 404);
}

/// The firewall's table is of all networks; what begins and ends with the daemon is of none.
fn is_of_a_network(line: &Value) -> bool {
    line["target"] != "rsnet::app" && !line["message"].as_str().unwrap().starts_with("mended in the firewall")
}

#[test]
fn the_log_is_json_if_wanted_and_every_change_of_state_names_network_and_endpoint() {
    let daemon = Daemon::start(&[("RSNET_LOG_FORMAT", "json")]).with_a_bridge();
    let of_endpoint = json!({ "NetworkID": NETWORK, "EndpointID": ENDPOINT });
    let mut join = of_endpoint.clone();
    (join["SandboxKey"], join["Options"]) = (json!("/var/run/docker/netns/0123456789ab"), json!({}));
    daemon.call("NetworkDriver.Join", &join);
    let mut publish = of_endpoint.clone();
    let port = json!({ "Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080 });
    publish["Options"] = json!({ "com.docker.network.portmap": [port] });
    daemon.call("NetworkDriver.ProgramExternalConnectivity", &publish);
    run("ip address del 10.9.0.1/24 dev rsb-0123456789");
    wait_until("drift to be mended", || if daemon.log().contains("\"mended\"") { Ok(()) } else { Err(daemon.log()) });
    daemon.call("NetworkDriver.Leave", &of_endpoint);
    daemon.call("NetworkDriver.DeleteEndpoint", &of_endpoint);
    daemon.call("NetworkDriver.DeleteNetwork", &json!({ "NetworkID": NETWORK }));
    let log = daemon.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    let changes: Vec<&Value> = lines.iter().filter(|line| line["level"] == "INFO" && is_of_a_network(line)).collect();
    let names = |line: &Value, key: &str, id: &str| line[key].as_str().is_some_and(|told| id.starts_with(told));
    for line in &changes {
        assert!(names(line, "network", NETWORK), "{line}");
    }
    for message in ["endpoint created", "a container joined", "ports published", "its container left", "endpoint deleted"] {
        let line = changes.iter().find(|line| line["message"] == message).unwrap_or_else(|| panic!("{message} is not in\n{log}"));
        assert!(names(line, "endpoint", ENDPOINT), "{line}");
    }
    for message in ["network created", "network deleted"] {
        assert!(changes.iter().any(|line| line["message"] == message), "{message} is not in\n{log}");
    }
}
