//! Kernel objects: everything of rsnet that must stand on a host for its networks to work.
//!
//! The order of [`Key`]'s variants is the order of creation; deletion runs backwards. It is told here and nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Entry, Family, IfName, Mac, PortRange, Protocol};

/// What identifies an object. Sorted in the order of creation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Key {
    /// A host port: first, since its conflict is the only one a user can cause.
    HostPort {
        protocol: Protocol,
        host: IpAddr,
        ports: PortRange,
    },
    /// A sysctl of the whole host, by its path below `/proc/sys/net`. Set, never taken back.
    HostSysctl(String),
    Link(IfName),
    /// The link of an endpoint, by the name of what stands in the host's namespace.
    Attachment(IfName),
    /// A sysctl of one of our links: path below `/proc/sys/net` with the link's name in it. Goes with the link.
    LinkSysctl(String),
    Address(IfName, IpNet),
    /// Who has an address on one of our links.
    Neighbour(IfName, IpAddr),
    /// Behind which outer address a MAC is, on one of our VXLAN links.
    Fdb(IfName, Mac),
    /// A route of rsnet's own protocol number.
    Route {
        destination: IpNet,
        link: IfName,
    },
    /// The settings of a bridge port.
    Port(IfName),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Object {
    HostPort(HostPort),
    HostSysctl {
        path: String,
        value: String,
    },
    Link(Link),
    LinkSysctl {
        path: String,
        value: String,
    },
    Address {
        link: IfName,
        address: IpNet,
    },
    /// An entry of the neighbour table that does not age (`NUD_PERMANENT`).
    Neighbour {
        link: IfName,
        address: IpAddr,
        mac: Mac,
    },
    /// An entry of a VXLAN link's forwarding database that does not age: frames to `mac` go to the tunnel end `vtep`.
    Fdb {
        link: IfName,
        mac: Mac,
        vtep: IpAddr,
    },
    Route(Route),
    Attachment(Attachment),
    Port(Port),
}

/// A route of rsnet's own protocol number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Route {
    pub destination: IpNet,
    pub link: IfName,
    pub kind: RouteKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum RouteKind {
    /// Of type local in table local (`RTN_LOCAL`).
    Local,
    /// Nowhere: whoever sends there is told so (`RTN_UNREACHABLE`, table main, behind every other). It has no link; `lo` stands for it.
    Unreachable,
    /// In table main.
    Unicast {
        /// The next hop, taken to be on the link (`RTNH_F_ONLINK`); none: the destination itself is.
        via: Option<IpAddr>,
        /// What the host itself sends by it has this address (`RTA_PREFSRC`).
        source: Option<IpAddr>,
    },
}

/// Sockets bound (and not listening) to every port of the range, so that nobody else takes what rsnet publishes. SCTP and addresses
/// whose family the kernel lacks have no sockets and succeed without.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostPort {
    pub protocol: Protocol,
    pub host: IpAddr,
    pub ports: PortRange,
}

/// A link of ours in the host's namespace, up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    pub name: IfName,
    /// `IFLA_IFALIAS`: `rsnet:` and the full id of what it stands for; the mark of ownership.
    pub alias: String,
    pub kind: LinkKind,
    /// None: its parent's, whatever it is.
    pub mac: Option<Mac>,
    /// Bytes; none: that of its parent, whatever it is.
    pub mtu: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum LinkKind {
    Bridge,
    /// A link whose other end is nowhere, for children that meet on it.
    Dummy,
    /// The host's own station on the segment of `parent`.
    Macvlan(Macvlan),
    /// The end of the tunnels of one network (RFC 7348), which learns nothing: neighbours and forwarding database say all.
    Vxlan {
        vni: u32,
        /// The outer source address.
        local: IpAddr,
        /// UDP.
        port: u16,
    },
    /// A VLAN of `parent` (802.1Q).
    Vlan {
        parent: IfName,
        id: u16,
    },
}

