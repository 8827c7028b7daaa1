//! Entries as elements of the table's sets and maps.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::ops::Bound::{Excluded, Unbounded};

use ipnet::IpNet;

use crate::model::{Entry, Family, IfName, Inbound, PortRange, Protocol, Zone, family_of};

use super::attribute::{self, Attribute, bytes, find, find_number, find_string, nest, read};
use super::conntrack::Way;
use super::expression::{Field, GOTO, Verdict, interface, nfproto, octets, verdict_data};
use super::fast::Branch;
use super::set::Set;
use super::table::{ANYTHING, Chain, OPENED};

/// One element, in the bytes in which the kernel holds it: fields in network order, each padded to four bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    pub set: Set,
    pub key: Vec<u8>,
    /// The upper end, in sets of intervals.
    pub end: Option<Vec<u8>>,
    pub data: Datum,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Datum {
    None,
    Value(Vec<u8>),
    /// Code and chain, as in `NFTA_VERDICT_*`.
    Verdict(i32, Option<String>),
    Branch(Branch),
}

/// The elements that say what `entry` says, on a host whose links have the numbers that `index` tells (0: there is no such link). Fails where an entry mixes the address families, which no kernel can translate between.
pub fn elements(entry: &Entry, index: &dyn Fn(&IfName) -> u32) -> io::Result<Vec<Element>> {
    let pair = |set, from: &IfName, to: &IfName| vec![Element::plain(set, [name(from), name(to)].concat())];
    Ok(match entry {
        Entry::Segment { link } => [vec![Element::plain(Set::Segments, name(link))], pair(Set::Hairpin, link, link)].concat(),
        Entry::Inner { zone: Zone::Link(link) } => pair(Set::Inner, link, link),
        Entry::Internal { zone: Zone::Link(link) } => vec![Element::plain(Set::Internal, name(link))],
        Entry::Trusted { from, to } => pair(Set::Trusted, from, to),
        Entry::Enter { zone: Zone::Link(link), family, rule } => {
            vec![Element { data: inbound(*rule), ..Element::plain(Set::Enter, family_link(*family, link)) }]
        }
        Entry::Masquerade { zone: Zone::Link(link), family } => vec![Element::plain(Set::Masquerade, family_link(*family, link))],
        Entry::Inner { zone: Zone::Subnet(subnet) } => {
            let (family, chain) = (family_of(subnet.addr()), from_ports(subnet));
            let here = Element::range(Set::FastSubnets(family), subnet.network(), subnet.broadcast(), goto(chain.clone()));
            vec![pair_within(Set::InnerSubnets, subnet), Element::branch(chain, Branch::Port { subnet: *subnet }), here]
        }
        Entry::Direct { subnet } => vec![one_within(Set::DirectSubnets, subnet, Datum::None)],
        Entry::Internal { zone: Zone::Subnet(subnet) } => vec![one_within(Set::InternalSubnets, subnet, Datum::None)],
        Entry::Enter { zone: Zone::Subnet(subnet), rule, .. } => vec![one_within(Set::EnterSubnets, subnet, inbound(*rule))],
        Entry::Masquerade { zone: Zone::Subnet(subnet), .. } => vec![one_within(Set::MasqueradeSubnets, subnet, Datum::None)],
        Entry::Tunnel { port, vni } => vec![Element::plain(Set::Tunnels, tunnel(*port, *vni))],
        Entry::Member { vtep, port, vni } => {
            vec![Element::plain(Set::Members(family_of(*vtep)), [octets(*vtep), tunnel(*port, *vni)].concat())]
        }
        Entry::SourceNat { link, source } => {
            vec![Element { data: Datum::Value(octets(*source)), ..Element::plain(Set::SourceNat(family_of(*source)), name(link)) }]
        }
        Entry::Publish { protocol, host, ports, to, to_port } => publish(*protocol, *host, *ports, *to, *to_port)?,
        Entry::Open { protocol, to, ports } => vec![range(Set::Open(family_of(*to)), *to, *to, *protocol, *ports, Datum::None)],
        Entry::Local { address, link } => local(*address, link, index(link)),
        Entry::Way { subnet, link, mtu } => {
            let (subnet, index, mtu) = (*subnet, index(link), *mtu);
            let going = Element::branch(to_hosts(&subnet, link), Branch::To { subnet, index, mtu });
            let coming = Element::branch(from_hosts(&subnet, link), Branch::From { subnet, index, mtu });
            hook(link, index).into_iter().chain([going, coming]).collect()
        }
        Entry::Remote { subnet, first, last, link, via } => {
            let range = |set: fn(Family) -> Set, data| Element::range(set(family_of(*first)), *first, *last, data);
            let going = [range(Set::FastTo, goto(to_hosts(subnet, link))), range(Set::FastVia, Datum::Value(octets(*via)))];
            going.into_iter().chain([range(Set::FastFrom, goto(from_hosts(subnet, link)))]).collect()
        }
    })
}

