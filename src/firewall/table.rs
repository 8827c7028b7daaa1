//! The constants of rsnet's table: its sets, chains and rules. Nothing here depends on what runs on the host.

use crate::model::Family;

use super::attribute::{Attribute, bytes, list, nest, number, string};
use super::expression::{
    ESTABLISHED_OR_RELATED, Expression, Field, INVALID, UNTRACKED, Verdict, begins, dnat, echo_request, expressions, family, from_bridge,
    from_loopback, is_local, is_udp, leads_nowhere, masquerade, named, named_at_least, no_way_back, snat, source_is_behind,
    source_is_elsewhere, state, to_loopback, to_multicast, translated, untrack, verdict,
};
use super::set::{Data, Set};

pub const TABLE: &str = "rsnet";

/// How the names of the links of networks without a bridge begin: routed ports, each a container's, and tunnels to other hosts. A bridge's
/// ports have names of the first kind too, but no packet comes in by one here: what it brings comes in by the bridge.
pub const ROUTED: [&str; 2] = [PORT, TUNNEL];
pub const PORT: &str = "rsv-";
const TUNNEL: &str = "rsx-";

const INTERVAL: u32 = 4;
const MAP: u32 = 8;
const CONCAT: u32 = 0x80;
const DATA_VERDICT: u32 = 0xffff_ff00;

/// `NFTNL_UDATA_SET_KEYBYTEORDER`, four bytes, `BYTEORDER_HOST_ENDIAN`: tells `nft` how to print interface names.
const HOST_ORDER: [u8; 6] = [0, 4, 1, 0, 0, 0];
/// `NFTNL_UDATA_SET_DATABYTEORDER`, the same of a map's values.
const HOST_ORDER_OF_DATA: [u8; 6] = [1, 4, 1, 0, 0, 0];

/// `NFTA_SET_*` of the set, as the kernel dumps it.
pub fn set_attributes(set: Set) -> Vec<Attribute> {
    let (key, data) = (set.key(), set.data());
    let shape = [(key.len() > 1, CONCAT), (set.has_ranges(), INTERVAL), (!matches!(data, Data::None), MAP)];
    let flags = shape.into_iter().filter_map(|(is, flag)| is.then_some(flag)).sum();
    let mut attributes = vec![string(1, TABLE), string(2, set.name()), number(4, datatype(&key)), number(5, length(&key))];
    if flags != 0 {
        attributes.push(number(3, flags));
    }
    if key == [Field::Iifname] {
        attributes.push(bytes(13, HOST_ORDER));
    }
    if matches!(&data, Data::Fields(fields) if *fields == [Field::Index]) {
        attributes.push(bytes(13, HOST_ORDER_OF_DATA));
    }
    match data {
        Data::None => {}
        Data::Verdict => attributes.push(number(6, DATA_VERDICT)),
        Data::Fields(fields) => attributes.extend([number(6, datatype(&fields)), number(7, length(&fields))]),
    }
    if key.len() > 1 {
        let fields: Vec<_> = key.iter().map(|field| nest(1, [number(1, field.length())])).collect();
        attributes.push(nest(9, [list(2, fields)]));
    }
    attributes
}

/// The types side by side, six bits each, as `nft` reads them.
fn datatype(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |all, field| all << 6 | field.datatype())
}

/// Bytes, every field padded to four.
fn length(fields: &[Field]) -> u32 {
    fields.iter().map(|field| field.length().next_multiple_of(4)).sum()
}

pub struct Chain {
    pub name: String,
    /// Type, hook and priority; none for a chain that is only jumped to.
    hook: Option<(&'static str, u32, i32)>,
    pub rules: Vec<Attribute>,
}

impl Chain {
    pub fn plain(name: impl Into<String>, rules: Vec<Rule>) -> Self {
        Chain { name: name.into(), hook: None, rules: rules.into_iter().map(expressions).collect() }
    }

    pub fn hooked(name: &'static str, hook: (&'static str, u32, i32), rules: Vec<Rule>) -> Self {
        Chain { hook: Some(hook), ..Chain::plain(name, rules) }
    }

    /// `NFTA_CHAIN_*` of the chain, as the kernel dumps it.
    pub fn attributes(&self) -> Vec<Attribute> {
        let mut attributes = vec![string(1, TABLE), string(3, &self.name)];
        if let Some((kind, hook, priority)) = self.hook {
            let hook = nest(4, [number(1, hook), number(2, priority.cast_unsigned())]);
            attributes.extend([hook, number(5, ACCEPT_POLICY), string(7, kind)]);
        }
        attributes
    }
}

const ACCEPT_POLICY: u32 = 1;
const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

