//! Who drops a packet: nftables' own tracing (`meta nftrace`) of one question and its answer, for as long as somebody asks.
//!
//! The rules that mark the packets stand in a table of their own that has an owner (`NFT_TABLE_F_OWNER`, Linux 5.12): it is gone with the
//! socket that made it, however this process ends. They match one source port or number of an echo, so that nothing else is traced. Its
//! chains also tell how far a packet came. What goes by the fast way is marked where it comes in, and is out where our rule there takes it.
//! What the old iptables (`iptables-legacy`) drop is not told by anybody: such a trail just ends. If one of their rules counted a drop meanwhile,
//! that one is taken to have been it.

use std::collections::BTreeMap;
use std::io;

use netlink_sys::{Socket as RawSocket, protocols::NETLINK_NETFILTER};

use crate::model::{Dropped, Family, Flow, Stage, Trace, Trail, family_of};

use super::attribute::{find, find_number, find_string, nest, number, string};
use super::batch::{INET, NETDEV, Operation, message, operation};
use super::element::Element;
use super::expression::{Expression, bytes_at, ethertype, expressions, protocol, traced};
use super::fast;
use super::legacy;
use super::socket::{NFTABLES, READ, Refused, Reply, Socket, messages, prepare, reply};
use super::table::TABLE;

const BRIDGE: u8 = 7;
const NFNLGRP_NFTRACE: u32 = 9;
/// `NFT_MSG_TRACE`.
const TRACE: u8 = 17;
/// `enum nft_trace_types`.
const POLICY: u32 = 1;
const RULE: u32 = 3;
/// `NF_DROP`.
const DROP: u32 = 0;
/// `NF_STOLEN`: `fwd` has it.
const STOLEN: u32 = 2;
const UDP: u8 = 17;

/// Before anybody else looks: connection tracking's defragmentation is at −400.
const FIRST: i32 = -460;
/// After everybody else.
const LAST: i32 = i32::MAX - 1;

const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

/// What is traced, in the order in which it is asked for: (name of the chain, an answer, in a tunnel).
const KINDS: [(&str, bool, bool); 4] =
    [("forth", false, false), ("back", true, false), ("forth-packed", false, true), ("back-packed", true, true)];

/// Packets are traced until it is dropped.
pub struct Tracer {
    events: RawSocket,
    what: Trace,
    table: String,
    /// What the old iptables had dropped at the start.
    before: [legacy::Dropped; 2],
    /// The tables are gone with it.
    _owner: Socket,
}

impl Tracer {
    /// In the network namespace of the calling thread.
    pub fn start(what: &Trace) -> io::Result<Self> {
        let mut events = RawSocket::new(NETLINK_NETFILTER)?;
        prepare(&mut events)?;
        events.add_membership(NFNLGRP_NFTRACE)?;
        let owner = Socket::open()?;
        let table = format!("rsnet-explain-{}", what.source);
        commit(&owner, &rules(INET, &table, what))?;
        if let Err(error) = commit(&owner, &rules(BRIDGE, &table, what)) {
            tracing::debug!(%error, "bridges are not traced; the kernel has no nftables for them");
        }
        if let Err(error) = fast::hooked(&owner).and_then(|links| commit(&owner, &fast_rules(&table, what, &links))) {
            tracing::debug!(%error, "the fast way is not traced; the kernel has none");
        }
        Ok(Tracer { events, what: what.clone(), table, before: dropped_by_legacy(), _owner: owner })
    }

    /// What was seen so far, a trail for each packet.
    pub fn trails(&self) -> Vec<Trail> {
        let mut trails: BTreeMap<u32, Trail> = BTreeMap::new();
        let mut buffer = Vec::with_capacity(READ);
        while self.events.recv(&mut buffer, 0).is_ok() {
            let seen = messages(&buffer).filter_map(|message| reply(&message));
            seen.filter(|event| event.subsystem == NFTABLES && event.kind == TRACE).for_each(|event| self.follow(&event, &mut trails));
            buffer.clear();
        }
        let mut trails: Vec<Trail> = trails.into_values().collect();
        let lost = |trail: &&mut Trail| trail.stage == Stage::In && trail.dropped.is_none();
        trails.iter_mut().filter(lost).zip(std::iter::repeat(self.legacy_drop())).for_each(|(trail, dropped)| trail.dropped = dropped);
        trails
    }

    /// By the old iptables since the start.
    fn legacy_drop(&self) -> Option<Dropped> {
        let tables = ["filter of iptables-legacy", "filter of ip6tables-legacy"];
        tables.into_iter().zip(self.before.iter().zip(dropped_by_legacy())).find_map(|(table, (before, now))| {
            let (legacy::Dropper { chain, rule }, _) =
                now.into_iter().find(|(who, count)| before.get(who).is_some_and(|had| had < count))?;
            Some(Dropped { table: table.to_owned(), chain, rule })
        })
    }

