//! The neighbour tables (ARP, RFC 826; ND, RFC 4861) and the forwarding databases of VXLAN links, which the kernel keeps in messages of the
//! same shape: entries that do not age; and who has an address on a segment, by the kernel's own search.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::address::family;
use super::link;
use super::wire::Wire;
use crate::model::{IfName, Mac};

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub link: u32,
    pub mac: Mac,
    /// The neighbour's address, or the tunnel's other end.
    pub address: IpAddr,
    /// Of a forwarding database (`AF_BRIDGE`, `NTF_SELF`).
    pub forwarding: bool,
    /// It does not age.
    pub permanent: bool,
}

impl Seen {
    /// None of what has no address or MAC, or belongs to a bridge.
    pub fn read(message: &NeighbourMessage) -> Option<Self> {
        let header = &message.header;
        let forwarding = header.family == AddressFamily::Bridge;
        if forwarding && !header.flags.contains(NeighbourFlags::Own) {
            return None;
        }
        // a bit among others: `bridge fdb` sets NUD_NOARP too
        let permanent = u16::from(header.state) & u16::from(NeighbourState::Permanent) != 0;
        let address = message.attributes.iter().find_map(|a| if let NeighbourAttribute::Destination(to) = a { ip(to) } else { None })?;
        // an entry that failed, or is deleted, may have none
        let mac = mac(message).or_else(|| (!forwarding && !permanent).then(|| Mac::from([0; 6])))?;
        Some(Seen { link: header.ifindex, mac, address, forwarding, permanent })
    }
}

fn mac(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac::from),
        _ => None,
    })
}

/// Those of a forwarding database have no word for their family but their length.
fn ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(v4) => Some((*v4).into()),
        NeighbourAddress::Inet6(v6) => Some((*v6).into()),
        NeighbourAddress::Other(bytes) => {
            let v4 = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(|octets| Ipv4Addr::from(octets).into());
            v4.or_else(|| <[u8; 16]>::try_from(bytes.as_slice()).ok().map(|octets| Ipv6Addr::from(octets).into()))
        }
        _ => None,
    }
}

fn message(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.attributes = vec![NeighbourAttribute::Destination(address.into())];
    message
}

/// About what a forwarding database has of `mac`.
fn forwarding(index: u32, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec())];
    message
}

pub(super) fn put(wire: &mut Wire, link: &IfName, address: IpAddr, mac: Mac) -> io::Result<()> {
    let mut message = message(link::index(link)?, address);
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()));
    wire.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
}

pub(super) fn delete(wire: &mut Wire, link: &IfName, address: IpAddr) -> io::Result<()> {
    let Some(seen) = link::find(wire, link)? else { return Ok(()) };
    link::absent_is_none(wire.change(RouteNetlinkMessage::DelNeighbour(message(seen.index, address)), 0)).map(drop)
}

/// Replaces the entry that stands. The kernel gives none but the MAC 0 and multicast ones a second destination.
pub(super) fn put_forwarding(wire: &mut Wire, link: &IfName, mac: Mac, vtep: IpAddr) -> io::Result<()> {
    let mut message = forwarding(link::index(link)?, mac);
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(vtep.into()));
    wire.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
}

pub(super) fn delete_forwarding(wire: &mut Wire, link: &IfName, mac: Mac) -> io::Result<()> {
    let Some(seen) = link::find(wire, link)? else { return Ok(()) };
    link::absent_is_none(wire.change(RouteNetlinkMessage::DelNeighbour(forwarding(seen.index, mac)), 0)).map(drop)
}

/// What stands on these links and does not age. The kernel leaves out what stands on others, unless that is asked `of_all`: one walk for
/// each link is dear where there are thousands.
pub(super) fn dump(wire: &mut Wire, links: &[u32], of_all: bool) -> io::Result<Vec<Seen>> {
    let mut entries = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let question = |index: Option<&u32>| {
            let mut question = NeighbourMessage::default();
            question.header.family = family;
            question.attributes = index.map(|index| NeighbourAttribute::IfIndex(*index)).into_iter().collect();
            question
        };
        let questions: Vec<_> = if of_all { vec![question(None)] } else { links.iter().map(|index| question(Some(index))).collect() };
        for question in questions {
            entries.extend(read_all(&wire.dump(RouteNetlinkMessage::GetNeighbour(question))?));
        }
    }
    entries.retain(|entry| entry.permanent && links.contains(&entry.link));
    Ok(entries)
}

/// What the forwarding database of a link has that does not age. A kernel that does not filter by link tells of others too.
pub(super) fn dump_forwarding(wire: &mut Wire, index: u32) -> io::Result<Vec<Seen>> {
    let mut question = NeighbourMessage::default();
    question.header.family = AddressFamily::Bridge;
    question.header.ifindex = index;
    let mut entries = read_all(&wire.dump(RouteNetlinkMessage::GetNeighbour(question))?);
    entries.retain(|entry| entry.link == index && entry.forwarding && entry.permanent);
    Ok(entries)
}

fn read_all(answers: &[RouteNetlinkMessage]) -> Vec<Seen> {
    answers.iter().filter_map(|answer| if let RouteNetlinkMessage::NewNeighbour(m) = answer { Seen::read(m) } else { None }).collect()
}

/// Forgets what the kernel knows and has it ask the segment.
pub(super) fn ask(wire: &mut Wire, link: &IfName, address: IpAddr) -> io::Result<()> {
    let index = link::index(link)?;
    delete(wire, link, address)?;
    let mut question = message(index, address);
    question.header.flags = NeighbourFlags::Use;
    wire.change(RouteNetlinkMessage::NewNeighbour(question), NLM_F_CREATE | NLM_F_REPLACE)
}

/// The MAC that has answered.
pub(super) fn answer(wire: &mut Wire, link: &IfName, address: IpAddr) -> io::Result<Option<Mac>> {
    let index = link::index(link)?;
    let answer = link::absent_is_none(wire.get(RouteNetlinkMessage::GetNeighbour(message(index, address))))?.flatten();
    let Some(RouteNetlinkMessage::NewNeighbour(seen)) = answer else { return Ok(None) };
    Ok(mac(&seen).filter(|_| seen.header.state == NeighbourState::Reachable))
}

/// What the kernel knows of who has an address, without asking: none, nothing; no MAC, it asked and nobody answered.
pub(super) fn known(wire: &mut Wire, index: u32, address: IpAddr) -> io::Result<Option<Option<Mac>>> {
    let answer = link::absent_is_none(wire.get(RouteNetlinkMessage::GetNeighbour(message(index, address))))?.flatten();
    let Some(RouteNetlinkMessage::NewNeighbour(seen)) = answer else { return Ok(None) };
    Ok(match seen.header.state {
        NeighbourState::Failed | NeighbourState::Incomplete => Some(None),
        NeighbourState::Noarp | NeighbourState::None => None,
        _ => mac(&seen).map(Some),
    })
}
