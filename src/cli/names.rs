//! `rsnet names`: what containers of a network are called, on all hosts.

use super::client::AskingOf;
use super::{Failure, client, print, runtime};
use crate::agent::Of;
use crate::names::{Listed, Listing};

pub fn run(arguments: &AskingOf) -> Result<(), Failure> {
    let listing = runtime()?.block_on(ask(arguments))?;
    if arguments.asking.json {
        return print::json(&listing);
    }
    if !listing.shared {
        return print::say("Only this host has the network: Docker itself finds its containers by name.");
    }
    if !listing.in_touch {
        print::say("The engine of this host does not tell its containers' names; see RSNET_DOCKER. What was last heard:")?;
    }
    let rows = listing.containers.iter().map(row).collect();
    print::say(print::table(["NAME", "ALSO", "ADDRESSES", "HOST"], rows, "rsnet names --json"))
}

async fn ask(arguments: &AskingOf) -> Result<Listing, Failure> {
    let network = client::network(&arguments.network).await.id;
    client::post(&arguments.asking.socket, "/rsnet/names", &Of { network }).await
}

fn row(Listed { host, names, addresses }: &Listed) -> [String; 4] {
    let (name, also) = names.split_first().map_or_else(Default::default, |(name, also)| (name.clone(), also.join(" ")));
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    [name, also, addresses.join(" "), host.clone()]
}
