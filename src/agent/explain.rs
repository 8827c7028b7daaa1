//! Why A reaches B or not: gathers what this host, and the other, see of the flow; [`crate::explain`] judges it.
//!
//! Looks and asks, and changes nothing: packets are followed by rules that go with the question, and one or two packets are sent from A's own
//! namespace to B.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::state::{endpoint_owner, network_owner};
use super::{Agent, Error};
use crate::docker::{ContainerSeen, Inspected};
use crate::drivers;
use crate::explain::{Case, Crossing, End, Explanation, Hop, Mended, Probing, Relation, Row, Side, There, Underlay, explain};
use crate::firewall::{Firewall, Tracer};
use crate::model::{
    Answer, Attached, AttachmentKind, Endpoint, Entry, Flow, IfName, Inbound, Key, Link, LinkKind, MacvlanMode, Member, Network, NetworkId,
    Object, Plan, Probe, Protocol, Question, RouteKind, Trace, Trail, Zone, family_of,
};
use crate::reconcile::Deviation;

/// How long an answer is waited for: a host on a LAN takes a millisecond, a neighbour that must be found some more.
const PATIENCE: Duration = Duration::from_millis(800);
/// A server of UDP may never answer.
const UDP_PATIENCE: Duration = Duration::from_millis(300);
/// Another host only looks and answers.
const HOST_PATIENCE: Duration = Duration::from_millis(1500);
/// How long packets are followed if nobody asks what was seen.
const TRACED: Duration = Duration::from_secs(4);
/// What was mended within this time is told.
const LATELY: Duration = Duration::from_secs(5);
/// How many containers of a network are looked into for an address that two have.
const TWINS: usize = 256;

/// The question.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Why {
    pub a: Party,
    pub b: Party,
    /// None: ICMP echo.
    pub port: Option<(Protocol, u16)>,
}

/// One of its ends, as somebody typed it, and what the engine says of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Party {
    pub typed: String,
    pub found: Inspected,
}

/// What hosts ask each other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum HostQuestion {
    /// What do you see of this flow?
    Look(Looked),
    /// Follow its packets.
    Follow(Trace),
    /// What did you see of those with this source?
    Followed { source: u16 },
}

/// And answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum HostAnswer {
    Side(Box<Side>),
    Following {},
    Trails(Vec<Trail>),
}

/// A flow, and the host at its other end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Looked {
    pub flow: Flow,
    /// By which both hosts know the network.
    pub subnets: Vec<IpNet>,
    pub other: Option<String>,
}

/// The other hosts.
#[async_trait]
pub trait Hosts: Send + Sync {
    /// Within some seconds; in words why not.
    async fn ask(&self, host: &str, question: &HostQuestion) -> Result<HostAnswer, String>;
    /// Whose containers on these networks have a name.
    fn addresses(&self, networks: &[NetworkId], name: &str) -> Vec<IpAddr>;
}

/// Answers why.
pub struct Explainer {
    /// This host's name.
    host: String,
    agent: Arc<Agent>,
    firewall: Arc<dyn Firewall>,
    hosts: Arc<dyn Hosts>,
    /// By the source of their packets.
    tracers: Arc<Mutex<HashMap<u16, Tracer>>>,
}

/// A container of this host on a network.
#[derive(Clone)]
struct Local {
    network: Network,
    name: String,
    endpoint: Endpoint,
    whole: Plan,
    own: Plan,
}

/// Where B is.
enum Target {
    Container(Box<Local>),
    /// A container of another host, on A's network.
    Elsewhere(String),
    Host,
    /// A container of this host on networks of other drivers, by their names.
    Foreign(String),
    Outside,
}

/// What ends the search before a packet could be sent, in words.
enum Stop {
    Said(Box<Hop>),
    Failed(Box<Error>),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Failed(Box::new(error))
    }
}

impl Local {
    fn address(&self, like: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        self.endpoint.addresses.iter().map(IpNet::addr).find(|address| like(*address))
    }

    fn subnets(&self) -> Vec<IpNet> {
        self.network.pools.iter().map(|pool| pool.subnet).collect()
    }

    fn has(&self, address: IpAddr) -> bool {
        self.endpoint.addresses.iter().any(|own| own.addr() == address)
    }

