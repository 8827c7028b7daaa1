//! What can be seen of packets from one address to another: in a network namespace, and on their way through a packet filter. Hosts tell
//! each other of it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{IfName, Mac, Protocol};

/// Packets from one address to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    pub from: IpAddr,
    pub to: IpAddr,
    /// To which port; none: ICMP echo.
    pub port: Option<(Protocol, u16)>,
}

impl Flow {
    /// The answers.
    pub fn back(self) -> Flow {
        Flow { from: self.to, to: self.from, port: self.port }
    }
}

/// What a namespace is asked about a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub flow: Flow,
    /// The link by which the packets come in; none: they begin here.
    pub by: Option<IfName>,
    /// More links that are to be looked at.
    pub links: Vec<IfName>,
}

/// What a network namespace does with a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sight {
    /// Those of the question, and that by which the packets leave.
    pub links: Vec<LinkSight>,
    /// Whether the address from which the packets come is one of the namespace's own, and that to which they go.
    pub has: (bool, bool),
    /// By which way they leave.
    pub route: Result<WayOut, NoWay>,
    /// Who has the address of the next hop.
    pub next: Option<NeighbourSight>,
    /// The addresses on which somebody listens to the port; unspecified: on every one.
    pub listeners: Vec<IpAddr>,
    /// `(path below /proc/sys/net, value)` of what decides on packets that come in by the link of the question.
    pub sysctls: Vec<(String, String)>,
}

/// As the kernel answers `RTM_GETROUTE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayOut {
    pub link: String,
    /// The next hop; none: the destination itself.
    pub via: Option<IpAddr>,
    /// It is an address of this namespace.
    pub local: bool,
}

/// The kernel's refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoWay {
    /// `errno`.
    pub code: i32,
    /// Its words.
    pub words: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkSight {
    pub name: String,
    pub up: bool,
    /// Something is at its other end.
    pub running: bool,
    /// Bytes.
    pub mtu: u32,
    /// None: it has none that a station could have.
    pub mac: Option<Mac>,
    pub addresses: Vec<IpNet>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighbourSight {
    pub address: IpAddr,
    pub link: String,
    /// None: it was asked for and did not answer.
    pub mac: Option<Mac>,
}

/// One question sent to a host, as a container sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub flow: Flow,
    /// The port, or the number of the echo, from which it is sent.
    pub source: u16,
    /// Bytes of the whole packet, which nobody may cut up; none: as small as can be. Only of an echo.
    pub size: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The other side answered.
    Reached,
    /// The other side answered that nobody listens.
    Refused,
    /// Nothing came.
    Silent,
    /// Somebody on the way, this host included, says that it does not go.
    Unreachable(NoWay),
    /// It is larger than what passes the first link.
    TooBig,
}

/// What packet filters are to tell of a [`Probe`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    pub flow: Flow,
    /// As in [`Probe::source`].
    pub source: u16,
    /// The UDP port of the tunnels that it may be in.
    pub tunnel: Option<u16>,
}

/// Where packets of a [`Trace`] came to on one host. In the order in which a packet passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stage {
    /// It came in, or began here.
    In,
    /// It was led on towards another host or container.
    Forward,
    /// It was let out by a link, or up to a process.
    Out,
}

/// One packet on one host: how far it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trail {
    /// An answer.
    pub back: bool,
    /// It was in a tunnel's packet.
    pub packed: bool,
    pub stage: Stage,
    /// By which link it came in, if it did.
    pub by: Option<String>,
    pub dropped: Option<Dropped>,
}

/// By whom a packet was dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// As `nft` calls it: `ip filter`; or `filter of iptables-legacy`, `filter of ip6tables-legacy`.
    pub table: String,
    pub chain: String,
    /// The rule's handle, of the old iptables its number; none: the chain's policy.
    pub rule: Option<u64>,
}
