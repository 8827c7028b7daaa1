//! The parts of a subnet: how large they are, in which order a host tries them, which address in one is the host's own.

use std::net::IpAddr;

use ipnet::IpNet;

use super::hash::hash;
use crate::model::{address_of, number_of};

/// The prefix length of a subnet's blocks: 64 addresses of IPv4 or 65,536 of IPv6 in a block, in a small subnet as many as there are blocks.
/// On a segment, whose addresses are mostly few, there are more blocks than addresses in one: 32 of 8 in a /24.
pub fn length(range: IpNet, segment: bool) -> u8 {
    let most = if range.addr().is_ipv4() { 6 } else { 16 };
    let bits = range.max_prefix_len() - range.prefix_len();
    range.max_prefix_len() - most.min(if segment { bits.div_ceil(3) } else { bits / 2 })
}

/// The block of this length that an address belongs to.
pub fn block_of(length: u8, address: IpAddr) -> IpNet {
    IpNet::new(address, length).map_or(single(address), |block| block.trunc())
}

/// One address, as a block of full length.
pub fn single(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// Whether it is one address.
pub fn is_one(net: IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

/// Every block of this length in the range once, in an order of the host's own: a thousand that choose at once hardly meet, and a host that chooses
/// anew chooses the same. The number of blocks is a power of two, so that an odd step comes by all of them.
pub fn in_turn(range: IpNet, length: u8, host: &str) -> impl Iterator<Item = IpNet> + use<> {
    let seed = hash(&[host, &range.to_string()]);
    let count = 1u128 << length.saturating_sub(range.prefix_len()).min(64);
    let (first, step) = (u128::from(seed) % count, u128::from(hash(&[&seed.to_string()])) | 1);
    (0..count).map(move |turn| nth(range, length, first.wrapping_add(turn.wrapping_mul(step)) % count))
}

/// The addresses of a block that a host may have: not the subnet's own, its broadcast, nor one that is kept.
pub fn usable<'a>(subnet: IpNet, block: IpNet, reserved: &'a [IpAddr]) -> impl Iterator<Item = IpAddr> + use<'a> {
    let barred = [Some(subnet.network()), subnet.addr().is_ipv4().then(|| subnet.broadcast())];
    let last = number_of(block.broadcast()) - number_of(block.network());
    (0..=last)
        .map(move |at| address_of(block, number_of(block.network()) + at))
        .filter(move |a| !barred.contains(&Some(*a)) && !reserved.contains(a))
}

/// The host's own address in a block.
pub fn home(subnet: IpNet, block: IpNet, reserved: &[IpAddr]) -> Option<IpAddr> {
    usable(subnet, block, reserved).next()
}

fn nth(range: IpNet, length: u8, at: u128) -> IpNet {
    let shift = u32::from(range.max_prefix_len() - length);
    let address = address_of(range, number_of(range.network()) + (at << shift));
    IpNet::new(address, length).unwrap_or(range)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_block_is_a_26_of_a_16_and_a_112_of_a_64() {
        let lengths = ["10.50.0.0/16", "10.50.0.0/24", "10.50.0.0/29", "fd00::/64", "fd00::/120"].map(|subnet| length(net(subnet), false));
        assert_eq!(lengths, [26, 28, 31, 112, 124]);
    }

    #[test]
    fn a_segment_has_more_blocks_than_a_block_has_addresses() {
        let ranges = ["10.50.0.0/16", "10.77.0.0/23", "10.77.0.0/24", "10.77.0.0/27", "10.77.0.0/29", "fd00::/64"];
        assert_eq!(ranges.map(|range| length(net(range), true)), [26, 29, 29, 30, 31, 112]);
    }

    #[test]
    fn home_is_neither_the_subnets_own_address_nor_a_gateway() {
        let (subnet, gateway) = (net("10.50.0.0/16"), ["10.50.0.1".parse().unwrap()]);
        assert_eq!(home(subnet, net("10.50.0.0/26"), &gateway), Some("10.50.0.2".parse().unwrap()));
        assert_eq!(home(subnet, net("10.50.0.64/26"), &gateway), Some("10.50.0.64".parse().unwrap()));
        assert_eq!(home(net("10.50.0.0/29"), net("10.50.0.0/31"), &gateway), None);
        assert_eq!(home(net("fd00::/64"), net("fd00::/112"), &[]), Some("fd00::1".parse().unwrap()));
    }

    #[test]
    fn a_thousand_hosts_hardly_meet_in_their_first_block() {
        let first = |host: u32| in_turn(net("10.48.0.0/12"), 26, &format!("host-{host}")).next().unwrap();
        let firsts: BTreeSet<IpNet> = (0..1000).map(first).collect();
        assert!(firsts.len() > 950, "{}", firsts.len());
    }

    proptest! {
        #[test]
        fn a_host_comes_by_every_block_once(prefix in 16u8..30, segment: bool, host in "[a-z]{1,8}") {
            let subnet = IpNet::new("10.50.0.0".parse().unwrap(), prefix).unwrap().trunc();
            let length = length(subnet, segment);
            let blocks: Vec<IpNet> = in_turn(subnet, length, &host).collect();
            let distinct: BTreeSet<IpNet> = blocks.iter().copied().collect();
            prop_assert_eq!(distinct.len(), 1 << (length - prefix));
            prop_assert_eq!(blocks.len(), distinct.len());
            prop_assert!(blocks.iter().all(|block| subnet.contains(block) && block_of(length, block.addr()) == *block));
        }
    }
}
