//! Links: reading them, making and altering those that are no attachments, and what they share with attachments.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoMacVlan, InfoPortData, InfoVlan, LinkAttribute, LinkExtentMask,
    LinkFlags, LinkInfo, LinkMessage, MacVlanMode,
};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use super::sysctl::Sysctls;
use super::vxlan::{self, Vxlan};
use super::wire::Wire;
use super::{ipv6, macvlan};
use crate::model::{IfName, Link, LinkKind, Mac, Macvlan};

/// Every alias of a link of ours begins with it.
pub(super) const ALIAS: &str = "rsnet:";

/// `IFLA_GROUP` of what we make. The kernel takes an alias only for a link that exists, a group already in the message that makes it: by it
/// a link is known as ours whose maker was killed between the two. The number is "rsn" in ASCII.
pub(super) const GROUP: u32 = 0x0072_736e;

/// What a link message says, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub index: u32,
    pub name: String,
    pub alias: String,
    pub group: u32,
    pub kind: Option<InfoKind>,
    pub mac: [u8; 6],
    /// Bytes.
    pub mtu: u32,
    pub up: bool,
    /// The bridge it is a port of.
    pub controller: Option<u32>,
    pub isolated: bool,
    pub hairpin: bool,
    /// The index of the other end of a veth, or of the parent.
    pub peer: Option<u32>,
    /// The peer is in another namespace.
    pub peer_away: bool,
    /// Of a link that is told gone: it went to another namespace.
    pub moved: bool,
    /// The mode of a macvlan, and whose frames it takes.
    pub macvlan: Option<(MacVlanMode, Vec<Mac>)>,
    /// The number of a VLAN.
    pub vlan: Option<u16>,
    pub vxlan: Option<Vxlan>,
    /// It is up, and something is at its other end.
    pub running: bool,
    pub loopback: bool,
}

impl Seen {
    pub fn read(message: &LinkMessage) -> Self {
        let mut seen = Seen {
            index: message.header.index,
            name: String::new(),
            alias: String::new(),
            group: 0,
            kind: None,
            mac: [0; 6],
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            controller: None,
            isolated: false,
            hairpin: false,
            peer: None,
            peer_away: false,
            moved: false,
            macvlan: None,
            vlan: None,
            vxlan: None,
            loopback: message.header.flags.contains(LinkFlags::Loopback),
            running: message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        };
        message.attributes.iter().for_each(|attribute| seen.read_attribute(attribute));
        seen
    }

