//! `rsnet addresses`: which host has which addresses of a network, and which of this host's containers.

use std::collections::BTreeSet;

use clap::Args;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use ipnet::IpNet;

use super::client::Asking;
use super::{Failure, client, runtime};
use crate::agent::{Holder, Holders, Holding, Of};
use crate::docker::Seen;

/// What a screen has room for.
const ROWS: usize = 20;
const BLOCKS: usize = 6;

#[derive(Args)]
pub struct Arguments {
    /// Name or id of the network
    network: String,
    #[command(flatten)]
    asking: Asking,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let holders = runtime()?.block_on(ask(arguments))?;
    if arguments.asking.json {
        return client::print_json(&holders);
    }
    print(&holders);
    Ok(())
}

async fn ask(arguments: &Arguments) -> Result<Holders, Failure> {
    let Seen { id, containers } = client::network(&arguments.network).await;
    let mut holders: Holders = client::post(&arguments.asking.socket, "/rsnet/addresses", &Of { network: id }).await?;
    for holding in &mut holders.containers {
        holding.container = containers.get(&holding.endpoint).cloned();
    }
    Ok(holders)
}

fn print(holders: &Holders) {
    if holders.shared && !holders.in_touch {
        println!("The store does not answer. What was last heard:");
    }
    println!("{}", hosts(&holders.hosts));
    if !holders.containers.is_empty() {
        println!("\n{}", containers(&holders.containers));
    }
    let more = holders.containers.len().saturating_sub(ROWS);
    if more > 0 {
        println!("… and {more} containers more; all of them: rsnet addresses --json");
    }
}

fn hosts(hosts: &[Holder]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["HOST", "STATE", "IN USE", "ADDRESSES", "BLOCKS"]);
    for host in hosts {
        let state = if host.alive { "alive" } else { "gone" };
        let in_use = host.in_use.map_or_else(|| "-".to_owned(), |count| count.to_string());
        table.add_row([host.host.clone(), state.to_owned(), in_use, size(&host.blocks), blocks(&host.blocks)]);
    }
    table
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

fn containers(containers: &[Holding]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["CONTAINER", "ADDRESS", "MAC"]);
    let mut sorted: Vec<&Holding> = containers.iter().collect();
    sorted.sort_by_key(|holding| holding.addresses.clone());
    for holding in sorted.into_iter().take(ROWS) {
        let addresses: Vec<String> = holding.addresses.iter().map(ToString::to_string).collect();
        let short: String = holding.endpoint.chars().take(10).collect();
        table.add_row([holding.container.clone().unwrap_or(short), addresses.join(" "), holding.mac.to_string()]);
    }
    table
}
