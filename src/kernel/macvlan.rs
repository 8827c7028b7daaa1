//! Attachments of one link: a macvlan child in a container. Its parent is the host's, and from the host's namespace nothing else is seen of
//! it but its MAC among those that the parent takes frames for.
//!
//! A child in a sandbox is known by its alias and its group, which go with it when the engine moves it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use netlink_packet_route::link::{
    InfoData, InfoKind, InfoMacVlan, LinkAttribute, LinkInfo, LinkMessage, MacVlanMacAddressMode, MacVlanMode,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use parking_lot::Mutex;

use super::address;
use super::attachment::{Inside, furnish, pattern};
use super::crew::{is_sandbox, open_namespace, within};
use super::link::{self, ALIAS, GROUP, Seen};
use super::observe::Links;
use super::sysctl::Sysctls;
use super::wire::Wire;
use crate::model::{Attachment, AttachmentKind, IfName, Mac, Macvlan, MacvlanMode, Object, Place};

/// How long the engine may take to set up a link that it has moved; milliseconds, unless the machine is very busy.
const SET_UP: Duration = Duration::from_millis(750);

/// Links in sandboxes that are down. The engine gives one that it has just moved its addresses, one after the other, and then brings it up; an
/// address that it finds there already (20.10) ends the container's start. So one that is down is left alone at first, and looked at again.
#[derive(Default)]
pub(super) struct Settling(Mutex<HashMap<IfName, Down>>);

struct Down {
    since: Instant,
    told: bool,
}

impl Settling {
    /// Whether this link, which is down, is the engine's still.
    fn leaves(&self, host: &IfName) -> bool {
        let down = || Down { since: Instant::now(), told: false };
        self.0.lock().entry(host.clone()).or_insert_with(down).since.elapsed() < SET_UP
    }

    /// Whether one has been down for too long that was not so before.
    pub fn is_over(&self) -> bool {
        let over = |down: &mut Down| !std::mem::replace(&mut down.told, down.since.elapsed() >= SET_UP) && down.told;
        self.0.lock().values_mut().map(over).filter(|over| *over).count() > 0
    }

    /// Forgets all but these.
    fn retain(&self, down: &BTreeSet<IfName>) {
        self.0.lock().retain(|host, _| down.contains(host));
    }
}

/// What it takes to furnish a link in a sandbox.
#[derive(Clone, Copy)]
pub(super) struct Means<'a> {
    pub sysctls: &'a Sysctls,
    pub settling: &'a Settling,
}

pub(super) fn put(wire: &mut Wire, means: Means<'_>, wanted: &Attachment, child: &Macvlan) -> io::Result<()> {
    match link::find(wire, &wanted.host)? {
        Some(seen) if !is_child(&seen) => return Err(link::foreign(&seen)),
        // on its way there, or back
        Some(seen) if seen.is_complete() => return tune(wire, child, &seen),
        Some(half_made) => link::remove(wire, half_made.index)?,
        None => {}
    }
    let parent = link::find(wire, &child.parent)?.ok_or_else(|| missing(child))?;
    match &wanted.place {
        Place::Host => make_here(wire, wanted, child, &parent).inspect_err(|_| drop(link::delete(wire, &wanted.host))),
        Place::Sandbox { path, .. } => put_in_sandbox(wire, means, wanted, child, &parent, path),
    }
}

fn is_child(seen: &Seen) -> bool {
    seen.is_ours() && seen.kind == Some(InfoKind::MacVlan)
}

/// Down: the engine brings it up where it belongs.
fn make_here(wire: &mut Wire, wanted: &Attachment, child: &Macvlan, parent: &Seen) -> io::Result<()> {
    create(wire, wanted, child, parent, wanted.host.as_str(), None)?;
    link::set(wire, link::message(0, vec![link::named(&wanted.host), address(wanted), alias(wanted)]))
}

