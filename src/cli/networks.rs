//! `rsnet networks`: the networks of this host.

use super::client::Asking;
use super::{Failure, client, print, runtime};
use crate::agent::NetworkSeen;

pub fn run(arguments: &Asking) -> Result<(), Failure> {
    let networks = runtime()?.block_on(ask(arguments))?;
    if arguments.json {
        return print::json(&networks);
    }
    if networks.is_empty() {
        return print::say("No networks yet. Make one: docker network create -d rsnet --ipam-driver rsnet NAME");
    }
    let rows = networks.iter().map(row).collect();
    let table = print::table(["NETWORK", "ID", "MODE", "SUBNETS", "ENDPOINTS", "OTHER HOSTS"], rows, "rsnet networks --json");
    print::say(table)?;
    super::hosts::in_the_way(arguments)
}

async fn ask(arguments: &Asking) -> Result<Vec<NetworkSeen>, Failure> {
    let engine = client::engine().await.unwrap_or_default();
    let mut networks: Vec<NetworkSeen> = client::get(&arguments.socket, "/rsnet/networks").await?;
    for network in &mut networks {
        let name = engine.networks.get(network.network.as_str()).cloned();
        network.network_name = name.or(network.network_name.take());
    }
    networks.sort_by_key(|network| (network.network_name.clone(), network.network.clone()));
    Ok(networks)
}

fn row(network: &NetworkSeen) -> [String; 6] {
    let subnets: Vec<String> = network.subnets.iter().map(ToString::to_string).collect();
    let mode = if network.internal { format!("{}, internal", network.mode) } else { network.mode.clone() };
    [
        client::named(network.network_name.as_ref(), &network.network),
        network.network.short().to_owned(),
        mode,
        if subnets.is_empty() { "-".to_owned() } else { subnets.join(" ") },
        network.endpoints.to_string(),
        network.peers.map_or_else(|| "-".to_owned(), |peers| peers.to_string()),
    ]
}
