//! What stands in the namespace, as objects.

use std::collections::{BTreeSet, HashMap};
use std::io;

use ipnet::IpNet;
use netlink_packet_route::link::InfoKind;

use super::link::{self, Seen};
use super::sysctl::{self, Sysctls};
use super::wire::Wire;
use super::{Surroundings, address, attachment, macvlan, neighbour, route, vxlan};
use crate::model::{IfName, Key, Link, LinkKind, Mac, Object, Port, Route};

/// How the names of the host's own stations begin.
const STATION: &str = "rsh-";

/// The links of the namespace by index.
#[derive(Default)]
pub(super) struct Links(HashMap<u32, Seen>);

impl Links {
    pub fn dump(wire: &mut Wire) -> io::Result<Self> {
        Ok(Links(link::dump(wire)?.into_iter().map(|seen| (seen.index, seen)).collect()))
    }

    pub fn get(&self, index: u32) -> Option<&Seen> {
        self.0.get(&index)
    }

    pub fn insert(&mut self, seen: Seen) {
        self.0.insert(seen.index, seen);
    }

    pub fn remove(&mut self, index: u32) -> Option<Seen> {
        self.0.remove(&index)
    }

    pub fn named(&self, name: &IfName) -> Option<&Seen> {
        self.0.values().find(|seen| seen.name == name.as_str())
    }

    fn ours(&self) -> impl Iterator<Item = &Seen> {
        self.0.values().filter(|seen| seen.is_ours())
    }

    /// The name of the link of this index, if that is ours.
    pub fn our_name(&self, index: u32) -> Option<IfName> {
        self.get(index).filter(|seen| seen.is_ours())?.name.parse().ok()
    }

    /// The objects that a link is: none, a bridge, an attachment, or an attachment and a port.
    pub fn objects(&self, seen: &Seen) -> Vec<Object> {
        let (true, Ok(name)) = (seen.is_ours(), seen.name.parse::<IfName>()) else { return Vec::new() };
        let mut objects = Vec::new();
        match seen.kind {
            Some(InfoKind::Bridge) => objects.push(as_link(name, seen, LinkKind::Bridge)),
            Some(InfoKind::Dummy) => objects.push(as_link(name, seen, LinkKind::Dummy)),
            Some(InfoKind::Vxlan) => objects.extend(seen.vxlan.as_ref().map(|vxlan| as_link(name, seen, vxlan.kind()))),
            Some(InfoKind::Vlan) => objects.extend(self.vlan(name, seen)),
            Some(InfoKind::Veth) => {
                objects.push(Object::Attachment(attachment::seen_as(name.clone(), seen)));
                objects.extend(self.port(name, seen).map(Object::Port));
            }
            Some(InfoKind::MacVlan) => objects.extend(self.child(name, seen)),
            _ => {}
        }
        objects
    }

    /// A child of ours that stands here is the host's own, or on its way into a container or back.
    fn child(&self, host: IfName, seen: &Seen) -> Option<Object> {
        let parent = self.get(seen.peer?)?.name.parse().ok()?;
        if host.as_str().starts_with(STATION) {
            return Some(as_link(host, seen, LinkKind::Macvlan(seen.as_macvlan(&parent)?)));
        }
        let mtu = if seen.is_complete() { seen.mtu } else { 0 };
        macvlan::seen_as(host, &parent, seen, mtu).map(Object::Attachment)
    }

    fn vlan(&self, name: IfName, seen: &Seen) -> Option<Object> {
        let parent = self.get(seen.peer?)?.name.parse().ok()?;
        Some(as_link(name, seen, LinkKind::Vlan { parent, id: seen.vlan? }))
    }

    fn port(&self, link: IfName, seen: &Seen) -> Option<Port> {
        let bridge = self.get(seen.controller?)?.name.parse().ok()?;
        Some(Port { link, bridge, isolated: seen.isolated, hairpin: seen.hairpin })
    }
}

fn as_link(name: IfName, seen: &Seen, kind: LinkKind) -> Object {
    Object::Link(Link { name, alias: seen.alias.clone(), kind, mac: Some(Mac::from(seen.mac)), mtu: Some(seen.sound_mtu()) })
}

pub(super) fn observe(wire: &mut Wire, sysctls: &Sysctls, wanted: &[Key], links: &Links) -> io::Result<Vec<Object>> {
    let mut objects: Vec<Object> = links.ours().flat_map(|seen| links.objects(seen)).collect();
    let addresses = address::dump(wire)?;
    objects.extend(addresses.into_iter().filter_map(|(index, address)| address_object(links, index, address, wanted)));
    objects.extend(neighbours(wire, links, wanted)?.iter().filter_map(|seen| neighbour_object(links, seen)));
    objects.extend(route::dump_ours(wire)?.iter().filter_map(|seen| route_object(links, seen)));
    objects.extend(wanted.iter().filter_map(|key| sysctl_object(sysctls, key)));
    Ok(objects)
}