fn put_in_sandbox(wire: &mut Wire, means: Means<'_>, wanted: &Attachment, child: &Macvlan, parent: &Seen, path: &Path) -> io::Result<()> {
    let namespace = open_namespace(path)?;
    let Place::Sandbox { name, addresses, sysctls: asked, gateways, routes, .. } = &wanted.place else { return Ok(()) };
    let inside = Inside { addresses, sysctls: asked, gateways, routes };
    within(&namespace, || {
        let mut there = Wire::open()?;
        if keep(&mut there, means, wanted, child, parent, &inside)? {
            return Ok(());
        }
        create(wire, wanted, child, parent, &pattern(name), Some(&namespace))?;
        number(wire, &namespace)?;
        finish(&mut there, means.sysctls, wanted, parent, &inside)
    })
}

/// Gives a namespace a number, as the kernel does when a link is moved there: what happens to its links is told to who has one of it.
fn number(wire: &mut Wire, namespace: &File) -> io::Result<()> {
    let mut message = NsidMessage::default();
    // a descriptor that is open is not negative
    message.attributes = vec![NsidAttribute::Fd(namespace.as_raw_fd().cast_unsigned()), NsidAttribute::Id(-1)];
    match wire.change(RouteNetlinkMessage::NewNsId(message), 0) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Whether it stands in the namespace of the calling thread, which it then does as wanted; a half-made one is removed.
fn keep(wire: &mut Wire, means: Means<'_>, wanted: &Attachment, child: &Macvlan, parent: &Seen, inside: &Inside<'_>) -> io::Result<bool> {
    for seen in children(wire)? {
        if seen.alias == wanted.alias {
            if !seen.up && means.settling.leaves(&wanted.host) {
                return Ok(true);
            }
            alter(wire, wanted, child, parent, &seen)?;
            // a link that went down lost its routes and its IPv6 addresses
            return if seen.up { Ok(()) } else { furnish(wire, means.sysctls, seen.index, inside) }.map(|()| true);
        }
        if is_half_made(&seen, parent) {
            link::remove(wire, seen.index)?;
        }
    }
    Ok(false)
}

/// Sets the sysctls of a child that is up in its sandbox; false: it is not there, or not up.
pub(super) fn set_up(sysctls: &Sysctls, wanted: &Attachment) -> io::Result<bool> {
    let Place::Sandbox { path, sysctls: asked, .. } = &wanted.place else { return Ok(false) };
    if !is_sandbox(path) {
        return Ok(false);
    }
    within(&open_namespace(path)?, || {
        let found = children(&mut Wire::open()?)?.into_iter().find(|seen| seen.alias == wanted.alias && seen.up);
        let Some(seen) = found else { return Ok(false) };
        asked.iter().try_for_each(|(path, value)| sysctls.write_for(&seen.name, path, value)).map(|()| true)
    })
}

/// Changes whose frames it takes, where that differs.
fn tune(wire: &mut Wire, child: &Macvlan, seen: &Seen) -> io::Result<()> {
    if seen.as_macvlan(&child.parent).as_ref() == Some(child) {
        return Ok(());
    }
    link::set(wire, link::message(seen.index, vec![info(child)]))
}

/// Changes what differs: MTU, mode, whose frames it takes; and brings it up.
fn alter(wire: &mut Wire, wanted: &Attachment, child: &Macvlan, parent: &Seen, seen: &Seen) -> io::Result<()> {
    let mut changes = Vec::new();
    let mtu = wanted.mtu.unwrap_or(parent.mtu);
    if seen.mtu != mtu {
        changes.push(LinkAttribute::Mtu(mtu));
    }
    if seen.as_macvlan(&child.parent).as_ref() != Some(child) {
        changes.push(info(child));
    }
    if changes.is_empty() && seen.up { Ok(()) } else { link::set(wire, link::up(link::message(seen.index, changes))) }
}

fn children(wire: &mut Wire) -> io::Result<Vec<Seen>> {
    let mut links = link::dump(wire)?;
    links.retain(is_child);
    Ok(links)
}

/// One child of a parent is made in a sandbox at a time: the engine joins a container to one network after the other.
fn is_half_made(seen: &Seen, parent: &Seen) -> bool {
    !seen.is_complete() && seen.peer == Some(parent.index)
}

/// Makes a child that was just made in the namespace of the calling thread what the engine would have made of it; or removes it.
fn finish(wire: &mut Wire, sysctls: &Sysctls, wanted: &Attachment, parent: &Seen, inside: &Inside<'_>) -> io::Result<()> {
    let made = children(wire)?.into_iter().find(|seen| is_half_made(seen, parent));
    let made = made.ok_or_else(|| io::Error::other("the container's link vanished"))?.index;
    link::set(wire, link::message(made, vec![address(wanted)]))
        .and_then(|()| furnish(wire, sysctls, made, inside))
        .and_then(|()| link::set(wire, link::message(made, vec![alias(wanted)])))
        .inspect_err(|_| drop(link::remove(wire, made)))
}

fn alias(wanted: &Attachment) -> LinkAttribute {
    LinkAttribute::IfAlias(wanted.alias.clone())
}

/// Said again once it is made: in mode passthru a new child has its parent's.
fn address(wanted: &Attachment) -> LinkAttribute {
    LinkAttribute::Address(wanted.mac.octets().to_vec())
}

fn create(wire: &mut Wire, wanted: &Attachment, child: &Macvlan, parent: &Seen, name: &str, into: Option<&File>) -> io::Result<()> {
    if hears(wire, child, wanted.mac)? {
        return Err(io::Error::new(io::ErrorKind::WouldBlock, format!("MAC {} is in use on its parent {}", wanted.mac, child.parent)));
    }
    too_large(wanted, child, parent)?;
    link::create(wire, new(wanted, child, parent, name, into)).map_err(|error| explain(error, child))
}

/// The kernel's answer to an MTU above the parent's is the same as to mode passthru beside other children.
fn too_large(wanted: &Attachment, child: &Macvlan, parent: &Seen) -> io::Result<()> {
    let Some(mtu) = wanted.mtu.filter(|mtu| *mtu > parent.mtu) else { return Ok(()) };
    let Macvlan { parent: name, .. } = child;
    let text =
        format!("an MTU of {mtu} is more than its parent {name} has, {}; raise that, or make the network with a lower -o mtu", parent.mtu);
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// The message that makes it.
fn new(wanted: &Attachment, child: &Macvlan, parent: &Seen, name: &str, into: Option<&File>) -> LinkMessage {
    let mut attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Group(GROUP),
        LinkAttribute::Link(parent.index),
        address(wanted),
        info(child),
    ];
    attributes.extend(wanted.mtu.map(LinkAttribute::Mtu));
    attributes.extend(into.map(|file| LinkAttribute::NetNsFd(file.as_raw_fd())));
    link::message(0, attributes)
}

const MODES: [(MacvlanMode, MacVlanMode); 5] = [
    (MacvlanMode::Bridge, MacVlanMode::Bridge),
    (MacvlanMode::Vepa, MacVlanMode::Vepa),
    (MacvlanMode::Private, MacVlanMode::Private),
    (MacvlanMode::Passthru, MacVlanMode::Passthrough),
    (MacvlanMode::Source, MacVlanMode::Source),
];

/// The mode by the kernel's word for it.
pub(super) fn known(mode: MacVlanMode) -> Option<MacvlanMode> {
    MODES.iter().find(|(_, word)| *word == mode).map(|(mode, _)| *mode)
}

/// Mode, and in mode source the whole list. `MODES` has every mode.
pub(super) fn info(child: &Macvlan) -> LinkAttribute {
    let mut settings: Vec<_> = MODES.iter().filter(|(mode, _)| *mode == child.mode).map(|(_, word)| InfoMacVlan::Mode(*word)).collect();
    if child.mode == MacvlanMode::Source {
        let macs = child.sources.iter().map(|mac| InfoMacVlan::MacAddr(mac.octets())).collect();
        settings.extend([InfoMacVlan::MacAddrMode(MacVlanMacAddressMode::Set), InfoMacVlan::MacAddrData(macs)]);
    }
    LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::MacVlan), LinkInfo::Data(InfoData::MacVlan(settings))])
}

