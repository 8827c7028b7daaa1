//! declared → plan, compared whole as text.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::*;
use crate::drivers::open;
use crate::model::{Attached, Pool, PortRange, Protocol, Sandbox};

fn network(options: &[(&str, &str)]) -> Network {
    Network {
        id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
        options: options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ipv4: true,
        ipv6: true,
        internal: false,
        pools: vec![pool("10.5.0.0/16", "10.5.0.1"), pool("fd00:5::/64", "fd00:5::1")],
        host_mtu: 1400,
        host_without_ipv6: false,
        host_way: Way::Engine,
        host_links: BTreeMap::new(),
        ranges: None,
        share: None,
    }
}

fn pool(subnet: &str, gateway: &str) -> Pool {
    Pool { space: "LocalDefault".into(), subnet: subnet.parse().unwrap(), gateway: gateway.parse().ok(), auxiliary: BTreeMap::new() }
}

fn endpoint(way: Way) -> Endpoint {
    let binding = |host: Option<&str>, first, last, container_port| Binding {
        protocol: Protocol::Tcp,
        host: host.map(|host| host.parse().unwrap()),
        host_ports: PortRange { first, last },
        container_port,
    };
    Endpoint {
        id: "fedcba9876543210".parse().unwrap(),
        network: network(&[]).id,
        addresses: vec!["10.5.0.2/16".parse().unwrap(), "fd00:5::2/64".parse().unwrap()],
        mac: "02:00:00:00:00:02".parse().unwrap(),
        mac_given: false,
        interface_name: None,
        sysctls: vec![("net/ipv4/conf/IFNAME/log_martians".into(), "1".into())],
        attached: Attached::Joined(Sandbox { path: "/var/run/docker/netns/abc".into(), way }),
        bindings: vec![binding(None, 8080, 8080, 80), binding(Some("127.0.0.1"), 20000, 20999, 20000)],
    }
}

fn text(plan: &Plan) -> String {
    let mut text = String::new();
    for object in plan.objects.values() {
        writeln!(text, "{object:?}").unwrap();
    }
    for entry in &plan.entries {
        writeln!(text, "{entry:?}").unwrap();
    }
    text
}

fn plans(network: &Network, endpoint: &Endpoint) -> String {
    let mode = open(network).unwrap();
    format!("{}--- endpoint\n{}--- join\n{:?}\n", text(&mode.network()), text(&mode.endpoint(endpoint)), mode.join(endpoint))
}

#[test]
fn a_dual_stack_network_with_published_ports() {
    insta::assert_snapshot!(plans(&network(&[]), &endpoint(Way::Engine)));
}

#[test]
fn an_internal_network_without_icc_made_directly() {
    let internal = Network { internal: true, ..network(&[("icc", "false"), ("attach", "direct")]) };
    let endpoint = Endpoint { bindings: Vec::new(), ..endpoint(Way::Direct) };
    insta::assert_snapshot!(plans(&internal, &endpoint));
}

#[test]
fn routed_and_unprotected_sides_with_trusted_links() {
    let options = [("gateway_mode_ipv4", "routed"), ("gateway_mode_ipv6", "nat-unprotected"), ("trusted", "eth1:eth2")];
    insta::assert_snapshot!(plans(&network(&options), &endpoint(Way::Engine)));
}

#[test]
fn ports_left_to_the_engine_need_no_gateway_of_ours() {
    let mode = open(&network(&[("publish", "engine")])).unwrap();
    let join = mode.join(&endpoint(Way::Engine));
    assert_eq!((join.gateways, join.gateway_service), (Vec::new(), true));
}

#[test]
fn an_endpoint_that_has_not_joined_asks_for_nothing() {
    let mode = open(&network(&[])).unwrap();
    let endpoint = Endpoint { attached: Attached::No, ..endpoint(Way::Engine) };
    assert_eq!(mode.endpoint(&endpoint), Plan::default());
}

#[test]
fn a_host_without_ipv6_has_nothing_to_switch_off_and_no_address_to_give() {
    let dual = Network { host_without_ipv6: true, ..network(&[]) };
    let error = open(&dual).err().unwrap().to_string();
    assert!(error.contains("leave --ipv6 out"), "{error}");
    let pools = vec![pool("10.5.0.0/16", "10.5.0.1")];
    let plain = Network { ipv6: false, pools, ..dual };
    assert!(!text(&open(&plain).unwrap().network()).contains("ipv6/"));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    for (options, part) in [
        (&[("mtu", "12")][..], "option mtu=12 is not valid; give 1280 to 65535 bytes"),
        (&[("mtu", "00")], "option mtu=00 is not valid; give 1280 to 65535 bytes"),
        (&[("com.docker.network.bridge.enable_icc", "si")], "give true or false"),
        (&[("gateway_mode", "isolated")], "needs --internal"),
        (&[("gateway_mode_ipv4", "rooted")], "did you mean routed?"),
        (&[("bridge_name", "a-name-that-is-too-long")], "at most 15 bytes"),
        (&[("mode", "brigde")], "did you mean bridge?"),
        (&[("gatewaymode", "nat")], "did you mean gateway_mode"),
        (&[("source_ipv4", "fd00::1")], "an IPv4 address"),
        (&[("com.docker.network.bridge.default_bridge", "true")], "docker0 only"),
    ] {
        let error = open(&network(options)).err().expect(part).to_string();
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

#[test]
fn two_subnets_of_one_family_are_refused() {
    let mut network = network(&[]);
    network.pools.push(pool("10.6.0.0/16", "10.6.0.1"));
    let error = open(&network).err().unwrap().to_string();
    assert!(error.contains("10.5.0.0/16 and 10.6.0.0/16"), "{error}");
}

#[test]
fn a_thousand_flags_of_a_range_are_one_binding() {
    let one = |port| Binding { protocol: Protocol::Tcp, host: None, host_ports: PortRange::one(port), container_port: port };
    let shuffled = (20000..21000).rev().map(one).collect();
    let merged = Binding::merge(shuffled);
    assert_eq!(merged, [Binding { host_ports: PortRange { first: 20000, last: 20999 }, ..one(20000) }]);
}