/// Link-local addresses, which the kernel makes itself, count only where they are wanted.
pub(super) fn address_object(links: &Links, index: u32, address: IpNet, wanted: &[Key]) -> Option<Object> {
    let link = links.our_name(index)?;
    let counts = !address::is_link_local(address) || wanted.contains(&Key::Address(link.clone(), address));
    counts.then_some(Object::Address { link, address })
}

/// What stands on VXLAN links of ours, and on others of ours where somebody wants it.
pub(super) fn neighbours(wire: &mut Wire, links: &Links, wanted: &[Key]) -> io::Result<Vec<neighbour::Seen>> {
    let tunnels: Vec<u32> = links.ours().filter(|seen| seen.vxlan.is_some()).map(|seen| seen.index).collect();
    let named = wanted.iter().filter_map(|key| if let Key::Neighbour(link, _) = key { links.named(link) } else { None });
    let elsewhere: BTreeSet<u32> = named.filter(|seen| seen.is_ours() && seen.vxlan.is_none()).map(|seen| seen.index).collect();
    let all: Vec<u32> = tunnels.iter().chain(&elsewhere).copied().collect();
    let mut entries = neighbour::dump(wire, &all, !elsewhere.is_empty())?;
    for index in tunnels {
        entries.extend(neighbour::dump_forwarding(wire, index)?);
    }
    Ok(entries)
}

pub(super) fn neighbour_object(links: &Links, seen: &neighbour::Seen) -> Option<Object> {
    let (link, mac, address) = (links.our_name(seen.link)?, seen.mac, seen.address);
    let is_tunnel = links.get(seen.link).is_some_and(|seen| seen.vxlan.is_some());
    match seen.forwarding {
        true => is_tunnel.then_some(Object::Fdb { link, mac, vtep: address }),
        false => Some(Object::Neighbour { link, address, mac }),
    }
}

/// Ours by its protocol, whoever's its link is.
pub(super) fn route_object(links: &Links, seen: &route::Seen) -> Option<Object> {
    let ours = seen.protocol == route::PROTOCOL;
    let link = match seen.unreachable {
        true => route::NO_LINK,
        false => &links.get(seen.link)?.name,
    };
    let link = link.parse().ok().filter(|_| ours)?;
    Some(Object::Route(Route { destination: seen.destination, link, kind: seen.kind() }))
}

/// A sysctl that cannot be read is not there.
fn sysctl_object(sysctls: &Sysctls, key: &Key) -> Option<Object> {
    let (Key::HostSysctl(path) | Key::LinkSysctl(path)) = key else { return None };
    sysctl::as_object(key, sysctls.read(path).ok()?)
}

pub(super) fn surroundings(wire: &mut Wire, sysctls: &Sysctls) -> io::Result<Surroundings> {
    let mut routes = route::dump_unicast(wire)?;
    // of ours there is one for each container, on as many links
    routes.retain(|route| route.protocol != route::PROTOCOL && !address::is_link_local(route.destination));
    let mut links = Links::default();
    for index in routes.iter().map(|route| route.link).collect::<BTreeSet<_>>() {
        link::find_index(wire, index)?.into_iter().for_each(|seen| links.insert(seen));
    }
    let without_ipv6 = sysctls.read("ipv6/conf/all/forwarding").is_err();
    let tunnels = vxlan::foreign(wire)?;
    let vnis = tunnels.iter().map(|tunnel| tunnel.vni).filter(|vni| *vni != 0).collect();
    Ok(Surroundings { mtu: default_mtu(&links, &routes), subnets: subnets(&links, &routes), tunnels, vnis, without_ipv6 })
}

/// `RT_TABLE_MAIN`.
const MAIN: u32 = 254;

/// Of each family the default route that the kernel prefers.
fn default_mtu(links: &Links, routes: &[route::Seen]) -> Option<u32> {
    let of_family = |ipv4: bool| {
        let defaults = routes.iter().filter(move |r| r.table == MAIN && r.destination.prefix_len() == 0);
        let best = defaults.filter(|r| r.destination.addr().is_ipv4() == ipv4).min_by_key(|r| r.metric)?;
        links.get(best.link).map(|link| link.mtu)
    };
    [true, false].into_iter().filter_map(of_family).min()
}

/// Of every table: a VPN may have its own.
fn subnets(links: &Links, routes: &[route::Seen]) -> Vec<(IpNet, String)> {
    let named = |r: &route::Seen| {
        let link = links.get(r.link).filter(|seen| !seen.is_ours())?;
        Some((r.destination, link.name.clone()))
    };
    let mut subnets: Vec<(IpNet, String)> = routes.iter().filter(|r| r.destination.prefix_len() > 0).filter_map(named).collect();
    subnets.sort();
    subnets.dedup();
    subnets
}
