//! rsnet as a managed plugin: from a registry into an engine, used, set, upgraded under load, and there again after a reboot.
//!
//! The plugin is the one of `make plugin`: the static release program. It is built here if it is not there or is older than the source.

use crate::lab::{Engine, Host, HostSpec, Lab, Output, PATIENCE, Process, asks, asks_for, wait_until};
use crate::traffic::{Place, addresses, icmp, reaches_all};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The plugin's name in the engine. Not `rsnet`: that would hide the driver `rsnet` (see docs/install.md).
const NAME: &str = "rsnet/driver";
/// Where the registry's station stores it, after the station's address and port.
const REPOSITORY: &str = "5000/rsnet/driver";

/// The directory that `make plugin` makes, up to date.
pub fn dist() -> &'static Path {
    static DIST: OnceLock<PathBuf> = OnceLock::new();
    DIST.get_or_init(|| {
        let project = Path::new(env!("CARGO_MANIFEST_DIR"));
        Output::of("this machine", "scripts/plugin", Command::new(project.join("scripts/plugin"))).ok();
        project.join("dist/plugin")
    })
}

/// A segment with a registry, a Docker host that trusts it, and a station to ask from.
struct Scene {
    host: Host,
    station: Host,
    registry: Process,
    _lab: Lab,
}

impl Scene {
    fn new(engine: Engine) -> Scene {
        let lab = Lab::new();
        let lan = lab.segment(["10.77.0.0/24", "fd77::/64"]);
        let station = lab.station("s1", &[&lan]);
        station.sh(&format!("cat >/tmp/registry.yml <<END\n{REGISTRY}\nEND")).ok();
        let registry = station.spawn("registry", "docker-registry serve /tmp/registry.yml");
        station.wait_listening("tcp", 5000);
        let trust = format!("--insecure-registry {}:5000", station.ipv4());
        let host = lab.make(&HostSpec::new("h1").engine(engine).on(&[&lan]).dockerd_flags(&trust).showing(dist()));
        Scene { host, station, registry, _lab: lab }
    }

    /// The plugin's name in the registry.
    fn reference(&self, tag: &str) -> String {
        format!("{}:{REPOSITORY}:{tag}", self.station.ipv4())
    }

    /// Makes the plugin with this description and pushes it.
    fn push(&self, tag: &str, description: &str) {
        let (reference, from) = (self.reference(tag), dist().display());
        let describe = format!("jq '.description = \"{description}\"' {from}/config.json >/tmp/p/config.json");
        self.host.sh(&format!("rm -rf /tmp/p; cp -r {from} /tmp/p && {describe}")).ok();
        self.host.docker(&format!("plugin create {reference} /tmp/p")).ok();
        self.host.docker(&format!("plugin push {reference}")).ok();
        self.host.docker(&format!("plugin rm {reference}")).ok();
    }

    fn install(&self, settings: &str) -> Output {
        let from = self.reference("1");
        self.host.docker(&format!("plugin install --grant-all-permissions --alias {NAME} {from} {settings}"))
    }

    /// What the station gets from a port of the host: the page of `serve`.
    #[track_caller]
    fn sees_page(&self, port: u16) {
        let ask = asks_for("/", &format!("{}:{port}", self.host.ipv4()));
        wait_until("the station to see the published page", PATIENCE, || {
            let seen = self.station.sh(&ask);
            if seen.stdout.ends_with("hello\n") { Ok(()) } else { Err(seen.to_string()) }
        });
    }

    /// A container that serves a page on port 80.
    #[track_caller]
    fn serve(&self, name: &str, flags: &str) {
        let server = "sh -c 'echo hello >/tmp/index.html; httpd -f -p 80 -h /tmp'";
        self.host.docker(&format!("run -d --name {name} {flags} box {server}")).ok();
    }
}

const REGISTRY: &str = "version: 0.1\nstorage: {inmemory: {}}\nhttp: {addr: \":5000\"}";

