//! Mode `macvlan`: containers as stations of their own on the segment of one of the host's links, its parent.
//!
//! A frame's way: container → its macvlan → parent → segment. The host forwards nothing and filters nothing; it is not a party. With
//! `host_access` it is one more station of the parent: it answers for its own addresses there, and has a route to each container.

mod spec;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use ipnet::IpNet;

use super::options::Options;
use super::{Claim, Join, Mode, OptionError, PortRequest};
use crate::model::{
    self, Agreement, Attachment, AttachmentKind, Binding, Endpoint, Family, HostPort, IfName, Link, LinkKind, Macvlan, MacvlanMode,
    Network, NetworkId, Object, Place, Plan, Route, RouteKind, Way, conf_path,
};
use spec::Spec;
pub use spec::{host_links, with_sources};

pub struct Segment {
    id: NetworkId,
    spec: Spec,
}

impl Segment {
    pub fn parse(network: &Network, options: Options) -> Result<Self, OptionError> {
        Ok(Segment { id: network.id.clone(), spec: Spec::parse(network, options)? })
    }

    /// A child of the parent.
    fn child(&self) -> Macvlan {
        let Spec { parent, mode, sources, .. } = &self.spec;
        Macvlan { parent: parent.clone(), mode: *mode, sources: sources.clone() }
    }

    fn attachment(&self, endpoint: &Endpoint) -> Option<Object> {
        let mut place = self.spec.attach.place(endpoint, self.gateways(endpoint), Vec::new())?;
        if let Place::Sandbox { sysctls, .. } = &mut place {
            // what the user says of his own container comes last
            sysctls.splice(0..0, self.advertisements(endpoint));
        }
        Some(Object::Attachment(Attachment {
            host: endpoint.host_link(),
            alias: format!("rsnet:{}", endpoint.id),
            kind: AttachmentKind::Macvlan(self.child()),
            mac: endpoint.mac,
            mtu: self.spec.mtu,
            place,
        }))
    }

    /// Whether the container heeds router advertisements: with IPv6 it would by default, be they a stranger's or not.
    fn advertisements(&self, endpoint: &Endpoint) -> Vec<(String, String)> {
        let with_ipv6 = endpoint.addresses.iter().any(|address| address.addr().is_ipv6());
        let settings: &[_] = match self.spec.slaac {
            // 2: also where the container forwards
            true => &[("disable_ipv6", "0"), ("autoconf", "1"), ("accept_ra", "2")],
            false if with_ipv6 => &[("accept_ra", "0")],
            false => &[],
        };
        settings.iter().map(|(name, value)| (format!("net/ipv6/conf/IFNAME/{name}"), (*value).to_owned())).collect()
    }

    /// Those of the subnets that the endpoint has an address in.
    fn gateways(&self, endpoint: &Endpoint) -> Vec<IpAddr> {
        if self.spec.internal {
            return Vec::new();
        }
        let of = |address: &IpNet| self.spec.pools.iter().find(|pool| pool.subnet.contains(&address.addr()))?.gateway;
        endpoint.addresses.iter().filter_map(of).collect()
    }

    /// The host's station among its containers.
    fn station(&self) -> IfName {
        IfName::of("rsh-", self.id.as_str())
    }

    /// It has the addresses that the host has on the parent, so that it answers for them; and only to those to whom a route leads by it,
    /// or the segment would have two answers for the host.
    fn station_objects(&self) -> impl Iterator<Item = Object> {
        let (name, alias) = (self.station(), format!("rsnet:{}", self.id));
        let link = Link { name: name.clone(), alias, kind: LinkKind::Macvlan(self.child()), mac: Some(self.id.mac()), mtu: self.spec.mtu };
        let arp_filter = Object::LinkSysctl { path: conf_path(Family::V4, &name, "arp_filter"), value: "1".to_owned() };
        let addresses = self.spec.found.addresses.iter();
        let addresses = addresses.map(move |address| Object::Address { link: name.clone(), address: IpNet::from(*address) });
        [Object::Link(link), arp_filter].into_iter().chain(addresses)
    }

    fn routes(&self, endpoint: &Endpoint) -> impl Iterator<Item = Object> {
        let hosts = endpoint.addresses.iter().map(|address| IpNet::from(address.addr()));
        hosts.map(|destination| {
            Object::Route(Route { destination, link: self.station(), kind: RouteKind::Unicast { via: None, source: None } })
        })
    }
}

