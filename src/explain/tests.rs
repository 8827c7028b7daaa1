use super::*;
use crate::model::{Answer, Dropped, Flow, Key, LinkSight, Mac, NeighbourSight, NoWay, Protocol, Sight, Stage, Trail, WayOut};

const A: &str = "10.50.0.5";
const B: &str = "10.50.0.70";

fn link(name: &str, last: u8, addresses: &[&str]) -> LinkSight {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    LinkSight { name: name.to_owned(), up: true, running: true, mtu: 1450, mac: Some(Mac::local([0, 0, 0, 0, 0, last])), addresses }
}

fn sight(links: Vec<LinkSight>, by: &str, via: Option<&str>) -> Sight {
    Sight {
        links,
        has: (true, false),
        route: Ok(WayOut { link: by.to_owned(), via: via.map(|via| via.parse().unwrap()), local: false }),
        next: via.map(|via| NeighbourSight { address: via.parse().unwrap(), link: by.to_owned(), mac: Some(Mac::local([9; 6])) }),
        listeners: Vec::new(),
        sysctls: Vec::new(),
    }
}

fn end(address: &str, last: u8) -> End {
    let own = link("eth0", last, &[&format!("{address}/16")]);
    End {
        address: address.parse().unwrap(),
        link: format!("rsv-{last}").parse().unwrap(),
        mac: own.mac.unwrap(),
        mtu: Some(1450),
        beneath: None,
        sight: Ok(sight(vec![own], "eth0", Some("10.50.0.1"))),
        twins: Vec::new(),
    }
}

fn crossing(by: &str, to: &str) -> Option<Crossing> {
    Some(Crossing { by: by.parse().unwrap(), planned: Some(to.parse().unwrap()), sight: Ok(sight(vec![link(to, 7, &[])], to, None)) })
}

fn side(host: &str, own: &str, other: &str, end: End, forth: Option<Crossing>, back: Option<Crossing>) -> Side {
    let card = LinkSight { mtu: 1500, ..link("eth0", 8, &[&format!("{own}/24")]) };
    let sight = Ok(sight(vec![card], "eth0", None));
    let underlay =
        Underlay { own: own.parse().unwrap(), other: other.parse().unwrap(), tunnel: Some(4789), needs: 1500, sight, alive: true };
    Side {
        host: host.to_owned(),
        ends: vec![end],
        forth,
        back,
        rows: Vec::new(),
        mended: Vec::new(),
        underlay: Some(underlay),
        trails: Vec::new(),
    }
}

/// c1 on h1 asks c2 on h2 for 80/tcp, and is answered.
fn healthy() -> Case {
    let flow = Flow { from: A.parse().unwrap(), to: B.parse().unwrap(), port: Some((Protocol::Tcp, 80)) };
    let here = side("h1", "10.77.0.2", "10.77.0.3", end(A, 1), crossing("rsv-1", "rsx-4097"), crossing("rsx-4097", "rsv-1"));
    let mut there = side("h2", "10.77.0.3", "10.77.0.2", end(B, 2), crossing("rsx-4097", "rsv-2"), crossing("rsv-2", "rsx-4097"));
    there.ends[0].sight.as_mut().unwrap().listeners = vec!["0.0.0.0".parse().unwrap()];
    Case {
        names: ("c1".to_owned(), "c2".to_owned()),
        flow,
        led: None,
        relation: Relation { says: "both are on \"blue\"".to_owned(), refusal: None, one_segment: false },
        here,
        there: There::Host("h2".to_owned(), Box::new(Ok(there))),
        probing: Probing { small: Some(Answer::Reached), large: Some((1450, Answer::Reached)), hindered: None, traced: false },
    }
}

/// Nothing came back, and every filter was listened to.
fn silent() -> Case {
    let mut case = healthy();
    case.probing = Probing { small: Some(Answer::Silent), large: None, hindered: None, traced: true };
    case
}

fn there(case: &mut Case) -> &mut Side {
    let There::Host(_, side) = &mut case.there else { unreachable!() };
    side.as_mut().as_mut().unwrap()
}

fn trail(back: bool, packed: bool, stage: Stage) -> Trail {
    Trail { back, packed, stage, by: Some("eth0".to_owned()), dropped: None }
}

