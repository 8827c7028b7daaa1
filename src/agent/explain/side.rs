//! What this host sees of a flow.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::super::state::{endpoint_owner, network_owner};
use super::{Explainer, Local};
use crate::explain::{Crossing, End, Mended, Row, Side, Underlay};
use crate::model::{Flow, IfName, Key, Question};
use crate::reconcile::Deviation;

/// How many containers of a network are looked into for an address that two have.
const TWINS: usize = 256;

/// What was mended within this time is told.
const LATELY: Duration = Duration::from_secs(5);

impl Explainer {
    /// What this host sees, whose container `a` is at the flow's beginning, and `b` maybe at its end. `sent` is as it leaves `a`.
    pub(super) async fn side(&self, a: &Local, b: Option<&Local>, flow: Flow, sent: Flow, other: Option<&str>, one_segment: bool) -> Side {
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
            beneath: local.parent(),
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
        let around = tunnel.map_or(0, |_| share.around());
        let question = Question { flow: Flow { from: own, to, port: None }, by: None, links: Vec::new() };
        Some(Underlay {
            own,
            other: to,
            tunnel,
            needs: a.own.attachment().and_then(|attachment| attachment.mtu).unwrap_or_default() + around,
            sight: self.agent.kernel.sight(None, &question).await.map_err(|error| error.to_string()),
            alive: self.agent.view().is_alive(&peer.host),
        })
    }
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