    fn follow(&self, event: &Reply, trails: &mut BTreeMap<u32, Trail>) {
        let text = |kind| find_string(&event.attributes, kind).unwrap_or_default().to_owned();
        let (table, chain) = (text(1), text(2));
        let Some(id) = find_number(&event.attributes, 6) else { return };
        // those at links have a number behind
        let bare = chain.trim_end_matches(|c: char| c == '-' || c.is_ascii_digit());
        let named = |name: &&(&str, bool, bool)| bare.strip_prefix("in-").or(bare.strip_prefix("own-")) == Some(name.0);
        let kind = KINDS.iter().find(named).filter(|_| table == self.table).map(|(_, back, packed)| (*back, *packed));
        if let Some((back, packed)) = kind.or_else(|| self.by_header(event)) {
            let by = find_number(&event.attributes, 10).and_then(|index| nix::net::if_::if_indextoname(index).ok()?.into_string().ok());
            trails.entry(id).or_insert(Trail { back, packed, stage: Stage::In, by, dropped: None });
        }
        let Some(trail) = trails.get_mut(&id) else { return };
        trail.stage = trail.stage.max(stage(&chain).filter(|_| table == self.table).unwrap_or(Stage::In));
        if event.family == NETDEV && table == TABLE && code_of(event) == Some(STOLEN) {
            trail.stage = Stage::Out;
        }
        if let Some(rule) = drop_of(event) {
            let family = family_name(event.family);
            trail.dropped.get_or_insert(Dropped { table: format!("{family} {table}"), chain, rule });
        }
    }
}

impl Tracer {
    /// Whose packet it is that the filter has under a new number: where bridges hand their frames to the filters of IP, one packet has two.
    fn by_header(&self, event: &Reply) -> Option<(bool, bool)> {
        let header = find(&event.attributes, 9)?;
        let [source, tunnel] = [Some(self.what.source), self.what.tunnel].map(|port| port.map(u16::to_be_bytes));
        let at = |offset: usize| <[u8; 2]>::try_from(header.get(offset..offset + 2)?).ok();
        match self.what.flow.port {
            _ if tunnel.is_some() && at(2) == tunnel => None,
            Some(_) if at(0) == source => Some((false, false)),
            Some(_) if at(2) == source => Some((true, false)),
            None if at(4) == source => Some((![8, 128].contains(header.first()?), false)),
            _ => None,
        }
    }
}

/// Of both families; nothing where that cannot be read.
fn dropped_by_legacy() -> [legacy::Dropped; 2] {
    Family::BOTH.map(|family| legacy::dropped(family).unwrap_or_default())
}

fn stage(chain: &str) -> Option<Stage> {
    match chain {
        "led" => Some(Stage::Forward),
        "out" | "up" => Some(Stage::Out),
        _ => None,
    }
}

/// The rule that drops, or none for a policy; nothing where it goes on.
fn drop_of(event: &Reply) -> Option<Option<u64>> {
    match find_number(&event.attributes, 4)? {
        POLICY => (find_number(&event.attributes, 16)? == DROP).then_some(None),
        RULE => {
            let code = code_of(event)?;
            let handle = find(&event.attributes, 3)?.try_into().ok().map(u64::from_be_bytes);
            (code == DROP).then_some(handle)
        }
        _ => None,
    }
}

/// The verdict of a rule.
fn code_of(event: &Reply) -> Option<u32> {
    find_number(find(&event.attributes, 5)?, 1)
}

fn family_name(family: u8) -> &'static str {
    match family {
        1 => "inet",
        2 => "ip",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "?",
    }
}

fn commit(socket: &Socket, operations: &[Operation]) -> io::Result<()> {
    socket.commit(operations).map_err(|Refused { cause, .. }| cause)
}

/// `NFT_TABLE_F_OWNER`.
const OWNED: u32 = 2;

fn rules(family: u8, table: &str, what: &Trace) -> Vec<Operation> {
    let made = operation("create", "the table of a trace", family, message::NEWTABLE, vec![string(1, table), number(2, OWNED)]);
    let marks = KINDS.iter().zip(FIRST..).flat_map(|((name, back, packed), priority)| {
        let found = matching(what, *back, *packed);
        [("in", PREROUTING), ("own", OUTPUT)].into_iter().flat_map(move |(at, hook)| {
            let chain = format!("{at}-{name}");
            let rule = found.clone().map(|found| mark(family, table, &chain, found));
            [Some(base(family, table, &chain, hook, priority)), rule].into_iter().flatten()
        })
    });
    let witnesses = [("led", FORWARD), ("up", INPUT), ("out", POSTROUTING)].map(|(name, hook)| base(family, table, name, hook, LAST));
    [made].into_iter().chain(marks).chain(witnesses).collect()
}