    fn kind(&self) -> &str {
        drivers::kind_name(&self.network.options)
    }

    /// The bridge that its link is a port of.
    fn bridge(&self) -> Option<IfName> {
        self.own.objects.values().find_map(|object| if let Object::Port(port) = object { Some(port.bridge.clone()) } else { None })
    }

    /// By which its packets come to the host as a router; none: the host is none for it.
    fn way_in(&self) -> Option<IfName> {
        let attachment = self.own.attachment()?;
        match attachment.kind {
            AttachmentKind::Veth { router: Some(_), .. } => Some(attachment.host.clone()),
            AttachmentKind::Veth { .. } => self.bridge(),
            AttachmentKind::Macvlan(_) => None,
        }
    }

    fn sandbox(&self) -> Option<PathBuf> {
        match &self.endpoint.attached {
            Attached::Joined(sandbox) | Attached::Joining(sandbox) => Some(sandbox.path.clone()),
            Attached::No => None,
        }
    }

    /// The planned way to an address: the link, of the longest prefix.
    fn planned(&self, to: IpAddr) -> Option<IfName> {
        let unicast = |object: &Object| match object {
            Object::Route(route) if matches!(route.kind, RouteKind::Unicast { .. }) && route.destination.contains(&to) => {
                Some((route.destination.prefix_len(), route.link.clone()))
            }
            _ => None,
        };
        self.whole.objects.values().filter_map(unicast).max_by_key(|(length, _)| *length).map(|(_, link)| link)
    }

    fn tunnel(&self) -> Option<(IfName, u16)> {
        self.whole.objects.values().find_map(|object| match object {
            Object::Link(Link { name, kind: LinkKind::Vxlan { port, .. }, .. }) => Some((name.clone(), *port)),
            _ => None,
        })
    }

    fn peer(&self, host: &str) -> Option<&Member> {
        self.network.share.as_ref()?.peers.iter().find(|peer| peer.host == host)
    }

    fn holder(&self, address: IpAddr) -> Option<&Member> {
        self.network
            .share
            .as_ref()?
            .peers
            .iter()
            .find(|peer| peer.blocks.iter().any(|block| block.contains(&address)) || peer.homes.contains(&address))
    }
}

impl Explainer {
    /// `host` is this one's name.
    pub fn new(host: String, agent: Arc<Agent>, firewall: Arc<dyn Firewall>, hosts: Arc<dyn Hosts>) -> Self {
        Explainer { host, agent, firewall, hosts, tracers: Arc::default() }
    }

    pub async fn explain(&self, why: &Why) -> Result<Explanation, Error> {
        match self.case(why).await {
            Ok(case) => Ok(explain(&case)),
            Err(Stop::Said(hop)) => Ok(Explanation::ended(format!("{} to {}", why.a.typed, why.b.typed), vec![*hop])),
            Err(Stop::Failed(error)) => Err(*error),
        }
    }

    async fn case(&self, why: &Why) -> Result<Case, Stop> {
        let all = self.locals();
        let starts = beginning(&why.a, &all)?;
        let (a, from, to, target) = self.ends(why, &all, starts).await?;
        let flow = Flow { from, to, port: why.port };
        let translated = published(&all, flow).filter(|_| matches!(target, Target::Host));
        let led = translated.as_ref().map(|(_, led)| *led);
        let b = match (&target, translated) {
            (Target::Container(b), _) => Some((**b).clone()),
            (_, Some((b, _))) => Some(b),
            _ => None,
        };
        let relation = relate(&a, &target, b.as_ref(), led.unwrap_or(flow), led.is_some());
        let other = if let Target::Elsewhere(host) = &target { Some(host.clone()) } else { None };
        let here = self.side(&a, b.as_ref(), led.unwrap_or(flow), flow, other.as_deref(), relation.one_segment);
        let (here, there) = tokio::join!(here, self.there(&a, &target, flow));
        let names = (why.a.typed.clone(), why.b.typed.clone());
        let mut case = Case { names, flow, led, relation, here, there, probing: Probing::default() };
        if case.relation.refusal.is_none() {
            self.ask(&a, &mut case).await;
        }
        Ok(case)
    }

