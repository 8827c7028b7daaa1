//! Restarts and crashes of rsnet, of the engine and of the host: what was promised is there again.

use std::time::{Duration, Instant};

use crate::lab::{Engine, Host, HostSpec, Lab, Output, PATIENCE, wait_until};
use crate::standing::{difference, own};

/// A container with a fixed address and a published port that the engine starts again by itself, one per IPAM, and its settings for rsnet.
struct Village<'l> {
    host: Host,
    station: Host,
    settings: &'l str,
}

impl<'l> Village<'l> {
    fn new(lab: &Lab, engine: Engine, flags: &str, settings: &'l str) -> Self {
        let lan = lab.segment(["10.77.0.0/24"]);
        let host = lab.make(&HostSpec::new("h1").engine(engine).on(&[&lan]).dockerd_flags(flags));
        let village = Village { host, station: lab.station("s1", &[&lan]), settings };
        village.host.start_rsnet_with(settings);
        let serve = "sh -c 'echo hello >index.html; httpd -f -p 80'";
        for (n, ipam) in [(1, "default"), (2, "rsnet")] {
            village.host.docker(&format!("network create -d rsnet --ipam-driver {ipam} --subnet 172.30.{n}.0/24 net{n}")).ok();
            let run = format!("run -d --restart always --stop-signal KILL --name web{n} --network net{n} --ip 172.30.{n}.80 -p 808{n}:80");
            village.host.docker(&format!("{run} box {serve}")).ok();
        }
        village.works();
        village
    }

    /// Both containers answer their host, and the segment by their published ports.
    #[track_caller]
    fn works(&self) {
        self.station.sh("ip neigh flush all").ok(); // a machine that was rebooted here has new cards
        for n in [1, 2] {
            let ports = [(&self.station, format!("{}:808{n}", self.host.ipv4())), (&self.host, format!("172.30.{n}.80:80"))];
            for (from, port) in ports {
                wait_until(&format!("{port} to answer {}", from.name), PATIENCE, || answers(from.sh(&ask(&port))));
            }
        }
    }

    /// Links of endpoints that no container has.
    #[track_caller]
    fn has_two_links_and_no_more(&self) {
        let two = || {
            let links = self.host.sh("ls /sys/class/net | grep '^rs[vc]-'").stdout;
            if links.lines().count() == 2 { Ok(()) } else { Err(links) }
        };
        wait_until("two links, one for each container", PATIENCE, two);
    }
}

fn answers(seen: Output) -> Result<(), String> {
    if seen.stdout.ends_with("hello\n") { Ok(()) } else { Err(seen.to_string()) }
}

fn ask(port: &str) -> String {
    format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | socat -T2 - TCP:{port},connect-timeout=2")
}

/// Both ways into a container, where the engine knows both.
fn ways(engine: Engine) -> &'static [&'static str] {
    match engine {
        Engine::V28_5 => &["RSNET_ATTACH=engine", "RSNET_ATTACH=direct"],
        _ => &["RSNET_ATTACH=engine"],
    }
}

pub fn sigterm_leaves_the_network_and_a_start_answers_within_a_second(engine: Engine) {
    let lab = Lab::new();
    let village = Village::new(&lab, engine, "", "");
    let host = &village.host;
    let before = own(host);
    let status = host.stop_rsnet();
    assert!(status.success(), "after SIGTERM rsnet ended with {status}");
    host.sh("ls /run/docker/plugins/rsnet.sock").fails();
    assert_eq!(own(host), before, "the network while rsnet is stopped:\n{}", difference(&before, &own(host)));
    village.works();
    host.stop_dockerd();
    let began = Instant::now();
    host.start_rsnet();
    let answer = host.plugin("/NetworkDriver.GetCapabilities", "").expect("rsnet answers");
    let took = began.elapsed();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(took < Duration::from_secs(1), "without an engine the first answer took {took:?}");
    host.start_dockerd();
    village.works();
}

pub fn containers_come_back_after_a_restart_of_the_engine(engine: Engine) {
    for way in ways(engine) {
        let lab = Lab::new();
        let village = Village::new(&lab, engine, "", way);
        village.host.stop_dockerd();
        village.host.start_dockerd();
        village.works();
        village.has_two_links_and_no_more();
    }
}

/// rsnet is told nothing of the endpoints that died: it frees their ports and addresses when the same are asked for again.
pub fn containers_come_back_after_a_crash_of_the_engine(engine: Engine) {
    for way in ways(engine) {
        let lab = Lab::new();
        let village = Village::new(&lab, engine, "", way);
        village.host.kill_dockerd();
        village.host.start_dockerd();
        village.works();
        village.has_two_links_and_no_more();
        for n in [1, 2] {
            village.host.docker(&format!("rm -f web{n}")).ok();
            let again = format!("run -d --name again{n} --network net{n} --ip 172.30.{n}.80 -p 808{n}:80 box sleep 1000");
            village.host.docker(&again).ok();
        }
    }
}

pub fn containers_run_on_through_a_restart_with_live_restore(engine: Engine) {
    for way in ways(engine) {
        let lab = Lab::new();
        let village = Village::new(&lab, engine, "--live-restore", way);
        let before = own(&village.host);
        for crash in [false, true] {
            if crash {
                village.host.kill_dockerd()
            } else {
                village.host.stop_dockerd()
            }
            village.works();
            village.host.start_dockerd();
            village.works();
            assert_eq!(own(&village.host), before, "{}", difference(&before, &own(&village.host)));
        }
        village.host.docker("rm -f web1 web2").ok();
        let none = || {
            let links = village.host.sh("ls /sys/class/net | grep '^rs[vc]-'").stdout;
            if links.is_empty() { Ok(()) } else { Err(links) }
        };
        wait_until("the links to go with their containers", PATIENCE, none);
    }
}

pub fn containers_come_back_after_a_reboot_with_the_plugin_first(engine: Engine) {
    come_back_after_a_reboot(engine, |host, settings| {
        host.start_rsnet_with(settings);
        host.start_dockerd();
    });
}

/// The engine looks for a plugin for 15 s before it gives a container up.
pub fn containers_come_back_after_a_reboot_with_the_engine_first(engine: Engine) {
    come_back_after_a_reboot(engine, |host, settings| {
        std::thread::scope(|scope| {
            scope.spawn(|| host.start_dockerd());
            let asks = || {
                let log = std::fs::read_to_string(host.log("dockerd")).unwrap_or_default();
                if log.contains("Unable to locate plugin: rsnet") { Ok(()) } else { Err("it has not asked for rsnet".to_string()) }
            };
            wait_until("the engine to look for its plugin", PATIENCE, asks);
            host.start_rsnet_with(settings);
        });
    });
}

fn come_back_after_a_reboot(engine: Engine, start: impl Fn(&Host, &str)) {
    for way in ways(engine) {
        let lab = Lab::new();
        let mut village = Village::new(&lab, engine, "", way);
        village.host.reboot();
        start(&village.host, village.settings);
        village.works();
        village.has_two_links_and_no_more();
    }
}
