//! Options and addresses: each does what it says, and what is wrong is refused at `docker network create` by name.

use crate::lab::{Engine, Output, PATIENCE, wait_until};
use crate::publish::World;
use crate::traffic::{addresses, icmp, reaches, reaches_all, reaches_none, run, serve, serve_at, tcp, udp};
use std::net::IpAddr;

impl World {
    /// Takes all containers away, and the networks named.
    fn clear(&self, networks: &str) {
        self.host.docker("rm -f $(docker ps -aq)").ok();
        self.host.docker(&format!("network rm {networks}")).ok();
    }

    /// Servers on a port of the station; who is seen there is who the segment sees.
    fn seen_by_the_station(&self, container: &str) -> [IpAddr; 2] {
        let _servers = serve_at(self.outside(), &[90]);
        [self.station.ipv4(), self.station.ipv6()].map(|station| reaches(self.inside(container), tcp(station, 90)))
    }

    /// The station routes to the containers' subnets by the host.
    pub fn routes(&self) {
        let (v4, v6) = (self.host.ipv4(), self.host.ipv6());
        self.station.sh(&format!("ip route replace 172.30.0.0/16 via {v4}; ip -6 route replace fd30::/16 via {v6}")).ok();
    }

    fn refused(&self, options: &str) -> Output {
        // a bridge's carrier is told a moment after it is made, and rsnet's table a moment after rsnet listens
        let told = || self.host.sh("! ip -br link | grep '^rsb-.* UNKNOWN' && nft list table inet rsnet");
        wait_until("bridges to be up or down, and the table there", PATIENCE, || {
            if told().code == 0 { Ok(()) } else { Err(told().to_string()) }
        });
        let before = self.state();
        let seen = self.host.docker(&format!("network create -d rsnet {options} bad"));
        seen.fails();
        assert_eq!(self.state(), before, "a refused network changes nothing: {options}");
        seen
    }

    /// What a network could have touched.
    fn state(&self) -> String {
        self.host.sh("ip -br link; ip -br addr; ip route; ip -6 route; nft -s list table inet rsnet; docker network ls -q").ok().to_string()
    }
}

pub fn a_container_has_the_mtu_and_the_interface_names_asked_for(engine: Engine) {
    let w = World::new(engine);
    for (n, options) in [
        (1, "-o mtu=1400 -o interface_prefix=lan"),
        (2, "-o com.docker.network.driver.mtu=9000 -o com.docker.network.container_iface_prefix=x"),
    ]
    .into_iter()
    {
        w.network(&format!("net{n}"), n, options);
        run(&w.host, &format!("c{n}"), &format!("--network net{n}"));
    }
    w.inside("c1").sh("ip link show lan0").says("mtu 1400");
    w.inside("c2").sh("ip link show x0").says("mtu 9000");
    // big packets whole
    run(&w.host, "c3", "--network net2");
    w.inside("c3").sh(&format!("ping -c1 -W2 -M do -s 8900 {}", addresses(&w.host, "c2", "net2")[0])).ok();
    w.network("plain", 3, "");
    run(&w.host, "c4", "--network plain");
    w.inside("c4").sh("ip link show eth0").says("mtu 1500");
    if engine >= Engine::V28_5 {
        named_by_the_user(&w);
    }
}

/// `interface_name` of compose, where rsnet makes the link itself.
fn named_by_the_user(w: &World) {
    w.network("direct", 4, "-o attach=direct");
    w.host.docker("network connect --driver-opt com.docker.network.endpoint.ifname=mine direct c4").ok();
    w.inside("c4").sh("ip -br addr show mine").says("172.30.4.");
    w.host.docker("network disconnect direct c4").ok();
    w.host.docker("network connect direct c4").ok();
    w.inside("c4").sh("ip -br addr show net0").says("172.30.4.");
}

