use super::*;

fn way() -> Way {
    Way { link: "eth0".into(), mtu: 1500 }
}

fn healthy() -> Facts {
    Facts {
        looked: true,
        networks: vec![Network { name: "blue".into(), size: Some((1500, way())), ipv6: true, ..Network::default() }],
        names: Some(Names::default()),
        uplink: Some(Uplink { link: "eth0".into(), not_forwarding: vec![] }),
        store: Some(Store { place: "consul://h".into(), problem: None, ahead: Some(-2) }),
        disk: Some(Disk { directory: "/var/lib/rsnet".into(), free: 1 << 30 }),
        ..Facts::default()
    }
}

fn overlay() -> Network {
    Network { name: "wide".into(), tunnel: Some((4097, 4789)), two_ways: true, ..Network::default() }
}

/// The one finding that a change of healthy facts makes.
#[track_caller]
fn found(spoil: impl FnOnce(&mut Facts)) -> Finding {
    let mut facts = healthy();
    spoil(&mut facts);
    let mut findings = examine(&facts);
    assert_eq!(findings.len(), 1, "{findings:#?}");
    findings.remove(0)
}

fn deviation(network: Option<&str>, what: &str, failing: Option<&str>) -> Deviation {
    Deviation { network: network.map(Into::into), what: what.into(), failing: failing.map(Into::into) }
}

#[test]
fn a_healthy_host_has_no_findings() {
    assert_eq!(examine(&healthy()), []);
}

#[test]
fn addresses_that_were_given_away_are_named_with_who_has_them() {
    let addresses = ["10.50.0.5".parse().unwrap(), "10.50.0.6".parse().unwrap()].to_vec();
    let disowned = Disowned { network: "blue".into(), addresses, owner: Some("h2".into()) };
    let finding = found(|facts| facts.disowned = vec![disowned.clone()]);
    assert!(finding.what.contains("blue") && finding.what.contains("host h2 now: 10.50.0.5, 10.50.0.6"), "{finding:?}");
    let finding = found(|facts| facts.disowned = vec![Disowned { owner: None, ..disowned }]);
    assert!(finding.what.contains("another"), "{finding:?}");
}

#[test]
fn all_that_is_missing_of_a_network_is_one_finding_that_heals() {
    let lost = ["link rsb-1 is missing", "address 10.0.0.1/24 on rsb-1 is missing", "bridge port rsv-1 is altered", "route x is missing"];
    let finding = found(|facts| facts.deviations = lost.iter().map(|what| deviation(Some("blue"), what, None)).collect());
    assert!(finding.heals && finding.remedy.contains("--fix"), "{finding:?}");
    assert_eq!(finding.what, format!("network blue: {} and 1 more", lost[..3].join(", ")));
}

#[test]
fn what_cannot_be_made_is_told_with_the_cause_and_does_not_heal() {
    let finding = found(|facts| facts.deviations = vec![deviation(Some("blue"), "link rsb-1 is missing", Some("file exists"))]);
    assert!(!finding.heals && finding.meaning.contains("file exists"), "{finding:?}");
}

#[test]
fn what_nobody_planned_is_left_over() {
    let finding = found(|facts| facts.deviations = vec![deviation(None, "link rsb-2 is left over", None)]);
    assert_eq!((finding.check.as_str(), finding.heals), ("leftover", true));
}

#[test]
fn two_networks_are_two_findings() {
    let mut facts = healthy();
    facts.deviations = ["blue", "red"].map(|network| deviation(Some(network), "link is missing", None)).to_vec();
    assert_eq!(examine(&facts).len(), 2);
}

#[test]
fn a_firewall_that_differs_heals_and_one_that_cannot_be_made_says_why() {
    assert!(found(|facts| facts.firewall = vec!["add elements to set inet rsnet publish4".into()]).heals);
    let finding = found(|facts| facts.firewall_failing = Some("operation not supported".into()));
    assert!(!finding.heals && finding.meaning.contains("not supported"));
}

