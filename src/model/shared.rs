//! What hosts share of a network: its number, and who has which of its addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{IfName, Mac, Named, Roster};

/// What the hosts of a network must agree on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    pub subnets: Vec<IpNet>,
    /// Addresses of the subnets that belong to no host: gateways, and what the user keeps for others.
    pub reserved: Vec<IpAddr>,
    /// What must be given alike on every host.
    pub options: BTreeMap<String, String>,
    /// The network is there without the hosts, and they share its addresses only; none: they are the network. Each host's own affair.
    #[serde(skip)]
    pub segment: Option<Segment>,
}

/// A network that hosts do not make but stand on: a LAN.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The parts of the subnets that containers have their addresses of, where that is not the whole.
    pub ranges: Vec<IpNet>,
    /// Addresses that this host itself has there.
    pub own: Vec<IpAddr>,
}

/// A network that hosts share, as this host last heard of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The network's number on the wire, of 24 bits (RFC 7348); 0 on a segment.
    pub vni: u32,
    /// Bytes: what a packet from this host's outer address may have.
    pub mtu: u32,
    /// Where this host's outer address is; none: nowhere that another host could be, or not known.
    #[serde(default)]
    pub on_link: Option<OnLink>,
    pub mine: Member,
    /// The other hosts of the network.
    pub peers: Roster<Member>,
}

impl Share {
    /// What it says of this host and its way out.
    pub fn here(&self) -> Share {
        let Share { vni, mtu, ref on_link, ref mine, .. } = *self;
        Share { vni, mtu, on_link: on_link.clone(), mine: Member { blocks: vec![], ..mine.clone() }, peers: Roster::default() }
    }

    /// The other hosts of the network.
    pub fn others(&self) -> impl Iterator<Item = &Member> {
        self.peers.iter()
    }

    /// Which other host has an address: what one has alone lies in a block of another, which lent it.
    pub fn holder(&self, address: IpAddr) -> Option<&Member> {
        let length = |peer: &Member| peer.blocks.iter().filter(|block| block.contains(&address)).map(IpNet::prefix_len).max();
        let nearest = self.others().filter_map(|peer| Some((length(peer)?, peer))).max_by_key(|(length, _)| *length);
        nearest.map(|(_, peer)| peer).or_else(|| self.others().find(|peer| peer.homes.contains(&address)))
    }

    /// Bytes that a tunnel puts around a packet: VXLAN's header, UDP's, that of IPv4 or IPv6 and the inner Ethernet's (RFC 7348, section 5).
    pub fn around(&self) -> u32 {
        if self.mine.vtep.is_ipv6() { 70 } else { 50 }
    }
}

/// A link of the host, with the addresses that are reached by it without a router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnLink {
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
    /// Its own addresses on the network, one of each family, within its blocks, or of those a single one; on a segment those that it has there,
    /// wherever they are.
    pub homes: Vec<IpAddr>,
    /// The parts of the subnets whose addresses are its containers', in the order in which it got them; a single address, asked for by a user
    /// or borrowed, is one of full length.
    pub blocks: Vec<IpNet>,
}

impl Named for Member {
    fn name(&self) -> &str {
        &self.host
    }
}

impl Member {
    /// Whether an address is in one of its blocks.
    pub fn has(&self, address: IpAddr) -> bool {
        self.blocks.iter().any(|block| block.contains(&address))
    }
}
