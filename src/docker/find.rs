//! One container, as somebody names it.

use std::net::IpAddr;
use std::path::Path;

use bollard::models::{ContainerInspectResponse, EndpointSettings};
use bollard::query_parameters::InspectContainerOptions;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::containers::addresses;
use super::{LOOK, connect, is_missing};

/// A container as the engine knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerSeen {
    /// Without the slash.
    pub name: String,
    pub running: bool,
    pub endpoints: Vec<EndpointSeen>,
}

/// What a container has on one network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndpointSeen {
    pub network_name: String,
    /// Empty while the container does not run.
    pub endpoint: String,
    pub addresses: Vec<IpAddr>,
}

/// What an engine says of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Inspected {
    Container(ContainerSeen),
    /// There is none of this name or id.
    None,
    /// The engine does not tell, for this reason.
    Unknown(String),
}

/// The container of this name or id, or beginning of one; within 2 s.
pub async fn find(socket: &Path, container: &str) -> Inspected {
    let asked = async { connect(socket).await?.inspect_container(container, None::<InspectContainerOptions>).await };
    match timeout(LOOK, asked).await {
        Ok(Ok(found)) => Inspected::Container(read(found)),
        Ok(Err(error)) if is_missing(&error) => Inspected::None,
        Ok(Err(error)) => Inspected::Unknown(error.to_string()),
        Err(_) => Inspected::Unknown("no answer within 2 s".to_owned()),
    }
}

fn read(found: ContainerInspectResponse) -> ContainerSeen {
    let networks = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    let endpoint = |(network_name, seen): (String, EndpointSettings)| EndpointSeen {
        network_name,
        addresses: addresses(&seen),
        endpoint: seen.endpoint_id.unwrap_or_default(),
    };
    ContainerSeen {
        name: found.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        running: found.state.and_then(|state| state.running).unwrap_or_default(),
        endpoints: networks.into_iter().map(endpoint).collect(),
    }
}
