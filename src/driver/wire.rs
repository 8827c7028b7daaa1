//! What the engine sends and expects (moby `drivers/remote/api`, engines 20.10 to 29). Every key of `Options` is optional, unknown ones are
//! ignored: engines differ. `parse` makes the agent's words of it, or says what is wrong.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::agent::{self, Error, NewEndpoint, NewNetwork};
use crate::drivers::PortRequest;
use crate::model::{self, IfName, Mac, Pool, Protocol};
use crate::plugin::or_default;

/// `{}`
#[derive(Serialize)]
pub struct Empty {}

impl From<()> for Empty {
    fn from((): ()) -> Self {
        Empty {}
    }
}

#[derive(Deserialize)]
pub struct NetworkId {
    #[serde(rename = "NetworkID")]
    pub network: model::NetworkId,
}

#[derive(Deserialize)]
pub struct EndpointId {
    #[serde(rename = "NetworkID")]
    pub network: model::NetworkId,
    #[serde(rename = "EndpointID")]
    pub endpoint: model::EndpointId,
}

/// Asked before the network has an id or pools (engine 28.0 and newer).
#[derive(Deserialize)]
pub struct GwAllocCheck {
    #[serde(rename = "Options", default, deserialize_with = "or_default")]
    pub options: NetworkOptions,
}

#[derive(Deserialize)]
pub struct CreateNetwork {
    #[serde(rename = "NetworkID")]
    network: model::NetworkId,
    #[serde(rename = "Options", default, deserialize_with = "or_default")]
    options: NetworkOptions,
    #[serde(rename = "IPv4Data", default, deserialize_with = "or_default")]
    ipv4: Vec<IpamData>,
    #[serde(rename = "IPv6Data", default, deserialize_with = "or_default")]
    ipv6: Vec<IpamData>,
}

