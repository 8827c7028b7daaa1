//! Which hosts there are and what each holds, as this host last heard. Pure: what the store says in, in whichever order; who counts out.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;
use tokio::time::Instant;

use super::record::HostRecord;

/// A host of whom this one heard, or whom it remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub record: Arc<HostRecord>,
    /// That of its record; 0: the store says nothing of it.
    pub version: u64,
}

/// What a host has of a subnet.
pub struct Held<'a> {
    pub host: &'a str,
    pub known: &'a Known,
    pub blocks: &'a [IpNet],
}

/// Of which hosts there is news, by subnet.
pub type News = BTreeMap<IpNet, BTreeSet<String>>;

/// What this host knows of all hosts, itself among them.
#[derive(Default)]
pub struct Roll {
    me: String,
    /// Those that the store has a record of, and others for as long as that is worth keeping.
    pub hosts: BTreeMap<String, Known>,
    /// Whether the store has said which there are.
    pub is_heard: bool,
    /// The store lost its records. Until then what it no longer says still counts.
    pub rebuilding: Option<Instant>,
    /// Who is there, as last heard.
    pub alive: BTreeSet<String>,
    /// Whether that is how it stands: nobody knows who was there while the store did not answer.
    alive_is_heard: bool,
    /// Hosts that were seen dead ever since.
    pub gone: BTreeMap<String, (Instant, SystemTime)>,
    /// The others' blocks by subnet, each with how many hosts say that it is theirs.
    holders: BTreeMap<IpNet, BTreeMap<IpNet, usize>>,
    /// Subnets and blocks that several say are theirs, or said so when the news was last asked for.
    doubled: BTreeSet<(IpNet, IpNet)>,
    news: News,
    /// Hosts that the store says nothing of.
    unsaid: BTreeSet<String>,
    /// Hosts that came, went or moved since the last review.
    moved: BTreeSet<String>,
}

impl Roll {
    pub fn new(me: &str) -> Self {
        Self { me: me.to_owned(), ..Self::default() }
    }

    /// How many hosts there are, with those of which nothing but that is known.
    pub fn size(&self) -> usize {
        self.hosts.len().max(self.alive.len())
    }

    /// What this host's disk has of another, until the store says what is.
    pub fn remember(&mut self, name: &str, record: HostRecord) {
        let before = self.hosts.insert(name.to_owned(), Known { record: record.into(), version: 0 });
        self.unsaid.insert(name.to_owned());
        self.touch(before, name);
    }

    /// What the store says of the hosts in scope, all at one time. Those that are heard to be another than before. Who comes is there, until it
    /// is heard again who is.
    pub fn hear(&mut self, in_scope: impl Fn(&str) -> bool, heard: BTreeMap<String, Known>) -> Vec<String> {
        let were_heard = std::mem::replace(&mut self.is_heard, true);
        for (name, known) in self.hosts.iter_mut().filter(|(name, _)| in_scope(name) && !heard.contains_key(*name)) {
            known.version = 0;
            self.unsaid.insert(name.clone());
        }
        let mut differing = vec![];
        for (name, now) in heard {
            let (vtep, record) = (now.record.vtep, now.record.clone());
            let before = self.hosts.insert(name.clone(), now);
            self.unsaid.remove(&name);
            if were_heard && before.is_none() {
                self.alive.insert(name.clone());
            }
            if before.as_ref().is_none_or(|before| before.version == 0 || before.record.vtep != vtep) {
                self.moved.insert(name.clone());
            }
            if before.as_ref().map(|before| &before.record) != Some(&record) {
                self.touch(before, &name);
                differing.push(name);
            }
        }
        differing
    }

    /// Who is there; none: the store does not say. What is counted are times in which a host was seen dead throughout.
    pub fn hear_alive(&mut self, alive: Option<BTreeSet<String>>) {
        if std::mem::replace(&mut self.alive_is_heard, alive.is_some()) != alive.is_some() {
            self.moved.extend(self.hosts.keys().cloned());
        }
        if let Some(alive) = alive {
            self.moved.extend(self.alive.symmetric_difference(&alive).cloned());
            self.alive = alive;
        }
    }

    /// What follows from all that was heard, in whichever order. A store that does not say what this host wrote has lost what the others
    /// wrote as well, or said it before: then nobody is dropped. Whom that concerns.
    pub fn review(&mut self) -> BTreeSet<String> {
        if self.rebuilding.is_none() && self.hosts.get(&self.me).is_some_and(|known| known.version > 0) {
            for name in std::mem::take(&mut self.unsaid) {
                let before = self.hosts.remove(&name);
                self.touch(before, &name);
                self.moved.insert(name);
            }
        }
        let now = (Instant::now(), SystemTime::now());
        for name in &self.moved {
            if self.alive_is_heard && self.hosts.contains_key(name) && !self.alive.contains(name) {
                self.gone.entry(name.clone()).or_insert(now);
            } else {
                self.gone.remove(name);
            }
        }
        std::mem::take(&mut self.moved)
    }

