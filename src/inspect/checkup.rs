//! The facts that `doctor` judges, as far as the daemon can tell them; and what it can do about its findings.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Sources;
use crate::agent::Planned;
use crate::doctor::{self, Blocker, Deviation, Disk, Disowned, Facts, Finding, Gone, Names, Network, Store, Tunnel, Uplink, Way};
use crate::firewall::{Drops, Ours};
use crate::kernel::{Underlay, describe};
use crate::model::{IfName, LinkKind, Object, Share};
use crate::reconcile::{self, Comparison, History};
use crate::store::embedded;

/// What passes between two looks where the first found what may have been about to change.
const AGAIN: Duration = Duration::from_millis(300);
/// How long the store may take to be reached after the start, in seconds.
const START: u64 = 20;

/// What was found, and done about it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Checkup {
    pub findings: Vec<Finding>,
    /// What `--fix` put right.
    pub healed: Vec<String>,
    /// What it could not, and why.
    pub failed: Vec<String>,
}

impl Sources {
    /// Looks at the whole host and changes nothing.
    pub async fn checkup(&self) -> Checkup {
        Checkup { findings: doctor::examine(&self.facts().await), ..Checkup::default() }
    }

    /// Converges now, and looks again.
    pub async fn fix(&self) -> Checkup {
        let (healed, failed) = match self.reconciler.converge().await {
            Ok(report) => (report.healed, report.failed.iter().map(ToString::to_string).collect()),
            Err(error) => (Vec::new(), vec![error.to_string()]),
        };
        Checkup { healed, failed, ..self.checkup().await }
    }

    async fn facts(&self) -> Facts {
        let mut facts = Facts::default();
        let planned = self.agent.planned();
        // whatever cannot be seen makes the host one that cannot be looked at, and hides nothing else
        let seen = [self.see_plans(&planned, &mut facts).await, self.see_host(&planned, &mut facts).await];
        facts.blind = seen.into_iter().find_map(Result::err);
        facts.store = self.see_store();
        facts.hosts_gone = self.see_hosts();
        facts.disowned = self.see_disowned();
        let posts = self.dns.posts();
        facts.names = Some(Names { untold: posts.failing, unsupported: posts.unsupported });
        facts.disk = embedded::free(&self.data_dir).ok().map(|free| Disk { directory: self.data_dir.display().to_string(), free });
        facts.records = self.see_records().await;
        facts
    }

    async fn see_plans(&self, planned: &[Planned], facts: &mut Facts) -> Result<(), String> {
        let history = self.reconciler.history();
        facts.looked = history.last.is_some();
        let Comparison { objects, firewall } = self.reconciler.compare().await.map_err(|error| error.to_string())?;
        let names = planned.iter().map(|planned| (planned.network.id.short(), planned.name.as_str())).collect();
        facts.deviations = objects.iter().map(|one| deviation(one, &names, &history)).collect();
        facts.firewall = firewall;
        let failing = history.last.iter().flat_map(|look| &look.failed).find(|failed| failed.in_firewall);
        facts.firewall_failing = failing.filter(|_| !facts.firewall.is_empty()).map(|failed| failed.why.clone());
        let blockers = self.firewall.blockers(&ours(planned)).await.map_err(|error| error.to_string())?;
        facts.blockers = if forwarded(planned).next().is_some() { blockers.into_iter().map(blocker).collect() } else { Vec::new() };
        Ok(())
    }

    async fn see_host(&self, planned: &[Planned], facts: &mut Facts) -> Result<(), String> {
        let surroundings = self.kernel.surroundings().await.map_err(|error| error.to_string())?;
        let tunnels = surroundings.tunnels.into_iter();
        facts.tunnels = tunnels.map(|tunnel| Tunnel { link: tunnel.link, vni: tunnel.vni, port: tunnel.port }).collect();
        facts.without_ipv6 = surroundings.without_ipv6;
        let way = self.way_out().await;
        facts.networks = planned.iter().map(|planned| network(planned, way.as_ref())).collect();
        facts.strict = self.strict(way.as_ref());
        facts.uplink = way.map(|way| Uplink { not_forwarding: self.not_forwarding(planned, &way.link), link: way.link });
        Ok(())
    }

    /// By which way packets leave for the world.
    async fn way_out(&self) -> Option<Way> {
        for toward in Underlay::anywhere() {
            if let Ok(Some(uplink)) = self.kernel.underlay(&toward).await {
                return Some(Way { link: uplink.link.to_string(), mtu: uplink.mtu });
            }
        }
        None
    }

    /// The families that somebody keeps this one link from passing on. That of the whole host is a part of the plans.
    fn not_forwarding(&self, planned: &[Planned], link: &str) -> Vec<String> {
        let is = |path: String, value: &str| self.kernel.sysctl(&path).is_some_and(|seen| seen == value);
        let off = |family: &str, host: &str| is(host.to_owned(), "1") && is(format!("{family}/conf/{link}/forwarding"), "0");
        let ipv6 = planned.iter().any(|planned| planned.network.ipv6) && off("ipv6", "ipv6/conf/all/forwarding");
        let ipv4 = forwarded(planned).next().is_some() && off("ipv4", "ipv4/ip_forward");
        [(ipv4, "ipv4"), (ipv6, "ipv6")].into_iter().filter(|(off, _)| *off).map(|(_, family)| family.to_owned()).collect()
    }

