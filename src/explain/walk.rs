//! The way of a packet, part by part.

use std::net::IpAddr;

use super::facts::{Case, Crossing, End, Mended, Side, There, Underlay};
use super::progress;
use super::{Explanation, Hop, State};
use crate::model::{Answer, Flow, Key, LinkSight, NoWay, Protocol, Sight};

/// What the kernel says to packets from where no answer could go (`EXDEV`; `EINVAL` from Linux 6.13 on).
const ASTRAY: [i32; 2] = [18, 22];

/// Every part of the way there and back, and the verdict.
pub fn explain(case: &Case) -> Explanation {
    let mut hops = vec![relation(case)];
    if case.relation.refusal.is_some() {
        return Explanation { question: question(case), hops, reaches: false };
    }
    let (forth, back) = (leg(case, false), leg(case, true));
    hops.extend(forth);
    hops.extend(listener(case));
    // of the way back what is right is said in one line
    let (fine, worth): (Vec<Hop>, Vec<Hop>) = back.into_iter().partition(|hop| hop.state == State::Ok);
    let said = |hop: &Hop| hops.iter().any(|other| (&other.place, &other.about, &other.says) == (&hop.place, &hop.about, &hop.says));
    let worth: Vec<Hop> = worth.into_iter().filter(|hop| !said(hop)).collect();
    if worth.is_empty() && !fine.is_empty() {
        hops.push(Hop::ok("the way back", "route", "the same rows and routes, in the other direction"));
    }
    hops.extend(worth);
    let delivered = progress::delivered(case);
    if delivered == Some(true) {
        hops.iter_mut().filter(|hop| hop.state == State::Broken && !is_firm(hop)).for_each(|hop| hop.state = State::Note);
        // of the table it is not known whether it had to do with this flow
        hops.retain(|hop| hop.about != "table");
    }
    if !hops.iter().any(|hop| hop.state == State::Broken) {
        hops.extend(progress::answer(case));
    } else {
        hops.extend(progress::answer(case).into_iter().filter(|hop| hop.about == "firewall"));
    }
    in_order(&mut hops);
    let reaches = !hops.iter().any(|hop| hop.state == State::Broken) && delivered != Some(false);
    Explanation { question: question(case), hops, reaches }
}

/// Whoever drops a packet is the cause of whatever else seems wrong behind him.
fn in_order(hops: &mut [Hop]) {
    let first = hops.iter().position(|hop| hop.state == State::Broken);
    let dropper = hops.iter().position(|hop| hop.about == "firewall" && hop.state == State::Broken);
    if let (Some(first), Some(dropper)) = (first, dropper)
        && first < dropper
        && ["answer", "port"].contains(&hops[first].about.as_str())
    {
        hops[first..=dropper].rotate_right(1);
    }
}

/// An answer proves nothing where another may have given it.
fn is_firm(hop: &Hop) -> bool {
    hop.about == "twin"
}

fn question(case: &Case) -> String {
    let what = case.flow.port.map_or_else(|| "ping".to_owned(), |(protocol, port)| format!("{port}/{protocol}"));
    let end = |name: &str, address: IpAddr| if name == address.to_string() { name.to_owned() } else { format!("{name} ({address})") };
    format!("{} to {}, {what}", end(&case.names.0, case.flow.from), end(&case.names.1, case.flow.to))
}

fn relation(case: &Case) -> Hop {
    match &case.relation.refusal {
        None => Hop::ok("network", "network", case.relation.says.clone()),
        Some((says, remedy)) => Hop::broken("network", "network", says.clone(), remedy.clone()),
    }
}

/// One direction, as seen by who sends.
struct Leg<'a> {
    flow: Flow,
    /// Behind this host's translation.
    led: Flow,
    names: (&'a str, &'a str),
    sides: (Option<&'a Side>, Option<&'a Side>),
}

