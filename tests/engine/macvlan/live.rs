//! What changes while containers are on a macvlan network: by people, and by what happens to the parent.

use super::{create, mac, ping, reaches, run, ways};
use crate::lab::{Engine, Host, Lab, PATIENCE, wait_until};

const PREFIXES: [&str; 2] = super::PREFIXES;

/// Whether the container has an answer to one of three pings.
fn hears(host: &Host, container: &str, station: &Host) -> bool {
    (0..3).any(|_| host.in_container(container, &ping(&station.ipv4().to_string())).succeeded())
}

#[track_caller]
fn sources(host: &Host, change: &str) -> String {
    host.sh(&format!("rsnet macvlan sources net {change}")).ok().to_owned()
}

pub fn whom_containers_hear_in_mode_source_changes_at_once_and_for_good(engine: Engine) {
    for settings in ways(engine) {
        let lab = Lab::new();
        let lan = lab.segment(PREFIXES);
        let host = lab.host("h1", engine, &[&lan]);
        let (first, second) = (lab.station("s1", &[&lan]), lab.station("s2", &[&lan]));
        let (one, two) = (mac(&first, "eth0"), mac(&second, "eth0"));
        host.start_rsnet_with(settings);
        create(&host, &format!("-o macvlan_mode=source -o source_macs={one}"));
        run(&host, "one", 130, "");
        reaches(&host, "one", &first.ipv4().to_string());
        assert!(!hears(&host, "one", &second), "the second station is not listed");

        assert!(sources(&host, &format!("--add {two}")).contains(&two));
        host.in_container("one", &ping(&second.ipv4().to_string())).ok();
        assert!(hears(&host, "one", &first), "the first station is listed still");
        assert!(!sources(&host, &format!("--remove {one} --json")).contains(&one));
        assert!(!hears(&host, "one", &first), "the first station is listed no more");

        host.kill_rsnet();
        host.start_rsnet_with(settings);
        wait_until("the network's name to be known again", PATIENCE, || {
            let seen = host.sh("rsnet macvlan sources net --json");
            if seen.stdout.contains(&two) && !seen.stdout.contains(&one) { Ok(()) } else { Err(seen.to_string()) }
        });
        run(&host, "two", 131, "");
        for container in ["one", "two"] {
            assert!(hears(&host, container, &second) && !hears(&host, container, &first), "{container} after a restart of rsnet");
        }
        host.docker("restart -t 0 one").ok();
        assert!(hears(&host, "one", &second) && !hears(&host, "one", &first), "after a restart of the container");
        host.in_container("two", &format!("ip link set $({}) type macvlan macaddr add {one}", super::NAME)).ok();
        wait_until("a list altered by hand to be as declared", PATIENCE, || {
            if hears(&host, "two", &first) { Err("the first station is heard".to_owned()) } else { Ok(()) }
        });
        refusals(&host, &two);
    }
}

fn refusals(host: &Host, listed: &str) {
    for (typed, refusal) in [
        (format!("net --remove {listed}"), "the last MAC stays"),
        ("net --remove 02:00:00:00:00:01".to_owned(), "02:00:00:00:00:01 is not in the list"),
        ("net --add eth0".to_owned(), "write it like 02:42:ac:12:00:02"),
        ("lan".to_owned(), "network lan is not known to rsnet"),
    ] {
        host.sh(&format!("rsnet macvlan sources {typed}")).fails_with(refusal);
    }
}
