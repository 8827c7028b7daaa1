//! Attachments: the links of containers. Here those of a pair, one end on the host and one in a container; [`macvlan`] has the others.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};

use super::crew::{open_namespace, within};
use super::link::{self, GROUP, Seen};
use super::macvlan::Means;
use super::sysctl::Sysctls;
use super::wire::Wire;
use super::{Whereabouts, address, ipv6, macvlan, route};
use crate::model::{Attachment, AttachmentKind, IfName, Mac, Place, SandboxName, StaticRoute};

/// What is set on the container's end when it is made in the sandbox.
pub(super) struct Inside<'a> {
    pub addresses: &'a [IpNet],
    pub sysctls: &'a [(String, String)],
    pub gateways: &'a [IpAddr],
    pub routes: &'a [StaticRoute],
}

pub(super) fn put(wire: &mut Wire, means: Means<'_>, wanted: &Attachment) -> io::Result<()> {
    match &wanted.kind {
        AttachmentKind::Veth { peer, .. } => put_pair(wire, means.sysctls, wanted, peer),
        AttachmentKind::Macvlan(child) => macvlan::put(wire, means, wanted, child),
    }
}

fn put_pair(wire: &mut Wire, sysctls: &Sysctls, wanted: &Attachment, peer: &IfName) -> io::Result<()> {
    let Some(seen) = link::find(wire, &wanted.host)? else { return make(wire, sysctls, wanted, peer) };
    if !seen.is_ours() || seen.kind != Some(InfoKind::Veth) {
        return Err(link::foreign(&seen));
    }
    if seen.is_complete() && peer_stands(wanted, &seen) {
        return refresh(wire, wanted, &seen);
    }
    link::remove(wire, seen.index)?;
    make(wire, sysctls, wanted, peer)
}

/// Whether the other end is where it should be. The engine may move one made in the host's namespace anywhere.
fn peer_stands(wanted: &Attachment, seen: &Seen) -> bool {
    let (Place::Sandbox { path, .. }, Some(index)) = (&wanted.place, seen.peer) else { return true };
    let found = open_namespace(path).and_then(|namespace| within(&namespace, || link::find_index(&mut Wire::open()?, index)));
    matches!(found, Ok(Some(peer)) if Mac::from(peer.mac) == wanted.mac)
}

pub(super) fn refresh(wire: &mut Wire, wanted: &Attachment, seen: &Seen) -> io::Result<()> {
    let mut changes: Vec<LinkAttribute> = wanted.mtu.filter(|mtu| *mtu != seen.mtu).map(LinkAttribute::Mtu).into_iter().collect();
    let mac = router(wanted).filter(|mac| *mac != Mac::from(seen.mac));
    changes.extend(mac.map(|mac| LinkAttribute::Address(mac.octets().to_vec())));
    if seen.up && changes.is_empty() { Ok(()) } else { link::set(wire, link::up(link::message(seen.index, changes))) }
}

/// Makes the pair, or nothing: a half-made one is of no use to anybody, and the sandbox may be gone when somebody looks again.
fn make(wire: &mut Wire, sysctls: &Sysctls, wanted: &Attachment, peer: &IfName) -> io::Result<()> {
    let made = match &wanted.place {
        Place::Host => make_here(wire, sysctls, wanted, peer),
        Place::Sandbox { path, name, addresses, sysctls: asked, gateways, routes } => {
            let inside = Inside { addresses, sysctls: asked, gateways, routes };
            make_in_sandbox(wire, sysctls, wanted, path, name, &inside)
        }
    };
    made.inspect_err(|_| drop(link::delete(wire, &wanted.host)))
}

fn make_here(wire: &mut Wire, sysctls: &Sysctls, wanted: &Attachment, peer: &IfName) -> io::Result<()> {
    link::create(wire, pair(wanted, peer.as_str(), None))?;
    prepare(sysctls, wanted)?;
    link::set(wire, link::up(link::message(0, vec![link::named(&wanted.host), alias(wanted)])))
}

