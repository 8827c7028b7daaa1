//! The only room that names bollard: what the engine knows and never tells a driver, such as the names of networks.
//!
//! Never called from inside a driver call: the engine holds locks while it waits for us. What is learnt here are names, for people, and
//! which networks the engine has forgotten. No call's answer depends on it; without an engine's API there are ids instead of names.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::{EventsOptionsBuilder, InspectNetworkOptions, ListContainersOptionsBuilder, ListNetworksOptions};
use futures_util::StreamExt;
use tokio::time::timeout;
use tracing::debug;

use crate::model::NetworkId;

/// How long to wait before the engine is asked again.
const AGAIN: Duration = Duration::from_secs(5);
/// Seconds that one answer of the engine may take.
const PATIENCE: u64 = 30;

/// The names that users gave to networks.
#[derive(Default)]
pub struct Names {
    known: RwLock<Known>,
}

#[derive(Default)]
struct Known {
    names: HashMap<NetworkId, String>,
    /// The list is up to date, and comes from an engine that has rsnet for a driver.
    counts: bool,
}

impl Names {
    /// The name, if the engine was asked since the network was made.
    pub fn of(&self, network: &NetworkId) -> Option<String> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).names.get(network).cloned()
    }

    /// Whether the engine says now that it has no such network. False while the engine cannot be asked.
    pub fn lack(&self, network: &NetworkId) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.counts && !known.names.contains_key(network)
    }

    /// `"blue" (0123456789)`, or the id alone.
    pub fn show(&self, network: &NetworkId) -> String {
        self.of(network).map_or_else(|| network.short().to_owned(), |name| format!("\"{name}\" ({})", network.short()))
    }

    fn replace(&self, known: Known) {
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// The names are kept, for people; they say no more what the engine lacks.
    fn grow_old(&self) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).counts = false;
    }

    /// Asks the engine at `socket`, now and whenever it says that a network came or went; until the process ends.
    pub async fn learn(&self, socket: &Path) {
        loop {
            if let Err(error) = self.follow(socket).await {
                debug!(socket = %socket.display(), %error, "the engine does not tell the names of networks; asking again");
            }
            self.grow_old();
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// The events are asked for before the list, so that nothing falls between.
    async fn follow(&self, socket: &Path) -> Result<(), bollard::errors::Error> {
        let engine = connect(socket).await?;
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

/// A network as the engine knows it.
pub struct Seen {
    pub id: String,
    /// The names of its containers, by endpoint.
    pub containers: HashMap<String, String>,
}

/// What the engine at `socket` has by this name, id or beginning of one; none if it does not tell within 2 s.
pub async fn look(socket: &Path, network: &str) -> Option<Seen> {
    let asked = async { connect(socket).await.ok()?.inspect_network(network, None::<InspectNetworkOptions>).await.ok() };
    let found = timeout(Duration::from_secs(2), asked).await.ok().flatten()?;
    let containers = found.containers.unwrap_or_default().into_values();
    let containers = containers.filter_map(|container| Some((container.endpoint_id?, container.name?))).collect();
    Some(Seen { id: found.id?, containers })
}

/// What people call things, as the engine of this host tells.
#[derive(Default)]
pub struct Engine {
    /// Its own version: `28.5.1`.
    pub version: String,
    /// Names of the networks that are rsnet's, by id.
    pub networks: HashMap<String, String>,
    /// Names of containers, by the id of each of their endpoints.
    pub containers: HashMap<String, String>,
}

/// Asks the engine at `socket`; `Err` says why it does not tell, 2 s at most.
pub async fn ask(socket: &Path) -> Result<Engine, String> {
    let asked = timeout(Duration::from_secs(2), ask_patiently(socket)).await;
    let told = asked.map_err(|_| "no answer within 2 s".to_owned())?;
    told.map_err(|error| error.to_string())
}

async fn ask_patiently(socket: &Path) -> Result<Engine, bollard::errors::Error> {
    let engine = connect(socket).await?;
    let version = engine.version().await?.version.unwrap_or_default();
    let networks = engine.list_networks(None::<ListNetworksOptions>).await?.into_iter();
    let ours = networks.filter(|network| network.driver.as_ref().is_some_and(|driver| driver.starts_with("rsnet")));
    let networks = ours.filter_map(|network| Some((network.id?, network.name?))).collect();
    let mut containers = HashMap::new();
    for container in engine.list_containers(Some(ListContainersOptionsBuilder::new().all(true).build())).await? {
        let name = container.names.and_then(|names| names.into_iter().next()).unwrap_or_default();
        let places = container.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let endpoints = places.into_values().filter_map(|place| place.endpoint_id);
        containers.extend(endpoints.map(|endpoint| (endpoint, name.trim_start_matches('/').to_owned())));
    }
    Ok(Engine { version, networks, containers })
}

async fn connect(socket: &Path) -> Result<Docker, bollard::errors::Error> {
    Docker::connect_with_unix(&socket.to_string_lossy(), PATIENCE, bollard::API_DEFAULT_VERSION)?.negotiate_version().await
}

async fn list(engine: &Docker) -> Result<Known, bollard::errors::Error> {
    let networks = engine.list_networks(None::<ListNetworksOptions>).await?;
    let names = networks.into_iter().filter_map(|network| Some((network.id?.parse().ok()?, network.name?))).collect();
    let drivers = engine.info().await?.plugins.and_then(|plugins| plugins.network).unwrap_or_default();
    Ok(Known { names, counts: drivers.iter().any(|driver| driver.starts_with("rsnet")) })
}
