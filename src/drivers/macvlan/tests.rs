//! declared → plan, and what is refused.

use std::collections::BTreeMap;

use super::*;
use crate::drivers::open;
use crate::model::{Attached, HostLink, Key, Mac, Pool, Sandbox};

fn network(options: &[(&str, &str)]) -> Network {
    let pool = |subnet: &str, gateway: &str| Pool {
        space: "LocalDefault".into(),
        subnet: subnet.parse().unwrap(),
        gateway: gateway.parse().ok(),
        auxiliary: BTreeMap::new(),
    };
    Network {
        id: "0123456789abcdef0123456789abcdef".parse().unwrap(),
        options: [("mode", "macvlan")].iter().chain(options).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ipv4: true,
        ipv6: true,
        internal: false,
        pools: vec![pool("10.77.0.0/24", "10.77.0.254"), pool("10.78.0.0/24", "10.78.0.254"), pool("fd77::/64", "")],
        host_mtu: 1400,
        host_without_ipv6: false,
        host_way: Way::Engine,
        ranges: None,
        share: None,
        host_links: BTreeMap::from([("eth0".parse().unwrap(), found())]),
    }
}

fn found() -> HostLink {
    HostLink { addresses: vec!["10.77.0.1".parse().unwrap(), "fd77::1".parse().unwrap()], ..HostLink::default() }
}

fn endpoint(addresses: &[&str]) -> Endpoint {
    Endpoint {
        id: "fedcba9876543210".parse().unwrap(),
        network: network(&[]).id,
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        mac: "02:00:00:00:00:02".parse().unwrap(),
        mac_given: false,
        interface_name: None,
        sysctls: Vec::new(),
        attached: Attached::Joined(Sandbox { path: "/var/run/docker/netns/abc".into(), way: Way::Engine }),
        bindings: Vec::new(),
    }
}

#[track_caller]
fn refused(network: &Network) -> String {
    open(network).err().expect("it is refused").to_string()
}

#[test]
fn a_container_gets_a_child_and_the_gateway_of_its_own_subnet() {
    let mode = open(&network(&[("parent", "eth0")])).unwrap();
    assert_eq!(mode.network(), Plan::default());
    let endpoint = endpoint(&["10.78.0.7/24", "fd77::7/64"]);
    let plan = mode.endpoint(&endpoint);
    assert_eq!(plan.objects.keys().collect::<Vec<_>>(), [&Key::Attachment("rsv-fedcba9876".parse().unwrap())]);
    let join = mode.join(&endpoint);
    assert_eq!(join.gateways, ["10.78.0.254".parse::<IpAddr>().unwrap()]);
    assert_eq!(join.link, Some("rsv-fedcba9876".parse().unwrap()), "the engine moves the child itself");
    let refusal = mode
        .publish(&endpoint, &[PortRequest { protocol: crate::model::Protocol::Tcp, host: None, first: 0, last: 0, container_port: 80 }]);
    assert!(refusal.unwrap_err().contains("10.78.0.7, fd77::7"));
}

#[test]
fn with_host_access_the_host_is_a_station_with_its_own_addresses_and_a_route_to_each_container() {
    let mode = open(&network(&[("parent", "eth0"), ("host_access", "true")])).unwrap();
    let station: IfName = "rsh-0123456789".parse().unwrap();
    let objects = mode.network().objects;
    for address in ["10.77.0.1/32", "fd77::1/128"] {
        assert!(objects.contains_key(&Key::Address(station.clone(), address.parse().unwrap())), "{objects:?}");
    }
    let objects = mode.endpoint(&endpoint(&["10.77.0.7/24", "fd77::7/64"])).objects;
    for destination in ["10.77.0.7/32", "fd77::7/128"] {
        assert!(objects.contains_key(&Key::Route { destination: destination.parse().unwrap(), link: station.clone() }), "{objects:?}");
    }
}

#[test]
fn a_parent_that_will_not_do_is_refused_with_the_reason() {
    let with = |link: HostLink| Network { host_links: BTreeMap::from([("eth0".parse().unwrap(), link)]), ..network(&[("parent", "eth0")]) };
    assert!(refused(&with(HostLink { wireless: true, ..found() })).contains("eth0 is Wi-Fi"));
    assert!(refused(&with(HostLink { refusal: Some("it is a port of br0".into()), ..found() })).contains("it is a port of br0"));
    assert!(refused(&with(HostLink { made_for: Some("abc".into()), ..found() })).contains("made by rsnet for network abc"));
    assert!(refused(&network(&[("parent", "eth7")])).contains("eth7 does not exist"));
    assert!(refused(&network(&[])).contains("option parent is missing"));
    let warnings = open(&with(HostLink { dead: true, ..found() })).unwrap().warnings();
    assert!(warnings[0].contains("no carrier"), "{warnings:?}");
}

#[test]
fn a_vlan_that_does_not_exist_is_made_with_the_network_and_one_that_does_is_used() {
    let objects = open(&network(&[("parent", "eth0.10")])).unwrap().network().objects;
    let Some(Object::Link(link)) = objects.get(&Key::Link("eth0.10".parse().unwrap())) else { panic!("{objects:?}") };
    assert_eq!(link.kind, LinkKind::Vlan { parent: "eth0".parse().unwrap(), id: 10 });
    let mut there = network(&[("parent", "eth0.10")]);
    there.host_links.insert("eth0.10".parse().unwrap(), found());
    assert_eq!(open(&there).unwrap().network(), Plan::default());
    for id in ["0", "4095", "65535"] {
        assert!(refused(&network(&[("parent", &format!("eth0.{id}"))])).contains(&format!("can have no VLAN {id}: they are 1 to 4094")));
    }
    assert!(refused(&network(&[("parent", "eth0.x")])).contains("eth0.x does not exist"));
}