/// The host's end goes up before the container's, so that the latter finds a carrier and has its link-local address at once.
fn make_in_sandbox(
    wire: &mut Wire,
    sysctls: &Sysctls,
    wanted: &Attachment,
    path: &Path,
    name: &SandboxName,
    inside: &Inside<'_>,
) -> io::Result<()> {
    let namespace = open_namespace(path)?;
    link::create(wire, pair(wanted, &pattern(name), Some(&namespace)))?;
    prepare(sysctls, wanted)?;
    // read before it is up: see `link::index`
    let peer = link::need(wire, &wanted.host)?.peer.ok_or_else(|| io::Error::other("the kernel does not tell the other end of a veth"))?;
    link::set(wire, link::up(link::message(0, vec![link::named(&wanted.host)])))?;
    within(&namespace, || furnish(&mut Wire::open()?, sysctls, peer, inside))?;
    link::set(wire, link::message(0, vec![link::named(&wanted.host), alias(wanted)]))
}

/// The MAC of the host's end, where that matters.
fn router(wanted: &Attachment) -> Option<Mac> {
    if let AttachmentKind::Veth { router, .. } = wanted.kind { router } else { None }
}

/// The host's end carries frames for a bridge, or is a router's port.
fn prepare(sysctls: &Sysctls, wanted: &Attachment) -> io::Result<()> {
    let host = wanted.host.as_str();
    if router(wanted).is_some() { ipv6::serve(sysctls, host) } else { ipv6::switch_off(sysctls, host) }
}

fn alias(wanted: &Attachment) -> LinkAttribute {
    LinkAttribute::IfAlias(wanted.alias.clone())
}

/// `net%d`, in which the kernel replaces `%d` with the lowest number that is free in the namespace.
pub(super) fn pattern(name: &SandboxName) -> String {
    match name {
        SandboxName::Exact(name) => name.to_string(),
        SandboxName::Prefix(prefix) => format!("{prefix}%d"),
    }
}

/// The message that makes both ends. The container's end stays down: `IFF_UP` in it is refused with ENOTCONN.
fn pair(wanted: &Attachment, peer_name: &str, namespace: Option<&File>) -> LinkMessage {
    use std::os::fd::AsRawFd;
    let mut peer = vec![LinkAttribute::IfName(peer_name.to_owned()), LinkAttribute::Address(wanted.mac.octets().to_vec())];
    peer.extend(wanted.mtu.map(LinkAttribute::Mtu));
    peer.extend(namespace.map(|file| LinkAttribute::NetNsFd(file.as_raw_fd())));
    let data = InfoData::Veth(InfoVeth::Peer(link::message(0, peer)));
    let mut attributes = vec![
        link::named(&wanted.host),
        LinkAttribute::Group(GROUP),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(data)]),
    ];
    attributes.extend(wanted.mtu.map(LinkAttribute::Mtu));
    attributes.extend(router(wanted).map(|mac| LinkAttribute::Address(mac.octets().to_vec())));
    link::message(0, attributes)
}

/// Does in the sandbox what the engine does to a link that it moved there (`libnetwork/osl/interface_linux.go`), in its order.
pub(super) fn furnish(wire: &mut Wire, sysctls: &Sysctls, index: u32, inside: &Inside<'_>) -> io::Result<()> {
    let name = link::find_index(wire, index)?.ok_or_else(|| io::Error::other("the container's end vanished"))?.name;
    set_sysctls(sysctls, &name, inside)?;
    for address in inside.addresses {
        address::put_on(wire, index, *address)?;
    }
    link::set(wire, link::up(link::message(index, Vec::new())))?;
    for wanted in inside.routes {
        route::put_static(wire, wanted, index)?;
    }
    for gateway in inside.gateways {
        route::put_default(wire, *gateway, index)?;
    }
    Ok(())
}

