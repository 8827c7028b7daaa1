//! Why A reaches B or not: gathers what this host, and the other, see of the flow; [`crate::explain`] judges it.
//!
//! Looks and asks, and changes nothing: packets are followed by rules that go with the question, and one or two packets are sent from A's own
//! namespace to B.

mod asking;
mod ends;
mod local;
mod policy;
mod side;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{Agent, Error};
use crate::docker::Inspected;
use crate::explain::{Case, Explanation, Probing, Side, There, explain};
use crate::firewall::{Firewall, Tracer};
use crate::model::{Endpoint, Flow, Network, NetworkId, Plan, Protocol, Trace, Trail};
use ends::{Stop, beginning};
use policy::{published, relate};

/// Another host only looks and answers.
const HOST_PATIENCE: Duration = Duration::from_millis(1500);

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
        let state = self.agent.state.lock();
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
}
