//! The firewall in the kernel: the table `inet rsnet` and the way through iptables' `FORWARD`, over netlink.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use netlink_sys::TokioSocket;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};

use crate::model::{Entry, Family, IfName};

use super::attribute::{Attribute, covers, find_string, string};
use super::batch::{INET, Operation, change, message, rebuild, remove_table};
use super::conntrack::Flows;
use super::docker::Links;
use super::element::{Element, Set, elements, parse_list};
use super::socket::{Message, NFTABLES, Refused, Reply, Socket};
use super::table::{TABLE, chains, set_attributes};
use super::{Blocker, Firewall, FirewallError, Ours, docker, foreign, legacy, watch};

/// The firewall of the network namespace in which it was opened.
pub struct Nftables {
    socket: Arc<Mutex<Socket>>,
    flows: Arc<Flows>,
    /// The port of `socket`, by which our own changes are known.
    port: u32,
    /// Hears of changes since the opening.
    events: std::sync::Mutex<Option<TokioSocket>>,
}

impl Nftables {
    /// Opens it in the network namespace of the calling thread, which must be in a tokio runtime. Needs CAP_NET_ADMIN.
    pub fn open() -> Result<Self, FirewallError> {
        let failed = |cause| FirewallError { operation: "open", object: "a netlink socket to netfilter".into(), cause };
        let socket = Socket::open().map_err(failed)?;
        let flows = Arc::new(Flows::open().map_err(failed)?);
        let events = watch::subscribe().map_err(failed)?;
        Ok(Nftables { port: socket.port(), socket: Arc::new(Mutex::new(socket)), flows, events: Some(events).into() })
    }
}

#[async_trait]
impl Firewall for Nftables {
    async fn apply(&self, remove: &[Entry], add: &[Entry]) -> Result<(), FirewallError> {
        let (old, new) = (encoded(remove)?, encoded(add)?);
        let socket = self.socket.lock().await;
        self.flows.settled(&new).await;
        commit(&socket, &change(old.difference(&new), new.difference(&old)))?;
        self.flows.forget(old.difference(&new), new.difference(&old));
        if Links::of(old.union(&new)).are_special() {
            pass_docker(&socket, &present_links(&socket)?)?;
        }
        Ok(())
    }

    async fn converge(&self, all: &BTreeSet<Entry>) -> Result<usize, FirewallError> {
        let wanted = encoded(all)?;
        let socket = self.socket.clone().lock_owned().await;
        self.flows.settled(&wanted).await;
        let flows = self.flows.clone();
        look("converge", socket, move |socket| {
            let (wanted, links) = with_dockers(socket, wanted)?;
            Ok(mend(socket, &flows, &wanted)? + pass_docker(socket, &links)?)
        })
        .await
    }

    async fn compare(&self, all: &BTreeSet<Entry>) -> Result<Vec<String>, FirewallError> {
        let wanted = encoded(all)?;
        look("compare", self.socket.clone().lock_owned().await, move |socket| {
            let (wanted, links) = with_dockers(socket, wanted)?;
            let mut differences = Differences::of(socket, &wanted)?.words();
            for family in [Family::V4, Family::V6] {
                differences.extend(past_docker(socket, family, &links)?.iter().map(words));
                differences.extend(legacy::compare(family, &links).map_err(legacy_failed(family))?);
            }
            Ok(differences)
        })
        .await
    }

    async fn blockers(&self, ours: &Ours) -> Result<Vec<Blocker>, FirewallError> {
        let ours = ours.clone();
        let failed = |cause| FirewallError { operation: "read", object: "the tables of others".into(), cause };
        look("read", self.socket.clone().lock_owned().await, move |socket| foreign::blockers(socket, &ours).map_err(failed)).await
    }

    async fn clear(&self) -> Result<(), FirewallError> {
        let socket = self.socket.lock().await;
        commit(&socket, &remove_table())?;
        pass_docker(&socket, &Links::None).map(drop)
    }

    fn changes(&self) -> mpsc::Receiver<()> {
        let (wake, woken) = mpsc::channel(1);
        let events = self.events.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(events) = events {
            let own = self.port;
            tokio::spawn(async move {
                if let Err(error) = watch::watch(events, own, wake).await {
                    tracing::error!(%error, "watch the firewall: what others change is noticed only by the timer");
                }
            });
        }
        woken
    }
}

