//! Twins: two containers with one MAC on one segment. Their frames would go to either. Of this host's it is known which have which; those of
//! other hosts are asked for by the store, where hosts share the addresses of the segment and a user chose the MAC.

use super::state::Known;
use super::{Agent, Error};
use crate::drivers::{Claim, Mode};
use crate::model::{Attached, Endpoint, IfName};

impl Agent {
    /// Refuses an endpoint whose MAC a container on the same parent has. One that is gone without a word makes way.
    pub(super) async fn refuse_twins(&self, endpoint: &Endpoint) -> Result<(), Error> {
        let mode = self.state.lock().mode(&endpoint.network);
        let Some(parent) = mode.as_deref().and_then(parent) else { return Ok(()) };
        while let Some((twin, lost)) = self.twin(endpoint, &parent) {
            let held = &twin.endpoint;
            if !lost {
                return Err(Error::Refused(format!(
                    "MAC {} is in use on {parent} by endpoint {} of network {} ({}); give another --mac-address or remove that container",
                    held.mac,
                    held.id.short(),
                    self.names.show(&held.network),
                    at(held),
                )));
            }
            self.delete_endpoint(&held.network, &held.id).await?;
        }
        Ok(())
    }

    /// Makes a MAC that a user chose this host's, or says which host has it.
    pub(super) async fn claim_mac(&self, endpoint: &Endpoint) -> Result<(), Error> {
        let Some(subnet) = self.state.lock().lan_of(endpoint) else { return Ok(()) };
        Ok(self.cluster.claim_mac(subnet, endpoint.mac, &at(endpoint)).await?)
    }

    /// Other hosts may have it, unless another container here does.
    pub(super) fn give_up_mac(&self, endpoint: &Endpoint) {
        let subnet = {
            let state = self.state.lock();
            let again = state.networks.get(&endpoint.network).into_iter().flat_map(|live| live.endpoints.values());
            let again = again.filter(|other| other.endpoint.mac == endpoint.mac && other.endpoint.id != endpoint.id).count() > 0;
            state.lan_of(endpoint).filter(|_| !again)
        };
        subnet.into_iter().for_each(|subnet| self.cluster.give_up_mac(subnet, endpoint.mac));
    }

    /// Another that has joined, and whether its container is lost.
    fn twin(&self, endpoint: &Endpoint, parent: &IfName) -> Option<(Known, bool)> {
        let state = self.state.lock();
        let is_twin = |other: &&Known| {
            let Endpoint { id, mac, attached, .. } = &other.endpoint;
            *id != endpoint.id && *mac == endpoint.mac && matches!(attached, Attached::Joined(_))
        };
        let beside = state.networks.values().filter(|live| self::parent(&*live.mode).as_ref() == Some(parent));
        let (live, twin) =
            beside.flat_map(|live| live.endpoints.values().map(move |known| (live, known))).find(|(_, known)| is_twin(known))?;
        Some((twin.clone(), self.has_vanished(&*live.mode, twin)))
    }
}

/// Its addresses, for people.
pub fn at(endpoint: &Endpoint) -> String {
    endpoint.addresses.iter().map(|address| address.addr().to_string()).collect::<Vec<_>>().join(", ")
}

/// The link of the host on whose segment a network's containers are.
fn parent(mode: &dyn Mode) -> Option<IfName> {
    mode.claims().into_iter().find_map(|claim| if let Claim::Parent { link, .. } = claim { Some(link) } else { None })
}