/// The chain of what comes in by a port of a container of the subnet.
fn from_ports(subnet: &IpNet) -> String {
    chain_of("port", subnet)
}

/// That of what leaves by a link to other hosts.
fn to_hosts(subnet: &IpNet, link: &IfName) -> String {
    chain_of(&format!("to-{}", link.as_str()), subnet)
}

/// That of what comes in by it.
fn from_hosts(subnet: &IpNet, link: &IfName) -> String {
    chain_of(&format!("from-{}", link.as_str()), subnet)
}

/// `nft` takes no colon in a name.
fn chain_of(what: &str, subnet: &IpNet) -> String {
    format!("{what}-{subnet}").replace(':', "_")
}

fn goto(chain: String) -> Datum {
    Datum::Verdict(GOTO, Some(chain))
}

fn local(address: IpAddr, link: &IfName, index: u32) -> Vec<Element> {
    let family = family_of(address);
    let port = Element::plain(Set::FastPorts(family), [by_number(index), octets(address)].concat());
    let here = Element { data: Datum::Value(by_number(index)), ..Element::plain(Set::FastHere(family), octets(address)) };
    hook(link, index).into_iter().chain([port, here]).collect()
}

/// None where there is no such link: the kernel would refuse it, and all else with it.
fn hook(link: &IfName, index: u32) -> Option<Element> {
    (index > 0).then(|| Element::hook(link.as_str()))
}

fn publish(protocol: Protocol, host: IpAddr, ports: PortRange, to: IpAddr, to_port: u16) -> io::Result<Vec<Element>> {
    let family = family_of(host);
    if family != family_of(to) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{host} and {to} are not of one address family")));
    }
    if ports.count() > 1 && ports.first == to_port {
        let last = if host.is_unspecified() { highest(family) } else { host };
        return Ok(vec![range(Set::PublishRange(family), host, last, protocol, ports, Datum::Value(octets(to)))]);
    }
    let end = usize::from(to_port) + ports.count() - 1;
    if end > usize::from(u16::MAX) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the ports of {to} from {to_port} on end at {end}")));
    }
    Ok(ports.ports().zip(to_port..).map(|(port, to_port)| one_port(family, protocol, host, port, to, to_port)).collect())
}

fn one_port(family: Family, protocol: Protocol, host: IpAddr, at: u16, to: IpAddr, to_port: u16) -> Element {
    let data = Datum::Value([octets(to), port(to_port)].concat());
    let key = [number(protocol.number()), port(at)].concat();
    match host.is_unspecified() {
        true => Element { data, ..Element::plain(Set::PublishAny(family), key) },
        false => Element { data, ..Element::plain(Set::Publish(family), [octets(host), key].concat()) },
    }
}

fn range(set: Set, first: IpAddr, last: IpAddr, protocol: Protocol, ports: PortRange, data: Datum) -> Element {
    let key = |address, at| [octets(address), number(protocol.number()), port(at)].concat();
    Element { set, key: key(first, ports.first), end: Some(key(last, ports.last)), data }
}

