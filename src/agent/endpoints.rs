//! Endpoints: create, join, leave, delete.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tracing::{info, warn};

use super::state::{AWAITED, Known, Presence, declare_endpoint};
use super::{Agent, Declaration, Error};
use crate::drivers::Join;
use crate::kernel::Kernel;
use crate::model::{Attached, Attachment, Endpoint, EndpointId, IfName, Mac, NetworkId, Place, Sandbox, StaticRoute, Way};

/// How often it is looked whether the engine has moved a link: at first, after so long, and from then on.
const GLANCE: Duration = Duration::from_millis(20);
const SOON: Duration = Duration::from_secs(2);
const SELDOM: Duration = Duration::from_millis(500);

/// An endpoint as the engine asks for it.
#[derive(Clone, Debug)]
pub struct NewEndpoint {
    pub id: EndpointId,
    pub network: NetworkId,
    pub addresses: Vec<IpNet>,
    /// `None`: ours to choose.
    pub mac: Option<Mac>,
    /// Whether a user chose it: the engine chooses one where nobody does.
    pub mac_given: bool,
    pub interface_name: Option<IfName>,
    pub sysctls: Vec<(String, String)>,
}

/// The answer to `Join`, with the names that the engine needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// The link to move; `None`: there is none, or it is in the sandbox already.
    pub link: Option<IfName>,
    pub prefix: String,
    pub interface_name: Option<IfName>,
    pub gateways: Vec<IpAddr>,
    pub routes: Vec<StaticRoute>,
    pub gateway_service: bool,
}

impl Agent {
    /// Engine: `CreateEndpoint`; gives the MAC. A known id is replaced: the engine repeats a call whose answer it lost.
    pub async fn create_endpoint(&self, new: NewEndpoint) -> Result<Mac, Error> {
        // the network must not go meanwhile
        let _network = self.locks.hold(new.network.as_str()).await;
        let _held = self.locks.hold(new.id.as_str()).await;
        let NewEndpoint { id, network, addresses, mac, mac_given, interface_name, sysctls } = new;
        let mac = mac.or_else(|| self.last_mac(&network, &addresses)).unwrap_or_else(|| Mac::local(rand::random()));
        let (attached, bindings) = (Attached::No, Vec::new());
        let endpoint = Endpoint { id, network, addresses, mac, mac_given, interface_name, sysctls, attached, bindings };
        if let Some(mode) = { self.state.lock().mode(&endpoint.network) } {
            mode.check(&endpoint).map_err(Error::Refused)?;
        }
        self.refuse_twins(&endpoint).await?;
        self.claim_mac(&endpoint).await?;
        self.ask_for_strangers(&endpoint);
        let declared = self.declare(endpoint.clone(), Presence::awaited()).await;
        if declared.is_err() {
            self.give_up_mac(&endpoint);
        }
        declared.map(|()| {
            info!(network = %endpoint.network, endpoint = %endpoint.id, addresses = ?endpoint.addresses, %mac, "endpoint created");
            mac
        })
    }

    fn ask_for_strangers(&self, endpoint: &Endpoint) {
        let mode = self.state.lock().mode(&endpoint.network);
        self.strangers.ask(&self.kernel, endpoint, mode.map(|mode| mode.exclusive(endpoint)).unwrap_or_default());
    }

    /// Engine: `Join`. On error the engine sends `DeleteEndpoint`, from 29.0 on `Leave` before it.
    pub async fn join(&self, network: &NetworkId, id: &EndpointId, sandbox: PathBuf) -> Result<Joined, Error> {
        let _held = self.locks.hold(id.as_str()).await;
        let mut endpoint = self.known(network, id)?.endpoint;
        let mode = self.mode(network)?;
        let there = self.kernel.is_sandbox(&sandbox);
        let way = if there { mode.way() } else { Way::Engine };
        let presence = if there { Presence::Seen } else { Presence::awaited() };
        let sandbox = Sandbox { path: sandbox, way };
        let answer = mode.join(&endpoint);
        if let Some(refusal) = self.strangers.refusal(id).await {
            return Err(Error::Refused(refusal));
        }
        endpoint.attached = Attached::Joined(sandbox.clone());
        self.attach(&endpoint, sandbox).await?;
        self.tune(&endpoint, way, mode.endpoint(&endpoint).attachment());
        let joined = names(&endpoint, way, answer);
        self.remember(endpoint, presence)?;
        info!(%network, endpoint = %id, "a container joined");
        Ok(joined)
    }

    /// Makes the link. While it is made the engine has its part still to do; what is stored is what holds once it has been answered.
    async fn attach(&self, joined: &Endpoint, sandbox: Sandbox) -> Result<(), Error> {
        let (network, id) = (&joined.network, &joined.id);
        let mode = self.mode(network)?;
        let before = self.known(network, id)?.endpoint;
        let joining = Endpoint { attached: Attached::Joining(sandbox), ..joined.clone() };
        let after = declare_endpoint(&*mode, network, id, Some(joined));
        let making = Declaration { plan: mode.endpoint(&joining), ..after };
        self.settle(declare_endpoint(&*mode, network, id, Some(&before)), making).await?;
        let owner = super::state::endpoint_owner(network, id);
        Ok(self.reconciler.expect(&owner, mode.endpoint(joined)).map_err(crate::reconcile::Error::from)?)
    }

