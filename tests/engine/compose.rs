//! The compose examples, with Compose itself: up, what Docker's own bridge would give, down.

use crate::lab::{Engine, Host, HostSpec, Lab, Output, PATIENCE, asks, asks_for, wait_until};
use std::path::Path;

/// Where `scripts/compose` keeps Compose.
pub const COMPOSE: &str = "/var/cache/rsnet/compose/usr/libexec/docker/cli-plugins/docker-compose";

struct Scene {
    host: Host,
    station: Host,
    _lab: Lab,
}

impl Scene {
    fn new(engine: Engine) -> Scene {
        assert!(Path::new(COMPOSE).exists(), "{COMPOSE} is missing: `scripts/compose` brings it");
        let lab = Lab::new();
        let lan = lab.segment(["10.77.0.0/24", "fd77::/64"]);
        let (project, compose) = (Path::new(env!("CARGO_MANIFEST_DIR")), Path::new(COMPOSE));
        let host = lab.make(&HostSpec::new("h1").engine(engine).on(&[&lan]).showing(project).showing(compose));
        host.start_rsnet();
        install(&host);
        Scene { station: lab.station("s1", &[&lan]), host, _lab: lab }
    }

    fn compose(&self, example: &str, arguments: &str) -> Output {
        compose(&self.host, example, arguments)
    }

    /// The station sends a line to a port, and what comes back begins so.
    #[track_caller]
    fn station_hears(&self, line: &str, port: &str, answer: &str) {
        let ask = asks(line, &format!("{port},connect-timeout=2"));
        wait_until(&format!("{answer:?} from {port}"), PATIENCE, || {
            let seen = self.station.sh(&ask);
            if seen.stdout.trim().ends_with(answer) { Ok(()) } else { Err(seen.to_string()) }
        });
    }
}

/// Compose, as a plugin of the host's `docker`.
pub fn install(host: &Host) {
    host.sh(&format!("mkdir -p /root/.docker/cli-plugins && ln -s {COMPOSE} /root/.docker/cli-plugins/")).ok();
}

/// Types `docker compose …` in the directory of an example.
pub fn compose(host: &Host, example: &str, arguments: &str) -> Output {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/compose-examples");
    host.sh(&format!("cd {directory}/{example} && IMAGE=box docker compose {arguments} 2>&1"))
}

pub fn the_bridge_example_does_what_dockers_bridge_does(engine: Engine) {
    let scene = Scene::new(engine);
    let (host, station) = (&scene.host, &scene.station);
    scene.compose("bridge", "up -d").ok();

    for address in [host.ipv4().to_string(), format!("[{}]", host.ipv6())] {
        let ask = asks_for("/cgi-bin/rows", &format!("{address}:8080"));
        wait_until(&format!("the database's rows from {address}"), PATIENCE, || {
            let seen = station.sh(&ask);
            if seen.stdout.ends_with("42 rows\n") { Ok(()) } else { Err(seen.to_string()) }
        });
    }
    scene.compose("bridge", "exec -T web ip -o addr").says("10.30.0.10/24");
    scene.compose("bridge", "exec -T web ip -o addr").says("fd30::10/64");
    scene.compose("bridge", "exec -T web ip -o link").says("mtu 1400");
    scene.compose("bridge", "exec -T web ip -o route").says("default via 10.30.0.1 ");
    scene.compose("bridge", &format!("exec -T web ping -c 1 -W 2 {}", station.ipv4())).ok();

    scene.compose("bridge", "exec -T db ping -c 1 -W 5 web").ok();
    scene.compose("bridge", &format!("exec -T db ping -c 1 -W 1 {}", station.ipv4())).fails();
    scene.compose("bridge", "exec -T db ping -c 1 -W 1 10.30.0.10").fails();
    assert_eq!(host.in_container("bridge-db-1", "ip route show default").ok(), "");

    scene.compose("bridge", "down").ok();
    assert_eq!(host.docker("network ls -q -f driver=rsnet").ok(), "");
    assert_eq!(host.docker("ps -aq").ok(), "");
    wait_until("the last link of rsnet to go", PATIENCE, || {
        let links = host.sh("ip -o link").ok().to_owned();
        if links.contains(": rs") { Err(links) } else { Ok(()) }
    });
}