/// Both addresses of a packet are in the subnet.
fn pair_within(set: fn(Family) -> Set, subnet: &IpNet) -> Element {
    let twice = |address| [octets(address), octets(address)].concat();
    let set = set(family_of(subnet.addr()));
    Element { end: Some(twice(subnet.broadcast())), ..Element::plain(set, twice(subnet.network())) }
}

/// One address of a packet is in the subnet, whose family is that of the element.
fn one_within(set: fn(Family) -> Set, subnet: &IpNet, data: Datum) -> Element {
    let family = family_of(subnet.addr());
    let key = |address| [number(nfproto(family)), octets(address)].concat();
    Element { set: set(family), key: key(subnet.network()), end: Some(key(subnet.broadcast())), data }
}

fn inbound(rule: Inbound) -> Datum {
    let verdict = match rule {
        Inbound::Closed => Verdict::Drop,
        Inbound::Opened => Verdict::Goto(OPENED),
        Inbound::Anything => Verdict::Goto(ANYTHING),
    };
    Datum::Verdict(verdict.code(), verdict.chain().map(str::to_owned))
}

fn highest(family: Family) -> IpAddr {
    match family {
        Family::V4 => [0xff; 4].into(),
        Family::V6 => [0xff; 16].into(),
    }
}

/// A link as a key or a value has it.
fn by_number(index: u32) -> Vec<u8> {
    index.to_ne_bytes().to_vec()
}

fn name(link: &IfName) -> Vec<u8> {
    interface(link.as_str()).to_vec()
}

fn family_link(family: Family, link: &IfName) -> Vec<u8> {
    [number(nfproto(family)), name(link)].concat()
}

/// Of an address, in bytes.
fn length(family: Family) -> usize {
    Field::Destination(family).length() as usize
}

/// The address at the beginning.
fn address(family: Family, octets: &[u8]) -> Option<IpAddr> {
    match family {
        Family::V4 => octets.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        Family::V6 => octets.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
    }
}

/// The port behind a protocol.
fn port_of(protocol_and_port: &[u8]) -> Option<u16> {
    protocol_and_port.get(4..6).and_then(|port| port.try_into().ok()).map(u16::from_be_bytes)
}

fn number(value: u8) -> Vec<u8> {
    vec![value, 0, 0, 0]
}

fn port(value: u16) -> Vec<u8> {
    [value.to_be_bytes(), [0; 2]].concat()
}

/// What tells a frame's tunnel. Behind the number the header has eight bits that are zero.
fn tunnel(at: u16, vni: u32) -> Vec<u8> {
    [port(at), (vni << 8).to_be_bytes().to_vec()].concat()
}

const LIST_ELEM: u16 = 1;
const KEY: u16 = 1;
const DATA: u16 = 2;
const FLAGS: u16 = 3;
const KEY_END: u16 = 10;
const VALUE: u16 = 1;
const VERDICT: u16 = 2;
const INTERVAL_END: u32 = 1;

impl Element {
    fn plain(set: Set, key: Vec<u8>) -> Self {
        Element { set, key, end: None, data: Datum::None }
    }

    /// From the first to the last address.
    fn range(set: Set, first: IpAddr, last: IpAddr, data: Datum) -> Self {
        Element { set, key: octets(first), end: Some(octets(last)), data }
    }

    /// A chain of one network.
    fn branch(name: String, branch: Branch) -> Self {
        Element { data: Datum::Branch(branch), ..Element::plain(Set::Branches, name.into_bytes()) }
    }

    /// A chain that is there, whatever it does.
    pub fn some_branch(name: &str) -> Self {
        Element::plain(Set::Branches, name.into())
    }

    /// The chain that it is.
    pub fn chain(&self) -> Option<Chain> {
        let Datum::Branch(branch) = &self.data else { return None };
        Some(Chain::plain(str::from_utf8(&self.key).ok()?, branch.rules()))
    }

