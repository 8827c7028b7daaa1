//! Tables of others: who drops what our networks forward. Read only.
//!
//! A packet passes every chain that hooks into `forward`, and whoever drops it has the last word. What a chain would do with a packet of
//! ours is followed from rule to rule as far as that is plain: rules that ask for nothing, and rules that ask for a link or an address of
//! ours. A rule that asks for something else may or may not meet; it counts as not meeting. So little is found that is not so.

use std::io;
use std::net::IpAddr;

use super::attribute::{find, find_number, find_string};
use super::batch::message;
use super::docker::{FORWARD, TABLE as IPTABLES, comment};
use super::expression::parts;
use super::socket::{Message, NFTABLES, Reply, Socket};
use super::table::TABLE;
use super::{Blocker, Drops, Ours};

/// `NF_INET_FORWARD`.
const HOOK: u32 = 2;
/// Where a table is: `NFPROTO_INET`, `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const FAMILIES: [(u8, &str); 3] = [(1, "inet"), (2, "ip"), (10, "ip6")];
/// `NF_DROP` as a policy.
const DROP: u32 = 0;
/// Chains in chains that are followed; the kernel allows 16.
const DEEPEST: usize = 16;

/// Of every chain of others that hooks into `forward` the first thing that drops what is ours.
pub fn blockers(socket: &Socket, ours: &Ours) -> io::Result<Vec<Blocker>> {
    let all = |kind| socket.dump(&Message { subsystem: NFTABLES, kind, flags: 0, family: 0, attributes: Vec::new() });
    let (chains, rules) = (all(message::GETCHAIN)?, all(message::GETRULE)?);
    let hooked = |chain: &&Reply| find(&chain.attributes, 4).is_some_and(|hook| find_number(hook, 1) == Some(HOOK));
    Ok(chains.iter().filter(hooked).filter_map(|chain| Base::of(chain, &rules, ours)?.blocker()).collect())
}

/// A chain that the kernel itself enters.
struct Base<'a> {
    family: (u8, &'static str),
    table: &'a str,
    chain: &'a str,
    drops: bool,
    rules: &'a [Reply],
    ours: &'a Ours,
}

/// How a packet of ours comes out of a chain.
enum Way {
    /// It goes on behind it.
    On,
    /// A rule accepts it, or our own rules are asked.
    Accepted,
    Dropped(Drops),
}

/// What a rule decides.
enum Verdict<'a> {
    Accept,
    Drop,
    Return,
    Jump(&'a str),
    Goto(&'a str),
    None,
}

impl<'a> Base<'a> {
    /// None: it is our own, or of a family whose packets are no IP packets yet.
    fn of(chain: &'a Reply, rules: &'a [Reply], ours: &'a Ours) -> Option<Self> {
        let family = FAMILIES.into_iter().find(|(number, _)| *number == chain.family)?;
        let (table, name) = (find_string(&chain.attributes, 1)?, find_string(&chain.attributes, 3)?);
        let drops = find_number(&chain.attributes, 5) == Some(DROP);
        (family.1 != "inet" || table != TABLE).then_some(Base { family, table, chain: name, drops, rules, ours })
    }

    fn blocker(&self) -> Option<Blocker> {
        let drops = match self.pass(self.chain, true, 0) {
            Way::Dropped(Drops::Everything) if self.knows_us() => return None,
            Way::Dropped(drops) => drops,
            Way::On if self.drops && !self.knows_us() && !self.is_iptables() => Drops::ByPolicy,
            _ => return None,
        };
        Some(Blocker { chain: format!("chain {} of table {} {}", self.chain, self.family.1, self.table), drops })
    }

    /// The one whose policy we have a way past; that it is there is a part of what is converged.
    fn is_iptables(&self) -> bool {
        self.table == IPTABLES && self.chain == FORWARD && self.family.1 != "inet"
    }

    /// Somebody wrote rules for our links or addresses: what they do in all is for that one to know.
    fn knows_us(&self) -> bool {
        let mut rules =
            self.rules.iter().filter(|rule| rule.family == self.family.0 && find_string(&rule.attributes, 1) == Some(self.table));
        !self.is_iptables() && rules.any(|rule| names(rule, self.ours))
    }

    /// `sure`: every packet of ours comes to this chain.
    fn pass(&self, chain: &str, sure: bool, depth: usize) -> Way {
        let of_chain = |rule: &&Reply| {
            let place = (find_string(&rule.attributes, 1), find_string(&rule.attributes, 2));
            rule.family == self.family.0 && place == (Some(self.table), Some(chain))
        };
        for rule in self.rules.iter().filter(of_chain) {
            if find(&rule.attributes, 7).is_some_and(|userdata| userdata == comment()) {
                return Way::Accepted;
            }
            let (named, plain) = (names(rule, self.ours), asks_nothing(rule));
            let meets = named || (plain && sure);
            match verdict(rule) {
                Verdict::Drop if named => return Way::Dropped(Drops::Named),
                Verdict::Drop if meets => return Way::Dropped(Drops::Everything),
                Verdict::Accept if meets => return Way::Accepted,
                // whoever comes here by a rule that we do not understand goes no farther
                Verdict::Drop | Verdict::Accept | Verdict::Return if plain => return Way::On,
                Verdict::Jump(to) | Verdict::Goto(to) if depth < DEEPEST => match (self.pass(to, meets, depth + 1), verdict(rule)) {
                    (Way::Dropped(drops), _) => return Way::Dropped(drops),
                    (Way::Accepted, _) if meets => return Way::Accepted,
                    (_, Verdict::Goto(_)) if plain => return Way::On,
                    _ => {}
                },
                _ => {}
            }
        }
        Way::On
    }
}

fn verdict(rule: &Reply) -> Verdict<'_> {
    let decisions = parts(&rule.attributes).into_iter().flatten().filter_map(|(name, data)| match name {
        Some("reject") => Some(Verdict::Drop),
        // an extension of iptables'
        Some("target") => (find_string(data, 1) == Some("REJECT")).then_some(Verdict::Drop),
        Some("immediate") => Some(decided(find(find(data, 2)?, 2)?)),
        _ => None,
    });
    decisions.last().unwrap_or(Verdict::None)
}

