//! Mode `bridge`: a Linux bridge per network, the host as its gateway, NAT or routes to the world, published ports without a proxy.
//!
//! A packet's way out: container → veth → bridge (its gateway) → FORWARD, where `Enter` and `Internal` decide → masquerade. A packet's way in
//! to a published port: PREROUTING, where `Publish` translates → FORWARD, where a translated flow is accepted → bridge → container.

mod spec;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use super::options::Options;
use super::{Claim, Join, Mode, OptionError, PortRequest, all_or_none, forwarding, host_side, loopback_route};
use crate::model::{
    Attachment, AttachmentKind, Binding, Endpoint, Entry, Family, HostPort, Inbound, Link, LinkKind, Network, NetworkId, Object, Plan,
    Port, Way, Zone, conf_path, family_of,
};
use spec::{GatewayMode, Publisher, Side, Spec};

pub struct Bridge {
    id: NetworkId,
    spec: Spec,
}

impl Bridge {
    pub fn parse(network: &Network, options: Options) -> Result<Self, OptionError> {
        Ok(Bridge { id: network.id.clone(), spec: Spec::parse(network, options)? })
    }

    fn link(&self) -> Object {
        let alias = format!("rsnet:{}", self.id);
        Object::Link(Link {
            name: self.spec.bridge.clone(),
            alias,
            kind: LinkKind::Bridge,
            mac: Some(self.id.mac()),
            mtu: Some(self.spec.mtu),
        })
    }

    /// The host forwards as soon as one container has a way out; not earlier, since an engine that finds forwarding on at its start takes
    /// it for the user's wish and leaves the policy of FORWARD open.
    fn forwarding(&self) -> impl Iterator<Item = Object> {
        let open = move |side: &&Side| !self.spec.internal && side.subnet.is_some();
        self.spec.sides().into_iter().filter(open).map(|side| forwarding(side.family))
    }

    /// `route_localnet`: answers of ports published on 127.0.0.1 come in by the bridge. No router on the segment configures the host, and
    /// where the network has no IPv6, or none on the host, the host has none there either.
    fn sysctls(&self) -> impl Iterator<Item = Object> {
        let wanted = [
            (Family::V4, "route_localnet", self.spec.ipv4.host.is_some() && !self.spec.internal),
            (Family::V6, "accept_ra", false),
            (Family::V6, "disable_ipv6", self.spec.ipv6.host.is_none()),
        ];
        let there = |family| family == Family::V4 || !self.spec.without_ipv6;
        wanted.into_iter().filter(move |(family, ..)| there(*family)).map(|(family, name, on)| Object::LinkSysctl {
            path: conf_path(family, &self.spec.bridge, name),
            value: u8::from(on).to_string(),
        })
    }

    fn addresses(&self) -> impl Iterator<Item = Object> {
        self.spec
            .sides()
            .into_iter()
            .filter_map(|side| side.host)
            .map(|address| Object::Address { link: self.spec.bridge.clone(), address })
    }

    fn loopback_route(&self) -> Option<Object> {
        self.spec.ipv6.host.filter(|_| !self.spec.internal).map(|_| loopback_route(self.spec.bridge.clone()))
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        let link = || self.spec.bridge.clone();
        let zone = || Zone::Link(link());
        let trusted = self.spec.trusted.iter().map(move |from| Entry::Trusted { from: from.clone(), to: link() });
        [
            Some(Entry::Segment { link: link() }),
            self.spec.icc.then(|| Entry::Inner { zone: zone() }),
            self.spec.internal.then(|| Entry::Internal { zone: zone() }),
        ]
        .into_iter()
        .flatten()
        .chain(trusted)
        .chain(self.spec.sides().into_iter().flat_map(|side| self.side_entries(side)))
    }

    fn side_entries(&self, side: &Side) -> impl Iterator<Item = Entry> {
        let (link, family) = (self.spec.bridge.clone(), side.family);
        let zone = Zone::Link(link.clone());
        let rule = match side.mode {
            _ if side.subnet.is_none() => Inbound::Closed,
            GatewayMode::Nat | GatewayMode::Isolated => Inbound::Closed,
            GatewayMode::NatUnprotected => Inbound::Anything,
            GatewayMode::Routed => Inbound::Opened,
        };
        let translated = side.translates() && side.subnet.is_some() && self.spec.masquerade && !self.spec.internal;
        let leaving = translated.then(|| match side.source {
            Some(source) => Entry::SourceNat { link, source },
            None => Entry::Masquerade { zone: zone.clone(), family },
        });
        [Some(Entry::Enter { zone, family, rule }), leaving].into_iter().flatten()
    }

