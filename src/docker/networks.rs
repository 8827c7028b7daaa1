//! Networks as an engine has them, to make the same on another host.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bollard::Docker;
use bollard::errors::Error as ApiError;
use bollard::models::{self, NetworkCreateRequest};
use bollard::query_parameters::{InspectNetworkOptions, ListNetworksOptions};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Names, OURS, connect, drivers, is_missing, is_ours};
use crate::model::NetworkId;

/// A network as its user asked for it, whatever the driver is called on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub ipv4: bool,
    pub ipv6: bool,
    pub internal: bool,
    pub attachable: bool,
    pub options: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// The IPAM driver, if it is another than rsnet.
    pub ipam: Option<String>,
    pub ipam_options: BTreeMap<String, String>,
    pub pools: Vec<PoolSpec>,
}

/// `--subnet` and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSpec {
    pub subnet: IpNet,
    pub range: Option<IpNet>,
    /// Engines differ in whether they tell one that nobody typed.
    pub gateway: Option<IpAddr>,
    pub auxiliary: BTreeMap<String, IpAddr>,
}

/// A network that an engine has.
#[derive(Clone, Debug)]
pub struct Found {
    pub id: NetworkId,
    pub name: String,
    /// Of one of rsnet's.
    pub spec: Option<Spec>,
}

/// Why an engine did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{action}: {cause}")]
pub struct EngineError {
    pub action: String,
    pub cause: String,
}

/// An engine and its networks.
#[async_trait]
pub trait Networks: Send + Sync {
    async fn all(&self) -> Result<Vec<Found>, EngineError>;

    async fn create(&self, name: &str, spec: &Spec) -> Result<NetworkId, EngineError>;

    /// Who uses it, if containers do: then it stays. One that is gone is removed.
    async fn remove(&self, id: &NetworkId) -> Result<Vec<String>, EngineError>;

    /// The names of the containers on it; none if that cannot be told.
    async fn users(&self, id: &NetworkId) -> Vec<String>;
}

/// The engine at a socket, asked only while it tells of itself: who connects to one that is stopped may start it.
pub struct Socket {
    pub path: PathBuf,
    pub names: Arc<Names>,
}

impl Socket {
    async fn connect(&self) -> Result<Docker, String> {
        if !self.names.in_touch() {
            return Err("the engine does not answer yet".to_owned());
        }
        connect(&self.path).await.map_err(|error| error.to_string())
    }
}

fn failed<E: std::fmt::Display>(action: impl Into<String>) -> impl FnOnce(E) -> EngineError {
    let action = action.into();
    move |cause| EngineError { action, cause: cause.to_string() }
}

#[async_trait]
impl Networks for Socket {
    async fn all(&self) -> Result<Vec<Found>, EngineError> {
        let action = "list the engine's networks";
        let engine = self.connect().await.map_err(failed(action))?;
        let networks = engine.list_networks(None::<ListNetworksOptions>).await.map_err(failed(action))?;
        Ok(networks.into_iter().filter_map(found).collect())
    }

    async fn create(&self, name: &str, spec: &Spec) -> Result<NetworkId, EngineError> {
        let action = || format!("create network {name}");
        let engine = self.connect().await.map_err(failed(action()))?;
        let driver = driver(&engine).await.map_err(failed(action()))?;
        let made = engine.create_network(request(name, spec, &driver)).await.map_err(failed(action()))?;
        made.id.parse().map_err(failed(action()))
    }

    async fn remove(&self, id: &NetworkId) -> Result<Vec<String>, EngineError> {
        let action = || format!("remove network {id}");
        let engine = self.connect().await.map_err(failed(action()))?;
        match engine.remove_network(id.as_str()).await {
            Err(error) if is_missing(&error) => Ok(vec![]),
            Err(error) => {
                let users = users(&engine, id).await;
                if users.is_empty() { Err(failed(action())(error)) } else { Ok(users) }
            }
            Ok(()) => Ok(vec![]),
        }
    }

