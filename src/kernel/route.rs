//! Routes of rsnet's own protocol number.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::address::family;
use super::link::{absent_is_none, find, need};
use super::wire::Wire;
use crate::model::IfName;

/// `rtm_protocol` of all our routes: 195, which `/etc/iproute2/rt_protos` and the kernel's `rtnetlink.h` leave free. `ip route show proto 195`.
pub const PROTOCOL: RouteProtocol = RouteProtocol::Other(195);

/// `RT_TABLE_LOCAL`.
const LOCAL: u8 = 255;

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
    pub metric: u32,
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
            metric: 0,
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
                _ => {}
            }
        }
        Some(seen)
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

fn attribute(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

fn message(destination: IpNet, index: u32, local: bool) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination.addr());
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.protocol = PROTOCOL;
    message.header.table = if local { LOCAL } else { RouteHeader::RT_TABLE_MAIN };
    message.header.kind = if local { RouteType::Local } else { RouteType::Unicast };
    message.header.scope = if local { RouteScope::Host } else { RouteScope::Link };
    message.attributes = vec![RouteAttribute::Destination(attribute(destination.network())), RouteAttribute::Oif(index)];
    message
}

/// A second route to the same destination is refused in IPv4, where it would hide the first, and stands beside it in IPv6: `::1` has one on
/// every link whose packets may be answered from it.
pub(super) fn put(wire: &mut Wire, destination: IpNet, link: &IfName, local: bool) -> io::Result<()> {
    let index = need(wire, link)?.index;
    let exclusive = if destination.addr().is_ipv4() { NLM_F_EXCL } else { 0 };
    match wire.change(RouteNetlinkMessage::NewRoute(message(destination, index, local)), NLM_F_CREATE | exclusive) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_there(wire, destination, index, local)? => Ok(()),
        result => result,
    }
}

fn is_there(wire: &mut Wire, destination: IpNet, index: u32, local: bool) -> io::Result<bool> {
    Ok(dump_ours(wire)?.iter().any(|r| r.destination == destination.trunc() && r.link == index && r.local == local))
}

/// From whichever of the two tables it is in.
pub(super) fn delete(wire: &mut Wire, destination: IpNet, link: &IfName) -> io::Result<()> {
    let Some(seen) = find(wire, link)? else { return Ok(()) };
    for local in [false, true] {
        let message = message(destination, seen.index, local);
        absent_is_none(wire.change(RouteNetlinkMessage::DelRoute(message), 0))?;
    }
    Ok(())
}

/// A default route by `gateway` on the link of this index, unless the namespace has one of the family.
pub(super) fn put_default(wire: &mut Wire, gateway: IpAddr, index: u32) -> io::Result<()> {
    let has_one = |r: &Seen| r.destination.prefix_len() == 0 && r.destination.addr().is_ipv4() == gateway.is_ipv4();
    if dump(wire, RouteProtocol::Unspec)?.iter().any(|r| r.unicast && has_one(r)) {
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
    let mut routes = dump(wire, PROTOCOL)?;
    routes.retain(|route| route.protocol == PROTOCOL);
    Ok(routes)
}

/// Those of one protocol number; all for `Unspec`.
pub(super) fn dump(wire: &mut Wire, protocol: RouteProtocol) -> io::Result<Vec<Seen>> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        question.header.protocol = protocol;
        // A kernel that does not have the family has no such routes.
        let answers = match wire.dump(RouteNetlinkMessage::GetRoute(question)) {
            Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => Vec::new(),
            result => result?,
        };
        routes.extend(answers.iter().filter_map(|a| if let RouteNetlinkMessage::NewRoute(m) = a { Seen::read(m) } else { None }));
    }
    Ok(routes)
}
