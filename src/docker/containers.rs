//! The containers that run on this host, as the engine tells them: on which networks they are, and what they are called there.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, EndpointSettings};
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptions};

use super::is_missing;
use crate::model::{EndpointId, NetworkId};

/// A container that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name, without the engine's slash.
    pub name: String,
    /// By network.
    pub attached: BTreeMap<NetworkId, Attachment>,
}

/// A container on a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub endpoint: EndpointId,
    /// At most one of each family.
    pub addresses: Vec<IpAddr>,
    /// What it is called there: its name first, then what the user called it there (compose: its service), its short id, its hostname. None twice.
    pub names: Vec<String>,
}

/// The ids of all that run.
pub(super) async fn running(engine: &Docker) -> Result<Vec<String>, Error> {
    let containers = engine.list_containers(None::<ListContainersOptions>).await?;
    Ok(containers.into_iter().filter_map(|container| container.id).collect())
}

/// A container as it is now; none: it does not run. While the engine starts or stops it, that takes until it is done.
pub(super) async fn inspect(engine: &Docker, id: &str) -> Result<Option<Container>, Error> {
    match engine.inspect_container(id, None::<InspectContainerOptions>).await {
        Ok(found) => Ok(read(found)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a container has on a network, at most one of each family; none while it does not run.
pub(super) fn addresses(settings: &EndpointSettings) -> Vec<IpAddr> {
    let told = [&settings.ip_address, &settings.global_ipv6_address];
    told.into_iter().flatten().filter_map(|address| address.parse().ok()).collect()
}

fn read(found: ContainerInspectResponse) -> Option<Container> {
    found.state.and_then(|state| state.running).filter(|running| *running)?;
    let name = found.name?.trim_start_matches('/').to_owned();
    let config = found.config.unwrap_or_default();
    let hostname = config.hostname.unwrap_or_default();
    let full = config.domainname.filter(|domain| !domain.is_empty()).map(|domain| format!("{hostname}.{domain}"));
    let known_as: Vec<String> = found.id.iter().map(|id| id.chars().take(12).collect()).chain([hostname]).chain(full).collect();
    let networks = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default().into_values();
    let attached = networks.filter_map(|settings| attachment(&name, &known_as, settings)).collect();
    Some(Container { name, attached })
}

/// Engines from 25.0 on tell short ids and hostnames among the names in DNS, earlier ones the short id among the aliases.
fn attachment(name: &str, known_as: &[String], settings: EndpointSettings) -> Option<(NetworkId, Attachment)> {
    let addresses = addresses(&settings);
    let given = settings.aliases.into_iter().flatten().chain(settings.dns_names.into_iter().flatten());
    let mut names: Vec<String> = Vec::new();
    for next in std::iter::once(name.to_owned()).chain(given).chain(known_as.iter().cloned()) {
        if !next.is_empty() && !names.contains(&next) {
            names.push(next);
        }
    }
    Some((settings.network_id?.parse().ok()?, Attachment { endpoint: settings.endpoint_id?.parse().ok()?, addresses, names }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspected(running: bool) -> ContainerInspectResponse {
        let network = serde_json::json!({
            "NetworkID": "ab12", "EndpointID": "ef34", "IPAddress": "10.50.0.2", "GlobalIPv6Address": "fd00:50::2",
            "Aliases": ["www", "0123456789ab"], "DNSNames": ["web-1", "www", "0123456789ab"],
        });
        let text = serde_json::json!({
            "Id": "0123456789abcdef", "Name": "/web-1", "State": { "Running": running },
            "Config": { "Hostname": "web", "Domainname": "example" },
            "NetworkSettings": { "Networks": { "blue": network, "none": { "NetworkID": "cd", "EndpointID": "", "IPAddress": "" } } },
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn a_container_has_its_names_on_each_of_its_networks_none_twice() {
        let container = read(inspected(true)).unwrap();
        let found: Vec<_> = container.attached.into_iter().collect();
        let [(network, Attachment { addresses, names, .. })] = &found[..] else { panic!("{found:?}") };
        assert_eq!(network.as_str(), "ab12");
        assert_eq!(addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.50.0.2", "fd00:50::2"]);
        assert_eq!(names[..], ["web-1", "www", "0123456789ab", "web", "web.example"]);
    }

    #[test]
    fn a_container_that_does_not_run_has_none() {
        assert_eq!(read(inspected(false)), None);
    }
}
