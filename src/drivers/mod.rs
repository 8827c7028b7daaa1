//! THE MODES that rsnet offers (not `driver/`, which is the API Docker calls): bridge, none, and what comes.
//!
//! Pure: a mode is a network's options, parsed, and functions from what is declared to what must exist. No I/O, no async, no clock, no
//! randomness, no state. A new mode is a new folder here, a variant of [`Kind`] and a compose example.

mod attach;
mod bridge;
mod macvlan;
mod none;
mod options;
mod overlay;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use crate::model::{
    Agreement, Binding, Endpoint, Family, HostPort, IfName, Network, Object, Plan, Protocol, Route, RouteKind, StaticRoute, Way, family_of,
};
pub use macvlan::with_sources;
pub use options::OptionError;

/// One network of one mode.
pub trait Mode: Send + Sync {
    /// What must exist on this host for the network itself.
    fn network(&self) -> Plan;
    /// What must exist for one of its endpoints, as it is declared now.
    /// Depends on nothing that [`Network::is_alike_here`] leaves out.
    fn endpoint(&self, endpoint: &Endpoint) -> Plan;
    /// What to answer when the endpoint joins a sandbox.
    fn join(&self, endpoint: &Endpoint) -> Join;
    /// What a container publishes, as far as this network does it: `Err` says what cannot be done.
    fn publish(&self, endpoint: &Endpoint, wanted: &[PortRequest]) -> Result<Vec<PortRequest>, String>;
    /// The host ports that a binding takes.
    fn host_ports(&self, endpoint: &Endpoint, binding: &Binding) -> Vec<HostPort>;
    /// How a link gets into a container where there is a choice.
    fn way(&self) -> Way;
    /// What no other network on this host may have.
    fn claims(&self) -> Vec<Claim>;
    /// Addresses that nobody else may have on the segments of these links of the host.
    fn exclusive(&self, _: &Endpoint) -> Vec<(IfName, IpAddr)> {
        Vec::new()
    }
    /// What will not work, though the network can be made.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
    /// What this host must agree on with the others of the network; none: the network is this host's alone.
    fn agreement(&self) -> Option<Agreement> {
        None
    }
    /// Whether the endpoint can be had here: `Err` says why not.
    fn check(&self, _: &Endpoint) -> Result<(), String> {
        Ok(())
    }
    /// The families whose pool needs no gateway address (engine 28.0 and newer ask).
    fn without_gateway(&self) -> Vec<Family>;
}

/// What a network needs for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    Subnet(IpNet),
    /// A link of the host's to stand on; `alone`: nobody else may.
    Parent {
        link: IfName,
        alone: bool,
    },
    /// The host reaches what is in the subnet by this link.
    Way {
        subnet: IpNet,
        link: IfName,
    },
}

impl Claim {
    /// Whether both cannot be had.
    pub fn meets(&self, other: &Claim) -> bool {
        match (self, other) {
            (Claim::Subnet(a), Claim::Subnet(b) | Claim::Way { subnet: b, .. }) | (Claim::Way { subnet: a, .. }, Claim::Subnet(b)) => {
                a.contains(b) || b.contains(a)
            }
            (Claim::Parent { link: a, alone: x }, Claim::Parent { link: b, alone: y }) => a == b && (*x || *y),
            (Claim::Way { subnet: a, link: x }, Claim::Way { subnet: b, link: y }) => x != y && (a.contains(b) || b.contains(a)),
            _ => false,
        }
    }
}

/// The answer to `Join`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Join {
    /// The link that the engine is to move, where the engine moves it; `None`: the container gets no link at all.
    pub link: Option<IfName>,
    /// What the engine puts a number behind: `eth`.
    pub prefix: String,
    pub gateways: Vec<IpAddr>,
    /// What the container reaches by other ways than the default gateway.
    pub routes: Vec<StaticRoute>,
    /// Whether the engine may add an endpoint on `docker_gwbridge` when no gateway is given.
    pub gateway_service: bool,
}

/// One published port as the user asked for it: `host_ports` is 0 for any free port, or a range to pick one from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRequest {
    pub protocol: Protocol,
    pub host: Option<IpAddr>,
    pub first: u16,
    pub last: u16,
    pub container_port: u16,
}

impl PortRequest {
    /// What cannot be had, in words; `host` is where it would be published, `nowhere` that no address of the container is of that family.
    fn refusal(&self, host: Option<IpAddr>, nowhere: bool) -> Option<String> {
        let port = format!("publish {}/{}", self.container_port, self.protocol);
        if self.container_port == 0 {
            return Some(format!("{port}: there is no port 0; name the container's port"));
        }
        let host = host.filter(|_| nowhere)?;
        let family = family_of(host);
        Some(format!(
            "{port} on {host}: the container has no {family} address on this network; publish on the other family, or give the network {family}"
        ))
    }
}

