//! What came of packets that were really sent: by their answers, and by how far packet filters saw them come.

use super::Hop;
use super::facts::{Case, Side, There};
use crate::model::{Answer, Dropped, NoWay, Protocol, Stage, Trail};

/// Whether B has had a packet and A its answer; none: nothing tells.
pub fn delivered(case: &Case) -> Option<bool> {
    match case.probing.small.as_ref()? {
        Answer::Reached => Some(true),
        // it was let up to whoever listens; that he says nothing is his affair
        Answer::Silent if is_udp(case) && arrived(case) => Some(true),
        Answer::Silent if is_udp(case) && !case.probing.traced => None,
        _ => Some(false),
    }
}

fn is_udp(case: &Case) -> bool {
    matches!(case.flow.port, Some((Protocol::Udp, _)))
}

/// Nobody dropped it where somebody looks, to the end of the way.
fn arrived(case: &Case) -> bool {
    let last = match &case.there {
        There::Host(_, side) => side.as_ref().as_ref().ok(),
        _ => Some(&case.here),
    };
    last.is_some_and(|side| reached(side, false, false) == Some(Stage::Out) && dropped(side, false).next().is_none())
}

/// The furthest that packets of a kind came on a host.
fn reached(side: &Side, back: bool, packed: bool) -> Option<Stage> {
    trails(side, back, packed).map(|trail| trail.stage).max()
}

fn trails(side: &Side, back: bool, packed: bool) -> impl Iterator<Item = &Trail> {
    side.trails.iter().filter(move |trail| (trail.back, trail.packed) == (back, packed))
}

fn dropped(side: &Side, back: bool) -> impl Iterator<Item = (&Trail, &Dropped)> {
    side.trails.iter().filter(move |trail| trail.back == back).filter_map(|trail| Some((trail, trail.dropped.as_ref()?)))
}

/// The last lines: who dropped it, or where it was last seen, or that all is well.
pub fn answer(case: &Case) -> Vec<Hop> {
    let name = case.names.1.as_str();
    let Some(small) = &case.probing.small else {
        let why = case.probing.hindered.clone().unwrap_or_else(|| "nothing was sent".to_owned());
        return vec![Hop::unknown(name, "answer", format!("no packet was sent to see: {why}"))];
    };
    if delivered(case) == Some(true) {
        return vec![size(case), Some(came(case, small))].into_iter().flatten().collect();
    }
    let lost = dropper(case).or_else(|| by_words(case, small)).or_else(|| on_the_lan(case)).or_else(|| whereabouts(case));
    lost.map_or_else(|| vec![Hop::broken(name, "answer", "does not answer, and nothing tells why", hint(case))], |hop| vec![hop])
}

fn hint(case: &Case) -> String {
    match case.probing.traced {
        true => "see what filters packets without nftables (iptables-legacy, a firewall in the container, the network between)".to_owned(),
        false => format!("its packets could not be followed ({})", case.probing.hindered.as_deref().unwrap_or("no nftables")),
    }
}

fn came(case: &Case, small: &Answer) -> Hop {
    let name = case.names.1.as_str();
    match (small, &case.probing.large) {
        (Answer::Silent, _) => Hop::ok(name, "answer", "the datagram was let up to it; a server of UDP need not answer"),
        (_, Some((size, Answer::Reached))) => Hop::ok(name, "answer", format!("answers, to packets of {size} bytes too")),
        _ => Hop::ok(name, "answer", "answers"),
    }
}

/// Small packets pass and large ones do not.
fn size(case: &Case) -> Option<Hop> {
    let (size, large) = case.probing.large.as_ref()?;
    let says = match large {
        Answer::Silent => format!("answers small packets; those of {size} bytes are lost on the way, and nobody says so"),
        _ => return None,
    };
    let remedy = "somewhere on the way less fits than its ends believe: compare `ip link` of the hosts' cards and switches; or make the network with a smaller -o mtu";
    Some(match case.there {
        // PMTU discovery beyond the hosts is others' affair
        There::Outside => Hop::note("the way", "mtu", says),
        _ => Hop::broken("the way", "mtu", says, remedy),
    })
}

fn sides(case: &Case) -> Vec<&Side> {
    let there = match &case.there {
        There::Host(_, side) => side.as_ref().as_ref().ok(),
        _ => None,
    };
    [Some(&case.here), there].into_iter().flatten().collect()
}

/// In the order of the way: there on this host and the other, then back.
fn dropper(case: &Case) -> Option<Hop> {
    let sides = sides(case);
    let forth = sides.iter().flat_map(|side| dropped(side, false).map(move |found| (*side, found)));
    let back = sides.iter().rev().flat_map(|side| dropped(side, true).map(move |found| (*side, found)));
    forth.chain(back).next().map(|(side, (trail, dropped))| by_rule(case, side, trail, dropped))
}

fn by_rule(case: &Case, side: &Side, trail: &Trail, Dropped { table, chain, rule }: &Dropped) -> Hop {
    let what = match (trail.back, trail.packed) {
        (false, false) => format!("packets from {}", case.names.0),
        (true, false) => "the answers".to_owned(),
        (_, true) => "the tunnel's packets".to_owned(),
    };
    let who = rule.map_or_else(|| "the policy".to_owned(), |handle| format!("rule {handle}"));
    let says = format!("{who} of chain {chain} in table {table} drops {what}");
    let remedy = match (table.as_str(), table.strip_prefix("filter of ")) {
        ("inet rsnet", _) => {
            format!("rsnet's own rules: docs/firewall.md tells what chain {chain} lets pass; `nft -a list chain {table} {chain}` shows it")
        }
        (_, Some(legacy)) => format!("`{legacy} -nvL {chain} --line-numbers` on {} shows it; let the packets pass there", side.host),
        _ => format!("`nft -a list chain {table} {chain}` on {} shows it; let the packets pass there", side.host),
    };
    Hop::broken(&side.host, "firewall", says, remedy)
}