fn leg(case: &Case, back: bool) -> Vec<Hop> {
    let led = case.led.unwrap_or(case.flow);
    let there = match &case.there {
        There::Here => Some(&case.here),
        There::Outside => None,
        There::Host(_, side) => side.as_ref().as_ref().ok(),
    };
    let (a, b) = (case.names.0.as_str(), case.names.1.as_str());
    let leg = match back {
        false => Leg { flow: case.flow, led, names: (a, b), sides: (Some(&case.here), there) },
        true => Leg { flow: led.back(), led: led.back(), names: (b, a), sides: (there, Some(&case.here)) },
    };
    let mut hops = Vec::new();
    let source = leg.sides.0.and_then(|side| side.end(leg.flow.from));
    hops.extend(source.map(|end| interface(leg.names.0, end)));
    hops.extend(source.and_then(|end| sandbox_route(&leg, end)));
    let next = source.and_then(|end| neighbour(case, &leg, end.sight.as_ref().ok()?));
    // what is wrong with the other end says more than that it does not answer
    let (late, soon): (Option<Hop>, Option<Hop>) = if case.relation.one_segment { (next, None) } else { (None, next) };
    hops.extend(soon);
    if let Some(side) = leg.sides.0 {
        hops.extend(host(side, back, leg.names));
        hops.extend(side.underlay.as_ref().map(|way| underlay(side, way)));
    }
    if let (There::Host(name, side), false) = (&case.there, back) {
        hops.extend(side.as_ref().as_ref().err().map(|why| silent_peer(name, why)));
    }
    let target = leg.sides.1.filter(|side| Some(side.host.as_str()) != leg.sides.0.map(|side| side.host.as_str()));
    hops.extend(target.into_iter().flat_map(|side| host(side, back, leg.names)));
    let end = leg.sides.1.and_then(|side| side.end(leg.led.to));
    hops.extend(end.filter(|_| !back).map(|end| interface(leg.names.1, end)));
    hops.extend(late);
    hops
}

fn silent_peer(name: &str, why: &str) -> Hop {
    let mut hop = Hop::unknown(name, "peer", format!("rsnet on {name} does not answer, so its side is not looked at: {why}"));
    hop.remedy =
        Some(format!("see on {name} whether rsnet runs (`rsnet hosts` there), and whether TCP port 4795 is open between the hosts"));
    hop
}

/// The container's own link: there, up, with its address and no larger packets than fit.
fn interface(name: &str, end: &End) -> Hop {
    let sight = match &end.sight {
        Ok(sight) => sight,
        Err(why) => return Hop::unknown(name, "interface", format!("its network namespace cannot be looked into: {why}")),
    };
    let reconnect = format!("have the engine set it up again: `docker restart {name}`");
    let Some(link) = sight.links.iter().find(|link| link.mac == Some(end.mac)) else {
        let says = format!("no interface of it has the MAC {} that belongs to {}", end.mac, end.address);
        return Hop::broken(name, "interface", says, reconnect);
    };
    match defect(link, end) {
        Some((says, remedy)) => Hop::broken(name, "interface", says, remedy.unwrap_or(reconnect)),
        None if !end.twins.is_empty() => {
            let says = format!("{} is the address of {} as well", end.address, end.twins.join(" and "));
            Hop::broken(name, "twin", says, "take the address from that one: one address of a segment is one container's")
        }
        None => Hop::ok(name, "interface", format!("{} is up with {}, MTU {}", link.name, end.address, link.mtu)),
    }
}

/// What is wrong, and what to do about it if that is not to begin anew.
fn defect(link: &LinkSight, end: &End) -> Option<(String, Option<String>)> {
    let LinkSight { name, mtu, .. } = link;
    if !link.up {
        return Some((
            format!("its interface {name} is down"),
            Some(format!("bring it up: `ip link set {name} up` in the container, or restart it")),
        ));
    }
    if let (false, Some(beneath)) = (link.running, &end.beneath) {
        let says = format!("its interface {name} stands on the host's link {beneath}, which is down or has no carrier");
        return Some((says, Some(format!("see `ip link show {beneath}` on its host: bring it up, or see to its cable"))));
    }
    if !link.running {
        return Some((format!("its interface {name} is up, but nothing is at its other end"), None));
    }
    if !link.addresses.iter().any(|own| own.addr() == end.address) {
        return Some((format!("its interface {name} has lost its address {}", end.address), None));
    }
    let wanted = end.mtu.filter(|wanted| mtu > wanted)?;
    let says = format!("its interface {name} has an MTU of {mtu}, the network takes {wanted}: what is larger is lost");
    Some((says, Some(format!("`ip link set {name} mtu {wanted}` in the container, or restart it"))))
}

/// By which way the container sends.
fn sandbox_route(leg: &Leg<'_>, end: &End) -> Option<Hop> {
    let sight = end.sight.as_ref().ok()?;
    let (name, to) = (leg.names.0, leg.flow.to);
    let way = match &sight.route {
        Ok(way) => way,
        Err(NoWay { words, .. }) => {
            let says = format!("its routes do not lead to {to}: {words}");
            let remedy = format!("see `ip route` in {name}; a default route that was lost comes back with `docker restart {name}`");
            return Some(Hop::broken(name, "route", says, remedy));
        }
    };
    let by = way.via.map_or_else(|| "on its own link".to_owned(), |via| format!("by {via}"));
    Some(Hop::ok(name, "route", format!("reaches {to} {by}, interface {}", way.link)))
}