#[test]
fn every_other_fault_is_named_by_one_finding() {
    let blocker = Blocker { chain: "chain forward of table inet mine".into(), how: "drops by its policy".into() };
    let gone = Gone { name: "h2".into(), address: [192, 0, 2, 2].into(), since: Some(600) };
    let tunnel = |vni| Tunnel { link: "vx0".into(), vni, port: 4789 };
    let cases: Vec<(&str, Finding)> = vec![
        ("look", found(|facts| facts.blind = Some("no socket".into()))),
        ("look", found(|facts| facts.looked = false)),
        ("blocked", found(|facts| facts.blockers = vec![blocker])),
        ("warning", found(|facts| facts.networks[0].warnings = vec!["parent eth0 is down".into()])),
        ("mtu", found(|facts| facts.networks[0].size = Some((9000, way())))),
        ("ipv6", found(|facts| facts.without_ipv6 = true)),
        ("tunnel", found(|facts| (facts.networks, facts.tunnels) = (vec![overlay()], vec![tunnel(4097)]))),
        ("tunnel", found(|facts| (facts.networks, facts.tunnels) = (vec![overlay()], vec![tunnel(0)]))),
        ("forwarding", found(|facts| facts.uplink.as_mut().unwrap().not_forwarding = vec!["ipv4".into()])),
        ("rp_filter", found(|facts| (facts.networks, facts.strict) = (vec![overlay()], Some("all".into())))),
        ("store", found(|facts| facts.store.as_mut().unwrap().problem = Some("connection refused".into()))),
        ("clock", found(|facts| facts.store.as_mut().unwrap().ahead = Some(31))),
        ("host", found(|facts| facts.hosts_gone = vec![gone])),
        ("names", found(|facts| facts.names = Some(Names { untold: 2, unsupported: false }))),
        ("names", found(|facts| facts.names = Some(Names { untold: 0, unsupported: true }))),
        ("disk", found(|facts| facts.disk.as_mut().unwrap().free = 1 << 20)),
        ("records", found(|facts| facts.records = vec!["endpoint x is not stored".into()])),
    ];
    for (check, finding) in cases {
        assert_eq!(finding.check, check);
        assert!(!finding.heals, "{check}: nothing of ours");
        assert!(finding.meaning.ends_with('.') || finding.meaning.contains(": "), "{check}: {}", finding.meaning);
        assert!(!finding.remedy.is_empty());
    }
}

#[test]
fn what_is_beside_us_and_in_nobodys_way_is_no_finding() {
    let mut facts = healthy();
    facts.networks.push(overlay());
    facts.tunnels = vec![Tunnel { link: "vx0".into(), vni: 4098, port: 4789 }, Tunnel { link: "vx1".into(), vni: 4097, port: 8472 }];
    facts.networks[0].size = Some((1400, way()));
    assert_eq!(examine(&facts), []);
    facts.networks[1].two_ways = false;
    facts.strict = Some("all".into());
    assert_eq!(examine(&facts), []);
}

fn outside() -> Outside {
    Outside {
        engine: Ok(Seen {
            version: "28.5.1".into(),
            networks: vec![("0123456789ab".into(), "blue".into())],
            endpoints: vec![("e1".into(), "web".into())],
        }),
        networks: ["0123456789ab".to_owned()].into(),
        endpoints: ["e1".to_owned()].into(),
        client: "1".into(),
        daemon: "1".into(),
    }
}

#[track_caller]
fn found_outside(spoil: impl FnOnce(&mut Outside, &mut Seen)) -> String {
    let mut facts = outside();
    let mut seen = facts.engine.clone().unwrap();
    spoil(&mut facts, &mut seen);
    facts.engine = facts.engine.map(|_| seen);
    let mut findings = examine_outside(&facts);
    assert_eq!(findings.len(), 1, "{findings:#?}");
    findings.remove(0).check
}

#[test]
fn what_engine_and_daemon_do_not_agree_on_is_one_finding_each() {
    assert_eq!(examine_outside(&outside()), []);
    assert_eq!(found_outside(|facts, _| facts.engine = Err("does not answer".into())), "engine");
    assert_eq!(found_outside(|_, seen| seen.version = "19.03.1".into()), "engine_version");
    assert_eq!(found_outside(|facts, _| facts.daemon = "2".into()), "version");
    assert_eq!(found_outside(|facts, _| facts.networks.clear()), "lost_network");
    assert_eq!(found_outside(|facts, _| facts.endpoints.clear()), "lost_endpoint");
    let other = "fedcba9876543210".to_owned();
    assert_eq!(
        found_outside(|facts, _| {
            facts.networks.insert(other);
        }),
        "forgotten_network"
    );
}
