//! The way past Docker's own chains, and what they tell of Docker's bridges.
//!
//! Where Docker filters with iptables it may have set the policy of `FORWARD` to drop, and an accept in our table does not undo that. So
//! `DOCKER-USER`, which Docker leaves to others, gets two rules that accept what comes from or goes to a segment. They decide nothing: who
//! may talk to whom is decided in our own table, which sees the same packets. They stand behind the rules that an administrator put there
//! and before the final return. Where there is no such chain and `FORWARD` drops (ufw, an engine that is not running yet), they stand at the
//! head of `FORWARD`, as Docker's would. Only the plainest expressions are used: with others `iptables` could no longer read the chain.
//!
//! As these rules stand before Docker's walls, the way to Docker's bridges is closed in our table. Their names are a user's choice, so they
//! are read from Docker's chains.

use std::collections::BTreeSet;
use std::io;

use crate::model::{Entry, Family, IfName};

use super::attribute::{Attribute, bytes, covers, find, find_number, find_string, string};
use super::batch::{Operation, message, operation};
use super::expression::{Expression, Field, Verdict, begins, counter, expressions, interface, nfproto, out_interface, verdict};
use super::socket::{Message, NFTABLES, Reply, Socket};

pub const TABLE: &str = "filter";
pub const USER: &str = "DOCKER-USER";
const FORWARD: &str = "FORWARD";
/// How the names of our own links begin.
const PREFIX: &str = "rsb-";
pub const COMMENT: &str = "rsnet: decided in table inet rsnet";

const NLM_F_CREATE: u16 = 0x400;
const DROP_POLICY: u32 = 0;

/// A chain that is not there for every published port, so that its changes are worth a look.
pub fn depends_on(chain: &str) -> bool {
    [USER, FORWARD].contains(&chain) || is_dockers(chain) && chain != "DOCKER"
}

/// A chain in which Docker alone writes.
pub fn is_dockers(chain: &str) -> bool {
    chain.starts_with("DOCKER") && chain != USER
}

/// The links that are let past.
pub enum Links {
    None,
    /// All that have our prefix, and these.
    Ours(BTreeSet<IfName>),
}

impl Links {
    /// Beginnings of names (false) and whole ones (true).
    pub fn patterns(&self) -> Vec<(String, bool)> {
        match self {
            Links::None => Vec::new(),
            Links::Ours(named) => {
                [(PREFIX.to_owned(), false)].into_iter().chain(named.iter().map(|link| (link.to_string(), true))).collect()
            }
        }
    }
}

/// Links that need rules of their own, since a user chose their name.
pub fn named_by_users(links: impl IntoIterator<Item = IfName>) -> BTreeSet<IfName> {
    links.into_iter().filter(|link| !link.as_str().starts_with(PREFIX)).collect()
}

/// The segments among the entries.
pub fn segments<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> impl Iterator<Item = IfName> {
    entries.into_iter().filter_map(|entry| match entry {
        Entry::Segment { link } => Some(link.clone()),
        _ => None,
    })
}

/// What makes our rules in a family's chains be exactly those for `links`.
pub fn differences(socket: &Socket, family: Family, links: &Links) -> io::Result<Vec<Operation>> {
    let (user, forward) = (Chain::read(socket, family, USER)?, Chain::read(socket, family, FORWARD)?);
    let in_forward = if user.is_none() && forward.as_ref().is_some_and(|chain| chain.drops) { links } else { &Links::None };
    let places = [(user, links), (forward, in_forward)];
    Ok(places.into_iter().filter_map(|(chain, links)| Some(chain?.differences(rules_of(links)))).flatten().collect())
}