/// Runs what reads the whole firewall beside the runtime: thousands of elements take milliseconds.
async fn look<T: Send + 'static>(
    operation: &'static str,
    socket: OwnedMutexGuard<Socket>,
    work: impl FnOnce(&Socket) -> Result<T, FirewallError> + Send + 'static,
) -> Result<T, FirewallError> {
    let failed = |error| FirewallError { operation, object: "table inet rsnet".into(), cause: io::Error::other(error) };
    tokio::task::spawn_blocking(move || work(&socket)).await.map_err(failed)?
}

/// All that must be in the table, Docker's bridges included; and which links are let past Docker.
fn with_dockers(socket: &Socket, mut wanted: BTreeSet<Element>) -> Result<(BTreeSet<Element>, Links), FirewallError> {
    let links = Links::of(&wanted);
    wanted.extend(dockers(socket)?.iter().map(Element::foreign));
    Ok((wanted, links))
}

fn words(operation: &Operation) -> String {
    format!("{} {}", operation.what, operation.object)
}

fn encoded<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Result<BTreeSet<Element>, FirewallError> {
    let mut all = BTreeSet::new();
    for entry in entries {
        let failed = |cause| FirewallError { operation: "translate", object: format!("{entry:?}"), cause };
        all.extend(elements(entry).map_err(failed)?);
    }
    Ok(all)
}

fn commit(socket: &Socket, operations: &[Operation]) -> Result<(), FirewallError> {
    socket.commit(operations).map_err(|Refused { operation, cause }| match operation.and_then(|index| operations.get(index)) {
        Some(failed) => FirewallError { operation: failed.what, object: failed.object.clone(), cause },
        None => FirewallError { operation: "change", object: "nftables".into(), cause },
    })
}

/// Makes `FORWARD` of iptables let `links` past, each family by itself: Docker comes and goes, and must not hold up our own table.
fn pass_docker(socket: &Socket, links: &Links) -> Result<usize, FirewallError> {
    let mut mended = 0;
    for family in [Family::V4, Family::V6] {
        mended += pass_nftables(socket, family, links)? + legacy::converge(family, links).map_err(legacy_failed(family))?;
    }
    Ok(mended)
}

fn legacy_failed(family: Family) -> impl Fn(io::Error) -> FirewallError {
    move |cause| FirewallError { operation: "change", object: format!("the legacy iptables table filter of {family}"), cause }
}

/// The rule behind which ours are put may be taken away at this moment, by an engine that puts it in again.
fn pass_nftables(socket: &Socket, family: Family, links: &Links) -> Result<usize, FirewallError> {
    let attempt = || {
        let operations = past_docker(socket, family, links)?;
        commit(socket, &operations).map(|()| operations.len())
    };
    (0..2).find_map(|_| attempt().ok()).map_or_else(attempt, Ok)
}

fn past_docker(socket: &Socket, family: Family, links: &Links) -> Result<Vec<Operation>, FirewallError> {
    let failed = |cause| FirewallError { operation: "read", object: format!("Docker's chains of {family}"), cause };
    docker::differences(socket, family, links).map_err(failed)
}

/// Docker's bridges, as its chains name them.
fn dockers(socket: &Socket) -> Result<BTreeSet<IfName>, FirewallError> {
    let mut found = BTreeSet::new();
    for family in [Family::V4, Family::V6] {
        let failed = |cause| FirewallError { operation: "read", object: format!("Docker's chains of {family}"), cause };
        found.extend(docker::dockers(socket, family).map_err(failed)?);
        found.extend(legacy::dockers(family).map_err(failed)?);
    }
    Ok(found)
}

fn present_links(socket: &Socket) -> Result<Links, FirewallError> {
    let mut present = Vec::new();
    for set in [Set::Segments].into_iter().chain(Set::of_subnets()) {
        let failed = |cause| FirewallError { operation: "read", object: format!("set inet rsnet {}", set.name()), cause };
        present.extend(elements_of(socket, set).map_err(failed)?.0);
    }
    Ok(Links::of(&present))
}

/// Makes the table right in one batch: the elements that differ, or all of it where a constant part does.
fn mend(socket: &Socket, flows: &Flows, wanted: &BTreeSet<Element>) -> Result<usize, FirewallError> {
    let differences = Differences::of(socket, wanted)?;
    let Differences { constants, gone, new } = &differences;
    let operations = match constants {
        0 => change(gone, new),
        _ => rebuild().into_iter().chain(change([], wanted)).collect(),
    };
    commit(socket, &operations)?;
    flows.forget(gone, new);
    Ok(constants + gone.len() + new.len())
}

