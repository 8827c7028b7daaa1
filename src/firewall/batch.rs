//! Batches: what nftables applies as a whole or not at all.

use std::collections::{BTreeMap, BTreeSet};

use super::attribute::{Attribute, list, string, written_length};
use super::element::Element;
use super::fast;
use super::set::Set;
use super::socket::{Message, NFTABLES};
use super::table::{Chain, TABLE, chains, set_attributes};

const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

/// `nfgenmsg.nfgen_family`: which tables are meant.
pub const INET: u8 = 1;
pub const NETDEV: u8 = 5;

/// `NFT_MSG_*`.
pub mod message {
    pub const NEWTABLE: u8 = 0;
    pub const GETTABLE: u8 = 1;
    pub const DELTABLE: u8 = 2;
    pub const NEWCHAIN: u8 = 3;
    pub const GETCHAIN: u8 = 4;
    pub const DELCHAIN: u8 = 5;
    pub const NEWRULE: u8 = 6;
    pub const GETRULE: u8 = 7;
    pub const DELRULE: u8 = 8;
    pub const NEWSET: u8 = 9;
    pub const GETSET: u8 = 10;
    pub const NEWSETELEM: u8 = 12;
    pub const GETSETELEM: u8 = 13;
    pub const DELSETELEM: u8 = 14;
    /// No error where there is none; Linux 6.3.
    pub const DESTROYSETELEM: u8 = 30;
}

/// Bytes of elements in one message: an attribute's length has 16 bits.
const MESSAGE_LIMIT: usize = 48 * 1024;

/// One operation of a batch, and what to call it when it fails.
pub struct Operation {
    pub what: &'static str,
    pub object: String,
    pub message: Message,
}

pub fn operation(what: &'static str, object: impl Into<String>, family: u8, kind: u8, attributes: Vec<Attribute>) -> Operation {
    let flags = match kind {
        message::NEWRULE => NLM_F_CREATE | NLM_F_APPEND,
        message::NEWTABLE | message::NEWCHAIN | message::NEWSET | message::NEWSETELEM => NLM_F_CREATE,
        _ => 0,
    };
    Operation { what, object: object.into(), message: Message { subsystem: NFTABLES, kind, flags, family, attributes } }
}

/// One of our two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Inet,
    /// That of the fast way, where the kernel has one.
    Netdev,
}

impl Table {
    pub fn family(self) -> u8 {
        match self {
            Table::Inet => INET,
            Table::Netdev => NETDEV,
        }
    }

    /// As `nft` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Table::Inet => "inet rsnet",
            Table::Netdev => "netdev rsnet",
        }
    }

    pub fn sets(self) -> Vec<Set> {
        match self {
            Table::Inet => Set::all().collect(),
            Table::Netdev => Set::fast().collect(),
        }
    }

    pub fn chains(self) -> Vec<Chain> {
        match self {
            Table::Inet => chains(),
            Table::Netdev => fast::chains(),
        }
    }

    fn operation(self, what: &'static str, kind: u8) -> Operation {
        operation(what, format!("table {}", self.name()), self.family(), kind, vec![string(1, TABLE)])
    }

    /// No table, whether there was one or not: it is made first, so that the deletion finds one.
    pub fn remove(self) -> Vec<Operation> {
        vec![self.operation("create", message::NEWTABLE), self.operation("delete", message::DELTABLE)]
    }

    /// The table as it must be, in place of whatever is there.
    pub fn rebuild(self) -> Vec<Operation> {
        let sets = self.sets().into_iter().zip(1..).map(|(set, id)| {
            let attributes = [set_attributes(set), vec![super::attribute::number(10, id)]].concat();
            operation("create", format!("set {} {}", self.name(), set.name()), self.family(), message::NEWSET, attributes)
        });
        let chains = self.chains().into_iter().flat_map(|chain| self.chain(&chain));
        self.remove().into_iter().chain([self.operation("create", message::NEWTABLE)]).chain(sets).chain(chains).collect()
    }

    /// The chain with these rules only, whether there was one or not.
    fn chain(self, chain: &Chain) -> Vec<Operation> {
        let object = format!("chain {} {}", self.name(), chain.name);
        let operation = |kind, attributes| operation("make", object.clone(), self.family(), kind, attributes);
        let named = || vec![string(1, TABLE), string(2, &chain.name)];
        let (made, emptied) = (operation(message::NEWCHAIN, chain.attributes()), operation(message::DELRULE, named()));
        let rules = chain.rules.iter().map(|rule| operation(message::NEWRULE, [named(), vec![rule.clone()]].concat()));
        [made, emptied].into_iter().chain(rules).collect()
    }
}

