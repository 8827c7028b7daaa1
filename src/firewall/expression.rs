//! Expressions of rules (`include/uapi/linux/netfilter/nf_tables.h`): a rule is a row of them, each works on registers, and the first that
//! does not match ends the rule.
//!
//! Registers are counted here in words of four bytes, 0 to 15; the kernel numbers the 16-byte ones 1 to 4 and the others from 8.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{Family, family_of};

use super::attribute::{Attribute, bytes, find, find_number, find_string, list, nest, number, read, string};

pub type Expression = Attribute;

const LIST_ELEM: u16 = 1;
pub const RULE_EXPRESSIONS: u16 = 4;

const LINK_HEADER: u32 = 0;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const OIFNAME: u32 = 7;
const EQ: u32 = 0;
const NEQ: u32 = 1;
const LTE: u32 = 3;
const GT: u32 = 4;

/// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
pub fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// What can be loaded from a packet or stand in the key of a set. Ports are read from the transport header's bytes 2 and 3, VXLAN's number with
/// the zeros behind it from bytes 12 to 15: the kernel takes no frame with others there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Iifname,
    Oifname,
    Nfproto,
    L4proto,
    Source(Family),
    Destination(Family),
    Port,
    Vni,
    /// What the header says of the packet's length: all of it, of IPv6 what is behind the header.
    Length(Family),
    /// The number of a link, in host order: of that by which the packet came to whoever loads it from a packet.
    Index,
}

impl Field {
    /// Bytes.
    pub fn length(self) -> u32 {
        match self {
            Field::Iifname | Field::Oifname | Field::Source(Family::V6) | Field::Destination(Family::V6) => 16,
            Field::Source(Family::V4) | Field::Destination(Family::V4) | Field::Vni | Field::Index => 4,
            Field::Port | Field::Length(_) => 2,
            Field::Nfproto | Field::L4proto => 1,
        }
    }

    /// The type by which `nft` shows it (`enum datatypes` of nftables' `include/datatype.h`); the kernel does not read it.
    pub fn datatype(self) -> u32 {
        match self {
            Field::Nfproto => 2,
            // `nft` has no type for numbers of four bytes in network order but this.
            Field::Source(Family::V4) | Field::Destination(Family::V4) | Field::Vni => 7,
            Field::Source(Family::V6) | Field::Destination(Family::V6) => 8,
            Field::L4proto => 12,
            // so is a length, of two bytes
            Field::Port | Field::Length(_) => 13,
            Field::Index => 20,
            Field::Iifname | Field::Oifname => 41,
        }
    }

    fn words(self) -> u32 {
        self.length().div_ceil(4)
    }