/// From `container`, by name.
#[track_caller]
fn reaches(host: &Host, container: &str, other: &str) {
    host.docker(&format!("exec {container} ping -c 3 -W 5 {other}")).ok();
}

/// What a `ping -q` says of losses at its end.
pub fn lost(printed: &str) -> Option<&str> {
    let line = printed.lines().find(|line| line.contains("packet loss"))?;
    line.split(", ").find(|part| part.contains("packet loss"))
}

pub fn a_plugin_from_a_registry_carries_a_network(engine: Engine) {
    let scene = Scene::new(engine);
    scene.push("1", "the first");
    scene.install("").ok();
    let host = &scene.host;
    host.docker(&format!("plugin inspect -f {{{{.Enabled}}}} {NAME}")).says("true");
    host.docker("network create -d rsnet --ipam-driver rsnet --subnet 10.20.0.0/24 blue").ok();
    scene.serve("web", "--network blue -p 8080:80");
    host.docker("run -d --name shell --network blue box sleep 1000").ok();
    reaches(host, "shell", "web");
    reaches(host, "web", "shell");
    scene.sees_page(8080);
    // as docs/operations.md says
    let at = format!("$(docker info -f '{{{{.DockerRootDir}}}}')/plugins/$(docker plugin inspect -f '{{{{.ID}}}}' {NAME})");
    host.sh(&format!("install -m 755 {at}/rootfs/rsnet /usr/local/bin/ && /usr/local/bin/rsnet ports")).says("8080");
    host.docker("rm -f web shell").ok();
    host.docker("network rm blue").ok();
    host.docker(&format!("plugin disable {NAME}")).ok();
    host.sh("test -S /run/docker/plugins/rsnet.sock").fails();
    host.docker(&format!("plugin rm {NAME}")).ok();
}

pub fn an_upgrade_interrupts_nobody_and_forgets_nothing(engine: Engine) {
    let mut scene = Scene::new(engine);
    scene.push("1", "the first");
    scene.push("2", "the second");
    scene.install("").ok();
    let host = &scene.host;
    host.docker("network create -d rsnet --ipam-driver rsnet --subnet 10.20.0.0/24 blue").ok();
    scene.serve("web", "--network blue --ip 10.20.0.7 -p 8080:80 --restart always");
    host.docker("run -d --name shell --network blue --restart always box sleep 1000").ok();
    scene.sees_page(8080);

    let inside = host.spawn_in_container("shell", "ping", "ping -q -i 0.01 10.20.0.7");
    let outside = listener(&scene);
    upgrade(&scene);
    inside.signal(nix::sys::signal::Signal::SIGINT);
    let printed = wait_until("ping to sum up", PATIENCE, || lost(&inside.printed()).map(str::to_owned).ok_or_else(|| inside.printed()));
    assert_eq!(printed, "0% packet loss", "{}", inside.printed());
    outside.keeps_flowing(&scene);

    host.docker("run -d --name late --network blue --restart always box sleep 1000").ok();
    reaches(host, "late", "web");
    scene.sees_page(8080);

    scene.host.reboot();
    scene.host.start_dockerd();
    let host = &scene.host;
    let running = || match host.docker("ps -q").ok().lines().count() {
        3 => Ok(()),
        n => Err(format!("{n} of 3 containers run")),
    };
    wait_until("the containers to come back", PATIENCE, running);
    let addresses = addresses_of(host, &["web", "shell", "late"]);
    assert!(addresses.len() == 3 && addresses.contains("10.20.0.7"), "three addresses, one of them fixed: {addresses:?}");
    reaches(host, "shell", "web");
    scene.sees_page(8080);
    host.docker("rm -f web shell late").ok();
    host.docker("network rm blue").ok();
    drop(scene.registry);
}

