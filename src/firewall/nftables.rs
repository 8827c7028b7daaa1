//! The firewall in the kernel: the tables `inet rsnet` and `netdev rsnet` and the way through iptables' `FORWARD`, over netlink.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use netlink_sys::TokioSocket;
use nix::net::if_::if_nametoindex;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};

use crate::model::{Entry, Family, IfName, Zone};

use super::attribute::{Attribute, covers, find_string, string};
use super::batch::{Operation, Table, change, drop_idle, message};
use super::conntrack::Flows;
use super::docker::Links;
use super::element::{Element, elements, parse_all};
use super::set::Set;
use super::socket::{Message, NFTABLES, Refused, Reply, Socket};
use super::table::{Chain, ROUTED, TABLE, set_attributes};
use super::{Blocker, Firewall, FirewallError, Ours, docker, fast, foreign, legacy, watch};

/// The firewall of the network namespace in which it was opened.
pub struct Nftables {
    socket: Arc<Mutex<Socket>>,
    flows: Arc<Flows>,
    /// The port of `socket`, by which our own changes are known.
    port: u32,
    /// Hears of changes since the opening.
    events: parking_lot::Mutex<Option<TokioSocket>>,
    fast: Arc<Fast>,
}

/// Whether packets may take the fast way, see [`fast`].
struct Fast {
    /// This kernel has none.
    missing: bool,
    /// There are packets that could take it.
    wanted: AtomicBool,
    /// Somebody else's rules have a say in what becomes of them, and stand on the long way.
    blocked: AtomicBool,
}

impl Fast {
    fn find(socket: &Socket) -> Self {
        let missing = fast::probe(socket).err();
        if let Some(why) = &missing {
            tracing::info!(why, "packets between containers of overlay networks pass all of the host's filters: there is no fast way here");
        }
        Fast { missing: missing.is_some(), wanted: false.into(), blocked: false.into() }
    }

    /// Looks whether somebody else drops what could go by it. In the namespace of the socket.
    fn review(&self, socket: &Socket, ours: &Ours) -> io::Result<bool> {
        self.wanted.store(!ours.links.is_empty(), Ordering::Relaxed);
        Ok(self.is_used() && !foreign::blockers(socket, ours)?.is_empty())
    }

    fn is_used(&self) -> bool {
        !self.missing && self.wanted.load(Ordering::Relaxed)
    }

    fn tables(&self) -> Vec<Table> {
        [Some(Table::Inet), (!self.missing).then_some(Table::Netdev)].into_iter().flatten().collect()
    }

    /// Leaves out what is not to be in the kernel now.
    fn allowed(&self, mut elements: BTreeSet<Element>, blocked: bool) -> BTreeSet<Element> {
        if self.missing || blocked {
            elements.retain(|element| !element.set.is_fast());
        }
        elements
    }
}

/// As which packets inside networks without a bridge are known to rules of others.
fn ours<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Ours {
    let mut ours = Ours::default();
    for entry in entries {
        match entry {
            Entry::Local { link, .. } | Entry::Remote { link, .. } if ROUTED.iter().any(|prefix| link.as_str().starts_with(prefix)) => {
                ours.links.insert(link.clone());
            }
            Entry::Inner { zone: Zone::Subnet(subnet) } => ours.subnets.push(*subnet),
            _ => {}
        }
    }
    ours
}

impl Nftables {
    /// Opens it in the network namespace of the calling thread, which must be in a tokio runtime. Needs CAP_NET_ADMIN.
    pub fn open() -> Result<Self, FirewallError> {
        let failed = |cause| FirewallError { operation: "open", object: "a netlink socket to netfilter".into(), cause };
        let socket = Socket::open().map_err(failed)?;
        let flows = Arc::new(Flows::open().map_err(failed)?);
        let events = watch::subscribe().map_err(failed)?;
        let fast = Arc::new(Fast::find(&socket));
        Ok(Nftables { port: socket.port(), socket: Arc::new(Mutex::new(socket)), flows, events: Some(events).into(), fast })
    }
}

