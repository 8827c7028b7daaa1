//! The only room that names bollard: what the engine knows and never tells a driver, such as the names of networks.
//!
//! Never called from inside a driver call: the engine holds locks while it waits for us. What is learnt here is for people only; nothing
//! that rsnet does depends on it, and without an engine's API there are ids instead of names.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::{EventsOptionsBuilder, ListNetworksOptions};
use futures_util::StreamExt;
use tracing::debug;

use crate::model::NetworkId;

/// How long to wait before the engine is asked again.
const AGAIN: Duration = Duration::from_secs(5);
/// Seconds that one answer of the engine may take.
const PATIENCE: u64 = 30;

/// The names that users gave to networks.
#[derive(Default)]
pub struct Names(RwLock<HashMap<NetworkId, String>>);

impl Names {
    /// The name, if the engine was asked since the network was made.
    pub fn of(&self, network: &NetworkId) -> Option<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(network).cloned()
    }

    /// `"blue" (0123456789)`, or the id alone.
    pub fn show(&self, network: &NetworkId) -> String {
        self.of(network).map_or_else(|| network.short().to_owned(), |name| format!("\"{name}\" ({})", network.short()))
    }

    fn replace(&self, names: HashMap<NetworkId, String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// Asks the engine at `socket`, now and whenever it says that a network came or went; until the process ends.
    pub async fn learn(&self, socket: &Path) {
        loop {
            if let Err(error) = self.follow(socket).await {
                debug!(socket = %socket.display(), %error, "the engine does not tell the names of networks; asking again");
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// The events are asked for before the list, so that nothing falls between.
    async fn follow(&self, socket: &Path) -> Result<(), bollard::errors::Error> {
        let path = socket.to_string_lossy();
        let engine = Docker::connect_with_unix(&path, PATIENCE, bollard::API_DEFAULT_VERSION)?.negotiate_version().await?;
        let networks = HashMap::from([("type", vec!["network"])]);
        let mut events = engine.events(Some(EventsOptionsBuilder::new().filters(&networks).build()));
        self.replace(list(&engine).await?);
        while let Some(event) = events.next().await {
            if matches!(event?.action.as_deref(), Some("create" | "destroy")) {
                self.replace(list(&engine).await?);
            }
        }
        Ok(())
    }
}

async fn list(engine: &Docker) -> Result<HashMap<NetworkId, String>, bollard::errors::Error> {
    let networks = engine.list_networks(None::<ListNetworksOptions>).await?;
    Ok(networks.into_iter().filter_map(|network| Some((network.id?.parse().ok()?, network.name?))).collect())
}