/// `docker plugin upgrade` as people type it, with every setting set on the way.
fn upgrade(scene: &Scene) {
    let plugin = |arguments: &str| scene.host.docker(&format!("plugin {arguments}"));
    plugin(&format!("disable -f {NAME}")).ok();
    let store = "RSNET_STORE=consul://localhost RSNET_STORE_TOKEN_FILE=/data/consul.token RSNET_STORE_DATACENTER=dc1";
    let others = "RSNET_UNDERLAY=eth0 RSNET_DOCKER=none RSNET_METRICS=127.0.0.1:9123 RSNET_LOG=debug RSNET_ATTACH=engine";
    let settings = &format!("{store} {others}");
    plugin(&format!("upgrade --grant-all-permissions --skip-remote-check {NAME} {}", scene.reference("2"))).ok();
    plugin(&format!("set {NAME} {settings}")).ok();
    plugin(&format!("enable {NAME}")).ok();
    plugin(&format!("inspect -f {{{{.Config.Description}}}} {NAME}")).says("the second");
    for setting in settings.split(' ') {
        plugin(&format!("inspect -f {{{{.Settings.Env}}}} {NAME}")).says(setting);
    }
    let ask = asks("GET /metrics HTTP/1.0", "127.0.0.1:9123");
    scene.host.sh(&ask).says("rsnet_");
}

/// A connection from the station through a published port that stands since before.
struct Conversation(Process);

fn listener(scene: &Scene) -> Conversation {
    scene.host.docker("run -d --name echo --network blue -p 7000:7 box nc -ll -p 7 -e cat").ok();
    scene.host.in_container("echo", "until ss -Hltn sport = :7 | grep -q 7; do sleep 0.05; done").ok();
    let talk = format!("sh -c 'i=0; while sleep 0.1; do i=$((i+1)); echo $i; done | socat -T5 - TCP:{}:7000'", scene.host.ipv4());
    let conversation = Conversation(scene.station.spawn("conversation", &talk));
    conversation.keeps_flowing(scene);
    conversation
}

impl Conversation {
    /// More comes back on the connection than had come until now.
    #[track_caller]
    fn keeps_flowing(&self, scene: &Scene) {
        let before = self.0.printed().lines().count();
        wait_until(&format!("an echo on the connection to {}", scene.host.name), PATIENCE, || {
            let now = self.0.printed();
            if now.lines().count() > before + 3 { Ok(()) } else { Err(now) }
        });
    }
}

fn addresses_of(host: &Host, containers: &[&str]) -> BTreeSet<String> {
    let ask = "inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}'";
    containers.iter().map(|container| host.docker(&format!("{ask} {container}")).ok().to_owned()).collect()
}

pub fn links_made_straight_in_the_sandbox_work_through_the_plugin(engine: Engine) {
    let scene = Scene::new(engine);
    scene.push("1", "the first");
    scene.install("RSNET_ATTACH=direct").ok();
    let host = &scene.host;
    host.docker("network create -d rsnet --ipam-driver rsnet --ipv6 --subnet 10.20.0.0/24 --subnet fd20::/64 blue").ok();
    scene.serve("web", "--network blue -p 8080:80");
    host.docker("run -d --name shell --network blue box sleep 1000").ok();
    // engines up to 27 have no sandbox yet when they ask: theirs is the other way
    let link = if engine >= Engine::V28_5 { "net0" } else { "eth0" };
    host.docker("exec shell ip -o addr").says(link);
    host.docker("exec shell ip -o route").says(&format!("default via 10.20.0.1 dev {link}"));
    reaches(host, "shell", "web");
    scene.sees_page(8080);
    host.docker("restart -t 0 web").ok();
    reaches(host, "shell", "web");
    host.docker("network disconnect blue shell").ok();
    host.docker("network connect blue shell").ok();
    reaches(host, "shell", "web");
    host.docker("rm -f web shell").ok();
    host.docker("network rm blue").ok();
}