#[async_trait]
impl Firewall for Nftables {
    async fn apply(&self, remove: &[Entry], add: &[Entry]) -> Result<(), FirewallError> {
        let socket = self.socket.lock().await;
        let encoded = |entries| Ok(self.fast.allowed(encoded(entries)?, self.fast.blocked.load(Ordering::Relaxed)));
        let (old, new) = (encoded(remove)?, encoded(add)?);
        self.flows.settled(&new).await;
        commit(&socket, &change(old.difference(&new), new.difference(&old)))?;
        self.flows.forget(old.difference(&new), new.difference(&old));
        if Links::of(old.union(&new)).are_special() {
            pass_docker(&socket, &present_links(&socket)?)?;
        }
        Ok(())
    }

    async fn converge(&self, all: &BTreeSet<Entry>) -> Result<usize, FirewallError> {
        let (wanted, ours) = (encoded(all)?, ours(all));
        let socket = self.socket.clone().lock_owned().await;
        self.flows.settled(&wanted).await;
        let (flows, fast) = (self.flows.clone(), self.fast.clone());
        look("converge", socket, move |socket| {
            let blocked = fast.review(socket, &ours).map_err(reading_others)?;
            if fast.blocked.swap(blocked, Ordering::Relaxed) != blocked {
                tracing::info!(blocked, "whether others' rules keep packets inside overlay networks from the fast way has changed");
            }
            let (wanted, links) = with_dockers(socket, fast.allowed(wanted, blocked))?;
            Ok(mend(socket, &flows, &fast.tables(), &wanted)? + pass_docker(socket, &links)?)
        })
        .await
    }

    async fn compare(&self, all: &BTreeSet<Entry>) -> Result<Vec<String>, FirewallError> {
        let (wanted, ours, fast) = (encoded(all)?, ours(all), self.fast.clone());
        look("compare", self.socket.clone().lock_owned().await, move |socket| {
            let blocked = fast.review(socket, &ours).map_err(reading_others)?;
            let (wanted, links) = with_dockers(socket, fast.allowed(wanted, blocked))?;
            let mut differences = Differences::of(socket, &fast.tables(), &wanted)?.words();
            for family in Family::BOTH {
                differences.extend(past_docker(socket, family, &links)?.iter().map(words));
                differences.extend(legacy::compare(family, &links).map_err(legacy_failed(family))?);
            }
            Ok(differences)
        })
        .await
    }

    async fn blockers(&self, ours: &Ours) -> Result<Vec<Blocker>, FirewallError> {
        let ours = ours.clone();
        look("read", self.socket.clone().lock_owned().await, move |socket| foreign::blockers(socket, &ours).map_err(reading_others)).await
    }

    async fn clear(&self) -> Result<(), FirewallError> {
        let socket = self.socket.lock().await;
        commit(&socket, &self.fast.tables().into_iter().flat_map(Table::remove).collect::<Vec<_>>())?;
        pass_docker(&socket, &Links::None).map(drop)
    }

