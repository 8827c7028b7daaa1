//! What hosts share of a network: its number, and who has which of its addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{IfName, Mac};

/// What the hosts of a network must agree on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    pub subnets: Vec<IpNet>,
    /// Addresses of the subnets that belong to no host: gateways, and what the user keeps for others.
    pub reserved: Vec<IpAddr>,
    /// What must be given alike on every host.
    pub options: BTreeMap<String, String>,
}

/// A network that hosts share, as this host last heard of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The network's number on the wire, of 24 bits (RFC 7348).
    pub vni: u32,
    /// Bytes: what a packet from this host's outer address may have.
    pub mtu: u32,
    /// Where this host's outer address is; none: nowhere that another host could be, or not known.
    #[serde(default)]
    pub segment: Option<Segment>,
    pub mine: Member,
    /// The other hosts of the network, by name.
    pub peers: Vec<Member>,
}

/// A link of the host, with the addresses that are reached by it without a router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub link: IfName,
    pub subnet: IpNet,
}

/// A host of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The host's name, the same in all networks.
    pub host: String,
    /// Its outer address, the end of its tunnels.
    pub vtep: IpAddr,
    /// Its MAC on the network.
    pub mac: Mac,
    /// Its own addresses on the network, one of each family, within its blocks.
    pub homes: Vec<IpAddr>,
    /// The parts of the subnets whose addresses are its containers', in the order in which it got them; a single address that a user asked for
    /// is one of full length.
    pub blocks: Vec<IpNet>,
}
