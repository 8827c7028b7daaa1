//! declared → plan, compared whole as text.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::*;
use crate::drivers::open;
use crate::model::{Attached, Pool, PortRange, Protocol, Sandbox};

fn member(host: &str, last: u8, blocks: &[&str]) -> Member {
    Member {
        host: host.to_owned(),
        vtep: [192, 0, 2, last].into(),
        mac: Mac::local([2, 0, 0, 0, 0, last]),
        homes: blocks[..2].iter().map(|block| block.parse::<IpNet>().unwrap().addr()).collect(),
        blocks: blocks.iter().map(|block| block.parse::<IpNet>().unwrap().trunc()).collect(),
    }
}

fn share() -> Share {
    let mine = member("h1", 1, &["10.50.0.64/26", "fd00:50::1:0/112"]);
    let peers = [member("h2", 2, &["10.50.0.128/26", "fd00:50::2:0/112", "10.50.3.0/26", "10.50.0.9/32"])].into_iter().collect();
    let on_link = Some(OnLink { link: IfName::of("eth", "0"), subnet: "192.0.2.0/29".parse().unwrap() });
    Share { vni: 4097, mtu: 1500, on_link, mine, peers }
}

fn network(options: &[(&str, &str)]) -> Network {
    let given = [("mode", "overlay")].iter().chain(options);
    Network {
        id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
        options: given.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ipv4: true,
        ipv6: true,
        internal: false,
        pools: vec![pool("10.50.0.0/16", "10.50.0.1"), pool("fd00:50::/64", "fd00:50::1")],
        host_mtu: 9000,
        host_without_ipv6: false,
        host_way: Way::Engine,
        host_links: BTreeMap::new(),
        ranges: None,
        share: Some(share()),
    }
}

fn pool(subnet: &str, gateway: &str) -> Pool {
    Pool { space: "rsnet-local".into(), subnet: subnet.parse().unwrap(), gateway: gateway.parse().ok(), auxiliary: BTreeMap::new() }
}

fn endpoint(way: Way) -> Endpoint {
    let binding = Binding { protocol: Protocol::Tcp, host: None, host_ports: PortRange::one(8080), container_port: 80 };
    Endpoint {
        id: "fedcba9876543210".parse().unwrap(),
        network: network(&[]).id,
        addresses: vec!["10.50.0.66/16".parse().unwrap(), "fd00:50::1:2/64".parse().unwrap()],
        mac: "02:00:00:00:00:02".parse().unwrap(),
        mac_given: false,
        interface_name: None,
        sysctls: Vec::new(),
        attached: Attached::Joined(Sandbox { path: "/var/run/docker/netns/abc".into(), way }),
        bindings: vec![binding],
    }
}

fn plans(network: &Network, endpoint: &Endpoint) -> String {
    let mode = open(network).unwrap();
    let mut text = String::new();
    for (title, plan) in [("network", mode.network()), ("endpoint", mode.endpoint(endpoint))] {
        writeln!(text, "--- {title}").unwrap();
        plan.objects.values().for_each(|object| writeln!(text, "{object:?}").unwrap());
        plan.entries.iter().for_each(|entry| writeln!(text, "{entry:?}").unwrap());
    }
    writeln!(text, "--- join\n{:?}", mode.join(endpoint)).unwrap();
    text
}

#[test]
fn a_dual_stack_network_of_two_hosts() {
    insta::assert_snapshot!(plans(&network(&[]), &endpoint(Way::Engine)));
}

#[test]
fn an_internal_network_made_directly_on_a_port_of_its_own() {
    let internal = Network { internal: true, ..network(&[("attach", "direct"), ("vxlan_port", "4790"), ("mtu", "1300")]) };
    let endpoint = Endpoint { bindings: Vec::new(), ..endpoint(Way::Direct) };
    insta::assert_snapshot!(plans(&internal, &endpoint));
}