    fn read_attribute(&mut self, attribute: &LinkAttribute) {
        match attribute {
            LinkAttribute::IfName(name) => self.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => self.alias.clone_from(alias),
            LinkAttribute::Group(group) => self.group = *group,
            LinkAttribute::Address(mac) => self.mac = mac.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => self.mtu = *mtu,
            LinkAttribute::Controller(index) => self.controller = Some(*index).filter(|index| *index != 0),
            LinkAttribute::Link(index) => self.peer = Some(*index),
            LinkAttribute::LinkNetNsId(_) => self.peer_away = true,
            LinkAttribute::NewNetnsId(_) => self.moved = true,
            LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| self.read_info(info)),
            _ => {}
        }
    }

    fn read_info(&mut self, info: &LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind.clone()),
            LinkInfo::Data(InfoData::Vlan(settings)) => {
                self.vlan = settings.iter().find_map(|setting| if let InfoVlan::Id(id) = setting { Some(*id) } else { None });
            }
            LinkInfo::Data(InfoData::Vxlan(settings)) => self.vxlan = Some(Vxlan::read(settings)),
            LinkInfo::Data(InfoData::MacVlan(settings)) => self.macvlan = read_macvlan(settings),
            LinkInfo::PortData(InfoPortData::BridgePort(settings)) => {
                for setting in settings {
                    match setting {
                        InfoBridgePort::Isolated(on) => self.isolated = *on,
                        InfoBridgePort::HairpinMode(on) => self.hairpin = *on,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    /// As a child of `parent`.
    pub fn as_macvlan(&self, parent: &IfName) -> Option<Macvlan> {
        let (mode, sources) = self.macvlan.as_ref()?;
        Some(Macvlan { parent: parent.clone(), mode: macvlan::known(*mode)?, sources: sources.clone() })
    }

    pub fn is_ours(&self) -> bool {
        self.alias.starts_with(ALIAS) || (self.alias.is_empty() && self.group == GROUP)
    }

    /// Whether its making came to its end: the alias is set last.
    pub fn is_complete(&self) -> bool {
        self.alias.starts_with(ALIAS)
    }

    /// The MTU, or 0 of a link that is down, half made or learns, so that it counts as different from any that is wanted.
    pub fn sound_mtu(&self) -> u32 {
        let learns = self.vxlan.as_ref().is_some_and(|vxlan| vxlan.learns);
        if self.up && self.is_complete() && !learns { self.mtu } else { 0 }
    }
}

fn read_macvlan(settings: &[InfoMacVlan]) -> Option<(MacVlanMode, Vec<Mac>)> {
    let mode = settings.iter().find_map(|setting| if let InfoMacVlan::Mode(mode) = setting { Some(*mode) } else { None })?;
    let lists = settings.iter().filter_map(|setting| if let InfoMacVlan::MacAddrData(macs) = setting { Some(macs) } else { None });
    let mac = |entry: &InfoMacVlan| if let InfoMacVlan::MacAddr(mac) = entry { Some(Mac::from(*mac)) } else { None };
    let mut sources: Vec<Mac> = lists.flatten().filter_map(mac).collect();
    sources.sort();
    Some((mode, sources))
}

/// A request about a link: by index, or by name where that is 0.
pub(super) fn message(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

pub(super) fn named(name: &IfName) -> LinkAttribute {
    LinkAttribute::IfName(name.to_string())
}

/// `message` with the order to bring the link up.
pub(super) fn up(mut message: LinkMessage) -> LinkMessage {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

pub(super) fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

pub(super) fn dump(wire: &mut Wire) -> io::Result<Vec<Seen>> {
    let answers = wire.dump(RouteNetlinkMessage::GetLink(message(0, vec![without_statistics()])))?;
    Ok(answers.iter().filter_map(read).collect())
}

pub(super) fn read(answer: &RouteNetlinkMessage) -> Option<Seen> {
    match answer {
        RouteNetlinkMessage::NewLink(message) => Some(Seen::read(message)),
        _ => None,
    }
}

pub(super) fn find(wire: &mut Wire, name: &IfName) -> io::Result<Option<Seen>> {
    look(wire, message(0, vec![named(name), without_statistics()]))
}

pub(super) fn find_index(wire: &mut Wire, index: u32) -> io::Result<Option<Seen>> {
    look(wire, message(index, vec![without_statistics()]))
}

pub(super) fn look(wire: &mut Wire, question: LinkMessage) -> io::Result<Option<Seen>> {
    match absent_is_none(wire.get(RouteNetlinkMessage::GetLink(question)))? {
        Some(answer) => Ok(answer.as_ref().and_then(read)),
        None => Ok(None),
    }
}

/// As [`find`]; a link that does not exist is an error that names it.
pub(super) fn need(wire: &mut Wire, name: &IfName) -> io::Result<Seen> {
    find(wire, name)?.ok_or_else(|| absent(name))
}

/// The number of a link in the namespace of the calling thread; one that does not exist is an error that names it. Who reads a link has the kernel
/// catch up with its carrier first: a grace period, 130 µs, for a bridge that has just been brought up.
pub(super) fn index(name: &IfName) -> io::Result<u32> {
    if_nametoindex(name.as_str()).map_err(|error| if error == Errno::ENODEV { absent(name) } else { error.into() })
}

fn absent(name: &IfName) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("link {name} does not exist"))
}

/// What the kernel says of things that are not there.
pub(super) fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    let absent = [Errno::ENODEV, Errno::ESRCH, Errno::ENOENT, Errno::EADDRNOTAVAIL, Errno::ENXIO];
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error().is_some_and(|code| absent.contains(&Errno::from_raw(code))) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn create(wire: &mut Wire, message: LinkMessage) -> io::Result<()> {
    wire.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

pub(super) fn set(wire: &mut Wire, message: LinkMessage) -> io::Result<()> {
    wire.change(RouteNetlinkMessage::NewLink(message), 0)
}

/// The error for a link that has a name of ours and is not ours.
pub(super) fn foreign(seen: &Seen) -> io::Error {
    let text = format!("link {} exists and is not rsnet's; rename or delete it", seen.name);
    io::Error::new(io::ErrorKind::AlreadyExists, text)
}

pub(super) fn put(wire: &mut Wire, sysctls: &Sysctls, wanted: &Link) -> io::Result<()> {
    match find(wire, &wanted.name)? {
        None => make(wire, sysctls, wanted),
        Some(seen) => alter(wire, sysctls, wanted, &seen),
    }
}

fn make(wire: &mut Wire, sysctls: &Sysctls, wanted: &Link) -> io::Result<()> {
    create(wire, new(wanted)?).map_err(|error| explain(error, wire, wanted))?;
    bring_up(wire, sysctls, wanted, message_of(wanted, vec![LinkAttribute::IfAlias(wanted.alias.clone())]))
}

fn bring_up(wire: &mut Wire, sysctls: &Sysctls, wanted: &Link, message: LinkMessage) -> io::Result<()> {
    if matches!(wanted.kind, LinkKind::Vxlan { .. }) {
        ipv6::carry(sysctls, wanted.name.as_str())?;
    }
    set(wire, up(message)).map_err(|error| explain(error, wire, wanted))
}

fn message_of(wanted: &Link, attributes: Vec<LinkAttribute>) -> LinkMessage {
    message(0, std::iter::once(named(&wanted.name)).chain(attributes).collect())
}

/// The message that makes it.
fn new(wanted: &Link) -> io::Result<LinkMessage> {
    let mut attributes = vec![LinkAttribute::Group(GROUP), info(&wanted.kind)];
    attributes.extend(wanted.mac.map(|mac| LinkAttribute::Address(mac.octets().to_vec())));
    attributes.extend(wanted.mtu.map(LinkAttribute::Mtu));
    if let Some(parent) = parent(&wanted.kind) {
        attributes.push(LinkAttribute::Link(index(parent)?));
    }
    Ok(message_of(wanted, attributes))
}

/// The link that one of this kind needs.
fn parent(kind: &LinkKind) -> Option<&IfName> {
    match kind {
        LinkKind::Bridge | LinkKind::Dummy | LinkKind::Vxlan { .. } => None,
        LinkKind::Macvlan(child) => Some(&child.parent),
        LinkKind::Vlan { parent, .. } => Some(parent),
    }
}

/// A bridge is without spanning tree and delay: a port forwards at once, and there is no loop that could form.
fn info(kind: &LinkKind) -> LinkAttribute {
    let (kind, data) = match kind {
        LinkKind::Bridge => {
            let settings = vec![InfoBridge::ForwardDelay(0), InfoBridge::StpState(BridgeStpState::Disabled)];
            (InfoKind::Bridge, InfoData::Bridge(settings))
        }
        LinkKind::Dummy => return LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]),
        LinkKind::Macvlan(child) => return macvlan::info(child),
        LinkKind::Vxlan { vni, local, port } => (InfoKind::Vxlan, InfoData::Vxlan(vxlan::settings(*vni, *local, *port))),
        LinkKind::Vlan { id, .. } => (InfoKind::Vlan, InfoData::Vlan(vec![InfoVlan::Id(*id)])),
    };
    LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)])
}

