//! Firewall entries: what varies between hosts, as elements of constant maps. The rules that read them stand in `firewall`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::{Family, IfName, PortRange, Protocol};

/// One fact that the constant rules of the firewall look up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Entry {
    /// `link` is a segment of rsnet: loopback addresses from it are dropped, its hairpin traffic is masqueraded.
    Segment { link: IfName },
    /// Its containers may talk to each other where a packet between them passes the host (`bridge-nf-call-iptables`, hairpin routes).
    Inner { zone: Zone },
    /// Its other hosts may send without a tunnel: what is from an address that leads to one of them may come in by any link.
    Direct { subnet: IpNet },
    /// What comes to this UDP port with this number in VXLAN's header (RFC 7348) is for a tunnel of ours: only its members may send such.
    Tunnel { port: u16, vni: u32 },
    /// The host with this outer address may.
    Member { vtep: IpAddr, port: u16, vni: u32 },
    /// Nothing but answers passes between it and the world, not even published ports.
    Internal { zone: Zone },
    /// What new connections from outside may enter.
    Enter { zone: Zone, family: Family, rule: Inbound },
    /// What comes in by `from` may enter `to` as if it were the host.
    Trusted { from: IfName, to: IfName },
    /// What leaves it for elsewhere gets the address of the link it leaves by.
    Masquerade { zone: Zone, family: Family },
    /// What leaves it for elsewhere gets this address.
    SourceNat { link: IfName, source: IpAddr },
    /// `ports` of the host lead to as many ports of `to` from `to_port`. `host` unspecified: every address of the host of its family.
    Publish { protocol: Protocol, host: IpAddr, ports: PortRange, to: IpAddr, to_port: u16 },
    /// New connections to these ports of a container are let in without translation.
    Open { protocol: Protocol, to: IpAddr, ports: PortRange },
    /// A container with this address is behind `link`, a port of its own: what comes in by it may have this source, and what is for it leaves
    /// by it. With [`Entry::Way`], [`Entry::Remote`] and [`Entry::Inner`] of the subnet, all that the fast way of packets inside a network
    /// knows.
    Local { address: IpAddr, link: IfName },
    /// By `link` packets of the subnet come from other hosts and go to them.
    Way {
        subnet: IpNet,
        link: IfName,
        /// Bytes: what the ports of this host's containers take.
        mtu: u32,
    },
    /// These addresses of the subnet, the last one included, are other hosts'. What is for one of them leaves by `link` to the next hop `via`;
    /// what comes in by `link` may have them as its source. Needs [`Entry::Way`] of the subnet and the link.
    Remote { subnet: IpNet, first: IpAddr, last: IpAddr, link: IfName, via: IpAddr },
}

/// The containers of one network, as a packet tells them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Zone {
    /// What comes and goes by this link: a bridge.
    Link(IfName),
    /// Those with addresses of this subnet, each behind a routed port of its own, here or on another host. What passes between them is not
    /// tracked ([`Entry::Inner`]). The family of an entry is the subnet's, whatever the entry names.
    Subnet(IpNet),
}

/// What may enter a segment from outside, answers and published ports apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Inbound {
    /// Nothing.
    Closed,
    /// ICMP (echo and errors) and what is [`Entry::Open`].
    Opened,
    /// Everything but what comes from another container network of this host, rsnet's or Docker's.
    Anything,
}