/// Why a link takes no children, by making one and taking it away; what somebody who is about to go keeps from it is tried again.
pub(super) fn probe(wire: &mut Wire, name: &IfName, parent: &Seen) -> io::Result<Option<String>> {
    let child = Macvlan { parent: name.clone(), mode: MacvlanMode::Private, sources: Vec::new() };
    let attributes = vec![LinkAttribute::IfName("rsp-%d".to_owned()), LinkAttribute::Group(GROUP), LinkAttribute::Link(parent.index)];
    let message = link::message(0, attributes.into_iter().chain([info(&child)]).collect());
    match link::create(wire, message).map_err(|error| explain(error, &child)) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
        result => Ok(result.err().map(|error| error.to_string())),
    }
}

/// Removes what [`probe`] made.
pub(super) fn clear_probes(wire: &mut Wire) -> io::Result<()> {
    let probes = children(wire)?.into_iter().filter(|seen| seen.name.starts_with("rsp-") && !seen.is_complete());
    probes.map(|seen| seen.index).collect::<Vec<_>>().into_iter().try_for_each(|index| link::remove(wire, index))
}

fn missing(child: &Macvlan) -> io::Error {
    let text = format!("its parent {} does not exist on this host; `ip link` shows those that do", child.parent);
    io::Error::new(io::ErrorKind::NotFound, text)
}