pub fn a_macvlan_network_works_through_the_plugin(engine: Engine) {
    let scene = Scene::new(engine);
    scene.push("1", "the first");
    scene.install("").ok();
    let host = &scene.host;
    let lan = "--subnet 10.77.0.0/24 --ip-range 10.77.0.128/25";
    host.docker(&format!("network create -d rsnet -o mode=macvlan -o parent=eth0 -o host_access=true {lan} lan")).ok();
    host.docker("run -d --stop-signal KILL --name web --network lan --ip 10.77.0.130 box sleep 10000").ok();
    host.docker("run -d --stop-signal KILL --name shell --network lan box sleep 10000").ok();
    let answers = |from: &Host| {
        wait_until(&format!("the container to answer {}", from.name), PATIENCE, || {
            let seen = from.sh("ping -c1 -W1 10.77.0.130");
            if seen.succeeded() { Ok(()) } else { Err(seen.to_string()) }
        });
    };
    reaches(host, "shell", "web");
    answers(&scene.station);
    answers(host);
    let taken = scene.station.ipv4();
    host.docker(&format!("run --rm --network lan --ip {taken} box true")).fails_with("is in use on the segment of eth0, by MAC");
    host.docker("restart -t 0 web").ok();
    answers(&scene.station);
    host.in_container("web", "ip link del eth0").ok();
    answers(&scene.station);
    host.docker("rm -f web shell").ok();
    host.docker("network rm lan").ok();
    wait_until("nothing to be left", PATIENCE, || {
        let left = host.sh("ls /sys/class/net | grep '^rs'").stdout;
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

pub fn a_plugin_with_a_wrong_setting_says_which(engine: Engine) {
    let scene = Scene::new(engine);
    scene.push("1", "the first");
    scene.install("RSNET_ATTACH=sideways RSNET_METRICS=9").fails();
    let log = std::fs::read_to_string(scene.host.log("dockerd")).expect("the engine has a log");
    for wrong in ["attach=sideways", "metrics=9"] {
        assert!(log.contains(wrong), "{wrong} is not in the engine's log:\n{log}");
    }
}

/// With a file that comes later, in the directory that docs/store.md names.
pub fn a_plugin_reaches_a_consul_with_a_token_below_data(engine: Engine) {
    let scene = Scene::new(engine);
    scene.push("1", "the first");
    let address = scene.station.ipv4();
    let _consul = scene.station.start_consul();
    scene.install(&format!("RSNET_STORE=consul://{address} RSNET_STORE_TOKEN_FILE=/data/consul.token")).ok();
    let engine_says = |words: &str| {
        let log = || std::fs::read_to_string(scene.host.log("dockerd")).unwrap_or_default();
        wait_until(words, PATIENCE, || if log().contains(words) { Ok(()) } else { Err(log()) });
    };
    engine_says("read store_token_file=/data/consul.token (RSNET_STORE_TOKEN_FILE)");
    let data = format!("data=/var/lib/docker/plugins/$(docker plugin inspect -f '{{{{.Id}}}}' {NAME})/propagated-mount");
    scene.host.sh(&format!("{data}; echo any >token; install -m 600 token $data/consul.token")).ok();
    engine_says(&format!("the store consul://{address}:8500/rsnet is there"));
    scene.station.sh(&format!("{} kv get -http-addr={address}:8500 rsnet/format", Host::CONSUL)).says("1");
    scene.host.docker("network create -d rsnet --ipam-driver rsnet blue").ok();
    scene.host.docker("network rm blue").ok();
}

/// The README's chapter on two machines, typed on each.
pub fn two_machines_share_a_network_as_the_readme_says(engine: Engine) {
    let lab = Lab::new();
    let lan = lab.segment(["10.77.0.0/24", "fd77::/64"]);
    let station = lab.station("consul", &[&lan]);
    let address = station.ipv4();
    let _consul = station.start_consul();
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("the README");
    let chapter = readme.split("```console needs two machines").nth(1).expect("a block for two machines");
    let commands = chapter.lines().skip(1).take_while(|line| *line != "```").collect::<Vec<_>>().join("\n");
    let commands = commands.replace("10.0.0.5", &address.to_string());
    let hosts = ["h1", "h2"].map(|name| lab.make(&HostSpec::new(name).engine(engine).on(&[&lan]).showing(dist())));
    for host in &hosts {
        host.docker("tag box busybox").ok();
        host.docker(&format!("plugin create {NAME} {}", dist().display())).ok();
        host.docker(&format!("plugin enable {NAME}")).ok();
        host.sh(&format!("set -e\n{commands}")).ok();
    }
    let [h1, h2] = &hosts;
    h2.sh("rsnet hosts").says("h1");
    h2.sh("rsnet networks").says("blue");
    h2.sh("rsnet endpoints").says("web-h2");
    for (from, own, other) in [(h1, "web-h1", "web-h2"), (h2, "web-h2", "web-h1")] {
        wait_until(&format!("{own} to find {other} by name"), PATIENCE, || {
            let seen = from.docker(&format!("exec {own} ping -c 1 -W 2 {other}"));
            if seen.succeeded() { Ok(()) } else { Err(seen.to_string()) }
        });
        let seen = from.sh("rsnet addresses blue");
        ["h1", "h2", own].iter().for_each(|part| drop(seen.says(part).to_owned()));
    }
    // a plugin that ends and starts again has what it had
    h1.docker(&format!("plugin disable -f {NAME}")).ok();
    h1.docker(&format!("plugin enable {NAME}")).ok();
    h1.docker("restart -t 0 web-h1").ok();
    reaches_all(Place::Container(h2, "web-h2"), &[icmp(addresses(h1, "web-h1", "blue")[0])]);
}

/// Names come from the engine's API, whose socket is made anew under a plugin that outlives the engine.
pub fn a_plugin_hears_the_engine_again_that_it_outlived(engine: Engine) {
    let lab = Lab::new();
    let lan = lab.segment(["10.77.0.0/24", "fd77::/64"]);
    let host = lab.make(&HostSpec::new("h1").engine(engine).on(&[&lan]).dockerd_flags("--live-restore").showing(dist()));
    host.docker(&format!("plugin create {NAME} {}", dist().display())).ok();
    host.docker(&format!("plugin enable {NAME}")).ok();
    host.docker("network create -d rsnet --ipam-driver rsnet -o mode=overlay --subnet 10.50.0.0/16 blue").ok();
    let names = |expected: &str| {
        wait_until(&format!("{expected} to be known"), PATIENCE, || {
            let seen = host.sh("rsnet names blue");
            let heard = seen.succeeded() && seen.stdout.contains(expected) && !seen.stdout.contains("does not tell");
            if heard { Ok(()) } else { Err(seen.to_string()) }
        });
    };
    host.docker("run -d --init --name first --network blue box sleep 1000").ok();
    names("first");
    let process = || host.sh("pidof rsnet").ok().to_owned();
    let before = process();
    host.kill_dockerd();
    host.start_dockerd();
    host.docker("run -d --init --name second --network blue box sleep 1000").ok();
    names("second");
    assert_eq!(process(), before, "the plugin has outlived the engine");
    host.docker("rm -f first second").ok();
    // and where a user does not want that
    host.docker(&format!("plugin disable -f {NAME}")).ok();
    host.sh("mkdir -p /var/empty").ok();
    host.docker(&format!("plugin set {NAME} engine.source=/var/empty RSNET_DOCKER=none")).ok();
    host.docker(&format!("plugin enable {NAME}")).ok();
    host.docker("run -d --init --name third --network blue box sleep 1000").ok();
    host.sh("rsnet names blue").says("does not tell");
    assert_eq!(host.sh("ls /proc/$(pidof rsnet)/root/host/run").ok(), "");
    host.docker("rm -f third").ok();
    host.docker("network rm blue").ok();
}