/// Who answers for the next hop.
fn neighbour(case: &Case, leg: &Leg<'_>, sight: &Sight) -> Option<Hop> {
    let next = sight.next.as_ref()?;
    let name = leg.names.0;
    let other = leg.sides.1.and_then(|side| side.end(next.address)).filter(|_| case.relation.one_segment);
    match (next.mac, other) {
        (None, _) => {
            let says = format!("nobody answers to it for {} on interface {}", next.address, next.link);
            Some(Hop::broken(name, "neighbour", says, format!("see whether {} is up, and on the same segment", next.address)))
        }
        (Some(mac), Some(other)) if mac != other.mac => {
            let says = format!("{} is answered for by {mac}, but belongs to {}: two have this address", next.address, other.mac);
            Some(Hop::broken(name, "twin", says, format!("find who has {mac} and take the address from it")))
        }
        _ => None,
    }
}

/// A host on the way: its rows, and how it leads on.
fn host(side: &Side, back: bool, names: (&str, &str)) -> Vec<Hop> {
    let mut hops: Vec<Hop> = side
        .rows
        .iter()
        .map(|row| {
            let says = if row.missing { format!("missing: {}", row.what) } else { format!("not as it should be: {}", row.what) };
            Hop::broken(
                &side.host,
                about(&row.what),
                says,
                "rsnet puts it back within a second; if this stays, its log says why: `journalctl -u rsnet`",
            )
        })
        .collect();
    hops.extend(side.mended.iter().map(|mended| was(side, mended)));
    let crossing = if back { &side.back } else { &side.forth };
    hops.extend(crossing.as_ref().map(|crossing| cross(side, crossing, names)));
    hops
}

fn was(side: &Side, Mended { what, ago, times }: &Mended) -> Hop {
    let often = if *times > 1 { format!(", {times} times of late") } else { String::new() };
    let says = |what: &str| format!("{what} was not as it should be until rsnet put it right {ago} ms ago{often}; who alters it?");
    match what {
        Some(key) => Hop::note(&side.host, about(key), says(&key.to_string())),
        None => Hop::note(&side.host, "table", says("something of its firewall table")),
    }
}

fn about(key: &Key) -> &'static str {
    match key {
        Key::HostSysctl(_) => "forward",
        _ => "row",
    }
}

fn cross(side: &Side, crossing: &Crossing, (from, to): (&str, &str)) -> Hop {
    let host = side.host.as_str();
    let sight = match &crossing.sight {
        Ok(sight) => sight,
        Err(why) => {
            return Hop::broken(
                host,
                "forward",
                format!("what comes from {from} cannot be led on: {why}"),
                "rsnet makes a lost link again within a second; see its log",
            );
        }
    };
    match &sight.route {
        Ok(way) if way.local => Hop::ok(host, "forward", format!("what comes by {} is for this host itself", crossing.by)),
        Ok(way) => match crossing.planned.as_ref().filter(|planned| planned.as_str() != way.link) {
            Some(planned) => {
                let says = format!("packets for {to} leave by {} instead of {planned}: a route of somebody else's comes first", way.link);
                Hop::broken(host, "forward", says, format!("see `ip route show table all | grep -v 'proto 195'` and `ip rule` on {host}"))
            }
            None => Hop::ok(host, "forward", format!("leads on from {} to {}", crossing.by, way.link)),
        },
        Err(refusal) => refused(host, crossing, sight, refusal, (from, to)),
    }
}

/// The kernel would not lead it on: by which of its switches.
fn refused(host: &str, crossing: &Crossing, sight: &Sight, refusal: &NoWay, (from, to): (&str, &str)) -> Hop {
    let is = |path: &str, off: bool| sight.sysctls.iter().any(|(name, value)| name.ends_with(path) && (value == "0") == off);
    let by = &crossing.by;
    if let Some((path, _)) = sight.sysctls.iter().find(|(path, value)| path.contains("forward") && value == "0") {
        let says = format!("does not forward what comes by {by}: net/{path} is 0");
        return Hop::broken(host, "forward", says, format!("`sysctl -w net.{}=1`", path.replace('/', ".")));
    }
    if ASTRAY.contains(&refusal.code) && (is("all/rp_filter", false) || is(&format!("{by}/rp_filter"), false)) {
        let says = format!("drops what comes from {from} by {by}: rp_filter is on, and answers would leave by another link");
        let remedy =
            format!("see `ip route get` towards {from}; or `sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{by}.rp_filter=0`");
        return Hop::broken(host, "rp_filter", says, remedy);
    }
    let says = format!("no route leads from {by} to {to}: {}", refusal.words);
    Hop::broken(host, "forward", says, format!("see `ip route get` for {to} on {host}"))
}