    /// As a range up to the next of the ends, or to the last of all addresses.
    fn until(self, ends: &BTreeSet<Vec<u8>>) -> Self {
        let over = ends.range::<[u8], _>((Excluded(&self.key[..]), Unbounded)).next();
        let last = over.map_or_else(|| Some(vec![0xff; self.key.len()]), |over| before(over));
        Element { end: last, ..self }
    }

    /// The fast way begins at the ingress of `link`.
    pub fn hook(link: &str) -> Self {
        Element::plain(Set::Hooks, interface(link).to_vec())
    }

    /// `link` is a bridge of Docker's.
    pub fn foreign(link: &IfName) -> Self {
        Element::plain(Set::Foreign, name(link))
    }

    /// The link that it makes a segment.
    pub fn segment(&self) -> Option<IfName> {
        let name = self.key.split(|byte| *byte == 0).next().filter(|_| self.set == Set::Segments)?;
        str::from_utf8(name).ok()?.parse().ok()
    }

    /// Whether it tells of a network without a bridge.
    pub fn is_of_subnet(&self) -> bool {
        Set::of_subnets().any(|set| set == self.set)
    }

    /// Whether it leads to another address.
    pub fn translates(&self) -> bool {
        matches!(self.set, Set::Publish(_) | Set::PublishAny(_) | Set::PublishRange(_))
    }

    /// What a published or opened port takes in; nothing of another element.
    pub fn way(&self) -> Option<Way> {
        let (family, skip) = match self.set {
            Set::Publish(family) | Set::PublishRange(family) | Set::Open(family) => (family, length(family)),
            Set::PublishAny(family) => (family, 0),
            _ => return None,
        };
        let end = self.end.as_ref().unwrap_or(&self.key);
        let (first, last) = (self.key.split_at_checked(skip)?, end.split_at_checked(skip)?);
        // A range over all addresses is one from the lowest to the highest.
        let host = if first.0 == last.0 { address(family, first.0) } else { None };
        let to = if let Datum::Value(data) = &self.data { address(family, data) } else { host }?;
        Some(Way { protocol: *first.1.first()?, host, ports: port_of(first.1)?..=port_of(last.1)?, to })
    }

    /// As members of `NFTA_SET_ELEM_LIST_ELEMENTS`.
    pub fn attributes(&self) -> Vec<Attribute> {
        let value = |kind, of: &[u8]| nest(kind, [bytes(VALUE, of)]);
        let data = match &self.data {
            Datum::None | Datum::Branch(_) => None,
            Datum::Value(data) => Some(value(DATA, data)),
            Datum::Verdict(code, chain) => Some(nest(DATA, [verdict_data(*code, chain.as_deref())])),
        };
        let member = |attributes: [Option<Attribute>; 3]| nest(LIST_ELEM, attributes.into_iter().flatten().collect::<Vec<_>>());
        let (key, end) = (Some(value(KEY, &self.key)), self.end.as_deref());
        if !self.set.has_split_ranges() {
            return vec![member([key, data, end.map(|end| value(KEY_END, end))])];
        }
        let over = end.and_then(behind).map(|over| member([Some(value(KEY, &over)), Some(attribute::number(FLAGS, INTERVAL_END)), None]));
        [member([key, data, None])].into_iter().chain(over).collect()
    }

    /// The element of a dump.
    fn parse(set: Set, dumped: &[u8]) -> Option<Self> {
        let value = |kind| find(dumped, kind).and_then(|nest| find(nest, VALUE)).map(<[u8]>::to_vec);
        let verdict = || find(dumped, DATA).and_then(|data| find(data, VERDICT));
        let data = match (value(DATA), verdict()) {
            (Some(data), _) => Datum::Value(data),
            (None, Some(verdict)) => Datum::Verdict(find_number(verdict, 1)?.cast_signed(), find_string(verdict, 2).map(str::to_owned)),
            (None, None) => Datum::None,
        };
        Some(Element { set, key: value(KEY)?, end: value(KEY_END), data })
    }
}