#[test]
fn a_peer_on_the_segment_is_reached_as_it_is_where_that_may_be() {
    let routes = |transport: &str| {
        let mode = open(&network(&[("transport", transport)])).unwrap();
        let route = |object: Object| match object {
            Object::Route(Route { destination, link, kind: RouteKind::Unicast { via: Some(via), .. } }) => {
                Some(format!("{destination} {via} {link}"))
            }
            _ => None,
        };
        mode.network().objects.into_values().filter_map(route).collect::<Vec<_>>()
    };
    let plain = ["10.50.0.9/32 192.0.2.2 eth0", "10.50.0.128/26 192.0.2.2 eth0", "10.50.3.0/26 192.0.2.2 eth0"];
    let tunneled = ["10.50.0.9/32 10.50.0.128 rsx-4097", "10.50.0.128/26 10.50.0.128 rsx-4097", "10.50.3.0/26 10.50.0.128 rsx-4097"];
    let of_v6 = "fd00:50::2:0/112 fd00:50::2:0 rsx-4097";
    assert_eq!(routes("auto"), [&plain[..], &[of_v6]].concat());
    assert_eq!(routes("vxlan"), [&tunneled[..], &[of_v6]].concat());
    let far = |network: Network| {
        let share = network.share.map(|share| Share { on_link: None, ..share });
        Network { share, ipv6: false, pools: vec![pool("10.50.0.0/16", "10.50.0.1")], ..network }
    };
    let ways = |network: &Network| open(network).unwrap().network().objects.into_values().filter(|o| matches!(o, Object::Route(_))).count();
    assert_eq!(ways(&far(network(&[("transport", "direct")]))), 1, "no way to a peer elsewhere but the one that leads nowhere");
    let [warning] = &open(&far(network(&[("transport", "direct")]))).unwrap().warnings()[..] else { panic!("one warning") };
    assert!(warning.contains("host h2 (192.0.2.2)") && warning.contains("transport=auto"), "{warning}");
    assert_eq!(ways(&far(network(&[("transport", "auto")]))), 4 + 1);
}

/// One that found no block is at home at a single address, which lies in a block of another's.
#[test]
fn a_peer_without_a_block_is_reached_by_the_address_that_it_is_at_home_at() {
    let lodger = member("h3", 3, &["10.50.0.130/32", "fd00:50::3:0/112", "10.50.3.7/32"]);
    let mut share = share();
    share.peers.set("h3", Some(lodger));
    let network = Network { share: Some(share), ..network(&[]) };
    let mode = open(&network).unwrap();
    let plan: Vec<String> = mode.network().objects.values().map(|object| format!("{object:?}")).collect();
    let row = |parts: &[&str]| plan.iter().any(|object| parts.iter().all(|part| object.contains(part)));
    for (to, via) in [("10.50.0.130/32", "10.50.0.130"), ("10.50.3.7/32", "10.50.0.130"), ("10.50.0.128/26", "10.50.0.128")] {
        assert!(row(&["Route", &format!("destination: {to}"), &format!("via: Some({via})")]), "{to}: {plan:#?}");
    }
    assert!(row(&["Neighbour", "10.50.0.130"]), "{plan:#?}");
    let with = |address: &str| Endpoint { addresses: vec![address.parse().unwrap()], ..endpoint(Way::Engine) };
    for (address, host) in [("10.50.0.130/16", "host h3"), ("10.50.0.131/16", "host h2")] {
        let refusal = mode.check(&with(address)).unwrap_err();
        assert!(refusal.contains(host), "{refusal}");
    }
}

#[test]
fn an_address_that_another_host_took_has_only_its_link_left() {
    let taken = |blocks: &[&str]| {
        let mut share = share();
        share.mine.blocks.retain(|block| !blocks.contains(&block.to_string().as_str()));
        open(&Network { share: Some(share), ..network(&[]) }).unwrap().endpoint(&endpoint(Way::Engine))
    };
    let text = |plan: Plan| {
        format!("{:?} {:?}", plan.objects.values().filter(|o| !matches!(o, Object::Attachment(_))).collect::<Vec<_>>(), plan.entries)
    };
    let whole = open(&network(&[])).unwrap().endpoint(&endpoint(Way::Engine));
    assert_eq!(taken(&[]), whole);
    let half = taken(&["10.50.0.64/26"]);
    assert_eq!(half.attachment(), whole.attachment(), "the container's link stays as it is");
    let half = text(half);
    assert!(!half.contains("10.50.") && !half.contains("0.0.0.0") && half.contains("to: fd00:50::1:2"), "{half}");
    let none = taken(&["10.50.0.64/26", "fd00:50::1:0/112"]);
    assert!(none.entries.is_empty() && !text(none.clone()).contains("Route"), "{none:?}");
}