    async fn users(&self, id: &NetworkId) -> Vec<String> {
        match self.connect().await {
            Ok(engine) => users(&engine, id).await,
            Err(_) => vec![],
        }
    }
}

/// The names of the containers on a network.
async fn users(engine: &Docker, id: &NetworkId) -> Vec<String> {
    let found = engine.inspect_network(id.as_str(), None::<InspectNetworkOptions>).await;
    let containers = found.ok().and_then(|network| network.containers).unwrap_or_default();
    let mut names: Vec<String> = containers.into_values().filter_map(|container| container.name).collect();
    names.sort();
    names
}

/// What rsnet is called on this host.
async fn driver(engine: &Docker) -> Result<String, ApiError> {
    Ok(drivers(engine).await?.into_iter().find(|driver| is_ours(driver)).unwrap_or_else(|| OURS.to_owned()))
}

fn found(network: models::Network) -> Option<Found> {
    let ours = network.driver.as_deref().is_some_and(is_ours) && network.config_only != Some(true);
    let (id, name) = (network.id.as_ref()?.parse().ok()?, network.name.clone()?);
    Some(Found { id, name, spec: if ours { spec(network) } else { None } })
}

fn spec(network: models::Network) -> Option<Spec> {
    let ipam = network.ipam.unwrap_or_default();
    let pools = ipam.config.unwrap_or_default().iter().map(pool).collect::<Option<Vec<_>>>()?;
    Some(Spec {
        // engines before 28.0 know nothing else
        ipv4: network.enable_ipv4.unwrap_or(true),
        ipv6: network.enable_ipv6.unwrap_or_default(),
        internal: network.internal.unwrap_or_default(),
        attachable: network.attachable.unwrap_or_default(),
        options: sorted(network.options),
        labels: sorted(network.labels),
        ipam: ipam.driver.filter(|driver| !is_ours(driver)),
        ipam_options: sorted(ipam.options),
        pools,
    })
}

fn sorted<V>(map: Option<HashMap<String, V>>) -> BTreeMap<String, V> {
    map.into_iter().flatten().collect()
}

fn pool(config: &models::IpamConfig) -> Option<PoolSpec> {
    let net = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty())?.parse::<IpNet>().ok();
    // some engines tell a gateway with the prefix length behind it
    let address = |text: &String| text.split('/').next().and_then(|text| text.parse::<IpAddr>().ok());
    let auxiliary = config.auxiliary_addresses.iter().flatten();
    Some(PoolSpec {
        subnet: net(&config.subnet)?,
        range: net(&config.ip_range),
        gateway: config.gateway.as_ref().and_then(address),
        auxiliary: auxiliary.filter_map(|(name, text)| Some((name.clone(), address(text)?))).collect(),
    })
}

fn request(name: &str, spec: &Spec, driver: &str) -> NetworkCreateRequest {
    let Spec { ipv4, ipv6, internal, attachable, options, labels, ipam, ipam_options, pools } = spec.clone();
    let ipam = models::Ipam {
        driver: Some(ipam.unwrap_or_else(|| driver.to_owned())),
        options: Some(ipam_options.into_iter().collect()),
        config: Some(pools.into_iter().map(config).collect()),
    };
    NetworkCreateRequest {
        name: name.to_owned(),
        driver: Some(driver.to_owned()),
        internal: Some(internal),
        attachable: Some(attachable),
        // the default, which older engines need not understand
        enable_ipv4: (!ipv4).then_some(false),
        enable_ipv6: Some(ipv6),
        ipam: Some(ipam),
        options: Some(options.into_iter().collect()),
        labels: Some(labels.into_iter().collect()),
        ..NetworkCreateRequest::default()
    }
}

fn config(PoolSpec { subnet, range, gateway, auxiliary }: PoolSpec) -> models::IpamConfig {
    models::IpamConfig {
        subnet: Some(subnet.to_string()),
        ip_range: range.map(|range| range.to_string()),
        gateway: gateway.map(|gateway| gateway.to_string()),
        auxiliary_addresses: Some(auxiliary.into_iter().map(|(name, address)| (name, address.to_string())).collect()),
    }
}
