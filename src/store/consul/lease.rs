//! Leases as Consul's sessions. A session ends by its time alone: neither a started-again agent nor its failing health ends it.

use std::time::Duration;

use async_trait::async_trait;
use hyper::StatusCode;

use super::super::{Key, Lease, Leases, StoreError};
use super::client::Ask;
use super::{Consul, Txn, wire};

#[async_trait]
impl Leases for Consul {
    async fn grant(&self, name: &str, ttl: Duration) -> Result<Lease, StoreError> {
        let ttl = format!("{}s", ttl.as_secs());
        let session = wire::Session { name, ttl, behavior: "delete", lock_delay: "0s", node_checks: [] };
        // Strings always serialise.
        let body = serde_json::to_vec(&session).unwrap_or_default();
        let answer = self.kv.client.ask(Ask::put("session/create", body, format!("make a lease for {name}"))).await?;
        Ok(Lease(answer.json::<wire::SessionId>()?.id))
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        match self.session("renew", lease).await? {
            StatusCode::NOT_FOUND => Err(StoreError::Ended { lease: lease.clone() }),
            // what a newer rsnet made of the store is told, and the lease goes on
            _ => self.kv.format().await.map(drop),
        }
    }

    async fn end(&self, lease: &Lease) -> Result<(), StoreError> {
        self.session("destroy", lease).await.map(drop)
    }

    async fn hold(&self, lease: &Lease, key: &Key, value: Vec<u8>) -> Result<u64, StoreError> {
        let path = self.kv.path(key);
        let mut txn = Txn::default();
        txn.push(0, wire::Op::lock(path.clone(), &value, &lease.0));
        match self.kv.transact(&txn, key).await? {
            Ok(reply) => reply.version(&path),
            Err(refusal) if refusal.what.contains("already held") => Err(StoreError::Held { key: key.clone() }),
            Err(refusal) if refusal.what.contains("invalid session") => Err(StoreError::Ended { lease: lease.clone() }),
            Err(refusal) => Err(refusal.answer.strange(refusal.what)),
        }
    }

    async fn holder(&self, key: &Key) -> Result<Option<Lease>, StoreError> {
        let path = self.kv.path(key);
        let answer = self.kv.client.ask(Ask::get(format!("kv/{path}"), format!("read {path}"))).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let pairs: Vec<wire::Pair> = answer.json()?;
        Ok(pairs.into_iter().find_map(|pair| pair.session).map(|id| Lease(id.into_owned())))
    }
}

impl Consul {
    /// One of the calls that name a session.
    async fn session(&self, what: &str, lease: &Lease) -> Result<StatusCode, StoreError> {
        // A lease that was not Consul's is none of its sessions, and nothing to put into a path.
        let id = !lease.0.is_empty() && lease.0.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        if !id {
            return Ok(StatusCode::NOT_FOUND);
        }
        let ask = Ask::put(&format!("session/{what}/{lease}"), Vec::new(), format!("{what} lease {lease}"));
        Ok(self.kv.client.ask(ask.repeatable()).await?.status)
    }
}
