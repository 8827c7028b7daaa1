//! A daemon, and the command line that asks it.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::engine::Engine;
use super::http;
use super::server::{own_network, wait_until};

pub const NETWORK: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
pub const ENDPOINT: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";

/// `rsnet serve` in this thread's network namespace, which is the test's own. Killed when dropped.
pub struct Daemon {
    dir: TempDir,
    child: Child,
    engine: Option<Engine>,
}

impl Daemon {
    /// Ready to answer. Settings as for the environment.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        own_network();
        Self::start_here(settings)
    }

    /// The same in the namespace that this thread has.
    pub fn start_here(settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let mut command = serve(settings);
        command.arg("--data-dir").arg(dir.path()).arg("--sockets").arg(dir.path().join("socket"));
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let daemon = Self { dir, child, engine: None };
        wait_until("the socket", || UnixStream::connect(daemon.socket()).map_err(|error| format!("{error}\n{}", daemon.log())));
        daemon
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    #[track_caller]
    pub fn says(&self, words: &str) {
        wait_until(words, || if self.log().contains(words) { Ok(()) } else { Err(self.log()) });
    }

    /// One of the engine's calls; the answer's body.
    pub fn call(&self, what: &str, body: &Value) -> Value {
        let answer = http::request(&self.socket(), "POST", &format!("/{what}"), &body.to_string()).unwrap();
        assert_eq!(answer.status, 200, "{what}: {}", answer.body);
        serde_json::from_str(&answer.body).unwrap()
    }

    /// A bridge network 10.9.0.0/24 with one endpoint, 10.9.0.2, which no container has joined.
    pub fn with_a_bridge(self) -> Self {
        self.create(NETWORK, "10.9.0", json!({}));
        self.endpoint("10.9.0.2/24");
        self
    }

    /// A network of these options; `net` as in 10.9.0.
    pub fn create(&self, id: &str, net: &str, options: Value) {
        let pool = json!({ "Gateway": format!("{net}.1/24"), "Pool": format!("{net}.0/24"), "AddressSpace": "x" });
        let options = json!({ "com.docker.network.generic": options });
        self.call("NetworkDriver.CreateNetwork", &json!({ "NetworkID": id, "Options": options, "IPv4Data": [pool], "IPv6Data": [] }));
    }

    pub fn endpoint(&self, address: &str) {
        let interface = json!({ "Address": address, "AddressIPv6": "", "MacAddress": "02:42:00:00:00:02" });
        let options = json!({});
        let new = json!({ "NetworkID": NETWORK, "EndpointID": ENDPOINT, "Interface": interface, "Options": options });
        self.call("NetworkDriver.CreateEndpoint", &new);
    }

    /// With an engine that the command line asks.
    pub fn beside(mut self, engine: Engine) -> Self {
        self.engine = Some(engine);
        self
    }

    /// `rsnet …` about this daemon.
    pub fn rsnet(&self, arguments: &str) -> Output {
        let mut command = command(arguments);
        if let Some(engine) = &self.engine {
            command.env("DOCKER_HOST", format!("unix://{}", engine.socket().display()));
        }
        command.arg("--socket").arg(self.socket()).output().unwrap()
    }

    /// The same with `--json`, read.
    pub fn json(&self, arguments: &str) -> Value {
        let output = self.rsnet(&format!("{arguments} --json"));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("rsnet {arguments} --json: {error}: {output:?}"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `rsnet serve` with these settings as its environment, where there is no engine.
pub fn serve(settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_rsnet"), "serve", "--docker", "none"]).stdin(Stdio::null());
    command.env_clear().envs(settings.iter().copied());
    command
}

/// `rsnet …` where there is no engine.
pub fn command(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rsnet"));
    command.args(arguments.split_whitespace()).env("DOCKER_HOST", "unix:///nowhere/docker.sock").stdin(Stdio::null());
    command
}

/// What was printed, as text.
pub fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}