/// What the kernel's short answers mean here. A child that is about to go keeps a parent from changing to or from mode passthru.
pub(super) fn explain(error: io::Error, child: &Macvlan) -> io::Error {
    use nix::errno::Errno;
    let parent = &child.parent;
    let (kind, text) = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EBUSY) => (error.kind(), format!("its parent {parent} is a port of a bridge or bond, or has ipvlan children: {error}")),
        Some(Errno::EINVAL) => {
            let text = format!("its parent {parent} belongs to one child in mode passthru, or is to and has others: {error}");
            (io::ErrorKind::WouldBlock, text)
        }
        Some(Errno::EOPNOTSUPP) => (error.kind(), format!("this kernel has no macvlan: {error}")),
        _ => return error,
    };
    io::Error::new(kind, text)
}

/// Whether the parent takes frames for this MAC beside its own: a child that is up has it. In mode passthru it is the parent's own.
pub(super) fn hears(wire: &mut Wire, child: &Macvlan, mac: Mac) -> io::Result<bool> {
    let Some(parent) = link::find(wire, &child.parent)? else { return Ok(false) };
    if Mac::from(parent.mac) == mac {
        return Ok(true);
    }
    let mut question = NeighbourMessage::default();
    question.header.family = AddressFamily::Bridge;
    question.header.ifindex = parent.index;
    let answers = wire.dump(RouteNetlinkMessage::GetNeighbour(question))?;
    let heard = |answer: &RouteNetlinkMessage| match answer {
        RouteNetlinkMessage::NewNeighbour(m) if m.header.ifindex == parent.index => {
            m.attributes.iter().any(|a| matches!(a, NeighbourAttribute::LinkLayerAddress(bytes) if *bytes == mac.octets()))
        }
        _ => false,
    };
    Ok(answers.iter().any(heard))
}

/// Removes the child that `host` stands for from a sandbox.
pub(super) fn delete(sysctls: &Sysctls, host: &IfName, namespace: &File) -> io::Result<()> {
    let find = || Ok(children(&mut Wire::open()?)?.into_iter().find(|seen| name_of(seen).as_ref() == Some(host)));
    let Some(child) = within(namespace, find)? else { return Ok(()) };
    give_back(sysctls, &child, || within(namespace, || link::remove(&mut Wire::open()?, child.index)))
}

/// Whether its parent has its MAC: in mode passthru.
pub(super) fn is_alone(child: &Seen) -> bool {
    matches!(child.macvlan, Some((MacVlanMode::Passthrough, _)))
}

/// Removes a child. In mode passthru its parent had its MAC and takes its own back, and is made to say so: the host's neighbours on the segment
/// would else send to the other for up to a minute.
pub(super) fn give_back(sysctls: &Sysctls, child: &Seen, remove: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let Some(parent) = child.peer.filter(|_| is_alone(child)) else { return remove() };
    let Some(Seen { name: parent, .. }) = link::find_index(&mut Wire::open()?, parent)? else { return remove() };
    let notify = [format!("ipv4/conf/{parent}/arp_notify"), format!("ipv6/conf/{parent}/ndisc_notify")];
    let before = notify.map(|path| (sysctls.read(&path), path));
    for (_, path) in &before {
        let _ = sysctls.write(path, "1");
    }
    let removed = remove();
    for (value, path) in before {
        let _ = value.and_then(|value| sysctls.write(&path, &value));
    }
    removed
}

