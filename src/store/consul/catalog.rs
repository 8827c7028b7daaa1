//! Consul's catalog: services of a node that no agent stands for. Not part of the store: nothing that rsnet needs is in it.
//!
//! The catalog's own calls and not the agent's: `RSNET_STORE` names any Consul, and what an agent is told goes with that agent and is at its
//! address.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::super::StoreError;
use super::Consul;
use super::client::Ask;

/// A node of the catalog with what is registered there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Consul takes any; `rsnet-h1`.
    pub name: String,
    /// Where the host is.
    pub address: IpAddr,
    /// By id.
    pub services: BTreeMap<String, Service>,
}

/// One instance of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What it is asked for by.
    pub name: String,
    pub address: IpAddr,
    /// 0: none is known.
    pub port: u16,
    pub tags: Vec<String>,
    /// Whether Consul tells of it to those who ask for what is well.
    pub passing: bool,
    /// Why, for people.
    pub output: String,
}

impl Consul {
    /// What is registered on a node; none: there is no such node, or the token may not see it.
    pub async fn node(&self, name: &str) -> Result<Option<Node>, StoreError> {
        let ask = |what: &str| Ask::get(format!("{what}/{name}"), format!("read node {name} of the catalog"));
        let Some(found) = self.kv.client.ask_aside(ask("catalog/node")).await?.json::<Option<Found>>()? else { return Ok(None) };
        let checks: Vec<Check> = self.kv.client.ask_aside(ask("health/node")).await?.json()?;
        let mut checks: BTreeMap<String, Check> = checks.into_iter().map(|check| (check.service_id.clone(), check)).collect();
        let service = |(id, listed): (String, Listed)| {
            let check = checks.remove(&id).unwrap_or_default();
            (id, listed.with(check))
        };
        let services = found.services.into_iter().map(service).collect();
        Ok(Some(Node { name: name.to_owned(), address: found.node.address, services }))
    }

    /// Makes or alters a service of a node, and the node with it.
    pub async fn register(&self, node: &str, address: IpAddr, id: &str, service: &Service) -> Result<(), StoreError> {
        let status = if service.passing { PASSING } else { "critical" };
        let listed = Listed {
            id: id.to_owned(),
            service: service.name.clone(),
            address: service.address.to_string(),
            port: service.port,
            tags: Some(service.tags.clone()),
        };
        let check = Check {
            node: node.to_owned(),
            check_id: format!("health-{id}"),
            name: "Docker's health status".to_owned(),
            status: status.to_owned(),
            output: service.output.clone(),
            service_id: id.to_owned(),
        };
        let node_meta = BTreeMap::from([("external-node", "true")]);
        let registration = Registration { node, address, node_meta, service: listed, check };
        self.change("catalog/register", &registration, format!("register service {id} in the catalog")).await
    }

    /// Takes a service of a node away; none: the node with all that it has. What is not there is away already.
    pub async fn deregister(&self, node: &str, id: Option<&str>) -> Result<(), StoreError> {
        let what = id.map_or_else(|| format!("node {node}"), |id| format!("service {id}"));
        self.change("catalog/deregister", &Deregistration { node, service_id: id }, format!("take {what} out of the catalog")).await
    }

    async fn change(&self, path: &str, what: &impl Serialize, action: String) -> Result<(), StoreError> {
        // strings, numbers and addresses always serialise
        let body = serde_json::to_vec(what).unwrap_or_default();
        self.kv.client.ask_aside(Ask::put(path, body, action).repeatable()).await.map(drop)
    }
}

const PASSING: &str = "passing";

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Registration<'a> {
    node: &'a str,
    address: IpAddr,
    /// Says that no agent stands for the node, as Consul's own tools do.
    node_meta: BTreeMap<&'a str, &'a str>,
    service: Listed,
    check: Check,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Deregistration<'a> {
    node: &'a str,
    #[serde(rename = "ServiceID", skip_serializing_if = "Option::is_none")]
    service_id: Option<&'a str>,
}

/// The answer to `catalog/node`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Found {
    node: FoundNode,
    services: BTreeMap<String, Listed>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct FoundNode {
    address: IpAddr,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    #[serde(rename = "ID")]
    id: String,
    service: String,
    /// Empty where somebody else registered it without: then it is the node's.
    address: String,
    port: u16,
    tags: Option<Vec<String>>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    node: String,
    #[serde(rename = "CheckID")]
    check_id: String,
    name: String,
    status: String,
    output: String,
    #[serde(rename = "ServiceID")]
    service_id: String,
}

impl Listed {
    fn with(self, check: Check) -> Service {
        Service {
            name: self.service,
            address: self.address.parse().unwrap_or(IpAddr::from([0, 0, 0, 0])),
            port: self.port,
            tags: self.tags.unwrap_or_default(),
            passing: check.status == PASSING,
            output: check.output,
        }
    }
}
