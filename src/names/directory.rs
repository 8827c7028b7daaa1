//! Who is called how on which network, on this host and on the others, as last heard. Pure: no I/O, no time.
//!
//! Docker's ids of one network differ from host to host, so what hosts tell each other is kept by the network's first subnet ([`Zone::key`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::model::NetworkId;

/// Bytes of a name on the wire (RFC 1035 2.3.4), without the last dot.
const LONGEST: usize = 253;

/// A container on a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Named {
    /// What it is called there: its own name first, then aliases, short id, hostname. In any case; [`Directory`] keeps them in lower case.
    pub names: Vec<String>,
    /// Its addresses there, at most one of each family.
    pub addresses: Vec<IpAddr>,
}

/// A network of this host that others have too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// What the user of this host calls it, where the engine has told.
    pub name: Option<String>,
    /// All of them, in any order; never empty.
    pub subnets: Vec<IpNet>,
}

impl Zone {
    /// What all hosts know the network by: its first subnet in ascending order.
    pub fn key(&self) -> Option<IpNet> {
        self.subnets.iter().map(IpNet::trunc).min()
    }
}

/// A container of any host, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// None: this one.
    pub host: Option<String>,
    #[serde(flatten)]
    pub named: Named,
}

/// What is known of all networks of this host. Its lock is held for a look or a change of memory, never longer.
#[derive(Default)]
pub struct Directory(RwLock<Inner>);

#[derive(Default)]
struct Inner {
    zones: BTreeMap<NetworkId, Zone>,
    /// By the network's key.
    here: BTreeMap<IpNet, Page>,
    /// By host, then by the network's key. What a host said stays while it is not alive, and is not told.
    others: BTreeMap<String, BTreeMap<IpNet, Heard>>,
    alive: BTreeSet<String>,
}

/// What another host said last of a network.
struct Heard {
    version: u64,
    page: Page,
}

/// One host's containers on one network.
#[derive(Default)]
struct Page {
    all: Vec<Named>,
    by_name: HashMap<String, Vec<IpAddr>>,
    by_address: HashMap<IpAddr, String>,
}

impl Page {
    /// Names that cannot be asked for are left out, as are addresses that are none of the network's.
    fn new(mut all: Vec<Named>, subnets: &[IpNet]) -> Self {
        for named in &mut all {
            named.addresses.retain(|address| subnets.iter().any(|subnet| subnet.contains(address)));
            let mut seen = BTreeSet::new();
            named.names = named.names.iter().filter_map(|name| plain(name)).filter(|name| seen.insert(name.clone())).collect();
        }
        all.retain(|named| !named.names.is_empty() && !named.addresses.is_empty());
        all.sort();
        let (mut by_name, mut by_address) = (HashMap::<String, Vec<IpAddr>>::new(), HashMap::new());
        for named in &all {
            for name in &named.names {
                by_name.entry(name.clone()).or_default().extend(&named.addresses);
            }
            by_address.extend(named.addresses.iter().map(|address| (*address, named.names[0].clone())));
        }
        Page { all, by_name, by_address }
    }
}

/// As it is compared: lower case, without a last dot. None: nothing could ask for it.
fn plain(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let sound = !name.is_empty() && name.len() <= LONGEST && name.bytes().all(|byte| byte.is_ascii_graphic());
    sound.then(|| name.to_ascii_lowercase())
}