/// At all links of the fast way, before it.
fn fast_rules(table: &str, what: &Trace, links: &[Element]) -> Vec<Operation> {
    let made = operation("create", "the table of a trace", NETDEV, message::NEWTABLE, vec![string(1, table), number(2, OWNED)]);
    let chains = links.chunks(fast::MOST_DEVICES).zip(FIRST..).enumerate().flat_map(|(number, (links, priority))| {
        let chain = |name: &str| format!("in-{name}-{number}");
        let plain = KINDS.iter().filter(|(_, _, packed)| !packed).zip([0, 1000]);
        plain
            .flat_map(|((name, back, packed), later)| {
                let mark = matching(what, *back, *packed).map(|found| mark(NETDEV, table, &chain(name), found));
                [Some(fast::ingress(table, &chain(name), priority + later, links)), mark].into_iter().flatten()
            })
            .collect::<Vec<_>>()
    });
    [made].into_iter().chain(chains).collect()
}

/// A chain that lets all pass.
fn base(family: u8, table: &str, name: &str, hook: u32, priority: i32) -> Operation {
    let at = nest(4, [number(1, hook), number(2, priority.cast_unsigned())]);
    let attributes = vec![string(1, table), string(3, name), at, number(5, 1), string(7, "filter")];
    operation("create", "a chain of a trace", family, message::NEWCHAIN, attributes)
}

fn mark(family: u8, table: &str, chain: &str, found: Vec<Expression>) -> Operation {
    let attributes = vec![string(1, table), string(2, chain), expressions([found, traced()])];
    operation("add a rule to", "a chain of a trace", family, message::NEWRULE, attributes)
}

/// Bytes of what is around a packet in a tunnel, from the UDP header on: that, VXLAN's, Ethernet's.
const AROUND: u32 = 8 + 8 + 14;

/// What the packets of a kind have; none: there is no such kind here.
fn matching(what: &Trace, back: bool, packed: bool) -> Option<Vec<Expression>> {
    let flow = if back { what.flow.back() } else { what.flow };
    let family = family_of(flow.to);
    let (ends, inner, next) = match family {
        Family::V4 => (12, 20, 9),
        Family::V6 => (8, 40, 6),
    };
    let number = number_of(flow);
    let kind: [u8; 2] = match family {
        Family::V4 => 0x0800u16,
        Family::V6 => 0x86dd,
    }
    .to_be_bytes();
    if !packed {
        // the answer may come from another address than was asked, and go to another
        let ends = if back { Vec::new() } else { addresses(flow, |offset| (1, ends + offset)) };
        return Some([ethertype(kind), protocol(number), ends, transport(what, back, 2, 0)].concat());
    }
    let port = what.tunnel?.to_be_bytes();
    let around = [protocol(UDP), bytes_at(2, 2, &port), bytes_at(2, AROUND - 2, &kind), bytes_at(2, AROUND + next, &[number])].concat();
    Some([around, addresses(flow, |offset| (2, AROUND + ends + offset)), transport(what, back, 2, AROUND + inner)].concat())
}

fn number_of(flow: Flow) -> u8 {
    match (flow.port, flow.to.is_ipv4()) {
        (Some((protocol, _)), _) => protocol.number(),
        (None, true) => 1,
        (None, false) => 58,
    }
}

fn addresses(flow: Flow, at: impl Fn(u32) -> (u32, u32)) -> Vec<Expression> {
    let octets = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let (from, to) = (octets(flow.from), octets(flow.to));
    let ((base, first), (_, second)) = (at(0), at(from.len() as u32));
    [bytes_at(base, first, &from), bytes_at(base, second, &to)].concat()
}

/// The ports, or the kind of an echo and its number, at `offset` of the header `base`.
fn transport(what: &Trace, back: bool, base: u32, offset: u32) -> Vec<Expression> {
    let source = what.source.to_be_bytes();
    match what.flow.port {
        Some((_, port)) if !back => [bytes_at(base, offset, &source), bytes_at(base, offset + 2, &port.to_be_bytes())].concat(),
        Some(_) => bytes_at(base, offset + 2, &source),
        None => {
            let kind = match (what.flow.to.is_ipv4(), back) {
                (true, false) => 8,
                (true, true) => 0,
                (false, false) => 128,
                (false, true) => 129,
            };
            [bytes_at(base, offset, &[kind]), bytes_at(base, offset + 4, &source)].concat()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::attribute::{bytes, write};
    use super::*;

    fn event(attributes: Vec<super::super::attribute::Attribute>) -> Reply {
        let mut written = Vec::new();
        write(&attributes, &mut written);
        Reply { subsystem: NFTABLES, kind: TRACE, family: 2, port: 0, attributes: written }
    }

    #[test]
    fn a_drop_is_told_by_its_rule_or_as_a_policy() {
        let rule = |code: i32| event(vec![number(4, RULE), bytes(3, 7u64.to_be_bytes()), nest(5, [bytes(1, code.to_be_bytes())])]);
        assert_eq!(drop_of(&rule(0)), Some(Some(7)));
        assert_eq!(drop_of(&rule(1)), None, "accepted");
        assert_eq!(drop_of(&rule(-1)), None, "goes on to the next rule");
        assert_eq!(drop_of(&event(vec![number(4, POLICY), number(16, 0)])), Some(None));
        assert_eq!(drop_of(&event(vec![number(4, POLICY), number(16, 1)])), None);
        assert_eq!(drop_of(&event(vec![])), None);
    }
}
