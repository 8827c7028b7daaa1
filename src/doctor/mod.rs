//! What is wrong with this host, what that means and what to do: facts in, findings out.
//!
//! Pure: whoever asks collects the facts (`inspect` in the daemon, `cli` beside it) and shows the findings. One cause is one finding. A
//! check says nothing where it does not know.

mod host;
mod outside;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use host::examine;
pub use outside::{FLEETING, Outside, Seen, examine_outside};

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which check found it: a word that stays the same.
    pub check: String,
    /// What is so, with its object's name.
    pub what: String,
    /// What does not work by it.
    pub meaning: String,
    pub remedy: String,
    /// Whether a converge heals it (`rsnet doctor --fix`).
    pub heals: bool,
}

impl Finding {
    fn new(check: &str, what: impl Into<String>, meaning: impl Into<String>, remedy: impl Into<String>) -> Self {
        Finding { check: check.to_owned(), what: what.into(), meaning: meaning.into(), remedy: remedy.into(), heals: false }
    }
}

/// What the daemon can tell of its host.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// None: the first look at the whole host is not over.
    pub looked: bool,
    /// Why the host could not be looked at.
    pub blind: Option<String>,
    pub deviations: Vec<Deviation>,
    /// What a converge would do to the firewall, in words.
    pub firewall: Vec<String>,
    /// Why the last converge could not do it.
    pub firewall_failing: Option<String>,
    pub blockers: Vec<Blocker>,
    pub networks: Vec<Network>,
    pub uplink: Option<Uplink>,
    /// The kernel has no IPv6.
    pub without_ipv6: bool,
    /// Strict reverse path filters (`rp_filter=1`): `all`, or the uplink.
    pub strict: Option<String>,
    /// VXLAN devices of others.
    pub tunnels: Vec<Tunnel>,
    pub store: Option<Store>,
    pub hosts_gone: Vec<Gone>,
    pub disowned: Vec<Disowned>,
    pub names: Option<Names>,
    pub disk: Option<Disk>,
    /// Records of this host's store that are not what the daemon knows, in words.
    pub records: Vec<String>,
}

/// Something on the host that is not as planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deviation {
    /// The network for which it is planned, as people know it; none: no plan has it.
    pub network: Option<String>,
    /// `link rsb-0123456789 is missing`
    pub what: String,
    /// Why the last converge could not mend it.
    pub failing: Option<String>,
}

/// A rule or a policy of somebody else's that drops packets of our networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// `chain forward of table inet mine`
    pub chain: String,
    /// `drops everything`
    pub how: String,
}

/// A network of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// As people know it.
    pub name: String,
    /// The size of what its containers send on their way out of the host, tunnels' headers included, and the way by which that goes.
    pub size: Option<(u32, Way)>,
    pub ipv6: bool,
    /// What its mode says will not work.
    pub warnings: Vec<String>,
    /// The number and UDP port of its tunnels.
    pub tunnel: Option<(u32, u16)>,
    /// Its hosts may choose between tunnels and plain routes, each by itself.
    pub two_ways: bool,
}

/// A way out of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    pub link: String,
    /// Bytes.
    pub mtu: u32,
}

/// The link by which this host reaches the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub link: String,
    /// The families whose packets it does not pass on: `ipv4`, `ipv6`.
    pub not_forwarding: Vec<String>,
}

/// A VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub link: String,
    /// 0: of any number (`external`).
    pub vni: u32,
    pub port: u16,
}

/// The store that hosts share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Store {
    pub place: String,
    /// Why it cannot be used.
    pub problem: Option<String>,
    /// Seconds by which this host's clock is ahead of the store's.
    pub ahead: Option<i64>,
}

/// A host that does not renew its lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    pub name: String,
    pub address: IpAddr,
    /// Seconds.
    pub since: Option<u64>,
}

/// Addresses of containers here that are not this host's any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disowned {
    /// As people know it.
    pub network: String,
    pub addresses: Vec<IpAddr>,
    /// Whose they are; none: that is not known here.
    pub owner: Option<String>,
}

/// Containers that are not told the names of other hosts' containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// How many, by sandbox, that should be told.
    pub untold: usize,
    /// The kernel cannot have what it takes: none is told.
    pub unsupported: bool,
}

/// Where this host's state is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    pub directory: String,
    /// Bytes that are free.
    pub free: u64,
}
