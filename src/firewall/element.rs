//! Entries as elements of the table's sets and maps.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{Entry, Family, IfName, Inbound, PortRange, Protocol, Zone, family_of};

use super::attribute::{Attribute, bytes, find, find_number, find_string, nest, read};
use super::conntrack::Way;
use super::expression::{Field, Verdict, interface, nfproto, verdict_data};
use super::set::Set;
use super::table::{ANYTHING, OPENED};

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
        Entry::Inner { zone: Zone::Subnet(subnet) } => [Set::InnerSubnets, Set::FastInner].map(|set| pair_within(set, subnet)).to_vec(),
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
        Entry::Remote { subnet, first, last, link, via, mtu } => {
            let (theirs, index) = ((*first, *last), index(link));
            let both = coming(index, subnet, theirs, *mtu).chain(going(subnet, theirs, (index, *via), *mtu));
            hook(link, index).into_iter().chain(both).collect()
        }
    })
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

/// No Ethernet takes packets larger than this: what is larger was put together of smaller ones by the kernel (GRO).
const JUMBO: u32 = 9216;

/// The length of a packet as its header has it: that of IPv6 does not count the header itself.
fn sized(family: Family, bytes: u32) -> Vec<u8> {
    let header = if family == Family::V6 { 40 } else { 0 };
    port(u16::try_from(bytes.saturating_sub(header)).unwrap_or(u16::MAX))
}

/// What comes from other hosts is led on if it is no larger than the ports take, or else so large that it never was one packet.
fn coming(link: u32, subnet: &IpNet, (first, last): (IpAddr, IpAddr), mtu: u32) -> impl Iterator<Item = Element> {
    let family = family_of(first);
    let key = move |from, to, bytes| [by_number(link), octets(from), octets(to), sized(family, bytes)].concat();
    let (start, end) = (subnet.network(), subnet.broadcast());
    let lengths = [Some((0, mtu)), (mtu <= JUMBO).then_some((JUMBO + 1, u32::MAX))].into_iter().flatten();
    lengths.map(move |(least, most)| Element {
        end: Some(key(last, end, most)),
        ..Element::plain(Set::FastLinks(family), key(first, start, least))
    })
}

/// From anywhere in the subnet to addresses of other hosts. TCP has segments that suit the port by which they come in.
fn going(subnet: &IpNet, (first, last): (IpAddr, IpAddr), (index, via): (u32, IpAddr), mtu: u32) -> impl Iterator<Item = Element> {
    const TCP: u8 = 6;
    let family = family_of(first);
    let pair = |source, destination| [octets(source), octets(destination)].concat();
    let (from, to) = (pair(subnet.network(), first), pair(subnet.broadcast(), last));
    let next = Element { set: Set::FastVia(family), key: from.clone(), end: Some(to.clone()), data: Datum::Value(octets(via)) };
    let key = move |pair: &[u8], protocol, bytes| [pair, &number(protocol)[..], &sized(family, bytes)[..]].concat();
    let sizes = [((u8::MIN, 0), (u8::MAX, mtu)), ((TCP, mtu + 1), (TCP, u32::MAX))];
    let out = move |((least, short), (most, long))| Element {
        set: Set::FastOut(family),
        key: key(&from, least, short),
        end: Some(key(&to, most, long)),
        data: Datum::Value(by_number(index)),
    };
    [next].into_iter().chain(sizes.into_iter().filter(|((_, short), _)| *short <= 0xffff).map(out))
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

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
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

impl Element {
    fn plain(set: Set, key: Vec<u8>) -> Self {
        Element { set, key, end: None, data: Datum::None }
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

    /// As a member of `NFTA_SET_ELEM_LIST_ELEMENTS`.
    pub fn attribute(&self) -> Attribute {
        let value = |kind, of: &Vec<u8>| nest(kind, [bytes(VALUE, of.as_slice())]);
        let data = match &self.data {
            Datum::None => None,
            Datum::Value(data) => Some(value(DATA, data)),
            Datum::Verdict(code, chain) => Some(nest(DATA, [verdict_data(*code, chain.as_deref())])),
        };
        let end = self.end.as_ref().map(|end| value(KEY_END, end));
        nest(LIST_ELEM, [Some(value(KEY, &self.key)), data, end].into_iter().flatten().collect::<Vec<_>>())
    }

    /// The element of a dump; nothing where it has a form that we never write (a catch-all, a closed interval's end).
    fn parse(set: Set, dumped: &[u8]) -> Option<Self> {
        let value = |kind| find(dumped, kind).and_then(|nest| find(nest, VALUE)).map(<[u8]>::to_vec);
        let verdict = || find(dumped, DATA).and_then(|data| find(data, VERDICT));
        let data = match (value(DATA), verdict()) {
            (Some(data), _) => Datum::Value(data),
            (None, Some(verdict)) => Datum::Verdict(find_number(verdict, 1)?.cast_signed(), find_string(verdict, 2).map(str::to_owned)),
            (None, None) => Datum::None,
        };
        if find_number(dumped, FLAGS).is_some_and(|flags| flags != 0) {
            return None;
        }
        Some(Element { set, key: value(KEY)?, end: value(KEY_END), data })
    }
}

/// The elements in one message of a dump, and how many there were that are none of ours by their form.
pub fn parse_list(set: Set, dumped: &[u8]) -> (Vec<Element>, usize) {
    let members = find(dumped, 3).unwrap_or_default();
    let parsed: Vec<_> = read(members).map(|(_, member)| Element::parse(set, member)).collect();
    let strange = parsed.iter().filter(|element| element.is_none()).count();
    (parsed.into_iter().flatten().collect(), strange)
}