    /// Who may have something else of a subnet than when this was asked last.
    pub fn news(&mut self) -> News {
        let mut news = std::mem::take(&mut self.news);
        for (subnet, block) in &self.doubled {
            let holders = self.held(*subnet).filter(|held| held.blocks.contains(block)).map(|held| held.host.to_owned());
            news.entry(*subnet).or_default().extend(holders);
        }
        let holders = &self.holders;
        self.doubled.retain(|(subnet, block)| holders[subnet].get(block).is_some_and(|count| *count > 1));
        news
    }

    pub fn others(&self) -> impl Iterator<Item = (&String, &Known)> {
        self.hosts.iter().filter(|(host, _)| **host != self.me)
    }

    /// Which blocks of a subnet the others have, each as often as it was heard.
    pub fn held(&self, subnet: IpNet) -> impl Iterator<Item = Held<'_>> {
        self.others().filter_map(move |(host, known)| Some(Held { host, known, blocks: known.record.blocks.get(&subnet)? }))
    }

    /// Which of the others' blocks of a subnet lie in this one.
    pub fn within(&self, subnet: IpNet, block: IpNet) -> impl Iterator<Item = IpNet> {
        let last = IpNet::from(block.broadcast());
        self.holders.get(&subnet).into_iter().flat_map(move |blocks| blocks.range(block..=last)).map(|(within, _)| *within)
    }

    /// Whether a block that is in a host's record is that host's. One that passed to another while only the latter was heard since, or whose
    /// former holder is kept without the store, is in both: it belongs to the one whose record is the newest.
    pub fn is_theirs(&self, host: &str, subnet: IpNet, block: IpNet) -> bool {
        let newest = || self.held(subnet).filter(|held| held.blocks.contains(&block)).max_by_key(|held| (held.known.version, held.host));
        !self.doubled.contains(&(subnet, block)) || newest().is_some_and(|newest| newest.host == host)
    }

    /// Notes of which subnets a host's record changed what is known.
    fn touch(&mut self, before: Option<Known>, name: &str) {
        if name == self.me {
            return;
        }
        let (before, now) = (before.map(|before| before.record), self.hosts.get(name).map(|known| known.record.clone()));
        let subnets = before.iter().chain(&now).flat_map(|record| record.blocks.keys());
        let differs = |subnet: &&IpNet| told_of(before.as_deref(), subnet) != told_of(now.as_deref(), subnet);
        for subnet in subnets.filter(differs).copied().collect::<BTreeSet<_>>() {
            self.news.entry(subnet).or_default().insert(name.to_owned());
            self.count(subnet, blocks(before.as_deref(), subnet), blocks(now.as_deref(), subnet));
        }
    }

    fn count(&mut self, subnet: IpNet, before: &[IpNet], now: &[IpNet]) {
        let holders = self.holders.entry(subnet).or_default();
        for block in before {
            if let Entry::Occupied(mut count) = holders.entry(*block) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
        for block in now {
            let count = holders.entry(*block).or_default();
            *count += 1;
            if *count > 1 {
                self.doubled.insert((subnet, *block));
            }
        }
    }
}

fn blocks(record: Option<&HostRecord>, subnet: IpNet) -> &[IpNet] {
    record.and_then(|record| record.blocks.get(&subnet)).map_or(&[], Vec::as_slice)
}