pub fn the_segment_sees_the_source_that_the_options_say(engine: Engine) {
    let w = World::new(engine);
    w.routes();
    let hosts = w.host.addresses();
    let second = [&hosts[2], &hosts[3]];
    w.network("masqueraded", 1, "");
    w.network("plain", 2, "-o com.docker.network.bridge.enable_ip_masquerade=false");
    w.network("chosen", 3, &format!("-o com.docker.network.host_ipv4={} -o source_ipv6={}", second[0], second[1]));
    for network in ["masqueraded", "plain", "chosen"] {
        run(&w.host, network, &format!("--network {network}"));
    }
    let _servers = serve_at(w.outside(), &[91]);
    let own = [w.station.ipv4(), w.station.ipv6()].map(|station| reaches(w.here(), tcp(station, 91)));
    assert_eq!(w.seen_by_the_station("masqueraded"), own, "as the host's own connections");
    assert_eq!(w.seen_by_the_station("plain").to_vec(), addresses(&w.host, "plain", "plain"));
    assert_eq!(w.seen_by_the_station("chosen").each_ref(), second);
}

pub fn a_gateway_mode_opens_what_it_says_per_family(engine: Engine) {
    let w = World::new(engine);
    w.routes();
    w.network("routed", 1, "-o gateway_mode=routed");
    w.network("open", 2, "-o com.docker.network.bridge.gateway_mode_ipv4=nat-unprotected -o gateway_mode_ipv6=routed");
    w.network("other", 3, "");
    run(&w.host, "routed", "--network routed -p 8081:80");
    run(&w.host, "open", "--network open -p 8082:80");
    run(&w.host, "stranger", "--network other");
    run(&w.host, "docker", "");
    let _servers = ["routed", "open"].map(|name| serve(&w.host, name, &[80, 81]));

    let [four, six] = addresses(&w.host, "routed", "routed")[..] else { panic!("two addresses") };
    for to in [four, six] {
        assert!([w.station.ipv4(), w.station.ipv6()].contains(&reaches(w.outside(), tcp(to, 80))), "not translated");
        reaches_all(w.outside(), &[icmp(to)]);
        reaches_none(w.outside(), &[tcp(to, 81), udp(to, 80)]);
    }
    reaches_none(w.outside(), &[tcp(w.host.ipv4(), 8081), tcp(w.host.ipv6(), 8081)]);
    assert_eq!(w.seen_by_the_station("routed"), [four, six], "what leaves is not translated either");

    let [four, six] = addresses(&w.host, "open", "open")[..] else { panic!("two addresses") };
    reaches_all(w.outside(), &[tcp(four, 80), tcp(four, 81), udp(four, 81), icmp(four), tcp(w.host.ipv4(), 8082)]);
    reaches_all(w.outside(), &[tcp(six, 80), icmp(six)]);
    reaches_none(w.outside(), &[tcp(six, 81), tcp(w.host.ipv6(), 8082)]);
    assert_eq!(w.seen_by_the_station("open"), [w.host.ipv4(), six]);
    for place in [w.inside("stranger"), w.inside("docker")] {
        reaches_none(place, &[tcp(four, 81), udp(four, 81), icmp(four)]);
    }
}

pub fn an_isolated_network_has_no_address_of_the_host(engine: Engine) {
    let w = World::new(engine);
    w.network("net", 1, "--internal -o gateway_mode=isolated");
    for name in ["one", "two"] {
        run(&w.host, name, "--network net");
    }
    let _servers = serve(&w.host, "one", &[80]);
    let inside = addresses(&w.host, "one", "net");
    reaches_all(w.inside("two"), &[tcp(inside[0], 80), tcp(inside[1], 80), icmp(inside[0])]);
    reaches_none(w.here(), &[tcp(inside[0], 80), tcp(inside[1], 80)]);
    let held = w.host.sh("ip addr show to 172.30.1.0/24; ip addr show to fd30:1::/64; ip route show 172.30.1.0/24");
    assert_eq!(held.ok(), "", "the host has nothing there");
}