/// What the kernel's short answers mean here.
fn explain(error: io::Error, wire: &mut Wire, wanted: &Link) -> io::Error {
    match &wanted.kind {
        LinkKind::Macvlan(child) => macvlan::explain(error, child),
        LinkKind::Vxlan { .. } => vxlan::explain(error, wire, wanted),
        LinkKind::Vlan { parent, id } => explain_vlan(error, wire, parent, *id),
        LinkKind::Dummy if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => {
            let text = format!(
                "this kernel has no dummy links, on which a macvlan network without a parent stands: load the module dummy, or leave \
                 mode=macvlan out and keep --internal: mode bridge is such a segment too: {error}"
            );
            io::Error::new(error.kind(), text)
        }
        LinkKind::Bridge | LinkKind::Dummy => error,
    }
}

fn explain_vlan(error: io::Error, wire: &mut Wire, parent: &IfName, id: u16) -> io::Error {
    let text = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EOPNOTSUPP) => {
            format!(
                "this kernel has no VLANs (802.1Q), or {parent} takes none: load the module 8021q, or give a parent without a number: {error}"
            )
        }
        Some(Errno::ENETDOWN) => format!("{parent}, on which it is to stand, is down; `ip link set {parent} up` brings it up: {error}"),
        // a link has each of its VLANs once, whatever they are called
        Some(Errno::EEXIST) => match vlan_of(wire, parent, id) {
            Some(name) => format!("VLAN {id} of {parent} exists, as {name}; give that as the parent: {error}"),
            None => return error,
        },
        _ => return error,
    };
    io::Error::new(error.kind(), text)
}

