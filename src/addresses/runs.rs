//! A set of offsets kept as runs, so that a million neighbours cost what one does.

use std::collections::BTreeMap;

/// Offsets as disjoint, never adjacent, inclusive runs: first to last.
#[derive(Debug, Clone, Default)]
pub(super) struct Runs(BTreeMap<u128, u128>);

impl Runs {
    /// The run that holds `at`, as (first, last).
    fn around(&self, at: u128) -> Option<(u128, u128)> {
        let (&first, &last) = self.0.range(..=at).next_back()?;
        (at <= last).then_some((first, last))
    }

    pub(super) fn contains(&self, at: u128) -> bool {
        self.around(at).is_some()
    }

    /// Adds `at` and joins it with the runs it touches.
    pub(super) fn insert(&mut self, at: u128) {
        if self.contains(at) {
            return;
        }
        let before = at.checked_sub(1).and_then(|left| self.around(left));
        let after = at.checked_add(1).and_then(|right| self.around(right));
        if let Some((first, _)) = after {
            self.0.remove(&first);
        }
        self.0.insert(before.map_or(at, |(first, _)| first), after.map_or(at, |(_, last)| last));
    }

    /// The lowest offset not in the set, from `first` to `last`.
    pub(super) fn first_gap(&self, first: u128, last: u128) -> Option<u128> {
        let gap = match self.around(first) {
            Some((_, end)) => end.checked_add(1)?,
            None => first,
        };
        (gap <= last).then_some(gap)
    }

    /// How many there are from `first` to `last`.
    pub(super) fn count(&self, first: u128, last: u128) -> u128 {
        let begin = self.around(first).map_or(first, |(begin, _)| begin);
        let runs = self.0.range(begin..=last.max(begin));
        runs.map(|(&begin, &end)| (end.min(last) + 1).saturating_sub(begin.max(first))).sum()
    }

    /// Every offset, lowest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = u128> + '_ {
        self.0.iter().flat_map(|(&first, &last)| first..=last)
    }
}
