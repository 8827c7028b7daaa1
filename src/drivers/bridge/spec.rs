//! The options of a bridge network, under Docker's names and short ones.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::drivers::attach::Attach;
use crate::drivers::options::{OptionError, Options};
use crate::model::{Family, IfName, Network, Pool, family_of};

/// A bridge network as its options describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub bridge: IfName,
    /// Bytes.
    pub mtu: u32,
    /// The host has no IPv6 that could be switched off.
    pub without_ipv6: bool,
    pub icc: bool,
    pub internal: bool,
    pub masquerade: bool,
    pub ipv4: Side,
    pub ipv6: Side,
    /// The host address that a published port without one binds.
    pub host_binding: Option<IpAddr>,
    pub trusted: Vec<IfName>,
    pub publisher: Publisher,
    pub attach: Attach,
}

/// One address family of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    pub family: Family,
    pub subnet: Option<IpNet>,
    /// The bridge's own address.
    pub host: Option<IpNet>,
    /// What containers are told.
    pub gateway: Option<IpAddr>,
    pub mode: GatewayMode,
    /// The source of what leaves, instead of the address of the link it leaves by.
    pub source: Option<IpAddr>,
}

/// Docker's gateway modes (engine 27.0 and 28.0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayMode {
    Nat,
    NatUnprotected,
    Routed,
    Isolated,
}

/// Who publishes ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publisher {
    Rsnet,
    /// The engine, by `docker_gwbridge`: shown in `docker ps`; IPv6 comes by its proxy, and the client's address is lost.
    Engine,
}

const MODES: &[(&str, GatewayMode)] = &[
    ("nat", GatewayMode::Nat),
    ("nat-unprotected", GatewayMode::NatUnprotected),
    ("routed", GatewayMode::Routed),
    ("isolated", GatewayMode::Isolated),
];

impl Spec {
    pub fn parse(network: &Network, mut options: Options) -> Result<Self, OptionError> {
        let o = &mut options;
        let both = o.choice(&["gateway_mode"], MODES);
        let inhibit = o.flag(&["com.docker.network.bridge.inhibit_ipv4", "inhibit_ipv4"]).unwrap_or(false);
        let spec = Spec {
            bridge: o
                .value(&["com.docker.network.bridge.name", "bridge_name"], "an interface name of at most 15 bytes")
                .unwrap_or_else(|| IfName::of("rsb-", network.id.as_str())),
            mtu: o.mtu(network).unwrap_or_else(|| network.host_mtu.max(network.least_mtu())),
            icc: o.flag(&["com.docker.network.bridge.enable_icc", "icc"]).unwrap_or(true),
            internal: network.internal,
            without_ipv6: network.host_without_ipv6,
            masquerade: o.flag(&["com.docker.network.bridge.enable_ip_masquerade", "masquerade"]).unwrap_or(true),
            ipv4: side(network, Family::V4, both, inhibit, o),
            ipv6: side(network, Family::V6, both, false, o),
            host_binding: o.value(&["com.docker.network.bridge.host_binding_ipv4", "host_binding"], "an IP address of the host"),
            trusted: o
                .read(&["com.docker.network.bridge.trusted_host_interfaces", "trusted"], "interface names joined by \":\"", names)
                .unwrap_or_default(),
            publisher: o.choice(&["publish"], &[("rsnet", Publisher::Rsnet), ("engine", Publisher::Engine)]).unwrap_or(Publisher::Rsnet),
            attach: Attach::parse(network, o),
        };
        o.refuse_lost_ipv6(network);
        if o.flag(&["com.docker.network.bridge.default_bridge"]) == Some(true) {
            o.refuse("option com.docker.network.bridge.default_bridge=true is for docker0 only; leave it out");
        }
        options.finish()?;
        Ok(spec)
    }

    pub fn sides(&self) -> [&Side; 2] {
        [&self.ipv4, &self.ipv6]
    }

    pub fn side(&self, family: Family) -> &Side {
        match family {
            Family::V4 => &self.ipv4,
            Family::V6 => &self.ipv6,
        }
    }
}

fn names(value: &str) -> Option<Vec<IfName>> {
    value.split(':').map(|name| name.parse().ok()).collect()
}

fn side(network: &Network, family: Family, both: Option<GatewayMode>, inhibit: bool, options: &mut Options) -> Side {
    let (mode_names, source_names, auxiliary): (&[_], &[_], _) = match family {
        Family::V4 => (
            &["com.docker.network.bridge.gateway_mode_ipv4", "gateway_mode_ipv4"],
            &["com.docker.network.host_ipv4", "source_ipv4"],
            "DefaultGatewayIPv4",
        ),
        Family::V6 => (
            &["com.docker.network.bridge.gateway_mode_ipv6", "gateway_mode_ipv6"],
            &["com.docker.network.host_ipv6", "source_ipv6"],
            "DefaultGatewayIPv6",
        ),
    };
    let mode = options.choice(mode_names, MODES).or(both).unwrap_or(GatewayMode::Nat);
    if mode == GatewayMode::Isolated && !network.internal {
        options.refuse(format!("option {}=isolated needs --internal", mode_names[1]));
    }
    let source = options.read(source_names, &format!("an {family} address of the host"), |value| {
        value.parse().ok().filter(|address| family_of(*address) == family)
    });
    let pool = pool(network, family, options);
    let own = pool.and_then(|pool| pool.gateway);
    Side {
        family,
        subnet: pool.map(|pool| pool.subnet),
        host: own.filter(|_| !inhibit && mode != GatewayMode::Isolated).and_then(|own| within(own, pool)),
        gateway: pool.and_then(|pool| pool.auxiliary.get(auxiliary).copied()).or(own),
        mode,
        source,
    }
}

fn within(address: IpAddr, pool: Option<&Pool>) -> Option<IpNet> {
    IpNet::new(address, pool?.subnet.prefix_len()).ok()
}

/// The family's one pool; the whole family, which the `null` IPAM driver hands out, is none.
fn pool<'n>(network: &'n Network, family: Family, options: &mut Options) -> Option<&'n Pool> {
    let mut pools = network.pools.iter().filter(|pool| family_of(pool.subnet.addr()) == family && pool.subnet.prefix_len() > 0);
    let first = pools.next();
    if let (Some(first), Some(second)) = (first, pools.next()) {
        let (a, b) = (first.subnet, second.subnet);
        options.refuse(format!("subnets {a} and {b}: a bridge network has one {family} subnet; leave one --subnet out"));
    }
    first
}