    fn changes(&self) -> mpsc::Receiver<()> {
        let (wake, woken) = mpsc::channel(1);
        let events = self.events.lock().take();
        if let Some(events) = events {
            let (own, fast) = (self.port, self.fast.clone());
            let wary = move || fast.is_used();
            tokio::spawn(async move {
                if let Err(error) = watch::watch(events, own, wary, wake).await {
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

fn reading_others(cause: io::Error) -> FirewallError {
    FirewallError { operation: "read", object: "the tables of others".into(), cause }
}

fn words(operation: &Operation) -> String {
    format!("{} {}", operation.what, operation.object)
}

fn encoded<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Result<BTreeSet<Element>, FirewallError> {
    let (mut all, known) = (BTreeSet::new(), RefCell::new(BTreeMap::new()));
    // in the namespace of the calling thread
    let index = |link: &IfName| *known.borrow_mut().entry(link.clone()).or_insert_with(|| if_nametoindex(link.as_str()).unwrap_or(0));
    for entry in entries {
        let failed = |cause| FirewallError { operation: "translate", object: format!("{entry:?}"), cause };
        all.extend(elements(entry, &index).map_err(failed)?);
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
    for family in Family::BOTH {
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
    for family in Family::BOTH {
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

/// Makes the tables right in one batch: the elements that differ, or all of a table where a constant part of it does.
fn mend(socket: &Socket, flows: &Flows, tables: &[Table], wanted: &BTreeSet<Element>) -> Result<usize, FirewallError> {
    let differences = Differences::of(socket, tables, wanted)?;
    commit(socket, &differences.operations(wanted))?;
    let Differences { gone, new, idle, .. } = &differences;
    flows.forget(gone, new);
    for idle in drop_idle(idle) {
        // where the kernel has forgotten them with their links, there is nothing to do
        if let Err(error) = commit(socket, &idle) {
            tracing::debug!(%error, "what is of no use stays in the fast way");
        }
    }
    Ok(differences.count())
}

/// How our tables differ from what they must be.
struct Differences {
    /// Parts of a table that never vary, and elements in forms that we never write, where there are such.
    constants: Vec<(Table, usize)>,
    /// Elements that are there and must not be.
    gone: BTreeSet<Element>,
    new: BTreeSet<Element>,
    /// Links that are hooked in, and chains of networks, that are of no matter: no difference.
    idle: BTreeSet<Element>,
}

impl Differences {
    fn of(socket: &Socket, tables: &[Table], wanted: &BTreeSet<Element>) -> Result<Self, FirewallError> {
        let (mut constants, mut present) = (Vec::new(), BTreeSet::new());
        for table in tables {
            let failed = |cause| FirewallError { operation: "read", object: format!("table {}", table.name()), cause };
            let wrong = match Dumped::of(socket, *table).map_err(failed)? {
                None => 1,
                Some(dumped) => {
                    present.extend(dumped.branches(wanted));
                    dumped.wrong_constants() + observed(socket, *table, &mut present).map_err(failed)?
                }
            };
            constants.extend((wrong > 0).then_some((*table, wrong)));
        }
        let gone = present.difference(wanted).cloned();
        let (idle, gone) = gone.partition(|element| element.set.is_no_set());
        Ok(Differences { constants, gone, new: wanted.difference(&present).cloned().collect(), idle })
    }

    fn count(&self) -> usize {
        self.constants.iter().map(|(_, count)| count).sum::<usize>() + self.gone.len() + self.new.len()
    }

    fn operations(&self, wanted: &BTreeSet<Element>) -> Vec<Operation> {
        let whole = |element: &&Element| self.constants.iter().any(|(table, _)| *table == element.set.table());
        let rebuilt = self.constants.iter().flat_map(|(table, _)| table.rebuild());
        let new = self.new.iter().filter(|one| !whole(one)).chain(wanted.iter().filter(whole));
        rebuilt.chain(change(self.gone.iter().filter(|one| !whole(one)), new)).collect()
    }

    fn words(&self) -> Vec<String> {
        let constants = self.constants.iter().map(|(table, count)| format!("make {count} constant parts of table {} again", table.name()));
        let mut words: Vec<String> = constants.chain(change(&self.gone, &self.new).iter().map(words)).collect();
        // a chain is made by several
        words.dedup();
        words
    }
}

fn get(table: Table, kind: u8, attributes: Vec<Attribute>) -> Message {
    Message { subsystem: NFTABLES, kind, flags: 0, family: table.family(), attributes }
}

/// What the kernel has of a table, elements apart.
struct Dumped {
    table: Table,
    sets: Vec<Reply>,
    chains: Vec<Reply>,
    /// In the table of the fast way what is none of the constant chains is one of a network.
    branches: Vec<Reply>,
    rules: Vec<Reply>,
}

impl Dumped {
    /// None: there is no such table.
    fn of(socket: &Socket, table: Table) -> io::Result<Option<Self>> {
        if socket.get(&get(table, message::GETTABLE, vec![string(1, TABLE)]))?.is_none() {
            return Ok(None);
        }
        let ours = |kind| -> io::Result<Vec<Reply>> {
            let all = socket.dump(&get(table, kind, vec![string(1, TABLE)]))?;
            Ok(all.into_iter().filter(|object| find_string(&object.attributes, 1) == Some(TABLE)).collect())
        };
        let constant: BTreeSet<String> = table.chains().into_iter().map(|chain| chain.name).collect();
        let is_constant =
            |chain: &Reply| table == Table::Inet || find_string(&chain.attributes, 3).is_some_and(|name| constant.contains(name));
        let (chains, branches) = ours(message::GETCHAIN)?.into_iter().partition(is_constant);
        Ok(Some(Dumped { table, sets: ours(message::GETSET)?, chains, branches, rules: ours(message::GETRULE)? }))
    }

    /// How many constant parts of the table are missing, altered or too many.
    fn wrong_constants(&self) -> usize {
        let sets: Vec<_> = self.table.sets().into_iter().map(set_attributes).collect();
        let chains = self.table.chains();
        let shells: Vec<_> = chains.iter().map(Chain::attributes).collect();
        let wrong_rules: usize = chains.iter().map(|chain| wrong_rules(chain, &self.rules)).sum();
        differing(&sets, &self.sets) + differing(&shells, &self.chains) + wrong_rules
    }

    /// Chains of networks, those of no use too; not those that are to be and are otherwise.
    fn branches(&self, wanted: &BTreeSet<Element>) -> Vec<Element> {
        let wanted = wanted.iter().filter_map(|element| Some((element.chain()?, element)));
        let wanted: BTreeMap<String, _> = wanted.map(|(chain, element)| (chain.name.clone(), (chain, element))).collect();
        let there = self.branches.iter().filter_map(|chain| find_string(&chain.attributes, 3));
        let as_it_is = |name| match wanted.get(name) {
            Some((chain, element)) => (wrong_rules(chain, &self.rules) == 0).then(|| (*element).clone()),
            None => Some(Element::some_branch(name)),
        };
        there.filter_map(as_it_is).collect()
    }
}

/// Named objects that are not there as they should be, and those that should not be there.
fn differing(wanted: &[Vec<Attribute>], present: &[Reply]) -> usize {
    let met = wanted.iter().filter(|wanted| present.iter().any(|object| covers(wanted, &object.attributes))).count();
    wanted.len() - met + present.len().saturating_sub(met)
}

/// The rules of a chain have an order.
fn wrong_rules(Chain { name, rules: wanted, .. }: &Chain, present: &[Reply]) -> usize {
    let present: Vec<_> = present.iter().filter(|rule| find_string(&rule.attributes, 2) == Some(name)).collect();
    let met = wanted.iter().zip(&present).filter(|(wanted, rule)| covers(std::slice::from_ref(*wanted), &rule.attributes)).count();
    wanted.len().max(present.len()) - met
}

/// Adds the elements of all sets, and says how many there are in forms that we never write.
fn observed(socket: &Socket, table: Table, present: &mut BTreeSet<Element>) -> io::Result<usize> {
    let mut strange = 0;
    for set in table.sets() {
        let (some, others) = elements_of(socket, set)?;
        present.extend(some);
        strange += others;
    }
    if table == Table::Netdev {
        present.extend(fast::hooked(socket)?);
    }
    Ok(strange)
}

/// Those of one set; none where there is no such set, whose absence is counted among the constants.
fn elements_of(socket: &Socket, set: Set) -> io::Result<(Vec<Element>, usize)> {
    let request = get(set.table(), message::GETSETELEM, vec![string(1, TABLE), string(2, set.name())]);
    let replies = match socket.dump(&request) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        replies => replies?,
    };
    Ok(parse_all(set, replies.iter().map(|reply| &reply.attributes[..])))
}
