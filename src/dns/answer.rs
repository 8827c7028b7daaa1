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

#[cfg(test)]
mod tests {
    use hickory_proto::op::MessageType;
    use proptest::prelude::*;

    use super::*;
    use crate::names::{Named, Zone};

    fn id(text: &str) -> NetworkId {
        text.parse().unwrap()
    }

    /// `web` has two addresses of each family on blue (1); `db` one on red (2); `many` two hundred on blue.
    fn directory() -> Directory {
        let zone =
            |name: &str, subnets: &[&str]| Zone { name: Some(name.into()), subnets: subnets.iter().map(|s| s.parse().unwrap()).collect() };
        let named = |name: &str, addresses: &[&str]| Named {
            names: vec![name.into()],
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        };
        let directory = Directory::default();
        directory.set_zones([(id("1"), zone("blue", &["10.50.0.0/16", "fd50::/64"])), (id("2"), zone("red", &["10.60.0.0/16"]))].into());
        directory.set_hosts(&["b".to_owned()].into(), ["b".to_owned()].into());
        let many: Vec<String> = (0..200).flat_map(|n| [format!("10.50.2.{n}"), format!("fd50::2:{n}")]).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let web = named("web", &["10.50.1.2", "10.50.1.3", "fd50::2", "fd50::3"]);
        directory.hear("b", "10.50.0.0/16".parse().unwrap(), 1, vec![web, named("many", &many)]);
        directory.hear("b", "10.60.0.0/16".parse().unwrap(), 1, vec![named("db", &["10.60.1.2"])]);
        directory
    }

