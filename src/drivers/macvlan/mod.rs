//! Mode `macvlan`: containers as stations of their own on the segment of one of the host's links, its parent.
//!
//! A frame's way: container → its macvlan → parent → segment. The host forwards nothing and filters nothing; it is not a party.

mod spec;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use ipnet::IpNet;

use super::options::Options;
use super::{Join, Mode, OptionError, PortRequest};
use crate::model::{Attachment, AttachmentKind, Binding, Endpoint, Family, HostPort, Macvlan, Network, Object, Plan, Way};
use spec::Spec;

pub struct Segment {
    spec: Spec,
}

impl Segment {
    pub fn parse(network: &Network, options: Options) -> Result<Self, OptionError> {
        Ok(Segment { spec: Spec::parse(network, options)? })
    }

    fn attachment(&self, endpoint: &Endpoint) -> Option<Object> {
        let Spec { parent, mode, sources, .. } = &self.spec;
        Some(Object::Attachment(Attachment {
            host: endpoint.host_link(),
            alias: format!("rsnet:{}", endpoint.id),
            kind: AttachmentKind::Macvlan(Macvlan { parent: parent.clone(), mode: *mode, sources: sources.clone() }),
            mac: endpoint.mac,
            mtu: self.spec.mtu.unwrap_or(0),
            place: self.spec.attach.place(endpoint, self.gateways(endpoint))?,
        }))
    }

    /// Those of the subnets that the endpoint has an address in.
    fn gateways(&self, endpoint: &Endpoint) -> Vec<IpAddr> {
        if self.spec.internal {
            return Vec::new();
        }
        let of = |address: &IpNet| self.spec.pools.iter().find(|pool| pool.subnet.contains(&address.addr()))?.gateway;
        endpoint.addresses.iter().filter_map(of).collect()
    }
}

impl Mode for Segment {
    fn network(&self) -> Plan {
        Plan::default()
    }

    fn endpoint(&self, endpoint: &Endpoint) -> Plan {
        Plan::new(self.attachment(endpoint), [])
    }

    fn join(&self, endpoint: &Endpoint) -> Join {
        Join {
            link: Some(endpoint.host_link()),
            prefix: self.spec.attach.prefix(Way::Engine),
            gateways: self.gateways(endpoint),
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

    /// None: the subnet is the LAN's, on which the host and other networks are too.
    fn claims(&self) -> Vec<IpNet> {
        Vec::new()
    }

    /// The gateway is a router of the LAN, known by the user or not there.
    fn without_gateway(&self) -> Vec<Family> {
        vec![Family::V4, Family::V6]
    }
}
