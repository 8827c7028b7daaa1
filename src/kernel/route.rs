//! Routes of rsnet's own protocol number.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::address::family;
use super::link::{absent_is_none, find, index};
use super::wire::Wire;
use crate::model::{IfName, Route, RouteKind, StaticRoute};

/// `rtm_protocol` of all our routes: 195, which `/etc/iproute2/rt_protos` and the kernel's `rtnetlink.h` leave free. `ip route show proto 195`.
pub const PROTOCOL: RouteProtocol = RouteProtocol::Other(195);

/// `RT_TABLE_LOCAL`.
const LOCAL: u8 = 255;

/// What stands for the link of a route that has none.
pub(super) const NO_LINK: &str = "lo";

/// What a route message says, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub destination: IpNet,
    /// The link, or that of the first next hop.
    pub link: u32,
    pub local: bool,
    pub table: u32,
    pub protocol: RouteProtocol,
    pub unicast: bool,
    pub unreachable: bool,
    pub metric: u32,
    /// The next hop.
    pub via: Option<IpAddr>,
    /// What the host itself sends by it has this address.
    pub source: Option<IpAddr>,
    /// Bytes: the route's own.
    pub mtu: Option<u32>,
}

impl Seen {
    pub fn read(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let mut seen = Seen {
            destination: unspecified(header.address_family, header.destination_prefix_length)?,
            link: 0,
            local: header.kind == RouteType::Local,
            table: header.table.into(),
            protocol: header.protocol,
            unicast: header.kind == RouteType::Unicast,
            unreachable: header.kind == RouteType::Unreachable,
            metric: 0,
            via: None,
            source: None,
            mtu: None,
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => {
                    seen.destination = IpNet::new(ip(address)?, header.destination_prefix_length).ok()?
                }
                RouteAttribute::Oif(index) => seen.link = *index,
                RouteAttribute::MultiPath(hops) => seen.link = hops.first().map_or(0, |hop| hop.interface_index),
                RouteAttribute::Table(table) => seen.table = *table,
                RouteAttribute::Priority(metric) => seen.metric = *metric,
                RouteAttribute::Gateway(address) => seen.via = ip(address),
                RouteAttribute::PrefSource(address) => seen.source = ip(address),
                RouteAttribute::Metrics(metrics) => {
                    seen.mtu = metrics.iter().find_map(|metric| if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None });
                }
                _ => {}
            }
        }
        Some(seen)
    }

    pub fn kind(&self) -> RouteKind {
        match (self.local, self.unreachable) {
            (true, _) => RouteKind::Local,
            (_, true) => RouteKind::Unreachable,
            _ => RouteKind::Unicast { via: self.via, source: self.source },
        }
    }
}

fn unspecified(family: AddressFamily, length: u8) -> Option<IpNet> {
    let address: IpAddr = match family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    IpNet::new(address, length).ok()
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

pub(super) fn attribute(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

/// By what a route is found again: destination, link if it has one, table and our number.
fn sought(destination: IpNet, index: u32, kind: RouteType) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination.addr());
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.protocol = PROTOCOL;
    message.header.table = if kind == RouteType::Local { LOCAL } else { RouteHeader::RT_TABLE_MAIN };
    message.header.kind = kind;
    message.header.scope = RouteScope::NoWhere;
    message.attributes = vec![RouteAttribute::Destination(attribute(destination.network()))];
    message.attributes.extend((kind != RouteType::Unreachable).then_some(RouteAttribute::Oif(index)));
    message
}

fn type_of(kind: &RouteKind) -> RouteType {
    match kind {
        RouteKind::Local => RouteType::Local,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Unicast { .. } => RouteType::Unicast,
    }
}

fn message(wanted: &Route, index: u32) -> RouteMessage {
    let mut message = sought(wanted.destination, index, type_of(&wanted.kind));
    message.header.scope = if wanted.kind == RouteKind::Local { RouteScope::Host } else { RouteScope::Universe };
    if let RouteKind::Unicast { via, source } = wanted.kind {
        lead(&mut message, via);
        message.attributes.extend(source.map(|address| RouteAttribute::PrefSource(attribute(address))));
    }
    message
}

