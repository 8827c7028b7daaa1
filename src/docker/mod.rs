//! The only room that names bollard: what the engine knows and never tells a driver, such as the names of networks and containers.
//!
//! Never called from inside a driver call: the engine holds locks while it waits for us. What is learnt here are names, for people and for DNS,
//! and which networks the engine has forgotten; what is done here are networks made and removed as on other hosts (`networks`). No call's answer
//! depends on it; without an engine's API there are ids instead of names.

mod awake;
mod containers;
mod find;
mod networks;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerSummary, ContainerSummaryStateEnum, EventMessage, EventMessageTypeEnum};
use bollard::query_parameters::{EventsOptionsBuilder, InspectNetworkOptions, ListContainersOptionsBuilder, ListNetworksOptions};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::RwLock;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tracing::{debug, info};

use crate::model::NetworkId;
pub use containers::{Attachment, Container, Health};
pub use find::{ContainerSeen, EndpointSeen, Inspected, find};
pub use networks::{EngineError, Found, Networks, PoolSpec, Socket, Spec};

/// How long to wait before the engine is asked again. It enables plugins some seconds before its API answers.
const AGAIN: Duration = Duration::from_secs(1);
/// How long all that runs may take to be looked at before what is known by then counts.
const TOGETHER: Duration = Duration::from_secs(10);
/// How long after a network's event the engine is asked for its name.
const AFTERWARDS: Duration = Duration::from_millis(25);
/// How many things the engine is asked at a time.
const AT_ONCE: usize = 16;
/// Seconds that one answer of the engine may take.
const PATIENCE: u64 = 30;

/// How long the engine may take for what somebody asks at a terminal.
const LOOK: Duration = Duration::from_secs(2);

/// What the driver is called as a plain process, and how the names of the managed plugin begin.
const OURS: &str = "rsnet";

fn is_ours(driver: &str) -> bool {
    driver.starts_with(OURS)
}

/// Whether the engine has no such thing.
fn is_missing(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code: 404, .. })
}

/// What the engine said last of networks and containers.
#[derive(Default)]
pub struct Names {
    known: RwLock<Known>,
    changes: watch::Sender<u64>,
    network_changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Known {
    networks: Listed,
    /// What runs, by id.
    containers: BTreeMap<String, Container>,
    /// The engine tells now what runs.
    in_touch: bool,
    /// It has told of all that runs, in the life of this process.
    has_told: bool,
}

#[derive(Default)]
struct Listed {
    names: HashMap<NetworkId, String>,
    /// The list is up to date, and comes from an engine that has rsnet for a driver.
    counts: bool,
}

impl Names {
    /// The name, if the engine was asked since the network was made.
    pub fn of(&self, network: &NetworkId) -> Option<String> {
        self.look(|known| known.networks.names.get(network).cloned())
    }

    /// Whether the engine says now that it has no such network. False while the engine cannot be asked.
    pub fn lack(&self, network: &NetworkId) -> bool {
        self.look(|known| known.networks.counts && !known.networks.names.contains_key(network))
    }

    /// `"blue" (0123456789)`, or the id alone.
    pub fn show(&self, network: &NetworkId) -> String {
        self.of(network).map_or_else(|| network.short().to_owned(), |name| format!("\"{name}\" ({})", network.short()))
    }

    /// What runs on this host; as last heard while the engine cannot be asked.
    pub fn containers(&self) -> Vec<Container> {
        self.look(|known| known.containers.values().cloned().collect())
    }

    /// Whether the engine tells what runs now.
    pub fn in_touch(&self) -> bool {
        self.look(|known| known.in_touch)
    }

    /// Whether [`Names::containers`] are all that run: not before the engine has told of each.
    pub fn has_told(&self) -> bool {
        self.look(|known| known.has_told)
    }

    /// Counts what was heard.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Counts what was heard of networks: that one came or went, or lost a container.
    pub fn network_changes(&self) -> watch::Receiver<u64> {
        self.network_changes.subscribe()
    }

    fn look<R>(&self, look: impl FnOnce(&Known) -> R) -> R {
        look(&self.known.read())
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        // each change is one insert or one remove
        change(&mut self.known.write());
        self.changes.send_modify(|count| *count += 1);
    }

    fn networks_change(&self) {
        self.network_changes.send_modify(|count| *count += 1);
    }

