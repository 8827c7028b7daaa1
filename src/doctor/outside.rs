//! What shows beside the daemon: the engine, and whether both know the same.

use std::collections::BTreeSet;

use super::Finding;

/// The oldest engine that rsnet is tried with.
const OLDEST: (u32, u32) = (20, 10);

/// What may be so for a moment, while a network or a container comes or goes.
pub const FLEETING: [&str; 3] = ["lost_network", "lost_endpoint", "forgotten_network"];

/// What the command line sees that the daemon does not: a managed plugin has no engine to ask.
#[derive(Clone, Debug)]
pub struct Outside {
    /// The engine's answer, or why there is none.
    pub engine: Result<Seen, String>,
    /// The daemon's networks, by id.
    pub networks: BTreeSet<String>,
    /// The daemon's endpoints that containers have, by id.
    pub endpoints: BTreeSet<String>,
    pub client: String,
    pub daemon: String,
}

/// What the engine has of rsnet.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub version: String,
    /// Id and name.
    pub networks: Vec<(String, String)>,
    /// Of running containers on those: endpoint, container.
    pub endpoints: Vec<(String, String)>,
}

/// All that is wrong.
pub fn examine_outside(outside: &Outside) -> Vec<Finding> {
    let version = (outside.client != outside.daemon).then(|| versions(outside));
    let engine = match &outside.engine {
        Err(why) => vec![silent(why)],
        Ok(seen) => of_engine(seen, outside),
    };
    version.into_iter().chain(engine).collect()
}

fn versions(Outside { client, daemon, .. }: &Outside) -> Finding {
    let meaning = "What one says the other may not know.";
    Finding::new(
        "version",
        format!("this program is {client}, the daemon {daemon}"),
        meaning,
        "Install the same version of both, or restart the daemon.",
    )
}

fn silent(why: &str) -> Finding {
    let meaning = "Networks and containers are shown by their ids, and it is not compared whether the engine knows the same as rsnet.";
    Finding::new("engine", format!("the engine {why}"), meaning, "Start Docker, or name its socket: DOCKER_HOST=unix:///path rsnet doctor")
}

fn of_engine(seen: &Seen, outside: &Outside) -> Vec<Finding> {
    let known = |id: &String| outside.networks.contains(id);
    let lost = seen.networks.iter().filter(|(id, _)| !known(id)).map(|(id, name)| unknown_network(id, name));
    let lost_endpoints = seen.endpoints.iter().filter(|(id, _)| !outside.endpoints.contains(id)).map(|(_, name)| unknown_endpoint(name));
    let listed: BTreeSet<&String> = seen.networks.iter().map(|(id, _)| id).collect();
    let forgotten = outside.networks.iter().filter(|id| !listed.contains(id)).map(|id| unlisted(id));
    // a network that is lost has lost its endpoints too
    let endpoints: Vec<Finding> = if seen.networks.iter().all(|(id, _)| known(id)) { lost_endpoints.collect() } else { Vec::new() };
    old(&seen.version).into_iter().chain(lost).chain(endpoints).chain(forgotten).collect()
}

fn old(version: &str) -> Option<Finding> {
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    let found = (numbers.next()?, numbers.next()?);
    let meaning = "rsnet was never tried with it.";
    (found < OLDEST)
        .then(|| Finding::new("engine_version", format!("the engine is {version}"), meaning, "Use Docker Engine 20.10 or newer."))
}

fn short(id: &str) -> &str {
    id.get(..10).unwrap_or(id)
}

fn unknown_network(id: &str, name: &str) -> Finding {
    let meaning = "rsnet's state was lost or is another's (RSNET_DATA_DIR): no container can be put on it.";
    let remedy = format!("docker network rm {name}, and create it again; or give rsnet its state back (docs/install.md).");
    Finding::new("lost_network", format!("the engine has network {name} ({}), and rsnet does not know it", short(id)), meaning, remedy)
}

fn unknown_endpoint(container: &str) -> Finding {
    let meaning = "Its network link is not looked after: what is deleted of it does not come back.";
    let remedy = format!("docker restart {container}");
    Finding::new("lost_endpoint", format!("container {container} is on a network, and rsnet does not know its endpoint"), meaning, remedy)
}

fn unlisted(id: &str) -> Finding {
    let meaning = "Its links and its subnet are kept for nobody.";
    let remedy = "If RSNET_DOCKER names the engine's socket, rsnet removes it by itself; else: rsnet stopped, `rsnet cleanup --forget`, and all networks made again.";
    Finding::new("forgotten_network", format!("rsnet has network {}, and the engine does not know it", short(id)), meaning, remedy)
}
