//! `rsnet names`: what containers of a network are called, on all hosts.

use clap::Args;

use super::client::Asking;
use super::{Failure, client, print, runtime};
use crate::agent::Of;
use crate::names::{Listed, Listing};

#[derive(Args)]
pub struct Arguments {
    /// Name or id of the network
    network: String,
    #[command(flatten)]
    asking: Asking,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let listing = runtime()?.block_on(ask(arguments))?;
    if arguments.asking.json {
        return print::json(&listing);
    }
    if !listing.in_touch {
        print::say("The engine of this host does not tell its containers' names; see RSNET_DOCKER. What was last heard:")?;
    }
    let rows = listing.containers.iter().map(row).collect();
    print::say(print::table(["NAME", "ALSO", "ADDRESSES", "HOST"], rows, "rsnet names --json"))
}

async fn ask(arguments: &Arguments) -> Result<Listing, Failure> {
    let network = client::network(&arguments.network).await.id;
    client::post(&arguments.asking.socket, "/rsnet/names", &Of { network }).await
}

fn row(Listed { host, names, addresses }: &Listed) -> [String; 4] {
    let (name, also) = names.split_first().map_or_else(Default::default, |(name, also)| (name.clone(), also.join(" ")));
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    [name, also, addresses.join(" "), host.clone()]
}