/// All chains, those that are jumped to before those that jump.
pub fn chains() -> Vec<Chain> {
    let chain = |name, hook, rules| Chain { hook, ..Chain::plain(name, rules) };
    vec![
        chain(OPENED, None, opened()),
        chain(ANYTHING, None, anything()),
        chain("publish", None, publish()),
        chain("loopback", None, loopback()),
        chain("astray", None, astray()),
        chain("inside", None, inside()),
        chain("bridged", None, bridged()),
        chain("framed", None, framed()),
        chain("walls", None, docker_links(Field::Oifname).map(|link| vec![link, verdict(Verdict::Drop)]).collect()),
        chain("raw", Some(("filter", PREROUTING, -300)), raw()),
        chain("sent", Some(("filter", OUTPUT, -300)), vec![sent()]),
        chain("prerouting", Some(("nat", PREROUTING, -100)), prerouting()),
        chain("output", Some(("nat", OUTPUT, -100)), vec![vec![is_local(false), verdict(Verdict::Jump("publish"))]]),
        chain("forward", Some(("filter", FORWARD, 0)), forward()),
        chain("postrouting", Some(("nat", POSTROUTING, 100)), postrouting()),
    ]
}

pub type Rule = Vec<Vec<Expression>>;

pub const OPENED: &str = "opened";
pub const ANYTHING: &str = "anything";
const OUT: &[Field] = &[Field::Oifname];

fn both(rule: impl Fn(Family) -> Rule) -> impl Iterator<Item = Rule> {
    Family::BOTH.into_iter().map(rule)
}

/// Both addresses are in one subnet.
fn within_subnet(f: Family) -> Rule {
    vec![family(f), Set::InnerSubnets(f).has()]
}

fn from_subnet(f: Family, set: fn(Family) -> Set) -> Vec<Expression> {
    [family(f), set(f).has()].concat()
}

fn to_subnet(f: Family, set: fn(Family) -> Set) -> Vec<Expression> {
    [family(f), set(f).has_by(&[Field::Nfproto, Field::Destination(f)])].concat()
}

fn from_port() -> Vec<Expression> {
    begins(Field::Iifname, PORT.as_bytes())
}

fn with(mut rule: Rule, end: Vec<Expression>) -> Rule {
    rule.push(end);
    rule
}

/// Every packet meets these: what asks least of one comes first. What stays inside a subnet has its own check of the source, and may be
/// a frame that a container made for its host.
fn raw() -> Vec<Rule> {
    both(|f| vec![to_loopback(f), verdict(Verdict::Jump("loopback"))])
        .chain([vec![is_udp(), Set::Tunnels.has(), verdict(Verdict::Jump("framed"))]])
        .chain(both(|f| with(within_subnet(f), verdict(Verdict::Goto("inside")))))
        .chain([vec![from_port(), no_way_back(), verdict(Verdict::Drop)]])
        .collect()
}

/// `route_localnet` is on for our links, and would let a container reach what listens on the host's loopback.
fn loopback() -> Vec<Rule> {
    [Set::Segments.has(), from_port()].map(|from| vec![from, verdict(Verdict::Drop)]).to_vec()
}

/// What would come out of a tunnel: from its other hosts only, and never from a container, which would get the address of its host on the way
/// out. Fragments are put together before; connection tracking, which this table uses, has the kernel do that. Tunnels of others on the
/// same port have other numbers. Each way of a tunnel has a source port of its own choice, so that it is no answer to the other: to track it
/// tells nothing.
fn framed() -> Vec<Rule> {
    let members = |f| vec![family(f), Set::Members(f).has(), untrack(), verdict(Verdict::Accept)];
    [vec![from_port(), verdict(Verdict::Drop)], vec![from_bridge(), verdict(Verdict::Jump("bridged"))]]
        .into_iter()
        .chain(both(members))
        .chain([vec![is_local(false), verdict(Verdict::Drop)]])
        .collect()
}

/// Containers are behind these bridges; other bridges may be the way to the world.
fn bridged() -> Vec<Rule> {
    [Set::Segments.has()].into_iter().chain(docker_links(Field::Iifname)).map(|from| vec![from, verdict(Verdict::Drop)]).collect()
}

/// What leaves by a tunnel. Over IPv6 it stays tracked: only so is a router's "packet too big" an answer to it, without which a filter
/// that drops what answers nothing would have large packets lost. Over IPv4 routers may take it apart.
fn sent() -> Rule {
    let to_member = Set::Members(Family::V4).has_by(&[Field::Destination(Family::V4), Field::Port, Field::Vni]);
    vec![is_udp(), family(Family::V4), to_member, untrack()]
}

/// What comes from a subnet and goes to it: by the link where its source is and no other; and untracked, but to or from the host, whose
/// own packets do not pass here. The answer of a published port goes to an address of the host, and so is tracked.
fn inside() -> Vec<Rule> {
    vec![vec![no_way_back(), verdict(Verdict::Jump("astray"))], vec![is_local(false), verdict(Verdict::Accept)], vec![untrack()]]
}

/// What came by another link than that to its source. From another host of a network without a tunnel it may: the two choose their ways
/// each for itself, and not in the same moment.
fn astray() -> Vec<Rule> {
    let drop = || verdict(Verdict::Drop);
    [vec![from_port(), drop()], vec![source_is_behind(PORT), drop()], vec![leads_nowhere(), drop()]]
        .into_iter()
        .chain(both(|f| vec![from_subnet(f, Set::DirectSubnets), verdict(Verdict::Return)]))
        .chain([vec![drop()]])
        .collect()
}

