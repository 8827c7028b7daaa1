//! Addresses of links.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::link::{absent_is_none, find, index};
use super::wire::Wire;
use crate::model::IfName;

pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

pub(super) fn put(wire: &mut Wire, link: &IfName, address: IpNet) -> io::Result<()> {
    let index = index(link)?;
    put_on(wire, index, address)
}

/// As [`put`], on the link of this index.
pub(super) fn put_on(wire: &mut Wire, index: u32, address: IpNet) -> io::Result<()> {
    match wire.change(RouteNetlinkMessage::NewAddress(message(index, address)), NLM_F_CREATE | NLM_F_EXCL) {
        // IPv6 says so of the same address with another prefix length too.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dump(wire)?.contains(&(index, address)) => Ok(()),
        result => result,
    }
}

pub(super) fn delete(wire: &mut Wire, link: &IfName, address: IpNet) -> io::Result<()> {
    let Some(seen) = find(wire, link)? else { return Ok(()) };
    let mut message = message(seen.index, address);
    message.attributes.retain(|a| matches!(a, AddressAttribute::Address(_) | AddressAttribute::Local(_)));
    absent_is_none(wire.change(RouteNetlinkMessage::DelAddress(message), 0)).map(drop)
}

/// `address` as it is, without a search for duplicates: the allocator promised that it is ours alone, and a container would have to wait.
fn message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
    match address {
        IpNet::V4(net) if net.prefix_len() < 31 => message.attributes.push(AddressAttribute::Broadcast(net.broadcast())),
        IpNet::V4(_) => {}
        IpNet::V6(_) => {
            message.header.flags = AddressHeaderFlags::Nodad;
            // of full length it has no neighbours, and needs no route to them
            let routeless = if address.prefix_len() == 128 { AddressFlags::Noprefixroute } else { AddressFlags::empty() };
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | routeless));
        }
    }
    message
}

/// What an address message says, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub link: u32,
    pub address: IpNet,
    pub scope: AddressScope,
    pub flags: AddressFlags,
}

impl Seen {
    fn read(message: &AddressMessage) -> Option<Self> {
        let of = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
        let local = of(|a| if let AddressAttribute::Local(ip) = a { Some(*ip) } else { None });
        let address = local.or_else(|| of(|a| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None }))?;
        let flags = message.attributes.iter().find_map(|a| if let AddressAttribute::Flags(flags) = a { Some(*flags) } else { None });
        Some(Seen {
            link: message.header.index,
            address: IpNet::new(address, message.header.prefix_len).ok()?,
            scope: message.header.scope,
            flags: flags.unwrap_or_else(|| AddressFlags::from_bits_retain(message.header.flags.bits().into())),
        })
    }
}

/// All addresses of the link of this index; of the namespace for 0.
pub(super) fn dump_all(wire: &mut Wire, index: u32) -> io::Result<Vec<Seen>> {
    let mut question = AddressMessage::default();
    question.header.index = index;
    let answers = wire.dump(RouteNetlinkMessage::GetAddress(question))?;
    Ok(answers.iter().filter_map(|answer| if let RouteNetlinkMessage::NewAddress(m) = answer { Seen::read(m) } else { None }).collect())
}

/// All lasting addresses of the namespace: (index of the link, address). What router advertisements made is not lasting.
pub(super) fn dump(wire: &mut Wire) -> io::Result<Vec<(u32, IpNet)>> {
    let mut seen = dump_all(wire, 0)?;
    seen.retain(|seen| seen.flags.contains(AddressFlags::Permanent));
    Ok(seen.into_iter().map(|seen| (seen.link, seen.address)).collect())
}

pub(super) fn read(message: &AddressMessage) -> Option<(u32, IpNet)> {
    let seen = Seen::read(message).filter(|seen| seen.flags.contains(AddressFlags::Permanent))?;
    Some((seen.link, seen.address))
}

/// The kernel makes these itself when a link goes up.
pub(super) fn is_link_local(address: IpNet) -> bool {
    matches!(address, IpNet::V6(net) if net.addr().is_unicast_link_local())
}
