//! How a link gets into a container: the same for every mode that makes one.

use std::net::IpAddr;

use super::options::Options;
use crate::model::{Attached, Endpoint, IfName, Network, Place, SandboxName, StaticRoute, Way};

/// What a network's options say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    pub way: Way,
    /// What a container's interface is called before its number; by default `eth`, or `net` where rsnet makes the link itself.
    prefix: Option<String>,
}

impl Attach {
    pub fn parse(network: &Network, options: &mut Options) -> Self {
        Attach {
            way: options.choice(&["attach"], &[("engine", Way::Engine), ("direct", Way::Direct)]).unwrap_or(network.host_way),
            prefix: options.read(&["com.docker.network.container_iface_prefix", "interface_prefix"], "1 to 11 letters", prefix),
        }
    }

    /// What the engine puts a number behind.
    pub fn prefix(&self, way: Way) -> String {
        let default = match way {
            Way::Engine => "eth",
            Way::Direct => "net",
        };
        self.prefix.clone().unwrap_or_else(|| default.to_owned())
    }

    /// While `Join` is being answered the engine will move the link, or will set gateways, and routes by a next hop, on one made in the sandbox. A link that was
    /// lost later gets there again without the engine.
    pub fn place(&self, endpoint: &Endpoint, gateways: Vec<IpAddr>, mut routes: Vec<StaticRoute>) -> Option<Place> {
        let (sandbox, gateways) = match &endpoint.attached {
            Attached::No => return None,
            Attached::Joining(sandbox) if sandbox.way == Way::Engine => return Some(Place::Host),
            Attached::Joining(sandbox) => {
                routes.retain(|route| route.via.is_none());
                (sandbox, Vec::new())
            }
            Attached::Joined(sandbox) => (sandbox, gateways),
        };
        Some(Place::Sandbox {
            path: sandbox.path.clone(),
            name: match &endpoint.interface_name {
                Some(name) => SandboxName::Exact(name.clone()),
                None => SandboxName::Prefix(self.prefix(sandbox.way)),
            },
            addresses: endpoint.addresses.clone(),
            sysctls: endpoint.sysctls.clone(),
            gateways,
            routes,
        })
    }
}

/// A prefix leaves room for a number of four digits.
fn prefix(value: &str) -> Option<String> {
    let name: IfName = value.parse().ok()?;
    (name.as_str().len() <= 11).then(|| value.to_owned())
}
