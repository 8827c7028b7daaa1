//! Netlink attributes as a tree: written to bytes for the kernel, and compared with what it gives back.

use netlink_packet_core::NlasIterator;

const NESTED: u16 = 0x8000;
const HEADER: usize = 4;

/// One attribute: its number within its parent (`NFTA_*`, `CTA_*`) and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    kind: u16,
    value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Bytes(Vec<u8>),
    /// Attributes of which each number occurs once, in any order.
    Nest(Vec<Attribute>),
    /// Attributes whose order and count mean something.
    List(Vec<Attribute>),
}

pub fn bytes(kind: u16, value: impl Into<Vec<u8>>) -> Attribute {
    Attribute { kind, value: Value::Bytes(value.into()) }
}

/// With the final NUL that netfilter expects.
pub fn string(kind: u16, value: &str) -> Attribute {
    bytes(kind, [value.as_bytes(), &[0]].concat())
}

/// In network byte order, as all numbers of nfnetlink are.
pub fn number(kind: u16, value: u32) -> Attribute {
    bytes(kind, value.to_be_bytes())
}

pub fn nest(kind: u16, value: impl Into<Vec<Attribute>>) -> Attribute {
    Attribute { kind, value: Value::Nest(value.into()) }
}

pub fn list(kind: u16, value: impl Into<Vec<Attribute>>) -> Attribute {
    Attribute { kind, value: Value::List(value.into()) }
}

/// Appends the attributes as the kernel reads them: length and number in host order, padded to four bytes.
pub fn write(attributes: &[Attribute], to: &mut Vec<u8>) {
    for Attribute { kind, value } in attributes {
        let start = to.len();
        let nested = if matches!(value, Value::Bytes(_)) { 0 } else { NESTED };
        to.extend([0, 0]);
        to.extend((kind | nested).to_ne_bytes());
        match value {
            Value::Bytes(value) => to.extend(value),
            Value::Nest(inner) | Value::List(inner) => write(inner, to),
        }
        // The callers keep every attribute below the 64 KiB that this field can say.
        let length = (to.len() - start) as u16;
        to[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        to.resize(to.len().next_multiple_of(4), 0);
    }
}

/// How many bytes [`write`] takes for the attribute.
pub fn written_length(attribute: &Attribute) -> usize {
    let inner = match &attribute.value {
        Value::Bytes(value) => value.len(),
        Value::Nest(inner) | Value::List(inner) => inner.iter().map(written_length).sum(),
    };
    (HEADER + inner).next_multiple_of(4)
}

/// The attributes of a message or of a nest: number and value. Ends at the first malformed one.
pub fn read(buffer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(buffer).map_while(Result::ok).map(|nla| {
        let length = usize::from(nla.length());
        (nla.kind(), &nla.into_inner()[HEADER..length])
    })
}

/// The value of the first attribute of this number.
pub fn find(buffer: &[u8], kind: u16) -> Option<&[u8]> {
    read(buffer).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

pub fn find_number(buffer: &[u8], kind: u16) -> Option<u32> {
    find(buffer, kind)?.try_into().ok().map(u32::from_be_bytes)
}

pub fn find_string(buffer: &[u8], kind: u16) -> Option<&str> {
    let value = find(buffer, kind)?;
    str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}

/// Whether `dumped` holds all that we wrote. The kernel adds attributes of its own (handles, use counts, defaults), newer ones more:
/// those are no difference. A list must have exactly our members.
pub fn covers(written: &[Attribute], dumped: &[u8]) -> bool {
    written.iter().all(|ours| find(dumped, ours.kind).is_some_and(|theirs| is_met(&ours.value, theirs)))
}

fn is_met(ours: &Value, theirs: &[u8]) -> bool {
    match ours {
        Value::Bytes(ours) => ours == theirs,
        Value::Nest(ours) => covers(ours, theirs),
        Value::List(ours) => {
            let theirs: Vec<_> = read(theirs).collect();
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(o, (kind, t))| o.kind == kind && is_met(&o.value, t))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(attributes: &[Attribute]) -> Vec<u8> {
        let mut buffer = Vec::new();
        write(attributes, &mut buffer);
        buffer
    }

    #[test]
    fn what_is_written_is_read_back() {
        let tree = [string(1, "abc"), nest(2, [number(3, 7), bytes(4, [1])])];
        let buffer = written(&tree);
        assert_eq!(buffer.len(), tree.iter().map(written_length).sum::<usize>());
        assert_eq!(find_string(&buffer, 1), Some("abc"));
        assert_eq!(find(&buffer, 2).and_then(|inner| find_number(inner, 3)), Some(7));
        assert!(covers(&tree, &buffer));
    }

    #[test]
    fn more_than_we_wrote_is_no_difference_but_in_a_list() {
        assert!(covers(&[number(1, 5)], &written(&[number(9, 9), number(1, 5)])));
        assert!(!covers(&[number(1, 5)], &written(&[number(1, 6)])));
        assert!(!covers(&[list(1, [number(1, 5)])], &written(&[list(1, [number(1, 5), number(1, 6)])])));
        assert!(!covers(&[list(1, [number(1, 5), number(1, 6)])], &written(&[list(1, [number(1, 6), number(1, 5)])])));
    }

    #[test]
    fn malformed_input_ends_the_reading() {
        for garbage in [&[][..], &[1], &[2, 0, 1, 0], &[255, 255, 1, 0, 1], &[0, 0, 0, 0]] {
            assert_eq!(read(garbage).count(), 0, "{garbage:?}");
        }
    }
}
