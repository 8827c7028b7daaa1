//! USE CASES: what the engine asks for, as changes of what is declared, made durable and made so before the answer.
//!
//! Every change goes through [`Agent::settle`]: store what is declared and let the reconciler make the difference, and if either fails
//! declare what was declared before and make that so. There is no other way back. What is taken away is taken away even if the host resists: the
//! engine forgets it whatever we answer, so the reconciler finishes it later.
//!
//! Nothing here asks Docker anything: a plugin that calls the engine inside a driver call deadlocks at boot.

mod addressing;
mod alter;
mod endpoints;
mod explain;
mod holders;
mod locks;
mod networks;
mod overview;
mod pools;
mod publish;
mod recovery;
mod resting;
mod sandboxes;
mod shared;
mod state;
mod strangers;
mod twins;

use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;
use tracing::warn;

use crate::addresses::{AddressError, PoolError};
use crate::cluster::{self, Cluster};
use crate::docker::Names;
use crate::drivers::OptionError;
use crate::kernel::{Kernel, KernelError};
use crate::model::{EndpointId, InvalidName, NetworkId, Plan, Way};
use crate::reconcile::{self, Owner, Reconciler};
use crate::store::{Expect, InvalidKey, Key, Store, StoreError};
pub use addressing::{NewAddress, NewPool, SPACE, pool_id};
pub use alter::{ChangeSources, Sources};
pub use endpoints::{Joined, NewEndpoint};
pub use explain::{Explainer, HostAnswer, HostQuestion, Hosts as OtherHosts, Looked, Party, Why};
pub use holders::{Holder, Holders, Holding, Of};
pub use networks::NewNetwork;
pub use overview::{EndpointSeen, NetworkSeen, Planned};
pub use publish::Published;
pub use shared::{Forget, HostSeen, Hosts};
use state::State;

/// What a call answers when it cannot do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("network {0} is not known to rsnet; if it was made by another driver or its state was lost, remove it and create it again")]
    UnknownNetwork(NetworkId),
    #[error("endpoint {0} is not known to rsnet; disconnect the container and connect it again")]
    UnknownEndpoint(EndpointId),
    #[error("network {0} exists already")]
    NetworkExists(NetworkId),
    #[error(transparent)]
    Option(#[from] OptionError),
    #[error(transparent)]
    Name(#[from] InvalidName),
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Host(#[from] reconcile::Error),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] InvalidKey),
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
}

pub struct Agent {
    kernel: Arc<dyn Kernel>,
    store: Arc<dyn Store>,
    reconciler: Arc<Reconciler>,
    state: Mutex<State>,
    addressing: tokio::sync::Mutex<addressing::Addressing>,
    locks: locks::Locks,
    names: Arc<Names>,
    strangers: strangers::Strangers,
    cluster: Arc<Cluster>,
    /// A pool that hosts share has little left.
    short: Notify,
    /// A network that hosts share is there.
    joined: Notify,
    /// A network that hosts share is gone.
    left: Notify,
    /// A container came to a network or left it.
    moved: Notify,
    settings: Settings,
}

/// What the daemon's settings say to the agent.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub way: Way,
    /// Whether the store that the cluster has is also that of other hosts.
    pub shared: bool,
}

/// One record of what is declared: where it is stored, whose plan it is, what it asks for. No value: it is declared no more.
struct Declaration {
    key: String,
    owner: Owner,
    value: Option<Vec<u8>>,
    plan: Plan,
}

impl Agent {
    /// Makes `after` so; on failure `before` is so again.
    async fn settle(&self, before: Declaration, after: Declaration) -> Result<(), Error> {
        let (kept, made) = self.make(after).await;
        let done = kept.and(made.map_err(Error::from));
        if done.is_err() {
            self.put_back(before).await;
        }
        done
    }

    /// Makes `after` so, which takes something away: what the host then still has of it goes behind the answer. On failure of the store
    /// `before` is so again.
    async fn withdraw(&self, before: Declaration, Declaration { key, owner, value, plan }: Declaration) -> Result<(), Error> {
        let (kept, made) = tokio::join!(self.keep(&key, value), self.reconciler.withdraw(&owner, plan));
        if kept.is_err() {
            self.put_back(before).await;
        } else if let Err(error) = made {
            warn!(%error, %owner, "could not be taken away whole; trying again behind the answer");
            self.reconciler.look_again();
        }
        kept
    }

    async fn put_back(&self, before: Declaration) {
        let owner = before.owner.clone();
        let (kept, made) = self.make(before).await;
        if let Err(again) = kept.and(made.map_err(Error::from)) {
            warn!(error = %again, %owner, "could not be put back as it was; trying again behind the answer");
            self.reconciler.look_again();
        }
    }

    /// Stores it and makes it so, side by side: a disk takes as long as the kernel. Whichever a crash leaves undone, the next start makes the
    /// host as is stored, and nobody had an answer yet.
    async fn make(&self, Declaration { key, owner, value, plan }: Declaration) -> (Result<(), Error>, Result<(), reconcile::Error>) {
        tokio::join!(self.keep(&key, value), self.reconciler.set(&owner, plan))
    }

    async fn keep(&self, key: &str, value: Option<Vec<u8>>) -> Result<(), Error> {
        let key = Key::new(key)?;
        match value {
            Some(value) => self.store.put(&key, value, Expect::Any).await.map(drop)?,
            None => self.store.delete(&key, Expect::Any).await?,
        }
        Ok(())
    }

    /// What the engine knows and does not tell in its calls: for people.
    pub fn names(&self) -> Arc<Names> {
        self.names.clone()
    }
}

/// Records are JSON. Ours have string keys and no floats: they always serialise.
fn record<T: Serialize>(value: &T) -> Option<Vec<u8>> {
    serde_json::to_vec(value).ok()
}