impl Directory {
    /// All addresses of a name on these networks, none twice. Some only if another host that is alive has the name there: what only this
    /// host has, Docker's own resolver knows. `name` is in any case, also `name.network` with the network's name on this host.
    pub fn addresses(&self, networks: &[NetworkId], name: &str) -> Option<Vec<IpAddr>> {
        let (name, inner) = (plain(name)?, self.0.read());
        let zones: Vec<&Zone> = networks.iter().filter_map(|id| inner.zones.get(id)).collect();
        inner.find(&zones, &name).or_else(|| {
            let (name, network) = name.rsplit_once('.')?;
            let called = |zone: &&&Zone| zone.name.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(network));
            inner.find(&zones.iter().filter(called).copied().collect::<Vec<_>>(), name)
        })
    }

    /// What a container of another host is called, as `name.network`; that network's name is left out where the engine has not told it.
    pub fn name_of(&self, networks: &[NetworkId], address: IpAddr) -> Option<String> {
        let inner = self.0.read();
        networks.iter().filter_map(|id| inner.zones.get(id)).find_map(|zone| {
            let name = inner.others_on(zone.key()?).find_map(|(_, page)| page.by_address.get(&address))?;
            Some(zone.name.as_ref().map_or_else(|| name.clone(), |network| format!("{name}.{}", network.to_ascii_lowercase())))
        })
    }

    /// All containers on a network, this host's first; of hosts that are alive.
    pub fn entries(&self, network: &NetworkId) -> Vec<Entry> {
        let inner = self.0.read();
        let Some(key) = inner.zones.get(network).and_then(Zone::key) else { return vec![] };
        let here = inner.here.get(&key).into_iter().map(|page| (None, page));
        let others = inner.others_on(key).map(|(host, page)| (Some(host.clone()), page));
        let entries = |(host, page): (Option<String>, &Page)| {
            page.all.iter().map(|named| Entry { host: host.clone(), named: named.clone() }).collect::<Vec<_>>()
        };
        here.chain(others).flat_map(entries).collect()
    }

    /// Which networks this host has. What was heard of others is forgotten.
    pub fn set_zones(&self, zones: BTreeMap<NetworkId, Zone>) {
        let mut inner = self.0.write();
        let keys: BTreeSet<IpNet> = zones.values().filter_map(Zone::key).collect();
        inner.here.retain(|key, _| keys.contains(key));
        inner.others.values_mut().for_each(|heard| heard.retain(|key, _| keys.contains(key)));
        inner.zones = zones;
    }

    /// Which hosts there are, and of those which are alive. What others said is forgotten.
    pub fn set_hosts(&self, hosts: &BTreeSet<String>, alive: BTreeSet<String>) {
        let mut inner = self.0.write();
        inner.others.retain(|host, _| hosts.contains(host));
        inner.alive = alive;
    }

    /// This host's containers on a network, all of them. Whether that is news; the first time it is, also that there are none: an earlier process
    /// may have said something else.
    pub fn set_here(&self, key: IpNet, named: Vec<Named>) -> bool {
        let mut inner = self.0.write();
        let page = Page::new(named, &inner.subnets(key));
        let news = inner.here.get(&key).is_none_or(|before| before.all != page.all);
        inner.here.insert(key, page);
        news
    }

    /// This host's containers on a network.
    pub fn here(&self, key: IpNet) -> Vec<Named> {
        self.0.read().here.get(&key).map_or_else(Vec::new, |page| page.all.clone())
    }

    /// Whether this host has the network.
    pub fn has(&self, key: IpNet) -> bool {
        self.0.read().zones.values().any(|zone| zone.key() == Some(key))
    }

    /// The other hosts that are alive.
    pub fn alive(&self) -> BTreeSet<String> {
        self.0.read().alive.clone()
    }

    /// Another host's containers on a network, all of them, unless it said something later already. Its latest version; none: this host has
    /// no such network.
    pub fn hear(&self, host: &str, key: IpNet, version: u64, named: Vec<Named>) -> Option<u64> {
        let mut inner = self.0.write();
        let subnets = inner.subnets(key);
        if subnets.is_empty() {
            return None;
        }
        let heard = inner.others.entry(host.to_owned()).or_default().entry(key).or_insert(Heard { version: 0, page: Page::default() });
        if version > heard.version {
            *heard = Heard { version, page: Page::new(named, &subnets) };
        }
        Some(heard.version)
    }

    /// How many names are known, none twice of one host on one network: of this host, and of the others that are alive.
    pub fn count(&self) -> [usize; 2] {
        let inner = self.0.read();
        let count = |page: &Page| page.by_name.len();
        let others = inner.others.iter().filter(|(host, _)| inner.alive.contains(*host)).flat_map(|(_, heard)| heard.values());
        [inner.here.values().map(count).sum(), others.map(|heard| count(&heard.page)).sum()]
    }

    /// Whether a host ever said what it has on a network.
    pub fn has_heard(&self, host: &str, key: IpNet) -> bool {
        self.0.read().others.get(host).is_some_and(|heard| heard.contains_key(&key))
    }
}

