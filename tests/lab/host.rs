//! A machine of the lab: with a Docker Engine it is a host, without one a station or a router.
//!
//! Owns: the life of the machine, of its engine and of its rsnet. Must not: decide what is right, that is the tests' work.

use super::disk::Disk;
use super::http::{Answer, request};
use super::output::{Output, wait_until};
use super::process::Process;
use super::segment::{Nic, Segment, Shared};
use super::space::Space;
use super::{Inner, PATIENCE};
use nix::sys::signal::Signal;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

/// The program under test, and where every machine finds it.
const RSNET: (&str, &str) = (env!("CARGO_BIN_EXE_rsnet"), "/usr/local/sbin/rsnet");
/// Where a host's engine listens.
const DOCKER_SOCKET: &str = "/run/docker.sock";
/// Where rsnet listens as a plain process.
const RSNET_SOCKET: &str = "/run/docker/plugins/rsnet.sock";
/// Seconds after which a command of a test is ended: it hangs.
const HANGS: &str = "120";

/// A Docker Engine to test on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Engine {
    /// Of this machine's own Debian 12.
    V20_10,
    /// Of Debian trixie.
    V26_1,
    /// Of Debian sid: 28.5 or later.
    V28_5,
    /// In no Debian yet: the root is one that somebody put there.
    V29_7,
    /// The same, which filters with nftables and not with iptables.
    V29_7Nftables,
}

impl Engine {
    /// What `docker version` says its server is, up to the last number.
    pub fn version(self) -> &'static str {
        match self {
            Engine::V20_10 => "20.10",
            Engine::V26_1 => "26.1",
            Engine::V28_5 => "28.5",
            Engine::V29_7 | Engine::V29_7Nftables => "29.7",
        }
    }

    /// What it is started with, whatever a test asks for besides.
    fn flags(self) -> &'static str {
        match self {
            Engine::V29_7Nftables => "--firewall-backend=nftables",
            _ => "",
        }
    }

    /// It filters with iptables: there are `DOCKER-USER` and a `FORWARD` that drops, and it turns forwarding on itself. With nftables it wants
    /// to find that turned on.
    pub fn uses_iptables(self) -> bool {
        self != Engine::V29_7Nftables
    }

    /// The root file system it runs from; panics if this machine does not have it.
    fn root(self) -> &'static Path {
        let root = Path::new(match self {
            Engine::V20_10 => "/",
            Engine::V26_1 => "/var/cache/rsnet/engine-trixie",
            Engine::V28_5 => "/var/cache/rsnet/engine-sid",
            Engine::V29_7 | Engine::V29_7Nftables => "/var/cache/rsnet/engine-29",
        });
        let (dockerd, version) = (root.join("usr/sbin/dockerd"), self.version());
        let missing = format!("{} is missing: `make deps engines ENGINE={version}` brings it or says how", dockerd.display());
        assert!(dockerd.exists(), "no Docker Engine {version} on this machine: {missing}");
        root
    }
}

/// What a machine is to be made of.
#[derive(Clone)]
pub struct HostSpec {
    name: String,
    engine: Option<Engine>,
    segments: Vec<Arc<Shared>>,
    second_address: bool,
    legacy_iptables: bool,
    flags: String,
    shown: Vec<(PathBuf, PathBuf)>,
}

impl HostSpec {
    /// A machine without engine, on no segment.
    pub fn new(name: &str) -> HostSpec {
        HostSpec {
            name: name.to_string(),
            engine: None,
            segments: Vec::new(),
            second_address: false,
            legacy_iptables: false,
            flags: String::new(),
            shown: Vec::new(),
        }
    }

    pub fn engine(mut self, engine: Engine) -> HostSpec {
        self.engine = Some(engine);
        self
    }

    pub fn has_engine(&self) -> bool {
        self.engine.is_some()
    }

    /// Plugs `eth0`, `eth1` … into these segments.
    pub fn on(mut self, segments: &[&Segment]) -> HostSpec {
        self.segments.extend(segments.iter().map(|segment| segment.shared().clone()));
        self
    }

    /// Every card gets a second address of each prefix, 100 after its first.
    pub fn second_address(mut self) -> HostSpec {
        self.second_address = true;
        self
    }

    /// `iptables` is iptables-legacy on this machine.
    pub fn legacy_iptables(mut self) -> HostSpec {
        self.legacy_iptables = true;
        self
    }

    /// Flags for dockerd, `"--live-restore --userland-proxy=false"`.
    pub fn dockerd_flags(mut self, flags: &str) -> HostSpec {
        self.flags = flags.to_string();
        self
    }

