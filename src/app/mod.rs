//! Composition root: the only place that knows all concrete types. Everything is built before anything runs.

mod across;
mod base;
pub mod memory;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use futures_util::FutureExt;
use listenfd::ListenFd;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::Settings;
use crate::inspect::Sources;
use crate::plugin::{self, Sockets};
use crate::reconcile::Reconciler;
use crate::store::embedded::Embedded;
use crate::telemetry::Metrics;
use crate::{driver, inspect, ipam, spread};
use across::Across;
use base::{Base, host};

type Failure = Box<dyn std::error::Error>;

/// How long the last deletions may take after the last answer.
const LAST_DELETIONS: Duration = Duration::from_secs(2);

/// How often a shared store that cannot be reached is asked again.
const AGAIN: Duration = Duration::from_secs(5);

/// The daemon, ready to run.
pub struct App {
    base: Base,
    across: Across,
    sockets: Sockets,
    router: Router,
    metrics: Option<(TcpListener, Router)>,
    docker: Option<PathBuf>,
}

/// Opens the store and the kernel, reads what is declared, and listens; answers nothing yet and leaves the host as it is.
pub async fn build(settings: Settings) -> Result<App, Failure> {
    let base = Base::open(&settings).await?;
    let across = Across::build(&settings, &base).await?;
    let (sources, metrics) = (sources(&settings, &base, &across), Arc::new(Metrics::default()));
    let shown = match settings.metrics {
        Some(address) => Some((TcpListener::bind(address).await?, metrics.router(sources.clone()).merge(inspect::probes(sources.clone())))),
        None => None,
    };
    let router = metrics.around(plugin::router(calls(&base, &across, sources)));
    Ok(App { base, across, sockets: sockets(&settings)?, router, metrics: shown, docker: settings.docker })
}

/// What people ask about.
fn sources(settings: &Settings, base: &Base, across: &Across) -> Arc<Sources> {
    Arc::new(Sources {
        agent: base.agent.clone(),
        reconciler: base.reconciler.clone(),
        consul: base.consul.clone(),
        kernel: base.kernel.clone(),
        firewall: base.firewall.clone(),
        data_dir: settings.data_dir.clone(),
        started: Instant::now(),
        dns: across.dns.clone(),
        names: across.names.clone(),
        peers: across.peers.clone(),
    })
}

/// All that is asked on the plugin's socket.
fn calls(base: &Base, across: &Across, sources: Arc<Sources>) -> Router {
    let agent = || base.agent.clone();
    driver::router(agent())
        .merge(ipam::router(agent()))
        .merge(inspect::router(agent(), across.names.clone()))
        .merge(inspect::state_router(sources))
        .merge(inspect::explain_router(across.explainer.clone()))
        .merge(spread::router(across.spread.clone()))
}

/// The sockets that systemd hands over, or else those of the settings.
fn sockets(settings: &Settings) -> Result<Sockets, Failure> {
    let mut handed = ListenFd::from_env();
    let mut sockets = Sockets::default();
    for index in 0..handed.len() {
        if let Some(listener) = handed.take_unix_listener(index)? {
            sockets.adopt(listener)?;
        }
    }
    Ok(if sockets.is_empty() { Sockets::bind(&settings.sockets)? } else { sockets })
}

impl App {
    /// Serves until SIGTERM or SIGINT. Calls under way are finished; networks, containers and firewall stay as they are.
    pub async fn run(self) -> Result<(), Failure> {
        let stop = stop_on_signals()?;
        let App { base, across, sockets, router, metrics, docker } = self;
        let (reconciler, dns, mut background) = (base.reconciler.clone(), across.dns.clone(), JoinSet::new());
        let mut watch = Box::pin(async move { reconciler.watch().await });
        // its first look has the host to itself before any call is answered
        let _ = (&mut watch).now_or_never();
        background.spawn(watch);
        background.spawn(memory::give_back());
        base.spawn(&mut background);
        across.spawn(&base, &mut background);
        if let Some(socket) = docker {
            let names = base.agent.names();
            background.spawn(async move { names.learn(&socket).await });
        }
        if let Some((listener, router)) = metrics {
            background.spawn(axum::serve(listener, router).into_future().map(drop));
        }
        info!("rsnet {} is ready", env!("CARGO_PKG_VERSION"));
        plugin::serve(sockets, router, stop).await;
        background.abort_all();
        tokio::join!(base.reconciler.idle(LAST_DELETIONS), timeout(LAST_DELETIONS, dns.close()).map(drop));
        Ok(())
    }
}

fn stop_on_signals() -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut term, mut interrupt, stopping) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, stop.clone());
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
        stopping.cancel();
    });
    Ok(stop)
}

/// A managed plugin keeps its state elsewhere: that it runs shows by its socket only.
fn refuse_beside_a_daemon(settings: &Settings) -> Result<(), Failure> {
    let answers = |socket: &&PathBuf| std::os::unix::net::UnixStream::connect(socket).is_ok();
    match settings.sockets.iter().find(answers) {
        None => Ok(()),
        Some(socket) => Err(format!(
            "rsnet runs: {} answers. Stop it first: `docker plugin disable rsnet/driver` or `systemctl stop rsnet.socket rsnet`",
            socket.display()
        )
        .into()),
    }
}

/// Makes the host have nothing of rsnet's; with `forget` also the store. Refused while a daemon has the store.
pub async fn clean(settings: &Settings, forget: bool) -> Result<usize, Failure> {
    let file = settings.data_dir.join("state.redb");
    let store = if file.exists() { Some(Embedded::open(&file)?) } else { refuse_beside_a_daemon(settings).map(|()| None)? };
    let (kernel, firewall) = host(settings)?;
    let report = Reconciler::new(kernel, firewall).clear().await?;
    if let Some(error) = report.failed.into_iter().next() {
        return Err(error.into());
    }
    drop(store);
    if forget && file.exists() {
        std::fs::remove_file(&file)?;
    }
    Ok(report.mended)
}
