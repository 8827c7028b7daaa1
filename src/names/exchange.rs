//! Carries between hosts what they say of names.
//!
//! One courier for each host that is alive: it brings what that host has not taken, asks for what it has not told, and rests until something
//! changes. It ends with the host's lease, and the next one begins from nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Router};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;
use tracing::debug;

use super::Names;
use super::book::{Answer, Message, Taken};
use crate::peers::{self, Asker, Peers};

/// Where hosts are told it.
const PATH: &str = "/names";
/// Between the first tries to tell a host; then twice as long each time.
const AGAIN: Duration = Duration::from_millis(50);
/// And never longer.
const LONGEST: Duration = Duration::from_secs(5);

pub fn routes(names: Arc<Names>) -> Router {
    Router::new().route(PATH, post(told)).with_state(names)
}

async fn told(State(names): State<Arc<Names>>, Extension(Asker(host)): Extension<Asker>, body: Bytes) -> Response {
    peers::call(body, async |message: Message| {
        if !names.book.has_all(&message) {
            // one may be new here
            names.look();
        }
        Ok::<Answer, Infallible>(names.book.answer(&host, message))
    })
    .await
}

/// One for each other host that is alive.
#[derive(Default)]
pub struct Couriers {
    tasks: JoinSet<()>,
    by_host: BTreeMap<String, AbortHandle>,
}

impl Couriers {
    pub fn tend(&mut self, names: &Arc<Names>) {
        let Some(peers) = &names.peers else { return };
        let alive = names.directory().alive();
        self.by_host.retain(|host, task| {
            let stays = alive.contains(host);
            if !stays {
                task.abort();
            }
            stays
        });
        for host in alive {
            let (names, peers, to) = (names.clone(), peers.clone(), host.clone());
            self.by_host.entry(host).or_insert_with(|| self.tasks.spawn(bring(names, peers, to)));
        }
        while self.tasks.try_join_next().is_some() {}
    }
}

/// Brings a host all that it lacks, for as long as it is alive.
async fn bring(names: Arc<Names>, peers: Arc<Peers>, host: String) {
    let (mut changed, mut taken, mut pause) = (names.changed.subscribe(), Taken::new(), AGAIN);
    loop {
        changed.mark_unchanged();
        match names.book.message(&host, &taken) {
            None if changed.changed().await.is_err() => return,
            None => {}
            Some(message) if deliver(&names, &peers, &host, &message, &mut taken).await => pause = AGAIN,
            Some(_) => {
                sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
                pause = (2 * pause).min(LONGEST);
            }
        }
    }
}

async fn deliver(names: &Names, peers: &Peers, host: &str, message: &Message, taken: &mut Taken) -> bool {
    match peers.ask_json(host, PATH, message).await {
        Ok(answer) => names.book.take(host, message, answer, taken),
        Err(error) => {
            debug!("tell names: {error}");
            false
        }
    }
}