pub fn the_bridge_is_named_as_asked_and_has_no_ipv4_if_inhibited(engine: Engine) {
    let w = World::new(engine);
    w.network("net", 1, "-o com.docker.network.bridge.name=mybridge -o com.docker.network.bridge.inhibit_ipv4=true");
    run(&w.host, "one", "--network net -p 8080:80");
    let _servers = serve(&w.host, "one", &[80]);
    let seen = w.host.sh("ip -br addr show mybridge");
    seen.says("fd30:1::1/64");
    assert!(!seen.stdout.contains("172.30"), "{seen}");
    // the name is no mark: what is published works as on any other
    reaches(w.outside(), tcp(w.host.ipv6(), 8080));
    w.clear("net");
    let gone = || w.host.sh("! ip link show mybridge");
    wait_until("the bridge to go", PATIENCE, || if gone().succeeded() { Ok(()) } else { Err(gone().to_string()) });

    w.network("short", 2, "-o bridge_name=other0 -o inhibit_ipv4=false");
    w.host.sh("ip -br addr show other0").says("172.30.2.1/24");
}

pub fn a_trusted_interface_enters_and_host_binding_binds(engine: Engine) {
    let w = World::new(engine);
    w.routes();
    let second = w.host.addresses()[2];
    w.network(
        "net",
        1,
        &format!("-o com.docker.network.bridge.trusted_host_interfaces=nope0:eth0 -o com.docker.network.bridge.host_binding_ipv4={second}"),
    );
    run(&w.host, "web", "--network net -p 8080:80");
    let _servers = serve(&w.host, "web", &[80, 81]);
    let inside = addresses(&w.host, "web", "net");
    reaches_all(w.outside(), &[tcp(inside[0], 81), tcp(inside[1], 81), udp(inside[0], 81)]);
    reaches_all(w.outside(), &[tcp(second, 8080)]);
    reaches_none(w.outside(), &[tcp(w.host.ipv4(), 8080), tcp(w.host.ipv6(), 8080)]);
}

pub fn bad_options_are_refused_by_name_with_the_nearest_valid_one(engine: Engine) {
    let w = World::new(engine);
    let cases: &[(&str, &[&str])] = &[
        ("-o mtuu=1400", &["mtuu=1400", "did you mean mtu?"]),
        ("-o mtu=12", &["mtu=12", "68 to 65535 bytes"]),
        ("--ipv6 --subnet fd30:9::/64 -o mtu=576", &["mtu=576", "1280 to 65535 bytes"]),
        ("-o mtu=1400 -o com.docker.network.driver.mtu=1500", &["contradict"]),
        ("-o icc=perhaps", &["icc=perhaps", "true or false"]),
        ("-o com.docker.network.bridge.enable_ic=true", &["did you mean com.docker.network.bridge.enable_icc?"]),
        ("-o gateway_mode=routd", &["gateway_mode=routd", "did you mean routed?"]),
        ("-o gateway_mode=isolated", &["isolated", "--internal"]),
        ("-o bridge_name=a-name-longer-than-15", &["bridge_name=a-name-longer-than-15", "15 bytes"]),
        ("-o host_binding=everywhere", &["host_binding=everywhere", "IP address"]),
        ("-o source_ipv4=fd00::1", &["source_ipv4=fd00::1", "IPv4 address"]),
        ("-o trusted=eth0:", &["trusted=eth0:", "interface names"]),
        ("-o interface_prefix=far-too-long-a-prefix", &["interface_prefix", "1 to 11"]),
        ("-o publish=docker", &["publish=docker", "rsnet, engine"]),
        ("-o attach=indirect", &["attach=indirect", "did you mean direct?"]),
        ("-o mode=brdge", &["mode=brdge", "bridge"]),
        ("-o mtu=1 -o icc=2 -o zzz=3", &["mtu=1", "icc=2", "zzz=3"]),
    ];
    for (options, reasons) in cases {
        let seen = w.refused(options);
        reasons.iter().for_each(|reason| assert!(seen.stderr.contains(reason), "{seen}\nexpected: {reason:?}"));
    }
}