    /// Has what a mode wants of a link in its sandbox, beyond what the engine sets for the user, set once the engine has moved it there.
    fn tune(&self, endpoint: &Endpoint, way: Way, attachment: Option<&Attachment>) {
        let Some(attachment) = attachment else { return };
        let Place::Sandbox { sysctls, .. } = &attachment.place else { return };
        if way == Way::Engine && *sysctls != endpoint.sysctls {
            tokio::spawn(tune(self.kernel.clone(), attachment.clone()));
        }
    }

    /// Engine: `Leave`. Ports are free after it. A link that the engine moved is on its way back and goes with `DeleteEndpoint`.
    pub async fn leave(&self, network: &NetworkId, id: &EndpointId) -> Result<(), Error> {
        let _held = self.locks.hold(id.as_str()).await;
        let Some(Known { mut endpoint, presence }) = self.state.lock().endpoint(network, id) else { return Ok(()) };
        endpoint.bindings.clear();
        if let Attached::Joined(Sandbox { way: Way::Direct, .. }) = endpoint.attached {
            endpoint.attached = Attached::No;
        }
        self.reduce(endpoint, presence).await?;
        info!(%network, endpoint = %id, "its container left");
        Ok(())
    }

    /// Engine: `DeleteEndpoint`; may come twice, for an unknown id, or without `Leave`.
    pub async fn delete_endpoint(&self, network: &NetworkId, id: &EndpointId) -> Result<(), Error> {
        let _held = self.locks.hold(id.as_str()).await;
        self.strangers.forget(id);
        let (Some(mode), Some(known)) = ({ self.state.lock().mode(network) }, { self.state.lock().endpoint(network, id) }) else {
            return Ok(());
        };
        let before = declare_endpoint(&*mode, network, id, Some(&known.endpoint));
        self.withdraw(before, declare_endpoint(&*mode, network, id, None)).await?;
        if let Some(live) = self.state.lock().networks.get_mut(network) {
            live.endpoints.remove(id);
        }
        self.moved.notify_one();
        self.give_up_mac(&known.endpoint);
        info!(%network, endpoint = %id, "endpoint deleted");
        Ok(())
    }

    /// Makes what is declared of one endpoint be `after`, and remembers it.
    pub(super) async fn declare(&self, after: Endpoint, presence: Presence) -> Result<(), Error> {
        let (before, declared) = self.declarations(&after)?;
        self.settle(before, declared).await?;
        self.remember(after, presence)
    }

    /// The same where it has less than before.
    pub(super) async fn reduce(&self, after: Endpoint, presence: Presence) -> Result<(), Error> {
        let (before, declared) = self.declarations(&after)?;
        self.withdraw(before, declared).await?;
        self.remember(after, presence)
    }

    /// Of one endpoint: what is declared, and what is to be.
    fn declarations(&self, after: &Endpoint) -> Result<(Declaration, Declaration), Error> {
        let (network, id) = (&after.network, &after.id);
        let mode = self.mode(network)?;
        let known = self.state.lock().endpoint(network, id);
        let before = declare_endpoint(&*mode, network, id, known.as_ref().map(|known| &known.endpoint));
        Ok((before, declare_endpoint(&*mode, network, id, Some(after))))
    }

    fn remember(&self, endpoint: Endpoint, presence: Presence) -> Result<(), Error> {
        let mut state = self.state.lock();
        let live = state.networks.get_mut(&endpoint.network).ok_or_else(|| Error::UnknownNetwork(endpoint.network.clone()))?;
        live.origin.unheard = false;
        live.macs.extend(endpoint.addresses.iter().map(|address| (address.addr(), endpoint.mac)));
        live.endpoints.insert(endpoint.id.clone(), Known { endpoint, presence });
        self.moved.notify_one();
        Ok(())
    }

    /// The MAC that one of the addresses had before, unless a container has it now.
    fn last_mac(&self, network: &NetworkId, addresses: &[IpNet]) -> Option<Mac> {
        let state = self.state.lock();
        let live = state.networks.get(network)?;
        let mac = addresses.iter().find_map(|address| live.macs.get(&address.addr()))?;
        live.endpoints.values().all(|known| known.endpoint.mac != *mac).then_some(*mac)
    }

    pub(super) fn known(&self, network: &NetworkId, id: &EndpointId) -> Result<Known, Error> {
        self.state.lock().endpoint(network, id).ok_or_else(|| Error::UnknownEndpoint(id.clone()))
    }
}

/// Looks for the link until it is there; engines up to 27 move it when the container runs.
async fn tune(kernel: Arc<dyn Kernel>, attachment: Attachment) {
    let began = Instant::now();
    while began.elapsed() < AWAITED {
        match kernel.tune(&attachment).await {
            Ok(true) => return,
            Ok(false) => tokio::time::sleep(if began.elapsed() < SOON { GLANCE } else { SELDOM }).await,
            Err(error) => return warn!(%error, "a container's link is not as its network asks"),
        }
    }
}

fn names(endpoint: &Endpoint, way: Way, answer: Join) -> Joined {
    Joined {
        link: answer.link.filter(|_| way == Way::Engine),
        prefix: answer.prefix,
        interface_name: endpoint.interface_name.clone(),
        gateways: answer.gateways,
        routes: answer.routes,
        gateway_service: answer.gateway_service,
    }
}