/// What a record says of a subnet.
fn told_of(record: Option<&HostRecord>, subnet: &IpNet) -> Option<impl PartialEq> {
    let HostRecord { vtep, blocks, own, homes, .. } = record?;
    Some((blocks.get(subnet)?, vtep, own, homes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SUBNET: &str = "10.0.0.0/24";

    fn known(blocks: &[u8], version: u64) -> Known {
        let block = |at: &u8| format!("10.0.0.{}/28", at * 16).parse().unwrap();
        let blocks = [(SUBNET.parse().unwrap(), blocks.iter().map(block).collect())].into();
        let vtep = "192.0.2.1".parse().unwrap();
        Known { record: HostRecord { id: "1".into(), vtep, blocks, own: vec![], homes: vec![] }.into(), version }
    }

    fn hosts(roll: &mut Roll) -> Vec<String> {
        roll.review();
        roll.hosts.keys().cloned().collect()
    }

    /// What the store said at a time, of all hosts.
    fn said(hosts: &[(&str, &[u8], u64)]) -> BTreeMap<String, Known> {
        hosts.iter().map(|(name, blocks, version)| ((*name).to_owned(), known(blocks, *version))).collect()
    }

    #[test]
    fn a_store_that_lost_everything_takes_no_host_away_until_the_rebuilding_is_over() {
        let mut roll = Roll::new("me");
        roll.hear(|_| true, said(&[("me", &[1], 1), ("a", &[2], 2), ("b", &[3], 3)]));
        roll.hear(|_| true, said(&[]));
        assert_eq!(hosts(&mut roll), ["a", "b", "me"], "it may also be older than this host's record");
        roll.rebuilding = Some(Instant::now());
        roll.hear(|_| true, said(&[("me", &[1], 4), ("a", &[2], 5)]));
        assert_eq!(hosts(&mut roll), ["a", "b", "me"]);
        roll.rebuilding = None;
        assert_eq!(hosts(&mut roll), ["a", "me"]);
    }

    #[test]
    fn a_forgotten_host_is_gone_and_what_is_remembered_goes_when_the_store_says_what_is() {
        let mut roll = Roll::new("me");
        roll.remember("old", (*known(&[5], 0).record).clone());
        assert_eq!(hosts(&mut roll), ["old"]);
        roll.hear(|_| true, said(&[("me", &[1], 1), ("a", &[2], 2)]));
        assert_eq!(hosts(&mut roll), ["a", "me"]);
        roll.hear(|name| name == "a", said(&[]));
        assert_eq!(hosts(&mut roll), ["me"]);
    }

    #[test]
    fn a_block_that_two_are_heard_to_have_is_that_of_the_newest_record() {
        let mut roll = Roll::new("me");
        let subnet = SUBNET.parse().unwrap();
        roll.hear(|_| true, said(&[("me", &[1], 1), ("a", &[2, 3], 2), ("b", &[4], 3)]));
        let block = "10.0.0.48/28".parse().unwrap();
        let theirs = |roll: &Roll| ["a", "b"].map(|host| roll.is_theirs(host, subnet, block));
        let news = |roll: &mut Roll| roll.news().remove(&subnet).unwrap_or_default().into_iter().collect::<Vec<_>>();
        assert_eq!((news(&mut roll), theirs(&roll)), (vec!["a".to_owned(), "b".to_owned()], [true, true]));
        roll.hear(|name| name == "b", said(&[("b", &[4, 3], 9)]));
        assert_eq!((news(&mut roll), theirs(&roll)), (vec!["a".to_owned(), "b".to_owned()], [false, true]));
        // what the store has lost is older than all that it has
        roll.rebuilding = Some(Instant::now());
        roll.hear(|_| true, said(&[("me", &[1], 1), ("a", &[2, 3], 2)]));
        assert_eq!((news(&mut roll), theirs(&roll)), (vec!["a".to_owned(), "b".to_owned()], [true, false]));
        roll.hear(|name| name == "b", said(&[("b", &[4], 10)]));
        assert_eq!((news(&mut roll), theirs(&roll)), (vec!["a".to_owned(), "b".to_owned()], [true, true]));
        assert_eq!(news(&mut roll), Vec::<String>::new());
    }

    proptest! {
        /// Each host writes its record now and then; the shards are read whenever, each as new as it is then.
        #[test]
        fn whatever_the_order_of_readings_the_last_ones_count(acts in prop::collection::vec((0usize..4, any::<bool>(), 0u8..16), 1..60)) {
            let names = ["a", "b", "c", "me"];
            let (mut roll, mut store, mut version) = (Roll::new("me"), BTreeMap::new(), 0);
            let read = |roll: &mut Roll, store: &BTreeMap<String, Known>, name: &str| {
                let found = store.iter().filter(|(of, _)| *of == name).map(|(of, known)| (of.clone(), known.clone())).collect();
                roll.hear(|of| of == name, found);
                roll.review();
            };
            store.insert("me".to_owned(), known(&[0], 1));
            for (who, write, block) in acts {
                version += 2;
                match write {
                    true if block == 0 && names[who] != "me" => drop(store.remove(names[who])),
                    true => drop(store.insert(names[who].to_owned(), known(&[block], version))),
                    false => read(&mut roll, &store, names[who]),
                }
            }
            names.iter().for_each(|name| read(&mut roll, &store, name));
            prop_assert_eq!(&roll.hosts, &store);
        }

        /// What people see of hosts is only looked at again of those whom a review names.
        #[test]
        fn a_review_names_all_of_whom_there_is_something_else_to_see(acts in prop::collection::vec((any::<bool>(), 0u8..16, 0u8..2), 1..40)) {
            let names = ["a", "b", "c", "me"];
            let subset = |bits: u8| names.into_iter().enumerate().filter(move |(at, _)| bits & 1 << at != 0).map(|(_, name)| name.to_owned());
            let (mut roll, mut seen) = (Roll::new("me"), BTreeMap::new());
            for (version, (of_hosts, bits, more)) in (1u64..).zip(acts) {
                let known = |name| (name, known(&[more], version));
                match of_hosts {
                    true => drop(roll.hear(|_| true, subset(bits).map(known).collect())),
                    false => roll.hear_alive((more > 0).then(|| subset(bits).collect())),
                }
                let look = |roll: &Roll, name: &String| {
                    let known = roll.hosts.get(name)?;
                    Some((known.record.vtep, roll.alive.contains(name), roll.gone.contains_key(name)))
                };
                for name in roll.review() {
                    seen.insert(name.clone(), look(&roll, &name));
                }
                for name in names.map(str::to_owned) {
                    let now = look(&roll, &name);
                    prop_assert_eq!(seen.get(&name).copied().flatten(), now);
                    prop_assert_eq!(now.is_some_and(|(_, _, gone)| gone), roll.alive_is_heard && now.is_some_and(|(_, alive, _)| !alive));
                }
            }
        }
    }
}
