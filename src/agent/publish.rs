//! Published ports: choosing the host's, and who has them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::state::Known;
use super::twins::at;
use super::{Agent, Error};
use crate::drivers::{Mode, PortRequest};
use crate::model::{Binding, Endpoint, EndpointId, NetworkId, PortRange};

/// Where a free port is looked for when the user leaves it to us; what the host itself gives to its connections by default.
const EPHEMERAL: PortRange = PortRange { first: 32768, last: 60999 };

/// One published range, for people.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Published {
    pub network: NetworkId,
    /// What the user calls the network, where the engine has told.
    pub network_name: Option<String>,
    pub endpoint: EndpointId,
    pub container: Vec<std::net::IpAddr>,
    #[serde(flatten)]
    pub binding: Binding,
}

impl Agent {
    /// Engine: `ProgramExternalConnectivity`, with all the ports of the container. Replaces what was published before; the engine repeats it
    /// when the container's gateway changes role.
    pub async fn publish(&self, network: &NetworkId, id: &EndpointId, wanted: &[PortRequest]) -> Result<(), Error> {
        // one at a time: two containers that leave the port to us must not be given the same one. Before the endpoint's own lock, since
        // that of a holder that has vanished may be needed too
        let _choosing = self.locks.hold("ports").await;
        let _held = self.locks.hold(id.as_str()).await;
        let known = self.known(network, id)?;
        let mode = self.mode(network)?;
        let mut endpoint = known.endpoint;
        endpoint.bindings.clear();
        for request in mode.publish(&endpoint, wanted).map_err(Error::Refused)? {
            let binding = self.choose(&*mode, &endpoint, &request).await?;
            endpoint.bindings.push(binding);
        }
        endpoint.bindings = Binding::merge(std::mem::take(&mut endpoint.bindings));
        let published: Vec<String> = endpoint.bindings.iter().map(|one| format!("{}/{}", one.host_ports, one.protocol)).collect();
        self.declare(endpoint, known.presence).await?;
        info!(%network, endpoint = %id, ports = published.join(" "), "ports published");
        Ok(())
    }

    /// Engine: `RevokeExternalConnectivity`; unknown ones have nothing published.
    pub async fn unpublish(&self, network: &NetworkId, id: &EndpointId) -> Result<(), Error> {
        let _held = self.locks.hold(id.as_str()).await;
        let Some(mut known) = self.state.lock().endpoint(network, id) else { return Ok(()) };
        known.endpoint.bindings.clear();
        self.reduce(known.endpoint, known.presence).await
    }

    /// Says in the log what a network cannot publish of a container that has just joined. An engine from 28.0 on that was given no gateway by
    /// the network does not come with [`Agent::publish`], and the user would hear nothing.
    pub fn warn_of_ports(&self, network: &NetworkId, id: &EndpointId, wanted: &[PortRequest]) {
        let (Some(mode), Some(known)) = ({ self.state.lock().mode(network) }, { self.state.lock().endpoint(network, id) }) else { return };
        if let Err(problem) = mode.publish(&known.endpoint, wanted) {
            warn!(network = self.names.show(network), endpoint = %id, "{problem}; -p counts on another network of the container only");
        }
    }

    /// All that is published on this host.
    pub fn published(&self) -> Vec<Published> {
        let state = self.state.lock();
        let each = |endpoint: &Endpoint| {
            let container: Vec<_> = endpoint.addresses.iter().map(|address| address.addr()).collect();
            let (network, id) = (endpoint.network.clone(), endpoint.id.clone());
            let published = move |binding: &Binding| Published {
                network: network.clone(),
                network_name: self.names.of(&network),
                endpoint: id.clone(),
                container: container.clone(),
                binding: binding.clone(),
            };
            endpoint.bindings.iter().map(published).collect::<Vec<_>>()
        };
        state.endpoints().flat_map(|known| each(&known.endpoint)).collect()
    }

    /// The port the user named, or the first that is free of those that would do.
    async fn choose(&self, mode: &dyn Mode, endpoint: &Endpoint, request: &PortRequest) -> Result<Binding, Error> {
        let named = request.first != 0 && request.first >= request.last;
        if named {
            let binding = bind(request, request.first);
            self.check_published(mode, endpoint, &binding).await?;
            return Ok(binding);
        }
        let range = if request.first == 0 { EPHEMERAL } else { PortRange::new(request.first, request.last) };
        for port in candidates(range, request.first == 0) {
            let binding = bind(request, port);
            if !taken(&endpoint.bindings, &binding) && self.is_free(mode, endpoint, &binding).await {
                return Ok(binding);
            }
        }
        Err(Error::Refused(format!("publish {}/{}: no port of {range} is free on the host", request.container_port, request.protocol)))
    }

    async fn is_free(&self, mode: &dyn Mode, endpoint: &Endpoint, binding: &Binding) -> bool {
        for port in mode.host_ports(endpoint, binding) {
            if !self.kernel.is_free(port.protocol, port.host, port.ports).await {
                return false;
            }
        }
        true
    }

    /// Refuses what another endpoint has published. One whose container is gone without a word gives it back.
    async fn check_published(&self, mode: &dyn Mode, endpoint: &Endpoint, binding: &Binding) -> Result<(), Error> {
        if mode.host_ports(endpoint, binding).is_empty() {
            return Ok(());
        }
        while let Some((known, mode)) = self.holder(endpoint, binding) {
            let holder = &known.endpoint;
            if !self.has_vanished(&*mode, &known) {
                return Err(Error::Refused(format!(
                    "port {}/{} is published already, by endpoint {} of network {} ({}); choose another or remove that container",
                    binding.host_ports,
                    binding.protocol,
                    holder.id.short(),
                    self.names.show(&holder.network),
                    at(holder),
                )));
            }
            self.delete_endpoint(&holder.network, &holder.id).await?;
        }
        Ok(())
    }

    fn holder(&self, endpoint: &Endpoint, binding: &Binding) -> Option<(Known, Arc<dyn Mode>)> {
        let state = self.state.lock();
        let mut others = state.endpoints().filter(|other| other.endpoint.id != endpoint.id);
        let holder = others.find(|other| taken(&other.endpoint.bindings, binding))?;
        Some((holder.clone(), state.mode(&holder.endpoint.network)?))
    }
}

fn bind(request: &PortRequest, port: u16) -> Binding {
    let PortRequest { protocol, host, container_port, .. } = *request;
    Binding { protocol, host, host_ports: PortRange::one(port), container_port }
}

fn taken(bindings: &[Binding], wanted: &Binding) -> bool {
    let meet = |a: Option<std::net::IpAddr>, b: Option<std::net::IpAddr>| match (a, b) {
        (Some(a), Some(b)) => a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified())),
        _ => true,
    };
    bindings.iter().any(|b| b.protocol == wanted.protocol && b.host_ports.overlaps(wanted.host_ports) && meet(b.host, wanted.host))
}

/// The ports of a range, from anywhere in it where the user does not care: so that a port just freed is not given at once again.
fn candidates(range: PortRange, anywhere: bool) -> impl Iterator<Item = u16> {
    let length = range.count();
    let start = if anywhere { rand::random_range(0..length) } else { 0 };
    // an offset below the length of a range of ports fits a port
    (0..length).map(move |i| range.first + ((start + i) % length) as u16)
}
