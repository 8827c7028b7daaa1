//! The plans of all owners, and the differences: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::model::{AttachmentKind, Entry, IfName, Key, LinkKind, Object, Plan};

/// Whose plan it is: a network, or an endpoint of one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// Short ids, as people see them.
    pub network: String,
    pub endpoint: Option<String>,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            None => write!(f, "network {}", self.network),
            Some(endpoint) => write!(f, "endpoint {endpoint} of network {}", self.network),
        }
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what:?} already belongs to {owner}")]
pub struct Conflict {
    pub what: Key,
    pub owner: Owner,
}

/// What to do, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    pub put: Vec<Object>,
    pub remove: Vec<Entry>,
    pub add: Vec<Entry>,
    /// Backwards already.
    pub delete: Vec<Key>,
}

/// Something on the host that is not as planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deviation {
    Missing(Owner, Object),
    Altered(Owner, Object),
    /// It bears our mark, and no plan has it.
    Extra(Key),
}

impl Deviation {
    pub fn key(&self) -> Key {
        match self {
            Deviation::Missing(_, object) | Deviation::Altered(_, object) => object.key(),
            Deviation::Extra(key) => key.clone(),
        }
    }
}

#[derive(Default)]
pub struct Desired {
    plans: BTreeMap<Owner, Plan>,
    objects: BTreeMap<Key, (Owner, Object)>,
}

impl Desired {
    /// Gives `owner` a new plan; refused whole if a key of it has another owner.
    pub fn replace(&mut self, owner: &Owner, plan: Plan) -> Result<Difference, Conflict> {
        self.check(owner, &plan)?;
        let old = self.plans.remove(owner).unwrap_or_default();
        let difference = between(&old, &plan);
        for key in old.objects.keys().filter(|key| !shared(key)) {
            self.objects.remove(key);
        }
        for (key, object) in &plan.objects {
            self.objects.insert(key.clone(), (owner.clone(), object.clone()));
        }
        if plan != Plan::default() {
            self.plans.insert(owner.clone(), plan);
        }
        Ok(difference)
    }

    /// Takes back the entries of a difference that was not applied so far: they are no part of what the next one starts from.
    pub fn keep_entries(&mut self, owner: &Owner, difference: Difference) {
        let plan = self.plans.entry(owner.clone()).or_default();
        difference.add.iter().for_each(|entry| _ = plan.entries.remove(entry));
        plan.entries.extend(difference.remove);
    }

    fn check(&self, owner: &Owner, plan: &Plan) -> Result<(), Conflict> {
        let other = |key: &&Key| self.objects.get(key).filter(|(other, _)| other != owner).map(|(other, _)| other.clone());
        let taken = plan.objects.keys().filter(|key| !shared(key)).find_map(|key| Some((key, other(&key)?)));
        taken.map_or(Ok(()), |(key, owner)| Err(Conflict { what: key.clone(), owner }))
    }

    pub fn objects(&self) -> &BTreeMap<Key, (Owner, Object)> {
        &self.objects
    }

    pub fn entries(&self) -> BTreeSet<Entry> {
        self.plans.values().flat_map(|plan| plan.entries.iter().cloned()).collect()
    }

    /// How the whole host differs: what is to be put in the order of putting, then what is to be deleted in the order of deleting.
    pub fn deviations(&self, seen: &[Object]) -> Vec<Deviation> {
        let seen: BTreeMap<Key, &Object> = seen.iter().map(|object| (object.key(), object)).collect();
        let to_put = self.objects.iter().filter_map(|(key, (owner, object))| match seen.get(key) {
            Some(seen) if object.is_met_by(seen) => None,
            Some(_) => Some(Deviation::Altered(owner.clone(), object.clone())),
            None => Some(Deviation::Missing(owner.clone(), object.clone())),
        });
        let extra = seen.keys().rev().filter(|key| !self.objects.contains_key(key)).cloned().map(Deviation::Extra);
        to_put.chain(extra).collect()
    }

    /// Whether any of the news is not as planned.
    pub fn disagrees(&self, now: &BTreeMap<Key, Object>, gone: &BTreeSet<Key>) -> bool {
        let altered = |(key, seen): (&Key, &Object)| self.objects.get(key).is_some_and(|(_, wanted)| !wanted.is_met_by(seen));
        gone.iter().any(|key| self.objects.contains_key(key)) || now.iter().any(altered) || now.keys().any(|key| self.displaces(key))
    }

    /// Whether entries lead to it by the kernel's number for it, which is another one after it was made again (`Entry::Local`,
    /// `Entry::Way`).
    pub fn is_known_by_number(&self, key: &Key) -> bool {
        match self.objects.get(key) {
            Some((_, Object::Link(link))) => matches!(link.kind, LinkKind::Vxlan { .. }),
            Some((_, Object::Attachment(attachment))) => matches!(attachment.kind, AttachmentKind::Veth { router: Some(_), .. }),
            _ => false,
        }
    }

    /// Whether it is a route instead of one that is planned: of what a route replaces the kernel tells nothing.
    fn displaces(&self, key: &Key) -> bool {
        let Key::Route { destination, .. } = key else { return false };
        let first = Key::Route { destination: *destination, link: IfName::of("", "") };
        let mut planned = self.objects.range(first..).map(|(key, _)| key);
        let same = |other: &Key| matches!(other, Key::Route { destination: to, .. } if to == destination);
        !self.objects.contains_key(key) && planned.next().is_some_and(same)
    }
}

/// Host-wide switches are wanted by many and taken back by none.
fn shared(key: &Key) -> bool {
    matches!(key, Key::HostSysctl(_))
}

fn between(old: &Plan, new: &Plan) -> Difference {
    let unchanged = |key: &Key, object: &Object| old.objects.get(key).is_some_and(|old| object.is_met_by(old));
    Difference {
        put: new.objects.iter().filter(|(key, object)| !unchanged(key, object)).map(|(_, object)| object.clone()).collect(),
        remove: old.entries.difference(&new.entries).cloned().collect(),
        add: new.entries.difference(&old.entries).cloned().collect(),
        delete: old.objects.keys().rev().filter(|key| !shared(key) && !new.objects.contains_key(key)).cloned().collect(),
    }
}