/// IPv6 only where there is an address of it; announcements when the link goes up or [`announce`] asks; then what the user wants.
fn set_sysctls(sysctls: &Sysctls, name: &str, inside: &Inside<'_>) -> io::Result<()> {
    if inside.addresses.iter().any(|address| address.addr().is_ipv6()) {
        sysctls.write(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
        sysctls.write(&format!("ipv6/conf/{name}/ndisc_notify"), "1")?;
    } else {
        ipv6::switch_off(sysctls, name)?;
    }
    sysctls.write(&format!("ipv4/conf/{name}/arp_notify"), "1")?;
    inside.sysctls.iter().try_for_each(|(path, value)| sysctls.write_for(name, path, value))
}

/// Has the container's end in the sandbox at `path` tell its addresses to all: neighbours may still know an earlier container of the same
/// address by another MAC. To be called when frames can pass.
///
/// Setting a MAC, even the same, makes the kernel send a gratuitous ARP where `arp_notify` is set and an unsolicited neighbour advertisement
/// where `ndisc_notify` is. That it fails harms nobody for longer than a neighbour entry lives.
pub(super) fn announce(path: &Path, host: &Seen) {
    let told = open_namespace(path).and_then(|namespace| within(&namespace, || renew_mac(host)));
    if let Err(error) = told {
        tracing::debug!(link = host.name, %error, "could not announce the addresses of a container");
    }
}

fn renew_mac(host: &Seen) -> io::Result<()> {
    let mut wire = Wire::open()?;
    let peer = host.peer.map(|index| link::find_index(&mut wire, index)).transpose()?.flatten();
    match peer.filter(|peer| peer.peer == Some(host.index)) {
        Some(peer) => link::set(&mut wire, link::message(peer.index, vec![LinkAttribute::Address(peer.mac.to_vec())])),
        None => Ok(()),
    }
}

/// Removes it: what stands in the host's namespace, and what does not, from the sandbox where it is if that is known.
pub(super) fn delete(wire: &mut Wire, sysctls: &Sysctls, host: &IfName, sandbox: Option<&File>) -> io::Result<()> {
    match (link::find(wire, host)?, sandbox) {
        (None, Some(namespace)) => macvlan::delete(sysctls, host, namespace),
        (None, None) => Ok(()),
        (Some(seen), _) if seen.is_ours() => macvlan::give_back(sysctls, &seen, || link::remove(wire, seen.index)),
        (Some(seen), _) => Err(link::foreign(&seen)),
    }
}

/// Where the container's link is. Opens a socket in the namespace of the calling thread.
pub(super) fn whereabouts(wanted: &Attachment) -> io::Result<Whereabouts> {
    let mut wire = Wire::open()?;
    let mut stands = |name: &IfName| Ok::<_, io::Error>(link::find(&mut wire, name)?.is_some());
    Ok(match &wanted.kind {
        AttachmentKind::Veth { .. } if !stands(&wanted.host)? => Whereabouts::Nowhere,
        AttachmentKind::Veth { peer, .. } if stands(peer)? => Whereabouts::Host,
        AttachmentKind::Veth { .. } => Whereabouts::Away,
        AttachmentKind::Macvlan(_) if stands(&wanted.host)? => Whereabouts::Host,
        AttachmentKind::Macvlan(child) if macvlan::hears(&mut wire, child, wanted.mac)? => Whereabouts::Away,
        AttachmentKind::Macvlan(_) => Whereabouts::Nowhere,
    })
}

/// What can be seen of a pair: the host's end. The rest stands in for what cannot be.
pub(super) fn seen_as(host: IfName, seen: &Seen) -> Attachment {
    let id = host.as_str().strip_prefix("rsv-").unwrap_or(host.as_str()).to_owned();
    let kind = AttachmentKind::Veth { peer: IfName::of("rsc-", &id), router: Some(Mac::from(seen.mac)) };
    Attachment { host, alias: seen.alias.clone(), kind, mac: Mac::from([0; 6]), mtu: Some(seen.sound_mtu()), place: Place::Host }
}
