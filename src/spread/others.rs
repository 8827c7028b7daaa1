//! Who uses a network on other hosts: asked before it goes from all of them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::debug;

use super::Spread;
use crate::cluster::View;
use crate::peers::{self, Peers};

/// Where hosts are asked it: a network's name, answered with the names of the containers on it.
const PATH: &str = "/spread/users";
/// How long a host may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The other hosts.
#[async_trait]
pub trait Others: Send + Sync {
    /// The names of the containers on each one's network of this name, where there are any. Who does not answer in time is left out.
    async fn users(&self, name: &str) -> BTreeMap<String, Vec<String>>;
}

/// Those of the cluster.
pub struct Asked {
    pub peers: Arc<Peers>,
    pub views: watch::Receiver<Arc<View>>,
}

#[async_trait]
impl Others for Asked {
    async fn users(&self, name: &str) -> BTreeMap<String, Vec<String>> {
        let view = self.views.borrow().clone();
        let alive = view.hosts.iter().filter(|host| host.alive && host.name != self.peers.me());
        let ask = async |host: &str| match timeout(PATIENCE, self.peers.ask_json(host, PATH, &name)).await {
            Ok(Ok(users)) => (host.to_owned(), users),
            failed => {
                debug!("ask host {host} who uses network {name}: {failed:?}");
                (host.to_owned(), Vec::new())
            }
        };
        let answers: Vec<(String, Vec<String>)> = join_all(alive.map(|host| ask(&host.name))).await;
        answers.into_iter().filter(|(_, users)| !users.is_empty()).collect()
    }
}

/// What other hosts may ask this one; nothing where it takes no part.
pub fn routes(spread: Option<Arc<Spread>>) -> Router {
    spread.map_or_else(Router::new, |spread| Router::new().route(PATH, post(told)).with_state(spread))
}

async fn told(State(spread): State<Arc<Spread>>, body: Bytes) -> Response {
    peers::call(body, async |name: String| Ok::<_, Infallible>(spread.users_here(&name).await)).await
}
