//! `rsnet hosts`, `rsnet host forget`: who shares networks with this host.

use std::collections::BTreeMap;

use super::client::Asking;
use super::{Failure, client, print, runtime};
use crate::agent::{Forget, HostSeen, Hosts};
use clap::{Args, Subcommand};

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
    show(arguments, &seen)?;
    if arguments.json {
        return Ok(());
    }
    say_in_the_way(&runtime()?.block_on(in_the_way(arguments))?)
}

/// What keeps networks of other hosts from appearing here, by their names.
pub async fn in_the_way(arguments: &Asking) -> Result<BTreeMap<String, String>, Failure> {
    client::get(&arguments.socket, "/rsnet/spread").await
}

pub fn say_in_the_way(problems: &BTreeMap<String, String>) -> Result<(), Failure> {
    let said = |(network, problem): (&String, &String)| print::say(format!("network {network}: {problem}"));
    problems.iter().try_for_each(said)
}

pub fn run_host(arguments: &HostArguments) -> Result<(), Failure> {
    let HostCommand::Forget { name, arguments } = &arguments.command;
    let forget = Forget { host: name.clone() };
    let seen = runtime()?.block_on(client::post(&arguments.socket, "/rsnet/hosts/forget", &forget))?;
    show(arguments, &seen)
}

fn show(arguments: &Asking, seen: &Hosts) -> Result<(), Failure> {
    if arguments.json {
        return print::json(seen);
    }
    if !seen.in_touch {
        print::say("The store does not answer. What was last heard:")?;
    }
    if seen.hosts.is_empty() {
        return print::say(
            "No host shares networks yet. Make one: docker network create -d rsnet --ipam-driver rsnet -o mode=overlay --subnet …",
        );
    }
    let rows = seen.hosts.iter().map(|host| [host.name.clone(), host.address.to_string(), state(host)]).collect();
    print::say(print::table(["HOST", "ADDRESS", "STATE"], rows, "rsnet hosts --json"))
}

fn state(host: &HostSeen) -> String {
    match host.gone_for {
        _ if host.alive => "alive".to_owned(),
        Some(seconds) => format!("gone for {}; free what it had: rsnet host forget {}", print::ago(seconds), host.name),
        None => "not heard of".to_owned(),
    }
}