/// Takes elements out, then puts others in. Of hooks and chains none is taken out: that is [`drop_idle`], for those who see all. Those of the
/// fast way have numbers of links in them, which may be others by now: what is not there any more is none of an error.
pub fn change<'a>(remove: impl IntoIterator<Item = &'a Element>, add: impl IntoIterator<Item = &'a Element>) -> Vec<Operation> {
    let (hooks, add): (Vec<_>, Vec<_>) = add.into_iter().partition(|element| element.set == Set::Hooks);
    let (branches, add): (Vec<_>, Vec<_>) = add.into_iter().partition(|element| element.set == Set::Branches);
    let branches = branches.into_iter().filter_map(Element::chain).flat_map(|chain| Table::Netdev.chain(&chain));
    let (fast, remove): (Vec<_>, Vec<_>) = remove.into_iter().filter(|element| !element.set.is_no_set()).partition(|one| one.set.is_fast());
    let removals = [(message::DELSETELEM, remove), (message::DESTROYSETELEM, fast)];
    let removals = removals.into_iter().flat_map(|(kind, elements)| grouped("remove elements from", kind, elements));
    let additions = branches.chain(grouped("add elements to", message::NEWSETELEM, add));
    removals.chain(additions).chain(fast::hook(message::NEWCHAIN, hooks)).collect()
}

/// Links that are no more of ours, and chains of networks that are none: each kind by itself, for a link may be gone by now.
pub fn drop_idle(idle: &BTreeSet<Element>) -> [Vec<Operation>; 2] {
    let of = |set| idle.iter().filter(move |element| element.set == set);
    let chains = of(Set::Branches).filter_map(|chain| str::from_utf8(&chain.key).ok()).map(|name| {
        let attributes = vec![string(1, TABLE), string(3, name)];
        operation("delete", format!("chain {} {name}", Table::Netdev.name()), NETDEV, message::DELCHAIN, attributes)
    });
    [fast::hook(message::DELCHAIN, of(Set::Hooks)), chains.collect()]
}

fn grouped<'a>(what: &'static str, kind: u8, elements: impl IntoIterator<Item = &'a Element>) -> Vec<Operation> {
    let mut sets: BTreeMap<Set, Vec<Attribute>> = BTreeMap::new();
    for element in elements {
        sets.entry(element.set).or_default().extend(element.attributes());
    }
    let messages = sets.into_iter().flat_map(|(set, members)| split(members).into_iter().map(move |members| (set, members)));
    messages
        .map(|(set, members)| {
            let attributes = vec![string(1, TABLE), string(2, set.name()), list(3, members)];
            let table = set.table();
            operation(what, format!("set {} {}", table.name(), set.name()), table.family(), kind, attributes)
        })
        .collect()
}

/// The attributes in portions that fit into a message.
fn split(members: Vec<Attribute>) -> Vec<Vec<Attribute>> {
    let mut portions = vec![Vec::new()];
    let mut filled = 0;
    for member in members {
        let length = written_length(&member);
        if filled + length > MESSAGE_LIMIT {
            portions.push(Vec::new());
            filled = 0;
        }
        filled += length;
        if let Some(portion) = portions.last_mut() {
            portion.push(member);
        }
    }
    portions
}
