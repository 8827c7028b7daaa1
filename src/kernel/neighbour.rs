//! Who has an address on a segment: the kernel's own search for a neighbour (ARP, RFC 826; ND, RFC 4861).

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};

use super::address::family;
use super::link;
use super::wire::Wire;
use crate::model::{IfName, Mac};

fn message(index: u32, address: IpAddr) -> NeighbourMessage {
    let destination = match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    };
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.attributes = vec![NeighbourAttribute::Destination(destination)];
    message
}

/// Forgets what the kernel knows and has it ask the segment.
pub(super) fn ask(wire: &mut Wire, link: &IfName, address: IpAddr) -> io::Result<()> {
    let index = link::need(wire, link)?.index;
    forget(wire, link, address)?;
    let mut question = message(index, address);
    question.header.flags = NeighbourFlags::Use;
    wire.change(RouteNetlinkMessage::NewNeighbour(question), NLM_F_CREATE | NLM_F_REPLACE)
}

/// The MAC that has answered.
pub(super) fn answer(wire: &mut Wire, link: &IfName, address: IpAddr) -> io::Result<Option<Mac>> {
    let index = link::need(wire, link)?.index;
    let answer = link::absent_is_none(wire.get(RouteNetlinkMessage::GetNeighbour(message(index, address))))?.flatten();
    let Some(RouteNetlinkMessage::NewNeighbour(seen)) = answer else { return Ok(None) };
    let mac = seen.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac::from),
        _ => None,
    });
    Ok(mac.filter(|_| seen.header.state == NeighbourState::Reachable))
}

pub(super) fn forget(wire: &mut Wire, link: &IfName, address: IpAddr) -> io::Result<()> {
    let index = link::need(wire, link)?.index;
    link::absent_is_none(wire.change(RouteNetlinkMessage::DelNeighbour(message(index, address)), 0)).map(drop)
}