    fn load(self, word: u32) -> Expression {
        match self {
            Field::Iifname => meta(6, word),
            Field::Oifname => meta(OIFNAME, word),
            Field::Nfproto => meta(15, word),
            Field::L4proto => meta(16, word),
            Field::Source(Family::V4) => payload(NETWORK_HEADER, 12, 4, word),
            Field::Source(Family::V6) => payload(NETWORK_HEADER, 8, 16, word),
            Field::Destination(Family::V4) => payload(NETWORK_HEADER, 16, 4, word),
            Field::Destination(Family::V6) => payload(NETWORK_HEADER, 24, 16, word),
            Field::Port => payload(TRANSPORT_HEADER, 2, 2, word),
            Field::Vni => payload(TRANSPORT_HEADER, 12, 4, word),
            Field::Length(Family::V4) => payload(NETWORK_HEADER, 2, 2, word),
            Field::Length(Family::V6) => payload(NETWORK_HEADER, 4, 2, word),
            Field::Index => meta(4, word),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(&'static str),
    Goto(&'static str),
}

impl Verdict {
    pub fn code(&self) -> i32 {
        match self {
            Verdict::Drop => 0,
            Verdict::Accept => 1,
            Verdict::Jump(_) => -3,
            Verdict::Goto(_) => GOTO,
            Verdict::Return => -5,
        }
    }

    pub fn chain(&self) -> Option<&'static str> {
        match self {
            Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
            _ => None,
        }
    }
}

/// `NFT_GOTO`.
pub const GOTO: i32 = -4;

/// `NFTA_DATA_VERDICT`.
pub fn verdict_data(code: i32, chain: Option<&str>) -> Attribute {
    let code = bytes(1, code.to_be_bytes());
    nest(2, [Some(code), chain.map(|chain| string(2, chain))].into_iter().flatten().collect::<Vec<_>>())
}

/// `NFTA_RULE_EXPRESSIONS` of a rule.
pub fn expressions(parts: impl IntoIterator<Item = Vec<Expression>>) -> Attribute {
    list(RULE_EXPRESSIONS, parts.into_iter().flatten().collect::<Vec<_>>())
}

/// The next hop is the destination.
pub fn straight(family: Family) -> Vec<Expression> {
    vec![Field::Destination(family).load(NEXT_HOP)]
}

/// The way out is the link of this number.
pub fn by_link(index: u32) -> Vec<Expression> {
    vec![load_value(WAY_OUT, &index.to_ne_bytes())]
}

/// Beyond the keys that are asked for between them and [`led_out`].
pub const WAY_OUT: u32 = 11;
pub const NEXT_HOP: u32 = 12;

/// Counted, and out by that link to that next hop (`nft_fwd_netdev`): without a route, and with a TTL one less.
pub fn led_out(family: Family) -> Vec<Expression> {
    let out = [number(1, register(WAY_OUT)), number(2, register(NEXT_HOP)), number(3, nfproto(family).into())];
    [counter(), vec![expression("fwd", out)]].concat()
}

/// A frame for this host, without a VLAN's tag, with a packet that may be led on as it is: whole, no fragment, without options that somebody
/// on the way must read, and with a TTL that suffices. Its header was found sound (`nft_set_pktinfo_ipv4_validate`), or it had no protocol.
pub fn is_plain(of: Family) -> Vec<Expression> {
    let kind: [u8; 2] = match of {
        Family::V4 => [0x08, 0x00],
        Family::V6 => [0x86, 0xdd],
    };
    // a tag that the card took off stands there again for who asks
    let framed = vec![payload(LINK_HEADER, 12, 2, 0), compare(EQ, &kind), meta(PACKET_KIND, 0), compare(EQ, &[TO_THIS_HOST])];
    let byte = |offset: u32, operator: u32, with: u8| vec![payload(NETWORK_HEADER, offset, 1, 0), compare(operator, &[with])];
    let whole = match of {
        Family::V4 => {
            let fragment = vec![payload(NETWORK_HEADER, 6, 2, 0), bitwise(&[0x3f, 0xff]), compare(EQ, &[0; 2])];
            [byte(0, EQ, 0x45), fragment, byte(8, GT, 1)].concat()
        }
        Family::V6 => [byte(6, NEQ, HOP_BY_HOP), byte(6, NEQ, FRAGMENT), byte(7, GT, 1)].concat(),
    };
    [framed, vec![Field::L4proto.load(0)], whole].concat()
}

/// An address as it stands in a header and in a register.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The destination is not in the subnet.
pub fn leaves(subnet: &IpNet) -> Vec<Expression> {
    let destination = Field::Destination(family_of(subnet.addr()));
    vec![destination.load(0), bitwise(&octets(subnet.netmask())), compare(NEQ, &octets(subnet.network()))]
}

/// It came by another link than that of this number.
pub fn came_otherwise(index: u32) -> Vec<Expression> {
    vec![Field::Index.load(0), compare(NEQ, &index.to_ne_bytes())]
}

/// A packet of more bytes than these.
pub fn is_larger(of: Family, than: u32) -> Vec<Expression> {
    vec![Field::Length(of).load(0), compare(GT, &in_header(of, than))]
}

/// One of as many at most.
pub fn is_no_larger(of: Family, than: u32) -> Vec<Expression> {
    vec![Field::Length(of).load(0), compare(LTE, &in_header(of, than))]
}

/// The length of a packet of so many bytes as its header has it, see [`Field::Length`].
fn in_header(of: Family, bytes: u32) -> [u8; 2] {
    let header = if of == Family::V6 { 40 } else { 0 };
    u16::try_from(bytes.saturating_sub(header)).unwrap_or(u16::MAX).to_be_bytes()
}

pub fn is_no_tcp() -> Vec<Expression> {
    vec![Field::L4proto.load(0), compare(NEQ, &[6])]
}

/// `NFT_META_PKTTYPE` and `PACKET_HOST`.
const PACKET_KIND: u32 = 19;
const TO_THIS_HOST: u8 = 0;
/// Headers of IPv6.
const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;

/// The field's first bytes are these.
pub fn begins(field: Field, with: &[u8]) -> Vec<Expression> {
    vec![field.load(0), compare(EQ, with)]
}

pub fn family(family: Family) -> Vec<Expression> {
    begins(Field::Nfproto, &[nfproto(family)])
}

/// A whole interface name, the empty one included (there is no link).
pub fn named(field: Field, name: &str) -> Vec<Expression> {
    begins(field, &interface(name))
}

/// It came by a bridge (`NFT_META_IIFKIND`).
pub fn from_bridge() -> Vec<Expression> {
    vec![meta(26, 0), compare(EQ, &interface("bridge"))]
}

/// An interface name as it stands in a register: NULs to 16 bytes. `IfName` is at most 15.
pub fn interface(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes
}

/// The name and the attributes of each expression of a dumped rule.
pub fn parts(rule: &[u8]) -> Option<impl Iterator<Item = (Option<&str>, &[u8])>> {
    let rule = read(find(rule, RULE_EXPRESSIONS)?);
    Some(rule.map(|(_, part)| (find_string(part, 1), find(part, 2).unwrap_or_default())))
}

/// The outgoing interface that a dumped rule asks for by its whole name.
pub fn out_interface(rule: &[u8]) -> Option<&str> {
    let mut parts = parts(rule)?;
    parts.find(|(name, data)| *name == Some("meta") && find_number(data, 2) == Some(OIFNAME))?;
    let (_, data) = parts.next().filter(|(name, data)| *name == Some("cmp") && find_number(data, 2) == Some(EQ))?;
    let name = find(find(data, 3)?, 1)?;
    // Without a NUL it is the beginning of names.
    str::from_utf8(&name[..name.iter().position(|byte| *byte == 0)?]).ok()
}

/// The chain to which a dumped rule leads, by a jump or a goto.
pub fn jumps_to(rule: &[u8]) -> Option<&str> {
    let mut parts = parts(rule)?;
    let (_, data) = parts.find(|(name, _)| *name == Some("immediate"))?;
    find_string(find(find(data, 2)?, 2)?, 2)
}

/// The interface name begins with `prefix` and is at least `length` bytes long.
pub fn named_at_least(field: Field, prefix: &str, length: usize) -> Vec<Expression> {
    let mut mask = [0; 16];
    mask[length - 1] = 0xff;
    [begins(field, prefix.as_bytes()), vec![field.load(0), bitwise(&mask), compare(NEQ, &[0; 16])]].concat()
}

/// The destination is in 127.0.0.0/8 or is ::1.
pub fn to_loopback(of: Family) -> Vec<Expression> {
    loopback(of, Field::Destination(of), 16)
}

/// The source is in 127.0.0.0/8 or is ::1.
pub fn from_loopback(of: Family) -> Vec<Expression> {
    loopback(of, Field::Source(of), 12)
}

fn loopback(of: Family, field: Field, v4_offset: u32) -> Vec<Expression> {
    let matching = match of {
        Family::V4 => vec![payload(NETWORK_HEADER, v4_offset, 1, 0), compare(EQ, &[127])],
        Family::V6 => begins(field, &std::net::Ipv6Addr::LOCALHOST.octets()),
    };
    [family(of), matching].concat()
}

/// The destination is in 224.0.0.0/4 or in ff00::/8.
pub fn to_multicast(of: Family) -> Vec<Expression> {
    let matching = match of {
        Family::V4 => vec![Field::Destination(of).load(0), bitwise(&[0xf0, 0, 0, 0]), compare(EQ, &[224, 0, 0, 0])],
        Family::V6 => vec![payload(NETWORK_HEADER, 24, 1, 0), compare(EQ, &[0xff])],
    };
    [family(of), matching].concat()
}

pub fn is_udp() -> Vec<Expression> {
    begins(Field::L4proto, &[17])
}

/// An ICMP or ICMPv6 echo request.
pub fn echo_request(of: Family) -> Vec<Expression> {
    let (protocol, kind) = match of {
        Family::V4 => (1, 8),
        Family::V6 => (58, 128),
    };
    [begins(Field::L4proto, &[protocol]), vec![payload(TRANSPORT_HEADER, 0, 1, 0), compare(EQ, &[kind])]].concat()
}

/// The destination (`source` false) or the source is an address of this host.
pub fn is_local(source: bool) -> Vec<Expression> {
    vec![fib(source), compare(EQ, &RTN_LOCAL.to_ne_bytes())]
}

/// The source is not an address of this host.
pub fn source_is_elsewhere() -> Vec<Expression> {
    vec![fib(true), compare(NEQ, &RTN_LOCAL.to_ne_bytes())]
}

const RTN_LOCAL: u32 = 2;

fn fib(source: bool) -> Expression {
    route(ADDRESS_TYPE, if source { SOURCE } else { DESTINATION })
}

/// No route leads back to the source by the link it came by. The kernel lets pass by itself (`nft_fib4_eval`, `nft_fib6_eval`): what it
/// sent to itself, IPv4 without an address yet to broadcast or link-local multicast, ICMPv6 without one to link-local addresses (duplicate
/// address detection, multicast listener reports).
pub fn no_way_back() -> Vec<Expression> {
    vec![route(OUTGOING, SOURCE | INCOMING | PRESENT), compare(EQ, &[0; 4])]
}

/// No route leads to the source by any link: it is nobody's, or the host's own.
pub fn leads_nowhere() -> Vec<Expression> {
    vec![route(OUTGOING, SOURCE | PRESENT), compare(EQ, &[0; 4])]
}

/// The source is reached by a link whose name begins so.
pub fn source_is_behind(prefix: &str) -> Vec<Expression> {
    vec![route(OUTGOING_NAME, SOURCE), compare(EQ, prefix.as_bytes())]
}

/// `NFT_FIB_RESULT_*`.
const OUTGOING: u32 = 1;
const OUTGOING_NAME: u32 = 2;
const ADDRESS_TYPE: u32 = 3;
/// `NFTA_FIB_F_*`.
const SOURCE: u32 = 1;
const DESTINATION: u32 = 2;
const INCOMING: u32 = 8;
const PRESENT: u32 = 32;

fn route(result: u32, flags: u32) -> Expression {
    expression("fib", [number(1, register(0)), number(2, result), number(3, flags)])
}

pub const INVALID: u32 = 1;
pub const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
pub const UNTRACKED: u32 = 64;

/// The connection is in one of these states.
pub fn state(mask: u32) -> Vec<Expression> {
    connection(0, mask)
}

/// The connection's destination was translated (`IPS_DST_NAT`).
pub fn translated() -> Vec<Expression> {
    connection(2, 1 << 5)
}

fn connection(key: u32, mask: u32) -> Vec<Expression> {
    let load = expression("ct", [number(1, register(0)), number(2, key)]);
    vec![load, bitwise(&mask.to_ne_bytes()), compare(NEQ, &[0; 4])]
}

/// New destination: the address at word 0 and, `port` true, the port behind it.
pub fn dnat(family: Family, port: bool) -> Vec<Expression> {
    nat(1, family, port.then(|| Field::Destination(family).words()))
}

/// New source: the address at word 0.
pub fn snat(family: Family) -> Vec<Expression> {
    nat(0, family, None)
}

fn nat(kind: u32, family: Family, port_at: Option<u32>) -> Vec<Expression> {
    let address = [number(1, kind), number(2, nfproto(family).into()), number(3, register(0))];
    let port = port_at.map(|word| number(5, register(word)));
    vec![expression("nat", address.into_iter().chain(port).collect::<Vec<_>>())]
}

/// The packet has these bytes at `offset` of its network (1) or transport (2) header.
pub fn bytes_at(base: u32, offset: u32, with: &[u8]) -> Vec<Expression> {
    vec![payload(base, offset, with.len() as u32, 0), compare(EQ, with)]
}

/// `meta protocol`, which frames on a bridge have as well.
pub fn ethertype(kind: [u8; 2]) -> Vec<Expression> {
    vec![meta(1, 0), compare(EQ, &kind)]
}

/// Its transport protocol, by number.
pub fn protocol(number: u8) -> Vec<Expression> {
    begins(Field::L4proto, &[number])
}

/// From here on the packet is traced (`meta nftrace set 1`).
pub fn traced() -> Vec<Expression> {
    let one = expression("immediate", [number(1, register(0)), nest(2, [bytes(1, [1])])]);
    vec![one, expression("meta", [number(2, 12), number(3, register(0))])]
}

pub fn masquerade() -> Vec<Expression> {
    vec![expression("masq", [])]
}

/// Connection tracking is to pass the packet by.
pub fn untrack() -> Vec<Expression> {
    vec![nest(LIST_ELEM, [string(1, "notrack")])]
}

pub fn counter() -> Vec<Expression> {
    vec![nest(LIST_ELEM, [string(1, "counter")])]
}

pub fn verdict(verdict: Verdict) -> Vec<Expression> {
    vec![expression("immediate", [number(1, 0), nest(2, [verdict_data(verdict.code(), verdict.chain())])])]
}

/// The packet carries another mark than this, or none.
pub fn marked_otherwise(mark: u32) -> Vec<Expression> {
    vec![meta(3, 0), compare(NEQ, &mark.to_ne_bytes())]
}

/// Puts a value into the register at a word.
pub fn load_value(word: u32, value: &[u8]) -> Expression {
    expression("immediate", [number(1, register(word)), nest(2, [bytes(1, value)])])
}

/// The fields, side by side, from word 0 on.
pub fn load(fields: &[Field]) -> impl Iterator<Item = Expression> {
    fields.iter().scan(0, |word, field| {
        let at = *word;
        *word += field.words();
        Some(field.load(at))
    })
}

fn meta(key: u32, word: u32) -> Expression {
    expression("meta", [number(1, register(word)), number(2, key)])
}

fn payload(base: u32, offset: u32, length: u32, word: u32) -> Expression {
    expression("payload", [number(1, register(word)), number(2, base), number(3, offset), number(4, length)])
}

fn compare(operator: u32, with: &[u8]) -> Expression {
    expression("cmp", [number(1, register(0)), number(2, operator), nest(3, [bytes(1, with)])])
}

fn bitwise(mask: &[u8]) -> Expression {
    let zeros = vec![0; mask.len()];
    let registers = [number(1, register(0)), number(2, register(0)), number(3, mask.len() as u32)];
    expression("bitwise", [&registers[..], &[nest(4, [bytes(1, mask)]), nest(5, [bytes(1, zeros)])]].concat())
}

/// What is loaded is in the set, or is a key of the map, whose value goes to the register.
pub fn lookup(set: &str, target: Option<u32>) -> Expression {
    let key = [string(1, set), number(2, register(0))];
    expression("lookup", key.into_iter().chain(target.map(|register| number(3, register))).collect::<Vec<_>>())
}

fn expression(name: &str, attributes: impl Into<Vec<Attribute>>) -> Expression {
    nest(LIST_ELEM, [string(1, name), nest(2, attributes)])
}

/// The kernel's number of the register at a word, in the form in which it dumps it (`nft_dump_register`).
pub fn register(word: u32) -> u32 {
    if word.is_multiple_of(4) { word / 4 + 1 } else { word + 8 }
}
