//! MECHANISM: the only room that names rtnetlink, namespaces and `/proc/sys`. It knows objects, no modes and no networks.

mod address;
mod attachment;
mod crew;
pub mod fake;
pub mod holders;
mod host_link;
mod ipv6;
mod link;
mod lot;
mod macvlan;
mod neighbour;
mod netlink;
mod observe;
mod port;
mod ports;
mod probe;
mod route;
pub mod sandbox;
mod sight;
mod sysctl;
mod underlay;
mod vxlan;
mod watch;
mod wire;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use tokio::sync::mpsc;

use crate::model::{Answer, Attachment, HostLink, IfName, Key, Mac, Object, PortRange, Probe, Protocol, Question, Sight};

pub use netlink::{Netlink, NetlinkConfig};

/// The network namespace of one host, as a set of objects.
///
/// Every call is idempotent: `put` of what is there and `delete` of what is not succeed and change nothing.
#[async_trait]
pub trait Kernel: Send + Sync {
    /// Every object that carries our mark, every host port held, and the sysctls among `wanted`.
    ///
    /// A link or attachment that is down or was left half made, or a VXLAN link that somebody had learn, has the MTU 0, so that it meets no
    /// wish and `put` repairs it. Of an attachment only host, alias, kind and MTU are real. One that has nothing in the host's namespace is looked for in the sandboxes where
    /// such are wanted, and in every sandbox the first time. IPv6 link-local addresses, which the kernel makes itself, are left out unless
    /// wanted.
    async fn observe(&self, wanted: &[Object]) -> Result<Vec<Object>, KernelError>;
    /// Makes the kernel have exactly this object: creates it, or alters the one of the same key.
    async fn put(&self, object: &Object) -> Result<(), KernelError>;
    /// One after the other, up to the first that fails.
    async fn put_all(&self, objects: &[Object]) -> Result<(), KernelError> {
        for object in objects {
            self.put(object).await?;
        }
        Ok(())
    }
    /// Says that [`Kernel::delete`] will follow, when the container and its namespace may be gone: what it needs of them is taken hold of.
    fn retire(&self, _: &Key) {}
    async fn delete(&self, key: &Key) -> Result<(), KernelError>;
    /// All of them, whatever becomes of one; the first failure is told. Links go last, and many of them in little more time than one.
    async fn delete_all(&self, keys: &[Key]) -> Result<(), KernelError> {
        let mut outcome = Ok(());
        for key in keys {
            outcome = outcome.and(self.delete(key).await);
        }
        outcome
    }
    /// What happens to objects under our marks, whoever did it, since this value was made. To be called once; later receivers are empty.
    /// Of sysctls those named to `observe` or put are told, within half a second.
    fn changes(&self) -> mpsc::Receiver<Change>;
    /// What the host has apart from us.
    async fn surroundings(&self) -> Result<Surroundings, KernelError>;
    /// By which way tunnels leave this host; none where there is no such way, or none that leaves it.
    async fn underlay(&self, wanted: &Underlay) -> Result<Option<Uplink>, KernelError>;
    /// What a link of the host's is, whoever made it.
    async fn host_link(&self, name: &IfName) -> Result<Option<HostLink>, KernelError>;
    /// Its own addresses now, sorted, link-local ones left out; none: there is no such link.
    async fn addresses(&self, link: &IfName) -> Result<Option<Vec<IpAddr>>, KernelError>;
    /// The MAC that answers for an address on the segment of a link within `patience`; what cannot be asked is not answered.
    async fn who_has(&self, link: IfName, address: IpAddr, patience: Duration) -> Option<Mac>;
    /// What a sysctl says, by its path below `/proc/sys/net`; none: it cannot be read.
    fn sysctl(&self, path: &str) -> Option<String>;
    /// Whether a host port could be bound now.
    async fn is_free(&self, protocol: Protocol, host: IpAddr, ports: PortRange) -> bool;
    /// Whether this path, as the engine names it, is a container's network namespace now: engines before 28.0 name some that are none yet.
    fn is_sandbox(&self, path: &Path) -> bool;
    /// Sets the sysctls of an attachment whose link the engine moves to its sandbox and brings up; false: it has not yet.
    async fn tune(&self, attachment: &Attachment) -> Result<bool, KernelError>;
    /// Where the container's link of an attachment is, as far as it can be told without a look at the sandbox.
    fn whereabouts(&self, attachment: &Attachment) -> Whereabouts;
    /// What the host's namespace, or a container's, would do with a packet. Asks the kernel, sends nothing.
    async fn sight(&self, sandbox: Option<&Path>, question: &Question) -> Result<Sight, KernelError> {
        let _ = sandbox;
        Err(cannot("look for the way", question.flow.to.to_string()))
    }
    /// Sends one packet from a container's namespace and waits for its answer.
    async fn probe(&self, sandbox: &Path, probe: &Probe, patience: Duration) -> Result<Answer, KernelError> {
        let _ = (sandbox, patience);
        Err(cannot("ask", probe.flow.to.to_string()))
    }
    /// In which of the namespaces the address is one of its own.
    async fn which_have(&self, address: IpAddr, sandboxes: Vec<PathBuf>) -> Vec<PathBuf> {
        let _ = (address, sandboxes);
        Vec::new()
    }
}

/// What a kernel that is none does not do.
fn cannot(operation: &'static str, object: String) -> KernelError {
    KernelError { operation, object, cause: io::ErrorKind::Unsupported.into() }
}

/// Where the container's link of an attachment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    Nowhere,
    /// In the host's namespace: not moved yet, or moved back.
    Host,
    /// In a container.
    Away,
}

/// News of one object, or of an unknown number of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The object as it is now.
    Now(Box<Object>),
    Gone(Key),
    /// Events were lost, or something changed that much may stand on: everything may have changed.
    Lost,
}

/// What the host has apart from us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The MTU of the link of the default route, in bytes; the lower one where the families differ.
    pub mtu: Option<u32>,
    /// Subnets that the host reaches on links other than ours, default routes left out: (subnet, link).
    pub subnets: Vec<(IpNet, String)>,
    /// VXLAN links that are not ours.
    pub tunnels: Vec<Tunnel>,
    /// Their numbers. Links in other namespaces, where Docker's overlay networks have theirs, are not seen.
    pub vnis: BTreeSet<u32>,
    /// The kernel has no IPv6 (`ipv6.disable=1`): there is nothing to switch off, and no address to give.
    pub without_ipv6: bool,
}

/// A VXLAN link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub link: String,
    /// 0: it takes what it is told packet by packet.
    pub vni: u32,
    /// UDP.
    pub port: u16,
}

/// What may be said of the way by which tunnels leave a host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Underlay {
    /// By this link.
    Link(IfName),
    /// From this address of the host's.
    Address(IpAddr),
    /// As packets to this address do.
    Toward(IpAddr),
}

impl Underlay {
    /// As packets to the world do, of either family. The addresses are of the documentation (RFC 5737, RFC 3849): nothing is sent to them.
    pub fn anywhere() -> [Underlay; 2] {
        [IpAddr::from([192, 0, 2, 1]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])].map(Underlay::Toward)
    }
}

/// A way by which packets leave a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// The host's address on it.
    pub source: IpAddr,
    /// The link that it stands on, or by which packets leave.
    pub link: IfName,
    /// What is on that link with it.
    pub subnet: IpNet,
    /// Bytes: what fits the link, and the route where one was asked for.
    pub mtu: u32,
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

/// An object as an error names it.
pub fn describe(key: &Key) -> String {
    key.to_string()
}
