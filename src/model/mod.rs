//! WORDS: validated ids, names, networks, endpoints, kernel objects and firewall entries.
//!
//! Below every other room: no I/O, no async, no clock, no randomness. What is parsed at the border stays parsed: inside there are typed
//! ids, `IpNet` and `IpAddr`, never strings and never pairs of `_v4` and `_v6`.

mod address;
mod id;
mod network;
mod object;
mod policy;
mod roster;
mod shared;
mod sight;

pub use address::{Family, PortRange, Protocol, address_of, family_of, number_of};
pub use id::{EndpointId, IfName, InvalidName, Mac, NetworkId};
pub use network::{Attached, Binding, Endpoint, HostLink, Network, Pool, Sandbox, Way};
pub use object::{
    Attachment, AttachmentKind, HostPort, Key, Link, LinkKind, Macvlan, MacvlanMode, Object, Place, Plan, Port, Route, RouteKind,
    SandboxName, StaticRoute, conf_path,
};
pub use policy::{Entry, Inbound, Zone};
pub use roster::{Named, Roster};
pub use shared::{Agreement, Member, OnLink, Segment, Share};
pub use sight::{Answer, Dropped, Flow, LinkSight, NeighbourSight, NoWay, Probe, Question, Sight, Stage, Trace, Trail, WayOut};
