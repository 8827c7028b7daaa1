//! The compose examples, with Compose itself: up, what Docker's own bridge would give, down.

use crate::lab::{Engine, Host, HostSpec, Lab, PATIENCE, wait_until};
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
        host.sh(&format!("mkdir -p /root/.docker/cli-plugins && ln -s {COMPOSE} /root/.docker/cli-plugins/")).ok();
        host.start_rsnet();
        Scene { station: lab.station("s1", &[&lan]), host, _lab: lab }
    }

    /// Types `docker compose …` in the directory of an example.
    fn compose(&self, example: &str, arguments: &str) -> crate::lab::Output {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/compose-examples");
        self.host.sh(&format!("cd {directory}/{example} && IMAGE=box docker compose {arguments} 2>&1"))
    }
}

pub fn the_bridge_example_does_what_dockers_bridge_does(engine: Engine) {
    let scene = Scene::new(engine);
    let (host, station) = (&scene.host, &scene.station);
    scene.compose("bridge", "up -d").ok();

    for address in [host.ipv4().to_string(), format!("[{}]", host.ipv6())] {
        let ask = format!("printf 'GET /cgi-bin/rows HTTP/1.0\\r\\n\\r\\n' | socat -T2 - TCP:{address}:8080,connect-timeout=2");
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
        let ask = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | socat -T2 - TCP:10.77.0.200:80,connect-timeout=2";
        wait_until(&format!("the page at {}", from.name), PATIENCE, || {
            let seen = from.sh(ask);
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
