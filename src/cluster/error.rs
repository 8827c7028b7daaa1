use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::text::list;
use crate::model::Mac;
use crate::store::StoreError;

/// Why a host did not get what it asked for. What it has it keeps in every case.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The store gave no answer, or none of use.
    #[error("{action}: {cause}")]
    Store { action: String, cause: StoreError },
    /// It gave none in time.
    #[error("{action}: the store did not answer within {} s; see that Consul runs there and has a leader", .limit.as_secs())]
    Slow { action: String, limit: Duration },
    /// Other hosts were faster, again and again.
    #[error("{action}: other hosts changed the same each time; try again")]
    Contended { action: String },
    /// The network is there, and is another.
    #[error(
        "join the network of {}: {what} is {here} here and {there} on host {host}, which made it; give the same on every host",
        list(.subnets)
    )]
    Differs { subnets: Vec<IpNet>, what: String, here: String, there: String, host: String },
    /// Some of its addresses are another network's.
    #[error(
        "join the network of {}: host {host} made the network of {}, which overlaps it; choose another --subnet, or the same",
        list(.subnets), list(.other)
    )]
    Overlap { subnets: Vec<IpNet>, other: Vec<IpNet>, host: String },
    /// Its number is in use on this host.
    #[error(
        "join the network of {}: its VNI {vni} is that of another VXLAN device on this host; remove that, or make the network with another subnet",
        list(.subnets)
    )]
    VniHere { subnets: Vec<IpNet>, vni: u32 },
    /// No block is left.
    #[error(
        "claim a block of {subnet}: all belong to other hosts; free those of a dead host by `rsnet host forget NAME`, or make a network with a larger subnet"
    )]
    Exhausted { subnet: IpNet },
    /// Nor is there an address to begin with.
    #[error(
        "take part in the network of {subnet}: no block of it is free, and no other host lends an address: {}; remove containers there, free a \
         dead host's addresses by `rsnet host forget NAME`, or make a network with a larger subnet",
        words(.said)
    )]
    NoneToLodge { subnet: IpNet, said: Vec<(String, String)> },
    /// Another machine has this host's name.
    #[error("register host {host}: another machine of that name is alive{at}; give this one another RSNET_HOST, or stop that one")]
    NameTaken { host: String, at: String },
    /// Nothing says yet by which address the others reach this host.
    #[error(
        "take part in a network of several hosts: no way to the others is known yet: no route leads to the store or out of this host; name \
         an interface or an address of it by RSNET_UNDERLAY"
    )]
    NoWay,
    /// Its name cannot be written into the store.
    #[error("register host {host:?}: a host's name has only letters, digits, '.', '_' and '-' here; give it another")]
    Name { host: String },
    /// This host has no part in the network.
    #[error("claim an address of {subnet}: this host has no part in that network; this is an error in rsnet, please report it")]
    NotJoined { subnet: IpNet },
    /// Somebody else has the address.
    #[error("claim {address} in {subnet}: host {host} has it ({why}); choose another address")]
    Taken { subnet: IpNet, address: IpAddr, host: String, why: String },
    /// It belongs to a host that does not answer.
    #[error("claim {address} in {subnet}: it belongs to host {host}, which does not answer; choose another address, or see to that host")]
    Silent { subnet: IpNet, address: IpAddr, host: String },
    /// No host has one left.
    #[error(
        "borrow an address of {subnet}: none is free on this host, and no other lends one: {}; remove containers, free a dead host's addresses \
         by `rsnet host forget NAME`, or make a network with a larger subnet",
        words(.said)
    )]
    NoneLent { subnet: IpNet, said: Vec<(String, String)> },
    /// A container of another host has it.
    #[error("claim MAC {mac}: host {host} has it ({at}); give another --mac-address, or remove that container")]
    MacTaken { mac: Mac, host: String, at: String },
    /// It is the network's own, or kept.
    #[error("claim {address} in {subnet}: no container can have it; choose another address")]
    Unusable { subnet: IpNet, address: IpAddr },
    /// Only what is dead can be forgotten.
    #[error("forget host {host}: it is alive; stop rsnet there first, then wait for a minute")]
    Alive { host: String },
    /// There is none.
    #[error("forget host {host}: the store knows no such host; `rsnet hosts` lists them")]
    Unknown { host: String },
}

/// What each host said, of many some.
fn words(said: &[(String, String)]) -> String {
    let some: Vec<String> = said.iter().take(4).map(|(host, why)| format!("{host}: {why}")).collect();
    match said.len() {
        0 => "there is no other".to_owned(),
        all if all > some.len() => format!("{}, and {} more", some.join("; "), all - some.len()),
        _ => some.join("; "),
    }
}

impl Error {
    pub(super) fn store(action: impl Into<String>) -> impl FnOnce(StoreError) -> Error {
        let action = action.into();
        move |cause| Error::Store { action, cause }
    }
}
