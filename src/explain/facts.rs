//! What is known of a flow, on each of the two hosts at most on which its ends are.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::{Answer, Flow, IfName, Key, Mac, Sight, Trail};

/// All that is known of one question.
pub struct Case {
    /// What people call the ends.
    pub names: (String, String),
    /// As A sends it.
    pub flow: Flow,
    /// As it is on this host's far side, where that translates its destination.
    pub led: Option<Flow>,
    pub relation: Relation,
    pub here: Side,
    pub there: There,
    pub probing: Probing,
}

/// What networks and their rules say of A and B.
pub struct Relation {
    /// In words, if it may pass.
    pub says: String,
    /// In words why not, and what to do.
    pub refusal: Option<(String, String)>,
    /// Frames pass between the two without a router.
    pub one_segment: bool,
}

/// Where B is.
pub enum There {
    /// On this host, or it is the host.
    Here,
    /// Nobody that could be asked.
    Outside,
    /// On another host: what that says, or why it does not.
    Host(String, Box<Result<Side, String>>),
}

/// What came of packets that were sent.
#[derive(Clone, Debug, Default)]
pub struct Probing {
    /// Of the smallest.
    pub small: Option<Answer>,
    /// Of one as large as A's interface takes; bytes.
    pub large: Option<(u32, Answer)>,
    /// What hindered, in words.
    pub hindered: Option<String>,
    /// Packet filters were listened to.
    pub traced: bool,
}

/// What a host sees of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    pub host: String,
    /// The containers of this host among the flow's ends.
    pub ends: Vec<End>,
    /// How the host leads the flow's packets on, and their answers; none: it is not on the way.
    pub forth: Option<Crossing>,
    pub back: Option<Crossing>,
    /// What of rsnet's does not stand as it should.
    pub rows: Vec<Row>,
    /// What was put right a moment ago.
    pub mended: Vec<Mended>,
    /// The way to the other host, where there is one.
    pub underlay: Option<Underlay>,
    pub trails: Vec<Trail>,
}

/// A container at one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub address: IpAddr,
    /// What stands on the host.
    pub link: IfName,
    pub mac: Mac,
    /// Bytes, as planned; none: whatever the link beneath has.
    pub mtu: Option<u32>,
    /// The host's link that its own stands on, as another station on that one's LAN. Hosts before this was known do not tell.
    #[serde(default)]
    pub beneath: Option<IfName>,
    /// In its namespace, towards the other end; or why that could not be looked into.
    pub sight: Result<Sight, String>,
    /// Others on its network that have the address too, in words.
    pub twins: Vec<String>,
}

/// A host between two of its links.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crossing {
    /// By which packets come in.
    pub by: IfName,
    /// By which they are planned to leave; none: nothing is planned.
    pub planned: Option<IfName>,
    pub sight: Result<Sight, String>,
}

/// A row of a plan that is not met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub what: Key,
    /// Nothing stands there; else something that is not as planned.
    pub missing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mended {
    /// None: something of the firewall.
    pub what: Option<Key>,
    /// Milliseconds, of the last time.
    pub ago: u64,
    /// How many times in the last seconds.
    pub times: usize,
}

/// The way between two hosts, as one of them sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Underlay {
    /// Outer addresses: the host's own, and the other's.
    pub own: IpAddr,
    pub other: IpAddr,
    /// The UDP port of the tunnel; none: packets go as they are.
    pub tunnel: Option<u16>,
    /// Bytes that a whole packet of a container's takes there.
    pub needs: u32,
    pub sight: Result<Sight, String>,
    /// Whether the store says that the other host is alive.
    pub alive: bool,
}

impl Side {
    pub fn end(&self, address: IpAddr) -> Option<&End> {
        self.ends.iter().find(|end| end.address == address)
    }
}