    /// Asks the engine at `socket`, now and whenever it says that a network or a container came or went; until the process ends.
    pub async fn learn(&self, socket: &Path) {
        let (mut told, mut ended) = (String::new(), None);
        loop {
            let run = awake::awake(socket, ended).await;
            let followed = self.follow(socket).await;
            ended = run.filter(|_| self.in_touch());
            // the names are kept; they say no more what the engine lacks
            self.change(|known| (known.networks.counts, known.in_touch) = (false, false));
            let reason = followed.err().map_or_else(String::new, |error| error.to_string());
            if reason != told {
                debug!(socket = %socket.display(), reason, "the engine does not tell names; asking again");
            }
            told = reason;
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// The events are asked for from before the lists on, so that nothing falls between.
    async fn follow(&self, socket: &Path) -> Result<(), Error> {
        let engine = connect(socket).await?;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs().to_string();
        let mut looks = Looks::new(&engine);
        self.take(News::Networks(list(&engine).await?));
        self.networks_change();
        let running = containers::running(&engine).await?;
        self.change(|known| known.containers.retain(|id, _| running.contains(id)));
        let count = running.len();
        running.into_iter().for_each(|id| looks.at_container(id));
        // one that hangs there does not keep the others from being known
        let _ = timeout(TOGETHER, self.take_all(&mut looks)).await;
        self.change(|known| (known.in_touch, known.has_told) = (true, true));
        info!(containers = count, "the engine tells names");
        let mut events = pin!(engine.events(Some(EventsOptionsBuilder::new().since(&since).filters(&of_interest()).build())));
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => self.hear(event?, &mut looks),
                    None => return Ok(()),
                },
                found = looks.next() => self.take(found),
            }
        }
    }

    async fn take_all(&self, looks: &mut Looks<'_>) {
        while !looks.are_done() {
            let found = looks.next().await;
            self.take(found);
        }
    }

    /// What starts is looked at when it has: of what is being connected before, the engine tells only then.
    fn hear(&self, event: EventMessage, looks: &mut Looks) {
        if let (Some(EventMessageTypeEnum::NETWORK), Some("create" | "destroy" | "disconnect")) = (event.typ, event.action.as_deref()) {
            self.networks_change();
        }
        let actor = event.actor.unwrap_or_default();
        let container = actor.attributes.and_then(|mut attributes| attributes.remove("container")).unwrap_or_default();
        let runs = |id: &str| self.look(|known| known.containers.contains_key(id)) || looks.is_at(id);
        match (event.typ, event.action.as_deref(), actor.id) {
            (Some(EventMessageTypeEnum::NETWORK), Some("create" | "destroy"), _) => looks.at_networks(),
            (Some(EventMessageTypeEnum::NETWORK), Some("connect" | "disconnect"), _) if runs(&container) => looks.at_container(container),
            (Some(EventMessageTypeEnum::CONTAINER), Some("start"), Some(id)) => looks.at_container(id),
            (Some(EventMessageTypeEnum::CONTAINER), Some(action), Some(id)) if is_another(action) && runs(&id) => looks.at_container(id),
            (Some(EventMessageTypeEnum::CONTAINER), Some("die"), Some(id)) => {
                looks.forget(&id);
                self.take(News::Container(id, None));
            }
            _ => {}
        }
    }

    fn take(&self, found: News) {
        self.change(|known| match found {
            News::Networks(networks) => known.networks = networks,
            News::Container(id, Some(container)) => drop(known.containers.insert(id, container)),
            News::Container(id, None) => drop(known.containers.remove(&id)),
        });
    }
}

/// What the engine is being asked. It is asked for several things at a time; of one thing only the latest answer counts.
struct Looks<'e> {
    engine: &'e Docker,
    turn: u64,
    /// By id, the turn of the latest look at a container; that at the networks by no id.
    latest: HashMap<String, u64>,
    under_way: FuturesUnordered<BoxFuture<'e, (String, u64, News)>>,
    room: Arc<Semaphore>,
}

/// What it answered.
enum News {
    Networks(Listed),
    /// None: it does not run.
    Container(String, Option<Container>),
}

