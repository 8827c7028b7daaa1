//! A list by name that its copies share.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What stands in a [`Roster`].
pub trait Named {
    /// By which it is found, and only one has it.
    fn name(&self) -> &str;
}

/// Things in the order of their names. A copy shares all, and what is changed in it costs a part: each of a thousand hosts has lists of a
/// thousand, and tells them anew whenever it hears of one.
#[derive(Clone, Debug, Eq)]
pub struct Roster<T>(Vec<Arc<Part<T>>>);

/// Never empty.
type Part<T> = Vec<Arc<T>>;

/// So many a part has at most.
const MOST: usize = 32;

impl<T: Named> Roster<T> {
    pub fn get(&self, name: &str) -> Option<&T> {
        let part = self.0.get(self.part(name))?;
        part.binary_search_by(|one| one.name().cmp(name)).ok().map(|at| &*part[at])
    }

    /// What has a name from now on; none: nothing has it.
    pub fn set(&mut self, name: &str, one: Option<T>) {
        if self.0.is_empty() {
            self.0.extend(one.map(|one| vec![one.into()].into()));
            return;
        }
        let at = self.part(name);
        let part = Arc::make_mut(&mut self.0[at]);
        let found = part.binary_search_by(|one| one.name().cmp(name));
        part.splice(found.map_or_else(|at| at..at, |at| at..at + 1), one.map(Arc::new));
        match part.len() {
            0 => drop(self.0.remove(at)),
            len if len > MOST => {
                let rest = part.split_off(len / 2);
                self.0.insert(at + 1, rest.into());
            }
            _ => {}
        }
    }

    /// The part that has a name, or would: the first that ends behind it, or the last.
    fn part(&self, name: &str) -> usize {
        let before = self.0.partition_point(|part| part.last().is_some_and(|last| last.name() < name));
        before.min(self.0.len().saturating_sub(1))
    }
}

impl<T> Roster<T> {
    pub fn len(&self) -> usize {
        self.0.iter().map(|part| part.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.shared().map(AsRef::as_ref)
    }

    /// The same, so that it can be told what two copies still share.
    pub fn shared(&self) -> impl Iterator<Item = &Arc<T>> {
        self.0.iter().flat_map(|part| part.iter())
    }
}

impl<T> Default for Roster<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// However it came about.
impl<T: Eq> PartialEq for Roster<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0 || self.shared().eq(other.shared())
    }
}

/// In any order, no name twice.
impl<T: Named> FromIterator<T> for Roster<T> {
    fn from_iter<I: IntoIterator<Item = T>>(all: I) -> Self {
        let mut all: Vec<Arc<T>> = all.into_iter().map(Arc::new).collect();
        all.sort_by(|one, other| one.name().cmp(other.name()));
        Self(all.chunks(MOST).map(|part| part.to_vec().into()).collect())
    }
}

impl<T: Serialize> Serialize for Roster<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.iter())
    }
}

impl<'de, T: Named + Deserialize<'de>> Deserialize<'de> for Roster<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Vec::deserialize(from).map(Self::from_iter)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    impl Named for (String, u8) {
        fn name(&self) -> &str {
            &self.0
        }
    }

    proptest! {
        #[test]
        fn it_is_a_map_by_name_of_which_a_copy_stays_as_it_was(acts in prop::collection::vec((0u8..100, any::<Option<u8>>()), 0..300)) {
            let (mut roster, mut map) = (Roster::<(String, u8)>::default(), BTreeMap::new());
            for (name, value) in acts {
                let name = format!("host-{name:03}");
                let (copy, before) = (roster.clone(), map.clone());
                roster.set(&name, value.map(|value| (name.clone(), value)));
                match value {
                    Some(value) => drop(map.insert(name.clone(), value)),
                    None => drop(map.remove(&name)),
                }
                prop_assert_eq!(roster.get(&name).map(|(_, value)| value), map.get(&name));
                prop_assert_eq!(&copy, &before.into_iter().collect());
                prop_assert!(roster.0.iter().all(|part| (1..=MOST).contains(&part.len())));
            }
            prop_assert_eq!((roster.len(), roster.is_empty()), (map.len(), map.is_empty()));
            prop_assert_eq!(&roster, &map.into_iter().collect());
            prop_assert_eq!(&roster, &serde_json::from_str(&serde_json::to_string(&roster).unwrap()).unwrap());
        }

        #[test]
        fn a_change_copies_one_part(name in 0u8..200) {
            let before: Roster<(String, u8)> = (0u8..=255).map(|at| (format!("host-{at:03}"), at)).collect();
            let mut after = before.clone();
            let name = format!("host-{name:03}");
            after.set(&name, Some((name.clone(), 0)));
            let shared = before.0.iter().filter(|part| after.0.iter().any(|other| Arc::ptr_eq(part, other))).count();
            prop_assert_eq!(shared, before.0.len() - 1);
        }
    }
}
