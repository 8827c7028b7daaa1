//! Packets that are really sent, and followed where they are lost.

use std::path::Path;
use std::time::Duration;

use super::super::Error;
use super::{Explainer, HostAnswer, HostQuestion, Local};
use crate::explain::{Case, Probing, There};
use crate::model::{Answer, Flow, Probe, Protocol, Trace, Trail};

/// How long packets are followed if nobody asks what was seen.
const TRACED: Duration = Duration::from_secs(4);

/// A server of UDP may never answer.
const UDP_PATIENCE: Duration = Duration::from_millis(300);

/// How long an answer is waited for: a host on a LAN takes a millisecond, a neighbour that must be found some more.
const PATIENCE: Duration = Duration::from_millis(800);

impl Explainer {
    /// Sends packets, and has them followed if they are not answered.
    pub(super) async fn ask(&self, a: &Local, case: &mut Case) {
        let Some(sandbox) = a.sandbox() else { return };
        case.probing = match self.probe(&sandbox, case.flow, None).await {
            Ok((_, Answer::Reached)) => {
                let large = self.large(&sandbox, case).await;
                Probing { small: Some(Answer::Reached), large, ..Probing::default() }
            }
            Ok(_) => self.ask_followed(&sandbox, case).await,
            Err(error) => Probing { hindered: Some(error), ..Probing::default() },
        };
    }

    async fn probe(&self, sandbox: &Path, flow: Flow, size: Option<u32>) -> Result<(u16, Answer), String> {
        let source = rand::random_range(20_000..60_000);
        Ok((source, self.send(sandbox, Probe { flow, source, size }).await?))
    }

    async fn send(&self, sandbox: &Path, probe: Probe) -> Result<Answer, String> {
        let patience = if matches!(probe.flow.port, Some((Protocol::Udp, _))) { UDP_PATIENCE } else { PATIENCE };
        self.agent.kernel.probe(sandbox, &probe, patience).await.map_err(|error| error.to_string())
    }

    /// An echo as large as the interface takes, where a small one is answered. The host answers for what it translates.
    async fn large(&self, sandbox: &Path, case: &Case) -> Option<(u32, Answer)> {
        let end = case.here.end(case.flow.from)?;
        let link = end.sight.as_ref().ok()?.links.iter().find(|link| link.mac == Some(end.mac))?;
        let flow = Flow { port: None, ..case.flow };
        if case.led.is_some() || (case.flow.port.is_some() && self.probe(sandbox, flow, None).await.ok()?.1 != Answer::Reached) {
            return None;
        }
        let (_, answer) = self.probe(sandbox, flow, Some(link.mtu)).await.ok()?;
        Some((link.mtu, answer))
    }

    async fn ask_followed(&self, sandbox: &Path, case: &mut Case) -> Probing {
        let tunnel = case.here.underlay.as_ref().and_then(|way| way.tunnel);
        let probe = Probe { flow: case.flow, source: rand::random_range(20_000..60_000), size: None };
        let trace = Trace { flow: case.flow, source: probe.source, tunnel };
        let hindered = self.follow(&trace).err().map(|error| error.to_string());
        if let There::Host(host, side) = &case.there
            && side.is_ok()
        {
            // what it cannot follow it says by its silence
            let _ = self.ask_host(host, &HostQuestion::Follow(trace)).await;
        }
        let small = self.send(sandbox, probe.clone()).await;
        case.here.trails = self.followed(probe.source);
        if let There::Host(host, side) = &mut case.there
            && let Ok(side) = side.as_mut()
            && let Ok(HostAnswer::Trails(trails)) = self.ask_host(host, &HostQuestion::Followed { source: probe.source }).await
        {
            side.trails = trails;
        }
        Probing { traced: hindered.is_none(), hindered: hindered.or_else(|| small.as_ref().err().cloned()), small: small.ok(), large: None }
    }

    /// Follows packets until somebody asks what was seen, or for some seconds.
    pub(super) fn follow(&self, trace: &Trace) -> Result<(), Error> {
        let tracer = self.firewall.trace(trace).map_err(|error| Error::Refused(error.to_string()))?;
        self.tracers.lock().insert(trace.source, tracer);
        let (tracers, source) = (self.tracers.clone(), trace.source);
        tokio::spawn(async move {
            tokio::time::sleep(TRACED).await;
            tracers.lock().remove(&source);
        });
        Ok(())
    }

    pub(super) fn followed(&self, source: u16) -> Vec<Trail> {
        self.tracers.lock().remove(&source).map(|tracer| tracer.trails()).unwrap_or_default()
    }
}
