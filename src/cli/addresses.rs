//! `rsnet addresses`: which host has which addresses of a network, and which of this host's containers.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::client::AskingOf;
use super::{Failure, client, print, runtime};
use crate::agent::{Holder, Holders, Holding, Of};
use crate::docker::Seen;

/// What a line has room for.
const BLOCKS: usize = 6;

pub fn run(arguments: &AskingOf) -> Result<(), Failure> {
    let holders = runtime()?.block_on(ask(arguments))?;
    if arguments.asking.json {
        return print::json(&holders);
    }
    show(&holders)
}

async fn ask(arguments: &AskingOf) -> Result<Holders, Failure> {
    let Seen { id, containers } = client::network(&arguments.network).await;
    let mut holders: Holders = client::post(&arguments.asking.socket, "/rsnet/addresses", &Of { network: id }).await?;
    for holding in &mut holders.containers {
        holding.container = containers.get(&holding.endpoint).cloned();
    }
    Ok(holders)
}

fn show(holders: &Holders) -> Result<(), Failure> {
    if holders.shared && !holders.in_touch {
        print::say("The store does not answer. What was last heard:")?;
    }
    print::say(hosts(&holders.hosts))?;
    if holders.containers.is_empty() {
        return Ok(());
    }
    print::say(format!("\n{}", containers(&holders.containers)))
}

fn hosts(hosts: &[Holder]) -> String {
    let row = |host: &Holder| {
        let state = if host.alive { "alive" } else { "gone" };
        let in_use = host.in_use.map_or_else(|| "-".to_owned(), |count| count.to_string());
        [host.host.clone(), state.to_owned(), in_use, size(&host.blocks), blocks(&host.blocks)]
    };
    print::table(["HOST", "STATE", "IN USE", "ADDRESSES", "BLOCKS"], hosts.iter().map(row).collect(), "rsnet addresses --json")
}

/// Neighbours as one.
fn merged(blocks: &[IpNet]) -> Vec<IpNet> {
    let distinct: BTreeSet<IpNet> = blocks.iter().copied().collect();
    IpNet::aggregate(&distinct.into_iter().collect())
}

/// Of IPv4 the number; of IPv6 nobody counts.
fn size(blocks: &[IpNet]) -> String {
    let v4 = merged(blocks).into_iter().filter(|block| block.addr().is_ipv4());
    let count: u64 = v4.map(|block| 1u64 << (32 - block.prefix_len())).sum();
    if count > 0 { count.to_string() } else { "-".to_owned() }
}

fn blocks(blocks: &[IpNet]) -> String {
    let merged = merged(blocks);
    let mut shown: Vec<String> = merged.iter().take(BLOCKS).map(IpNet::to_string).collect();
    if merged.len() > BLOCKS {
        shown.push(format!("and {} more", merged.len() - BLOCKS));
    }
    shown.join(" ")
}

fn containers(containers: &[Holding]) -> String {
    let mut sorted: Vec<&Holding> = containers.iter().collect();
    sorted.sort_by_key(|holding| holding.addresses.clone());
    let row = |holding: &Holding| {
        let addresses: Vec<String> = holding.addresses.iter().map(ToString::to_string).collect();
        let short: String = holding.endpoint.chars().take(10).collect();
        [holding.container.clone().unwrap_or(short), addresses.join(" "), holding.mac.to_string()]
    };
    print::table(["CONTAINER", "ADDRESS", "MAC"], sorted.into_iter().map(row).collect(), "rsnet addresses --json")
}