impl Mode for Segment {
    fn network(&self) -> Plan {
        // a dummy takes any MTU, a VLAN its parent's
        let mtu = |link: &Link| self.spec.mtu.filter(|_| link.kind == LinkKind::Dummy);
        let made = self.spec.made.clone().map(|link| Object::Link(Link { mtu: mtu(&link), ..link }));
        let station = self.spec.host_access.then(|| self.station_objects());
        Plan::new(made.into_iter().chain(station.into_iter().flatten()), [])
    }

    fn endpoint(&self, endpoint: &Endpoint) -> Plan {
        let Some(attachment) = self.attachment(endpoint) else { return Plan::default() };
        let routes = self.spec.host_access.then(|| self.routes(endpoint));
        Plan::new(std::iter::once(attachment).chain(routes.into_iter().flatten()), [])
    }

    fn join(&self, endpoint: &Endpoint) -> Join {
        Join {
            link: Some(endpoint.host_link()),
            prefix: self.spec.attach.prefix(Way::Engine),
            gateways: self.gateways(endpoint),
            routes: Vec::new(),
            gateway_service: false,
        }
    }

    /// The host is not on the way to the container: no port of it can lead there.
    fn publish(&self, endpoint: &Endpoint, wanted: &[PortRequest]) -> Result<Vec<PortRequest>, String> {
        let Some(request) = wanted.first() else { return Ok(Vec::new()) };
        let PortRequest { protocol, container_port, .. } = request;
        let own: Vec<String> = endpoint.addresses.iter().map(|address| address.addr().to_string()).collect();
        Err(format!(
            "publish {container_port}/{protocol}: a container on a macvlan network is a station of the LAN, no port of the host leads to it; \
             leave -p out and reach it by its own address ({}), every port of it",
            own.join(", ")
        ))
    }

    fn host_ports(&self, _: &Endpoint, _: &Binding) -> Vec<HostPort> {
        Vec::new()
    }

    fn way(&self) -> Way {
        self.spec.attach.way
    }

    /// No subnet: it is the LAN's, on which the host and other networks are too.
    fn claims(&self) -> Vec<Claim> {
        let Spec { parent, pools, .. } = &self.spec;
        let alone = self.spec.mode == MacvlanMode::Passthru;
        let ways = pools.iter().filter(|_| self.spec.host_access).map(|pool| Claim::Way { subnet: pool.subnet, link: parent.clone() });
        ways.chain([Claim::Parent { link: parent.clone(), alone }]).collect()
    }

    fn exclusive(&self, endpoint: &Endpoint) -> Vec<(IfName, IpAddr)> {
        if self.spec.made.is_some() || !self.spec.probe {
            return Vec::new();
        }
        endpoint.addresses.iter().map(|address| (self.spec.parent.clone(), address.addr())).collect()
    }

    fn warnings(&self) -> Vec<String> {
        let Spec { parent, found, .. } = &self.spec;
        let dead = format!("parent {parent} is down or has no carrier: containers reach nobody until it has one");
        let no_address = format!("parent {parent} has no address: host_access=true gives containers nothing of the host to reach");
        let warnings = [(found.dead, dead), (self.spec.host_access && found.addresses.is_empty(), no_address)];
        warnings.into_iter().filter(|(holds, _)| *holds).map(|(_, warning)| warning).collect()
    }

    /// Stations of one LAN share its addresses; by which of its links a host is on it is its own affair.
    fn agreement(&self) -> Option<Agreement> {
        let Spec { pools, found, .. } = &self.spec;
        let ranges = self.spec.ranges.clone()?;
        let subnets: Vec<IpNet> = pools.iter().map(|pool| pool.subnet).collect();
        let part = |range: &&IpNet| !subnets.contains(range);
        let parts: Vec<String> = ranges.iter().filter(part).map(IpNet::to_string).collect();
        let mode = ("mode".to_owned(), "macvlan".to_owned());
        let range = ("--ip-range".to_owned(), parts.join(" and "));
        let range = Some(range).filter(|(_, parts)| !parts.is_empty());
        let reserved = pools.iter().flat_map(|pool| pool.gateway.into_iter().chain(pool.auxiliary.values().copied()));
        Some(Agreement {
            reserved: reserved.collect(),
            options: [mode].into_iter().chain(range).collect(),
            segment: Some(model::Segment { ranges, own: found.addresses.clone() }),
            subnets,
        })
    }

    /// The gateway is a router of the LAN: where the user names none there is none.
    fn without_gateway(&self) -> Vec<Family> {
        Family::BOTH.to_vec()
    }
}