/// To a next hop that is on the link, whatever the other routes say; none: to the link.
fn lead(message: &mut RouteMessage, via: Option<IpAddr>) {
    message.header.scope = if via.is_some() { RouteScope::Universe } else { RouteScope::Link };
    if let Some(gateway) = via {
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(attribute(gateway)));
    }
}

/// Replaces one of ours to the same destination, whatever its link; another owner's is refused. But a local one stands beside others in
/// IPv6: `::1` has one on every link whose packets may be answered from it.
pub(super) fn put(wire: &mut Wire, wanted: &Route) -> io::Result<()> {
    let index = index(&wanted.link)?;
    match add(wire, message(wanted, index), NLM_F_EXCL) {
        Err(error) if [io::ErrorKind::AlreadyExists, io::ErrorKind::InvalidInput].contains(&error.kind()) => {}
        result => return result,
    }
    let (destination, local) = (wanted.destination.trunc(), wanted.kind == RouteKind::Local);
    let mut ours = ours_of(wire, family(destination.addr()))?;
    ours.retain(|route| route.local == local);
    if ours.iter().any(|route| route.destination == destination && route.link == index && route.kind() == wanted.kind) {
        return Ok(());
    }
    let guide = ours.iter().any(|route| leads_away(route, wanted, index)).then(|| guide(wanted)).flatten();
    let beside = local && destination.addr().is_ipv6();
    ours.retain(|route| route.destination == destination && !beside);
    // In its place the new one comes without a moment in which there is none.
    let replaced = ours.pop();
    for rival in ours {
        remove(wire, rival.destination, rival.link, type_of(&rival.kind()))?;
    }
    let how = match (beside, replaced) {
        (true, _) => 0,
        (_, Some(_)) => NLM_F_REPLACE,
        (_, None) => NLM_F_EXCL,
    };
    let put = |wire: &mut Wire| add(wire, message(wanted, index), how).map_err(|error| explain(error, wanted));
    let Some(guide) = guide else { return put(wire) };
    add(wire, message(&guide, index), 0)?;
    let done = put(wire);
    remove(wire, guide.destination, index, RouteType::Unicast)?;
    done
}

/// To the next hop by the wanted link, for as long as it takes: where another route leads elsewhere, IPv6 would refuse the wanted one.
fn guide(wanted: &Route) -> Option<Route> {
    let RouteKind::Unicast { via: Some(via), .. } = wanted.kind else { return None };
    Some(Route { destination: via.into(), link: wanted.link.clone(), kind: RouteKind::Unicast { via: None, source: None } })
}

/// Whether it leads to the next hop by another link: the peer was reached otherwise before.
fn leads_away(route: &Seen, wanted: &Route, index: u32) -> bool {
    let RouteKind::Unicast { via: Some(via), .. } = wanted.kind else { return false };
    via.is_ipv6() && route.link != index && route.destination.contains(&via)
}

fn add(wire: &mut Wire, message: RouteMessage, exclusive: u16) -> io::Result<()> {
    wire.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | exclusive)
}

fn remove(wire: &mut Wire, destination: IpNet, index: u32, kind: RouteType) -> io::Result<()> {
    absent_is_none(wire.change(RouteNetlinkMessage::DelRoute(sought(destination, index, kind)), 0)).map(drop)
}

fn explain(error: io::Error, wanted: &Route) -> io::Error {
    let destination = wanted.destination;
    let text = match (error.kind(), &wanted.kind) {
        (io::ErrorKind::AlreadyExists, _) => {
            format!("somebody else's route to {destination} stands on this host (`ip route show {destination}`): {error}")
        }
        (io::ErrorKind::InvalidInput, RouteKind::Unicast { via: Some(via), .. }) => {
            format!(
                "the host has not its source address, or somebody else's route leads to {via} by another link (`ip route get {via}`): {error}"
            )
        }
        _ => return error,
    };
    io::Error::new(error.kind(), text)
}