    /// Shows a file or directory of this machine at the same path in the host.
    pub fn showing(mut self, path: &Path) -> HostSpec {
        self.shown.push((path.to_path_buf(), path.to_path_buf()));
        self
    }
}

/// A machine.
pub struct Host {
    pub name: String,
    lab: Arc<Inner>,
    engine: Option<Engine>,
    flags: Mutex<String>,
    dockerd: Mutex<Option<Process>>,
    rsnet: Mutex<Option<Process>>,
    nics: Vec<Nic>,
    /// None only while it is being rebooted or dropped.
    space: Option<Space>,
    disk: Disk,
}

/// Life of the machine.
impl Host {
    pub(super) fn new(lab: &Arc<Inner>, spec: &HostSpec) -> Host {
        let mut shown = spec.shown.clone();
        shown.push((RSNET.0.into(), RSNET.1.into()));
        let root = spec.engine.map_or(Path::new("/"), Engine::root);
        let cards = spec.segments.iter().enumerate();
        let mut host = Host {
            name: spec.name.clone(),
            lab: lab.clone(),
            engine: spec.engine,
            flags: Mutex::new(spec.flags.clone()),
            dockerd: Mutex::default(),
            rsnet: Mutex::default(),
            nics: cards.map(|(i, segment)| Nic::new(segment, i, spec.second_address)).collect(),
            space: None,
            disk: Disk::new(&format!("{}-{}", lab.name, spec.name), root, shown),
        };
        for what in ["dockerd", "rsnet"] {
            let _ = std::fs::remove_file(host.log(what));
        }
        host.power_on();
        if spec.legacy_iptables {
            host.sh("for i in iptables ip6tables; do update-alternatives --set $i /usr/sbin/$i-legacy; done").ok();
        }
        host
    }

    /// Pulls the plug and starts the machine again: its disk is as it was, nothing else is, and neither engine nor rsnet runs.
    pub fn reboot(&mut self) {
        self.power_off();
        self.power_on();
    }

    /// Every process stops where it is. The machine's kernel goes on: it still answers a ping.
    pub fn pause(&self) {
        self.space().cgroup.freeze(true);
    }

    pub fn resume(&self) {
        self.space().cgroup.freeze(false);
    }

    /// Cuts every wire of the machine.
    pub fn cut(&self) {
        self.nics.iter().for_each(|nic| nic.carry("down"));
    }

    /// What fits every wire of the machine, in bytes; a reboot forgets it.
    pub fn set_mtu(&self, mtu: u32) {
        self.nics.iter().for_each(|nic| nic.set_mtu(self.space().init, mtu));
    }

    /// The same for one card.
    pub fn set_mtu_of(&self, card: usize, mtu: u32) {
        self.nics[card].set_mtu(self.space().init, mtu);
    }

    /// The switch is a reflective relay for the machine (IEEE 802.1Qbg).
    pub fn reflect(&self) {
        self.nics.iter().for_each(Nic::reflect);
    }

    pub fn mend(&self) {
        self.nics.iter().for_each(|nic| nic.carry("up"));
    }

    fn power_on(&mut self) {
        let space = Space::new(&format!("{}-{}", self.lab.name, self.name));
        self.disk.mount_in(&space);
        self.nics.iter().for_each(|nic| nic.plug(space.init));
        self.space = Some(space);
    }

    fn power_off(&mut self) {
        self.space = None;
        *self.dockerd.get_mut().unwrap_or_else(|e| e.into_inner()) = None;
        *self.rsnet.get_mut().unwrap_or_else(|e| e.into_inner()) = None;
        self.nics.iter().for_each(Nic::unplug);
    }

    fn space(&self) -> &Space {
        self.space.as_ref().expect("a machine is without namespaces only inside reboot and drop")
    }
}

/// What it is.
impl Host {
    /// All its addresses, the first card's first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.nics.iter().flat_map(|nic| &nic.addresses).map(|address| address.addr()).collect()
    }

    /// Its first IPv4 address.
    #[track_caller]
    pub fn ipv4(&self) -> IpAddr {
        self.addresses().into_iter().find(IpAddr::is_ipv4).expect("the machine has an IPv4 address")
    }

    /// Its first IPv6 address.
    #[track_caller]
    pub fn ipv6(&self) -> IpAddr {
        self.addresses().into_iter().find(IpAddr::is_ipv6).expect("the machine has an IPv6 address")
    }

    /// A path of the machine, as the test sees it; it ends with a reboot.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.space().init))
    }

    /// Its network namespace.
    pub fn network(&self) -> File {
        File::open(self.path("/proc/1/ns/net")).expect("a machine has a network")
    }

    /// That of a container of its engine.
    #[track_caller]
    pub fn network_of(&self, container: &str) -> File {
        let key = self.docker(&format!("inspect -f '{{{{.NetworkSettings.SandboxKey}}}}' {container}"));
        // `/var/run` is a link, which would lead out of the machine
        File::open(self.path(key.ok().trim_start_matches("/var"))).expect("a running container has a network")
    }

    /// Where the log of its process `what` is kept.
    pub fn log(&self, what: &str) -> PathBuf {
        self.lab.logs.join(format!("{}-{what}.log", self.name))
    }
}