/// From one host to the other, beneath the network.
fn underlay(side: &Side, way: &Underlay) -> Hop {
    let host = side.host.as_str();
    match &way.sight {
        Ok(sight) => out_by(host, way, sight).map_or_else(|broken| broken, |link| beyond(host, way, link)),
        Err(why) => Hop::unknown(host, "underlay", format!("the way to {} cannot be looked at: {why}", way.other)),
    }
}

/// The link by which what the host sends there leaves.
fn out_by<'a>(host: &str, way: &Underlay, sight: &'a Sight) -> Result<&'a LinkSight, Hop> {
    let Underlay { own, other, .. } = way;
    let broken = |says, remedy| Err(Hop::broken(host, "underlay", says, remedy));
    if !sight.has.0 {
        let remedy = format!("give {own} back to the host, or name another with RSNET_UNDERLAY and restart rsnet");
        return broken(format!("has lost its outer address {own}, by which other hosts reach it"), remedy);
    }
    let route = match &sight.route {
        Ok(route) => route,
        Err(refusal) => return broken(format!("has no way to {other}: {}", refusal.words), format!("see `ip route get {other}`")),
    };
    let Some(link) = sight.links.iter().find(|link| link.name == route.link) else {
        return Err(Hop::unknown(host, "underlay", format!("the link {} to {other} cannot be looked at", route.link)));
    };
    if !link.up || !link.running {
        let says = format!("its link {} to {other} is down or has no carrier", link.name);
        return broken(says, format!("see `ip link show {}`", link.name));
    }
    if sight.next.as_ref().is_some_and(|next| next.mac.is_none()) {
        let says =
            format!("nobody answers for {} on {}: the other host, or a router, is not there", route.via.unwrap_or(*other), link.name);
        return broken(says, "see whether that machine runs and its cable is in".to_owned());
    }
    Ok(link)
}

/// What becomes of it there.
fn beyond(host: &str, way: &Underlay, link: &LinkSight) -> Hop {
    let Underlay { other, needs, .. } = way;
    if link.mtu < *needs {
        let says = format!("{} takes packets of {} bytes, the network's need {needs}: large ones are lost", link.name, link.mtu);
        return Hop::broken(
            host,
            "mtu",
            says,
            format!("`ip link set {} mtu {needs}`, or make the network with a smaller -o mtu", link.name),
        );
    }
    if !way.alive {
        return Hop::note(host, "peer", format!("{other} has not been heard of by the store for a while: its rsnet or its Consul is down"));
    }
    let how = way.tunnel.map_or_else(|| "as they are".to_owned(), |port| format!("in UDP port {port}"));
    Hop::ok(host, "underlay", format!("sends to {other} by {}, {how}, MTU {}", link.name, link.mtu))
}

/// Whether somebody takes what arrives.
fn listener(case: &Case) -> Option<Hop> {
    let flow = case.led.unwrap_or(case.flow);
    let (protocol, port) = flow.port.filter(|(protocol, _)| *protocol != Protocol::Sctp)?;
    let name = case.names.1.as_str();
    let sight = match &case.there {
        There::Here => listening_sight(&case.here, flow),
        There::Host(_, side) => side.as_ref().as_ref().ok().and_then(|side| listening_sight(side, flow)),
        There::Outside => None,
    };
    let Some(sight) = sight else {
        let refused = case.probing.small == Some(Answer::Refused);
        let remedy = format!("start what should listen there; or ask for the port that it has: `rsnet explain … {port}/{protocol}`");
        return refused.then(|| Hop::broken(name, "port", format!("nobody listens on {port}/{protocol}: it says so itself"), remedy));
    };
    let remedy = format!("`ss -ltnup` in {name} shows what listens; a server that is to be reached listens on 0.0.0.0 or [::]");
    let suits = |own: &IpAddr| own.is_unspecified() || *own == flow.to;
    match &sight.listeners[..] {
        [] => Some(Hop::broken(name, "port", format!("nobody listens on {port}/{protocol}"), remedy)),
        all if all.iter().any(suits) => Some(Hop::ok(name, "port", format!("listens on {port}/{protocol}"))),
        all => {
            let own: Vec<String> = all.iter().map(ToString::to_string).collect();
            Some(Hop::broken(name, "port", format!("listens on {port}/{protocol} of {} only, not of {}", own.join(", "), flow.to), remedy))
        }
    }
}

/// Of the container; of the host itself where it is asked.
fn listening_sight(side: &Side, flow: Flow) -> Option<&Sight> {
    let end = side.end(flow.to).map(|end| &end.sight);
    end.or_else(|| side.forth.as_ref().map(|crossing| &crossing.sight))?.as_ref().ok()
}