    /// The higher one of `all` and the link counts; 1 is strict, 2 loose.
    fn strict(&self, way: Option<&Way>) -> Option<String> {
        let value = |link: &str| self.kernel.sysctl(&format!("ipv4/conf/{link}/rp_filter")).and_then(|value| value.parse::<u8>().ok());
        let (all, link) = (value("all").unwrap_or(0), way.and_then(|way| value(&way.link)).unwrap_or(0));
        let whose = if all == 1 { Some("all".to_owned()) } else { way.map(|way| way.link.clone()) };
        whose.filter(|_| all.max(link) == 1)
    }

    fn see_store(&self) -> Option<Store> {
        let consul = self.consul.as_ref()?;
        let seen = self.store(self.agent.hosts().in_touch);
        let silent = (!seen.in_touch && self.started.elapsed().as_secs() > START).then(|| {
            "this host's lease there is not renewed; the log says why (no way to the others: name it by RSNET_UNDERLAY)".to_owned()
        });
        Some(Store { place: seen.place, problem: seen.problem.or(silent), ahead: consul.contact().ahead })
    }

    /// While the store does not answer nobody knows who is there.
    fn see_hosts(&self) -> Vec<Gone> {
        let hosts = self.agent.hosts();
        let gone = hosts.hosts.into_iter().filter(|host| hosts.in_touch && !host.alive && host.gone_for.is_some());
        gone.map(|host| Gone { name: host.name, address: host.address, since: host.gone_for }).collect()
    }

    fn see_disowned(&self) -> Vec<Disowned> {
        let disowned = self.agent.disowned().into_iter();
        disowned.map(|((network, owner), addresses)| Disowned { network, addresses: addresses.into_iter().collect(), owner }).collect()
    }

    /// Calls under way are stored before they are known.
    async fn see_records(&self) -> Vec<String> {
        let look = async || self.agent.unlike_stored().await.unwrap_or_else(|error| vec![error.to_string()]);
        let first = look().await;
        if first.is_empty() {
            return first;
        }
        tokio::time::sleep(AGAIN).await;
        look().await.into_iter().filter(|record| first.contains(record)).collect()
    }
}

fn deviation(deviation: &reconcile::Deviation, names: &BTreeMap<&str, &str>, history: &History) -> Deviation {
    let object = describe(&deviation.key());
    let (state, owner) = match deviation {
        reconcile::Deviation::Missing(owner, _) => ("is missing", Some(owner)),
        reconcile::Deviation::Altered(owner, _) => ("is altered", Some(owner)),
        reconcile::Deviation::Extra(_) => ("is left over", None),
    };
    let mut failed = history.last.iter().flat_map(|look| &look.failed);
    let failing = failed.find(|failed| failed.object == object).map(|failed| failed.why.clone());
    let network = owner.map(|owner| names.get(owner.network.as_str()).map_or_else(|| owner.network.clone(), |name| (*name).to_owned()));
    Deviation { network, what: format!("{object} {state}"), failing }
}

/// The networks whose packets the host passes on.
fn forwarded(planned: &[Planned]) -> impl Iterator<Item = &Planned> {
    let link = |object: &Object| matches!(object, Object::Link(link) if matches!(link.kind, LinkKind::Bridge | LinkKind::Vxlan { .. }));
    planned.iter().filter(move |planned| !planned.network.internal && planned.plan.objects.values().any(link))
}

fn ours(planned: &[Planned]) -> Ours {
    let links = |planned: &Planned| -> Vec<IfName> { planned.plan.objects.keys().filter_map(|key| key.link().cloned()).collect() };
    Ours {
        links: forwarded(planned).flat_map(|planned| [links(planned), planned.links.clone()].concat()).collect(),
        subnets: forwarded(planned).flat_map(|planned| planned.network.pools.iter().map(|pool| pool.subnet)).collect(),
    }
}

fn blocker(found: crate::firewall::Blocker) -> Blocker {
    let how = match found.drops {
        Drops::ByPolicy => "drops by its policy what no rule of it accepts, and has none for rsnet",
        Drops::Everything => "has a rule that drops everything, before any for rsnet",
        Drops::Named => "has a rule that drops what is from or for a network of rsnet",
    };
    Blocker { chain: found.chain, how: how.to_owned() }
}

fn network(planned: &Planned, way: Option<&Way>) -> Network {
    let option = |name: &str| planned.network.options.get(name).map(String::as_str);
    let mut links = planned.plan.objects.values().filter_map(|object| if let Object::Link(link) = object { Some(link) } else { None });
    let link = links.find(|link| matches!(link.kind, LinkKind::Bridge | LinkKind::Vxlan { .. }));
    let tunnel = link.and_then(|link| if let LinkKind::Vxlan { vni, port, .. } = link.kind { Some((vni, port)) } else { None });
    let mtu = link.and_then(|link| link.mtu);
    let size = match (&planned.network.share, tunnel) {
        (Some(share), Some(_)) => mtu.map(|mtu| (mtu + around(share, option("transport")), way_of(share))),
        _ => mtu.filter(|_| !planned.network.internal).zip(way.cloned()),
    };
    Network {
        name: planned.name.clone(),
        size,
        ipv6: planned.network.ipv6,
        warnings: planned.mode.warnings(),
        tunnel,
        two_ways: option("transport") == Some("auto"),
    }
}

fn around(share: &Share, transport: Option<&str>) -> u32 {
    if transport == Some("direct") { 0 } else { share.around() }
}

fn way_of(share: &Share) -> Way {
    let link = share.on_link.as_ref().map_or_else(|| "the way to the other hosts".to_owned(), |on_link| on_link.link.to_string());
    Way { link, mtu: share.mtu }
}