/// How our table differs from what it must be.
struct Differences {
    /// Parts of it that never vary, and elements in forms that we never write.
    constants: usize,
    /// Elements that are there and must not be.
    gone: BTreeSet<Element>,
    new: BTreeSet<Element>,
}

impl Differences {
    fn of(socket: &Socket, wanted: &BTreeSet<Element>) -> Result<Self, FirewallError> {
        let failed = |cause| FirewallError { operation: "read", object: "table inet rsnet".into(), cause };
        let wrong = wrong_constants(socket).map_err(failed)?;
        let (present, strange) = observed(socket).map_err(failed)?;
        let (gone, new) = (present.difference(wanted).cloned().collect(), wanted.difference(&present).cloned().collect());
        Ok(Differences { constants: wrong + strange, gone, new })
    }

    fn words(&self) -> Vec<String> {
        let constants = (self.constants > 0).then(|| format!("make {} constant parts of table inet rsnet again", self.constants));
        constants.into_iter().chain(change(&self.gone, &self.new).iter().map(words)).collect()
    }
}

fn get(kind: u8, attributes: Vec<Attribute>) -> Message {
    Message { subsystem: NFTABLES, kind, flags: 0, family: INET, attributes }
}

/// How many constant parts of the table are missing, altered or too many.
fn wrong_constants(socket: &Socket) -> io::Result<usize> {
    if socket.get(&get(message::GETTABLE, vec![string(1, TABLE)]))?.is_none() {
        return Ok(1);
    }
    let ours = |kind| -> io::Result<Vec<Reply>> {
        let all = socket.dump(&get(kind, vec![string(1, TABLE)]))?;
        Ok(all.into_iter().filter(|object| find_string(&object.attributes, 1) == Some(TABLE)).collect())
    };
    let sets: Vec<_> = Set::all().map(set_attributes).collect();
    let chains = chains();
    let shells: Vec<_> = chains.iter().map(|chain| chain.attributes()).collect();
    let rules = ours(message::GETRULE)?;
    let wrong_rules: usize = chains.iter().map(|chain| wrong_rules(chain.name, &chain.rules, &rules)).sum();
    Ok(differing(&sets, &ours(message::GETSET)?) + differing(&shells, &ours(message::GETCHAIN)?) + wrong_rules)
}

/// Named objects that are not there as they should be, and those that should not be there.
fn differing(wanted: &[Vec<Attribute>], present: &[Reply]) -> usize {
    let met = wanted.iter().filter(|wanted| present.iter().any(|object| covers(wanted, &object.attributes))).count();
    wanted.len() - met + present.len().saturating_sub(met)
}

/// The rules of a chain have an order.
fn wrong_rules(chain: &str, wanted: &[Attribute], present: &[Reply]) -> usize {
    let present: Vec<_> = present.iter().filter(|rule| find_string(&rule.attributes, 2) == Some(chain)).collect();
    let met = wanted.iter().zip(&present).filter(|(wanted, rule)| covers(std::slice::from_ref(*wanted), &rule.attributes)).count();
    wanted.len().max(present.len()) - met
}

/// The elements of all sets, and how many there are in forms that we never write.
fn observed(socket: &Socket) -> io::Result<(BTreeSet<Element>, usize)> {
    let (mut present, mut strange) = (BTreeSet::new(), 0);
    for set in Set::all() {
        let (some, others) = elements_of(socket, set)?;
        present.extend(some);
        strange += others;
    }
    Ok((present, strange))
}

/// Those of one set; none where there is no such set, whose absence is counted among the constants.
fn elements_of(socket: &Socket, set: Set) -> io::Result<(Vec<Element>, usize)> {
    let request = get(message::GETSETELEM, vec![string(1, TABLE), string(2, set.name())]);
    let replies = match socket.dump(&request) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        replies => replies?,
    };
    let parsed: Vec<_> = replies.iter().map(|reply| parse_list(set, &reply.attributes)).collect();
    let strange = parsed.iter().map(|(_, strange)| strange).sum();
    Ok((parsed.into_iter().flat_map(|(elements, _)| elements).collect(), strange))
}
