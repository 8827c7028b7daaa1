//! What the engine sends (moby `ipams/remote/api`, engines 20.10 to 29).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use crate::agent::{Error, NewAddress, NewPool};
use crate::model::Family;
use crate::plugin::or_default;

const REQUEST_TYPE: &str = "RequestAddressType";
const GATEWAY: &str = "com.docker.network.gateway";
const MAC: &str = "com.docker.network.endpoint.macaddress";

/// `Pool` and `SubPool` are CIDR, or empty where the user gave none.
#[derive(Deserialize)]
pub struct RequestPool {
    #[serde(rename = "Pool", default, deserialize_with = "or_default")]
    pool: String,
    #[serde(rename = "SubPool", default, deserialize_with = "or_default")]
    range: String,
    /// What was given with `--ipam-opt`.
    #[serde(rename = "Options", default, deserialize_with = "or_default")]
    options: BTreeMap<String, String>,
    #[serde(rename = "V6", default, deserialize_with = "or_default")]
    v6: bool,
}

#[derive(Deserialize)]
pub struct PoolId {
    #[serde(rename = "PoolID")]
    pub pool: String,
}

#[derive(Deserialize)]
pub struct RequestAddress {
    #[serde(rename = "PoolID")]
    pool: String,
    #[serde(rename = "Address", default, deserialize_with = "or_default")]
    address: String,
    #[serde(rename = "Options", default, deserialize_with = "or_default")]
    options: BTreeMap<String, String>,
}

#[derive(Deserialize)]
pub struct ReleaseAddress {
    #[serde(rename = "PoolID")]
    pub pool: String,
    #[serde(rename = "Address")]
    pub address: IpAddr,
}

impl RequestPool {
    pub fn parse(self) -> Result<NewPool, Error> {
        let family = if self.v6 { Family::V6 } else { Family::V4 };
        let segment = self.options.get("parent").map(|name| name.parse()).transpose()?;
        Ok(NewPool { family, segment, subnet: subnet("--subnet", &self.pool)?, range: subnet("--ip-range", &self.range)? })
    }
}

impl RequestAddress {
    pub fn parse(self) -> Result<NewAddress, Error> {
        let wrong = || Error::Refused(format!("address \"{}\" is no IP address", self.address));
        let address = if self.address.is_empty() { None } else { Some(self.address.parse().map_err(|_| wrong())?) };
        let gateway = self.options.get(REQUEST_TYPE).is_some_and(|kind| kind == GATEWAY);
        // what is no MAC names nobody
        let mac = self.options.get(MAC).and_then(|mac| mac.parse().ok());
        Ok(NewAddress { pool: self.pool, address, gateway, mac })
    }
}

fn subnet(flag: &str, value: &str) -> Result<Option<IpNet>, Error> {
    if value.is_empty() {
        return Ok(None);
    }
    value.parse().map(Some).map_err(|_| Error::Refused(format!("{flag} {value} is no subnet; write it like 10.5.0.0/16 or fd00:5::/64")))
}