/// Links that Docker's chains of this family name as its own.
pub fn dockers(socket: &Socket, family: Family) -> io::Result<BTreeSet<IfName>> {
    let in_dockers = |rule: &Reply| find_string(&rule.attributes, 2).is_some_and(is_dockers);
    let rules = socket.dump(&request(family, message::GETRULE, vec![string(1, TABLE)]))?;
    let names = rules.iter().filter(|rule| in_table(rule) && in_dockers(rule)).filter_map(|rule| out_interface(&rule.attributes));
    Ok(names.filter_map(|name| name.parse().ok()).collect())
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

/// A chain of iptables'.
struct Chain {
    family: Family,
    name: &'static str,
    drops: bool,
    rules: Vec<Present>,
}

impl Chain {
    /// Nothing where there is no such chain.
    fn read(socket: &Socket, family: Family, name: &'static str) -> io::Result<Option<Self>> {
        let about = |attribute| vec![string(1, TABLE), string(attribute, name)];
        let Some(chain) = socket.get(&request(family, message::GETCHAIN, about(3)))? else { return Ok(None) };
        let dump = socket.dump(&request(family, message::GETRULE, about(2)))?;
        let here = |rule: &Reply| in_table(rule) && find_string(&rule.attributes, 2) == Some(name);
        let rules = dump.into_iter().filter(here).filter_map(present).collect();
        Ok(Some(Chain { family, name, drops: find_number(&chain.attributes, 5) == Some(DROP_POLICY), rules }))
    }

    fn differences(&self, wanted: Vec<Attribute>) -> Vec<Operation> {
        let mut missing = wanted;
        let mut operations = Vec::new();
        for rule in self.rules.iter().filter(|rule| rule.ours) {
            match missing.iter().position(|wanted| rule.is(wanted)) {
                Some(found) => drop(missing.remove(found)),
                None => operations.push(self.delete(&rule.handle)),
            }
        }
        operations.extend(missing.into_iter().map(|rule| self.insert(rule)));
        operations
    }

    /// At the chain's head or, in `DOCKER-USER`, before the final return or at the end if there is none.
    fn insert(&self, rule: Attribute) -> Operation {
        let end = self.rules.last().filter(|rule| rule.is_return() && self.name == USER);
        let position = end.map(|rule| bytes(6, rule.handle.as_slice()));
        let attributes = [string(1, TABLE), string(2, self.name), rule, bytes(7, comment())].into_iter().chain(position).collect();
        let mut insertion = operation("add a rule to", self.object(), nfproto(self.family), message::NEWRULE, attributes);
        if end.is_some() || self.name == FORWARD {
            insertion.message.flags = NLM_F_CREATE;
        }
        insertion
    }

    fn delete(&self, handle: &[u8]) -> Operation {
        let attributes = vec![string(1, TABLE), string(2, self.name), bytes(3, handle)];
        operation("delete a rule of", self.object(), nfproto(self.family), message::DELRULE, attributes)
    }

    fn object(&self) -> String {
        format!("chain {} {TABLE} {}", if self.family == Family::V4 { "ip" } else { "ip6" }, self.name)
    }
}

/// A rule that is in the chain.
struct Present {
    handle: Vec<u8>,
    /// It bears our comment.
    ours: bool,
    attributes: Vec<u8>,
}

impl Present {
    fn is(&self, wanted: &Attribute) -> bool {
        self.ours && covers(std::slice::from_ref(wanted), &self.attributes)
    }

    /// The return that iptables puts at the chain's end: a verdict and nothing before it but a counter.
    fn is_return(&self) -> bool {
        let returning: [Vec<Vec<Expression>>; 2] = [vec![verdict(Verdict::Return)], vec![counter(), verdict(Verdict::Return)]];
        returning.into_iter().any(|rule| covers(&[expressions(rule)], &self.attributes))
    }
}

fn present(rule: Reply) -> Option<Present> {
    let handle = find(&rule.attributes, 3)?.to_vec();
    let ours = find(&rule.attributes, 7).is_some_and(|userdata| userdata == comment());
    Some(Present { handle, ours, attributes: rule.attributes })
}

/// `NFTNL_UDATA_RULE_COMMENT`, which both `nft` and `iptables` show.
fn comment() -> Vec<u8> {
    let length = COMMENT.len() as u8 + 1;
    [&[0, length], COMMENT.as_bytes(), &[0]].concat()
}