/// The link of a container, with what the host has of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attachment {
    /// What stands in the host's namespace: the host's end of a pair, or the link itself on its way; `alias` as in [`Link`].
    pub host: IfName,
    pub alias: String,
    pub kind: AttachmentKind,
    pub mac: Mac,
    /// Bytes; none: that of its parent, whatever it is.
    pub mtu: Option<u32>,
    pub place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum AttachmentKind {
    /// A pair of links; `peer` is the container's end, as it is called in the host's namespace. `router`: the host's end is a router's port
    /// with this MAC and may have addresses; none: it is a bridge's, with a MAC of no matter and no IPv6.
    Veth { peer: IfName, router: Option<Mac> },
    /// One link, the container's, which sends and receives by a link of the host's.
    Macvlan(Macvlan),
}

/// A station of its own on the segment of a link of the host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Macvlan {
    pub parent: IfName,
    pub mode: MacvlanMode,
    /// From whom it takes frames, in mode source; sorted.
    pub sources: Vec<Mac>,
}

/// Who of one parent's children hears whom (`IFLA_MACVLAN_MODE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum MacvlanMode {
    /// Children meet on the parent.
    Bridge,
    /// Children meet where the segment sends their frames back: a reflective relay (IEEE 802.1Qbg).
    Vepa,
    /// Children do not meet.
    Private,
    /// One child has the parent for itself, MAC included.
    Passthru,
    /// A child takes frames from listed MACs only.
    Source,
}

/// Where the container's end is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Place {
    /// In the host's namespace, down, for the engine to move.
    Host,
    /// In the container's namespace, with all that the engine would have set on it.
    Sandbox {
        path: PathBuf,
        /// `net` becomes `net0`, or the next number that is free; a name without room for a number is `exact`.
        name: SandboxName,
        addresses: Vec<IpNet>,
        /// Path below `/proc/sys` with `IFNAME` for the link's name, and the value.
        sysctls: Vec<(String, String)>,
        /// Default gateways to set where the namespace has none: only when a lost link is made again; at `Join` the engine sets them.
        gateways: Vec<IpAddr>,
        /// Routes to set before the gateways, in this order.
        routes: Vec<StaticRoute>,
    },
}

/// A route in a container's namespace. `via` none: the destination is on the link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StaticRoute {
    pub destination: IpNet,
    pub via: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum SandboxName {
    Prefix(String),
    Exact(IfName),
}

/// The host's end of an attachment as a port of a bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Port {
    pub link: IfName,
    pub bridge: IfName,
    /// `IFLA_BRPORT_ISOLATED`: no frame to other isolated ports.
    pub isolated: bool,
    /// `IFLA_BRPORT_MODE`: frames may leave by the port they came in.
    pub hairpin: bool,
}

/// As people call it.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::HostPort { protocol, host, ports } => write!(f, "host port {ports}/{protocol} on {host}"),
            Key::HostSysctl(path) | Key::LinkSysctl(path) => write!(f, "sysctl net/{path}"),
            Key::Link(name) => write!(f, "link {name}"),
            Key::Address(link, address) => write!(f, "address {address} on {link}"),
            Key::Neighbour(link, address) => write!(f, "neighbour {address} on {link}"),
            Key::Fdb(link, mac) => write!(f, "forwarding to {mac} on {link}"),
            Key::Route { destination, link } => write!(f, "route to {destination} on {link}"),
            Key::Attachment(host) => write!(f, "attachment {host}"),
            Key::Port(link) => write!(f, "bridge port {link}"),
        }
    }
}

impl Key {
    /// The link that it is, if it is one.
    pub fn link(&self) -> Option<&IfName> {
        match self {
            Key::Link(name) | Key::Attachment(name) => Some(name),
            _ => None,
        }
    }

    /// The link that it stands on, with which it goes.
    pub fn stands_on(&self) -> Option<&IfName> {
        match self {
            Key::Address(link, _) | Key::Neighbour(link, _) | Key::Fdb(link, _) | Key::Route { link, .. } | Key::Port(link) => Some(link),
            _ => None,
        }
    }

    /// Whether its deletion takes the kernel a grace period, or nothing at all and belongs to one that does.
    pub fn is_deleted_behind(&self) -> bool {
        matches!(self, Key::Link(_) | Key::LinkSysctl(_) | Key::Attachment(_) | Key::Port(_))
    }
}

