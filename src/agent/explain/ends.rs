//! Who A and B are: names, addresses, and on which network they meet.

use std::net::IpAddr;

use super::super::Error;
use super::{Explainer, Local, Party, Target, Why};
use crate::docker::{ContainerSeen, Inspected};
use crate::explain::Hop;
use crate::model::{Flow, Key, NetworkId, Question, family_of};

/// What ends the search before a packet could be sent, in words.
pub(super) enum Stop {
    Said(Box<Hop>),
    Failed(Box<Error>),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Failed(Box::new(error))
    }
}

impl Explainer {
    /// From which of A's addresses to which of B's, on a network of both where there is one.
    pub(super) async fn ends(&self, why: &Why, all: &[Local], starts: Vec<Local>) -> Result<(Local, IpAddr, IpAddr, Target), Stop> {
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
        let networks: Vec<NetworkId> = starts.iter().map(|a| a.network.id.clone()).collect();
        let named = self.hosts.addresses(&networks, typed);
        // a name goes before the beginning of an id
        if let Inspected::Container(container) = &why.b.found
            && (container.name == typed || named.is_empty())
        {
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
pub(super) fn beginning(a: &Party, all: &[Local]) -> Result<Vec<Local>, Stop> {
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
