//! What is answered to a query, if it is ours to answer. Pure: bytes in, bytes out (RFC 1035, 6891).
//!
//! Names in the directory are answered in every type, so that one name never exists for one type and not for another; all else is not
//! understood here, and left to Docker's resolver as it is.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::PTR;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::model::NetworkId;
use crate::names::Directory;

/// Seconds that an answer may be kept: a container that moves is found again after them.
const TTL: u32 = 5;
/// Bytes: what fits every datagram (RFC 1035 4.2.1).
const DATAGRAM: u16 = 512;
/// Bytes that we would take in a datagram; nothing that long is ever sent to us.
const OUR_PAYLOAD: u16 = 1232;

/// How a query came, and so how much its answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// The answer from what is known on `networks`. None: Docker's resolver is to be asked. Of several addresses another one is first with
/// each `turn`.
pub fn answer(directory: &Directory, networks: &[NetworkId], query: &[u8], transport: Transport, turn: usize) -> Option<Vec<u8>> {
    let asked = Message::from_vec(plain(query)?).ok()?;
    let [question] = asked.queries.as_slice() else { return None };
    // what is signed, or of a later EDNS, is not for us to interpret
    if question.query_class() != DNSClass::IN || !asked.additionals.is_empty() || asked.signature.is_some() || asked.version() > 0 {
        return None;
    }
    let mut records = found(directory, networks, question)?;
    let turn = turn.checked_rem(records.len()).unwrap_or_default();
    records.rotate_left(turn);
    let answers = records.into_iter().map(|data| Record::from_rdata(question.name().clone(), TTL, data)).collect();
    fitting(reply(&asked, ResponseCode::NoError), answers, room(&asked, transport))
}

/// Says that nobody can be asked.
pub fn failure(query: &[u8]) -> Option<Vec<u8>> {
    let asked = Message::from_vec(plain(query)?).ok()?;
    reply(&asked, ResponseCode::ServFail).to_vec().ok()
}

/// The same, if its header is that of a plain question: no answer, no other operation, one question, no records but EDNS. Whatever else its
/// counters announce is not read.
fn plain(query: &[u8]) -> Option<&[u8]> {
    let header = query.first_chunk::<12>()?;
    let is_plain = header[2] & 0xf8 == 0 && header[4..10] == [0, 1, 0, 0, 0, 0] && header[10] == 0 && header[11] <= 1;
    is_plain.then_some(query)
}

/// The data of the records asked for, empty if the name has none of this type. None: the name is not ours.
fn found(directory: &Directory, networks: &[NetworkId], question: &Query) -> Option<Vec<RData>> {
    if question.query_type() == RecordType::PTR {
        let name = directory.name_of(networks, reversed(question.name())?)?;
        let name = Name::from_ascii(format!("{name}.")).ok()?;
        return Some(vec![RData::PTR(PTR(name))]);
    }
    let addresses = directory.addresses(networks, &question.name().to_ascii())?;
    let data = |address| match (address, question.query_type()) {
        (IpAddr::V4(address), RecordType::A) => Some(RData::A(address.into())),
        (IpAddr::V6(address), RecordType::AAAA) => Some(RData::AAAA(address.into())),
        _ => None,
    };
    Some(addresses.into_iter().filter_map(data).collect())
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
fn reversed(name: &Name) -> Option<IpAddr> {
    let subnet = name.parse_arpa_name().ok()?;
    (subnet.prefix_len() == subnet.max_prefix_len()).then_some(subnet.addr())
}

fn reply(asked: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(asked.metadata.id, OpCode::Query);
    reply.metadata.recursion_desired = asked.metadata.recursion_desired;
    reply.metadata.checking_disabled = asked.metadata.checking_disabled;
    reply.metadata.recursion_available = true;
    reply.metadata.authoritative = code == ResponseCode::NoError;
    reply.metadata.response_code = code;
    reply.queries.clone_from(&asked.queries);
    reply.edns = asked.edns.as_ref().map(|theirs| {
        let mut ours = Edns::new();
        ours.set_max_payload(OUR_PAYLOAD).set_dnssec_ok(theirs.flags().dnssec_ok);
        ours
    });
    reply
}

/// How many bytes the asker takes.
fn room(asked: &Message, transport: Transport) -> usize {
    match transport {
        Transport::Udp => asked.max_payload().max(DATAGRAM).into(),
        Transport::Tcp => u16::MAX.into(),
    }
}

/// With as many of the answers as there is room for; where they are not all, it says so, and a resolver asks again by TCP.
fn fitting(mut reply: Message, mut answers: Vec<Record>, room: usize) -> Option<Vec<u8>> {
    let bare = reply.to_vec().ok()?.len();
    if let Some(first) = answers.first() {
        // all are as long: the name is a pointer in each, and the data are of one type
        let one = encoded_length(first)?;
        let many = room.saturating_sub(bare) / one;
        reply.metadata.truncation = many < answers.len();
        answers.truncate(many);
    }
    reply.answers = answers;
    reply.to_vec().ok()
}

/// Bytes: the pointer to the name in the question, type, class, TTL, length (RFC 1035 4.1.3), and the data.
fn encoded_length(record: &Record) -> Option<usize> {
    let data = match &record.data {
        RData::A(_) => 4,
        RData::AAAA(_) => 16,
        RData::PTR(name) => name.0.len() + 1,
        _ => return None,
    };
    Some(12 + data)
}
