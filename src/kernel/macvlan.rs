//! Attachments of one link: a macvlan child in a container. Its parent is the host's, and all that the host has of it.
//!
//! A child that the engine moved is found again in the sandbox by its alias, which goes with it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use netlink_packet_route::link::{
    InfoData, InfoKind, InfoMacVlan, LinkAttribute, LinkInfo, LinkMessage, MacVlanMacAddressMode, MacVlanMode,
};

use super::attachment::{Inside, furnish, pattern};
use super::crew::{open_namespace, within};
use super::link::{self, GROUP, Seen};
use super::sysctl::Sysctls;
use super::wire::Wire;
use crate::model::{Attachment, Mac, Macvlan, MacvlanMode, Place};

pub(super) fn put(wire: &mut Wire, sysctls: &Sysctls, wanted: &Attachment, child: &Macvlan) -> io::Result<()> {
    let here = link::find(wire, &wanted.host)?;
    match here {
        Some(seen) if !seen.is_ours() || seen.kind != Some(InfoKind::MacVlan) => return Err(link::foreign(&seen)),
        // on its way there, or back
        Some(seen) if seen.is_complete() => return Ok(()),
        Some(half_made) => link::remove(wire, half_made.index)?,
        None => {}
    }
    match &wanted.place {
        Place::Host => make_here(wire, wanted, child).inspect_err(|_| drop(link::delete(wire, &wanted.host))),
        Place::Sandbox { path, .. } => put_in_sandbox(wire, sysctls, wanted, child, path),
    }
}

/// Down: the engine brings it up where it belongs.
fn make_here(wire: &mut Wire, wanted: &Attachment, child: &Macvlan) -> io::Result<()> {
    let message = new(wire, wanted, child, wanted.host.as_str(), None)?;
    link::create(wire, message).map_err(|error| explain(error, child))?;
    link::set(wire, link::message(0, vec![link::named(&wanted.host), address(wanted), alias(wanted)]))
}

fn put_in_sandbox(wire: &mut Wire, sysctls: &Sysctls, wanted: &Attachment, child: &Macvlan, path: &Path) -> io::Result<()> {
    let namespace = open_namespace(path)?;
    if within(&namespace, || stands(wanted))? {
        return Ok(());
    }
    let Place::Sandbox { name, addresses, sysctls: asked, gateways, .. } = &wanted.place else { return Ok(()) };
    let inside = Inside { addresses, sysctls: asked, gateways };
    let message = new(wire, wanted, child, &pattern(name), Some(&namespace))?;
    link::create(wire, message).map_err(|error| explain(error, child))?;
    within(&namespace, || finish(sysctls, wanted, &inside))
}

/// Whether it is in the namespace of the calling thread; a half-made one is removed.
fn stands(wanted: &Attachment) -> io::Result<bool> {
    let mut wire = Wire::open()?;
    for seen in ours(&mut wire)? {
        if seen.alias == wanted.alias {
            refresh(&mut wire, wanted, &seen)?;
            return Ok(true);
        }
        if is_half_made(&seen, wanted) {
            link::remove(&mut wire, seen.index)?;
        }
    }
    Ok(false)
}

fn refresh(wire: &mut Wire, wanted: &Attachment, seen: &Seen) -> io::Result<()> {
    let same_mtu = wanted.mtu == 0 || wanted.mtu == seen.mtu;
    if seen.up && same_mtu {
        return Ok(());
    }
    let mtu = (!same_mtu).then_some(LinkAttribute::Mtu(wanted.mtu));
    link::set(wire, link::up(link::message(seen.index, mtu.into_iter().collect())))
}

fn ours(wire: &mut Wire) -> io::Result<Vec<Seen>> {
    let mut links = link::dump(wire)?;
    links.retain(|seen| seen.is_ours() && seen.kind == Some(InfoKind::MacVlan));
    Ok(links)
}

fn is_half_made(seen: &Seen, wanted: &Attachment) -> bool {
    !seen.is_complete() && Mac::from(seen.mac) == wanted.mac
}

/// Makes a child that was just made in the namespace of the calling thread what the engine would have made of it.
fn finish(sysctls: &Sysctls, wanted: &Attachment, inside: &Inside<'_>) -> io::Result<()> {
    let mut wire = Wire::open()?;
    let made = ours(&mut wire)?.into_iter().find(|seen| is_half_made(seen, wanted));
    let made = made.ok_or_else(|| io::Error::other("the container's link vanished"))?;
    let furnished =
        furnish(sysctls, made.index, inside).and_then(|()| link::set(&mut wire, link::message(made.index, vec![alias(wanted)])));
    furnished.inspect_err(|_| drop(link::remove(&mut wire, made.index)))
}

fn alias(wanted: &Attachment) -> LinkAttribute {
    LinkAttribute::IfAlias(wanted.alias.clone())
}

/// Said again once it is made: in mode passthru a new child has its parent's.
fn address(wanted: &Attachment) -> LinkAttribute {
    LinkAttribute::Address(wanted.mac.octets().to_vec())
}

/// The message that makes it.
fn new(wire: &mut Wire, wanted: &Attachment, child: &Macvlan, name: &str, namespace: Option<&File>) -> io::Result<LinkMessage> {
    let parent = link::find(wire, &child.parent)?.ok_or_else(|| missing(child))?;
    let data = InfoData::MacVlan(settings(child));
    let mut attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Group(GROUP),
        LinkAttribute::Link(parent.index),
        address(wanted),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::MacVlan), LinkInfo::Data(data)]),
    ];
    attributes.extend((wanted.mtu != 0).then_some(LinkAttribute::Mtu(wanted.mtu)));
    attributes.extend(namespace.map(|file| LinkAttribute::NetNsFd(file.as_raw_fd())));
    Ok(link::message(0, attributes))
}

fn settings(child: &Macvlan) -> Vec<InfoMacVlan> {
    let mode = match child.mode {
        MacvlanMode::Bridge => MacVlanMode::Bridge,
        MacvlanMode::Vepa => MacVlanMode::Vepa,
        MacvlanMode::Private => MacVlanMode::Private,
        MacvlanMode::Passthru => MacVlanMode::Passthrough,
        MacvlanMode::Source => MacVlanMode::Source,
    };
    let mut settings = vec![InfoMacVlan::Mode(mode)];
    if child.mode == MacvlanMode::Source {
        let macs = child.sources.iter().map(|mac| InfoMacVlan::MacAddr(mac.octets())).collect();
        settings.extend([InfoMacVlan::MacAddrMode(MacVlanMacAddressMode::Set), InfoMacVlan::MacAddrData(macs)]);
    }
    settings
}

fn missing(child: &Macvlan) -> io::Error {
    let text = format!("its parent {} does not exist on this host; `ip link` shows those that do", child.parent);
    io::Error::new(io::ErrorKind::NotFound, text)
}

/// What the kernel's short answers mean here.
fn explain(error: io::Error, child: &Macvlan) -> io::Error {
    use nix::errno::Errno;
    let parent = &child.parent;
    let text = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EBUSY) => format!("its parent {parent} is a port of a bridge or bond, or has ipvlan children: {error}"),
        Some(Errno::EINVAL) => format!("its parent {parent} is used in mode passthru, or is to be and has other children: {error}"),
        Some(Errno::EOPNOTSUPP) => format!("this kernel has no macvlan: {error}"),
        _ => return error,
    };
    io::Error::new(error.kind(), text)
}
