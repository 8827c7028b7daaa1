//! The daemon with a Consul in its settings: it says what is wrong with it, and serves its networks all the same.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::http;
use super::server::{Server, own_network, wait_until};

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// `rsnet serve` in this thread's network namespace. Killed when dropped.
struct Daemon {
    dir: TempDir,
    child: Child,
}

impl Daemon {
    fn start(settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let mut command = command(settings);
        command.arg("--data-dir").arg(dir.path()).arg("--sockets").arg(dir.path().join("socket"));
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Self { dir, child }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    #[track_caller]
    fn says(&self, words: &str) {
        wait_until(words, || if self.log().contains(words) { Ok(()) } else { Err(self.log()) });
    }

    /// One of the engine's calls; the answer's body.
    fn call(&self, what: &str, body: &Value) -> Value {
        wait_until("the socket", || UnixStream::connect(self.path("socket")).map_err(|error| error.to_string()));
        let answer = http::request(&self.path("socket"), "POST", &format!("/{what}"), &body.to_string()).unwrap();
        assert_eq!(answer.status, 200, "{what}: {}", answer.body);
        serde_json::from_str(&answer.body).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_rsnet"), "serve", "--docker", "none"]).stdin(Stdio::null());
    command.env_clear().envs(settings.iter().copied());
    command
}

#[test]
fn the_daemon_serves_while_consul_is_away_and_says_so_once() {
    own_network();
    let daemon = Daemon::start(&[("RSNET_STORE", "consul://127.0.0.1:8500/rsnet")]);
    daemon.says("read rsnet/format in consul://127.0.0.1:8500/rsnet: ");
    let pool = json!({ "Gateway": "10.9.0.1/24", "Pool": "10.9.0.0/24", "AddressSpace": "rsnet" });
    daemon.call("NetworkDriver.CreateNetwork", &json!({ "NetworkID": ID, "Options": {}, "IPv4Data": [pool], "IPv6Data": [] }));
    assert!(String::from_utf8_lossy(&run("ip", "-br link show type bridge").stdout).contains("rsb-"), "{}", daemon.log());
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
    let daemon = Daemon::start(&[("RSNET_STORE", "consul://127.0.0.1"), ("RSNET_STORE_TOKEN_FILE", file.to_str().unwrap())]);
    daemon.says(&format!("read store_token_file={} (RSNET_STORE_TOKEN_FILE): No such file or directory", file.display()));
    assert_eq!(daemon.call("Plugin.Activate", &json!({}))["Implements"], json!(["NetworkDriver", "IpamDriver"]));
    std::fs::write(&file, "any\n").unwrap();
    daemon.says("the store consul://127.0.0.1:8500/rsnet is there");
}

#[test]
fn settings_that_make_no_sense_keep_the_daemon_from_starting_and_are_all_named() {
    let wrong = [("RSNET_STORE", "https://h"), ("RSNET_STORE_CERT", "cert.pem"), ("RSNET_STORE_TOKEN", "a b"), ("RSNET_ATTACH", "x")];
    let output = command(&wrong).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for name in ["RSNET_STORE_CA", "RSNET_STORE_CERT", "RSNET_STORE_KEY", "RSNET_STORE_TOKEN", "RSNET_ATTACH"] {
        assert!(error.contains(name), "{name} is not in {error}");
    }
}

fn run(program: &str, arguments: &str) -> Output {
    Command::new(program).args(arguments.split(' ')).output().unwrap()
}
