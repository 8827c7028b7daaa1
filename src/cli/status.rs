//! `rsnet status`: whether all is well on this host, in ten lines.

use std::collections::BTreeMap;

use serde::Serialize;

use super::client::Asking;
use super::doctor::Found;
use super::print::{Colour, ago, count, painted};
use super::{Failure, Outcome, client, doctor, print, runtime};
use crate::docker::Engine;
use crate::doctor::Finding;
use crate::inspect::{Drift, HostsSeen, Overview, StoreSeen};

/// All that is told; `--json` prints it.
#[derive(Serialize)]
struct Status {
    well: bool,
    client: &'static str,
    #[serde(flatten)]
    overview: Overview,
    engine: Option<String>,
    #[serde(skip)]
    why_no_engine: String,
    findings: Vec<Finding>,
}

pub fn run(arguments: &Asking) -> Result<Outcome, Failure> {
    let status = runtime()?.block_on(ask(arguments))?;
    let outcome = if status.well { Outcome::Well } else { Outcome::Wrong };
    if arguments.json {
        print::json(&status)?;
    } else {
        print::say(lines(&status))?;
    }
    Ok(outcome)
}

async fn ask(arguments: &Asking) -> Result<Status, Failure> {
    let overview: Overview = client::get(&arguments.socket, "/rsnet/status").await?;
    let Found { checkup, engine } = doctor::find(arguments, false).await?;
    let (engine, why_no_engine) = match engine {
        Ok(Engine { version, .. }) => (Some(version), String::new()),
        Err(why) => (None, why),
    };
    let findings = checkup.findings;
    let well = findings.is_empty() && overview.store.in_touch;
    Ok(Status { well, client: env!("CARGO_PKG_VERSION"), overview, engine, why_no_engine, findings })
}

fn lines(status: &Status) -> String {
    let Overview { daemon, store, networks, endpoints, hosts, drift } = &status.overview;
    let head = if status.well { painted("All is well.", Colour::Green) } else { painted("Something is wrong.", Colour::Red) };
    let lines = [
        ("version", format!("{}, up {}", daemon.version, ago(daemon.up))),
        ("store", store_line(store)),
        ("engine", status.engine.clone().unwrap_or_else(|| status.why_no_engine.clone())),
        ("networks", by_mode(networks)),
        ("endpoints", by_mode(endpoints)),
        ("hosts", hosts_line(hosts)),
        ("drift", drift_line(drift)),
        ("findings", findings_line(&status.findings)),
    ];
    let lines: Vec<String> = lines.iter().map(|(name, text)| format!("{name:<11}{text}")).collect();
    format!("{head}\n{}\nnext       {}", lines.join("\n"), next(status))
}

fn store_line(store: &StoreSeen) -> String {
    let StoreSeen { place, in_touch, heard, problem } = store;
    let heard = heard.map(|seconds| format!(", answered {} ago", ago(seconds))).unwrap_or_default();
    match (in_touch, problem) {
        (true, _) => format!("{place}{heard}"),
        (false, Some(problem)) => painted(&format!("{place} cannot be used{heard}: {problem}"), Colour::Red),
        (false, None) => painted(&format!("{place} was not reached yet{heard}"), Colour::Red),
    }
}

fn by_mode(counts: &BTreeMap<String, usize>) -> String {
    let modes: Vec<String> = counts.iter().map(|(mode, count)| format!("{count} {mode}")).collect();
    match counts.values().sum::<usize>() {
        0 => "none".to_owned(),
        all => format!("{all}: {}", modes.join(", ")),
    }
}

fn hosts_line(HostsSeen { known, gone }: &HostsSeen) -> String {
    match (known, gone.len()) {
        (0, _) => "this one alone".to_owned(),
        (_, 0) => format!("{known}, all alive"),
        (_, away) => painted(&format!("{known}, of which {away} not alive: {}", gone[..away.min(5)].join(", ")), Colour::Yellow),
    }
}

fn drift_line(drift: &Drift) -> String {
    let Drift { healed, last, last_ago, failing, looked, .. } = drift;
    if !looked {
        return "the first look at the host is not over".to_owned();
    }
    let last = last.iter().zip(last_ago).map(|(what, seconds)| format!(", the last {} ago: {what}", ago(*seconds))).next();
    let mended = if *healed == 0 { "none".to_owned() } else { format!("{healed} mended{}", last.unwrap_or_default()) };
    match failing.first() {
        None => mended,
        Some(first) => painted(&format!("{}; {} cannot be mended: {first}", mended, count(failing.len(), "thing")), Colour::Red),
    }
}

fn findings_line(findings: &[Finding]) -> String {
    match findings {
        [] => "none".to_owned(),
        [first, ..] => painted(&format!("{}: {}{}", findings.len(), first.what, if findings.len() > 1 { " …" } else { "" }), Colour::Red),
    }
}

fn next(status: &Status) -> &'static str {
    match (status.findings.is_empty(), status.overview.networks.is_empty()) {
        (false, _) => "rsnet doctor: what it means and what to do",
        (true, true) => "docker network create -d rsnet --ipam-driver rsnet NAME",
        (true, false) => "rsnet networks, rsnet endpoints, rsnet ports",
    }
}