#[derive(Default, Deserialize)]
pub struct NetworkOptions {
    /// Sent from engine 28.0 on; before it IPv4 is always on.
    #[serde(rename = "com.docker.network.enable_ipv4")]
    enable_ipv4: Option<bool>,
    #[serde(rename = "com.docker.network.enable_ipv6")]
    enable_ipv6: Option<bool>,
    #[serde(rename = "com.docker.network.internal", default, deserialize_with = "or_default")]
    pub internal: bool,
    /// What was given with `-o`.
    #[serde(rename = "com.docker.network.generic", default, deserialize_with = "or_default")]
    pub generic: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct IpamData {
    #[serde(rename = "AddressSpace", default, deserialize_with = "or_default")]
    space: String,
    #[serde(rename = "Pool")]
    pool: IpNet,
    #[serde(rename = "Gateway", default, deserialize_with = "or_default")]
    gateway: String,
    #[serde(rename = "AuxAddresses", default, deserialize_with = "or_default")]
    auxiliary: BTreeMap<String, String>,
}

impl CreateNetwork {
    pub fn parse(self) -> Result<NewNetwork, Error> {
        let CreateNetwork { network, options, ipv4, ipv6 } = self;
        Ok(NewNetwork {
            id: network,
            ipv4: options.enable_ipv4.unwrap_or(true),
            ipv6: options.enable_ipv6.unwrap_or(!ipv6.is_empty()),
            internal: options.internal,
            options: options.generic,
            pools: ipv4.into_iter().chain(ipv6).map(IpamData::parse).collect::<Result<_, _>>()?,
        })
    }
}

impl IpamData {
    fn parse(self) -> Result<Pool, Error> {
        let gateway = address("gateway", &self.gateway)?.map(|gateway| gateway.addr());
        let auxiliary = self.auxiliary.into_iter().map(|(name, value)| {
            let found = address("auxiliary address", &value)?;
            found.map(|found| (name, found.addr())).ok_or_else(|| Error::Refused("an auxiliary address is empty".to_owned()))
        });
        Ok(Pool { space: self.space, subnet: self.pool.trunc(), gateway, auxiliary: auxiliary.collect::<Result<_, _>>()? })
    }
}

/// An address with its prefix length, or nothing where the engine has nothing.
fn address(what: &str, value: &str) -> Result<Option<IpNet>, Error> {
    if value.is_empty() {
        return Ok(None);
    }
    let read = value.parse().or_else(|_| value.parse::<IpAddr>().map(IpNet::from));
    read.map(Some).map_err(|_| Error::Refused(format!("{what} \"{value}\" is no IP address with a prefix length")))
}

#[derive(Deserialize)]
pub struct CreateEndpoint {
    #[serde(rename = "NetworkID")]
    network: model::NetworkId,
    #[serde(rename = "EndpointID")]
    endpoint: model::EndpointId,
    #[serde(rename = "Interface", default, deserialize_with = "or_default")]
    interface: Interface,
    #[serde(rename = "Options", default, deserialize_with = "or_default")]
    options: EndpointOptions,
}

/// Of any type in principle: the engine passes on what it is given. What publishes is left out: it comes again with
/// `ProgramExternalConnectivity`.
#[derive(Default, Deserialize)]
struct EndpointOptions {
    /// Only there if the user gave one; in base64.
    #[serde(rename = "com.docker.network.endpoint.macaddress", default)]
    mac: Value,
    #[serde(rename = "com.docker.network.endpoint.ifname", default)]
    interface_name: Value,
    #[serde(rename = "com.docker.network.endpoint.sysctls", default)]
    sysctls: Value,
}

#[derive(Default, Deserialize)]
struct Interface {
    #[serde(rename = "Address", default, deserialize_with = "or_default")]
    ipv4: String,
    #[serde(rename = "AddressIPv6", default, deserialize_with = "or_default")]
    ipv6: String,
    #[serde(rename = "MacAddress", default, deserialize_with = "or_default")]
    mac: String,
}

impl CreateEndpoint {
    pub fn parse(self) -> Result<NewEndpoint, Error> {
        let Interface { ipv4, ipv6, mac } = &self.interface;
        let addresses = [address("address", ipv4)?, address("address", ipv6)?];
        let interface_name = self.options.interface_name.as_str().map(str::parse::<IfName>).transpose()?;
        let sysctls = self.options.sysctls.as_str().map(sysctls).transpose()?.unwrap_or_default();
        Ok(NewEndpoint {
            addresses: addresses.into_iter().flatten().collect(),
            mac: if mac.is_empty() { None } else { Some(mac.parse::<Mac>()?) },
            mac_given: !self.options.mac.is_null(),
            interface_name,
            sysctls,
            id: self.endpoint,
            network: self.network,
        })
    }
}

/// `net.ipv4.conf.IFNAME.log_martians=1,net.ipv6.conf.IFNAME.…`, made paths below `/proc/sys` (engine 27.0.1 and newer). Only those of the
/// interface: the engine lets no others through either.
fn sysctls(list: &str) -> Result<Vec<(String, String)>, Error> {
    let refused = |item: &str| Error::Refused(format!("sysctl \"{item}\" is not of the form net.X.Y.IFNAME.Z=VALUE"));
    let one = |item: &str| {
        let (name, value) = item.split_once('=').ok_or_else(|| refused(item))?;
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'_');
        let parts: Vec<_> = name.split('.').collect();
        let ours = parts.len() == 5 && parts[0] == "net" && parts[3] == "IFNAME" && !parts.contains(&"");
        if plain && ours { Ok((parts.join("/"), value.to_owned())) } else { Err(refused(item)) }
    };
    list.split(',').map(one).collect()
}

#[derive(Deserialize)]
pub struct Join {
    #[serde(rename = "NetworkID")]
    pub network: model::NetworkId,
    #[serde(rename = "EndpointID")]
    pub endpoint: model::EndpointId,
    #[serde(rename = "SandboxKey", default, deserialize_with = "or_default")]
    pub sandbox_key: PathBuf,
}

