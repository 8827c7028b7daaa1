//! Consul's JSON: what `/v1/kv`, `/v1/txn` and `/v1/session` take and give (Consul 1.8 and later).

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// One key as `/v1/kv` shows it, within the answer: there may be thousands.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Pair<'a> {
    #[serde(borrow)]
    pub key: Cow<'a, str>,
    /// Base64, which JSON never has to escape; null for an empty value.
    value: Option<&'a str>,
    pub modify_index: u64,
    /// A number that Consul keeps beside the value.
    #[serde(default)]
    pub flags: u64,
    /// The session that holds the key.
    pub session: Option<Cow<'a, str>>,
}

impl Pair<'_> {
    /// The value's bytes.
    pub fn bytes(&self) -> Result<Vec<u8>, base64::DecodeError> {
        STANDARD.decode(self.value.unwrap_or_default())
    }
}

/// One operation of a transaction.
#[derive(Serialize)]
pub struct Op<'a> {
    #[serde(rename = "KV")]
    kv: Kv<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Kv<'a> {
    verb: &'static str,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flags: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
}

impl<'a> Op<'a> {
    /// An operation without a value or condition: `delete`, `delete-tree`, `check-not-exists`.
    pub fn plain(verb: &'static str, key: String) -> Self {
        Self { kv: Kv { verb, key, value: None, index: None, flags: None, session: None } }
    }

    /// `set`, or with an index `cas`, where 0 means that the key is not there.
    pub fn set(key: String, value: &[u8], index: Option<u64>) -> Self {
        let verb = if index.is_some() { "cas" } else { "set" };
        Self { kv: Kv { verb, key, value: Some(STANDARD.encode(value)), index, flags: None, session: None } }
    }

    /// The same operation, writing a number beside the value.
    pub fn flagged(mut self, flags: u64) -> Self {
        self.kv.flags = Some(flags);
        self
    }

    /// The key must be there with this index.
    pub fn check(key: String, index: u64) -> Self {
        Self { kv: Kv { verb: "check-index", key, value: None, index: Some(index), flags: None, session: None } }
    }

    /// Writes the value and makes the session the key's holder.
    pub fn lock(key: String, value: &[u8], session: &'a str) -> Self {
        Self { kv: Kv { verb: "lock", key, value: Some(STANDARD.encode(value)), index: None, flags: None, session: Some(session) } }
    }
}

/// What a new session is: one that ends by time alone, and takes its keys with it at once.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Session<'a> {
    pub name: &'a str,
    #[serde(rename = "TTL")]
    pub ttl: String,
    pub behavior: &'static str,
    pub lock_delay: &'static str,
    /// None: without this Consul takes the health of the node, and ends the session when its agent is started again.
    pub node_checks: [&'static str; 0],
}

/// The id of a new session.
#[derive(Deserialize)]
pub struct SessionId {
    #[serde(rename = "ID")]
    pub id: String,
}

/// The answer to a transaction: results of one that was done (200), errors of one that was not (409).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Done {
    results: Option<Vec<Outcome>>,
    errors: Option<Vec<Wrong>>,
}

#[derive(Deserialize)]
struct Outcome {
    #[serde(rename = "KV")]
    kv: Option<Written>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Written {
    key: String,
    modify_index: u64,
}

/// Why one operation was refused.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Wrong {
    pub op_index: usize,
    pub what: String,
}

impl Done {
    /// The index of a key that was written. Deletions have no result, checks have one: results are told apart by key.
    pub fn index_of(&self, key: &str) -> Option<u64> {
        let pairs = self.results.iter().flatten().filter_map(|outcome| outcome.kv.as_ref());
        pairs.filter(|pair| pair.key == key).map(|pair| pair.modify_index).next()
    }

    /// The first error.
    pub fn wrong(self) -> Option<Wrong> {
        self.errors?.into_iter().next()
    }
}
