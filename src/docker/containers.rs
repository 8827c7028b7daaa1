//! The containers that run on this host, as the engine tells them: on which networks they are, and what they are called there.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, EndpointSettings, HealthStatusEnum};
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptions};

use super::is_missing;
use crate::model::{EndpointId, NetworkId};

/// A container that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub id: String,
    /// Its name, without the engine's slash.
    pub name: String,
    /// Of which service of a compose project it is.
    pub service: Option<String>,
    /// The TCP port that it exposes, if it is one.
    pub port: Option<u16>,
    /// None: nobody looks after its health.
    pub health: Option<Health>,
    /// By network.
    pub attached: BTreeMap<NetworkId, Attachment>,
}

/// What the engine says of a container that has a health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not known yet.
    Starting,
    Healthy,
    Unhealthy,
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
    let state = found.state.filter(|state| state.running == Some(true))?;
    let name = found.name?.trim_start_matches('/').to_owned();
    let config = found.config.unwrap_or_default();
    let service = config.labels.and_then(|mut labels| labels.remove("com.docker.compose.service"));
    let port = only_tcp(config.exposed_ports.unwrap_or_default());
    let hostname = config.hostname.unwrap_or_default();
    let full = config.domainname.filter(|domain| !domain.is_empty()).map(|domain| format!("{hostname}.{domain}"));
    let known_as: Vec<String> = found.id.iter().map(|id| id.chars().take(12).collect()).chain([hostname]).chain(full).collect();
    let networks = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default().into_values();
    let attached = networks.filter_map(|settings| attachment(&name, &known_as, settings)).collect();
    Some(Container { id: found.id.unwrap_or_default(), name, service, port, health: state.health.and_then(health), attached })
}

/// `80/tcp`, if nothing else is exposed by TCP.
fn only_tcp(exposed: Vec<String>) -> Option<u16> {
    let mut tcp = exposed.iter().filter_map(|port| port.strip_suffix("/tcp")?.parse().ok());
    tcp.next().filter(|_| tcp.next().is_none())
}

fn health(told: bollard::models::Health) -> Option<Health> {
    match told.status? {
        HealthStatusEnum::STARTING => Some(Health::Starting),
        HealthStatusEnum::HEALTHY => Some(Health::Healthy),
        HealthStatusEnum::UNHEALTHY => Some(Health::Unhealthy),
        HealthStatusEnum::NONE | HealthStatusEnum::EMPTY => None,
    }
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
            "Id": "0123456789abcdef", "Name": "/web-1", "State": { "Running": running, "Health": { "Status": "unhealthy" } },
            "Config": {
                "Hostname": "web", "Domainname": "example", "ExposedPorts": { "80/tcp": {}, "80/udp": {} },
                "Labels": { "com.docker.compose.service": "shop" },
            },
            "NetworkSettings": { "Networks": { "blue": network, "none": { "NetworkID": "cd", "EndpointID": "", "IPAddress": "" } } },
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn a_container_has_its_names_on_each_of_its_networks_none_twice() {
        let container = read(inspected(true)).unwrap();
        assert_eq!((container.service.as_deref(), container.port, container.health), (Some("shop"), Some(80), Some(Health::Unhealthy)));
        let found: Vec<_> = container.attached.into_iter().collect();
        let [(network, Attachment { addresses, names, .. })] = &found[..] else { panic!("{found:?}") };
        assert_eq!(network.as_str(), "ab12");
        assert_eq!(addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.50.0.2", "fd00:50::2"]);
        assert_eq!(names[..], ["web-1", "www", "0123456789ab", "web", "web.example"]);
    }

    #[test]
    fn of_several_ports_none_is_the_one() {
        let exposed = |ports: &[&str]| only_tcp(ports.iter().map(|port| (*port).to_owned()).collect());
        assert_eq!((exposed(&["80/tcp", "53/udp"]), exposed(&["80/tcp", "443/tcp"]), exposed(&["53/udp"])), (Some(80), None, None));
    }

    #[test]
    fn a_container_that_does_not_run_has_none() {
        assert_eq!(read(inspected(false)), None);
    }
}