/// Commands.
impl Host {
    /// Runs a program to its end.
    pub fn exec(&self, command: &[&str]) -> Output {
        let mut run = self.space().command("timeout");
        run.arg(HANGS).args(command).stdin(Stdio::null());
        Output::of(&self.name, &command.join(" "), run)
    }

    /// Runs a shell command to its end.
    pub fn sh(&self, script: &str) -> Output {
        let mut run = self.space().command("timeout");
        run.args([HANGS, "sh", "-c", script]).stdin(Stdio::null());
        Output::of(&self.name, script, run)
    }

    /// Runs `docker …` against the machine's own engine, with the client of that engine's version.
    pub fn docker(&self, arguments: &str) -> Output {
        self.sh(&format!("docker {arguments}"))
    }

    /// Runs a program of the machine in a running container's network: what the container's own image lacks is no hindrance.
    #[track_caller]
    pub fn in_container(&self, container: &str, script: &str) -> Output {
        let inside = self.inside(container);
        let mut run = self.space().command("timeout");
        run.args([HANGS, "nsenter", &inside, "sh", "-c", script]).stdin(Stdio::null());
        Output::of(&format!("{}, in {container}", self.name), script, run)
    }

    /// Starts a shell command that runs on; `what` names its log.
    pub fn spawn(&self, what: &str, script: &str) -> Process {
        self.start(what, &["sh", "-c", &format!("exec {script}")])
    }

    /// Starts a shell command that runs on in a container's network.
    #[track_caller]
    pub fn spawn_in_container(&self, container: &str, what: &str, script: &str) -> Process {
        let inside = self.inside(container);
        self.start(what, &["nsenter", &inside, "sh", "-c", &format!("exec {script}")])
    }

    /// Waits until something listens on the port: `tcp` or `udp`.
    #[track_caller]
    pub fn wait_listening(&self, protocol: &str, port: u16) {
        let ask = format!("ss -Hln --{protocol} sport = :{port}");
        let listening = || {
            let seen = self.sh(&ask).ok().to_string();
            if seen.is_empty() { Err("nobody listens".to_string()) } else { Ok(()) }
        };
        wait_until(&format!("{protocol} port {port} of {}", self.name), PATIENCE, listening);
    }

    fn start(&self, what: &str, command: &[&str]) -> Process {
        let mut run = self.space().service(command[0]);
        run.args(&command[1..]);
        Process::start(&format!("{what} on {}", self.name), run, &self.log(what))
    }

    #[track_caller]
    fn inside(&self, container: &str) -> String {
        let sandbox = self.docker(&format!("inspect -f '{{{{.NetworkSettings.SandboxKey}}}}' {container}"));
        format!("--net={}", sandbox.ok())
    }
}

/// The engine.
impl Host {
    /// Starts dockerd and waits until it answers. The image `box` is there then.
    #[track_caller]
    pub fn start_dockerd(&self) {
        let (engine, flags) = (self.engine.expect("it has an engine"), self.flags.lock().expect("no panic while held").clone());
        if !engine.uses_iptables() {
            self.sh("sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.default.forwarding=1 net.ipv6.conf.all.forwarding=1").ok();
        }
        let mut process = self.spawn("dockerd", &format!("dockerd -H unix://{DOCKER_SOCKET} {} {flags}", engine.flags()));
        wait_until(&format!("dockerd of {} to answer", self.name), PATIENCE, || {
            if let Some(status) = process.ended() {
                panic!("dockerd of {} ended: {status}\n{}", self.name, tail(&process.log));
            }
            let answer = self.api("GET", "/_ping", "").map_err(|e| e.to_string())?;
            if answer.status == 200 { Ok(()) } else { Err(answer.body) }
        });
        *self.dockerd.lock().expect("no panic while held") = Some(process);
        self.import_box();
    }

    /// Asks dockerd to end and waits until it has. Containers end with it, unless it was started with `--live-restore`.
    #[track_caller]
    pub fn stop_dockerd(&self) {
        self.take_dockerd().stop(PATIENCE);
    }

    /// Kills dockerd where it stands; its containers run on.
    #[track_caller]
    pub fn kill_dockerd(&self) {
        self.take_dockerd().end_by(Signal::SIGKILL);
    }