#[track_caller]
fn breaks(case: &Case, place: &str, about: &str, says: &str) {
    let explanation = explain(case);
    let broken = explanation.broken().unwrap_or_else(|| panic!("nothing is broken: {explanation:#?}"));
    assert!((broken.place.as_str(), broken.about.as_str()) == (place, about) && broken.says.contains(says), "{explanation:#?}");
    assert!(broken.remedy.is_some() && !explanation.reaches);
}

#[test]
fn a_healthy_pair_raises_no_alarm_and_fits_a_screen() {
    let explanation = explain(&healthy());
    assert!(explanation.reaches && explanation.hops.iter().all(|hop| hop.state == State::Ok), "{explanation:#?}");
    assert!(explanation.hops.len() <= 15, "{explanation:#?}");
}

#[test]
fn a_lost_row_is_named_and_on_which_host() {
    let mut case = silent();
    case.here.rows.push(Row { what: Key::Fdb("rsx-4097".parse().unwrap(), Mac::local([1; 6])), missing: true });
    breaks(&case, "h1", "row", "forwarding to");
    let mut case = silent();
    there(&mut case)
        .rows
        .push(Row { what: Key::Route { destination: "10.50.0.0/26".parse().unwrap(), link: "rsx-4097".parse().unwrap() }, missing: true });
    breaks(&case, "h2", "row", "10.50.0.0/26");
}

#[test]
fn what_was_mended_in_between_is_no_fault_but_said() {
    let mut case = healthy();
    case.here.rows.push(Row { what: Key::Fdb("rsx-4097".parse().unwrap(), Mac::local([1; 6])), missing: true });
    let explanation = explain(&case);
    assert!(explanation.reaches, "it answered: {explanation:#?}");
    assert!(explanation.hops.iter().any(|hop| hop.state == State::Note && hop.about == "row"));
}

#[test]
fn the_kernels_refusal_is_put_in_words() {
    let refused = |code, sysctls: &[(&str, &str)]| {
        let mut case = silent();
        let sight = case.here.forth.as_mut().unwrap().sight.as_mut().unwrap();
        sight.route = Err(NoWay { code, words: "no".to_owned() });
        sight.sysctls = sysctls.iter().map(|(path, value)| ((*path).to_owned(), (*value).to_owned())).collect();
        case
    };
    breaks(&refused(113, &[("ipv4/ip_forward", "0")]), "h1", "forward", "does not forward");
    breaks(&refused(18, &[("ipv4/ip_forward", "1"), ("ipv4/conf/all/rp_filter", "1")]), "h1", "rp_filter", "rp_filter is on");
    breaks(&refused(113, &[("ipv4/ip_forward", "1")]), "h1", "forward", "no route leads");
}

#[test]
fn a_route_of_somebody_elses_is_told_from_the_planned_one() {
    let mut case = silent();
    case.here.forth.as_mut().unwrap().sight.as_mut().unwrap().route = Ok(WayOut { link: "tun0".to_owned(), via: None, local: false });
    breaks(&case, "h1", "forward", "by tun0 instead of rsx-4097");
}

#[test]
fn a_container_without_its_link_address_route_or_port_is_named() {
    let altered = |alter: fn(&mut Sight)| {
        let mut case = silent();
        alter(there(&mut case).ends[0].sight.as_mut().unwrap());
        case
    };
    breaks(&altered(|sight| sight.links[0].up = false), "c2", "interface", "is down");
    breaks(&altered(|sight| sight.links[0].addresses.clear()), "c2", "interface", "lost its address");
    breaks(&altered(|sight| sight.links[0].mtu = 9000), "c2", "interface", "MTU of 9000");
    breaks(&altered(|sight| sight.links.clear()), "c2", "interface", "MAC");
    breaks(&altered(|sight| sight.listeners.clear()), "c2", "port", "nobody listens");
    breaks(&altered(|sight| sight.listeners = vec!["127.0.0.1".parse().unwrap()]), "c2", "port", "127.0.0.1 only");
    breaks(
        &altered(|sight| sight.route = Err(NoWay { code: 101, words: "Network is unreachable".to_owned() })),
        "c2",
        "route",
        "do not lead to",
    );
}

#[test]
fn the_underlay_is_looked_at_from_both_sides() {
    let altered = |alter: fn(&mut Sight)| {
        let mut case = silent();
        alter(case.here.underlay.as_mut().unwrap().sight.as_mut().unwrap());
        case
    };
    breaks(&altered(|sight| sight.has.0 = false), "h1", "underlay", "lost its outer address");
    breaks(&altered(|sight| sight.links[0].running = false), "h1", "underlay", "no carrier");
    breaks(&altered(|sight| sight.links[0].mtu = 1300), "h1", "mtu", "1300");
    let mut case = silent();
    there(&mut case).underlay.as_mut().unwrap().sight.as_mut().unwrap().route = Err(NoWay { code: 101, words: "no".to_owned() });
    breaks(&case, "h2", "underlay", "has no way");
}