    /// Every container of this host on a network of rsnet's.
    fn locals(&self) -> Vec<Local> {
        let state = self.agent.state();
        let networks = state.networks.values();
        let locals = networks.flat_map(|live| live.endpoints.values().map(move |known| (live, known)));
        let local = |(live, known): (&super::state::Live, &super::state::Known)| Local {
            name: self.agent.names.of(&live.network.id).unwrap_or_else(|| live.network.id.short().to_owned()),
            network: live.network.clone(),
            whole: live.mode.network(),
            own: live.mode.endpoint(&known.endpoint),
            endpoint: known.endpoint.clone(),
        };
        locals.map(local).collect()
    }

    /// From which of A's addresses to which of B's, on a network of both where there is one.
    async fn ends(&self, why: &Why, all: &[Local], starts: Vec<Local>) -> Result<(Local, IpAddr, IpAddr, Target), Stop> {
        let targets = self.targets(why, all, &starts).await?;
        let mut fits: Vec<(bool, bool, Local, IpAddr, IpAddr, usize)> = Vec::new();
        for a in &starts {
            for (n, (to, target)) in targets.iter().enumerate() {
                let Some(from) = a.address(|from| family_of(from) == family_of(*to)) else { continue };
                let together = match target {
                    Target::Container(b) => b.network.id == a.network.id,
                    Target::Elsewhere(_) => a.holder(*to).is_some(),
                    _ => a.own.attachment().is_some(),
                };
                fits.push((!together, to.is_ipv6(), a.clone(), from, *to, n));
            }
        }
        fits.sort_by_key(|fit| (fit.0, fit.1));
        let Some((.., a, from, to, n)) = fits.into_iter().next() else {
            let says = format!("{} and {} have no addresses of one family", why.a.typed, why.b.typed);
            return Err(said("network", &says, "give both networks the same family: `--ipv6`, or a subnet of IPv4"));
        };
        let target = targets.into_iter().nth(n).map(|(_, target)| target).unwrap_or(Target::Outside);
        Ok((a, from, to, target))
    }

    async fn targets(&self, why: &Why, all: &[Local], starts: &[Local]) -> Result<Vec<(IpAddr, Target)>, Stop> {
        let typed = why.b.typed.as_str();
        if let Inspected::Container(container) = &why.b.found {
            runs(container)?;
            let ends: Vec<Local> = of(container, all);
            if ends.is_empty() {
                let addresses = container.endpoints.iter().flat_map(|endpoint| endpoint.addresses.iter().copied());
                let networks: Vec<&str> = container.endpoints.iter().map(|endpoint| endpoint.network_name.as_str()).collect();
                return Ok(addresses.map(|address| (address, Target::Foreign(networks.join(", ")))).collect());
            }
            return Ok(ends.into_iter().flat_map(|end| each(&end)).collect());
        }
        if let Ok(address) = typed.parse::<IpAddr>() {
            return Ok(vec![(address, self.target(address, all, starts).await?)]);
        }
        if ["host", "this-host", "localhost"].contains(&typed) || typed == self.host {
            let own = starts.iter().flat_map(|a| a.whole.objects.keys());
            let own = own.filter_map(|key| if let Key::Address(_, address) = key { Some((address.addr(), Target::Host)) } else { None });
            return Ok(own.collect());
        }
        let networks: Vec<NetworkId> = starts.iter().map(|a| a.network.id.clone()).collect();
        let named = self.hosts.addresses(&networks, typed);
        if !named.is_empty() {
            let mut targets = Vec::new();
            for address in named {
                targets.push((address, self.target(address, all, starts).await?));
            }
            return Ok(targets);
        }
        if let Inspected::Unknown(reason) = &why.b.found {
            return Err(unknown_names(reason));
        }
        let says = format!("nobody is called {typed}: neither a container of this host, nor one that another host told of");
        Err(said("name", &says, "`docker ps -a` lists the containers of this host, `rsnet names NETWORK` those of all hosts"))
    }

