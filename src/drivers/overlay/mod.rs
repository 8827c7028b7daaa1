//! Mode `overlay`: one network on many hosts, routed by blocks of its subnets.
//!
//! There is no bridge. Each container's link is a port of this host as a router, with the network's gateway on it; what is for another
//! host's block leaves by a VXLAN link, whose neighbours and forwarding entries say everything, so that nothing is ever asked or learned. A
//! packet's way: container → its port → route to the peer's block → VXLAN → the peer → route to the container → its port.

mod paths;
mod spec;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::options::Options;
use super::{Claim, Join, Mode, OptionError, PortRequest, all_or_none, forwarding, host_side, loopback_route};
use crate::model::{
    Agreement, Attachment, AttachmentKind, Binding, Endpoint, Entry, Family, HostPort, IfName, Inbound, Link, LinkKind, Mac, Member,
    Network, NetworkId, Object, OnLink, Plan, Route, RouteKind, Share, StaticRoute, Way, Zone, conf_path, family_of,
};
pub use spec::between_hosts;
use spec::{Side, Spec, Transport};

/// The MAC of the gateway on every port of every host: a container that finds itself on another host needs to learn nothing.
const GATEWAY: [u8; 6] = [0x02, b'r', b's', b'n', b'e', b't'];

pub struct Overlay {
    id: NetworkId,
    spec: Spec,
    /// None: only the options are asked for.
    share: Option<Share>,
}

impl Overlay {
    pub fn parse(network: &Network, options: Options) -> Result<Self, OptionError> {
        Ok(Overlay { id: network.id.clone(), spec: Spec::parse(network, options)?, share: network.share.clone() })
    }

    fn shared_plan(&self, share: &Share) -> Plan {
        let tunnel = tunnel(share);
        let homes = share.mine.homes.iter().map(|home| Object::Address { link: tunnel.clone(), address: IpNet::from(*home) });
        let nowhere = self.spec.sides.iter().map(|side| nowhere(side.subnet));
        let peers = share.others().flat_map(|peer| self.towards(share, peer, &tunnel));
        Plan::new(
            [self.link(share)].into_iter().chain(homes).chain(nowhere).chain(peers),
            self.entries().chain(self.members(share)).chain(self.paths(share)),
        )
    }

    fn link(&self, share: &Share) -> Object {
        Object::Link(Link {
            name: tunnel(share),
            alias: format!("rsnet:{}", self.id),
            kind: LinkKind::Vxlan { vni: share.vni, local: share.mine.vtep, port: self.spec.port },
            mac: Some(share.mine.mac),
            mtu: Some(self.mtu(share)),
        })
    }

    /// A row for each thing that is known of a peer, none for its containers.
    fn towards(&self, share: &Share, peer: &Member, tunnel: &IfName) -> Vec<Object> {
        let neighbours = peer.homes.iter().map(|home| Object::Neighbour { link: tunnel.clone(), address: *home, mac: peer.mac });
        let forwarding = Object::Fdb { link: tunnel.clone(), mac: peer.mac, vtep: peer.vtep };
        let routes = peer.blocks.iter().filter_map(|block| {
            let (link, via) = self.way_to(share, peer, *block, tunnel)?;
            Some(route(*block, link, Some(via), home(share, block.addr())))
        });
        neighbours.chain([forwarding]).chain(routes).collect()
    }

