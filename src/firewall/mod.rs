//! MECHANISM: the only room that speaks nftables or knows Docker's own chains. It knows entries, no modes and no networks.
//!
//! The rules are constant (`table`); an entry is an element (`element`) of their sets and maps (`set`). So a change is one small batch whatever
//! the host runs, and a packet meets the same few rules. `docs/firewall.md` tells why each stands where it does.
//!
//! # A packet's way
//!
//! From the wire to a published port, 192.0.2.1:80:
//!
//! 1. `raw` lets it by: it drops what a segment sends to loopback addresses.
//! 2. `prerouting` sees a local destination and asks `publish4`, `publish4_any`, `publish4_range`: the destination becomes 10.1.0.2:8080.
//! 3. The kernel routes it to the segment's bridge. `FORWARD` of iptables may drop by policy: two rules of ours in it accept
//!    whatever comes from or goes to a segment (`docker`, and `legacy` for the old tables).
//! 4. `forward` accepts it as translated. Without translation `enter` would decide: nothing, open ports, or anything but from containers.
//! 5. `postrouting` leaves the caller's address as it is.
//!
//! Its answer, and all later packets, follow what connection tracking noted of the first; `forward` accepts them in its first rule. When the
//! entry goes, `conntrack` forgets the flow.
//!
//! From a container to the world: `forward` walls off Docker's bridges, `postrouting` gives a source by `snat4` or `masquerade`. From the
//! host itself: `output` instead of `prerouting`, and from 127.0.0.1 with the bridge's address as source. From a container to its own or its
//! neighbour's published port (hairpin): steps 2 to 4, then `postrouting` gives the bridge's address, or the answer would go past the host.
//! Between two containers of a segment a packet crosses the bridge only, and meets none of this unless `bridge-nf-call-iptables` is on;
//! then `inner` accepts it.
//!
//! Between two containers of a network without a bridge a packet is routed, here and on the other host: `raw` takes it past connection
//! tracking if it came by the way back to its source (`inside`), and `forward` accepts it. From such a container to elsewhere, and
//! from elsewhere to its published port, the steps are those above, by address in the place of link.

mod attribute;
mod batch;
mod conntrack;
pub mod divert;
mod docker;
mod element;
mod expression;
pub mod fake;
mod fast;
mod foreign;
mod legacy;
pub mod nftables;
mod set;
mod socket;
mod table;
mod trace;
mod watch;

use std::collections::BTreeSet;
use std::io;

use async_trait::async_trait;
use ipnet::IpNet;
use tokio::sync::mpsc;

use crate::model::{Entry, IfName, Trace};
pub use trace::Tracer;

/// The packet filter of one host as a set of entries under constant rules.
#[async_trait]
pub trait Firewall: Send + Sync {
    /// Takes `remove` out and puts `add` in, both or neither. Flows through a mapping that went are forgotten by the kernel's connection
    /// tracking, and UDP flows that began before a mapping came.
    async fn apply(&self, remove: &[Entry], add: &[Entry]) -> Result<(), FirewallError>;
    /// Makes the table, its rules and the way through iptables' `FORWARD` be exactly those of `all`; says how many differences it mended.
    async fn converge(&self, all: &BTreeSet<Entry>) -> Result<usize, FirewallError>;
    /// What [`Firewall::converge`] would change, in words; changes nothing.
    async fn compare(&self, all: &BTreeSet<Entry>) -> Result<Vec<String>, FirewallError>;
    /// Who else drops what passes this host from or to our networks, in other tables of nftables (those of iptables-nft among them).
    async fn blockers(&self, ours: &Ours) -> Result<Vec<Blocker>, FirewallError>;
    /// Takes our tables and our way through iptables' `FORWARD` away.
    async fn clear(&self) -> Result<(), FirewallError>;
    /// Follows packets on this host, until the value is dropped.
    fn trace(&self, what: &Trace) -> Result<Tracer, FirewallError> {
        let failed = |cause| FirewallError { operation: "trace", object: format!("packets to {}", what.flow.to), cause };
        Tracer::start(what).map_err(failed)
    }
    /// Wakes when somebody else changed our table or the chains we depend on. To be called once.
    fn changes(&self) -> mpsc::Receiver<()>;
}

/// By what a packet is known as one of our networks'.
#[derive(Clone, Debug, Default)]
pub struct Ours {
    pub links: BTreeSet<IfName>,
    pub subnets: Vec<IpNet>,
}

/// Somebody else's chain that drops such packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// `chain forward of table inet mine`
    pub chain: String,
    pub drops: Drops,
}

/// What a chain drops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drops {
    /// What no rule of it accepts.
    ByPolicy,
    /// All that meets one of its rules, which asks for nothing.
    Everything,
    /// What meets a rule that names a link or an address of ours.
    Named,
}

#[derive(Debug, thiserror::Error)]
#[error("{operation} {object}: {cause}")]
pub struct FirewallError {
    pub operation: &'static str,
    pub object: String,
    #[source]
    pub cause: io::Error,
}
