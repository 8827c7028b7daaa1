//! Attachments as ports of bridges.

use std::io;

use netlink_packet_route::link::{InfoBridgePort, InfoPortData, InfoPortKind, LinkAttribute, LinkInfo};

use super::link::{self, Seen};
use super::wire::Wire;
use crate::model::{IfName, Port};

/// The link, if it was no port of this bridge before.
pub(super) fn put(wire: &mut Wire, wanted: &Port) -> io::Result<Option<Seen>> {
    let bridge = link::index(&wanted.bridge)?;
    let mut seen = link::need(wire, &wanted.link)?;
    if !seen.is_ours() {
        return Err(link::foreign(&seen));
    }
    let moved = seen.controller != Some(bridge);
    if moved {
        link::set(wire, link::message(seen.index, vec![LinkAttribute::Controller(bridge)]))?;
        // A port of an old bridge took its settings with it.
        (seen.isolated, seen.hairpin) = (false, false);
    }
    set_flags(wire, wanted, &seen)?;
    Ok(moved.then_some(seen))
}

/// In a message of its own: the kernel takes a port's settings only for what is a port already.
fn set_flags(wire: &mut Wire, wanted: &Port, seen: &Seen) -> io::Result<()> {
    if (seen.isolated, seen.hairpin) == (wanted.isolated, wanted.hairpin) {
        return Ok(());
    }
    let flags = vec![InfoBridgePort::Isolated(wanted.isolated), InfoBridgePort::HairpinMode(wanted.hairpin)];
    let info = vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(InfoPortData::BridgePort(flags))];
    link::set(wire, link::message(seen.index, vec![LinkAttribute::LinkInfo(info)]))
}

pub(super) fn delete(wire: &mut Wire, name: &IfName) -> io::Result<()> {
    match link::find(wire, name)? {
        Some(seen) if seen.is_ours() && seen.controller.is_some() => {
            link::set(wire, link::message(seen.index, vec![LinkAttribute::Controller(0)]))
        }
        _ => Ok(()),
    }
}
