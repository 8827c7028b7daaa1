//! What a link of the host's is, that rsnet did not make and is to stand on.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use netlink_packet_route::link::InfoKind;

use super::link::{self, ALIAS};
use super::wire::Wire;
use super::{address, macvlan};
use crate::model::{HostLink, IfName};

/// Where the kinds of links are told.
const CLASSES: &str = "/sys/class/net";

pub(super) fn look(wire: &mut Wire, name: &IfName) -> io::Result<Option<HostLink>> {
    let Some(seen) = link::find(wire, name)? else { return Ok(None) };
    let class = Path::new(CLASSES).join(name.as_str());
    Ok(Some(HostLink {
        refusal: refusal(wire, name, &seen)?,
        dead: !seen.running,
        wireless: class.join("wireless").exists() || class.join("phy80211").exists(),
        addresses: addresses(wire, seen.index)?,
        made_for: seen.alias.strip_prefix(ALIAS).map(str::to_owned),
    }))
}

/// Why it takes no children: what can be seen, and else what the kernel says of one.
fn refusal(wire: &mut Wire, name: &IfName, seen: &link::Seen) -> io::Result<Option<String>> {
    if let Some(index) = seen.controller {
        let owner = link::find_index(wire, index)?.map_or_else(|| "another link".to_owned(), |owner| owner.name);
        return Ok(Some(format!("it is a port of {owner}, which has its frames; give {owner} as the parent")));
    }
    let ipvlan = |child: &link::Seen| child.peer == Some(seen.index) && child.kind == Some(InfoKind::IpVlan);
    if let Some(child) = link::dump(wire)?.iter().find(|child| ipvlan(child)) {
        return Ok(Some(format!("it has the ipvlan {}, and a link has children of one kind only", child.name)));
    }
    macvlan::probe(wire, name, seen)
}

pub(super) fn addresses_of(wire: &mut Wire, name: &IfName) -> io::Result<Option<Vec<IpAddr>>> {
    link::find(wire, name)?.map(|seen| addresses(wire, seen.index)).transpose()
}

fn addresses(wire: &mut Wire, index: u32) -> io::Result<Vec<IpAddr>> {
    let addresses = address::dump(wire)?.into_iter().filter(|(link, address)| *link == index && !address::is_link_local(*address));
    let mut addresses: Vec<IpAddr> = addresses.map(|(_, address)| address.addr()).collect();
    addresses.sort();
    Ok(addresses)
}