    /// The link and the next hop to a block of a peer's: the peer itself where it is on this host's segment and that will do, else its end of
    /// the tunnel, if there may be one.
    fn way_to<'s>(&self, share: &'s Share, peer: &Member, block: IpNet, tunnel: &'s IfName) -> Option<(&'s IfName, IpAddr)> {
        let beside = |on_link: &&OnLink| on_link.subnet.contains(&peer.vtep) && family_of(block.addr()) == family_of(peer.vtep);
        let plain = share.on_link.as_ref().filter(beside).map(|on_link| (&on_link.link, peer.vtep));
        let tunneled = || Some((tunnel, of_family(&peer.homes, block.addr())?));
        match self.spec.transport {
            Transport::Vxlan => tunneled(),
            Transport::Direct => plain,
            Transport::Auto => plain.or_else(tunneled),
        }
    }

    /// Peers that the network has no way to.
    fn cut_off<'s>(&'s self, share: &'s Share) -> impl Iterator<Item = String> + 's {
        let none = |peer: &&Member| peer.blocks.iter().any(|block| self.way_to(share, peer, *block, &tunnel(share)).is_none());
        let warning = |Member { host, vtep, .. }: &Member| {
            format!(
                "host {host} ({vtep}) is not on this host's segment, and with transport=direct there is no way to its containers; make the network with transport=auto"
            )
        };
        let direct = self.spec.transport == Transport::Direct;
        share.others().filter(move |_| direct).filter(none).map(warning)
    }

    /// What a tunnel puts around a packet must fit in as well.
    fn mtu(&self, share: &Share) -> u32 {
        let around = match self.spec.transport {
            Transport::Direct => 0,
            _ => share.around(),
        };
        self.spec.mtu.unwrap_or_else(|| share.mtu.saturating_sub(around).max(self.spec.least_mtu()))
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        self.spec.sides.iter().flat_map(|side| self.side_entries(side))
    }

    /// Who may send by the tunnel: the other hosts that have something of the network.
    fn members(&self, share: &Share) -> impl Iterator<Item = Entry> {
        let (port, vni) = (self.spec.port, share.vni);
        let peers = share.others().map(move |peer| Entry::Member { vtep: peer.vtep, port, vni });
        [Entry::Tunnel { port, vni }].into_iter().chain(peers)
    }

    fn side_entries(&self, side: &Side) -> impl Iterator<Item = Entry> {
        let (family, zone) = (family_of(side.subnet.addr()), || Zone::Subnet(side.subnet));
        let masquerade = self.spec.masquerade && !self.spec.internal;
        [
            Some(Entry::Inner { zone: zone() }),
            (self.spec.transport != Transport::Vxlan).then_some(Entry::Direct { subnet: side.subnet }),
            Some(Entry::Enter { zone: zone(), family, rule: Inbound::Closed }),
            self.spec.internal.then(|| Entry::Internal { zone: zone() }),
            masquerade.then(|| Entry::Masquerade { zone: zone(), family }),
        ]
        .into_iter()
        .flatten()
    }

    fn attachment(&self, endpoint: &Endpoint, share: &Share) -> Option<Object> {
        Some(Object::Attachment(Attachment {
            host: endpoint.host_link(),
            alias: format!("rsnet:{}", endpoint.id),
            kind: AttachmentKind::Veth { peer: endpoint.container_link(), router: Some(Mac::from(GATEWAY)) },
            mac: endpoint.mac,
            mtu: Some(self.mtu(share)),
            place: self.spec.attach.place(endpoint, self.gateways(endpoint), self.inside(endpoint))?,
        }))
    }

    /// The gateway and the container on the port between them.
    fn port(&self, endpoint: &Endpoint, share: &Share) -> Vec<Object> {
        let port = endpoint.host_link();
        let side = |(side, address): (&Side, IpAddr)| {
            let gateway = Object::Address { link: port.clone(), address: IpNet::from(side.gateway) };
            [gateway, route(IpNet::from(address), &port, None, home(share, address))]
        };
        self.held(endpoint).flat_map(side).chain(self.loopback(endpoint)).collect()
    }

    /// Answers of what is published on 127.0.0.1 and `::1` come in by the container's port, and the kernel looks there for these addresses.
    fn loopback(&self, endpoint: &Endpoint) -> Vec<Object> {
        let targets = endpoint.bindings.iter().flat_map(|binding| self.targets(endpoint, binding.host));
        let hosts: BTreeSet<IpAddr> = targets.map(|(host, _)| host).filter(|host| host.is_loopback() || host.is_unspecified()).collect();
        let port = endpoint.host_link();
        let answered = |host: &IpAddr| match family_of(*host) {
            Family::V4 => Object::LinkSysctl { path: conf_path(Family::V4, &port, "route_localnet"), value: "1".to_owned() },
            Family::V6 => loopback_route(port.clone()),
        };
        hosts.iter().map(answered).collect()
    }

    /// The host forwards as soon as one container needs it; see `bridge`.
    fn forwarding(&self) -> impl Iterator<Item = Object> {
        self.spec.sides.iter().map(|side| forwarding(family_of(side.subnet.addr())))
    }

    /// Each of the container's addresses with its side of the network.
    fn sides<'e>(&'e self, endpoint: &'e Endpoint) -> impl Iterator<Item = (&'e Side, IpAddr)> + Clone {
        let side = |address: IpAddr| self.spec.sides.iter().find(move |side| side.subnet.contains(&address));
        endpoint.addresses.iter().filter_map(move |address| Some((side(address.addr())?, address.addr())))
    }

    /// The same of the addresses that are this host's. Another host took the others since: nothing leads to them by this container's port, and so
    /// nothing that is from them gets out of it.
    fn held<'e>(&'e self, endpoint: &'e Endpoint) -> impl Iterator<Item = (&'e Side, IpAddr)> + Clone {
        self.sides(endpoint).filter(move |(_, address)| self.share.as_ref().is_some_and(|share| share.mine.has(*address)))
    }

    fn gateways(&self, endpoint: &Endpoint) -> Vec<IpAddr> {
        let open = !self.spec.internal;
        self.sides(endpoint).filter(|_| open).map(|(side, _)| side.gateway).collect()
    }

    /// A container of this host, to the fast way.
    fn locals<'e>(&'e self, endpoint: &'e Endpoint) -> impl Iterator<Item = Entry> {
        let link = endpoint.host_link();
        self.held(endpoint).map(move |(_, address)| Entry::Local { address, link: link.clone() })
    }

    /// All that is for the subnet goes to the gateway, which is on the link: two halves are more special than the whole, which the engine
    /// takes to be on the link.
    fn inside(&self, endpoint: &Endpoint) -> Vec<StaticRoute> {
        self.sides(endpoint).flat_map(|(side, _)| side.routes()).collect()
    }

    /// Each address of the container with that of the host by which a binding leads to it.
    fn targets(&self, endpoint: &Endpoint, host: Option<IpAddr>) -> Vec<(IpAddr, IpAddr)> {
        let wanted = host.or(self.spec.host_binding);
        self.held(endpoint).filter_map(|(_, to)| Some((host_side(wanted, to)?, to))).collect()
    }
}

