//! The parts of a subnet: how large they are, in which order a host tries them, which address in one is the host's own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::hash::hash;

/// The prefix length of a subnet's blocks: 64 addresses of IPv4 or 65,536 of IPv6 in a block, in a small subnet as many as there are blocks.
pub fn length(subnet: IpNet) -> u8 {
    let most = if subnet.addr().is_ipv4() { 6 } else { 16 };
    let bits = subnet.max_prefix_len() - subnet.prefix_len();
    subnet.max_prefix_len() - most.min(bits / 2)
}

/// The block that an address of the subnet belongs to.
pub fn block_of(subnet: IpNet, address: IpAddr) -> IpNet {
    let block = IpNet::new(address, length(subnet));
    block.map_or(subnet, |block| block.trunc())
}

/// One address, as a block of full length.
pub fn single(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// Whether it is one address that was asked for, and no block.
pub fn is_single(subnet: IpNet, block: IpNet) -> bool {
    block.prefix_len() > length(subnet)
}

/// Every block of the subnet once, in an order of the host's own: a thousand that choose at once hardly meet, and a host that chooses
/// anew chooses the same. The number of blocks is a power of two, so that an odd step comes by all of them.
pub fn in_turn(subnet: IpNet, host: &str) -> impl Iterator<Item = IpNet> + use<> {
    let (length, seed) = (length(subnet), hash(&[host, &subnet.to_string()]));
    let count = 1u128 << (length - subnet.prefix_len()).min(64);
    let (first, step) = (u128::from(seed) % count, u128::from(hash(&[&seed.to_string()])) | 1);
    (0..count).map(move |turn| nth(subnet, length, first.wrapping_add(turn.wrapping_mul(step)) % count))
}

/// The addresses of a block that a host may have: not the subnet's own, its broadcast, nor one that is kept.
pub fn usable<'a>(subnet: IpNet, block: IpNet, reserved: &'a [IpAddr]) -> impl Iterator<Item = IpAddr> + use<'a> {
    let barred = [Some(subnet.network()), subnet.addr().is_ipv4().then(|| subnet.broadcast())];
    let last = number(block.broadcast()) - number(block.network());
    (0..=last)
        .map(move |at| address(block, number(block.network()) + at))
        .filter(move |a| !barred.contains(&Some(*a)) && !reserved.contains(a))
}

/// The host's own address in a block.
pub fn home(subnet: IpNet, block: IpNet, reserved: &[IpAddr]) -> Option<IpAddr> {
    usable(subnet, block, reserved).next()
}

fn nth(subnet: IpNet, length: u8, at: u128) -> IpNet {
    let shift = u32::from(subnet.max_prefix_len() - length);
    let address = address(subnet, number(subnet.network()) + (at << shift));
    IpNet::new(address, length).unwrap_or(subnet)
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(like: IpNet, number: u128) -> IpAddr {
    match like {
        // What is inside an IPv4 subnet is below 2^32.
        IpNet::V4(_) => Ipv4Addr::from_bits(number as u32).into(),
        IpNet::V6(_) => Ipv6Addr::from_bits(number).into(),
    }
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
        let lengths = ["10.50.0.0/16", "10.50.0.0/24", "10.50.0.0/29", "fd00::/64", "fd00::/120"].map(|subnet| length(net(subnet)));
        assert_eq!(lengths, [26, 28, 31, 112, 124]);
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
        let first = |host: u32| in_turn(net("10.48.0.0/12"), &format!("host-{host}")).next().unwrap();
        let firsts: BTreeSet<IpNet> = (0..1000).map(first).collect();
        assert!(firsts.len() > 950, "{}", firsts.len());
    }

    proptest! {
        #[test]
        fn a_host_comes_by_every_block_once(prefix in 16u8..30, host in "[a-z]{1,8}") {
            let subnet = IpNet::new("10.50.0.0".parse().unwrap(), prefix).unwrap().trunc();
            let blocks: Vec<IpNet> = in_turn(subnet, &host).collect();
            let distinct: BTreeSet<IpNet> = blocks.iter().copied().collect();
            prop_assert_eq!(distinct.len(), 1 << (length(subnet) - prefix));
            prop_assert_eq!(blocks.len(), distinct.len());
            prop_assert!(blocks.iter().all(|block| subnet.contains(block) && block_of(subnet, block.addr()) == *block));
        }
    }
}