#[test]
fn a_peer_that_does_not_answer_is_said_and_does_not_break_what_works() {
    let mut case = healthy();
    case.there = There::Host("h2".to_owned(), Box::new(Err("connection refused".to_owned())));
    let explanation = explain(&case);
    assert!(explanation.reaches, "{explanation:#?}");
    assert!(explanation.hops.iter().any(|hop| hop.about == "peer" && hop.state == State::Unknown));
}

#[test]
fn who_drops_it_is_named_by_table_chain_and_rule() {
    let mut case = silent();
    let dropped = Some(Dropped { table: "inet foreign".to_owned(), chain: "f".to_owned(), rule: Some(7) });
    there(&mut case).trails = vec![Trail { dropped, ..trail(false, false, Stage::In) }];
    breaks(&case, "h2", "firewall", "rule 7 of chain f in table inet foreign drops packets from c1");
}

#[test]
fn without_a_word_the_place_where_it_was_last_seen_is_named() {
    let seen = |here: &[Trail], other: &[Trail]| {
        let mut case = silent();
        case.here.trails = here.to_vec();
        there(&mut case).trails = other.to_vec();
        case
    };
    let (out, packed) = (trail(false, false, Stage::Out), trail(false, true, Stage::Out));
    breaks(&seen(&[], &[]), "c1", "interface", "did not come to h1");
    breaks(&seen(&[trail(false, false, Stage::In)], &[]), "h1", "forward", "was led nowhere");
    breaks(&seen(std::slice::from_ref(&out), &[]), "h1", "underlay", "not put into the tunnel");
    breaks(&seen(&[out.clone(), packed.clone()], &[]), "underlay", "underlay", "UDP port 4789");
    breaks(&seen(&[out.clone(), packed.clone()], std::slice::from_ref(&packed)), "h2", "underlay", "did not come out");
    breaks(&seen(&[out.clone(), packed.clone()], &[packed.clone(), out.clone()]), "c2", "answer", "did not answer");
    let (back, packed_back) = (trail(true, false, Stage::Out), trail(true, true, Stage::Out));
    breaks(&seen(&[out.clone(), packed.clone()], &[packed, out, back, packed_back]), "underlay", "underlay", "its answer left h2");
}

#[test]
fn what_stands_on_a_card_of_the_hosts_is_lost_with_it_or_on_its_lan() {
    let mut case = silent();
    case.relation.one_segment = true;
    case.here.ends[0].beneath = Some("eth1".parse().unwrap());
    breaks(&case, "the LAN", "underlay", "leaves by eth1 of h1, and no answer comes");
    there(&mut case).ends[0].beneath = Some("eth2".parse().unwrap());
    there(&mut case).ends[0].sight.as_mut().unwrap().links[0].running = false;
    breaks(&case, "c2", "interface", "stands on the host's link eth2, which is down");
}

#[test]
fn a_drop_by_the_old_iptables_is_looked_at_with_its_own_tool() {
    let mut case = silent();
    let dropped = Dropped { table: "filter of ip6tables-legacy".to_owned(), chain: "INPUT".to_owned(), rule: Some(2) };
    case.here.trails = vec![Trail { dropped: Some(dropped), ..trail(false, false, Stage::In) }];
    breaks(&case, "h1", "firewall", "rule 2 of chain INPUT in table filter of ip6tables-legacy drops packets from c1");
    let remedy = explain(&case).broken().unwrap().remedy.clone().unwrap();
    assert!(remedy.starts_with("`ip6tables-legacy -nvL INPUT --line-numbers` on h1"), "{remedy}");
}

#[test]
fn large_packets_that_are_lost_without_a_word_are_found() {
    let mut case = healthy();
    case.probing.large = Some((1450, Answer::Silent));
    breaks(&case, "the way", "mtu", "1450 bytes are lost");
}

#[test]
fn an_answer_from_the_wrong_container_is_no_answer() {
    let mut case = healthy();
    there(&mut case).ends[0].twins = vec!["the container 10.50.0.9".to_owned()];
    breaks(&case, "c2", "twin", "10.50.0.9 as well");
}