impl<'e> Looks<'e> {
    fn new(engine: &'e Docker) -> Self {
        Looks { engine, turn: 0, latest: HashMap::new(), under_way: FuturesUnordered::new(), room: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    fn at_networks(&mut self) {
        self.begin(String::new());
    }

    fn at_container(&mut self, id: String) {
        self.begin(id);
    }

    /// Asked again until the engine answers: one container that hangs there does not keep the others from being known.
    fn begin(&mut self, id: String) {
        self.turn += 1;
        self.latest.insert(id.clone(), self.turn);
        let (turn, engine, room) = (self.turn, self.engine, self.room.clone());
        self.under_way.push(Box::pin(async move {
            loop {
                // never closed
                let seat = room.acquire().await.ok();
                match look_at(engine, &id).await {
                    Ok(found) => return (id, turn, found),
                    Err(error) => debug!(%error, "the engine does not answer a question; asking again"),
                }
                drop(seat);
                tokio::time::sleep(AGAIN).await;
            }
        }));
    }

    /// No answer of what is under way counts.
    fn forget(&mut self, id: &str) {
        self.latest.remove(id);
    }

    fn are_done(&self) -> bool {
        self.latest.is_empty()
    }

    fn is_at(&self, id: &str) -> bool {
        self.latest.contains_key(id)
    }

    /// The next answer that counts; waits for ever where nothing is asked. May be dropped and called again.
    async fn next(&mut self) -> News {
        loop {
            match self.under_way.next().await {
                Some((id, turn, found)) if self.latest.get(&id) == Some(&turn) => {
                    self.latest.remove(&id);
                    return found;
                }
                Some(_) => {}
                None => pending().await,
            }
        }
    }
}

/// About a container; by no id, about the networks: not while the engine, which tells of a network before it answers who made it, is still at that.
async fn look_at(engine: &Docker, id: &str) -> Result<News, Error> {
    match id {
        "" => {
            tokio::time::sleep(AFTERWARDS).await;
            list(engine).await.map(News::Networks)
        }
        id => Ok(News::Container(id.to_owned(), containers::inspect(engine, id).await?)),
    }
}

/// Whether a container that runs is not as it was. An engine tells of its health only when that changes: `health_status: healthy`.
fn is_another(action: &str) -> bool {
    action == "rename" || action.starts_with("health_status")
}

/// What events are asked for: an engine has many more, such as those of each run of a health check.
fn of_interest() -> HashMap<&'static str, Vec<&'static str>> {
    let events = vec!["create", "destroy", "connect", "disconnect", "start", "die", "rename", "health_status"];
    HashMap::from([("type", vec!["network", "container"]), ("event", events)])
}

/// A network as the engine knows it.
pub struct Seen {
    pub id: String,
    /// The names of its containers, by endpoint.
    pub containers: HashMap<String, String>,
}

/// What the engine at `socket` has by this name, id or beginning of one; none if it does not tell within 2 s.
pub async fn look(socket: &Path, network: &str) -> Option<Seen> {
    let asked = async { connect(socket).await.ok()?.inspect_network(network, None::<InspectNetworkOptions>).await.ok() };
    let found = timeout(LOOK, asked).await.ok().flatten()?;
    let containers = found.containers.unwrap_or_default().into_values();
    let containers = containers.filter_map(|container| Some((container.endpoint_id?, container.name?))).collect();
    Some(Seen { id: found.id?, containers })
}

/// What people call things, as the engine of this host tells.
#[derive(Default)]
pub struct Engine {
    /// Its own version: `28.5.1`.
    pub version: String,
    /// Names of the networks that are rsnet's, by id.
    pub networks: HashMap<String, String>,
    /// The containers that have an endpoint, by its id.
    pub containers: HashMap<String, Place>,
}

/// A container on a network.
#[derive(Clone)]
pub struct Place {
    /// The container's name.
    pub container: String,
    /// The network's id.
    pub network: String,
}

/// Asks the engine at `socket`; `Err` says why it does not tell, 2 s at most.
pub async fn ask(socket: &Path) -> Result<Engine, String> {
    let asked = timeout(LOOK, ask_patiently(socket)).await;
    let told = asked.map_err(|_| "no answer within 2 s".to_owned())?;
    told.map_err(|error| error.to_string())
}

async fn ask_patiently(socket: &Path) -> Result<Engine, Error> {
    let engine = connect(socket).await?;
    let version = engine.version().await?.version.unwrap_or_default();
    let networks = engine.list_networks(None::<ListNetworksOptions>).await?.into_iter();
    let ours = networks.filter(|network| network.driver.as_deref().is_some_and(is_ours));
    let networks = ours.filter_map(|network| Some((network.id?, network.name?))).collect();
    let mut containers = HashMap::new();
    let all = engine.list_containers(Some(ListContainersOptionsBuilder::new().all(true).build())).await?;
    for container in all.into_iter().filter(|container| !has_ended(container)) {
        let name = container.names.and_then(|names| names.into_iter().next()).unwrap_or_default();
        let places = container.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let name = name.trim_start_matches('/');
        // one that does not run has empty ids
        let there = places.into_values().filter_map(|place| Some((place.endpoint_id.filter(|id| !id.is_empty())?, place.network_id?)));
        containers.extend(there.map(|(endpoint, network)| (endpoint, Place { container: name.to_owned(), network })));
    }
    Ok(Engine { version, networks, containers })
}

/// Where the engine was killed, or its time to end was over, what ended with it still has its endpoints in the engine's list.
fn has_ended(container: &ContainerSummary) -> bool {
    matches!(container.state, Some(ContainerSummaryStateEnum::EXITED | ContainerSummaryStateEnum::DEAD))
}

async fn connect(socket: &Path) -> Result<Docker, Error> {
    Docker::connect_with_unix(&socket.to_string_lossy(), PATIENCE, bollard::API_DEFAULT_VERSION)?.negotiate_version().await
}

/// Its network drivers.
async fn drivers(engine: &Docker) -> Result<Vec<String>, Error> {
    Ok(engine.info().await?.plugins.and_then(|plugins| plugins.network).unwrap_or_default())
}

async fn list(engine: &Docker) -> Result<Listed, Error> {
    let networks = engine.list_networks(None::<ListNetworksOptions>).await?;
    let names = networks.into_iter().filter_map(|network| Some((network.id?.parse().ok()?, network.name?))).collect();
    Ok(Listed { names, counts: drivers(engine).await?.iter().any(|driver| is_ours(driver)) })
}
