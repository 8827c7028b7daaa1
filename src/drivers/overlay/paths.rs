//! What the fast way knows of other hosts: their blocks as ranges that do not overlap, each with its link and next hop. Routes may lie in one
//! another, and the longest decides; ranges may not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound::{Excluded, Unbounded};

use ipnet::IpNet;

use super::{Overlay, tunnel};
use crate::model::{Entry, IfName, Share, address_of, number_of};

impl Overlay {
    /// The links to other hosts, and an entry for each range of their addresses to which there is a way.
    pub(super) fn paths(&self, share: &Share) -> impl Iterator<Item = Entry> {
        let (link, mtu) = (tunnel(share), self.mtu(share));
        let subnet = |block: IpNet| self.spec.sides.iter().map(|side| side.subnet).find(|subnet| subnet.contains(&block));
        // what is larger than the way takes must be told so, by the long way
        let fits = |out: &IfName| *out == link || mtu <= share.mtu;
        let ways: BTreeMap<IpNet, (IpNet, IfName, IpAddr)> = share
            .others()
            .flat_map(|peer| peer.blocks.iter().map(move |block| (peer, *block)))
            .filter_map(|(peer, block)| Some((block, subnet(block)?, self.way_to(share, peer, block, &link)?)))
            .filter(|(_, _, (out, _))| fits(out))
            .map(|(block, subnet, (out, via))| (block, (subnet, out.clone(), via)))
            .collect();
        let all: BTreeSet<IpNet> = share.others().chain([&share.mine]).flat_map(|member| member.blocks.iter().copied()).collect();
        let links: BTreeSet<(IpNet, IfName)> = ways.values().map(|(subnet, link, _)| (*subnet, link.clone())).collect();
        let links = links.into_iter().map(move |(subnet, link)| Entry::Way { subnet, link, mtu });
        links.chain(ways.into_iter().flat_map(move |(block, (subnet, link, via))| {
            let entry = move |(first, last)| Entry::Remote { subnet, first, last, link: link.clone(), via };
            rest(block, &all).into_iter().map(entry)
        }))
    }
}

/// What is left of a block beside those of others within it, as ranges with both ends.
fn rest(block: IpNet, all: &BTreeSet<IpNet>) -> Vec<(IpAddr, IpAddr)> {
    // a block is followed at once by those that lie in it
    let within = all.range((Excluded(block), Unbounded)).take_while(|other| block.contains(*other));
    let (mut ranges, mut next) = (Vec::new(), Some(number_of(block.network())));
    let end = number_of(block.broadcast());
    for other in within {
        let (first, last) = (number_of(other.network()), number_of(other.broadcast()));
        ranges.extend(next.filter(|next| *next < first).map(|next| (next, first - 1)));
        // one may lie within the one before it
        next = next.and_then(|next| if last < next { Some(next) } else { last.checked_add(1) });
    }
    ranges.extend(next.filter(|next| *next <= end).map(|next| (next, end)));
    ranges.into_iter().map(|(first, last)| (address_of(block, first), address_of(block, last))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(block: &str, others: &[&str]) -> Vec<String> {
        let all: BTreeSet<IpNet> = others.iter().chain([&block]).map(|block| block.parse().unwrap()).collect();
        rest(block.parse().unwrap(), &all).into_iter().map(|(first, last)| format!("{first}-{last}")).collect()
    }

    #[test]
    fn what_others_have_within_a_block_is_left_out_of_it() {
        assert_eq!(ranges("10.0.0.64/26", &["10.0.0.0/26", "10.0.1.0/26"]), ["10.0.0.64-10.0.0.127"]);
        assert_eq!(
            ranges("10.0.0.64/26", &["10.0.0.70/32", "10.0.0.71/32", "10.0.0.80/30"]),
            ["10.0.0.64-10.0.0.69", "10.0.0.72-10.0.0.79", "10.0.0.84-10.0.0.127"]
        );
        assert_eq!(ranges("10.0.0.64/26", &["10.0.0.64/32", "10.0.0.127/32"]), ["10.0.0.65-10.0.0.126"]);
        assert_eq!(ranges("10.0.0.64/26", &["10.0.0.64/27", "10.0.0.65/32", "10.0.0.96/27"]), Vec::<String>::new());
        assert_eq!(ranges("255.255.255.0/24", &["255.255.255.255/32"]), ["255.255.255.0-255.255.255.254"]);
        assert_eq!(ranges("fd00::/112", &["fd00::5/128"]), ["fd00::-fd00::4", "fd00::6-fd00::ffff"]);
    }

    #[test]
    fn a_block_at_the_end_of_all_addresses_ends_there() {
        let last = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124";
        assert_eq!(ranges(last, &["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"]).len(), 1);
        assert_eq!(ranges(last, &[]).len(), 1);
    }
}
