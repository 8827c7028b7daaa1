//! FENCING: a host that is cut off from the store, but not from its peers, hears from them that a block of it is another's by now, and uses it no more.
//!
//! Owns the question: when it is asked, whom, and by which route. What is answered, and what of an answer counts, is `cluster`'s
//! ([`Cluster::testimony`], [`Cluster::heed`]). Nothing is asked while the store answers. A store that is away for all takes
//! nothing from anybody, so nobody has anything to tell.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use futures_util::future::join_all;
use rand::seq::SliceRandom;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::cluster::{Cluster, Inquiry, Taken, View};
use crate::peers::{self, Peers};

/// Where hosts are asked it: what the asking one holds, answered with what of it is another's.
const PATH: &str = "/taken";
/// So soon after the store was last seen to answer others are asked first: at most that, for those who lose it do so together.
const SOON: Duration = Duration::from_secs(2);
/// And so often then, at most.
const BETWEEN: Duration = Duration::from_secs(10);
/// So many hosts at a time: all that the store answers know the same.
const ASKED: usize = 3;

/// What other hosts may ask this one.
pub fn routes(cluster: Arc<Cluster>) -> Router {
    Router::new().route(PATH, post(told)).with_state(cluster)
}

async fn told(State(cluster): State<Arc<Cluster>>, body: Bytes) -> Response {
    peers::call(body, async |inquiry: Inquiry| Ok::<_, Infallible>(cluster.testimony(&inquiry))).await
}

/// Asks whenever the store does not answer, until the process ends.
pub async fn run(cluster: Arc<Cluster>, peers: Arc<Peers>) {
    let mut views = cluster.views();
    while views.wait_for(|view| !view.in_touch).await.is_ok() {
        while_cut_off(&cluster, &peers, &mut views).await;
    }
}

async fn while_cut_off(cluster: &Cluster, peers: &Peers, views: &mut watch::Receiver<Arc<View>>) {
    let (mut turns, mut pause) = (Turns::default(), SOON);
    while timeout(jitter(pause), views.wait_for(|view| view.in_touch)).await.is_err() {
        pause = BETWEEN;
        let Some(inquiry) = cluster.inquiry() else { continue };
        let view = views.borrow().clone();
        join_all(turns.next(&view, peers.me()).iter().map(|host| ask(cluster, peers, host, &inquiry))).await;
    }
}

/// A host of an earlier version does not know the question: that is no word.
async fn ask(cluster: &Cluster, peers: &Peers, host: &str, inquiry: &Inquiry) {
    match peers.ask_json::<Vec<Taken>>(host, PATH, inquiry).await {
        Ok(taken) if !cluster.heed(&taken).is_empty() => {
            warn!("the store does not answer; host {host}, which it answers, told whose they are")
        }
        Ok(_) => {}
        Err(error) => debug!("ask whose this host's blocks are: {error}"),
    }
}

/// Half of it to all of it.
fn jitter(time: Duration) -> Duration {
    time.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}

/// Whom to ask next: each host once, then all again.
#[derive(Default)]
struct Turns(Vec<String>);

impl Turns {
    /// In random order, but first those that were alive when the store last said so: it does not say any more who is.
    fn next(&mut self, view: &View, me: &str) -> Vec<String> {
        if self.0.is_empty() {
            let mut hosts: Vec<_> = view.hosts.iter().filter(|host| host.name != me).collect();
            hosts.shuffle(&mut rand::rng());
            hosts.sort_by_key(|host| host.alive);
            self.0 = hosts.into_iter().map(|host| host.name.clone()).collect();
        }
        self.0.split_off(self.0.len().saturating_sub(ASKED))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cluster::Host;

    fn view(hosts: &[(&str, bool)]) -> View {
        let host =
            |(name, alive): &(&str, bool)| Host { name: (*name).into(), vtep: [192, 0, 2, 1].into(), alive: *alive, gone_since: None };
        View { hosts: hosts.iter().map(host).collect(), ..View::default() }
    }

    #[test]
    fn each_host_is_asked_once_before_any_is_asked_again_and_the_living_first() {
        let view = view(&[("a", true), ("b", false), ("c", true), ("d", true), ("e", true), ("f", true), ("g", true), ("me", true)]);
        let mut turns = Turns::default();
        for _ in 0..20 {
            let [first, second, third] = [(); 3].map(|()| turns.next(&view, "me"));
            let living: BTreeSet<&str> = first.iter().chain(&second).map(String::as_str).collect();
            assert_eq!((living, third), (["a", "c", "d", "e", "f", "g"].into(), vec!["b".to_owned()]));
        }
    }

    #[test]
    fn a_host_alone_asks_nobody() {
        assert_eq!(Turns::default().next(&view(&[("me", true)]), "me"), Vec::<String>::new());
    }
}
