//! `rsnet explain A B [PORT/PROTO]`: why A reaches B, or where its packets stop.

use clap::Args;

use super::client::Asking;
use super::print::{Colour, painted};
use super::{Failure, Outcome, client, print, runtime};
use crate::agent::{Party, Why};
use crate::docker::Inspected;
use crate::explain::{Explanation, Hop, State};
use crate::model::Protocol;

#[derive(Args)]
pub struct Arguments {
    /// A container of this host: its name, id or address
    a: String,
    /// A container, here or on another host, by name or address; `host` for this host; or any address
    b: String,
    /// What is asked for, `80/tcp` or `53/udp`; without it ping
    #[arg(value_parser = port)]
    port: Option<(Protocol, u16)>,
    #[command(flatten)]
    asking: Asking,
}

/// `80` is TCP's.
fn port(text: &str) -> Result<(Protocol, u16), String> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => return Err(format!("{other} cannot be asked for; `80/tcp` and `53/udp` can")),
    };
    match port.parse() {
        Ok(port) if port > 0 => Ok((protocol, port)),
        _ => Err(format!("{port} is no port; `80/tcp` is one, and `53/udp`")),
    }
}

pub fn run(arguments: &Arguments) -> Result<Outcome, Failure> {
    let explanation: Explanation = runtime()?.block_on(ask(arguments))?;
    match arguments.asking.json {
        true => print::json(&explanation)?,
        false => show(&explanation)?,
    }
    Ok(if explanation.reaches { Outcome::Well } else { Outcome::Wrong })
}

async fn ask(arguments: &Arguments) -> Result<Explanation, Failure> {
    let (a, b) = tokio::join!(party(&arguments.a), party(&arguments.b));
    client::post(&arguments.asking.socket, "/rsnet/explain", &Why { a, b, port: arguments.port }).await
}

/// An address needs no engine.
async fn party(typed: &str) -> Party {
    let found = if typed.parse::<std::net::IpAddr>().is_ok() { Inspected::None } else { client::container(typed).await };
    Party { typed: typed.to_owned(), found }
}

fn show(explanation: &Explanation) -> Result<(), Failure> {
    print::say(format!("{}\n", explanation.question))?;
    let width = explanation.hops.iter().map(|hop| hop.place.chars().count()).max().unwrap_or_default();
    for hop in &explanation.hops {
        print::say(format!("{}  {:width$}  {}", mark(hop.state), hop.place, hop.says))?;
        if let Some(remedy) = &hop.remedy {
            print::say(format!("      {:width$}  do: {remedy}", ""))?;
        }
    }
    print::say(format!("\n{}", verdict(explanation)))
}

fn verdict(explanation: &Explanation) -> String {
    match explanation.broken() {
        None if explanation.reaches => "It reaches.".to_owned(),
        None => "It does not reach; nothing that could be looked at is wrong.".to_owned(),
        Some(Hop { place, says, .. }) => format!("It does not reach: {place}: {says}"),
    }
}

/// Four columns.
fn mark(state: State) -> String {
    match state {
        State::Ok => painted("ok  ", Colour::Green),
        State::Note => painted("note", Colour::Yellow),
        State::Unknown => painted("?   ", Colour::Yellow),
        State::Broken => painted("NO  ", Colour::Red),
    }
}
