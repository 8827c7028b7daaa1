//! A firewall in memory that keeps a log and fails when told to.

use std::collections::BTreeSet;
use std::io;

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc;

use crate::model::Entry;

use super::{Blocker, Firewall, FirewallError, Ours};

/// Keeps entries as the kernel would: adding what is there and removing what is not there is no error.
#[derive(Default)]
pub struct Fake {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: BTreeSet<Entry>,
    log: Vec<Call>,
    failing: BTreeSet<usize>,
    wake: Option<mpsc::Sender<()>>,
}

/// A call that was made, whether it failed or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Apply { remove: Vec<Entry>, add: Vec<Entry> },
    Converge(BTreeSet<Entry>),
    Clear,
}

impl Fake {
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the call of this number fail without effect, counted from 0 over all of `apply`, `converge` and `clear`.
    pub fn fail(&self, call: usize) {
        self.state().failing.insert(call);
    }

    pub fn entries(&self) -> BTreeSet<Entry> {
        self.state().entries.clone()
    }

    pub fn log(&self) -> Vec<Call> {
        self.state().log.clone()
    }

    /// Somebody else changes the table: `alter` its entries and wake who listens.
    pub fn disturb(&self, alter: impl FnOnce(&mut BTreeSet<Entry>)) {
        let mut state = self.state();
        alter(&mut state.entries);
        if let Some(wake) = &state.wake {
            let _ = wake.try_send(());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn called(&mut self, operation: &'static str, call: Call) -> Result<(), FirewallError> {
        let number = self.log.len();
        self.log.push(call);
        if self.failing.contains(&number) {
            return Err(FirewallError { operation, object: format!("call {number}"), cause: io::Error::other("told to fail") });
        }
        Ok(())
    }
}

#[async_trait]
impl Firewall for Fake {
    async fn apply(&self, remove: &[Entry], add: &[Entry]) -> Result<(), FirewallError> {
        let mut state = self.state();
        state.called("apply", Call::Apply { remove: remove.to_vec(), add: add.to_vec() })?;
        state.entries.retain(|entry| !remove.contains(entry));
        state.entries.extend(add.iter().cloned());
        Ok(())
    }

    async fn converge(&self, all: &BTreeSet<Entry>) -> Result<usize, FirewallError> {
        let mut state = self.state();
        state.called("converge", Call::Converge(all.clone()))?;
        let differences = state.entries.symmetric_difference(all).count();
        state.entries = all.clone();
        Ok(differences)
    }

    async fn compare(&self, all: &BTreeSet<Entry>) -> Result<Vec<String>, FirewallError> {
        let state = self.state();
        Ok(state.entries.symmetric_difference(all).map(|entry| format!("{entry:?}")).collect())
    }

    async fn blockers(&self, _: &Ours) -> Result<Vec<Blocker>, FirewallError> {
        Ok(Vec::new())
    }

    async fn clear(&self) -> Result<(), FirewallError> {
        let mut state = self.state();
        state.called("clear", Call::Clear)?;
        state.entries.clear();
        Ok(())
    }

    fn changes(&self) -> mpsc::Receiver<()> {
        let (wake, woken) = mpsc::channel(1);
        self.state().wake = Some(wake);
        woken
    }
}