#[test]
fn while_join_is_answered_only_the_gateway_is_set_in_the_sandbox() {
    let Attached::Joined(sandbox) = endpoint(Way::Direct).attached else { unreachable!() };
    let joining = Endpoint { attached: Attached::Joining(sandbox), ..endpoint(Way::Direct) };
    let plan = open(&network(&[])).unwrap().endpoint(&joining);
    let Some(crate::model::Place::Sandbox { routes, gateways, .. }) = plan.attachment().map(|a| a.place.clone()) else { panic!() };
    assert!(gateways.is_empty() && routes.len() == 2 && routes.iter().all(|route| route.via.is_none()), "{routes:?}");
}

#[test]
fn an_address_of_another_host_or_of_none_is_refused_with_its_holder() {
    let mode = open(&network(&[])).unwrap();
    assert_eq!(mode.check(&endpoint(Way::Engine)), Ok(()));
    let with = |address: &str| Endpoint { addresses: vec![address.parse().unwrap()], ..endpoint(Way::Engine) };
    for (address, part) in [("10.50.0.130/16", "host h2"), ("10.50.9.9/16", "no host"), ("10.50.0.64/16", "no host")] {
        let refusal = mode.check(&with(address)).unwrap_err();
        assert!(refusal.contains(part) && refusal.contains("--ipam-driver rsnet"), "{refusal}");
    }
}

#[test]
fn what_one_host_may_have_for_itself_is_not_agreed_on() {
    let agreed = open(&network(&[("attach", "direct"), ("mtu", "1300")])).unwrap().agreement().unwrap();
    assert_eq!(agreed.options.keys().collect::<Vec<_>>(), ["internal", "mode", "mtu"]);
    assert_eq!(agreed.reserved, ["10.50.0.1".parse::<IpAddr>().unwrap(), "fd00:50::1".parse().unwrap()]);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let without = |subnet: &str, gateway: &str| Network { pools: vec![pool(subnet, gateway)], ..network(&[]) };
    for (network, part) in [
        (network(&[("vxlan_port", "0")]), "vxlan_port=0 is not valid; give a UDP port"),
        (network(&[("mtu", "900")]), "1280 to 65535"),
        (network(&[("transport", "directt")]), "give vxlan, direct or auto"),
        (
            network(&[("transport", "direct")]),
            "subnet fd00:50::/64 is not of the family of this host's address 192.0.2.1; use transport=auto",
        ),
        (without("10.50.0.0/30", "10.50.0.1"), "at least eight addresses"),
        (without("10.50.0.0/24", ""), "has no gateway"),
    ] {
        let error = open(&network).err().expect(part).to_string();
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

/// The agent renews no container when only these change.
#[test]
fn of_other_hosts_and_of_blocks_no_containers_plan_depends() {
    let (before, mut after) = (network(&[("transport", "auto")]), network(&[("transport", "auto")]));
    let share = after.share.as_mut().unwrap();
    share.peers.set("h3", Some(member("h3", 3, &["10.50.4.0/26", "fd00:50::4:0/112"])));
    share.mine.blocks.push("10.50.5.0/26".parse().unwrap());
    assert!(before.is_alike_here(&after) && before != after);
    let plan = |network: &Network| open(network).unwrap().endpoint(&endpoint(Way::Engine));
    assert_eq!(plan(&before), plan(&after));
    after.share.as_mut().unwrap().mtu = 1400;
    assert!(!before.is_alike_here(&after) && plan(&before) != plan(&after));
}
