//! `rsnet networks`: the networks of this host.

use std::collections::BTreeMap;

use serde::Serialize;

use super::client::Asking;
use super::hosts::{in_the_way, say_in_the_way};
use super::{Failure, client, print, runtime};
use crate::agent::NetworkSeen;

/// A network as `--json` prints it.
#[derive(Serialize)]
#[serde(untagged)]
enum Listed {
    Here {
        #[serde(flatten)]
        seen: NetworkSeen,
        /// Why it is not that of the other hosts.
        #[serde(skip_serializing_if = "Option::is_none")]
        in_the_way: Option<String>,
    },
    /// rsnet has none of that name here, though other hosts say that it should.
    Missing { network: (), network_name: String, in_the_way: String },
}

pub fn run(arguments: &Asking) -> Result<(), Failure> {
    let (networks, problems) = runtime()?.block_on(async { Ok::<_, Failure>((ask(arguments).await?, in_the_way(arguments).await?)) })?;
    if arguments.json {
        return print::json(&listed(networks, problems));
    }
    if networks.is_empty() {
        print::say("No networks yet. Make one: docker network create -d rsnet --ipam-driver rsnet NAME")?;
    } else {
        let rows = networks.iter().map(row).collect();
        print::say(print::table(["NETWORK", "ID", "MODE", "SUBNETS", "ENDPOINTS", "OTHER HOSTS"], rows, "rsnet networks --json"))?;
    }
    say_in_the_way(&problems)
}

fn listed(networks: Vec<NetworkSeen>, mut problems: BTreeMap<String, String>) -> Vec<Listed> {
    let here = |seen: NetworkSeen| Listed::Here { in_the_way: seen.network_name.as_ref().and_then(|name| problems.remove(name)), seen };
    let mut listed: Vec<Listed> = networks.into_iter().map(here).collect();
    listed.extend(problems.into_iter().map(|(network_name, in_the_way)| Listed::Missing { network: (), network_name, in_the_way }));
    listed
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_of_a_network_is_told_with_it_whether_rsnet_has_it_here_or_not() {
        let seen = |name: &str| NetworkSeen {
            network: "0123456789abcdef".parse().unwrap(),
            network_name: Some(name.to_owned()),
            mode: "overlay".to_owned(),
            subnets: Vec::new(),
            internal: false,
            peers: None,
            endpoints: 0,
        };
        let problems = ["blue", "green"].map(|name| (name.to_owned(), format!("{name} differs"))).into();
        let told = serde_json::to_value(listed(vec![seen("blue"), seen("red")], problems)).unwrap();
        let fields =
            |field: &str| told.as_array().unwrap().iter().map(|one| one[field].as_str().unwrap_or("-").to_owned()).collect::<Vec<_>>();
        assert_eq!(fields("network_name"), ["blue", "red", "green"]);
        assert_eq!(fields("network"), ["0123456789abcdef", "0123456789abcdef", "-"]);
        assert_eq!(fields("in_the_way"), ["blue differs", "-", "green differs"]);
    }
}
