//! MECHANISM: the only room that names rtnetlink, namespaces and `/proc/sys`. It knows objects, no modes and no networks.

use std::io;

use async_trait::async_trait;
use ipnet::IpNet;
use tokio::sync::mpsc;

use crate::model::{Key, Object, PortRange, Protocol};

/// The network namespace of one host, as a set of objects.
///
/// Every call is idempotent: `put` of what is there and `delete` of what is not succeed and change nothing.
#[async_trait]
pub trait Kernel: Send + Sync {
    /// Every object that carries our mark, and of the unmarked kinds (sysctls, host ports) those named in `wanted`.
    async fn observe(&self, wanted: &[Key]) -> Result<Vec<Object>, KernelError>;
    /// Makes the kernel have exactly this object: creates it, or alters the one of the same key.
    async fn put(&self, object: &Object) -> Result<(), KernelError>;
    async fn delete(&self, key: &Key) -> Result<(), KernelError>;
    /// What happens to objects under our marks from now on, whoever did it. To be called once.
    fn changes(&self) -> mpsc::Receiver<Change>;
    /// What the host has apart from us.
    async fn surroundings(&self) -> Result<Surroundings, KernelError>;
    /// Whether this path, as the engine names it, is a container's network namespace now.
    fn is_sandbox(&self, path: &std::path::Path) -> bool;
    /// Whether a host port could be bound now.
    async fn is_free(&self, protocol: Protocol, host: std::net::IpAddr, ports: PortRange) -> bool;
}

/// News of one object, or of an unknown number of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The object as it is now.
    Now(Box<Object>),
    Gone(Key),
    /// Events were lost: everything may have changed.
    Lost,
}

/// What the host has apart from us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The MTU of the link of the default route, in bytes; the lower one where the families differ.
    pub mtu: Option<u32>,
    /// Subnets that the host reaches on links other than ours, default routes left out: (subnet, link).
    pub subnets: Vec<(IpNet, String)>,
    /// Names of links that are not ours.
    pub links: Vec<String>,
}

/// A kernel call that failed: which, on what, why.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {object}: {cause}")]
pub struct KernelError {
    pub operation: &'static str,
    pub object: String,
    #[source]
    pub cause: io::Error,
}