/// The name that a child of ours has in the host's namespace, wherever it is.
fn name_of(seen: &Seen) -> Option<IfName> {
    seen.alias.strip_prefix(ALIAS).map(|id| IfName::of("rsv-", id))
}

pub(super) fn seen_as(host: IfName, parent: &IfName, seen: &Seen, mtu: u32) -> Option<Attachment> {
    let kind = AttachmentKind::Macvlan(seen.as_macvlan(parent)?);
    Some(Attachment { host, alias: seen.alias.clone(), kind, mac: Mac::from([0; 6]), mtu: Some(mtu), place: Place::Host })
}

/// What a link in another namespace, whose parent is the host's, tells of itself.
pub(super) fn told(seen: &Seen, links: &Links) -> Option<Attachment> {
    let away = is_child(seen) && seen.is_complete() && seen.peer_away;
    let parent = links.get(seen.peer.filter(|_| away)?)?;
    seen_as(name_of(seen)?, &parent.name.parse().ok()?, seen, seen.sound_mtu())
}

/// The children that stand in sandboxes, with those: the wanted ones', and all in the directory `unseen`.
pub(super) fn observe(wanted: &[Object], links: &Links, settling: &Settling, unseen: Option<&Path>) -> Vec<(PathBuf, Attachment)> {
    let following: BTreeMap<&IfName, u32> = wanted.iter().filter_map(|object| follower(object, links)).collect();
    let mut paths: BTreeSet<PathBuf> = wanted.iter().filter_map(sandbox).map(Path::to_path_buf).collect();
    let directory = unseen.and_then(|directory| std::fs::read_dir(directory).ok());
    paths.extend(directory.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())));
    let (mut found, mut down) = (Vec::new(), BTreeSet::new());
    for path in paths {
        // one that vanished meanwhile, or is no network namespace, has nothing of ours
        for mut seen in look_into(&path).unwrap_or_default() {
            if let Some(host) = name_of(&seen).filter(|_| !seen.up) {
                seen.up = settling.leaves(&host);
                down.insert(host);
            }
            let Some(mut attachment) = told(&seen, links) else { continue };
            if following.get(&attachment.host).is_some_and(|mtu| *mtu != seen.mtu) {
                attachment.mtu = Some(0);
            }
            found.push((path.clone(), attachment));
        }
    }
    settling.retain(&down);
    found
}

/// A wanted child whose MTU is its parent's, and what that is.
fn follower<'o>(object: &'o Object, links: &Links) -> Option<(&'o IfName, u32)> {
    let Object::Attachment(Attachment { host, kind: AttachmentKind::Macvlan(child), mtu: None, .. }) = object else { return None };
    Some((host, links.named(&child.parent)?.mtu))
}

fn sandbox(object: &Object) -> Option<&Path> {
    match object {
        Object::Attachment(Attachment { kind: AttachmentKind::Macvlan(_), place: Place::Sandbox { path, .. }, .. }) => Some(path),
        _ => None,
    }
}

fn look_into(path: &Path) -> io::Result<Vec<Seen>> {
    let namespace = open_namespace(path)?;
    // the engine keeps the host's own namespace among its sandboxes
    if namespace.metadata()?.ino() == std::fs::metadata("/proc/thread-self/ns/net")?.ino() {
        return Ok(Vec::new());
    }
    within(&namespace, || {
        let mut wire = Wire::open()?;
        let (mut found, addresses) = (children(&mut wire)?, address::dump(&mut wire)?);
        // the engine gives a link its addresses and then brings it up: it is not to be mended before
        found.iter_mut().for_each(|seen| seen.up |= addresses.iter().all(|(link, _)| *link != seen.index));
        Ok(found)
    })
}
