//! The options of an overlay network, under Docker's names and short ones.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::drivers::attach::Attach;
use crate::drivers::options::{OptionError, Options};
use crate::model::{Family, Network, Pool, StaticRoute, family_of};

/// An overlay network as its options describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// One of each family at most.
    pub sides: Vec<Side>,
    /// Addresses of the subnets that no container and no host gets.
    pub reserved: Vec<IpAddr>,
    /// What every host of the network must have given alike.
    pub agreed: BTreeMap<String, String>,
    pub transport: Transport,
    /// Bytes; none: what the way between the hosts has left.
    pub mtu: Option<u32>,
    /// UDP, of the tunnels.
    pub port: u16,
    pub internal: bool,
    pub masquerade: bool,
    /// The host address that a published port without one binds.
    pub host_binding: Option<IpAddr>,
    pub attach: Attach,
}

/// How packets get to another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a tunnel (RFC 7348).
    Vxlan,
    /// As they are. Only hosts on one segment can do that.
    Direct,
    /// As they are to hosts on this one's segment, in a tunnel to others.
    Auto,
}

/// One address family of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    pub subnet: IpNet,
    pub gateway: IpAddr,
}

impl Side {
    /// In a container: the gateway on the link, and the subnet by it.
    pub fn routes(&self) -> impl Iterator<Item = StaticRoute> {
        let gateway = self.gateway;
        let halves = self.subnet.subnets(self.subnet.prefix_len() + 1).into_iter().flatten();
        let halves = halves.map(move |destination| StaticRoute { destination, via: Some(gateway) });
        [StaticRoute { destination: IpNet::from(gateway), via: None }].into_iter().chain(halves)
    }
}

/// The port that IANA has for VXLAN.
const PORT: u16 = 4789;
/// Each host may have its own of these.
const LOCAL: &[&str] = &[
    "attach",
    "com.docker.network.container_iface_prefix",
    "interface_prefix",
    "com.docker.network.bridge.host_binding_ipv4",
    "host_binding",
];

impl Spec {
    pub fn parse(network: &Network, mut options: Options) -> Result<Self, OptionError> {
        let o = &mut options;
        let spec = Spec {
            sides: network.pools.iter().filter(|pool| pool.subnet.prefix_len() > 0).filter_map(|pool| side(pool, o)).collect(),
            reserved: network.pools.iter().flat_map(|pool| pool.gateway.into_iter().chain(pool.auxiliary.values().copied())).collect(),
            agreed: agreements(network),
            transport: transport(o),
            mtu: o.mtu(network),
            port: o.read(&["vxlan_port"], "a UDP port, 1 to 65535", |v| v.parse().ok().filter(|port| *port > 0)).unwrap_or(PORT),
            internal: network.internal,
            masquerade: o.flag(&["com.docker.network.bridge.enable_ip_masquerade", "masquerade"]).unwrap_or(true),
            host_binding: o.value(&["com.docker.network.bridge.host_binding_ipv4", "host_binding"], "an IP address of the host"),
            attach: Attach::parse(network, o),
        };
        spec.refuse_twins(o);
        spec.refuse_families(network, o);
        o.refuse_lost_ipv6(network);
        options.finish()?;
        Ok(spec)
    }

    /// The least that the families of the network allow (RFC 791, RFC 8200).
    pub fn least_mtu(&self) -> u32 {
        if self.sides.iter().any(|side| side.subnet.addr().is_ipv6()) { 1280 } else { 68 }
    }

    /// A packet of one family cannot be handed to a next hop of the other.
    fn refuse_families(&self, network: &Network, options: &mut Options) {
        let Some(share) = network.share.as_ref().filter(|_| self.transport == Transport::Direct) else { return };
        let vtep = share.mine.vtep;
        for side in self.sides.iter().filter(|side| family_of(side.gateway) != family_of(vtep)) {
            let subnet = side.subnet;
            options.refuse(format!(
                "transport=direct: subnet {subnet} is not of the family of this host's address {vtep}; use transport=auto"
            ));
        }
    }

    fn refuse_twins(&self, options: &mut Options) {
        for family in Family::BOTH {
            let of_family: Vec<_> = self.sides.iter().filter(|side| family_of(side.gateway) == family).collect();
            if let [first, second, ..] = of_family[..] {
                let (a, b) = (first.subnet, second.subnet);
                options.refuse(format!("subnets {a} and {b}: an overlay network has one {family} subnet; leave one --subnet out"));
            }
        }
    }
}

/// What must be given alike on every host.
pub fn between_hosts(options: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut agreed = options.clone();
    agreed.retain(|name, _| !LOCAL.contains(&name.as_str()));
    agreed
}

/// `--internal` is agreed on as if it were an option.
fn agreements(network: &Network) -> BTreeMap<String, String> {
    let mut agreed = between_hosts(&network.options);
    agreed.insert("internal".to_owned(), network.internal.to_string());
    agreed
}

fn transport(options: &mut Options) -> Transport {
    let known = |value: &str| match value {
        "vxlan" => Some(Transport::Vxlan),
        "direct" => Some(Transport::Direct),
        "auto" => Some(Transport::Auto),
        _ => None,
    };
    options.read(&["transport"], "vxlan, direct or auto", known).unwrap_or(Transport::Vxlan)
}

fn side(pool: &Pool, options: &mut Options) -> Option<Side> {
    let subnet = pool.subnet.trunc();
    let room = subnet.max_prefix_len() - subnet.prefix_len();
    if room < 3 {
        options.refuse(format!("subnet {subnet} is too small for blocks of several hosts; give a --subnet of at least eight addresses"));
    }
    if pool.gateway.is_none() {
        options.refuse(format!(
            "subnet {subnet} has no gateway, by which containers reach each other; give --gateway, or an IPAM driver that chooses one"
        ));
    }
    Some(Side { subnet, gateway: pool.gateway? })
}
