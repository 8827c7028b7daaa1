//! `rsnet hosts`, `rsnet host forget`: who shares networks with this host.

use clap::{Args, Subcommand};
use comfy_table::Table;
use comfy_table::presets::NOTHING;

use super::client::Asking;
use super::{Failure, client, runtime};
use crate::agent::{Forget, HostSeen, Hosts};

#[derive(Args)]
pub struct HostArguments {
    #[command(subcommand)]
    command: HostCommand,
}

#[derive(Subcommand)]
enum HostCommand {
    /// Free all that a host had which will not come back: its blocks of addresses are others' to take
    Forget {
        /// As `rsnet hosts` shows it
        name: String,
        #[command(flatten)]
        arguments: Asking,
    },
}

pub fn run(arguments: &Asking) -> Result<(), Failure> {
    let seen = runtime()?.block_on(client::get(&arguments.socket, "/rsnet/hosts"))?;
    print(arguments, &seen)
}

pub fn run_host(arguments: &HostArguments) -> Result<(), Failure> {
    let HostCommand::Forget { name, arguments } = &arguments.command;
    let forget = Forget { host: name.clone() };
    let seen = runtime()?.block_on(client::post(&arguments.socket, "/rsnet/hosts/forget", &forget))?;
    print(arguments, &seen)
}

fn print(arguments: &Asking, seen: &Hosts) -> Result<(), Failure> {
    if arguments.json {
        return client::print_json(seen);
    }
    if !seen.in_touch {
        println!("The store does not answer. What was last heard:");
    }
    match &seen.hosts[..] {
        [] => {
            println!("No host shares networks yet. Make one: docker network create -d rsnet --ipam-driver rsnet -o mode=overlay --subnet …")
        }
        hosts => println!("{}", table(hosts)),
    }
    Ok(())
}

fn table(hosts: &[HostSeen]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["HOST", "ADDRESS", "STATE"]);
    for host in hosts {
        table.add_row([host.name.clone(), host.address.to_string(), state(host)]);
    }
    table
}

fn state(host: &HostSeen) -> String {
    match host.gone_for {
        _ if host.alive => "alive".to_owned(),
        Some(seconds) => format!("gone for {} min; free what it had: rsnet host forget {}", seconds / 60, host.name),
        None => "not heard of".to_owned(),
    }
}