/// What VLAN `id` of a link is called.
fn vlan_of(wire: &mut Wire, parent: &IfName, id: u16) -> Option<String> {
    let index = index(parent).ok()?;
    let links = dump(wire).ok()?;
    links.into_iter().find(|seen| seen.vlan == Some(id) && seen.peer == Some(index)).map(|seen| seen.name)
}

/// Changes what differs; nothing at all where nothing does. A VXLAN link of another number, address or port is made anew, without what
/// stood on it: the kernel does not alter those.
fn alter(wire: &mut Wire, sysctls: &Sysctls, wanted: &Link, seen: &Seen) -> io::Result<()> {
    let stands_for_another = seen.is_complete() && seen.alias != wanted.alias;
    let kind = match wanted.kind {
        LinkKind::Bridge => InfoKind::Bridge,
        LinkKind::Dummy => InfoKind::Dummy,
        LinkKind::Macvlan(_) => InfoKind::MacVlan,
        LinkKind::Vlan { .. } => InfoKind::Vlan,
        LinkKind::Vxlan { .. } => InfoKind::Vxlan,
    };
    if !seen.is_ours() || seen.kind != Some(kind) || stands_for_another {
        return Err(foreign(seen));
    }
    if seen.vxlan.as_ref().is_some_and(|vxlan| vxlan.learns || vxlan.kind() != wanted.kind) {
        remove(wire, seen.index)?;
        return make(wire, sysctls, wanted);
    }
    let mut changes = Vec::new();
    if seen.alias != wanted.alias {
        changes.push(LinkAttribute::IfAlias(wanted.alias.clone()));
    }
    let mac = wanted.mac.filter(|mac| *mac != Mac::from(seen.mac));
    changes.extend(mac.map(|mac| LinkAttribute::Address(mac.octets().to_vec())));
    changes.extend(wanted.mtu.filter(|mtu| *mtu != seen.mtu).map(LinkAttribute::Mtu));
    if let LinkKind::Macvlan(child) = &wanted.kind
        && seen.as_macvlan(&child.parent).as_ref() != Some(child)
    {
        changes.push(macvlan::info(child));
    }
    if changes.is_empty() && seen.up {
        return Ok(());
    }
    bring_up(wire, sysctls, wanted, message(seen.index, changes))
}

/// Deletes a link of ours, its other end with it. Absent: nothing to do. Foreign: refused.
pub(super) fn delete(wire: &mut Wire, name: &IfName) -> io::Result<()> {
    match find(wire, name)? {
        None => Ok(()),
        Some(seen) if seen.is_ours() => remove(wire, seen.index),
        Some(seen) => Err(foreign(&seen)),
    }
}

pub(super) fn remove(wire: &mut Wire, index: u32) -> io::Result<()> {
    absent_is_none(wire.change(RouteNetlinkMessage::DelLink(message(index, Vec::new())), 0)).map(drop)
}
