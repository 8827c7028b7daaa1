//! The fast way: packets between containers of one network without a bridge, led on at the link by which they come in.
//!
//! It is a second table, `netdev rsnet`, whose chains hook into the ingress of routed ports, tunnels and, for networks without a tunnel, of
//! the link to the other hosts. What its maps know goes out by the right link to the right next hop at once (`fwd`); the host's filters, its
//! routing and connection tracking do not see it. **Whatever they do not know goes on as ever**, and there the table `inet rsnet` decides: a
//! forged source, a packet for the host or the gateway, broadcast and multicast, options, fragments, a TTL that ends here, more than the next
//! link takes. So nothing here drops anything, and taking an element out is always safe.
//!
//! A source is known by an element and not by a route back (`fib`): from Linux 6.14 on that expression believes what a socket of the sender's
//! had noted (`nft_fib_can_skip`), and at ingress that is the container's.
//!
//! The hooks are elements too, [`Set::Hooks`]: the key is the name of a link. They stand on sixteen chains by the last digit of the name, since
//! one message of a dump holds some hundred links. Adding a link to a chain needs Linux 6.4; where that, the family or `fwd` is missing, there is
//! no such table ([`probe`]) and all packets go the long way.

use std::io;

use ipnet::IpNet;

use crate::model::{Family, family_of};

use super::attribute::{Attribute, find, find_string, list, nest, number, read, string};
use super::batch::{NETDEV, Operation, message, operation};
use super::element::Element;
use super::expression::{
    Expression, Verdict, by_link, came_otherwise, expressions, is_larger, is_no_larger, is_no_tcp, is_plain, leaves, led_out, load_value,
    straight, verdict,
};
use super::set::Set;
use super::socket::{Message, NFTABLES, Refused, Socket};
use super::table::{Chain, Rule, TABLE};

const INGRESS: u32 = 0;
/// Behind filters of others there.
const PRIORITY: i32 = 1000;
/// Of a hook: its number, its priority and its links.
const HOOK: u16 = 4;
const DEVICES: u16 = 4;
/// What one message takes is bounded by the kernel (`NFT_NETDEVICE_MAX`).
pub const MOST_DEVICES: usize = 128;

const SHARDS: [&str; 16] = [
    "hook-0", "hook-1", "hook-2", "hook-3", "hook-4", "hook-5", "hook-6", "hook-7", "hook-8", "hook-9", "hook-a", "hook-b", "hook-c",
    "hook-d", "hook-e", "hook-f",
];

/// The constant chains, those that are jumped to before those that jump.
pub fn chains() -> Vec<Chain> {
    let [ip4, ip6] = [("ip4", Family::V4), ("ip6", Family::V6)];
    let plain = [ip4, ip6].map(|(name, f)| vec![is_plain(f), verdict(Verdict::Goto(name))]);
    // from a container by its port, or from other hosts
    let sources = |f| vec![vec![Set::FastPorts(f).has(), Set::FastSubnets(f).decides()], vec![Set::FastFrom(f).decides()]];
    let sources = [ip4, ip6].map(|(name, f)| Chain::plain(name, sources(f)));
    let hooks = SHARDS.map(|name| Chain::hooked(name, ("filter", INGRESS, PRIORITY), vec![vec![verdict(Verdict::Goto("plain"))]]));
    sources.into_iter().chain([Chain::plain("plain", plain.into())]).chain(hooks).collect()
}

/// A chain of one network: what varies between networks, and not between their containers or hosts, stands in its rules, since a packet's own
/// bytes cost less to compare than a look into a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Branch {
    /// What comes from a container by its port.
    Port { subnet: IpNet },
    /// What goes to other hosts by the link of this number. `mtu`: bytes that the ports of this host's containers take.
    To { subnet: IpNet, index: u32, mtu: u32 },
    /// What comes from them by it.
    From { subnet: IpNet, index: u32, mtu: u32 },
}

/// No Ethernet takes packets larger than this: what is larger was put together of smaller ones by the kernel (GRO).
const JUMBO: u32 = 9216;

impl Branch {
    pub fn rules(&self) -> Vec<Rule> {
        let (Branch::Port { subnet } | Branch::To { subnet, .. } | Branch::From { subnet, .. }) = self;
        let f = family_of(subnet.addr());
        let to_here = vec![here(f), led_out(f)];
        let goes_long = |if_so: Vec<Expression>| vec![if_so, verdict(Verdict::Accept)];
        match self {
            Branch::Port { .. } => vec![goes_long(leaves(subnet)), to_here, vec![Set::FastTo(f).decides()]],
            // TCP has segments that suit the port by which they come in
            Branch::To { index, mtu, .. } => {
                vec![goes_long([is_larger(f, *mtu), is_no_tcp()].concat()), vec![by_link(*index), Set::FastVia(f).next_hop(), led_out(f)]]
            }
            Branch::From { index, mtu, .. } => vec![
                goes_long(came_otherwise(*index)),
                goes_long(leaves(subnet)),
                goes_long([is_larger(f, *mtu), is_no_larger(f, JUMBO)].concat()),
                to_here,
            ],
        }
    }
}