pub fn overlaps_and_foreign_bridges_are_refused_and_not_touched(engine: Engine) {
    let w = World::new(engine);
    w.network("net", 1, "");
    w.refused("--subnet 172.30.1.128/25").fails_with("verlaps");
    w.refused("--subnet 10.77.0.0/16").fails_with("10.77.0.0/24");
    w.refused("--ipam-driver null -o bridge_name=docker0").fails_with("docker0");
    w.host.sh("ip link add theirs type bridge && ip addr add 192.0.2.1/24 dev theirs && ip link set theirs up").ok();
    let refused = w.refused("--subnet 172.30.9.0/24 -o bridge_name=theirs");
    refused.fails_with("theirs");
    w.host.sh("ip -br addr show theirs").says("192.0.2.1/24");
    w.host.sh("ip link add wire7 type veth peer wire8").ok();
    w.refused("--subnet 172.30.9.0/24 -o bridge_name=wire7").fails_with("wire7");
}

/// What must work whichever way links get into containers.
fn core(engine: Engine, settings: &str, options: &str, interface: &str) {
    let w = World::with(engine, settings);
    w.network("net", 1, options);
    w.network("second", 2, options);
    w.host.docker("network create --subnet 172.30.9.0/24 docker").ok();
    run(&w.host, "one", "--network net -p 8080:80");
    run(&w.host, "two", "--network net");
    let check = || {
        let ping = |to: &str| w.host.docker(&format!("exec two ping -c1 -W2 {to}"));
        wait_until("two to ping one by name and by both addresses", PATIENCE / 4, || {
            let [four, six] = addresses(&w.host, "one", "net")[..] else { return Err("one has not two addresses".to_string()) };
            let asked = ["one".to_string(), four.to_string(), six.to_string()].map(|to| ping(&to));
            asked.iter().find(|seen| !seen.succeeded()).map_or(Ok(()), |failed| Err(failed.to_string()))
        });
        let _servers = serve(&w.host, "one", &[80]);
        reaches_all(w.outside(), &[tcp(w.host.ipv4(), 8080), tcp(w.host.ipv6(), 8080)]);
        reaches_all(w.here(), &[tcp([127, 0, 0, 1].into(), 8080)]);
        reaches_all(w.inside("two"), &[tcp(w.host.ipv4(), 8080)]);
    };
    check();
    w.inside("one").sh(&format!("ip -br link show {interface}0")).ok();
    w.inside("two").sh("ip route; ip -6 route").says("default via fd30:1::1");
    w.host.docker("restart -t 0 one").ok();
    check();
    several_networks(&w, interface);
    w.host.docker("network disconnect net one").ok();
    reaches_none(w.outside(), &[tcp(w.host.ipv4(), 8080)]);
    w.host.docker("network connect net one").ok();
    check();
    w.clear("net second docker");
    wait_until("no link of ours to be left", PATIENCE / 4, || {
        let left = w.host.sh("ip -br link | grep -E '^(rsb|rsv|rsc)-'");
        if left.stdout.is_empty() { Ok(()) } else { Err(left.to_string()) }
    });
}

/// A running container gets a second network and one of Docker's own, and loses them.
fn several_networks(w: &World, interface: &str) {
    run(&w.host, "far", "--network second");
    run(&w.host, "theirs", "--network docker");
    let _servers = ["far", "theirs"].map(|name| serve(&w.host, name, &[80]));
    let (far, theirs) = (addresses(&w.host, "far", "second"), addresses(&w.host, "theirs", "docker"));
    let everywhere = [tcp(far[0], 80), tcp(far[1], 80), tcp(theirs[0], 80)];
    reaches_none(w.inside("two"), &everywhere);
    w.host.docker("network connect second two && docker network connect docker two").ok();
    reaches_all(w.inside("two"), &everywhere);
    w.inside("two").sh(&format!("ip -br link show {interface}1")).ok();
    w.host.docker("exec two ping -c1 -W2 far").ok();
    w.host.docker("exec two ping -c1 -W2 theirs").ok();
    w.host.docker("restart -t 0 two").ok();
    reaches_all(w.inside("two"), &everywhere);
    w.host.docker("network disconnect second two && docker network disconnect docker two").ok();
    reaches_none(w.inside("two"), &everywhere);
    w.host.docker("rm -f far theirs").ok();
}

pub fn links_moved_by_the_engine_pass_the_core_tests(engine: Engine) {
    core(engine, "", "", "eth");
}

