//! Names that were checked once, at the border.

use std::fmt;
use std::str::FromStr;

use macaddr::MacAddr6;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} \"{value}\" is not valid: {rule}")]
pub struct InvalidName {
    what: &'static str,
    value: String,
    rule: &'static str,
}

impl InvalidName {
    /// Quotes at most 80 characters of `value`: it comes from outside.
    fn new(what: &'static str, value: &str, rule: &'static str) -> Self {
        InvalidName { what, value: value.chars().take(80).collect(), rule }
    }
}

/// Docker sends 64 hex digits, Swarm 25 of base 36; a store key and a link alias must be able to hold it.
fn valid_id(value: &str) -> bool {
    (1..=64).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// Interface names hold the first ten characters of an id: 40 bits, and `rsb-` before them makes 14 of 15 bytes.
fn short(id: &str) -> &str {
    &id[..id.len().min(10)]
}

macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $valid:path, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                if $valid(value) { Ok($name(value.to_owned())) } else { Err(InvalidName::new($what, value, $rule)) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_name!(
    /// A network, as the engine names it; random per engine.
    NetworkId, "network id", valid_id, "it has 1 to 64 letters and digits"
);
checked_name!(
    /// An endpoint, as the engine names it; new at every start of a container.
    EndpointId, "endpoint id", valid_id, "it has 1 to 64 letters and digits"
);
checked_name!(
    /// The name of a network interface, at most 15 bytes (`IFNAMSIZ` less the final NUL); `%`, which the kernel reads as a pattern, is refused.
    IfName, "interface name", valid_ifname, "it has 1 to 15 letters, digits or characters of \"._-\""
);

fn valid_ifname(value: &str) -> bool {
    (1..=15).contains(&value.len())
        && value != "."
        && value != ".."
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

impl NetworkId {
    /// A MAC for what the host itself has on the network. Ids are random, so this is as unlikely to meet another as a random one, and the
    /// same after a restart: containers keep their neighbour entry.
    pub fn mac(&self) -> Mac {
        let mut octets = [0; 6];
        for (octet, pair) in octets.iter_mut().zip(self.0.as_bytes().chunks(2)) {
            *octet = std::str::from_utf8(pair).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok()).unwrap_or(pair[0]);
        }
        Mac::local(octets)
    }

    /// The first ten characters, for names of links and for people.
    pub fn short(&self) -> &str {
        short(&self.0)
    }
}

impl EndpointId {
    /// The first ten characters, for names of links and for people.
    pub fn short(&self) -> &str {
        short(&self.0)
    }
}

impl IfName {
    /// `prefix` and the first ten characters of an id; `prefix` is at most five bytes and valid in a name.
    pub fn of(prefix: &str, id: &str) -> Self {
        debug_assert!(prefix.len() <= 5);
        IfName(format!("{prefix}{}", short(id)))
    }
}

/// An Ethernet address, written `02:42:ac:12:00:02`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(MacAddr6);

impl Mac {
    /// Six octets made a local unicast address: never one that a manufacturer gave, never a group. Hand in random ones: an address
    /// derived from an IP makes stale rows match a new container (moby#52661).
    pub fn local(mut octets: [u8; 6]) -> Self {
        octets[0] = (octets[0] & 0xfc) | 0x02;
        Mac(MacAddr6::from(octets))
    }

    pub fn octets(self) -> [u8; 6] {
        self.0.into_array()
    }
}

impl From<[u8; 6]> for Mac {
    fn from(octets: [u8; 6]) -> Self {
        Mac(MacAddr6::from(octets))
    }
}

impl FromStr for Mac {
    type Err = InvalidName;
    fn from_str(value: &str) -> Result<Self, InvalidName> {
        let mac: MacAddr6 = value.parse().map_err(|_| InvalidName::new("MAC address", value, "write it like 02:42:ac:12:00:02"))?;
        if mac.is_multicast() || mac.is_nil() {
            return Err(InvalidName::new("MAC address", value, "it must be a unicast address other than zero"));
        }
        Ok(Mac(mac))
    }
}

impl TryFrom<String> for Mac {
    type Error = InvalidName;
    fn try_from(value: String) -> Result<Self, InvalidName> {
        value.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    /// Lower case, as `ip link` and the engine write it (`macaddr` alone prints upper case).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.octets();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_name_has_at_most_fifteen_plain_bytes() {
        assert!("abcdefghijklmno".parse::<IfName>().is_ok());
        for bad in ["", "abcdefghijklmnop", "a/b", "a b", "..", "eth%d", "ü"] {
            assert!(bad.parse::<IfName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_local_mac_is_unicast_and_locally_administered_whatever_the_octets() {
        for first in 0..=255 {
            let mac = Mac::local([first, 1, 2, 3, 4, 5]);
            assert_eq!(mac.octets()[0] & 0x03, 0x02);
            assert_eq!(mac.to_string().parse(), Ok(mac));
        }
    }

    #[test]
    fn ids_from_outside_are_checked_before_they_become_paths() {
        for bad in ["", "../x", "a/b", "a b", &"f".repeat(65)] {
            assert!(bad.parse::<NetworkId>().is_err(), "{bad}");
        }
        assert_eq!("0123456789abcdef".parse::<NetworkId>().map(|id| id.short().to_owned()), Ok("0123456789".into()));
    }
}