    /// Whose an address is.
    async fn target(&self, address: IpAddr, all: &[Local], starts: &[Local]) -> Result<Target, Stop> {
        let near = all.iter().filter(|local| local.has(address));
        if let Some(local) = near.min_by_key(|local| !starts.iter().any(|a| a.network.id == local.network.id)) {
            return Ok(Target::Container(Box::new(local.clone())));
        }
        if let Some(peer) = starts.iter().find_map(|a| a.holder(address)) {
            return Ok(Target::Elsewhere(peer.host.clone()));
        }
        let question =
            Question { flow: Flow { from: family_of(address).unspecified(), to: address, port: None }, by: None, links: Vec::new() };
        if self.agent.kernel.sight(None, &question).await.is_ok_and(|sight| sight.has.1) {
            return Ok(Target::Host);
        }
        let in_subnet = starts.iter().find(|a| a.kind() != "macvlan" && a.subnets().iter().any(|subnet| subnet.contains(&address)));
        match in_subnet {
            Some(a) => Err(said(
                "name",
                &format!("nobody has {address}, which is of network \"{}\"", a.name),
                "`rsnet addresses` shows who has which",
            )),
            None => Ok(Target::Outside),
        }
    }

    async fn there(&self, a: &Local, target: &Target, flow: Flow) -> There {
        match target {
            Target::Container(_) | Target::Host => There::Here,
            Target::Outside | Target::Foreign(_) => There::Outside,
            Target::Elsewhere(host) => {
                let looked = Looked { flow, subnets: a.subnets(), other: Some(self.host.clone()) };
                let answer = self.ask_host(host, &HostQuestion::Look(looked)).await;
                let side = answer.and_then(|answer| match answer {
                    HostAnswer::Side(side) => Ok(*side),
                    _ => Err("its answer is to another question".to_owned()),
                });
                There::Host(host.clone(), Box::new(side))
            }
        }
    }

    /// A host that is gone does not hold up the question.
    async fn ask_host(&self, host: &str, question: &HostQuestion) -> Result<HostAnswer, String> {
        let slow = || Err(format!("no answer within {HOST_PATIENCE:?}"));
        timeout(HOST_PATIENCE, self.hosts.ask(host, question)).await.unwrap_or_else(|_| slow())
    }

    /// What this host answers to another.
    pub async fn answer(&self, question: &HostQuestion) -> Result<HostAnswer, Error> {
        match question {
            HostQuestion::Look(looked) => self.look(looked).await.map(|side| HostAnswer::Side(Box::new(side))),
            HostQuestion::Follow(trace) => self.follow(trace).map(|()| HostAnswer::Following {}),
            HostQuestion::Followed { source } => Ok(HostAnswer::Trails(self.followed(*source))),
        }
    }

    async fn look(&self, looked: &Looked) -> Result<Side, Error> {
        let flow = looked.flow;
        let ours = self.locals();
        let end = ours.iter().find(|local| local.has(flow.to) && local.subnets() == looked.subnets);
        let Some(b) = end else {
            return Err(Error::Refused(format!("no container of this host has {}", flow.to)));
        };
        let back = flow.back();
        let side = self.side(b, None, back, back, looked.other.as_deref(), b.kind() == "macvlan").await;
        Ok(Side { forth: side.back, back: side.forth, ..side })
    }

    /// What this host sees, whose container `a` is at the flow's beginning, and `b` maybe at its end. `sent` is as it leaves `a`.
    async fn side(&self, a: &Local, b: Option<&Local>, flow: Flow, sent: Flow, other: Option<&str>, one_segment: bool) -> Side {
        let mut ends = vec![self.end(a, flow.from, sent).await];
        if let Some(b) = b.filter(|b| b.endpoint.id != a.endpoint.id) {
            ends.push(self.end(b, flow.to, flow.back()).await);
        }
        let (mut forth, mut back) = (None, None);
        if !one_segment {
            let leaves = b.and_then(Local::way_in).or_else(|| a.planned(flow.to).filter(|_| other.is_some()));
            forth = self.crossing(a.way_in(), leaves.clone(), flow).await;
            let out = forth.as_ref().and_then(|crossing| crossing.sight.as_ref().ok()?.route.as_ref().ok());
            let enters = leaves.or_else(|| out.filter(|way| !way.local)?.link.parse().ok());
            back = self.crossing(enters, a.way_in(), flow.back()).await;
        }
        let locals: Vec<&Local> = [Some(a), b].into_iter().flatten().collect();
        Side {
            host: self.host.clone(),
            ends,
            forth,
            back,
            rows: self.rows(&locals, other, flow).await,
            mended: self.mended(&locals, other, flow),
            underlay: self.underlay(a, other, flow).await,
            trails: Vec::new(),
        }
    }