/// The VXLAN link of a network.
fn tunnel(share: &Share) -> IfName {
    IfName::of("rsx-", &share.vni.to_string())
}

fn of_family(addresses: &[IpAddr], like: IpAddr) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| address.is_ipv4() == like.is_ipv4())
}

/// What the host itself sends into the network is from its own address there, not from the gateway's, which every host has.
fn home(share: &Share, like: IpAddr) -> Option<IpAddr> {
    of_family(&share.mine.homes, like)
}

/// What belongs to no container and to no host must not leave by the default route.
fn nowhere(subnet: IpNet) -> Object {
    Object::Route(Route { destination: subnet, link: IfName::of("lo", ""), kind: RouteKind::Unreachable })
}

fn route(destination: IpNet, link: &IfName, via: Option<IpAddr>, source: Option<IpAddr>) -> Object {
    Object::Route(Route { destination, link: link.clone(), kind: RouteKind::Unicast { via, source } })
}

impl Mode for Overlay {
    fn network(&self) -> Plan {
        self.share.as_ref().map_or_else(Plan::default, |share| self.shared_plan(share))
    }

    fn endpoint(&self, endpoint: &Endpoint) -> Plan {
        let Some(share) = &self.share else { return Plan::default() };
        let Some(attachment) = self.attachment(endpoint, share) else { return Plan::default() };
        let host_ports = endpoint.bindings.iter().flat_map(|binding| self.host_ports(endpoint, binding)).map(Object::HostPort);
        let publish = |binding: &Binding| {
            let Binding { protocol, host_ports: ports, container_port: to_port, .. } = *binding;
            let entry = move |(host, to)| Entry::Publish { protocol, host, ports, to, to_port };
            self.targets(endpoint, binding.host).into_iter().map(entry)
        };
        let objects = [attachment].into_iter().chain(self.port(endpoint, share)).chain(self.forwarding()).chain(host_ports);
        Plan::new(objects, endpoint.bindings.iter().flat_map(publish).chain(self.locals(endpoint)))
    }

    fn join(&self, endpoint: &Endpoint) -> Join {
        Join {
            link: Some(endpoint.container_link()),
            prefix: self.spec.attach.prefix(Way::Engine),
            gateways: self.gateways(endpoint),
            routes: self.inside(endpoint),
            gateway_service: false,
        }
    }

    fn publish(&self, endpoint: &Endpoint, wanted: &[PortRequest]) -> Result<Vec<PortRequest>, String> {
        if self.spec.internal {
            return Ok(Vec::new());
        }
        all_or_none(wanted, self.spec.host_binding, |host| self.targets(endpoint, host).is_empty())
    }

    fn host_ports(&self, endpoint: &Endpoint, binding: &Binding) -> Vec<HostPort> {
        let Binding { protocol, host_ports: ports, .. } = *binding;
        self.targets(endpoint, binding.host).into_iter().map(|(host, _)| HostPort { protocol, host, ports }).collect()
    }

    fn way(&self) -> Way {
        self.spec.attach.way
    }

    fn claims(&self) -> Vec<Claim> {
        self.spec.sides.iter().map(|side| Claim::Subnet(side.subnet)).collect()
    }

    fn warnings(&self) -> Vec<String> {
        self.share.iter().flat_map(|share| self.cut_off(share)).collect()
    }

    fn without_gateway(&self) -> Vec<Family> {
        Vec::new()
    }

    fn agreement(&self) -> Option<Agreement> {
        Some(Agreement {
            subnets: self.spec.sides.iter().map(|side| side.subnet).collect(),
            reserved: self.spec.reserved.clone(),
            options: self.spec.agreed.clone(),
            segment: None,
        })
    }

    /// An address is this host's to give if it is in one of its blocks. Docker's own IPAM knows nothing of blocks.
    fn check(&self, endpoint: &Endpoint) -> Result<(), String> {
        let Some(share) = &self.share else { return Ok(()) };
        let mine = |address: &IpAddr| share.mine.has(*address) && !share.mine.homes.contains(address);
        let Some((_, address)) = self.sides(endpoint).find(|(_, address)| !mine(address)) else { return Ok(()) };
        let holder = match share.holder(address) {
            Some(peer) => format!("belongs to host {}", peer.host),
            None => "belongs to no host yet".to_owned(),
        };
        Err(format!(
            "address {address} {holder}; make the network with --ipam-driver rsnet on every host, which gives addresses of this host's own"
        ))
    }
}
