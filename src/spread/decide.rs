//! What a host does about one name. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::docker::{PoolSpec, Spec};
use crate::drivers;
use crate::model::NetworkId;

/// `cluster/spread/NAME`: a network that hosts are to have, or had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Random: a network that is made anew under its old name is another.
    pub birth: u64,
    /// The host whose user made or removed it.
    pub by: String,
    /// When, in seconds since 1970.
    pub at: u64,
    /// None: it was removed.
    pub spec: Option<Spec>,
    /// Containers that kept it from being removed, on the host `by`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used: Vec<String>,
    /// What a newer release says of it beside.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// `spread/NAME` on a host's own disk: which of its networks was as which record said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    pub birth: u64,
    pub id: NetworkId,
}

/// What this host has of the name.
#[derive(Clone, Debug)]
pub struct Here {
    pub id: NetworkId,
    /// None: it is not rsnet's.
    pub spec: Option<Spec>,
    /// Hosts share it.
    pub shared: bool,
}

/// What is to be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Nothing,
    /// Writes what this host has, as what was known of it or as new.
    Announce(Option<u64>),
    /// Remembers that this host's network is that of the record.
    Follow(u64),
    Create,
    /// The user removed it here: so it goes everywhere.
    Withdraw,
    /// It was removed elsewhere, or made anew.
    Remove,
    /// There is nothing to remember any more.
    Forget,
    /// The name is another network's here.
    Clash,
}

pub fn decide(record: Option<&Record>, here: Option<&Here>, followed: Option<&Followed>) -> Act {
    let Some(here) = here else { return without(record, followed) };
    // the user may have made another network since
    let before = followed.filter(|followed| followed.id == here.id).map(|followed| followed.birth);
    match record.map(|record| (record.birth, &record.spec)) {
        None if here.shared => Act::Announce(before),
        Some((_, None)) if before.is_some() => Act::Remove,
        Some((_, None)) if here.shared => Act::Announce(None),
        None | Some((_, None)) => Act::Nothing,
        Some((birth, Some(spec))) if here.spec.as_ref().is_some_and(|own| is_like(own, spec)) => match before {
            Some(known) if known == birth => Act::Nothing,
            _ => Act::Follow(birth),
        },
        Some((birth, Some(_))) if before.is_some_and(|known| known != birth) => Act::Remove,
        Some(_) => Act::Clash,
    }
}

fn without(record: Option<&Record>, followed: Option<&Followed>) -> Act {
    match (record, followed) {
        (Some(Record { birth, spec: Some(_), .. }), Some(followed)) if followed.birth == *birth => Act::Withdraw,
        (Some(Record { spec: Some(_), .. }), _) => Act::Create,
        (_, Some(_)) => Act::Forget,
        (_, None) => Act::Nothing,
    }
}

/// Whether both make one network of the hosts that have them. What is each host's own affair, or for people, may differ.
pub fn is_like(one: &Spec, other: &Spec) -> bool {
    let bare = |spec: &Spec| {
        let mut bare = Spec { labels: BTreeMap::new(), attachable: false, ..spec.clone() };
        bare.options = drivers::between_hosts(&spec.options);
        bare.pools.sort_by_key(|pool| pool.subnet);
        bare
    };
    let (mut one, mut other) = (bare(one), bare(other));
    for (one, other) in one.pools.iter_mut().zip(&mut other.pools) {
        forget_untold(one, other);
    }
    one == other
}

/// A gateway that only one of two engines tells was typed by nobody, or on one host.
fn forget_untold(one: &mut PoolSpec, other: &mut PoolSpec) {
    if one.gateway.is_none() || other.gateway.is_none() {
        (one.gateway, other.gateway) = (None, None);
    }
}