/// The address of the host by which a container's address is published: the one wanted, or every one; none if that is of the other family.
fn host_side(wanted: Option<IpAddr>, to: IpAddr) -> Option<IpAddr> {
    let host = wanted.unwrap_or_else(|| family_of(to).unspecified());
    (family_of(host) == family_of(to)).then_some(host)
}

/// All that is wanted, where each can be had. `binding`: where it is published unless the user says so; `is_nowhere` says of an address of the
/// host, or of any, that it leads to none of the container's.
fn all_or_none(
    wanted: &[PortRequest],
    binding: Option<IpAddr>,
    is_nowhere: impl Fn(Option<IpAddr>) -> bool,
) -> Result<Vec<PortRequest>, String> {
    let refusal = |request: &PortRequest| request.refusal(request.host.or(binding), is_nowhere(request.host));
    wanted.iter().find_map(refusal).map_or_else(|| Ok(wanted.to_vec()), Err)
}

/// The host forwards packets of this family.
fn forwarding(family: Family) -> Object {
    let path = match family {
        Family::V4 => "ipv4/ip_forward",
        Family::V6 => "ipv6/conf/all/forwarding",
    };
    Object::HostSysctl { path: path.to_owned(), value: "1".to_owned() }
}

/// The kernel looks up `::1` on the link a packet came by, and an answer of a port published on `[::1]` comes by this one.
fn loopback_route(link: IfName) -> Object {
    let destination = IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST));
    Object::Route(Route { destination, link, kind: RouteKind::Local })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bridge,
    Macvlan,
    None,
    Overlay,
}

const KINDS: &[(&str, Kind)] = &[("bridge", Kind::Bridge), ("macvlan", Kind::Macvlan), ("none", Kind::None), ("overlay", Kind::Overlay)];

/// Reads the options of a network; everything that is wrong with them is in the error.
pub fn open(network: &Network) -> Result<Box<dyn Mode>, OptionError> {
    let mut options = options::Options::new(&network.options);
    let kind = options.choice(&["mode"], KINDS).unwrap_or(Kind::Bridge);
    Ok(match kind {
        Kind::Bridge => Box::new(bridge::Bridge::parse(network, options)?),
        Kind::Macvlan => Box::new(macvlan::Segment::parse(network, options)?),
        Kind::None => Box::new(none::Isolated::parse(options)?),
        Kind::Overlay => Box::new(overlay::Overlay::parse(network, options)?),
    })
}

/// The links of the host that a network's options name: what they are is to be known before the options are read.
pub fn host_links(options: &BTreeMap<String, String>) -> Vec<IfName> {
    match kind_name(options) {
        "macvlan" => macvlan::host_links(options),
        _ => Vec::new(),
    }
}

/// Those of a shared network's options that must be given alike on every host.
pub fn between_hosts(options: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    match kind_name(options) {
        "overlay" => overlay::between_hosts(options),
        // a LAN is there without them: by which link, and how, a host is on it is its own affair
        mode => BTreeMap::from([("mode".to_owned(), mode.to_owned())]),
    }
}

/// The name of the mode that a network's options ask for, for people.
pub fn kind_name(options: &BTreeMap<String, String>) -> &str {
    options.get("mode").map_or("bridge", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a mode says of an option that has a value which is none.
    fn said(mode: &str, option: &str) -> String {
        let mut given = BTreeMap::from([("mode".to_owned(), mode.to_owned())]);
        given.insert(option.to_owned(), "\u{1}".to_owned());
        let id = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let pool =
            crate::model::Pool { space: String::new(), subnet: "10.5.0.0/16".parse().unwrap(), gateway: None, auxiliary: BTreeMap::new() };
        let network = Network {
            id,
            options: given,
            ipv4: true,
            ipv6: false,
            internal: false,
            pools: vec![pool],
            host_mtu: 1500,
            host_without_ipv6: false,
            host_way: Way::Engine,
            host_links: BTreeMap::new(),
            ranges: None,
            share: None,
        };
        open(&network).err().map(|error| error.to_string()).unwrap_or_default()
    }

    /// Each mode knows the options that docs/options.md says it knows, under both names, and no others of them.
    #[test]
    fn the_page_of_options_is_true() {
        let page = include_str!("../../docs/options.md");
        let rows: Vec<Vec<&str>> = page.lines().filter(|line| line.starts_with("| `")).map(|line| line.split(" | ").collect()).collect();
        assert!(rows.len() > 20, "{rows:?}");
        for row in rows {
            let modes: Vec<&str> = row[2].split(", ").collect();
            for name in row[..2].iter().map(|cell| cell.trim_matches(['|', ' ', '`'])).filter(|name| *name != "–") {
                for (mode, _) in KINDS {
                    let said = said(mode, name);
                    let known = !said.contains(&format!("option {name}=\u{1} is unknown"));
                    assert_eq!(known, modes.contains(mode), "{name} in mode {mode}: {said:?}");
                }
            }
        }
    }
}
