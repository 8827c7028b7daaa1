//! `rsnet endpoints`: which container of this host has which place on a network.

use super::client::Asking;
use super::{Failure, client, print, runtime};
use crate::agent::EndpointSeen;

pub fn run(arguments: &Asking) -> Result<(), Failure> {
    let endpoints = runtime()?.block_on(ask(arguments))?;
    if arguments.json {
        return print::json(&endpoints);
    }
    if endpoints.is_empty() {
        return print::say("No container is on a network of rsnet. Put one there: docker run --network NAME …");
    }
    let rows = endpoints.iter().map(row).collect();
    print::say(print::table(["CONTAINER", "NETWORK", "MODE", "ADDRESSES", "MAC", "ENDPOINT"], rows, "rsnet endpoints --json"))
}

async fn ask(arguments: &Asking) -> Result<Vec<EndpointSeen>, Failure> {
    let engine = client::engine().await.unwrap_or_default();
    let mut endpoints: Vec<EndpointSeen> = client::get(&arguments.socket, "/rsnet/endpoints").await?;
    for endpoint in &mut endpoints {
        endpoint.container = engine.containers.get(endpoint.endpoint.as_str()).map(|place| place.container.clone());
        let name = engine.networks.get(endpoint.network.as_str()).cloned();
        endpoint.network_name = name.or(endpoint.network_name.take());
    }
    endpoints.sort_by_key(|endpoint| (endpoint.container.clone(), endpoint.network_name.clone(), endpoint.endpoint.clone()));
    Ok(endpoints)
}

fn row(endpoint: &EndpointSeen) -> [String; 6] {
    let addresses: Vec<String> = endpoint.addresses.iter().map(ToString::to_string).collect();
    let nobody = if endpoint.joined { "?" } else { "(none yet)" };
    [
        endpoint.container.clone().unwrap_or_else(|| nobody.to_owned()),
        client::named(endpoint.network_name.as_ref(), &endpoint.network),
        endpoint.mode.clone(),
        if addresses.is_empty() { "-".to_owned() } else { addresses.join(" ") },
        endpoint.mac.to_string(),
        endpoint.endpoint.short().to_owned(),
    ]
}