fn here(f: Family) -> Vec<Expression> {
    [Set::FastHere(f).way_out(), straight(f)].concat()
}

fn shard(link: &[u8]) -> &'static str {
    let last = link.iter().rev().find(|byte| **byte != 0).copied().unwrap_or_default();
    SHARDS[usize::from(last) % SHARDS.len()]
}

/// Hooks the links in, or out again.
pub fn hook<'a>(kind: u8, elements: impl IntoIterator<Item = &'a Element>) -> Vec<Operation> {
    let what = if kind == message::NEWCHAIN { "hook into" } else { "unhook from" };
    let mut devices: Vec<(&'static str, Attribute)> = elements.into_iter().map(|one| (shard(&one.key), device(&one.key))).collect();
    devices.sort_by_key(|(shard, _)| *shard);
    let of_one_chain = devices.chunk_by(|(one, _), (other, _)| one == other).flat_map(|devices| devices.chunks(MOST_DEVICES));
    of_one_chain
        .map(|devices| {
            let (chain, links) = (devices[0].0, devices.iter().map(|(_, device)| device.clone()).collect::<Vec<_>>());
            let hook = nest(HOOK, [number(1, INGRESS), number(2, PRIORITY.cast_unsigned()), list(DEVICES, links)]);
            let attributes = vec![string(1, TABLE), string(3, chain), hook];
            operation(what, format!("links of chain netdev rsnet {chain}"), NETDEV, kind, attributes)
        })
        .collect()
}

/// A chain of another table at the ingress of these links, which lets all pass.
pub fn ingress(table: &str, name: &str, priority: i32, links: &[Element]) -> Operation {
    let links = links.iter().map(|link| device(&link.key)).collect::<Vec<_>>();
    let hook = nest(HOOK, [number(1, INGRESS), number(2, priority.cast_unsigned()), list(DEVICES, links)]);
    let attributes = vec![string(1, table), string(3, name), hook, number(5, 1), string(7, "filter")];
    operation("create", "a chain at links", NETDEV, message::NEWCHAIN, attributes)
}

/// `NFTA_DEVICE_NAME`, of a name as it stands in an element.
fn device(link: &[u8]) -> Attribute {
    let name: Vec<u8> = link.iter().copied().take_while(|byte| *byte != 0).collect();
    string(1, &String::from_utf8_lossy(&name))
}

/// The links that are hooked in.
pub fn hooked(socket: &Socket) -> io::Result<Vec<Element>> {
    let request = Message { subsystem: NFTABLES, kind: message::GETCHAIN, flags: 0, family: NETDEV, attributes: Vec::new() };
    let chains = socket.dump(&request)?;
    let ours = chains.iter().filter(|chain| find_string(&chain.attributes, 1) == Some(TABLE));
    let devices = ours.filter_map(|chain| find(find(&chain.attributes, HOOK)?, DEVICES)).flat_map(read);
    Ok(devices.filter_map(|(_, name)| Some(Element::hook(str::from_utf8(name).ok()?.trim_end_matches('\0')))).collect())
}

/// Whether this kernel has such a table: makes one and takes it away in one step, of which nothing is seen.
pub fn probe(socket: &Socket) -> Result<(), String> {
    const PROBE: &str = "rsnet-probe";
    let table = || vec![string(1, PROBE)];
    let hook = nest(HOOK, [number(1, INGRESS), number(2, PRIORITY.cast_unsigned())]);
    let chain = vec![string(1, PROBE), string(3, "hook"), hook, number(5, 1), string(7, "filter")];
    let rule = expressions([vec![load_value(11, &[0; 4]), load_value(12, &[0; 4])], led_out(Family::V4)]);
    let operations = [
        operation("create", "a table of family netdev", NETDEV, message::NEWTABLE, table()),
        operation("create", "a chain at the ingress of no link yet (Linux 6.4)", NETDEV, message::NEWCHAIN, chain),
        operation("add", "a rule with fwd", NETDEV, message::NEWRULE, vec![string(1, PROBE), string(2, "hook"), rule]),
        operation("delete", "a table of family netdev", NETDEV, message::DELTABLE, table()),
    ];
    socket.commit(&operations).map_err(|Refused { operation, cause }| {
        let what = operation.and_then(|index| operations.get(index)).map_or("use family netdev", |failed| failed.object.as_str());
        format!("the kernel has not: {what} ({cause})")
    })
}
