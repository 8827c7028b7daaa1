//! By which way packets leave this host: what tunnels are made on.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressFlags, AddressScope};
use netlink_packet_route::route::RouteMessage;
use nix::errno::Errno;

use super::link::{self, Seen};
use super::wire::Wire;
use super::{Underlay, Uplink, address, route};

pub(super) fn look(wire: &mut Wire, wanted: &Underlay) -> io::Result<Option<Uplink>> {
    match wanted {
        Underlay::Link(name) => {
            let Some(link) = link::find(wire, name)? else { return Ok(None) };
            Ok(own_address(wire, link.index)?.and_then(|own| uplink(own, &link, None)))
        }
        Underlay::Address(source) => {
            let Some((own, index)) = own_net(wire, *source)? else { return Ok(None) };
            Ok(link::find_index(wire, index)?.and_then(|link| uplink(own, &link, None)))
        }
        Underlay::Toward(destination) => toward(wire, *destination),
    }
}

fn uplink(own: IpNet, link: &Seen, mtu: Option<u32>) -> Option<Uplink> {
    let name = link.name.parse().ok().filter(|_| !link.loopback)?;
    Some(Uplink { source: own.addr(), link: name, subnet: own.trunc(), mtu: mtu.unwrap_or(link.mtu).min(link.mtu) })
}

/// An address of the host's with its prefix, and the link that it stands on.
fn own_net(wire: &mut Wire, source: IpAddr) -> io::Result<Option<(IpNet, u32)>> {
    let own = address::dump_all(wire, 0)?.into_iter().find(|own| own.address.addr() == source);
    Ok(own.map(|own| (own.address, own.link)))
}

/// The address by which others know it: the first of IPv4, else of IPv6, that is neither link-local nor about to go.
fn own_address(wire: &mut Wire, index: u32) -> io::Result<Option<IpNet>> {
    let passing = AddressFlags::Secondary | AddressFlags::Deprecated | AddressFlags::Tentative | AddressFlags::Dadfailed;
    let mut own = address::dump_all(wire, index)?;
    own.retain(|own| own.link == index && own.scope == AddressScope::Universe && !own.flags.intersects(passing));
    own.sort_by_key(|own| own.address.addr().is_ipv6());
    Ok(own.first().map(|own| own.address))
}

/// As the kernel would send now (`RTM_GETROUTE`), with an MTU that the route has or was found on the way.
fn toward(wire: &mut Wire, destination: IpAddr) -> io::Result<Option<Uplink>> {
    let answer = match wire.get(RouteNetlinkMessage::GetRoute(route::question(destination))) {
        Err(error) if error.raw_os_error().is_some_and(leads_nowhere) => return Ok(None),
        result => result?,
    };
    let Some(RouteNetlinkMessage::NewRoute(message)) = answer else { return Ok(None) };
    way(wire, &message)
}

fn way(wire: &mut Wire, message: &RouteMessage) -> io::Result<Option<Uplink>> {
    let Some(seen) = route::Seen::read(message).filter(|seen| seen.unicast) else { return Ok(None) };
    let (Some(source), Some(link)) = (seen.source, link::find_index(wire, seen.link)?) else { return Ok(None) };
    // An address of another link (loopback) has nobody beside it here.
    let own = own_net(wire, source)?.filter(|(_, index)| *index == seen.link).map_or(source.into(), |(own, _)| own);
    Ok(uplink(own, &link, seen.mtu))
}

/// What the kernel says of destinations without a route, of routes that refuse (unreachable, prohibit, blackhole), and of a family that it
/// does not have.
fn leads_nowhere(code: i32) -> bool {
    use Errno::*;
    [ENETUNREACH, EHOSTUNREACH, EACCES, EINVAL, EOPNOTSUPP, EAFNOSUPPORT].contains(&Errno::from_raw(code))
}
