//! `rsnet doctor`: what is wrong with this host, what it means and what to do.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;

use super::client::Asking;
use super::print::{Colour, count, painted};
use super::{Failure, Outcome, client, print, runtime};
use crate::agent::{EndpointSeen, NetworkSeen};
use crate::docker::Engine;
use crate::doctor::{FLEETING, Finding, Outside, Seen, examine_outside};
use crate::inspect::{Checkup, Version};

/// After so long somebody who waits is told that there is work done.
const LONG: Duration = Duration::from_secs(1);
/// Between two looks where engine and daemon may just have been at work.
const AGAIN: Duration = Duration::from_millis(700);

#[derive(Args)]
pub struct Arguments {
    /// Put right what is rsnet's own
    #[arg(long)]
    fix: bool,
    #[command(flatten)]
    asking: Asking,
}

pub fn run(arguments: &Arguments) -> Result<Outcome, Failure> {
    let Found { checkup, .. } = runtime()?.block_on(told(find(&arguments.asking, arguments.fix)))?;
    if arguments.asking.json {
        print::json(&checkup)?;
    } else {
        print::say(show(&checkup))?;
    }
    Ok(if checkup.findings.is_empty() && checkup.failed.is_empty() { Outcome::Well } else { Outcome::Wrong })
}

/// What was asked of the daemon and of the engine.
pub struct Found {
    pub checkup: Checkup,
    /// Why the engine does not answer, if it does not.
    pub engine: Result<Engine, String>,
}

/// All that is found here, after `--fix` if that is wanted.
pub async fn find(asking: &Asking, fix: bool) -> Result<Found, Failure> {
    let mut checkup: Checkup = match fix {
        true => client::post(&asking.socket, "/rsnet/doctor/fix", &serde_json::json!({})).await?,
        false => client::get(&asking.socket, "/rsnet/doctor").await?,
    };
    let (mut outside, mut engine) = look_outside(asking).await?;
    if outside.iter().any(|finding| FLEETING.contains(&finding.check.as_str())) {
        tokio::time::sleep(AGAIN).await;
        (outside, engine) = look_outside(asking).await?;
    }
    if let Ok(Engine { networks, .. }) = &engine {
        checkup.findings.iter_mut().for_each(|finding| name(finding, networks));
    }
    checkup.findings.extend(outside);
    Ok(Found { checkup, engine })
}

async fn look_outside(asking: &Asking) -> Result<(Vec<Finding>, Result<Engine, String>), Failure> {
    let engine = client::engine().await;
    let networks: Vec<NetworkSeen> = client::get(&asking.socket, "/rsnet/networks").await?;
    let endpoints: Vec<EndpointSeen> = client::get(&asking.socket, "/rsnet/endpoints").await?;
    let daemon: Version = client::get(&asking.socket, "/rsnet/version").await?;
    let outside = Outside {
        engine: engine.as_ref().map(seen).map_err(Clone::clone),
        networks: networks.iter().map(|network| network.network.to_string()).collect(),
        endpoints: endpoints.iter().map(|endpoint| endpoint.endpoint.to_string()).collect(),
        client: env!("CARGO_PKG_VERSION").to_owned(),
        daemon: daemon.version,
    };
    Ok((examine_outside(&outside), engine))
}

fn seen(Engine { version, networks, containers }: &Engine) -> Seen {
    let ours = containers.iter().filter(|(_, place)| networks.contains_key(&place.network));
    Seen {
        version: version.clone(),
        endpoints: ours.map(|(endpoint, place)| (endpoint.clone(), place.container.clone())).collect(),
        networks: networks.iter().map(|(id, name)| (id.clone(), name.clone())).collect(),
    }
}

/// A managed plugin knows networks by their ids only: `network 0123456789` becomes `network "blue" (0123456789)`.
fn name(finding: &mut Finding, names: &HashMap<String, String>) {
    for (id, name) in names {
        let Some(short) = id.get(..10) else { continue };
        finding.what = finding.what.replace(&format!("network {short}:"), &format!("network \"{name}\" ({short}):"));
        finding.what = finding.what.replace(&format!("network {short} "), &format!("network \"{name}\" ({short}) "));
    }
}

/// Says on a terminal that there is work done, if it takes long.
async fn told<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    let shown = std::io::stderr().is_terminal();
    if let Ok(done) = tokio::time::timeout(LONG, &mut work).await {
        return done;
    }
    let say = |text: &str| {
        if shown {
            drop(write!(std::io::stderr(), "{text}"))
        }
    };
    say("looking at the kernel, the firewall, the store and the engine …");
    let done = work.await;
    say("\r\u{1b}[K");
    done
}

fn show(Checkup { findings, healed, failed }: &Checkup) -> String {
    let done = healed.iter().map(|what| format!("{} {what}", painted("put right:", Colour::Green)));
    let undone = failed.iter().map(|why| format!("{} {why}", painted("not put right:", Colour::Red)));
    let head = match findings.len() {
        0 => painted("Nothing is wrong.", Colour::Green),
        number => painted(&format!("{} wrong.", count_wrong(number)), Colour::Red),
    };
    let findings = findings.iter().enumerate().map(|(at, finding)| paragraph(at + 1, finding));
    done.chain(undone).chain([head]).chain(findings).collect::<Vec<_>>().join("\n")
}

fn count_wrong(number: usize) -> String {
    format!("{} {}", count(number, "thing"), if number == 1 { "is" } else { "are" })
}

fn paragraph(number: usize, Finding { what, meaning, remedy, .. }: &Finding) -> String {
    format!("\n{number}. {}\n   {meaning}\n   {} {remedy}", painted(what, Colour::Yellow), painted("→", Colour::Green))
}