    /// Flags for the next start of dockerd.
    pub fn set_dockerd_flags(&self, flags: &str) {
        *self.flags.lock().expect("no panic while held") = flags.to_string();
    }

    /// One request to the engine's API.
    pub fn api(&self, method: &str, path: &str, body: &str) -> std::io::Result<Answer> {
        request(&self.path(DOCKER_SOCKET), method, path, body)
    }

    #[track_caller]
    fn take_dockerd(&self) -> Process {
        let running = self.dockerd.lock().expect("no panic while held").take();
        running.unwrap_or_else(|| panic!("dockerd does not run on {}", self.name))
    }

    /// The image `box`: busybox under all its names, `sh`, `ip`, `ping`, `wget`, `nc`, `httpd` ….
    #[track_caller]
    fn import_box(&self) {
        if self.docker("image inspect box").succeeded() {
            return;
        }
        let image = File::open(box_image()).expect("open the image box");
        let mut run = self.space().command("docker");
        run.args(["import", "-", "box"]).stdin(image);
        Output::of(&self.name, "docker import - box", run).ok();
    }
}

impl Host {
    /// What `scripts/consul` brings.
    pub const CONSUL: &str = "/var/cache/rsnet/consul/usr/bin/consul";

    /// Starts a Consul that keeps nothing, and waits until it takes connections.
    pub fn start_consul(&self) -> Process {
        let address = self.ipv4();
        let consul = self.spawn("consul", &format!("{} agent -dev -bind {address} -client {address}", Host::CONSUL));
        self.wait_listening("tcp", 8500);
        consul
    }
}

/// The daemon under test, as a plain process.
impl Host {
    /// Starts `rsnet serve` and waits until it takes connections.
    #[track_caller]
    pub fn start_rsnet(&self) {
        self.start_rsnet_with("");
    }

    /// Starts `rsnet serve` with more settings, `"RSNET_ATTACH=direct"`, and waits until it takes connections.
    #[track_caller]
    pub fn start_rsnet_with(&self, settings: &str) {
        let command = format!("env RSNET_DATA_DIR=/var/lib/rsnet RSNET_LOG=debug {settings} rsnet serve");
        let mut process = self.spawn("rsnet", &command);
        wait_until(&format!("rsnet of {} to listen", self.name), PATIENCE, || {
            if let Some(status) = process.ended() {
                panic!("rsnet of {} ended: {status}\n{}", self.name, tail(&process.log));
            }
            std::os::unix::net::UnixStream::connect(self.path(RSNET_SOCKET)).map_err(|e| e.to_string())
        });
        *self.rsnet.lock().expect("no panic while held") = Some(process);
    }

    /// Asks rsnet to end (SIGTERM) and waits until it has.
    #[track_caller]
    pub fn stop_rsnet(&self) -> std::process::ExitStatus {
        self.take_rsnet().stop(PATIENCE)
    }

    /// Kills rsnet where it stands.
    #[track_caller]
    pub fn kill_rsnet(&self) {
        self.take_rsnet().end_by(Signal::SIGKILL);
    }

    /// One call to rsnet as the engine makes it, `plugin("/NetworkDriver.GetCapabilities", "")`.
    pub fn plugin(&self, path: &str, body: &str) -> std::io::Result<Answer> {
        request(&self.path(RSNET_SOCKET), "POST", path, body)
    }

    #[track_caller]
    fn take_rsnet(&self) -> Process {
        let running = self.rsnet.lock().expect("no panic while held").take();
        running.unwrap_or_else(|| panic!("rsnet does not run on {}", self.name))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for what in ["dockerd", "rsnet"].iter().filter(|what| self.log(what).exists()) {
                let log = self.log(what);
                eprintln!("--- {what} of {} (whole log: {})\n{}", self.name, log.display(), tail(&log));
            }
        }
        self.power_off();
    }
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

/// A tar file of a root file system that is busybox and nothing else; made once and kept with the build.
fn box_image() -> PathBuf {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("box.tar");
    if !kept.exists() {
        let fresh = kept.with_extension(format!("{}", std::process::id()));
        let script = "d=$(mktemp -d) && mkdir $d/bin $d/tmp && cp /bin/busybox $d/bin/ \
            && for a in $(busybox --list); do ln -s busybox $d/bin/$a; done; tar -C $d -cf \"$0\" . && rm -r $d";
        let mut make = Command::new("sh");
        make.args(["-c", script]).arg(&fresh);
        Output::of("this machine", "make the image box of /bin/busybox (busybox-static)", make).ok();
        std::fs::rename(&fresh, &kept).expect("keep the image box");
    }
    kept
}