/// The address that follows; none behind the last one.
fn behind(address: &[u8]) -> Option<Vec<u8>> {
    step(address, |byte| byte.overflowing_add(1))
}

/// The address before it; none before the first one.
fn before(address: &[u8]) -> Option<Vec<u8>> {
    step(address, |byte| byte.overflowing_sub(1))
}

/// From the last byte on, until there is nothing to carry.
fn step(address: &[u8], by_one: fn(u8) -> (u8, bool)) -> Option<Vec<u8>> {
    let mut stepped = address.to_vec();
    for byte in stepped.iter_mut().rev() {
        let carries;
        (*byte, carries) = by_one(*byte);
        if !carries {
            return Some(stepped);
        }
    }
    None
}

/// The elements in the messages of a dump, and how many there were in forms that we never write (a catch-all, an end of no range).
pub fn parse_all<'a>(set: Set, messages: impl Iterator<Item = &'a [u8]>) -> (Vec<Element>, usize) {
    // a dump beside changes may tell one twice
    let members: BTreeSet<&[u8]> = messages.filter_map(|message| find(message, 3)).flat_map(read).map(|(_, member)| member).collect();
    let flags = |member: &&[u8]| find_number(member, FLAGS).unwrap_or_default();
    let (ends, others): (Vec<&[u8]>, Vec<&[u8]>) =
        members.iter().partition(|member| set.has_split_ranges() && flags(member) == INTERVAL_END);
    let parsed = |members: Vec<&[u8]>| members.into_iter().filter_map(|member| Element::parse(set, member)).collect::<BTreeSet<_>>();
    let begun = parsed(others.into_iter().filter(|member| flags(member) == 0).collect());
    let ends: BTreeSet<Vec<u8>> = parsed(ends).into_iter().map(|end| end.key).collect();
    let whole: Vec<Element> = begun.into_iter().map(|one| if set.has_split_ranges() { one.until(&ends) } else { one }).collect();
    let told: usize = whole.iter().map(|element| element.attributes().len()).sum();
    (whole, members.len().abs_diff(told))
}

#[cfg(test)]
mod tests {
    use super::super::attribute::{list, write};
    use super::*;

    fn read_back(members: Vec<Attribute>) -> (Vec<Element>, usize) {
        let mut message = Vec::new();
        write(&[list(3, members)], &mut message);
        parse_all(Set::FastVia(Family::V4), [&message[..]].into_iter())
    }

    fn range([first, last]: [[u8; 4]; 2]) -> Element {
        Element::range(Set::FastVia(Family::V4), first.into(), last.into(), Datum::Value(vec![10, 0, 0, 1]))
    }

    #[test]
    fn ranges_of_one_field_are_read_as_they_were_written() {
        let ranges = [
            [[0, 0, 0, 0], [0, 0, 0, 0]],
            [[10, 0, 0, 0], [10, 0, 0, 63]],
            // right behind it
            [[10, 0, 0, 64], [10, 0, 0, 64]],
            [[10, 0, 1, 0], [10, 0, 255, 255]],
            [[255, 255, 255, 255], [255, 255, 255, 255]],
        ];
        let written = ranges.map(range);
        let members: Vec<_> = written.iter().flat_map(Element::attributes).collect();
        assert_eq!(members.len(), 9, "nothing is behind the last of all addresses");
        assert_eq!(read_back(members.into_iter().rev().collect()), (written.to_vec(), 0));
    }

    #[test]
    fn an_end_of_no_range_is_not_of_ours() {
        let whole = range([[10, 0, 0, 0], [10, 0, 0, 63]]);
        let [start, end] = whole.attributes().try_into().unwrap();
        assert_eq!(read_back(vec![start.clone(), end.clone(), range([[10, 0, 0, 0], [10, 0, 0, 9]]).attributes()[1].clone()]).1, 1);
        assert_eq!(read_back(vec![end]), (vec![], 1));
        assert_eq!(read_back(vec![start]), (vec![range([[10, 0, 0, 0], [255, 255, 255, 255]])], 0));
    }
}