/// What somebody on the way said.
fn by_words(case: &Case, small: &Answer) -> Option<Hop> {
    let name = case.names.1.as_str();
    match small {
        Answer::Refused => {
            let says = case
                .flow
                .port
                .map_or_else(|| "refuses".to_owned(), |(protocol, port)| format!("refuses {port}/{protocol}, or somebody on the way does"));
            Some(Hop::broken(name, "port", says, "see what listens there, and what rejects packets on the way"))
        }
        Answer::Unreachable(NoWay { words, .. }) => Some(Hop::broken(
            "the way",
            "answer",
            format!("somebody on the way says of {}: {words}", case.flow.to),
            "see the routes of the hosts and routers between",
        )),
        Answer::TooBig | Answer::Reached | Answer::Silent => None,
    }
}

/// What a station on a card of the host's sends and gets is seen by none of the host's filters.
fn on_the_lan(case: &Case) -> Option<Hop> {
    let parent = case.here.end(case.flow.from)?.beneath.as_ref()?;
    let says = format!("what {} sends leaves by {parent} of {}, and no answer comes from there", case.names.0, case.here.host);
    let remedy = "see whether the other machine is on that LAN, whether the switch takes more than one MAC at a port, and what filters at the cards: `nft list ruleset netdev`, `tc filter show`";
    Some(Hop::broken("the LAN", "underlay", says, remedy))
}

/// The first place where it should have been seen and was not.
fn whereabouts(case: &Case) -> Option<Hop> {
    if !case.probing.traced {
        return None;
    }
    let there = match &case.there {
        There::Host(name, side) => Some((name.as_str(), side.as_ref().as_ref().ok())),
        _ => None,
    };
    one_way(case, &case.here, there, false).or_else(|| match there {
        Some((_, Some(other))) => one_way(case, other, Some((&case.here.host, Some(&case.here))), true),
        Some((_, None)) => None,
        None => one_way(case, &case.here, None, true),
    })
}

/// From `side`, where it begins, to the other host, where there is one.
fn one_way(case: &Case, side: &Side, other: Option<(&str, Option<&Side>)>, back: bool) -> Option<Hop> {
    let (from, host) = (if back { &case.names.1 } else { &case.names.0 }, side.host.as_str());
    let what = if back { "its answer" } else { "its packet" };
    let Some(stage) = reached(side, back, false) else {
        return Some(unseen(case, from, host, back));
    };
    if stage == Stage::In && !is_bridged(side, back) {
        let says = format!("{what} came in by {} and was led nowhere", by_link(side, back));
        return Some(Hop::broken(host, "forward", says, "see `ip route get`, rp_filter and forwarding of that link"));
    }
    let (name, other) = other?;
    let tunneled = side.underlay.as_ref().is_some_and(|way| way.tunnel.is_some());
    if tunneled && reached(side, back, true) != Some(Stage::Out) {
        let says = format!("{what} was not put into the tunnel to {name}");
        return Some(Hop::broken(host, "underlay", says, "the neighbour, the forwarding entry or the way to the other host is missing"));
    }
    let Some(other) = other else {
        let says = format!("{what} left {host}, and {name} answers nothing at all: neither its container nor its rsnet");
        return Some(Hop::broken(
            "underlay",
            "underlay",
            says,
            format!("see whether {name} runs, and whether the hosts reach each other: `ping`, `rsnet hosts`"),
        ));
    };
    let arrived = reached(other, back, tunneled);
    if arrived.is_none() {
        let port = side.underlay.as_ref().and_then(|way| way.tunnel).map_or_else(String::new, |port| format!(" (UDP port {port})"));
        let says = format!("{what} left {host}{port} and did not come to {name}");
        let remedy = format!("what is between the hosts drops it{}: open it in the network's firewall or the cloud's security group", port);
        return Some(Hop::broken("underlay", "underlay", says, remedy));
    }
    if tunneled && reached(other, back, false).is_none() {
        let says = format!("the tunnel's packet came to {name} and {what} did not come out of it");
        return Some(Hop::broken(name, "underlay", says, "another VXLAN link has the port, or a firewall that is not nftables drops it"));
    }
    let stage = reached(other, back, false);
    (stage == Some(Stage::In)).then(|| {
        let says = format!("{what} came in by {} and was led nowhere", by_link(other, back));
        Hop::broken(name, "forward", says, "see `ip route get`, rp_filter and forwarding of that link")
    })
}

/// A frame between two ports of a bridge meets the filters of IP only where they were told to look.
fn is_bridged(side: &Side, back: bool) -> bool {
    if back { side.back.is_none() } else { side.forth.is_none() }
}

fn by_link(side: &Side, back: bool) -> String {
    trails(side, back, false).find_map(|trail| trail.by.clone()).unwrap_or_else(|| "a link".to_owned())
}

fn unseen(case: &Case, from: &str, host: &str, back: bool) -> Hop {
    match back {
        false => Hop::broken(
            from,
            "interface",
            format!("its packet did not come to {host}"),
            format!("see the firewall inside {from}, and its interface"),
        ),
        true => {
            let says = format!("got the packet and did not answer {}", case.names.0);
            Hop::broken(from, "answer", says, format!("see the firewall inside {from}, its routes, and what serves there"))
        }
    }
}
