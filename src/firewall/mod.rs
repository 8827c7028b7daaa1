//! MECHANISM: the only room that speaks nftables or knows Docker's own chains. It knows entries, no modes and no networks.

mod attribute;
mod batch;
mod conntrack;
mod docker;
mod element;
mod expression;
pub mod fake;
mod legacy;
pub mod nftables;
mod socket;
mod table;
mod watch;

use std::collections::BTreeSet;
use std::io;

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::model::Entry;

/// The packet filter of one host as a set of entries under constant rules.
#[async_trait]
pub trait Firewall: Send + Sync {
    /// Takes `remove` out and puts `add` in, both or neither. Flows through a mapping that went are forgotten by the kernel's connection
    /// tracking, and UDP flows that began before a mapping came.
    async fn apply(&self, remove: &[Entry], add: &[Entry]) -> Result<(), FirewallError>;
    /// Makes the table, its rules and the way past Docker's chains be exactly those of `all`; says how many differences it mended.
    async fn converge(&self, all: &BTreeSet<Entry>) -> Result<usize, FirewallError>;
    /// Takes our table and our way past Docker's chains away.
    async fn clear(&self) -> Result<(), FirewallError>;
    /// Wakes when somebody else changed our table or the chains we depend on. To be called once.
    fn changes(&self) -> mpsc::Receiver<()>;
}

#[derive(Debug, thiserror::Error)]
#[error("{operation} {object}: {cause}")]
pub struct FirewallError {
    pub operation: &'static str,
    pub object: String,
    #[source]
    pub cause: io::Error,
}