/// What the container of a `Join` publishes, on whichever of its networks; what cannot be read is told where it is to be published.
pub fn ports(join: &[u8]) -> Vec<PortRequest> {
    let asked = serde_json::from_slice::<Program>(join).map(|asked| asked.options.portmap).unwrap_or_default();
    asked.iter().filter_map(|port| port.parse().ok()).collect()
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Joined {
    #[serde(skip_serializing_if = "Option::is_none")]
    interface_name: Option<InterfaceName>,
    gateway: String,
    #[serde(rename = "GatewayIPv6")]
    gateway_ipv6: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    static_routes: Vec<StaticRoute>,
    disable_gateway_service: bool,
}

/// `RouteType` 0: by the next hop; 1: the destination is on the link.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct StaticRoute {
    destination: IpNet,
    route_type: u8,
    next_hop: String,
}

impl From<model::StaticRoute> for StaticRoute {
    fn from(model::StaticRoute { destination, via }: model::StaticRoute) -> Self {
        StaticRoute { destination, route_type: via.is_none().into(), next_hop: via.map(|via| via.to_string()).unwrap_or_default() }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct InterfaceName {
    src_name: IfName,
    dst_prefix: String,
    /// Honoured by engines after 29.7.2, ignored before.
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_name: Option<IfName>,
}

impl From<agent::Joined> for Joined {
    fn from(joined: agent::Joined) -> Self {
        let agent::Joined { link, prefix, interface_name, gateways, routes, gateway_service } = joined;
        let gateway = |v4: bool| gateways.iter().find(|g| g.is_ipv4() == v4).map(ToString::to_string).unwrap_or_default();
        Joined {
            interface_name: link.map(|src_name| InterfaceName { src_name, dst_prefix: prefix, dst_name: interface_name }),
            gateway: gateway(true),
            gateway_ipv6: gateway(false),
            static_routes: routes.into_iter().map(StaticRoute::from).collect(),
            disable_gateway_service: !gateway_service,
        }
    }
}

#[derive(Deserialize)]
pub struct Program {
    #[serde(rename = "NetworkID")]
    pub network: model::NetworkId,
    #[serde(rename = "EndpointID")]
    pub endpoint: model::EndpointId,
    #[serde(rename = "Options", default, deserialize_with = "or_default")]
    options: ProgramOptions,
}

#[derive(Default, Deserialize)]
struct ProgramOptions {
    #[serde(rename = "com.docker.network.portmap", default, deserialize_with = "or_default")]
    portmap: Vec<PortBinding>,
}

/// One `-p`; `HostPort` 0: any, `HostPortEnd` above `HostPort`: one of a range.
#[derive(Deserialize)]
struct PortBinding {
    #[serde(rename = "Proto")]
    protocol: u8,
    #[serde(rename = "Port")]
    port: u16,
    #[serde(rename = "HostIP", default, deserialize_with = "or_default")]
    host: String,
    #[serde(rename = "HostPort", default, deserialize_with = "or_default")]
    first: u16,
    #[serde(rename = "HostPortEnd", default, deserialize_with = "or_default")]
    last: u16,
}

impl Program {
    pub fn ports(&self) -> Result<Vec<PortRequest>, Error> {
        self.options.portmap.iter().map(PortBinding::parse).collect()
    }
}

impl PortBinding {
    fn parse(&self) -> Result<PortRequest, Error> {
        let unknown = || Error::Refused(format!("publish port {}: protocol {} is none of tcp, udp, sctp", self.port, self.protocol));
        Ok(PortRequest {
            protocol: Protocol::from_number(self.protocol).ok_or_else(unknown)?,
            host: address("host address", &self.host)?.map(|host| host.addr()),
            first: self.first,
            last: self.last,
            container_port: self.port,
        })
    }
}
