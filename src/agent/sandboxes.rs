//! Whose sandboxes are on networks that hosts share: told to whoever answers for these networks in them, never waited for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Agent;
use super::state::Known;
use crate::model::{Attached, NetworkId};

impl Agent {
    /// The sandboxes of containers on networks that hosts share, as the engine names them, and which of these networks each is on. Engines up
    /// to 27 name them before they are.
    pub fn sandboxes(&self) -> BTreeMap<PathBuf, Vec<NetworkId>> {
        let state = self.state.lock();
        let shared = state.networks.values().filter(|live| live.network.share.is_some());
        let mut sandboxes = BTreeMap::<PathBuf, Vec<NetworkId>>::new();
        for Known { endpoint, .. } in shared.flat_map(|live| live.endpoints.values()) {
            if let Attached::Joined(sandbox) = &endpoint.attached {
                sandboxes.entry(sandbox.path.clone()).or_default().push(endpoint.network.clone());
            }
        }
        sandboxes
    }

    /// Waits until they may be others than at the last call. For one caller.
    pub async fn sandboxes_change(&self) {
        self.moved.notified().await;
    }
}