pub fn links_made_directly_pass_the_core_tests(engine: Engine) {
    // engines before 28.0 have no sandbox yet when they ask: theirs are moved by the engine
    core(engine, "", "-o attach=direct", if engine >= Engine::V28_5 { "net" } else { "eth" });
}

pub fn links_made_directly_by_default_pass_the_core_tests(engine: Engine) {
    core(engine, "RSNET_ATTACH=direct", "", if engine >= Engine::V28_5 { "net" } else { "eth" });
}

pub fn addresses_come_from_dockers_ipam_as_for_its_own_bridge(engine: Engine) {
    let w = World::new(engine);
    let subnet = "--subnet 172.30.1.0/24 --ip-range 172.30.1.128/25 --gateway 172.30.1.254 --aux-address x=172.30.1.129";
    w.host.docker(&format!("network create -d rsnet {subnet} net")).ok();
    address_rules(&w);
    w.host.docker("network create -d rsnet any").ok();
    run(&w.host, "any", "--network any");
    w.inside("any").sh("ping -c1 -W2 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p')").ok();
}

pub fn addresses_come_from_rsnets_ipam_and_are_reused_last(engine: Engine) {
    let w = World::new(engine);
    let subnet = "--subnet 172.30.1.0/24 --ip-range 172.30.1.128/25 --gateway 172.30.1.254 --aux-address x=172.30.1.129";
    w.host.docker(&format!("network create -d rsnet --ipam-driver rsnet --ipv6 --subnet fd30:1::/64 {subnet} net")).ok();
    address_rules(&w);
    let [_, six] = addresses(&w.host, "first", "net")[..] else { panic!("an address of each family") };
    reaches_all(w.inside("static"), &[icmp(six)]);

    let address = |name: &str| addresses(&w.host, name, "net")[0];
    run(&w.host, "gone", "--network net");
    let freed = address("gone");
    w.host.docker("rm -f gone").ok();
    run(&w.host, "next", "--network net");
    assert_ne!(address("next"), freed, "a freed address is reused last");
    // without a subnet, rsnet chooses one; another time another
    for name in ["some", "more"] {
        w.host.docker(&format!("network create -d rsnet --ipam-driver rsnet --ipv6 {name}")).ok();
        run(&w.host, name, &format!("--network {name}"));
        assert_eq!(addresses(&w.host, name, name).len(), 2, "one of each family");
    }
    let subnets = ["some", "more"].map(|name| w.host.docker(&format!("network inspect -f '{{{{(index .IPAM.Config 0).Subnet}}}}' {name}")));
    assert_ne!(subnets[0].ok(), subnets[1].ok());
}

/// The same with both: from the range, not the auxiliary one, the gateway as told, a static one anywhere in the subnet.
fn address_rules(w: &World) {
    run(&w.host, "first", "--network net");
    run(&w.host, "static", "--network net --ip 172.30.1.7");
    let first = addresses(&w.host, "first", "net")[0];
    assert!(matches!(first, IpAddr::V4(a) if a.octets()[3] >= 128 && a.octets()[3] != 129 && a.octets()[3] != 254), "{first}");
    assert_eq!(addresses(&w.host, "static", "net")[0], IpAddr::from([172, 30, 1, 7]));
    w.inside("first").sh("ip route").says("default via 172.30.1.254");
    reaches_all(w.inside("first"), &[icmp([172, 30, 1, 7].into()), icmp([172, 30, 1, 254].into())]);
    w.host.docker("run --rm --network net --ip 172.30.1.7 box true").fails_with("ddress");
}

pub fn without_ipam_containers_have_a_link_and_no_address(engine: Engine) {
    let w = World::new(engine);
    w.host.docker("network create -d rsnet --ipam-driver null net").ok();
    for name in ["one", "two"] {
        run(&w.host, name, "--network net");
    }
    let seen = w.inside("one").sh("ip -br -4 addr show eth0");
    assert!(!seen.ok().contains('/'), "{seen}");
    w.inside("one").sh("ip addr add 192.0.2.1/24 dev eth0").ok();
    w.inside("two").sh("ip addr add 192.0.2.2/24 dev eth0").ok();
    reaches_all(w.inside("one"), &[icmp([192, 0, 2, 2].into())]);
}