    async fn end(&self, local: &Local, address: IpAddr, flow: Flow) -> End {
        let attachment = local.own.attachment();
        let question = Question { flow, by: None, links: Vec::new() };
        let sight = match local.sandbox() {
            Some(path) => self.agent.kernel.sight(Some(&path), &question).await.map_err(|error| error.to_string()),
            None => Err("the container has not joined".to_owned()),
        };
        End {
            address,
            link: local.endpoint.host_link(),
            mac: local.endpoint.mac,
            mtu: attachment.and_then(|attachment| attachment.mtu),
            sight,
            twins: self.twins(local, address).await,
        }
    }

    /// Others on the network that have given themselves the address. Where each container is behind a router of its own it is no use to them.
    async fn twins(&self, local: &Local, address: IpAddr) -> Vec<String> {
        if local.kind() == "overlay" {
            return Vec::new();
        }
        let others: Vec<Local> = self
            .locals()
            .into_iter()
            .filter(|other| other.network.id == local.network.id && other.endpoint.id != local.endpoint.id)
            .collect();
        let paths: Vec<PathBuf> = others.iter().take(TWINS).filter_map(Local::sandbox).collect();
        let have: BTreeSet<PathBuf> = self.agent.kernel.which_have(address, paths).await.into_iter().collect();
        let twins = others.iter().filter(|other| other.sandbox().is_some_and(|path| have.contains(&path)));
        let called = |twin: &Local| {
            twin.endpoint.addresses.first().map_or_else(|| twin.endpoint.id.short().to_owned(), |own| own.addr().to_string())
        };
        twins.map(|twin| format!("the container {}", called(twin))).collect()
    }

    async fn crossing(&self, by: Option<IfName>, planned: Option<IfName>, flow: Flow) -> Option<Crossing> {
        let by = by?;
        let question = Question { flow, by: Some(by.clone()), links: Vec::new() };
        let sight = self.agent.kernel.sight(None, &question).await.map_err(|error| error.to_string());
        Some(Crossing { by, planned, sight })
    }

    async fn rows(&self, locals: &[&Local], other: Option<&str>, flow: Flow) -> Vec<Row> {
        let network = locals.iter().map(|local| network_owner(&local.network.id));
        let owners: Vec<_> = network.chain(locals.iter().map(|local| endpoint_owner(&local.network.id, &local.endpoint.id))).collect();
        let found = self.agent.reconciler.rows(&owners).await.unwrap_or_default();
        let row = |found: Deviation| Row { what: found.key(), missing: matches!(found, Deviation::Missing(..)) };
        found.into_iter().map(row).filter(|row| concerns(&row.what, locals, other, flow)).collect()
    }

    fn mended(&self, locals: &[&Local], other: Option<&str>, flow: Flow) -> Vec<Mended> {
        let planned = |key: &Key| locals.iter().any(|local| local.own.objects.contains_key(key) || local.whole.objects.contains_key(key));
        let ours = |key: &Key| planned(key) && concerns(key, locals, other, flow);
        let lately = self.agent.reconciler.history().recent.into_iter().filter(|(at, _)| at.elapsed() < LATELY);
        let mut mended: Vec<Mended> = Vec::new();
        for (at, what) in lately.filter(|(_, what)| what.as_ref().is_none_or(ours)) {
            match mended.iter_mut().find(|known| known.what == what) {
                Some(known) => known.times += 1,
                None => mended.push(Mended { what, ago: at.elapsed().as_millis() as u64, times: 1 }),
            }
        }
        mended
    }

    async fn underlay(&self, a: &Local, other: Option<&str>, flow: Flow) -> Option<Underlay> {
        let share = a.network.share.as_ref().filter(|share| share.vni != 0)?;
        let peer = a.peer(other?)?;
        let (own, to) = (share.mine.vtep, peer.vtep);
        let tunnel = a.tunnel().filter(|(link, _)| a.planned(flow.to).as_ref() == Some(link)).map(|(_, port)| port);
        let around = match (tunnel, own.is_ipv6()) {
            (None, _) => 0,
            (_, false) => 50,
            (_, true) => 70,
        };
        let question = Question { flow: Flow { from: own, to, port: None }, by: None, links: Vec::new() };
        Some(Underlay {
            own,
            other: to,
            tunnel,
            needs: a.own.attachment().and_then(|attachment| attachment.mtu).unwrap_or_default() + around,
            sight: self.agent.kernel.sight(None, &question).await.map_err(|error| error.to_string()),
            alive: self.agent.view().hosts.iter().any(|host| host.name == peer.host && host.alive),
        })
    }

