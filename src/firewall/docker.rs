//! The way past Docker's own chains, and what they tell of Docker's bridges.
//!
//! Where Docker filters with iptables it may have set the policy of `FORWARD` to drop, and an accept in our table does not undo that. So
//! `FORWARD` gets two rules that accept what comes from or goes to a segment, and as many for routed ports and tunnels while there are
//! networks of these. They decide nothing: who may talk to whom is decided in our own table, which sees the same packets. They stand behind
//! the jump to `DOCKER-USER`, so that an administrator's rules there come first.
//! Not in `DOCKER-USER` itself: engines up to 27 take the jump out and in again whenever a network is made, and what comes in between meets
//! the policy. Where there is no such chain and `FORWARD` drops (ufw, an engine that is not running yet), they stand at its head. Only the
//! plainest expressions are used: with others `iptables` could no longer read the chain.
//!
//! As these rules stand before Docker's walls, or may, the way to Docker's bridges is closed in our table. Their names are a user's choice, so they
//! are read from Docker's chains.
//!
//! Docker with its nftables backend (Engine 29) has a table of its own for each family, which drops what is for or from its bridges and lets
//! all else by: nothing of ours is in its way. Its bridges' names are read from there as well: they are in the names of its chains.

use std::collections::BTreeSet;
use std::io;

use crate::model::{Family, IfName};

use super::attribute::{Attribute, bytes, covers, find, find_number, find_string, string};
use super::batch::{Operation, message, operation};
use super::element::Element;
use super::expression::{Field, Verdict, begins, counter, expressions, interface, jumps_to, nfproto, out_interface, verdict};
use super::socket::{Message, NFTABLES, Reply, Socket};
use super::table::ROUTED;

pub const TABLE: &str = "filter";
pub const USER: &str = "DOCKER-USER";
pub const FORWARD: &str = "FORWARD";
/// How the names of our own bridges begin.
const PREFIX: &str = "rsb-";
pub const COMMENT: &str = "rsnet: decided in table inet rsnet";

const NLM_F_CREATE: u16 = 0x400;
const DROP_POLICY: u32 = 0;

/// The tables `ip` and `ip6` of Docker's nftables backend.
pub const NATIVE: &str = "docker-bridges";
/// How the name of the chain begins that decides there what goes to a bridge; the bridge's name is the rest.
const INTO: &str = "filter-forward-in__";

/// A chain that is not there for every published port, so that its changes are worth a look.
pub fn depends_on(chain: &str) -> bool {
    [USER, FORWARD].contains(&chain) || is_dockers(chain) && chain != "DOCKER"
}

/// The bridge whose chain in [`NATIVE`] this is.
pub fn bridge_of(chain: &str) -> Option<IfName> {
    chain.strip_prefix(INTO)?.parse().ok()
}

/// A chain in which Docker alone writes.
pub fn is_dockers(chain: &str) -> bool {
    chain.starts_with("DOCKER") && chain != USER
}

/// The links that are let past.
pub enum Links {
    None,
    /// All bridges that have our prefix, and those with other names; where there are networks without a bridge, their links too.
    Ours {
        named: BTreeSet<IfName>,
        routed: bool,
    },
}

impl Links {
    /// Those of the networks that the elements tell of.
    pub fn of<'a>(elements: impl IntoIterator<Item = &'a Element>) -> Self {
        let (mut named, mut routed) = (BTreeSet::new(), false);
        for element in elements {
            named.extend(element.segment().filter(|link| !link.as_str().starts_with(PREFIX)));
            routed |= element.is_of_subnet();
        }
        Links::Ours { named, routed }
    }

    /// Whether they are more than those that are always let past.
    pub fn are_special(&self) -> bool {
        self.patterns().len() > 1
    }

    /// Beginnings of names (false) and whole ones (true).
    pub fn patterns(&self) -> Vec<(String, bool)> {
        match self {
            Links::None => Vec::new(),
            Links::Ours { named, routed } => {
                let routed = ROUTED.into_iter().filter(|_| *routed);
                let prefixes = [PREFIX].into_iter().chain(routed).map(|prefix| (prefix.to_owned(), false));
                prefixes.chain(named.iter().map(|link| (link.to_string(), true))).collect()
            }
        }
    }
}

/// What makes our rules in a family's `FORWARD` be exactly those for `links`.
pub fn differences(socket: &Socket, family: Family, links: &Links) -> io::Result<Vec<Operation>> {
    let Some(forward) = Forward::read(socket, family)? else { return Ok(Vec::new()) };
    let needed = forward.drops || chain(socket, family, USER)?.is_some();
    Ok(forward.differences(if needed { rules_of(links) } else { Vec::new() }))
}

/// Links that Docker's chains of this family name as its own.
pub fn dockers(socket: &Socket, family: Family) -> io::Result<BTreeSet<IfName>> {
    let in_dockers = |rule: &Reply| find_string(&rule.attributes, 2).is_some_and(is_dockers);
    let rules = socket.dump(&request(family, message::GETRULE, vec![string(1, TABLE)]))?;
    let names = rules.iter().filter(|rule| in_table(rule) && in_dockers(rule)).filter_map(|rule| out_interface(&rule.attributes));
    let chains = socket.dump(&request(family, message::GETCHAIN, vec![string(1, NATIVE)]))?;
    let native = chains.iter().filter(|chain| find_string(&chain.attributes, 1) == Some(NATIVE));
    let native = native.filter_map(|chain| bridge_of(find_string(&chain.attributes, 3)?));
    Ok(names.filter_map(|name| name.parse().ok()).chain(native).collect())
}

