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

/// A router of prefix fd77:1::/64 on the segment (RFC 4861): router lifetime 1800 s, prefix on the link and for addresses.
const ADVERTISEMENT: &str =
    r"\206\0\0\0\100\0\7\10\0\0\0\0\0\0\0\0\3\4\100\300\0\1\121\200\0\0\070\100\0\0\0\0\375\167\0\1\0\0\0\0\0\0\0\0\0\0\0\0";

pub fn router_advertisements_are_heeded_where_asked_for_and_nowhere_else(engine: Engine) {
    for settings in ways(engine) {
        let lab = Lab::new();
        let lan = lab.segment(PREFIXES);
        let (host, router) = (lab.host("h1", engine, &[&lan]), lab.station("s1", &[&lan]));
        router.sh("ip addr add fd77:1::1/64 dev eth0 nodad").ok();
        let send = format!("printf '{ADVERTISEMENT}' | socat -u - 'IP6-SENDTO:[ff02::1%eth0]:58,setsockopt-int=41:18:255'");
        // not all the time: with attach=engine there are some 20 ms in which a container heeds them (docs/macvlan.md)
        let _advertising = router.spawn("router", &format!("sh -c \"while sleep 1; do {send}; done\""));
        host.start_rsnet_with(settings);
        create(&host, "");
        let make = "network create -d rsnet -o mode=macvlan -o parent=eth0 --subnet 10.79.0.0/24";
        host.docker(&format!("{make} -o slaac=true asked")).ok();
        run(&host, "silent", 130, "");
        host.docker("run -d --stop-signal KILL --name asked --network asked box sleep 10000").ok();
        reaches(&host, "asked", "fd77:1::1");
        host.in_container("asked", "ip -6 route show default").says("proto ra");
        assert_eq!(of_router(&host), "", "from the router, in a container that did not ask");
        reaches(&host, "silent", &router.ipv6().to_string());

        host.docker("restart -t 0 silent asked").ok();
        reaches(&host, "asked", "fd77:1::1");
        host.in_container("asked", &format!("ip link del $({})", super::NAME)).ok();
        host.in_container("silent", &format!("ip link del $({})", super::NAME)).ok();
        reaches(&host, "asked", "fd77:1::1");
        reaches(&host, "silent", &router.ipv6().to_string());
        assert_eq!(of_router(&host), "", "from the router, in a container whose link was lost");
    }
}

/// What the container that did not ask has of the router.
fn of_router(host: &Host) -> String {
    host.in_container("silent", "ip -6 addr | grep fd77:1:; ip -6 route | grep 'proto ra'; true").ok().to_owned()
}
