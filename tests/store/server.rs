//! Real Consul servers and agents, each in a directory of its own, all on the loopback of a network namespace of the test's own.
//!
//! They end with the thread that started them, also when that is killed.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rsnet::store::Consul;
use rsnet::store::consul::{Address, Settings, Token};
use serde_json::Value;
use tempfile::TempDir;

/// What scripts/consul brings.
pub const CONSUL: &str = "/var/cache/rsnet/consul/usr/bin/consul";
/// How long anything may take before it counts as failed.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// A network namespace for this thread and what it starts.
pub fn own_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root (they make a network namespace)");
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
}

/// A Consul process, at 127.0.0.N with Consul's usual ports. Killed when dropped.
pub struct Server {
    host: String,
    arguments: Vec<String>,
    dir: TempDir,
    child: Child,
}

impl Server {
    /// `consul agent` with these arguments and settings, N being the last byte of its address.
    pub fn start(n: u8, arguments: &[&str], settings: &Value) -> Self {
        assert!(Path::new(CONSUL).exists(), "no Consul at {CONSUL}: run scripts/consul");
        let (host, dir) = (format!("127.0.0.{n}"), tempfile::tempdir().unwrap());
        std::fs::write(dir.path().join("settings.json"), settings.to_string()).unwrap();
        let own =
            [format!("-bind={host}"), format!("-client={host}"), format!("-node=n{n}"), format!("-config-dir={}", dir.path().display())];
        let arguments = own.into_iter().chain(arguments.iter().map(|&argument| argument.to_owned())).collect::<Vec<_>>();
        let child = spawn(&arguments, &dir.path().join("log"));
        Self { host, arguments, dir, child }
    }

    /// One that is everything, keeps nothing on disk and allows everything.
    pub fn dev() -> Self {
        let server = Self::dev_with(&serde_json::json!({}));
        wait_until(
            "the node in the catalog",
            || if server.consul(&["catalog", "nodes"]).contains("n1") { Ok(()) } else { Err(server.log()) },
        );
        server
    }

    /// The same with further settings.
    pub fn dev_with(settings: &Value) -> Self {
        let server = Self::start(1, &["-dev"], settings);
        server.await_leader();
        server
    }

    /// One of three servers, on a disk of its own.
    pub fn one_of_three(n: u8) -> Self {
        let arguments = ["-server", "-bootstrap-expect=3", "-retry-join=127.0.0.11", "-retry-join=127.0.0.12", "-retry-interval=1s"];
        Self::start(n, &[&arguments[..], &["-data-dir=data"]].concat(), &quick())
    }

    /// An agent that is no server, and asks those three.
    pub fn agent_of_three() -> Self {
        Self::start(1, &["-retry-join=127.0.0.11", "-retry-join=127.0.0.12", "-retry-interval=1s", "-data-dir=data"], &quick())
    }

    /// A store in it, below the prefix `test`.
    pub fn store(&self) -> Consul {
        Consul::new(self.settings())
    }

    /// The settings of that store.
    pub fn settings(&self) -> Settings {
        settings(&format!("consul://{}:8500/test", self.host))
    }

    /// Its address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where it keeps its files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Kills it as a power cut would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again with what is on its disk; one that was killed before.
    pub fn start_again(&mut self) {
        self.child = spawn(&self.arguments, &self.path("log"));
    }

    /// Stops it without ending it, or lets it go on.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Consul's own command line against this one: the second opinion on what the store wrote. Panics if it fails.
    #[track_caller]
    pub fn consul(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "consul {arguments:?}: {error}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same, not run yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(CONSUL);
        command.args(arguments).env("CONSUL_HTTP_ADDR", format!("{}:8500", self.host));
        command
    }

    /// Who leads, as `ADDRESS:8300`; none if nobody does or it does not answer.
    pub fn leader(&self) -> Option<String> {
        let leader: String = serde_json::from_str(&self.try_get("/v1/status/leader")?).ok()?;
        (!leader.is_empty()).then_some(leader)
    }

    /// What its API answers, without anything of ours between.
    #[track_caller]
    pub fn get(&self, path: &str) -> String {
        self.try_get(path).expect("an answer")
    }

    fn try_get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect((self.host.as_str(), 8500)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text.split_once("\r\n\r\n")?.1.trim().to_owned())
    }

    /// Waits until somebody leads.
    #[track_caller]
    pub fn await_leader(&self) -> String {
        wait_until("a leader", || self.leader().ok_or_else(|| self.log()))
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        log.lines().rev().take(15).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Three servers, with a leader.
pub fn three() -> [Server; 3] {
    let servers = [11, 12, 13].map(Server::one_of_three);
    servers.iter().for_each(|server| drop(server.await_leader()));
    servers
}

/// Elections in a second instead of five.
pub fn quick() -> Value {
    serde_json::json!({ "performance": { "raft_multiplier": 1 } })
}

/// A store's settings without a token or certificates.
pub fn settings(address: &str) -> Settings {
    let address = Address::parse(address).unwrap();
    Settings { address, datacenter: None, token: None, ca: None, identity: None }
}

/// A token as a setting.
pub fn token(text: &str) -> Option<Token> {
    Some(Token::text(text).unwrap())
}

fn spawn(arguments: &[String], log: &Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", CONSUL, "agent"]).args(arguments).current_dir("/");
    let directory = arguments.iter().find_map(|argument| argument.strip_prefix("-config-dir="));
    command.current_dir(directory.expect("every server has one"));
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().expect("start setpriv")
}

/// Asks until there is an answer; panics with the last refusal when patience ends.
#[track_caller]
pub fn wait_until<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(why) => assert!(Instant::now() < deadline, "waited for {what}: {why}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
