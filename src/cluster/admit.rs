//! Which networks there are: who may join which, under which number. Pure; the one record that it decides about is changed by
//! compare-and-set.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::Wanted;
use super::error::Error;
use super::hash::hash;
use super::record::{NetworkRecord, Networks, Unknown};
use super::text::list;
use crate::model::Agreement;

/// Of VNIs; Docker's own overlay counts from 4096, and people from 1.
const FIRST: u32 = 1_000_000;
const LAST: u32 = (1 << 24) - 1;

/// The network's number, and the record to write if it is not yet as it should be. `held`: the number that this host already uses for it.
pub fn admit(networks: &Networks, wanted: &Wanted, held: Option<u32>, host: &str) -> Result<(u32, Option<Networks>), Error> {
    let agreement = wanted.agreement();
    if let Some(at) = networks.networks.iter().position(|network| network.agreement.subnets == agreement.subnets) {
        let network = &networks.networks[at];
        same(network, &agreement)?;
        if wanted.segment.is_none() && wanted.foreign_vnis.contains(&network.vni) {
            return Err(Error::VniHere { subnets: agreement.subnets, vni: network.vni });
        }
        return Ok((network.vni, network.closing.then(|| marked(networks, at, false))));
    }
    if let Some(other) = networks.networks.iter().find(|network| overlap(&network.agreement.subnets, &agreement.subnets)) {
        let (other, host) = (other.agreement.subnets.clone(), other.made_by.clone());
        return Err(Error::Overlap { subnets: agreement.subnets, other, host });
    }
    let vni = if wanted.segment.is_some() { 0 } else { choose(networks, wanted, held) };
    let mut more = networks.clone();
    more.networks.push(NetworkRecord { vni, made_by: host.to_owned(), agreement, closing: false, unknown: Unknown::new() });
    Ok((vni, Some(more)))
}

/// The record of the network that the subnet belongs to.
pub fn of(networks: &Networks, subnet: IpNet) -> Option<usize> {
    networks.networks.iter().position(|network| network.agreement.subnets.contains(&subnet))
}

/// The same networks, one of them about to go or not.
pub fn marked(networks: &Networks, at: usize, closing: bool) -> Networks {
    let mut marked = networks.clone();
    marked.networks[at].closing = closing;
    marked
}

/// The same networks but for one.
pub fn without(networks: &Networks, at: usize) -> Networks {
    let mut fewer = networks.clone();
    fewer.networks.remove(at);
    fewer
}

/// A number from the network's subnets, so that a record that was lost is mostly made again with the same; the next if somebody has it.
fn choose(networks: &Networks, wanted: &Wanted, held: Option<u32>) -> u32 {
    let taken: BTreeSet<u32> = networks.networks.iter().map(|network| network.vni).chain(wanted.foreign_vnis.iter().copied()).collect();
    let count = LAST - FIRST + 1;
    let first = (hash(&[&list(&wanted.agreement().subnets)]) % u64::from(count)) as u32;
    let vnis = (0..count).map(|turn| FIRST + (first + turn) % count);
    held.into_iter().chain(vnis).find(|vni| !taken.contains(vni)).unwrap_or(FIRST)
}

fn overlap(some: &[IpNet], others: &[IpNet]) -> bool {
    some.iter().any(|one| others.iter().any(|other| one.contains(other) || other.contains(one)))
}

fn same(network: &NetworkRecord, here: &Agreement) -> Result<(), Error> {
    let there = &network.agreement;
    let names: BTreeSet<&String> = there.options.keys().chain(here.options.keys()).collect();
    let option = |name: &String, of: &Agreement| of.options.get(name).cloned().unwrap_or_else(|| "not given".to_owned());
    let options = names.into_iter().map(|name| (format!("option {name}"), option(name, here), option(name, there)));
    let reserved = ("what is kept from containers (gateways)".to_owned(), list(&here.reserved), list(&there.reserved));
    let Some((what, here_text, there_text)) = [reserved].into_iter().chain(options).find(|(_, a, b)| a != b) else { return Ok(()) };
    let (subnets, host) = (here.subnets.clone(), network.made_by.clone());
    Err(Error::Differs { subnets, what, here: here_text, there: there_text, host })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(subnets: &[&str]) -> Wanted {
        let subnets = subnets.iter().map(|subnet| subnet.parse().unwrap()).collect();
        Wanted { subnets, ..Wanted::default() }
    }

    fn made(wanted: &Wanted) -> (u32, Networks) {
        let (vni, networks) = admit(&Networks::default(), wanted, None, "alpha").unwrap();
        (vni, networks.unwrap())
    }

    #[test]
    fn the_second_host_gets_the_number_of_the_first_and_writes_nothing() {
        let (vni, networks) = made(&wanted(&["10.50.0.0/16", "fd00::/64"]));
        let turned = wanted(&["fd00::/64", "10.50.0.0/16"]);
        assert_eq!(admit(&networks, &turned, None, "beta").unwrap(), (vni, None));
    }

    #[test]
    fn a_number_in_use_here_is_not_chosen_and_not_taken() {
        let mut wanted = wanted(&["10.50.0.0/16"]);
        let (vni, networks) = made(&wanted);
        wanted.foreign_vnis.insert(vni);
        assert_ne!(made(&wanted).0, vni);
        let error = admit(&networks, &wanted, None, "beta").unwrap_err().to_string();
        assert!(error.contains(&format!("its VNI {vni} is that of another VXLAN device on this host")), "{error}");
    }

    #[test]
    fn a_difference_tells_both_sides_and_who_made_it() {
        let mut wanted = wanted(&["10.50.0.0/16"]);
        wanted.options.insert("mtu".into(), "1400".into());
        let (_, networks) = made(&wanted);
        wanted.options.insert("mtu".into(), "9000".into());
        let error = admit(&networks, &wanted, None, "beta").unwrap_err().to_string();
        assert_eq!(
            error,
            "join the network of 10.50.0.0/16: option mtu is 9000 here and 1400 on host alpha, which made it; give the same on every host"
        );
    }

    #[test]
    fn an_overlap_names_both_networks() {
        let (_, networks) = made(&wanted(&["10.50.0.0/16"]));
        for subnets in [&["10.50.3.0/24"][..], &["10.0.0.0/8"], &["10.50.0.0/16", "fd00::/64"]] {
            let error = admit(&networks, &wanted(subnets), None, "beta").unwrap_err().to_string();
            let start = format!("join the network of {}: host alpha made the network of 10.50.0.0/16", subnets.join(" and "));
            assert!(error.starts_with(&start), "{error}");
        }
    }

    #[test]
    fn who_joins_takes_the_mark_of_the_last_one_away() {
        let wanted = wanted(&["10.50.0.0/16"]);
        let (vni, networks) = made(&wanted);
        assert_eq!(admit(&marked(&networks, 0, true), &wanted, None, "beta").unwrap(), (vni, Some(networks)));
    }
}