    /// Sends packets, and has them followed if they are not answered.
    async fn ask(&self, a: &Local, case: &mut Case) {
        let Some(sandbox) = a.sandbox() else { return };
        case.probing = match self.probe(&sandbox, case.flow, None).await {
            Ok((_, Answer::Reached)) => {
                let large = self.large(&sandbox, case).await;
                Probing { small: Some(Answer::Reached), large, ..Probing::default() }
            }
            Ok(_) => self.ask_followed(&sandbox, case).await,
            Err(error) => Probing { hindered: Some(error), ..Probing::default() },
        };
    }

    async fn probe(&self, sandbox: &std::path::Path, flow: Flow, size: Option<u32>) -> Result<(u16, Answer), String> {
        let source = rand::random_range(20_000..60_000);
        Ok((source, self.send(sandbox, Probe { flow, source, size }).await?))
    }

    async fn send(&self, sandbox: &std::path::Path, probe: Probe) -> Result<Answer, String> {
        let patience = if matches!(probe.flow.port, Some((Protocol::Udp, _))) { UDP_PATIENCE } else { PATIENCE };
        self.agent.kernel.probe(sandbox, &probe, patience).await.map_err(|error| error.to_string())
    }

    /// An echo as large as the interface takes, where a small one is answered. The host answers for what it translates.
    async fn large(&self, sandbox: &std::path::Path, case: &Case) -> Option<(u32, Answer)> {
        let end = case.here.end(case.flow.from)?;
        let link = end.sight.as_ref().ok()?.links.iter().find(|link| link.mac == Some(end.mac))?;
        let flow = Flow { port: None, ..case.flow };
        if case.led.is_some() || (case.flow.port.is_some() && self.probe(sandbox, flow, None).await.ok()?.1 != Answer::Reached) {
            return None;
        }
        let (_, answer) = self.probe(sandbox, flow, Some(link.mtu)).await.ok()?;
        Some((link.mtu, answer))
    }

    async fn ask_followed(&self, sandbox: &std::path::Path, case: &mut Case) -> Probing {
        let tunnel = case.here.underlay.as_ref().and_then(|way| way.tunnel);
        let probe = Probe { flow: case.flow, source: rand::random_range(20_000..60_000), size: None };
        let trace = Trace { flow: case.flow, source: probe.source, tunnel };
        let hindered = self.follow(&trace).err().map(|error| error.to_string());
        if let There::Host(host, side) = &case.there
            && side.is_ok()
        {
            // what it cannot follow it says by its silence
            let _ = self.ask_host(host, &HostQuestion::Follow(trace)).await;
        }
        let small = self.send(sandbox, probe.clone()).await;
        case.here.trails = self.followed(probe.source);
        if let There::Host(host, side) = &mut case.there
            && let Ok(side) = side.as_mut()
            && let Ok(HostAnswer::Trails(trails)) = self.ask_host(host, &HostQuestion::Followed { source: probe.source }).await
        {
            side.trails = trails;
        }
        Probing { traced: hindered.is_none(), hindered: hindered.or_else(|| small.as_ref().err().cloned()), small: small.ok(), large: None }
    }

    /// Follows packets until somebody asks what was seen, or for some seconds.
    fn follow(&self, trace: &Trace) -> Result<(), Error> {
        let tracer = self.firewall.trace(trace).map_err(|error| Error::Refused(error.to_string()))?;
        self.lock().insert(trace.source, tracer);
        let (tracers, source) = (self.tracers.clone(), trace.source);
        tokio::spawn(async move {
            tokio::time::sleep(TRACED).await;
            tracers.lock().unwrap_or_else(PoisonError::into_inner).remove(&source);
        });
        Ok(())
    }

