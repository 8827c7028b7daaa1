//! The daemon with a Consul in its settings: it says what is wrong with it, and serves its networks all the same.

use serde_json::json;

use super::daemon::{Daemon, NETWORK, serve};
use super::namespace::run;
use super::server::{Server, own_network};

#[test]
fn the_daemon_serves_while_consul_is_away_and_says_so_once() {
    own_network();
    let daemon = Daemon::start_here(&[("RSNET_STORE", "consul://127.0.0.1:8500/rsnet")]);
    daemon.says("read rsnet/format in consul://127.0.0.1:8500/rsnet: ");
    daemon.create(NETWORK, "10.9.0", json!({}));
    assert!(run("ip -br link show type bridge").contains("rsb-"), "{}", daemon.log());
    let consul = Server::dev();
    daemon.says("the store consul://127.0.0.1:8500/rsnet is there");
    assert_eq!(daemon.log().matches("Networks of this host are served all the same").count(), 1, "{}", daemon.log());
    let kept = consul.consul(&["kv", "get", "-recurse", ""]);
    // and what keeps the prefixes that are watched from being empty
    let is_shared = |line: &str| line == "rsnet/format:1" || line.starts_with("rsnet/cluster/secret:") || line.ends_with("/~:");
    assert!(kept.contains("rsnet/format:1\n") && kept.lines().all(is_shared), "this host's own state is not in it:\n{kept}");
}

#[test]
fn a_file_that_is_missing_is_named_and_taken_when_it_comes() {
    own_network();
    let token = tempfile::tempdir().unwrap();
    let file = token.path().join("token");
    let _consul = Server::dev();
    let daemon = Daemon::start_here(&[("RSNET_STORE", "consul://127.0.0.1"), ("RSNET_STORE_TOKEN_FILE", file.to_str().unwrap())]);
    daemon.says(&format!("read store_token_file={} (RSNET_STORE_TOKEN_FILE): No such file or directory", file.display()));
    assert_eq!(daemon.call("Plugin.Activate", &json!({}))["Implements"], json!(["NetworkDriver", "IpamDriver"]));
    std::fs::write(&file, "any\n").unwrap();
    daemon.says("the store consul://127.0.0.1:8500/rsnet is there");
}

#[test]
fn settings_that_make_no_sense_keep_the_daemon_from_starting_and_are_all_named() {
    let wrong = [("RSNET_STORE", "https://h"), ("RSNET_STORE_CERT", "cert.pem"), ("RSNET_STORE_TOKEN", "a b"), ("RSNET_ATTACH", "x")];
    let output = serve(&wrong).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for name in ["RSNET_STORE_CA", "RSNET_STORE_CERT", "RSNET_STORE_KEY", "RSNET_STORE_TOKEN", "RSNET_ATTACH"] {
        assert!(error.contains(name), "{name} is not in {error}");
    }
}