    fn question(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(77, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn with_payload(mut message: Message, payload: u16) -> Message {
        let mut edns = Edns::new();
        edns.set_max_payload(payload).set_dnssec_ok(true);
        message.set_edns(edns);
        message
    }

    /// On blue alone.
    fn ask(message: &Message, transport: Transport, turn: usize) -> Option<(Message, usize)> {
        let bytes = answer(&directory(), &[id("1")], &message.to_vec().unwrap(), transport, turn)?;
        Some((Message::from_vec(&bytes).unwrap(), bytes.len()))
    }

    fn data(message: &Message) -> Vec<String> {
        message.answers.iter().map(|record| record.data.to_string()).collect()
    }

    fn told(name: &str, kind: RecordType) -> Option<Vec<String>> {
        ask(&question(name, kind), Transport::Udp, 0).map(|(answer, _)| data(&answer))
    }

    #[test]
    fn a_known_name_has_its_addresses_of_the_family_asked_for() {
        assert_eq!(told("web.", RecordType::A).unwrap(), ["10.50.1.2", "10.50.1.3"]);
        assert_eq!(told("web.blue.", RecordType::AAAA).unwrap(), ["fd50::2", "fd50::3"]);
        let (answer, _) = ask(&question("wEb.", RecordType::A), Transport::Udp, 0).unwrap();
        assert_eq!(answer.queries[0].name().to_ascii(), "wEb.", "the question comes back as it was asked");
        let Message { metadata, answers, edns, .. } = answer;
        assert_eq!((metadata.id, metadata.message_type, metadata.response_code), (77, MessageType::Response, ResponseCode::NoError));
        assert!(metadata.authoritative && metadata.recursion_available && metadata.recursion_desired && !metadata.truncation);
        assert!(answers.iter().all(|record| (record.ttl, record.name.to_ascii().as_str()) == (5, "wEb.")));
        assert_eq!(edns, None, "who did not offer EDNS gets none");
    }

    #[test]
    fn a_known_name_without_the_type_asked_for_has_no_data_and_is_not_said_to_be_missing() {
        for (name, kind) in [("web.", RecordType::MX), ("web.", RecordType::HTTPS), ("web.", RecordType::TXT), ("web.", RecordType::ANY)] {
            let (answer, _) = ask(&question(name, kind), Transport::Udp, 0).unwrap();
            assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0), "{kind}");
        }
        let only_v4 = answer(&directory(), &[id("2")], &question("db.", RecordType::AAAA).to_vec().unwrap(), Transport::Udp, 0).unwrap();
        assert_eq!(data(&Message::from_vec(&only_v4).unwrap()), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_known_on_the_networks_of_the_sandbox_is_left_to_docker() {
        for name in ["other.", "db.", "db.red.", "web.example.com.", "."] {
            assert_eq!(told(name, RecordType::A), None, "{name}");
        }
        let mut chaos = question("web.", RecordType::A);
        chaos.queries[0].set_query_class(DNSClass::CH);
        let mut later = with_payload(question("web.", RecordType::A), 1232);
        later.edns.as_mut().unwrap().set_version(1);
        let mut two = question("web.", RecordType::A);
        two.add_query(two.queries[0].clone());
        for strange in [chaos, later, two] {
            assert_eq!(ask(&strange, Transport::Udp, 0), None, "{strange}");
        }
    }

    #[test]
    fn another_address_is_first_with_each_turn() {
        let first = |turn| data(&ask(&question("web.", RecordType::A), Transport::Udp, turn).unwrap().0)[0].clone();
        assert_eq!([0, 1, 2, usize::MAX].map(first), ["10.50.1.2", "10.50.1.3", "10.50.1.2", "10.50.1.3"]);
    }

    #[test]
    fn an_address_has_the_name_of_its_container() {
        let six = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.5.d.f.ip6.arpa.";
        for known in ["2.1.50.10.in-addr.arpa.", "2.1.50.10.IN-ADDR.arpa.", six] {
            assert_eq!(told(known, RecordType::PTR).unwrap(), ["web.blue."], "{known}");
        }
        for unknown in ["9.9.50.10.in-addr.arpa.", "2.1.60.10.in-addr.arpa.", "1.50.10.in-addr.arpa.", "x.in-addr.arpa.", "web."] {
            assert_eq!(told(unknown, RecordType::PTR), None, "{unknown}");
        }
    }

    #[test]
    fn an_answer_is_cut_to_what_the_asker_takes_and_says_so() {
        for (payload, kind, most, count) in
            [(None, RecordType::A, 512, 30), (Some(1232), RecordType::AAAA, 1232, 42), (Some(4096), RecordType::A, 4096, 200)]
        {
            let plain = question("many.", kind);
            let asked = payload.map_or(plain.clone(), |payload| with_payload(plain, payload));
            let (answer, length) = ask(&asked, Transport::Udp, 3).unwrap();
            assert!(length <= most, "{length} bytes in place of {most}");
            assert_eq!((answer.answers.len(), answer.metadata.truncation), (count, count < 200));
            assert_eq!(answer.edns.map(|edns| (edns.max_payload(), edns.flags().dnssec_ok)), payload.map(|_| (1232, true)));
        }
        let (answer, _) = ask(&question("many.", RecordType::AAAA), Transport::Tcp, 0).unwrap();
        assert_eq!((answer.answers.len(), answer.metadata.truncation), (200, false));
    }

    #[test]
    fn that_nobody_can_be_asked_is_said_to_who_asked() {
        let failed = Message::from_vec(&failure(&question("other.", RecordType::A).to_vec().unwrap()).unwrap()).unwrap();
        assert_eq!((failed.metadata.id, failed.metadata.response_code), (77, ResponseCode::ServFail));
        assert_eq!(failed.queries[0].name().to_ascii(), "other.");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_no_answer_is_longer_than_asked(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            plain in any::<bool>(),
            sound in any::<bool>(),
        ) {
            if sound {
                let known = with_payload(question("many.", RecordType::A), 600).to_vec().unwrap();
                bytes = bytes.iter().enumerate().fold(known, |mut known, (n, byte)| {
                    // a bit of it altered here and there
                    let at = (n * 31 + usize::from(*byte)) % known.len();
                    if n < 3 { known[at] ^= byte }
                    known
                });
            } else if plain && bytes.len() >= 12 {
                bytes[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
            }
            for transport in [Transport::Udp, Transport::Tcp] {
                let answer = answer(&directory(), &[id("1"), id("2")], &bytes, transport, 1);
                prop_assert!(answer.is_none_or(|answer| Message::from_vec(&answer).is_ok()));
            }
            let _ = failure(&bytes);
        }
    }
}