    fn followed(&self, source: u16) -> Vec<Trail> {
        self.lock().remove(&source).map(|tracer| tracer.trails()).unwrap_or_default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u16, Tracer>> {
        self.tracers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn said(about: &str, says: &str, remedy: &str) -> Stop {
    Stop::Said(Box::new(Hop::broken("name", about, says, remedy)))
}

fn unknown_names(reason: &str) -> Stop {
    Stop::from(Error::Refused(format!("the engine does not tell who has that name ({reason}); give addresses")))
}

fn runs(container: &ContainerSeen) -> Result<(), Stop> {
    if container.running {
        return Ok(());
    }
    let name = &container.name;
    let remedy = format!("`docker start {name}`; `docker logs {name}` tells why it ended");
    Err(Stop::Said(Box::new(Hop::broken(name, "container", format!("{name} does not run"), remedy))))
}

/// The container's ends on networks of rsnet's.
fn of(container: &ContainerSeen, all: &[Local]) -> Vec<Local> {
    let ours = |local: &&Local| container.endpoints.iter().any(|endpoint| endpoint.endpoint == local.endpoint.id.as_str());
    all.iter().filter(ours).cloned().collect()
}

fn each(end: &Local) -> Vec<(IpAddr, Target)> {
    end.endpoint.addresses.iter().map(|address| (address.addr(), Target::Container(Box::new(end.clone())))).collect()
}

/// A's ends.
fn beginning(a: &Party, all: &[Local]) -> Result<Vec<Local>, Stop> {
    let typed = a.typed.as_str();
    match &a.found {
        Inspected::Container(container) => {
            runs(container)?;
            let ends = of(container, all);
            let networks: Vec<&str> = container.endpoints.iter().map(|endpoint| endpoint.network_name.as_str()).collect();
            let says = format!("{typed} is on no network of rsnet's: {}", networks.join(", "));
            if ends.is_empty() { Err(said("network", &says, "`docker network connect NETWORK CONTAINER`")) } else { Ok(ends) }
        }
        Inspected::None | Inspected::Unknown(_) => {
            let address: Option<IpAddr> = typed.parse().ok();
            let ends: Vec<Local> = all
                .iter()
                .filter(|local| address.is_some_and(|address| local.has(address)) || local.endpoint.id.as_str() == typed)
                .cloned()
                .collect();
            match (&a.found, ends.is_empty(), address) {
                (_, false, _) => Ok(ends),
                (Inspected::Unknown(reason), true, None) => Err(unknown_names(reason)),
                _ => {
                    let says = format!("no container of this host is called {typed}, or has it for an address");
                    Err(said("name", &says, "`docker ps -a` lists them; ask on the host where A is"))
                }
            }
        }
    }
}

/// The container to which a port of this host leads, and the flow behind the translation.
fn published(all: &[Local], flow: Flow) -> Option<(Local, Flow)> {
    let (protocol, port) = flow.port?;
    all.iter().find_map(|local| {
        local.own.entries.iter().find_map(|entry| match entry {
            Entry::Publish { protocol: of, host, ports, to, to_port }
                if *of == protocol
                    && family_of(*host) == family_of(flow.to)
                    && (host.is_unspecified() || *host == flow.to)
                    && ports.ports().any(|one| one == port) =>
            {
                let inner = to_port + (port - ports.first);
                Some((local.clone(), Flow { to: *to, port: Some((protocol, inner)), ..flow }))
            }
            _ => None,
        })
    })
}

/// What the networks' rules say.
fn relate(a: &Local, target: &Target, b: Option<&Local>, flow: Flow, translated: bool) -> Relation {
    let open = |says: String, one_segment| Relation { says, refusal: None, one_segment };
    let closed = |says: String, remedy: String| Relation { says: String::new(), refusal: Some((says, remedy)), one_segment: false };
    let name = &a.name;
    match (target, b) {
        (Target::Container(_), Some(b)) if b.network.id == a.network.id => neighbours(a).map_or_else(
            || open(format!("both are on \"{name}\""), a.bridge().is_some() || a.kind() == "macvlan"),
            |(says, remedy)| closed(says, remedy),
        ),
        (Target::Container(_), Some(b)) if admits(b, flow) => open(format!("\"{}\" lets it in", b.name), false),
        (Target::Container(_), Some(b)) => closed(
            format!("one is on \"{name}\", the other on \"{}\": networks are walled off from each other", b.name),
            format!("`docker network connect {name} …` puts the other on \"{name}\" too; or publish its port and ask the host for it"),
        ),
        (Target::Foreign(networks), _) => closed(
            format!("one is on \"{name}\", the other on {networks}, which is not rsnet's: they are walled off from each other"),
            format!("`docker network connect {name} …` puts the other on \"{name}\" too; or publish its port and ask the host for it"),
        ),
        (Target::Elsewhere(host), _) => open(format!("both are on \"{name}\", the other on host {host}"), a.kind() == "macvlan"),
        (Target::Host, Some(b)) if translated => match a.network.internal {
            true => closed(
                format!("\"{name}\" is internal: not even published ports are reached from it"),
                format!("connect the container to another network too, or make \"{name}\" without --internal"),
            ),
            false => open(format!("the host leads that port to {} on \"{}\"", flow.to, b.name), false),
        },
        (Target::Host, _) if a.kind() == "macvlan" && a.planned_station().is_none() => closed(
            format!("\"{name}\" is a macvlan network: its containers and their own host do not meet on the card"),
            "make the network with -o host_access=true".to_owned(),
        ),
        (Target::Host, _) => open("it is this host itself".to_owned(), a.kind() == "macvlan"),
        (_, _) if a.network.internal => closed(
            format!("\"{name}\" is internal: nothing leaves it"),
            format!("connect the container to another network too, or make \"{name}\" without --internal"),
        ),
        (_, _) if a.kind() == "macvlan" => open(format!("from \"{name}\" by the LAN"), true),
        (_, _) => open(format!("it is outside: from \"{name}\" by this host"), false),
    }
}

impl Local {
    /// The host's own link on the segment of a macvlan network.
    fn planned_station(&self) -> Option<&Key> {
        self.whole.objects.keys().find(|key| matches!(key, Key::Address(..)))
    }
}

/// Why containers of one network do not meet.
fn neighbours(a: &Local) -> Option<(String, String)> {
    let name = &a.name;
    let mode = match a.own.attachment().map(|attachment| &attachment.kind) {
        Some(AttachmentKind::Macvlan(child)) => Some(child.mode),
        _ => None,
    };
    let inner = a.whole.entries.iter().any(|entry| matches!(entry, Entry::Inner { .. }));
    match mode {
        Some(MacvlanMode::Private) => Some((
            format!("\"{name}\" has macvlan_mode=private: its containers do not meet"),
            "make the network with -o macvlan_mode=bridge".to_owned(),
        )),
        Some(_) => None,
        None if inner => None,
        None => Some((
            format!("\"{name}\" has icc=false: its containers meet by published ports only"),
            "publish the port and ask the host for it, or make the network with -o icc=true".to_owned(),
        )),
    }
}

/// Whether B's network lets in what comes from another network of this host.
fn admits(b: &Local, flow: Flow) -> bool {
    let opened = |entry: &Entry| matches!(entry, Entry::Enter { zone: Zone::Link(_) | Zone::Subnet(_), family, rule: Inbound::Opened } if *family == family_of(flow.to));
    let port = |entry: &Entry| matches!((entry, flow.port), (Entry::Open { protocol, to, ports }, Some((of, port))) if *protocol == of && *to == flow.to && ports.ports().any(|one| one == port));
    b.whole.entries.iter().any(opened) && (flow.port.is_none() || b.own.entries.iter().any(port))
}

/// Whether a row has to do with this flow: of what is there for other hosts there is much.
fn concerns(key: &Key, locals: &[&Local], other: Option<&str>, flow: Flow) -> bool {
    let peer = other.and_then(|host| locals.iter().find_map(|local| local.peer(host)));
    let ends = |net: &IpNet| net.contains(&flow.from) || net.contains(&flow.to);
    let tunnel = |link: &IfName| link.as_str().starts_with("rsx-");
    match key {
        Key::Neighbour(_, address) => peer.is_some_and(|peer| peer.homes.contains(address)),
        Key::Fdb(_, mac) => peer.is_some_and(|peer| peer.mac == *mac),
        Key::Route { destination, link } => ends(destination) && (link.as_str() != "lo"),
        Key::Link(link) | Key::Address(link, _) if tunnel(link) => peer.is_some(),
        _ => true,
    }
}