impl Object {
    pub fn key(&self) -> Key {
        match self {
            Object::HostPort(p) => Key::HostPort { protocol: p.protocol, host: p.host, ports: p.ports },
            Object::HostSysctl { path, .. } => Key::HostSysctl(path.clone()),
            Object::Link(link) => Key::Link(link.name.clone()),
            Object::LinkSysctl { path, .. } => Key::LinkSysctl(path.clone()),
            Object::Address { link, address } => Key::Address(link.clone(), *address),
            Object::Neighbour { link, address, .. } => Key::Neighbour(link.clone(), *address),
            Object::Fdb { link, mac, .. } => Key::Fdb(link.clone(), *mac),
            Object::Route(Route { destination, link, .. }) => Key::Route { destination: *destination, link: link.clone() },
            Object::Attachment(attachment) => Key::Attachment(attachment.host.clone()),
            Object::Port(port) => Key::Port(port.link.clone()),
        }
    }

    /// Whether `seen`, an object of the same key, is what this one asks for. Of an attachment only a part can be seen.
    pub fn is_met_by(&self, seen: &Object) -> bool {
        match (self, seen) {
            (Object::Attachment(wanted), Object::Attachment(seen)) => {
                wanted.host == seen.host && is_kind_met(&wanted.kind, &seen.kind) && is_mtu_met(wanted.mtu, seen.mtu)
            }
            (Object::Link(wanted), Object::Link(seen)) => {
                let same = (&wanted.name, &wanted.alias, &wanted.kind) == (&seen.name, &seen.alias, &seen.kind);
                same && (wanted.mac.is_none() || wanted.mac == seen.mac) && is_mtu_met(wanted.mtu, seen.mtu)
            }
            _ => self == seen,
        }
    }
}

/// The MAC of the host's end of a pair is of no matter where it is no router's port.
fn is_kind_met(wanted: &AttachmentKind, seen: &AttachmentKind) -> bool {
    match (wanted, seen) {
        (AttachmentKind::Veth { peer, router: None }, AttachmentKind::Veth { peer: seen, .. }) => peer == seen,
        _ => wanted == seen,
    }
}

/// A parent's own will do where none is named; 0 is that of what is down or half made.
fn is_mtu_met(wanted: Option<u32>, seen: Option<u32>) -> bool {
    wanted == seen || (wanted.is_none() && seen != Some(0))
}

/// Everything that must exist on this host for one network or one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub objects: BTreeMap<Key, Object>,
    pub entries: BTreeSet<Entry>,
}

impl Plan {
    /// The container's link, if it has one.
    pub fn attachment(&self) -> Option<&Attachment> {
        self.objects.values().find_map(|object| if let Object::Attachment(attachment) = object { Some(attachment) } else { None })
    }

    pub fn new(objects: impl IntoIterator<Item = Object>, entries: impl IntoIterator<Item = Entry>) -> Self {
        Plan { objects: objects.into_iter().map(|o| (o.key(), o)).collect(), entries: entries.into_iter().collect() }
    }
}

/// `/proc/sys/net/ipv4/conf/LINK/NAME` of either family, as a path below `/proc/sys/net`.
pub fn conf_path(family: Family, link: &IfName, name: &str) -> String {
    let family = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    format!("{family}/conf/{link}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_created_in_the_order_in_which_they_need_each_other() {
        let name: IfName = "x".parse().unwrap();
        let net: IpNet = "10.0.0.1/24".parse().unwrap();
        let order = [
            Key::HostPort { protocol: Protocol::Tcp, host: net.addr(), ports: PortRange::one(80) },
            Key::HostSysctl("ipv4/ip_forward".into()),
            Key::Link(name.clone()),
            Key::Attachment(name.clone()),
            Key::LinkSysctl(conf_path(Family::V4, &name, "route_localnet")),
            Key::Address(name.clone(), net),
            Key::Neighbour(name.clone(), net.addr()),
            Key::Fdb(name.clone(), Mac::local([0; 6])),
            Key::Route { destination: net, link: name.clone() },
            Key::Port(name),
        ];
        assert!(order.is_sorted(), "{order:?}");
    }
}