impl Inner {
    /// Of the network of this key; empty: this host has none.
    fn subnets(&self, key: IpNet) -> Vec<IpNet> {
        self.zones.values().find(|zone| zone.key() == Some(key)).map_or_else(Vec::new, |zone| zone.subnets.clone())
    }

    fn others_on(&self, key: IpNet) -> impl Iterator<Item = (&String, &Page)> {
        let alive = self.others.iter().filter(|(host, _)| self.alive.contains(*host));
        alive.filter_map(move |(host, heard)| Some((host, &heard.get(&key)?.page)))
    }

    fn find(&self, zones: &[&Zone], name: &str) -> Option<Vec<IpAddr>> {
        let keys: BTreeSet<IpNet> = zones.iter().filter_map(|zone| zone.key()).collect();
        let there = keys.iter().flat_map(|key| self.others_on(*key)).filter_map(|(_, page)| page.by_name.get(name));
        let mut found: BTreeSet<IpAddr> = there.flatten().copied().collect();
        if found.is_empty() {
            return None;
        }
        let here = keys.iter().filter_map(|key| self.here.get(key)?.by_name.get(name));
        found.extend(here.flatten());
        Some(found.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLUE: &str = "10.50.0.0/16";
    const RED: &str = "10.60.0.0/16";

    fn id(text: &str) -> NetworkId {
        text.parse().unwrap()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn named(names: &[&str], addresses: &[&str]) -> Named {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Named { names, addresses: addresses.iter().map(|address| address.parse().unwrap()).collect() }
    }

    fn ips(addresses: &[&str]) -> Option<Vec<IpAddr>> {
        Some(addresses.iter().map(|address| address.parse().unwrap()).collect())
    }

    /// This host has the networks blue and red; hosts b and c are there too.
    fn directory() -> Directory {
        let zone = |name: &str, subnets: &[&str]| Zone { name: Some(name.to_owned()), subnets: subnets.iter().map(|s| net(s)).collect() };
        let directory = Directory::default();
        directory.set_zones([(id("1"), zone("Blue", &["fd00:50::/64", BLUE])), (id("2"), zone("red", &[RED]))].into());
        let hosts: BTreeSet<String> = ["b".to_owned(), "c".to_owned()].into();
        directory.set_hosts(&hosts, hosts.clone());
        directory
    }

    #[test]
    fn a_name_of_another_host_is_found_in_any_case_and_with_its_network() {
        let directory = directory();
        directory.hear("b", net(BLUE), 1, vec![named(&["Web", "www", "0123456789ab"], &["10.50.1.2", "fd00:50::2"])]);
        let found = ips(&["10.50.1.2", "fd00:50::2"]);
        for name in ["web", "WEB.", "www", "0123456789ab", "web.blue", "www.BLUE."] {
            assert_eq!(directory.addresses(&[id("1"), id("2")], name), found, "{name}");
        }
        for name in ["we", "web.red", "blue", "", ".", "web..blue", &"w".repeat(300)] {
            assert_eq!(directory.addresses(&[id("1"), id("2")], name), None, "{name}");
        }
    }

    #[test]
    fn a_name_is_only_known_where_its_network_is() {
        let directory = directory();
        directory.hear("b", net(BLUE), 1, vec![named(&["web"], &["10.50.1.2"])]);
        directory.hear("b", net(RED), 2, vec![named(&["db"], &["10.60.1.2"])]);
        assert_eq!(directory.addresses(&[id("2")], "web"), None);
        assert_eq!(directory.addresses(&[id("3")], "web"), None);
        assert_eq!(directory.addresses(&[id("2")], "web.blue"), None);
        assert_eq!(directory.addresses(&[id("2")], "db"), ips(&["10.60.1.2"]));
        assert_eq!(directory.name_of(&[id("2")], "10.50.1.2".parse().unwrap()), None);
        assert_eq!(directory.hear("b", net("10.70.0.0/16"), 3, vec![named(&["x"], &["10.70.0.2"])]), None);
    }

    #[test]
    fn what_only_this_host_has_is_left_to_docker_and_is_told_beside_the_others() {
        let directory = directory();
        assert!(directory.set_here(net(BLUE), vec![named(&["web-1", "web"], &["10.50.0.2"])]));
        assert!(!directory.set_here(net(BLUE), vec![named(&["web-1", "web"], &["10.50.0.2"])]));
        assert_eq!(directory.addresses(&[id("1")], "web"), None);
        directory.hear("b", net(BLUE), 1, vec![named(&["web-2", "web"], &["10.50.1.2"])]);
        directory.hear("c", net(BLUE), 1, vec![named(&["web-3", "web"], &["10.50.2.2"])]);
        assert_eq!(directory.addresses(&[id("1")], "web"), ips(&["10.50.0.2", "10.50.1.2", "10.50.2.2"]));
        assert_eq!(directory.addresses(&[id("1")], "web-1"), None);
    }

    #[test]
    fn an_address_has_the_name_of_its_container_and_network_if_that_is_elsewhere() {
        let directory = directory();
        directory.set_here(net(BLUE), vec![named(&["here"], &["10.50.0.2"])]);
        directory.hear("b", net(BLUE), 1, vec![named(&["web-1", "web"], &["10.50.1.2"])]);
        assert_eq!(directory.name_of(&[id("1")], "10.50.1.2".parse().unwrap()).as_deref(), Some("web-1.blue"));
        assert_eq!(directory.name_of(&[id("1")], "10.50.0.2".parse().unwrap()), None);
    }

    #[test]
    fn a_host_that_is_not_alive_is_not_told_and_is_again_when_it_is_back() {
        let directory = directory();
        directory.hear("b", net(BLUE), 1, vec![named(&["web"], &["10.50.1.2"])]);
        let hosts: BTreeSet<String> = ["b".to_owned(), "c".to_owned()].into();
        directory.set_hosts(&hosts, ["c".to_owned()].into());
        assert_eq!(directory.addresses(&[id("1")], "web"), None);
        assert_eq!(directory.name_of(&[id("1")], "10.50.1.2".parse().unwrap()), None);
        assert_eq!(directory.entries(&id("1")), []);
        directory.set_hosts(&hosts, hosts.clone());
        assert_eq!(directory.addresses(&[id("1")], "web"), ips(&["10.50.1.2"]));
        directory.set_hosts(&["c".to_owned()].into(), hosts.clone());
        assert!(!directory.has_heard("b", net(BLUE)));
    }

    #[test]
    fn the_latest_that_a_host_said_counts_in_whichever_order_it_came() {
        let directory = directory();
        assert_eq!(directory.hear("b", net(BLUE), 7, vec![named(&["new"], &["10.50.1.3"])]), Some(7));
        assert_eq!(directory.hear("b", net(BLUE), 6, vec![named(&["old"], &["10.50.1.2"])]), Some(7));
        assert_eq!(directory.addresses(&[id("1")], "old"), None);
        assert_eq!(directory.addresses(&[id("1")], "new"), ips(&["10.50.1.3"]));
        assert_eq!(directory.hear("b", net(BLUE), 8, vec![]), Some(8));
        assert_eq!(directory.addresses(&[id("1")], "new"), None);
        assert!(directory.has_heard("b", net(BLUE)));
    }

    #[test]
    fn what_a_host_says_of_addresses_outside_the_network_or_by_no_names_is_left_out() {
        let directory = directory();
        directory.hear(
            "b",
            net(BLUE),
            1,
            vec![named(&["web", "we b", "WEB", ""], &["10.60.1.2", "8.8.8.8", "10.50.1.2"]), named(&["dns"], &["9.9.9.9"])],
        );
        let expected = Entry { host: Some("b".to_owned()), named: named(&["web"], &["10.50.1.2"]) };
        assert_eq!(directory.entries(&id("1")), [expected]);
        assert_eq!(directory.addresses(&[id("1")], "dns"), None);
    }

    #[test]
    fn a_network_that_is_removed_here_takes_what_was_heard_of_it_along() {
        let directory = directory();
        directory.hear("b", net(BLUE), 1, vec![named(&["web"], &["10.50.1.2"])]);
        directory.set_zones([(id("2"), Zone { name: None, subnets: vec![net(RED)] })].into());
        assert!(!directory.has_heard("b", net(BLUE)));
        directory.hear("b", net(RED), 2, vec![named(&["db"], &["10.60.1.2"])]);
        assert_eq!(directory.name_of(&[id("2")], "10.60.1.2".parse().unwrap()).as_deref(), Some("db"));
    }
}
