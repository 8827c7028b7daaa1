//! The way past Docker's own chains.
//!
//! Where Docker filters with iptables it may have set the policy of `FORWARD` to drop, and an accept in our table does not undo that. So
//! `DOCKER-USER`, which Docker leaves to others, gets two rules that accept what comes from or goes to a segment. They decide nothing: who
//! may talk to whom is decided in our own table, which sees the same packets. They stand behind the rules that an administrator put there
//! and before the final return. Engines before 23.0 make no `DOCKER-USER` for IPv6 and drop in `FORWARD` all the same; where that chain is
//! missing the rules stand at the end of `FORWARD`. Only the plainest expressions are used: with others `iptables` could no longer read the chain.

use std::collections::BTreeSet;
use std::io;

use crate::model::{Entry, IfName};

use super::attribute::{Attribute, bytes, covers, find, string};
use super::batch::{Operation, message, operation};
use super::expression::{Expression, Field, Verdict, begins, counter, expressions, interface, verdict};
use super::socket::{Message, NFTABLES, Reply, Socket};

pub const TABLE: &str = "filter";
/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
pub const FAMILIES: [u8; 2] = [2, 10];
/// Where our rules may stand; the first that is there has them all.
const CHAINS: [&str; 2] = ["DOCKER-USER", "FORWARD"];
/// How the names of our own links begin.
const PREFIX: &str = "rsb-";
const COMMENT: &str = "rsnet: decided in table inet rsnet";

const NLM_F_CREATE: u16 = 0x400;

pub fn depends_on(chain: &str) -> bool {
    CHAINS.contains(&chain)
}

/// Links that need rules of their own, since a user chose their name.
pub fn named_by_users<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> BTreeSet<IfName> {
    let segments = entries.into_iter().filter_map(|entry| match entry {
        Entry::Segment { link } => Some(link),
        _ => None,
    });
    segments.filter(|link| !link.as_str().starts_with(PREFIX)).cloned().collect()
}

/// Makes our rules in Docker's chains be exactly those for our prefix and `links`: what to send, by family.
pub fn converge(socket: &Socket, links: &BTreeSet<IfName>) -> io::Result<Vec<Vec<Operation>>> {
    FAMILIES.into_iter().map(|family| differences(socket, family, wanted(links))).collect()
}

/// Takes our rules out of Docker's chains.
pub fn clear(socket: &Socket) -> io::Result<Vec<Vec<Operation>>> {
    FAMILIES.into_iter().map(|family| differences(socket, family, Vec::new())).collect()
}

/// What a change needs: the rules of `remove` out, those of `add` in.
pub fn change(socket: &Socket, remove: &BTreeSet<IfName>, add: &BTreeSet<IfName>) -> io::Result<Vec<Vec<Operation>>> {
    if remove.is_empty() && add.is_empty() {
        return Ok(Vec::new());
    }
    let gone: Vec<_> = remove.difference(add).flat_map(rules_of).collect();
    FAMILIES
        .into_iter()
        .map(|family| {
            let Some((chain, present)) = chains(socket, family)?.into_iter().next() else { return Ok(Vec::new()) };
            let kept = present.iter().filter(|rule| rule.ours && gone.iter().any(|g| rule.is(g)));
            let deletions = kept.map(|rule| chain.delete(&rule.handle));
            let missing = add.iter().flat_map(rules_of).filter(|wanted| !present.iter().any(|rule| rule.is(wanted)));
            Ok(deletions.chain(missing.map(|rule| chain.insert(end(&present), rule))).collect())
        })
        .collect()
}

fn differences(socket: &Socket, family: u8, mut wanted: Vec<Attribute>) -> io::Result<Vec<Operation>> {
    let chains = chains(socket, family)?;
    Ok(chains.iter().flat_map(|(chain, present)| chain.differences(present, std::mem::take(&mut wanted))).collect())
}

fn wanted(links: &BTreeSet<IfName>) -> Vec<Attribute> {
    accepting(PREFIX.as_bytes()).into_iter().chain(links.iter().flat_map(rules_of)).collect()
}

