//! Restarts and crashes of rsnet, of the engine and of the host: what was promised is there again.

use std::time::{Duration, Instant};

use crate::lab::{Engine, Host, HostSpec, Lab, Output, PATIENCE, asks_for, wait_until};
use crate::standing::{difference, own};

/// A network of the village with one container at a fixed address.
struct Site {
    /// Of the network; `mode=none` has nothing that could answer.
    options: &'static str,
    container: &'static str,
    /// By which the segment and the host reach it.
    from_segment: &'static str,
    from_host: &'static str,
}

const SITES: [Site; 3] = [
    Site {
        options: "--ipam-driver default --subnet 172.30.1.0/24",
        container: "--ip 172.30.1.80 -p 8081:80",
        from_segment: "10.77.0.1:8081",
        from_host: "172.30.1.80:80",
    },
    Site {
        options: "--ipam-driver rsnet --subnet 172.30.2.0/24",
        container: "--ip 172.30.2.80 -p 8082:80",
        from_segment: "10.77.0.1:8082",
        from_host: "172.30.2.80:80",
    },
    Site {
        options: "--ipam-driver rsnet -o mode=macvlan -o parent=eth0 -o host_access=true --subnet 10.77.0.0/24 --ip-range 10.77.0.128/25",
        container: "--ip 10.77.0.180 --mac-address 02:00:00:00:00:b4",
        from_segment: "10.77.0.180:80",
        from_host: "10.77.0.180:80",
    },
];

/// A container per site that the engine starts again by itself, and its settings for rsnet.
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
        for (n, site) in (1..).zip(&SITES) {
            village.host.docker(&format!("network create -d rsnet {} net{n}", site.options)).ok();
            let run = format!("run -d --restart always --stop-signal KILL --name web{n} --network net{n} {}", site.container);
            village.host.docker(&format!("{run} box {serve}")).ok();
        }
        village.works();
        village
    }

    /// Every container answers its host, and the segment.
    #[track_caller]
    fn works(&self) {
        self.station.sh("ip neigh flush all").ok(); // a machine that was rebooted here has new cards
        for site in &SITES {
            for (from, port) in [(&self.station, site.from_segment), (&self.host, site.from_host)] {
                wait_until(&format!("{port} to answer {}", from.name), PATIENCE, || answers(from.sh(&asks_for("/", port))));
            }
        }
    }

    /// Those of the bridges' containers: there are none of endpoints that no container has, and a macvlan is in its container.
    #[track_caller]
    fn has_two_links_and_no_more(&self) {
        let two = || {
            let links = self.host.sh("ls /sys/class/net | grep '^rs[vc]-'").stdout;
            if links.lines().count() == 2 { Ok(()) } else { Err(links) }
        };
        wait_until("two links, one for each container on a bridge", PATIENCE, two);
    }
}

fn answers(seen: Output) -> Result<(), String> {
    if seen.stdout.ends_with("hello\n") { Ok(()) } else { Err(seen.to_string()) }
}

/// Both ways into a container, where the engine knows both.
fn ways(engine: Engine) -> &'static [&'static str] {
    if engine >= Engine::V28_5 { &["RSNET_ATTACH=engine", "RSNET_ATTACH=direct"] } else { &["RSNET_ATTACH=engine"] }
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
        for (n, site) in (1..).zip(&SITES) {
            village.host.docker(&format!("rm -f web{n}")).ok();
            let again = format!("run -d --name again{n} --network net{n} {} box sleep 1000", site.container);
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
        village.host.docker("rm -f web1 web2 web3").ok();
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