fn rules_of(links: &Links) -> Vec<Attribute> {
    let names = |(name, whole): (String, bool)| if whole { interface(&name).to_vec() } else { name.into_bytes() };
    links.patterns().into_iter().flat_map(|pattern| accepting(&names(pattern))).collect()
}

fn accepting(name: &[u8]) -> [Attribute; 2] {
    [Field::Iifname, Field::Oifname].map(|field| expressions([begins(field, name), counter(), verdict(Verdict::Accept)]))
}

fn request(family: Family, kind: u8, attributes: Vec<Attribute>) -> Message {
    Message { subsystem: NFTABLES, kind, flags: 0, family: nfproto(family), attributes }
}

/// The kernel may answer with more than was asked for.
fn in_table(rule: &Reply) -> bool {
    find_string(&rule.attributes, 1) == Some(TABLE)
}

fn chain(socket: &Socket, family: Family, name: &str) -> io::Result<Option<Reply>> {
    socket.get(&request(family, message::GETCHAIN, vec![string(1, TABLE), string(3, name)]))
}

/// The chain `FORWARD` of iptables'.
struct Forward {
    family: Family,
    drops: bool,
    rules: Vec<Present>,
}

impl Forward {
    /// Nothing where there is no such chain.
    fn read(socket: &Socket, family: Family) -> io::Result<Option<Self>> {
        let Some(chain) = chain(socket, family, FORWARD)? else { return Ok(None) };
        let dump = socket.dump(&request(family, message::GETRULE, vec![string(1, TABLE), string(2, FORWARD)]))?;
        let here = |rule: &Reply| in_table(rule) && find_string(&rule.attributes, 2) == Some(FORWARD);
        let rules = dump.into_iter().filter(here).filter_map(present).collect();
        Ok(Some(Forward { family, drops: find_number(&chain.attributes, 5) == Some(DROP_POLICY), rules }))
    }

    fn differences(&self, wanted: Vec<Attribute>) -> Vec<Operation> {
        let mut missing = wanted;
        let mut operations = Vec::new();
        let jump = self.rules.iter().rposition(|rule| rule.asks_user);
        for (index, rule) in self.rules.iter().enumerate().filter(|(_, rule)| rule.ours) {
            let behind = jump.is_none_or(|jump| jump < index);
            match missing.iter().position(|wanted| behind && rule.is(wanted)) {
                Some(found) => drop(missing.remove(found)),
                None => operations.push(self.delete(&rule.handle)),
            }
        }
        // Each comes before those that were inserted at the same place earlier.
        operations.extend(missing.into_iter().rev().map(|rule| self.insert(rule, jump)));
        operations
    }

    /// Directly behind the rule at `jump`, or at the chain's head.
    fn insert(&self, rule: Attribute, jump: Option<usize>) -> Operation {
        let position = jump.map(|jump| bytes(6, self.rules[jump].handle.as_slice()));
        let attributes = [string(1, TABLE), string(2, FORWARD), rule, bytes(7, comment())].into_iter().chain(position).collect();
        let mut insertion = operation("add a rule to", self.object(), nfproto(self.family), message::NEWRULE, attributes);
        if jump.is_none() {
            insertion.message.flags = NLM_F_CREATE;
        }
        insertion
    }

    fn delete(&self, handle: &[u8]) -> Operation {
        let attributes = vec![string(1, TABLE), string(2, FORWARD), bytes(3, handle)];
        operation("delete a rule of", self.object(), nfproto(self.family), message::DELRULE, attributes)
    }

    fn object(&self) -> String {
        format!("chain {} {TABLE} {FORWARD}", if self.family == Family::V4 { "ip" } else { "ip6" })
    }
}

/// A rule that is in the chain.
struct Present {
    handle: Vec<u8>,
    /// It bears our comment.
    ours: bool,
    /// It jumps to `DOCKER-USER`.
    asks_user: bool,
    attributes: Vec<u8>,
}

impl Present {
    fn is(&self, wanted: &Attribute) -> bool {
        self.ours && covers(std::slice::from_ref(wanted), &self.attributes)
    }
}

fn present(rule: Reply) -> Option<Present> {
    let handle = find(&rule.attributes, 3)?.to_vec();
    let ours = find(&rule.attributes, 7).is_some_and(|userdata| userdata == comment());
    Some(Present { handle, ours, asks_user: jumps_to(&rule.attributes) == Some(USER), attributes: rule.attributes })
}

/// `NFTNL_UDATA_RULE_COMMENT`, which both `nft` and `iptables` show.
pub fn comment() -> Vec<u8> {
    let length = COMMENT.len() as u8 + 1;
    [&[0, length], COMMENT.as_bytes(), &[0]].concat()
}