    fn attachment(&self, endpoint: &Endpoint) -> Option<Object> {
        Some(Object::Attachment(Attachment {
            host: endpoint.host_link(),
            alias: format!("rsnet:{}", endpoint.id),
            kind: AttachmentKind::Veth { peer: endpoint.container_link(), router: None },
            mac: endpoint.mac,
            mtu: Some(self.spec.mtu),
            place: self.spec.attach.place(endpoint, self.gateways(endpoint), Vec::new())?,
        }))
    }

    /// A container with published ports may meet itself: its frame then leaves by the port it came in.
    fn port(&self, endpoint: &Endpoint) -> Object {
        Object::Port(Port {
            link: endpoint.host_link(),
            bridge: self.spec.bridge.clone(),
            isolated: !self.spec.icc,
            hairpin: !endpoint.bindings.is_empty(),
        })
    }

    fn gateways(&self, endpoint: &Endpoint) -> Vec<IpAddr> {
        if self.spec.internal || self.spec.publisher == Publisher::Engine {
            return Vec::new();
        }
        endpoint.addresses.iter().filter_map(|address| self.spec.side(family_of(address.addr())).gateway).collect()
    }

    /// Each address of the container with the side of the host that a binding to it takes.
    fn targets<'e>(&'e self, endpoint: &'e Endpoint, host: Option<IpAddr>) -> impl Iterator<Item = (IpAddr, &'e Side, IpAddr)> {
        let wanted = host.or(self.spec.host_binding);
        endpoint.addresses.iter().filter_map(move |address| {
            let to = address.addr();
            Some((host_side(wanted, to)?, self.spec.side(family_of(to)), to))
        })
    }

    fn binding_entries<'e>(&'e self, endpoint: &'e Endpoint, binding: &'e Binding) -> impl Iterator<Item = Entry> + 'e {
        let protocol = binding.protocol;
        self.targets(endpoint, binding.host).map(move |(host, side, to)| {
            if side.translates() {
                Entry::Publish { protocol, host, ports: binding.host_ports, to, to_port: binding.container_port }
            } else {
                Entry::Open { protocol, to, ports: binding.container_ports() }
            }
        })
    }
}

impl Side {
    fn translates(&self) -> bool {
        matches!(self.mode, GatewayMode::Nat | GatewayMode::NatUnprotected)
    }
}

impl Mode for Bridge {
    fn network(&self) -> Plan {
        let objects = [self.link()].into_iter().chain(self.sysctls()).chain(self.addresses()).chain(self.loopback_route());
        Plan::new(objects, self.entries())
    }

    fn endpoint(&self, endpoint: &Endpoint) -> Plan {
        let Some(attachment) = self.attachment(endpoint) else { return Plan::default() };
        let host_ports = endpoint.bindings.iter().flat_map(|binding| self.host_ports(endpoint, binding)).map(Object::HostPort);
        let entries = endpoint.bindings.iter().flat_map(|binding| self.binding_entries(endpoint, binding));
        Plan::new([attachment, self.port(endpoint)].into_iter().chain(self.forwarding()).chain(host_ports), entries)
    }

    fn join(&self, endpoint: &Endpoint) -> Join {
        Join {
            link: Some(endpoint.container_link()),
            prefix: self.spec.attach.prefix(Way::Engine),
            gateways: self.gateways(endpoint),
            routes: Vec::new(),
            gateway_service: self.spec.publisher == Publisher::Engine && !self.spec.internal,
        }
    }

    fn publish(&self, endpoint: &Endpoint, wanted: &[PortRequest]) -> Result<Vec<PortRequest>, String> {
        if self.spec.internal || self.spec.publisher == Publisher::Engine {
            return Ok(Vec::new());
        }
        all_or_none(wanted, self.spec.host_binding, |host| self.targets(endpoint, host).next().is_none())
    }

    fn host_ports(&self, endpoint: &Endpoint, binding: &Binding) -> Vec<HostPort> {
        let translated = self.targets(endpoint, binding.host).filter(|(_, side, _)| side.translates());
        translated.map(|(host, ..)| HostPort { protocol: binding.protocol, host, ports: binding.host_ports }).collect()
    }

    fn way(&self) -> Way {
        self.spec.attach.way
    }

    fn claims(&self) -> Vec<Claim> {
        self.spec.sides().into_iter().filter_map(|side| side.subnet).map(|subnet| Claim::Subnet(subnet.trunc())).collect()
    }

    fn without_gateway(&self) -> Vec<Family> {
        self.spec.sides().into_iter().filter(|side| side.mode == GatewayMode::Isolated).map(|side| side.family).collect()
    }
}
