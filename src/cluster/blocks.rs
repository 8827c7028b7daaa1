//! How a subnet is cut into blocks, and what is derived from names: nothing of it is stored, all of it comes out the same on every host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::model::Mac;

/// The first number of ours; Docker's own overlay counts from 4096.
const FIRST_VNI: u32 = 1_000_000;
const LAST_VNI: u32 = (1 << 24) - 1;

/// How many bits of an address are left within a block: 64 addresses of an IPv4 /22 or larger, the square root of a smaller one's; 65,536 of an
/// IPv6 /64.
fn room(subnet: IpNet) -> u8 {
    let bits = subnet.max_prefix_len() - subnet.prefix_len();
    if subnet.addr().is_ipv4() { (bits / 2).min(6) } else { (bits / 2).min(16) }
}

/// The block that an address is in.
pub fn around(subnet: IpNet, address: IpAddr) -> IpNet {
    IpNet::new(address, subnet.max_prefix_len() - room(subnet)).map_or(IpNet::from(address), |block| block.trunc())
}

/// Every block of the subnet once, from one that depends on the host's name: hosts that come at once hardly meet, and one that lost everything
/// finds its old ones.
pub fn candidates(subnet: IpNet, host: &str) -> impl Iterator<Item = IpNet> {
    let length = subnet.max_prefix_len() - room(subnet);
    let count = 1_u128 << (length - subnet.prefix_len());
    let start = u128::from(hash(&[host.as_bytes(), subnet.to_string().as_bytes()])) % count;
    (0..count).map(move |n| nth(subnet, (start + n) % count, length))
}

/// The nth part of this prefix length.
fn nth(subnet: IpNet, n: u128, length: u8) -> IpNet {
    let part = n << (subnet.max_prefix_len() - length);
    match subnet {
        IpNet::V4(net) => IpNet::new_assert(Ipv4Addr::from_bits(net.network().to_bits() + part as u32).into(), length),
        IpNet::V6(net) => IpNet::new_assert(Ipv6Addr::from_bits(net.network().to_bits() + part).into(), length),
    }
}

/// The first address of a block that the host itself may have: not the subnet's own, not a reserved one, not one that was claimed alone.
pub fn home<'b>(subnet: IpNet, block: IpNet, reserved: &[IpAddr], taken: impl Iterator<Item = &'b IpNet> + Clone) -> Option<IpAddr> {
    let full = block.max_prefix_len();
    let all = (0..1_u128 << (full - block.prefix_len())).map(|n| nth(block, n, full).addr());
    let own = [subnet.network(), subnet.broadcast()];
    all.into_iter()
        .find(|address| !own.contains(address) && !reserved.contains(address) && !taken.clone().any(|other| other.contains(address)))
}

/// The lowest number from one that depends on the subnets which nobody uses.
pub fn vni(subnets: &[IpNet], used: impl Fn(u32) -> bool) -> u32 {
    let names: Vec<String> = subnets.iter().map(ToString::to_string).collect();
    let names: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
    let count = LAST_VNI - FIRST_VNI + 1;
    let start = (hash(&names) % u64::from(count)) as u32;
    let all = (0..count).map(|n| FIRST_VNI + (start + n) % count);
    all.into_iter().find(|vni| !used(*vni)).unwrap_or(FIRST_VNI)
}

/// A host's MAC on a network.
pub fn mac(host: &str, vni: u32) -> Mac {
    let [_, _, octets @ ..] = hash(&[host.as_bytes(), &vni.to_be_bytes()]).to_be_bytes();
    Mac::local(octets)
}

/// FNV-1a, which is the same in every version of this program.
fn hash(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.iter().chain(&[0]));
    let mixed = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    // its high bits depend little on the last bytes
    mixed ^ (mixed >> 29)
}