/// What comes in by a link never goes to a loopback address in truth; it must not be translated before the kernel drops it as a martian,
/// or a neighbour on the wire would reach what is published on 127.0.0.1 only.
fn prerouting() -> Vec<Rule> {
    both(|f| vec![to_loopback(f), verdict(Verdict::Return)]).chain([vec![is_local(false), verdict(Verdict::Jump("publish"))]]).collect()
}

fn publish() -> Vec<Rule> {
    Family::BOTH
        .into_iter()
        .flat_map(|f| {
            [
                vec![family(f), Set::Publish(f).maps(), dnat(f, true)],
                vec![family(f), Set::PublishAny(f).maps(), dnat(f, true)],
                vec![family(f), Set::PublishRange(f).maps(), dnat(f, false)],
            ]
        })
        .collect()
}

/// The order matters: answers; what stays inside a segment; the walls of internal ones; published ports; the exceptions; the walls.
fn forward() -> Vec<Rule> {
    let accept = || verdict(Verdict::Accept);
    let drop = || verdict(Verdict::Drop);
    let mut rules = vec![vec![state(ESTABLISHED_OR_RELATED), accept()]];
    // Every packet inside a subnet comes so far.
    rules.extend(both(|f| [vec![state(UNTRACKED)], within_subnet(f), vec![accept()]].concat()));
    rules.extend([vec![Set::Inner.has(), accept()], vec![Set::Internal.has(), drop()], vec![Set::Internal.has_by(OUT), drop()]]);
    rules.extend(both(|f| vec![from_subnet(f, Set::InternalSubnets), drop()]));
    rules.extend(both(|f| vec![to_subnet(f, Set::InternalSubnets), drop()]));
    rules.extend([
        vec![translated(), accept()],
        vec![Set::Trusted.has(), accept()],
        // What connection tracking cannot place is not translated either: it would leave with a container's address.
        vec![state(INVALID), Set::Masquerade.has(), drop()],
    ]);
    rules.extend(both(|f| vec![state(INVALID), from_subnet(f, Set::MasqueradeSubnets), drop()]));
    // Our accepts in FORWARD stand before Docker's own walls, so the way to Docker's networks is closed here.
    rules.extend(our_links().map(|from| vec![from, verdict(Verdict::Jump("walls"))]));
    rules.push(vec![Set::Enter.decides()]);
    rules.extend(both(|f| vec![family(f), Set::EnterSubnets(f).decides()]));
    rules
}

/// By which a container's packets come in.
fn our_links() -> impl Iterator<Item = Vec<Expression>> {
    [Set::Segments.has()].into_iter().chain(ROUTED.map(|prefix| begins(Field::Iifname, prefix.as_bytes())))
}

fn opened() -> Vec<Rule> {
    both(|f| vec![family(f), Set::Open(f).has(), verdict(Verdict::Accept)])
        .chain(both(|f| vec![echo_request(f), verdict(Verdict::Accept)]))
        .chain([vec![verdict(Verdict::Drop)]])
        .collect()
}

fn anything() -> Vec<Rule> {
    our_links()
        .chain(docker_links(Field::Iifname))
        .map(|from| vec![from, verdict(Verdict::Drop)])
        .chain([vec![verdict(Verdict::Accept)]])
        .collect()
}

/// Docker's own bridges: `docker0`, `docker_gwbridge`, and `br-` with twelve digits of an id; those with names of a user's choice are in a
/// set. The length tells `br-` from the bridges that people and other software call `br-lan` or `br-ex`, which may be the way to the world.
fn docker_links(field: Field) -> impl Iterator<Item = Vec<Expression>> {
    [begins(field, b"docker"), named_at_least(field, "br-", 15), Set::Foreign.has_by(&[field])].into_iter()
}

fn postrouting() -> Vec<Rule> {
    let hairpin = || Set::Hairpin.has();
    // A flow translated while it crossed a bridge (`bridge-nf-call-iptables`) has no incoming link here; one of the host itself has none
    // either, but keeps its source.
    let bridged = vec![named(Field::Iifname, ""), Set::Segments.has_by(OUT), translated(), source_is_elsewhere(), masquerade()];
    let mut rules = vec![vec![hairpin(), translated(), masquerade()], bridged];
    rules.extend(both(|f| [vec![translated()], within_subnet(f), vec![masquerade()]].concat()));
    rules.extend(both(|f| vec![Set::Segments.has_by(OUT), from_loopback(f), masquerade()]));
    rules.extend(both(|f| vec![from_loopback(f), begins(Field::Oifname, PORT.as_bytes()), masquerade()]));
    rules.push(vec![hairpin(), verdict(Verdict::Return)]);
    rules.extend(both(|f| with(within_subnet(f), verdict(Verdict::Return))));
    rules.extend(both(|f| vec![to_multicast(f), verdict(Verdict::Return)]));
    rules.extend(both(|f| vec![family(f), Set::SourceNat(f).maps(), snat(f)]));
    rules.push(vec![Set::Masquerade.has(), masquerade()]);
    rules.extend(both(|f| vec![from_subnet(f, Set::MasqueradeSubnets), masquerade()]));
    rules
}
