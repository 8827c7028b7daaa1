//! `rsnet macvlan`: what can change of a macvlan network while containers are on it.

use clap::{Args, Subcommand};

use super::client::Asking;
use super::{Failure, client, print, runtime};
use crate::agent::{ChangeSources, Sources};

#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show, or change at once, the MAC addresses from which containers take frames (macvlan_mode=source)
    Sources(SourcesArguments),
}

#[derive(Args)]
struct SourcesArguments {
    /// Name or id of the network
    network: String,
    /// A MAC address to hear from now on; may be given again and again
    #[arg(long, value_name = "MAC")]
    add: Vec<String>,
    /// A MAC address to hear no more
    #[arg(long, value_name = "MAC")]
    remove: Vec<String>,
    #[command(flatten)]
    asking: Asking,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.command {
        Command::Sources(arguments) => sources(arguments),
    }
}

fn sources(arguments: &SourcesArguments) -> Result<(), Failure> {
    let SourcesArguments { network, add, remove, asking } = arguments;
    let add = add.iter().map(|mac| mac.parse()).collect::<Result<_, _>>()?;
    let remove = remove.iter().map(|mac| mac.parse()).collect::<Result<_, _>>()?;
    let asked = async {
        let change = ChangeSources { network: client::network(network).await.id, add, remove };
        client::post(&asking.socket, "/rsnet/macvlan/sources", &change).await
    };
    let now: Sources = runtime()?.block_on(asked)?;
    if asking.json {
        return print::json(&now);
    }
    print::say(show(&now))
}

/// Four to a line: they fit 80 columns.
fn show(sources: &Sources) -> String {
    let name = sources.network_name.as_deref().unwrap_or(sources.network.short());
    let macs: Vec<String> = sources.source_macs.iter().map(ToString::to_string).collect();
    let lines: Vec<String> = macs.chunks(4).map(|line| format!("  {}", line.join("  "))).collect();
    format!(
        "Containers of {name} take frames from {} MAC addresses:\n{}\nChange that with `rsnet macvlan sources {name} --add MAC --remove MAC`.",
        macs.len(),
        lines.join("\n")
    )
}