#[test]
fn a_vlan_to_be_made_is_not_refused_for_what_its_trunk_does_with_frames_without_a_tag_nor_has_it_the_trunk_s_addresses() {
    let with = |link: HostLink| Network {
        host_links: BTreeMap::from([("eth0".parse().unwrap(), link)]),
        ..network(&[("parent", "eth0.10"), ("host_access", "true")])
    };
    let busy = open(&with(HostLink { refusal: Some("it is a port of br0".into()), ..found() })).unwrap();
    let objects = busy.network().objects;
    assert!(!objects.keys().any(|key| matches!(key, Key::Address(..))), "{objects:?}");
    assert!(refused(&with(HostLink { wireless: true, ..found() })).contains("is Wi-Fi"));
}

#[test]
fn an_internal_network_without_a_parent_stands_on_a_link_of_its_own() {
    let internal = Network { internal: true, ..network(&[("mtu", "9000")]) };
    let mode = open(&internal).unwrap();
    let objects = mode.network().objects;
    let Some(Object::Link(link)) = objects.get(&Key::Link("rsp-0123456789".parse().unwrap())) else { panic!("{objects:?}") };
    assert_eq!((&link.kind, link.mtu), (&LinkKind::Dummy, Some(9000)));
    let endpoint = endpoint(&["10.77.0.7/24"]);
    assert_eq!((mode.join(&endpoint).gateways, mode.exclusive(&endpoint)), (Vec::new(), Vec::new()));
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    assert!(refused(&network(&[("parent", "eth0"), ("macvlan_mode", "source")])).contains("needs source_macs"));
    assert!(refused(&network(&[("parent", "eth0"), ("source_macs", "02:00:00:00:00:01")])).contains("macvlan_mode=source only"));
    assert!(refused(&network(&[("parent", "eth0"), ("macvlan_mode", "vepa"), ("host_access", "true")])).contains("macvlan_mode=bridge"));
    assert!(refused(&network(&[("parent", "eth0"), ("macvlan_mode", "brigde")])).contains("did you mean bridge"));
}

#[test]
fn the_list_of_sources_can_change_and_is_read_again_as_it_was_written() {
    let (a, b): (Mac, Mac) = ("02:00:00:00:00:0a".parse().unwrap(), "02:00:00:00:00:0b".parse().unwrap());
    let source = |macs: &str| network(&[("parent", "eth0"), ("macvlan_mode", "source"), ("source_macs", macs)]).options;
    let (options, macs) = with_sources(&source("02:00:00:00:00:0a"), &[b, b], &[]).unwrap();
    assert_eq!((&options, macs), (&source("02:00:00:00:00:0a,02:00:00:00:00:0b"), vec![a, b]));
    assert_eq!(with_sources(&options, &[], &[a]).unwrap(), (source("02:00:00:00:00:0b"), vec![b]));
    assert!(with_sources(&options, &[], &[a, b]).unwrap_err().contains("last MAC"));
    assert!(with_sources(&source("02:00:00:00:00:0a"), &[], &[b]).unwrap_err().contains("not in the list"));
    assert!(with_sources(&network(&[("parent", "eth0")]).options, &[a], &[]).unwrap_err().contains("no list"));
}

#[test]
fn a_parent_in_mode_passthru_is_one_network_s_alone() {
    let claims = |mode: &str| open(&network(&[("parent", "eth0"), ("macvlan_mode", mode)])).unwrap().claims();
    let meet = |a: &str, b: &str| claims(a).iter().any(|claim| claims(b).iter().any(|other| claim.meets(other)));
    assert!(meet("passthru", "bridge") && meet("private", "passthru") && !meet("bridge", "private"));
}

#[test]
fn hosts_agree_on_the_addresses_of_a_lan_and_on_nothing_of_the_parent() {
    let subnets: Vec<IpNet> = ["10.77.0.0/24", "10.78.0.0/24", "fd77::/64"].map(|subnet| subnet.parse().unwrap()).into();
    let ranges: Vec<IpNet> = ["10.77.0.128/25", "10.78.0.0/24", "fd77::/64"].map(|range| range.parse().unwrap()).into();
    let network = network(&[("parent", "eth0"), ("macvlan_mode", "vepa")]);
    assert_eq!(open(&network).unwrap().agreement(), None, "another IPAM gives the addresses");
    let agreement = open(&Network { ranges: Some(ranges.clone()), ..network.clone() }).unwrap().agreement().unwrap();
    let options = [("--ip-range", "10.77.0.128/25"), ("mode", "macvlan")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!((agreement.subnets, agreement.options), (subnets, BTreeMap::from(options)));
    assert_eq!(agreement.reserved, ["10.77.0.254", "10.78.0.254"].map(|gateway| gateway.parse::<IpAddr>().unwrap()));
    assert_eq!(agreement.segment, Some(crate::model::Segment { ranges: ranges.clone(), own: found().addresses }));
    let options = BTreeMap::from([("mode".to_owned(), "macvlan".to_owned())]);
    let alone = Network { options, internal: true, ranges: Some(ranges), ..network };
    assert_eq!(open(&alone).unwrap().agreement(), None, "a segment of its own has no other hosts");
}
