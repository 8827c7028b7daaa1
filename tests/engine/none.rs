//! Mode none: containers that have nothing but themselves, until they are connected elsewhere.

use crate::lab::{Engine, Host, HostSpec, Lab, PATIENCE, wait_until};

/// Networks of the mode, with what is typed behind `-o mode=none`.
const VOIDS: [(&str, &str); 4] =
    [("void", ""), ("bare", "--ipam-driver null"), ("ours", "--ipam-driver rsnet"), ("inner", "--internal --subnet 10.9.0.0/30")];

fn have_loopback_only(host: &Host, container: &str) {
    let links = host.in_container(container, "ip -o link").ok().to_owned();
    assert!(links.lines().count() == 1 && links.contains(": lo:"), "{container}: {links}");
    let routes = host.in_container(container, "ip route; ip -6 route | grep -v 'dev lo'; true").ok().to_owned();
    assert_eq!(routes, "", "routes of {container}");
}

pub fn containers_have_loopback_only_and_no_question_of_theirs_gets_out(engine: Engine) {
    let lab = Lab::new();
    let lan = lab.segment(["10.77.0.0/24", "fd77::/64"]);
    let (host, station) = (lab.make(&HostSpec::new("h1").engine(engine).on(&[&lan])), lab.station("s1", &[&lan]));
    let _questions = station.spawn("questions", "socat -u UDP4-RECVFROM:53,fork OPEN:/tmp/questions,creat,append");
    station.wait_listening("udp", 53);
    host.sh(&format!("rm -f /etc/resolv.conf; echo nameserver {} >/etc/resolv.conf", station.ipv4())).ok();
    host.start_rsnet();
    for (network, options) in VOIDS {
        host.docker(&format!("network create -d rsnet -o mode=none {options} {network}")).ok();
        host.docker(&format!("run -d --name in-{network} --network {network} -p 8080:80 box sleep 999")).ok();
        have_loopback_only(&host, &format!("in-{network}"));
        host.in_container(&format!("in-{network}"), &format!("ping -c1 -W1 {}", station.ipv4())).fails();
        host.docker(&format!("exec in-{network} nslookup elsewhere.test")).fails();
    }
    assert_eq!(station.sh("cat /tmp/questions 2>/dev/null; true").ok(), "", "questions that got out");

    host.docker("network create -d rsnet blue").ok();
    host.docker("network connect blue in-void").ok();
    host.in_container("in-void", &format!("ping -c1 -W2 {}", station.ipv4())).ok();
    host.docker("exec in-void nslookup elsewhere.test").fails();
    wait_until("a question of the connected container to get out", PATIENCE, || {
        let seen = station.sh("cat -v /tmp/questions");
        if seen.stdout.contains("elsewhere") { Ok(()) } else { Err(seen.to_string()) }
    });
    host.docker("network disconnect blue in-void").ok();
    have_loopback_only(&host, "in-void");
}

/// Engine 28 asks whether a gateway is needed: a /30 then has room for three containers, and null IPAM gives out nothing at all.
pub fn no_address_is_wasted_where_the_engine_asks(engine: Engine) {
    let lab = Lab::new();
    let host = lab.make(&HostSpec::new("h1").engine(engine));
    host.start_rsnet();
    host.docker("network create -d rsnet -o mode=none --subnet 10.9.0.0/30 small").ok();
    host.docker("network create -d rsnet -o mode=none --ipam-driver null bare").ok();
    let asked = engine >= Engine::V28_5;
    for (name, fits) in [("one", true), ("two", asked)] {
        let started = host.docker(&format!("run -d --name {name} --network small box sleep 999"));
        assert_eq!(started.succeeded(), fits, "{started}");
    }
    host.docker("run -d --name none --network bare box sleep 999").ok();
    let address = host.docker("inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' none");
    assert_eq!(address.ok().trim(), "");
}