fn rules_of(link: &IfName) -> [Attribute; 2] {
    accepting(&interface(link.as_str()))
}

fn accepting(name: &[u8]) -> [Attribute; 2] {
    [Field::Iifname, Field::Oifname].map(|field| expressions([begins(field, name), counter(), verdict(Verdict::Accept)]))
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

/// One of [`CHAINS`], in one of [`FAMILIES`].
struct Chain {
    family: u8,
    name: &'static str,
}

/// Those that are there, with their rules in order.
fn chains(socket: &Socket, family: u8) -> io::Result<Vec<(Chain, Vec<Present>)>> {
    let read = |name| {
        let chain = Chain { family, name };
        Ok(chain.rules(socket)?.map(|rules| (chain, rules)))
    };
    CHAINS.into_iter().filter_map(|name| read(name).transpose()).collect()
}

impl Chain {
    /// The rules in order; nothing where there is no such chain.
    fn rules(&self, socket: &Socket) -> io::Result<Option<Vec<Present>>> {
        let request = |kind, attribute| {
            let attributes = vec![string(1, TABLE), string(attribute, self.name)];
            Message { subsystem: NFTABLES, kind, flags: 0, family: self.family, attributes }
        };
        if socket.get(&request(message::GETCHAIN, 3))?.is_none() {
            return Ok(None);
        }
        let dump = socket.dump(&request(message::GETRULE, 2))?;
        // the kernel may answer with more than was asked for
        let ours = |rule: &Reply| covers(&[string(1, TABLE), string(2, self.name)], &rule.attributes);
        Ok(Some(dump.into_iter().filter(ours).filter_map(present).collect()))
    }

    fn differences(&self, present: &[Present], wanted: Vec<Attribute>) -> Vec<Operation> {
        let mut missing = wanted;
        let mut operations = Vec::new();
        for rule in present.iter().filter(|rule| rule.ours) {
            match missing.iter().position(|wanted| rule.is(wanted)) {
                Some(found) => drop(missing.remove(found)),
                None => operations.push(self.delete(&rule.handle)),
            }
        }
        operations.extend(missing.into_iter().map(|rule| self.insert(end(present), rule)));
        operations
    }

    fn insert(&self, before: Option<&Present>, rule: Attribute) -> Operation {
        let attributes = vec![string(1, TABLE), string(2, self.name), rule, bytes(7, comment())];
        let position = before.map(|rule| bytes(6, rule.handle.as_slice()));
        let attributes: Vec<_> = attributes.into_iter().chain(position).collect();
        let mut insertion = operation("add a rule to", self.object(), self.family, message::NEWRULE, attributes);
        if before.is_some() {
            insertion.message.flags = NLM_F_CREATE;
        }
        insertion
    }

    fn delete(&self, handle: &[u8]) -> Operation {
        let attributes = vec![string(1, TABLE), string(2, self.name), bytes(3, handle)];
        operation("delete a rule of", self.object(), self.family, message::DELRULE, attributes)
    }

    fn object(&self) -> String {
        format!("chain {} {TABLE} {}", if self.family == FAMILIES[0] { "ip" } else { "ip6" }, self.name)
    }
}

fn present(rule: Reply) -> Option<Present> {
    let handle = find(&rule.attributes, 3)?.to_vec();
    let ours = find(&rule.attributes, 7).is_some_and(|userdata| userdata == comment());
    Some(Present { handle, ours, attributes: rule.attributes })
}

/// Where our rules go: before the final return, if there is one.
fn end(present: &[Present]) -> Option<&Present> {
    present.last().filter(|rule| rule.is_return())
}

/// `NFTNL_UDATA_RULE_COMMENT`, which both `nft` and `iptables` show.
fn comment() -> Vec<u8> {
    let length = COMMENT.len() as u8 + 1;
    [&[0, length], COMMENT.as_bytes(), &[0]].concat()
}
