//! Names for containers: what Docker's resolver does not know of other hosts' containers is answered in front of it.
//!
//! In a container's sandbox Docker's resolver listens on 127.0.0.11. Here is a [`Post`] before it, in each sandbox of a network that hosts
//! share: it gets the queries by a divert of the packet filter, answers those that the [`Directory`] knows, and has every other one answered by Docker's
//! resolver, byte for byte. The divert goes when this process does, however it ends: then Docker's resolver is asked as it would be without us.
//!
//! Owns: the posts and their life. Must not: know how names are learnt, or be waited for by any call of the engine.

mod answer;
mod post;
mod resolver;
mod tally;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::firewall::divert::Divert;
use crate::kernel::holders::Holders;
use crate::kernel::sandbox::Sandbox;
use crate::model::NetworkId;
use crate::names::Directory;

use post::{Condition, Networks, Post};
pub use tally::Tally;

/// How many posts are made or taken down at a time; each takes a thread, and a grace period of the kernel.
const AT_ONCE: usize = 16;

/// All posts of this host.
pub struct Dns {
    shared: Arc<Shared>,
    posts: Mutex<BTreeMap<PathBuf, Posted>>,
}

/// What the posts share.
struct Shared {
    directory: Arc<Directory>,
    hands: Semaphore,
    diverts: Holders<Divert>,
    /// The kernel knows no tables with an owner: no post can be made.
    unsupported: AtomicBool,
    tally: Tally,
}

struct Posted {
    sandbox: Sandbox,
    networks: Networks,
    condition: Arc<Condition>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// How the posts are, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Posts {
    /// Sandboxes whose queries come here.
    pub standing: usize,
    /// Sandboxes where it failed again and again; the log says why.
    pub failing: usize,
    /// Why there can be none: the kernel knows no nftables tables with an owner (Linux 5.12).
    pub unsupported: bool,
}

impl Dns {
    pub fn new(directory: Arc<Directory>) -> Self {
        let (diverts, unsupported, tally) = Default::default();
        let shared = Shared { directory, hands: Semaphore::new(AT_ONCE), diverts, unsupported, tally };
        Dns { shared: Arc::new(shared), posts: Mutex::default() }
    }

    /// Has a post in each of these sandboxes, as far as they are there by now, for these networks of theirs, and no others. Returns at once.
    /// To be called again when sandboxes have come or gone. To be called within a tokio runtime.
    pub fn keep(&self, wanted: &BTreeMap<PathBuf, Vec<NetworkId>>) {
        let there: BTreeMap<_, _> = wanted.iter().filter_map(|(path, networks)| Some((path, (Sandbox::at(path)?, networks)))).collect();
        let mut posts = self.posts.lock();
        posts.retain(|path, posted| {
            let stays = there.get(path).is_some_and(|(sandbox, _)| *sandbox == posted.sandbox);
            if !stays {
                posted.stop.cancel();
            }
            stays
        });
        for (path, (sandbox, networks)) in there {
            let posted = posts.entry(path.clone()).or_insert_with(|| self.post(sandbox));
            networks.clone_into(&mut posted.networks.write());
        }
    }

    fn post(&self, sandbox: Sandbox) -> Posted {
        let (networks, condition, stop) = (Networks::default(), Arc::<Condition>::default(), CancellationToken::new());
        let post = Post::new(self.shared.clone(), sandbox.clone(), networks.clone(), condition.clone(), stop.clone());
        Posted { sandbox, networks, condition, stop, task: tokio::spawn(post.stand()) }
    }

    /// Takes all posts down, and waits until they are.
    pub async fn close(&self) {
        let posts = std::mem::take(&mut *self.posts.lock());
        posts.values().for_each(|posted| posted.stop.cancel());
        for posted in posts.into_values() {
            if let Err(error) = posted.task.await {
                error!(%error, "a defect in rsnet: what answers a container's queries ended");
            }
        }
    }

    /// How the queries of all containers ended.
    pub fn tally(&self) -> Tally {
        self.shared.tally.clone()
    }

    pub fn posts(&self) -> Posts {
        let posts = self.posts.lock();
        let count =
            |is: fn(&Condition) -> &AtomicBool| posts.values().filter(|posted| is(&posted.condition).load(Ordering::Relaxed)).count();
        let unsupported = self.shared.unsupported.load(Ordering::Relaxed);
        Posts { standing: count(|condition| &condition.standing), failing: count(|condition| &condition.failing), unsupported }
    }
}