/// `NFTA_VERDICT_*`
fn decided(verdict: &[u8]) -> Verdict<'_> {
    let chain = find_string(verdict, 2).unwrap_or_default();
    match find_number(verdict, 1).map(u32::cast_signed) {
        Some(0) => Verdict::Drop,
        Some(1) => Verdict::Accept,
        Some(-3) => Verdict::Jump(chain),
        Some(-4) => Verdict::Goto(chain),
        Some(-5) => Verdict::Return,
        _ => Verdict::None,
    }
}

/// Whether every packet meets the rule.
fn asks_nothing(rule: &Reply) -> bool {
    let acts = |(name, data): (Option<&str>, &[u8])| match name {
        Some("counter" | "immediate" | "reject" | "log" | "target") => true,
        Some("match") => find_string(data, 1) == Some("comment"),
        _ => false,
    };
    parts(&rule.attributes).into_iter().flatten().all(acts)
}

/// Whether the rule compares something with a link or an address of ours.
fn names(rule: &Reply, ours: &Ours) -> bool {
    let compared = parts(&rule.attributes).into_iter().flatten().filter(|(name, _)| *name == Some("cmp"));
    let mut equal = compared.filter(|(_, data)| find_number(data, 2) == Some(0)).filter_map(|(_, data)| find(find(data, 3)?, 1));
    equal.any(|value| is_link(value, ours) || is_address(value, ours))
}

/// A whole name is padded with NULs; without one it is the beginning of names.
fn is_link(value: &[u8], ours: &Ours) -> bool {
    let end = value.iter().position(|byte| *byte == 0);
    let Ok(name) = str::from_utf8(&value[..end.unwrap_or(value.len())]) else { return false };
    let met = |link: &str| if end.is_some() { link == name } else { link.starts_with(name) };
    name.len() > 2 && ours.links.iter().any(|link| met(link.as_str()))
}

/// An address inside a subnet of ours; or the subnet, of which only whole bytes are compared.
fn is_address(value: &[u8], ours: &Ours) -> bool {
    let address = match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    };
    ours.subnets.iter().any(|subnet| {
        let octets = match subnet.network() {
            IpAddr::V4(network) => network.octets().to_vec(),
            IpAddr::V6(network) => network.octets().to_vec(),
        };
        let whole = usize::from(subnet.prefix_len()) == value.len() * 8 && value.len() > 1;
        address.is_some_and(|address| subnet.contains(&address)) || (whole && octets.starts_with(value))
    })
}