/// From whichever of the two tables it is in, leading somewhere or not.
pub(super) fn delete(wire: &mut Wire, destination: IpNet, link: &IfName) -> io::Result<()> {
    let Some(seen) = find(wire, link)? else { return Ok(()) };
    let kinds: &[RouteType] = match link.as_str() {
        NO_LINK => &[RouteType::Unreachable, RouteType::Unicast, RouteType::Local],
        _ => &[RouteType::Unicast, RouteType::Local],
    };
    kinds.iter().try_for_each(|kind| remove(wire, destination, seen.index, *kind))
}

/// By which way a packet to `destination` would leave.
pub(super) fn question(destination: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination);
    message.header.destination_prefix_length = IpNet::from(destination).prefix_len();
    message.attributes = vec![RouteAttribute::Destination(attribute(destination))];
    message
}

/// In a container's namespace, on the link of this index.
pub(super) fn put_static(wire: &mut Wire, wanted: &StaticRoute, index: u32) -> io::Result<()> {
    let mut message = sought(wanted.destination, index, RouteType::Unicast);
    message.header.protocol = RouteProtocol::Boot;
    lead(&mut message, wanted.via);
    add(wire, message, NLM_F_EXCL)
}

/// A default route by `gateway` on the link of this index, unless the namespace has one of the family.
pub(super) fn put_default(wire: &mut Wire, gateway: IpAddr, index: u32) -> io::Result<()> {
    let has_one = |r: &Seen| r.destination.prefix_len() == 0 && r.destination.addr().is_ipv4() == gateway.is_ipv4();
    if dump_unicast(wire)?.iter().any(has_one) {
        return Ok(());
    }
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.kind = RouteType::Unicast;
    message.header.protocol = RouteProtocol::Boot;
    message.attributes = vec![RouteAttribute::Gateway(attribute(gateway)), RouteAttribute::Oif(index)];
    wire.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Ours only: the kernel leaves the others out, there may be a million.
pub(super) fn dump_ours(wire: &mut Wire) -> io::Result<Vec<Seen>> {
    let mut routes = ours_of(wire, AddressFamily::Inet)?;
    routes.extend(ours_of(wire, AddressFamily::Inet6)?);
    Ok(routes)
}

fn ours_of(wire: &mut Wire, family: AddressFamily) -> io::Result<Vec<Seen>> {
    let mut routes = dump(wire, family, PROTOCOL, RouteType::Unspec)?;
    routes.retain(|route| route.protocol == PROTOCOL);
    Ok(routes)
}

/// Those of every owner and table that lead somewhere: the kernel leaves out those to the host's own addresses and to groups, of which each
/// link has several.
pub(super) fn dump_unicast(wire: &mut Wire) -> io::Result<Vec<Seen>> {
    let mut routes = dump(wire, AddressFamily::Inet, RouteProtocol::Unspec, RouteType::Unicast)?;
    routes.extend(dump(wire, AddressFamily::Inet6, RouteProtocol::Unspec, RouteType::Unicast)?);
    routes.retain(|route| route.unicast);
    Ok(routes)
}

/// Those of one protocol number and type, `Unspec` being all; others too from a kernel that does not filter.
fn dump(wire: &mut Wire, family: AddressFamily, protocol: RouteProtocol, kind: RouteType) -> io::Result<Vec<Seen>> {
    let mut question = RouteMessage::default();
    question.header.address_family = family;
    question.header.protocol = protocol;
    question.header.kind = kind;
    // A kernel that does not have the family has no such routes.
    let answers = match wire.dump(RouteNetlinkMessage::GetRoute(question)) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => Vec::new(),
        result => result?,
    };
    Ok(answers.iter().filter_map(|a| if let RouteNetlinkMessage::NewRoute(m) = a { Seen::read(m) } else { None }).collect())
}
