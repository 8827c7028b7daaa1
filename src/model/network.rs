//! What Docker declared here: networks and their endpoints. This, and nothing derived from it, is what the store keeps.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{EndpointId, IfName, Mac, NetworkId, PortRange, Protocol, Share};

/// A network as `CreateNetwork` declared it, with what the host decided at that moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    /// The `-o` options, as typed. The mode parses them.
    pub options: BTreeMap<String, String>,
    /// `--ipv4`; engines before 28.0 always have it on.
    pub ipv4: bool,
    pub ipv6: bool,
    pub internal: bool,
    pub pools: Vec<Pool>,
    /// The MTU of the host's default route when the network was made, in bytes: the default for the network's own.
    pub host_mtu: u32,
    /// Whether the host's kernel had no IPv6 when the network was made.
    #[serde(default)]
    pub host_without_ipv6: bool,
    /// The daemon's way in when the network was made: the default for the network's own.
    pub host_way: Way,
    /// The links of the host that the options name, as far as they existed when the network was made.
    #[serde(default)]
    pub host_links: BTreeMap<IfName, HostLink>,
    /// The parts of its subnets that rsnet's IPAM gives addresses of; none: another IPAM does, or they are those of one link of this host.
    #[serde(default)]
    pub ranges: Option<Vec<IpNet>>,
    /// What this host last heard of the network, if others have it too.
    #[serde(default)]
    pub share: Option<Share>,
}

/// A link of the host's, as it is at a moment. The default is one that will do for everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostLink {
    /// Why it takes no macvlan children, in words.
    pub refusal: Option<String>,
    /// It is down, or nothing is at its other end.
    pub dead: bool,
    /// Wi-Fi.
    pub wireless: bool,
    /// Its own addresses, link-local ones left out.
    pub addresses: Vec<IpAddr>,
    /// It is rsnet's, made for the network of this id.
    pub made_for: Option<String>,
}

impl Network {
    /// The least MTU that its families allow, in bytes (RFC 791, RFC 8200).
    pub fn least_mtu(&self) -> u32 {
        if self.ipv6 { 1280 } else { 68 }
    }

    /// The address spaces of its pools, where they are known.
    pub fn spaces(&self) -> impl Iterator<Item = &str> {
        self.pools.iter().map(|pool| pool.space.as_str()).filter(|space| !space.is_empty())
    }

    /// Whether all is the same that the plan of a container may depend on: not who the network's other hosts are, nor whose which block is, but for
    /// the blocks that a container's own addresses are in.
    pub fn is_alike_here(&self, other: &Network) -> bool {
        let here = |network: &Network| Network { share: network.share.as_ref().map(Share::here), ..network.clone() };
        here(self) == here(other)
    }
}

/// One subnet of a network; the engine's `IPAMData`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The IPAM driver's name for where it is from: `LocalDefault`, `rsnet-local` …. Empty in records of earlier versions.
    #[serde(default)]
    pub space: String,
    pub subnet: IpNet,
    pub gateway: Option<IpAddr>,
    pub auxiliary: BTreeMap<String, IpAddr>,
}

/// How a link gets into a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// The engine moves it: works on every engine, names are `eth0` …
    #[default]
    Engine,
    /// rsnet makes it straight in the sandbox (engine 28.0 and newer), without the grace periods of a move.
    Direct,
}

/// An endpoint as `CreateEndpoint` declared it and later calls changed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub id: EndpointId,
    pub network: NetworkId,
    /// At most one of each family, with the pool's prefix length.
    pub addresses: Vec<IpNet>,
    pub mac: Mac,
    /// Whether a user chose the MAC.
    #[serde(default)]
    pub mac_given: bool,
    /// The name a user asked for inside the container (`interface_name` of compose, engine 28.1 and newer).
    pub interface_name: Option<IfName>,
    /// `NAME=VALUE` pairs of `com.docker.network.endpoint.sysctls`, with `IFNAME` for the link's name (engine 27.0.1 and newer).
    pub sysctls: Vec<(String, String)>,
    pub attached: Attached,
    /// What is published, with the host's ports chosen; empty unless the endpoint is the container's gateway.
    pub bindings: Vec<Binding>,
}

/// Where the endpoint's link is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attached {
    /// Before `Join`; where rsnet made the link in the sandbox, also after `Leave`.
    #[default]
    No,
    /// `Join` is being answered: what the engine will do, rsnet must not. Never stored.
    Joining(Sandbox),
    /// In the container's namespace, or on its way there or back.
    Joined(Sandbox),
}

/// A container's network namespace, and who puts links into it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// `/var/run/docker/netns/…`; up to engine 27 not a namespace before the container runs.
    pub path: PathBuf,
    pub way: Way,
}

/// One published range: `count` ports of the host from `host_ports.first` lead to as many of the container from `container_port`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Binding {
    pub protocol: Protocol,
    /// The host address the user gave with `-p`, if any.
    pub host: Option<IpAddr>,
    pub host_ports: PortRange,
    pub container_port: u16,
}

impl Binding {
    /// Neighbouring bindings as one: a thousand `-p` flags of a range are one entry for the kernel.
    pub fn merge(mut bindings: Vec<Binding>) -> Vec<Binding> {
        bindings.sort();
        bindings.dedup();
        let mut merged: Vec<Binding> = Vec::new();
        for next in bindings {
            match merged.last_mut() {
                Some(last) if last.continues_in(&next) => last.host_ports.last = next.host_ports.last,
                _ => merged.push(next),
            }
        }
        merged
    }

    /// The container's side of the range.
    pub fn container_ports(&self) -> PortRange {
        let beyond = self.host_ports.last - self.host_ports.first;
        PortRange::new(self.container_port, self.container_port.saturating_add(beyond))
    }

    fn continues_in(&self, next: &Binding) -> bool {
        let same = (self.protocol, self.host) == (next.protocol, next.host);
        let length = u32::from(self.host_ports.last - self.host_ports.first) + 1;
        same && u32::from(self.host_ports.first) + length == u32::from(next.host_ports.first)
            && u32::from(self.container_port) + length == u32::from(next.container_port)
    }
}

impl Endpoint {
    /// The name of the host's end of its link: always this, so that a fresh process knows its own.
    pub fn host_link(&self) -> IfName {
        IfName::of("rsv-", self.id.as_str())
    }

    /// The name of the container's end while it is in the host's namespace.
    pub fn container_link(&self) -> IfName {
        IfName::of("rsc-", self.id.as_str())
    }
}