pub fn the_none_example_runs_where_nothing_is_reached(engine: Engine) {
    let scene = Scene::new(engine);
    let printed = scene.compose("none", "up").says("2^10 = 1024").to_owned();
    assert!(printed.contains("127.0.0.1") && !printed.contains("eth0"), "{printed}");
    scene.compose("none", "down").ok();
    assert_eq!(scene.host.docker("network ls -q -f driver=rsnet").ok(), "");
}

pub fn the_macvlan_example_is_reached_from_the_lan(engine: Engine) {
    let scene = Scene::new(engine);
    scene.compose("macvlan", "up -d").ok();
    for from in [&scene.station, &scene.host] {
        let ask = asks_for("/", "10.77.0.200:80");
        wait_until(&format!("the page at {}", from.name), PATIENCE, || {
            let seen = from.sh(&ask);
            if seen.stdout.ends_with("hello\n") { Ok(()) } else { Err(seen.to_string()) }
        });
    }
    scene.compose("macvlan", "exec -T web ip -o route").says("default via 10.77.0.254 ");
    scene.compose("macvlan", "down").ok();
    assert_eq!(scene.host.docker("network ls -q -f driver=rsnet").ok(), "");
    wait_until("the last link of rsnet to go", PATIENCE, || {
        let links = scene.host.sh("ip -o link").ok().to_owned();
        if links.contains(": rs") { Err(links) } else { Ok(()) }
    });
}

/// The job's result is served by a container that has a network; the job itself has none.
pub fn the_isolated_job_hands_its_result_to_who_may_show_it(engine: Engine) {
    let scene = Scene::new(engine);
    scene.compose("isolated-job", "up -d").ok();
    scene.station_hears("GET /result HTTP/1.0", &format!("{}:8080", scene.host.ipv4()), "42");
    scene.compose("isolated-job", "run --rm job ip -o addr").says("127.0.0.1");
    scene.compose("isolated-job", "run --rm job ip -o link show eth0").fails();
    scene.compose("isolated-job", "down --volumes").ok();
    assert_eq!(scene.host.docker("network ls -q -f driver=rsnet").ok(), "");
}

/// The LAN sees one station, before and after a restart. Engines before 25 are not told the MAC by this Compose.
#[test]
fn the_lan_appliance_is_the_same_station_after_a_restart() {
    let scene = Scene::new(Engine::V28_5);
    scene.compose("lan-appliance", "up -d").ok();
    for _ in 0..2 {
        scene.station_hears("a page", "10.77.0.53:9100", "a page");
        scene.station.sh("ip neigh show 10.77.0.53").says("02:00:00:00:00:35");
        scene.compose("lan-appliance", "restart -t 0").ok();
    }
    scene.compose("lan-appliance", "down").ok();
}

/// On engines that know such networks.
#[test]
fn the_ipv6_only_example_has_no_ipv4_and_is_reached() {
    let scene = Scene::new(Engine::V28_5);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/compose-examples/ipv6-only/compose.yaml");
    let text = std::fs::read_to_string(file).expect("read the example");
    let create = text.lines().find_map(|line| line.strip_prefix("#   docker network create ")).expect("the command that makes its network");
    scene.host.docker(&format!("network create {create}")).ok();
    scene.compose("ipv6-only", "up -d").ok();
    scene.station_hears("GET / HTTP/1.0", &format!("[{}]:8080", scene.host.ipv6()), "hello");
    scene.compose("ipv6-only", "exec -T client ping -c 1 -W 5 web").ok();
    let addresses = scene.compose("ipv6-only", "exec -T client ip -o -4 addr").ok().to_owned();
    assert!(addresses.lines().all(|line| line.contains("127.0.0.1")), "{addresses}");
    scene.compose("ipv6-only", "down").ok();
    scene.host.docker("network rm six").ok();
}
